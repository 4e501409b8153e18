//! How the process ends: the way the tool did, or with a word about why there was none.

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

/// The status for failures of Carapace's own that have none of their own.
const FAILED: u8 = 125;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The tool exited.
    Exit(u8),
    /// The tool never ran to its end, by Carapace's doing.
    Failed { code: u8, text: String },
    /// The shim was asked about itself.
    Said(String),
    /// The tool was killed by this signal.
    Signal(u8),
}

impl End {
    pub(crate) const fn failed(text: String) -> Self {
        Self::Failed { code: FAILED, text }
    }

    pub(crate) fn errno(errno: Errno) -> Self {
        Self::failed(format!("a system call failed: {errno}"))
    }

    /// Ends the process.
    pub(crate) fn carry_out(self) -> ! {
        let code = match self {
            Self::Exit(code) => code,
            Self::Failed { code, text } => {
                // Nobody is left to be told when this fails.
                let _ = io::stderr().write_all(&line(&text));
                code
            }
            Self::Said(text) => match io::stdout().write_all(text.as_bytes()) {
                Ok(()) => 0,
                Err(_) => FAILED,
            },
            Self::Signal(number) => {
                die(number);
                // The signal does not kill: a shell shows one that does like this.
                number.saturating_add(128)
            }
        };
        exit(code.into())
    }
}

/// One line in which no byte can play tricks on a terminal.
fn line(text: &str) -> Vec<u8> {
    let text: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("carapace: {text}\n").into_bytes()
}

/// Dies by a signal, if it is one that kills.
fn die(number: u8) {
    let Ok(signal) = Signal::try_from(i32::from(number)) else { return };
    // It is the tool that dumped core, if anybody did.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if signal == Signal::SIGPIPE {
        // The runtime ignores it, and undoes that before it would become another program. There is none.
        let _ = Command::new("/dev/null/none").exec();
    }
    let mut set = SigSet::empty();
    set.add(signal);
    let _ = set.thread_unblock();
    // Twice: the runtime's handler for stack overflows takes the first SIGSEGV or SIGBUS and then steps aside.
    for _ in 0..2 {
        let _ = raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_harmless_line() {
        assert_eq!(line("a\nb\x1b[31m"), b"carapace: a?b?[31m\n");
    }
}
