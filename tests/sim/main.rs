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

/// A check counts when it can fail: each planted bug must be found, within few seeds.
#[test]
fn planted_bugs_are_found() {
    for bug in sabotage::Bug::ALL {
        let sum = run::sweep(64, Some(bug), 1);
        assert!(!sum.failures.is_empty(), "{bug:?} was found by no check");
    }
}
