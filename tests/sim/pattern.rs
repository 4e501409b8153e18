//! Content that proves itself: each byte of a stream, and each event, follows from whose it is and where it stands.

use crate::chance::Chance;
use crate::ledger::Tag;
use std::sync::LazyLock;

/// Longer than any piece of a stream that could be lost or come twice, and prime, so that none of them goes unseen.
const PERIOD: usize = 65_521;

/// Two periods of noise: each stream is read from it from a place of its own on.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| Chance::new(0).bytes(PERIOD).repeat(2));

/// The next bytes of a stream from `offset` on: `count`, or fewer where the noise begins anew.
fn piece(tag: Tag, lane: u64, offset: u64, count: usize) -> &'static [u8] {
    let place = (offset + tag.0 * 7_919 + lane * 1_009) % PERIOD as u64;
    let place = usize::try_from(place).unwrap_or(0);
    NOISE.get(place..place + count.min(PERIOD)).unwrap_or_default()
}

/// The `count` bytes of a stream from `offset` on.
pub(crate) fn bytes(tag: Tag, lane: u64, offset: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        bytes.extend_from_slice(piece(tag, lane, offset + bytes.len() as u64, count - bytes.len()));
    }
    bytes
}

/// Whether these are the bytes of a stream from `offset` on.
pub(crate) fn are_bytes(tag: Tag, lane: u64, offset: u64, bytes: &[u8]) -> bool {
    let mut done = 0;
    for part in bytes.chunks(PERIOD) {
        if piece(tag, lane, offset + done, part.len()) != part {
            return false;
        }
        done += part.len() as u64;
    }
    true
}

/// An event as a conforming parser sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
    pub(crate) id: Option<String>,
}

/// The `n`th event of a stream.
pub(crate) fn event(tag: Tag, n: u64) -> Event {
    let kind = (tag.0 * 7 + n * 3) % 11;
    let name = if kind.is_multiple_of(3) { "" } else { "receive" };
    let pad = match kind {
        4 => 3_000,
        7 => 20_000,
        _ => 10,
    };
    let mut data = format!("{{\"tag\":{},\"n\":{n},\"text\":\"grüße 🐚", tag.0);
    let letter = char::from(b'a' + u8::try_from((tag.0 + n) % 26).unwrap_or(0));
    data.extend(std::iter::repeat_n(letter, pad));
    data.push_str("\"}");
    if kind == 5 {
        data.push_str("\nsecond line\n\nfourth: line");
    }
    let id = kind.is_multiple_of(2).then(|| format!("{}-{n}", tag.0));
    Event { name: name.to_owned(), data, id }
}

/// How a sender spells an event: which line end, whether a space follows the colon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelling {
    pub(crate) line_end: &'static str,
    pub(crate) space: &'static str,
    /// A comment, and a field that nobody knows, within the event.
    pub(crate) has_extras: bool,
}

/// An event as it is sent.
pub(crate) fn spell(event: &Event, spelling: Spelling) -> Vec<u8> {
    let Spelling { line_end, space, has_extras } = spelling;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name}:{space}{value}{line_end}"));
    if !event.name.is_empty() {
        line("event", &event.name);
    }
    if let Some(id) = &event.id {
        line("id", id);
    }
    for part in event.data.split('\n') {
        line("data", part);
    }
    if has_extras {
        line("", "a comment");
        line("colour", "red");
    }
    text.push_str(line_end);
    text.into_bytes()
}

/// Reads events as the WHATWG rules say, from a stream whose lines end in any of the three ways.
#[derive(Debug, Default)]
pub(crate) struct EventReader {
    line: Vec<u8>,
    after_cr: bool,
    pending: Event,
    has_data: bool,
    is_begun: bool,
}

impl EventReader {
    /// The events that `bytes` complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in bytes {
            let is_after_cr = core::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if is_after_cr => {}
                b'\n' | b'\r' => {
                    self.after_cr = *byte == b'\r';
                    let line = core::mem::take(&mut self.line);
                    events.extend(self.end_line(&line));
                }
                byte => self.line.push(*byte),
            }
        }
        events
    }

    /// Whether an event has begun and not ended.
    pub(crate) fn is_mid_event(&self) -> bool {
        self.is_begun || !self.line.is_empty()
    }

    fn end_line(&mut self, line: &[u8]) -> Option<Event> {
        if line.is_empty() {
            self.is_begun = false;
            let event = core::mem::take(&mut self.pending);
            return core::mem::take(&mut self.has_data).then_some(event);
        }
        let text = String::from_utf8_lossy(line);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        self.is_begun |= matches!(name, "data" | "event" | "id" | "retry");
        match name {
            "data" => {
                if core::mem::replace(&mut self.has_data, true) {
                    self.pending.data.push('\n');
                }
                self.pending.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.pending.name),
            "id" => self.pending.id = Some(value.to_owned()),
            _ => {}
        }
        None
    }
}
