//! Odd policies and odd requests: the seeds of the fuzz target `policy`, and variations of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

#[path = "hostile/mod.rs"]
mod checks;

use std::path::Path;

use proptest::prelude::*;

fn seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/policy");
    std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn the_seeds_hold() {
    let seeds = seeds();
    assert!(seeds.len() >= 5);
    for seed in seeds {
        assert!(String::from_utf8(seed.clone()).unwrap().contains(checks::SEPARATOR));
        checks::check(&seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A few bytes of a seed are replaced.
    #[test]
    fn variations_of_the_seeds_hold(
        seed in 0..5_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut seed = seeds().swap_remove(seed);
        for (index, byte) in changes {
            let index = index.index(seed.len());
            if let Some(old) = seed.get_mut(index) {
                *old = byte;
            }
        }
        if let Some(cut) = cut {
            seed.truncate(cut.index(seed.len()));
        }
        checks::check(&seed);
    }
}
