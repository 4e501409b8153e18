//! The operator's tool for Carapace: what the audit log says, and the whole product tried on one machine.
#![forbid(unsafe_code)]

mod audit;
mod demo;
mod failure;
mod health;
mod output;
mod policy;

use std::process::ExitCode;

use carapace_debug::rig::interruptible;
use clap::{Parser, Subcommand};

use crate::failure::{Failure, NEGATIVE, USAGE};
use crate::output::{Format, Output};

/// Look into Carapace, and try it.
#[derive(Debug, Parser)]
#[command(name = "carapace-debug", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    /// How to print: for people, or as JSON, a value a line.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the audit log.
    Audit(audit::Args),
    /// Try everything on this machine: an upstream, a server, an agent and a shim, in a folder of their own.
    Demo(demo::Args),
    /// Ask a server how it is.
    Health(health::Args),
    /// Say what a policy decides about a request, and why.
    Policy(policy::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // When even this cannot be printed, the exit code is all that is left to say.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let format = cli.format;
    let done = match cli.command {
        Command::Audit(args) => with_output(format, |output| audit::run(&args, output)),
        // What it has started must be stopped, whatever ends it.
        Command::Demo(args) => interruptible(move || with_output(format, |output| demo::run(&args, output)))
            .unwrap_or_else(|error| Err(error.into())),
        Command::Health(args) => with_output(format, |output| health::run(&args, output)),
        Command::Policy(args) => with_output(format, |output| policy::run(&args, output)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NEGATIVE),
        // `carapace-debug audit | head`: whoever reads has seen enough.
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure);
            ExitCode::from(failure.code())
        }
    }
}

fn with_output(
    format: Format,
    command: impl FnOnce(&mut Output) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    let mut output = Output::new(format);
    let is_positive = command(&mut output)?;
    output.flush()?;
    Ok(is_positive)
}
