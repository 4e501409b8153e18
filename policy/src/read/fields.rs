//! Taking typed values out of the tree, and collecting what is wrong.

use std::cell::RefCell;

use super::yaml::{Node, Text, Yaml};
use crate::problem::{Position, Problem, Source};

/// Where problems go. Reading goes on after one, so that all are named.
pub(crate) struct Reader<'a> {
    source: &'a Source,
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self { source, errors: RefCell::default(), warnings: RefCell::default() }
    }

    pub(crate) fn error(&self, at: Position, message: impl Into<String>) {
        self.errors.borrow_mut().push(self.source.problem(at, message));
    }

    pub(crate) fn warn(&self, at: Position, message: impl Into<String>) {
        self.warnings.borrow_mut().push(self.source.problem(at, message));
    }

    /// A problem for later, when only the loader can know.
    pub(crate) fn place(&self, at: Position) -> Problem {
        self.source.problem(at, "")
    }

    /// Errors and warnings, each in the order of the file.
    pub(crate) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        let (mut errors, mut warnings) = (self.errors.into_inner(), self.warnings.into_inner());
        errors.sort_by_key(Problem::at);
        warnings.sort_by_key(Problem::at);
        (errors, warnings)
    }

    fn wrong(&self, node: &Node, wanted: &str) {
        let found = match &node.value {
            Yaml::Bool(_) => "true or false",
            Yaml::Int(_) | Yaml::Odd if wanted.starts_with("text") => "a number: write it in quotes",
            Yaml::Int(_) | Yaml::Odd => "a number",
            Yaml::List(_) => "a list",
            Yaml::Map(_) => "a mapping",
            Yaml::Null => "nothing",
            Yaml::Text(_) => "text",
        };
        self.error(node.at, format!("expected {wanted}, found {found}"));
    }

    pub(crate) fn text(&self, node: Node) -> Option<Text> {
        match node.value {
            Yaml::Text(text) => Some(Text { at: node.at, text }),
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::List(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd => {
                self.wrong(&node, "text");
                None
            }
        }
    }

    pub(crate) fn bool(&self, node: Node) -> Option<bool> {
        match node.value {
            Yaml::Bool(value) => Some(value),
            Yaml::Int(_) | Yaml::List(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd | Yaml::Text(_) => {
                self.wrong(&node, "true or false");
                None
            }
        }
    }

    /// A number of at least `min` and at most `max`.
    pub(crate) fn number(&self, node: Node, min: u64, max: u64) -> Option<u64> {
        match node.value {
            Yaml::Int(value) if (min..=max).contains(&value) => Some(value),
            Yaml::Int(value) => {
                self.error(node.at, format!("{value} is not between {min} and {max}"));
                None
            }
            Yaml::Bool(_) | Yaml::List(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd | Yaml::Text(_) => {
                self.wrong(&node, "a whole number");
                None
            }
        }
    }

    pub(crate) fn list(&self, node: Node) -> Vec<Node> {
        match node.value {
            Yaml::List(list) => list,
            Yaml::Null => Vec::new(),
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::Map(_) | Yaml::Odd | Yaml::Text(_) => {
                self.wrong(&node, "a list");
                Vec::new()
            }
        }
    }

    pub(crate) fn texts(&self, node: Node) -> Vec<Text> {
        self.list(node).into_iter().filter_map(|node| self.text(node)).collect()
    }

    /// The members of a mapping whose keys the file chooses.
    pub(crate) fn entries(&self, node: Node) -> Vec<(Text, Node)> {
        match node.value {
            Yaml::Map(members) => members,
            Yaml::Null => Vec::new(),
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::List(_) | Yaml::Odd | Yaml::Text(_) => {
                self.wrong(&node, "a mapping");
                Vec::new()
            }
        }
    }

    /// The members of a mapping whose keys the language fixes.
    pub(crate) fn fields(&self, node: Node) -> Fields<'_, 'a> {
        let at = node.at;
        Fields { reader: self, at, members: self.entries(node), known: Vec::new() }
    }
}

/// A mapping out of which known keys are taken one by one; [`finish`](Self::finish) complains about the rest.
pub(crate) struct Fields<'r, 'a> {
    reader: &'r Reader<'a>,
    pub(crate) at: Position,
    members: Vec<(Text, Node)>,
    known: Vec<&'static str>,
}

impl Fields<'_, '_> {
    /// The value of a key, with the key's place.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<(Position, Node)> {
        self.known.push(key);
        let index = self.members.iter().position(|(name, _)| name.text == key)?;
        let (name, node) = self.members.remove(index);
        Some((name.at, node))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.members.iter().any(|(name, _)| name.text == key)
    }

    pub(crate) fn text(&mut self, key: &'static str) -> Option<Text> {
        let (_, node) = self.take(key)?;
        self.reader.text(node)
    }

    pub(crate) fn bool(&mut self, key: &'static str) -> Option<bool> {
        let (_, node) = self.take(key)?;
        self.reader.bool(node)
    }

    pub(crate) fn number(&mut self, key: &'static str, min: u64, max: u64) -> Option<u64> {
        let (_, node) = self.take(key)?;
        self.reader.number(node, min, max)
    }

    /// A list of texts; an absent one is empty.
    pub(crate) fn texts(&mut self, key: &'static str) -> Vec<Text> {
        self.take(key).map(|(_, node)| self.reader.texts(node)).unwrap_or_default()
    }

    pub(crate) fn fields(&mut self, key: &'static str) -> Option<Self> {
        let (_, node) = self.take(key)?;
        Some(self.reader.fields(node))
    }

    pub(crate) fn reader(&self) -> &Reader<'_> {
        self.reader
    }

    /// Names every key that nobody took.
    pub(crate) fn finish(self) {
        for (name, _) in &self.members {
            let nearest = self.known.iter().min_by_key(|key| distance(key, &name.text));
            let hint = nearest.filter(|key| distance(key, &name.text) <= 3);
            let hint = hint.map_or_else(String::new, |key| format!(": did you mean `{key}`?"));
            self.reader.error(name.at, format!("unknown key `{}`{hint}", name.text));
        }
    }
}

/// How many letters differ, by Levenshtein; long names are not compared.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut above_left = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let best = (above_left + usize::from(x != *y)).min(*cell + 1).min(left + 1);
            above_left = *cell;
            *cell = best;
            left = best;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_distance() {
        assert_eq!(distance("tools", "tools"), 0);
        assert_eq!(distance("tools", "tool"), 1);
        assert_eq!(distance("binary", "binray"), 2);
        assert_eq!(distance("", "abc"), 3);
    }
}
