//! Bytes in and out: ports, and the audit log.

use super::{Loop, SHARE_BYTES};
use crate::audit::Appended;
use crate::port::{Key, loss};
use carapace_proto::machine::{Input, Loss, Machine, Sink, Source};
use mio::event::Event;
use std::io::{self, ErrorKind};
use std::mem;

impl<M: Machine> Loop<M> {
    /// Takes in what the poll says of a port.
    pub(super) fn port_changed(&mut self, key: Key, event: &Event) {
        // Gone earlier in this batch.
        let Some(port) = self.ports.get_mut(&key) else { return };
        if matches!(key, Key::Stdin(_)) && (event.is_error() || event.is_write_closed()) {
            return self.lose(key, Loss::Reset);
        }
        port.note(event);
        if event.is_writable() {
            match port.unblock(self.poll.registry(), key) {
                Ok(true) => self.announced.extend(sink(key)),
                Ok(false) => {}
                Err(error) => log::error!("{key:?}: cannot be waited for: {error}"),
            }
        }
        if event.is_error() && (port.is_paused || port.is_ended) {
            // Nobody would read and find out.
            let error = port.take_error().ok().flatten();
            self.lose(key, error.as_ref().map_or(Loss::Reset, loss));
        } else if port.wants_listing() {
            self.ready.push(key);
        }
    }

    /// Reads each ready port, up to its share.
    pub(super) fn read_ready(&mut self) {
        let mut batch = mem::take(&mut self.ready);
        for key in batch.drain(..) {
            self.read(key);
        }
        // Whichever list is longer keeps its memory; both are empty nearly always.
        batch.append(&mut self.ready);
        self.ready = batch;
    }

    fn read(&mut self, key: Key) {
        let Some(source) = key.source() else { return };
        let mut share = SHARE_BYTES;
        loop {
            let Some(port) = self.ports.get_mut(&key) else { return };
            port.is_listed = false;
            if port.is_paused {
                return;
            }
            let room = self.buffer.len();
            match port.read(&mut self.buffer) {
                Ok(0) => return self.ended(key, source),
                Ok(count) => {
                    let is_drained = count < room && !port.is_closing;
                    port.is_readable = !is_drained;
                    self.rest.handled(count);
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    self.machine.handle(self.now, Input::Bytes { source, bytes });
                    // The machine may have had enough, of this port or altogether.
                    self.carry_out();
                    if is_drained {
                        return;
                    }
                    share = share.saturating_sub(count);
                    if share == 0 {
                        return self.list(key);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    port.is_readable = false;
                    return;
                }
                Err(error) => {
                    let loss = port.broken.unwrap_or_else(|| loss(&error));
                    return self.lose(key, loss);
                }
            }
        }
    }

    /// Puts a port on the list of ready ones, if that is where it belongs.
    pub(super) fn list(&mut self, key: Key) {
        if let Some(port) = self.ports.get_mut(&key)
            && port.wants_listing()
        {
            self.ready.push(key);
        }
    }

    fn ended(&mut self, key: Key, source: Source) {
        let Some(port) = self.ports.get_mut(&key) else { return };
        port.is_ended = true;
        if let Some(loss) = port.broken {
            return self.lose(key, loss);
        }
        if !matches!(key, Key::Conn(_)) {
            self.remove_port(key);
        }
        self.machine.handle(self.now, Input::Eof { source });
        self.carry_out();
    }

    /// Writes once what waits for a sink.
    pub(super) fn write(&mut self, sink: Sink) {
        let key = match sink {
            // Only whole records are written, when the machine says so.
            Sink::Audit => return,
            Sink::Conn(id) => Key::Conn(id),
            Sink::Stdin(id) => Key::Stdin(id),
        };
        let Some(port) = self.ports.get_mut(&key) else { return };
        let bytes = self.machine.unsent(sink);
        if bytes.is_empty() || port.is_blocked || port.broken.is_some() {
            return;
        }
        let count = match port.write(bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return self.write_failed(key, loss(&error)),
        };
        if count < bytes.len()
            && let Err(error) = port.block(self.poll.registry(), key)
        {
            log::error!("{key:?}: cannot be waited for: {error}");
            return self.lose(key, Loss::Failed);
        }
        if count > 0 {
            self.rest.handled(count);
            self.machine.handle(self.now, Input::Sent { sink, count });
        }
    }

    /// What arrived before the connection broke may be an answer that says why: it is read before the loss is told.
    fn write_failed(&mut self, key: Key, loss: Loss) {
        let Some(port) = self.ports.get_mut(&key) else { return };
        if matches!(key, Key::Stdin(_)) || port.is_paused || port.is_ended {
            return self.lose(key, loss);
        }
        port.broken = Some(loss);
        port.is_closing = true;
        port.is_readable = true;
        self.list(key);
    }

    pub(super) fn lose(&mut self, key: Key, loss: Loss) {
        if self.remove_port(key).is_none() {
            return;
        }
        let input = match key {
            Key::Conn(conn) => Input::Lost { conn, loss },
            Key::Stdout(job) => Input::Eof { source: Source::Stdout(job) },
            Key::Stderr(job) => Input::Eof { source: Source::Stderr(job) },
            Key::Stdin(job) => Input::StdinLost { job },
            Key::Listener(_) | Key::Mail | Key::Signals => return,
        };
        self.machine.handle(self.now, input);
        self.carry_out();
    }

    /// Appends the records that the machine wants written: all of a turn's with one write.
    pub(super) fn append(&mut self) {
        let Some(through) = self.record.take() else { return };
        let records = self.machine.unsent(Sink::Audit);
        let result = match &mut self.audit {
            Some(audit) => audit.append(self.now, records, &self.post),
            None => Err(ErrorKind::Unsupported.into()),
        };
        let count = records.len();
        match result {
            Ok(Appended::Done) => {
                self.machine.handle(self.now, Input::Sent { sink: Sink::Audit, count });
                self.machine.handle(self.now, Input::Recorded { through });
            }
            Ok(Appended::Later) => self.syncing = Some(through),
            Ok(Appended::Busy) => self.record = Some(through),
            Err(_) => self.machine.handle(self.now, Input::RecordFailed { through }),
        }
    }

    /// The audit log was synced.
    pub(super) fn synced(&mut self, result: io::Result<()>) {
        let Some(audit) = &mut self.audit else { return };
        let Some((count, result)) = audit.synced(self.now, result, &self.post) else { return };
        let Some(through) = self.syncing.take() else { return };
        match result {
            Ok(()) => {
                self.machine.handle(self.now, Input::Sent { sink: Sink::Audit, count });
                self.machine.handle(self.now, Input::Recorded { through });
            }
            Err(_) => self.machine.handle(self.now, Input::RecordFailed { through }),
        }
    }
}

const fn sink(key: Key) -> Option<Sink> {
    match key {
        Key::Conn(id) => Some(Sink::Conn(id)),
        Key::Stdin(id) => Some(Sink::Stdin(id)),
        Key::Listener(_) | Key::Mail | Key::Signals | Key::Stderr(_) | Key::Stdout(_) => None,
    }
}
