//! Chance from a seed.

use sha2::{Digest, Sha256};

/// A stream of unpredictable bytes: SHA-256 over the seed and a counter.
///
/// Whoever knows the seed knows every value, which is what the simulator wants; whoever sees values learns nothing
/// of the seed or of other values, which session tokens need. The driver takes the seed from the kernel.
#[derive(Debug)]
pub struct Random {
    seed: [u8; 32],
    counter: u64,
}

impl Random {
    /// A generator that says what `seed` says.
    pub const fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    /// The next 128 bits.
    pub fn bits(&mut self) -> u128 {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(self.counter.to_be_bytes());
        self.counter += 1;
        hash.finalize().iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte))
    }

    /// A number below `end`; zero when `end` is zero.
    pub fn below(&mut self, end: u64) -> u64 {
        u64::try_from(self.bits() % u128::from(end.max(1))).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_the_same_twice_and_seeds_differ() {
        let draw = |seed: u8| {
            let mut random = Random::new([seed; 32]);
            [random.bits(), random.bits()]
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(1)[0], draw(1)[1]);
    }

    #[test]
    fn below_stays_below() {
        let mut random = Random::new([3; 32]);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert_eq!(random.below(0), 0);
    }
}
