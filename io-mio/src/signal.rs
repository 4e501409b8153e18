//! Signals as bytes on a pipe. Not `signalfd`: that needs them blocked, and children would inherit the mask.

use crate::raw;
use mio::unix::pipe;
use nix::sys::signal::Signal;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;

/// The signals that the loop hears of.
#[derive(Debug)]
pub struct Signals {
    pub(crate) pipe: pipe::Receiver,
    /// Held so that the handler always has somewhere to write.
    _sender: pipe::Sender,
}

/// What has arrived since the loop last looked. Signals of one kind may merge into one, as signals do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// Times that somebody asked us to end (SIGTERM, SIGINT).
    pub(crate) ends: u32,
    /// A child ended.
    pub(crate) child: bool,
    /// Read the policy and open the logs anew (SIGHUP).
    pub(crate) reload: bool,
}

impl Signals {
    /// Begins to catch signals, for the whole process: there is one such object in it.
    pub fn catch() -> io::Result<Self> {
        let (sender, pipe) = pipe::new()?;
        raw::signal::forward_to(
            sender.as_raw_fd(),
            &[Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM],
        )?;
        Ok(Self { pipe, _sender: sender })
    }

    /// Takes what has arrived.
    pub(crate) fn take(&mut self) -> Arrived {
        let mut arrived = Arrived::default();
        let mut numbers = [0; 64];
        while let Ok(count @ 1..) = self.pipe.read(&mut numbers) {
            for number in numbers.iter().take(count) {
                match Signal::try_from(i32::from(*number)) {
                    Ok(Signal::SIGCHLD) => arrived.child = true,
                    Ok(Signal::SIGHUP) => arrived.reload = true,
                    Ok(Signal::SIGINT | Signal::SIGTERM) => arrived.ends += 1,
                    _ => {}
                }
            }
            if count < numbers.len() {
                break;
            }
        }
        arrived
    }
}
