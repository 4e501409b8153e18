//! Event streams (WHATWG HTML, section 9.2): arbitrary pieces in, whole canonical events out.
//!
//! **Canonical form.** Lines end in LF. An event is its lines and one empty line; a line is `event:`, `id:`,
//! `retry:` or `data:` and a value, of the first three at most one each. What a conforming parser ignores is
//! left out: the byte order mark, unknown fields, an `id` with NUL, a `retry` that is no number, an `event` without
//! data, and of a repeated field all but the last line, so that no client can read another event than the filter
//! did. Order, values and the optional space before a value stay. A comment is a line of its own, passed on at
//! once, so one that stands inside an event moves before it. An empty line where no event is pending passes too:
//! together with comments that keeps every keep-alive alive.
//!
//! A conforming parser sees in the output exactly the events, ids and reconnection times of the input. Text is
//! passed as bytes, valid UTF-8 or not: lines are told apart by ASCII alone, which decoding leaves in place.
//!
//! What arrives in canonical form, as most does, comes out unchanged and is copied in runs.

use std::borrow::Cow;

use memchr::{memchr, memchr_iter, memchr2, memmem};

const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Whether a filter lets an event pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The event is left out. Its `id` and `retry` stay: they are the stream's, and later events and the client's
    /// reconnection depend on them.
    No,
    /// The event passes.
    Yes,
}

/// What one call of [`EventParser::feed`] put out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Events that passed.
    pub passed: usize,
    /// Events that the filter left out.
    pub dropped: usize,
}

/// An event passes `max_event_bytes`. What was put out before it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTooLong {
    /// The limit.
    pub max: usize,
}

impl std::fmt::Display for EventTooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an event is longer than {} bytes", self.max)
    }
}

impl std::error::Error for EventTooLong {}

/// Turns an event stream into canonical form, however it is cut into pieces.
///
/// Holds the lines of the event that has begun and not ended, at most `max_event_bytes` (and a line end), and
/// nothing between events.
#[derive(Clone, Debug)]
pub struct EventParser {
    max_event_bytes: usize,
    /// The lines of the pending event that will be put out.
    pending: Vec<u8>,
    seen: Seen,
    /// A line whose end has not arrived.
    partial: Vec<u8>,
    /// The last byte was a CR: an LF would belong to it.
    skip_lf: bool,
    /// How much of a byte order mark has been read; all of it, once something else can no longer be one.
    bom_read: usize,
}

/// Which fields the pending event has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    data: bool,
    event: bool,
    id: bool,
    retry: bool,
    /// One of the fields that count once came again.
    repeated: bool,
}

impl Seen {
    const NONE: Self = Self { data: false, event: false, id: false, retry: false, repeated: false };

    fn note(&mut self, kind: Kind) {
        let flag = match kind {
            Kind::Data => {
                self.data = true;
                return;
            }
            Kind::Event => &mut self.event,
            Kind::Id => &mut self.id,
            Kind::Retry => &mut self.retry,
            Kind::Comment | Kind::Ignored => return,
        };
        self.repeated |= *flag;
        *flag = true;
    }

    /// Whether the lines, as they are, are a canonical event.
    const fn is_canonical(self) -> bool {
        !self.repeated && (self.data || !self.event)
    }
}

/// What a line that is not empty is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Comment,
    Data,
    Event,
    Id,
    Ignored,
    Retry,
}

/// A line taken apart: what it is, and the length of its name; it may lack the colon.
fn classify(line: &[u8]) -> (Kind, usize) {
    // The one that nearly all bytes are in, without a search.
    if line.starts_with(b"data:") {
        return (Kind::Data, 4);
    }
    let name_len = line.iter().take(6).position(|byte| *byte == b':').unwrap_or(line.len());
    let value = || value_of(line);
    let kind = match line.get(..name_len).unwrap_or_default() {
        b"" => Kind::Comment,
        b"data" => Kind::Data,
        b"event" => Kind::Event,
        b"id" if memchr(0, value()).is_none() => Kind::Id,
        b"retry" if !value().is_empty() && value().iter().all(u8::is_ascii_digit) => Kind::Retry,
        _ => Kind::Ignored,
    };
    (kind, name_len)
}

/// What follows the colon, without the one space that may follow it.
fn value_of(line: &[u8]) -> &[u8] {
    let value = memchr(b':', line).and_then(|colon| line.get(colon + 1..)).unwrap_or_default();
    value.strip_prefix(b" ").unwrap_or(value)
}

impl EventParser {
    /// At the beginning of a stream.
    #[must_use]
    pub const fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            pending: Vec::new(),
            seen: Seen::NONE,
            partial: Vec::new(),
            skip_lf: false,
            bom_read: 0,
        }
    }

    /// How many bytes of an event that has not ended are held.
    #[must_use]
    pub const fn pending_bytes(&self) -> usize {
        self.pending.len() + self.partial.len()
    }

    /// Takes the next piece of the stream and appends to `out` all events and comments that it completes.
    /// `out` holds whole ones only, also after an error, which ends the stream.
    ///
    /// `on_event` is asked about each event before it is put out.
    pub fn feed<F>(&mut self, bytes: &[u8], out: &mut Vec<u8>, mut on_event: F) -> Result<Fed, EventTooLong>
    where
        F: FnMut(&EventView<'_>) -> Keep,
    {
        let mut fed = Fed::default();
        let mut rest = self.skip_start(bytes);
        while !rest.is_empty() {
            if self.pending_bytes() == 0 && self.seen == Seen::NONE {
                rest = self.copy_run(rest, out, &mut fed, &mut on_event)?;
            }
            let Some(end) = memchr2(b'\r', b'\n', rest) else {
                self.check_len(self.partial.len() + rest.len())?;
                self.partial.extend_from_slice(rest);
                break;
            };
            let (line, after) = rest.split_at_checked(end).unwrap_or_default();
            rest = self.skip_line_end(after);
            if self.partial.is_empty() {
                self.end_line(line, out, &mut fed, &mut on_event)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.end_line(&whole, out, &mut fed, &mut on_event)?;
                whole.clear();
                self.partial = whole;
            }
        }
        // An idle stream holds no buffer.
        if self.pending_bytes() == 0 {
            self.pending = Vec::new();
            self.partial = Vec::new();
        }
        Ok(fed)
    }

    /// The stream has ended. An event that has not is discarded, as WHATWG says; but a reconnection time among
    /// its complete lines has taken effect when its line ended, so that is put out.
    ///
    /// Returns whether an event was discarded. The parser is then at the beginning of a stream.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> bool {
        let is_cut = self.pending_bytes() > 0;
        if self.seen.retry {
            let last = lines(&self.pending).filter(|line| classify(line).0 == Kind::Retry).last();
            out.extend_from_slice(last.unwrap_or_default());
            out.extend_from_slice(b"\n\n");
        }
        *self = Self::new(self.max_event_bytes);
        is_cut
    }

    /// What at the head of a piece belongs to the piece before, or to the byte order mark.
    fn skip_start<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        if self.skip_lf && !rest.is_empty() {
            self.skip_lf = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while self.bom_read < BOM.len() {
            let Some((first, after)) = rest.split_first() else { break };
            if BOM.get(self.bom_read) == Some(first) {
                self.bom_read += 1;
                rest = after;
            } else {
                self.partial.extend(BOM.iter().take(self.bom_read));
                self.bom_read = BOM.len();
            }
        }
        rest
    }

    /// `after` begins with the first byte of a line end.
    fn skip_line_end<'a>(&mut self, after: &'a [u8]) -> &'a [u8] {
        match after {
            [b'\r', b'\n', rest @ ..] => rest,
            [b'\r'] => {
                self.skip_lf = true;
                &[]
            }
            [_, rest @ ..] => rest,
            [] => &[],
        }
    }

    const fn check_len(&self, more: usize) -> Result<(), EventTooLong> {
        if self.pending.len() + more > self.max_event_bytes {
            return Err(EventTooLong { max: self.max_event_bytes });
        }
        Ok(())
    }

    /// Copies events, comments and empty lines for as long as they are whole and canonical. Returns the rest:
    /// it begins an event, and is never what was copied.
    fn copy_run<'a>(
        &self,
        input: &'a [u8],
        out: &mut Vec<u8>,
        fed: &mut Fed,
        on_event: &mut impl FnMut(&EventView<'_>) -> Keep,
    ) -> Result<&'a [u8], EventTooLong> {
        // Uncopied: canonical and whole, to be copied at once. Event: the lines of the one being looked at.
        let (mut run_start, mut event_start) = (0, 0);
        let mut line_start = 0;
        let mut seen = Seen::NONE;
        let mut overlong = Ok(());
        while let Some(rest) = input.get(line_start..) {
            let Some(len) = memchr2(b'\r', b'\n', rest) else { break };
            if rest.get(len) == Some(&b'\r') {
                break;
            }
            let line = rest.get(..len).unwrap_or_default();
            let next = line_start + len + 1;
            if line.is_empty() {
                if !seen.is_canonical() {
                    break;
                }
                if seen.data {
                    let lines = input.get(event_start..line_start).unwrap_or_default();
                    match on_event(&EventView { lines }) {
                        Keep::Yes => fed.passed += 1,
                        Keep::No => {
                            out.extend_from_slice(input.get(run_start..event_start).unwrap_or_default());
                            put_stream_state(out, lines, seen);
                            fed.dropped += 1;
                            run_start = next;
                        }
                    }
                }
                seen = Seen::NONE;
                event_start = next;
            } else {
                overlong = self.check_len(line_start - event_start + len);
                if overlong.is_err() {
                    break;
                }
                let (kind, name_len) = classify(line);
                match kind {
                    Kind::Ignored => break,
                    Kind::Comment if seen == Seen::NONE => event_start = next,
                    Kind::Comment => break,
                    Kind::Data | Kind::Event | Kind::Id | Kind::Retry if name_len == len => break,
                    Kind::Data | Kind::Event | Kind::Id | Kind::Retry => seen.note(kind),
                }
            }
            line_start = next;
        }
        out.extend_from_slice(input.get(run_start..event_start).unwrap_or_default());
        overlong.map(|()| input.get(event_start..).unwrap_or_default())
    }

    /// A line is complete.
    fn end_line(
        &mut self,
        line: &[u8],
        out: &mut Vec<u8>,
        fed: &mut Fed,
        on_event: &mut impl FnMut(&EventView<'_>) -> Keep,
    ) -> Result<(), EventTooLong> {
        if line.is_empty() {
            self.end_event(out, fed, on_event);
            return Ok(());
        }
        self.check_len(line.len())?;
        let (kind, name_len) = classify(line);
        match kind {
            Kind::Ignored => {}
            Kind::Comment => {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
            Kind::Data | Kind::Event | Kind::Id | Kind::Retry => {
                self.seen.note(kind);
                self.pending.extend_from_slice(line);
                if name_len == line.len() {
                    self.pending.push(b':');
                }
                self.pending.push(b'\n');
            }
        }
        Ok(())
    }

    /// An empty line: puts out the pending event.
    fn end_event(
        &mut self,
        out: &mut Vec<u8>,
        fed: &mut Fed,
        on_event: &mut impl FnMut(&EventView<'_>) -> Keep,
    ) {
        let seen = std::mem::take(&mut self.seen);
        if !seen.is_canonical() {
            make_canonical(&mut self.pending, seen);
        }
        let keep = if seen.data { on_event(&EventView { lines: &self.pending }) } else { Keep::Yes };
        match keep {
            Keep::Yes => {
                fed.passed += usize::from(seen.data);
                out.extend_from_slice(&self.pending);
                out.push(b'\n');
            }
            Keep::No => {
                fed.dropped += 1;
                put_stream_state(out, &self.pending, seen);
            }
        }
        self.pending.clear();
    }
}

/// Of an event that is left out, what changes the state of the stream.
fn put_stream_state(out: &mut Vec<u8>, event: &[u8], seen: Seen) {
    if !seen.id && !seen.retry {
        return;
    }
    for line in lines(event) {
        match classify(line).0 {
            Kind::Id | Kind::Retry => {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
            Kind::Comment | Kind::Data | Kind::Event | Kind::Ignored => {}
        }
    }
    out.push(b'\n');
}

/// Leaves of each field that counts once its last line, and no `event` where there are no data.
fn make_canonical(event: &mut Vec<u8>, seen: Seen) {
    let (mut last_event, mut last_id, mut last_retry) = (None, None, None);
    for (index, line) in lines(event).enumerate() {
        match classify(line).0 {
            Kind::Event => last_event = seen.data.then_some(index),
            Kind::Id => last_id = Some(index),
            Kind::Retry => last_retry = Some(index),
            Kind::Comment | Kind::Data | Kind::Ignored => {}
        }
    }
    let mut kept = Vec::with_capacity(event.len());
    for (index, line) in lines(event).enumerate() {
        let index = Some(index);
        let is_kept = match classify(line).0 {
            Kind::Event => index == last_event,
            Kind::Id => index == last_id,
            Kind::Retry => index == last_retry,
            Kind::Comment | Kind::Data | Kind::Ignored => true,
        };
        if is_kept {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
    }
    *event = kept;
}

/// The lines of canonical text, without their LF.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr_iter(b'\n', text).map(move |end| {
        let line = text.get(start..end).unwrap_or_default();
        start = end + 1;
        line
    })
}

/// One event in canonical form, as filters and logs look at it. Nothing is taken apart until it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventView<'a> {
    lines: &'a [u8],
}

impl<'a> EventView<'a> {
    /// Its lines, each with its LF, without the empty line.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.lines
    }

    /// Its type: `message` where it names none.
    #[must_use]
    pub fn event_type(&self) -> &'a [u8] {
        match self.value(Kind::Event) {
            None | Some([]) => b"message",
            Some(name) => name,
        }
    }

    /// Its data: the values of all `data` lines, joined by LF.
    #[must_use]
    pub fn data(&self) -> Cow<'a, [u8]> {
        let mut values = lines(self.lines).filter(|line| classify(line).0 == Kind::Data).map(value_of);
        let first = values.next().unwrap_or_default();
        let Some(second) = values.next() else { return Cow::Borrowed(first) };
        let mut joined = Vec::with_capacity(self.lines.len());
        joined.extend_from_slice(first);
        for value in std::iter::once(second).chain(values) {
            joined.push(b'\n');
            joined.extend_from_slice(value);
        }
        Cow::Owned(joined)
    }

    /// The id that it sets; an empty one resets the id of the stream.
    #[must_use]
    pub fn id(&self) -> Option<&'a [u8]> {
        self.value(Kind::Id)
    }

    /// The reconnection time that it sets, in milliseconds as decimal digits.
    #[must_use]
    pub fn retry(&self) -> Option<&'a [u8]> {
        self.value(Kind::Retry)
    }

    fn value(&self, kind: Kind) -> Option<&'a [u8]> {
        lines(self.lines).find(|line| classify(line).0 == kind).map(value_of)
    }
}

/// The events in canonical text that holds whole ones, as [`EventParser::feed`] puts out.
pub fn events(canonical: &[u8]) -> impl Iterator<Item = EventView<'_>> {
    let mut rest = canonical;
    std::iter::from_fn(move || {
        loop {
            match rest {
                [] => return None,
                [b'\n', after @ ..] => rest = after,
                [b':', ..] => {
                    let end = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
                    rest = rest.get(end..).unwrap_or_default();
                }
                _ => {
                    let end = memmem::find(rest, b"\n\n").map_or(rest.len(), |end| end + 1);
                    let (lines, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
                    rest = after;
                    if self::lines(lines).any(|line| classify(line).0 == Kind::Data) {
                        return Some(EventView { lines });
                    }
                }
            }
        }
    })
}

/// Where to cut canonical text so that what is before holds whole events and at most `bytes_max`: more only when
/// the first event alone is longer.
#[must_use]
pub fn cut_between_events(canonical: &[u8], bytes_max: usize) -> usize {
    let Some(head) = canonical.get(..bytes_max).filter(|head| head.len() < canonical.len()) else {
        return canonical.len();
    };
    let cut = memmem::rfind(head, b"\n\n").or_else(|| memmem::find(canonical, b"\n\n"));
    cut.map_or(canonical.len(), |cut| cut + 2)
}
