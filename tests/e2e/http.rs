//! The agent's HTTP port: a strict HTTP/1.1 server.

use std::process::Command;

use crate::kit::{Connection, Setup, Site, noise, policy_with_tools, run, run_with};

const VERSION: &str = r#"{"jsonrpc":"2.0","id":1,"method":"version"}"#;

fn site() -> Site {
    Setup::policy(policy_with_tools(&[])).start()
}

/// Sends this, in which `{host}` is the agent's.
fn ask(site: &Site, request: &str) -> Connection {
    let mut connection = site.connect();
    let request = request.replace("{host}", &connection.host());
    connection.send(request);
    connection
}

fn get(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: {{host}}\r\n{fields}\r\n")
}

/// A call, with these lines in its head in place of any framing.
fn post(fields: &str, body: &str) -> String {
    format!(
        "POST /api/v1/rpc HTTP/1.1\r\nHost: {{host}}\r\nContent-Type: application/json\r\n{fields}\r\n{body}"
    )
}

fn sized(fields: &str, body: &str) -> String {
    post(&format!("Content-Length: {}\r\n{fields}", body.len()), body)
}

/// Asks, and expects this status and the connection's end.
fn is_refused_with_a_close(site: &Site, request: &str, statuses: &[u16]) {
    let mut connection = ask(site, request);
    let answer = connection.answer();
    assert!(statuses.contains(&answer.status), "{request:?}: {answer:?}");
    assert_eq!(answer.field("connection"), Some("close"), "{request:?}");
    connection.finish();
    assert!(connection.is_ended(), "{request:?}: more than one answer");
}

/// docs/http.md: "An unknown path is 404, a known path with another method 405 with `Allow`, CONNECT and
/// TRACE always."
#[test]
fn paths_and_methods() {
    let site = site();
    let cases = [
        ("GET /", 404, None),
        ("GET /nope", 404, None),
        ("GET /api/v1", 404, None),
        ("GET /api/v1/check/", 404, None),
        ("GET /api/v1/checks", 404, None),
        ("GET /API/v1/check", 404, None),
        ("GET /api/v1/rpc", 405, Some("POST")),
        ("DELETE /api/v1/rpc", 405, Some("POST")),
        ("POST /api/v1/check", 405, Some("GET")),
        ("PUT /api/v1/events", 405, Some("GET")),
        ("POST /health", 405, Some("GET")),
        ("TRACE /api/v1/check", 405, Some("")),
        ("OPTIONS /api/v1/check", 405, Some("GET")),
        ("BREW /api/v1/check", 405, Some("GET")),
    ];
    for (line, status, allow) in cases {
        let answer = ask(&site, &get(line, "")).answer();
        assert_eq!(answer.status, status, "{line}: {answer:?}");
        if let Some(allow) = allow {
            let allowed = answer.field("allow").unwrap_or_else(|| panic!("{line}: no Allow"));
            assert!(allowed.contains(allow) && !allowed.contains("TRACE"), "{line}: {allowed}");
        }
    }
    let answer = ask(&site, "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").answer();
    assert!([400, 405].contains(&answer.status), "{answer:?}");
    assert!(site.upstream.requests().is_empty(), "{:?}", site.upstream.requests());
}

/// docs/http.md: "HEAD has no body"; hermes-agent wants exactly 200 from the check.
#[test]
fn check_and_head() {
    let site = site();
    let mut connection = ask(
        &site,
        &(get("GET /api/v1/check", "") + &get("HEAD /api/v1/check", "") + &get("HEAD /health", "")),
    );
    let answer = connection.answer();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]));
    let date = answer.field("date").unwrap();
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    let answer = connection.answer_to_head();
    assert!([200, 405].contains(&answer.status), "{answer:?}");
    let answer = connection.answer_to_head();
    assert_eq!(answer.status, 200);
    let length: usize = answer.field("content-length").unwrap().parse().unwrap();
    assert!(length > 10);
    connection.finish();
    assert!(connection.is_ended(), "a body after HEAD");
}

/// docs/http.md: "A JSON-RPC body must be `application/json`, alone or with `charset=utf-8`, and not
/// compressed."
#[test]
fn content_types() {
    let site = site();
    let with = |fields: &str| format!("Content-Length: {}\r\n{fields}", VERSION.len());
    let request = |fields: &str| {
        format!("POST /api/v1/rpc HTTP/1.1\r\nHost: {{host}}\r\n{}\r\n{VERSION}", with(fields))
    };
    for fields in [
        "Content-Type: application/json\r\n",
        "Content-Type: application/json; charset=utf-8\r\n",
        "Content-Type: application/json;charset=UTF-8\r\n",
        "content-type: Application/JSON\r\n",
        "Content-Type: application/json\r\nContent-Encoding: identity\r\n",
    ] {
        let answer = ask(&site, &request(fields)).answer();
        assert_eq!(answer.status, 200, "{fields}: {answer:?}");
    }
    site.upstream.clear_requests();
    for fields in [
        "",
        "Content-Type: text/plain\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "Content-Type: application/json; charset=utf-16\r\n",
        "Content-Type: application/json; boundary=x\r\n",
        "Content-Type: application/jsonp\r\n",
        "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
    ] {
        let answer = ask(&site, &request(fields)).answer();
        assert_eq!((answer.status, answer.code()), (415, -32600), "{fields}");
    }
    assert!(site.upstream.requests().is_empty());
}

/// docs/http.md: "a loopback name or the listening address, with the listener's port, or one of
/// `CARAPACE_HTTP_ALLOWED_HOSTS`; 421 otherwise"
#[test]
fn hosts() {
    let site = site();
    let port = site.agent_addr().port();
    let status =
        |fields: &str| ask(&site, &format!("GET /api/v1/check HTTP/1.1\r\n{fields}\r\n")).answer().status;
    for host in ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"] {
        assert_eq!(status(&format!("Host: {host}:{port}\r\n")), 200, "{host}");
    }
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        format!("localhost.evil.example:{port}"),
        "127.0.0.1:1".to_owned(),
        "localhost".to_owned(),
        format!("127.0.0.2.nip.io:{port}"),
    ] {
        assert_eq!(status(&format!("Host: {host}\r\n")), 421, "{host}");
    }
    assert_eq!(status(""), 400);
    assert_eq!(status(&format!("Host: localhost:{port}\r\nHost: localhost:{port}\r\n")), 400);
    assert_eq!(status("Host: \r\n"), 400);
}

/// docs/http.md: "no web page reaches the port, neither by a form nor by DNS rebinding"
#[test]
fn web_pages_are_refused() {
    let site = site();
    for origin in ["https://evil.example", "null", "http://localhost"] {
        let answer = ask(&site, &sized(&format!("Origin: {origin}\r\n"), VERSION)).answer();
        assert_eq!(answer.status, 403, "{origin}");
        let answer = ask(&site, &get("GET /api/v1/events", &format!("Origin: {origin}\r\n"))).answer();
        assert_eq!(answer.status, 403, "{origin}");
    }
    assert!(site.upstream.requests().is_empty());
}

/// docs/http.md: "Dot segments, encoded slashes, `//`, backslashes, control characters and fragments are
/// refused with 400, not normalised."
#[test]
fn targets() {
    let site = site();
    let status = |target: &str| ask(&site, &get(&format!("GET {target}"), "")).answer().status;
    let host = site.agent_addr();
    assert_eq!(status(&format!("http://{host}/api/v1/check")), 200);
    assert_eq!(site.upstream.requests()[0].target, "/api/v1/check");
    site.upstream.clear_requests();
    for target in [
        "/api/v1/../v1/check",
        "/api/v1/./check",
        "/api/v1/%2e%2e/v1/check",
        "/api%2fv1%2Fcheck",
        "/api//v1/check",
        "//api/v1/check",
        "/api/v1\\check",
        "/api/v1/check%5c",
        "/api/v1/check%00",
        "/api/v1/check%0a",
        "/api/v1/check#x",
        "/api/v1/check%",
        "/api/v1/check%zz",
        "api/v1/check",
        "*",
        "ftp://x/api/v1/check",
    ] {
        assert_eq!(status(target), 400, "{target}");
    }
    let elsewhere = status("http://evil.example/api/v1/check");
    assert!([400, 421].contains(&elsewhere), "{elsewhere}");
    assert!(site.upstream.requests().is_empty(), "{:?}", site.upstream.requests());
}

/// docs/http.md: "a head of 60 KiB or more than 100 fields is 431, a target over 8 KiB 414"
#[test]
fn heads_that_are_too_large() {
    let site = site();
    let long = "x".repeat(9 * 1024);
    is_refused_with_a_close(&site, &get(&format!("GET /{long}"), ""), &[414]);
    is_refused_with_a_close(&site, &get("GET /health", &format!("X: {}\r\n", "y".repeat(70 * 1024))), &[431]);
    is_refused_with_a_close(&site, &get("GET /health", &"X: y\r\n".repeat(101)), &[431]);
    assert_eq!(
        ask(&site, &get("GET /health", &format!("X: {}\r\n", "y".repeat(40 * 1024)))).answer().status,
        200
    );
    assert_eq!(ask(&site, &get("GET /health", &"X: y\r\n".repeat(90))).answer().status, 200);
}

/// docs/http.md: "a body over the tool's `max_body_bytes` 413, before it is read where its length says so.
/// The answer to a refusal is not lost, even if the client sends everything first."
#[test]
fn bodies_that_are_too_large() {
    let policy = policy_with_tools(&[])
        .replace("    jsonrpc_allow_methods", "    max_body_bytes: 1000\n    jsonrpc_allow_methods");
    let site = Setup::policy(policy).start();
    let mut connection = ask(&site, &post("Content-Length: 1001\r\n", ""));
    assert_eq!(connection.answer().status, 413, "before a byte of the body");

    // Everything is sent before anything is read, as naive clients do.
    let body = "x".repeat(3_000_000);
    let mut connection = ask(&site, &post(&format!("Content-Length: {}\r\n", body.len()), ""));
    connection.try_send(&body);
    assert_eq!(connection.answer().status, 413);

    let mut connection =
        ask(&site, &post("Transfer-Encoding: chunked\r\n", &format!("3e9\r\n{}\r\n", "x".repeat(1001))));
    assert_eq!(connection.answer().status, 413);

    let exact = format!("{VERSION}{}", " ".repeat(1000 - VERSION.len()));
    assert_eq!(ask(&site, &sized("", &exact)).answer().status, 200);
    assert_eq!(site.upstream.requests().len(), 1);
}

/// docs/http.md: "HTTP/1.1 with keep-alive and pipelining"
#[test]
fn requests_in_a_row_are_answered_in_order() {
    let site = site();
    let call = |id: u32| sized("", &format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"version"}}"#));
    let requests: String = (0..50).map(call).collect();
    let mut connection = ask(&site, &requests);
    for id in 0..50 {
        assert_eq!(connection.answer().json()["id"], id);
    }
    let mut connection = site.connect();
    for id in 0..10 {
        connection.send(call(id).replace("{host}", &connection.host()));
        assert_eq!(connection.answer().json()["id"], id);
    }
    let last = sized("Connection: close\r\n", VERSION).replace("{host}", &connection.host());
    connection.send(last);
    assert_eq!(connection.answer().status, 200);
    assert!(connection.is_ended());
}

/// docs/http.md: "A byte at a time is as good as any other way to arrive"
#[test]
fn a_request_in_single_bytes_is_read() {
    let site = site();
    let mut connection = site.connect();
    for byte in sized("", VERSION).replace("{host}", &connection.host()).bytes() {
        connection.send([byte]);
    }
    assert_eq!(connection.answer().json()["id"], 1);
}

/// docs/http.md: "HTTP/1.0 works and closes."
#[test]
fn http_1_0_works_and_closes() {
    let site = site();
    let mut connection = ask(&site, "GET /api/v1/check HTTP/1.0\r\n\r\n");
    assert_eq!(connection.answer().status, 200);
    assert!(connection.is_ended());
    let mut connection = ask(
        &site,
        &format!(
            "POST /api/v1/rpc HTTP/1.0\r\nHost: {{host}}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{VERSION}",
            VERSION.len()
        ),
    );
    let answer = connection.answer();
    assert_eq!((answer.status, answer.field("transfer-encoding")), (200, None));
    assert!(connection.is_ended());
}

/// docs/http.md: "`Expect: 100-continue` is answered"
#[test]
fn expect_100_continue() {
    let site = site();
    let mut connection =
        ask(&site, &post(&format!("Content-Length: {}\r\nExpect: 100-continue\r\n", VERSION.len()), ""));
    assert_eq!(connection.head().status, 100);
    connection.send(VERSION);
    assert_eq!(connection.answer().json()["id"], 1);

    let padding = "x".repeat(2_000_000);
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":9,"method":"send","params":{{"recipient":["+12025550123"],"message":"{padding}"}}}}"#
    );
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "--expect100-timeout",
        "10",
        "-H",
        "Content-Type: application/json",
        "-H",
        "Expect: 100-continue",
    ]);
    let ended = run_with(curl.args(["--data-binary", "@-", &site.url("/api/v1/rpc")]), body.as_bytes());
    assert_eq!((ended.code(), ended.err().as_str()), (Some(0), ""));
    assert!(ended.out().contains(r#""id":9"#), "{}", ended.out());
}

/// docs/http.md: "any coding but a single `chunked`": that one is taken.
#[test]
fn chunked_uploads_are_joined() {
    let site = site();
    let chunks = |body: &str| {
        let pieces: String = body
            .as_bytes()
            .chunks(7)
            .map(|piece| format!("{:X};name=\"v\"\r\n{}\r\n", piece.len(), String::from_utf8_lossy(piece)))
            .collect();
        format!("{pieces}0\r\nX-Trailer: y\r\n\r\n")
    };
    let mut connection =
        ask(&site, &(post("Transfer-Encoding: chunked\r\n", &chunks(VERSION)) + &sized("", VERSION)));
    assert_eq!(connection.answer().json()["id"], 1);
    assert_eq!(connection.answer().json()["id"], 1);
    let requests = site.upstream.requests();
    assert_eq!(requests[0].body, requests[1].body);
    assert_eq!(requests[0].header("transfer-encoding"), None);

    let body = format!(r#"{{"jsonrpc":"2.0","id":5,"method":"version","x":"{}"}}"#, "y".repeat(500_000));
    let mut curl = Command::new("curl");
    curl.args([
        "-sS",
        "-H",
        "Content-Type: application/json",
        "-H",
        "Transfer-Encoding: chunked",
        "-H",
        "Expect:",
    ]);
    let ended = run_with(curl.args(["--data-binary", "@-", &site.url("/api/v1/rpc")]), body.as_bytes());
    assert!(ended.out().contains(r#""id":5"#), "{} {}", ended.out(), ended.err());
}

/// docs/http.md: "**Framing** that two parsers could read differently is refused and the connection closed"
#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let site = site();
    let hidden = sized("", VERSION);
    let both = |fields: &str, body: &str| post(fields, &format!("{body}{hidden}"));
    let cases = [
        (
            "both framings",
            both("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            &[400][..],
        ),
        (
            "both, the other way",
            both("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"),
            &[400],
        ),
        ("two lengths", both("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"), &[400]),
        ("a list of lengths", both("Content-Length: 3, 4\r\n", "abc"), &[400]),
        ("a signed length", both("Content-Length: +3\r\n", "abc"), &[400]),
        ("a hexadecimal length", both("Content-Length: 0x3\r\n", "abc"), &[400]),
        ("an empty length", both("Content-Length: \r\n", "abc"), &[400]),
        ("a length too long", both("Content-Length: 18446744073709551619\r\n", "abc"), &[400, 413]),
        ("white space before the colon", both("Content-Length : 3\r\n", "abc"), &[400]),
        ("white space in the coding", both("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"), &[400, 501]),
        (
            "a coding twice",
            both("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            &[400, 501],
        ),
        ("chunked, chunked", both("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"), &[400, 501]),
        ("gzip, chunked", both("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), &[501]),
        ("chunked, identity", both("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), &[400, 501]),
        ("identity", both("Transfer-Encoding: identity\r\n", "0\r\n\r\n"), &[400, 501]),
        ("xchunked", both("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), &[501]),
        ("a folded line", both("X: a\r\n b\r\nContent-Length: 0\r\n", ""), &[400]),
        ("a folded coding", both("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"), &[400]),
        ("a bare LF", both("X: a\nContent-Length: 0\r\n", ""), &[400]),
        ("a bare CR", both("X: a\rContent-Length: 0\r\n", ""), &[400]),
        ("a NUL", both("X: a\0b\r\nContent-Length: 0\r\n", ""), &[400]),
        ("no name", both(": a\r\nContent-Length: 0\r\n", ""), &[400]),
        ("no colon", both("nonsense\r\nContent-Length: 0\r\n", ""), &[400]),
        ("HTTP/0.9", "GET /health\r\n\r\n".to_owned(), &[400, 505]),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), &[400, 505]),
        ("HTTP/1.2", "GET /health HTTP/1.2\r\nHost: {host}\r\n\r\n".to_owned(), &[400, 505]),
        ("HTTP/3.0", "GET /health HTTP/3.0\r\nHost: {host}\r\n\r\n".to_owned(), &[400, 505]),
        ("two spaces", "GET  /health HTTP/1.1\r\nHost: {host}\r\n\r\n".to_owned(), &[400]),
        ("a tab", "GET\t/health HTTP/1.1\r\nHost: {host}\r\n\r\n".to_owned(), &[400]),
        ("a head in LF", "GET /health HTTP/1.1\nHost: {host}\n\n".to_owned(), &[400]),
        (
            "coding in HTTP/1.0",
            both("", "").replace("HTTP/1.1\r\nHost", "HTTP/1.0\r\nTransfer-Encoding: chunked\r\nHost"),
            &[400, 501],
        ),
    ];
    for (what, request, statuses) in &cases {
        let mut connection = ask(&site, request);
        let answer = connection.answer();
        assert!(statuses.contains(&answer.status), "{what}: {answer:?}");
        connection.finish();
        assert!(connection.is_ended(), "{what}: what was hidden is answered");
    }
    assert!(site.upstream.requests().is_empty(), "{:?}", site.upstream.requests());
}

/// docs/http.md: "chunk sizes that are none"
#[test]
fn chunks_that_are_none_are_refused() {
    let site = site();
    let hidden = sized("", VERSION);
    for chunks in [
        "\r\n\r\n",
        ";x\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcX\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;a\0b\r\nabc\r\n0\r\n\r\n",
        "-1\r\n\r\n",
    ] {
        let mut connection =
            ask(&site, &post("Transfer-Encoding: chunked\r\n", &format!("{chunks}{hidden}")));
        let answer = connection.answer();
        assert_eq!(answer.status, 400, "{chunks:?}: {answer:?}");
        connection.finish();
        assert!(connection.is_ended(), "{chunks:?}: what was hidden is answered");
    }
    assert!(site.upstream.requests().is_empty(), "{:?}", site.upstream.requests());
}

/// docs/http.md: "**A client that goes away** cancels its call: the upstream's exchange is closed within a
/// second."
#[test]
fn a_client_that_leaves_closes_the_upstream_s_exchange() {
    use crate::kit::{LONG, wait_until};
    use carapace_debug::upstream::Fault;
    let site = site();
    site.upstream.set_fault(Some(Fault::Stall));
    let connection = ask(&site, &sized("", VERSION));
    assert!(site.upstream.wait_for_requests(1, LONG));
    assert_eq!(site.upstream.open_connections(), 1);
    drop(connection);
    wait_until("the upstream's connection is closed", std::time::Duration::from_secs(1), || {
        site.upstream.open_connections() == 0
    });
}

/// docs/http.md: "Half a request holds nobody else up"
#[test]
fn half_requests_hold_nobody_up() {
    let site = site();
    let crowd: Vec<_> = (0..200)
        .map(|n| {
            let mut connection = site.connect();
            let request = sized("", VERSION).replace("{host}", &connection.host());
            connection.send(&request[..request.len() * (n % 10) / 10]);
            connection
        })
        .collect();
    assert_eq!(site.call(VERSION).json()["id"], 1);
    drop(crowd);
    assert_eq!(site.call(VERSION).json()["id"], 1);
}

/// docs/http.md: "what is no request, frame or greeting closes their connection"
#[test]
fn noise_is_refused() {
    let site = site();
    for seed in 0..50 {
        let mut connection = site.connect();
        connection.try_send(noise(1 + (seed as usize * 37) % 3000, seed));
        connection.finish();
        connection.rest();
    }
    assert_eq!(site.call(VERSION).json()["id"], 1);
    let ended = run(Command::new("curl").args([
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        &site.url("/health"),
    ]));
    assert_eq!(ended.out(), "200");
}

/// docs/http.md: "A body where none is expected is read and dropped, not taken for the next request."
#[test]
fn the_body_of_a_get_is_no_request() {
    let site = site();
    let hidden =
        get("GET /api/v1/check", "X-Hidden: 1\r\n").replace("{host}", &site.agent_addr().to_string());
    for line in ["GET /api/v1/check", "GET /nope", "GET /health"] {
        let fields = format!("Content-Length: {}\r\n", hidden.len());
        let mut connection = ask(&site, &(get(line, &fields) + &hidden + &get("GET /nope", "")));
        let first = connection.answer();
        if first.field("connection") != Some("close") {
            assert_eq!(connection.answer().status, 404, "{line}");
        }
        connection.finish();
        assert!(connection.is_ended(), "{line}: what was hidden is answered");
    }
    assert_eq!(site.upstream.requests().len(), 1);
}

/// docs/http.md: "a client that closes its side after its request (`printf ... | nc`) is answered"
#[test]
fn a_client_that_has_said_everything_is_answered() {
    let site = site();
    site.upstream.set_delay("version", std::time::Duration::from_millis(100));
    let mut connection = ask(&site, &(sized("", VERSION) + &get("GET /api/v1/check", "")));
    connection.finish();
    assert_eq!((connection.answer().status, connection.answer().status), (200, 200));
    assert!(connection.is_ended());
}
