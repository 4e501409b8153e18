//! Carrying out what a machine says, in order, and only what it may say.

use crate::check::Check;
use crate::child::{self, Child};
use crate::env::{Entity, Env, Newborn, News, Side};
use crate::host::{Host, JobPorts, Port, Subject};
use crate::ledger;
use crate::net::{End, Kind};
use crate::rules::{OWN_UID, SECRET_VARIABLE};
use crate::sabotage::Bug;
use carapace_policy::{CwdRule, Exec};
use carapace_proto::ids::{ConnId, JobId};
use carapace_proto::machine::{Address, DialError, Output, PeerAddr, Sink, Source, StartError};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where the server listens for agents.
pub(crate) fn server_address() -> Address {
    Address::Tcp { host: "server.test".to_owned(), port: 8765 }
}

/// A peer on this machine, with this account.
pub(crate) fn local(uid: u32) -> PeerAddr {
    PeerAddr::Tcp { addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000), uid: Some(uid) }
}

impl<M: Subject> Host<M> {
    /// Everything the machine says by now.
    pub(crate) fn carry_out(&mut self, env: &mut Env) {
        while let Some(output) = self.machine.poll_output() {
            self.output(env, output);
        }
    }

    fn output(&mut self, env: &mut Env, output: Output) {
        env.say(|| format!("{:?} says {}", M::SIDE, shown(&output)));
        match output {
            Output::Dial { conn, to } => self.dial(env, conn, to),
            Output::Write(sink) => {
                if !(env.has(Bug::LoseWrite) && env.step.is_multiple_of(97)) {
                    self.announced.insert(sink);
                }
            }
            Output::Pause(source) => {
                env.ledger.count("pauses");
                let now = env.now;
                if let Some(port) = self.ports.get_mut(&source) {
                    port.is_paused = true;
                    port.paused_at = now;
                }
            }
            Output::Resume(source) => self.resume(env, source),
            Output::Shutdown(conn) => self.shut_down(env, conn),
            Output::Close { conn, how } => self.close(env, conn, how),
            Output::Record { through } => {
                if let Some(earlier) = self.record.replace(through) {
                    env.fail(Check::Contract, format!("{through} while {earlier} is not appended"));
                }
            }
            Output::Start { job, exec } => self.start(env, job, &exec),
            Output::CloseStdin(job) => self.close_stdin(env, job),
            Output::Signal { job, signal } => {
                if !self.jobs_seen.contains(&job) {
                    env.fail(Check::Contract, format!("{job} is signalled and was never started"));
                }
                if self.jobs.contains_key(&job) {
                    child::signal(env, job, signal);
                }
            }
            Output::Forget(job) => self.forget(env, job),
            Output::Drained => {
                if self.has_drained || !self.is_draining {
                    env.fail(Check::Contract, format!("{:?}: drained, and not when it should be", M::SIDE));
                }
                self.has_drained = true;
            }
            output => env.fail(Check::Contract, format!("an output that no driver knows: {output:?}")),
        }
    }

    fn dial(&mut self, env: &mut Env, conn: ConnId, to: Address) {
        if !self.dialed.insert(conn) {
            env.fail(Check::Contract, format!("{conn} is dialled twice"));
        }
        self.dialing.insert(conn, to);
        let slow = if env.has(Bug::SlowDial) { 1_500_000 } else { 0 };
        let micros = slow + env.latency();
        if env.chance.is(env.climate.bad_dials) {
            env.ledger.count("bad dials");
            if env.chance.is(700) {
                let error = *env
                    .chance
                    .pick(&[DialError::Refused, DialError::Unreachable, DialError::NoSuchHost])
                    .unwrap_or(&DialError::Refused);
                env.tell(M::SIDE, micros, News::DialFailed { conn, error });
            }
            // Otherwise nobody answers, ever.
            return;
        }
        env.tell(M::SIDE, micros, News::Connected { conn });
    }

    fn resume(&mut self, env: &mut Env, source: Source) {
        if env.has(Bug::LoseResume)
            && matches!(source, Source::Conn(_))
            && M::SIDE == Side::Agent
            && !env.is_calm
        {
            return;
        }
        if let Some(port) = self.ports.get_mut(&source) {
            port.is_paused = false;
            // No edge will tell of what has arrived meanwhile.
            env.wake_in(Entity::Host(M::SIDE), 1);
        }
    }

    fn shut_down(&mut self, env: &mut Env, conn: ConnId) {
        if !self.machine.unsent(Sink::Conn(conn)).is_empty() {
            env.fail(Check::Contract, format!("{:?} {conn} is shut down with bytes unsent", M::SIDE));
        }
        if let Some(port) = self.ports.get_mut(&Source::Conn(conn)) {
            port.is_shut_down = true;
            env.shutdown(port.end);
        }
    }

    fn close(&mut self, env: &mut Env, conn: ConnId, how: carapace_proto::machine::Closing) {
        self.dialing.remove(&conn);
        self.announced.remove(&Sink::Conn(conn));
        let kind =
            self.ports.get(&Source::Conn(conn)).and_then(|port| env.wire(port.end)).map(|wire| wire.kind);
        let is_lost = match kind {
            Some(Kind::Client) => env.has(Bug::LoseClose) && M::SIDE == Side::Server,
            Some(Kind::Upstream) => env.has(Bug::LoseUpstreamClose),
            Some(Kind::Link | Kind::Peer | Kind::Pipe) | None => false,
        };
        if is_lost && kind == Some(Kind::Client) {
            self.ports.remove(&Source::Conn(conn));
        }
        if is_lost {
            return;
        }
        self.taps.remove(&conn);
        if let Some(port) = self.ports.remove(&Source::Conn(conn)) {
            env.close(port.end, how);
        }
    }

    fn close_stdin(&mut self, env: &mut Env, job: JobId) {
        if !self.machine.unsent(Sink::Stdin(job)).is_empty() {
            env.fail(Check::Contract, format!("the input of {job} is closed with bytes unsent"));
        }
        if let Some(end) = self.jobs.get_mut(&job).and_then(|ports| ports.stdin.take()) {
            self.announced.remove(&Sink::Stdin(job));
            env.close(end, carapace_proto::machine::Closing::Orderly);
        }
    }

    // ---- jobs ----

    fn start(&mut self, env: &mut Env, job: JobId, exec: &Exec) {
        if !self.jobs_seen.insert(job) {
            env.fail(Check::Contract, format!("{job} is started twice"));
        }
        let Some(tag) = self.judge(env, exec) else { return };
        self.jobs.insert(job, JobPorts { stdin: None, is_started: false, has_exited: false });
        let micros = if env.chance.is(700) { 0 } else { env.chance.within(1, 2_000) };
        if env.chance.is(env.climate.rude_children / 5) {
            let errors = [StartError::NotFound, StartError::NoRoom, StartError::Other("planned".to_owned())];
            let error = env.chance.pick(&errors).cloned().unwrap_or(StartError::NotFound);
            return env.tell(M::SIDE, micros, News::StartFailed { job, error });
        }
        let mut pipe = || {
            let wire = env.open_wire(Kind::Pipe, [Entity::Host(M::SIDE), Entity::Child(job)]);
            (End { wire, side: 0 }, End { wire, side: 1 })
        };
        let (stdout, childs_stdout) = pipe();
        let (stderr, childs_stderr) = pipe();
        let (stdin, childs_stdin) = if exec.stdin() {
            let (ours, childs) = pipe();
            (Some(ours), Some(childs))
        } else {
            (None, None)
        };
        self.ports.insert(Source::Stdout(job), Port::new(stdout));
        self.ports.insert(Source::Stderr(job), Port::new(stderr));
        if let Some(ports) = self.jobs.get_mut(&job) {
            ports.stdin = stdin;
        }
        let child = Child::new(env, tag, childs_stdin, childs_stdout, childs_stderr);
        env.children.insert(job, child);
        env.wake_in(Entity::Child(job), micros + 10);
        env.tell(M::SIDE, micros, News::Started { job });
    }

    /// Whether a process is one that may be, exactly.
    fn judge(&mut self, env: &mut Env, exec: &Exec) -> Option<ledger::Tag> {
        let argv: Vec<String> =
            exec.argv().iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let (program, words) = argv.split_first()?;
        let key = ledger::run_key(exec.tool(), words);
        let list: Vec<&str> = words.iter().map(String::as_str).collect();
        let verdict = env.ledger.effect(&key, |law| law.allows_run(exec.tool(), &list));
        env.check(verdict);
        if exec.binary() != format!("/usr/bin/{}", exec.tool()) || !exec.binary().ends_with(program.as_str())
        {
            env.fail(Check::Policy, format!("{key:?} runs {program:?}, {}", exec.binary()));
        }
        if exec.cwd() != CwdRule::Fixed("/") {
            env.fail(Check::Policy, format!("{key:?} runs in {:?}", exec.cwd()));
        }
        let allowed = |name: &[u8], value: &[u8]| match exec.tool() {
            "op" => {
                name == b"LANG"
                    || name == SECRET_VARIABLE.0.as_bytes() && value == SECRET_VARIABLE.1.as_bytes()
            }
            _ => false,
        };
        if let Some((name, _)) = exec.env().find(|(name, value)| !allowed(name, value)) {
            env.fail(
                Check::Policy,
                format!("{key:?} has {:?} in its environment", String::from_utf8_lossy(name)),
            );
        }
        if exec.tool() == "op" && !exec.env().any(|(name, _)| name == SECRET_VARIABLE.0.as_bytes()) {
            env.fail(Check::Policy, format!("{key:?} lacks its secret"));
        }
        let running = self.jobs.values().filter(|job| !job.has_exited).count();
        if running > 64 {
            env.fail(Check::Policy, format!("{running} jobs at once"));
        }
        words.iter().rev().find_map(|word| word.strip_prefix('t')?.parse().ok()).map(ledger::Tag)
    }

    fn forget(&mut self, env: &mut Env, job: JobId) {
        let Some(ports) = self.jobs.remove(&job) else {
            return env.fail(Check::Contract, format!("{job} is forgotten, and is not there"));
        };
        if !ports.has_exited && !env.has(Bug::LoseExit) {
            env.fail(Check::Contract, format!("{job} is forgotten while it runs"));
        }
        self.announced.remove(&Sink::Stdin(job));
        let outputs = [Source::Stdout(job), Source::Stderr(job)];
        let ends = outputs.iter().filter_map(|source| self.ports.remove(source)).map(|port| port.end);
        for end in ends.chain(ports.stdin) {
            env.close(end, carapace_proto::machine::Closing::Orderly);
        }
        env.children.remove(&job);
    }
}

impl Env {
    /// A dial reaches its address: the new connection's end, and for an upstream whose it is.
    pub(crate) fn arrive(&mut self, from: Side, to: &Address) -> Option<(End, Option<&'static str>)> {
        let tool = match to {
            Address::Tcp { host, port: 18080 } if host == "127.0.0.1" => "signal-cli",
            Address::Tcp { host, port: 8000 } if host == "files.test" => "files",
            to if *to == server_address() && from == Side::Agent => {
                if !self.listening.contains(&Side::Server) {
                    return None;
                }
                let wire = self.open_wire(Kind::Link, [Entity::Host(from), Entity::Host(Side::Server)]);
                let end = End { wire, side: 1 };
                let listener = crate::env::Door::Link.listener();
                self.tell(Side::Server, 10, News::Accepted { end, listener, peer: local(OWN_UID) });
                return Some((End { wire, side: 0 }, None));
            }
            to => {
                self.fail(Check::Contract, format!("{from:?} dials {to:?}"));
                return None;
            }
        };
        let id = self.new_actor();
        let wire = self.open_wire(Kind::Upstream, [Entity::Host(from), Entity::Actor(id)]);
        self.newborn.push(Newborn::Upstream { id, end: End { wire, side: 1 }, tool });
        Some((End { wire, side: 0 }, Some(tool)))
    }
}

fn shown(output: &Output) -> String {
    match output {
        Output::Start { job, .. } => format!("Start {job}"),
        output => format!("{output:.200?}"),
    }
}
