//! Names for things that live between two turns. None is ever used twice, so that a late event can only miss.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id! {
    /// A connection of any kind. Those that the driver accepted have even numbers ([`ConnId::accepted`]), those that
    /// the machine dials have odd ones ([`ConnId::dialed`]), so that neither has to ask the other.
    ConnId, "conn "
}
id! {
    /// One request from a peer, from its first byte to its last record.
    CallId, "call "
}
id! {
    /// A running child process: the number of the call that it carries out.
    JobId, "job "
}
id! {
    /// One exchange or tool run on a link, numbered by the agent from 1 and growing.
    StreamId, "stream "
}
id! {
    /// The place of a record in the order in which the machine wrote them, from 1.
    RecordId, "record "
}

impl ConnId {
    /// The `n`th connection accepted.
    pub const fn accepted(n: u64) -> Self {
        Self(n * 2)
    }

    /// The `n`th connection dialled.
    pub const fn dialed(n: u64) -> Self {
        Self(n * 2 + 1)
    }
}

/// Which of the driver's listeners accepted a connection: an index into the configuration's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u16);
