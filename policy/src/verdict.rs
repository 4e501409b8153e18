//! What the policy decided, and what the audit log is told about it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::json;

/// The longest text of one judged value in a record, in bytes.
const NOTE_BYTES_MAX: usize = 256;

/// The most judged values in one record.
const NOTE_VALUES_MAX: usize = 32;

/// A rule of the policy file, for the operator: never shown to a caller.
#[derive(Clone, PartialEq, Eq)]
pub struct Rule {
    text: Arc<str>,
    line: u32,
}

impl Rule {
    pub(crate) fn new(text: impl Into<Arc<str>>, line: u32) -> Self {
        Self { text: text.into(), line }
    }

    /// The rule's path in the file, such as `signal-cli: jsonrpc_param_filters.send.allow_patterns[0]`, or what was
    /// missing, such as `signal-cli: no jsonrpc_allow_methods pattern matches`.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its line in the file, from 1; 0 where no line is to blame.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }
}

impl fmt::Display for Rule {
    /// The text, and the line in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.line > 0 { write!(f, " (line {})", self.line) } else { Ok(()) }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({self})")
    }
}

/// A judged value under the name the audit record gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    name: Arc<str>,
    values: Vec<String>,
}

impl Param {
    /// The name (`audit_as`).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The values, each cut to 256 bytes; at most 32.
    #[must_use]
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Appends the values as JSON: one as a string, several as an array.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        if let [value] = self.values.as_slice() {
            json::escape(out, value);
            return;
        }
        out.push(b'[');
        for (i, value) in self.values.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            json::escape(out, value);
        }
        out.push(b']');
    }
}

/// What the audit record of a decision says beyond who and when.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    pub(crate) rule: Option<Rule>,
    pub(crate) params: Vec<Param>,
    pub(crate) argv: Option<Vec<String>>,
    pub(crate) warnings: Vec<Rule>,
}

impl Notes {
    /// The rule that decided, where one did.
    #[must_use]
    pub fn rule(&self) -> Option<&Rule> {
        self.rule.as_ref()
    }

    /// The judged parameters that the policy wants recorded; no name twice.
    #[must_use]
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The arguments (without the program's name), redacted, where the policy wants them recorded; at most 256, each cut
    /// to 1 KiB.
    #[must_use]
    pub fn argv(&self) -> Option<&[String]> {
        self.argv.as_deref()
    }

    /// Content filters that matched and only warn.
    #[must_use]
    pub fn warnings(&self) -> &[Rule] {
        &self.warnings
    }

    pub(crate) fn add_param(&mut self, name: &Arc<str>, value: &str) {
        let count: usize = self.params.iter().map(|param| param.values.len()).sum();
        if count >= NOTE_VALUES_MAX {
            return;
        }
        let value = shortened(value, NOTE_BYTES_MAX).into_owned();
        match self.params.iter_mut().find(|param| param.name == *name) {
            Some(param) => param.values.push(value),
            None => self.params.push(Param { name: name.clone(), values: vec![value] }),
        }
    }
}

/// An allowed call: what may be done, and what is recorded about it.
#[derive(Clone, Debug)]
#[must_use]
pub struct Judged<A> {
    /// Exactly what may be carried out.
    pub action: A,
    /// For the audit record, which must be accepted before the action starts.
    pub notes: Notes,
}

/// Why a call was refused.
#[derive(Clone, Debug)]
pub struct Denial {
    /// The kind of refusal.
    pub kind: DenialKind,
    /// One sentence for the caller. It names the tool, the method and the parameter, and no rule, path or address.
    pub said: String,
    /// The rule that refused, for the operator.
    pub rule: Rule,
    /// Why, in the operator's words.
    pub reason: String,
    /// What else the audit record says.
    pub notes: Notes,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenialKind {
    /// A content filter forbids what the call would send out.
    Blocked,
    /// The policy does not allow it.
    Denied,
    /// The call is not well-formed.
    Malformed,
    /// Too many calls.
    RateLimited {
        /// After how many milliseconds one would be let through, rounded up.
        retry_after_ms: u64,
    },
    /// The tool cannot be used because a secret it needs has not been found.
    Unavailable,
    /// There is no such tool, or not for this caller.
    UnknownTool,
}

impl DenialKind {
    /// The JSON-RPC error code.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Denied | Self::UnknownTool => -32001,
            Self::RateLimited { .. } => -32002,
            Self::Blocked => -32003,
            Self::Unavailable => -32004,
            Self::Malformed => -32600,
        }
    }

    /// The `policy_result` of the audit record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Denied | Self::Malformed | Self::Unavailable | Self::UnknownTool => "deny",
            Self::RateLimited { .. } => "rate_limited",
        }
    }
}

impl Denial {
    pub(crate) fn new(
        kind: DenialKind,
        said: impl Into<String>,
        rule: Rule,
        reason: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Self { kind, said: said.into(), rule, reason: reason.into(), notes: Notes::default() })
    }

    pub(crate) fn with_notes(mut self: Box<Self>, notes: Notes) -> Box<Self> {
        self.notes = notes;
        self
    }
}

impl fmt::Display for Denial {
    /// What the caller hears.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

/// Text from a caller, fit to stand in a sentence: short, on one line.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    let short = shortened(text, 64);
    if short.chars().any(|c| c.is_control() || c == '`') {
        return Cow::Owned(short.chars().map(|c| if c.is_control() || c == '`' { '?' } else { c }).collect());
    }
    short
}

/// The text, cut at a character's border and marked where it is longer.
pub(crate) fn shortened(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(bytes_max);
    Cow::Owned(format!("{}...", text.get(..end).unwrap_or_default()))
}

/// Records which rules were tried, when somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Trace(Option<Vec<Step>>);

/// One rule that was tried.
#[derive(Clone, Debug)]
pub struct Step {
    /// The rule.
    pub rule: Rule,
    /// What became of it.
    pub outcome: String,
}

impl Trace {
    pub(crate) fn off() -> Self {
        Self(None)
    }

    #[cfg(feature = "file")]
    pub(crate) fn on() -> Self {
        Self(Some(Vec::new()))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    #[cfg(feature = "file")]
    pub(crate) fn into_steps(self) -> Vec<Step> {
        self.0.unwrap_or_default()
    }

    pub(crate) fn tried(&mut self, rule: &Rule, outcome: impl FnOnce() -> String) {
        if let Some(steps) = &mut self.0 {
            steps.push(Step { rule: rule.clone(), outcome: outcome() });
        }
    }
}
