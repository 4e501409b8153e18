//! The trusted side: judges, records, carries out.
//!
//! A call's way through the rooms: [`links`](self) reads its frames and opens it, `http` or `job` has the policy judge
//! it, `journal` holds it until the decision is in the log, `fetch` or `job` carries it out, and `links` carries the
//! answer back. `call` says what a call is, `record` writes its records, `answer` what a client hears when the answer is
//! ours.

mod answer;
mod call;
mod fetch;
mod http;
mod job;
mod journal;
mod links;
mod record;
mod rpc;

use crate::ids::{CallId, ConnId, JobId};
use crate::limits::{ANSWERS_BYTES_MAX, BODIES_BYTES_MAX, DRAIN_TIMEOUT};
use crate::machine::{Closing, Input, Loss, Machine, Output, Sink, Source};
use crate::random::Random;
use crate::time::{Instant, Wall};
use crate::timers::{Alarm, Timers};
use call::Call;
use carapace_policy::{Limits, Policy};
use fetch::Upstreams;
use journal::Journal;
use links::Link;
use log::{info, warn};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a server is made with.
#[derive(Debug)]
pub struct ServerConfig {
    /// The policy in force until [`Input::Reload`].
    pub policy: Arc<Policy>,
    /// The uid of the daemon: its own account is always served.
    pub own_uid: u32,
    /// Whether peers that are not on this machine are served without being known (`--insecure`).
    pub insecure: bool,
    /// Unpredictable bytes: nonces, session tokens and request ids come from here.
    pub seed: [u8; 32],
    /// The daemon's version.
    pub version: String,
}

/// What a wake-up of the server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A call waited long enough: for a slot, or for the head of a stream.
    Call(CallId),
    /// A drain took long enough.
    Drain,
    /// A job ran, or was given grace, long enough.
    Job(JobId),
    /// A link's session or handshake wants attention.
    Link(ConnId),
    /// The audit log is to be tried again.
    Record,
    /// An upstream took long enough to connect, to answer, or idle.
    Upstream(ConnId),
}

/// The server's machine. See [`Machine`] for how to drive it.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    policy: Arc<Policy>,
    rate_limits: Limits,
    random: Random,
    started: Instant,
    wall: (Instant, Wall),
    /// In front of every request id, so that ids are unique over restarts.
    id_prefix: String,
    outputs: VecDeque<Output>,
    timers: Timers<Timer>,
    links: BTreeMap<ConnId, Link>,
    calls: BTreeMap<CallId, Call>,
    last_call: u64,
    upstreams: Upstreams,
    slots: job::Slots,
    journal: Journal,
    /// Bytes of bodies and answers that may still be gathered, all calls together.
    body_room: u64,
    answer_room: u64,
    drain: Drain,
    counters: Counters,
}

#[derive(Debug)]
enum Drain {
    No,
    Draining(Alarm),
    Done,
}

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls that were opened.
    pub calls: u64,
    /// Calls, or elements of batches, that were not allowed.
    pub denied: u64,
}

impl Server {
    /// A server that listens to nobody yet.
    pub fn new(now: Instant, config: ServerConfig) -> Self {
        let mut random = Random::new(config.seed);
        let id_prefix = format!("{:016x}", random.bits() >> 64);
        Self {
            policy: config.policy.clone(),
            config,
            rate_limits: Limits::new(),
            random,
            started: now,
            wall: (now, Wall::default()),
            id_prefix,
            outputs: VecDeque::new(),
            timers: Timers::new(),
            links: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            upstreams: Upstreams::default(),
            slots: job::Slots::default(),
            journal: Journal::new(),
            body_room: BODIES_BYTES_MAX,
            answer_room: ANSWERS_BYTES_MAX,
            drain: Drain::No,
            counters: Counters::default(),
        }
    }

    /// What was counted since the start.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Calls that have begun and not ended.
    pub fn running(&self) -> usize {
        self.calls.len()
    }

    /// Bytes held for peers, upstreams, jobs and the log.
    pub fn held_bytes(&self) -> usize {
        self.links.values().map(Link::held_bytes).sum::<usize>()
            + self.calls.values().map(Call::held_bytes).sum::<usize>()
            + self.upstreams.held_bytes()
            + self.journal.held_bytes()
    }

    /// Whether nothing is left of any call or peer: no connection, no wake-up, no room taken.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
            && self.links.is_empty()
            && self.upstreams.is_empty()
            && self.slots.is_empty()
            && self.journal.is_empty()
            && self.timers.len() == 0
            && self.body_room == BODIES_BYTES_MAX
            && self.answer_room == ANSWERS_BYTES_MAX
    }

    /// Panics when the machine contradicts itself. For tests; debug builds call it after each input.
    ///
    /// # Panics
    ///
    /// On a mistake of ours.
    pub fn check_invariants(&self) {
        for (id, call) in &self.calls {
            if call.is_attached {
                let link = self.links.get(&call.link);
                assert!(
                    link.is_some_and(|link| link.streams.get(&call.stream) == Some(id)),
                    "{id} is attached to a stream that is not its own"
                );
            }
        }
        for link in self.links.values() {
            assert!(
                link.streams.values().all(|call| self.calls.contains_key(call)),
                "a stream without a call"
            );
        }
        let reserved: (u64, u64) = self
            .calls
            .values()
            .map(Call::reserved)
            .fold((0, 0), |sum, room| (sum.0 + room.0, sum.1 + room.1));
        assert_eq!(BODIES_BYTES_MAX - self.body_room, reserved.0, "room for bodies leaks");
        assert_eq!(ANSWERS_BYTES_MAX - self.answer_room, reserved.1, "room for answers leaks");
        self.slots.check(&self.calls);
    }

    /// Breaks the accounts as a leak would, for a test of [`Server::check_invariants`].
    #[cfg(feature = "sabotage")]
    pub const fn sabotage(&mut self) {
        self.body_room -= 1;
    }

    fn wall(&self, now: Instant) -> Wall {
        let (at, wall) = self.wall;
        let passed = u64::try_from(now.since(at).as_micros()).unwrap_or(0);
        Wall::from_unix_micros(wall.unix_micros().saturating_add(passed))
    }

    fn request_id(&self, id: CallId) -> String {
        format!("{}-{}", self.id_prefix, id.0)
    }

    fn dispatch(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Accepted { conn, peer, .. } => self.handle_peer(now, conn, &peer),
            Input::Connected { conn } => self.handle_connected(now, conn),
            Input::DialFailed { conn, error } => self.handle_dial_failed(now, conn, error),
            Input::Bytes { source: Source::Conn(conn), bytes } => {
                if self.links.contains_key(&conn) {
                    self.handle_link_bytes(now, conn, bytes);
                } else {
                    self.handle_upstream_bytes(now, conn, bytes);
                }
            }
            Input::Bytes { source: source @ (Source::Stdout(job) | Source::Stderr(job)), bytes } => {
                self.handle_printed(now, job, source, bytes);
            }
            Input::Sent { sink: Sink::Audit, count } => self.journal.sent(count),
            Input::Sent { sink: Sink::Conn(conn), count } => {
                if self.links.contains_key(&conn) {
                    self.handle_link_sent(now, conn, count);
                } else {
                    self.handle_upstream_sent(now, conn, count);
                }
            }
            Input::Sent { sink: Sink::Stdin(job), count } => self.handle_fed(job, count),
            Input::Eof { source: Source::Conn(conn) } => {
                if self.links.contains_key(&conn) {
                    self.handle_link_end(now, conn, "closed by the peer");
                } else {
                    self.handle_upstream_eof(now, conn);
                }
            }
            Input::Eof { source: source @ (Source::Stdout(job) | Source::Stderr(job)) } => {
                self.handle_output_end(now, job, source);
            }
            Input::Lost { conn, loss } => self.handle_lost(now, conn, loss),
            Input::StdinLost { job } => self.handle_stdin_lost(job),
            Input::Recorded { through } => self.handle_recorded(now, through),
            Input::RecordFailed { through } => self.handle_record_failed(now, through),
            Input::Started { job, pid } => self.handle_started(now, job, pid),
            Input::StartFailed { job, error } => self.handle_start_failed(now, job, &error),
            Input::Exited { job, status } => self.handle_exited(now, job, status),
            Input::Reload { policy } => {
                info!("policy {} is in force, after {}", policy.version(), self.policy.version());
                self.policy = Arc::new(*policy);
                self.part_with_unadmitted(now);
            }
            Input::Drain => self.handle_drain(now),
            Input::Wall { wall } => self.wall = (now, wall),
        }
    }

    fn handle_lost(&mut self, now: Instant, conn: ConnId, loss: Loss) {
        if self.links.contains_key(&conn) {
            let reason = match loss {
                Loss::Reset => "reset by the peer",
                Loss::Failed => "broken",
            };
            self.handle_link_end(now, conn, reason);
        } else {
            self.handle_upstream_lost(now, conn);
        }
    }

    fn handle_recorded(&mut self, now: Instant, through: crate::ids::RecordId) {
        let mut ready = Vec::new();
        self.journal.recorded(&mut self.timers, through, |call| ready.push(call));
        for call in ready {
            self.carry_out(now, call);
        }
    }

    fn handle_record_failed(&mut self, now: Instant, through: crate::ids::RecordId) {
        let mut refused = Vec::new();
        self.journal.failed(now, &mut self.timers, through, |call| refused.push(call));
        warn!("the audit log cannot be written: {} calls refused", refused.len());
        for call in refused {
            self.refuse_unrecorded(now, call);
        }
    }

    fn handle_drain(&mut self, now: Instant) {
        if !matches!(self.drain, Drain::No) {
            return;
        }
        info!("draining: {} calls run", self.calls.len());
        let mut alarm = Alarm::default();
        alarm.set(&mut self.timers, Timer::Drain, now + DRAIN_TIMEOUT);
        self.drain = Drain::Draining(alarm);
        self.end_event_streams(now);
    }

    const fn is_draining(&self) -> bool {
        !matches!(self.drain, Drain::No)
    }

    /// Once everything is finished, or the drain took long enough: part with everybody.
    fn finish_drain(&mut self, is_over: bool) {
        let Drain::Draining(alarm) = &mut self.drain else { return };
        let is_finished =
            self.calls.is_empty() && self.journal.is_empty() && self.links.values().all(Link::is_flushed);
        if !is_over && !is_finished {
            return;
        }
        if is_over && !is_finished {
            warn!("drain: {} calls did not end in time", self.calls.len());
        }
        alarm.remove(&mut self.timers, Timer::Drain);
        self.drain = Drain::Done;
        let links: Vec<ConnId> = self.links.keys().copied().collect();
        for conn in links {
            self.close_link(conn);
        }
        self.close_idle_upstreams();
        self.outputs.push_back(Output::Drained);
    }

    fn fire(&mut self, now: Instant, timer: Timer) {
        match timer {
            Timer::Call(call) => self.handle_call_timeout(now, call),
            Timer::Drain => {
                let fires = match &mut self.drain {
                    Drain::Draining(alarm) => alarm.fires(&mut self.timers, timer, now),
                    Drain::No | Drain::Done => false,
                };
                if fires {
                    self.finish_drain(true);
                }
            }
            Timer::Job(job) => self.handle_job_timeout(now, job),
            Timer::Link(conn) => self.handle_link_timeout(now, conn),
            Timer::Record => self.journal.handle_timeout(&mut self.timers, now),
            Timer::Upstream(conn) => self.handle_upstream_timeout(now, conn),
        }
    }

    /// What every input ends with: the driver hears of bytes and records that wait.
    fn settle(&mut self) {
        if let Some(through) = self.journal.poll() {
            self.outputs.push_back(Output::Record { through });
        }
        if matches!(self.drain, Drain::Draining(_)) {
            self.finish_drain(false);
        }
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    fn close_conn(&mut self, conn: ConnId) {
        self.outputs.push_back(Output::Close { conn, how: Closing::Orderly });
    }
}

impl Machine for Server {
    type Timer = Timer;

    fn handle(&mut self, now: Instant, input: Input<'_>) {
        self.dispatch(now, input);
        self.settle();
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            self.fire(now, timer);
        }
        self.settle();
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.timers.next()
    }

    fn unsent(&self, sink: Sink) -> &[u8] {
        match sink {
            Sink::Audit => self.journal.unsent(),
            Sink::Conn(conn) => match self.links.get(&conn) {
                Some(link) => link.unsent(),
                None => self.upstreams.unsent(conn),
            },
            Sink::Stdin(job) => self.unfed(job),
        }
    }
}
