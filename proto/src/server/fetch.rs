//! Fetches: exchanges with upstreams, and the connections they happen on.
//!
//! An upstream's connection is one like any other: the driver dials it and carries its bytes, the request is written
//! and the answer read here. A connection that a fetch has left in good order is kept for the next one.

use super::answer::{Data, OUTCOME_UNKNOWN, UNAVAILABLE};
use super::call::{Call, Fetching, PassedBody, State, Upload};
use super::http::{DenialWord, pairs};
use super::record::Outcome;
use super::{Server, Timer, rpc};
use crate::ids::{CallId, ConnId};
use crate::limits::{
    CONNECT_TIMEOUT, FEED_BYTES_HIGH, POOL_IDLE_MAX, POOL_IDLE_TIMEOUT, RESPONSE_HEAD_BYTES_MAX,
    STREAM_HEAD_DELAY,
};
use crate::machine::{Address, DialError, Output, Sink, Source};
use crate::outbox::Outbox;
use crate::time::Instant;
use crate::timers::Alarm;
use crate::wire::frame::{Channel, Fault, Items, ResponseBody, StreamFrame, push_item};
use crate::wire::http1::{
    BodyDecoder, Framing, HeadLimits, HeadScanner, LAST_CHUNK, ResponseFraming, ResponseHead,
    parse_response_from, write_chunk, write_request_head,
};
use crate::wire::sse::{EventParser, Keep};
use carapace_policy::{Request, RpcJudged, Scheme, Upstream};
use log::{debug, info};
use std::collections::BTreeMap;

/// What an upstream's head may be.
const HEAD_LIMITS: HeadLimits = HeadLimits {
    head_bytes_max: RESPONSE_HEAD_BYTES_MAX,
    fields_max: crate::limits::HEAD_FIELDS_MAX,
    target_bytes_max: crate::limits::TARGET_BYTES_MAX,
};

/// All connections to upstreams.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    conns: BTreeMap<ConnId, UpstreamConn>,
    /// Connections that wait for work, by address; the one that was used last is used first.
    idle: BTreeMap<Address, Vec<ConnId>>,
    dialed: u64,
}

#[derive(Debug)]
struct UpstreamConn {
    address: Address,
    out: Outbox,
    is_connected: bool,
    exchange: Option<Box<Exchange>>,
    alarm: Alarm,
}

/// One request and its answer.
#[derive(Debug)]
struct Exchange {
    call: CallId,
    method: String,
    scanner: HeadScanner,
    /// The beginning of a head that is not whole.
    head: Vec<u8>,
    /// Set once the head is read.
    body: Option<BodyDecoder>,
    sort: Sort,
    keep_alive: bool,
    is_paused: bool,
    /// Bytes of the caller's body that went into `out` and were not written, to be paid for when they are.
    uploading: usize,
    /// When it must be over; later than the connection's own alarm where that watches for silence.
    started: Instant,
}

/// What becomes of a body.
#[derive(Debug)]
enum Sort {
    /// Gathered whole before anything is said.
    Gathered { status: u16, fields: Vec<u8>, bytes: Vec<u8> },
    /// Passed on as it comes.
    Streamed,
    /// Passed on as whole events.
    Events(Box<EventParser>),
}

/// Why a fetch came to nothing.
#[derive(Clone, Copy, Debug)]
enum FetchError {
    /// Nobody answers at the upstream's address.
    Refused,
    /// It closed or reset the connection without an answer, or within it.
    Cut,
    /// What it sent is not valid HTTP.
    Invalid,
    /// Its answer is larger than may be gathered.
    TooLarge,
    /// It took too long.
    TimedOut,
    /// An event is longer than may be.
    EventTooLong,
}

impl FetchError {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "the tool's service cannot be reached",
            Self::Cut => "the tool's service closed the connection before its answer was complete",
            Self::Invalid => "the tool's service did not answer in valid HTTP",
            Self::TooLarge => "the answer of the tool's service is too large",
            Self::TimedOut => "the tool's service took too long, the outcome is unknown",
            Self::EventTooLong => "the tool's service sent an event that is too long",
        }
    }
}

impl Upstreams {
    pub(super) fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    pub(super) fn unsent(&self, conn: ConnId) -> &[u8] {
        self.conns
            .get(&conn)
            .filter(|upstream| upstream.is_connected)
            .map_or(&[], |upstream| upstream.out.unsent())
    }

    pub(super) fn held_bytes(&self) -> usize {
        let held = |upstream: &UpstreamConn| {
            let exchange = upstream.exchange.as_ref().map_or(0, |exchange| match &exchange.sort {
                Sort::Gathered { fields, bytes, .. } => fields.len() + bytes.len() + exchange.head.len(),
                Sort::Streamed => exchange.head.len(),
                Sort::Events(parser) => parser.pending_bytes() + exchange.head.len(),
            });
            upstream.out.len() + exchange
        };
        self.conns.values().map(held).sum()
    }

    /// A connection to work on: one that waits, or a new one.
    fn take(&mut self, address: &Address) -> (ConnId, bool) {
        while let Some(conn) = self.idle.get_mut(address).and_then(Vec::pop) {
            if self.conns.contains_key(&conn) {
                return (conn, true);
            }
        }
        self.idle.remove(address);
        self.dialed += 1;
        (ConnId::dialed(self.dialed), false)
    }

    fn forget_idle(&mut self, address: &Address, conn: ConnId) {
        if let Some(idle) = self.idle.get_mut(address) {
            idle.retain(|other| *other != conn);
            if idle.is_empty() {
                self.idle.remove(address);
            }
        }
    }
}

fn address(upstream: &Upstream) -> Address {
    match upstream.scheme {
        Scheme::Http | Scheme::Https => Address::Tcp { host: upstream.host.clone(), port: upstream.port },
        Scheme::Unix => Address::Unix(upstream.host.clone().into()),
    }
}

impl Server {
    // ---- beginning ----

    pub(super) fn fetch_rpc(&mut self, now: Instant, id: CallId, mut judged: RpcJudged, fields: &[u8]) {
        let Some(mut request) = judged.request.take() else { return };
        let body = request.take_body();
        self.begin_fetch(now, id, &request, fields, Some(judged), body.as_deref(), None);
    }

    pub(super) fn fetch_passed(
        &mut self,
        now: Instant,
        id: CallId,
        mut request: Request,
        fields: &[u8],
        body: PassedBody,
    ) {
        let judged_body = request.take_body();
        let upload = body.follows.then(|| body.length.map_or(Upload::Chunked, Upload::Length));
        self.begin_fetch(now, id, &request, fields, None, judged_body.as_deref(), upload);
        if body.follows && (!body.early.is_empty() || body.ended) {
            self.upload(now, id, &body.early, body.ended);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is a part of the one request being written")]
    fn begin_fetch(
        &mut self,
        now: Instant,
        id: CallId,
        request: &Request,
        fields: &[u8],
        judged: Option<RpcJudged>,
        body: Option<&[u8]>,
        upload: Option<Upload>,
    ) {
        let Some(upstream) = request.upstream() else { return };
        let address = address(upstream);
        let (conn, is_reused) = self.upstreams.take(&address);
        if !is_reused {
            let made = UpstreamConn {
                address: address.clone(),
                out: Outbox::default(),
                is_connected: false,
                exchange: None,
                alarm: Alarm::default(),
            };
            self.upstreams.conns.insert(conn, made);
            self.outputs.push_back(Output::Dial { conn, to: address });
        }
        let Some(to) = self.upstreams.conns.get_mut(&conn) else { return };
        let framing = match (body, upload) {
            (Some(body), _) => Framing::Length(body.len() as u64),
            (None, None) => Framing::None,
            (None, Some(Upload::Length(length))) => Framing::Length(length),
            (None, Some(Upload::Chunked)) => Framing::Chunked,
        };
        let written = to.out.push_with(|out| write_request(out, request, upstream, fields, framing));
        if !written {
            self.close_upstream(conn);
            return self.answer_failed(now, id, judged.as_ref(), FetchError::Invalid);
        }
        to.out.push(body.unwrap_or_default());
        to.exchange = Some(Box::new(Exchange {
            call: id,
            method: request.method().to_owned(),
            scanner: HeadScanner::new(),
            head: Vec::new(),
            body: None,
            sort: Sort::Streamed,
            keep_alive: false,
            is_paused: false,
            uploading: 0,
            started: now,
        }));
        let patience = if is_reused { request.timeout() } else { CONNECT_TIMEOUT.min(request.timeout()) };
        to.alarm.set(&mut self.timers, Timer::Upstream(conn), now + patience);
        self.announce_upstream(conn);
        self.note_fetch(now, id, conn, request, fields, judged, upload);
    }

    #[expect(clippy::too_many_arguments, reason = "what the call remembers of its request")]
    fn note_fetch(
        &mut self,
        now: Instant,
        id: CallId,
        conn: ConnId,
        request: &Request,
        fields: &[u8],
        judged: Option<RpcJudged>,
        upload: Option<Upload>,
    ) {
        let accepts_events = pairs(Items(fields)).any(|(name, value)| {
            name.eq_ignore_ascii_case("accept") && value.windows(17).any(|part| part == b"text/event-stream")
        });
        let Some(call) = self.calls.get_mut(&id) else { return };
        let tool = call.policy.tool(&call.about.tool);
        let http = tool.and_then(|tool| match tool.kind() {
            carapace_policy::ToolKind::Http(http) => Some(http),
            carapace_policy::ToolKind::Cli(_) => None,
        });
        let fetching = Fetching {
            conn,
            rpc: judged,
            upload,
            is_head_sent: false,
            is_event_stream: false,
            max_response_bytes: http.map_or(0, carapace_policy::HttpTool::max_response_bytes),
            max_event_bytes: http.map_or(0, carapace_policy::HttpTool::max_event_bytes),
            timeout: request.timeout(),
            event_idle: http.and_then(carapace_policy::HttpTool::event_idle),
            reserved: 0,
        };
        let wants_early_head = fetching.rpc.is_none() && (request.is_stream() || accepts_events);
        call.about.owes_outcome = true;
        call.state = State::Fetching(fetching);
        if wants_early_head {
            call.alarm.set(&mut self.timers, Timer::Call(id), now + STREAM_HEAD_DELAY);
        }
    }

    /// Bytes of the caller's body on their way to the upstream.
    pub(super) fn upload(&mut self, now: Instant, id: CallId, bytes: &[u8], end: bool) {
        let Some(fetching) = self.fetching(id) else { return };
        let conn = fetching.conn;
        let is_whole = match &mut fetching.upload {
            Some(Upload::Chunked) => true,
            Some(Upload::Length(left)) => match left.checked_sub(bytes.len() as u64) {
                Some(rest) => {
                    *left = rest;
                    !end || rest == 0
                }
                None => false,
            },
            None => return,
        };
        if !is_whole {
            // The length was the caller's word, and the upstream has been told it.
            return self.cancel(now, id, "the body is not as long as was said");
        }
        let is_chunked = matches!(fetching.upload, Some(Upload::Chunked));
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        upstream.out.push_with(|out| {
            if is_chunked {
                write_chunk(out, bytes);
                if end {
                    out.extend_from_slice(LAST_CHUNK);
                }
            } else {
                out.extend_from_slice(bytes);
            }
        });
        if let Some(exchange) = &mut upstream.exchange {
            exchange.uploading += bytes.len();
        }
        self.announce_upstream(conn);
        self.pay_for_upload(conn);
    }

    /// Lets more of the caller's body come, once what came has gone on.
    fn pay_for_upload(&mut self, conn: ConnId) {
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        let waiting = upstream.out.len();
        let Some(exchange) = &mut upstream.exchange else { return };
        if exchange.uploading > 0 && waiting < FEED_BYTES_HIGH {
            let (id, bytes) = (exchange.call, core::mem::take(&mut exchange.uploading));
            self.consumed(id, bytes);
        }
    }

    fn announce_upstream(&mut self, conn: ConnId) {
        if let Some(upstream) = self.upstreams.conns.get_mut(&conn)
            && upstream.is_connected
            && upstream.out.wants_announcing()
        {
            self.outputs.push_back(Output::Write(Sink::Conn(conn)));
        }
    }

    // ---- what happens on the connection ----

    pub(super) fn handle_connected(&mut self, now: Instant, conn: ConnId) {
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        upstream.is_connected = true;
        if let Some(exchange) = &upstream.exchange {
            let (id, started) = (exchange.call, exchange.started);
            let timeout = self.fetching(id).map_or(CONNECT_TIMEOUT, |fetching| fetching.timeout);
            if let Some(upstream) = self.upstreams.conns.get_mut(&conn) {
                upstream.alarm.set(&mut self.timers, Timer::Upstream(conn), (started + timeout).max(now));
            }
        }
        self.announce_upstream(conn);
    }

    pub(super) fn handle_dial_failed(&mut self, now: Instant, conn: ConnId, error: DialError) {
        debug!("{conn}: {error:?}");
        if let Some(exchange) = self.remove_upstream(conn) {
            self.fail_fetch(now, exchange.call, FetchError::Refused);
        }
    }

    pub(super) fn handle_upstream_sent(&mut self, _now: Instant, conn: ConnId, count: usize) {
        if let Some(upstream) = self.upstreams.conns.get_mut(&conn) {
            upstream.out.sent(count);
            self.pay_for_upload(conn);
        }
    }

    pub(super) fn handle_upstream_lost(&mut self, now: Instant, conn: ConnId) {
        if let Some(exchange) = self.remove_upstream(conn) {
            self.fail_fetch(now, exchange.call, FetchError::Cut);
        }
    }

    pub(super) fn handle_upstream_eof(&mut self, now: Instant, conn: ConnId) {
        let Some(mut exchange) = self.close_upstream(conn) else { return };
        exchange.keep_alive = false;
        let is_whole = exchange.body.as_mut().is_some_and(|body| body.finish().is_ok());
        if is_whole {
            self.complete(now, &mut exchange);
        } else {
            self.fail_fetch(now, exchange.call, FetchError::Cut);
        }
    }

    pub(super) fn handle_upstream_bytes(&mut self, now: Instant, conn: ConnId, bytes: &[u8]) {
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
                let is_sent = self.upstreams.conns.get(&conn).is_some_and(|upstream| upstream.out.is_empty());
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
            let parsed = parse_response_from(&mut exchange.scanner, rest, &exchange.method, &HEAD_LIMITS);
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
        let mut items = Vec::new();
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
            exchange.sort = Sort::Gathered { status: head.status, fields: items, bytes: Vec::new() };
            return Ok(());
        }
        if head.is_event_stream() && head.framing != ResponseFraming::None && head.status == 200 {
            fetching.is_event_stream = true;
            exchange.sort = Sort::Events(Box::new(EventParser::new(fetching.max_event_bytes)));
            self.watch_for_silence(now, id);
            return self.send_head(id, head.status, ResponseBody::Events, &items);
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
                let fed = parser.feed(data, &mut out, |_| Keep::Yes);
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

    /// The client has taken what waited: read on.
    pub(super) fn resume_fetch(&mut self, conn: ConnId) {
        if let Some(exchange) =
            self.upstreams.conns.get_mut(&conn).and_then(|upstream| upstream.exchange.as_mut())
            && core::mem::replace(&mut exchange.is_paused, false)
        {
            self.outputs.push_back(Output::Resume(Source::Conn(conn)));
        }
    }

    // ---- the end ----

    /// The answer is whole.
    fn complete(&mut self, now: Instant, exchange: &mut Exchange) {
        let id = exchange.call;
        match core::mem::replace(&mut exchange.sort, Sort::Streamed) {
            Sort::Gathered { status, fields, bytes } => self.answer_rpc(now, id, status, fields, bytes),
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

    fn end_stream(&mut self, now: Instant, id: CallId, last: &[u8]) {
        self.send_body(id, last, true);
        self.record_outcome(now, id, Outcome::Status(200));
        self.finish(now, id);
    }

    fn fail_fetch(&mut self, now: Instant, id: CallId, error: FetchError) {
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

    fn answer_failed(&mut self, now: Instant, id: CallId, judged: Option<&RpcJudged>, error: FetchError) {
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

    /// Nobody waits for an exchange any more: its connection cannot be used for another.
    pub(super) fn abandon_fetch(&mut self, conn: ConnId) {
        self.close_upstream(conn);
    }

    pub(super) fn handle_upstream_timeout(&mut self, now: Instant, conn: ConnId) {
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        if !upstream.alarm.fires(&mut self.timers, Timer::Upstream(conn), now) {
            return;
        }
        let was_connected = upstream.is_connected;
        if let Some(exchange) = self.close_upstream(conn) {
            let error = if was_connected { FetchError::TimedOut } else { FetchError::Refused };
            self.fail_fetch(now, exchange.call, error);
        }
    }

    /// The upstream has not answered a request for a stream in time: the client gets its head anyway.
    pub(super) fn handle_call_timeout(&mut self, now: Instant, id: CallId) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        if !call.alarm.fires(&mut self.timers, Timer::Call(id), now) {
            return;
        }
        match &mut call.state {
            State::Fetching(fetching) => {
                fetching.is_head_sent = true;
                fetching.is_event_stream = true;
                let mut items = Vec::new();
                for text in ["content-type", "text/event-stream", "cache-control", "no-cache"] {
                    push_item(&mut items, text.as_bytes());
                }
                let head =
                    StreamFrame::Response { status: 200, body: ResponseBody::Events, items: Items(&items) };
                self.send_frame(id, &head);
                self.send_data(id, Channel::Main, b":\n", false);
            }
            State::Queued(_) => self.give_up_queue(now, id),
            State::Describing(_)
            | State::Collecting(_)
            | State::Recording(_)
            | State::Running(_)
            | State::Finishing => {}
        }
    }

    /// Ends all event streams, so that their clients go to whoever serves next.
    pub(super) fn end_event_streams(&mut self, now: Instant) {
        let streams: Vec<(CallId, ConnId)> = self
            .calls
            .iter()
            .filter_map(|(id, call)| match &call.state {
                State::Fetching(fetching) if fetching.is_event_stream => Some((*id, fetching.conn)),
                State::Fetching(_)
                | State::Describing(_)
                | State::Collecting(_)
                | State::Recording(_)
                | State::Queued(_)
                | State::Running(_)
                | State::Finishing => None,
            })
            .collect();
        for (id, conn) in streams {
            self.close_upstream(conn);
            self.end_stream(now, id, &[]);
        }
    }

    /// Keeps a connection for the next fetch.
    fn keep(&mut self, now: Instant, conn: ConnId) {
        let Some(upstream) = self.upstreams.conns.get_mut(&conn) else { return };
        let idle = self.upstreams.idle.entry(upstream.address.clone()).or_default();
        if idle.len() >= POOL_IDLE_MAX || !matches!(self.drain, super::Drain::No) {
            self.close_upstream(conn);
            return;
        }
        idle.push(conn);
        upstream.alarm.set(&mut self.timers, Timer::Upstream(conn), now + POOL_IDLE_TIMEOUT);
    }

    pub(super) fn close_idle_upstreams(&mut self) {
        let idle: Vec<ConnId> = self
            .upstreams
            .conns
            .iter()
            .filter(|(_, upstream)| upstream.exchange.is_none())
            .map(|(conn, _)| *conn)
            .collect();
        for conn in idle {
            self.close_upstream(conn);
        }
    }

    fn close_upstream(&mut self, conn: ConnId) -> Option<Box<Exchange>> {
        if self.upstreams.conns.contains_key(&conn) {
            self.close_conn(conn);
        }
        self.remove_upstream(conn)
    }

    fn remove_upstream(&mut self, conn: ConnId) -> Option<Box<Exchange>> {
        let mut upstream = self.upstreams.conns.remove(&conn)?;
        upstream.alarm.remove(&mut self.timers, Timer::Upstream(conn));
        self.upstreams.forget_idle(&upstream.address, conn);
        upstream.exchange
    }

    fn fetching(&mut self, id: CallId) -> Option<&mut Fetching> {
        match self.calls.get_mut(&id) {
            Some(Call { state: State::Fetching(fetching), .. }) => Some(fetching),
            Some(_) | None => None,
        }
    }
}

/// How far an answer has been read.
enum Progress {
    More,
    Done { has_more: bool },
}

/// Writes a request's head as it was judged; false when something in it would break it.
fn write_request(
    out: &mut Vec<u8>,
    request: &Request,
    upstream: &Upstream,
    fields: &[u8],
    framing: Framing,
) -> bool {
    let target = format!("{}{}", upstream.base_path, request.target());
    let passed = pairs(Items(fields)).filter(|(name, _)| {
        request.passes_header(name) && !request.headers().any(|(own, _)| own.eq_ignore_ascii_case(name))
    });
    let injected = request.headers().map(|(name, value)| (name, value.expose()));
    let all = passed.chain(injected);
    write_request_head(out, request.method(), &target, &upstream.host_header, all, framing).is_ok()
}
