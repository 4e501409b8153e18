//! Named wake-ups in order of time.

use crate::time::Instant;
use std::collections::BTreeSet;

/// The wake-ups that are set, earliest first.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    set: BTreeSet<(Instant, T)>,
}

impl<T: Ord + Copy> Timers<T> {
    pub(crate) const fn new() -> Self {
        Self { set: BTreeSet::new() }
    }

    pub(crate) fn next(&self) -> Option<(Instant, T)> {
        self.set.first().copied()
    }

    /// Takes the earliest wake-up that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<T> {
        let (at, timer) = self.next()?;
        (at <= now).then(|| {
            self.set.remove(&(at, timer));
            timer
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }
}

/// One wake-up of one thing, kept in that thing.
///
/// Moving it later or switching it off costs nothing: the entry stays where it is and is looked at when it fires.
/// That is the common case (an idle connection that speaks again); what ends must call [`Alarm::remove`].
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    entry: Option<Instant>,
    due: Option<Instant>,
}

impl Alarm {
    /// Wakes at `at`, and at no other time.
    pub(crate) fn set<T: Ord + Copy>(&mut self, timers: &mut Timers<T>, timer: T, at: Instant) {
        self.due = Some(at);
        if self.entry.is_some_and(|entry| entry <= at) {
            return;
        }
        if let Some(entry) = self.entry.replace(at) {
            timers.set.remove(&(entry, timer));
        }
        timers.set.insert((at, timer));
    }

    /// Wakes no more.
    pub(crate) const fn clear(&mut self) {
        self.due = None;
    }

    /// Wakes no more, and leaves nothing behind.
    pub(crate) fn remove<T: Ord + Copy>(&mut self, timers: &mut Timers<T>, timer: T) {
        self.due = None;
        if let Some(entry) = self.entry.take() {
            timers.set.remove(&(entry, timer));
        }
    }

    /// When it wakes.
    pub(crate) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// To be called when the entry came up; says whether the wake-up is meant.
    pub(crate) fn fires<T: Ord + Copy>(&mut self, timers: &mut Timers<T>, timer: T, now: Instant) -> bool {
        self.entry = None;
        match self.due {
            Some(due) if due <= now => {
                self.due = None;
                true
            }
            Some(due) => {
                self.set(timers, timer, due);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_moved_later_fires_once_and_late() {
        let (mut timers, mut alarm) = (Timers::new(), Alarm::default());
        let at = Instant::from_micros;
        alarm.set(&mut timers, 'a', at(10));
        alarm.set(&mut timers, 'a', at(30));
        assert_eq!(timers.pop_due(at(20)), Some('a'));
        assert!(!alarm.fires(&mut timers, 'a', at(20)));
        assert_eq!(timers.next(), Some((at(30), 'a')));
        assert_eq!(timers.pop_due(at(30)), Some('a'));
        assert!(alarm.fires(&mut timers, 'a', at(30)));
        assert_eq!(timers.len(), 0);
    }

    #[test]
    fn an_alarm_moved_earlier_fires_early() {
        let (mut timers, mut alarm) = (Timers::new(), Alarm::default());
        let at = Instant::from_micros;
        alarm.set(&mut timers, 'a', at(30));
        alarm.set(&mut timers, 'a', at(10));
        assert_eq!((timers.next(), timers.len()), (Some((at(10), 'a')), 1));
        alarm.remove(&mut timers, 'a');
        assert_eq!((timers.len(), alarm.due()), (0, None));
    }
}
