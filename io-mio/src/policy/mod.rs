//! The policy file: read, checked against the disk, and given its secrets. What it means is the policy crate's.

mod fetch;

use crate::exit::{Exit, Fatal};
use carapace_policy::{Binary, Policy, Problem, Scheme, Secret, SecretSource, ToolKind};
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// 4 MiB: a policy of ten thousand rules is a tenth of it.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Where the policy stands.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    path: PathBuf,
}

/// Reads the policy anew whenever it is asked to. Behind a pointer, so that only the daemon that has a policy holds the
/// code that reads one.
#[derive(Clone)]
pub struct PolicyReader(Arc<dyn Fn() -> Result<Policy, LoadError> + Send + Sync>);

impl PolicyReader {
    /// A reader of this file.
    pub fn new(file: PolicyFile) -> Self {
        Self(Arc::new(move || file.load()))
    }

    /// Reads it; see [`PolicyFile::load`].
    pub fn read(&self) -> Result<Policy, LoadError> {
        (self.0)()
    }
}

impl fmt::Debug for PolicyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PolicyReader")
    }
}

/// Why there is no policy: lines for the operator, each `file:line:column: what` where a line is to blame.
#[derive(Debug)]
pub struct LoadError(String);

impl LoadError {
    fn new(lines: impl fmt::Display) -> Self {
        Self(lines.to_string())
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}

impl From<LoadError> for Fatal {
    fn from(error: LoadError) -> Self {
        Self::new(Exit::Config, error.0)
    }
}

impl PolicyFile {
    /// The policy file at `path`; not looked at yet.
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads it. Programs that give secrets are run, so this may take a while. What is dubious is logged.
    pub fn load(&self) -> Result<Policy, LoadError> {
        let text =
            self.read().map_err(|what| LoadError::new(format_args!("{}: {what}", self.path.display())))?;
        let mut policy = Policy::parse(&self.path.display().to_string(), &text).map_err(LoadError::new)?;
        for warning in policy.warnings() {
            log::warn!("policy: {warning}");
        }
        look_at_binaries(&policy)?;
        refuse_https(&policy)
            .map_err(|what| LoadError::new(format_args!("{}: {what}", self.path.display())))?;
        for source in policy.secrets().to_vec() {
            if let Err(problem) = provide(&mut policy, &source) {
                log::warn!("policy: {problem}");
            }
        }
        Ok(policy)
    }

    fn read(&self) -> Result<String, String> {
        let (file, meta) = open_plain(&self.path).map_err(|error| error.to_string())?;
        if let Some(whom) = others_who_write(&meta) {
            return Err(format!("{whom} may write it, and could allow anything"));
        }
        if meta.len() > FILE_BYTES_MAX {
            return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
        }
        let mut text = String::new();
        match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("it is not UTF-8".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Opens a file for reading, if it is one and not a pipe or a device that would make us wait.
fn open_plain(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() { Ok((file, meta)) } else { Err(io::Error::other("it is not a plain file")) }
}

/// Who else than root and this account may write a file.
fn others_who_write(meta: &Metadata) -> Option<String> {
    const GROUP: u32 = 0o020;
    const WORLD: u32 = 0o002;
    let mode = meta.permissions().mode();
    let own = nix::unistd::geteuid().as_raw();
    if mode & WORLD != 0 {
        Some("everybody".into())
    } else if mode & GROUP != 0 && meta.gid() != 0 {
        Some(format!("group {}", meta.gid()))
    } else if meta.uid() != 0 && meta.uid() != own {
        Some(format!("uid {}", meta.uid()))
    } else {
        None
    }
}

/// A program that is missing may come later; one that others may write is as good as a shell for them.
fn look_at_binaries(policy: &Policy) -> Result<(), LoadError> {
    let mut problems = Vec::new();
    for binary in policy.binaries() {
        match look_at(&binary) {
            Ok(()) => {}
            Err(Finding::Error(problem)) => problems.push(problem.to_string()),
            Err(Finding::Warning(problem)) => log::warn!("policy: {problem}"),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(LoadError(problems.join("\n"))) }
}

/// There is no TLS to upstreams yet; a policy that relies on it is better refused than carried out in the clear.
fn refuse_https(policy: &Policy) -> Result<(), String> {
    for tool in policy.tools() {
        if let ToolKind::Http(http) = tool.kind()
            && http.upstream().scheme == Scheme::Https
        {
            return Err(format!("tool `{}`: https upstreams are not supported yet", tool.name()));
        }
    }
    Ok(())
}

enum Finding {
    Error(Problem),
    Warning(Problem),
}

fn look_at(binary: &Binary<'_>) -> Result<(), Finding> {
    const EXECUTE: u32 = 0o111;
    let Binary { tool, path, .. } = *binary;
    let warn = |what: String| Err(Finding::Warning(binary.problem(format!("tool `{tool}`: {path} {what}"))));
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return warn(format!("cannot be looked at: {error}")),
    };
    if let Some(whom) = others_who_write(&meta) {
        let message = format!("tool `{tool}`: {whom} may write {path}, and could make it do anything");
        return Err(Finding::Error(binary.problem(message)));
    }
    if !meta.is_file() || meta.permissions().mode() & EXECUTE == 0 {
        return warn("is not a program".into());
    }
    Ok(())
}

fn provide(policy: &mut Policy, source: &SecretSource) -> Result<(), Problem> {
    let (tool, name) = (source.tool(), source.name());
    let refused =
        |what| source.problem(format!("tool `{tool}` cannot be used: the secret for {name}: {what}"));
    let bytes = fetch::fetch(source.place()).map_err(refused)?;
    if Policy::is_too_short_to_redact(bytes.len()) {
        let what =
            format!("the secret for {name} is too short to be looked for in what tool `{tool}` prints");
        log::warn!("policy: {}", source.problem(what));
    }
    policy.provide(source.id(), Secret::new(&bytes))
}

#[cfg(test)]
mod tests;
