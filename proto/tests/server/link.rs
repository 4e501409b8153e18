//! Who is served, and what ends a link.

use super::host::{Disk, Host, LINK};
use carapace_proto::ids::{ConnId, StreamId};
use carapace_proto::machine::{Input, Source};
use carapace_proto::time::Duration;
use carapace_proto::wire::frame::{Fault, StreamFrame};
use carapace_proto::wire::message::{Message, Role, VERSION};

const OTHER: ConnId = ConnId::accepted(9);

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn strangers_are_told_that_they_are_not_served() {
    for uid in [None, Some(1001)] {
        let mut host = Host::unlinked();
        host.connect(OTHER, uid);
        assert!(said(&host.written(OTHER)).contains("refused"), "uid {uid:?}");
        assert_eq!(host.closed, [OTHER]);
        assert!(host.server.is_idle());
    }
}

#[test]
fn a_hello_must_answer_the_nonce_in_our_version() {
    for (nonce_is_right, version, expected) in
        [(false, VERSION, "another nonce"), (true, VERSION + 1, "speaks version 1")]
    {
        let mut host = Host::unlinked();
        host.connect(OTHER, Some(0));
        let nonce = host.nonce(OTHER);
        let nonce = if nonce_is_right { nonce } else { "0".repeat(32) };
        host.hello(OTHER, &nonce, version, Role::Agent);
        let answer = said(&host.written(OTHER));
        assert!(answer.contains(expected), "{answer}");
        assert_eq!(host.closed, [OTHER]);
    }
}

#[test]
fn nonces_are_fresh() {
    let mut host = Host::unlinked();
    host.connect(LINK, Some(0));
    host.connect(OTHER, Some(0));
    assert_ne!(host.nonce(LINK), host.nonce(OTHER));
}

#[test]
fn who_says_nothing_is_closed_after_five_seconds() {
    let mut host = Host::unlinked();
    host.connect(OTHER, Some(0));
    host.pass(Duration::from_millis(4_999));
    assert!(host.closed.is_empty());
    host.pass(Duration::from_millis(2));
    assert_eq!(host.closed, [OTHER]);
}

#[test]
fn many_strangers_push_out_the_oldest_and_never_the_newest() {
    let mut host = Host::unlinked();
    for n in 0..65 {
        host.connect(ConnId::accepted(n), Some(0));
    }
    assert_eq!(host.closed, [ConnId::accepted(0)]);
}

#[test]
fn garbage_closes_the_link_with_a_reason_and_nobody_else_notices() {
    for garbage in [&[0xff; 8][..], &[0, 0, 0, 0], b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x02{]"] {
        let mut host = Host::new();
        host.connect(OTHER, Some(0));
        let nonce = host.nonce(OTHER);
        host.hello(OTHER, &nonce, VERSION, Role::Agent);
        host.handle(Input::Bytes { source: Source::Conn(OTHER), bytes: garbage });
        assert_eq!(host.closed, [OTHER], "{garbage:?}");
        let stream = host.rpc(r#"{"jsonrpc":"2.0","id":1,"method":"nope"}"#);
        assert_eq!(host.replies[&stream].status, Some(200));
    }
}

#[test]
fn a_stream_id_cannot_be_used_twice() {
    let mut host = Host::new();
    let stream = host.rpc("{}");
    host.session.open(stream);
    host.session.send(stream, &StreamFrame::Run { terminal: false, tool: b"echo" });
    host.exchange();
    assert_eq!(host.closed, [LINK]);
}

#[test]
fn frames_of_unknown_streams_are_passed_over() {
    let mut host = Host::new();
    for frame in [
        StreamFrame::Signal { number: 9 },
        StreamFrame::Credit { bytes: 1 },
        StreamFrame::Unknown { kind: 0x70 },
        StreamFrame::Reset { fault: Fault::Cancelled, text: b"" },
        StreamFrame::Exit { value: 0, signaled: false, core: false },
    ] {
        host.session.send_now(StreamId(77), &frame);
    }
    host.exchange();
    assert!(host.closed.is_empty());
}

#[test]
fn a_probe_hears_how_the_server_is() {
    let mut host = Host::new();
    host.session.send_message(&Message::Health {});
    host.exchange();
    assert_eq!(host.messages.len(), 1);
    assert!(host.messages[0].contains(r#"status: "ok", connections: 1"#), "{}", host.messages[0]);
}

#[test]
fn a_silent_link_is_found_dead_within_25_seconds() {
    let mut host = Host::unlinked();
    host.connect(OTHER, Some(0));
    let nonce = host.nonce(OTHER);
    host.hello(OTHER, &nonce, VERSION, Role::Agent);
    host.written(OTHER);
    host.pass(Duration::from_millis(24_900));
    assert!(host.closed.is_empty());
    host.pass(Duration::from_millis(200));
    assert_eq!(host.closed, [OTHER]);
}

#[test]
fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut host = Host::new();
    let running = host.rpc(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
    let upstream = host.accept_upstream();
    host.handle(Input::Drain);
    assert!(!host.drained);
    let refused = host.rpc(r#"{"jsonrpc":"2.0","id":2,"method":"version"}"#);
    assert_eq!(host.replies[&refused].status, Some(503));
    host.upstream_says(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    assert_eq!(host.replies[&running].text(), "{}");
    assert!(host.drained);
    assert!(host.server.is_idle());
}

#[test]
fn a_drain_ends_after_thirty_seconds_whatever_runs() {
    let mut host = Host::new();
    host.disk = Disk::Slow;
    host.rpc(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#);
    host.handle(Input::Drain);
    host.pass(Duration::from_secs(31));
    assert!(host.drained);
}
