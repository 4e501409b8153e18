//! A client's request: admitted or refused, and handed to the server.

use super::answer::{self, Failure, Manner, Refusal};
use super::exchange::{Exchange, Kept, Leg, Reading, Request, Response};
use super::http::{Ending, HttpConn, State};
use super::hub::{HttpListener, Hub, StreamKind};
use super::uplink::Outlook;
use crate::limits::{
    HEAD_BYTES_MAX, HEAD_FIELDS_MAX, LINGER_BYTES_MAX, REQUEST_KEPT_BYTES_MAX, TARGET_BYTES_MAX,
};
use crate::time::Instant;
use crate::wire::frame::{Channel, Items, StreamFrame, push_item};
use crate::wire::http1::{
    BodyDecoder, CONTINUE, Fields, HeadLimits, RequestFraming, RequestHead, Version, host_is_allowed,
    is_hop_by_hop, parse_request_from, parse_target,
};

const LIMITS: HeadLimits = HeadLimits {
    head_bytes_max: HEAD_BYTES_MAX,
    fields_max: HEAD_FIELDS_MAX,
    target_bytes_max: TARGET_BYTES_MAX,
};

impl HttpConn {
    /// Reads a head; `None` when more bytes are needed.
    pub(super) fn advance_head(&mut self, now: Instant, hub: &mut Hub, bytes: &[u8]) -> Option<usize> {
        if bytes.is_empty() {
            return None;
        }
        match parse_request_from(&mut self.scanner, bytes, &LIMITS) {
            Ok(None) => None,
            Ok(Some(head)) => Some(self.begin(now, hub, &head, bytes.len() == head.consumed)),
            Err(error) => {
                self.refuse(now, hub, &Refusal::new(error.status(), error.to_string()), false);
                Some(bytes.len())
            }
        }
    }

    /// Begins the exchange of a whole head; says how many bytes that used up. `is_bare`: nothing came behind it.
    fn begin(&mut self, now: Instant, hub: &mut Hub, head: &RequestHead<'_>, is_bare: bool) -> usize {
        let Some(listener) = hub.http_listener(self.listener) else { return head.consumed };
        let target = match admit(head, listener) {
            Ok(target) => target,
            Err(refusal) => {
                self.refuse(now, hub, &refusal, head.method == "HEAD");
                return head.consumed;
            }
        };
        if target == "/health" {
            self.answer_health(now, hub, head);
            return head.consumed;
        }
        let leg = match hub.outlook(now) {
            Outlook::Soon => {
                hub.waiting.insert(self.id);
                self.state = State::Waiting;
                return 0;
            }
            Outlook::Up => self.hand_over(hub, head, target),
            Outlook::Down => Leg::Doomed,
        };
        hub.waiting.remove(&self.id);
        self.is_fresh = false;
        let exchange = exchange(now, head, leg);
        let is_awaited_in_vain = head.expect_continue && is_bare;
        let is_too_long =
            matches!(head.framing, RequestFraming::Length(bytes) if bytes > REQUEST_KEPT_BYTES_MAX as u64);
        let is_done = exchange.is_request_done();
        self.state = State::Exchange(exchange);
        if leg == Leg::Doomed && (is_done || is_awaited_in_vain || is_too_long) {
            self.fail_down(now, hub);
        } else if is_awaited_in_vain {
            self.outbox.push(CONTINUE);
        }
        head.consumed
    }

    /// Opens a stream and tells the server of the request.
    fn hand_over(&self, hub: &mut Hub, head: &RequestHead<'_>, target: &str) -> Leg {
        let mut items = core::mem::take(&mut hub.scratch);
        items.clear();
        if let Some(listener) = hub.http_listener(self.listener) {
            push_item(&mut items, listener.tool.as_bytes());
        }
        push_item(&mut items, head.method.as_bytes());
        push_item(&mut items, target.as_bytes());
        let connection_names_fields = connection_names_fields(&head.fields);
        for field in &head.fields {
            if passes(field.name, &head.fields, connection_names_fields) {
                push_item(&mut items, field.name.as_bytes());
                push_item(&mut items, field.value);
            }
        }
        let leg = hub.open(self.id, StreamKind::Exchange).map_or(Leg::Doomed, |(stream, session)| {
            let position = session.next_position();
            let frame = StreamFrame::Request { body: has_body(head), items: Items(&items) };
            session.send(stream, &frame);
            Leg::Open { stream, position }
        });
        hub.scratch = items;
        leg
    }

    /// Reads on in a body; `None` when there is nothing more to be done with `bytes`.
    pub(super) fn advance_body(&mut self, now: Instant, hub: &mut Hub, bytes: &[u8]) -> Option<usize> {
        let State::Exchange(exchange) = &mut self.state else { return None };
        let mut used = 0;
        while let Request::Reading(reading) = &mut exchange.request {
            let rest = bytes.get(used..).unwrap_or_default();
            let decoded = match reading.decoder.decode(rest) {
                Ok(decoded) => decoded,
                Err(error) => {
                    let is_head = exchange.is_head;
                    self.cancel(hub);
                    self.refuse(now, hub, &Refusal::new(400, error.to_string()), is_head);
                    return Some(bytes.len());
                }
            };
            used += decoded.consumed;
            reading.received += decoded.consumed as u64;
            if !decoded.data.is_empty() || decoded.done {
                let is_clogged = exchange.feed(hub, decoded.data, decoded.done);
                if is_clogged && let Request::Reading(reading) = &mut exchange.request {
                    reading.clogged.get_or_insert(now);
                }
            }
            if decoded.done {
                exchange.request = Request::Done;
            } else if decoded.consumed == 0 || used == bytes.len() {
                break;
            }
        }
        match &mut exchange.request {
            Request::Discarded { left } => {
                *left = left.saturating_sub(bytes.len() as u64);
                used = bytes.len();
            }
            Request::Done if exchange.leg == Leg::Doomed => self.fail_down(now, hub),
            Request::Reading(_) if exchange.leg == Leg::Doomed && exchange.kept.is_too_long() => {
                self.fail_down(now, hub);
            }
            Request::Done | Request::Reading(_) => {}
        }
        (used > 0).then_some(used)
    }

    /// Answers a request that no server will see.
    pub(super) fn fail_down(&mut self, now: Instant, hub: &mut Hub) {
        let why = hub.why_down();
        self.fail(now, hub, &Failure::not_started(&why));
    }

    fn answer_health(&mut self, now: Instant, hub: &mut Hub, head: &RequestHead<'_>) {
        let is_head = head.method == "HEAD";
        if !is_head && head.method != "GET" {
            let refusal = Refusal::new(405, "the health of the agent can only be read");
            return self.refuse(now, hub, &refusal.with_field("Allow", "GET, HEAD"), false);
        }
        let keep_alive = head.keep_alive && !has_body(head) && !hub.is_draining;
        let manner = Manner { date: hub.date(now), is_head, keep_alive };
        let (status, json) = hub.health(now, self.listener);
        self.outbox.push_with(|out| answer::write_json(out, status, &json, manner));
        self.is_fresh = false;
        self.since = now;
        if !keep_alive {
            self.state = State::Ending { how: Ending::Linger, left: LINGER_BYTES_MAX };
        }
    }
}

impl Exchange {
    /// Hands a part of the request's body on; says whether the stream cannot take more.
    fn feed(&mut self, hub: &mut Hub, bytes: &[u8], end: bool) -> bool {
        self.kept.push(bytes);
        let Some(stream) = self.stream() else { return false };
        let Some(session) = hub.uplink.session() else { return false };
        session.send_data(stream, Channel::Main, bytes, end, false);
        session.is_clogged(stream)
    }
}

fn exchange(now: Instant, head: &RequestHead<'_>, leg: Leg) -> Exchange {
    let request = if has_body(head) {
        let decoder = BodyDecoder::from(head.framing);
        Request::Reading(Reading { decoder, received: 0, begun: now, clogged: None })
    } else {
        Request::Done
    };
    Exchange {
        leg,
        request,
        response: Response::Awaited,
        kept: Kept::default(),
        since: now,
        is_head: head.method == "HEAD",
        is_http10: head.version == Version::Http10,
        keep_alive: head.keep_alive,
        wants_events: head.method == "GET" && head.accepts_event_stream(),
        owed: 0,
    }
}

const fn has_body(head: &RequestHead<'_>) -> bool {
    match head.framing {
        RequestFraming::None | RequestFraming::Length(0) => false,
        RequestFraming::Length(_) | RequestFraming::Chunked => true,
    }
}

/// Judges what has nothing to do with any tool; gives the target in origin form.
fn admit<'a>(head: &RequestHead<'a>, listener: &HttpListener) -> Result<&'a str, Refusal> {
    let is_own = |host: &str| host_is_allowed(host, listener.port, &listener.hosts);
    // Only HTTP/1.0 may leave it out, which no browser speaks.
    if head.host.is_some_and(|host| !is_own(host)) {
        return Err(Refusal::new(421, "the Host field names another host"));
    }
    if head.origin.is_some_and(|origin| !origin_is_allowed(origin, &listener.origins)) {
        return Err(Refusal::new(403, "requests of web pages are not served"));
    }
    if matches!(head.method, "CONNECT" | "TRACE") {
        return Err(Refusal::new(405, "the method is not served").with_field("Allow", "GET, HEAD, POST"));
    }
    parse_target(head.target, is_own).map_err(|error| Refusal::new(error.status(), error.to_string()))
}

/// Whether a web page's origin is one of those configured: written out, or by its host alone.
fn origin_is_allowed(origin: &str, allowed: &[String]) -> bool {
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        Some(_) | None => host,
    };
    let is = |entry: &String| [origin, host, name].iter().any(|own| own.eq_ignore_ascii_case(entry));
    allowed.iter().any(is)
}

/// Whether a field goes to the server: not what belongs to this connection, nor what the caller shows to this port.
fn passes(name: &str, fields: &Fields<'_>, connection_names_fields: bool) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let stays = match name.len() {
        2 => is("te"),
        4 => is("host"),
        6 => is("cookie") || is("expect") || is("origin"),
        7 => is("upgrade") || is("trailer"),
        10 => is("connection") || is("keep-alive"),
        13 => is("authorization"),
        16 => is("proxy-connection"),
        17 => is("transfer-encoding"),
        18 => is("proxy-authenticate"),
        19 => is("proxy-authorization"),
        _ => false,
    };
    let stays = stays || connection_names_fields && is_hop_by_hop(name, fields);
    !stays
}

/// Whether a Connection field says anything but the usual, which names no field.
fn connection_names_fields(fields: &Fields<'_>) -> bool {
    let is_usual =
        |value: &[u8]| value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close");
    fields.iter().any(|field| field.is("connection") && !is_usual(field.value))
}
