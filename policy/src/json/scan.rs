//! The strict pass.

use std::fmt;
use std::ops::Range;

use super::token::{Broken, escape_len, literal_len, number_len, plain_len, utf8_len};
use super::value::unescape;

/// The deepest nesting accepted: JSON-RPC needs five, and every parser behind us copes with 64.
pub const DEPTH_MAX: usize = 64;

/// The most members in one object. They are compared with each other when the object closes, in one go.
const MEMBERS_MAX: usize = 4096;

/// The most outer values remembered: a batch of a thousand calls with sixty parameters each.
const ENTRIES_MAX: usize = 65_536;

/// Down to this depth the places of values are remembered in an array: batch, call, parameters. In an object it is one
/// less, so that the elements of a long parameter are not.
const ENTRY_DEPTH_MAX: usize = 3;

/// Up to so many members are compared as they come, which is quicker than sorting and names the right one.
const COMPARE_EACH_MAX: usize = 16;

/// Why a text is not acceptable JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonError {
    /// It does not follow the grammar of RFC 8259, or ends too early, at this byte.
    Syntax(usize),
    /// It is not UTF-8, or begins with a byte-order mark, at this byte.
    Encoding(usize),
    /// Something follows the value, at this byte.
    Trailing(usize),
    /// An object has the same key twice; the second key begins at this byte.
    Duplicate(usize),
    /// It nests deeper than [`DEPTH_MAX`], at this byte.
    Depth(usize),
    /// An object, a number or the whole passes a limit of this module, at this byte.
    TooLarge(usize),
}

impl JsonError {
    /// The JSON-RPC error code: -32700 for what is no JSON, -32600 for JSON that could be read in two ways.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Syntax(_) | Self::Encoding(_) | Self::Trailing(_) => -32700,
            Self::Duplicate(_) | Self::Depth(_) | Self::TooLarge(_) => -32600,
        }
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(at) => write!(f, "not JSON at byte {at}"),
            Self::Encoding(at) => write!(f, "not plain UTF-8 at byte {at}"),
            Self::Trailing(at) => write!(f, "data after the JSON value at byte {at}"),
            Self::Duplicate(at) => write!(f, "the same key twice in one object at byte {at}"),
            Self::Depth(at) => write!(f, "nested deeper than {DEPTH_MAX} at byte {at}"),
            Self::TooLarge(at) => write!(f, "too large a number or too many members at byte {at}"),
        }
    }
}

impl std::error::Error for JsonError {}

/// Where one of the outer values lies. Offsets are bytes from the beginning of the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// 0 is the whole text.
    pub(crate) depth: u8,
    /// The key between its quotes, where the value is a member of an object.
    key: Option<(u32, u32)>,
    value: (u32, u32),
}

impl Entry {
    /// The key as it stands in the text, between its quotes.
    pub(crate) fn key<'a>(&self, text: &'a [u8]) -> Option<&'a [u8]> {
        self.key.map(|(from, to)| text.get(from as usize..to as usize).unwrap_or_default())
    }

    pub(crate) fn value<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.value.0 as usize..self.value.1 as usize).unwrap_or_default()
    }
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    /// After `[`: a value or `]`.
    ValueOrEnd,
    /// After `{`: a key or `}`.
    KeyOrEnd,
    Key,
    Colon,
    /// After a value inside a container.
    CommaOrEnd,
    /// Inside a string that began (after its quote) at this byte.
    Text {
        from: u32,
        is_key: bool,
        is_escaped: bool,
    },
    /// Only white space may follow.
    End,
}

#[derive(Clone, Copy, Debug)]
struct Key {
    from: u32,
    to: u32,
    is_escaped: bool,
}

/// A check of one JSON text that can be fed as the text arrives.
///
/// The caller keeps the text; each call of [`advance`](Self::advance) is given all of it that has arrived, from its first
/// byte, and looks only at what is new. Time is linear in the text but for the sorting of the keys of one object.
#[derive(Clone, Debug)]
pub struct Scan {
    at: usize,
    state: State,
    depth: usize,
    /// Bit n is set when the container at depth n + 1 is an object.
    objects: u64,
    /// For each open container, how many keys lay on the stack when it was opened.
    marks: [u32; DEPTH_MAX],
    keys: Vec<Key>,
    entries: Vec<Entry>,
    /// The entry that is open at each remembered depth.
    open: [u32; ENTRY_DEPTH_MAX + 1],
    key: Option<(u32, u32)>,
}

impl Default for Scan {
    fn default() -> Self {
        Self::new()
    }
}

impl Scan {
    /// A check that has seen nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            at: 0,
            state: State::Value,
            depth: 0,
            objects: 0,
            marks: [0; DEPTH_MAX],
            keys: Vec::new(),
            entries: Vec::new(),
            open: [0; ENTRY_DEPTH_MAX + 1],
            key: None,
        }
    }

    /// How many bytes have been looked at.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Looks at what has arrived since the last call. `text` is everything so far; feeding at most 256 KiB at a time keeps
    /// one call well under a millisecond.
    ///
    /// # Errors
    /// As soon as no continuation could make the text acceptable.
    pub fn advance(&mut self, text: &[u8]) -> Result<(), JsonError> {
        self.run(text, false)
    }

    /// Looks at the rest; `text` is the whole text.
    ///
    /// # Errors
    /// When the text is not acceptable, an early end included.
    pub fn finish(&mut self, text: &[u8]) -> Result<(), JsonError> {
        self.run(text, true)?;
        if self.state == State::End { Ok(()) } else { Err(JsonError::Syntax(text.len())) }
    }

    /// Checks a whole text.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn whole(text: &[u8]) -> Result<Self, JsonError> {
        let mut scan = Self::new();
        scan.finish(text)?;
        Ok(scan)
    }

    /// The outer values, each before what it contains.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn run(&mut self, text: &[u8], is_whole: bool) -> Result<(), JsonError> {
        if u32::try_from(text.len()).is_err() {
            return Err(JsonError::TooLarge(text.len()));
        }
        loop {
            if let State::Text { from, is_key, is_escaped } = self.state {
                if !self.text(text, from, is_key, is_escaped)? {
                    return Ok(());
                }
                continue;
            }
            let Some(&byte) = text.get(self.at) else { return Ok(()) };
            if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                self.at += 1;
                continue;
            }
            if !self.token(text, byte, is_whole)? {
                return Ok(());
            }
        }
    }

    /// Takes the token that begins with `byte`; false when it has not arrived whole.
    fn token(&mut self, text: &[u8], byte: u8, is_whole: bool) -> Result<bool, JsonError> {
        match (self.state, byte) {
            (State::KeyOrEnd | State::CommaOrEnd, b'}') if self.is_in_object() => self.close(text)?,
            (State::ValueOrEnd | State::CommaOrEnd, b']') if self.depth > 0 && !self.is_in_object() => {
                self.close(text)?;
            }
            (State::CommaOrEnd, b',') => {
                self.state = if self.is_in_object() { State::Key } else { State::Value };
                self.at += 1;
            }
            (State::Colon, b':') => {
                self.state = State::Value;
                self.at += 1;
            }
            (State::Key | State::KeyOrEnd, b'"') => self.begin_text(true),
            (State::Value | State::ValueOrEnd, _) => return self.value(text, byte, is_whole),
            (State::End, _) => return Err(JsonError::Trailing(self.at)),
            (State::KeyOrEnd | State::CommaOrEnd | State::Colon | State::Key | State::Text { .. }, _) => {
                return Err(JsonError::Syntax(self.at));
            }
        }
        Ok(true)
    }

    fn value(&mut self, text: &[u8], byte: u8, is_whole: bool) -> Result<bool, JsonError> {
        let rest = text.get(self.at..).unwrap_or_default();
        let len = match byte {
            b'{' | b'[' => {
                self.begin_value()?;
                self.open(byte == b'{')?;
                return Ok(true);
            }
            b'"' => {
                self.begin_value()?;
                self.begin_text(false);
                return Ok(true);
            }
            b't' => literal_len(rest, b"true", is_whole),
            b'f' => literal_len(rest, b"false", is_whole),
            b'n' => literal_len(rest, b"null", is_whole),
            b'-' | b'0'..=b'9' => number_len(rest, is_whole),
            0xef if self.at == 0 => return Err(JsonError::Encoding(0)),
            0x80.. => return Err(JsonError::Encoding(self.at)),
            _ => return Err(JsonError::Syntax(self.at)),
        };
        let len = len.map_err(|broken| match broken {
            Broken::Form => JsonError::Syntax(self.at),
            Broken::Length => JsonError::TooLarge(self.at),
        })?;
        let Some(len) = len else { return Ok(false) };
        self.begin_value()?;
        self.at += len;
        self.end_value();
        Ok(true)
    }

    fn is_in_object(&self) -> bool {
        self.depth.checked_sub(1).is_some_and(|bit| self.objects >> bit & 1 == 1)
    }

    fn is_remembered(&self) -> bool {
        self.depth <= ENTRY_DEPTH_MAX - (self.objects & 1) as usize
    }

    fn offset(&self) -> u32 {
        u32::try_from(self.at).unwrap_or(u32::MAX)
    }

    fn begin_value(&mut self) -> Result<(), JsonError> {
        let key = self.key.take();
        if !self.is_remembered() {
            return Ok(());
        }
        if self.entries.len() >= ENTRIES_MAX {
            return Err(JsonError::TooLarge(self.at));
        }
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        if let Some(open) = self.open.get_mut(self.depth) {
            *open = index;
        }
        let from = self.offset();
        self.entries.push(Entry {
            depth: u8::try_from(self.depth).unwrap_or(u8::MAX),
            key,
            value: (from, from),
        });
        Ok(())
    }

    fn end_value(&mut self) {
        let to = self.offset();
        let index = self.open.get(self.depth).copied().filter(|_| self.is_remembered());
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index as usize)) {
            entry.value.1 = to;
        }
        self.state = if self.depth == 0 { State::End } else { State::CommaOrEnd };
    }

    fn open(&mut self, is_object: bool) -> Result<(), JsonError> {
        let Some(mark) = self.marks.get_mut(self.depth) else { return Err(JsonError::Depth(self.at)) };
        *mark = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        let bit = 1_u64 << self.depth;
        self.objects = if is_object { self.objects | bit } else { self.objects & !bit };
        self.depth += 1;
        self.at += 1;
        self.state = if is_object { State::KeyOrEnd } else { State::ValueOrEnd };
        Ok(())
    }

    fn close(&mut self, text: &[u8]) -> Result<(), JsonError> {
        if self.is_in_object() {
            let mark = self.mark();
            let keys = self.keys.get_mut(mark..).unwrap_or_default();
            if keys.len() > COMPARE_EACH_MAX {
                first_duplicate(text, keys)?;
            }
            self.keys.truncate(mark);
        }
        self.depth = self.depth.saturating_sub(1);
        self.at += 1;
        self.end_value();
        Ok(())
    }

    fn mark(&self) -> usize {
        self.depth.checked_sub(1).and_then(|i| self.marks.get(i)).map_or(0, |&mark| mark as usize)
    }

    fn begin_text(&mut self, is_key: bool) {
        self.at += 1;
        self.state = State::Text { from: self.offset(), is_key, is_escaped: false };
    }

    /// Goes on inside a string; false when its end has not arrived.
    fn text(
        &mut self,
        text: &[u8],
        from: u32,
        is_key: bool,
        mut is_escaped: bool,
    ) -> Result<bool, JsonError> {
        loop {
            self.at += plain_len(text.get(self.at..).unwrap_or_default());
            let rest = text.get(self.at..).unwrap_or_default();
            let taken = match rest.first() {
                None => None,
                Some(b'"') => {
                    self.end_text(text, Key { from, to: self.offset(), is_escaped }, is_key)?;
                    return Ok(true);
                }
                Some(b'\\') => {
                    is_escaped = true;
                    escape_len(rest).map_err(|_| JsonError::Syntax(self.at))?
                }
                Some(0x80..) => utf8_len(rest).map_err(|_| JsonError::Encoding(self.at))?,
                Some(_) => return Err(JsonError::Syntax(self.at)),
            };
            let Some(taken) = taken else {
                self.state = State::Text { from, is_key, is_escaped };
                return Ok(false);
            };
            self.at += taken;
        }
    }

    fn end_text(&mut self, text: &[u8], key: Key, is_key: bool) -> Result<(), JsonError> {
        self.at += 1;
        if !is_key {
            self.end_value();
            return Ok(());
        }
        let raw = span(text, key);
        // A key that no UTF-8 text can equal (a lone surrogate) would read differently in every parser behind us.
        if key.is_escaped && unescape(raw).is_none() {
            return Err(JsonError::Encoding(key.from as usize));
        }
        let siblings = self.keys.get(self.mark()..).unwrap_or_default();
        if siblings.len() >= MEMBERS_MAX {
            return Err(JsonError::TooLarge(key.from as usize));
        }
        if siblings.len() < COMPARE_EACH_MAX && siblings.iter().any(|other| is_same(text, *other, key)) {
            return Err(JsonError::Duplicate(key.from as usize));
        }
        self.keys.push(key);
        self.key = Some((key.from, key.to));
        self.state = State::Colon;
        Ok(())
    }
}

fn span(text: &[u8], key: Key) -> &[u8] {
    let range: Range<usize> = key.from as usize..key.to as usize;
    text.get(range).unwrap_or_default()
}

fn is_same(text: &[u8], a: Key, b: Key) -> bool {
    if !a.is_escaped && !b.is_escaped {
        return span(text, a) == span(text, b);
    }
    unescape(span(text, a)) == unescape(span(text, b))
}

/// Looks for two equal keys among many, by sorting.
fn first_duplicate(text: &[u8], keys: &mut [Key]) -> Result<(), JsonError> {
    let plain = |key: Key| unescape(span(text, key)).unwrap_or_default();
    if keys.iter().any(|key| key.is_escaped) {
        keys.sort_by(|&a, &b| plain(a).cmp(&plain(b)));
    } else {
        keys.sort_unstable_by(|&a, &b| {
            let (a, b) = (span(text, a), span(text, b));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        });
    }
    for pair in keys.windows(2) {
        if let [a, b] = pair
            && is_same(text, *a, *b)
        {
            return Err(JsonError::Duplicate(a.from.max(b.from) as usize));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_json() {
        for text in [
            "{}",
            "[]",
            " [1, -0, 0.5, 1e3, 1E-7, 12345678901234567890123] ",
            "\"\\u00e9\\ud83d\\ude00é😀\"",
            "null",
            r#"{"a":{"a":[{"a":1},{"a":2}]},"b":"\"\\\/\b\f\n\r\t"}"#,
            "true",
            "\"\\ud800\"",
        ] {
            assert!(Scan::whole(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\" 1}",
            "{1:2}",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "tru",
            "nul",
            "'a'",
            "\"a",
            "\"\t\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "[1 2]",
            "NaN",
            "// x\n1",
            "{\"a\"}",
            "]",
            "}",
            "[}",
            "{]",
            "[1}",
            "\u{a0}1",
            ",",
            ":",
        ] {
            let error = Scan::whole(text.as_bytes()).expect_err(text);
            assert_eq!(error.code(), -32700, "{text}: {error}");
        }
    }

    #[test]
    fn refuses_what_can_be_read_in_two_ways() {
        use JsonError as E;
        let many = |n: usize| {
            let members: Vec<String> = (0..n).map(|i| format!("\"k{i}\":{i}")).collect();
            members.join(",")
        };
        for (text, error) in [
            (r#"{"a":1,"a":2}"#.to_owned(), E::Duplicate(8)),
            (r#"{"a":1,"\u0061":2}"#.to_owned(), E::Duplicate(8)),
            (r#"[{"x":{"a":1,"b":2,"a":3}}]"#.to_owned(), E::Duplicate(20)),
            (format!(r#"{{{},"k7":0}}"#, many(40)), E::Duplicate(342)),
            (format!(r#"{{{},"k\u0037":0}}"#, many(40)), E::Duplicate(342)),
            (format!("{{{}}}", many(5000)), E::TooLarge(51030)),
            ("1 2".to_owned(), E::Trailing(2)),
            ("{}\0".to_owned(), E::Trailing(2)),
            ("\u{feff}{}".to_owned(), E::Encoding(0)),
            (r#"{"\ud800":1}"#.to_owned(), E::Encoding(2)),
            ("[".repeat(65), E::Depth(64)),
            ("1".repeat(1025), E::TooLarge(0)),
        ] {
            assert_eq!(Scan::whole(text.as_bytes()).err(), Some(error), "{}", &text[..text.len().min(60)]);
        }
        assert!(Scan::whole(format!("{}{}", "[".repeat(64), "]".repeat(64)).as_bytes()).is_ok());
        for bytes in
            [&b"\"\xff\""[..], b"\"\xc0\x80\"", b"\"\xed\xa0\x80\"", b"\"\xe2\x82\"", b"\xe9", b"{}\xff"]
        {
            assert!(Scan::whole(bytes).is_err());
        }
    }

    #[test]
    fn does_not_care_how_the_text_arrives() {
        let texts: [&[u8]; 6] = [
            r#"{"jsonrpc":"2.0","id":1e3,"params":{"a":"é\u00e9\n😀","b":[1.5,true,null]}}"#.as_bytes(),
            br#"{"a":1,"a":2}"#,
            b"[1, 2.x]",
            b"\"\xe2\x82\"",
            b"[truf]",
            b"123",
        ];
        for text in texts {
            let whole = Scan::whole(text);
            let mut scan = Scan::new();
            let mut result = Ok(());
            for len in 0..=text.len() {
                result = scan.advance(&text[..len]);
                if result.is_err() {
                    break;
                }
            }
            let result = result.and_then(|()| scan.finish(text));
            assert_eq!(result.err(), whole.as_ref().err().copied(), "{}", String::from_utf8_lossy(text));
            if let Ok(whole) = whole {
                let spans =
                    |scan: &Scan| scan.entries.iter().map(|e| (e.key, e.value, e.depth)).collect::<Vec<_>>();
                assert_eq!(spans(&scan), spans(&whole));
            }
        }
    }
}
