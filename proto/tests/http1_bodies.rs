//! Bodies: what of the bytes received is content, and where the next message begins.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "test helpers outside #[test] functions")]

use carapace_proto::wire::http1::{BodyDecoder, BodyError, LAST_CHUNK, write_chunk};
use proptest::prelude::*;

/// All content, whether the body ended, and how much of the input it was.
fn run(decoder: &mut BodyDecoder, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), BodyError> {
    let (mut content, mut total) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let step = decoder.decode(rest)?;
            assert!(step.consumed <= rest.len(), "more is consumed than was given");
            assert!(step.data.len() <= step.consumed);
            content.extend_from_slice(step.data);
            total += step.consumed;
            rest = &rest[step.consumed..];
            assert_eq!(step.done, decoder.is_done());
            if step.done {
                return Ok((content, true, total));
            }
            if step.consumed == 0 {
                assert!(rest.is_empty(), "input is left that is not used");
                break;
            }
        }
    }
    Ok((content, false, total))
}

fn chunked(bytes: &[u8]) -> Result<(Vec<u8>, bool, usize), BodyError> {
    let whole = run(&mut BodyDecoder::chunked(), &[bytes]);
    let singles: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(run(&mut BodyDecoder::chunked(), &singles), whole, "{}", bytes.escape_ascii());
    whole
}

#[test]
fn chunks_are_joined() {
    let read = |bytes: &[u8]| {
        let (content, done, total) = chunked(bytes).unwrap();
        (String::from_utf8(content).unwrap(), done, bytes.len() - total)
    };
    let whole = |text: &str| (text.to_owned(), true, 0);
    assert_eq!(read(b"3\r\nabc\r\n0\r\n\r\n"), whole("abc"));
    assert_eq!(read(b"1\r\na\r\nA\r\n0123456789\r\n000\r\n\r\n"), whole("a0123456789"));
    assert_eq!(read(b"0000000000000003\r\nabc\r\n0\r\n\r\n"), whole("abc"));
    assert_eq!(read(b"3;a=b;c=\"d \t\"\r\nabc\r\n0;x\r\n\r\n"), whole("abc"));
    assert_eq!(read(b"3\r\n\r\n\0\r\n0\r\nA: b\r\nC:\r\n\r\n"), whole("\r\n\0"));
    assert_eq!(read(b"0\r\n\r\nGET /"), (String::new(), true, 5));
    assert_eq!(read(b"3\r\nab"), ("ab".to_owned(), false, 0));
    assert_eq!(read(b"3"), (String::new(), false, 0));
}

#[test]
fn chunks_that_are_refused() {
    let overflow = format!("1\r\na\r\n{:x}\r\n", u64::MAX);
    let extension = format!("1;{}\r\n", "x".repeat(257));
    let trailers = format!("0\r\n{}", "A: b\r\n".repeat(1400));
    let cases: &[(&[u8], BodyError)] = &[
        // httparse takes this for the last chunk.
        (b"\r\n\r\n", BodyError::ChunkSize),
        (b"\r\n", BodyError::ChunkSize),
        (b";x\r\n", BodyError::ChunkSize),
        (b" 3\r\n", BodyError::ChunkSize),
        (b"3 \r\n", BodyError::ChunkSize),
        (b"3\t\r\n", BodyError::ChunkSize),
        (b"+3\r\n", BodyError::ChunkSize),
        (b"-1\r\n", BodyError::ChunkSize),
        (b"0x3\r\n", BodyError::ChunkSize),
        (b"3_0\r\n", BodyError::ChunkSize),
        (b"g\r\n", BodyError::ChunkSize),
        (b"\xb2\r\n", BodyError::ChunkSize),
        (b"00000000000000003\r\n", BodyError::ChunkSize),
        (b"10000000000000000\r\n", BodyError::ChunkSize),
        (b"3\n", BodyError::ChunkSize),
        (b"3\rabc", BodyError::LineEnd),
        (b"3;x\n", BodyError::Extension),
        (b"3;\0\r\n", BodyError::Extension),
        (b"3;\x7f\r\n", BodyError::Extension),
        (b"3;\xe4\r\n", BodyError::Extension),
        (b"3;x\rabc", BodyError::LineEnd),
        (b"3\r\nabcd", BodyError::LineEnd),
        (b"3\r\nabc\n", BodyError::LineEnd),
        (b"3\r\nabc\r0", BodyError::LineEnd),
        (b"3\r\nabc0\r\n", BodyError::LineEnd),
        (b"0\r\n\n", BodyError::Trailer),
        (b"0\r\n\r\r", BodyError::LineEnd),
        (b"0\r\n a: b\r\n", BodyError::Trailer),
        (b"0\r\nA\r\n", BodyError::Trailer),
        (b"0\r\nA : b\r\n", BodyError::Trailer),
        (b"0\r\n: b\r\n", BodyError::Trailer),
        (b"0\r\nA: b\n", BodyError::Trailer),
        (b"0\r\nA: \0\r\n", BodyError::Trailer),
        (b"0\r\nA: b\r\n c\r\n", BodyError::Trailer),
        (b"0\r\nA: b\rC", BodyError::LineEnd),
        (overflow.as_bytes(), BodyError::Overflow),
        (extension.as_bytes(), BodyError::Extension),
        (trailers.as_bytes(), BodyError::Trailer),
    ];
    for (bytes, error) in cases {
        assert_eq!(chunked(bytes), Err(*error), "{}", bytes.escape_ascii());
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn the_end_of_the_connection() {
    let end = |mut decoder: BodyDecoder, bytes: &[u8]| {
        run(&mut decoder, &[bytes]).unwrap();
        decoder.finish()
    };
    assert_eq!(end(BodyDecoder::until_close(), b"abc"), Ok(()));
    assert_eq!(end(BodyDecoder::length(3), b"abc"), Ok(()));
    assert_eq!(end(BodyDecoder::length(4), b"abc"), Err(BodyError::Truncated));
    assert_eq!(end(BodyDecoder::length(0), b""), Ok(()));
    assert_eq!(end(BodyDecoder::chunked(), b"0\r\n\r\n"), Ok(()));
    assert_eq!(end(BodyDecoder::chunked(), b"0\r\n"), Err(BodyError::Truncated));
    assert_eq!(end(BodyDecoder::chunked(), b""), Err(BodyError::Truncated));
}

#[test]
fn what_is_announced() {
    let mut decoder = BodyDecoder::chunked();
    let step = decoder.decode(b"fffffffffffffff0\r\nab").unwrap();
    assert_eq!((step.data, decoder.announced()), (&b"ab"[..], 0xffff_ffff_ffff_ffee));
    assert_eq!(BodyDecoder::length(9).announced(), 9);
}

/// What the chunked coding is made of.
const PARTS: &[&[u8]] = &[b"3", b"a", b"0", b"\r\n", b"\r\n", b"\r", b"\n", b";", b"A:", b"0\r\n\r\n", b"\0"];

proptest! {
    #[test]
    fn what_is_written_is_read(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5000), 0..6),
        rest in prop::collection::vec(any::<u8>(), 0..10),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut bytes = Vec::new();
        for part in &parts {
            write_chunk(&mut bytes, part);
        }
        bytes.extend_from_slice(LAST_CHUNK);
        let len = bytes.len();
        bytes.extend_from_slice(&rest);
        prop_assert_eq!(chunked(&bytes), Ok((parts.concat(), true, len)));
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        prop_assert_eq!(run(&mut BodyDecoder::chunked(), &pieces), Ok((parts.concat(), true, len)));
    }

    #[test]
    fn a_length_is_kept(bytes in prop::collection::vec(any::<u8>(), 0..100), len in 0_u64..120) {
        let singles: Vec<&[u8]> = bytes.chunks(1).collect();
        let whole = run(&mut BodyDecoder::length(len), &[&bytes]).unwrap();
        prop_assert_eq!(&run(&mut BodyDecoder::length(len), &singles).unwrap().0, &whole.0);
        let expected = bytes.len().min(len.try_into().unwrap());
        prop_assert_eq!(&whole.0, &bytes[..expected]);
        prop_assert_eq!(run(&mut BodyDecoder::until_close(), &singles).unwrap(), (bytes.clone(), false, bytes.len()));
    }

    #[test]
    fn any_chunks_are_survived(parts in prop::collection::vec(
        prop::sample::select(PARTS),
        0..30,
    )) {
        let _ = chunked(&parts.concat());
    }
}
