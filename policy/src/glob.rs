//! Globs over bytes: `*`, `?`, `[a-z]`, `{a,b}`, `\` escapes, always against the whole value.
//!
//! `*` is any run of bytes, `?` and a class are one character (one byte where the value is not UTF-8). Matching is
//! case-sensitive and takes at most `value length x pattern length` steps whatever the pattern. A pattern that cannot be
//! understood is an error at load and never one that quietly matches nothing: a deny rule would fail open.

use std::fmt;

/// The longest pattern: far above any real one, low enough that a thousand of them still judge in microseconds.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// The most plain patterns that the braces of one pattern may stand for; more is a mistake or an attack.
pub const ALTERNATIVES_MAX: usize = 256;

/// One compiled glob.
#[derive(Clone, Debug)]
pub struct Glob {
    alternatives: Vec<Vec<Token>>,
}

/// Which pairs of neighbouring bytes a text has, as a Bloom filter. Of many patterns most need a pair that the value does
/// not have, and are passed over at the cost of one comparison.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pairs(u64);

impl Pairs {
    pub(crate) fn of(text: &[u8]) -> Self {
        let bit = |a: u8, b: u8| 1_u64 << (u16::from_ne_bytes([a, b]).wrapping_mul(0x9e37) >> 10);
        let pairs = text.iter().zip(text.get(1..).unwrap_or_default());
        Self(pairs.fold(0, |bits, (&a, &b)| bits | bit(a, b)))
    }

    /// The pairs of a value to be matched. A long one has nearly all of them, and finding out would take longer than it
    /// saves.
    pub(crate) fn of_value(value: &[u8]) -> Self {
        if value.len() > 64 { Self(u64::MAX) } else { Self::of(value) }
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn has(self, needed: Self) -> bool {
        needed.0 & !self.0 == 0
    }
}

/// Why a pattern was refused: a clause that completes "pattern `...` ".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobError(&'static str);

impl fmt::Display for GlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for GlobError {}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Literal(Vec<u8>),
    One,
    Many,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When a bracket or brace is not closed, a class is empty or runs backwards, a `\` ends the pattern, or a limit of
    /// this module is passed.
    pub fn new(pattern: &str) -> Result<Self, GlobError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(GlobError("is longer than 4096 bytes"));
        }
        let mut parser = Parser { rest: pattern.chars(), made: 0 };
        let alternatives = parser.sequence(0)?;
        if alternatives.len() > ALTERNATIVES_MAX {
            return Err(GlobError("stands for more than 256 alternatives"));
        }
        Ok(Self { alternatives })
    }

    /// A glob that matches exactly `text`.
    #[must_use]
    pub fn literal(text: &str) -> Self {
        let token = Token::Literal(text.as_bytes().to_vec());
        Self { alternatives: vec![if text.is_empty() { Vec::new() } else { vec![token] }] }
    }

    /// Whether the glob matches the whole of `value`.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        self.alternatives.iter().any(|tokens| match_tokens(tokens, value, false))
    }

    /// [`matches`](Self::matches) without regard to ASCII case.
    #[must_use]
    pub fn matches_ignoring_case(&self, value: &[u8]) -> bool {
        self.alternatives.iter().any(|tokens| match_tokens(tokens, value, true))
    }

    /// A glob that matches a value in lower case when this one matches it without regard to ASCII case. `None` where a
    /// class makes that doubtful.
    #[must_use]
    pub fn to_lower_case(&self) -> Option<Self> {
        let lower = |token: &Token| match token {
            Token::Literal(bytes) => Some(Token::Literal(bytes.to_ascii_lowercase())),
            Token::One => Some(Token::One),
            Token::Many => Some(Token::Many),
            Token::Class { .. } => None,
        };
        let sequence = |tokens: &Vec<Token>| tokens.iter().map(lower).collect::<Option<Vec<_>>>();
        Some(Self { alternatives: self.alternatives.iter().map(sequence).collect::<Option<_>>()? })
    }

    /// The text this glob matches, when it is only one.
    #[must_use]
    pub fn as_literal(&self) -> Option<&[u8]> {
        match self.alternatives.as_slice() {
            [tokens] => match tokens.as_slice() {
                [] => Some(&[]),
                [Token::Literal(bytes)] => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }

    /// The text with which a value must begin, when that is all the glob asks for.
    #[must_use]
    pub fn as_prefix(&self) -> Option<&[u8]> {
        match self.alternatives.as_slice() {
            [tokens] => match tokens.as_slice() {
                [Token::Many] => Some(&[]),
                [Token::Literal(bytes), Token::Many] => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }

    /// The pairs of bytes that every match contains. Nothing where there are alternatives.
    pub(crate) fn pairs(&self) -> Pairs {
        let [tokens] = self.alternatives.as_slice() else { return Pairs::default() };
        tokens.iter().fold(Pairs::default(), |pairs, token| match token {
            Token::Literal(bytes) => pairs.and(Pairs::of(bytes)),
            Token::One | Token::Many | Token::Class { .. } => pairs,
        })
    }

    /// Whether the glob matches every value.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.alternatives.iter().any(|tokens| tokens.as_slice() == [Token::Many])
    }
}

struct Parser<'a> {
    rest: std::str::Chars<'a>,
    /// Alternatives made so far, over all nesting: bounds the work as well as the result.
    made: usize,
}

impl Parser<'_> {
    /// Parses until the end, or inside braces (`depth > 0`) up to the `,` or `}` that is left for the caller.
    fn sequence(&mut self, depth: usize) -> Result<Vec<Vec<Token>>, GlobError> {
        let mut all = vec![Vec::new()];
        loop {
            let here = self.rest.clone();
            let Some(c) = self.rest.next() else {
                return if depth == 0 { Ok(all) } else { Err(GlobError("has a `{` that is not closed")) };
            };
            match c {
                ',' | '}' if depth > 0 => {
                    self.rest = here;
                    return Ok(all);
                }
                '}' => {
                    return Err(GlobError("has a `}` that nothing opened (write `\\}` for the character)"));
                }
                '{' => all = self.join(&all, depth)?,
                '*' => push_each(&mut all, &Token::Many),
                '?' => push_each(&mut all, &Token::One),
                '[' => {
                    let class = self.class()?;
                    push_each(&mut all, &class);
                }
                '\\' => {
                    let escaped = self.rest.next().ok_or(GlobError("ends in a lone `\\`"))?;
                    push_char(&mut all, escaped);
                }
                other => push_char(&mut all, other),
            }
        }
    }

    /// Every sequence so far, continued by every alternative of the brace group that has just been opened.
    fn join(&mut self, heads: &[Vec<Token>], depth: usize) -> Result<Vec<Vec<Token>>, GlobError> {
        if depth >= 8 {
            return Err(GlobError("nests braces deeper than 8"));
        }
        let mut joined = Vec::new();
        let mut groups = 0_usize;
        let mut is_empty = true;
        loop {
            let tails = self.sequence(depth + 1)?;
            groups += 1;
            is_empty &= tails.iter().all(Vec::is_empty);
            self.made += heads.len().saturating_mul(tails.len());
            if self.made > 4 * ALTERNATIVES_MAX {
                return Err(GlobError("stands for more than 256 alternatives"));
            }
            for head in heads {
                for tail in &tails {
                    joined.push(concatenated(head, tail));
                }
            }
            if self.rest.next() == Some('}') {
                break;
            }
        }
        if groups == 1 && is_empty {
            return Err(GlobError("has empty braces"));
        }
        Ok(joined)
    }

    fn class(&mut self) -> Result<Token, GlobError> {
        const OPEN: GlobError = GlobError("has a `[` that is not closed (write `\\[` for the character)");
        let mut ranges = Vec::new();
        let mut next = self.rest.next().ok_or(OPEN)?;
        let negated = next == '!' || next == '^';
        if negated {
            next = self.rest.next().ok_or(OPEN)?;
        }
        if next == ']' {
            return Err(GlobError("has an empty class"));
        }
        loop {
            let low = if next == '\\' { self.rest.next().ok_or(OPEN)? } else { next };
            next = self.rest.next().ok_or(OPEN)?;
            let mut high = low;
            if next == '-' {
                next = self.rest.next().ok_or(OPEN)?;
                if next == ']' {
                    ranges.push(('-', '-'));
                } else {
                    high = if next == '\\' { self.rest.next().ok_or(OPEN)? } else { next };
                    next = self.rest.next().ok_or(OPEN)?;
                }
            }
            if high < low {
                return Err(GlobError("has a range that runs backwards"));
            }
            ranges.push((low, high));
            if next == ']' {
                return Ok(Token::Class { negated, ranges });
            }
        }
    }
}

fn push_each(all: &mut [Vec<Token>], token: &Token) {
    for tokens in all {
        if *token == Token::Many && tokens.last() == Some(&Token::Many) {
            continue;
        }
        tokens.push(token.clone());
    }
}

fn push_char(all: &mut [Vec<Token>], c: char) {
    let mut buffer = [0; 4];
    let bytes = c.encode_utf8(&mut buffer).as_bytes();
    for tokens in all {
        if let Some(Token::Literal(literal)) = tokens.last_mut() {
            literal.extend_from_slice(bytes);
        } else {
            tokens.push(Token::Literal(bytes.to_vec()));
        }
    }
}

fn concatenated(head: &[Token], tail: &[Token]) -> Vec<Token> {
    let mut all = vec![head.to_vec()];
    for token in tail {
        if let (Token::Literal(more), Some(Token::Literal(literal))) =
            (token, all.first_mut().and_then(|tokens| tokens.last_mut()))
        {
            literal.extend_from_slice(more);
        } else {
            push_each(&mut all, token);
        }
    }
    all.pop().unwrap_or_default()
}

/// The classic two-pointer walk: on a mismatch only the last `*` gives way by one byte, so nothing is exponential.
fn match_tokens(tokens: &[Token], value: &[u8], ignore_case: bool) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let rest = value.get(from..).unwrap_or_default();
        match tokens.get(at) {
            None if rest.is_empty() => return true,
            Some(Token::Many) => {
                at += 1;
                if at == tokens.len() {
                    return true;
                }
                // The last literal can only be at the end; any other is at the next place where it is found.
                if let Some(Token::Literal(literal)) = tokens.get(at)
                    && !ignore_case
                {
                    if at + 1 == tokens.len() {
                        return rest.ends_with(literal);
                    }
                    let Some(found) = find(rest, literal) else { return false };
                    from += found;
                }
                retry = Some((at, from));
                continue;
            }
            Some(token) => {
                if let Some(taken) = match_one(token, rest, ignore_case) {
                    at += 1;
                    from += taken;
                    continue;
                }
            }
            None => {}
        }
        let Some((token, start)) = retry else { return false };
        if start >= value.len() {
            return false;
        }
        (at, from) = (token, start + 1);
        retry = Some((at, from));
    }
}

/// The first place of `literal` in `text`. Values are short: building a searcher would take longer than searching.
fn find(text: &[u8], literal: &[u8]) -> Option<usize> {
    let first = *literal.first()?;
    let mut at = 0;
    loop {
        at += memchr::memchr(first, text.get(at..)?)?;
        if text.get(at..)?.starts_with(literal) {
            return Some(at);
        }
        at += 1;
    }
}

/// How many bytes of `rest` the token takes, if it matches at its beginning. `Many` is the caller's.
fn match_one(token: &Token, rest: &[u8], ignore_case: bool) -> Option<usize> {
    match token {
        Token::Many => Some(0),
        Token::Literal(literal) => {
            let head = rest.get(..literal.len())?;
            let same = if ignore_case { head.eq_ignore_ascii_case(literal) } else { head == literal };
            same.then_some(literal.len())
        }
        Token::One => first_char(rest).map(|(_, len)| len),
        Token::Class { negated, ranges } => {
            let (c, len) = first_char(rest)?;
            let inside = c.is_some_and(|c| {
                let has = |c: char| ranges.iter().any(|&(low, high)| (low..=high).contains(&c));
                has(c) || ignore_case && (has(c.to_ascii_lowercase()) || has(c.to_ascii_uppercase()))
            });
            (inside != *negated).then_some(len)
        }
    }
}

/// The first character and its length; a byte that begins no UTF-8 character stands for itself, as `None`.
fn first_char(bytes: &[u8]) -> Option<(Option<char>, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((Some(char::from(first)), 1));
    }
    for len in 2..=4 {
        if let Some(c) =
            bytes.get(..len).and_then(|b| std::str::from_utf8(b).ok()).and_then(|s| s.chars().next())
        {
            return Some((Some(c), len));
        }
    }
    Some((None, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(pattern: &str, value: &str) -> bool {
        Glob::new(pattern).unwrap().matches(value.as_bytes())
    }

    #[test]
    fn matches_whole_values_only() {
        assert!(is("+1*", "+12025550123"));
        assert!(!is("+1*", "x+1"));
        assert!(!is("+15551234567", "+155512345678"));
        assert!(is("a.b", "a.b") && !is("a.b", "axb"));
        assert!(is("", "") && !is("", "a"));
        assert!(is("*", "") && is("**", "any\nthing"));
        assert!(
            is("*ab*c", "xababyc")
                && is("*aab", "aaab")
                && !is("*ab", "abx")
                && is("*a*a", "aa")
                && !is("*a*a", "a")
        );
    }

    #[test]
    fn classes_braces_and_escapes() {
        assert!(is("[a-c]x", "bx") && !is("[!a-c]x", "bx") && is("[^a-c]x", "dx"));
        assert!(is("[a-]", "-") && is(r"[\]]", "]"));
        assert!(is("{+1,+44}*", "+44 20") && !is("{+1,+44}*", "+43"));
        assert!(is("a{b,c{d,e}}f", "acef") && is("x{,y}", "x"));
        assert!(is(r"\*\{", "*{") && is("a,b", "a,b"));
    }

    #[test]
    fn question_mark_is_a_character() {
        assert!(is("?", "é") && !is("??", "é"));
        assert!(Glob::new("?").unwrap().matches(&[0xff]));
        assert!(!Glob::new("[a-z]").unwrap().matches(&[0xff]));
        assert!(Glob::new("a*b").unwrap().matches(&[b'a', 0xff, 0x00, b'b']));
    }

    #[test]
    fn ignores_case_when_asked() {
        let glob = Glob::new("Alice.[a-f]*").unwrap();
        assert!(glob.matches_ignoring_case(b"aLICE.Ax") && !glob.matches(b"alice.ax"));
    }

    #[test]
    fn refuses_what_it_cannot_understand() {
        let bad = ["[", "[a", "[]", "[!]", "[z-a]", "{", "{a", "{a,{b}", "}", "{}", r"a\"];
        for pattern in bad {
            assert!(Glob::new(pattern).is_err(), "{pattern} was accepted");
        }
        assert!(Glob::new(&"{a,b}".repeat(9)).is_err());
        assert!(Glob::new(&"{a,b}".repeat(8)).is_ok());
        assert!(Glob::new(&"{".repeat(4000)).is_err());
    }

    #[test]
    fn is_not_exponential() {
        let pattern = format!("{}b", "*a".repeat(30));
        assert!(!is(&pattern, &"a".repeat(4000)));
    }
}
