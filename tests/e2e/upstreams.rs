//! Upstreams that are away, slow, broken, or simply others than the stand-in.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use carapace_debug::rig::{Daemon, Launch};
use carapace_debug::upstream::Fault;
use serde_json::json;

use crate::kit::{Answer, LONG, Setup, Site, free_addr, noise, policy_with_tools, skip, timed, wait_until};

const VERSION: &str = r#"{"jsonrpc":"2.0","id":"v","method":"version"}"#;

/// With a second's patience.
fn setup() -> Setup {
    let keys = "    timeout_secs: 1\n    jsonrpc_allow_methods";
    Setup::policy(policy_with_tools(&[]).replace("    jsonrpc_allow_methods", keys))
}

fn is_error(answer: &Answer, status: u16, code: i64) {
    assert_eq!((answer.status, answer.code()), (status, code), "{answer:?}");
    assert_eq!(answer.json()["id"], "v");
    assert_eq!(answer.field("content-type"), Some("application/json"));
}

fn call_with(site: &Site, fault: Fault) -> Answer {
    site.upstream.fault_once(fault);
    site.call(VERSION)
}

/// docs/protocol.md: "upstream refused, or its answer invalid | 502 | -32004"
#[test]
fn an_upstream_that_refuses() {
    let closed = free_addr();
    let site = setup().upstream_url(format!("http://{closed}")).start();
    let answer = site.call(VERSION);
    is_error(&answer, 502, -32004);
    assert!(!answer.text().contains(&closed.port().to_string()), "an address of the host: {}", answer.text());
    let records = site.wait_for_records(2);
    assert_eq!((&records[0]["policy_result"], &records[1]["event"]), (&json!("allow"), &json!("outcome")));
    assert!(records[1]["error"].is_string(), "{}", records[1]);
    assert_eq!(records[0]["request_id"], records[1]["request_id"]);
}

/// docs/protocol.md: "upstream too slow | 504 | -32005: the outcome is unknown"
#[test]
fn an_upstream_that_stalls() {
    let site = setup().start();
    for fault in [Fault::Stall, Fault::StallBody, Fault::Trickle(Duration::from_millis(100))] {
        let (answer, took) = timed(|| call_with(&site, fault.clone()));
        is_error(&answer, 504, -32005);
        assert!(answer.text().contains("unknown"), "{}", answer.text());
        assert!(took > Duration::from_millis(900) && took < Duration::from_secs(3), "{fault:?}: {took:?}");
    }
    assert_eq!(site.call(VERSION).json()["result"]["version"], "0.14.4");
    assert_eq!(site.upstream.requests().len(), 4, "nothing is sent twice");
}

/// docs/http.md: "an answer that is not valid HTTP, is cut short or over `max_response_bytes` is a 502, never
/// a quietly short one"
#[test]
fn an_upstream_that_breaks_off_or_talks_nonsense() {
    let site = setup().start();
    let raw = |text: &str| Fault::Raw(text.as_bytes().to_vec());
    let faults = [
        Fault::Close,
        Fault::CutBody,
        Fault::Raw(noise(5_000, 7)),
        raw("SSH-2.0-OpenSSH_9.2\r\n"),
        raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"),
        raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} "),
        raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
        raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"),
        raw("HTTP/1.1 200 OK\r\nX: a\n b\r\nContent-Length: 2\r\n\r\n{}"),
        raw("HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}"),
        raw("HTTP/2 200\r\n\r\n{}"),
        raw(&format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n{{}}", "y".repeat(100_000))),
    ];
    for fault in faults {
        let answer = call_with(&site, fault.clone());
        assert_eq!(answer.status, 502, "{fault:?}");
        is_error(&answer, 502, -32004);
    }
    assert_eq!(site.call(VERSION).json()["result"]["version"], "0.14.4");
    assert_eq!(site.upstream.requests().len(), 15, "nothing is sent twice");
}

/// docs/http.md: "an answer that is not valid HTTP": fields that two parsers could read differently are not.
#[test]
fn fields_of_an_answer_that_are_none() {
    let site = setup().start();
    let with = |field: &str| {
        let answer =
            format!("HTTP/1.1 200 OK\r\n{field}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}");
        call_with(&site, Fault::Raw(answer.into_bytes()))
    };
    for field in
        ["X: a\0b", "X: a\u{1}b", "X: a\rb", "X\u{1}: b", "X y: b", "X : b", ": b", "Content-Length: 2, 2"]
    {
        is_error(&with(field), 502, -32004);
    }
    for (field, value) in [("X: é", "é"), ("X:", ""), ("X: \t y z \t", "y z")] {
        let answer = with(field);
        assert_eq!((answer.status, answer.field("x")), (200, Some(value)), "{field:?}");
    }
}

/// docs/http.md: "A valid answer passes with its status, type, encoding and bytes unchanged, hop-by-hop
/// fields and `Set-Cookie` removed; redirects are passed on, not followed."
#[test]
fn a_valid_answer_passes_as_it_is() {
    let site = setup().start();
    let answer = call_with(&site, Fault::Chunked);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, r#"{"jsonrpc":"2.0","result":{"version":"0.14.4"},"id":"v"}"#)
    );
    for status in [200, 400, 404, 418, 429, 500, 503] {
        let answer = call_with(&site, Fault::Status(status, r#"{ "x":1e3 }"#.into()));
        assert_eq!((answer.status, answer.text().as_str()), (status, r#"{ "x":1e3 }"#));
    }
    // The stand-in closes behind each: said beforehand, so that no other call is sent there.
    let raw = |text: &str| Fault::Raw(text.as_bytes().to_vec());
    let answer = call_with(
        &site,
        raw(
            "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        ),
    );
    assert_eq!((answer.status, answer.text().as_str()), (200, "{}"));
    let answer = call_with(&site, raw("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{ }"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "{ }"), "up to the end of the connection");
    let chunks = "1;x=y\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: z\r\n\r\n";
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    assert_eq!(call_with(&site, raw(&format!("{head}{chunks}"))).text(), "{}");
    let answer = call_with(&site, raw("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"));
    assert_eq!(answer.text(), "{}");
    let answer = call_with(&site, raw("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"));
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    let answer = call_with(
        &site,
        raw(
            "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nSet-Cookie: a=b\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
        ),
    );
    assert_eq!((answer.status, answer.field("location")), (302, Some("http://elsewhere.example/")));
    for name in ["set-cookie", "x-hop", "keep-alive"] {
        assert_eq!(answer.field(name), None);
    }
}

/// docs/http.md: "over `max_response_bytes` is a 502"
#[test]
fn an_answer_that_is_too_large() {
    let policy = policy_with_tools(&[])
        .replace("    jsonrpc_allow", "    max_response_bytes: 100000\n    jsonrpc_allow");
    let site = Setup::policy(policy).start();
    assert_eq!(call_with(&site, Fault::Large(90_000)).status, 200);
    is_error(&call_with(&site, Fault::Large(110_000)), 502, -32004);
    is_error(
        &call_with(&site, Fault::Raw([b"HTTP/1.1 200 OK\r\n\r\n", noise(200_000, 3).as_slice()].concat())),
        502,
        -32004,
    );
    assert_eq!(site.call(VERSION).status, 200);
}

/// docs/http.md: "Connections are kept for other calls, and one that the upstream closed is not used again."
#[test]
fn connections_to_the_upstream_are_kept_and_their_end_is_noticed() {
    let site = setup().start();
    let connection = |site: &Site| {
        assert_eq!(site.call(VERSION).status, 200);
        site.upstream.requests().last().unwrap().connection
    };
    let first = connection(&site);
    assert_eq!(connection(&site), first);
    site.upstream.cut_connections();
    wait_until("the connections are gone", LONG, || site.upstream.open_connections() == 0);
    for _ in 0..20 {
        assert_ne!(connection(&site), first);
    }
}

/// docs/http.md: "A request that may have reached the upstream is never sent again."
#[test]
fn a_call_on_a_kept_connection_that_breaks_is_not_repeated() {
    let site = setup().start();
    assert_eq!(site.call(VERSION).status, 200);
    is_error(&call_with(&site, Fault::Close), 502, -32004);
    assert_eq!(site.upstream.requests().len(), 2);
}

/// docs/http.md: "or on a Unix socket"
#[test]
fn an_upstream_on_a_unix_socket() {
    let folder = carapace_debug::rig::Folder::create("carapace-e2e-unix").unwrap();
    let path = folder.join("upstream.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let site = setup().upstream_url(format!("unix:{}", path.display())).start();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"id\": 5}").unwrap();
        String::from_utf8(request).unwrap()
    });
    assert_eq!(site.call(VERSION).text(), r#"{"id": 5}"#);
    let request = serving.join().unwrap();
    assert!(
        request.starts_with("POST /api/v1/rpc HTTP/1.1\r\n") && request.contains("host: localhost\r\n")
            || request.contains("Host: localhost\r\n"),
        "{request}"
    );
}

/// nginx before the stand-in, and a file of its own.
fn nginx(site: &Site) -> Option<Daemon> {
    let folder = site.path("nginx");
    std::fs::create_dir(&folder).unwrap();
    let addr = free_addr();
    let path = folder.display();
    let upstream = site.upstream.addr();
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid {path}/pid;\nerror_log stderr;\nevents {{ }}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {path}/1;\nproxy_temp_path {path}/2;\nfastcgi_temp_path {path}/3;\n\
         uwsgi_temp_path {path}/4;\nscgi_temp_path {path}/5;\nclient_max_body_size 100m;\nserver {{\n\
         listen {addr};\nlocation / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_buffering off; \
         proxy_set_header Connection ''; proxy_set_header Host {upstream}; }}\n}}\n}}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    let launch = Launch::new("nginx").arg("-e").arg("stderr").arg("-p").arg(&folder).arg("-c").arg(&file);
    match Daemon::start_at(&launch, addr) {
        Ok(nginx) => Some(nginx),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

/// Calls, large bodies and event streams by way of somebody else's HTTP.
#[test]
fn nginx_as_an_upstream() {
    let mut site = setup().prepare();
    let Some(nginx) = nginx(&site) else { return };
    site.set_upstream_url(format!("http://{}", nginx.addr()));
    site.start_server();
    site.start_agent();
    for _ in 0..5 {
        assert_eq!(site.call(VERSION).json()["result"]["version"], "0.14.4");
    }
    assert_eq!(site.get("/api/v1/check").status, 200);
    let answer = call_with(&site, Fault::Large(3_000_000));
    assert!(answer.body.len() > 3_000_000);
    let message = "m".repeat(2_000_000);
    let send = format!(
        r#"{{"jsonrpc":"2.0","id":"v","method":"send","params":{{"recipient":["+12025550123"],"message":"{message}"}}}}"#
    );
    assert!(site.call(send).json()["result"].is_object());
    let answer = call_with(&site, Fault::Close);
    assert_eq!((answer.status, answer.field("content-type")), (502, Some("text/html")), "nginx's own words");

    let mut stream = site.events("/api/v1/events");
    assert_eq!(stream.head.status, 200);
    assert!(site.upstream.wait_for_streams(1, LONG));
    site.upstream.emit(&carapace_debug::upstream::Event::receive("by nginx"));
    assert_eq!(stream.next().data, "by nginx");
    drop(stream);
    assert!(site.upstream.wait_for_streams(0, LONG));
}

/// docs/http.md: "Upstreams are reached over TCP, by address or by name"
#[test]
fn an_upstream_by_name() {
    let mut site = setup().prepare();
    site.set_upstream_url(format!("http://localhost:{}", site.upstream.addr().port()));
    site.start_server();
    site.start_agent();
    assert_eq!(site.call(VERSION).status, 200);
    site.set_upstream_url("http://no-such-host.invalid:80".to_owned());
    site.server().signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    wait_until("the new policy", LONG, || site.call(VERSION).status != 200);
    is_error(&site.call(VERSION), 502, -32004);
}
