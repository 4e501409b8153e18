//! A cursor over a text that [`Scan`](super::Scan) has accepted.

use std::borrow::Cow;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[...]`
    Array,
    /// `true` or `false`
    Boolean,
    /// `null`
    Null,
    /// A number, in any spelling.
    Number,
    /// `{...}`
    Object,
    /// A string.
    String,
}

/// One value of an accepted text. On any other text the answers are arbitrary, but there is no panic and no endless loop.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// The value whose text this is, white space around it allowed.
    #[must_use]
    pub fn new(text: &'a [u8]) -> Self {
        Self(text.trim_ascii())
    }

    /// Its exact bytes.
    #[must_use]
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// What it is.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self.0.first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Boolean,
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    /// The text of a string, unescaped. `None` for any other kind, and for a string that no UTF-8 text can equal
    /// because it holds a lone surrogate.
    #[must_use]
    pub fn as_str(self) -> Option<Cow<'a, str>> {
        match self.0 {
            [b'"', raw @ .., b'"'] => unescape(raw),
            _ => None,
        }
    }

    /// The elements of an array; nothing for any other kind.
    pub fn elements(self) -> impl Iterator<Item = Value<'a>> {
        let rest = if self.kind() == Kind::Array { self.0.get(1..).unwrap_or_default() } else { &[] };
        Elements { rest }
    }

    /// The members of an object, each with its key as it stands between its quotes; nothing for any other kind.
    pub fn members(self) -> impl Iterator<Item = (&'a [u8], Value<'a>)> {
        let rest = if self.kind() == Kind::Object { self.0.get(1..).unwrap_or_default() } else { &[] };
        let mut parts = Elements { rest };
        std::iter::from_fn(move || {
            let key = parts.next()?.0;
            let value = parts.next()?;
            Some((key.get(1..key.len().saturating_sub(1)).unwrap_or_default(), value))
        })
    }
}

/// Walks over values, taking commas and colons for separators.
struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let is_filler = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':');
        let start = self.rest.iter().position(|b| !is_filler(b))?;
        let rest = self.rest.get(start..)?;
        if matches!(rest.first(), Some(b']' | b'}')) {
            return None;
        }
        let len = value_len(rest);
        self.rest = rest.get(len..).unwrap_or_default();
        rest.get(..len).filter(|value| !value.is_empty()).map(Value)
    }
}

fn value_len(rest: &[u8]) -> usize {
    match rest.first() {
        Some(b'"') => string_len(rest),
        Some(b'{' | b'[') => container_len(rest),
        _ => {
            let is_end = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' | b']' | b'}');
            rest.iter().position(is_end).unwrap_or(rest.len())
        }
    }
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    loop {
        let tail = rest.get(at..).unwrap_or_default();
        let Some(found) = memchr::memchr2(b'"', b'\\', tail) else { return rest.len() };
        if tail.get(found) == Some(&b'"') {
            return at + found + 1;
        }
        at += found + 2;
    }
}

fn container_len(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = rest.get(at) {
        match byte {
            b'"' => {
                at += string_len(rest.get(at..).unwrap_or_default());
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    rest.len()
}

/// The text that stands between the quotes of a string, unescaped; `None` when it holds a lone surrogate.
pub(crate) fn unescape(raw: &[u8]) -> Option<Cow<'_, str>> {
    if memchr::memchr(b'\\', raw).is_none() {
        return std::str::from_utf8(raw).ok().map(Cow::Borrowed);
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(found) = memchr::memchr(b'\\', rest) {
        text.push_str(std::str::from_utf8(rest.get(..found)?).ok()?);
        let escape = rest.get(found..)?;
        let (c, len) = match escape.get(1)? {
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            b'u' => code_point(escape)?,
            &other => (char::from(other), 2),
        };
        text.push(c);
        rest = escape.get(len..)?;
    }
    text.push_str(std::str::from_utf8(rest).ok()?);
    Some(Cow::Owned(text))
}

/// The character that a `\u` escape, or a pair of them, stands for, and the length of the escapes.
fn code_point(escape: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = std::str::from_utf8(escape.get(at..at + 4)?).ok()?;
        u32::from_str_radix(digits, 16).ok()
    };
    let high = unit(2)?;
    if !(0xd800..0xdc00).contains(&high) {
        return char::from_u32(high).map(|c| (c, 6));
    }
    let low = unit(8).filter(|low| (0xdc00..0xe000).contains(low) && escape.get(6..8) == Some(b"\\u"))?;
    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00)).map(|c| (c, 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_members_and_elements() {
        let text = br#" {"a" : [1, "x,]\"", {"b":null}] , "c":true, "d":{} } "#;
        let members: Vec<_> = Value::new(text).members().collect();
        let keys: Vec<_> = members.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, [b"a", b"c", b"d"]);
        let elements: Vec<_> = members[0].1.elements().map(Value::kind).collect();
        assert_eq!(elements, [Kind::Number, Kind::String, Kind::Object]);
        assert_eq!(members[0].1.elements().nth(1).unwrap().as_str().unwrap(), "x,]\"");
        assert_eq!(Value::new(b"[]").elements().count(), 0);
    }

    #[test]
    fn unescapes() {
        assert_eq!(unescape(br"a\u00e9\ud83d\ude00\n\/").unwrap(), "aé😀\n/");
        assert!(unescape(br"\ud800").is_none() && unescape(br"\ud800\u0041").is_none());
        assert!(unescape(br"\udc00").is_none() && unescape(br"\ud83dx").is_none());
    }

    #[test]
    fn survives_nonsense() {
        for text in [&b"{\"a"[..], b"[[[", b"{,:", b"\"", b"\"\\", b"{\"a\\", b"x"] {
            let value = Value::new(text);
            let _ = (value.members().count(), value.elements().count(), value.as_str());
        }
    }
}
