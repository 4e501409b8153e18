//! JSON-RPC calls: how many a second, and what one costs.

use std::io;
use std::time::Duration;

use carapace_debug::rig::Folder;

use crate::bench::{Bench, Rivals, Target, cpu_us_each};
use crate::events::{Clock, Source};
use crate::load::{self, Until};
use crate::nginx::{Nginx, Role};
use crate::process::system_calls_of;
use crate::report::{Goal, Group, Row, tell};
use crate::stats::{figure, median, percentile, us};

/// Calls made while system calls are counted: strace makes each slow.
const TRACED_CALLS: u64 = 5_000;

/// What is measured of one of the rivals.
#[derive(Debug, Default)]
struct Figures {
    calls_per_second: Vec<f64>,
    cpu_us: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

/// Measures calls over so many connections.
pub(crate) fn run(bench: &Bench, connections: &[usize]) -> io::Result<Vec<Group>> {
    let folder = Folder::create("carapace-bench")?;
    // nginx as the upstream where it is installed: it takes less CPU away from what is measured.
    let nginx =
        bench.has_nginx.then(|| Nginx::start(folder.path(), "upstream", Role::Upstream)).transpose()?;
    let source = Source::start(Clock::new())?;
    let upstream = nginx.as_ref().map_or(source.addr(), Nginx::addr);
    let rivals = Rivals::start(bench, folder, upstream)?;
    connections.iter().map(|connections| group(bench, &rivals, *connections)).collect()
}

fn group(bench: &Bench, rivals: &Rivals, connections: usize) -> io::Result<Group> {
    tell(&format!("calls over {connections} connections"));
    let targets = [rivals.ours.as_ref(), rivals.theirs.as_ref(), Some(&rivals.direct)];
    let mut figures = [Figures::default(), Figures::default(), Figures::default()];
    for target in targets.into_iter().flatten() {
        load::run(target.addr, connections, Until::Elapsed(bench.time.min(Duration::from_millis(300))))?;
    }
    // One after the other in each round: what else the machine does then hits all of them.
    for _ in 0..bench.rounds {
        for (target, figures) in targets.iter().zip(&mut figures) {
            if let Some(target) = target {
                measure(target, connections, bench.time, figures)?;
            }
        }
    }
    let traced: Vec<Option<f64>> = targets
        .iter()
        .map(|target| target.filter(|target| bench.has_strace && !target.pids.is_empty()))
        .map(|target| target.map(|target| traced(target, connections, rivals.folder.path())).transpose())
        .collect::<io::Result<_>>()?;
    let row = |what: &str, of: fn(&Figures) -> &Vec<f64>, goal| {
        let [ours, theirs, direct] = figures.each_ref().map(|figures| median(of(figures).iter().copied()));
        Row { what: what.to_owned(), ours, theirs, direct, goal }
    };
    let rate_goal = match connections {
        1 => Goal::RatioAtLeast(1.0),
        2..=16 => Goal::RatioAtLeast(1.2),
        _ => Goal::RatioAtLeast(1.5),
    };
    let is_crowded = connections == 64;
    let mut rows = vec![
        row("calls/s", |figures| &figures.calls_per_second, rate_goal),
        row("CPU per call, us", |f| &f.cpu_us, if is_crowded { Goal::RatioAtMost(0.6) } else { Goal::Known }),
        row("latency p50, us", |figures| &figures.p50_us, Goal::Known),
        row("latency p99, us", |figures| &figures.p99_us, Goal::Known),
    ];
    if let [ours, theirs, _] = traced.as_slice()
        && bench.has_strace
    {
        let goal = if is_crowded { Goal::AtMost(6.0) } else { Goal::Known };
        rows.push(Row {
            what: "system calls per call".to_owned(),
            ours: *ours,
            theirs: *theirs,
            direct: None,
            goal,
        });
    }
    let title =
        format!("JSON-RPC calls, {connections} connection{}", if connections == 1 { "" } else { "s" });
    Ok(Group { title, against: "2 x nginx", rows })
}

fn measure(target: &Target, connections: usize, time: Duration, figures: &mut Figures) -> io::Result<()> {
    let load = || load::run(target.addr, connections, Until::Elapsed(time));
    let (mut load, cpu_us) = cpu_us_each(target, load, |load| figure(load.calls))?;
    figures.calls_per_second.push(load.calls_per_second());
    figures.cpu_us.extend(cpu_us);
    figures.p50_us.extend(percentile(&mut load.latencies, 50).map(us));
    figures.p99_us.extend(percentile(&mut load.latencies, 99).map(us));
    Ok(())
}

/// System calls per call of the processes between us and the upstream.
fn traced(target: &Target, connections: usize, folder: &std::path::Path) -> io::Result<f64> {
    let mut calls = 0;
    let all = system_calls_of(&target.pids, folder, || {
        calls = load::run(target.addr, connections, Until::Calls(TRACED_CALLS))?.calls;
        Ok(())
    })?;
    Ok(all / figure(calls))
}
