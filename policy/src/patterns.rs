//! Many globs over one value, tried in less time than one by one.

use std::collections::BTreeMap;

use crate::glob::{Glob, Pairs};
use crate::verdict::Rule;

/// A pattern and the rule it comes from.
#[derive(Debug)]
pub(crate) struct Pattern<G> {
    pub(crate) glob: G,
    pub(crate) rule: Rule,
    /// Somebody may have meant it for a regular expression.
    pub(crate) looks_like_regex: bool,
}

/// Globs over values. Those that are plain text, and those that are plain text and a `*`, are looked up; only the others
/// are tried one after the other.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    all: Vec<Pattern<Glob>>,
    plain: Index,
    /// The same with every letter in lower case, for values that mean the same in either.
    folded: Index,
    others: Vec<Other>,
}

/// A pattern that has to be tried.
#[derive(Debug)]
struct Other {
    index: usize,
    needed: Pairs,
    lower_case: Option<(Glob, Pairs)>,
}

/// Where patterns are found by their text.
#[derive(Debug, Default)]
struct Index {
    exact: BTreeMap<Vec<u8>, usize>,
    prefixes: BTreeMap<Vec<u8>, usize>,
    /// The lengths that prefixes have, each once.
    prefix_lens: Vec<usize>,
}

impl Index {
    fn add_exact(&mut self, text: Vec<u8>, pattern: usize) {
        self.exact.entry(text).or_insert(pattern);
    }

    fn add_prefix(&mut self, text: Vec<u8>, pattern: usize) {
        if let Err(place) = self.prefix_lens.binary_search(&text.len()) {
            self.prefix_lens.insert(place, text.len());
        }
        self.prefixes.entry(text).or_insert(pattern);
    }

    fn find(&self, value: &[u8]) -> Option<usize> {
        if let Some(&pattern) = self.exact.get(value) {
            return Some(pattern);
        }
        let heads = self.prefix_lens.iter().map_while(|&len| value.get(..len));
        heads.filter_map(|head| self.prefixes.get(head)).copied().next()
    }
}

impl Patterns {
    #[cfg(feature = "file")]
    pub(crate) fn new(all: Vec<Pattern<Glob>>) -> Self {
        let mut patterns = Self::default();
        for (index, pattern) in all.iter().enumerate() {
            if let Some(text) = pattern.glob.as_literal() {
                patterns.plain.add_exact(text.to_vec(), index);
                patterns.folded.add_exact(text.to_ascii_lowercase(), index);
            } else if let Some(text) = pattern.glob.as_prefix() {
                patterns.plain.add_prefix(text.to_vec(), index);
                patterns.folded.add_prefix(text.to_ascii_lowercase(), index);
            } else {
                let lower_case = pattern.glob.to_lower_case().map(|glob| {
                    let pairs = glob.pairs();
                    (glob, pairs)
                });
                patterns.others.push(Other { index, needed: pattern.glob.pairs(), lower_case });
            }
        }
        patterns.all = all;
        patterns
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pattern<Glob>> {
        self.all.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    #[cfg(feature = "file")]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// A pattern that matches the value.
    pub(crate) fn find(&self, value: &[u8]) -> Option<&Pattern<Glob>> {
        if let Some(index) = self.plain.find(value) {
            return self.all.get(index);
        }
        let pairs = Pairs::of_value(value);
        let others = self.others.iter().filter(|other| pairs.has(other.needed));
        others.filter_map(|other| self.all.get(other.index)).find(|pattern| pattern.glob.matches(value))
    }

    /// A pattern that matches the value without regard to ASCII case.
    pub(crate) fn find_ignoring_case(&self, value: &[u8]) -> Option<&Pattern<Glob>> {
        if self.all.is_empty() {
            return None;
        }
        let lower_case = value.to_ascii_lowercase();
        if let Some(index) = self.folded.find(&lower_case) {
            return self.all.get(index);
        }
        let pairs = Pairs::of_value(&lower_case);
        self.others.iter().find_map(|other| {
            let pattern = self.all.get(other.index)?;
            let is_hit = match &other.lower_case {
                Some((glob, needed)) => pairs.has(*needed) && glob.matches(&lower_case),
                None => pattern.glob.matches_ignoring_case(value),
            };
            is_hit.then_some(pattern)
        })
    }
}

#[cfg(all(test, feature = "file"))]
mod tests {
    use super::*;

    #[test]
    fn finds_what_trying_each_would_find() {
        let texts =
            ["+1*", "+12025550123", "*", "a?c", "", "Ab*", "[xY]*", "+1202*", "*B", "*25?5*1*", "{*bc,x}"];
        let values = ["+12025550123", "+1", "+", "", "abc", "aBc", "ab", "x", "+120"];
        for skip in 0..texts.len() {
            let kept: Vec<_> = texts.iter().enumerate().filter(|(i, _)| *i != skip && *i != 2).collect();
            let glob = |text: &str| Glob::new(text).unwrap();
            let all = kept.iter().map(|(_, text)| Pattern {
                glob: glob(text),
                rule: Rule::new(**text, 1),
                looks_like_regex: false,
            });
            let patterns = Patterns::new(all.collect());
            for value in values {
                let by_trying = kept.iter().any(|(_, text)| glob(text).matches(value.as_bytes()));
                assert_eq!(patterns.find(value.as_bytes()).is_some(), by_trying, "{value} without {skip}");
                let folded = kept.iter().any(|(_, text)| glob(text).matches_ignoring_case(value.as_bytes()));
                assert_eq!(
                    patterns.find_ignoring_case(value.as_bytes()).is_some(),
                    folded,
                    "{value} without {skip}"
                );
            }
        }
    }
}
