//! One client's connection to an HTTP listener: what it waits for, what it holds, how it ends.
//!
//! The two halves of an exchange are in [`super::request`] and [`super::response`]. Whatever happens, [`HttpConn::settle`]
//! comes last: it carries out an end that is due, tells the driver of bytes, pauses or resumes reading, sets the alarm.

use super::Timer;
use super::answer::{self, Manner, Refusal};
use super::exchange::{Exchange, Leg, Request, Response};
use super::hub::Hub;
use crate::buffer::Buffer;
use crate::ids::{ConnId, ListenerId, StreamId};
use crate::limits::{
    BODY_BYTES_PER_SECOND, BODY_TIMEOUT, CLIENT_UNSENT_HIGH, HALF_CLOSED_WAIT, HEAD_TIMEOUT,
    KEEPALIVE_HTTP_IDLE, LINGER_BYTES_MAX, LINGER_TIMEOUT, PIPELINE_BYTES_MAX, READER_TIMEOUT,
    REFUSED_BODY_WAIT, STREAM_HEAD_DELAY,
};
use crate::machine::{Closing, Output};
use crate::outbox::Outbox;
use crate::time::{Duration, Instant};
use crate::timers::Alarm;
use crate::wire::frame::Fault;
use crate::wire::http1::HeadScanner;

#[derive(Debug)]
pub(super) struct HttpConn {
    pub(super) id: ConnId,
    pub(super) listener: ListenerId,
    pub(super) state: State,
    /// What was received and cannot be used yet: part of a head, or what follows a request that is not answered.
    pub(super) input: Buffer,
    pub(super) scanner: HeadScanner,
    pub(super) outbox: Outbox,
    alarm: Alarm,
    /// When the state's time began: accepted, fallen idle, head begun, lingering begun.
    pub(super) since: Instant,
    /// When the client last took bytes, or was last given some after it had taken all.
    progress: Instant,
    /// No request has come yet.
    pub(super) is_fresh: bool,
    /// The client has said that it sends no more.
    pub(super) has_ended: bool,
    is_paused: bool,
    is_in_idle_line: bool,
}

#[derive(Debug)]
pub(super) enum State {
    Closed,
    /// Everything was said; so ends the connection when it is written. So much more is read and dropped.
    Ending {
        how: Ending,
        left: u64,
    },
    Exchange(Exchange),
    /// Between two requests, or within a head.
    Head,
    /// Everything is written and writing was shut down: the client is to read it before the connection closes.
    Lingering {
        left: u64,
    },
    /// A whole head is in `input`, and there is no link for it yet.
    Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Close(Closing),
    Linger,
}

/// Why nothing is taken on any more.
pub(super) const STOPPING: &str = "the agent is stopping";

impl HttpConn {
    pub(super) fn new(now: Instant, id: ConnId, listener: ListenerId) -> Self {
        Self {
            id,
            listener,
            state: State::Head,
            input: Buffer::new(),
            scanner: HeadScanner::new(),
            outbox: Outbox::default(),
            alarm: Alarm::default(),
            since: now,
            progress: now,
            is_fresh: true,
            has_ended: false,
            is_paused: false,
            is_in_idle_line: false,
        }
    }

    // ---- what happens ----

    pub(super) fn handle_bytes(&mut self, now: Instant, hub: &mut Hub, bytes: &[u8]) {
        if self.input.is_empty() {
            let used = self.advance(now, hub, bytes);
            let rest = bytes.get(used..).unwrap_or_default();
            if !rest.is_empty() {
                if matches!(self.state, State::Head) && !self.is_fresh {
                    self.since = now;
                }
                self.input.push(rest);
            }
        } else {
            self.input.push(bytes);
            self.advance_input(now, hub);
        }
        self.settle(now, hub);
    }

    pub(super) fn handle_sent(&mut self, now: Instant, hub: &mut Hub, count: usize) {
        self.outbox.sent(count);
        self.progress = now;
        if let State::Exchange(exchange) = &mut self.state {
            exchange.grant(hub, self.outbox.len());
        }
        self.advance_input(now, hub);
        self.settle(now, hub);
    }

    pub(super) fn handle_eof(&mut self, now: Instant, hub: &mut Hub) {
        self.has_ended = true;
        self.progress = now;
        match &self.state {
            State::Exchange(exchange) if exchange.is_events() || !exchange.is_request_done() => {
                self.leave(hub, Closing::Orderly);
            }
            State::Lingering { .. } => self.leave(hub, Closing::Orderly),
            State::Closed | State::Ending { .. } | State::Exchange(_) | State::Head | State::Waiting => {}
        }
        self.settle(now, hub);
    }

    /// The client is gone; so is its connection.
    pub(super) fn handle_lost(&mut self, hub: &mut Hub) {
        self.cancel(hub);
        self.forget(hub);
    }

    /// The link stands, or nobody waits for it any longer: a call that waited goes on.
    pub(super) fn handle_outlook(&mut self, now: Instant, hub: &mut Hub) {
        if matches!(self.state, State::Waiting) {
            self.state = State::Head;
            self.advance_input(now, hub);
            self.settle(now, hub);
        }
    }

    /// The stream's data no longer waits on this side.
    pub(super) fn handle_unclogged(&mut self, now: Instant, hub: &mut Hub) {
        if let State::Exchange(Exchange { request: Request::Reading(reading), .. }) = &mut self.state
            && let Some(since) = reading.clogged.take()
        {
            reading.begun = reading.begun + now.since(since);
            self.settle(now, hub);
        }
    }

    /// Nothing new is to begin, and what has no end of its own ends.
    pub(super) fn handle_drain(&mut self, now: Instant, hub: &mut Hub) {
        match &self.state {
            State::Head if self.input.is_empty() => {
                self.state = State::Ending { how: Ending::Close(Closing::Orderly), left: LINGER_BYTES_MAX };
            }
            State::Exchange(exchange) if exchange.is_events() => {
                let failure = match exchange.leg {
                    // Its request is on its way, and what follows it cannot overtake it.
                    Leg::Open { .. } => {
                        answer::Failure::outcome_unknown("the agent is stopping; the outcome is unknown")
                    }
                    Leg::Doomed | Leg::Over => answer::Failure::not_started(&hub.why_down()),
                };
                self.cancel(hub);
                self.fail(now, hub, &failure);
            }
            // Half a head is nothing that runs: whoever sends it slowly must not keep this agent from ending.
            State::Head => self.turn_away(now, hub, STOPPING),
            State::Waiting => self.handle_outlook(now, hub),
            State::Closed | State::Ending { .. } | State::Exchange(_) | State::Lingering { .. } => {}
        }
        self.settle(now, hub);
    }

    /// The time for a drain is over.
    pub(super) fn abort(&mut self, hub: &mut Hub) {
        self.leave(hub, Closing::Reset);
    }

    /// Nothing is taken on: there are as many connections as there may be, or the end is near.
    pub(super) fn turn_away(&mut self, now: Instant, hub: &mut Hub, why: &'static str) {
        let refusal = Refusal::new(503, why).with_field("Retry-After", "1");
        self.refuse(now, hub, &refusal, false);
        self.settle(now, hub);
    }

    /// Closes a connection that is idle, to make room for another.
    pub(super) fn give_way(&mut self, hub: &mut Hub) {
        debug_assert!(self.idle_since().is_some(), "{} is not idle", self.id);
        self.leave(hub, Closing::Orderly);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, hub: &mut Hub) {
        if self.alarm.fires(&mut hub.timers, Timer::Client(self.id), now) {
            self.handle_due(now, hub);
            self.settle(now, hub);
        }
    }

    fn handle_due(&mut self, now: Instant, hub: &mut Hub) {
        if !self.outbox.is_empty() && self.progress + READER_TIMEOUT <= now {
            log::info!("{} does not read: disconnected", self.id);
            return self.leave(hub, Closing::Reset);
        }
        match &self.state {
            State::Head if self.input.is_empty() => self.leave(hub, Closing::Orderly),
            State::Head => {
                let refusal = Refusal::new(408, "the request's head took too long");
                self.refuse(now, hub, &refusal, false);
            }
            State::Exchange(exchange) => match (&exchange.request, &exchange.response) {
                _ if exchange.leg == Leg::Doomed => self.fail_down(now, hub),
                (Request::Reading(reading), _) if reading.due().is_some_and(|due| due <= now) => {
                    let is_head = exchange.is_head;
                    self.cancel(hub);
                    let refusal = Refusal::new(408, "the request's body took too long");
                    self.refuse(now, hub, &refusal, is_head);
                }
                (_, Response::Awaited) if exchange.wants_events => self.begin_events_early(now, hub),
                (Request::Discarded { .. } | Request::Done | Request::Reading(_), _) => {
                    self.leave(hub, Closing::Orderly);
                }
            },
            State::Lingering { .. } => self.leave(hub, Closing::Orderly),
            State::Closed | State::Ending { .. } | State::Waiting => {}
        }
    }

    // ---- going on ----

    /// Uses up what can be used of `bytes`, the next that were received; says how many those are.
    pub(super) fn advance(&mut self, now: Instant, hub: &mut Hub, bytes: &[u8]) -> usize {
        let mut used = 0;
        loop {
            let rest = bytes.get(used..).unwrap_or_default();
            let step = match &mut self.state {
                State::Head if self.outbox.len() > CLIENT_UNSENT_HIGH => None,
                State::Head => self.advance_head(now, hub, rest),
                State::Exchange(_) => self.advance_body(now, hub, rest),
                State::Ending { left, .. } | State::Lingering { left } => {
                    *left = left.saturating_sub(rest.len() as u64);
                    used = bytes.len();
                    None
                }
                State::Closed | State::Waiting => None,
            };
            match step {
                Some(step) => used += step,
                None => return used,
            }
        }
    }

    /// The same with what was received before.
    pub(super) fn advance_input(&mut self, now: Instant, hub: &mut Hub) {
        if !self.input.is_empty() {
            let mut input = core::mem::take(&mut self.input);
            let used = self.advance(now, hub, input.bytes());
            input.consume(used);
            self.input = input;
        }
    }

    /// Brings the driver's knowledge, the alarm and the state in line with what has happened.
    pub(super) fn settle(&mut self, now: Instant, hub: &mut Hub) {
        if self.has_ended && matches!(self.state, State::Head) && self.outbox.len() <= CLIENT_UNSENT_HIGH {
            self.state = State::Ending { how: Ending::Close(Closing::Orderly), left: 0 };
        }
        self.end_when_written(now, hub);
        if self.is_closed() {
            return;
        }
        if hub.announce(self.id, &mut self.outbox) {
            self.progress = now;
        }
        if !self.has_ended {
            let wants_bytes = self.wants_bytes();
            hub.read_when(self.id, wants_bytes, &mut self.is_paused);
        }
        match self.due() {
            Some(due) => self.alarm.set(&mut hub.timers, Timer::Client(self.id), due),
            None => self.alarm.clear(),
        }
        if !self.is_in_idle_line
            && let Some(since) = self.idle_since()
        {
            self.is_in_idle_line = true;
            hub.idle.push(since, self.id);
        }
    }

    fn end_when_written(&mut self, now: Instant, hub: &mut Hub) {
        match self.state {
            State::Ending { how, left } if self.outbox.is_empty() => match how {
                Ending::Close(how) => self.leave(hub, how),
                Ending::Linger if self.has_ended => self.leave(hub, Closing::Orderly),
                Ending::Linger => {
                    hub.outputs.push_back(Output::Shutdown(self.id));
                    self.state = State::Lingering { left };
                    self.since = now;
                }
            },
            State::Lingering { left: 0 } => self.leave(hub, Closing::Orderly),
            State::Closed
            | State::Ending { .. }
            | State::Exchange(_)
            | State::Head
            | State::Lingering { .. }
            | State::Waiting => {}
        }
    }

    fn wants_bytes(&self) -> bool {
        match &self.state {
            State::Closed => false,
            State::Ending { left, .. } | State::Lingering { left } => *left > 0,
            State::Exchange(exchange) => match &exchange.request {
                Request::Discarded { left } => *left > 0,
                Request::Done => self.input.len() < PIPELINE_BYTES_MAX,
                Request::Reading(reading) => reading.clogged.is_none(),
            },
            State::Head => self.outbox.len() <= CLIENT_UNSENT_HIGH || self.input.len() < PIPELINE_BYTES_MAX,
            State::Waiting => self.input.len() < PIPELINE_BYTES_MAX,
        }
    }

    /// When time is up for what this connection is doing.
    fn due(&self) -> Option<Instant> {
        if !self.outbox.is_empty() {
            let reader = self.progress + READER_TIMEOUT;
            return Some(self.body_due().map_or(reader, |body| body.min(reader)));
        }
        match &self.state {
            State::Closed | State::Ending { .. } | State::Waiting => None,
            State::Exchange(exchange) => {
                let ended = self.has_ended.then(|| self.progress + HALF_CLOSED_WAIT);
                let early = (exchange.wants_events && matches!(exchange.response, Response::Awaited))
                    .then(|| exchange.since + STREAM_HEAD_DELAY);
                self.body_due().or(early).or(ended)
            }
            State::Head if self.input.is_empty() && !self.is_fresh => Some(self.since + KEEPALIVE_HTTP_IDLE),
            State::Head => Some(self.since + HEAD_TIMEOUT),
            State::Lingering { .. } => Some(self.since + LINGER_TIMEOUT),
        }
    }

    /// When the request's body must be here.
    fn body_due(&self) -> Option<Instant> {
        match &self.state {
            State::Exchange(exchange) if exchange.leg == Leg::Doomed => {
                Some(exchange.since + REFUSED_BODY_WAIT)
            }
            State::Exchange(Exchange { request: Request::Reading(reading), .. }) => reading.due(),
            State::Closed
            | State::Ending { .. }
            | State::Exchange(_)
            | State::Head
            | State::Lingering { .. }
            | State::Waiting => None,
        }
    }

    // ---- ending ----

    /// Answers in plain words, and then the connection ends: the request is not read to its end.
    pub(super) fn refuse(&mut self, now: Instant, hub: &mut Hub, refusal: &Refusal, is_head: bool) {
        log::debug!("{} refused with {}: {}", self.id, refusal.status, refusal.text);
        let manner = Manner { date: hub.date(now), is_head, keep_alive: false };
        self.outbox.push_with(|out| answer::write_refusal(out, refusal, manner));
        self.state = State::Ending { how: Ending::Linger, left: LINGER_BYTES_MAX };
    }

    /// Tells the server that nobody waits for the answer.
    pub(super) fn cancel(&mut self, hub: &mut Hub) {
        if let State::Exchange(exchange) = &mut self.state
            && let Some(stream) = exchange.stream()
        {
            log::debug!("{stream} cancelled: {} is gone", self.id);
            exchange.leg = Leg::Over;
            hub.reset(stream, Fault::Cancelled, "");
        }
    }

    /// Closes the connection, whatever it is doing.
    pub(super) fn leave(&mut self, hub: &mut Hub, how: Closing) {
        self.cancel(hub);
        hub.close(self.id, how);
        self.forget(hub);
    }

    fn forget(&mut self, hub: &mut Hub) {
        hub.waiting.remove(&self.id);
        self.alarm.remove(&mut hub.timers, Timer::Client(self.id));
        self.state = State::Closed;
        self.outbox = Outbox::default();
        self.input.clear();
    }

    // ---- getters ----

    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Since when nothing has been asked of this connection, nor is owed to it.
    pub(super) const fn idle_since(&self) -> Option<Instant> {
        match self.state {
            State::Head if self.input.is_empty() && self.outbox.is_empty() => Some(self.since),
            State::Closed
            | State::Ending { .. }
            | State::Exchange(_)
            | State::Head
            | State::Lingering { .. }
            | State::Waiting => None,
        }
    }

    /// Its place in the line of idle connections was found wrong and taken away.
    pub(super) const fn left_idle_line(&mut self) {
        self.is_in_idle_line = false;
    }

    pub(super) const fn stream(&self) -> Option<StreamId> {
        match &self.state {
            State::Exchange(exchange) => exchange.stream(),
            State::Closed | State::Ending { .. } | State::Head | State::Lingering { .. } | State::Waiting => {
                None
            }
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        let exchange = match &self.state {
            State::Exchange(exchange) => exchange.held_bytes(),
            State::Closed | State::Ending { .. } | State::Head | State::Lingering { .. } | State::Waiting => {
                0
            }
        };
        self.input.len() + self.outbox.len() + exchange
    }

    pub(super) fn check_invariants(&self, hub: &Hub) {
        assert!(!self.is_closed(), "{} is closed and still there", self.id);
        let is_waiting = matches!(self.state, State::Waiting);
        assert_eq!(is_waiting, hub.waiting.contains(&self.id), "{}: {:?}", self.id, self.state);
        assert!(!is_waiting || !self.input.is_empty(), "{} waits with nothing", self.id);
        assert!(self.outbox.is_empty() || self.due().is_some(), "{} may read for ever", self.id);
        assert!(self.idle_since().is_none() || self.is_in_idle_line, "{} is idle unseen", self.id);
        assert!(self.due() == self.alarm.due(), "{}: {:?}, {:?}", self.id, self.due(), self.alarm);
    }
}

impl super::exchange::Reading {
    /// When the body must be here; no time runs while it cannot be handed on.
    fn due(&self) -> Option<Instant> {
        let extra = Duration::from_secs(self.received / BODY_BYTES_PER_SECOND);
        self.clogged.is_none().then(|| self.begun + BODY_TIMEOUT + extra)
    }
}
