//! What everybody in the simulated world shares: the clock, the queue of who acts when, the wires, the account.

use crate::chance::Chance;
use crate::check::{Check, Failure};
use crate::child::Child;
use crate::climate::Climate;
use crate::disk::Disk;
use crate::ledger::{Ledger, Verdict};
use crate::net::{End, Fin, Got, Kind, Net, Wire, WireId, Wrote};
use crate::rules::Law;
use crate::sabotage::Bug;
use carapace_policy::Policy;
use carapace_proto::ids::{ConnId, JobId, ListenerId, RecordId};
use carapace_proto::machine::{Closing, DialError, ExitStatus, PeerAddr, StartError};
use carapace_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};

/// Whoever acts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entity {
    Actor(u64),
    Chaos,
    Child(JobId),
    Host(Side),
}

/// The two daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Server,
    Agent,
}

/// Who listens where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// The agent's HTTP port for `signal-cli`, and for `files`.
    Http(HttpDoor),
    /// The server's port for agents.
    Link,
    /// The agent's socket for shims.
    Shim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpDoor {
    Files,
    Signal,
}

impl Door {
    pub(crate) const fn side(self) -> Side {
        match self {
            Self::Link => Side::Server,
            Self::Http(_) | Self::Shim => Side::Agent,
        }
    }

    pub(crate) const fn listener(self) -> ListenerId {
        match self {
            Self::Link | Self::Http(HttpDoor::Signal) => ListenerId(0),
            Self::Http(HttpDoor::Files) => ListenerId(1),
            Self::Shim => ListenerId(2),
        }
    }
}

/// What a daemon's driver finds when it wakes up.
#[derive(Debug)]
pub(crate) enum News {
    Accepted { end: End, listener: ListenerId, peer: PeerAddr },
    Connected { conn: ConnId },
    DialFailed { conn: ConnId, error: DialError },
    Drain,
    Exited { job: JobId, status: ExitStatus },
    RecordFailed { through: RecordId },
    Recorded { through: RecordId, count: usize },
    Reload { policy: Box<Policy> },
    Started { job: JobId },
    StartFailed { job: JobId, error: StartError },
    SetClock,
}

/// Somebody new, to be put into the world after this step.
#[derive(Debug)]
pub(crate) enum Newborn {
    Upstream { id: u64, end: End, tool: &'static str },
}

/// The shared world.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) now: Instant,
    pub(crate) step: u64,
    pub(crate) chance: Chance,
    pub(crate) climate: Climate,
    pub(crate) is_calm: bool,
    /// From when on every call that may be made goes through.
    pub(crate) well_from: Option<Instant>,
    pub(crate) queue: BTreeSet<(Instant, Entity)>,
    alarms: BTreeMap<Entity, Instant>,
    pub(crate) net: Net,
    pub(crate) inboxes: BTreeMap<Side, BTreeMap<(Instant, u64), News>>,
    news: u64,
    /// Which daemons run and accept connections.
    pub(crate) listening: BTreeSet<Side>,
    pub(crate) children: BTreeMap<JobId, Child>,
    pub(crate) disk: Disk,
    pub(crate) ledger: Ledger,
    pub(crate) law: Law,
    pub(crate) newborn: Vec<Newborn>,
    pub(crate) last_actor: u64,
    pub(crate) failure: Option<Failure>,
    pub(crate) bug: Option<Bug>,
    pub(crate) is_traced: bool,
}

impl Env {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, is_traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let climate = Climate::storm(&mut chance);
        Self {
            now: Instant::from_micros(1_000_000),
            step: 0,
            chance,
            climate,
            is_calm: false,
            well_from: None,
            queue: BTreeSet::new(),
            alarms: BTreeMap::new(),
            net: Net::default(),
            inboxes: BTreeMap::from([(Side::Server, BTreeMap::new()), (Side::Agent, BTreeMap::new())]),
            news: 0,
            listening: BTreeSet::new(),
            children: BTreeMap::new(),
            disk: Disk::default(),
            ledger: Ledger::default(),
            law: Law::Lax,
            newborn: Vec::new(),
            last_actor: 0,
            failure: None,
            bug,
            is_traced,
        }
    }

    // ---- what is found ----

    pub(crate) fn fail(&mut self, check: Check, detail: impl Into<String>) {
        let failure = Failure { check, detail: detail.into(), step: self.step, micros: self.now.as_micros() };
        if self.failure.is_none() {
            self.say(|| format!("FAILED: {failure}"));
            self.failure = Some(failure);
        }
    }

    pub(crate) fn check(&mut self, verdict: Verdict) {
        if let Err((check, detail)) = verdict {
            self.fail(check, detail);
        }
    }

    /// One line of the trace.
    pub(crate) fn say(&self, line: impl FnOnce() -> String) {
        if self.is_traced {
            let micros = self.now.as_micros();
            println!("{:5} {:4}.{:06} {}", self.step, micros / 1_000_000, micros % 1_000_000, line());
        }
    }

    /// Whether a call that is made now has nothing in its way.
    pub(crate) fn must_succeed(&self) -> bool {
        self.well_from.is_some_and(|from| from <= self.now)
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    // ---- time ----

    pub(crate) fn wake(&mut self, entity: Entity, at: Instant) {
        self.queue.insert((at.max(self.now), entity));
    }

    pub(crate) fn wake_in(&mut self, entity: Entity, micros: u64) {
        self.wake(entity, self.now + Duration::from_micros(micros));
    }

    /// Wakes somebody at `at` or before, and once for however many ask.
    pub(crate) fn alarm(&mut self, entity: Entity, at: Instant) {
        let at = at.max(self.now);
        match self.alarms.get(&entity) {
            Some(set) if *set <= at && self.queue.contains(&(*set, entity)) => {}
            Some(_) | None => {
                if let Some(set) = self.alarms.insert(entity, at) {
                    self.queue.remove(&(set, entity));
                }
                self.queue.insert((at, entity));
            }
        }
    }

    pub(crate) fn alarm_in(&mut self, entity: Entity, micros: u64) {
        self.alarm(entity, self.now + Duration::from_micros(micros));
    }

    /// Tells a daemon's driver something, so much later.
    pub(crate) fn tell(&mut self, side: Side, micros: u64, news: News) {
        let at = self.now + Duration::from_micros(micros);
        self.news += 1;
        let key = (at, self.news);
        self.inboxes.entry(side).or_default().insert(key, news);
        self.wake(Entity::Host(side), at);
    }

    pub(crate) fn next_news(&mut self, side: Side) -> Option<News> {
        let now = self.now;
        let inbox = self.inboxes.get_mut(&side)?;
        let (key, _) = inbox.first_key_value()?;
        let key = *key;
        (key.0 <= now).then(|| inbox.remove(&key)).flatten()
    }

    pub(crate) fn new_actor(&mut self) -> u64 {
        self.last_actor += 1;
        self.last_actor
    }

    // ---- wires ----

    pub(crate) fn open_wire(&mut self, kind: Kind, owners: [Entity; 2]) -> WireId {
        let capacity = match kind {
            Kind::Pipe => 64 * 1024,
            Kind::Client | Kind::Link | Kind::Peer | Kind::Upstream => {
                *self.chance.pick(&[4_096, 64 * 1024, crate::caps::WIRE]).unwrap_or(&65_536)
            }
        };
        let pieces: &[usize] = if self.climate.shreds { &[3, 60, 1_500, 65_536] } else { &[16_384, 1 << 20] };
        let pieces_max = *self.chance.pick(pieces).unwrap_or(&1_500);
        self.net.open(kind, owners, capacity, pieces_max)
    }

    /// Connects an actor to one of the daemons' listeners; `None` when nobody listens.
    pub(crate) fn connect(&mut self, actor: u64, kind: Kind, door: Door, peer: PeerAddr) -> Option<End> {
        let side = door.side();
        if !self.listening.contains(&side) {
            return None;
        }
        let wire = self.open_wire(kind, [Entity::Actor(actor), Entity::Host(side)]);
        let micros = self.latency();
        let news = News::Accepted { end: End { wire, side: 1 }, listener: door.listener(), peer };
        self.tell(side, micros, news);
        Some(End { wire, side: 0 })
    }

    pub(crate) fn latency(&mut self) -> u64 {
        if self.chance.is(self.climate.stalls) {
            self.ledger.count("stalls");
            return self.chance.within(100_000, 8_000_000);
        }
        self.chance.within(20, self.climate.latency_max_us)
    }

    /// Puts bytes on a wire, as many as there is room for.
    pub(crate) fn write(&mut self, end: End, bytes: &[u8]) -> Wrote {
        let Some(wire) = self.net.wires.get(&end.wire) else { return Wrote::Broken };
        let (is_pipe, pieces_max) = (wire.kind == Kind::Pipe, wire.pieces_max);
        // Behind the place where it was cut nothing arrives, though the writer does not know yet.
        let is_black_hole = wire.is_black_hole || wire.pipes[end.side].fin.is_some();
        let pipe = &wire.pipes[end.side];
        let inward = &wire.pipes[1 - end.side];
        if inward.fin.is_some_and(|(at, fin)| at <= self.now && fin == Fin::Reset) {
            return Wrote::Broken;
        }
        let mut count = pipe.capacity.saturating_sub(pipe.held).min(bytes.len());
        if self.climate.shreds && count > 1 && self.chance.is(300) {
            count = self.chance.size(1, count);
        }
        if pipe.is_reader_gone && !is_black_hole && count > 0 {
            // Taken by the kernel, and answered with a reset in a moment.
            self.reset_towards(end);
            return Wrote::Count(count);
        }
        let mut rest = bytes.get(..count).unwrap_or_default();
        let mut pieces = Vec::new();
        while !rest.is_empty() && !is_black_hole {
            let piece =
                if pieces.len() >= 8 { rest.len() } else { self.chance.size(1, pieces_max).min(rest.len()) };
            let (head, tail) = rest.split_at(piece);
            // A pipe's bytes are there at once.
            let micros = if is_pipe { 1 } else { self.latency() };
            pieces.push((micros, head.to_vec()));
            rest = tail;
        }
        let now = self.now;
        let Some(wire) = self.net.wires.get_mut(&end.wire) else { return Wrote::Broken };
        let owner = wire.owners[1 - end.side];
        let pipe = &mut wire.pipes[end.side];
        pipe.is_writer_blocked = count < bytes.len();
        pipe.held += count;
        let mut arrivals = Vec::new();
        for (micros, piece) in pieces {
            let at = (now + Duration::from_micros(micros)).max(pipe.last_arrival);
            pipe.last_arrival = at;
            pipe.segments.push_back((at, piece));
            arrivals.push(at);
        }
        for at in arrivals {
            self.wake(owner, at);
        }
        Wrote::Count(count)
    }

    /// Takes what has arrived at an end.
    pub(crate) fn read(&mut self, end: End, max: usize) -> Got {
        let now = self.now;
        let Some(wire) = self.net.wires.get_mut(&end.wire) else { return Got::Reset };
        let writer = wire.owners[1 - end.side];
        let pipe = wire.inward(end.side);
        let got = pipe.take(now, max);
        if matches!(got, Got::Bytes(_)) && core::mem::take(&mut pipe.is_writer_blocked) {
            self.wake_in(writer, 30);
        }
        got
    }

    /// When something can next be read at an end.
    pub(crate) fn next_arrival(&mut self, end: End) -> Option<Instant> {
        self.net.wires.get_mut(&end.wire).and_then(|wire| wire.inward(end.side).next_arrival())
    }

    /// No more will be written at an end.
    pub(crate) fn shutdown(&mut self, end: End) {
        self.put_fin(end, Fin::Closed);
    }

    /// Closes an end. What the kernel has taken still travels; but unread bytes make it a reset.
    pub(crate) fn close(&mut self, end: End, how: Closing) {
        let keep = self.chance.size(0, 1 << 16);
        let Some(wire) = self.net.wires.get_mut(&end.wire) else { return };
        if core::mem::replace(&mut wire.is_closed[end.side], true) {
            return;
        }
        let inward = wire.inward(end.side);
        let has_unread = !inward.segments.is_empty();
        inward.is_reader_gone = true;
        inward.segments.clear();
        inward.held = 0;
        let was_blocked = core::mem::take(&mut inward.is_writer_blocked);
        let other = wire.owners[1 - end.side];
        if how == Closing::Reset {
            let outward = &mut wire.pipes[end.side];
            let keep = keep.min(outward.held);
            outward.truncate(keep);
        }
        let is_reset = how == Closing::Reset || has_unread;
        let is_gone = wire.is_closed == [true; 2];
        self.put_fin(end, if is_reset { Fin::Reset } else { Fin::Closed });
        if was_blocked {
            self.wake_in(other, 30);
        }
        if is_gone {
            self.net.wires.remove(&end.wire);
        }
    }

    fn put_fin(&mut self, end: End, fin: Fin) {
        let is_pipe = self.wire(end).is_some_and(|wire| wire.kind == Kind::Pipe);
        let micros = if is_pipe { 1 } else { self.latency() };
        let now = self.now;
        let Some(wire) = self.net.wires.get_mut(&end.wire) else { return };
        if wire.is_black_hole {
            return;
        }
        let owner = wire.owners[1 - end.side];
        let pipe = &mut wire.pipes[end.side];
        let at = match pipe.fin {
            Some((_, Fin::Reset)) => return,
            Some((at, Fin::Closed)) => at,
            None => (now + Duration::from_micros(micros)).max(pipe.last_arrival),
        };
        pipe.fin = Some((at, fin));
        self.wake(owner, at);
    }

    /// The kernel at the other end answers bytes for a closed connection.
    fn reset_towards(&mut self, end: End) {
        let other = end.other();
        if let Some(wire) = self.net.wires.get_mut(&end.wire) {
            wire.pipes[end.side].is_writer_blocked = false;
            wire.pipes[other.side].fin = wire.pipes[other.side].fin.filter(|(_, fin)| *fin == Fin::Reset);
        }
        self.put_fin(other, Fin::Reset);
    }

    /// Cuts a connection, for both ends: of what is on its way some more bytes arrive.
    pub(crate) fn cut(&mut self, id: WireId, fin: Fin) {
        self.say(|| format!("chaos: {id:?} is cut ({fin:?})"));
        self.ledger.count("cuts");
        for side in [0, 1] {
            let Some(wire) = self.net.wires.get_mut(&id) else { return };
            wire.is_black_hole = false;
            let held: usize = wire.pipes[side].segments.iter().map(|(_, bytes)| bytes.len()).sum();
            let keep = self.chance.size(0, held);
            wire.pipes[side].truncate(keep);
            wire.pipes[side].fin = wire.pipes[side].fin.filter(|(_, fin)| *fin == Fin::Reset);
            let end = End { wire: id, side };
            self.put_fin(end, fin);
        }
    }

    /// From now on nothing gets through, and nobody is told.
    pub(crate) fn black_hole(&mut self, id: WireId) {
        self.say(|| format!("chaos: {id:?} goes silent"));
        self.ledger.count("black holes");
        if let Some(wire) = self.net.wires.get_mut(&id) {
            wire.is_black_hole = true;
            for pipe in &mut wire.pipes {
                pipe.segments.clear();
            }
        }
    }

    /// What stands still on its way goes on.
    pub(crate) fn unstall(&mut self) {
        let soon = self.now + Duration::from_millis(1);
        let mut owners = Vec::new();
        for wire in self.net.wires.values_mut() {
            for (pipe, owner) in wire.pipes.iter_mut().zip([wire.owners[1], wire.owners[0]]) {
                pipe.segments.iter_mut().for_each(|(at, _)| *at = soon.min(*at));
                pipe.fin = pipe.fin.map(|(at, fin)| (soon.min(at), fin));
                pipe.last_arrival = soon.min(pipe.last_arrival);
                owners.push(owner);
            }
        }
        owners.into_iter().for_each(|owner| self.wake(owner, soon));
    }

    /// The wire of an end, to look at.
    pub(crate) fn wire(&self, end: End) -> Option<&Wire> {
        self.net.wires.get(&end.wire)
    }
}
