//! The server's response to a client's request, or what the client gets instead of one.

use super::answer::{self, Failure, Manner};
use super::exchange::{BodyEnd, Exchange, Leg, Overrun, Request, Response};
use super::http::{Ending, HttpConn, State};
use super::hub::Hub;
use crate::ids::StreamId;
use crate::limits::{CLIENT_UNSENT_HIGH, EVENT_BYTES_MAX, LINGER_BYTES_MAX};
use crate::machine::Closing;
use crate::time::Instant;
use crate::wire::frame::{Channel, Fault, Items, ResponseBody, StreamFrame};
use crate::wire::http1::{Framing, HttpDate, ResponseMeta, write_response_head};

/// A comment and nothing else: it keeps the client from taking silence for death.
const COMMENT: &[u8] = b":\n\n";

/// What the server did that cannot be passed on.
enum Fumble {
    /// It said something that cannot be said here.
    Misplaced,
    /// Its head cannot be written, or its body does not fit it.
    Unfit,
}

impl From<Overrun> for Fumble {
    fn from(_: Overrun) -> Self {
        Self::Unfit
    }
}

/// The fields of a response that are not simply passed on.
#[derive(Default)]
struct Noted {
    length: Option<u64>,
    has_date: bool,
}

impl HttpConn {
    /// Takes in a frame of this connection's stream.
    pub(super) fn handle_frame(
        &mut self,
        now: Instant,
        hub: &mut Hub,
        stream: StreamId,
        frame: StreamFrame<'_>,
    ) {
        let done = match frame {
            StreamFrame::Response { status, body, items } => {
                self.handle_response(now, hub, status, body, items)
            }
            StreamFrame::Data { channel: Channel::Main, end, more, bytes } => {
                self.handle_data(now, hub, bytes, end, more)
            }
            StreamFrame::Reset { fault, text } => {
                self.close_stream(hub);
                log::debug!("{stream} was reset: {fault:?}");
                self.fail(now, hub, &Failure::of(fault, text));
                Ok(())
            }
            StreamFrame::Credit { .. } | StreamFrame::Unknown { .. } => Ok(()),
            StreamFrame::Data { .. }
            | StreamFrame::Exit { .. }
            | StreamFrame::Failed { .. }
            | StreamFrame::List { .. }
            | StreamFrame::Request { .. }
            | StreamFrame::Run { .. }
            | StreamFrame::Signal { .. }
            | StreamFrame::Window { .. } => Err(Fumble::Misplaced),
        };
        if let Err(fumble) = done {
            self.handle_fumble(now, hub, stream, &fumble);
        }
        self.advance_input(now, hub);
        self.settle(now, hub);
    }

    fn handle_fumble(&mut self, now: Instant, hub: &mut Hub, stream: StreamId, fumble: &Fumble) {
        let text = match fumble {
            Fumble::Misplaced => "a frame that has no place in this stream",
            Fumble::Unfit => "a response that cannot be written",
        };
        log::warn!("{stream}: the server sent {text}");
        if let State::Exchange(exchange) = &mut self.state {
            exchange.leg = Leg::Over;
        }
        hub.reset(stream, Fault::Misbehaved, text);
        self.fail(now, hub, &Failure::of(Fault::Misbehaved, b""));
    }

    /// The session is gone. What was written of it may have reached the server.
    pub(super) fn handle_link_lost(&mut self, now: Instant, hub: &mut Hub, written: u64) {
        let State::Exchange(exchange) = &mut self.state else { return };
        let Leg::Open { position, .. } = exchange.leg else { return };
        exchange.leg = Leg::Over;
        let failure = if written > position {
            Failure::outcome_unknown("the link to the server was lost; the outcome is unknown")
        } else {
            Failure::not_started(hub.uplink.why())
        };
        self.fail(now, hub, &failure);
        self.advance_input(now, hub);
        self.settle(now, hub);
    }

    fn handle_response(
        &mut self,
        now: Instant,
        hub: &mut Hub,
        status: u16,
        body: ResponseBody,
        items: Items<'_>,
    ) -> Result<(), Fumble> {
        let State::Exchange(exchange) = &mut self.state else { return Ok(()) };
        match exchange.response {
            Response::Awaited => {}
            Response::Early { end } if status == 200 && body == ResponseBody::Events => {
                exchange.response = Response::Body { end, events: Some(Vec::new()) };
                return Ok(());
            }
            Response::Early { .. } => {
                // It comes too late to be told: the stream ends, and the client asks again.
                self.cancel(hub);
                self.finish(now, hub);
                return Ok(());
            }
            Response::Body { .. } => return Err(Fumble::Misplaced),
        }
        if !(200..=599).contains(&status) {
            return Err(Fumble::Unfit);
        }
        if let Request::Reading(_) = exchange.request {
            // Answered before the request was whole: the rest of it is of no use to anybody.
            exchange.request = Request::Discarded { left: LINGER_BYTES_MAX };
        }
        exchange.keep_alive &= exchange.is_request_done() && !hub.is_draining;
        let noted = note(items);
        let (framing, end) = exchange.framing(status, body, noted.length);
        let date = if noted.has_date { None } else { hub.date(now) };
        let meta = ResponseMeta {
            status,
            date: date.as_ref().map(HttpDate::as_str),
            framing,
            keep_alive: exchange.keep_alive,
        };
        self.outbox
            .push_with(|out| {
                out.reserve(room_for(items, end));
                write_response_head(out, &meta, fields(items))
            })
            .map_err(|_| Fumble::Unfit)?;
        let events = (body == ResponseBody::Events).then(Vec::new);
        exchange.response = Response::Body { end, events };
        if body == ResponseBody::None {
            self.finish(now, hub);
        }
        Ok(())
    }

    fn handle_data(
        &mut self,
        now: Instant,
        hub: &mut Hub,
        bytes: &[u8],
        end_of_body: bool,
        more: bool,
    ) -> Result<(), Fumble> {
        let State::Exchange(exchange) = &mut self.state else { return Ok(()) };
        let Response::Body { end, events } = &mut exchange.response else { return Err(Fumble::Misplaced) };
        exchange.owed += bytes.len();
        match events {
            Some(unit) if more || !unit.is_empty() => {
                if unit.len() + bytes.len() > EVENT_BYTES_MAX {
                    return Err(Fumble::Unfit);
                }
                unit.extend_from_slice(bytes);
                if !more {
                    let unit = core::mem::take(unit);
                    self.outbox.push_with(|out| end.write(out, &unit))?;
                }
            }
            Some(_) | None => self.outbox.push_with(|out| end.write(out, bytes))?,
        }
        if end_of_body {
            self.finish(now, hub);
        } else {
            exchange.grant(hub, self.outbox.len());
        }
        Ok(())
    }

    /// Sends the head of an event stream whose upstream has not answered for a while.
    pub(super) fn begin_events_early(&mut self, now: Instant, hub: &mut Hub) {
        let State::Exchange(exchange) = &mut self.state else { return };
        let (framing, mut end) = exchange.framing(200, ResponseBody::Events, None);
        exchange.keep_alive &= !hub.is_draining;
        let date = hub.date(now);
        let meta = ResponseMeta {
            status: 200,
            date: date.as_ref().map(HttpDate::as_str),
            framing,
            keep_alive: exchange.keep_alive,
        };
        let fields = [("Content-Type", &b"text/event-stream"[..]), ("Cache-Control", b"no-cache")];
        let written = self.outbox.push_with(|out| {
            let head = write_response_head(out, &meta, fields);
            head.is_ok() && end.write(out, COMMENT).is_ok()
        });
        debug_assert!(written, "a head of our own cannot be written");
        exchange.response = Response::Early { end };
    }

    /// Ends an exchange that the server will not complete. The stream must be over.
    ///
    /// An event stream ends in order: its client is to come back. Any other body that has begun is cut, so that
    /// nobody takes it for whole.
    pub(super) fn fail(&mut self, now: Instant, hub: &mut Hub, failure: &Failure) {
        let State::Exchange(exchange) = &mut self.state else { return };
        debug_assert!(exchange.stream().is_none(), "{} fails with its stream open", self.id);
        match &mut exchange.response {
            Response::Awaited => {
                let keep_alive = exchange.keep_alive && exchange.is_request_done() && !hub.is_draining;
                let manner = Manner { date: hub.date(now), is_head: exchange.is_head, keep_alive };
                let body = exchange.kept.body(&exchange.request);
                self.outbox.push_with(|out| answer::write_failure(out, failure, body, manner));
                exchange.keep_alive = keep_alive;
                exchange.response = Response::Body { end: BodyEnd::NoBody, events: None };
                self.finish(now, hub);
            }
            Response::Early { .. } | Response::Body { events: Some(_), .. } => self.finish(now, hub),
            Response::Body { end, events: None } => {
                let how = match end {
                    BodyEnd::Close => Closing::Reset,
                    BodyEnd::Chunk | BodyEnd::Length(_) | BodyEnd::NoBody => Closing::Orderly,
                };
                self.state = State::Ending { how: Ending::Close(how), left: LINGER_BYTES_MAX };
            }
        }
    }

    /// The response is complete.
    fn finish(&mut self, now: Instant, hub: &mut Hub) {
        self.close_stream(hub);
        let State::Exchange(exchange) = &self.state else { return };
        let is_whole = match exchange.response {
            Response::Awaited => true,
            Response::Early { end } | Response::Body { end, .. } => {
                self.outbox.push_with(|out| end.finish(out))
            }
        };
        self.state = match exchange.request {
            _ if !is_whole => State::Ending { how: Ending::Close(Closing::Orderly), left: LINGER_BYTES_MAX },
            Request::Done if exchange.keep_alive && !hub.is_draining => State::Head,
            Request::Done if self.input.is_empty() => {
                State::Ending { how: Ending::Close(Closing::Orderly), left: LINGER_BYTES_MAX }
            }
            Request::Discarded { .. } | Request::Done | Request::Reading(_) => {
                State::Ending { how: Ending::Linger, left: LINGER_BYTES_MAX }
            }
        };
        self.since = now;
    }

    fn close_stream(&mut self, hub: &mut Hub) {
        if let State::Exchange(exchange) = &mut self.state
            && let Some(stream) = exchange.stream()
        {
            exchange.leg = Leg::Over;
            hub.close_stream(stream);
        }
    }
}

impl Exchange {
    /// Grants again what has left the outbox, of which `unsent` bytes remain. Framing counts as payload there, which
    /// errs on the safe side; an event that is being put together is not in it, so that it can become whole.
    pub(super) fn grant(&mut self, hub: &mut Hub, unsent: usize) {
        let granted = self.owed.saturating_sub(unsent);
        if granted > 0
            && let Some(stream) = self.stream()
        {
            self.owed -= granted;
            hub.consumed(stream, granted);
        }
    }

    /// How a body is delimited for this client.
    const fn framing(&self, status: u16, body: ResponseBody, length: Option<u64>) -> (Framing, BodyEnd) {
        match (body, length) {
            (_, Some(length)) if self.is_head => (Framing::Length(length), BodyEnd::NoBody),
            _ if self.is_head || matches!(status, 204 | 304) => (Framing::None, BodyEnd::NoBody),
            (ResponseBody::None, _) => (Framing::Length(0), BodyEnd::NoBody),
            (ResponseBody::Whole | ResponseBody::Stream, Some(length)) => {
                (Framing::Length(length), BodyEnd::Length(length))
            }
            _ if self.is_http10 => (Framing::UntilClose, BodyEnd::Close),
            _ => (Framing::Chunked, BodyEnd::Chunk),
        }
    }
}

/// What a response takes in the outbox, if it is small: one allocation for all of it.
fn room_for(items: Items<'_>, end: BodyEnd) -> usize {
    /// Status line, date and framing.
    const OWN: usize = 160;
    let body = match end {
        BodyEnd::Length(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX).min(CLIENT_UNSENT_HIGH),
        BodyEnd::Chunk | BodyEnd::Close | BodyEnd::NoBody => 0,
    };
    // Each field takes two bytes more than its two items.
    OWN + items.0.len() * 2 + body
}

fn note(items: Items<'_>) -> Noted {
    let mut noted = Noted::default();
    let mut items = items;
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        match name.len() {
            4 => noted.has_date |= name.eq_ignore_ascii_case(b"date"),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                noted.length = core::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            }
            _ => {}
        }
    }
    noted
}

/// The fields of a list, but those that the writer of the head sets itself.
fn fields<'a>(mut items: Items<'a>) -> impl Iterator<Item = (&'a str, &'a [u8])> {
    core::iter::from_fn(move || {
        loop {
            let (name, value) = (items.next()?, items.next()?);
            let is = |own: &[u8]| name.eq_ignore_ascii_case(own);
            let is_own = match name.len() {
                10 => is(b"connection"),
                14 => is(b"content-length"),
                17 => is(b"transfer-encoding"),
                _ => false,
            };
            if !is_own {
                return Some((core::str::from_utf8(name).unwrap_or_default(), value));
            }
        }
    })
}
