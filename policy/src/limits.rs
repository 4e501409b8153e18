//! Rate limits: an exact sliding window per tool, or per tool and client.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The most windows kept. Clients are named by keys and uids, not by what they say, so this is never reached by
/// accident; a client beyond it is refused.
const WINDOWS_MAX: usize = 4096;

/// The most moments kept for one window: 16 KiB. A limit above it is kept in so many equal steps, and errs on the side
/// of refusing by at most one step.
const MOMENTS_MAX: u64 = 1024;

/// A limit of the policy file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many calls may be allowed within any span of `window_us`.
    pub max_requests: u64,
    /// The span, in microseconds.
    pub window_us: u64,
    /// Whether each client has a window of its own.
    pub per_client: bool,
}

/// Rate-limit memory. It lives outside the policy, so that it survives a reload.
#[derive(Debug, Default)]
pub struct Limits {
    /// The client of a window that all share.
    everyone: Arc<str>,
    windows: BTreeMap<(Arc<str>, Arc<str>), Window>,
}

/// Calls that were allowed, as (when, how many), oldest first.
#[derive(Debug, Default)]
struct Window {
    window_us: u64,
    moments: VecDeque<(u64, u64)>,
    sum: u64,
}

impl Limits {
    /// Nothing has been called yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one call, or says after how many microseconds one would be let through. What is refused does not count.
    pub(crate) fn take(
        &mut self,
        limit: &RateLimit,
        tool: &Arc<str>,
        client: &Arc<str>,
        now_us: u64,
    ) -> Result<(), u64> {
        let client = if limit.per_client { client } else { &self.everyone };
        let key = (tool.clone(), client.clone());
        if !self.windows.contains_key(&key) && self.windows.len() >= WINDOWS_MAX {
            self.windows.retain(|_, window| window.is_live(now_us));
            if self.windows.len() >= WINDOWS_MAX {
                return Err(limit.window_us);
            }
        }
        self.windows.entry(key).or_default().take(limit, now_us)
    }
}

impl Window {
    fn is_live(&self, now_us: u64) -> bool {
        self.moments.back().is_some_and(|&(at, _)| now_us < at.saturating_add(self.window_us))
    }

    fn take(&mut self, limit: &RateLimit, now_us: u64) -> Result<(), u64> {
        self.window_us = limit.window_us;
        while let Some(&(at, count)) = self.moments.front() {
            if now_us < at.saturating_add(limit.window_us) {
                break;
            }
            self.moments.pop_front();
            self.sum = self.sum.saturating_sub(count);
        }
        if self.sum >= limit.max_requests {
            return Err(self.wait(limit, now_us));
        }
        self.sum += 1;
        let step = if limit.max_requests > MOMENTS_MAX { limit.window_us / MOMENTS_MAX } else { 0 };
        match self.moments.back_mut() {
            // A step ends when its first call is a step old, not its last: its calls count as if all came at its end.
            Some((until, count)) if step > 0 && now_us < *until => *count += 1,
            _ => self.moments.push_back((now_us.saturating_add(step), 1)),
        }
        Ok(())
    }

    /// How long until enough calls have left the window; at least one microsecond.
    fn wait(&self, limit: &RateLimit, now_us: u64) -> u64 {
        let mut surplus = self.sum.saturating_sub(limit.max_requests).saturating_add(1);
        for &(at, count) in &self.moments {
            if count >= surplus {
                return at.saturating_add(limit.window_us).saturating_sub(now_us).max(1);
            }
            surplus -= count;
        }
        limit.window_us.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn limit(max_requests: u64, secs: u64) -> RateLimit {
        RateLimit { max_requests, window_us: secs * SECOND, per_client: false }
    }

    fn take(limits: &mut Limits, limit: &RateLimit, client: &str, now: u64) -> Result<(), u64> {
        limits.take(limit, &"t".into(), &client.into(), now)
    }

    #[test]
    fn never_more_than_the_limit_in_any_window() {
        let mut limits = Limits::new();
        let two = limit(2, 10);
        assert_eq!(take(&mut limits, &two, "", 0), Ok(()));
        assert_eq!(take(&mut limits, &two, "", 4 * SECOND), Ok(()));
        assert_eq!(take(&mut limits, &two, "", 5 * SECOND), Err(5 * SECOND));
        assert_eq!(take(&mut limits, &two, "", 10 * SECOND - 1), Err(1));
        assert_eq!(take(&mut limits, &two, "", 10 * SECOND), Ok(()));
        assert_eq!(take(&mut limits, &two, "", 10 * SECOND), Err(4 * SECOND));
    }

    #[test]
    fn a_refusal_does_not_count() {
        let mut limits = Limits::new();
        let one = limit(1, 10);
        assert_eq!(take(&mut limits, &one, "", 0), Ok(()));
        for at in 1..10 {
            assert!(take(&mut limits, &one, "", at * SECOND).is_err());
        }
        assert_eq!(take(&mut limits, &one, "", 10 * SECOND), Ok(()));
    }

    #[test]
    fn clients_share_a_window_or_not() {
        let mut limits = Limits::new();
        let shared = limit(1, 10);
        assert!(take(&mut limits, &shared, "a", 0).is_ok() && take(&mut limits, &shared, "b", 0).is_err());
        let own = RateLimit { per_client: true, ..shared };
        assert!(take(&mut limits, &own, "a", 0).is_ok() && take(&mut limits, &own, "b", 0).is_ok());
        assert!(take(&mut limits, &own, "a", 0).is_err());
    }

    #[test]
    fn a_smaller_limit_after_a_reload_counts_what_was() {
        let mut limits = Limits::new();
        for at in 0..5 {
            take(&mut limits, &limit(5, 10), "", at * SECOND).unwrap();
        }
        assert_eq!(take(&mut limits, &limit(2, 10), "", 5 * SECOND), Err(8 * SECOND));
        assert_eq!(take(&mut limits, &limit(2, 10), "", 13 * SECOND), Ok(()));
    }

    #[test]
    fn large_limits_are_bounded_and_never_exceeded() {
        let mut limits = Limits::new();
        let many = limit(100_000, 10);
        let mut allowed: Vec<u64> = Vec::new();
        for i in 0..300_000_u64 {
            let now = i * 50;
            if take(&mut limits, &many, "", now).is_ok() {
                allowed.push(now);
            }
        }
        for (i, at) in allowed.iter().enumerate().skip(100_000) {
            assert!(at - allowed[i - 100_000] >= 10 * SECOND);
        }
        let window = limits.windows.values().next().unwrap();
        assert!(window.moments.len() <= 1200);
    }

    #[test]
    fn the_number_of_windows_is_bounded() {
        let mut limits = Limits::new();
        let own = RateLimit { per_client: true, ..limit(1, 10) };
        for i in 0..5000 {
            let _ = take(&mut limits, &own, &i.to_string(), 0);
        }
        assert_eq!(limits.windows.len(), WINDOWS_MAX);
        assert!(take(&mut limits, &own, "new", 0).is_err());
        assert!(take(&mut limits, &own, "new", 10 * SECOND).is_ok());
    }
}
