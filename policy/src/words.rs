//! Patterns over an argument vector, word by word.
//!
//! Each word of a pattern meets exactly one argument, so an argument with a space in it can never pose as two. An allow
//! pattern must describe the whole vector; a deny pattern looks for its words anywhere, in order.

use crate::glob::{Glob, GlobError};

/// Which words an argument vector has, as a Bloom filter: one bit for each. Most patterns among a thousand need a word
/// that is not there, and are passed over at the cost of one comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mask(u64);

impl Mask {
    fn of(word: &[u8]) -> Self {
        // FNV-1a; its upper bits are the better mixed ones.
        let hash = word.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(1 << (hash >> 58))
    }

    fn of_all<'a>(words: impl Iterator<Item = &'a [u8]>) -> Self {
        words.fold(Self::default(), |mask, word| Self(mask.0 | Self::of(word).0))
    }

    fn has(self, needed: Self) -> bool {
        needed.0 & !self.0 == 0
    }
}

/// An argument vector with what patterns want to know of it, worked out once.
#[derive(Debug)]
pub(crate) struct Argv<'a> {
    args: &'a [&'a [u8]],
    /// Of the arguments.
    mask: Mask,
    /// Of the arguments and of the values behind `--flag=`.
    mask_of_parts: Mask,
}

impl<'a> Argv<'a> {
    pub(crate) fn new(args: &'a [&'a [u8]]) -> Self {
        let mask = Mask::of_all(args.iter().copied());
        let values = args.iter().filter_map(|arg| arg.get(flag_name(arg)?.len() + 1..));
        Self { args, mask, mask_of_parts: Mask(mask.0 | Mask::of_all(values).0) }
    }
}

/// An allow pattern.
#[derive(Clone, Debug)]
pub(crate) struct AllowWords {
    words: Vec<Word>,
    /// Of the words that are plain text.
    needed: Mask,
}

#[derive(Clone, Debug)]
enum Word {
    /// One argument.
    One(Glob),
    /// `**`: any number of arguments.
    Rest,
}

impl AllowWords {
    pub(crate) fn new(pattern: &str) -> Result<Self, GlobError> {
        let words = split(pattern);
        if words.len() == 1 && pattern.trim() == "*" {
            return Ok(Self { words: vec![Word::Rest], needed: Mask::default() });
        }
        let compile = |word: &String| Ok(if word == "**" { Word::Rest } else { Word::One(Glob::new(word)?) });
        let words = words.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
        let literals = words.iter().filter_map(|word| match word {
            Word::One(glob) => glob.as_literal(),
            Word::Rest => None,
        });
        let needed = Mask::of_all(literals);
        Ok(Self { words, needed })
    }

    /// Whether the pattern describes the whole of `argv`.
    pub(crate) fn matches(&self, argv: &Argv<'_>) -> bool {
        if !argv.mask.has(self.needed) {
            return false;
        }
        let (mut at, mut from) = (0, 0);
        let mut retry = None;
        loop {
            match (self.words.get(at), argv.args.get(from)) {
                (None, None) => return true,
                (Some(Word::Rest), _) => {
                    at += 1;
                    retry = Some((at, from));
                    continue;
                }
                (Some(Word::One(glob)), Some(arg)) if glob.matches(arg) => {
                    (at, from) = (at + 1, from + 1);
                    continue;
                }
                (Some(Word::One(_)) | None, _) => {}
            }
            let Some((word, start)) = retry else { return false };
            if start >= argv.args.len() {
                return false;
            }
            (at, from) = (word, start + 1);
            retry = Some((at, from));
        }
    }

    /// Whether any vector at all matches.
    #[cfg(feature = "file")]
    pub(crate) fn is_everything(&self) -> bool {
        matches!(self.words.as_slice(), [Word::Rest])
    }

    /// Whether some word matches any argument, flags included.
    #[cfg(feature = "file")]
    pub(crate) fn has_open_word(&self) -> bool {
        self.words.iter().any(|word| match word {
            Word::One(glob) => glob.is_everything(),
            Word::Rest => true,
        })
    }
}

/// A deny pattern: over-approximates, because what it misses runs.
#[derive(Clone, Debug)]
pub(crate) struct DenyWords {
    /// Each is the pattern in another spelling; one is enough.
    spellings: Vec<Spelling>,
}

#[derive(Clone, Debug)]
struct Spelling {
    words: Vec<DenyWord>,
    /// Of the words that are plain text and no flags: those match nothing but themselves.
    needed: Mask,
}

impl Spelling {
    fn new(words: Vec<DenyWord>) -> Self {
        let literals = words.iter().filter_map(|word| word.glob.as_literal());
        let needed = Mask::of_all(literals.filter(|literal| literal.first() != Some(&b'-')));
        Self { words, needed }
    }
}

#[derive(Clone, Debug)]
struct DenyWord {
    glob: Glob,
    /// `--name`, where the word is exactly that.
    long: Option<Vec<u8>>,
    /// `x`, where the word is exactly `-x`.
    short: Option<u8>,
}

impl DenyWords {
    /// # Errors
    /// As [`Glob::new`]. A pattern without words gives `None`: it would deny everything or nothing.
    pub(crate) fn new(pattern: &str) -> Result<Option<Self>, GlobError> {
        let mut words = split(pattern);
        if words.is_empty() {
            return Ok(None);
        }
        words.retain(|word| word != "*" && word != "**");
        let mut spellings =
            vec![words.iter().map(|word| DenyWord::new(word)).collect::<Result<Vec<_>, _>>()?];
        // `--flag=value` may also arrive as two arguments.
        let mut apart = Vec::new();
        for word in &words {
            match word.split_once('=').filter(|(name, _)| name.starts_with('-')) {
                Some((name, "" | "*" | "**")) => apart.push(DenyWord::new(name)?),
                Some((name, value)) => apart.extend([DenyWord::new(name)?, DenyWord::new(value)?]),
                None => apart.push(DenyWord::new(word)?),
            }
        }
        spellings.push(apart);
        Ok(Some(Self { spellings: spellings.into_iter().map(Spelling::new).collect() }))
    }

    /// Whether the words meet some of the arguments, in order.
    pub(crate) fn matches(&self, argv: &Argv<'_>) -> bool {
        let is_there = |spelling: &Spelling| {
            argv.mask_of_parts.has(spelling.needed) && is_subsequence(&spelling.words, argv.args)
        };
        self.spellings.iter().any(is_there)
    }
}

impl DenyWord {
    fn new(word: &str) -> Result<Self, GlobError> {
        let glob = Glob::new(word)?;
        let literal = glob.as_literal().map(<[u8]>::to_vec);
        let long =
            literal.clone().filter(|name| name.starts_with(b"--") && name.len() > 2 && !name.contains(&b'='));
        let short = match literal.as_deref() {
            Some([b'-', letter]) if *letter != b'-' => Some(*letter),
            _ => None,
        };
        Ok(Self { glob, long, short })
    }

    fn matches(&self, arg: &[u8]) -> bool {
        let name = flag_name(arg);
        if self.glob.matches(arg) || name.is_some_and(|name| self.glob.matches(name)) {
            return true;
        }
        // getopt takes any unambiguous beginning of a long flag for the flag.
        let name = name.unwrap_or(arg);
        if self.long.as_ref().is_some_and(|long| name.len() >= 5 && long.starts_with(name)) {
            return true;
        }
        // `-x` may hide in `-vx`.
        match (self.short, arg) {
            (Some(letter), [b'-', letters @ ..]) if letters.first() != Some(&b'-') => {
                letters.contains(&letter)
            }
            _ => false,
        }
    }
}

/// The part of `-name=value` or `--name=value` before the `=`.
fn flag_name(arg: &[u8]) -> Option<&[u8]> {
    if arg.first() != Some(&b'-') {
        return None;
    }
    memchr::memchr(b'=', arg).and_then(|at| arg.get(..at))
}

/// Meets each word at the earliest place left, which finds a way whenever there is one. The value of `--flag=value` is a
/// place of its own behind its flag.
fn is_subsequence(words: &[DenyWord], argv: &[&[u8]]) -> bool {
    let mut words = words.iter().peekable();
    for arg in argv {
        if words.next_if(|word| word.matches(arg)).is_none() && flag_name(arg).is_none() {
            continue;
        }
        if let Some(name) = flag_name(arg) {
            let value = arg.get(name.len() + 1..).unwrap_or_default();
            words.next_if(|word| word.matches(value));
        }
    }
    words.peek().is_none()
}

/// Splits at white space that no `\` precedes. The escapes stay, for the glob to read.
fn split(pattern: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.push(String::new());
            continue;
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
            if c == '\\' {
                word.extend(chars.next());
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(args: &str) -> Vec<&[u8]> {
        args.split('|').filter(|arg| !arg.is_empty()).map(str::as_bytes).collect()
    }

    fn allows(pattern: &str, args: &str) -> bool {
        AllowWords::new(pattern).unwrap().matches(&Argv::new(&argv(args)))
    }

    fn denies(pattern: &str, args: &str) -> bool {
        DenyWords::new(pattern).unwrap().unwrap().matches(&Argv::new(&argv(args)))
    }

    #[test]
    fn one_word_is_one_argument() {
        assert!(allows("item get *", "item|get|x y; rm -rf /"));
        assert!(!allows("item get *", "item|get") && !allows("item get *", "item|get|a|b"));
        assert!(!allows("item get *", "item get|x|y"));
        assert!(allows("item list **", "item|list") && allows("item list **", "item|list|--a|b"));
        assert!(allows("a ** z", "a|b|z|z") && !allows("a ** z", "a|b"));
        assert!(allows("--version", "--version") && !allows("--version", ""));
        assert!(allows("*", "") && allows("*", "a|b") && allows("**", "") && allows("", ""));
        assert!(!allows("", "a"));
        assert!(allows(r"say a\ b", "say|a b"));
        assert!(AllowWords::new("get *").unwrap().matches(&Argv::new(&[b"get", b""])));
    }

    #[test]
    fn deny_looks_anywhere_in_order() {
        assert!(denies("item delete", "item|--vault|x|delete|y"));
        assert!(!denies("item delete", "delete|item"));
        assert!(denies("--reveal", "item|get|x|--reveal"));
        assert!(denies("--reveal", "--reveal=yes") && denies("--reveal", "--rev"));
        assert!(denies("--reveal", "--rev=yes") && !denies("--reveal", "--re"));
        assert!(!denies("--reveal", "--revealed"));
        assert!(denies("*", "") && denies("**", "a") && denies("item * delete", "item|delete"));
        assert!(DenyWords::new(" ").unwrap().is_none());
    }

    #[test]
    fn deny_knows_both_spellings_of_a_flag() {
        assert!(denies("--method=DELETE", "--method=DELETE") && denies("--method=DELETE", "--method|DELETE"));
        assert!(denies("--method DELETE", "--method=DELETE") && denies("--method DELETE", "--meth=DELETE"));
        assert!(!denies("--method=DELETE", "--method|GET"));
        assert!(denies("--session=*", "--session|abc") && denies("-f", "push|-uf") && !denies("-f", "--for"));
    }
}
