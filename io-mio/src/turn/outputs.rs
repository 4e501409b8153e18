//! Carrying out what the machine says, in order.

use super::{End, Loop};
use crate::child::Started;
use crate::port::{Io, Key, Port};
use carapace_policy::Exec;
use carapace_proto::ids::{ConnId, JobId};
use carapace_proto::machine::{Closing, Input, Loss, Machine, Output, Sink, Source, StartError};

impl<M: Machine> Loop<M> {
    /// Everything the machine says by now. Writing and recording are only noted: each is done once for a whole turn.
    pub(super) fn carry_out(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Close { conn, how } => self.close(conn, how),
                Output::CloseStdin(job) => drop(self.remove_port(Key::Stdin(job))),
                Output::Dial { conn, to } => self.dial(conn, &to),
                Output::Drained => self.end = Some(End::Drained),
                Output::Forget(job) => self.forget(job),
                Output::Pause(source) => self.pause(source),
                Output::Record { through } => self.record = Some(through),
                Output::Resume(source) => self.resume(source),
                Output::Shutdown(conn) => self.shut_down(conn),
                Output::Signal { job, signal } => {
                    if let Some(children) = &self.children {
                        children.signal(job, signal);
                    }
                }
                Output::Start { job, exec } => self.start(job, &exec),
                Output::Write(Sink::Audit) => {}
                Output::Write(sink) => self.announced.push(sink),
                unknown => log::error!("an output that this driver does not know: {unknown:?}"),
            }
        }
    }

    fn close(&mut self, conn: ConnId, how: Closing) {
        self.dials.forget(conn);
        if let Some(port) = self.remove_port(Key::Conn(conn)) {
            port.close(how);
        }
    }

    fn shut_down(&mut self, conn: ConnId) {
        if let Some(port) = self.ports.get(&Key::Conn(conn))
            && let Err(error) = port.shutdown()
        {
            // The connection is gone; reading it will say so.
            log::debug!("{conn}: cannot be shut down: {error}");
        }
    }

    fn pause(&mut self, source: Source) {
        let key = Key::from(source);
        let Some(port) = self.ports.get_mut(&key) else { return };
        port.is_paused = true;
        if let Some(loss) = port.broken {
            self.lose(key, loss);
        }
    }

    /// No edge will come for what arrived meanwhile.
    fn resume(&mut self, source: Source) {
        let key = Key::from(source);
        if let Some(port) = self.ports.get_mut(&key) {
            port.is_paused = false;
            self.list(key);
        }
    }

    fn start(&mut self, job: JobId, exec: &Exec) {
        let started = match &mut self.children {
            Some(children) => children.start(job, exec),
            None => Err(StartError::Other("this daemon runs no tools".into())),
        };
        let input = match started {
            Ok(started) => {
                let pid = started.pid.as_raw().unsigned_abs();
                self.enter_pipes(job, started);
                Input::Started { job, pid }
            }
            Err(error) => {
                log::warn!("{job}: {} not started: {error:?}", exec.binary());
                Input::StartFailed { job, error }
            }
        };
        self.machine.handle(self.now, input);
    }

    fn enter_pipes(&mut self, job: JobId, started: Started) {
        let Started { stdin, stdout, stderr, pid: _ } = started;
        let pipes = [
            stdin.map(|io| (Key::Stdin(job), Io::Stdin(io))),
            Some((Key::Stdout(job), Io::Stdout(stdout))),
            Some((Key::Stderr(job), Io::Stdout(stderr))),
        ];
        for (key, io) in pipes.into_iter().flatten() {
            let mut port = Port::new(io);
            match port.register(self.poll.registry(), key) {
                Ok(()) => drop(self.ports.insert(key, port)),
                Err(error) => {
                    // Only for want of kernel memory. The port then looks as if the job had closed it.
                    log::error!("{job}: a pipe cannot be waited for: {error}");
                    self.ports.insert(key, port);
                    self.lose(key, Loss::Failed);
                }
            }
        }
    }

    fn forget(&mut self, job: JobId) {
        for key in [Key::Stdin(job), Key::Stdout(job), Key::Stderr(job)] {
            self.remove_port(key);
        }
        if let Some(children) = &mut self.children {
            children.forget(job);
        }
    }
}
