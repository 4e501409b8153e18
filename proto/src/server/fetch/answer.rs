//! What comes back from an upstream, and what becomes of it.

use super::super::answer::{Data, OUTCOME_UNKNOWN, UNAVAILABLE};
use super::super::call::{Fetching, State};
use super::super::http::{DenialWord, pairs};
use super::super::record::Outcome;
use super::super::{Server, Timer, rpc};
use super::FetchError;
use super::pool::{Exchange, Sort};
use crate::ids::{CallId, ConnId};
use crate::limits::{HEAD_FIELDS_MAX, RESPONSE_HEAD_BYTES_MAX, TARGET_BYTES_MAX};
use crate::machine::{Output, Source};
use crate::time::Instant;
use crate::wire::frame::{Fault, Items, ResponseBody, StreamFrame, push_item};
use crate::wire::http1::{
    BodyDecoder, HeadLimits, HeadScanner, ResponseFraming, ResponseHead, media_type_is, parse_response_from,
};
use crate::wire::sse::{EventParser, EventView, Fed, Keep};
use carapace_policy::{AnswerVerdict, EventVerdict, Request, RpcJudged};
use log::{debug, info};

/// An announced length reserves no more than this before bytes arrive.
const GATHERED_BYTES_RESERVED: u64 = 16 * 1024;

/// What an upstream's head may be.
const HEAD_LIMITS: HeadLimits = HeadLimits {
    head_bytes_max: RESPONSE_HEAD_BYTES_MAX,
    fields_max: HEAD_FIELDS_MAX,
    target_bytes_max: TARGET_BYTES_MAX,
};

/// How far an answer has been read.
enum Progress {
    More,
    Done { has_more: bool },
}

impl Server {
    pub(in super::super) fn handle_upstream_bytes(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        let Some(mut exchange) = upstream.exchange.take() else {
            debug!("{conn}: bytes that nobody asked for");
            self.close_upstream(conn);
            return;
        };
        match self.read_answer(now, conn, &mut exchange, bytes) {
            Ok(Progress::More) => {
                if let Some(upstream) = self.upstreams.conns.get_mut(&conn) {
                    upstream.exchange = Some(exchange);
                }
            }
            Ok(Progress::Done { has_more }) => {
                let is_written =
                    self.upstreams.conns.get(&conn).is_some_and(|upstream| upstream.out.is_empty());
                // What an early answer has left of its request would be taken for the beginning of the next one.
                let is_sent = is_written
                    && self.fetching(exchange.call).is_some_and(|fetching| fetching.upload.is_none());
                if exchange.keep_alive && !has_more && is_sent && !exchange.is_paused {
                    self.keep(now, conn);
                } else {
                    self.close_upstream(conn);
                }
                self.complete(now, &mut exchange);
            }
            Err(error) => {
                self.close_upstream(conn);
                self.fail_fetch(now, exchange.call, error);
            }
        }
    }

    fn read_answer(
        &mut self,
        now: Instant,
        conn: ConnId,
        exchange: &mut Exchange,
        bytes: &[u8],
    ) -> Result<Progress, FetchError> {
        if exchange.body.is_some() {
            return self.read_body(now, conn, exchange, bytes);
        }
        if exchange.head.is_empty() {
            return self.read_head(now, conn, exchange, bytes);
        }
        let mut joined = core::mem::take(&mut exchange.head);
        joined.extend_from_slice(bytes);
        self.read_head(now, conn, exchange, &joined)
    }

    fn read_head(
        &mut self,
        now: Instant,
        conn: ConnId,
        exchange: &mut Exchange,
        bytes: &[u8],
    ) -> Result<Progress, FetchError> {
        let mut rest = bytes;
        loop {
            let parsed =
                parse_response_from(&mut exchange.scanner, rest, exchange.request.method(), &HEAD_LIMITS);
            let Some(head) = parsed.map_err(|error| {
                info!("{conn}: {error}");
                FetchError::Invalid
            })?
            else {
                exchange.head = rest.to_vec();
                return Ok(Progress::More);
            };
            rest = rest.get(head.consumed..).unwrap_or_default();
            if head.is_interim() {
                exchange.scanner = HeadScanner::new();
                continue;
            }
            exchange.keep_alive = head.keep_alive;
            exchange.body = Some(BodyDecoder::from(head.framing));
            self.handle_head(now, exchange, &head)?;
            return self.read_body(now, conn, exchange, rest);
        }
    }

    fn read_body(
        &mut self,
        now: Instant,
        conn: ConnId,
        exchange: &mut Exchange,
        bytes: &[u8],
    ) -> Result<Progress, FetchError> {
        let mut rest = bytes;
        loop {
            let Some(body) = &mut exchange.body else { return Ok(Progress::More) };
            let decoded = body.decode(rest).map_err(|error| {
                info!("{conn}: {error}");
                FetchError::Invalid
            })?;
            rest = rest.get(decoded.consumed..).unwrap_or_default();
            if !decoded.data.is_empty() {
                self.handle_content(now, conn, exchange, decoded.data)?;
            }
            if decoded.done {
                return Ok(Progress::Done { has_more: !rest.is_empty() });
            }
            if rest.is_empty() {
                return Ok(Progress::More);
            }
        }
    }

    fn handle_head(
        &mut self,
        now: Instant,
        exchange: &mut Exchange,
        head: &ResponseHead<'_>,
    ) -> Result<(), FetchError> {
        let id = exchange.call;
        let mut items = Vec::with_capacity(256);
        for field in head.passed_fields() {
            push_item(&mut items, field.name.as_bytes());
            push_item(&mut items, field.value);
        }
        let Some(call) = self.calls.get_mut(&id) else { return Ok(()) };
        call.alarm.clear();
        let State::Fetching(fetching) = &mut call.state else { return Ok(()) };
        if fetching.rpc.is_some() {
            if head.length.is_some_and(|length| length > fetching.max_response_bytes as u64) {
                return Err(FetchError::TooLarge);
            }
            let expected = head.length.unwrap_or(0).min(GATHERED_BYTES_RESERVED);
            let bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
            exchange.sort = Sort::Gathered { status: head.status, fields: items, bytes };
            return Ok(());
        }
        if head.is_event_stream() && head.framing != ResponseFraming::None && head.status == 200 {
            fetching.is_event_stream = true;
            exchange.sort = Sort::Events(Box::new(EventParser::new(fetching.max_event_bytes)));
            self.watch_for_silence(now, id);
            return self.send_head(id, head.status, ResponseBody::Events, &items);
        }
        if is_hidden_stream(&exchange.request, head) {
            return Err(FetchError::Invalid);
        }
        let body = match head.framing {
            ResponseFraming::None | ResponseFraming::Length(0) => ResponseBody::None,
            ResponseFraming::Length(_) => ResponseBody::Whole,
            ResponseFraming::Chunked | ResponseFraming::UntilClose => ResponseBody::Stream,
        };
        if let Some(length) = head.length {
            push_item(&mut items, b"content-length");
            push_item(&mut items, length.to_string().as_bytes());
        }
        self.watch_for_silence(now, id);
        self.send_head(id, head.status, body, &items)
    }

    /// Sends an answer's head, unless the client has got one already because the upstream was slow.
    fn send_head(
        &mut self,
        id: CallId,
        status: u16,
        body: ResponseBody,
        items: &[u8],
    ) -> Result<(), FetchError> {
        let Some(fetching) = self.fetching(id) else { return Ok(()) };
        if core::mem::replace(&mut fetching.is_head_sent, true) {
            // The client was promised events; anything else ends its stream, so that it comes back.
            return if body == ResponseBody::Events { Ok(()) } else { Err(FetchError::Invalid) };
        }
        self.send_frame(id, &StreamFrame::Response { status, body, items: Items(items) });
        Ok(())
    }

    fn handle_content(
        &mut self,
        now: Instant,
        conn: ConnId,
        exchange: &mut Exchange,
        data: &[u8],
    ) -> Result<(), FetchError> {
        let id = exchange.call;
        let is_clogged = match &mut exchange.sort {
            Sort::Gathered { bytes, .. } => {
                self.reserve_answer(id, bytes.len() + data.len())?;
                bytes.extend_from_slice(data);
                false
            }
            Sort::Streamed => {
                self.watch_for_silence(now, id);
                self.send_body(id, data, false)
            }
            Sort::Events(parser) => {
                let mut out = Vec::new();
                let request = &exchange.request;
                let fed = parser.feed(data, &mut out, |event| keeps(request, event));
                if let Ok(Fed { dropped, .. }) = &fed {
                    self.note_dropped(id, *dropped);
                }
                self.watch_for_silence(now, id);
                let is_clogged = !out.is_empty() && self.send_body(id, &out, false);
                fed.map_err(|_| FetchError::EventTooLong)?;
                is_clogged
            }
        };
        if is_clogged && !core::mem::replace(&mut exchange.is_paused, true) {
            self.outputs.push_back(Output::Pause(Source::Conn(conn)));
        }
        Ok(())
    }

    /// Events that a filter left out are counted, and never told to the client.
    fn note_dropped(&mut self, id: CallId, count: usize) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.about.events_dropped += count as u64;
        }
    }

    /// Takes room for an answer that is being gathered.
    fn reserve_answer(&mut self, id: CallId, total: usize) -> Result<(), FetchError> {
        let room = self.answer_room;
        let Some(fetching) = self.fetching(id) else { return Ok(()) };
        let more = (total as u64).saturating_sub(fetching.reserved);
        if total > fetching.max_response_bytes || more > room {
            return Err(FetchError::TooLarge);
        }
        fetching.reserved += more;
        self.answer_room -= more;
        Ok(())
    }

    /// A body that streams may take as long as it likes, but may not fall silent.
    fn watch_for_silence(&mut self, now: Instant, id: CallId) {
        let Some(fetching) = self.fetching(id) else { return };
        let conn = fetching.conn;
        let patience = if fetching.is_event_stream { fetching.event_idle } else { Some(fetching.timeout) };
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        match patience {
            Some(patience) => upstream.alarm.set(&mut self.timers, Timer::Upstream(conn), now + patience),
            None => upstream.alarm.clear(),
        }
    }
    // ---- the end ----

    /// The answer is whole.
    pub(super) fn complete(&mut self, now: Instant, exchange: &mut Exchange) {
        let id = exchange.call;
        match core::mem::replace(&mut exchange.sort, Sort::Streamed) {
            Sort::Gathered { status, fields, bytes } => match exchange.request.judge_answer(&bytes) {
                AnswerVerdict::Same => self.answer_rpc(now, id, status, fields, bytes),
                AnswerVerdict::Changed { body, dropped, .. } => {
                    self.note_dropped(id, dropped);
                    self.answer_rpc(now, id, status, fields, body);
                }
                AnswerVerdict::Refuse => self.fail_fetch(now, id, FetchError::Invalid),
            },
            Sort::Streamed => self.end_stream(now, id, &[]),
            Sort::Events(mut parser) => {
                let mut out = Vec::new();
                parser.finish(&mut out);
                self.end_stream(now, id, &out);
            }
        }
    }

    fn answer_rpc(&mut self, now: Instant, id: CallId, status: u16, fields: Vec<u8>, bytes: Vec<u8>) {
        let request_id = self.request_id(id);
        let Some(call) = self.calls.get(&id) else { return };
        let State::Fetching(Fetching { rpc: Some(judged), .. }) = &call.state else { return };
        let mut bytes = bytes;
        let (mut status, mut fields) = (status, fields);
        if rpc::is_partly_denied(judged) {
            let Some(merged) = rpc::merged(judged, &bytes, &call.about.tool, &request_id) else {
                return self.fail_fetch(now, id, FetchError::Invalid);
            };
            bytes = merged;
            // An upstream that had nothing to answer said 201 or 204; there is something now.
            if matches!(status, 201..=204) {
                status = 200;
            }
            if !pairs(Items(&fields)).any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                push_item(&mut fields, b"content-type");
                push_item(&mut fields, b"application/json");
            }
        }
        if let Some(call) = self.calls.get_mut(&id) {
            call.about.bytes_out += bytes.len() as u64;
        }
        self.record_outcome(now, id, Outcome::Status(status));
        self.respond_whole(now, id, status, fields, &bytes);
    }

    pub(super) fn end_stream(&mut self, now: Instant, id: CallId, last: &[u8]) {
        self.send_body(id, last, true);
        self.record_outcome(now, id, Outcome::Status(200));
        self.finish(now, id);
    }

    pub(super) fn fail_fetch(&mut self, now: Instant, id: CallId, error: FetchError) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        let State::Fetching(fetching) = &mut call.state else { return };
        let judged = fetching.rpc.take();
        let (is_head_sent, is_event_stream) = (fetching.is_head_sent, fetching.is_event_stream);
        info!("{id}: {}", error.as_str());
        self.record_outcome(now, id, Outcome::Failed(error.as_str()));
        if !is_head_sent {
            return self.answer_failed(now, id, judged.as_ref(), error);
        }
        if is_event_stream {
            // An ended stream makes its client come back; one that is broken off, too, but not all of them at once.
            self.send_body(id, &[], true);
            self.finish(now, id);
        } else {
            self.reset_stream(id, Fault::BadUpstream, error.as_str());
            self.drop_call(id);
        }
    }

    pub(super) fn answer_failed(
        &mut self,
        now: Instant,
        id: CallId,
        judged: Option<&RpcJudged>,
        error: FetchError,
    ) {
        let (status, code, word) = match error {
            FetchError::TimedOut => (504, OUTCOME_UNKNOWN, DenialWord::Timeout),
            FetchError::Refused
            | FetchError::Cut
            | FetchError::Invalid
            | FetchError::TooLarge
            | FetchError::EventTooLong => (502, UNAVAILABLE, DenialWord::Unavailable),
        };
        let answer = match judged {
            Some(judged) => {
                let request_id = self.request_id(id);
                let tool = self.calls.get(&id).map_or("", |call| &*call.about.tool);
                let data = Data { tool, rule: word.as_str(), request_id: &request_id, retry_after_ms: None };
                rpc::all_failed(judged, status, code, error.as_str(), data)
            }
            None => self.rpc_error(id, status, code, error.as_str(), word),
        };
        self.send_answer(now, id, &answer);
    }
}

/// Whether a filter lets an event pass.
fn keeps(request: &Request, event: &EventView<'_>) -> Keep {
    if !request.judges_events() {
        return Keep::Yes;
    }
    let name = core::str::from_utf8(event.event_type()).unwrap_or_default();
    match request.judge_event(name, &event.data()) {
        EventVerdict::Pass => Keep::Yes,
        EventVerdict::Drop(_) => Keep::No,
    }
}

/// Whether events would pass unseen: in an encoding, or under a status that no event stream has. Where they are to be
/// judged, such an answer is none.
fn is_hidden_stream(request: &Request, head: &ResponseHead<'_>) -> bool {
    let is_typed = head.content_type.is_some_and(|value| media_type_is(value, "text/event-stream"));
    request.judges_events() && is_typed && matches!(head.status, 200..=299)
}
