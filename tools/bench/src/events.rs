//! Event streams: a source that stamps the time into each event, and clients that read it again, both of this process.

mod clients;
mod source;

use std::time::Instant;

pub(crate) use self::clients::{Clients, Look};
pub(crate) use self::source::{Order, Source, Writes};

/// A clock that a source and its clients share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// Nanoseconds since its making.
    fn now(self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
