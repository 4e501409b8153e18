//! Connections and pipes: bytes on their way, in pieces, with delays, until they arrive or are cut.

use crate::env::Entity;
use carapace_proto::time::Instant;
use std::collections::{BTreeMap, VecDeque};

/// A connection between two ends, or the pipe between a job and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WireId(pub(crate) u64);

/// One of the two ends of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    pub(crate) wire: WireId,
    pub(crate) side: usize,
}

impl End {
    pub(crate) const fn other(self) -> Self {
        Self { wire: self.wire, side: 1 - self.side }
    }
}

/// What kind of connection a wire is, for whoever chooses one to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A client of the agent, HTTP or shim.
    Client,
    /// The agent machine's link.
    Link,
    /// A scripted agent's link.
    Peer,
    /// A job's pipe: these do not fail by themselves.
    Pipe,
    /// An upstream's connection.
    Upstream,
}

/// How one direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fin {
    Closed,
    Reset,
}

/// What a write came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// So many bytes were taken; none when there is no room.
    Count(usize),
    /// The other end is gone.
    Broken,
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Bytes(Vec<u8>),
    Eof,
    Nothing,
    Reset,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) segments: VecDeque<(Instant, Vec<u8>)>,
    pub(crate) held: usize,
    pub(crate) capacity: usize,
    pub(crate) last_arrival: Instant,
    /// How it ends, and when that arrives.
    pub(crate) fin: Option<(Instant, Fin)>,
    pub(crate) is_writer_blocked: bool,
    /// The reader has closed: what arrives is answered with a reset.
    pub(crate) is_reader_gone: bool,
}

impl Pipe {
    const fn new(capacity: usize) -> Self {
        Self {
            segments: VecDeque::new(),
            held: 0,
            capacity,
            last_arrival: Instant::ORIGIN,
            fin: None,
            is_writer_blocked: false,
            is_reader_gone: false,
        }
    }

    /// When there is something to read, at the earliest.
    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        match self.segments.front() {
            Some((at, _)) => Some(*at),
            None => self.fin.map(|(at, _)| at),
        }
    }

    /// Takes what has arrived, up to `max` bytes.
    pub(crate) fn take(&mut self, now: Instant, max: usize) -> Got {
        let mut bytes = Vec::new();
        while let Some((at, segment)) = self.segments.front_mut() {
            if *at > now || bytes.len() == max {
                break;
            }
            let room = max - bytes.len();
            if segment.len() <= room {
                bytes.append(segment);
                self.segments.pop_front();
            } else {
                bytes.extend(segment.drain(..room));
            }
        }
        self.held -= bytes.len();
        if !bytes.is_empty() {
            return Got::Bytes(bytes);
        }
        match self.fin {
            Some((at, fin)) if at <= now && self.segments.is_empty() => match fin {
                Fin::Closed => Got::Eof,
                Fin::Reset => Got::Reset,
            },
            Some(_) | None => Got::Nothing,
        }
    }

    /// Drops all but the first `keep` bytes that are on their way.
    pub(crate) fn truncate(&mut self, keep: usize) {
        let mut left = keep;
        self.segments.retain_mut(|(_, segment)| {
            segment.truncate(left);
            left -= segment.len();
            !segment.is_empty()
        });
        self.held = keep - left;
    }
}

#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) kind: Kind,
    pub(crate) owners: [Entity; 2],
    /// `pipes[side]` carries what the end `side` writes.
    pub(crate) pipes: [Pipe; 2],
    pub(crate) is_closed: [bool; 2],
    /// Nothing gets through any more, and neither end hears of it.
    pub(crate) is_black_hole: bool,
    pub(crate) pieces_max: usize,
}

impl Wire {
    /// What the end `side` reads from.
    pub(crate) fn inward(&mut self, side: usize) -> &mut Pipe {
        &mut self.pipes[1 - side]
    }
}

/// All wires.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(crate) wires: BTreeMap<WireId, Wire>,
    last: u64,
}

impl Net {
    pub(crate) fn open(
        &mut self,
        kind: Kind,
        owners: [Entity; 2],
        capacity: usize,
        pieces_max: usize,
    ) -> WireId {
        self.last += 1;
        let id = WireId(self.last);
        let pipes = [Pipe::new(capacity), Pipe::new(capacity)];
        let wire = Wire { kind, owners, pipes, is_closed: [false; 2], is_black_hole: false, pieces_max };
        self.wires.insert(id, wire);
        id
    }

    pub(crate) fn of_kind(&self, wanted: impl Fn(Kind) -> bool) -> Vec<WireId> {
        let alive = |wire: &Wire| wanted(wire.kind) && wire.is_closed == [false; 2];
        self.wires.iter().filter(|(_, wire)| alive(wire)).map(|(id, _)| *id).collect()
    }
}
