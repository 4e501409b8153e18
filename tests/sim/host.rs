//! The driver's stand-in: it turns as the real loop does, and holds a machine to the contract of `machine`.

use crate::check::Check;
use crate::env::{Entity, Env, News, Side};
use crate::net::{End, Got, Kind, Wrote};
use crate::sabotage::Bug;
use crate::tap::Tap;
use carapace_proto::ids::{ConnId, JobId, RecordId};
use carapace_proto::machine::{Closing, Input, Loss, Machine, Sink, Source};
use carapace_proto::time::{Instant, Wall};
use std::collections::{BTreeMap, BTreeSet};

/// A machine, and what it tells of itself.
pub(crate) trait Subject: Machine {
    const SIDE: Side;
    fn check_invariants(&self);
    fn held_bytes(&self) -> usize;
    fn is_idle(&self) -> bool;
    #[cfg(feature = "sabotage")]
    fn sabotage(&mut self);
}

/// More than any turn needs: beyond it a machine and its driver keep each other busy for ever.
const ROUNDS_MAX: usize = 20_000;

#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) end: End,
    pub(crate) is_paused: bool,
    pub(crate) paused_at: Instant,
    pub(crate) has_ended: bool,
    pub(crate) is_shut_down: bool,
}

impl Port {
    pub(crate) const fn new(end: End) -> Self {
        Self { end, is_paused: false, paused_at: Instant::ORIGIN, has_ended: false, is_shut_down: false }
    }
}

/// A job's process as its driver knows it.
#[derive(Debug)]
pub(crate) struct JobPorts {
    pub(crate) stdin: Option<End>,
    pub(crate) is_started: bool,
    pub(crate) has_exited: bool,
}

/// A daemon: a machine and its driver.
#[derive(Debug)]
pub(crate) struct Host<M> {
    pub(crate) machine: M,
    /// What is read: connections and the outputs of jobs.
    pub(crate) ports: BTreeMap<Source, Port>,
    pub(crate) dialing: BTreeMap<ConnId, carapace_proto::machine::Address>,
    pub(crate) taps: BTreeMap<ConnId, Tap>,
    pub(crate) jobs: BTreeMap<JobId, JobPorts>,
    pub(crate) jobs_seen: BTreeSet<JobId>,
    pub(crate) dialed: BTreeSet<ConnId>,
    pub(crate) announced: BTreeSet<Sink>,
    pub(crate) record: Option<RecordId>,
    pub(crate) is_recording: bool,
    accepted: u64,
    pub(crate) is_draining: bool,
    pub(crate) has_drained: bool,
    /// The bytes that a lie about `Sent` has kept back, see `sabotage`.
    pub(crate) untold: BTreeMap<Sink, usize>,
}

impl<M: Subject> Host<M> {
    pub(crate) fn new(env: &mut Env, machine: M) -> Self {
        env.listening.insert(M::SIDE);
        env.wake(Entity::Host(M::SIDE), env.now);
        env.tell(M::SIDE, 0, News::SetClock);
        Self {
            machine,
            ports: BTreeMap::new(),
            dialing: BTreeMap::new(),
            taps: BTreeMap::new(),
            jobs: BTreeMap::new(),
            jobs_seen: BTreeSet::new(),
            dialed: BTreeSet::new(),
            announced: BTreeSet::new(),
            record: None,
            is_recording: false,
            accepted: 0,
            is_draining: false,
            has_drained: false,
            untold: BTreeMap::new(),
        }
    }

    /// One turn: everything that is there is taken in, everything that follows is carried out.
    pub(crate) fn turn(&mut self, env: &mut Env) {
        #[cfg(feature = "sabotage")]
        if env.step > 100 && env.has(Bug::BreakAccounts(M::SIDE)) {
            self.machine.sabotage();
        }
        while let Some(news) = env.next_news(M::SIDE) {
            self.take_in(env, news);
            if env.chance.is(700) {
                self.settle(env);
            }
        }
        let mut ready: Vec<Source> = self.ports.keys().copied().collect();
        env.chance.shuffle(&mut ready);
        for source in ready {
            self.read(env, source);
            if env.chance.is(500) {
                self.carry_out(env);
            }
        }
        self.lose_stdins(env);
        self.fire(env);
        // What could not be written may go now.
        self.settle(env);
        self.check(env);
        self.sleep(env);
    }

    fn sleep(&self, env: &mut Env) {
        if let Some((at, _)) = self.machine.poll_timeout()
            && !(env.has(Bug::LoseWake) && M::SIDE == Side::Server)
        {
            env.alarm(Entity::Host(M::SIDE), at);
        }
    }

    /// Gives a machine one input.
    pub(crate) fn handle(&mut self, env: &Env, input: Input<'_>) {
        self.machine.handle(env.now, input);
    }

    fn fire(&mut self, env: &mut Env) {
        let due = self.machine.poll_timeout();
        if env.has(Bug::LoseWake) && M::SIDE == Side::Server {
            return;
        }
        if due.is_none_or(|(at, _)| at > env.now) {
            return;
        }
        self.machine.handle_timeout(env.now);
        let next = if env.has(Bug::StayDue) { due } else { self.machine.poll_timeout() };
        if let Some((at, timer)) = next
            && at <= env.now
        {
            env.fail(Check::Deadline, format!("{:?}: {timer:?} is still due at {at:?}", M::SIDE));
        }
    }

    // ---- news ----

    fn take_in(&mut self, env: &mut Env, news: News) {
        env.say(|| format!("{:?} hears {news:.200?}", M::SIDE));
        match news {
            News::Accepted { end, listener, peer } => {
                if self.is_draining || self.has_drained {
                    // The listener is closed; the kernel resets what nobody accepted.
                    return env.close(end, Closing::Reset);
                }
                self.accepted += 1;
                let conn = ConnId::accepted(self.accepted);
                self.ports.insert(Source::Conn(conn), Port::new(end));
                self.handle(env, Input::Accepted { conn, listener, peer });
            }
            News::Connected { conn } => self.connected(env, conn),
            News::DialFailed { conn, error } => {
                if self.dialing.remove(&conn).is_some() {
                    self.handle(env, Input::DialFailed { conn, error });
                }
            }
            News::Drain => {
                self.is_draining = true;
                env.listening.remove(&M::SIDE);
                self.handle(env, Input::Drain);
            }
            News::Exited { job, status } => {
                if let Some(ports) = self.jobs.get_mut(&job) {
                    ports.has_exited = true;
                    if !(env.has(Bug::LoseExit) && job.0.is_multiple_of(3)) {
                        self.handle(env, Input::Exited { job, status });
                    }
                }
            }
            News::RecordFailed { through } => {
                env.ledger.count("records failed");
                self.is_recording = false;
                env.ledger.was_disk_bad = true;
                self.handle(env, Input::RecordFailed { through });
            }
            News::Recorded { through, count } => self.recorded(env, through, count),
            News::Reload { policy } => self.handle(env, Input::Reload { policy }),
            News::SetClock => {
                let wall = Wall::from_unix_micros(1_771_147_800_000_000 + env.chance.below(1 << 40));
                self.handle(env, Input::Wall { wall });
            }
            News::Started { job } => {
                if let Some(ports) = self.jobs.get_mut(&job) {
                    ports.is_started = true;
                    self.handle(env, Input::Started { job, pid: 4_000 });
                }
            }
            News::StartFailed { job, error } => {
                if self.jobs.remove(&job).is_some() {
                    self.handle(env, Input::StartFailed { job, error });
                }
            }
        }
    }

    fn connected(&mut self, env: &mut Env, conn: ConnId) {
        let Some(address) = self.dialing.remove(&conn) else { return };
        match env.arrive(M::SIDE, &address) {
            Some((end, tool)) => {
                self.ports.insert(Source::Conn(conn), Port::new(end));
                if let Some(tool) = tool {
                    self.taps.insert(conn, Tap::new(tool));
                }
                self.handle(env, Input::Connected { conn });
            }
            None => {
                let error = carapace_proto::machine::DialError::Refused;
                self.handle(env, Input::DialFailed { conn, error });
            }
        }
    }

    fn recorded(&mut self, env: &mut Env, through: RecordId, count: usize) {
        self.is_recording = false;
        let is_there = env.synced(through);
        if env.has(Bug::RecordEarly) {
            return;
        }
        if is_there {
            self.handle(env, Input::Sent { sink: Sink::Audit, count });
            self.handle(env, Input::Recorded { through });
        } else {
            env.ledger.was_disk_bad = true;
            env.ledger.count("records failed");
            self.handle(env, Input::RecordFailed { through });
        }
    }

    // ---- bytes in ----

    fn read(&mut self, env: &mut Env, source: Source) {
        let mut share = env.chance.size(1, crate::caps::SHARE);
        loop {
            let Some(port) = self.ports.get(&source) else { return };
            let ignores_pause = env.has(Bug::IgnorePause) || env.has(Bug::ReadPaused);
            let is_early = match source {
                Source::Conn(_) => false,
                Source::Stdout(job) | Source::Stderr(job) => {
                    self.jobs.get(&job).is_some_and(|ports| !ports.is_started)
                }
            };
            if port.has_ended || is_early || port.is_paused && !ignores_pause {
                return;
            }
            let (end, is_paused) = (port.end, port.is_paused);
            match env.read(end, share) {
                Got::Bytes(bytes) => {
                    if is_paused && !env.has(Bug::IgnorePause) {
                        env.fail(Check::Paused, format!("{:?}: {source:?} is paused, and is read", M::SIDE));
                    }
                    share = share.saturating_sub(bytes.len());
                    self.deliver(env, source, &bytes);
                    if env.chance.is(600) {
                        self.carry_out(env);
                    }
                    if share == 0 {
                        // Its share is spent; the others come first.
                        return env.wake_in(Entity::Host(M::SIDE), 5);
                    }
                }
                Got::Eof => {
                    if let Some(port) = self.ports.get_mut(&source) {
                        port.has_ended = true;
                    }
                    if !matches!(source, Source::Conn(_)) {
                        self.ports.remove(&source);
                        env.close(end, Closing::Orderly);
                    }
                    return self.handle(env, Input::Eof { source });
                }
                Got::Reset => return self.lose(env, source),
                Got::Nothing => return,
            }
        }
    }

    fn deliver(&mut self, env: &mut Env, source: Source, bytes: &[u8]) {
        let is_job = !matches!(source, Source::Conn(_));
        if is_job && env.has(Bug::LosePrinted) && env.step.is_multiple_of(5) {
            return;
        }
        self.handle(env, Input::Bytes { source, bytes });
        if is_job && env.has(Bug::DoublePrinted) && env.step.is_multiple_of(5) {
            self.handle(env, Input::Bytes { source, bytes });
        }
    }

    /// A connection broke, or an output of a job did.
    pub(crate) fn lose(&mut self, env: &mut Env, source: Source) {
        let Some(port) = self.ports.remove(&source) else { return };
        env.close(port.end, Closing::Orderly);
        match source {
            Source::Conn(conn) => {
                self.announced.remove(&Sink::Conn(conn));
                self.taps.remove(&conn);
                self.handle(env, Input::Lost { conn, loss: Loss::Reset });
            }
            Source::Stdout(_) | Source::Stderr(_) => self.handle(env, Input::Eof { source }),
        }
    }

    /// Jobs that have closed their standard input.
    fn lose_stdins(&mut self, env: &mut Env) {
        let jobs: Vec<(JobId, End)> =
            self.jobs.iter().filter_map(|(job, ports)| Some((*job, ports.stdin?))).collect();
        for (job, end) in jobs {
            if matches!(env.read(end, 1), Got::Eof | Got::Reset) {
                self.lose_stdin(env, job);
            }
        }
    }

    fn lose_stdin(&mut self, env: &mut Env, job: JobId) {
        let Some(ports) = self.jobs.get_mut(&job) else { return };
        if let Some(end) = ports.stdin.take() {
            env.close(end, Closing::Orderly);
            self.announced.remove(&Sink::Stdin(job));
            self.handle(env, Input::StdinLost { job });
        }
    }

    // ---- bytes out ----

    /// Carries out, records and writes until nothing is left to do.
    pub(crate) fn settle(&mut self, env: &mut Env) {
        let mut blocked = BTreeSet::new();
        for round in 0.. {
            self.carry_out(env);
            self.append(env);
            self.carry_out(env);
            let next = self.announced.iter().find(|sink| !blocked.contains(*sink)).copied();
            let Some(sink) = next else { return };
            if !self.write(env, sink) {
                blocked.insert(sink);
            }
            if round > ROUNDS_MAX || env.failure.is_some() {
                env.fail(Check::Liveness, format!("{:?} never comes to rest", M::SIDE));
                return;
            }
        }
    }

    fn append(&mut self, env: &mut Env) {
        if self.is_recording {
            return;
        }
        let Some(through) = self.record.take() else { return };
        let mut lines = self.machine.unsent(Sink::Audit).to_vec();
        let count = lines.len();
        if lines.is_empty() || lines.last() != Some(&b'\n') {
            env.fail(Check::Contract, format!("{through} is to be recorded, and there are no whole lines"));
        }
        if env.has(Bug::LoseRecord) && through.0.is_multiple_of(3) {
            let last = lines
                .iter()
                .rev()
                .skip(1)
                .position(|byte| *byte == b'\n')
                .map_or(0, |at| lines.len() - 1 - at);
            if crate::http::shown(&lines[last..]).contains("\"event\":\"outcome\"") {
                lines.truncate(last);
            }
        }
        self.is_recording = true;
        env.append(through, &lines, count);
        if env.has(Bug::RecordEarly) {
            self.handle(env, Input::Sent { sink: Sink::Audit, count });
            self.handle(env, Input::Recorded { through });
        }
    }

    /// Writes once; false when the sink takes no more for now.
    fn write(&mut self, env: &mut Env, sink: Sink) -> bool {
        let Some(end) = self.end_of(sink) else {
            self.announced.remove(&sink);
            return true;
        };
        let told = self.untold.get(&sink).copied().unwrap_or(0);
        let bytes = self.machine.unsent(sink).get(told..).unwrap_or_default().to_vec();
        if bytes.is_empty() {
            if told == 0 {
                self.announced.remove(&sink);
            }
            return told == 0;
        }
        if let Sink::Conn(conn) = sink
            && let Some(tap) = self.taps.get_mut(&conn)
        {
            tap.look(env, &bytes);
        }
        match env.write(end, &bytes) {
            Wrote::Count(count) => {
                if let Sink::Conn(conn) = sink
                    && let Some(tap) = self.taps.get_mut(&conn)
                {
                    tap.written(env, bytes.get(..count).unwrap_or_default());
                }
                if count > 0
                    && env.has(Bug::AnswerTwice)
                    && is_client(env, end)
                    && bytes.starts_with(b"HTTP/1.1")
                {
                    env.write(end, bytes.get(..count).unwrap_or_default());
                }
                if count > 0 {
                    // Frames of the handshake are left alone: a link that never stands shows nothing.
                    let is_late = env.has(Bug::LateSent) && bytes.get(4).is_some_and(|byte| *byte != b'{');
                    self.sent(env, sink, count, is_late);
                }
                count == bytes.len()
            }
            Wrote::Broken => {
                match sink {
                    Sink::Conn(conn) => self.lose(env, Source::Conn(conn)),
                    Sink::Stdin(job) => self.lose_stdin(env, job),
                    Sink::Audit => {}
                }
                true
            }
        }
    }

    fn sent(&mut self, env: &mut Env, sink: Sink, count: usize, is_late: bool) {
        let is_link =
            self.end_of(sink).and_then(|end| env.wire(end)).is_some_and(|wire| wire.kind == Kind::Link);
        let before = self.untold.remove(&sink).unwrap_or(0);
        if before > 0 {
            self.handle(env, Input::Sent { sink, count: before });
        }
        if is_late && is_link && M::SIDE == Side::Agent {
            // The kernel has it, and the machine is told so only with what is written next.
            self.untold.insert(sink, count);
        } else {
            self.handle(env, Input::Sent { sink, count });
        }
    }

    pub(crate) fn end_of(&self, sink: Sink) -> Option<End> {
        match sink {
            Sink::Audit => None,
            Sink::Conn(conn) => self.ports.get(&Source::Conn(conn)).map(|port| port.end),
            Sink::Stdin(job) => self.jobs.get(&job).and_then(|ports| ports.stdin),
        }
    }

    // ---- what is true after every turn ----

    fn check(&self, env: &mut Env) {
        self.machine.check_invariants();
        // It walks over everything there is; a leak is no smaller a few turns later.
        if env.step.is_multiple_of(4) {
            let (held, most) = (self.machine.held_bytes(), crate::caps::most(env, M::SIDE));
            if held > most {
                env.fail(
                    Check::Memory,
                    format!("{:?} holds {held} bytes, at most {most} are allowed", M::SIDE),
                );
            }
        }
        let mut sinks: Vec<Sink> = Vec::new();
        for source in self.ports.keys() {
            if let Source::Conn(conn) = source {
                sinks.push(Sink::Conn(*conn));
            }
        }
        sinks.extend(
            self.jobs.iter().filter(|(_, job)| job.stdin.is_some()).map(|(job, _)| Sink::Stdin(*job)),
        );
        for sink in sinks {
            let told = self.untold.get(&sink).copied().unwrap_or(0);
            if self.machine.unsent(sink).len() > told && !self.announced.contains(&sink) {
                env.fail(
                    Check::Contract,
                    format!("{:?}: bytes wait for {sink:?}, and nobody was told", M::SIDE),
                );
            }
        }
    }

    /// What must be true once everything is finished.
    pub(crate) fn check_drained(&self, env: &mut Env) {
        let ports = self.ports.len() + self.jobs.len();
        if !self.machine.is_idle() || ports > 0 {
            env.fail(
                Check::Drained,
                format!("{:?} has drained, and is not idle; {ports} ports are open", M::SIDE),
            );
        }
    }

    /// The daemon is killed: the kernel closes what it had.
    pub(crate) fn die(self, env: &mut Env) {
        env.listening.remove(&M::SIDE);
        for port in self.ports.values() {
            env.close(port.end, Closing::Orderly);
        }
        for end in self.jobs.values().filter_map(|job| job.stdin) {
            env.close(end, Closing::Orderly);
        }
        if M::SIDE == Side::Server {
            // The parent-death signal.
            env.children.clear();
            env.server_ended(self.has_drained);
        }
        let unaccepted = env.inboxes.insert(M::SIDE, BTreeMap::new()).unwrap_or_default();
        for news in unaccepted.into_values() {
            if let News::Accepted { end, .. } = news {
                env.close(end, Closing::Reset);
            }
        }
    }
}

fn is_client(env: &Env, end: End) -> bool {
    env.wire(end).is_some_and(|wire| wire.kind == Kind::Client)
}
