//! Planted bugs: each stands where the product's own bug would be, between a machine and the world, and each must be
//! found by the check that is there for it.

/// A bug of a machine, or of its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A client's answer is written twice.
    AnswerTwice,
    /// What a job prints is taken in twice.
    DoublePrinted,
    /// The machine is told of bytes as sent long after they went.
    LateSent,
    /// `Close` is not carried out.
    LoseClose,
    /// A child's end is not told.
    LoseExit,
    /// What a job prints is lost.
    LosePrinted,
    /// `Resume` is not carried out.
    LoseResume,
    /// A wake-up is forgotten.
    LoseWake,
    /// Bytes are not announced.
    LoseWrite,
    /// The policy allows more than it should.
    OpenPolicy,
    /// A record counts as accepted before the disk has it.
    RecordEarly,
    /// The link is dialled too late.
    SlowDial,
    /// A wake-up stays due after it fired.
    StayDue,
}

impl Bug {
    pub(crate) const ALL: [Self; 13] = [
        Self::AnswerTwice,
        Self::DoublePrinted,
        Self::LateSent,
        Self::LoseClose,
        Self::LoseExit,
        Self::LosePrinted,
        Self::LoseResume,
        Self::LoseWake,
        Self::LoseWrite,
        Self::OpenPolicy,
        Self::RecordEarly,
        Self::SlowDial,
        Self::StayDue,
    ];
}
