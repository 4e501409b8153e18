//! What is written: exact bytes, and nothing that could break a head.
#![allow(clippy::unwrap_used, reason = "test helpers outside #[test] functions")]

use carapace_proto::wire::http1::{
    Answer, Framing, HeadLimits, HttpDate, RequestFraming, ResponseFraming, ResponseMeta, WriteError,
    parse_request, parse_response, reason, write_answer, write_chunk_header, write_request_head,
    write_response_head,
};
use proptest::prelude::*;

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const NO_FIELDS: [(&str, &[u8]); 0] = [];

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn heads() {
    let mut out = Vec::new();
    let fields: [(&str, &[u8]); 2] = [("Accept", b"*/*"), ("X-Empty", b"")];
    write_request_head(&mut out, "POST", "/api/v1/rpc", "127.0.0.1:9000", fields, Framing::Length(42))
        .unwrap();
    assert_eq!(
        text(&out),
        "POST /api/v1/rpc HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nAccept: */*\r\nX-Empty: \r\nContent-Length: 42\r\n\r\n"
    );
    out.clear();
    let mut meta =
        ResponseMeta { status: 200, date: Some(DATE), framing: Framing::Chunked, keep_alive: true };
    write_response_head(&mut out, &meta, [("Content-Type", &b"text/event-stream"[..])]).unwrap();
    assert_eq!(
        text(&out),
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/event-stream\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    out.clear();
    meta = ResponseMeta { status: 299, date: None, framing: Framing::UntilClose, keep_alive: true };
    write_response_head(&mut out, &meta, NO_FIELDS).unwrap();
    assert_eq!(text(&out), "HTTP/1.1 299 \r\nConnection: close\r\n\r\n");
    out.clear();
    meta = ResponseMeta { status: 204, date: None, framing: Framing::None, keep_alive: true };
    write_response_head(&mut out, &meta, NO_FIELDS).unwrap();
    assert_eq!(text(&out), "HTTP/1.1 204 No Content\r\n\r\n");
}

#[test]
fn answers() {
    let mut answer = Answer {
        status: 405,
        date: Some(DATE),
        content_type: Some("text/plain"),
        fields: &[("Allow", "GET, POST"), ("Retry-After", "1")],
        body: b"no\n",
        is_head: false,
        keep_alive: false,
    };
    let mut out = b"earlier".to_vec();
    write_answer(&mut out, &answer).unwrap();
    let head = "earlierHTTP/1.1 405 Method Not Allowed\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
        Content-Type: text/plain\r\nAllow: GET, POST\r\nRetry-After: 1\r\nContent-Length: 3\r\n\
        Connection: close\r\n\r\n";
    assert_eq!(text(&out), format!("{head}no\n"));
    answer.is_head = true;
    out = b"earlier".to_vec();
    write_answer(&mut out, &answer).unwrap();
    assert_eq!(text(&out), head);
    out.clear();
    let empty = Answer {
        status: 204,
        date: None,
        content_type: None,
        fields: &[],
        body: b"",
        is_head: false,
        keep_alive: true,
    };
    write_answer(&mut out, &empty).unwrap();
    assert_eq!(text(&out), "HTTP/1.1 204 No Content\r\n\r\n");
}

#[test]
fn what_is_not_written() {
    use WriteError::{Reserved, Syntax};
    let fields: [(&str, &[u8], WriteError); 14] = [
        ("", b"x", Syntax),
        ("A B", b"x", Syntax),
        ("A:", b"x", Syntax),
        ("A\r\nB", b"x", Syntax),
        ("\u{e4}", b"x", Syntax),
        ("A", b"x\r\nB: y", Syntax),
        ("A", b"x\ny", Syntax),
        ("A", b"x\ry", Syntax),
        ("A", b"\0", Syntax),
        ("A", b"\x7f", Syntax),
        ("content-length", b"1", Reserved),
        ("Transfer-Encoding", b"chunked", Reserved),
        ("CONNECTION", b"close", Reserved),
        ("Host", b"h", Reserved),
    ];
    for (name, value, error) in fields {
        let mut out = b"earlier".to_vec();
        let written =
            write_request_head(&mut out, "GET", "/", "h", [("B", &b"c"[..]), (name, value)], Framing::None);
        assert_eq!(written, Err(error), "{name:?}: {}", value.escape_ascii());
        assert_eq!(out, b"earlier");
        if !name.eq_ignore_ascii_case("host") {
            let meta = ResponseMeta { status: 200, date: None, framing: Framing::None, keep_alive: true };
            assert_eq!(write_response_head(&mut out, &meta, [(name, value)]), Err(error));
            assert_eq!(out, b"earlier");
        }
    }
    for (method, target, host) in [
        ("", "/", "h"),
        ("G T", "/", "h"),
        ("GET\r\n", "/", "h"),
        ("GET", "", "h"),
        ("GET", "/a b", "h"),
        ("GET", "/\r\n", "h"),
        ("GET", "/\u{e4}", "h"),
        ("GET", "/", ""),
        ("GET", "/", "h\r\nA: b"),
        ("GET", "/", "h "),
    ] {
        let mut out = Vec::new();
        assert_eq!(write_request_head(&mut out, method, target, host, NO_FIELDS, Framing::None), Err(Syntax));
        assert!(out.is_empty());
    }
    for (status, date) in [(99, None), (600, None), (200, Some("x\r\n"))] {
        let mut out = Vec::new();
        let meta = ResponseMeta { status, date, framing: Framing::None, keep_alive: true };
        assert_eq!(write_response_head(&mut out, &meta, NO_FIELDS), Err(Syntax));
        assert!(out.is_empty());
    }
}

#[test]
fn chunk_headers() {
    for (bytes, expected) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (0xabcdef, "abcdef\r\n")] {
        let mut out = Vec::new();
        write_chunk_header(&mut out, bytes);
        assert_eq!(text(&out), expected);
    }
    let mut out = Vec::new();
    write_chunk_header(&mut out, usize::MAX);
    assert_eq!(text(&out), format!("{:x}\r\n", usize::MAX));
}

/// Taken from `date -u -d @N`.
#[test]
fn dates() {
    for (seconds, expected) in [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (784_111_777, DATE),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (951_868_799, "Tue, 29 Feb 2000 23:59:59 GMT"),
        (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
        (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
        (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
    ] {
        assert_eq!(HttpDate::from_unix(seconds).as_str(), expected);
    }
    assert_eq!(HttpDate::from_unix(u64::MAX).as_str().len(), 29);
}

#[test]
fn reasons_can_be_written() {
    assert!((100..=599).all(|status| {
        reason(status).bytes().all(|byte| byte == b'-' || byte == b' ' || byte.is_ascii_alphabetic())
    }));
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        method in "[A-Z]{1,10}",
        target in "/[!-~]{0,30}",
        names in prop::collection::vec("X-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", 0..20),
        value in "([!-~\u{e4}]([ -~\t]{0,20}[!-~])?)?",
        length: u64,
        status in 200_u16..600,
    ) {
        let fields = || names.iter().map(|name| (name.as_str(), value.as_bytes()));
        let mut out = Vec::new();
        write_request_head(&mut out, &method, &target, "h:1", fields(), Framing::Length(length)).unwrap();
        let head = parse_request(&out, &HeadLimits::default()).unwrap().unwrap();
        prop_assert_eq!(head.consumed, out.len());
        prop_assert_eq!((head.method, head.target, head.host), (&*method, &*target, Some("h:1")));
        prop_assert_eq!(head.framing, RequestFraming::Length(length));
        let given: Vec<_> = head.fields.iter().filter(|field| field.name.starts_with("X-")).map(|f| (f.name, f.value)).collect();
        prop_assert_eq!(given, fields().collect::<Vec<_>>());

        out.clear();
        let meta = ResponseMeta { status, date: Some(DATE), framing: Framing::Chunked, keep_alive: length % 2 == 0 };
        write_response_head(&mut out, &meta, fields()).unwrap();
        let head = parse_response(&out, "GET", &HeadLimits::default()).unwrap().unwrap();
        prop_assert_eq!((head.consumed, head.status, head.keep_alive), (out.len(), status, meta.keep_alive));
        let expected = if matches!(status, 204 | 304) { ResponseFraming::None } else { ResponseFraming::Chunked };
        prop_assert_eq!(head.framing, expected);
    }
}
