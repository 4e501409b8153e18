//! Calls over HTTP: judged, recorded, carried out, answered.

use super::host::{Disk, Host, LINK};
use carapace_proto::ids::StreamId;
use carapace_proto::machine::{DialError, Input, Loss, Source};
use carapace_proto::time::Duration;
use carapace_proto::wire::frame::{Channel, Fault, ResponseBody, StreamFrame};

const VERSION: &str = r#"{"jsonrpc":"2.0","id":1e3,"method":"version","params":{"x":1.10}}"#;
const SEND: &str = r#"{"jsonrpc":"2.0","id":"a","method":"send","params":{"recipient":["+12025550123"]}}"#;
const DENIED: &str = r#"{"jsonrpc":"2.0","id":"b","method":"send","params":{"recipient":["+15551234567"]}}"#;

fn answer(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn error_code(host: &Host, stream: StreamId) -> i64 {
    host.replies[&stream].json()["error"]["code"].as_i64().unwrap()
}

#[test]
fn an_allowed_call_reaches_the_upstream_rebuilt_and_its_answer_comes_back_unchanged() {
    let mut host = Host::new();
    let stream = host.rpc(&VERSION.replace("\"id\"", " \"id\" "));
    let upstream = host.accept_upstream();
    let got = host.upstream_got(upstream);
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, VERSION);
    assert!(head.starts_with("POST /api/v1/rpc HTTP/1.1\r\nHost: 127.0.0.1:18080\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", VERSION.len())) && head.contains("Accept: */*"));
    assert!(!head.contains("Cookie") && !head.contains("X-Other"), "{head}");
    host.upstream_says(upstream, &answer(r#"{"jsonrpc":"2.0","id":1e3,"result":{}}"#));
    let reply = &host.replies[&stream];
    assert_eq!((reply.status, reply.kind, reply.ended), (Some(200), Some(ResponseBody::Whole), true));
    assert_eq!(reply.text(), r#"{"jsonrpc":"2.0","id":1e3,"result":{}}"#);
    assert_eq!(reply.field("content-type"), Some("application/json"));
    assert_eq!(host.server.running(), 0);
}

#[test]
fn a_call_is_recorded_before_it_has_an_effect() {
    let mut host = Host::new();
    host.disk = Disk::Slow;
    host.rpc(SEND);
    let records = host.records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["event"], "decision");
    assert_eq!(records[0]["policy_result"], "allow");
    assert_eq!(records[0]["phone_number"], "+12025550123");
    assert!(host.dials.is_empty(), "nothing may happen before the record is accepted");
    host.say_recorded();
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, &answer("{}"));
    let records = host.records();
    assert_eq!(records[1]["event"], "outcome");
    assert_eq!(records[1]["status"], 200);
    assert_eq!(records[0]["request_id"], records[1]["request_id"]);
    assert!(records[1]["duration_us"].is_u64() && records[0]["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn a_full_disk_is_a_refusal_and_not_a_gap() {
    let mut host = Host::new();
    host.disk = Disk::Full;
    let stream = host.rpc(SEND);
    assert_eq!(host.replies[&stream].status, Some(503));
    assert_eq!(error_code(&host, stream), -32603);
    assert!(host.dials.is_empty());
    host.disk = Disk::Good;
    let stream = host.rpc(SEND);
    let upstream = host.accept_upstream();
    host.disk = Disk::Full;
    host.upstream_says(upstream, &answer("{}"));
    assert_eq!(host.replies[&stream].status, Some(200), "what has happened is told");
    assert_eq!(host.records().len(), 1);
    host.disk = Disk::Good;
    host.pass(Duration::from_secs(2));
    assert_eq!(host.records()[1]["event"], "outcome", "an outcome waits for room");
}

#[test]
fn denials_are_answered_with_200_and_an_error_and_recorded() {
    let mut host = Host::new();
    let stream = host.rpc(DENIED);
    let reply = &host.replies[&stream];
    assert_eq!(reply.status, Some(200));
    let error = &reply.json()["error"];
    assert_eq!(error["code"], -32001);
    assert_eq!(error["data"]["tool"], "signal-cli");
    assert_eq!(reply.json()["id"], "b");
    assert!(!reply.text().contains("+1") && !reply.text().contains("deny_patterns"), "{}", reply.text());
    assert_eq!(host.records()[0]["policy_result"], "deny");
    assert_eq!(host.records()[0]["request_id"], error["data"]["request_id"]);
    let stream = host.rpc(r#"{"jsonrpc":"2.0","id":1,"method":"deleteEverything"}"#);
    assert_eq!(error_code(&host, stream), -32001);
    assert!(host.dials.is_empty());
}

#[test]
fn what_is_no_request_is_answered_with_a_null_id() {
    let mut host = Host::new();
    for (body, code) in [
        ("{", -32700),
        ("", -32700),
        ("7", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"version"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"version"} {}"#, -32700),
    ] {
        let stream = host.rpc(body);
        assert_eq!(host.replies[&stream].status, Some(200), "{body}");
        assert_eq!(error_code(&host, stream), code, "{body}");
        assert!(host.replies[&stream].json()["id"].is_null());
    }
    assert!(host.dials.is_empty());
}

#[test]
fn a_batch_is_judged_element_by_element_and_answered_as_one_array() {
    let mut host = Host::new();
    let stream = host.rpc(&format!("[{SEND},{DENIED},{VERSION}]"));
    let upstream = host.accept_upstream();
    let got = host.upstream_got(upstream);
    assert!(got.ends_with(&format!("[{SEND},{VERSION}]")), "{got}");
    host.upstream_says(
        upstream,
        &answer(r#"[{"jsonrpc":"2.0","id":1e3,"result":0},{"jsonrpc":"2.0","id":"a","result":1}]"#),
    );
    let json = host.replies[&stream].json();
    let ids: Vec<String> = json.as_array().unwrap().iter().map(|one| one["id"].to_string()).collect();
    assert_eq!(ids, ["1000.0", "\"a\"", "\"b\""]);
    assert_eq!(
        host.replies[&stream].field("content-length").unwrap(),
        host.replies[&stream].body.len().to_string()
    );
    let results: Vec<_> = host.records().iter().map(|record| record["policy_result"].clone()).collect();
    assert_eq!(results[..3], ["allow", "deny", "allow"]);
}

#[test]
fn a_batch_of_which_nothing_is_allowed_never_leaves() {
    let mut host = Host::new();
    let stream = host.rpc(&format!("[{DENIED},{{\"jsonrpc\":\"2.0\",\"method\":\"nope\"}}]"));
    assert!(host.dials.is_empty());
    let json = host.replies[&stream].json();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert!(json[1]["id"].is_null());
}

#[test]
fn an_allowed_notification_gets_the_upstreams_status() {
    let mut host = Host::new();
    let stream = host.rpc(r#"{"jsonrpc":"2.0","method":"version"}"#);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((host.replies[&stream].status, host.replies[&stream].ended), (Some(201), true));
}

#[test]
fn endpoints_that_nobody_allowed_do_not_exist() {
    let mut host = Host::new();
    for (method, target, status) in [
        ("GET", "/api/v1/about", 404),
        ("GET", "/", 404),
        ("GET", "/api/v1/rpc", 405),
        ("DELETE", "/api/v1/events", 405),
    ] {
        let stream = host.request(method, target, None);
        assert_eq!(host.replies[&stream].status, Some(status), "{method} {target}");
        assert_eq!(host.replies[&stream].field("allow").is_some(), status == 405);
    }
    assert!(host.dials.is_empty());
}

#[test]
fn an_upstream_that_refuses_is_502_with_the_id() {
    let mut host = Host::new();
    let stream = host.rpc(SEND);
    let conn = host.dials.pop_front().unwrap();
    host.handle(Input::DialFailed { conn, error: DialError::Refused });
    host.exchange();
    assert_eq!(host.replies[&stream].status, Some(502));
    assert_eq!(error_code(&host, stream), -32004);
    assert_eq!(host.replies[&stream].json()["id"], "a");
    assert!(host.records()[1]["error"].is_string());
}

#[test]
fn an_upstream_that_closes_or_talks_nonsense_is_502_and_never_a_short_answer() {
    for (bytes, closes) in [
        (&b""[..], true),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", true),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", true),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", false),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", false),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", false),
    ] {
        let mut host = Host::new();
        let stream = host.rpc(SEND);
        let upstream = host.accept_upstream();
        if !bytes.is_empty() {
            host.upstream_says(upstream, bytes);
        }
        if closes {
            host.handle(Input::Eof { source: Source::Conn(upstream) });
            host.exchange();
        }
        assert_eq!(host.replies[&stream].status, Some(502), "{}", String::from_utf8_lossy(bytes));
        assert_eq!(host.closed, [upstream]);
    }
}

#[test]
fn an_upstream_that_takes_too_long_leaves_the_outcome_unknown() {
    let mut host = Host::new();
    let stream = host.rpc(SEND);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{");
    host.pass(Duration::from_millis(29_900));
    assert!(!host.replies.contains_key(&stream));
    host.pass(Duration::from_millis(200));
    assert_eq!(host.replies[&stream].status, Some(504));
    assert_eq!(error_code(&host, stream), -32005);
    assert!(host.replies[&stream].text().contains("outcome is unknown"));
    assert_eq!(host.closed, [upstream]);
}

#[test]
fn an_upstream_that_cannot_be_connected_to_in_time_was_never_asked() {
    let mut host = Host::new();
    let stream = host.rpc(SEND);
    host.pass(Duration::from_millis(5_100));
    assert_eq!((host.replies[&stream].status, error_code(&host, stream)), (Some(502), -32004));
}

#[test]
fn connections_are_used_again_until_the_upstream_closes_them() {
    let mut host = Host::new();
    host.rpc(SEND);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, &answer("{}"));
    host.upstream_got(upstream);
    let stream = host.rpc(VERSION);
    assert!(host.upstream_got(upstream).contains("POST"));
    host.upstream_says(upstream, &answer("{}"));
    assert_eq!(host.replies[&stream].status, Some(200));
    host.handle(Input::Eof { source: Source::Conn(upstream) });
    assert_eq!(host.closed, [upstream]);
    host.rpc(VERSION);
    let second = host.accept_upstream();
    host.upstream_says(second, &answer("{}"));
    host.pass(Duration::from_secs(61));
    assert_eq!(host.closed, [upstream, second], "idle for a minute");
}

#[test]
fn bytes_nobody_asked_for_and_lost_connections_end_a_kept_connection_quietly() {
    for is_loss in [false, true] {
        let mut host = Host::new();
        host.rpc(SEND);
        let conn = host.accept_upstream();
        host.upstream_says(conn, &answer("{}"));
        if is_loss {
            host.handle(Input::Lost { conn, loss: Loss::Reset });
        } else {
            host.upstream_says(conn, b"HTTP/1.1 200 OK\r\n");
        }
        host.rpc(SEND);
        assert_eq!(host.dials.len(), 1);
    }
}

#[test]
fn a_request_that_may_have_arrived_is_never_sent_again() {
    let mut host = Host::new();
    host.rpc(SEND);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, &answer("{}"));
    let stream = host.rpc(SEND);
    host.handle(Input::Lost { conn: upstream, loss: Loss::Reset });
    host.exchange();
    assert_eq!(host.replies[&stream].status, Some(502));
    assert!(host.dials.is_empty());
}

const EVENTS: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

#[test]
fn events_pass_whole_at_once_and_canonical() {
    let mut host = Host::new();
    let stream = host.request("GET", "/api/v1/events?account=%2B1202", None);
    let upstream = host.accept_upstream();
    assert!(host.upstream_got(upstream).starts_with("GET /api/v1/events?account=%2B1202 HTTP/1.1\r\n"));
    host.upstream_says(upstream, EVENTS);
    let reply = &host.replies[&stream];
    assert_eq!((reply.status, reply.kind, reply.ended), (Some(200), Some(ResponseBody::Events), false));
    host.upstream_says(upstream, &chunk("event: receive\r\nid:7\r\nda"));
    assert_eq!(host.replies[&stream].text(), "", "half an event does not pass");
    host.upstream_says(upstream, &chunk("ta: é\r\ndata:2\r\n\r\n:\n"));
    assert_eq!(host.replies[&stream].text(), "event: receive\nid:7\ndata: é\ndata:2\n\n:\n");
    host.upstream_says(upstream, b"0\r\n\r\n");
    assert!(host.replies[&stream].ended);
    assert_eq!(host.server.running(), 0);
    assert_eq!(host.records().len(), 2);
}

#[test]
fn a_client_that_leaves_closes_the_upstreams_stream() {
    let mut host = Host::new();
    let stream = host.request("GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, EVENTS);
    host.send(stream, &StreamFrame::Reset { fault: Fault::Cancelled, text: b"" });
    assert_eq!(host.closed, [upstream]);
    assert_eq!(host.server.running(), 0);
    assert!(host.records()[1]["error"].is_string());
}

#[test]
fn a_lost_link_ends_what_ran_on_it() {
    let mut host = Host::new();
    host.request("GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, EVENTS);
    host.handle(Input::Lost { conn: LINK, loss: Loss::Reset });
    assert!(host.closed.contains(&upstream));
    assert_eq!(host.server.running(), 0);
}

#[test]
fn an_upstream_that_holds_its_head_back_does_not_hold_back_the_clients() {
    let mut host = Host::new();
    let stream = host.request("GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.pass(Duration::from_millis(990));
    assert!(!host.replies.contains_key(&stream));
    host.pass(Duration::from_millis(20));
    let reply = &host.replies[&stream];
    assert_eq!(
        (reply.status, reply.field("content-type"), reply.text()),
        (Some(200), Some("text/event-stream"), ":\n")
    );
    host.upstream_says(upstream, EVENTS);
    host.upstream_says(upstream, &chunk("data:1\n\n"));
    assert_eq!(host.replies[&stream].text(), ":\ndata:1\n\n");
    let stream = host.request("GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.pass(Duration::from_millis(1_100));
    host.upstream_says(upstream, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    assert!(host.replies[&stream].ended, "a late error ends the stream");
}

#[test]
fn a_silent_event_stream_is_ended_so_that_its_client_comes_back() {
    let mut host = Host::new();
    let stream = host.request("GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, EVENTS);
    host.pass(Duration::from_secs(44));
    host.upstream_says(upstream, &chunk(":\n"));
    host.pass(Duration::from_secs(44));
    assert!(!host.replies[&stream].ended);
    host.pass(Duration::from_secs(2));
    assert!(host.replies[&stream].ended);
    assert_eq!(host.closed, [upstream]);
}

#[test]
fn a_client_that_does_not_read_pauses_its_upstream_and_nobody_else() {
    let mut host = Host::new();
    host.drains = false;
    let slow = host.request("GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, EVENTS);
    let event = format!("data:{}\n\n", "x".repeat(1000));
    for _ in 0..40 {
        if host.paused.is_empty() {
            host.upstream_says(upstream, &chunk(&event));
        }
    }
    assert_eq!(host.paused, [Source::Conn(upstream)]);
    assert!(host.server.held_bytes() < 64 * 1024);
    host.drains = true;
    let quick = host.rpc(DENIED);
    assert_eq!(host.replies[&quick].status, Some(200));
    let got = host.replies[&slow].body.len();
    host.session.consumed(slow, got);
    host.exchange();
    assert!(host.paused.is_empty());
    assert_eq!(host.replies[&slow].body.len() % event.len(), 0);
}

#[test]
fn an_event_that_is_too_long_ends_the_stream_with_a_record() {
    let mut host = Host::new();
    let stream = host.request("GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, EVENTS);
    host.upstream_says(upstream, &chunk("data:1\n\n"));
    let piece = chunk(&format!("data:{}\n", "x".repeat(1_000_000)));
    for _ in 0..5 {
        host.upstream_says(upstream, &piece);
    }
    assert_eq!((host.replies[&stream].text(), host.replies[&stream].ended), ("data:1\n\n", true));
    assert!(host.records()[1]["error"].as_str().unwrap().contains("too long"));
}

#[test]
fn plain_answers_stream_through_with_status_and_encoding() {
    let mut host = Host::new();
    let stream = host.request("GET", "/api/v1/check", None);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, b"HTTP/1.1 418 Teapot\r\nContent-Encoding: br\r\nSet-Cookie: a=b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let reply = &host.replies[&stream];
    assert_eq!((reply.status, reply.text(), reply.ended), (Some(418), "abc", false));
    assert_eq!((reply.field("content-encoding"), reply.field("set-cookie")), (Some("br"), None));
    host.handle(Input::Eof { source: Source::Conn(upstream) });
    host.exchange();
    assert!(
        host.replies[&stream].end.as_ref().unwrap().contains("BadUpstream"),
        "cut short is never quietly short"
    );
}

#[test]
fn a_connection_is_not_used_again_before_the_request_on_it_is_whole() {
    let mut host = Host::new();
    let stream = host.open_upload("files", "/put/1", 10);
    let upstream = host.accept_upstream();
    let half = StreamFrame::Data { channel: Channel::Main, end: false, more: false, bytes: b"hello" };
    host.send(stream, &half);
    assert!(host.upstream_got(upstream).ends_with("\r\n\r\nhello"));
    host.upstream_says(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly");
    assert_eq!(host.replies[&stream].text(), "early");
    host.request_of("files", "GET", "/get/1", None);
    let next = host.accept_upstream();
    assert!(next != upstream && host.closed.contains(&upstream));
    host.upstream_says(next, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    host.request_of("files", "GET", "/get/2", None);
    assert!(host.dials.is_empty() && host.upstream_got(next).contains("/get/2"));
}

#[test]
fn the_upstreams_base_path_stands_before_the_target_once() {
    let mut host = Host::new();
    host.request_of("files", "GET", "/get/1?x=2", None);
    let upstream = host.accept_upstream();
    let got = host.upstream_got(upstream);
    assert!(got.starts_with("GET /base/get/1?x=2 HTTP/1.1\r\n"), "{got}");
}

#[test]
fn a_body_larger_than_allowed_is_413_before_it_is_read() {
    let mut host = Host::new();
    let stream = StreamId(1);
    host.session.open(stream);
    let items =
        b"signal-cli\0POST\0/api/v1/rpc\0Content-Type\0application/json\0Content-Length\x0099999999\0";
    let items = carapace_proto::wire::frame::Items(items);
    host.send(stream, &StreamFrame::Request { body: true, items });
    assert_eq!(host.replies[&stream].status, Some(413));
}

#[test]
fn half_read_bodies_do_not_wait_for_each_other() {
    let mut host = Host::new();
    let items =
        b"signal-cli\0POST\0/api/v1/rpc\0Content-Type\0application/json\0Content-Length\x0016000000\0";
    let items = carapace_proto::wire::frame::Items(items);
    for n in 1..=5 {
        host.session.open(StreamId(n));
        host.send(StreamId(n), &StreamFrame::Request { body: true, items });
    }
    assert_eq!(host.replies.get(&StreamId(4)).and_then(|reply| reply.status), None);
    assert_eq!(host.replies[&StreamId(5)].status, Some(503));
    host.send(StreamId(1), &StreamFrame::Reset { fault: Fault::Cancelled, text: b"" });
    host.session.open(StreamId(6));
    host.send(StreamId(6), &StreamFrame::Request { body: true, items });
    assert_eq!(host.replies.get(&StreamId(6)).and_then(|reply| reply.status), None);
}

#[test]
fn events_that_a_filter_refuses_never_reach_the_client_and_are_counted() {
    let mut host = Host::new();
    let stream = host.request_of("filtered", "GET", "/api/v1/events", None);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, EVENTS);
    for number in ["+4915112345678", "+12025550123"] {
        let event = format!("event:receive\ndata:{{\"envelope\":{{\"sourceNumber\":\"{number}\"}}}}\n\n");
        host.upstream_says(upstream, &chunk(&event));
    }
    host.upstream_says(upstream, &chunk("event:receive\ndata:not json\n\n"));
    host.upstream_says(upstream, b"0\r\n\r\n");
    let text = host.replies[&stream].text();
    assert!(text.contains("+12025550123") && !text.contains("+49") && !text.contains("not json"), "{text}");
    assert_eq!(host.records()[1]["events_dropped"], 2);
}

#[test]
fn filtered_events_cannot_hide_in_an_encoding_or_under_a_status() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx",
        "HTTP/1.1 206 Partial Content\r\nContent-Type: text/event-stream\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let mut host = Host::new();
        let stream = host.request_of("filtered", "GET", "/api/v1/events", None);
        let upstream = host.accept_upstream();
        host.upstream_says(upstream, head.as_bytes());
        assert_eq!(host.replies[&stream].status, Some(502));
    }
}

#[test]
fn a_body_that_does_not_arrive_is_given_up_and_its_room_with_it() {
    let mut host = Host::new();
    let items =
        b"signal-cli\0POST\0/api/v1/rpc\0Content-Type\0application/json\0Content-Length\x0016000000\0";
    let items = carapace_proto::wire::frame::Items(items);
    for n in 1..=4 {
        host.session.open(StreamId(n));
        host.send(StreamId(n), &StreamFrame::Request { body: true, items });
    }
    host.session.open(StreamId(5));
    host.send(StreamId(5), &StreamFrame::Request { body: true, items });
    assert_eq!(host.replies[&StreamId(5)].status, Some(503));
    host.pass(Duration::from_millis(20_100));
    assert_eq!(host.replies[&StreamId(1)].status, Some(408));
    assert_eq!(host.server.running(), 0);
}

#[test]
fn an_answer_that_nobody_takes_is_given_up() {
    let mut host = Host::new();
    host.drains = false;
    let stream = host.rpc(SEND);
    let upstream = host.accept_upstream();
    host.upstream_says(upstream, &answer(&"x".repeat(100_000)));
    assert_eq!(host.replies[&stream].body.len(), 16_384);
    host.pass(Duration::from_secs(31));
    assert_eq!(host.server.running(), 0);
    assert!(host.replies[&stream].end.as_ref().unwrap().contains("Cancelled"));
}

#[test]
fn fields_that_could_be_read_in_two_ways_are_refused() {
    for fields in [
        "Content-Length\x005\0Content-Length\x006\0",
        "Content-Length\x00five\0",
        "Content-Type\0application/json\0content-type\0text/plain\0",
    ] {
        let mut host = Host::new();
        host.session.open(StreamId(1));
        let items = format!("signal-cli\0POST\0/api/v1/rpc\0{fields}");
        let items = carapace_proto::wire::frame::Items(items.as_bytes());
        host.send(StreamId(1), &StreamFrame::Request { body: true, items });
        assert_eq!(host.replies[&StreamId(1)].status, Some(400), "{fields:?}");
    }
}

#[test]
fn a_batch_that_cannot_be_recorded_leaves_no_record_of_a_part() {
    let mut host = Host::new();
    host.disk = Disk::Full;
    host.rpc(&format!("[{VERSION},{SEND},{DENIED}]"));
    host.disk = Disk::Good;
    host.pass(Duration::from_secs(2));
    assert_eq!(host.log, "");
}

#[test]
fn nothing_for_an_https_upstream_goes_out_in_the_clear() {
    let mut host =
        Host::under(&super::host::POLICY.replace("http://127.0.0.1:18080", "https://127.0.0.1:18080"));
    let stream = host.rpc(SEND);
    assert!(host.dials.is_empty());
    assert_eq!((host.replies[&stream].status, error_code(&host, stream)), (Some(502), -32004));
    assert!(host.records()[1]["error"].as_str().unwrap().contains("https"));
}
