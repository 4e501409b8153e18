//! Child processes: they print, read, ignore signals, leave grandchildren behind, and end in all the ways there are.

use crate::env::{Entity, Env, News, Side};
use crate::ledger::{Lane, Tag};
use crate::net::{End, Got, Wrote};
use crate::pattern;
use carapace_proto::ids::JobId;
use carapace_proto::machine::{Closing, ExitStatus};
use std::collections::VecDeque;

/// What a child does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    CloseStdin,
    CloseStdout,
    Exit(u8),
    DieBy(u8),
    /// Bytes on standard output, or standard error.
    Print {
        lane: Lane,
        left: u64,
    },
    ReadAll,
    Sleep(u64),
    /// A grandchild keeps standard output open for so long.
    LeaveGrandchild(u64),
}

/// A process of a job.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) tag: Tag,
    /// Pipes, as the child has them.
    stdin: Option<End>,
    stdout: Option<End>,
    stderr: Option<End>,
    script: VecDeque<Act>,
    ignores_term: bool,
    is_stopped: bool,
    /// When a grandchild lets go of standard output.
    grandchild: Option<u64>,
    pub(crate) has_ended: bool,
    /// Every pipe was closed with all bytes in it.
    pub(crate) killed: Option<u8>,
}

impl Child {
    pub(crate) fn new(env: &mut Env, tag: Tag, stdin: Option<End>, stdout: End, stderr: End) -> Self {
        let is_rude = env.chance.is(env.climate.rude_children);
        let script = if is_rude { rude_script(env) } else { plain_script(env) };
        env.say(|| format!("child of {tag:?}: {script:?}"));
        Self {
            tag,
            stdin,
            stdout: Some(stdout),
            stderr: Some(stderr),
            script: script.into(),
            ignores_term: is_rude && env.chance.is(300),
            is_stopped: false,
            grandchild: None,
            has_ended: false,
            killed: None,
        }
    }

    fn end_of(&self, lane: Lane) -> Option<End> {
        match lane {
            Lane::Stderr => self.stderr,
            Lane::Stdout | Lane::Up | Lane::Down => self.stdout,
        }
    }
}

fn plain_script(env: &mut Env) -> Vec<Act> {
    let mut acts = Vec::new();
    for _ in 0..env.chance.below(4) {
        let lane = if env.chance.is(700) { Lane::Stdout } else { Lane::Stderr };
        let left = *env.chance.pick(&[1, 30, 4_000, 4_000, 60_000, 200_000]).unwrap_or(&1);
        acts.push(Act::Print { lane, left: env.chance.within(1, left) });
        if env.chance.is(300) {
            acts.push(Act::Sleep(env.chance.within(10, 30_000)));
        }
    }
    if env.chance.is(700) {
        let place = env.chance.size(0, acts.len());
        acts.insert(place, Act::ReadAll);
    }
    let code = if env.chance.is(800) { 0 } else { 3 };
    acts.push(Act::Exit(code));
    acts
}

fn rude_script(env: &mut Env) -> Vec<Act> {
    let long = 60_000_000;
    let mut acts = match env.chance.below(9) {
        0 => vec![Act::Print {
            lane: Lane::Stdout,
            left: if env.chance.is(300) { u64::MAX } else { 4_000_000 },
        }],
        1 => vec![Act::Sleep(long)],
        2 => vec![Act::CloseStdout, Act::Sleep(20_000), Act::Print { lane: Lane::Stderr, left: 2_000 }],
        3 => vec![Act::CloseStdin, Act::Print { lane: Lane::Stdout, left: 70_000 }],
        4 => vec![Act::Print { lane: Lane::Stdout, left: 500 }, Act::DieBy(11)],
        5 => vec![Act::Print { lane: Lane::Stdout, left: 200_000 }, Act::LeaveGrandchild(30_000)],
        6 => vec![Act::LeaveGrandchild(10_000_000)],
        7 => vec![Act::Print { lane: Lane::Stderr, left: u64::MAX }],
        _ => Vec::new(),
    };
    if env.chance.is(300) {
        acts.insert(0, Act::ReadAll);
    }
    acts.push(Act::Exit(1));
    acts
}

/// A signal for a job's process group.
pub(crate) fn signal(env: &mut Env, job: JobId, number: u8) {
    let Some(child) = env.children.get_mut(&job) else { return };
    match number {
        9 => {
            child.grandchild = None;
            child.killed = Some(9);
        }
        19 | 20 => child.is_stopped = true,
        18 => child.is_stopped = false,
        28 => {}
        15 if child.ignores_term => {}
        number => {
            child.grandchild = None;
            child.killed.get_or_insert(number);
        }
    }
    let micros = env.chance.within(10, 400);
    env.wake_in(Entity::Child(job), micros);
}

/// A child's turn.
pub(crate) fn run(env: &mut Env, job: JobId) {
    let Some(mut child) = env.children.remove(&job) else { return };
    step(env, job, &mut child);
    env.children.insert(job, child);
}

fn step(env: &mut Env, job: JobId, child: &mut Child) {
    if child.has_ended {
        if child.grandchild.is_none_or(|until| until <= env.now.as_micros()) {
            close(env, &mut child.stdout);
            close(env, &mut child.stderr);
        }
        return;
    }
    if let Some(signal) = child.killed
        && (signal == 9 || !child.is_stopped)
    {
        return end(env, job, child, ExitStatus::Signaled { signal, core: signal == 11 });
    }
    if child.is_stopped {
        return;
    }
    let Some(act) = child.script.front().copied() else { return };
    let is_done = match act {
        Act::CloseStdin => {
            close(env, &mut child.stdin);
            true
        }
        Act::CloseStdout => {
            close(env, &mut child.stdout);
            true
        }
        Act::Exit(code) => return end(env, job, child, ExitStatus::Exited(code)),
        Act::DieBy(signal) => return end(env, job, child, ExitStatus::Signaled { signal, core: true }),
        Act::Print { lane, left } => return print(env, job, child, lane, left),
        Act::ReadAll => read_all(env, child),
        Act::Sleep(micros) => {
            child.script.pop_front();
            return env.wake_in(Entity::Child(job), micros);
        }
        Act::LeaveGrandchild(micros) => {
            child.grandchild = Some(env.now.as_micros() + micros);
            true
        }
    };
    if is_done {
        child.script.pop_front();
        env.wake_in(Entity::Child(job), 20);
    }
}

fn print(env: &mut Env, job: JobId, child: &mut Child, lane: Lane, left: u64) {
    let Some(end) = child.end_of(lane) else {
        child.script.pop_front();
        return env.wake_in(Entity::Child(job), 20);
    };
    let tag = child.tag;
    let most = usize::try_from(left).unwrap_or(usize::MAX).min(32 * 1024);
    let count = env.chance.size(1, most);
    let from = env.ledger.call(tag).map_or(0, |call| call.flow(lane).sent);
    let bytes = pattern::bytes(tag, lane.number(), from, count);
    match env.write(end, &bytes) {
        Wrote::Count(0) => {}
        Wrote::Count(count) => {
            env.ledger.sent(tag, lane, count);
            let left = left - count as u64;
            child.script.pop_front();
            if left > 0 {
                child.script.push_front(Act::Print { lane, left });
            }
            // Who prints for ever takes its time: others want their turns, too.
            let most = if left > 1 << 32 { 200_000 } else { 300 };
            let micros = env.chance.within(5, most);
            env.wake_in(Entity::Child(job), micros);
        }
        Wrote::Broken => {
            // SIGPIPE.
            child.killed = Some(13);
            env.wake_in(Entity::Child(job), 20);
        }
    }
}

/// Takes in what has come; true at its end.
fn read_all(env: &mut Env, child: &mut Child) -> bool {
    let Some(end) = child.stdin else { return true };
    loop {
        let most = env.chance.size(1, 20_000);
        match env.read(end, most) {
            Got::Bytes(bytes) => {
                let verdict = env.ledger.received(child.tag, Lane::Up, &bytes);
                env.check(verdict);
            }
            Got::Eof => {
                env.say(|| format!("child of {:?}: end of input", child.tag));
                // Whoever reads to the end takes what it got for all there is.
                let verdict = env.ledger.whole_input(child.tag);
                env.check(verdict);
                close(env, &mut child.stdin);
                return true;
            }
            Got::Reset => return true,
            Got::Nothing => return false,
        }
    }
}

fn close(env: &mut Env, end: &mut Option<End>) {
    if let Some(end) = end.take() {
        env.close(end, Closing::Orderly);
    }
}

fn end(env: &mut Env, job: JobId, child: &mut Child, status: ExitStatus) {
    env.say(|| format!("child of {:?}: ends, {status:?}", child.tag));
    child.has_ended = true;
    if let Some(call) = env.ledger.call(child.tag) {
        call.ended = Some(status);
    }
    close(env, &mut child.stdin);
    match child.grandchild {
        Some(until) => {
            let at = carapace_proto::time::Instant::from_micros(until);
            env.wake(Entity::Child(job), at);
        }
        None => {
            close(env, &mut child.stdout);
            close(env, &mut child.stderr);
        }
    }
    let micros = env.chance.within(10, 500);
    env.tell(Side::Server, micros, News::Exited { job, status });
}
