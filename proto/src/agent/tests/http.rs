//! Requests and answers; refusals; limits.

use super::*;
use crate::limits::*;

#[test]
fn a_call_goes_out_and_its_answer_comes_back() {
    let mut rig = Rig::up();
    let conn = rig.connect(HTTP);
    let head = "POST /api/v1/rpc HTTP/1.1\r\nHost: localhost:8080\r\nContent-Type: application/json\r\n\
        Cookie: a=b\r\nAuthorization: Basic x\r\nX-Hop: 1\r\nConnection: x-hop\r\nX-Own: yes\r\nContent-Length: 2\r\n\r\n{}";
    rig.send(conn, head.as_bytes());
    let items = ["signal-cli", "POST", "/api/v1/rpc", "Content-Type", "application/json", "X-Own", "yes"];
    let items: Vec<String> = items.iter().chain(&["Content-Length", "2"]).map(|i| (*i).to_owned()).collect();
    assert_eq!(rig.take_seen(), [Seen::Request(1, items, true), Seen::Data(1, b"{}".to_vec(), true)]);
    rig.answer(1, r#"{"result":1}"#);
    let answer = rig.received(conn);
    assert_eq!(
        answer,
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: application/json\r\n\
         Content-Length: 12\r\n\r\n{\"result\":1}"
    );
    rig.send(conn, call("2").as_bytes());
    rig.answer(2, "{}");
    assert!(rig.received(conn).ends_with("{}"));
    assert_eq!(rig.closed(conn), None);
    rig.eof(conn);
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
    rig.pass_ms(100);
    assert!(rig.agent.is_idle());
}

#[test]
fn a_request_may_come_in_any_pieces() {
    for piece in [1, 2, 3, 7, 50] {
        let mut rig = Rig::up();
        let conn = rig.connect(HTTP);
        for bytes in call("1").as_bytes().chunks(piece) {
            rig.send(conn, bytes);
        }
        let seen = rig.take_seen();
        assert!(matches!(&seen[0], Seen::Request(1, _, true)), "{seen:?}");
        let body: Vec<u8> =
            seen.iter().flat_map(|s| if let Seen::Data(1, b, _) = s { b.clone() } else { vec![] }).collect();
        assert_eq!(body, br#"{"jsonrpc":"2.0","method":"send","id":1}"#);
        assert!(matches!(seen.last(), Some(Seen::Data(1, _, true))));
        rig.answer(1, "{}");
        assert!(rig.received(conn).ends_with("\r\n\r\n{}"));
    }
}

#[test]
fn chunked_bodies_are_unpacked() {
    let mut rig = Rig::up();
    let request = "POST /x HTTP/1.1\r\nHost: localhost:8080\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    rig.ask(request);
    let items = ["signal-cli", "POST", "/x"].map(str::to_owned).to_vec();
    let data = |bytes: &[u8], end| Seen::Data(1, bytes.to_vec(), end);
    assert_eq!(
        rig.take_seen(),
        [Seen::Request(1, items, true), data(b"abc", false), data(b"de", false), data(b"", true)]
    );
}

#[test]
fn pipelined_requests_are_answered_in_order_and_wait_their_turn() {
    let mut rig = Rig::up();
    let (conn, _) =
        rig.ask(&(call("1") + &call("2") + "GET /health HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"));
    assert_eq!(rig.take_seen().len(), 2);
    rig.answer(1, "one");
    assert_eq!(rig.take_seen().len(), 2);
    rig.answer(2, "two");
    let answers = rig.received(conn);
    let (one, two) = (answers.find("one").unwrap(), answers.find("two").unwrap());
    let health = answers.find(r#"{"status":"ok","connections":1,"#).unwrap();
    assert!(one < two && two < health, "{answers}");
}

#[test]
fn a_pipeline_that_is_too_long_is_paused_and_resumed() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask(&call("0"));
    let more: String = (0..4000).map(|_| "GET /health HTTP/1.1\r\nHost: localhost:8080\r\n\r\n").collect();
    rig.send(conn, more.as_bytes());
    assert!(rig.client(conn).is_paused);
    rig.client(conn).reads = false;
    rig.answer(1, "{}");
    let held = rig.agent.held_bytes();
    assert!(held < more.len() + CLIENT_UNSENT_HIGH + 1024, "{held} bytes");
    rig.client(conn).reads = true;
    rig.pump();
    assert!(!rig.client(conn).is_paused);
    assert_eq!(rig.received(conn).matches("uptime_secs").count(), 4000);
}

#[test]
fn health_is_the_agents_own() {
    let mut rig = Rig::up();
    let get = "GET /health HTTP/1.1\r\nHost: localhost:8080\r\n\r\n";
    let (conn, answer) = rig.ask(get);
    let (status, head, body) = response(&answer);
    assert_eq!(status, 200);
    assert!(head.contains("Content-Type: application/json"));
    assert!(body.starts_with(r#"{"status":"ok","connections":1,"version":""#), "{body}");
    assert!(body.contains(r#""tool":"signal-cli""#), "{body}");
    let length = body.len();
    rig.send(conn, get.replace("GET", "HEAD").as_bytes());
    let head = rig.received(conn);
    assert!(head.ends_with("\r\n\r\n") && head.contains(&format!("Content-Length: {length}")), "{head}");
    let (_, post) = rig.ask("POST /health HTTP/1.1\r\nHost: localhost:8080\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("Allow: GET, HEAD"), "{post}");
    assert!(rig.take_seen().is_empty());
    rig.server_goes();
    let (_, answer) = rig.ask(get);
    let (status, _, body) = response(&answer);
    assert_eq!(status, 503);
    let start = r#"{"status":"unavailable","connections":0,"reason":"the connection to the server broke","#;
    assert!(body.starts_with(start), "{body}");
}

#[test]
fn what_is_not_sound_is_refused_and_the_answer_is_not_lost() {
    let host = "Host: localhost:8080\r\n";
    let long = |n: usize| "a".repeat(n);
    let cases: Vec<(u16, String)> = vec![
        (400, "GET / HTTP/1.1\r\n\r\n".into()),
        (400, format!("GET / HTTP/1.1\r\n{host}{host}\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}A: b\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}A: b\r\n c\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}A : b\r\n\r\n")),
        (400, format!("GET / HTTP/1.1\r\n{host}A: \0\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\n")),
        (400, format!("POST / HTTP/1.1\r\n{host}Content-Length: +1\r\n\r\n")),
        (501, format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n")),
        (417, format!("POST / HTTP/1.1\r\n{host}Content-Length: 1\r\nExpect: tea\r\n\r\n")),
        (400, "GET /\r\n".into()),
        (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        (414, format!("GET /{} HTTP/1.1\r\n{host}\r\n", long(9000))),
        (431, format!("GET / HTTP/1.1\r\n{host}A: {}\r\n\r\n", long(70_000))),
        (431, format!("GET / HTTP/1.1\r\n{host}{}\r\n", "A: b\r\n".repeat(101))),
        (421, "GET / HTTP/1.1\r\nHost: evil.example:8080\r\n\r\n".into()),
        (421, "GET / HTTP/1.1\r\nHost: localhost:8081\r\n\r\n".into()),
        (421, "GET http://evil.example/ HTTP/1.1\r\nHost: localhost:8080\r\n\r\n".into()),
        (403, format!("GET / HTTP/1.1\r\n{host}Origin: http://localhost:8080\r\n\r\n")),
        (403, format!("GET / HTTP/1.1\r\n{host}Origin: null\r\n\r\n")),
        (405, format!("CONNECT example.com:443 HTTP/1.1\r\n{host}\r\n")),
        (405, format!("TRACE / HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a/../b HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a%2fb HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET //a HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /a#b HTTP/1.1\r\n{host}\r\n")),
        (400, format!("OPTIONS * HTTP/1.1\r\n{host}\r\n")),
        (400, "\x16\x03\x01\x02\x00\x01".into()),
    ];
    for (status, request) in cases {
        let mut rig = Rig::up();
        let (conn, answer) = rig.ask(&request);
        let shown = &request[..request.len().min(80)];
        assert!(!answer.is_empty(), "no answer to {shown:?}");
        let (got, head, _) = response(&answer);
        assert_eq!(got, status, "{shown:?}");
        assert!(head.contains("Connection: close"), "{shown:?}");
        assert_eq!(status == 405, head.contains("Allow:"), "{shown:?}");
        assert!(rig.take_seen().is_empty(), "{shown:?}");
        // What the client still sends is read, so that the answer is not lost to a reset.
        assert!(rig.client(conn).was_shut_down && rig.closed(conn).is_none(), "{shown:?}");
        rig.send(conn, &[b'x'; 1000]);
        rig.pass(LINGER_TIMEOUT);
        assert_eq!(rig.closed(conn), Some(Closing::Orderly), "{shown:?}");
    }
}

#[test]
fn nobody_lingers_for_a_client_that_has_ended() {
    let mut rig = Rig::up();
    let conn = rig.connect(HTTP);
    rig.client(conn).reads = false;
    rig.send(conn, b"nonsense\r\n\r\n");
    rig.eof(conn);
    rig.client(conn).reads = true;
    rig.pump();
    assert!(rig.received(conn).starts_with("HTTP/1.1 400"));
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
}

#[test]
fn hosts_that_mean_this_port_are_served() {
    for (host, target) in [
        ("LOCALHOST:8080", "/"),
        ("[::1]:8080", "/"),
        ("127.9.9.9:8080", "/"),
        ("10.1.2.3:8080", "/"),
        ("vm.example:8080", "/"),
        ("localhost:8080", "http://localhost:8080/"),
    ] {
        let mut rig = Rig::up();
        rig.ask(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let items = ["signal-cli", "GET", "/"].map(str::to_owned).to_vec();
        assert_eq!(rig.take_seen(), [Seen::Request(1, items, false)], "{host}");
    }
    let mut rig = Rig::up();
    rig.ask("GET / HTTP/1.1\r\nHost: localhost:8080\r\nOrigin: https://vm.example\r\n\r\n");
    assert_eq!(rig.take_seen().len(), 1);
}

#[test]
fn a_listener_speaks_for_its_own_tool() {
    let mut rig = Rig::up();
    let conn = rig.connect(ListenerId(1));
    rig.send(conn, b"GET / HTTP/1.1\r\nHost: localhost:8081\r\n\r\n");
    let items = ["github", "GET", "/"].map(str::to_owned).to_vec();
    assert_eq!(rig.take_seen(), [Seen::Request(1, items, false)]);
}

#[test]
fn a_body_that_is_waited_for_is_asked_for() {
    let mut rig = Rig::up();
    let head = "POST / HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let (conn, answer) = rig.ask(head);
    assert_eq!(answer, "HTTP/1.1 100 Continue\r\n\r\n");
    let seen = rig.take_seen();
    assert!(matches!(&seen[..], [Seen::Request(1, items, true)] if !items.iter().any(|i| i == "Expect")));
    rig.send(conn, b"ab");
    rig.answer(1, "{}");
    assert!(rig.received(conn).starts_with("HTTP/1.1 200"));
    // A body that is there already is not asked for.
    let (_, answer) = rig.ask(&(head.to_owned() + "ab"));
    assert_eq!(answer, "");
}

#[test]
fn an_answer_before_the_request_is_whole_ends_the_connection_gently() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask("POST / HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 9000000\r\n\r\nabc");
    rig.take_seen();
    rig.respond(1, 413, ResponseBody::Whole, &[("Content-Length", "3")]);
    rig.send(conn, &[b'x'; 1000]);
    rig.data(1, b"no\n", true);
    let answer = rig.received(conn);
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("Connection: close"), "{answer}");
    assert!(rig.take_seen().is_empty(), "the rest of the body went to the server");
    assert!(rig.client(conn).was_shut_down);
    for _ in 0..41 {
        if rig.closed(conn).is_none() {
            rig.send(conn, &[b'x'; 102_400]);
        }
    }
    assert_eq!(rig.closed(conn), Some(Closing::Orderly), "lingers for ever");
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask("GET / HTTP/1.0\r\n\r\n");
    rig.respond(1, 200, ResponseBody::Stream, &[]);
    rig.data(1, b"abc", false);
    rig.data(1, b"def", true);
    let answer = rig.received(conn);
    assert!(answer.contains("Connection: close") && !answer.contains("chunked"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nabcdef"), "{answer}");
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
    // One that is cut must not look whole.
    let (conn, _) = rig.ask("GET / HTTP/1.0\r\n\r\n");
    rig.respond(2, 200, ResponseBody::Stream, &[]);
    rig.data(2, b"abc", false);
    rig.reset(2, Fault::BadUpstream, "");
    assert_eq!(rig.closed(conn), Some(Closing::Reset));
}

#[test]
fn bodies_are_delimited_as_their_kind_wants() {
    let mut rig = Rig::up();
    let get = "GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n";
    let (conn, _) = rig.ask(get);
    rig.respond(1, 200, ResponseBody::Stream, &[("Date", "today"), ("Connection", "close"), ("X-A", "b")]);
    rig.data(1, &[b'x'; 300], false);
    rig.data(1, b"", true);
    let body = "x".repeat(300);
    assert_eq!(
        rig.received(conn),
        format!(
            "HTTP/1.1 200 OK\r\nDate: today\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n12c\r\n{body}\r\n0\r\n\r\n"
        )
    );
    rig.send(conn, get.as_bytes());
    rig.respond(2, 204, ResponseBody::None, &[]);
    assert!(!rig.received(conn).contains("Content-Length"));
    rig.send(conn, get.as_bytes());
    rig.respond(3, 201, ResponseBody::None, &[]);
    assert!(rig.received(conn).contains("Content-Length: 0\r\n"));
    rig.send(conn, get.replace("GET", "HEAD").as_bytes());
    rig.respond(4, 200, ResponseBody::None, &[("Content-Length", "77")]);
    assert!(rig.received(conn).ends_with("Content-Length: 77\r\n\r\n"));
    assert_eq!(rig.closed(conn), None);
    // A chunked body that is cut ends without its last chunk.
    rig.send(conn, get.as_bytes());
    rig.respond(5, 200, ResponseBody::Stream, &[]);
    rig.data(5, b"abc", false);
    rig.reset(5, Fault::BadUpstream, "");
    assert!(rig.received(conn).ends_with("3\r\nabc\r\n"));
    assert_eq!(rig.closed(conn), Some(Closing::Orderly));
    assert!(rig.agent.hub.streams.is_empty());
}

#[test]
fn a_server_that_breaks_the_protocol_is_a_502_or_a_cut() {
    let get = "GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n";
    for (status, name) in [(99, "A"), (101, "A"), (600, "A"), (200, "A b"), (200, "")] {
        let mut rig = Rig::up();
        let (conn, _) = rig.ask(get);
        rig.take_seen();
        rig.respond(1, status, ResponseBody::None, &[(name, "x")]);
        assert!(rig.received(conn).starts_with("HTTP/1.1 502"), "{status} {name:?}");
        assert_eq!(rig.take_seen(), [Seen::Reset(1, Fault::Misbehaved)]);
    }
    let mut rig = Rig::up();
    let (conn, _) = rig.ask(get);
    rig.data(1, b"no head", false);
    assert!(rig.received(conn).starts_with("HTTP/1.1 502"));
    let (conn, _) = rig.ask(get);
    rig.respond(2, 200, ResponseBody::Whole, &[("Content-Length", "2")]);
    rig.data(2, b"abc", true);
    assert!(rig.closed(conn).is_some());
    let (conn, _) = rig.ask(get);
    rig.respond(3, 200, ResponseBody::Whole, &[("Content-Length", "4")]);
    rig.data(3, b"abc", true);
    assert!(rig.received(conn).ends_with("abc"));
    assert!(rig.closed(conn).is_some());
}

#[test]
fn resets_before_the_head_become_errors_with_the_id() {
    for (fault, status, code, retry) in [
        (Fault::NotStarted, 503, -32004, true),
        (Fault::OutcomeUnknown, 504, -32005, false),
        (Fault::TimedOut, 504, -32005, false),
        (Fault::BadUpstream, 502, -32004, false),
        (Fault::Failed, 502, -32004, false),
    ] {
        let mut rig = Rig::up();
        let (conn, _) = rig.ask(&call(r#""x-7""#));
        rig.reset(1, fault, "because");
        let answer = rig.received(conn);
        let (got, head, body) = response(&answer);
        assert_eq!((got, head.contains("Retry-After: 1")), (status, retry), "{fault:?}");
        let error =
            format!(r#"{{"jsonrpc":"2.0","error":{{"code":{code},"message":"because"}},"id":"x-7"}}"#);
        assert_eq!(body, error);
        rig.send(conn, call("8").as_bytes());
        rig.answer(2, "{}");
        assert!(rig.received(conn).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn slow_heads_and_bodies_and_idle_connections_end() {
    let mut rig = Rig::up();
    let silent = rig.connect(HTTP);
    let (half, _) = rig.ask("GET / HT");
    let (served, _) = rig.ask("GET /health HTTP/1.1\r\nHost: localhost:8080\r\n\r\n");
    rig.received(served);
    rig.pass(HEAD_TIMEOUT);
    assert_eq!(rig.closed(silent), Some(Closing::Orderly));
    assert!(rig.received(half).starts_with("HTTP/1.1 408"));
    assert_eq!(rig.closed(served), None);
    rig.pass(KEEPALIVE_HTTP_IDLE);
    assert_eq!(rig.closed(served), Some(Closing::Orderly));
    let (slow, _) = rig.ask("POST / HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 10\r\n\r\na");
    rig.take_seen();
    rig.pass(BODY_TIMEOUT);
    assert!(rig.received(slow).starts_with("HTTP/1.1 408"));
    assert_eq!(rig.take_seen().last(), Some(&Seen::Reset(1, Fault::Cancelled)));
}

#[test]
fn an_upload_is_paused_by_credit_and_goes_on() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask("POST / HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 500000\r\n\r\n");
    rig.server_reads = false;
    let mut sent = 0;
    while !rig.client(conn).is_paused {
        rig.send(conn, &[b'x'; 10_000]);
        sent += 10_000;
        assert!(sent < 100_000);
    }
    // Time runs, but not against a client that cannot send.
    rig.pass(BODY_TIMEOUT * 2 / 3);
    rig.server_reads = true;
    rig.pump();
    rig.pass(BODY_TIMEOUT * 2 / 3);
    while sent < 500_000 {
        rig.send(conn, &[b'x'; 10_000]);
        sent += 10_000;
    }
    rig.answer(1, "{}");
    assert!(rig.received(conn).starts_with("HTTP/1.1 200"));
    let received: usize =
        rig.take_seen().iter().map(|s| if let Seen::Data(_, b, _) = s { b.len() } else { 0 }).sum();
    assert_eq!(received, 500_000);
}

#[test]
fn a_reader_that_does_not_read_costs_its_credit_and_is_disconnected() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask("GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n");
    rig.client(conn).reads = false;
    rig.respond(1, 200, ResponseBody::Stream, &[]);
    rig.data(1, &[b'x'; 1_000_000], false);
    assert!(rig.agent.held_bytes() < 20_000, "{}", rig.agent.held_bytes());
    let (other, _) = rig.ask(&call("1"));
    rig.answer(2, "{}");
    assert!(rig.received(other).ends_with("{}"));
    rig.pass(READER_TIMEOUT / 2);
    assert_eq!(rig.closed(conn), None);
    rig.pass(READER_TIMEOUT / 2);
    assert_eq!(rig.closed(conn), Some(Closing::Reset));
    assert_eq!(rig.take_seen().last(), Some(&Seen::Reset(1, Fault::Cancelled)));
}

#[test]
fn a_big_answer_passes_whole_through_a_small_window() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask("GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n");
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| b'a' + u8::try_from(i % 23).unwrap()).collect();
    rig.respond(1, 200, ResponseBody::Stream, &[("Content-Length", "3000000")]);
    rig.data(1, &body, true);
    let answer = rig.received(conn);
    let (_, head, got) = response(&answer);
    assert!(head.contains("Content-Length: 3000000"));
    assert_eq!(got.as_bytes(), body);
    rig.pass_ms(100);
    assert_eq!(rig.agent.held_bytes(), 0);
}

#[test]
fn a_client_that_leaves_cancels_its_call() {
    let mut rig = Rig::up();
    let (lost, _) = rig.ask(&call("1"));
    let (half, _) = rig.ask(&call("2"));
    let (mid, _) = rig.ask("POST / HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 10\r\n\r\na");
    rig.take_seen();
    rig.handle(Input::Lost { conn: lost, loss: Loss::Reset });
    assert_eq!(rig.take_seen(), [Seen::Reset(1, Fault::Cancelled)]);
    rig.eof(mid);
    assert_eq!(rig.take_seen(), [Seen::Reset(3, Fault::Cancelled)]);
    assert_eq!(rig.closed(mid), Some(Closing::Orderly));
    // One that may only have half-closed gets an answer that comes soon, ...
    let (patient, _) = rig.ask(&call("4"));
    rig.eof(half);
    rig.eof(patient);
    rig.pass_ms(500);
    rig.answer(4, "{}");
    assert!(rig.received(patient).ends_with("{}"));
    assert_eq!(rig.closed(patient), Some(Closing::Orderly));
    assert_eq!(rig.closed(half), None);
    // ... and is gone otherwise, within a second.
    rig.pass_ms(400);
    assert_eq!(rig.closed(half), Some(Closing::Orderly));
    assert_eq!(rig.take_seen().last(), Some(&Seen::Reset(2, Fault::Cancelled)));
}

#[test]
fn the_longest_idle_connection_gives_way() {
    let mut rig = Rig::up();
    let mut conns: Vec<ConnId> = (0..8).map(|_| rig.connect(HTTP)).collect();
    // The first is busy, the second has been served last.
    rig.send(conns[0], call("1").as_bytes());
    rig.pass_ms(10);
    rig.send(conns[1], b"GET /health HTTP/1.1\r\nHost: localhost:8080\r\n\r\n");
    rig.connect(HTTP);
    assert_eq!(rig.closed(conns[2]), Some(Closing::Orderly));
    for _ in 0..5 {
        rig.connect(HTTP);
    }
    assert!((3..8).all(|i| rig.closed(conns[i]).is_some()));
    rig.pass_ms(10);
    assert_eq!((rig.closed(conns[0]), rig.closed(conns[1])), (None, None));
    conns = rig.clients.iter().filter(|(_, c)| c.closed.is_none()).map(|(conn, _)| *conn).collect();
    assert_eq!(conns.len(), 8);
    for conn in &conns[1..] {
        rig.send(*conn, call("1").as_bytes());
    }
    let turned_away = rig.connect(HTTP);
    let answer = rig.received(turned_away);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Retry-After"), "{answer}");
}

#[test]
fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut rig = Rig::up();
    let idle = rig.connect(HTTP);
    let (busy, _) = rig.ask(&(call("1") + &call("2")));
    let (half, _) = rig.ask("POST /api");
    rig.handle(Input::Drain);
    assert_eq!(rig.closed(idle), Some(Closing::Orderly));
    let refused = rig.received(half);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("Connection: close"), "{refused}");
    rig.eof(half);
    let late = rig.connect(HTTP);
    assert!(rig.received(late).starts_with("HTTP/1.1 503"));
    rig.eof(late);
    assert!(!rig.drained);
    rig.answer(1, "{}");
    let answer = rig.received(busy);
    assert!(answer.contains("Connection: close") && answer.ends_with("{}"), "{answer}");
    rig.eof(busy);
    assert!(rig.drained && rig.link.is_none() && rig.agent.is_idle());
    assert_eq!((rig.agent.poll_timeout(), rig.agent.held_bytes()), (None, 0));
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let mut rig = Rig::up();
    let (conn, _) = rig.ask(&call("1"));
    rig.handle(Input::Drain);
    rig.pass(DRAIN_TIMEOUT);
    assert_eq!(rig.closed(conn), Some(Closing::Reset));
    assert!(rig.drained && rig.agent.is_idle());
}
