//! One seed: a storm, a calm in which everybody gets an answer, and a drain after which nothing is left.

use crate::check::{Check, Failure};
use crate::sabotage::Bug;
use crate::world::{Outcome, World};
use carapace_proto::time::{Duration, Instant};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Steps of the storm. Calm and drain come on top.
pub(crate) const STORM_STEPS: u64 = 2_000;
/// More than any calm or drain takes.
const STEPS_MAX: u64 = 60_000;
/// How long calls go on after all is well.
const WELL: Duration = Duration::from_millis(300);
/// What may take longest of all that is waited for: a call's timeout, a kill's grace, a deaf client.
const PATIENCE: Duration = Duration::from_secs(45);
/// A drain's own limit, and a moment.
const DRAIN: Duration = Duration::from_secs(32);

/// Runs a seed to its end, or to the first thing that is wrong. A panic of a machine is one.
pub(crate) fn run(seed: u64, bug: Option<Bug>, is_traced: bool) -> Outcome {
    let mut world = World::new(seed, bug, is_traced);
    let result = catch_unwind(AssertUnwindSafe(|| phases(&mut world)));
    if let Err(panic) = result {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.env.failure = None;
        world.env.fail(Check::Invariants, text.unwrap_or_default());
    }
    world.outcome()
}

fn phases(world: &mut World) {
    while world.env.step < STORM_STEPS && goes_on(world) {}
    world.calm_down();
    let well_from = world.env.well_from.unwrap_or(Instant::ORIGIN);
    until(world, well_from + WELL, |_| false);
    world.stop_spawning();
    let end = world.env.now + PATIENCE;
    let is_quiet = until(world, end, |world| world.open_calls().is_empty() && world.strangers() == 0);
    world.check_resumed();
    if !is_quiet {
        let (open, strangers) = (world.open_calls(), world.strangers());
        let check = if open.is_empty() { Check::Strangers } else { Check::Liveness };
        world.env.fail(
            check,
            format!("{strangers} strangers are still there, {} calls wait for ever: {open:?}", open.len()),
        );
    }
    world.drain_all();
    let end = world.env.now + DRAIN;
    if !until(world, end, World::has_drained) {
        world.env.fail(Check::Drained, "a drain never ends");
    }
    let owed = world.env.ledger.owed_outcomes();
    if !owed.is_empty() {
        let text = format!("{owed:?} were allowed, and the log does not say what became of them");
        world.env.fail(Check::Audit, text);
    }
}

/// Runs until something is so, or until a time. Says whether it is so.
fn until(world: &mut World, end: Instant, is_so: impl Fn(&World) -> bool) -> bool {
    let most = world.env.step + STEPS_MAX;
    while !is_so(world) {
        if world.env.now >= end {
            return false;
        }
        if world.env.step > most {
            world.env.fail(Check::Liveness, "the world does not come to rest");
        }
        if !goes_on(world) {
            return is_so(world);
        }
    }
    true
}

fn goes_on(world: &mut World) -> bool {
    world.env.failure.is_none() && world.step()
}

/// What many seeds came to.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) seeds: u64,
    pub(crate) steps: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// By seed.
    pub(crate) failures: BTreeMap<u64, Failure>,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        for (what, count) in outcome.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.failures.extend(outcome.failure.map(|failure| (seed, failure)));
    }

    fn merge(mut self, other: Self) -> Self {
        self.seeds += other.seeds;
        self.steps += other.steps;
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        self.failures.extend(other.failures);
        self
    }
}

/// Runs seeds on all cores, until so many have failed.
pub(crate) fn sweep(seeds: u64, bug: Option<Bug>, failures_max: usize) -> Sum {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = |worker: usize| {
        let mut sum = Sum::default();
        for seed in (0..seeds).skip(worker).step_by(threads) {
            if sum.failures.len() < failures_max {
                sum.add(seed, run(seed, bug, false));
            }
        }
        sum
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|worker| scope.spawn(move || work(worker))).collect();
        let sums = workers.into_iter().map(|worker| worker.join().expect("a worker of the sweep"));
        sums.fold(Sum::default(), Sum::merge)
    })
}
