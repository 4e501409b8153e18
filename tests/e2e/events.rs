//! Event streams: what an upstream says now, a client hears now, and exactly that.

use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::upstream::{Event, Fault, Options};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::kit::{
    EventStream, LONG, Received, Setup, Site, noise, policy_with_tools, resident_kib, timed, wait_until,
};

const EVENTS: &str = "/api/v1/events";
const VERSION: &str = r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#;

fn setup() -> Setup {
    Setup::policy(policy_with_tools(&[]))
}

/// A site with one stream open on it.
fn streaming() -> (Site, EventStream) {
    let site = setup().start();
    let stream = open(&site, 1);
    (site, stream)
}

/// Opens a stream, and waits until it is the upstream's `count`th.
fn open(site: &Site, count: usize) -> EventStream {
    let stream = site.events(EVENTS);
    assert_eq!(stream.head.status, 200, "{:?}", stream.head);
    assert!(site.upstream.wait_for_streams(count, LONG));
    stream
}

fn received(event: &str, data: &str) -> Received {
    Received { event: event.to_owned(), data: data.to_owned(), id: String::new() }
}

/// docs/http.md: "Whatever answers `text/event-stream` is one." Readers in browsers give up on any other
/// type, and on any status but 200.
#[test]
fn the_head_of_a_stream_is_what_readers_need() {
    let (site, stream) = streaming();
    assert_eq!(stream.head.field("content-type"), Some("text/event-stream"));
    assert_eq!(stream.head.field("content-length"), None);
    assert_eq!(stream.head.field("content-encoding"), None);
    let request = &site.upstream.requests_to(EVENTS)[0];
    assert_eq!((request.method.as_str(), request.header("accept")), ("GET", Some("text/event-stream")));
}

/// guide: "Events should arrive in <100ms, not 2+ seconds"; docs/http.md: "An event is on its way when its
/// last byte has arrived."
#[test]
fn events_arrive_when_they_are_sent() {
    let (site, mut stream) = streaming();
    for n in 0..20 {
        let data = format!(r#"{{"envelope":{{"n":{n}}}}}"#);
        let sent = Instant::now();
        site.upstream.emit(&Event::receive(data.clone()));
        let (event, at) = stream.next_at();
        assert_eq!(event, received("receive", &data));
        assert!(at - sent < Duration::from_millis(100), "{:?}", at - sent);
    }
}

/// docs/http.md: "A client sees exactly the events, ids, retries and comments that the upstream sent"
#[test]
fn ids_lines_comments_and_retries_arrive() {
    let (site, mut stream) = streaming();
    let event =
        Event { id: Some("a 7".into()), event: Some("x:y".into()), data: "one\n two\n\n{three}".into() };
    site.upstream.emit(&event);
    let same = Received { event: "x:y".into(), data: "one\n two\n\n{three}".into(), id: "a 7".into() };
    // A space behind the colon belongs to the line's form: the stand-in writes none, so that of " two" is eaten.
    assert_eq!(stream.next(), Received { data: "one\ntwo\n\n{three}".into(), ..same });
    site.upstream.emit_bytes(b": a comment\nretry: 2500\nid\ndata: last\n\n");
    assert_eq!(stream.next(), received("message", "last"));
    assert_eq!((stream.comments.as_slice(), stream.retry), (&[" a comment".to_owned()][..], Some(2500)));
}

/// docs/http.md: "however they were cut: BOM, CR, LF, CRLF, multi-line data, `id` with NUL, UTF-8 split
/// anywhere"
#[test]
fn a_stream_in_any_form_and_any_pieces_is_the_same_stream() {
    let text = "\u{feff}data: bom\n\ndata: cr\rdata: two\r\rdata: crlf\r\nevent: e\r\n\r\nid: 1\ndata\n\n\
                id: a\0b\nretry: x\nfoo: bar\ndata: \u{1f600} é \u{4e2d}\n\n: comment\ndata:\ndata:\n\nevent: nothing\n\n\
                data: end\n\n";
    let expected = [
        received("message", "bom"),
        received("message", "cr\ntwo"),
        received("e", "crlf"),
        Received { id: "1".into(), ..received("message", "") },
        Received { id: "1".into(), ..received("message", "\u{1f600} é \u{4e2d}") },
        Received { id: "1".into(), ..received("message", "\n") },
        Received { id: "1".into(), ..received("message", "end") },
    ];
    for size in [1, 2, 3, 5, 64, text.len()] {
        let (site, mut stream) = streaming();
        for piece in text.as_bytes().chunks(size) {
            site.upstream.emit_bytes(piece);
        }
        for event in &expected {
            assert_eq!(stream.next(), *event, "in pieces of {size}");
        }
        assert_eq!((stream.retry, stream.comments.as_slice()), (None, &[" comment".to_owned()][..]));
    }
}

/// guide: "Events should arrive continuously, not in batches": as fast as they go, and large ones among them.
#[test]
fn many_and_large_events_arrive_whole_and_in_order() {
    let (site, mut stream) = streaming();
    let data = |n: usize| {
        let count = if n % 500 == 250 { 1_000_000 } else { 100 + n % 2000 };
        let filler: String = noise(count, n as u64).iter().map(|byte| char::from(b' ' + byte % 90)).collect();
        format!("{n}|{}", filler.replace(' ', "_"))
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..2000 {
                site.upstream.emit(&Event::receive(data(n)));
            }
        });
        for n in 0..2000 {
            assert_eq!(stream.next().data, data(n));
        }
    });
}

/// docs/http.md: "exactly the events, ids, retries and comments that the upstream sent": signal-cli's
/// keep-alive is one.
#[test]
fn the_upstream_s_sign_of_life_arrives() {
    let site =
        setup().upstream(Options { keep_alive: Duration::from_millis(50), ..Options::default() }).start();
    let mut stream = open(&site, 1);
    stream.wait_for_comment();
    assert_eq!(stream.comments[0], "");
}

/// docs/http.md: "A client that leaves closes the upstream's stream within a second."
#[test]
fn a_client_that_leaves_closes_the_upstream_s_stream() {
    let (site, stream) = streaming();
    let other = open(&site, 2);
    drop(stream);
    let (is_closed, took) = timed(|| site.upstream.wait_for_streams(1, LONG));
    assert!(is_closed && took < Duration::from_secs(1), "{took:?}");
    drop(other);
    assert!(site.upstream.wait_for_streams(0, Duration::from_secs(1)));
    let records = site.wait_for_records(4);
    assert_eq!(records.iter().filter(|record| record["event"] == "outcome").count(), 2);
}

/// docs/http.md: "An upstream that ends, fails, or is silent for `event_idle_secs` ends the client's"
#[test]
fn an_upstream_that_ends_ends_the_client_s_stream() {
    let (site, mut stream) = streaming();
    site.upstream.emit(&Event::receive("last"));
    site.upstream.end_streams();
    assert_eq!(stream.next().data, "last");
    let (_, took) = timed(|| stream.end());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// docs/http.md: "Never half an event: an upstream that is cut off within one ends the client's stream in
/// front of it"
#[test]
fn an_upstream_that_is_cut_off_ends_the_client_s_stream_and_no_event_is_cut() {
    let (site, mut stream) = streaming();
    site.upstream.emit(&Event::receive("whole"));
    let half = Event::receive("x".repeat(100_000));
    site.upstream.emit_cut(&half, 60_000);
    assert_eq!(stream.next().data, "whole");
    stream.end();
}

/// docs/http.md: "where the upstream holds them back for a second, the client gets its 200 and a comment"
#[test]
fn a_head_that_is_held_back_does_not_hold_the_client_up() {
    let site = setup().upstream(Options { hold_headers: true, ..Options::default() }).start();
    let (mut stream, took) = timed(|| site.events(EVENTS));
    assert_eq!((stream.head.status, stream.head.field("content-type")), (200, Some("text/event-stream")));
    assert!(took < Duration::from_secs(2), "{took:?}");
    stream.wait_for_comment();
    site.upstream.emit(&Event::receive("first"));
    assert_eq!(stream.next(), received("receive", "first"));
}

/// docs/http.md: "An error that comes later ends the stream."
#[test]
fn an_error_behind_a_head_that_was_sent_ends_the_stream() {
    let site = setup().start();
    site.upstream.fault_once(Fault::Delay(Duration::from_millis(1500)));
    let mut stream = site.events("/api/v1/events?account=%2B15550100009");
    assert_eq!(stream.head.status, 200);
    stream.end();
}

/// docs/http.md: "A valid answer passes with its status, type, encoding and bytes unchanged"
#[test]
fn an_unknown_account_is_the_upstream_s_400() {
    let site = setup().start();
    assert_eq!(site.events("/api/v1/events?account=%2B15550100009").head.status, 400);
    let stream = site.events("/api/v1/events?account=%2B15550100001");
    assert_eq!(stream.head.status, 200);
    let targets: Vec<_> = site.upstream.requests().into_iter().map(|request| request.target).collect();
    assert_eq!(targets[1], "/api/v1/events?account=%2B15550100001");
}

/// docs/protocol.md: "upstream refused, or its answer invalid | 502": OpenClaw gives up for good on a 4xx
/// here.
#[test]
fn an_upstream_that_is_away_is_a_502_for_a_stream() {
    let site = setup().upstream_url("http://127.0.0.1:1").start();
    assert_eq!(site.events(EVENTS).head.status, 502);
}

/// docs/policy.md: "Of the caller's headers only `Accept`, `Accept-Language`, `Content-Type`,
/// `Last-Event-ID`"
#[test]
fn a_reader_that_comes_back_says_where_it_was() {
    let site = setup().start();
    let mut connection = site.connect();
    connection
        .send(format!("GET {EVENTS} HTTP/1.1\r\nHost: {}\r\nLast-Event-ID: 41\r\n\r\n", site.agent_addr()));
    let stream = EventStream::begin(connection);
    assert_eq!(stream.head.status, 200, "without Accept, too");
    assert_eq!(site.upstream.requests()[0].header("last-event-id"), Some("41"));
}

/// docs/http.md: "A reader that does not read disturbs nobody, and finds everything in its place when it
/// comes back."
#[test]
fn a_reader_that_does_not_read_disturbs_nobody() {
    let (site, mut reader) = streaming();
    let idler = open(&site, 2);
    let before = resident_kib(site.agent_pid()) + resident_kib(site.server_pid());
    let data = "z".repeat(50_000);
    // Far more than all that can be on the way to one who does not read.
    for n in 0..600 {
        site.upstream.emit(&Event::receive(format!("{n}|{data}")));
        assert_eq!(reader.next().data.split('|').next(), Some(n.to_string().as_str()));
    }
    let (answer, took) = timed(|| site.call(VERSION));
    assert_eq!(answer.json()["result"]["version"], "0.14.4");
    assert!(took < Duration::from_secs(1), "{took:?}");
    let after = resident_kib(site.agent_pid()) + resident_kib(site.server_pid());
    assert!(after < before + 24 * 1024, "from {before} KiB to {after} KiB");
    // And it finds everything in its place when it comes back.
    let mut idler = idler;
    for n in 0..600 {
        assert_eq!(idler.next().data.split('|').next(), Some(n.to_string().as_str()));
    }
}

/// docs/http.md: "a stream that is silently dead is the worst failure there is"
#[test]
fn a_server_that_is_killed_ends_the_stream() {
    let (mut site, mut stream) = streaming();
    site.kill_server();
    let (_, took) = timed(|| stream.end());
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(site.upstream.wait_for_streams(0, Duration::from_secs(1)));
}

/// docs/http.md: "An agent or a server that is gone leaves no stream, call or job behind"
#[test]
fn an_agent_that_is_killed_closes_the_upstream_s_stream() {
    let (mut site, mut stream) = streaming();
    site.kill_agent();
    stream.end();
    assert!(site.upstream.wait_for_streams(0, Duration::from_secs(3)));
}

/// docs/deploy.md: "SIGTERM and SIGINT drain"; "event streams are ended"
#[test]
fn a_drain_ends_streams_with_their_last_chunk() {
    let (mut site, mut stream) = streaming();
    site.agent().signal(Signal::SIGTERM).unwrap();
    assert!(stream.end(), "without the last chunk");
    assert_eq!(site.agent().wait(LONG).unwrap().unwrap().code(), Some(0));

    let (mut site, mut stream) = streaming();
    site.server().signal(Signal::SIGTERM).unwrap();
    assert!(stream.end(), "without the last chunk");
    assert_eq!(site.server().wait(LONG).unwrap().unwrap().code(), Some(0));
}

/// Readers of one upstream are apart, and leave nothing behind.
#[test]
fn every_reader_gets_every_event() {
    let site = setup().start();
    let mut readers: Vec<_> = (1..=40).map(|count| open(&site, count)).collect();
    for n in 0..10 {
        assert_eq!(site.upstream.emit(&Event::receive(n.to_string())), 40);
    }
    for reader in &mut readers {
        for n in 0..10 {
            assert_eq!(reader.next().data, n.to_string());
        }
    }
    drop(readers);
    assert!(site.upstream.wait_for_streams(0, LONG));
    wait_until("no call runs", LONG, || {
        let health = crate::kit::debug(&["--format", "json", "health", "--port", &site.server_port()]);
        serde_json::from_slice::<serde_json::Value>(&health.stdout).unwrap()["running"] == json!(0)
    });
}

/// docs/policy.md: "an event that none of them names, that lacks the field, or whose data is not JSON is
/// dropped"
#[test]
fn events_that_the_policy_filters_do_not_arrive() {
    let filters = "    event_filters:\n      \
                   receive: { field: envelope.sourceNumber, allow_patterns: ['+1*'] }\n    jsonrpc_param_filters";
    let site = Setup::policy(policy_with_tools(&[]).replace("    jsonrpc_param_filters", filters)).start();
    let mut stream = open(&site, 1);
    let from = |number: &str| Event::receive(json!({ "envelope": { "sourceNumber": number } }).to_string());
    let other = Event { event: Some("other".into()), ..from("+12025550199") };
    for event in [from("+442071838750"), Event::receive("{}"), Event::receive("no JSON"), other] {
        site.upstream.emit(&event);
    }
    site.upstream.emit(&from("+12025550123"));
    let event = stream.next();
    assert!(event.data.contains("+12025550123"), "{event:?}");
}
