//! Taking typed values out of the tree, and collecting what is wrong.

use std::cell::RefCell;

use super::tables::{Key, Shape, Table};
use super::yaml::{Node, Text, Yaml};
use crate::problem::{Position, Problem, Source};

/// Where problems go. Reading goes on after one, so that all are named.
pub(crate) struct Reader<'a> {
    source: &'a Source,
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    lints: RefCell<Vec<Problem>>,
}

/// What a reading found, each list in the order of the file.
pub(crate) struct Findings {
    pub(crate) errors: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
    pub(crate) lints: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self { source, errors: RefCell::default(), warnings: RefCell::default(), lints: RefCell::default() }
    }

    pub(crate) fn error(&self, at: Position, message: impl Into<String>) {
        self.errors.borrow_mut().push(self.source.problem(at, message));
    }

    pub(crate) fn warn(&self, at: Position, message: impl Into<String>) {
        self.warnings.borrow_mut().push(self.source.problem(at, message));
    }

    /// Something for `policy check` to mention: it works, and perhaps not as meant.
    pub(crate) fn lint(&self, at: Position, message: impl Into<String>) {
        self.lints.borrow_mut().push(self.source.problem(at, message));
    }

    /// The place of the first character of a line.
    pub(crate) fn line(&self, line: u32) -> Position {
        self.source.line(line)
    }

    pub(crate) fn has_errors(&self) -> bool {
        !self.errors.borrow().is_empty()
    }

    /// A problem for later, when only the loader can know.
    pub(crate) fn place(&self, at: Position) -> Problem {
        self.source.problem(at, "")
    }

    pub(crate) fn finish(self) -> Findings {
        let sorted = |problems: RefCell<Vec<Problem>>| {
            let mut problems = problems.into_inner();
            problems.sort_by_key(Problem::at);
            problems
        };
        Findings { errors: sorted(self.errors), warnings: sorted(self.warnings), lints: sorted(self.lints) }
    }

    fn wrong(&self, node: &Node, wanted: &str) {
        let found = match &node.value {
            Yaml::Bool(_) => "true or false",
            Yaml::Int(_) | Yaml::Odd(_) if wanted.starts_with("text") => "a number: write it in quotes",
            Yaml::Int(_) => "a number",
            Yaml::Odd(_) => "a negative number or a fraction",
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
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::List(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd(_) => {
                self.wrong(&node, "text");
                None
            }
        }
    }

    pub(crate) fn bool(&self, node: Node) -> Option<bool> {
        match node.value {
            Yaml::Bool(value) => Some(value),
            Yaml::Int(_) | Yaml::List(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd(_) | Yaml::Text(_) => {
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
            Yaml::Bool(_) | Yaml::List(_) | Yaml::Map(_) | Yaml::Null | Yaml::Odd(_) | Yaml::Text(_) => {
                self.wrong(&node, "a whole number");
                None
            }
        }
    }

    pub(crate) fn list(&self, node: Node) -> Vec<Node> {
        match node.value {
            Yaml::List(list) => list,
            Yaml::Null => Vec::new(),
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::Map(_) | Yaml::Odd(_) | Yaml::Text(_) => {
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
            Yaml::Bool(_) | Yaml::Int(_) | Yaml::List(_) | Yaml::Odd(_) | Yaml::Text(_) => {
                self.wrong(&node, "a mapping");
                Vec::new()
            }
        }
    }

    /// The members of a mapping whose keys the language fixes.
    pub(crate) fn fields(&self, node: Node, table: &'static Table) -> Fields<'_, 'a> {
        let at = node.at;
        Fields { reader: self, at, members: self.entries(node), table }
    }
}

/// A mapping out of which its keys are taken one by one; [`finish`](Self::finish) complains about the rest.
pub(crate) struct Fields<'r, 'a> {
    reader: &'r Reader<'a>,
    pub(crate) at: Position,
    members: Vec<(Text, Node)>,
    table: &'static Table,
}

impl<'r, 'a> Fields<'r, 'a> {
    /// The value of a key, with the key's place.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<(Position, Node)> {
        debug_assert!(self.table.key(key).is_some(), "`{key}` is in no table");
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

    /// One of the texts that the table names.
    pub(crate) fn choice(&mut self, key: &'static str) -> Option<&'static str> {
        let text = self.text(key)?;
        let Some(Key { shape: Shape::Choice(choices), .. }) = self.table.key(key) else { return None };
        let found = choices.iter().find(|choice| **choice == text.text);
        if found.is_none() {
            self.reader.error(text.at, format!("`{key}` is one of {}", choices.join(", ")));
        }
        found.copied()
    }

    pub(crate) fn bool(&mut self, key: &'static str) -> Option<bool> {
        let (_, node) = self.take(key)?;
        self.reader.bool(node)
    }

    /// A number within the table's bounds.
    pub(crate) fn number(&mut self, key: &'static str) -> Option<u64> {
        let (_, node) = self.take(key)?;
        let Some(Key { shape: Shape::Number { min, max }, .. }) = self.table.key(key) else { return None };
        self.reader.number(node, *min, *max)
    }

    /// A list of texts; an absent one is empty.
    pub(crate) fn texts(&mut self, key: &'static str) -> Vec<Text> {
        self.take(key).map(|(_, node)| self.reader.texts(node)).unwrap_or_default()
    }

    /// A mapping whose keys the file chooses; an absent one is empty.
    pub(crate) fn entries(&mut self, key: &'static str) -> Vec<(Text, Node)> {
        self.take(key).map(|(_, node)| self.reader.entries(node)).unwrap_or_default()
    }

    pub(crate) fn fields(&mut self, key: &'static str, table: &'static Table) -> Option<Self> {
        let (_, node) = self.take(key)?;
        Some(self.reader.fields(node, table))
    }

    pub(crate) fn reader(&self) -> &'r Reader<'a> {
        self.reader
    }

    /// Names every key that nobody took.
    pub(crate) fn finish(self) {
        self.finish_beside(&Table { name: "", groups: &[] }, "");
    }

    /// As [`finish`](Self::finish), with a better word for the keys of a neighbouring table: where they belong.
    pub(crate) fn finish_beside(self, other: &Table, place: &str) {
        for (name, _) in &self.members {
            let text = &name.text;
            if other.key(text).is_some() {
                self.reader.error(name.at, format!("`{text}` belongs to {place}"));
                continue;
            }
            self.reader.error(name.at, format!("unknown key `{text}`{}", nearest(self.table, text)));
        }
    }
}

/// A hint at the key that was perhaps meant, to stand behind the one that was written.
pub(crate) fn nearest(table: &Table, text: &str) -> String {
    let nearest = table.keys().map(|key| key.name).min_by_key(|key| distance(key, text));
    let hint = nearest.filter(|key| distance(key, text) <= 3);
    hint.map_or_else(String::new, |key| format!(": did you mean `{key}`?"))
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
