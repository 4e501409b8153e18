//! Judging the run of a program.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{injected, redactable, take_rate};
use crate::caller::Caller;
use crate::commands;
use crate::content::Sieve;
use crate::limits::Limits;
use crate::policy::Policy;
use crate::redact::redacted;
use crate::secret::Secret;
use crate::tool::{CliTool, Rlimits, Tool};
use crate::verdict::{Denial, DenialKind, Judged, Notes, Rule, Trace};
use crate::words::Argv;

/// The variable that marks everything below a job. The driver sets it; nobody else may.
const JOB_VARIABLE: &[u8] = b"_CARAPACE_JOB";

/// The most bytes of arguments that content filters look through: more would hold up everybody else.
const CONTENT_ARGV_BYTES_MAX: usize = 64 * 1024;

/// What a caller asks to run.
#[derive(Clone, Copy, Debug)]
pub struct ExecRequest<'a> {
    /// The name of the tool.
    pub tool: &'a str,
    /// The arguments, without the program's own name.
    pub argv: &'a [&'a [u8]],
    /// The caller's environment, or the part of it that it sent.
    pub env: &'a [(&'a [u8], &'a [u8])],
    /// The caller's working directory.
    pub cwd: Option<&'a [u8]>,
    /// Whether the caller asks for a terminal.
    pub tty: bool,
}

/// Exactly what may be run. Only the policy makes one.
#[derive(Clone)]
pub struct Exec {
    tool: Arc<Tool>,
    argv: Vec<Vec<u8>>,
    env: Vec<(Vec<u8>, Vec<u8>)>,
    cwd: Option<Vec<u8>>,
    tty: bool,
    secrets: Vec<Secret>,
    sieve: Option<Sieve>,
}

/// Where the program starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CwdRule<'a> {
    /// In the caller's directory, if, after symbolic links have been resolved, it is one of `roots` or below one; it is
    /// then to be entered by the descriptor that was checked. Otherwise the run is denied.
    Caller {
        /// The caller's directory: absolute, without NUL, not yet resolved.
        dir: &'a [u8],
        /// Absolute paths.
        roots: &'a [String],
    },
    /// In this directory of the policy's.
    Fixed(&'a str),
}

impl Exec {
    /// The tool's name.
    #[must_use]
    pub fn tool(&self) -> &str {
        self.tool.name()
    }

    /// The absolute path of the program, to be executed as it stands.
    #[must_use]
    pub fn binary(&self) -> &str {
        self.cli().map_or("", CliTool::binary)
    }

    /// All arguments. The first is the name of the tool: what the caller typed, and what a program says of itself.
    #[must_use]
    pub fn argv(&self) -> &[Vec<u8>] {
        &self.argv
    }

    /// What the environment holds beyond the driver's base. The base is a fixed PATH and the account's HOME, USER and
    /// LOGNAME; these values win over it, and `_CARAPACE_JOB`, which the driver sets, is never among them. What the
    /// caller may set comes first and what the policy injects last, each name once.
    pub fn env(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.env.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// Where it starts.
    #[must_use]
    pub fn cwd(&self) -> CwdRule<'_> {
        let cli = self.cli();
        match (&self.cwd, cli.and_then(|cli| cli.cwd_allowed.as_deref())) {
            (Some(dir), Some(roots)) => CwdRule::Caller { dir, roots },
            (_, _) => CwdRule::Fixed(cli.map_or("/", |cli| &cli.cwd)),
        }
    }

    /// Whether it reads the caller's standard input; otherwise it sees end of file at once.
    #[must_use]
    pub fn stdin(&self) -> bool {
        self.cli().is_some_and(|cli| cli.stdin)
    }

    /// Whether it gets a terminal.
    #[must_use]
    pub fn tty(&self) -> bool {
        self.tty
    }

    /// How long it may run.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.tool.timeout
    }

    /// How long after TERM it gets KILL.
    #[must_use]
    pub fn kill_grace(&self) -> Duration {
        self.cli().map_or(Duration::ZERO, |cli| cli.kill_grace)
    }

    /// How many bytes it may print, both streams together.
    #[must_use]
    pub fn max_output_bytes(&self) -> u64 {
        self.cli().map_or(0, |cli| cli.max_output_bytes)
    }

    /// Its resource limits.
    #[must_use]
    pub fn limits(&self) -> Rlimits {
        self.cli().map_or(Rlimits::default(), |cli| cli.limits)
    }

    /// The account it runs as, where that is not the server's own.
    #[must_use]
    pub fn run_as(&self) -> Option<&str> {
        self.cli().and_then(|cli| cli.run_as.as_deref())
    }

    /// How many runs of the tool there may be at once.
    #[must_use]
    pub fn max_concurrent(&self) -> usize {
        self.tool.max_concurrent
    }

    /// Values to remove from its output, longest first.
    #[must_use]
    pub fn secrets_to_redact(&self) -> &[Secret] {
        &self.secrets
    }

    /// What must see every byte of standard input before the program does, where content filters want to. When it says
    /// no the job is to be ended; its effect may have begun.
    #[must_use]
    pub fn stdin_sieve(&self) -> Option<Sieve> {
        self.sieve.clone()
    }

    #[cfg(feature = "file")]
    pub(crate) fn redactions(&self) -> &[crate::redact::ArgRedaction] {
        &self.tool.audit.redact
    }

    fn cli(&self) -> Option<&CliTool> {
        self.tool.cli()
    }
}

impl fmt::Debug for Exec {
    /// No argument, and nothing of the environment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exec({} as {})", self.binary(), self.tool())
    }
}

impl Policy {
    /// Decides whether a program may run, and as exactly what. `now_us` is any clock that does not go backwards, in
    /// microseconds, the same for all calls with these `limits`.
    ///
    /// # Errors
    /// The refusal.
    pub fn judge_exec(
        &self,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        request: &ExecRequest<'_>,
    ) -> Result<Judged<Exec>, Box<Denial>> {
        self.judge_exec_traced(caller, limits, now_us, request, &mut Trace::off())
    }

    pub(crate) fn judge_exec_traced(
        &self,
        caller: &Caller,
        limits: &mut Limits,
        now_us: u64,
        request: &ExecRequest<'_>,
        trace: &mut Trace,
    ) -> Result<Judged<Exec>, Box<Denial>> {
        let tool = self.tool_for(request.tool, caller)?;
        let mut notes = Notes::default();
        if tool.audit.log_argv {
            notes.argv = Some(redacted(request.argv, &tool.audit.redact));
        }
        let mut judge = |notes: &mut Notes| -> Result<(Rule, Exec), Box<Denial>> {
            let Some(cli) = tool.cli() else {
                let rule = Rule::new(format!("{}: type", tool.name), tool.place.at().line);
                return Err(denied(format!("{} is not a program", tool.name), rule, "it is an http tool"));
            };
            let rule = judge_argv(tool, cli, request.argv, trace)?;
            notes.warnings = self.judge_content(tool, request.argv)?;
            let exec = self.exec(tool, cli, request)?;
            take_rate(tool, caller, limits, now_us)?;
            Ok((rule, exec))
        };
        match judge(&mut notes) {
            Ok((rule, action)) => {
                notes.rule = Some(rule);
                Ok(Judged { action, notes })
            }
            Err(denial) => {
                notes.rule = Some(denial.rule.clone());
                Err(denial.with_notes(notes))
            }
        }
    }

    /// Looks at the arguments as one text, so that a match may span them.
    fn judge_content(&self, tool: &Tool, argv: &[&[u8]]) -> Result<Vec<Rule>, Box<Denial>> {
        if self.content.is_empty() {
            return Ok(Vec::new());
        }
        let bytes: usize = argv.iter().map(|arg| arg.len() + 1).sum();
        if bytes > CONTENT_ARGV_BYTES_MAX {
            let said = format!("{}: there are too many arguments to look through", tool.name);
            let rule = Rule::new("content_filters", 0);
            return Err(Denial::new(DenialKind::Blocked, said, rule, "more than 64 KiB of arguments"));
        }
        let mut sieve = Sieve::new(&self.content);
        sieve.push(&argv.join(&b' ')).map_err(|found| found.denial(tool.name()))?;
        Ok(sieve.take_warnings())
    }

    fn exec(&self, tool: &Arc<Tool>, cli: &CliTool, request: &ExecRequest<'_>) -> Result<Exec, Box<Denial>> {
        if request.tty && !cli.tty {
            let rule = Rule::new(format!("{}: tty", tool.name), tool.place.at().line);
            return Err(denied(format!("{} may not use a terminal", tool.name), rule, "tty is false"));
        }
        let cwd = match (&cli.cwd_allowed, request.cwd) {
            (Some(_), Some(dir)) if dir.first() != Some(&b'/') || dir.contains(&0) => {
                let rule = Rule::new(format!("{}: cwd_allowed", tool.name), tool.place.at().line);
                let said = format!("{} may not run in this directory", tool.name);
                return Err(denied(said, rule, "the directory is not an absolute path"));
            }
            (Some(_), Some(dir)) => Some(dir.to_vec()),
            (_, _) => None,
        };
        let env_inject = injected(tool, &self.vault, &cli.env_inject)?;
        let mut argv = vec![tool.name().as_bytes().to_vec()];
        argv.extend(request.argv.iter().map(|arg| arg.to_vec()));
        Ok(Exec {
            argv,
            env: environment(cli, request.env, &env_inject),
            cwd,
            tty: request.tty,
            secrets: redactable(tool, &self.vault, &cli.env_inject),
            sieve: (cli.stdin && !self.content.is_empty()).then(|| Sieve::new(&self.content)),
            tool: tool.clone(),
        })
    }
}

fn denied(said: String, rule: Rule, reason: impl Into<String>) -> Box<Denial> {
    Denial::new(DenialKind::Denied, said, rule, reason)
}

fn judge_argv(tool: &Tool, cli: &CliTool, argv: &[&[u8]], trace: &mut Trace) -> Result<Rule, Box<Denial>> {
    if argv.iter().any(|arg| arg.contains(&0)) {
        let said = format!("{}: an argument holds a NUL", tool.name);
        return Err(Denial::new(DenialKind::Malformed, said, Rule::new("argv", 0), "NUL in an argument"));
    }
    let said = || format!("{}: these arguments are not allowed", tool.name);
    let words = Argv::new(argv);
    for pattern in &cli.deny {
        let is_hit = pattern.glob.matches(&words);
        trace.tried(&pattern.rule, || if is_hit { "denies" } else { "does not match" }.to_owned());
        if is_hit {
            return Err(denied(said(), pattern.rule.clone(), "a deny pattern matches"));
        }
    }
    for pattern in &cli.allow {
        let is_hit = pattern.glob.matches(&words);
        trace.tried(&pattern.rule, || if is_hit { "allows" } else { "does not match" }.to_owned());
        if is_hit {
            return Ok(pattern.rule.clone());
        }
    }
    if let Some(command) = commands::find(&cli.commands, argv) {
        let result = command.judge(argv);
        trace.tried(&command.rule, || result.as_ref().err().map_or("allows", String::as_str).to_owned());
        return match result {
            Ok(()) => Ok(command.rule.clone()),
            Err(what) => Err(denied(format!("{}: {what}", tool.name), command.rule.clone(), what)),
        };
    }
    let rule = Rule::new(format!("{}: no rule for these arguments", tool.name), tool.place.at().line);
    Err(denied(said(), rule, "no allow pattern matches, and no command"))
}

/// What the caller may set and then what the policy injects, each name once. Of a name sent twice the first counts, as
/// in `getenv`.
fn environment(
    cli: &CliTool,
    sent: &[(&[u8], &[u8])],
    inject: &[(Arc<str>, Secret)],
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for &(name, value) in sent {
        let is_new = !env.iter().any(|(known, _)| known == name);
        let is_injected = inject.iter().any(|(known, _)| known.as_bytes() == name);
        if is_new && !is_injected && is_variable(name, value) && may_set(cli, name) {
            env.push((name.to_vec(), value.to_vec()));
        }
    }
    env.extend(inject.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.expose().to_vec())));
    env
}

fn is_variable(name: &[u8], value: &[u8]) -> bool {
    !name.is_empty()
        && !name.contains(&b'=')
        && !name.contains(&0)
        && !value.contains(&0)
        && name != JOB_VARIABLE
}

/// A wildcard never reaches the dynamic linker's variables: they load code. Only their own names do.
fn may_set(cli: &CliTool, name: &[u8]) -> bool {
    let is_linkers = name.starts_with(b"LD_");
    cli.env_allow.iter().any(|glob| match glob.as_literal() {
        Some(literal) => literal == name,
        None => !is_linkers && glob.matches(name),
    })
}
