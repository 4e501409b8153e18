//! One descriptor that bytes come from or go to, and what the loop remembers about it.

use carapace_proto::ids::{ConnId, JobId, ListenerId};
use carapace_proto::machine::{Closing, Loss, Source};
use carapace_proto::time::Duration;
use mio::event;
use mio::net::{TcpStream, UnixStream};
use mio::unix::pipe;
use mio::{Interest, Registry, Token};
use nix::fcntl::{FcntlArg, fcntl};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::mem;
use std::net::Shutdown;

/// Everything that has a place in the poll, and its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Conn(ConnId),
    Listener(ListenerId),
    Mail,
    Signals,
    Stderr(JobId),
    Stdin(JobId),
    Stdout(JobId),
}

/// Ids are counters and are told apart by kind in the lowest bits of a token: no table, and none is ever reused.
const KIND_BITS: u32 = 3;
const _: () = assert!(usize::BITS >= 64, "a token must hold an id");

impl Key {
    pub(crate) const fn token(self) -> Token {
        let (kind, id) = match self {
            Self::Conn(id) => (0, id.0),
            Self::Listener(id) => (1, id.0 as u64),
            Self::Mail => (2, 0),
            Self::Signals => (3, 0),
            Self::Stderr(id) => (4, id.0),
            Self::Stdin(id) => (5, id.0),
            Self::Stdout(id) => (6, id.0),
        };
        Token((id << KIND_BITS | kind) as usize)
    }

    pub(crate) fn of(token: Token) -> Self {
        let id = token.0 as u64 >> KIND_BITS;
        match token.0 & ((1 << KIND_BITS) - 1) {
            0 => Self::Conn(ConnId(id)),
            1 => Self::Listener(ListenerId(u16::try_from(id).unwrap_or(u16::MAX))),
            2 => Self::Mail,
            3 => Self::Signals,
            4 => Self::Stderr(JobId(id)),
            5 => Self::Stdin(JobId(id)),
            _ => Self::Stdout(JobId(id)),
        }
    }

    /// What this is to the machine when bytes come from it.
    pub(crate) const fn source(self) -> Option<Source> {
        match self {
            Self::Conn(id) => Some(Source::Conn(id)),
            Self::Stderr(id) => Some(Source::Stderr(id)),
            Self::Stdout(id) => Some(Source::Stdout(id)),
            Self::Listener(_) | Self::Mail | Self::Signals | Self::Stdin(_) => None,
        }
    }
}

impl From<Source> for Key {
    fn from(source: Source) -> Self {
        match source {
            Source::Conn(id) => Self::Conn(id),
            Source::Stdout(id) => Self::Stdout(id),
            Source::Stderr(id) => Self::Stderr(id),
        }
    }
}

/// What a pipe holds unless it is told otherwise.
const PIPE_BYTES: usize = 64 * 1024;
/// What the pipe of a job that prints much holds. More than that does not stay in a processor's cache.
const WIDE_PIPE_BYTES: i32 = 256 * 1024;

/// The descriptor.
#[derive(Debug)]
pub(crate) enum Io {
    /// What a job reads from: we write.
    Stdin(pipe::Sender),
    /// What a job writes to: we read.
    Stdout(pipe::Receiver),
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A descriptor and its state.
///
/// The poll tells of edges only. So whether there may be something to read (`is_readable`) is remembered until a read
/// has shown that there is not; and a port that was left with something to read must stand on the loop's list of
/// ready ports (`is_listed`) or be paused.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) io: Io,
    pub(crate) is_readable: bool,
    pub(crate) is_listed: bool,
    pub(crate) is_paused: bool,
    /// The other end is done: read until the end shows, however short the reads are.
    pub(crate) is_closing: bool,
    /// The end was read. Nothing more will come.
    pub(crate) is_ended: bool,
    /// The last write was cut short: wait for the edge.
    pub(crate) is_blocked: bool,
    /// It is a Unix socket, and the poll is to tell when it can be written to.
    watches_room: bool,
    /// It is a pipe that was given more room, or could not be.
    is_wide: bool,
    /// Writing failed. What had arrived before that is still read, then the loss is told.
    pub(crate) broken: Option<Loss>,
}

impl Port {
    pub(crate) const fn new(io: Io) -> Self {
        Self {
            io,
            is_readable: false,
            is_listed: false,
            is_paused: false,
            is_closing: false,
            is_ended: false,
            is_blocked: false,
            watches_room: false,
            is_wide: false,
            broken: None,
        }
    }

    /// Takes in what the poll says.
    pub(crate) fn note(&mut self, event: &event::Event) {
        self.is_closing |= event.is_read_closed() || event.is_error();
        self.is_readable |= event.is_readable() || self.is_closing;
    }

    /// Whether it must be put on the list of ready ports; if so, notes that it stands there.
    pub(crate) const fn wants_listing(&mut self) -> bool {
        let wants = self.is_readable && !self.is_paused && !self.is_ended && !self.is_listed;
        self.is_listed |= wants;
        wants
    }

    /// One read.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = uninterrupted(|| match &mut self.io {
            Io::Stdout(io) => io.read(buffer),
            Io::Tcp(io) => io.read(buffer),
            Io::Unix(io) => io.read(buffer),
            Io::Stdin(_) => Ok(0),
        })?;
        if count == PIPE_BYTES && !self.is_wide {
            self.widen();
        }
        Ok(count)
    }

    /// A job that fills its pipe waits for us each time: it gets more room, so that both work at once.
    fn widen(&mut self) {
        self.is_wide = true;
        if let Io::Stdout(io) = &self.io {
            // Refused where the account has many wide pipes already; then it goes on as it is.
            let _ = fcntl(io, FcntlArg::F_SETPIPE_SZ(WIDE_PIPE_BYTES));
        }
    }

    /// One write.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        uninterrupted(|| match &mut self.io {
            Io::Stdin(io) => io.write(bytes),
            Io::Tcp(io) => io.write(bytes),
            Io::Unix(io) => io.write(bytes),
            Io::Stdout(_) => Err(ErrorKind::BrokenPipe.into()),
        })
    }

    /// Says to the other end that no more will come.
    pub(crate) fn shutdown(&self) -> io::Result<()> {
        match &self.io {
            Io::Tcp(io) => io.shutdown(Shutdown::Write),
            Io::Unix(io) => io.shutdown(Shutdown::Write),
            Io::Stdin(_) | Io::Stdout(_) => Ok(()),
        }
    }

    /// Prepares for being dropped, which closes the descriptor.
    pub(crate) fn close(&self, how: Closing) {
        if let (Closing::Reset, Io::Tcp(io)) = (how, &self.io) {
            // Fails only on a socket that is no longer connected, where there is nobody to tell.
            let _ = socket2::SockRef::from(io).set_linger(Some(Duration::ZERO));
        }
    }

    /// What went wrong with the socket, if something did.
    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        match &self.io {
            Io::Tcp(io) => io.take_error(),
            Io::Unix(io) => io.take_error(),
            Io::Stdin(_) | Io::Stdout(_) => Ok(None),
        }
    }

    /// Enters it into the poll.
    ///
    /// TCP tells of room only to who has met with the want of it, so both directions are watched once and for all. A Unix
    /// socket tells each time its peer has read something: it is watched for room only while it is blocked, or every
    /// message would wake us twice.
    pub(crate) fn register(&mut self, registry: &Registry, key: Key) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        match &mut self.io {
            Io::Stdin(io) => registry.register(io, key.token(), Interest::WRITABLE),
            Io::Stdout(io) => registry.register(io, key.token(), Interest::READABLE),
            Io::Tcp(io) => registry.register(io, key.token(), both),
            Io::Unix(io) => registry.register(io, key.token(), Interest::READABLE),
        }
    }

    /// The last write was cut short: there will be an edge when there is room.
    pub(crate) fn block(&mut self, registry: &Registry, key: Key) -> io::Result<()> {
        self.is_blocked = true;
        self.watch_room(registry, key, true)
    }

    /// There is room. Says whether that was waited for.
    pub(crate) fn unblock(&mut self, registry: &Registry, key: Key) -> io::Result<bool> {
        if mem::take(&mut self.is_blocked) {
            return Ok(true);
        }
        self.watch_room(registry, key, false)?;
        Ok(false)
    }

    fn watch_room(&mut self, registry: &Registry, key: Key, wants: bool) -> io::Result<()> {
        let Io::Unix(io) = &mut self.io else { return Ok(()) };
        if self.watches_room == wants {
            return Ok(());
        }
        self.watches_room = wants;
        let interest = if wants { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.reregister(io, key.token(), interest)
    }
}

/// How a connection was lost, from the error of a read or write.
pub(crate) fn loss(error: &io::Error) -> Loss {
    if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
        Loss::Reset
    } else {
        Loss::Failed
    }
}

fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_what_they_were_made_from() {
        let id = (1 << 60) - 1;
        for key in [
            Key::Conn(ConnId(0)),
            Key::Conn(ConnId(id)),
            Key::Listener(ListenerId(65_535)),
            Key::Mail,
            Key::Signals,
            Key::Stderr(JobId(id)),
            Key::Stdin(JobId(7)),
            Key::Stdout(JobId(8)),
        ] {
            assert_eq!(Key::of(key.token()), key);
        }
    }
}
