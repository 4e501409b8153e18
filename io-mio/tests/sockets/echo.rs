//! A machine that sends back what it is sent, or relays it to an address, and tells the test what it heard.

use carapace_proto::buffer::Buffer;
use carapace_proto::ids::{ConnId, ListenerId, RecordId};
use carapace_proto::machine::{
    Address, Closing, DialError, Input, Loss, Machine, Output, PeerAddr, Sink, Source,
};
use carapace_proto::time::{Instant, Wall};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Sender;

/// Above this much unsent the source is paused...
pub(crate) const HIGH: usize = 256 * 1024;
/// ...and below this resumed.
const LOW: usize = 64 * 1024;

/// What the machine heard, for the test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Accepted(ListenerId, PeerAddr),
    DialFailed(DialError),
    Lost(Loss),
    Paused,
    Recorded(RecordId),
    RecordFailed(RecordId),
    Resumed,
    Wall(Wall),
}

/// What one connection still has to be sent, and whose bytes those are.
#[derive(Debug)]
struct Conn {
    out: Buffer,
    is_announced: bool,
    /// Where its bytes go: to itself, or to the other half of a relay.
    other: ConnId,
    is_paused: bool,
    /// No more will be put into `out`.
    is_finished: bool,
}

/// The machine. Connections of listeners 0 and 3 are echoed, those of listener 1 relayed. What arrives on listener 2 is
/// written to the log, and answered with `ok` when it is there. One that says `quit` there ends it all, and one that
/// says `reset` or `close` is.
#[derive(Debug)]
pub(crate) struct Echo {
    conns: BTreeMap<ConnId, Conn>,
    outputs: VecDeque<Output>,
    relay_to: Address,
    dialed: u64,
    heard: Sender<Heard>,
    log: Buffer,
    records: u64,
    waiting: VecDeque<(RecordId, ConnId)>,
    commands: Vec<ConnId>,
    /// The most that was ever unsent.
    most_held: usize,
}

impl Echo {
    pub(crate) fn new(relay_to: Address, heard: Sender<Heard>) -> Self {
        Self {
            conns: BTreeMap::new(),
            outputs: VecDeque::new(),
            relay_to,
            dialed: 0,
            heard,
            log: Buffer::new(),
            records: 0,
            waiting: VecDeque::new(),
            commands: Vec::new(),
            most_held: 0,
        }
    }

    fn hear(&self, heard: Heard) {
        // A test that has seen enough listens no more.
        let _ = self.heard.send(heard);
    }

    fn open(&mut self, conn: ConnId, other: ConnId) {
        let opened =
            Conn { out: Buffer::new(), is_announced: false, other, is_paused: false, is_finished: false };
        self.conns.insert(conn, opened);
    }

    fn push(&mut self, to: ConnId, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&to) else { return };
        conn.out.push(bytes);
        if !conn.is_announced {
            conn.is_announced = true;
            self.outputs.push_back(Output::Write(Sink::Conn(to)));
        }
        let held = conn.out.len();
        self.most_held = self.most_held.max(held);
        assert!(self.most_held <= HIGH + 256 * 1024, "a paused source was read");
    }

    fn bytes(&mut self, from: ConnId, bytes: &[u8]) {
        if self.commands.contains(&from) {
            return self.command(from, bytes);
        }
        let Some(to) = self.conns.get(&from).map(|conn| conn.other) else { return };
        self.push(to, bytes);
        let held = self.conns.get(&to).map_or(0, |conn| conn.out.len());
        let Some(conn) = self.conns.get_mut(&from) else { return };
        if held > HIGH && !conn.is_paused {
            conn.is_paused = true;
            self.outputs.push_back(Output::Pause(Source::Conn(from)));
            self.hear(Heard::Paused);
        }
    }

    fn command(&mut self, conn: ConnId, bytes: &[u8]) {
        match bytes {
            b"quit" => self.outputs.push_back(Output::Drained),
            b"reset" => self.outputs.push_back(Output::Close { conn, how: Closing::Reset }),
            b"close" => self.outputs.push_back(Output::Close { conn, how: Closing::Orderly }),
            record => {
                self.log.push(record);
                self.records += 1;
                let through = RecordId(self.records);
                self.waiting.push_back((through, conn));
                self.outputs.push_back(Output::Record { through });
            }
        }
    }

    fn sent(&mut self, to: ConnId, count: usize) {
        let Some(conn) = self.conns.get_mut(&to) else { return };
        conn.out.consume(count);
        conn.is_announced = !conn.out.is_empty();
        let (held, from) = (conn.out.len(), conn.other);
        self.finish(to);
        let Some(source) = self.conns.get_mut(&from) else { return };
        if held < LOW && source.is_paused {
            source.is_paused = false;
            self.outputs.push_back(Output::Resume(Source::Conn(from)));
            self.hear(Heard::Resumed);
        }
    }

    fn finish(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(&id)
            && conn.is_finished
            && conn.out.is_empty()
        {
            self.outputs.push_back(Output::Shutdown(id));
        }
    }

    fn eof(&mut self, from: ConnId) {
        let Some(to) = self.conns.get(&from).map(|conn| conn.other) else { return };
        if let Some(conn) = self.conns.get_mut(&to) {
            conn.is_finished = true;
        }
        self.finish(to);
    }

    fn lost(&mut self, id: ConnId) {
        let Some(other) = self.conns.remove(&id).map(|conn| conn.other) else { return };
        if let Some(conn) = self.conns.get_mut(&other) {
            conn.is_finished = true;
        }
        self.finish(other);
    }

    fn accepted(&mut self, conn: ConnId, listener: ListenerId) {
        match listener {
            ListenerId(0 | 3) => self.open(conn, conn),
            ListenerId(1) => {
                let dialed = ConnId::dialed(self.dialed);
                self.dialed += 1;
                self.open(conn, dialed);
                self.open(dialed, conn);
                self.outputs.push_back(Output::Pause(Source::Conn(conn)));
                self.outputs.push_back(Output::Dial { conn: dialed, to: self.relay_to.clone() });
            }
            ListenerId(_) => {
                self.open(conn, conn);
                self.commands.push(conn);
            }
        }
    }
}

impl Machine for Echo {
    type Timer = ();

    fn handle(&mut self, _: Instant, input: Input<'_>) {
        match input {
            Input::Accepted { conn, listener, peer } => {
                self.hear(Heard::Accepted(listener, peer));
                self.accepted(conn, listener);
            }
            Input::Connected { conn } => {
                if let Some(other) = self.conns.get(&conn).map(|conn| conn.other) {
                    self.outputs.push_back(Output::Resume(Source::Conn(other)));
                }
            }
            Input::DialFailed { conn, error } => {
                self.hear(Heard::DialFailed(error));
                self.lost(conn);
            }
            Input::Bytes { source: Source::Conn(conn), bytes } => self.bytes(conn, bytes),
            Input::Sent { sink: Sink::Conn(conn), count } => self.sent(conn, count),
            Input::Sent { sink: Sink::Audit, count } => self.log.consume(count),
            Input::Eof { source: Source::Conn(conn) } => self.eof(conn),
            Input::Lost { conn, loss } => {
                self.hear(Heard::Lost(loss));
                self.lost(conn);
            }
            Input::Recorded { through } => {
                self.hear(Heard::Recorded(through));
                while let Some((_, conn)) = self.waiting.pop_front_if(|(id, _)| *id <= through) {
                    self.push(conn, b"ok");
                }
            }
            Input::RecordFailed { through } => {
                self.hear(Heard::RecordFailed(through));
                self.log.clear();
                self.waiting.clear();
            }
            Input::Wall { wall } => self.hear(Heard::Wall(wall)),
            other => panic!("not to be expected here: {other:?}"),
        }
    }

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<(Instant, ())> {
        None
    }

    fn unsent(&self, sink: Sink) -> &[u8] {
        match sink {
            Sink::Audit => self.log.bytes(),
            Sink::Conn(conn) => self.conns.get(&conn).map_or(&[], |conn| conn.out.bytes()),
            Sink::Stdin(_) => &[],
        }
    }
}
