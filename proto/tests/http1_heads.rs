//! Heads of requests and responses: what is accepted, what is refused, and that pieces do not matter.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "test helpers outside #[test] functions")]

use carapace_proto::wire::http1::{
    HeadError, HeadLimits, HeadScanner, RequestFraming, RequestHead, ResponseFraming, ResponseHead, Version,
    parse_request, parse_request_from, parse_response, parse_response_from,
};
use proptest::prelude::*;

fn limits() -> HeadLimits {
    HeadLimits::default()
}

fn request(bytes: &[u8]) -> Result<Option<RequestHead<'_>>, HeadError> {
    parse_request(bytes, &limits())
}

fn accepted(bytes: &[u8]) -> RequestHead<'_> {
    request(bytes).unwrap().unwrap()
}

fn response<'a>(bytes: &'a [u8], method: &str) -> Result<Option<ResponseHead<'a>>, HeadError> {
    parse_response(bytes, method, &limits())
}

const OPENCLAW: &[u8] =
    b"POST /api/v1/rpc HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n\
    Content-Length: 123\r\nConnection: keep-alive\r\n\r\n";

#[test]
fn a_request_is_read() {
    let mut bytes = OPENCLAW.to_vec();
    bytes.extend_from_slice(b"{\"jsonrpc\":");
    let head = accepted(&bytes);
    assert_eq!(head.consumed, OPENCLAW.len());
    assert_eq!((head.method, head.target, head.version), ("POST", "/api/v1/rpc", Version::Http11));
    assert_eq!(head.framing, RequestFraming::Length(123));
    assert!(head.keep_alive && !head.expect_continue);
    assert_eq!(head.host, Some("127.0.0.1:8080"));
    assert_eq!(head.content_type, Some("application/json"));
    assert_eq!((head.origin, head.content_encoding), (None, None));
    assert_eq!(head.field("CONNECTION"), Some(&b"keep-alive"[..]));
    assert_eq!(head.field("Accept"), None);
    let names: Vec<&str> = head.fields.iter().map(|field| field.name).collect();
    assert_eq!(names, ["Host", "Content-Type", "Content-Length", "Connection"]);
}

#[test]
fn what_is_accepted() {
    let framing = |head: &[u8]| accepted(head).framing;
    assert_eq!(framing(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"), RequestFraming::None);
    assert_eq!(
        framing(b"GET / HTTP/1.1\r\nhOST: h\r\ntransfer-ENCODING: Chunked\r\n\r\n"),
        RequestFraming::Chunked
    );
    assert_eq!(
        framing(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"),
        RequestFraming::Length(0)
    );
    assert_eq!(
        framing(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: \t18446744073709551615 \r\n\r\n"),
        RequestFraming::Length(u64::MAX)
    );
    // One empty line before the request line.
    assert_eq!(accepted(b"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n").consumed, 29);
    // HTTP/1.0 closes, and may leave Host out.
    let old = accepted(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(!old.keep_alive && old.host.is_none() && old.version == Version::Http10);
    assert!(!accepted(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n").keep_alive);
    // Continue is owed only where a body is to come, and never to HTTP/1.0.
    let expects = |head: &[u8]| accepted(head).expect_continue;
    assert!(expects(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-Continue\r\n\r\n"));
    assert!(expects(
        b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    ));
    assert!(!expects(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n"));
    assert!(!expects(b"PUT / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"));
    let accepts = |head: &[u8]| accepted(head).accepts_event_stream();
    assert!(accepts(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: text/html, Text/Event-Stream;q=0.9\r\n\r\n"));
    assert!(!accepts(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n"));
    // Empty values, values above ASCII, every token character.
    let odd = accepted(b"M!#$%&'*+-.^_`|~9 / HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nX-Bytes: \xe4\xff\r\n\r\n");
    assert_eq!(odd.field("x-empty"), Some(&b""[..]));
    assert_eq!(odd.field("x-bytes"), Some(&b"\xe4\xff"[..]));
}

/// Each with the status that it is answered with.
#[test]
fn what_is_refused() {
    let head = |line: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n").into_bytes();
    let cases: Vec<(Vec<u8>, HeadError)> = vec![
        // Framing that two parsers may read differently.
        (head("Content-Length: 1\r\nTransfer-Encoding: chunked"), HeadError::ConflictingFraming),
        (head("Transfer-Encoding: chunked\r\nContent-Length: 1"), HeadError::ConflictingFraming),
        (head("Content-Length: 1\r\nContent-Length: 2"), HeadError::DifferingLengths),
        (head("Content-Length: 1\r\nContent-Length: 01"), HeadError::DifferingLengths),
        (head("Content-Length: 1, 1"), HeadError::MalformedLength),
        (head("Content-Length: +1"), HeadError::MalformedLength),
        (head("Content-Length: -1"), HeadError::MalformedLength),
        (head("Content-Length: 0x1"), HeadError::MalformedLength),
        (head("Content-Length: 1 2"), HeadError::MalformedLength),
        (head("Content-Length:"), HeadError::MalformedLength),
        (head("Content-Length: 18446744073709551616"), HeadError::MalformedLength),
        (head("Content-Length: 000000000000000000001"), HeadError::MalformedLength),
        (head("Transfer-Encoding: gzip, chunked"), HeadError::TransferCoding),
        (head("Transfer-Encoding: chunked, chunked"), HeadError::TransferCoding),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), HeadError::TransferCoding),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"), HeadError::TransferCoding),
        (head("Transfer-Encoding: identity"), HeadError::TransferCoding),
        (head("Transfer-Encoding: \"chunked\""), HeadError::TransferCoding),
        (head("Transfer-Encoding: chunked;q=1"), HeadError::TransferCoding),
        (head("Transfer-Encoding: xchunked"), HeadError::TransferCoding),
        (head("Transfer-Encoding:"), HeadError::TransferCoding),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), HeadError::TransferCoding),
        // Lines.
        (head("A: b\r\n c"), HeadError::Folded),
        (head("A: b\r\n\tc"), HeadError::Folded),
        (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n".to_vec(), HeadError::Folded),
        (head("A: b\nB: c"), HeadError::BareLineBreak),
        (head("A: b\rB: c"), HeadError::BareLineBreak),
        (head("A: b\r\r"), HeadError::BareLineBreak),
        (b"GET / HTTP/1.1\nHost: h\n\n".to_vec(), HeadError::BareLineBreak),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\n".to_vec(), HeadError::BareLineBreak),
        (b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (head("A: \0"), HeadError::ControlByte),
        (head("A: \x01"), HeadError::FieldSyntax),
        (head("A: \x7f"), HeadError::FieldSyntax),
        (head("A : b"), HeadError::FieldSyntax),
        (head("A\t: b"), HeadError::FieldSyntax),
        (head(": b"), HeadError::FieldSyntax),
        (head("A"), HeadError::FieldSyntax),
        (head("A(: b"), HeadError::FieldSyntax),
        (head("\u{e4}: b"), HeadError::FieldSyntax),
        // The request line.
        (b"GET /\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET /  HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET /\t HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b" GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET / http/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET / HTTP/1.10\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"G\"T / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n".to_vec(), HeadError::Version),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n".to_vec(), HeadError::Version),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), HeadError::Version),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), HeadError::StartLine),
        // Host.
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), HeadError::NoHost),
        (head("Host: h"), HeadError::Duplicate("Host")),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n".to_vec(), HeadError::BadValue("Host")),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".to_vec(), HeadError::BadValue("Host")),
        (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n".to_vec(), HeadError::BadValue("Host")),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".to_vec(), HeadError::BadValue("Host")),
        (b"GET / HTTP/1.1\r\nHost: \xc3\xa4\r\n\r\n".to_vec(), HeadError::BadValue("Host")),
        // What is judged must not come twice.
        (head("Origin: a\r\nOrigin: b"), HeadError::Duplicate("Origin")),
        (head("Content-Type: a/b\r\nContent-Type: a/b"), HeadError::Duplicate("Content-Type")),
        (
            head("Content-Encoding: identity\r\nContent-Encoding: gzip"),
            HeadError::Duplicate("Content-Encoding"),
        ),
        (head("Content-Type: \u{e4}"), HeadError::BadValue("Content-Type")),
        (head("Expect: 200-maybe"), HeadError::Expectation),
    ];
    for (bytes, error) in cases {
        let shown = bytes.escape_ascii().to_string();
        assert_eq!(request(&bytes).err(), Some(error), "{shown}");
        assert_eq!(dribble(&bytes).err(), Some(error), "byte by byte: {shown}");
        let status = error.status();
        assert!((400..=417).contains(&status) || matches!(status, 431 | 501 | 505), "{shown}: {status}");
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn garbage_is_refused_with_its_first_bytes() {
    let cases: [(&[u8], HeadError); 9] = [
        (b"\x16", HeadError::StartLine),
        (b"\0", HeadError::StartLine),
        (b"\n", HeadError::StartLine),
        (b"GET / HTTP/1.1\n", HeadError::BareLineBreak),
        (b"GET / HTTP/1.1\r\nA\0", HeadError::ControlByte),
        (b"PRI * HTTP/2.0\r\n", HeadError::Version),
        (b"GET /\r\n", HeadError::StartLine),
        (b"GET / HTTP/1.1\r\nA: b\rc", HeadError::BareLineBreak),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", HeadError::MethodTooLong),
    ];
    for (bytes, error) in cases {
        assert_eq!(request(bytes).err(), Some(error), "{}", bytes.escape_ascii());
        let (_, before) = bytes.split_last().unwrap();
        assert!(matches!(request(before), Ok(None)), "{}", before.escape_ascii());
    }
}

#[test]
fn limits_hold_to_the_byte() {
    let target =
        |len: usize| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(len - 1)).into_bytes();
    let max = limits().target_bytes_max;
    assert_eq!(accepted(&target(max)).target.len(), max);
    assert_eq!(request(&target(max + 1)).err(), Some(HeadError::TargetTooLong { max }));
    // Refused as soon as it is too long, not when it ends.
    assert_eq!(request(&[b'a'; 33]).err(), Some(HeadError::MethodTooLong));
    let endless = [b"GET /".to_vec(), vec![b'a'; max + 100]].concat();
    assert_eq!(request(&endless).err(), Some(HeadError::TargetTooLong { max }));
    assert_eq!(HeadError::TargetTooLong { max }.status(), 414);

    let fields = |count: usize| {
        let more: String = (1..count).map(|n| format!("X-{n}: y\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: h\r\n{more}\r\n").into_bytes()
    };
    let max = limits().fields_max;
    assert_eq!(accepted(&fields(max)).fields.as_slice().len(), max);
    assert_eq!(accepted(&fields(max)).field("x-99"), Some(&b"y"[..]));
    assert_eq!(request(&fields(max + 1)).err(), Some(HeadError::TooManyFields { max }));
    assert_eq!(dribble(&fields(max + 1)).err(), Some(HeadError::TooManyFields { max }));
    for count in 1..40 {
        assert_eq!(accepted(&fields(count)).fields.iter().count(), count);
    }

    let sized = |len: usize| {
        let around = b"GET / HTTP/1.1\r\nHost: h\r\nA: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "a".repeat(len - around)).into_bytes()
    };
    let max = limits().head_bytes_max;
    assert_eq!(accepted(&sized(max)).consumed, max);
    for bytes in [sized(max + 1), sized(max + 2), sized(max + 3), sized(2 * max)] {
        assert_eq!(request(&bytes).err(), Some(HeadError::HeadTooLarge { max }));
        assert_eq!(request(&bytes[..=max]).err(), Some(HeadError::HeadTooLarge { max }));
    }
    assert_eq!(HeadError::HeadTooLarge { max }.status(), 431);
    assert_eq!(dribble(&sized(max)).unwrap().unwrap().consumed, max);
    assert_eq!(dribble(&sized(max + 1)).err(), Some(HeadError::HeadTooLarge { max }));
}

#[test]
fn a_scanner_serves_one_head_after_the_other() {
    let pipelined = [OPENCLAW, b"\r\n", OPENCLAW, b"GET / HTTP/1.0\r\n\r\n"].concat();
    let (mut scanner, mut rest, mut lens) = (HeadScanner::new(), &pipelined[..], Vec::new());
    while !rest.is_empty() {
        // What has arrived of the head that comes next.
        for len in (0..=rest.len()).step_by(7).chain([rest.len()]) {
            if let Some(head) = parse_request_from(&mut scanner, &rest[..len], &limits()).unwrap() {
                lens.push(head.consumed);
                rest = &rest[head.consumed..];
                break;
            }
        }
    }
    assert_eq!(lens, [OPENCLAW.len(), OPENCLAW.len() + 2, 18]);
}

#[test]
fn a_response_is_read() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream;charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n";
    let head = response(bytes, "GET").unwrap().unwrap();
    assert_eq!((head.consumed, head.status, head.framing), (bytes.len() - 3, 200, ResponseFraming::Chunked));
    assert!(head.is_event_stream() && head.keep_alive && !head.is_interim());
    let framing = |method: &str, text: &str| {
        let bytes = format!("HTTP/1.1 {text}\r\n\r\n").into_bytes();
        let head = response(&bytes, method).unwrap().unwrap();
        (head.framing, head.keep_alive)
    };
    assert_eq!(framing("GET", "200 OK"), (ResponseFraming::UntilClose, false));
    assert_eq!(framing("GET", "200"), (ResponseFraming::UntilClose, false));
    assert_eq!(framing("GET", "200 "), (ResponseFraming::UntilClose, false));
    assert_eq!(framing("GET", "200 OK\r\nContent-Length: 7"), (ResponseFraming::Length(7), true));
    assert_eq!(
        framing("GET", "200 OK\r\nContent-Length: 7\r\nConnection: close"),
        (ResponseFraming::Length(7), false)
    );
    assert_eq!(framing("HEAD", "200 OK\r\nContent-Length: 7"), (ResponseFraming::None, true));
    assert_eq!(framing("HEAD", "200 OK\r\nTransfer-Encoding: chunked"), (ResponseFraming::None, true));
    assert_eq!(framing("GET", "204 No Content"), (ResponseFraming::None, true));
    assert_eq!(framing("GET", "204 No Content\r\nContent-Length: 0"), (ResponseFraming::None, true));
    assert_eq!(framing("GET", "204 No Content\r\nContent-Length: 7"), (ResponseFraming::None, false));
    assert_eq!(framing("GET", "304 Not Modified\r\nContent-Length: 7"), (ResponseFraming::None, true));
    assert_eq!(framing("GET", "100 Continue"), (ResponseFraming::None, true));
    let old = b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\nConnection: Keep-Alive\r\n\r\n";
    assert!(response(old, "GET").unwrap().unwrap().keep_alive);
    let old = b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n";
    assert!(!response(old, "GET").unwrap().unwrap().keep_alive);
    let compressed = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n";
    let compressed = response(compressed, "GET").unwrap().unwrap();
    assert!(compressed.is_encoded() && !compressed.is_event_stream());
    let twice = b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Encoding: identity, br\r\n\r\n";
    assert!(response(twice, "GET").unwrap().unwrap().is_encoded());
    let plain = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: Identity\r\n\r\n";
    assert!(response(plain, "GET").unwrap().unwrap().is_event_stream());
}

#[test]
fn what_is_no_response() {
    let head = |line: &str| format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n").into_bytes();
    let cases: Vec<(Vec<u8>, HeadError)> = vec![
        (head("Content-Length: 1\r\nTransfer-Encoding: chunked"), HeadError::ConflictingFraming),
        (head("Content-Length: 1\r\nContent-Length: 2"), HeadError::DifferingLengths),
        (head("Content-Length: x"), HeadError::MalformedLength),
        (head("Transfer-Encoding: gzip, chunked"), HeadError::TransferCoding),
        (head("A: b\r\n c"), HeadError::Folded),
        (head("A: b\nB: c"), HeadError::BareLineBreak),
        (head("A : b"), HeadError::FieldSyntax),
        (head("A: \0"), HeadError::ControlByte),
        (b"HTTP/1.1 099 x\r\n\r\n".to_vec(), HeadError::Status),
        (b"HTTP/1.1 600 x\r\n\r\n".to_vec(), HeadError::Status),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(), HeadError::Status),
        (b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n".to_vec(), HeadError::ConflictingFraming),
        (b"HTTP/1.1 103 x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), HeadError::ConflictingFraming),
        (b"HTTP/1.1 20 OK\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"HTTP/1.1 2000 OK\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"HTTP/2.0 200 OK\r\n\r\n".to_vec(), HeadError::Version),
        (b"HTTP/1.2 200 OK\r\n\r\n".to_vec(), HeadError::Version),
        (b"ICY 200 OK\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n".to_vec(), HeadError::StartLine),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), HeadError::StartLine),
    ];
    for (bytes, error) in cases {
        assert_eq!(response(&bytes, "GET").err(), Some(error), "{}", bytes.escape_ascii());
    }
    assert_eq!(response(b"S", "GET").err(), Some(HeadError::StartLine));
    assert!(matches!(response(b"HTTP", "GET"), Ok(None)));
}

#[test]
fn what_is_passed_on() {
    let bytes = b"HTTP/1.1 200 OK\r\nServer: x\r\nSet-Cookie: a\r\nset-cookie: b\r\nConnection: X-Private, close\r\n\
        X-Private: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 3\r\nUpgrade: h2c\r\nTE: trailers\r\nTrailer: X\r\n\
        Proxy-Authenticate: Basic\r\nETag: \"1\"\r\n\r\n";
    let head = response(bytes, "GET").unwrap().unwrap();
    let names: Vec<&str> = head.passed_fields().map(|field| field.name).collect();
    assert_eq!(names, ["Server", "ETag"]);
}

/// Feeds byte by byte through one scanner.
fn dribble(bytes: &[u8]) -> Result<Option<RequestHead<'_>>, HeadError> {
    let mut scanner = HeadScanner::new();
    for len in 0..=bytes.len() {
        if let Some(head) = parse_request_from(&mut scanner, &bytes[..len], &limits())? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn summary(head: Result<Option<RequestHead<'_>>, HeadError>) -> Result<Option<String>, HeadError> {
    head.map(|head| head.map(|head| format!("{head:?}")))
}

/// Heads made of what matters.
fn head_bytes(start: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let parts: &'static [&'static [u8]] = &[
        b"Host: h",
        b"Host: h\r\n",
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b" ",
        b"\t",
        b":",
        b"A: b",
        b"Content-Length: 5\r\n",
        b"Content-Length: 6\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"x",
        b"\0",
        b"\xff",
        b" HTTP/1.1",
        b"GET / HTTP/1.1\r\n",
        b",",
    ];
    (prop::sample::select(start), prop::collection::vec(prop::sample::select(parts), 0..12))
        .prop_map(|(start, parts)| [start.to_vec(), parts.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn request_pieces_do_not_matter(
        bytes in head_bytes(&[b"GET / HTTP/1.1\r\nHost: h\r\n", b"GET / HTTP/1.1\r\n", b"GET /", b"\r\n", b""]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let expected = summary(request(&bytes));
        prop_assert_eq!(&summary(dribble(&bytes)), &expected);
        let mut lens: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([bytes.len()]).collect();
        lens.sort_unstable();
        let mut scanner = HeadScanner::new();
        let mut told = Ok(None);
        for len in lens {
            told = summary(parse_request_from(&mut scanner, &bytes[..len], &limits()));
            if told != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn response_pieces_do_not_matter(
        bytes in head_bytes(&[b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 204", b"HTTP", b""]),
    ) {
        let expected = response(&bytes, "GET").map(|head| head.map(|head| format!("{head:?}")));
        let mut scanner = HeadScanner::new();
        let mut told = Ok(None);
        for len in 0..=bytes.len() {
            told = parse_response_from(&mut scanner, &bytes[..len], "GET", &limits())
                .map(|head| head.map(|head| format!("{head:?}")));
            if told != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for head in [request(&bytes).map(|head| head.map(|head| head.consumed)),
                     response(&bytes, "GET").map(|head| head.map(|head| head.consumed))].into_iter().flatten() {
            prop_assert!(head.is_none_or(|consumed| consumed <= bytes.len()));
        }
        let _ = dribble(&bytes);
    }
}
