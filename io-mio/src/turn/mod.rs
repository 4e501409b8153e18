//! The loop: sleep, look at the clock once, take in what is ready, carry out what the machine says, write, sleep.
//!
//! It decides nothing. The poll tells of edges only, so the invariant that keeps it from falling asleep over work is:
//! a port with something to read is on the list of ready ports, or paused, or will have an edge; and a sink with
//! something to write was announced, or is blocked and will have an edge.

mod bytes;
mod dial;
mod outputs;
mod rest;

use crate::audit::Audit;
use crate::child::Children;
use crate::clock::Clock;
use crate::listen::Listener;
use crate::mail::{self, Letter, Post};
use crate::policy::PolicyReader;
use crate::port::{Key, Port};
use crate::raw;
use crate::signal::Signals;
use carapace_proto::ids::{ConnId, ListenerId, RecordId};
use carapace_proto::limits::DRAIN_TIMEOUT;
use carapace_proto::machine::{Input, Machine, Sink};
use carapace_proto::time::{Duration, Instant};
use dial::Dials;
use mio::event::Event;
use mio::{Events, Interest, Poll};
use nix::errno::Errno;
use rest::{CONN_BYTES, Rest};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::mem;
use std::sync::mpsc;
use std::thread;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;
/// One read. Twice what a pipe or a loopback segment holds, so that a short read is the rule.
const READ_BYTES: usize = 128 * 1024;
/// What one port may bring in a turn before the others have theirs.
const SHARE_BYTES: usize = 256 * 1024;
/// Connections accepted from one listener in a turn.
const ACCEPTS_MAX: usize = 64;
/// How soon accepting is tried again when there was no descriptor left: no edge tells when there is one.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// The machine has [`DRAIN_TIMEOUT`] to drain, and ends what is left itself; this much later we do.
const DRAIN_GRACE: Duration = Duration::from_secs(3);

/// What a loop has besides its machine. What a daemon has no use for is absent.
#[derive(Debug, Default)]
pub struct Parts {
    /// Listening sockets; the machine knows each by its place here.
    pub listeners: Vec<Listener>,
    /// Signals, for the one loop of the process that catches them.
    pub signals: Option<Signals>,
    /// Where records go.
    pub audit: Option<Audit>,
    /// Jobs.
    pub children: Option<Children>,
    /// What SIGHUP reads anew.
    pub policy: Option<PolicyReader>,
}

/// How a loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything was finished.
    Drained,
    /// It took too long to finish.
    DrainTimedOut,
    /// It was told a second time.
    Forced,
}

/// Whether the policy is being read anew, which may wait for programs that give it secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loading {
    No,
    Now,
    /// Somebody asked again meanwhile, and may have changed it since it was opened.
    NowAndAgain,
}

/// Drives a machine with real sockets, pipes, children, signals and files.
#[derive(Debug)]
pub struct Loop<M> {
    machine: M,
    clock: Clock,
    now: Instant,
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    ports: HashMap<Key, Port>,
    /// Ports that were left with something to read.
    ready: Vec<Key>,
    /// Sinks that the machine has announced, or that can be written to again.
    announced: Vec<Sink>,
    /// The last record that the machine wants written.
    record: Option<RecordId>,
    /// The last record of those that wait for the disk.
    syncing: Option<RecordId>,
    dials: Dials,
    listeners: Vec<Listener>,
    /// Listeners that may have a connection waiting.
    accepting: Vec<ListenerId>,
    accept_retry: Option<Instant>,
    accepted: u64,
    post: Post,
    letters: mpsc::Receiver<Letter>,
    signals: Option<Signals>,
    audit: Option<Audit>,
    children: Option<Children>,
    policy: Option<PolicyReader>,
    loading: Loading,
    rest: Rest,
    drain_until: Option<Instant>,
    end: Option<End>,
}

impl<M: Machine> Loop<M> {
    /// A loop over a machine that was made at `now`, a sample of `clock`.
    pub fn new(machine: M, clock: Clock, now: Instant, parts: Parts) -> io::Result<Self> {
        let poll = Poll::new()?;
        let (post, letters) = mail::open(poll.registry(), Key::Mail.token())?;
        let Parts { mut listeners, mut signals, audit, children, policy } = parts;
        for (id, listener) in (0..).map(ListenerId).zip(&mut listeners) {
            listener.register(poll.registry(), id)?;
        }
        if let Some(signals) = &mut signals {
            poll.registry().register(&mut signals.pipe, Key::Signals.token(), Interest::READABLE)?;
        }
        Ok(Self {
            machine,
            clock,
            now,
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            // Fresh from the kernel: pages that no read reaches cost nothing.
            buffer: vec![0; READ_BYTES],
            ports: HashMap::new(),
            ready: Vec::new(),
            announced: Vec::new(),
            record: None,
            syncing: None,
            dials: Dials::default(),
            listeners,
            accepting: Vec::new(),
            accept_retry: None,
            accepted: 0,
            post,
            letters,
            signals,
            audit,
            children,
            policy,
            loading: Loading::No,
            rest: Rest::default(),
            drain_until: None,
            end: None,
        })
    }

    /// Runs until the machine has drained, or the drain took too long or was cut short.
    pub fn run(mut self) -> io::Result<End> {
        self.look_at_the_clock();
        self.settle();
        let end = loop {
            if let Some(end) = self.end {
                break end;
            }
            self.turn()?;
        };
        if end != End::Drained
            && let Some(children) = &self.children
        {
            children.kill_all();
        }
        if let Some(audit) = &self.audit {
            audit.finish();
        }
        Ok(end)
    }

    fn turn(&mut self) -> io::Result<()> {
        self.sleep()?;
        self.look_at_the_clock();
        let mut events = mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            self.note(event);
        }
        events.clear();
        self.events = events;
        self.accept();
        self.read_ready();
        self.fire();
        self.settle();
        if self.rest.is_due(self.now) {
            raw::give_memory_back();
        }
        Ok(())
    }

    fn sleep(&mut self) -> io::Result<()> {
        let timeout = if self.ready.is_empty() && (self.accepting.is_empty() || self.accept_retry.is_some()) {
            // The turn itself has taken time: count from here, not from its beginning.
            let now = self.clock.now();
            self.next_wake_up().map(|at| at.since(now))
        } else {
            Some(Duration::ZERO)
        };
        match self.poll.poll(&mut self.events, timeout) {
            // A signal; it stands in its pipe.
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            result => result,
        }
    }

    fn next_wake_up(&self) -> Option<Instant> {
        let machine = self.machine.poll_timeout().map(|(at, _)| at);
        let audit = self.audit.as_ref().and_then(Audit::poll_timeout);
        let rest = self.rest.poll_timeout();
        [machine, audit, rest, self.accept_retry, self.drain_until].into_iter().flatten().min()
    }

    fn look_at_the_clock(&mut self) {
        let (now, wall) = self.clock.sample();
        self.now = now;
        if let Some(wall) = wall {
            self.machine.handle(now, Input::Wall { wall });
        }
    }

    fn note(&mut self, event: &Event) {
        match Key::of(event.token()) {
            Key::Listener(id) if self.accepting.contains(&id) => {}
            Key::Listener(id) => self.accepting.push(id),
            Key::Mail => self.read_mail(),
            Key::Signals => self.take_signals(),
            Key::Conn(conn) if self.dials.is_connecting(conn) => self.dial_progressed(conn, event),
            key @ (Key::Conn(_) | Key::Stderr(_) | Key::Stdin(_) | Key::Stdout(_)) => {
                self.port_changed(key, event);
            }
        }
    }

    /// Everything of ours and of the machine's that is due.
    fn fire(&mut self) {
        let now = self.now;
        if let Some(audit) = &mut self.audit {
            audit.handle_timeout(now, &self.post);
        }
        if self.accept_retry.is_some_and(|at| at <= now) {
            self.accept_retry = None;
            self.accept();
        }
        if self.drain_until.is_some_and(|at| at <= now) {
            self.end = Some(End::DrainTimedOut);
        }
        if let Some((_, timer)) = self.machine.poll_timeout().filter(|(at, _)| *at <= now) {
            log::trace!("wake-up {timer:?}");
            self.machine.handle_timeout(now);
            debug_assert!(
                self.machine.poll_timeout().is_none_or(|(at, _)| at > now),
                "a wake-up that stays due would keep the loop from ever sleeping"
            );
        }
    }

    /// Carries out, records and writes until there is nothing left to do.
    fn settle(&mut self) {
        let mut batch = Vec::new();
        loop {
            self.carry_out();
            self.append();
            self.carry_out();
            if self.announced.is_empty() {
                break;
            }
            mem::swap(&mut batch, &mut self.announced);
            for sink in batch.drain(..) {
                self.write(sink);
                self.carry_out();
            }
        }
        if batch.capacity() > self.announced.capacity() {
            self.announced = batch;
        }
    }

    fn accept(&mut self) {
        if self.accept_retry.is_some() {
            return;
        }
        let mut listeners = mem::take(&mut self.accepting);
        listeners.retain(|id| self.accept_from(*id));
        self.accepting.append(&mut listeners);
    }

    /// Accepts what waits. Says whether more may be waiting.
    fn accept_from(&mut self, listener: ListenerId) -> bool {
        for _ in 0..ACCEPTS_MAX {
            let Some(accepting) = self.listeners.get(usize::from(listener.0)) else { return false };
            match accepting.accept() {
                Ok((io, peer)) => {
                    let conn = ConnId::accepted(self.accepted);
                    self.accepted += 1;
                    let mut port = Port::new(io);
                    if let Err(error) = port.register(self.poll.registry(), Key::Conn(conn)) {
                        log::error!("{conn}: cannot be waited for: {error}");
                        continue;
                    }
                    self.ports.insert(Key::Conn(conn), port);
                    self.machine.handle(self.now, Input::Accepted { conn, listener, peer });
                    self.carry_out();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if is_out_of_room(&error) => {
                    log::warn!("cannot accept connections for now: {error}");
                    self.accept_retry = Some(self.now + ACCEPT_RETRY);
                    return true;
                }
                // The connection was gone before we came to it.
                Err(error) => log::debug!("a connection was not accepted: {error}"),
            }
        }
        true
    }

    fn take_signals(&mut self) {
        let Some(signals) = &mut self.signals else { return };
        let arrived = signals.take();
        for _ in 0..arrived.ends {
            self.drain();
        }
        if arrived.child {
            self.look_at_children();
        }
        if arrived.reload {
            if let Some(audit) = &mut self.audit {
                audit.reopen(self.now, &self.post);
            }
            self.reload();
        }
    }

    fn drain(&mut self) {
        if self.drain_until.is_some() {
            log::warn!("told to end a second time: ending at once");
            self.end = Some(End::Forced);
            return;
        }
        log::info!("draining: taking on nothing new");
        self.drain_until = Some(self.now + DRAIN_TIMEOUT + DRAIN_GRACE);
        self.listeners.clear();
        self.accepting.clear();
        self.machine.handle(self.now, Input::Drain);
    }

    /// Reads the policy on a thread: it may be long, and secrets may come from programs.
    fn reload(&mut self) {
        if self.loading != Loading::No {
            self.loading = Loading::NowAndAgain;
            return;
        }
        let Some(policy) = self.policy.clone() else { return };
        let post = self.post.clone();
        let load = move || post.send(Letter::Policy(policy.read().map(Box::new)));
        match thread::Builder::new().name("policy".into()).spawn(load) {
            Ok(_) => self.loading = Loading::Now,
            Err(error) => log::error!("the policy cannot be read: {error}; the old one stays in force"),
        }
    }

    fn look_at_children(&mut self) {
        let Some(children) = &mut self.children else { return };
        for (job, status) in children.ended() {
            self.machine.handle(self.now, Input::Exited { job, status });
        }
    }

    fn read_mail(&mut self) {
        while let Ok(letter) = self.letters.try_recv() {
            match letter {
                Letter::Policy(result) => self.policy_read(result),
                Letter::Resolved { host, addresses } => self.resolved(host, &addresses),
                Letter::Synced(result) => self.synced(result),
            }
        }
    }

    fn policy_read(&mut self, result: Result<Box<carapace_policy::Policy>, crate::policy::LoadError>) {
        match result {
            Ok(policy) => self.machine.handle(self.now, Input::Reload { policy }),
            Err(error) => {
                log::error!("the policy cannot be used; the old one stays in force");
                for line in error.to_string().lines() {
                    log::error!("{line}");
                }
            }
        }
        if mem::replace(&mut self.loading, Loading::No) == Loading::NowAndAgain {
            self.reload();
        }
    }

    fn remove_port(&mut self, key: Key) -> Option<Port> {
        /// Below this there is nothing to gain.
        const KEPT: usize = 128;
        let port = self.ports.remove(&key);
        self.rest.handled(CONN_BYTES);
        if self.ports.capacity() > KEPT && self.ports.len() < self.ports.capacity() / 4 {
            self.ports.shrink_to(KEPT.max(self.ports.len() * 2));
        }
        port
    }
}

/// Whether accepting failed for want of descriptors or memory, so that the connection still waits.
fn is_out_of_room(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}
