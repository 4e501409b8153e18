//! The operator's tool for Carapace: what the audit log says, and the whole product tried on one machine.
#![forbid(unsafe_code)]

mod audit;
mod failure;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::{Failure, NEGATIVE, USAGE};
use crate::output::{Format, Output};

/// Look into Carapace, and try it.
#[derive(Debug, Parser)]
#[command(name = "carapace-debug", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    /// How to print: for people, or a JSON value a line for programs.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the audit log.
    Audit(audit::Args),
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
    let mut output = Output::new(cli.format);
    let done = match cli.command {
        Command::Audit(args) => audit::run(&args, &mut output),
    };
    match done.and_then(|is_positive| output.flush().map(|()| is_positive).map_err(Failure::from)) {
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
