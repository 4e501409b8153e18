//! How a daemon ends.

use std::process::ExitCode;

/// The exit status of a daemon, after `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked to.
    Ok = 0,
    /// The command line is wrong.
    Usage = 64,
    /// An address cannot be listened on, or a file is another's.
    Unavailable = 69,
    /// Something failed that should not.
    Internal = 70,
    /// The configuration or the policy is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a daemon cannot go on: an exit status, and a sentence for whoever started it.
#[derive(Debug)]
pub struct Fatal {
    /// The status to end with.
    pub exit: Exit,
    /// What is wrong, without a final full stop; may have several lines.
    pub message: String,
}

impl Fatal {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<crate::listen::BindError> for Fatal {
    fn from(error: crate::listen::BindError) -> Self {
        Self::new(error.exit(), error.to_string())
    }
}
