//! Event streams: a conforming client sees the same in output and input; pieces do not matter; no more is held
//! than the limit.
#![no_main]

use carapace_proto::wire::sse::{EventParser, EventView, Keep, events};
use libfuzzer_sys::fuzz_target;
use whatwg::{comments, reference};

#[path = "../../../proto/tests/whatwg/mod.rs"]
mod whatwg;

fn run<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    max: usize,
    keep: impl Fn(&EventView<'_>) -> Keep,
) -> (Vec<u8>, bool) {
    let (mut parser, mut out) = (EventParser::new(max), Vec::new());
    for piece in pieces {
        if parser.feed(piece, &mut out, &keep).is_err() {
            return (out, false);
        }
        assert!(parser.pending_bytes() <= max + 2);
    }
    parser.finish(&mut out);
    (out, true)
}

fn all(_: &EventView<'_>) -> Keep {
    Keep::Yes
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (piece, max, bytes) = input;
    let pieces = || bytes.chunks(usize::from(piece) + 1);
    let (out, _) = run(std::iter::once(bytes), 1 << 20, all);
    assert_eq!(run(pieces(), 1 << 20, all).0, out);
    assert_eq!(run(std::iter::once(&out[..]), 1 << 20, all).0, out);
    let (before, after) = (reference(bytes), reference(&out));
    assert_eq!(after, before);
    assert_eq!(comments(&out), comments(bytes));
    assert_eq!(events(&out).count(), before.events.len());

    let limited = run(std::iter::once(bytes), max.into(), all);
    assert_eq!(run(pieces(), max.into(), all), limited);

    let short = |event: &EventView<'_>| if event.data().len() % 2 == 0 { Keep::Yes } else { Keep::No };
    let filtered = run(std::iter::once(bytes), 1 << 20, short).0;
    assert_eq!(run(pieces(), 1 << 20, short).0, filtered);
    let told = reference(&filtered);
    assert_eq!((told.last_id, told.retry), (before.last_id, before.retry));
});
