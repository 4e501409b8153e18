//! Daemons started for a while: found, built where they are missing, run in a temporary folder, stopped.

mod binaries;
mod daemon;
mod folder;
mod interrupt;
mod pair;

pub use self::binaries::{Binaries, MissingBinaries};
pub use self::daemon::{Daemon, Launch, StartError};
pub use self::folder::Folder;
pub use self::interrupt::{interruptible, spawn};
pub use self::pair::Pair;
