//! What is wrong with a policy file, and where.

use std::fmt;
use std::sync::Arc;

/// A place in the policy file. Both numbers begin at 1; 0 means "the file as a whole".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

/// One error or warning about a policy file.
#[derive(Clone, Debug)]
pub struct Problem {
    file: Arc<str>,
    at: Position,
    message: String,
    snippet: Option<String>,
}

impl Problem {
    /// The file's name, as it was given to [`Policy::parse`](crate::Policy::parse).
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Where.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at
    }

    /// What is wrong, in one sentence that quotes no secret.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same place with another message: for what only the loader can find out, such as a missing binary.
    #[must_use]
    pub fn with_message(&self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self.clone() }
    }
}

impl fmt::Display for Problem {
    /// `file:line:column: message`, then the line with a caret under the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.at.line > 0 {
            write!(f, ":{}:{}", self.at.line, self.at.column)?;
        }
        write!(f, ": {}", self.message)?;
        let number = self.at.line.to_string();
        let margin = " ".repeat(number.len());
        let Some(snippet) = &self.snippet else {
            let is_hidden = self.at.line > 0;
            return if is_hidden {
                write!(f, "\n{margin} | (not shown: it may hold a secret)")
            } else {
                Ok(())
            };
        };
        let shift = " ".repeat((self.at.column as usize).saturating_sub(1).min(snippet.chars().count()));
        write!(f, "\n{margin} |\n{number} | {snippet}\n{margin} | {shift}^")
    }
}

/// Everything that is wrong with a policy file; never empty.
#[derive(Clone, Debug)]
pub struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    /// The problems, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    /// One problem after the other, each from the beginning of a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The text that positions refer to. Knows which lines may hold a secret, so that no snippet shows one.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<str>,
    /// Each line, and whether it lies in a block of injected secrets.
    lines: Vec<(String, bool)>,
}

/// The keys whose values may be secrets.
const SECRET_KEYS: [&str; 2] = ["env_inject", "headers_inject"];

impl Source {
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let mut lines = Vec::new();
        // A block lasts as long as lines are indented deeper than its key: YAML demands that of every continuation.
        let mut block: Option<usize> = None;
        for line in text.lines() {
            let body = line.trim_start_matches([' ', '-']);
            let indent = line.len() - body.len();
            if block.is_some_and(|key| indent <= key && !body.trim().is_empty()) {
                block = None;
            }
            let opens = SECRET_KEYS.iter().any(|key| line.contains(key));
            // A URL with a user's name in it probably has a password, too.
            let has_login = line.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
            lines.push((line.to_owned(), block.is_some() || opens || has_login));
            if opens && block.is_none() {
                block = Some(indent);
            }
        }
        Self { file: file.into(), lines }
    }

    /// Whether the line may hold a secret.
    pub(crate) fn is_secret(&self, at: Position) -> bool {
        (at.line as usize).checked_sub(1).and_then(|i| self.lines.get(i)).is_some_and(|&(_, secret)| secret)
    }

    /// The place of the first character of a line.
    pub(crate) fn line(&self, line: u32) -> Position {
        let text =
            (line as usize).checked_sub(1).and_then(|i| self.lines.get(i)).map_or("", |(text, _)| text);
        let blank = text.chars().take_while(|c| c.is_whitespace()).count();
        Position { line, column: u32::try_from(blank + 1).unwrap_or(1) }
    }

    pub(crate) fn problem(&self, at: Position, message: impl Into<String>) -> Problem {
        Problem { file: self.file.clone(), at, message: message.into(), snippet: self.snippet(at) }
    }

    fn snippet(&self, at: Position) -> Option<String> {
        let (line, secret) = self.lines.get((at.line as usize).checked_sub(1)?)?;
        if *secret {
            return None;
        }
        Some(line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_at_the_place() {
        let source = Source::new("p.yaml", "tools:\n  a: b\n");
        let shown = source.problem(Position { line: 2, column: 6 }, "not a tool").to_string();
        assert_eq!(shown, "p.yaml:2:6: not a tool\n  |\n2 |   a: b\n  |      ^");
    }

    #[test]
    fn shows_no_line_that_may_hold_a_secret() {
        let text = "t:\n  env_inject:\n    A: hunter2\n\n    B: |\n      hunter3\n  after: seen\n  headers_inject: { X: hunter4,\n    Y: hunter5 }\n  upstream: http://u:hunter6@x\n";
        let source = Source::new("p", text);
        for line in 1..=10 {
            let shown = source.problem(Position { line, column: 3 }, "x").to_string();
            assert!(!shown.contains("hunter"), "{shown}");
            assert_eq!(shown.contains("seen"), line == 7);
        }
    }
}
