//! Measures Carapace as a whole, side by side with two nginx proxies in a row (and tools with the same tools run
//! natively), on this machine and its loopback.
#![forbid(unsafe_code)]

mod bench;
mod calls;
mod chunks;
mod events;
mod idle;
mod load;
mod nginx;
mod process;
mod report;
mod stats;
mod streams;
mod tools;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use carapace_debug::rig::{Binaries, interruptible};
use clap::{Parser, Subcommand};

use crate::bench::Bench;
use crate::report::{Group, tell};

/// Measure Carapace, side by side with nginx, on this machine.
#[derive(Debug, Clone, Parser)]
#[command(name = "carapace-bench", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Print a JSON object for each figure.
    #[arg(long, global = true)]
    json: bool,
    /// How long each figure is measured in each round.
    #[arg(long, global = true, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds; the median counts.
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..100))]
    rounds: u16,
    /// Count system calls, too, with strace.
    #[arg(long, global = true)]
    syscalls: bool,
    /// Measure only what we are compared with.
    #[arg(long, global = true)]
    without_carapace: bool,
    /// Measure only Carapace.
    #[arg(long, global = true)]
    without_nginx: bool,
    /// A shim in place of the one beside this program: the static one, for instance.
    #[arg(long, global = true, value_name = "FILE")]
    shim: Option<PathBuf>,
}

/// Without one of these, everything is measured.
#[derive(Debug, Clone, Subcommand)]
enum What {
    /// One event to many streams: CPU for each.
    Broadcast {
        /// Open streams.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
        streams: u16,
    },
    /// JSON-RPC calls: how many a second, and CPU for each.
    Calls {
        /// Connections; several are measured one after the other.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64], value_parser = clap::value_parser!(u16).range(1..=10_000))]
        connections: Vec<u16>,
    },
    /// Events on one stream, as fast as it goes.
    Flood,
    /// How late events are.
    Latency {
        /// Open streams; several are measured one after the other.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1_000], value_parser = clap::value_parser!(u16).range(1..=20_000))]
        streams: Vec<u16>,
    },
    /// Memory and threads, idle and with idle event streams.
    Memory {
        /// Open streams.
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
        streams: u16,
    },
    /// Bytes a second out of a tool and through one.
    Output,
    /// The sizes of the programs.
    Sizes,
    /// `true` through the shim against exec; a slow tool's first byte; the shim's memory and system calls.
    Tools {
        /// How often.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..10_000))]
        runs: u16,
    },
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=60.0).contains(&seconds) { Ok(seconds) } else { Err("from 0.1 to 60".to_owned()) }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match interruptible(move || run(&cli)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) | Err(error) => {
            tell(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> io::Result<()> {
    process::raise_descriptor_limit()?;
    let binaries = if cli.without_carapace { None } else { Some(find_binaries(cli)?) };
    let bench = Bench {
        binaries,
        has_nginx: !cli.without_nginx && is_there("nginx", "there is nothing to compare with"),
        has_strace: cli.syscalls && is_there("strace", "system calls are not counted"),
        time: Duration::from_secs_f64(cli.seconds),
        rounds: usize::from(cli.rounds),
    };
    report::print_machine(cli.json)?;
    if cfg!(debug_assertions) {
        tell("this is a debug build: its figures mean little");
    }
    if let Some(what) = &cli.what {
        return print(&measure(&bench, what)?, cli.json);
    }
    let all = [
        What::Calls { connections: vec![1, 16, 64] },
        What::Latency { streams: vec![1, 100, 1_000] },
        What::Flood,
        What::Broadcast { streams: 1_000 },
        What::Tools { runs: 200 },
        What::Output,
        What::Memory { streams: 1_000 },
        What::Sizes,
    ];
    let mut last = Ok(());
    for what in &all {
        // What can be measured is, even where something else cannot.
        if let Err(error) = measure(&bench, what).and_then(|groups| print(&groups, cli.json)) {
            tell(&format!("not measured: {error}"));
            last = Err(error);
        }
    }
    last.map_err(|_| io::Error::other("not everything could be measured"))
}

fn find_binaries(cli: &Cli) -> io::Result<Binaries> {
    let binaries = Binaries::find(tell).map_err(io::Error::other)?;
    match &cli.shim {
        // A symlink to it is made elsewhere: its path must hold there, too.
        Some(shim) => Ok(binaries.with_shim(shim.canonicalize()?)),
        None => Ok(binaries),
    }
}

fn is_there(program: &str, otherwise: &str) -> bool {
    let is_installed = process::is_installed(program);
    if !is_installed {
        tell(&format!("{program} is not installed: {otherwise}"));
    }
    is_installed
}

fn measure(bench: &Bench, what: &What) -> io::Result<Vec<Group>> {
    let sizes = |counts: &[u16]| counts.iter().map(|count| usize::from(*count)).collect::<Vec<_>>();
    match what {
        What::Broadcast { streams } => streams::broadcast(bench, usize::from(*streams)),
        What::Calls { connections } => calls::run(bench, &sizes(connections)),
        What::Flood => streams::flood(bench),
        What::Latency { streams } => streams::latency(bench, &sizes(streams)),
        What::Memory { streams } => idle::memory(bench, usize::from(*streams)),
        What::Output => tools::output(bench),
        What::Sizes => bench.binaries.as_ref().map_or_else(|| Ok(Vec::new()), idle::sizes),
        What::Tools { runs } => tools::start(bench, usize::from(*runs)),
    }
}

fn print(groups: &[Group], is_json: bool) -> io::Result<()> {
    groups.iter().try_for_each(|group| report::print(group, is_json))
}
