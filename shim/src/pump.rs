//! Moves bytes between the agent and the three standard streams, and passes signals on.

use crate::end::End;
use crate::outlet::Outlet;
use crate::run::{Output, Run};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::read;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Signals that are the tool's business.
const PASSED: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];
const BUFFER_BYTES: usize = 64 * 1024;

/// Everything that the loop looks at.
struct Pump<'a> {
    agent: &'a UnixStream,
    run: Run,
    stdin: BorrowedFd<'a>,
    stdout: Outlet<'a>,
    stderr: Outlet<'a>,
    signals: &'a SignalFd,
    buffer: Vec<u8>,
}

/// What a poll said.
struct Ready {
    agent: bool,
    signals: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// Carries out a run to its end.
pub(crate) fn pump(agent: &UnixStream, signals: &SignalFd, run: Run) -> End {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let pump = Pump {
        agent,
        run,
        stdin: stdin.as_fd(),
        stdout: Outlet::new(stdout.as_fd()),
        stderr: Outlet::new(stderr.as_fd()),
        signals,
        buffer: vec![0; BUFFER_BYTES],
    };
    pump.carry_out().unwrap_or_else(End::errno)
}

/// Blocks the signals that are passed on, and has them read like bytes. No child inherits that: there is none.
pub(crate) fn catch_signals() -> Result<SignalFd, Errno> {
    let set: SigSet = PASSED.into_iter().collect();
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

impl Pump<'_> {
    fn carry_out(mut self) -> Result<End, Errno> {
        self.send()?;
        loop {
            if let Some(end) = self.run.take_end() {
                return Ok(end);
            }
            let ready = self.wait()?;
            self.turn(&ready)?;
        }
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Result<Ready, Errno> {
        let is_over = self.run.is_over();
        let out_if = |wanted: bool| if wanted { PollFlags::POLLOUT } else { PollFlags::empty() };
        let wants_agent = PollFlags::POLLIN | out_if(!self.run.unsent().is_empty());
        let wants_input = self.run.input_room() > 0;
        let wants_stdout = !self.run.output(Output::Stdout).is_empty();
        let wants_stderr = !self.run.output(Output::Stderr).is_empty();
        let watched = [
            (true, self.signals.as_fd(), PollFlags::POLLIN),
            (!is_over, self.agent.as_fd(), wants_agent),
            (wants_input, self.stdin, PollFlags::POLLIN),
            (wants_stdout, self.stdout.as_fd(), PollFlags::POLLOUT),
            (wants_stderr, self.stderr.as_fd(), PollFlags::POLLOUT),
        ];
        // What is not wanted is left out: a poll reports a hang-up whether it was asked for or not.
        let mut fds: Vec<PollFd<'_>> = watched
            .iter()
            .filter(|(wanted, ..)| *wanted)
            .map(|(_, fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut polled = fds.iter();
        let mut is_ready = |wanted: bool| {
            let fd = if wanted { polled.next() } else { None };
            fd.and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
        };
        let [signals, agent, stdin, stdout, stderr] = watched.map(|(wanted, ..)| is_ready(wanted));
        Ok(Ready { agent, signals, stdin, stdout, stderr })
    }

    fn turn(&mut self, ready: &Ready) -> Result<(), Errno> {
        if ready.signals {
            self.take_signals()?;
        }
        if ready.agent {
            self.receive()?;
        }
        if ready.stdout || self.stdout.never_blocks() {
            self.write(Output::Stdout);
        }
        if ready.stderr || self.stderr.never_blocks() {
            self.write(Output::Stderr);
        }
        if ready.stdin {
            self.read_input();
        }
        self.send()
    }

    // ---- the agent ----

    fn receive(&mut self) -> Result<(), Errno> {
        match recv(self.agent.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::ECONNRESET) => self.run.handle_agent_lost(),
            Ok(count) => self.run.handle_bytes(self.buffer.get(..count).unwrap_or_default()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Errno> {
        if self.run.is_over() || self.run.unsent().is_empty() {
            return Ok(());
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.agent.as_raw_fd(), self.run.unsent(), flags) {
            Ok(count) => self.run.sent(count),
            // It may have said why before it closed: what it said is read first.
            Err(Errno::EPIPE | Errno::ECONNRESET) => self.run.sent(self.run.unsent().len()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    // ---- the standard streams ----

    fn read_input(&mut self) {
        let room = self.run.input_room();
        let Some(buffer) = self.buffer.get_mut(..room) else { return };
        if room == 0 {
            return;
        }
        match read(self.stdin, buffer) {
            Ok(count) => self.run.handle_input(buffer.get(..count).unwrap_or_default()),
            // Another reader of the same description was faster.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Whatever it is, no more will come.
            Err(_) => self.run.handle_input(&[]),
        }
    }

    fn write(&mut self, output: Output) {
        let outlet = match output {
            Output::Stderr => &mut self.stderr,
            Output::Stdout => &mut self.stdout,
        };
        let bytes = self.run.output(output);
        if bytes.is_empty() {
            return;
        }
        match outlet.write(bytes) {
            Ok(count) => self.run.written(output, count),
            Err(Errno::EPIPE) => self.run.handle_broken_pipe(),
            Err(_) => self.run.drop_output(output),
        }
    }

    // ---- signals ----

    fn take_signals(&mut self) -> Result<(), Errno> {
        while let Some(info) = self.signals.read_signal()? {
            let number = u8::try_from(info.ssi_signo).unwrap_or_default();
            if !is_ignored(number) {
                self.run.handle_signal(number);
            }
        }
        Ok(())
    }
}

/// Whether this process was started with the signal ignored, as by nohup: so would the tool have been.
fn is_ignored(number: u8) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> number.saturating_sub(1) & 1 == 1
}
