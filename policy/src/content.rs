//! Content filters: regular expressions over what goes out.
//!
//! A net, not a boundary: text that is encoded in some other way passes through it. Text is looked at in pieces, so that
//! no step takes long, and a match is found across their borders as long as it is no longer than [`OVERLAP_BYTES`].

use std::fmt;
use std::sync::Arc;

use regex_lite::Regex;

use crate::verdict::{Denial, DenialKind, Rule};

/// How much is looked at in one go: a third of a millisecond for an expression without literal text.
const PIECE_BYTES: usize = 8 * 1024;

/// How much of what was looked at is looked at again with the next piece: the longest match that is always found.
pub(crate) const OVERLAP_BYTES: usize = 1024;

/// One of `content_filters`.
#[derive(Debug)]
pub(crate) struct ContentFilter {
    pub(crate) regex: Regex,
    /// Text that every match contains, so that most text needs no more than a search for it.
    literal: Option<Literal>,
    pub(crate) is_block: bool,
    pub(crate) rule: Rule,
}

impl ContentFilter {
    /// # Errors
    /// What the expression's parser says.
    #[cfg(feature = "file")]
    pub(crate) fn new(pattern: &str, is_block: bool, rule: Rule) -> Result<Self, String> {
        let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
        if regex.is_match("") {
            return Err("it matches the empty text, and so everything".to_owned());
        }
        Ok(Self { regex, literal: Literal::of(pattern), is_block, rule })
    }
}

/// Text that every match of an expression contains.
#[derive(Debug, PartialEq, Eq)]
struct Literal {
    text: Vec<u8>,
    ignores_case: bool,
}

impl Literal {
    /// The longest run of plain characters outside groups, classes and repetitions. `None` where alternatives, flags or
    /// anything unusual make that doubtful.
    fn of(pattern: &str) -> Option<Self> {
        let (ignores_case, body) = match pattern.strip_prefix("(?i)") {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let mut runs = vec![String::new()];
        let mut chars = body.chars().peekable();
        while let Some(c) = chars.next() {
            let plain = match c {
                '|' => return None,
                '(' => {
                    skip_group(&mut chars)?;
                    None
                }
                '[' => {
                    skip_class(&mut chars)?;
                    None
                }
                '\\' => match chars.next()? {
                    'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'b' | 'B' => None,
                    c if c.is_ascii_punctuation() && !matches!(c, '<' | '>') => Some(c),
                    _ => return None,
                },
                '.' | '^' | '$' | '+' => None,
                '*' | '?' | '{' => {
                    // What came before may be missing from a match.
                    runs.last_mut()?.pop();
                    if c == '{' {
                        chars.by_ref().find(|&c| c == '}')?;
                    }
                    None
                }
                other => Some(other),
            };
            match plain {
                Some(c) if c.is_ascii() => runs.last_mut()?.push(c),
                Some(_) | None => runs.push(String::new()),
            }
        }
        let text = runs.into_iter().max_by_key(String::len).filter(|text| text.len() > 1)?;
        Some(Self { text: text.into_bytes(), ignores_case })
    }

    fn is_in(&self, text: &[u8]) -> bool {
        if !self.ignores_case {
            return memchr::memmem::find(text, &self.text).is_some();
        }
        let Some(&first) = self.text.first() else { return true };
        let (lower, upper) = (first.to_ascii_lowercase(), first.to_ascii_uppercase());
        memchr::memchr2_iter(lower, upper, text).any(|at| {
            text.get(at..at + self.text.len()).is_some_and(|found| found.eq_ignore_ascii_case(&self.text))
        })
    }
}

/// Reads to the end of a group whose `(` has been read; `None` for flags in mid-expression.
fn skip_group(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<()> {
    if chars.next_if_eq(&'?').is_some() && !matches!(chars.next()?, ':' | '<' | 'P') {
        return None;
    }
    let mut depth = 1;
    while depth > 0 {
        match chars.next()? {
            '\\' => {
                chars.next()?;
            }
            '[' => skip_class(chars)?,
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
    }
    Some(())
}

/// Reads to the end of a class whose `[` has been read.
fn skip_class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<()> {
    chars.next_if_eq(&'^');
    chars.next_if_eq(&']');
    loop {
        match chars.next()? {
            '\\' => {
                chars.next()?;
            }
            // Nested classes and operators between classes: too unusual to be worth reading.
            '[' | '&' => return None,
            ']' => return Some(()),
            _ => {}
        }
    }
}

/// Looks at a text as it passes.
#[derive(Clone)]
pub struct Sieve {
    filters: Arc<[ContentFilter]>,
    /// The end of what has passed.
    carry: Vec<u8>,
    /// Which filters have warned already.
    warned: Vec<bool>,
    warnings: Vec<Rule>,
    /// Bytes that expressions were run over, for whoever has to share the time.
    work_bytes: usize,
}

impl fmt::Debug for Sieve {
    /// Nothing of the text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sieve({} filters)", self.filters.len())
    }
}

impl Sieve {
    pub(crate) fn new(filters: &Arc<[ContentFilter]>) -> Self {
        Self {
            filters: filters.clone(),
            carry: Vec::new(),
            warned: vec![false; filters.len()],
            warnings: Vec::new(),
            work_bytes: 0,
        }
    }

    /// Looks at the next bytes, together with the end of what came before. Feeding at most 16 KiB at a time keeps one
    /// call under two milliseconds for a few filters.
    ///
    /// # Errors
    /// When a filter that blocks matches; these bytes must then go nowhere.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ContentMatch> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.carry.extend_from_slice(piece);
            self.look()?;
            let spent = self.carry.len().saturating_sub(OVERLAP_BYTES);
            self.carry.drain(..spent);
        }
        Ok(())
    }

    /// The filters that matched and only warn, each once.
    #[must_use]
    pub fn warnings(&self) -> &[Rule] {
        &self.warnings
    }

    pub(crate) fn take_warnings(&mut self) -> Vec<Rule> {
        std::mem::take(&mut self.warnings)
    }

    pub(crate) fn work_bytes(&self) -> usize {
        self.work_bytes
    }

    fn look(&mut self) -> Result<(), ContentMatch> {
        let mut text = None;
        for (filter, warned) in self.filters.iter().zip(&mut self.warned) {
            // A search for literal text is some twenty times quicker than an expression.
            self.work_bytes += self.carry.len() / 16;
            if *warned || filter.literal.as_ref().is_some_and(|literal| !literal.is_in(&self.carry)) {
                continue;
            }
            self.work_bytes += self.carry.len();
            let text = text.get_or_insert_with(|| String::from_utf8_lossy(&self.carry));
            if !filter.regex.is_match(text) {
                continue;
            }
            if filter.is_block {
                return Err(ContentMatch { rule: filter.rule.clone() });
            }
            *warned = true;
            self.warnings.push(filter.rule.clone());
        }
        Ok(())
    }
}

/// A filter that blocks has matched.
#[derive(Clone, Debug)]
pub struct ContentMatch {
    /// The filter, for the operator.
    pub rule: Rule,
}

impl ContentMatch {
    pub(crate) fn denial(self, what: &str) -> Box<Denial> {
        let said = format!("{what}: what it would send out is blocked by a content filter");
        Denial::new(DenialKind::Blocked, said, self.rule, "a content filter matches")
    }
}

/// Looks at a text both as it stands and with JSON's escapes undone, so that no spelling of a letter hides it.
#[derive(Clone)]
pub(crate) struct JsonSieve {
    raw: Sieve,
    plain: Sieve,
    decoder: Decoder,
    decoded: Vec<u8>,
}

impl fmt::Debug for JsonSieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

impl JsonSieve {
    pub(crate) fn new(filters: &Arc<[ContentFilter]>) -> Self {
        let sieve = Sieve::new(filters);
        Self { raw: sieve.clone(), plain: sieve, decoder: Decoder::default(), decoded: Vec::new() }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), ContentMatch> {
        self.raw.push(bytes)?;
        self.decoded.clear();
        self.decoder.push(bytes, &mut self.decoded);
        // While no escape has been seen both texts are the same; from the first on the second one is looked at, too.
        if !self.decoder.has_seen_escape {
            let keep = self.raw.carry.len();
            self.plain.carry.clear();
            self.plain.carry.extend_from_slice(self.raw.carry.get(..keep).unwrap_or_default());
            return Ok(());
        }
        let decoded = std::mem::take(&mut self.decoded);
        let result = self.plain.push(&decoded);
        self.decoded = decoded;
        result
    }

    pub(crate) fn take_warnings(&mut self) -> Vec<Rule> {
        let mut warnings = self.raw.take_warnings();
        for rule in self.plain.take_warnings() {
            if !warnings.contains(&rule) {
                warnings.push(rule);
            }
        }
        warnings
    }

    pub(crate) fn work_bytes(&self) -> usize {
        self.raw.work_bytes() + self.plain.work_bytes()
    }
}

/// Undoes JSON's escapes in a text that comes in pieces. Whatever is no escape passes as it is.
#[derive(Clone, Debug, Default)]
struct Decoder {
    state: Escape,
    /// The first half of a surrogate pair.
    high: Option<u32>,
    has_seen_escape: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Escape {
    #[default]
    None,
    /// After `\`.
    Begun,
    /// After `\u` and so many digits.
    Unicode { digits: u32, code: u32 },
}

impl Decoder {
    fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            match self.state {
                Escape::None if byte == b'\\' => {
                    self.has_seen_escape = true;
                    self.state = Escape::Begun;
                }
                Escape::None => self.plain(byte, out),
                Escape::Begun if byte == b'u' => self.state = Escape::Unicode { digits: 0, code: 0 },
                Escape::Begun => {
                    self.state = Escape::None;
                    let plain = match byte {
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        other => other,
                    };
                    self.plain(plain, out);
                }
                Escape::Unicode { digits, code } => self.digit(byte, digits, code, out),
            }
        }
    }

    fn plain(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.high = None;
        out.push(byte);
    }

    fn digit(&mut self, byte: u8, digits: u32, code: u32, out: &mut Vec<u8>) {
        let Some(value) = char::from(byte).to_digit(16) else {
            self.state = Escape::None;
            return self.plain(byte, out);
        };
        let code = code << 4 | value;
        if digits < 3 {
            self.state = Escape::Unicode { digits: digits + 1, code };
            return;
        }
        self.state = Escape::None;
        let code = match (self.high.take(), code) {
            (_, 0xd800..0xdc00) => {
                self.high = Some(code);
                return;
            }
            (Some(high), 0xdc00..0xe000) => 0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00),
            (_, code) => code,
        };
        let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

#[cfg(all(test, feature = "file"))]
mod tests {
    use super::*;

    fn filters(patterns: &[&str]) -> Arc<[ContentFilter]> {
        patterns.iter().filter_map(|p| ContentFilter::new(p, true, Rule::new("f", 1)).ok()).collect()
    }

    #[test]
    fn finds_the_text_every_match_contains() {
        let literal = |pattern: &str| Literal::of(pattern).map(|l| String::from_utf8(l.text).unwrap());
        assert_eq!(literal(r"(?i)password\s*[:=]").as_deref(), Some("password"));
        assert_eq!(literal(r"AKIA[0-9A-Z]{16}").as_deref(), Some("AKIA"));
        assert_eq!(literal(r"abc?d{2}").as_deref(), Some("ab"));
        assert_eq!(literal(r"colou?r").as_deref(), Some("colo"));
        assert_eq!(literal(r"(foo)+bar\.baz").as_deref(), Some("bar.baz"));
        for pattern in [
            "a|b", "foo|bar", r"\d+", "(?s)abc", "ab(?i)cd", "(?x) a b", "[a&&b]cd", "a*", "x", r"\x41bc",
            r"\<abc",
        ] {
            assert_eq!(literal(pattern), None, "{pattern}");
        }
        assert_eq!(literal("ab|(cd)"), None);
        assert_eq!(literal(r"\bword\b").as_deref(), Some("word"));
    }

    #[test]
    fn finds_matches_across_pieces() {
        let filters = filters(&[r"(?i)password\s*[:=]", r"\d{4}-\d{4}"]);
        for text in ["my PassWord = x", "1234-5678", "é password:é"] {
            let long = format!("{}{text}{}", "é ".repeat(9000), " z".repeat(9000));
            for cut in [97, 1000, 8192, 100_000] {
                let mut sieve = Sieve::new(&filters);
                let is_hit = long.as_bytes().chunks(cut).any(|piece| sieve.push(piece).is_err());
                assert!(is_hit, "{text} in pieces of {cut}");
            }
        }
        let mut sieve = Sieve::new(&filters);
        assert!(sieve.push("pass word: 12345678".repeat(1000).as_bytes()).is_ok());
    }

    #[test]
    fn sees_through_escapes() {
        let filters = filters(&["secret", "a\nb", "😀"]);
        for text in [r#""s\u0065cret""#, r#""a\nb""#, r#""\ud83d\ude00""#, r"\u0073\u0065\u0063ret"] {
            for cut in [1, 2, 5, 100] {
                let mut sieve = JsonSieve::new(&filters);
                let long = format!("{}{text}", "x".repeat(40));
                assert!(
                    long.as_bytes().chunks(cut).any(|piece| sieve.push(piece).is_err()),
                    "{text} by {cut}"
                );
            }
        }
        // The beginning of a match may lie before the first escape.
        let mut sieve = JsonSieve::new(&filters);
        assert!(sieve.push(b"xx se").is_ok() && sieve.push(br"cr\u0065t").is_err());
    }

    #[test]
    fn warns_once() {
        let filters: Arc<[ContentFilter]> =
            [ContentFilter::new("abc", false, Rule::new("w", 1)).unwrap()].into();
        let mut sieve = Sieve::new(&filters);
        assert!(sieve.push(b"abc abc").is_ok() && sieve.push(b"abc").is_ok());
        assert_eq!(sieve.warnings().len(), 1);
    }
}
