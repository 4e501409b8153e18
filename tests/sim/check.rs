//! What must be true, by name. A failure names the check that found it, and the tests with planted bugs hold each
//! check to finding what it is there for.

use core::fmt;

/// One thing that is true of every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// Each call gets one answer that is its own, or loses its connection.
    Answered,
    /// The log holds whole records, each once, and for each effect one outcome.
    Audit,
    /// Outputs are ones that a driver can carry out, and whatever is to be written is announced.
    Contract,
    /// After a wake-up the next one is later.
    Deadline,
    /// After a drain nothing is left.
    Drained,
    /// What a client is told of a call's effect is so: not started means not started, and nothing starts twice.
    Honest,
    /// A machine does not contradict itself.
    Invariants,
    /// Whoever waits gets an answer.
    Liveness,
    /// No more is held than the caps allow.
    Memory,
    /// From a paused source nothing is taken.
    Paused,
    /// What reached an upstream or became a process is what the policy allows.
    Policy,
    /// No effect without an accepted record that allows it.
    Recorded,
    /// A second after the server's return calls go through.
    Recovery,
    /// A source that was paused is resumed.
    Resumed,
    /// Streams arrive as they were sent: a prefix, and all of it when nothing was cut.
    Streams,
    /// Who breaks the protocol, or is not served, is parted with.
    Strangers,
}

/// What was found, and when.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) check: Check,
    pub(crate) detail: String,
    pub(crate) step: u64,
    pub(crate) micros: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} at step {}, {}.{:06} s: {}",
            self.check,
            self.step,
            self.micros / 1_000_000,
            self.micros % 1_000_000,
            self.detail
        )
    }
}
