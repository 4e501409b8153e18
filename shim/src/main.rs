//! Runs a tool on the Carapace host as if it were local.
//!
//! | file | what |
//! |---|---|
//! | `invocation` | what was asked for: the tool, its arguments, or a word about the shim itself |
//! | `dial` | which agent to ask, and whether it is one to be trusted |
//! | `run` | the conversation with the agent: frames, credit, how it ended. No system call |
//! | `pump` | moves bytes between the agent and the three standard streams; passes signals on |
//! | `outlet` | writing to a standard stream that may not be made non-blocking, without being blocked by it |
//! | `end` | ends the process the way the tool ended |
#![forbid(unsafe_code)]

mod dial;
mod end;
mod invocation;
mod outlet;
mod pump;
mod run;

use self::end::End;
use self::invocation::Invocation;
use self::run::Run;
use nix::sys::signalfd::SignalFd;
use std::env;
use std::os::unix::net::UnixStream;

fn main() {
    match prepare() {
        // Neither is closed by hand: the end of the process does it.
        Ok((agent, signals, run)) => pump::pump(&agent, &signals, run).carry_out(),
        Err(end) => end.carry_out(),
    }
}

fn prepare() -> Result<(UnixStream, SignalFd, Run), End> {
    let invocation = Invocation::read(env::args_os(), |name| env::var_os(name).is_some())?;
    let agent = dial::agent(|name| env::var_os(name)).map_err(End::failed)?;
    let directory = env::current_dir().unwrap_or_default();
    let run = Run::new(&invocation, env::vars_os(), &directory);
    let signals = pump::catch_signals().map_err(End::errno)?;
    Ok((agent, signals, run))
}
