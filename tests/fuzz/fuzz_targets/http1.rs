//! Heads and bodies: pieces do not matter; what is accepted is written and read back the same; nothing is
//! consumed that was not given.
#![no_main]

use carapace_proto::wire::http1::{
    BodyDecoder, BodyError, Framing, HeadLimits, HeadScanner, RequestFraming, parse_request, parse_request_from,
    parse_response, parse_response_from, parse_target, write_request_head,
};
use libfuzzer_sys::fuzz_target;

const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 400, fields_max: 20, target_bytes_max: 50 };

fn request(bytes: &[u8], piece: usize) -> usize {
    let whole = parse_request(bytes, &LIMITS).map(|head| head.map(|head| format!("{head:?}")));
    let mut scanner = HeadScanner::new();
    let mut told = Ok(None);
    for len in (0..bytes.len()).step_by(piece).chain([bytes.len()]) {
        told = parse_request_from(&mut scanner, &bytes[..len], &LIMITS)
            .map(|head| head.map(|head| format!("{head:?}")));
        if told != Ok(None) {
            break;
        }
    }
    assert_eq!(told, whole);
    let Ok(Some(head)) = parse_request(bytes, &LIMITS) else { return 0 };
    assert!(head.consumed <= bytes.len() && bytes[..head.consumed].ends_with(b"\r\n\r\n"));
    let _ = parse_target(head.target, |_| true);
    // What was read can be written, and is then read as the same.
    let written = [b"host".as_slice(), b"content-length", b"transfer-encoding", b"connection"];
    let fields: Vec<(&str, &[u8])> = head
        .fields
        .iter()
        .filter(|field| !written.iter().any(|name| name.eq_ignore_ascii_case(field.name.as_bytes())))
        .map(|field| (field.name, field.value))
        .collect();
    let framing = match head.framing {
        RequestFraming::None => Framing::None,
        RequestFraming::Length(bytes) => Framing::Length(bytes),
        RequestFraming::Chunked => Framing::Chunked,
    };
    let mut out = Vec::new();
    let host = head.host.unwrap_or("h");
    write_request_head(&mut out, head.method, head.target, host, fields.iter().copied(), framing).unwrap();
    let again = parse_request(&out, &HeadLimits::default()).unwrap().unwrap();
    assert_eq!((again.method, again.target, again.framing), (head.method, head.target, head.framing));
    assert!(fields.iter().all(|(name, value)| again.fields.iter().any(|f| f.name == *name && f.value == *value)));
    head.consumed
}

fn response(bytes: &[u8], piece: usize) {
    let whole = parse_response(bytes, "GET", &LIMITS).map(|head| head.map(|head| format!("{head:?}")));
    let mut scanner = HeadScanner::new();
    let mut told = Ok(None);
    for len in (0..bytes.len()).step_by(piece).chain([bytes.len()]) {
        told = parse_response_from(&mut scanner, &bytes[..len], "GET", &LIMITS)
            .map(|head| head.map(|head| format!("{head:?}")));
        if told != Ok(None) {
            break;
        }
    }
    assert_eq!(told, whole);
}

fn body<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(Vec<u8>, usize, bool), BodyError> {
    let (mut decoder, mut content, mut total) = (BodyDecoder::chunked(), Vec::new(), 0);
    for piece in pieces {
        let mut rest = piece;
        while !rest.is_empty() && !decoder.is_done() {
            let step = decoder.decode(rest)?;
            assert!(step.consumed > 0 && step.consumed <= rest.len());
            content.extend_from_slice(step.data);
            total += step.consumed;
            rest = &rest[step.consumed..];
        }
    }
    Ok((content, total, decoder.is_done()))
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let piece = usize::from(piece) + 1;
    let head = request(bytes, piece);
    response(bytes, piece);
    for bytes in [bytes, &bytes[head..]] {
        assert_eq!(body(bytes.chunks(piece)), body(std::iter::once(bytes)));
    }
});
