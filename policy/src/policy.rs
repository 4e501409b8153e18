//! The policy as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::caller::{Caller, Client};
use crate::content::ContentFilter;
use crate::problem::{Position, Problem};
use crate::secret::{Secret, SecretId, SecretPlace, SecretSource, Vault};
use crate::tool::{Kind, Tool};
use crate::verdict::{Denial, DenialKind, Rule, shown};

/// A shorter secret is not looked for in a tool's output: it would be found by chance.
pub(crate) const REDACTABLE_BYTES_MIN: usize = 8;

/// What a warning says of such a secret.
pub(crate) const TOO_SHORT: &str =
    "is shorter than 8 bytes and will not be removed from what the tool prints";

/// A policy: which tools there are, who may use them, and for what. Nothing in it changes after loading but the secrets.
/// Cloning shares everything but those.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) version: String,
    pub(crate) tools: BTreeMap<Arc<str>, Arc<Tool>>,
    pub(crate) clients: Option<Arc<[Client]>>,
    pub(crate) secrets: Arc<[SecretSource]>,
    pub(crate) vault: Vault,
    pub(crate) content: Arc<[ContentFilter]>,
    pub(crate) warnings: Vec<Problem>,
    pub(crate) lints: Vec<Problem>,
}

/// A program that a cli tool runs.
#[derive(Clone, Copy, Debug)]
pub struct Binary<'a> {
    /// The tool.
    pub tool: &'a str,
    /// The program's absolute path.
    pub path: &'a str,
    place: &'a Problem,
}

impl Binary<'_> {
    /// A problem at the place of the policy file that names the program.
    #[must_use]
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        self.place.with_message(message)
    }

    /// The place of the policy file that names the program.
    #[must_use]
    pub fn at(&self) -> Position {
        self.place.at()
    }
}

impl Policy {
    /// A policy that allows nothing: for a server that is to run without a file.
    #[must_use]
    pub fn deny_all() -> Self {
        Self {
            version: "0000000000000000".to_owned(),
            tools: BTreeMap::new(),
            clients: None,
            secrets: Arc::new([]),
            vault: Vault::default(),
            content: Arc::new([]),
            warnings: Vec::new(),
            lints: Vec::new(),
        }
    }

    /// What is dubious but no error, in the order of the file.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// What `policy check` mentions beyond the warnings: it works, and perhaps not as meant. In the order of the file.
    #[must_use]
    pub fn lints(&self) -> &[Problem] {
        &self.lints
    }

    /// Names this policy in records: the first 16 hexadecimal digits of the SHA-256 of the file's bytes.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The tools, by name.
    pub fn tools(&self) -> impl Iterator<Item = &Tool> {
        self.tools.values().map(|tool| &**tool)
    }

    /// The tool of this name.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.get(name).map(|tool| &**tool)
    }

    /// The tools that this caller may use, by name.
    pub fn tools_for(&self, caller: &Caller) -> impl Iterator<Item = &Tool> {
        self.tools().filter(move |tool| self.may_use(caller, tool.name()))
    }

    /// The programs to look at on disk, one for each cli tool.
    pub fn binaries(&self) -> impl Iterator<Item = Binary<'_>> {
        self.tools().filter_map(|tool| {
            let cli = tool.cli()?;
            Some(Binary { tool: tool.name(), path: &cli.binary, place: &tool.place })
        })
    }

    /// The secrets that the loader has to fetch. Literals are not among them.
    #[must_use]
    pub fn secrets(&self) -> &[SecretSource] {
        &self.secrets
    }

    /// Takes a secret that the loader has fetched, also again when it has changed. One line end after what a file, a
    /// credential or a command gave does not belong to it. Until it is provided, each call of its tool is refused.
    ///
    /// # Errors
    /// When the value cannot be used where it is to go: it is empty, or holds a NUL, or (for a header) a control
    /// character. An earlier value then stays in force.
    pub fn provide(&mut self, id: SecretId, value: Secret) -> Result<(), Problem> {
        let Some(source) = self.secrets.iter().find(|source| source.id == id) else { return Ok(()) };
        let bytes = match source.place {
            SecretPlace::Command { .. } | SecretPlace::Credential(_) | SecretPlace::File(_) => {
                without_line_end(value.expose())
            }
            SecretPlace::Env(_) => value.expose(),
        };
        let is_header = self.tools.get(&source.tool).is_some_and(|tool| matches!(tool.kind, Kind::Http(_)));
        if let Err(what) = check_value(bytes, is_header) {
            return Err(source.problem(format!("the secret for `{}` {what}", source.name)));
        }
        self.vault.put(id, &source.prefix, Secret::new(bytes));
        Ok(())
    }

    /// Whether a secret of this length, in bytes, is too short to be looked for in output; worth a warning when it is
    /// provided.
    #[must_use]
    pub fn is_too_short_to_redact(len: usize) -> bool {
        len < REDACTABLE_BYTES_MIN
    }

    /// The tool, if it exists and the caller may use it. Both failures look the same from outside.
    pub(crate) fn tool_for(&self, name: &str, caller: &Caller) -> Result<&Arc<Tool>, Box<Denial>> {
        let refuse = |rule: &str, reason: String| {
            let said = format!("there is no tool `{}` here for this client", shown(name));
            Denial::new(DenialKind::UnknownTool, said, Rule::new(rule, 0), reason)
        };
        let Some(tool) = self.tools.get(name) else {
            return Err(refuse("tools", format!("no tool `{}`", shown(name))));
        };
        if !self.may_use(caller, name) {
            return Err(refuse("clients", format!("{} may not use `{name}`", caller.name())));
        }
        Ok(tool)
    }
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).unwrap_or(bytes)
}

/// Whether a secret can stand where it is to go; the error completes "the secret ...".
pub(crate) fn check_value(bytes: &[u8], is_header: bool) -> Result<(), &'static str> {
    if bytes.is_empty() {
        return Err("is empty");
    }
    if bytes.contains(&0) {
        return Err("holds a NUL");
    }
    if is_header && bytes.iter().any(|b| *b < 0x20 && *b != b'\t' || *b == 0x7f) {
        return Err("holds a control character, which no header may");
    }
    Ok(())
}
