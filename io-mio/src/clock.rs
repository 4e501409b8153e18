//! The only place that reads a clock. Neither reading is a system call: both come from the vDSO.

use carapace_proto::time::{Duration, Instant, Wall};
use std::time::SystemTime;

/// A wall clock that moved by more than this against the monotonic one was set; less is the clocks' own noise.
const STEP_MICROS: u64 = 5_000;

/// The monotonic clock, counted from when this was made, and a watch over the wall clock.
#[derive(Debug)]
pub struct Clock {
    origin: std::time::Instant,
    /// Wall time at the origin, as last told.
    anchor: Option<u64>,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self { origin: std::time::Instant::now(), anchor: None }
    }

    /// The time, for a whole turn; and the wall time whenever it is not what the last one told leads to expect.
    pub fn sample(&mut self) -> (Instant, Option<Wall>) {
        let now = self.now();
        (now, self.check(now.as_micros(), wall()))
    }

    /// The time alone.
    pub fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn check(&mut self, micros: u64, wall: Wall) -> Option<Wall> {
        let anchor = wall.unix_micros().saturating_sub(micros);
        let stepped = self.anchor.is_none_or(|told| told.abs_diff(anchor) > STEP_MICROS);
        stepped.then(|| {
            self.anchor = Some(anchor);
            wall
        })
    }
}

/// What the wall clock says.
pub fn wall() -> Wall {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Wall::from_unix_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_told_at_the_start_and_when_it_was_set() {
        let mut clock = Clock::start();
        let at = |micros: u64| Wall::from_unix_micros(1_700_000_000_000_000 + micros);
        assert_eq!(clock.check(10, at(10)), Some(at(10)));
        assert_eq!(clock.check(1_000_000, at(1_000_900)), None);
        assert_eq!(clock.check(2_000_000, at(2_006_000)), Some(at(2_006_000)));
        assert_eq!(clock.check(3_000_000, at(3_006_000)), None);
        assert_eq!(clock.check(4_000_000, at(0)), Some(at(0)));
    }

    #[test]
    fn time_does_not_run_backwards() {
        let mut clock = Clock::start();
        let (first, told) = clock.sample();
        assert!(told.is_some());
        assert!(clock.sample().0 >= first);
    }
}
