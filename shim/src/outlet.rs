//! Writing to a standard stream without being blocked by it.
//!
//! Standard streams are shared with other processes: made non-blocking here they would be so everywhere, and the shell
//! would notice after the shim's end. So a stream is polled first, and then given no more than such a poll promises
//! room for; where more is to be written, a pipe or terminal is opened once more, for this process alone.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What fits into a pipe that polls as writable (`PIPE_BUF`).
const SMALL: usize = 4096;

pub(crate) struct Outlet<'fd> {
    fd: BorrowedFd<'fd>,
    kind: Kind,
}

enum Kind {
    /// Never blocks for long.
    File,
    /// Opened anew without blocking.
    Own(OwnedFd),
    /// Can only be written in small portions.
    Portions,
    Socket,
    /// Nothing large was written yet, and nobody has looked.
    Unknown,
}

impl<'fd> Outlet<'fd> {
    pub(crate) const fn new(fd: BorrowedFd<'fd>) -> Self {
        Self { fd, kind: Kind::Unknown }
    }

    /// What to poll before writing.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Own(own) => own.as_fd(),
            Kind::File | Kind::Portions | Kind::Socket | Kind::Unknown => self.fd,
        }
    }

    /// Whether it may be written without a poll before.
    pub(crate) const fn never_blocks(&self) -> bool {
        match self.kind {
            Kind::File | Kind::Own(_) | Kind::Socket => true,
            Kind::Portions | Kind::Unknown => false,
        }
    }

    /// Writes a prefix of `bytes`; none when there is no room after all.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        if matches!(self.kind, Kind::Unknown) && bytes.len() > SMALL {
            self.kind = look(self.fd);
        }
        let portion = bytes.get(..SMALL).unwrap_or(bytes);
        let written = match &self.kind {
            Kind::File => write(self.fd, bytes),
            Kind::Own(own) => write(own, bytes),
            Kind::Portions | Kind::Unknown => write(self.fd, portion),
            Kind::Socket => send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
        };
        match written {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            written => written,
        }
    }
}

fn look(fd: BorrowedFd<'_>) -> Kind {
    let kind = fstat(fd).map(|stat: FileStat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    match kind {
        Ok(kind) if kind == SFlag::S_IFREG => Kind::File,
        Ok(kind) if kind == SFlag::S_IFSOCK => Kind::Socket,
        Ok(kind) if kind == SFlag::S_IFIFO || kind == SFlag::S_IFCHR => {
            let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            // Another user's terminal, or no /proc.
            open(path.as_str(), flags, Mode::empty()).map_or(Kind::Portions, Kind::Own)
        }
        Ok(_) | Err(_) => Kind::Portions,
    }
}
