//! Event streams: a conforming parser must see in the output exactly what it sees in the input.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "test helpers outside #[test] functions")]

use carapace_proto::wire::sse::{EventParser, EventTooLong, EventView, Keep, cut_between_events, events};
use proptest::prelude::*;
use whatwg::{comments, reference};

mod whatwg;

fn run(
    pieces: &[&[u8]],
    max: usize,
    keep: impl Fn(&EventView<'_>) -> Keep,
) -> (Vec<u8>, Result<(), EventTooLong>) {
    let mut parser = EventParser::new(max);
    let mut out = Vec::new();
    for piece in pieces {
        let before = out.len();
        if let Err(error) = parser.feed(piece, &mut out, &keep) {
            return (out, Err(error));
        }
        assert!(out.len() == before || out.ends_with(b"\n"), "output ends within a line");
        assert!(parser.pending_bytes() <= max + 2, "more is held than the limit");
    }
    parser.finish(&mut out);
    (out, Ok(()))
}

fn all(_: &EventView<'_>) -> Keep {
    Keep::Yes
}

fn whole(bytes: &[u8]) -> Vec<u8> {
    let (out, result) = run(&[bytes], usize::MAX / 2, all);
    assert_eq!(result, Ok(()));
    out
}

/// What matters in a stream, as often as it should come: names, line ends, colons, spaces, marks, broken UTF-8.
const TOKENS: &[&[u8]] = &[
    b"data:",
    b"data:",
    b"data:",
    b"data",
    b"data: ",
    b"event:",
    b"event: receive\n",
    b"id:",
    b"id",
    b"retry:",
    b"retry: 250\r\n",
    b"retry:12\n",
    b"Data: x\n",
    b"foo",
    b":",
    b":",
    b":\n",
    b":keep-alive\n\n",
    b" ",
    b"\n",
    b"\n",
    b"\n",
    b"\n",
    b"\n\n",
    b"\r",
    b"\r",
    b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xef\xbb",
    b"\xff",
    b"\xc3\xa4\xf0\x9f\xa6\x80",
    b"{\"a\":1}",
    b"x",
    b"7",
];

fn stream() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), prop::collection::vec(prop::sample::select(TOKENS), 0..60)).prop_map(|(bom, tokens)| {
        let mut bytes = if bom { b"\xef\xbb\xbf".to_vec() } else { Vec::new() };
        bytes.extend(tokens.concat());
        bytes
    })
}

fn cut<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_client_sees_the_same(bytes in stream()) {
        let out = whole(&bytes);
        prop_assert_eq!(reference(&out), reference(&bytes));
        prop_assert_eq!(comments(&out), comments(&bytes));
    }

    #[test]
    fn pieces_do_not_matter(bytes in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let out = whole(&bytes);
        let singles: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&run(&singles, usize::MAX / 2, all).0, &out);
        prop_assert_eq!(&run(&cut(&bytes, &cuts), usize::MAX / 2, all).0, &out);
    }

    #[test]
    fn pieces_do_not_matter_to_the_limit(bytes in stream(), max in 0_usize..40,
                                         cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let (out, result) = run(&[&bytes], max, all);
        let singles: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(run(&singles, max, all), (out.clone(), result));
        prop_assert_eq!(run(&cut(&bytes, &cuts), max, all), (out.clone(), result));
        prop_assert!(out.is_empty() || out.ends_with(b"\n"));
    }

    #[test]
    fn output_is_canonical(bytes in stream()) {
        let out = whole(&bytes);
        prop_assert_eq!(&whole(&out), &out);
        let told: Vec<_> = events(&out).map(|event| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(event.event_type()), text(&event.data()))
        }).collect();
        let expected: Vec<_> = reference(&bytes).events.into_iter().map(|(name, data, _)| (name, data)).collect();
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn a_filter_takes_events_and_nothing_else(bytes in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let short = |event: &EventView<'_>| if event.data().len().is_multiple_of(2) { Keep::Yes } else { Keep::No };
        let (out, _) = run(&[&bytes], usize::MAX / 2, short);
        prop_assert_eq!(&run(&cut(&bytes, &cuts), usize::MAX / 2, short).0, &out);
        let mut expected = reference(&bytes);
        // Lengths are counted in bytes, before replacement characters come in.
        let all_lengths: Vec<usize> = events(&whole(&bytes)).map(|event| event.data().len()).collect();
        let mut lengths = all_lengths.iter();
        expected.events.retain(|_| lengths.next().is_some_and(|len| len.is_multiple_of(2)));
        prop_assert_eq!(reference(&out), expected);
        prop_assert_eq!(comments(&out), comments(&bytes));
    }

    #[test]
    fn cuts_fall_between_events(bytes in stream(), max in 0_usize..60) {
        let out = whole(&bytes);
        let mut rest = &out[..];
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let cut = cut_between_events(rest, max);
            prop_assert!(cut > 0);
            let (head, tail) = rest.split_at(cut);
            prop_assert!(cut <= max || events(head).count() <= 1);
            seen.extend(events(head).map(|event| event.as_bytes().to_vec()));
            rest = tail;
        }
        prop_assert_eq!(seen, events(&out).map(|event| event.as_bytes().to_vec()).collect::<Vec<_>>());
    }
}

#[test]
fn vectors() {
    let cases: &[(&[u8], &[u8])] = &[
        (b"event:receive\ndata:{}\n\n", b"event:receive\ndata:{}\n\n"),
        (b"data: a\r\ndata: b\r\n\r\n", b"data: a\ndata: b\n\n"),
        (b"data: a\r\rdata: b\r\r", b"data: a\n\ndata: b\n\n"),
        (b"\xef\xbb\xbfdata: a\n\n", b"data: a\n\n"),
        (b"data\n\n", b"data:\n\n"),
        // Keep-alives: signal-cli's, the usual one, an empty line, an event without data.
        (b":\n", b":\n"),
        (b": ping\n\n", b": ping\n\n"),
        (b"\n", b"\n"),
        (b"event: ping\n\n", b"\n"),
        // A comment moves before the event that it stood in.
        (b"data: a\n: c\ndata: b\n\n", b": c\ndata: a\ndata: b\n\n"),
        // An id without data still sets the id.
        (b"id: 5\n\n", b"id: 5\n\n"),
        (b"event: x\nid: 5\n\n", b"id: 5\n\n"),
        (b"id: a\0b\ndata: x\n\n", b"data: x\n\n"),
        (b"retry: 10x\nretry: 10\ndata: x\n\n", b"retry: 10\ndata: x\n\n"),
        // The last one counts.
        (b"event: a\ndata: x\nevent: b\n\n", b"data: x\nevent: b\n\n"),
        (b"id: 1\nid: 2\ndata: x\n\n", b"id: 2\ndata: x\n\n"),
        // What no client looks at.
        (b"foo: bar\ndata: x\nData: y\n\n", b"data: x\n\n"),
        // The end of the stream cuts the event, but the reconnection time has been set.
        (b"data: x\n\ndata: y\n", b"data: x\n\n"),
        (b"data: y\nretry: 1\nretry: 2\nretry: 3", b"retry: 2\n\n"),
    ];
    for (input, expected) in cases {
        let out = whole(input);
        assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
}

#[test]
fn an_event_is_out_with_its_last_byte() {
    for input in [&b"data: x\n\n"[..], b"data: x\r\n\r", b"data: x\r\r", b"data: x\n\r"] {
        let mut parser = EventParser::new(100);
        let mut out = Vec::new();
        let (last, before) = input.split_last().unwrap();
        parser.feed(before, &mut out, all).unwrap();
        assert!(out.is_empty());
        let fed = parser.feed(&[*last], &mut out, all).unwrap();
        assert_eq!((fed.passed, fed.dropped), (1, 0));
        assert_eq!(out, b"data: x\n\n");
        assert_eq!(parser.pending_bytes(), 0);
    }
}

#[test]
fn a_view_tells_type_data_and_id() {
    let mut told = Vec::new();
    let mut parser = EventParser::new(100);
    let input = b"id: 7\nevent: receive\ndata: a\ndata:b\ndata\nretry: 9\n\ndata:x\n\n";
    let mut out = Vec::new();
    for piece in [&input[..30], &input[30..]] {
        parser
            .feed(piece, &mut out, |event| {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let part = |bytes: Option<&[u8]>| bytes.map(text);
                told.push((
                    text(event.event_type()),
                    text(&event.data()),
                    part(event.id()),
                    part(event.retry()),
                ));
                Keep::Yes
            })
            .unwrap();
    }
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        told,
        [
            ("receive".into(), "a\nb\n".into(), some("7"), some("9")),
            ("message".into(), "x".into(), None, None)
        ]
    );
}
