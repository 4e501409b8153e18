//! HTTP tools that are not signal-cli: methods and paths, bodies that stream, headers, a port each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::Duration;

use carapace_debug::upstream::{Event, Fault};
use serde_json::json;

use crate::kit::{
    Answer, Connection, EventStream, LONG, Setup, Site, noise, resident_kib, timed, wait_until,
};

const POLICY: &str = r#"tools:
  signal-cli:
    type: http
    upstream: "{upstream}"
    jsonrpc_allow_methods: [version]
  web:
    type: http
    upstream: "{upstream}"
    http_allow: ["GET /files/*", "PUT /files/*", "GET /api/v1/events", "GET /deep/**"]
    headers_inject: { Authorization: { env: WEB_TOKEN, prefix: "Bearer " } }
    headers_allow: [X-Request-Id, Range]
    timeout_secs: 1
    event_idle_secs: 1
    max_event_bytes: 1000
"#;
const TOKEN: &str = "token-of-the-host-0123456789";

fn site() -> Site {
    Setup::policy(POLICY).server_env("WEB_TOKEN", TOKEN).tools(&["signal-cli", "web"]).start()
}

fn ask(addr: SocketAddr, line: &str, fields: &str) -> Connection {
    let mut connection = Connection::open(addr);
    connection.send(format!("{line} HTTP/1.1\r\nHost: {addr}\r\n{fields}\r\n"));
    connection
}

fn get(site: &Site, path: &str) -> Answer {
    ask(site.addr_of("web"), &format!("GET {path}"), "").answer()
}

/// A whole answer, after which the stand-in closes, as it says.
fn raw(head: &str, body: &[u8]) -> Fault {
    Fault::Raw([head.as_bytes(), b"\r\nConnection: close\r\n\r\n", body].concat())
}

/// docs/protocol.md: "tools that are not JSON-RPC: denied; rate limited | 403, 404 or 405 with `Allow`; 429
/// with `Retry-After`"
#[test]
fn what_is_not_allowed_is_denied() {
    let site = site();
    for path in ["/", "/other", "/files", "/files/", "/files/a/b", "/api/v1/rpc", "/Files/a"] {
        let answer = get(&site, path);
        assert!([403, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    for line in ["DELETE /files/a", "POST /files/a", "PATCH /files/a"] {
        let answer = ask(site.addr_of("web"), line, "Content-Length: 0\r\n").answer();
        assert_eq!(answer.status, 405, "{line}");
        let allow = answer.field("allow").unwrap();
        assert!(allow.contains("GET") && allow.contains("PUT"), "{allow}");
    }
    assert!(site.upstream.requests().is_empty());
    let records = site.wait_for_records(10);
    assert!(
        records.iter().all(|record| record["policy_result"] == "deny" && record["tool"] == "web"),
        "{records:?}"
    );
}

/// docs/http.md: "**Which tool** is the listener's own; nothing in a request chooses another."
#[test]
fn a_port_speaks_for_its_tool_alone() {
    let site = site();
    let (signal, web) = (site.addr_of("signal-cli"), site.addr_of("web"));
    assert_eq!(ask(signal, "GET /files/a", "").answer().status, 404);
    assert_eq!(ask(web, "GET /files/a", &format!("Host: {signal}\r\n")).answer().status, 400, "two hosts");
    let mut connection = Connection::open(web);
    connection.send(format!("GET /files/a HTTP/1.1\r\nHost: {signal}\r\n\r\n"));
    assert_eq!(connection.answer().status, 421);
    let mut connection = Connection::open(web);
    connection.send(format!("GET http://{signal}/api/v1/check HTTP/1.1\r\nHost: {web}\r\n\r\n"));
    assert!([400, 421].contains(&connection.answer().status));
    assert!(site.upstream.requests().is_empty());
    // "`GET /health` on any of them"
    for addr in [signal, web] {
        assert_eq!(ask(addr, "GET /health", "").answer().json()["status"], "ok");
    }
}

/// docs/policy.md: "`Authorization` and `Cookie` never do. `headers_inject` wins over all."
#[test]
fn headers_are_the_policy_s() {
    let mut site = site();
    let fields =
        "Authorization: Bearer mine\r\nCookie: a=b\r\nX-Request-Id: 7\r\nX-Other: 1\r\nRange: bytes=0-1\r\n";
    ask(site.addr_of("web"), "GET /files/a?x=1&y=%20", fields).answer();
    let request = &site.upstream.requests()[0];
    assert_eq!(request.target, "/files/a?x=1&y=%20");
    assert_eq!(request.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!((request.header("x-request-id"), request.header("range")), (Some("7"), Some("bytes=0-1")));
    assert_eq!((request.header("cookie"), request.header("x-other")), (None, None));
    assert_eq!(
        request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("authorization")).count(),
        1
    );
    let said = format!("{:?}{:?}", site.wait_for_records(2), site.server().log());
    assert!(!said.contains(TOKEN), "{said}");
}

/// docs/policy.md: "The bodies stream through"
#[test]
fn a_body_that_is_not_judged_streams_through() {
    let site = site();
    let web = site.addr_of("web");
    let body = noise(6_000_000, 5);
    let mut connection =
        ask(web, "PUT /files/a", &format!("Content-Type: x/y\r\nContent-Length: {}\r\n", body.len()));
    connection.send(&body);
    assert_eq!(connection.answer().status, 404, "the stand-in has no files");

    connection.send(format!("PUT /files/b HTTP/1.1\r\nHost: {web}\r\nTransfer-Encoding: chunked\r\n\r\n"));
    for piece in body.chunks(100_000) {
        connection.send(format!("{:x}\r\n", piece.len()));
        connection.send(piece);
        connection.send("\r\n");
    }
    connection.send("0\r\n\r\n");
    assert_eq!(connection.answer().status, 404);
    let requests = site.upstream.requests();
    assert!(requests.len() == 2 && requests.iter().all(|request| request.body == body));
    assert_eq!(requests[0].header("content-length"), Some("6000000"));
}

/// docs/http.md: "Other bodies stream, in both directions.": an upstream may have its say before it has heard
/// everything.
#[test]
fn an_answer_before_the_end_of_an_upload_arrives() {
    let early = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", early.local_addr().unwrap());
    let site =
        Setup::policy(POLICY).server_env("WEB_TOKEN", TOKEN).tools(&["signal-cli", "web"]).upstream_url(url);
    let site = site.start();
    for is_closed in [false, true] {
        let mut connection = ask(site.addr_of("web"), "PUT /files/a", "Content-Length: 20000000\r\n");
        let (mut upstream, _) = early.accept().unwrap();
        assert!(upstream.read(&mut [0; 4096]).unwrap() > 0);
        upstream
            .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
            .unwrap();
        let upstream = (!is_closed).then_some(upstream);
        connection.try_send(noise(20_000_000, 1));
        let answer = connection.answer();
        assert_eq!((answer.status, answer.text().as_str()), (413, "large"));
        drop(upstream);
    }
}

/// docs/http.md: "an upload that breaks off does not arrive as a whole one"
#[test]
fn an_upload_that_breaks_off_does_not_arrive() {
    let site = site();
    for framing in ["Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut connection = ask(site.addr_of("web"), "PUT /files/a", framing);
        connection.send(format!("186a0\r\n{}", "x".repeat(50_000)));
        wait_until("it is on its way", LONG, || site.upstream.open_connections() > 0);
        drop(connection);
        wait_until("the upstream's connection is closed", Duration::from_secs(1), || {
            site.upstream.open_connections() == 0
        });
    }
    assert!(site.upstream.requests().is_empty(), "half a request was taken for one");
}

/// docs/http.md: "one that breaks off is aborted"
#[test]
fn a_download_that_breaks_off_is_aborted() {
    let site = site();
    let half = noise(200_000, 6);
    for framing in ["Content-Length: 400000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n61a80\r\n"] {
        let head = format!("HTTP/1.1 200 OK\r\n{framing}");
        site.upstream.fault_once(Fault::Raw([head.as_bytes(), half.as_slice()].concat()));
        let mut connection = ask(site.addr_of("web"), "GET /files/a", "");
        let answer = connection.head();
        assert_eq!(answer.status, 200);
        let rest = connection.rest();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks whole");
        if let Some(length) = answer.field("content-length") {
            assert!(rest.len() < length.parse().unwrap());
        }
    }
    site.upstream.fault_once(Fault::Raw(noise(1000, 3)));
    assert_eq!(get(&site, "/files/a").status, 502);
}

/// docs/http.md: "A download must begin within `timeout_secs` and never be idle for so long"
#[test]
fn a_download_that_stalls_is_aborted() {
    let site = site();
    site.upstream.fault_once(Fault::Stall);
    let (answer, took) = timed(|| get(&site, "/files/a"));
    assert_eq!(answer.status, 504);
    assert!(took < Duration::from_secs(3), "{took:?}");
    let halves = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", halves.local_addr().unwrap());
    let site =
        Setup::policy(POLICY).server_env("WEB_TOKEN", TOKEN).tools(&["signal-cli", "web"]).upstream_url(url);
    let site = site.start();
    let mut connection = ask(site.addr_of("web"), "GET /files/a", "");
    let (mut upstream, _) = halves.accept().unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234").unwrap();
    assert_eq!(connection.head().status, 200);
    let (rest, took) = timed(|| connection.rest());
    assert_eq!(rest, b"01234");
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
}

/// docs/http.md: "never be idle for so long": one that goes on is not, however long it takes.
#[test]
fn a_slow_download_is_not_a_stalled_one() {
    let body = "z".repeat(30);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", slow.local_addr().unwrap());
    let site =
        Setup::policy(POLICY).server_env("WEB_TOKEN", TOKEN).tools(&["signal-cli", "web"]).upstream_url(url);
    let site = site.start();
    let mut connection = ask(site.addr_of("web"), "GET /files/a", "");
    let (mut upstream, _) = slow.accept().unwrap();
    let (_keeper, ticks) = mpsc::channel::<()>();
    for piece in answer.as_bytes().chunks(answer.len() / 4) {
        upstream.write_all(piece).unwrap();
        let _ = ticks.recv_timeout(Duration::from_millis(450));
    }
    assert_eq!(connection.answer().text(), body);
}

/// docs/http.md: "A valid answer passes with its status, type, encoding and bytes unchanged"
#[test]
fn encodings_ranges_and_heads_pass() {
    let site = site();
    let bytes = noise(5000, 8);
    site.upstream.fault_once(raw(
        "HTTP/1.1 206 Partial Content\r\nContent-Type: x/y; a=\"b\"\r\nContent-Encoding: gzip\r\nETag: \"1\"\r\nContent-Range: bytes 0-4999/9000\r\nContent-Length: 5000",
        &bytes,
    ));
    let answer = get(&site, "/files/a");
    assert_eq!(answer.status, 206);
    let passed =
        ["content-type", "content-encoding", "etag", "content-range"].map(|name| answer.field(name).unwrap());
    assert_eq!(passed, ["x/y; a=\"b\"", "gzip", "\"1\"", "bytes 0-4999/9000"]);
    assert_eq!(answer.body, bytes);
    site.upstream.fault_once(raw("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 5000", b""));
    assert_eq!(get(&site, "/files/a").status, 304);
}

/// docs/http.md: "A slow reader costs neither memory nor bytes."
#[test]
fn a_slow_reader_of_a_large_answer_costs_no_memory() {
    let site = site();
    let body = noise(40_000_000, 9);
    let memory = || resident_kib(site.server_pid()) + resident_kib(site.agent_pid());
    let before = memory();
    site.upstream.fault_once(raw(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}", body.len()), &body));
    let mut connection = ask(site.addr_of("web"), "GET /files/a", "");
    let head = connection.head();
    assert_eq!(head.field("content-length"), Some("40000000"));
    // Others are served meanwhile, while nobody reads.
    for _ in 0..20 {
        assert_eq!(site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#).status, 200);
    }
    assert!(memory() < before + 12 * 1024, "from {before} KiB to {} KiB", memory());
    assert!(connection.with_body(head).body == body);
    assert!(memory() < before + 12 * 1024, "from {before} KiB to {} KiB", memory());
}

/// docs/protocol.md: "429 with `Retry-After`"
#[test]
fn a_limited_tool_says_when_to_come_back() {
    let policy = format!("{POLICY}    rate_limit: {{ max_requests: 2, window_secs: 60 }}\n");
    let site = Setup::policy(policy).server_env("WEB_TOKEN", TOKEN).tools(&["signal-cli", "web"]).start();
    assert_eq!([get(&site, "/files/a").status, get(&site, "/files/b").status], [404, 404]);
    let answer = get(&site, "/files/c");
    assert_eq!(answer.status, 429);
    assert!((1..=60).contains(&answer.field("retry-after").unwrap().parse::<u64>().unwrap()));
    assert_eq!(
        site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#).status,
        200,
        "another tool is not limited"
    );
}

/// docs/policy.md: "While a secret has not been found, every call of its tool is refused."
#[test]
fn a_tool_whose_secret_is_missing_is_refused() {
    let site = Setup::policy(POLICY).tools(&["signal-cli", "web"]).start();
    let answer = get(&site, "/files/a");
    assert!(answer.status >= 400, "{answer:?}");
    assert!(!answer.text().contains("WEB_TOKEN"), "{}", answer.text());
    assert!(site.upstream.requests().is_empty());
    assert_eq!(site.wait_for_records(1)[0]["policy_result"], json!("deny"));
    assert_eq!(site.call(r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#).status, 200);
}

fn stream(site: &Site) -> EventStream {
    let stream =
        EventStream::begin(ask(site.addr_of("web"), "GET /api/v1/events", "Accept: text/event-stream\r\n"));
    assert_eq!(stream.head.status, 200);
    assert!(site.upstream.wait_for_streams(1, LONG));
    stream
}

/// docs/http.md: "is silent for `event_idle_secs` ends the client's"
#[test]
fn a_stream_that_fell_silent_is_ended() {
    let site = site();
    let mut stream = stream(&site);
    site.upstream.emit(&Event::receive("x"));
    assert_eq!(stream.next().data, "x");
    let (_, took) = timed(|| stream.end());
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
}

/// docs/http.md: "and so does an event over `max_event_bytes`"
#[test]
fn an_event_that_is_too_long_ends_the_stream() {
    let site = site();
    let mut stream = stream(&site);
    site.upstream.emit(&Event::receive("x".repeat(900)));
    assert_eq!(stream.next().data.len(), 900);
    site.upstream.emit(&Event::receive("y".repeat(2000)));
    stream.end();
    let records = site.wait_for_records(2);
    assert!(records[1]["error"].is_string(), "{}", records[1]);
}
