use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Event, Fault, Options, Upstream};

const SOON: Duration = Duration::from_secs(5);

fn upstream() -> Upstream {
    Upstream::start(Options::default()).expect("a free port")
}

fn exchange(upstream: &Upstream, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(upstream.addr()).expect("connects");
    socket.write_all(request).expect("writes");
    let mut answer = Vec::new();
    // A cut connection may be reset: what came before counts.
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8(answer).expect("text")
}

fn raw(upstream: &Upstream, method: &str, target: &str, extra: &str, body: &[u8]) -> String {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n{extra}\r\n",
        upstream.addr(),
        body.len()
    );
    exchange(upstream, &[head.as_bytes(), body].concat())
}

fn rpc(upstream: &Upstream, body: impl AsRef<[u8]>) -> String {
    raw(upstream, "POST", "/api/v1/rpc", "Content-Type: application/json\r\n", body.as_ref())
}

fn json_of(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    serde_json::from_str(body).expect("json")
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).expect("a status")
}

fn open_stream(upstream: &Upstream, target: &str) -> TcpStream {
    let mut socket = TcpStream::connect(upstream.addr()).expect("connects");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let head = format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", upstream.addr());
    socket.write_all(head.as_bytes()).expect("writes");
    socket
}

#[test]
fn answers_calls_and_keeps_the_requests() {
    let upstream = upstream();
    let answer = rpc(&upstream, r#"{"jsonrpc":"2.0","id":1e3,"method":"version"}"#);
    assert!(answer.contains(r#""id":1e3"#), "an id keeps its bytes: {answer}");
    let sent = json_of(&rpc(
        &upstream,
        r#"{"jsonrpc":"2.0","id":"a","method":"send","params":{"recipient":["+1"],"groupIds":"g"}}"#,
    ));
    assert_eq!(sent["result"]["results"].as_array().map(Vec::len), Some(2), "sends to the union");
    let requests = upstream.requests_to("/api/v1/rpc");
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].header("content-type"), Some("application/json"));
    assert_eq!(requests[1].json().expect("json")["params"]["groupIds"], "g");
}

#[test]
fn keeps_a_connection_alive() {
    let upstream = upstream();
    let head = format!("GET /api/v1/check HTTP/1.1\r\nHost: {}\r\n", upstream.addr());
    let answers = exchange(&upstream, format!("{head}\r\n{head}Connection: close\r\n\r\n").as_bytes());
    assert_eq!(answers, "HTTP/1.1 200 OK\r\nContent-length: 0\r\n\r\n".repeat(2));
    let requests = upstream.requests();
    assert_eq!((requests[0].connection, requests[1].connection), (0, 0));
}

#[test]
fn refuses_as_signal_cli_does() {
    let upstream = upstream();
    assert_eq!(status(&raw(&upstream, "GET", "/api/v1/rpc", "", b"")), "405");
    assert_eq!(status(&raw(&upstream, "POST", "/api/v1/check", "", b"")), "405");
    assert_eq!(status(&raw(&upstream, "GET", "/api/v1/rpc/x", "", b"")), "404");
    assert_eq!(status(&raw(&upstream, "GET", "/api/v1/about", "", b"")), "404");
    assert_eq!(status(&raw(&upstream, "POST", "/api/v1/rpc", "Content-Type: text/plain\r\n", b"{}")), "415");
    assert_eq!(status(&raw(&upstream, "GET", "/api/v1/events?account=%2B1999", "", b"")), "400");
    let wrong_host = b"GET /api/v1/check HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&exchange(&upstream, wrong_host)), "421");
}

#[test]
fn reads_json_leniently() {
    let upstream = upstream();
    let text = r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"nope","method":"version"} trailing {"#;
    assert_eq!(json_of(&rpc(&upstream, text))["id"], 2);
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(json_of(&rpc(&upstream, utf16))["id"], 2);
    assert_eq!(json_of(&rpc(&upstream, "{"))["error"]["code"], -32700);
    assert_eq!(json_of(&rpc(&upstream, "[]"))["error"]["code"], -32600);
    assert_eq!(json_of(&rpc(&upstream, r#"{"id":1,"method":"version"}"#))["error"]["code"], -32600);
    assert_eq!(json_of(&rpc(&upstream, r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#))["error"]["code"], -32601);
    let unknown = r#"{"jsonrpc":"2.0","id":1,"method":"version","params":{"account":"+1999"}}"#;
    assert_eq!(json_of(&rpc(&upstream, unknown))["error"]["code"], -32602);
}

#[test]
fn answers_a_batch_in_the_order_of_completion_and_a_notification_with_201() {
    let upstream = upstream();
    upstream.set_delay("send", Duration::from_millis(30));
    upstream.set_result("receive", json!([1]));
    let batch = r#"[{"jsonrpc":"2.0","id":"slow","method":"send","params":{"recipient":"+1"}},
        {"jsonrpc":"2.0","method":"version"},{"jsonrpc":"2.0","id":null,"method":"receive"}]"#;
    let answers = json_of(&rpc(&upstream, batch));
    assert_eq!((&answers[0]["id"], &answers[1]["id"]), (&Value::Null, &json!("slow")));
    assert_eq!(answers[0]["result"], json!([1]));
    assert_eq!(answers.as_array().map(Vec::len), Some(2), "no answer to a notification");
    let notification = rpc(&upstream, r#"{"jsonrpc":"2.0","method":"version"}"#);
    assert_eq!(notification, "HTTP/1.1 201 Created\r\nContent-length: 0\r\n\r\n");
}

#[test]
fn streams_events() {
    let options = Options { keep_alive: Duration::from_millis(200), ..Options::default() };
    let upstream = Upstream::start(options).expect("a free port");
    let mut first = open_stream(&upstream, "/api/v1/events");
    let second = open_stream(&upstream, "/api/v1/events?account=%2B15550100001");
    assert!(upstream.wait_for_streams(2, SOON));
    drop(second);
    assert!(upstream.wait_for_streams(1, SOON), "notices a client that leaves");
    let event = Event { id: Some("7".into()), event: Some("receive".into()), data: "a\nb".into() };
    assert_eq!(upstream.emit(&event), 1);
    let wanted = "id:7\nevent:receive\ndata:a\ndata:b\n\n";
    let mut seen = String::new();
    while !seen.contains(wanted) || !seen.contains("2\r\n:\n\r\n") {
        let mut buffer = [0; 256];
        let read = first.read(&mut buffer).expect("reads");
        assert_ne!(read, 0, "ended: {seen}");
        seen.push_str(std::str::from_utf8(&buffer[..read]).expect("text"));
    }
    assert!(seen.starts_with("HTTP/1.1 200 OK\r\nContent-type: text/event-stream\r\n"), "{seen}");
    upstream.end_streams();
    first.read_to_string(&mut seen).expect("reads");
    assert!(seen.ends_with("0\r\n\r\n"), "{seen}");
}

#[test]
fn holds_headers_back_and_cuts_an_event() {
    let upstream =
        Upstream::start(Options { hold_headers: true, ..Options::default() }).expect("a free port");
    let mut stream = open_stream(&upstream, "/api/v1/events");
    assert!(upstream.wait_for_streams(1, SOON));
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    assert!(stream.read(&mut [0; 16]).is_err(), "no head before the first event");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    upstream.emit_cut(&Event::receive("{}"), 8);
    let mut seen = String::new();
    stream.read_to_string(&mut seen).expect("reads");
    assert!(seen.ends_with("\r\n\r\n8\r\nevent:re\r\n"), "{seen}");
}

#[test]
fn misbehaves_on_demand() {
    let upstream = upstream();
    let version = r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#;
    let right = rpc(&upstream, version);
    upstream.fault_once(Fault::Close);
    assert_eq!(rpc(&upstream, version), "");
    upstream.fault_once(Fault::CutBody);
    let cut = rpc(&upstream, version);
    assert!(right.starts_with(&cut) && cut.contains("\r\n\r\n{"), "{cut}");
    upstream.fault_once(Fault::Raw(b"SSH-2.0-x\r\n".to_vec()));
    assert_eq!(rpc(&upstream, version), "SSH-2.0-x\r\n");
    upstream.fault_once(Fault::Large(1 << 20));
    assert!(rpc(&upstream, version).len() > 1 << 20);
    upstream.fault_once(Fault::Chunked);
    assert!(rpc(&upstream, version).contains("Transfer-encoding: chunked\r\n\r\n7\r\n"));
    upstream.fault_once(Fault::Trickle(Duration::from_micros(10)));
    assert_eq!(rpc(&upstream, version), right);
    upstream.set_fault(Some(Fault::Status(503, "{}".into())));
    assert_eq!(status(&rpc(&upstream, version)), "503");
    assert_eq!(status(&rpc(&upstream, version)), "503");
    upstream.set_fault(None);
    assert_eq!(rpc(&upstream, version), right);
}

#[test]
fn a_dropped_one_closes_everything_and_frees_its_port() {
    let first = upstream();
    let listen = first.addr();
    first.set_fault(Some(Fault::Stall));
    let mut stalled = TcpStream::connect(listen).expect("connects");
    stalled.write_all(b"GET /api/v1/check HTTP/1.1\r\nHost: x\r\n\r\n").expect("writes");
    assert!(first.wait_for_requests(1, SOON));
    drop(first);
    stalled.set_read_timeout(Some(SOON)).expect("a timeout");
    assert_eq!(stalled.read(&mut [0; 16]).expect("closed, not stalled"), 0);
    let again = Upstream::start(Options { listen, ..Options::default() }).expect("the same port");
    assert_eq!(status(&raw(&again, "GET", "/api/v1/check", "", b"")), "200");
}
