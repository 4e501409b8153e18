//! Planted bugs: each stands where the product's own bug would be, between a machine and the world, and each must be
//! found by the check that is there for it. What cannot be planted outside of a machine needs the feature `sabotage`.

use crate::check::Check;
#[cfg(feature = "sabotage")]
use crate::env::Side;

/// A bug of a machine, or of its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A client's answer is written twice.
    AnswerTwice,
    /// A machine loses count of what it has promised.
    #[cfg(feature = "sabotage")]
    BreakAccounts(Side),
    /// What a job prints is taken in twice.
    DoublePrinted,
    /// A paused source is read all the same.
    IgnorePause,
    /// The machine is told of bytes as sent long after they went.
    LateSent,
    /// A connection that is closed stays open.
    LoseClose,
    /// A child's end is not told.
    LoseExit,
    /// What a job prints is lost.
    LosePrinted,
    /// A record is left out of what is appended.
    LoseRecord,
    /// `Resume` is not carried out.
    LoseResume,
    /// The connection to an upstream is not closed.
    LoseUpstreamClose,
    /// The server's wake-ups are forgotten.
    LoseWake,
    /// Bytes are not announced.
    LoseWrite,
    /// The policy allows more than it should.
    OpenPolicy,
    /// A source that was paused a moment ago is read once more.
    ReadPaused,
    /// A record counts as accepted before the disk has it.
    RecordEarly,
    /// The link is dialled too late.
    SlowDial,
    /// A wake-up stays due after it fired.
    StayDue,
}

/// Each planted bug, and the check that is there to find it.
pub(crate) const BUGS: &[(Bug, Check)] = &[
    (Bug::AnswerTwice, Check::Answered),
    #[cfg(feature = "sabotage")]
    (Bug::BreakAccounts(Side::Agent), Check::Invariants),
    #[cfg(feature = "sabotage")]
    (Bug::BreakAccounts(Side::Server), Check::Invariants),
    (Bug::DoublePrinted, Check::Streams),
    (Bug::IgnorePause, Check::Memory),
    (Bug::LateSent, Check::Honest),
    (Bug::LoseClose, Check::Strangers),
    (Bug::LoseExit, Check::Liveness),
    (Bug::LosePrinted, Check::Streams),
    (Bug::LoseRecord, Check::Audit),
    (Bug::LoseResume, Check::Resumed),
    (Bug::LoseUpstreamClose, Check::Drained),
    (Bug::LoseWake, Check::Liveness),
    (Bug::LoseWrite, Check::Contract),
    (Bug::OpenPolicy, Check::Policy),
    (Bug::ReadPaused, Check::Paused),
    (Bug::RecordEarly, Check::Recorded),
    (Bug::SlowDial, Check::Recovery),
    (Bug::StayDue, Check::Deadline),
];
