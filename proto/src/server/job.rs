//! The life of a tool run: described, judged, queued, started, fed, listened to, ended.

use super::call::{Call, Description, State, Then};
use super::record::{Outcome, Subject, Verdict};
use super::{Server, Timer};
use crate::ids::{CallId, JobId};
use crate::limits::{GRANDCHILD_WAIT, RUN_LISTS_BYTES_MAX, SLOT_WAIT};
use crate::machine::{ExitStatus, Output, Sink, Source, StartError};
use crate::outbox::Outbox;
use crate::time::{Duration, Instant};
use crate::timers::Alarm;
use crate::wire::frame::{Channel, Fault, Items, ListName, StreamFrame};
use carapace_policy::{Exec, ExecRequest, Sieve};
use log::{debug, info};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// Signals that a caller may have delivered: HUP, INT, QUIT, USR1, USR2, TERM, CONT, TSTP, WINCH (`signal(7)`, Linux).
const SIGNALS_PASSED: [u8; 9] = [1, 2, 3, 10, 12, 15, 18, 20, 28];

/// A child process and what is left to do for it.
#[derive(Debug)]
pub(super) struct Job {
    stdin: Stdin,
    stdout: Pipe,
    stderr: Pipe,
    is_started: bool,
    exited: Option<ExitStatus>,
    ending: Option<Ending>,
    output_left: u64,
    /// What must see the input before the tool does.
    sieve: Option<Sieve>,
    timeout: Duration,
    /// When it must be over; set once it runs.
    deadline: Option<Instant>,
    kill_grace: Duration,
    alarm: Alarm,
}

/// A pipe that is read.
#[derive(Debug)]
enum Pipe {
    Open { is_paused: bool },
    Ended,
}

impl Pipe {
    const fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }
}

#[derive(Debug)]
enum Stdin {
    /// The tool takes none, or its end has been passed on.
    Closed,
    /// `ends`: the caller has said all; it is closed once everything is written.
    Open { out: Outbox, ends: bool },
}

/// Why a job is being ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Nobody waits for it.
    Abandoned,
    /// It took too long.
    TimedOut,
    /// Its input holds what a content filter forbids.
    Blocked,
    /// It printed too much.
    TooMuchOutput,
}

impl Job {
    fn new(exec: &Exec) -> Self {
        let open = || Pipe::Open { is_paused: false };
        let stdin =
            if exec.stdin() { Stdin::Open { out: Outbox::default(), ends: false } } else { Stdin::Closed };
        Self {
            stdin,
            stdout: open(),
            stderr: open(),
            is_started: false,
            exited: None,
            ending: None,
            output_left: exec.max_output_bytes(),
            sieve: exec.stdin_sieve(),
            timeout: exec.timeout(),
            deadline: None,
            kill_grace: exec.kill_grace(),
            alarm: Alarm::default(),
        }
    }

    pub(super) const fn held_bytes(&self) -> usize {
        match &self.stdin {
            Stdin::Open { out, .. } => out.len(),
            Stdin::Closed => 0,
        }
    }

    /// Whether some of its output waits for a reader.
    const fn is_paused(&self) -> bool {
        matches!(self.stdout, Pipe::Open { is_paused: true })
            || matches!(self.stderr, Pipe::Open { is_paused: true })
    }

    fn has_ended(&self) -> bool {
        self.stdout.has_ended() && self.stderr.has_ended()
    }
}

/// How many runs of each tool there are, and who waits for one to end.
#[derive(Debug, Default)]
pub(super) struct Slots {
    tools: BTreeMap<Arc<str>, ToolSlots>,
}

#[derive(Debug, Default)]
struct ToolSlots {
    running: usize,
    waiting: VecDeque<CallId>,
}

impl Slots {
    pub(super) fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    fn tool(&mut self, tool: &Arc<str>) -> &mut ToolSlots {
        self.tools.entry(tool.clone()).or_default()
    }

    /// A run has ended, or someone has left the queue.
    fn tidy(&mut self, tool: &Arc<str>) {
        if self.tools.get(tool).is_some_and(|slots| slots.running == 0 && slots.waiting.is_empty()) {
            self.tools.remove(tool);
        }
    }

    /// Panics when the slots taken are not those of the jobs that run.
    pub(super) fn check(&self, calls: &BTreeMap<CallId, Call>) {
        for (tool, slots) in &self.tools {
            let running = calls
                .values()
                .filter(|call| matches!(call.state, State::Running(_)) && call.about.tool == *tool);
            assert_eq!(running.count(), slots.running, "slots of {tool}");
        }
    }
}

const fn job(id: CallId) -> JobId {
    JobId(id.0)
}

impl Server {
    // ---- before it runs ----

    pub(super) fn handle_list(&mut self, now: Instant, id: CallId, list: ListName, go: bool, bytes: &[u8]) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let State::Describing(description) = &mut call.state else { return };
        let held = description.argv.len() + description.env.len() + description.cwd.len();
        if held + bytes.len() > RUN_LISTS_BYTES_MAX {
            return self.fail_run(now, id, Fault::Failed, "the arguments and the environment are too long");
        }
        let more = bytes.len() as u64;
        if more > self.body_room {
            return self.fail_run(now, id, Fault::NotStarted, "not started: too many large requests at once");
        }
        self.body_room -= more;
        description.reserved += more;
        let list = match list {
            ListName::Argv => &mut description.argv,
            ListName::Env => &mut description.env,
            ListName::Cwd => &mut description.cwd,
        };
        list.extend_from_slice(bytes);
        if go {
            self.judge_run(now, id);
        }
    }

    fn judge_run(&mut self, now: Instant, id: CallId) {
        if self.is_draining() {
            return self.fail_run(now, id, Fault::NotStarted, "not started: the server is stopping");
        }
        let Some(call) = self.calls.get_mut(&id) else { return };
        let State::Describing(description) = core::mem::replace(&mut call.state, State::Finishing) else {
            return;
        };
        self.body_room += description.reserved;
        call.alarm.clear();
        let Description { terminal, argv, env, cwd, .. } = &*description;
        let argv: Vec<&[u8]> = Items(argv).collect();
        let env: Vec<(&[u8], &[u8])> = Items(env).filter_map(split_variable).collect();
        let request = ExecRequest {
            tool: &call.about.tool,
            argv: &argv,
            env: &env,
            cwd: Items(cwd).next(),
            tty: *terminal,
        };
        let policy = call.policy.clone();
        let verdict = policy.judge_exec(&call.caller, &mut self.rate_limits, now.as_micros(), &request);
        let subject = Subject { method: "", element: None };
        match verdict {
            Ok(judged) => {
                self.decide(
                    now,
                    id,
                    &[(subject, Verdict::Allowed(&judged.notes))],
                    Then::Run(Box::new(judged.action)),
                );
            }
            Err(denial) => {
                let fault = match denial.kind {
                    carapace_policy::DenialKind::UnknownTool => Fault::UnknownTool,
                    carapace_policy::DenialKind::RateLimited { .. }
                    | carapace_policy::DenialKind::Unavailable => Fault::NotStarted,
                    carapace_policy::DenialKind::Blocked
                    | carapace_policy::DenialKind::Denied
                    | carapace_policy::DenialKind::Malformed => Fault::Denied,
                };
                let said = format!("{} (request {})", denial.said, self.request_id(id));
                self.decide(now, id, &[(subject, Verdict::Denied(&denial))], Then::Fail(fault, said));
            }
        }
    }

    /// Tells the shim why there is no run, or no more of it.
    pub(super) fn fail_run(&mut self, now: Instant, id: CallId, fault: Fault, said: &str) {
        self.send_frame(id, &StreamFrame::Failed { fault, text: said.as_bytes() });
        self.finish(now, id);
    }

    /// Starts the run, or lets it wait until others have ended.
    pub(super) fn queue_run(&mut self, now: Instant, id: CallId, exec: Box<Exec>) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.about.owes_outcome = true;
        let tool = call.about.tool.clone();
        let slots = self.slots.tool(&tool);
        if slots.running < exec.max_concurrent() {
            slots.running += 1;
            return self.start(id, exec);
        }
        slots.waiting.push_back(id);
        call.alarm.set(&mut self.timers, Timer::Call(id), now + SLOT_WAIT);
        call.state = State::Queued(exec);
    }

    fn start(&mut self, id: CallId, exec: Box<Exec>) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.alarm.remove(&mut self.timers, Timer::Call(id));
            call.state = State::Running(Box::new(Job::new(&exec)));
            self.outputs.push_back(Output::Start { job: job(id), exec });
        }
    }

    pub(super) fn leave_queue(&mut self, id: CallId) {
        let Some(call) = self.calls.get(&id) else { return };
        let tool = call.about.tool.clone();
        self.slots.tool(&tool).waiting.retain(|waiting| *waiting != id);
        self.slots.tidy(&tool);
    }

    pub(super) fn give_up_queue(&mut self, now: Instant, id: CallId) {
        self.leave_queue(id);
        let said = "not started: too many runs of this tool at once";
        self.record_outcome(now, id, Outcome::Failed(said));
        self.fail_run(now, id, Fault::NotStarted, said);
    }

    /// A run has ended: the next one that waits may begin.
    fn free_slot(&mut self, id: CallId) {
        let Some(call) = self.calls.get(&id) else { return };
        let tool = call.about.tool.clone();
        let slots = self.slots.tool(&tool);
        match slots.waiting.pop_front() {
            Some(next) => {
                if let Some(call) = self.calls.get_mut(&next)
                    && let State::Queued(exec) = core::mem::replace(&mut call.state, State::Finishing)
                {
                    return self.start(next, exec);
                }
                slots.running -= 1;
            }
            None => slots.running = slots.running.saturating_sub(1),
        }
        self.slots.tidy(&tool);
    }

    // ---- while it runs ----

    pub(super) fn handle_started(&mut self, now: Instant, id: JobId, pid: u32) {
        let call = CallId(id.0);
        debug!("{id} is process {pid}");
        let Some(running) = self.job(id) else { return };
        running.is_started = true;
        let deadline = now + running.timeout;
        running.deadline = Some(deadline);
        let wants_input = matches!(running.stdin, Stdin::Open { .. });
        let is_abandoned = running.ending.is_some();
        self.set_job_alarm(id, deadline);
        let has_no_input = self.calls.get(&call).is_some_and(|call| call.has_no_input);
        if is_abandoned {
            self.terminate(now, id);
        } else if wants_input && has_no_input {
            self.feed(now, call, &[], true);
        } else if wants_input && let Some((session, stream)) = self.stream(call) {
            session.grant_initial(stream);
            self.consumed(call, 0);
        }
    }

    pub(super) fn handle_start_failed(&mut self, now: Instant, id: JobId, error: &StartError) {
        let call = CallId(id.0);
        info!("{call}: the tool could not be started: {error:?}");
        let said = match error {
            StartError::NotFound => "the tool is not installed on the host",
            StartError::NotExecutable => "the tool cannot be executed on the host",
            StartError::BadDirectory => "this directory is not one that the tool may run in",
            StartError::NoRoom => "not started: the host has no room for another process",
            StartError::Other(_) => "the tool could not be started",
        };
        let fault = match error {
            StartError::BadDirectory => Fault::Denied,
            StartError::NoRoom => Fault::NotStarted,
            StartError::NotFound | StartError::NotExecutable | StartError::Other(_) => Fault::Failed,
        };
        if self.job(id).is_some() {
            self.record_outcome(now, call, Outcome::Failed(said));
            self.leave_job(id);
            self.fail_run(now, call, fault, said);
        }
    }

    /// Bytes of the caller's standard input.
    pub(super) fn feed(&mut self, now: Instant, id: CallId, bytes: &[u8], end: bool) {
        let sink = job(id);
        let Some(running) = self.job(sink) else { return };
        if let Some(sieve) = &mut running.sieve
            && let Err(found) = sieve.push(bytes)
        {
            info!("{id}: the input is blocked by {}", found.rule);
            return self.end_early(now, sink, Ending::Blocked);
        }
        match &mut running.stdin {
            Stdin::Open { out, ends } => {
                out.push(bytes);
                *ends |= end;
                if out.is_empty() {
                    if end {
                        running.stdin = Stdin::Closed;
                        self.outputs.push_back(Output::CloseStdin(sink));
                    }
                } else if out.wants_announcing() {
                    self.outputs.push_back(Output::Write(Sink::Stdin(sink)));
                }
            }
            // The tool does not read any more: let the rest come and go, as a broken pipe would.
            Stdin::Closed => self.consumed(id, bytes.len()),
        }
    }

    pub(super) fn unfed(&self, id: JobId) -> &[u8] {
        match self.calls.get(&CallId(id.0)).map(|call| &call.state) {
            Some(State::Running(running)) => match &running.stdin {
                Stdin::Open { out, .. } => out.unsent(),
                Stdin::Closed => &[],
            },
            Some(_) | None => &[],
        }
    }

    pub(super) fn handle_fed(&mut self, id: JobId, count: usize) {
        let Some(running) = self.job(id) else { return };
        let Stdin::Open { out, ends } = &mut running.stdin else { return };
        out.sent(count);
        if *ends && out.is_empty() {
            running.stdin = Stdin::Closed;
            self.outputs.push_back(Output::CloseStdin(id));
        }
        self.consumed(CallId(id.0), count);
    }

    pub(super) fn handle_stdin_lost(&mut self, id: JobId) {
        let Some(running) = self.job(id) else { return };
        if let Stdin::Open { out, .. } = &running.stdin {
            let waiting = out.len();
            running.stdin = Stdin::Closed;
            self.outputs.push_back(Output::CloseStdin(id));
            self.consumed(CallId(id.0), waiting);
        }
    }

    pub(super) fn handle_signal(&mut self, id: CallId, number: u8) {
        let is_running =
            self.job(job(id)).is_some_and(|running| running.is_started && running.exited.is_none());
        if is_running && SIGNALS_PASSED.contains(&number) {
            self.outputs.push_back(Output::Signal { job: job(id), signal: number });
        }
    }

    pub(super) fn handle_printed(&mut self, now: Instant, id: JobId, source: Source, bytes: &[u8]) {
        let call = CallId(id.0);
        let Some(running) = self.job(id) else { return };
        if running.ending.is_some() {
            return;
        }
        let room = usize::try_from(running.output_left).unwrap_or(usize::MAX);
        let (passed, excess) = bytes.split_at(bytes.len().min(room));
        running.output_left -= passed.len() as u64;
        let channel = match source {
            Source::Stderr(_) => Channel::Stderr,
            Source::Stdout(_) | Source::Conn(_) => Channel::Stdout,
        };
        if let Some(call) = self.calls.get_mut(&call) {
            call.about.bytes_out += passed.len() as u64;
        }
        if self.send_data(call, channel, passed, false) {
            self.pause_job(id);
        }
        if !excess.is_empty() {
            self.end_early(now, id, Ending::TooMuchOutput);
        }
    }

    pub(super) fn handle_output_end(&mut self, now: Instant, id: JobId, source: Source) {
        let call = CallId(id.0);
        let Some(running) = self.job(id) else { return };
        let (pipe, channel) = match source {
            Source::Stderr(_) => (&mut running.stderr, Channel::Stderr),
            Source::Stdout(_) | Source::Conn(_) => (&mut running.stdout, Channel::Stdout),
        };
        if pipe.has_ended() {
            return;
        }
        *pipe = Pipe::Ended;
        let is_silent = running.ending.is_some();
        if !is_silent {
            self.send_data(call, channel, &[], true);
        }
        self.finish_job_if_over(now, id);
    }

    fn pause_job(&mut self, id: JobId) {
        let Some(running) = self.job(id) else { return };
        let mut paused = Vec::new();
        for (pipe, source) in
            [(&mut running.stdout, Source::Stdout(id)), (&mut running.stderr, Source::Stderr(id))]
        {
            if let Pipe::Open { is_paused } = pipe
                && !core::mem::replace(is_paused, true)
            {
                paused.push(Output::Pause(source));
            }
        }
        self.outputs.extend(paused);
    }

    pub(super) fn resume_job(&mut self, now: Instant, id: CallId) {
        let id = job(id);
        let Some(running) = self.job(id) else { return };
        let mut resumed = Vec::new();
        for (pipe, source) in
            [(&mut running.stdout, Source::Stdout(id)), (&mut running.stderr, Source::Stderr(id))]
        {
            if let Pipe::Open { is_paused } = pipe
                && core::mem::replace(is_paused, false)
            {
                resumed.push(Output::Resume(source));
            }
        }
        if running.exited.is_some() && !resumed.is_empty() {
            self.set_job_alarm(id, now + GRANDCHILD_WAIT);
        }
        self.outputs.extend(resumed);
    }

    // ---- the end ----

    pub(super) fn handle_exited(&mut self, now: Instant, id: JobId, status: ExitStatus) {
        let Some(running) = self.job(id) else { return };
        running.exited = Some(status);
        self.set_job_alarm(id, now + GRANDCHILD_WAIT);
        self.finish_job_if_over(now, id);
    }

    fn finish_job_if_over(&mut self, now: Instant, id: JobId) {
        let is_over = self.job(id).is_some_and(|running| {
            running.exited.is_some() && (running.has_ended() || running.ending.is_some())
        });
        if is_over {
            self.finish_job(now, id);
        }
    }

    fn finish_job(&mut self, now: Instant, id: JobId) {
        let call = CallId(id.0);
        let Some(running) = self.job(id) else { return };
        let (ending, status) = (running.ending, running.exited);
        // Whatever the tool left behind in its group ends with it.
        self.outputs.push_back(Output::Signal { job: id, signal: SIGKILL });
        self.outputs.push_back(Output::Forget(id));
        let outcome = match (ending, status) {
            (Some(Ending::Abandoned), _) => Outcome::Failed("ended: the client left"),
            (Some(Ending::TimedOut), _) => Outcome::Failed("ended: it took too long"),
            (Some(Ending::Blocked), _) => Outcome::Failed("ended: a content filter blocked its input"),
            (Some(Ending::TooMuchOutput), _) => Outcome::Failed("ended: it printed too much"),
            (None, Some(ExitStatus::Exited(code))) => Outcome::Exit(code),
            (None, Some(ExitStatus::Signaled { signal, .. })) => Outcome::Signal(signal),
            (None, None) => Outcome::Failed("its end is not known"),
        };
        self.record_outcome(now, call, outcome);
        self.leave_job(id);
        match (ending, status) {
            (Some(Ending::Abandoned), _) => self.finish(now, call),
            (Some(Ending::TimedOut), _) => {
                self.fail_run(now, call, Fault::TimedOut, "the tool took too long and was ended");
            }
            (Some(Ending::Blocked), _) => {
                let said =
                    "the input holds what may not be sent; the tool was ended, and may have begun to act";
                self.fail_run(now, call, Fault::Denied, said);
            }
            (Some(Ending::TooMuchOutput), _) => {
                self.fail_run(now, call, Fault::TooMuchOutput, "the tool printed too much and was ended");
            }
            (None, Some(ExitStatus::Exited(value))) => {
                self.send_frame(call, &StreamFrame::Exit { value, signaled: false, core: false });
                self.finish(now, call);
            }
            (None, Some(ExitStatus::Signaled { signal, core })) => {
                self.send_frame(call, &StreamFrame::Exit { value: signal, signaled: true, core });
                self.finish(now, call);
            }
            (None, None) => self.fail_run(now, call, Fault::OutcomeUnknown, "the tool's end is not known"),
        }
    }

    /// The call has no job any more.
    fn leave_job(&mut self, id: JobId) {
        let call = CallId(id.0);
        if let Some(running) = self.calls.get_mut(&call)
            && let State::Running(running) = &mut running.state
        {
            running.alarm.remove(&mut self.timers, Timer::Job(id));
        }
        self.set_state(call, State::Finishing);
        self.free_slot(call);
    }

    /// The client left: nobody will read what the job prints.
    pub(super) fn end_job_of_nobody(&mut self, now: Instant, id: CallId) {
        self.end_early(now, job(id), Ending::Abandoned);
    }

    fn end_early(&mut self, now: Instant, id: JobId, ending: Ending) {
        let Some(running) = self.job(id) else { return };
        if running.ending.is_none() {
            running.ending = Some(ending);
            // A job that is blocked on a full pipe must be able to notice its signal and say its last words.
            self.resume_job(now, CallId(id.0));
            self.terminate(now, id);
            self.finish_job_if_over(now, id);
        }
    }

    /// TERM now, KILL after the grace: tools may have files to put in order.
    fn terminate(&mut self, now: Instant, id: JobId) {
        let Some(running) = self.job(id) else { return };
        if running.is_started && running.exited.is_none() {
            let grace = running.kill_grace;
            self.outputs.push_back(Output::Signal { job: id, signal: SIGTERM });
            self.set_job_alarm(id, now + grace);
        }
    }

    pub(super) fn handle_job_timeout(&mut self, now: Instant, id: JobId) {
        let timer = Timer::Job(id);
        let fires = match self.calls.get_mut(&CallId(id.0)).map(|call| &mut call.state) {
            Some(State::Running(running)) => running.alarm.fires(&mut self.timers, timer, now),
            Some(_) | None => false,
        };
        let Some(running) = self.job(id).filter(|_| fires) else { return };
        if running.exited.is_some() {
            match running.deadline {
                // What it printed is in its pipes, and is read when somebody takes it.
                Some(deadline) if running.is_paused() && running.ending.is_none() && deadline > now => {
                    self.set_job_alarm(id, deadline);
                }
                Some(_) if running.is_paused() && running.ending.is_none() => {
                    self.end_early(now, id, Ending::TimedOut);
                }
                Some(_) | None => self.finish_job(now, id),
            }
        } else if running.ending.is_none() {
            self.end_early(now, id, Ending::TimedOut);
        } else {
            let grace = running.kill_grace.max(Duration::from_millis(100));
            self.outputs.push_back(Output::Signal { job: id, signal: SIGKILL });
            self.set_job_alarm(id, now + grace);
        }
    }

    fn set_job_alarm(&mut self, id: JobId, at: Instant) {
        if let Some(call) = self.calls.get_mut(&CallId(id.0))
            && let State::Running(running) = &mut call.state
        {
            running.alarm.set(&mut self.timers, Timer::Job(id), at);
        }
    }

    fn job(&mut self, id: JobId) -> Option<&mut Job> {
        match self.calls.get_mut(&CallId(id.0)).map(|call| &mut call.state) {
            Some(State::Running(running)) => Some(running),
            Some(_) | None => None,
        }
    }
}

fn split_variable(variable: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = memchr::memchr(b'=', variable)?;
    Some((variable.get(..equals)?, variable.get(equals + 1..)?))
}
