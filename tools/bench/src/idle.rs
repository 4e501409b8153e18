//! What the daemons weigh when nothing happens, and on disk.

use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use carapace_debug::rig::{Binaries, Folder, Pair};

use crate::bench::{Bench, start_pair};
use crate::events::{Clients, Clock, Look, Source};
use crate::process::{status, wait_until};
use crate::report::{Goal, Group, Row, tell};
use crate::stats::{figure, size};

/// Long enough for what the start has left over to be given back.
const SETTLE: Duration = Duration::from_millis(500);

/// Measures memory and threads, idle and with so many idle event streams.
pub(crate) fn memory(bench: &Bench, streams: usize) -> io::Result<Vec<Group>> {
    let Some(binaries) = &bench.binaries else { return Ok(Vec::new()) };
    tell(&format!("memory, idle and with {streams} idle event streams"));
    let clock = Clock::new();
    let source = Source::start(clock)?;
    let folder = Folder::create("carapace-bench")?;
    let pair = start_pair(binaries, &folder, source.addr())?;
    thread::sleep(SETTLE);
    let idle = resident(&pair)?;
    let mut rows = vec![
        ours("server, RSS, MiB", idle[0] / 1024.0, Goal::AtMost(3.0)),
        ours("agent, RSS, MiB", idle[1] / 1024.0, Goal::AtMost(2.5)),
        ours("server, threads", status(pair.server().pid(), "Threads")?, Goal::AtMost(1.0)),
        ours("agent, threads", status(pair.agent().pid(), "Threads")?, Goal::AtMost(1.0)),
    ];
    let clients = Clients::open(pair.agent().addr(), streams, Look::Count, clock)?;
    if !wait_until(Duration::from_secs(30), || source.streams() == streams) {
        return Err(io::Error::other("not every stream has reached the upstream"));
    }
    thread::sleep(SETTLE);
    let busy = resident(&pair)?;
    drop(clients);
    let grown = |index: usize| {
        (busy.get(index).copied().unwrap_or(0.0) - idle.get(index).copied().unwrap_or(0.0)) / size(streams)
    };
    rows.extend([
        ours("server and agent, per idle stream, KiB", grown(0) + grown(1), Goal::AtMost(4.0)),
        ours("of it the server, KiB", grown(0), Goal::Known),
        ours(&format!("both with {streams} streams, RSS, MiB"), (busy[0] + busy[1]) / 1024.0, Goal::Known),
    ]);
    Ok(vec![Group { title: "Memory".to_owned(), against: "", rows }])
}

/// The sizes of the programs.
pub(crate) fn sizes(binaries: &Binaries) -> io::Result<Vec<Group>> {
    let goals = [("carapace-shim", 1.2), ("carapace-agent", 1.8), ("carapace-server", 2.8)];
    let row = |(name, most): (&str, f64)| {
        let bytes = fs::metadata(binaries.path(name))?.len();
        Ok(ours(&format!("{name}, MiB"), figure(bytes) / 1_048_576.0, Goal::AtMost(most)))
    };
    let rows = goals.into_iter().map(row).collect::<io::Result<_>>()?;
    Ok(vec![Group { title: "Programs, as built".to_owned(), against: "", rows }])
}

fn resident(pair: &Pair) -> io::Result<[f64; 2]> {
    Ok([status(pair.server().pid(), "VmRSS")?, status(pair.agent().pid(), "VmRSS")?])
}

fn ours(what: &str, value: f64, goal: Goal) -> Row {
    Row { what: what.to_owned(), ours: Some(value), theirs: None, direct: None, goal }
}
