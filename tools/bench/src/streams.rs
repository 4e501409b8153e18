//! Event streams: how late an event is, how many pass, and what one costs.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use carapace_debug::rig::Folder;

use crate::bench::{Bench, Rivals, Target, cpu_us_each};
use crate::events::{Clients, Clock, Look, Order, Source, Writes};
use crate::process::wait_until;
use crate::report::{Goal, Group, Row, tell};
use crate::stats::{figure, median, percentile, size, us};

/// The pause between two events whose latency is measured.
const PACE: Duration = Duration::from_millis(2);
/// How long events may take before they count as lost.
const LATE: Duration = Duration::from_secs(10);
/// Events that are sent to every stream, in one round.
const BROADCASTS: u64 = 20;

/// What a measurement finds of one of the rivals in one round.
type Found = Vec<f64>;

struct Stage<'a> {
    bench: &'a Bench,
    rivals: Rivals,
    source: Source,
    clock: Clock,
}

fn stage(bench: &Bench) -> io::Result<Stage<'_>> {
    let clock = Clock::new();
    let source = Source::start(clock)?;
    let rivals = Rivals::start(bench, Folder::create("carapace-bench")?, source.addr())?;
    Ok(Stage { bench, rivals, source, clock })
}

impl Stage<'_> {
    /// Takes a measurement of each rival in each round; the median of each figure, of ours, theirs and without either.
    fn rounds(
        &self,
        what: &str,
        measure: impl Fn(&Self, &Target) -> io::Result<Found>,
    ) -> io::Result<[Vec<Option<f64>>; 3]> {
        tell(what);
        let targets = [self.rivals.ours.as_ref(), self.rivals.theirs.as_ref(), Some(&self.rivals.direct)];
        let mut found: [Vec<Found>; 3] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..self.bench.rounds {
            for (target, found) in targets.iter().zip(&mut found) {
                if let Some(target) = target {
                    found.push(measure(self, target)?);
                }
            }
        }
        Ok(found.map(|rounds| {
            let figures = rounds.iter().map(Vec::len).max().unwrap_or(0);
            (0..figures)
                .map(|figure| median(rounds.iter().filter_map(|round| round.get(figure).copied())))
                .collect()
        }))
    }

    fn open(&self, target: &Target, streams: usize, look: Look) -> io::Result<Clients> {
        // Those of the measurement before must be gone: they would get events, too.
        if !wait_until(LATE, || self.source.streams() == 0) {
            return Err(io::Error::other("the streams of a client that has gone stay open at the upstream"));
        }
        let clients = Clients::open(target.addr, streams, look, self.clock)?;
        if !wait_until(LATE, || self.source.streams() == streams) {
            return Err(io::Error::other("not every stream has reached the upstream"));
        }
        Ok(clients)
    }

    /// p50 and p99 of events that come one at a time, each on one of the streams.
    fn latency(&self, target: &Target, streams: usize) -> io::Result<Found> {
        let clients = self.open(target, streams, Look::Time)?;
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < self.bench.time {
            self.source.order(Order::One)?;
            sent += 1;
            thread::sleep(PACE);
        }
        clients.wait_for(sent, LATE)?;
        let mut latencies = clients.take_latencies();
        Ok([50, 99].into_iter().filter_map(|percent| percentile(&mut latencies, percent).map(us)).collect())
    }

    /// Events a second on one stream, as fast as it takes them.
    fn flood(&self, target: &Target, writes: Writes) -> io::Result<Found> {
        let clients = self.open(target, 1, Look::Count)?;
        self.source.order(Order::Flood(writes))?;
        clients.wait_for(1, LATE)?;
        thread::sleep(Duration::from_millis(200));
        let (before, start) = (clients.events(), Instant::now());
        thread::sleep(self.bench.time);
        let (events, elapsed) = (clients.events() - before, start.elapsed());
        self.source.order(Order::Quiet)?;
        Ok(vec![figure(events) / elapsed.as_secs_f64()])
    }

    /// CPU for one event to one of many streams, and how late the median and the last of them are.
    fn broadcast(&self, target: &Target, streams: usize) -> io::Result<Found> {
        let clients = self.open(target, streams, Look::Time)?;
        let each = u64::try_from(streams).map_err(io::Error::other)?;
        let broadcasts = || {
            (1..=BROADCASTS).try_for_each(|number| {
                self.source.order(Order::All)?;
                clients.wait_for(number * each, LATE)
            })
        };
        let (_, cpu_us) = cpu_us_each(target, broadcasts, |()| size(streams) * figure(BROADCASTS))?;
        let mut latencies = clients.take_latencies();
        let late = [50, 100].map(|percent| percentile(&mut latencies, percent).map_or(f64::NAN, us));
        Ok([late.as_slice(), cpu_us.as_slice()].concat())
    }
}

fn row(what: String, [ours, theirs, direct]: &[Vec<Option<f64>>; 3], place: usize, goal: Goal) -> Row {
    let figure = |figures: &Vec<Option<f64>>| figures.get(place).copied().flatten();
    Row { what, ours: figure(ours), theirs: figure(theirs), direct: figure(direct), goal }
}

/// As `row`, with what the direct way takes taken away: what those in between add.
fn added(what: String, [ours, theirs, direct]: &[Vec<Option<f64>>; 3], place: usize, goal: Goal) -> Row {
    let figure = |figures: &Vec<Option<f64>>| figures.get(place).copied().flatten();
    let above = |figures| figure(figures).zip(figure(direct)).map(|(all, direct)| all - direct);
    Row { what, ours: above(ours), theirs: above(theirs), direct: figure(direct), goal }
}

/// Measures latency with so many open streams.
pub(crate) fn latency(bench: &Bench, streams: &[usize]) -> io::Result<Vec<Group>> {
    let stage = stage(bench)?;
    let mut rows = Vec::new();
    for streams in streams {
        let what = format!("event latency, {streams} open streams");
        let found = stage.rounds(&what, |stage, target| stage.latency(target, *streams))?;
        rows.push(added(format!("p50 added, {streams} open, us"), &found, 0, Goal::RatioAtMost(1.0)));
        rows.push(added(format!("p99 added, {streams} open, us"), &found, 1, Goal::AtMost(10_000.0)));
    }
    Ok(vec![Group { title: "Event latency".to_owned(), against: "2 x nginx", rows }])
}

/// Measures one stream at full speed.
pub(crate) fn flood(bench: &Bench) -> io::Result<Vec<Group>> {
    let stage = stage(bench)?;
    let mut rows = Vec::new();
    let ways = [
        ("events/s, each written by itself", Writes::Events, Goal::RatioAtLeast(0.9)),
        ("events/s, written in blocks", Writes::Blocks, Goal::Known),
    ];
    for (what, writes, goal) in ways {
        let found =
            stage.rounds(&format!("{what}, on one stream"), |stage, target| stage.flood(target, writes))?;
        rows.push(row(what.to_owned(), &found, 0, goal));
    }
    Ok(vec![Group { title: "Event throughput, one stream".to_owned(), against: "2 x nginx", rows }])
}

/// Measures one event to many streams.
pub(crate) fn broadcast(bench: &Bench, streams: usize) -> io::Result<Vec<Group>> {
    let stage = stage(bench)?;
    let what = format!("one event to {streams} streams");
    let found = stage.rounds(&what, |stage, target| stage.broadcast(target, streams))?;
    let rows = vec![
        row("CPU per delivery, us".to_owned(), &found, 2, Goal::AtMost(15.0)),
        row("the median one is late by, us".to_owned(), &found, 0, Goal::Known),
        row("the last one is late by, us".to_owned(), &found, 1, Goal::Known),
    ];
    Ok(vec![Group { title: format!("One event to {streams} streams"), against: "2 x nginx", rows }])
}
