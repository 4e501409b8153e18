//! What both daemons do before and after their loop.

use crate::config::{Common, Environment, process_environment};
use crate::exit::{Exit, Fatal};
use crate::turn::{End, Loop};
use crate::{child, log as logging};
use carapace_proto::machine::Machine;
use std::env::{self, ArgsOs};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

/// Runs a daemon to its end, and says on stderr why it could not go on.
pub(crate) fn main(name: &str, run: impl FnOnce(ArgsOs, Environment<'_>) -> Result<(), Fatal>) -> ExitCode {
    let exit = match run(env::args_os(), &process_environment) {
        Ok(()) => Exit::Ok,
        Err(Fatal { exit, message }) => {
            let clean: Vec<_> = message.lines().map(logging::scrubbed).collect();
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "{name}: {}", clean.join("\n"));
            exit
        }
    };
    exit.into()
}

/// Begins to log, and makes of this process what a daemon should be, whatever its parent was.
pub(crate) fn prepare(common: &Common) {
    logging::init(common.log_level.value, common.log_format());
    child::disinherit();
}

/// Unpredictable bytes.
pub(crate) fn seed() -> Result<[u8; 32], Fatal> {
    let mut seed = [0; 32];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed));
    read.map_err(failed("/dev/urandom"))?;
    Ok(seed)
}

/// Runs the loop.
pub(crate) fn run<M: Machine>(driver: Loop<M>) -> Result<(), Fatal> {
    match driver.run().map_err(failed("event loop"))? {
        End::Drained => log::info!("drained; ending"),
        End::DrainTimedOut => log::warn!("ending, though not everything was finished"),
        End::Forced => log::warn!("ending at once"),
    }
    Ok(())
}

/// An error of the system where none is to be expected.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Fatal {
    move |error| Fatal::new(Exit::Internal, format!("{what}: {error}"))
}
