//! Why a command failed, and the exit code that says so.

use std::fmt;
use std::io;

/// The command worked, and what it found is not as it should be.
pub(crate) const NEGATIVE: u8 = 1;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const INTERNAL: u8 = 70;
const CONFIGURATION: u8 = 78;

/// Why a command could not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A configuration file is not as it should be.
    Configuration(String),
    /// The output could not be written, or something else of the machine failed.
    Io(io::Error),
    /// What the command needs is not there, or does not answer.
    Unavailable(String),
    /// What was asked makes no sense.
    Usage(String),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Configuration(_) => CONFIGURATION,
            Self::Io(_) => INTERNAL,
            Self::Unavailable(_) => UNAVAILABLE,
            Self::Usage(_) => USAGE,
        }
    }

    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Configuration(text) | Self::Unavailable(text) | Self::Usage(text) => f.write_str(text),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
