//! Fetches: exchanges with upstreams, and the connections they happen on.
//!
//! An upstream's connection is one like any other: the driver dials it and carries its bytes. The request is written
//! here, `answer` reads what comes back, and a connection that a fetch has left in good order waits in `pool` for the
//! next one.

mod answer;
mod pool;

pub(super) use pool::Upstreams;

use super::call::{Call, Fetching, PassedBody, State, Upload};
use super::http::pairs;
use super::record::Outcome;
use super::{Server, Timer};
use crate::ids::{CallId, ConnId};
use crate::limits::{CONNECT_TIMEOUT, FEED_BYTES_HIGH, STREAM_HEAD_DELAY};
use crate::machine::{Address, DialError, Output, Sink, Source};
use crate::time::Instant;
use crate::wire::frame::{Channel, Fault, Items, ResponseBody, StreamFrame, push_item};
use crate::wire::http1::{Framing, LAST_CHUNK, write_chunk, write_request_head};
use carapace_policy::{Request, RpcJudged, Scheme, Upstream};
use log::debug;
use pool::{Exchange, UpstreamConn};

const CONTENT_TYPE: &str = "content-type";

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
        self.begin_fetch(now, id, request, fields, Some(judged), body.as_deref(), None);
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
        self.begin_fetch(now, id, request, fields, None, judged_body.as_deref(), upload);
        if body.follows && (!body.early.is_empty() || body.ended) {
            self.upload(now, id, &body.early, body.ended);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is a part of the one request being written")]
    fn begin_fetch(
        &mut self,
        now: Instant,
        id: CallId,
        request: Request,
        fields: &[u8],
        judged: Option<RpcJudged>,
        body: Option<&[u8]>,
        upload: Option<Upload>,
    ) {
        let Some(upstream) = request.upstream() else { return };
        if upstream.scheme == Scheme::Https {
            // There is no TLS here yet, and what is meant for it must not cross a network in the clear.
            if let Some(call) = self.calls.get_mut(&id) {
                call.about.owes_outcome = true;
            }
            self.record_outcome(now, id, Outcome::Failed("https upstreams are not supported"));
            return self.answer_failed(now, id, judged.as_ref(), FetchError::Refused);
        }
        let address = address(upstream);
        let (conn, is_reused) = self.upstreams.take(&address);
        if !is_reused {
            let made = UpstreamConn::new(address.clone());
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
        let written =
            to.out.push_with(|out| write_request(out, &request, upstream, fields, framing, judged.is_some()));
        if !written {
            self.close_upstream(conn);
            return self.answer_failed(now, id, judged.as_ref(), FetchError::Invalid);
        }
        to.out.push(body.unwrap_or_default());
        let timeout = request.timeout();
        let patience = if is_reused { timeout } else { CONNECT_TIMEOUT.min(timeout) };
        to.alarm.set(&mut self.timers, Timer::Upstream(conn), now + patience);
        self.note_fetch(now, id, conn, &request, fields, judged, upload);
        if let Some(to) = self.upstreams.conns.get_mut(&conn) {
            to.exchange = Some(Box::new(Exchange::new(now, id, request)));
        }
        self.announce_upstream(conn);
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
            self.reset_stream(id, Fault::Misbehaved, "the body is not as long as was said");
            return self.cancel(now, id, "the body is not as long as was said");
        }
        let is_chunked = matches!(fetching.upload, Some(Upload::Chunked));
        if end {
            fetching.upload = None;
        }
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

    /// The client has taken what waited: read on.
    pub(super) fn resume_fetch(&mut self, conn: ConnId) {
        if let Some(exchange) =
            self.upstreams.conns.get_mut(&conn).and_then(|upstream| upstream.exchange.as_mut())
            && core::mem::replace(&mut exchange.is_paused, false)
        {
            self.outputs.push_back(Output::Resume(Source::Conn(conn)));
        }
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
            State::Describing(_) | State::Collecting(_) => self.give_up_request(now, id),
            State::Finishing => self.look_at_reader(now, id),
            State::Recording(_) | State::Running(_) => {}
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

    fn fetching(&mut self, id: CallId) -> Option<&mut Fetching> {
        match self.calls.get_mut(&id) {
            Some(Call { state: State::Fetching(fetching), .. }) => Some(fetching),
            Some(_) | None => None,
        }
    }
}

/// Writes a request's head as it was judged; false when something in it would break it.
fn write_request(
    out: &mut Vec<u8>,
    request: &Request,
    upstream: &Upstream,
    fields: &[u8],
    framing: Framing,
    is_rpc: bool,
) -> bool {
    let is_injected = |name: &str| request.headers().any(|(own, _)| own.eq_ignore_ascii_case(name));
    // A body that was rebuilt is JSON in our writing, and so is its type: not every upstream knows the caller's.
    let is_rebuilt = |name: &str| is_rpc && name.eq_ignore_ascii_case(CONTENT_TYPE);
    let passed = pairs(Items(fields))
        .filter(|(name, _)| request.passes_header(name) && !is_injected(name) && !is_rebuilt(name));
    let own = (is_rpc && !is_injected(CONTENT_TYPE)).then_some((CONTENT_TYPE, &b"application/json"[..]));
    let injected = request.headers().map(|(name, value)| (name, value.expose()));
    let all = passed.chain(own).chain(injected);
    write_request_head(out, request.method(), request.target(), &upstream.host_header, all, framing).is_ok()
}
