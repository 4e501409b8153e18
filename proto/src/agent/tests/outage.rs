//! The link: greeting, loss, waiting, coming back.

use super::*;
use crate::limits::*;

fn failure(answer: &str) -> (u16, &str) {
    let (status, head, body) = response(answer);
    assert_eq!(head.contains("Retry-After"), status == 503, "{head}");
    (status, body)
}

#[test]
fn a_call_before_the_first_link_waits_for_it() {
    let mut rig = Rig::down();
    let (conn, answer) = rig.ask(&(call("1") + &call("2")));
    assert_eq!(answer, "");
    rig.pass_ms(500);
    rig.server_comes();
    assert_eq!(rig.take_seen().len(), 2);
    rig.answer(1, "one");
    rig.answer(2, "two");
    let answers = rig.received(conn);
    assert!(answers.contains("one") && answers.ends_with("two"), "{answers}");
}

#[test]
fn a_call_that_waited_long_enough_is_not_started_and_later_ones_do_not_wait() {
    let mut rig = Rig::down();
    let (conn, _) = rig.ask(&call(r#""a""#));
    let half = call("5");
    let (head, body) = half.split_at(half.len() - 10);
    let (late, _) = rig.ask(head);
    rig.pass(OUTAGE_WAIT);
    let answer = rig.received(conn);
    let (status, body_text) = failure(&answer);
    assert_eq!(status, 503);
    assert!(body_text.contains(r#""code":-32004"#) && body_text.ends_with(r#""id":"a"}"#), "{body_text}");
    // The id of one whose body is on its way is waited for.
    rig.send(late, body.as_bytes());
    let answer = rig.received(late);
    assert!(failure(&answer).1.ends_with(r#""id":5}"#), "{answer}");
    let (never, _) = rig.ask(head);
    rig.pass(REFUSED_BODY_WAIT);
    let answer = rig.received(never);
    assert!(failure(&answer).1.ends_with(r#""id":null}"#), "{answer}");
    let (_, answer) = rig.ask(&call("7"));
    assert!(failure(&answer).1.ends_with(r#""id":7}"#), "{answer}");
    let (_, answer) = rig.ask(EVENTS);
    assert_eq!(failure(&answer).0, 503);
    // A client that waits to be asked for its body is not asked.
    let expect =
        "POST / HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let (_, answer) = rig.ask(expect);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    // The connection is good for a call after the server's return.
    rig.server_comes();
    rig.send(conn, call("8").as_bytes());
    rig.answer(1, "{}");
    assert!(rig.received(conn).starts_with("HTTP/1.1 200"));
}

#[test]
fn calls_in_flight_hear_whether_they_may_have_started() {
    let mut rig = Rig::up();
    rig.pass(Duration::from_secs(2));
    let (started, _) = rig.ask(&call("1"));
    rig.server_reads = false;
    let (kept_back, _) = rig.ask(&call("2"));
    let (download, _) = rig.ask("GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n");
    rig.respond(1, 200, ResponseBody::Stream, &[]);
    let (waiting, _) = rig.ask(&call("4"));
    rig.server_goes();
    assert_eq!(rig.closed(started), Some(Closing::Orderly), "cut in the middle of its body");
    let answer = rig.received(kept_back);
    assert_eq!(failure(&answer).0, 503);
    for conn in [download, waiting] {
        let answer = rig.received(conn);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
    rig.server_reads = true;
    assert_eq!(rig.dials.len(), 2, "dialled again at once");
    rig.server_comes();
    let (gone, _) = rig.ask(&call("6"));
    rig.server_goes();
    let answer = rig.received(gone);
    let (status, body) = failure(&answer);
    assert_eq!(status, 504);
    assert!(body.contains(r#""code":-32005"#) && body.contains("outcome is unknown"), "{body}");
    assert!(rig.agent.hub.streams.is_empty());
    assert_eq!(rig.agent.held_bytes(), 0);
}

#[test]
fn a_call_during_a_short_outage_waits_and_is_carried_out() {
    let mut rig = Rig::up();
    rig.pass(Duration::from_secs(2));
    rig.server_goes();
    rig.refuse_dial();
    let (conn, _) = rig.ask(&call("1"));
    rig.pass_ms(300);
    assert!(rig.dials.len() > 2, "{:?}", rig.dials);
    rig.server_comes();
    rig.answer(1, "{}");
    assert!(rig.received(conn).ends_with("{}"));
}

#[test]
fn the_agent_comes_back_within_a_second_however_long_the_server_was_away() {
    let mut rig = Rig::up();
    rig.server_goes();
    for _ in 0..2_000 {
        if rig.link.is_some() {
            rig.refuse_dial();
        }
        rig.pass_ms(50);
    }
    assert!(rig.dials.windows(2).all(|pair| pair[1].since(pair[0]) < Duration::from_millis(600)));
    assert!(rig.dials.len() < 500, "{} dials in 100 s", rig.dials.len());
}

#[test]
fn a_server_that_turns_the_agent_away_is_asked_less_and_less() {
    let mut rig = Rig::down();
    for _ in 0..2_000 {
        if let Some(conn) = rig.link {
            rig.handle(Input::Connected { conn });
            rig.server_says(&Message::Refused { reason: "who are you?".into() });
            assert!(rig.link.is_none());
        }
        rig.pass_ms(50);
    }
    assert!(rig.dials.len() < 50, "{} dials in 100 s", rig.dials.len());
    let (_, answer) = rig.ask(&call("1"));
    assert!(answer.contains("the server refused this agent: who are you?"), "{answer}");
}

#[test]
fn what_is_no_server_is_left_alone() {
    let oversized = u32::try_from(HANDSHAKE_FRAME_BYTES_MAX + 1).unwrap().to_be_bytes();
    let mut welcome = Vec::new();
    Message::Welcome(Welcome { session: "a".into(), resumed: false, received: 0 }).write(&mut welcome);
    let garbage: [&[u8]; 5] =
        [b"HTTP/1.1 400 Bad Request\r\n\r\n", &oversized, &welcome, b"\0\0\0\x01x", b"\0\0\0\x02{}"];
    for bytes in garbage {
        let mut rig = Rig::down();
        let conn = rig.link.unwrap();
        rig.handle(Input::Connected { conn });
        rig.link_bytes(bytes);
        assert!(rig.link.is_none(), "{bytes:?}");
        rig.pass_ms(600);
        assert_eq!(rig.dials.len(), 2, "{bytes:?}");
    }
    // Nor is one waited for that says nothing.
    let mut rig = Rig::down();
    rig.pass(HANDSHAKE_TIMEOUT);
    assert!(rig.link.is_none());
    rig.pass_ms(600);
    let conn = rig.link.unwrap();
    rig.handle(Input::Connected { conn });
    rig.pass(HANDSHAKE_TIMEOUT);
    assert!(rig.link.is_none());
}

#[test]
fn a_server_that_breaks_the_protocol_loses_the_link() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask(&call("1"));
    rig.link_bytes(&[0xff; 4]);
    assert!(rig.link.is_none());
    assert!(rig.received(conn).starts_with("HTTP/1.1 504"));
    rig.pass_ms(600);
    rig.server_comes();
}

#[test]
fn a_dead_link_is_found_by_its_silence() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask(&call("1"));
    rig.server_reads = false;
    rig.server = None;
    rig.pass(KEEPALIVE_IDLE + KEEPALIVE_ANSWER);
    assert!(rig.received(conn).starts_with("HTTP/1.1 504"));
    assert!(rig.dials.len() >= 2);
}

#[test]
fn late_news_of_a_link_that_was_given_up_is_ignored() {
    let mut rig = Rig::up();
    let old = rig.link.unwrap();
    rig.server_goes();
    rig.handle(Input::Connected { conn: old });
    rig.handle(Input::Bytes { source: Source::Conn(old), bytes: b"x" });
    rig.handle(Input::Sent { sink: Sink::Conn(old), count: 5 });
    rig.handle(Input::Eof { source: Source::Conn(old) });
    rig.handle(Input::Lost { conn: old, loss: Loss::Failed });
    rig.pass_ms(600);
    rig.server_comes();
}

#[test]
fn what_waits_for_the_link_is_read_only_so_far() {
    let mut rig = Rig::down();
    let head = "POST /x HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 300000\r\n\r\n";
    let (conn, _) = rig.ask(head);
    let mut sent = 0;
    while !rig.client(conn).is_paused {
        rig.send(conn, &[b'x'; 10_000]);
        sent += 10_000;
        assert!(sent <= PIPELINE_BYTES_MAX + 10_000, "{sent}");
    }
    rig.server_comes();
    while sent < 300_000 {
        rig.send(conn, &[b'x'; 10_000]);
        sent += 10_000;
    }
    rig.answer(1, "{}");
    assert!(rig.received(conn).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_client_that_leaves_while_it_waits_is_forgotten() {
    let mut rig = Rig::down();
    let (conn, _) = rig.ask(&call("1"));
    rig.handle(Input::Lost { conn, loss: Loss::Reset });
    assert!(rig.agent.conns.is_empty());
    rig.server_comes();
    assert!(rig.take_seen().is_empty());
}
