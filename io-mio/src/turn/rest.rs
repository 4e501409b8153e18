//! Giving memory back after work. The allocator keeps what was freed in case it is wanted again; a daemon that had a busy
//! minute would show it for weeks.

use carapace_proto::time::{Duration, Instant};

/// Bytes handled after which there may be something to give back. What keeps an idle link alive is far less.
const WORTHWHILE_BYTES: usize = 256 * 1024;
/// With no more than this handled in a [`PAUSE`], the daemon rests.
const RESTING_BYTES: usize = 16 * 1024;
/// How long it must rest first: what is given back in the midst of work is only asked for again.
const PAUSE: Duration = Duration::from_secs(2);
/// What a connection counts for, beside the bytes it carries.
pub(super) const CONN_BYTES: usize = 4 * 1024;

/// How much was done since memory was last given back.
#[derive(Debug, Default)]
pub(super) struct Rest {
    handled: usize,
    /// When to look whether work goes on, and how much had been done when that was decided.
    look: Option<(Instant, usize)>,
}

impl Rest {
    /// Something was done.
    pub(super) const fn handled(&mut self, bytes: usize) {
        self.handled = self.handled.saturating_add(bytes);
    }

    /// To be asked once a turn: whether now is the time to give memory back.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        match self.look {
            None if self.handled < WORTHWHILE_BYTES => false,
            Some((at, _)) if now < at => false,
            Some((_, before)) if self.handled - before <= RESTING_BYTES => {
                *self = Self::default();
                true
            }
            None | Some(_) => {
                // So that the difference stays right, however long the work goes on.
                self.handled = WORTHWHILE_BYTES;
                self.look = Some((now + PAUSE, self.handled));
                false
            }
        }
    }

    /// When to ask at the latest.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.look.map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_and_only_after_work_and_rest() {
        let mut rest = Rest::default();
        let at = |secs| Instant::ORIGIN + Duration::from_secs(secs);
        rest.handled(WORTHWHILE_BYTES - 1);
        assert!(!rest.is_due(at(0)));
        assert_eq!(rest.poll_timeout(), None);
        rest.handled(1);
        assert!(!rest.is_due(at(1)));
        assert_eq!(rest.poll_timeout(), Some(at(3)));
        rest.handled(RESTING_BYTES + 1);
        assert!(!rest.is_due(at(3)), "it works still");
        assert_eq!(rest.poll_timeout(), Some(at(5)));
        rest.handled(RESTING_BYTES);
        assert!(!rest.is_due(at(4)));
        assert!(rest.is_due(at(5)));
        assert_eq!(rest.poll_timeout(), None);
        assert!(!rest.is_due(at(6)));
    }
}
