//! The one shape of [`Server`](crate::server::Server) and [`Agent`](crate::agent::Agent).
//!
//! A driver owns sockets, pipes, children, the audit file and the clock; a machine owns everything else. A turn of a
//! driver is:
//!
//! 1. sleep until something is ready or [`Machine::poll_timeout`] says so, then sample the clock **once**;
//! 2. call [`Machine::handle`] for whatever happened, and [`Machine::handle_timeout`] when the wake-up is due;
//! 3. call [`Machine::poll_output`] until it says `None`, carrying each output out in order;
//! 4. write each sink that was announced by [`Output::Write`] or has become writable: a prefix of
//!    [`Machine::unsent`], once, then [`Input::Sent`] with the length of that prefix; and again from 3 until nothing
//!    is left to do.
//!
//! Time may not run backwards between calls. Inputs for an id that is gone are ignored, since a driver may hold
//! events that were overtaken; inputs for an id that never was are a bug of the driver and caught in debug builds.
//! No byte of a peer can make a machine panic or refuse an input: a peer's fault is a value inside the machine.

use crate::ids::{ConnId, JobId, ListenerId, RecordId};
use crate::time::{Instant, Wall};
use carapace_policy::{Exec, Policy};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a driver drives.
pub trait Machine {
    /// The machine's names for its wake-ups.
    type Timer: Copy + core::fmt::Debug;

    /// Takes in one thing that happened.
    fn handle(&mut self, now: Instant, input: Input<'_>);

    /// Fires every wake-up that is due. Afterwards [`Machine::poll_timeout`] is later than `now`.
    fn handle_timeout(&mut self, now: Instant);

    /// The next thing to carry out, in order. `None`: the driver may write and sleep.
    fn poll_output(&mut self) -> Option<Output>;

    /// When to call [`Machine::handle_timeout`] at the latest, and what for.
    fn poll_timeout(&self) -> Option<(Instant, Self::Timer)>;

    /// The bytes that wait for a sink. They stay here until [`Input::Sent`] says that they went.
    fn unsent(&self, sink: Sink) -> &[u8];
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A connection.
    Conn(ConnId),
    /// A job's standard output.
    Stdout(JobId),
    /// A job's standard error.
    Stderr(JobId),
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sink {
    /// The audit log. Records are whole lines; see [`Output::Record`].
    Audit,
    /// A connection.
    Conn(ConnId),
    /// A job's standard input.
    Stdin(JobId),
}

/// The other end of an accepted connection, as far as the kernel vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAddr {
    /// TCP. `uid` is the owner of the socket at the other end, known only for peers on this machine.
    Tcp {
        /// The peer's address.
        addr: SocketAddr,
        /// The uid that owns the peer's socket, when it is on this machine and could be found.
        uid: Option<u32>,
    },
    /// A Unix socket, with the credentials of whoever connected.
    Unix {
        /// Effective uid at connect.
        uid: u32,
        /// Effective gid at connect.
        gid: u32,
        /// Process id at connect: a hint, it may belong to another process by now.
        pid: i32,
    },
}

/// Where a connection is to be made to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// A name or literal address, and a port. The driver resolves names off its loop.
    Tcp {
        /// Host name or literal address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why a dial came to nothing, as far as it matters to what a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// The name does not resolve.
    NoSuchHost,
    /// Connection refused, or no such socket: nobody listens.
    Refused,
    /// Anything else: no route, no descriptors, timed out in the kernel.
    Unreachable,
}

/// How a connection ended other than by an orderly end of the peer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Reset by the peer, or broken pipe.
    Reset,
    /// Any other error of the socket.
    Failed,
}

/// How a child ended (`waitpid(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By exiting with this code.
    Exited(u8),
    /// By this signal.
    Signaled {
        /// Signal number.
        signal: u8,
        /// Whether a core was dumped.
        core: bool,
    },
}

/// Why a child could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// The binary is not there.
    NotFound,
    /// The binary may not be executed, or is no program.
    NotExecutable,
    /// The working directory is outside what the policy allows, or cannot be entered.
    BadDirectory,
    /// The kernel has no room: processes, descriptors, memory.
    NoRoom,
    /// Anything else; the text is for the operator's log only.
    Other(String),
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input<'a> {
    /// A listener accepted a connection. The id is the driver's: [`ConnId::accepted`].
    Accepted {
        /// The new connection.
        conn: ConnId,
        /// Who accepted it.
        listener: ListenerId,
        /// Who is at the other end.
        peer: PeerAddr,
    },
    /// A connection asked for by [`Output::Dial`] stands.
    Connected {
        /// The connection.
        conn: ConnId,
    },
    /// A connection asked for by [`Output::Dial`] could not be made; its id is gone.
    DialFailed {
        /// The connection.
        conn: ConnId,
        /// Why.
        error: DialError,
    },
    /// Bytes arrived.
    Bytes {
        /// From where.
        source: Source,
        /// Never empty.
        bytes: &'a [u8],
    },
    /// A prefix of [`Machine::unsent`] was written.
    Sent {
        /// Where to.
        sink: Sink,
        /// Its length.
        count: usize,
    },
    /// No more bytes will come from a source. A connection can still be written to.
    Eof {
        /// The source.
        source: Source,
    },
    /// A connection broke, in both directions. Its id is gone and the driver has closed it.
    Lost {
        /// The connection.
        conn: ConnId,
        /// How.
        loss: Loss,
    },
    /// A job's standard input was closed by the job: what is unsent for it will never be read.
    StdinLost {
        /// The job.
        job: JobId,
    },
    /// Records are in the log as durably as the driver is configured to make them.
    Recorded {
        /// The last of them.
        through: RecordId,
    },
    /// Records could not be written; nothing of them is in the log.
    RecordFailed {
        /// The last of them.
        through: RecordId,
    },
    /// A job runs.
    Started {
        /// The job.
        job: JobId,
        /// Its process id, for logs.
        pid: u32,
    },
    /// A job could not be started; its id is gone.
    StartFailed {
        /// The job.
        job: JobId,
        /// Why.
        error: StartError,
    },
    /// A job's process has ended. Its outputs may still hold bytes. It stays a zombie until [`Output::Forget`], so that
    /// no other process group can be meant when the job's is signalled.
    Exited {
        /// The job.
        job: JobId,
        /// How it ended.
        status: ExitStatus,
    },
    /// The policy was read anew.
    Reload {
        /// It.
        policy: Box<Policy>,
    },
    /// Finish what runs, take on nothing new.
    Drain,
    /// What the wall clock says now: at the start, and whenever it was set since.
    Wall {
        /// The time.
        wall: Wall,
    },
}

/// What is to be done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Make a connection; answer [`Input::Connected`] or [`Input::DialFailed`].
    Dial {
        /// Its id: [`ConnId::dialed`].
        conn: ConnId,
        /// Where to.
        to: Address,
    },
    /// There are bytes to write. Said once, until everything unsent was written.
    Write(Sink),
    /// Read no more from a source, until [`Output::Resume`].
    Pause(Source),
    /// Read again from a source.
    Resume(Source),
    /// Say that no more bytes will come: `shutdown(SHUT_WR)`. Never said while bytes are unsent.
    Shutdown(ConnId),
    /// Close a connection; its id is gone, and what was unsent with it.
    Close {
        /// The connection.
        conn: ConnId,
        /// In which way.
        how: Closing,
    },
    /// Append everything unsent for [`Sink::Audit`] to the log with one write, say [`Input::Sent`] for it, and
    /// [`Input::Recorded`] once it is durable; or [`Input::RecordFailed`], having taken back what a short write left.
    Record {
        /// The last record of them.
        through: RecordId,
    },
    /// Start a child process; answer [`Input::Started`] or [`Input::StartFailed`]. Its outputs are read at once.
    Start {
        /// Its id.
        job: JobId,
        /// What to run, exactly.
        exec: Box<Exec>,
    },
    /// Close a job's standard input. Never said while bytes are unsent for it.
    CloseStdin(JobId),
    /// Send a signal to a job's process group.
    Signal {
        /// The job.
        job: JobId,
        /// Signal number.
        signal: u8,
    },
    /// Reap a job's process, close what is left of its pipes and forget it: its id is gone. Only after
    /// [`Input::Exited`].
    Forget(JobId),
    /// Everything is finished after [`Input::Drain`]: the driver may end.
    Drained,
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// `close(2)`.
    Orderly,
    /// With a reset (`SO_LINGER` of zero), so that the peer cannot take what it got for everything.
    Reset,
}
