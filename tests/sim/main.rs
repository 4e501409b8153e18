//! The simulator: one server and one agent, joined by a faulty network, among scripted clients, shims, upstreams,
//! children and a disk, on a virtual clock, all from one seed. See `docs/testing.md`.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail loudly, and is watched by its author"
)]

mod caps;
mod chance;
mod check;
mod child;
mod client;
mod climate;
mod disk;
mod env;
mod hearing;
mod host;
mod http;
mod ledger;
mod net;
mod outputs;
mod pattern;
mod peer;
mod plan;
mod rules;
mod run;
mod sabotage;
mod shim;
mod stranger;
mod tap;
mod upstream;
mod world;

/// How many seeds a sweep has where nobody says otherwise.
const SEEDS: u64 = 256;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: {text:?}")))
}

#[test]
fn sweep() {
    if let Some(seed) = number("CARAPACE_SIM_SEED") {
        let outcome = run::run(seed, None, true);
        println!("{} steps, {:?}", outcome.steps, outcome.counts);
        if let Some(failure) = outcome.failure {
            panic!("seed {seed}: {failure}");
        }
        return;
    }
    let sum = run::sweep(number("CARAPACE_SIM_SEEDS").unwrap_or(SEEDS), None, 10);
    println!("{} seeds, {} steps, {:?}", sum.seeds, sum.steps, sum.counts);
    let failures: Vec<String> =
        sum.failures.iter().map(|(seed, failure)| format!("seed {seed}: {failure}\n")).collect();
    if let Some(seed) = sum.failures.keys().next() {
        panic!(
            "{}replay it: CARAPACE_SIM_SEED={seed} cargo test -p carapace-tests --test sim sweep -- --nocapture",
            failures.concat()
        );
    }
}

/// A check counts when it can fail.
#[test]
fn each_planted_bug_is_found_by_its_check() {
    for (bug, check) in sabotage::BUGS {
        let sum = run::sweep(SEEDS, Some(*bug), 1);
        let Some((seed, failure)) = sum.failures.first_key_value() else {
            panic!("{bug:?} is not found by {} seeds", sum.seeds);
        };
        println!("{bug:?}: seed {seed}: {failure:.300}");
        assert_eq!(failure.check, *check, "{bug:?} is found by another check first: seed {seed}: {failure}");
    }
}

/// The same seed is the same run, to the last byte: else a failure could not be replayed.
#[test]
fn a_seed_is_a_run() {
    let [first, second] = [3, 3].map(|seed| run::run(seed, None, false));
    assert_eq!((first.steps, first.counts), (second.steps, second.counts));
}
