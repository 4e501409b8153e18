//! The world: one server, one agent, and everybody around them. A step is whoever comes next.

use crate::check::{Check, Failure};
use crate::client::Client;
use crate::disk::Mood;
use crate::env::{Door, Entity, Env, HttpDoor, Newborn, News, Side};
use crate::host::{Host, Subject};
use crate::ledger::State;
use crate::net::{Fin, Kind};
use crate::outputs::{local, server_address};
use crate::peer::Peer;
use crate::rules::{self, Law, OWN_UID, STRANGER_UID};
use crate::sabotage::Bug;
use crate::shim::Shim;
use crate::stranger::Stranger;
use crate::upstream::Upstream;
use carapace_proto::agent::{Agent, AgentConfig, AgentListener};
use carapace_proto::server::{Server, ServerConfig};
use carapace_proto::time::{Duration, Instant};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug)]
enum Actor {
    Client(Client),
    Peer(Peer),
    Shim(Shim),
    Stranger(Stranger),
    Upstream(Upstream),
}

impl Actor {
    fn run(&mut self, env: &mut Env) {
        match self {
            Self::Client(actor) => actor.run(env),
            Self::Peer(actor) => actor.run(env),
            Self::Shim(actor) => actor.run(env),
            Self::Stranger(actor) => actor.run(env),
            Self::Upstream(actor) => actor.run(env),
        }
    }

    const fn is_over(&self) -> bool {
        match self {
            Self::Client(actor) => actor.is_over,
            Self::Peer(actor) => actor.is_over,
            Self::Shim(actor) => actor.is_over,
            Self::Stranger(actor) => actor.is_over,
            Self::Upstream(actor) => actor.is_over,
        }
    }
}

impl Subject for Server {
    const SIDE: Side = Side::Server;
    fn check_invariants(&self) {
        Self::check_invariants(self);
    }
    fn held_bytes(&self) -> usize {
        Self::held_bytes(self)
    }
    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }
    #[cfg(feature = "sabotage")]
    fn sabotage(&mut self) {
        Self::sabotage(self);
    }
}

impl Subject for Agent {
    const SIDE: Side = Side::Agent;
    fn check_invariants(&self) {
        Self::check_invariants(self);
    }
    fn held_bytes(&self) -> usize {
        Self::held_bytes(self)
    }
    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }
    #[cfg(feature = "sabotage")]
    fn sabotage(&mut self) {
        Self::sabotage(self);
    }
}

pub(crate) struct World {
    pub(crate) env: Env,
    server: Option<Host<Server>>,
    agent: Option<Host<Agent>>,
    actors: BTreeMap<u64, Actor>,
    /// When a daemon that is away comes back.
    returns: BTreeMap<Side, Instant>,
    policies: BTreeMap<Law, Arc<carapace_policy::Policy>>,
    spawns: bool,
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) failure: Option<Failure>,
    pub(crate) steps: u64,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, is_traced: bool) -> Self {
        let mut env = Env::new(seed, bug, is_traced);
        let mut policies = BTreeMap::new();
        for law in [Law::Lax, Law::Strict] {
            let policy = law.policy();
            env.ledger.know_law(policy.version(), law);
            let policy = Arc::new(policy);
            env.ledger.know_law(rules::enforced(bug, Some(policy.clone())).version(), law);
            policies.insert(law, policy);
        }
        env.say(|| format!("climate: {:?}", env.climate));
        let mut world = Self {
            env,
            server: None,
            agent: None,
            actors: BTreeMap::new(),
            returns: BTreeMap::new(),
            policies,
            spawns: true,
        };
        world.start(Side::Server);
        world.start(Side::Agent);
        world.env.wake(Entity::Chaos, world.env.now);
        world
    }

    fn start(&mut self, side: Side) {
        self.returns.remove(&side);
        self.env.say(|| format!("{side:?} starts"));
        let seed = self.env.chance.seed();
        match side {
            Side::Server => {
                self.env.ledger.server_starts();
                self.env.ledger.laws_seen.insert(self.env.law);
                let lawful = self.policies.get(&self.env.law).cloned();
                let policy = rules::enforced(self.env.bug, lawful);
                let config = ServerConfig {
                    policy,
                    own_uid: OWN_UID,
                    insecure: false,
                    seed,
                    version: "0.0.0".to_owned(),
                };
                let machine = Server::new(self.env.now, config);
                self.server = Some(Host::new(&mut self.env, machine));
            }
            Side::Agent => {
                let http = |tool: &str, port| AgentListener::Http {
                    tool: tool.to_owned(),
                    port,
                    addr: "127.0.0.1".to_owned(),
                };
                let config = AgentConfig {
                    server: server_address(),
                    listeners: vec![http("signal-cli", 8080), http("files", 8081), AgentListener::Shim],
                    allowed_hosts: Vec::new(),
                    own_uid: OWN_UID,
                    http_conns_max: 100,
                    seed,
                    software: "sim 0.0.0".to_owned(),
                };
                let machine = Agent::new(self.env.now, config);
                self.agent = Some(Host::new(&mut self.env, machine));
            }
        }
    }

    fn kill(&mut self, side: Side) {
        self.env.say(|| format!("{side:?} is killed"));
        match side {
            Side::Server => self.server.take().map(|host| host.die(&mut self.env)),
            Side::Agent => self.agent.take().map(|host| host.die(&mut self.env)),
        };
    }

    // ---- a step ----

    /// Whoever comes next acts. False when nobody ever will.
    pub(crate) fn step(&mut self) -> bool {
        let Some((at, entity)) = self.env.queue.pop_first() else { return false };
        self.env.now = self.env.now.max(at);
        self.env.step += 1;
        if self.env.is_traced {
            self.env.ledger.count(match entity {
                Entity::Actor(_) => "actor turns",
                Entity::Chaos => "chaos turns",
                Entity::Child(_) => "child turns",
                Entity::Host(_) => "daemon turns",
            });
        }
        match entity {
            Entity::Actor(id) => {
                if let Some(mut actor) = self.actors.remove(&id) {
                    actor.run(&mut self.env);
                    if !actor.is_over() {
                        self.actors.insert(id, actor);
                    }
                }
            }
            Entity::Chaos => self.chaos(),
            Entity::Child(job) => crate::child::run(&mut self.env, job),
            Entity::Host(Side::Server) => {
                if let Some(host) = &mut self.server {
                    host.turn(&mut self.env);
                    if host.has_drained {
                        self.drained(Side::Server);
                    }
                }
            }
            Entity::Host(Side::Agent) => {
                if let Some(host) = &mut self.agent {
                    host.turn(&mut self.env);
                    if host.has_drained {
                        self.drained(Side::Agent);
                    }
                }
            }
        }
        self.bear();
        true
    }

    fn bear(&mut self) {
        for newborn in core::mem::take(&mut self.env.newborn) {
            let Newborn::Upstream { id, end, tool } = newborn;
            let actor = Upstream::new(&mut self.env, id, end, tool);
            self.actors.insert(id, Actor::Upstream(actor));
        }
    }

    /// A daemon has drained: nothing may be left. It ends, and in a storm another one starts.
    fn drained(&mut self, side: Side) {
        let env = &mut self.env;
        match side {
            Side::Server => self.server.iter().for_each(|host| host.check_drained(env)),
            Side::Agent => self.agent.iter().for_each(|host| host.check_drained(env)),
        }
        self.kill(side);
        if self.spawns {
            let micros = self.env.chance.within(100, 2_000_000);
            self.returns.insert(side, self.env.now + Duration::from_micros(micros));
        }
    }

    // ---- chaos ----

    fn chaos(&mut self) {
        for side in [Side::Server, Side::Agent] {
            if self.returns.get(&side).is_some_and(|at| *at <= self.env.now) {
                self.start(side);
            }
        }
        if self.spawns && self.env.well_from.is_none_or(|from| from <= self.env.now) {
            self.spawn();
        }
        if !self.env.is_calm {
            self.do_harm();
        }
        let pause = *self.env.chance.pick(&[500, 4_000, 10_000, 40_000, 200_000]).unwrap_or(&4_000);
        let pause = self.env.chance.within(100, pause);
        let pause = match self.env.well_from {
            Some(from) if from <= self.env.now => pause.clamp(15_000, 40_000),
            Some(_) => 100_000,
            None => pause,
        };
        let next = self.env.now + Duration::from_micros(pause);
        let next = self.returns.values().fold(next, |next, at| next.min(*at));
        self.env.alarm(Entity::Chaos, next);
    }

    fn spawn(&mut self) {
        let population = self.actors.values().filter(|actor| !matches!(actor, Actor::Upstream(_))).count();
        if population >= 14 {
            return;
        }
        let id = self.env.new_actor();
        let strangers = self.env.climate.strangers;
        let env = &mut self.env;
        let (kind, door) = match env.chance.weighted(&[50, 25, 25, strangers]) {
            0 if env.chance.is(500) => (Kind::Client, Door::Http(HttpDoor::Files)),
            0 => (Kind::Client, Door::Http(HttpDoor::Signal)),
            1 => (Kind::Client, Door::Shim),
            2 => (Kind::Peer, Door::Link),
            _ => return self.spawn_stranger(id),
        };
        let Some(end) = env.connect(id, kind, door, local(OWN_UID)) else { return };
        let actor = match door {
            Door::Http(door) => Actor::Client(Client::new(env, id, end, door)),
            Door::Shim => Actor::Shim(Shim::new(env, id, end)),
            Door::Link => Actor::Peer(Peer::new(env, id, end)),
        };
        env.say(|| format!("actor {id} comes to {door:?} by {:?}", end.wire));
        self.actors.insert(id, actor);
        self.env.wake(Entity::Actor(id), self.env.now);
    }

    fn spawn_stranger(&mut self, id: u64) {
        let doors =
            [Door::Link, Door::Link, Door::Shim, Door::Http(HttpDoor::Signal), Door::Http(HttpDoor::Files)];
        let env = &mut self.env;
        let door = *env.chance.pick(&doors).unwrap_or(&Door::Link);
        let is_unknown = door == Door::Link && env.chance.is(200);
        let peer = local(if is_unknown { STRANGER_UID } else { OWN_UID });
        let Some(end) = env.connect(id, Kind::Client, door, peer) else { return };
        let actor = Stranger::new(env, id, end, door);
        self.actors.insert(id, Actor::Stranger(actor));
    }

    fn do_harm(&mut self) {
        let climate = self.env.climate;
        let weights = [
            30,
            climate.cut_link,
            climate.cut_any,
            climate.half_open,
            climate.disk_fault,
            climate.reload,
            climate.drain,
            climate.kill_server,
            climate.kill_agent,
            climate.set_clock,
        ];
        let env = &mut self.env;
        let fin = if env.chance.is(500) { Fin::Closed } else { Fin::Reset };
        match env.chance.weighted(&weights) {
            1 => {
                let wires = env.net.of_kind(|kind| kind == Kind::Link);
                if let Some(wire) = env.chance.pick(&wires).copied() {
                    env.cut(wire, fin);
                }
            }
            2 => {
                let wires = env.net.of_kind(|kind| kind != Kind::Pipe);
                if let Some(wire) = env.chance.pick(&wires).copied() {
                    env.cut(wire, fin);
                }
            }
            3 => {
                let wires = env.net.of_kind(|kind| kind != Kind::Pipe);
                if let Some(wire) = env.chance.pick(&wires).copied() {
                    env.black_hole(wire);
                }
            }
            4 => {
                let mood = *env.chance.pick(&[Mood::Good, Mood::Full, Mood::Rotten]).unwrap_or(&Mood::Good);
                env.say(|| format!("chaos: the disk is {mood:?}"));
                env.disk.mood = mood;
            }
            5 => self.reload(),
            6 => {
                let side = if self.env.chance.is(500) { Side::Server } else { Side::Agent };
                self.drain(side);
            }
            7 if self.server.is_some() => self.kill_for_a_while(Side::Server),
            8 if self.agent.is_some() => self.kill_for_a_while(Side::Agent),
            9 => env.tell(Side::Server, 0, News::SetClock),
            _ => {}
        }
    }

    fn reload(&mut self) {
        let law = self.env.law.other();
        self.env.law = law;
        self.env.ledger.laws_seen.insert(law);
        self.env.say(|| format!("chaos: the policy is {law:?}"));
        self.env.ledger.count("reloads");
        if self.server.is_some() {
            let policy = rules::enforced(self.env.bug, self.policies.get(&law).cloned());
            let policy = Box::new((*policy).clone());
            self.env.tell(Side::Server, 0, News::Reload { policy });
        }
    }

    fn drain(&mut self, side: Side) {
        let is_there = match side {
            Side::Server => self.server.as_ref().is_some_and(|host| !host.is_draining),
            Side::Agent => self.agent.as_ref().is_some_and(|host| !host.is_draining),
        };
        if is_there {
            self.env.ledger.count("drains");
            self.env.tell(side, 0, News::Drain);
        }
    }

    fn kill_for_a_while(&mut self, side: Side) {
        self.kill(side);
        self.env.ledger.count("kills");
        let most = *self.env.chance.pick(&[1_000, 500_000, 4_000_000]).unwrap_or(&1_000);
        let micros = self.env.chance.within(100, most);
        self.returns.insert(side, self.env.now + Duration::from_micros(micros));
    }

    // ---- phases ----

    /// The faults end: what is broken is mended, and from some time on all is well.
    pub(crate) fn calm_down(&mut self) {
        let env = &mut self.env;
        env.say(|| "the storm is over".to_owned());
        env.is_calm = true;
        env.climate = crate::climate::Climate::calm();
        env.disk.mood = Mood::Good;
        let mut well_from = env.now;
        for (id, wire) in
            env.net.wires.iter().map(|(id, wire)| (*id, (wire.kind, wire.is_black_hole))).collect::<Vec<_>>()
        {
            match wire {
                // Nobody tells the daemons: they must find out by themselves, within 25 s.
                (Kind::Link, true) if env.chance.is(500) => well_from = env.now + Duration::from_secs(27),
                (_, true) => env.cut(id, Fin::Reset),
                (_, false) => {}
            }
        }
        env.unstall();
        // Dials that nobody would have answered.
        let dialing =
            self.server.iter().flat_map(|host| host.dialing.keys()).map(|conn| (Side::Server, *conn));
        let agents = self.agent.iter().flat_map(|host| host.dialing.keys()).map(|conn| (Side::Agent, *conn));
        for (side, conn) in dialing.chain(agents).collect::<Vec<_>>() {
            env.tell(side, 1_000, News::Connected { conn });
        }
        // Timeouts of what was asked in the storm.
        well_from = well_from.max(env.now + Duration::from_secs(9));
        for side in [Side::Server, Side::Agent] {
            let is_away = match side {
                Side::Server => {
                    self.server.is_none() || self.server.as_ref().is_some_and(|host| host.is_draining)
                }
                Side::Agent => {
                    self.agent.is_none() || self.agent.as_ref().is_some_and(|host| host.is_draining)
                }
            };
            if is_away {
                self.kill(side);
                self.returns.insert(side, self.env.now + Duration::from_micros(1));
            }
        }
        let env = &mut self.env;
        if env.chance.is(400) {
            // The server goes once more; a second after its return calls must go through.
            let away = env.chance.within(10, 5_000_000);
            let back = env.now + Duration::from_micros(away);
            self.kill(Side::Server);
            self.returns.insert(Side::Server, back);
            self.env.say(|| format!("the server is back in {away} us"));
            well_from = if well_from > self.env.now + Duration::from_secs(20) {
                well_from.max(back + Duration::from_secs(1))
            } else {
                back + Duration::from_secs(1)
            };
        }
        self.env.well_from = Some(well_from);
        self.env.alarm(Entity::Chaos, self.env.now);
        self.env.say(|| format!("all is well from {well_from:?}"));
        let everybody: Vec<u64> = self.actors.keys().copied().collect();
        for id in everybody {
            self.env.wake(Entity::Actor(id), self.env.now);
        }
    }

    /// Calls that wait for an answer.
    pub(crate) fn open_calls(&self) -> Vec<String> {
        let open = self.env.ledger.calls.iter().filter(|(_, call)| call.state == State::Open);
        open.map(|(tag, call)| format!("{tag:?} since {:?}: {:?}", call.asked, call.what)).collect()
    }

    /// Strangers that should have been parted with.
    pub(crate) fn strangers(&self) -> usize {
        self.actors
            .values()
            .filter(|actor| matches!(actor, Actor::Stranger(stranger) if stranger.must_go))
            .count()
    }

    pub(crate) fn stop_spawning(&mut self) {
        self.spawns = false;
    }

    /// Sources that have been paused for long, though everybody reads.
    pub(crate) fn check_resumed(&mut self) {
        let now = self.env.now;
        let stuck = |ports: &BTreeMap<carapace_proto::machine::Source, crate::host::Port>| {
            let is_stuck =
                |port: &crate::host::Port| port.is_paused && now.since(port.paused_at).as_secs() >= 5;
            ports.iter().find(|(_, port)| is_stuck(port)).map(|(source, _)| *source)
        };
        let stuck = self
            .server
            .as_ref()
            .and_then(|host| stuck(&host.ports))
            .or(self.agent.as_ref().and_then(|host| stuck(&host.ports)));
        if let Some(source) = stuck {
            self.env.fail(Check::Resumed, format!("{source:?} was paused, and is never read again"));
        }
    }

    /// Ends both daemons in order.
    pub(crate) fn drain_all(&mut self) {
        self.spawns = false;
        self.env.well_from = None;
        let mut sides = [Side::Server, Side::Agent];
        self.env.chance.shuffle(&mut sides);
        for side in sides {
            self.drain(side);
        }
    }

    pub(crate) const fn has_drained(&self) -> bool {
        self.server.is_none() && self.agent.is_none()
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome { failure: self.env.failure, steps: self.env.step, counts: self.env.ledger.counts }
    }
}
