//! A machine that runs jobs, some at a time, and keeps what became of each.

use carapace_io_mio::child::{Account, Children, disinherit, raise_open_files};
use carapace_io_mio::clock::Clock;
use carapace_io_mio::signal::Signals;
use carapace_io_mio::turn::{End, Loop, Parts};
use carapace_policy::{Exec, ExecRequest, Limits, Peer, Policy};
use carapace_proto::ids::JobId;
use carapace_proto::machine::{ExitStatus, Input, Machine, Output, Sink, Source, StartError};
use carapace_proto::time::{Duration, Instant};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};

/// What to run, and what to do with it.
pub(crate) struct Plan {
    exec: Exec,
    stdin: Vec<u8>,
    /// Sent when it first prints something.
    signal_when_it_prints: Option<u8>,
    /// Sent when its process has ended, and others of its group may not have.
    signal_when_it_ends: Option<u8>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ended: Result<ExitStatus, StartError>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) stdin_was_lost: bool,
    /// Whether its process ended before its outputs did.
    pub(crate) outputs_outlived_it: bool,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// What the tests' policy makes of some arguments of a program.
pub(crate) fn plan(tool: &str, args: &[&str]) -> Plan {
    plan_in(None, &[], tool, args)
}

pub(crate) fn shell(script: &str) -> Plan {
    plan("sh", &["-c", script])
}

pub(crate) fn plan_in(cwd: Option<&str>, env: &[(&[u8], &[u8])], tool: &str, args: &[&str]) -> Plan {
    let argv: Vec<_> = args.iter().map(|arg| arg.as_bytes()).collect();
    judged(policy(), &ExecRequest { tool, argv: &argv, env, cwd: cwd.map(str::as_bytes), tty: false })
}

/// What another policy makes of a program without arguments.
pub(crate) fn plan_of(policy: &str, tool: &str) -> Plan {
    let policy = Policy::parse("test.yaml", policy).unwrap();
    judged(&policy, &ExecRequest { tool, argv: &[], env: &[], cwd: None, tty: false })
}

fn judged(policy: &Policy, request: &ExecRequest<'_>) -> Plan {
    let caller = policy.admit(&Peer { uid: Some(0), ..Peer::default() }).unwrap();
    let exec = policy.judge_exec(&caller, &mut Limits::default(), 0, request).unwrap().action;
    Plan { exec, stdin: Vec::new(), signal_when_it_prints: None, signal_when_it_ends: None }
}

impl Plan {
    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }

    pub(crate) fn signal_when_it_prints(mut self, signal: u8) -> Self {
        self.signal_when_it_prints = Some(signal);
        self
    }

    pub(crate) fn signal_when_it_ends(mut self, signal: u8) -> Self {
        self.signal_when_it_ends = Some(signal);
        self
    }

    pub(crate) fn run(self) -> Outcome {
        run(1, vec![self]).pop().unwrap()
    }
}

fn policy() -> &'static Policy {
    static POLICY: OnceLock<Policy> = OnceLock::new();
    POLICY.get_or_init(|| Policy::parse("tests.yaml", include_str!("policy.yaml")).unwrap())
}

/// The limit of open descriptors that this process was given. Makes of it what a daemon makes of itself.
pub(crate) fn given_open_files() -> (u64, u64) {
    static GIVEN: OnceLock<(u64, u64)> = OnceLock::new();
    *GIVEN.get_or_init(|| {
        disinherit();
        raise_open_files().unwrap()
    })
}

/// Runs them in order, so many at a time.
pub(crate) fn run(parallel: usize, plans: Vec<Plan>) -> Vec<Outcome> {
    alone(|run| run(parallel, plans))
}

/// Keeps other tests from running jobs meanwhile: children, signals and descriptors are the whole process's.
pub(crate) fn alone<T>(test: impl FnOnce(fn(usize, Vec<Plan>) -> Vec<Outcome>) -> T) -> T {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    test(run_now)
}

fn run_now(parallel: usize, plans: Vec<Plan>) -> Vec<Outcome> {
    let (done, outcomes) = mpsc::channel();
    let count = plans.len();
    let machine = Runner {
        waiting: plans.into(),
        parallel,
        running: BTreeMap::new(),
        next: 1,
        outputs: VecDeque::new(),
        done,
        until: Instant::ORIGIN + Duration::from_secs(60),
    };
    let clock = Clock::start();
    let now = clock.now();
    let parts = Parts {
        signals: Some(Signals::catch().unwrap()),
        children: Some(Children::new(Account::own(), given_open_files()).unwrap()),
        ..Parts::default()
    };
    let end = Loop::new(machine, clock, now, parts).unwrap().run().unwrap();
    assert_eq!(end, End::Drained);
    let mut outcomes: Vec<(JobId, Outcome)> = outcomes.iter().collect();
    outcomes.sort_by_key(|(job, _)| *job);
    assert_eq!(outcomes.len(), count);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

struct Running {
    plan: Plan,
    fed: usize,
    stdin_is_open: bool,
    open_outputs: u8,
    has_printed: bool,
    outcome: Outcome,
}

struct Runner {
    waiting: VecDeque<Plan>,
    parallel: usize,
    running: BTreeMap<JobId, Running>,
    next: u64,
    outputs: VecDeque<Output>,
    done: mpsc::Sender<(JobId, Outcome)>,
    until: Instant,
}

impl Runner {
    fn start_more(&mut self) {
        while self.running.len() < self.parallel
            && let Some(plan) = self.waiting.pop_front()
        {
            let job = JobId(self.next);
            self.next += 1;
            self.outputs.push_back(Output::Start { job, exec: Box::new(plan.exec.clone()) });
            let outcome = Outcome {
                ended: Err(StartError::Other("it has not ended".into())),
                stdout: Vec::new(),
                stderr: Vec::new(),
                stdin_was_lost: false,
                outputs_outlived_it: false,
            };
            let stdin_is_open = plan.exec.stdin();
            let running =
                Running { plan, fed: 0, stdin_is_open, open_outputs: 2, has_printed: false, outcome };
            self.running.insert(job, running);
        }
        if self.running.is_empty() {
            self.outputs.push_back(Output::Drained);
        }
    }

    fn feed(&mut self, job: JobId) {
        let running = &self.running[&job];
        if running.stdin_is_open {
            let is_fed = running.fed == running.plan.stdin.len();
            let output = if is_fed { Output::CloseStdin(job) } else { Output::Write(Sink::Stdin(job)) };
            self.outputs.push_back(output);
        }
    }

    fn end_if_done(&mut self, job: JobId) {
        let running = &self.running[&job];
        if running.outcome.ended.is_ok() && running.open_outputs == 0 {
            self.outputs.push_back(Output::Forget(job));
            self.finish(job);
        }
    }

    fn finish(&mut self, job: JobId) {
        let running = self.running.remove(&job).unwrap();
        self.done.send((job, running.outcome)).unwrap();
        self.start_more();
    }

    fn printed(&mut self, source: Source, bytes: &[u8]) {
        let (Source::Stdout(job) | Source::Stderr(job)) = source else { panic!("{source:?}") };
        let running = self.running.get_mut(&job).unwrap();
        match source {
            Source::Stderr(_) => running.outcome.stderr.extend_from_slice(bytes),
            _ => running.outcome.stdout.extend_from_slice(bytes),
        }
        if let Some(signal) = running.plan.signal_when_it_prints
            && !std::mem::replace(&mut running.has_printed, true)
        {
            self.outputs.push_back(Output::Signal { job, signal });
        }
    }
}

impl Machine for Runner {
    type Timer = ();

    fn handle(&mut self, _: Instant, input: Input<'_>) {
        match input {
            Input::Wall { .. } => self.start_more(),
            Input::Started { job, pid } => {
                assert!(pid > 1);
                if self.running[&job].plan.stdin.is_empty() {
                    self.feed(job);
                } else {
                    self.outputs.push_back(Output::Write(Sink::Stdin(job)));
                }
            }
            Input::StartFailed { job, error } => {
                self.running.get_mut(&job).unwrap().outcome.ended = Err(error);
                self.finish(job);
            }
            Input::Bytes { source, bytes } => self.printed(source, bytes),
            Input::Eof { source: Source::Stdout(job) | Source::Stderr(job) } => {
                self.running.get_mut(&job).unwrap().open_outputs -= 1;
                self.end_if_done(job);
            }
            Input::Sent { sink: Sink::Stdin(job), count } => {
                let running = self.running.get_mut(&job).unwrap();
                running.fed += count;
                if running.fed == running.plan.stdin.len() {
                    self.feed(job);
                }
            }
            Input::StdinLost { job } => {
                let running = self.running.get_mut(&job).unwrap();
                running.stdin_is_open = false;
                running.outcome.stdin_was_lost = true;
            }
            Input::Exited { job, status } => {
                let running = self.running.get_mut(&job).unwrap();
                running.outcome.ended = Ok(status);
                running.outcome.outputs_outlived_it = running.open_outputs > 0;
                if let Some(signal) = running.plan.signal_when_it_ends {
                    self.outputs.push_back(Output::Signal { job, signal });
                }
                self.end_if_done(job);
            }
            other => panic!("not to be expected here: {other:?}"),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        assert!(now < self.until, "it takes too long");
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<(Instant, ())> {
        Some((self.until, ()))
    }

    fn unsent(&self, sink: Sink) -> &[u8] {
        match sink {
            Sink::Stdin(job) => self.running.get(&job).map_or(&[], |job| &job.plan.stdin[job.fed..]),
            Sink::Audit | Sink::Conn(_) => &[],
        }
    }
}
