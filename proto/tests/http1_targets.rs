//! Targets and hosts: one spelling is accepted, whatever another parser might read otherwise is not.
#![allow(clippy::unwrap_used, reason = "test helpers outside #[test] functions")]

use carapace_proto::wire::http1::{
    Field, HeadLimits, TargetError, host_is_allowed, is_json, media_type_is, parse_request, parse_target,
};
use proptest::prelude::*;

fn target(text: &str) -> Result<&str, TargetError> {
    parse_target(text, |host| host_is_allowed(host, 8080, &[]))
}

#[test]
fn what_is_accepted() {
    let cases = [
        "/",
        "/api/v1/rpc",
        "/api/v1/events?account=%2B15551234567",
        "/a/b/",
        "/...",
        "/.a/..b/c../a.b",
        "/%20%C3%A4/a;b=c",
        "/?",
        "/a?b=../..//c%2F%5C%00&d=?e",
        "/a:b@c!$&'()*+,=~",
        "/%252e%252e/",
    ];
    for text in cases {
        assert_eq!(target(text), Ok(text));
    }
    assert_eq!(target("http://localhost:8080/a?b"), Ok("/a?b"));
    assert_eq!(target("HTTP://127.0.0.1:8080"), Ok("/"));
    assert_eq!(target("http://[::1]:8080/"), Ok("/"));
}

#[test]
fn what_is_refused() {
    use TargetError::{Byte, DotSegment, EmptySegment, Encoding, Form, OtherHost};
    let cases = [
        ("", Form),
        ("*", Form),
        ("a/b", Form),
        ("localhost:8080", Form),
        ("https://localhost:8080/", Form),
        ("http:/a", Form),
        ("http://localhost:8080?a", Form),
        ("http://", OtherHost),
        ("http:///a", OtherHost),
        ("http://other:8080/", OtherHost),
        ("http://localhost:8081/", OtherHost),
        ("http://localhost/", OtherHost),
        ("http://u@localhost:8080/", OtherHost),
        ("http://localhost:8080@other/", OtherHost),
        ("/a b", Byte),
        ("/a\\b", Byte),
        ("/a?b\\c", Byte),
        ("/a#b", Byte),
        ("/a?b#c", Byte),
        ("/\t", Byte),
        ("/\u{7f}", Byte),
        ("/\u{e4}", Byte),
        ("//", EmptySegment),
        ("//host/a", EmptySegment),
        ("/a//b", EmptySegment),
        ("/a//", EmptySegment),
        ("http://localhost:8080//a", EmptySegment),
        ("/.", DotSegment),
        ("/..", DotSegment),
        ("/./a", DotSegment),
        ("/a/../b", DotSegment),
        ("/a/..", DotSegment),
        ("/a/..?b", DotSegment),
        ("/%2e", DotSegment),
        ("/a/%2E%2e/b", DotSegment),
        ("/a/.%2e/b", DotSegment),
        ("/a/%2e./b", DotSegment),
        ("/a/..;x=y/b", DotSegment),
        ("/a/.;/b", DotSegment),
        ("/a%2fb", Encoding),
        ("/a%2Fb", Encoding),
        ("/a%5cb", Encoding),
        ("/..%2fa", Encoding),
        ("/a%00", Encoding),
        ("/a%0d%0a", Encoding),
        ("/a%7f", Encoding),
        ("/a%", Encoding),
        ("/a%2", Encoding),
        ("/a%zz", Encoding),
        ("/a%+1", Encoding),
        ("/a?%g0", Encoding),
        ("/a?b=100%", Encoding),
    ];
    for (text, error) in cases {
        assert_eq!(target(text), Err(error), "{text:?}");
        assert!(matches!(error.status(), 400 | 421));
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn hosts() {
    let allowed = ["vm.internal".to_owned(), "192.0.2.7".to_owned(), "proxy.example:9000".to_owned()];
    let is_allowed = |host: &str| host_is_allowed(host, 8080, &allowed);
    for host in [
        "localhost:8080",
        "LOCALHOST:8080",
        "127.0.0.1:8080",
        "127.1.2.3:8080",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]:8080",
        "vm.internal:8080",
        "VM.Internal:8080",
        "192.0.2.7:8080",
        "proxy.example:9000",
    ] {
        assert!(is_allowed(host), "{host}");
    }
    for host in [
        "",
        ":8080",
        "localhost",
        "localhost:",
        "localhost:80",
        "localhost:+8080",
        "localhost:08080x",
        "localhost:000000008080",
        "localhost.:8080",
        "localhost.evil.example:8080",
        "evil.example:8080",
        "127.0.0.1.evil.example:8080",
        "127.1:8080",
        "0177.0.0.1:8080",
        "2130706433:8080",
        "128.0.0.1:8080",
        "[::2]:8080",
        "::1:8080",
        "[::1]8080",
        "[::1",
        "proxy.example:8080",
        "proxy.example",
    ] {
        assert!(!is_allowed(host), "{host}");
    }
    assert!(host_is_allowed("localhost", 80, &[]));
    assert!(host_is_allowed("[::1]", 80, &[]));
    assert!(host_is_allowed("localhost:80", 80, &[]));
}

#[test]
fn media_types() {
    assert!(media_type_is("Text/Event-Stream ; charset=utf-8", "text/event-stream"));
    assert!(!media_type_is("text/event-streams", "text/event-stream"));
    for text in [
        "application/json",
        "Application/JSON",
        "application/json; charset=UTF-8",
        "application/json;charset=\"utf-8\"",
    ] {
        assert!(is_json(text), "{text}");
    }
    for text in [
        "",
        "text/json",
        "application/json-rpc",
        "application/json; charset=utf-16",
        "application/json;x=y",
        "application/json, text/plain",
    ] {
        assert!(!is_json(text), "{text}");
    }
}

/// What paths are talked round with.
const PARTS: &[&str] = &[
    "/",
    "/",
    ".",
    "..",
    "%2e",
    "%2F",
    "%5c",
    "a",
    ";",
    "?",
    "#",
    "\\",
    "%",
    "http://localhost:8080",
    "%00",
];

proptest! {
    #[test]
    fn what_is_accepted_has_one_reading(parts in prop::collection::vec(
        prop::sample::select(PARTS),
        0..8,
    )) {
        let text = parts.concat();
        if let Ok(accepted) = target(&text) {
            let (path, _) = accepted.split_once('?').unwrap_or((accepted, ""));
            // A parser that decodes first and one that splits first see the same segments.
            let decoded = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
            prop_assert_eq!(decoded.matches('/').count(), path.matches('/').count());
            prop_assert!(!decoded.contains("//") && !decoded.contains('\\') && !decoded.contains('#'));
            prop_assert!(decoded.split('/').all(|segment| segment != "." && segment != ".."));
            prop_assert!(text.ends_with(accepted) || accepted == "/");
        }
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,40}", port: u16) {
        let _ = target(&text);
        let _ = host_is_allowed(&text, port, std::slice::from_ref(&text));
    }

    #[test]
    fn values_keep_their_bytes(value in "[!-~\u{80}-\u{ff}]([ -~\t\u{80}-\u{ff}]{0,20}[!-~\u{80}-\u{ff}])?") {
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\nX-A:  {value}\t \r\n\r\n");
        let parsed = parse_request(head.as_bytes(), &HeadLimits::default()).unwrap().unwrap();
        let last = parsed.fields.as_slice().last().copied();
        prop_assert_eq!(last, Some(Field { name: "X-A", value: value.as_bytes() }));
    }
}
