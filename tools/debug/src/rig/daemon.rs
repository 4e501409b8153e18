//! A daemon: started, ready when it says so, stopped.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::interrupt;

/// Lines of a daemon's log that are kept; older ones are forgotten.
const LOG_LINES_KEPT: usize = 10_000;
/// How long a daemon may take to say that it listens.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long a dropped daemon may take to end by itself.
const STOP_WITHIN: Duration = Duration::from_secs(2);

const ENDED: &str = "ended before it listened:";
const NOT_IN_TIME: &str = "did not listen in time:";

/// A command line: run by [`Daemon::start`], and printed by people who want to run it by hand.
#[derive(Debug, Clone)]
pub struct Launch {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
}

impl Launch {
    /// Runs this program, without arguments.
    #[must_use]
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self { program: program.as_ref().into(), args: Vec::new(), env: Vec::new() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Sets a variable. Of our own environment the variables whose names begin with `CARAPACE_` are not passed on.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// As a command that can be spawned, in a process group of its own: a Ctrl-C is for us to pass on.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARAPACE_"))
        {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.process_group(0);
        command
    }
}

/// As a line for a shell.
impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={} ", quoted(value))?;
        }
        write!(f, "{}", quoted(&self.program))?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", quoted(arg)))
    }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Why a daemon did not become ready.
#[derive(Debug)]
pub enum StartError {
    /// It ended, or did not listen in time; the end of what it said.
    NotReady {
        /// The program's name.
        program: String,
        /// What became of it.
        why: String,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// It could not be run.
    NotRun {
        /// The program's name.
        program: String,
        /// The system's answer.
        error: io::Error,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady { program, why, log } => {
                write!(f, "{program} {why}")?;
                log.iter().try_for_each(|line| write!(f, "\n    {line}"))
            }
            Self::NotRun { program, error } => write!(f, "cannot run {program}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A running daemon. Dropped, it is stopped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Arc<Log>,
    /// Its first TCP listener's address.
    addr: SocketAddr,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: VecDeque<String>,
    listeners: Vec<String>,
    is_closed: bool,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, stderr: ChildStderr) {
        // Not `lines()`: those end at the first byte that is not UTF-8.
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut state = self.state();
            state.listeners.extend(listener(&line).map(str::to_owned));
            if state.lines.len() == LOG_LINES_KEPT {
                state.lines.pop_front();
            }
            state.lines.push_back(line);
            drop(state);
            self.grown.notify_all();
        }
        self.state().is_closed = true;
        self.grown.notify_all();
    }

    fn wait_for_listeners(&self, others: usize) -> Result<SocketAddr, &'static str> {
        let tcp = |state: &LogState| state.listeners.iter().find_map(|listener| listener.parse().ok());
        let is_waiting = |state: &mut LogState| {
            !state.is_closed && (tcp(state).is_none() || state.listeners.len() <= others)
        };
        let waited = self.grown.wait_timeout_while(self.state(), READY_WITHIN, is_waiting);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match tcp(&state) {
            Some(addr) if state.listeners.len() > others => Ok(addr),
            _ if state.is_closed => Err(ENDED),
            _ => Err(NOT_IN_TIME),
        }
    }
}

/// What follows `listening on` in a line of a log.
fn listener(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("listening on ")?;
    rest.split_whitespace().next().map(|word| word.trim_end_matches([',', ';', '.', ')']))
}

impl Daemon {
    /// Starts it, and waits until it listens on one TCP address and on `others` further sockets.
    ///
    /// # Errors
    /// When it cannot be run, ends, or does not listen within ten seconds.
    pub fn start(launch: &Launch, others: usize) -> Result<Self, StartError> {
        Self::start_and(launch, |log| log.wait_for_listeners(others))
    }

    /// Starts a program that does not say when it listens, and waits until it does at `addr`.
    ///
    /// # Errors
    /// When it cannot be run, ends, or does not listen within ten seconds.
    pub fn start_at(launch: &Launch, addr: SocketAddr) -> Result<Self, StartError> {
        Self::start_and(launch, |log| {
            let deadline = Instant::now() + READY_WITHIN;
            while Instant::now() < deadline && !log.state().is_closed {
                if TcpStream::connect(addr).is_ok() {
                    return Ok(addr);
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err(if log.state().is_closed { ENDED } else { NOT_IN_TIME })
        })
    }

    fn start_and(
        launch: &Launch,
        ready: impl FnOnce(&Log) -> Result<SocketAddr, &'static str>,
    ) -> Result<Self, StartError> {
        let program = Path::new(&launch.program).file_name().unwrap_or_default();
        let program = program.to_string_lossy().into_owned();
        let mut command = launch.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let failed = |error| StartError::NotRun { program: program.clone(), error };
        let mut child = interrupt::spawn(&mut command).map_err(failed)?;
        interrupt::add_group(child.id());
        let log = Arc::new(Log::default());
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            thread::spawn(move || log.read(stderr));
        }
        let mut daemon = Self { child, log, addr: SocketAddr::from(([0; 4], 0)) };
        match ready(&daemon.log) {
            Ok(addr) => daemon.addr = addr,
            Err(why) => {
                let lines = daemon.log();
                let log = lines.iter().skip(lines.len().saturating_sub(12)).cloned().collect();
                return Err(StartError::NotReady { program, why: why.to_owned(), log });
            }
        }
        Ok(daemon)
    }

    /// The address of its first TCP listener.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far (the last 10,000 lines).
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.state().lines.iter().cloned().collect()
    }

    /// Waits until it has logged a line with this text in it; whether it has.
    #[must_use]
    pub fn wait_for_log(&self, text: &str, timeout: Duration) -> bool {
        let is_absent = |state: &mut LogState| !state.lines.iter().any(|line| line.contains(text));
        let waited = self.log.grown.wait_timeout_while(self.log.state(), timeout, is_absent);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        signal::kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    /// Waits until it has ended; `None` when it has not within `timeout`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            // The standard library can wait for a child for ever or not at all.
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it: TERM, and KILL when it has not ended within `grace`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // An error here is a daemon that has ended in the meantime.
        let _ = self.signal(Signal::SIGTERM);
        if let Some(status) = self.wait(grace)? {
            return Ok(status);
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.stop(STOP_WITHIN);
        interrupt::remove_group(self.child.id());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Daemon, Launch, StartError};

    fn shell(script: &str) -> Launch {
        Launch::new("/bin/sh").arg("-c").arg(script)
    }

    #[test]
    fn a_daemon_is_ready_when_all_its_sockets_listen() {
        let script = "echo '[info] listening on /tmp/x.sock' >&2; echo 'http: listening on 127.0.0.1:81, tool x' >&2; exec sleep 9";
        let mut daemon = Daemon::start(&shell(script), 1).expect("starts");
        assert_eq!(daemon.addr().port(), 81);
        assert!(daemon.wait_for_log("tool x", Duration::ZERO));
        let status = daemon.stop(Duration::from_secs(5)).expect("stops");
        assert!(!status.success());
    }

    #[test]
    fn a_daemon_that_ends_says_why() {
        let failed = Daemon::start(&shell("echo 'address in use' >&2; exit 69"), 0).expect_err("it ends");
        assert_eq!(failed.to_string(), "sh ended before it listened:\n    address in use");
        let absent = Daemon::start(&Launch::new("/nowhere/x"), 0).expect_err("it is not there");
        assert!(matches!(absent, StartError::NotRun { .. }));
    }

    #[test]
    fn a_launch_prints_as_a_shell_reads_it() {
        let launch = Launch::new("/bin/x").arg("a b").arg("it's").arg("").env("CARAPACE_A", "1 2");
        assert_eq!(launch.to_string(), r"CARAPACE_A='1 2' /bin/x 'a b' 'it'\''s' ''");
    }
}
