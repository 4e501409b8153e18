//! A scripted agent: it speaks the link by itself, through the product's `Session`, and asks what it likes.

use crate::check::Check;
use crate::env::{Entity, Env};
use crate::hearing::{Hearing, RunHearing};
use crate::ledger::{Lane, Tag};
use crate::net::{End, Got, Wrote};
use crate::pattern;
use crate::plan::{self, Body};
use carapace_proto::ids::StreamId;
use carapace_proto::limits::FRAME_BYTES_MAX;
use carapace_proto::link::{Event, Session};
use carapace_proto::machine::Closing;
use carapace_proto::wire::frame::{
    Channel, Fault, Frame, FrameReader, Items, ListName, ResponseBody, StreamFrame, push_item,
};
use carapace_proto::wire::message::{Hello, Message, Role, VERSION};
use std::collections::BTreeMap;

#[derive(Debug)]
enum Stream {
    Exchange { tag: Tag, hearing: Option<Hearing>, body: Option<Body>, sent: usize },
    Run { tag: Tag, stdin: u64, sent: u64, has_ended: bool },
}

impl Stream {
    const fn tag(&self) -> Tag {
        match self {
            Self::Exchange { tag, .. } | Self::Run { tag, .. } => *tag,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Peer {
    id: u64,
    end: End,
    reader: FrameReader,
    greeting: Vec<u8>,
    session: Option<Session>,
    streams: BTreeMap<StreamId, Stream>,
    last_stream: u64,
    /// Payload that was taken in and not paid for again.
    owed: BTreeMap<StreamId, usize>,
    calls_left: u64,
    is_rude: bool,
    deaf_until: u64,
    pub(crate) is_over: bool,
}

impl Peer {
    pub(crate) fn new(env: &mut Env, id: u64, end: End) -> Self {
        let is_rude = env.chance.is(env.climate.rude_clients);
        Self {
            id,
            end,
            reader: FrameReader::new(),
            greeting: Vec::new(),
            session: None,
            streams: BTreeMap::new(),
            last_stream: 0,
            owed: BTreeMap::new(),
            calls_left: env.chance.within(1, if env.is_calm { 3 } else { 12 }),
            is_rude,
            deaf_until: 0,
            is_over: false,
        }
    }

    pub(crate) fn run(&mut self, env: &mut Env) {
        self.hear(env);
        if self.is_over {
            return;
        }
        if self.session.is_some() {
            self.act(env);
            self.upload(env);
            self.pay(env);
        }
        self.keep_alive(env);
        self.flush(env);
        if self.session.is_some() && self.calls_left == 0 && self.streams.is_empty() {
            env.say(|| format!("peer {} leaves", self.id));
            return self.leave(env, Closing::Orderly);
        }
        let micros = *env.chance.pick(&[2_000, 20_000, 200_000]).unwrap_or(&200);
        let micros = env.chance.within(50, micros);
        if self.calls_left > 0 || self.is_rude {
            env.alarm_in(Entity::Actor(self.id), micros);
        }
    }

    // ---- hearing ----

    fn hear(&mut self, env: &mut Env) {
        if env.now.as_micros() < self.deaf_until && !env.is_calm {
            return;
        }
        loop {
            let most = env.chance.size(1, 100_000);
            match env.read(self.end, most) {
                Got::Bytes(bytes) => self.take(env, &bytes),
                Got::Eof | Got::Reset => return self.leave(env, Closing::Orderly),
                Got::Nothing => return,
            }
            if self.is_over {
                return;
            }
        }
    }

    fn take(&mut self, env: &mut Env, bytes: &[u8]) {
        let mut reader = core::mem::take(&mut self.reader);
        if let Some(session) = &mut self.session {
            session.heard(env.now, bytes.len());
        }
        let mut input = bytes;
        loop {
            match reader.next(&mut input, FRAME_BYTES_MAX) {
                Ok(Some(frame)) => self.frame(env, frame),
                Ok(None) => break,
                Err(error) => {
                    env.fail(Check::Contract, format!("the server sends no frame: {error}"));
                    break;
                }
            }
            if self.is_over {
                return;
            }
        }
        self.reader = reader;
    }

    fn frame(&mut self, env: &mut Env, frame: Frame<'_>) {
        let Some(session) = &mut self.session else { return self.greet(env, frame) };
        match session.handle(env.now, frame) {
            Ok(Event::Done) => {}
            Ok(Event::Message(message)) => env.say(|| format!("peer {} hears {message:?}", self.id)),
            Ok(Event::Stream(stream, frame)) => self.stream_frame(env, stream, frame),
            Err(misbehavior) => env.fail(Check::Contract, format!("the server {misbehavior}")),
        }
    }

    fn greet(&mut self, env: &mut Env, frame: Frame<'_>) {
        let Frame::Json(json) = frame else {
            return env.fail(Check::Contract, "the server greets with a binary frame");
        };
        match Message::parse(json) {
            Ok(Message::Nonce(nonce)) => {
                let hello = Hello {
                    nonce: nonce.nonce,
                    version: VERSION,
                    role: Role::Agent,
                    software: "sim".into(),
                    resume: None,
                };
                Message::Hello(hello).write(&mut self.greeting);
            }
            Ok(Message::Welcome(_)) => self.session = Some(Session::new(env.now)),
            Ok(Message::Refused { .. }) => self.leave(env, Closing::Orderly),
            other => env.fail(Check::Contract, format!("the server greets with {other:?}")),
        }
    }

    fn stream_frame(&mut self, env: &mut Env, id: StreamId, frame: StreamFrame<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            match frame {
                StreamFrame::Credit { .. } | StreamFrame::Reset { .. } => {}
                frame => {
                    // After its end a stream must be silent, unless we ended it.
                    let is_ours = self.owed.contains_key(&id);
                    if !is_ours && id.0 <= self.last_stream && !self.is_rude {
                        env.fail(Check::Answered, format!("{id} goes on after its end: {frame:.100?}"));
                    }
                }
            }
            return;
        };
        let is_over = match (stream, frame) {
            (Stream::Exchange { tag, hearing, .. }, StreamFrame::Response { status, body, items }) => {
                if hearing.is_some() {
                    env.fail(Check::Answered, format!("{tag:?} gets a second head"));
                }
                let fields = fields(items);
                let content_type = fields
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))
                    .map_or("", |(_, value)| value.as_str());
                *hearing = Some(Hearing::new(env, *tag, status, content_type, &fields));
                body == ResponseBody::None
            }
            (Stream::Exchange { hearing: Some(hearing), .. }, StreamFrame::Data { end, more, bytes, .. }) => {
                hearing.data(env, bytes);
                *self.owed.entry(id).or_default() += bytes.len();
                if !more {
                    hearing.check_whole(env);
                }
                end
            }
            (Stream::Exchange { tag, .. }, StreamFrame::Reset { fault, .. }) => {
                env.say(|| format!("{tag:?} is reset: {fault:?}"));
                let verdict = env.ledger.answered(*tag);
                env.check(verdict);
                self.close_stream(id);
                return;
            }
            (Stream::Run { tag, .. }, StreamFrame::Data { channel, bytes, .. }) => {
                let lane = if channel == Channel::Stderr { Lane::Stderr } else { Lane::Stdout };
                RunHearing { tag: *tag }.printed(env, lane, bytes);
                *self.owed.entry(id).or_default() += bytes.len();
                false
            }
            (Stream::Run { tag, .. }, StreamFrame::Exit { value, signaled, .. }) => {
                RunHearing { tag: *tag }.exited(env, value, signaled);
                true
            }
            (
                Stream::Run { tag, .. },
                StreamFrame::Failed { fault, text } | StreamFrame::Reset { fault, text },
            ) => {
                RunHearing { tag: *tag }.failed(env, fault, text);
                true
            }
            (_, StreamFrame::Credit { .. }) => false,
            (stream, frame) => {
                env.fail(Check::Contract, format!("{:?} hears {frame:.100?}", stream.tag()));
                false
            }
        };
        if is_over
            && let Some(stream) = self.close_stream(id)
            && let Stream::Exchange { hearing: Some(hearing), .. } = stream
        {
            hearing.end(env);
        }
    }

    fn close_stream(&mut self, id: StreamId) -> Option<Stream> {
        if let Some(session) = &mut self.session {
            session.close(id);
        }
        self.owed.remove(&id);
        self.streams.remove(&id)
    }

    // ---- asking ----

    fn act(&mut self, env: &mut Env) {
        if self.calls_left > 0 && self.streams.len() < 6 && env.chance.is(500) {
            self.calls_left -= 1;
            if env.chance.is(350) { self.begin_run(env) } else { self.begin_exchange(env) }
        }
        if !self.is_rude || env.is_calm {
            return;
        }
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        let Some(id) = env.chance.pick(&streams).copied() else { return };
        match env.chance.below(40) {
            0 => {
                if let (Some(session), Some(stream)) = (&mut self.session, self.streams.remove(&id)) {
                    env.say(|| format!("{:?} is cancelled", stream.tag()));
                    session.send_now(id, &StreamFrame::Reset { fault: Fault::Cancelled, text: b"" });
                    session.close(id);
                    self.owed.insert(id, 0);
                    env.ledger.gone(stream.tag());
                }
            }
            1..=3 => {
                let number = *env.chance.pick(&[1, 2, 9, 15, 18, 20, 28]).unwrap_or(&2);
                if let (Some(session), Some(Stream::Run { .. })) = (&mut self.session, self.streams.get(&id))
                {
                    session.send_now(id, &StreamFrame::Signal { number });
                }
            }
            4 => self.deaf_until = env.now.as_micros() + env.chance.within(1_000, 4_000_000),
            5 if env.chance.is(200) => {
                let how = if env.chance.is(500) { Closing::Orderly } else { Closing::Reset };
                self.leave(env, how);
            }
            _ => {}
        }
    }

    fn begin_exchange(&mut self, env: &mut Env) {
        let request = plan::request(env, None);
        let Some(session) = &mut self.session else { return };
        self.last_stream += 1;
        let id = StreamId(self.last_stream);
        session.open(id);
        let mut items = Vec::new();
        for text in [request.tool(), request.method, &request.target] {
            push_item(&mut items, text.as_bytes());
        }
        let length = request.body.as_ref().filter(|body| body.says_length).map(|body| body.bytes.len());
        let length = length.map(|length| ("Content-Length", length.to_string()));
        for (name, value) in request.fields.iter().chain(&length) {
            push_item(&mut items, name.as_bytes());
            push_item(&mut items, value.as_bytes());
        }
        session.send(id, &StreamFrame::Request { body: request.body.is_some(), items: Items(&items) });
        let stream = Stream::Exchange { tag: request.tag, hearing: None, body: request.body, sent: 0 };
        self.streams.insert(id, stream);
    }

    fn begin_run(&mut self, env: &mut Env) {
        let run = plan::run(env);
        let Some(session) = &mut self.session else { return };
        self.last_stream += 1;
        let id = StreamId(self.last_stream);
        session.open_run(id);
        session.send(id, &StreamFrame::Run { terminal: false, tool: run.tool.as_bytes() });
        let mut argv = Vec::new();
        run.argv.iter().for_each(|word| push_item(&mut argv, word.as_bytes()));
        let cut = env.chance.size(0, argv.len());
        let (head, tail) = argv.split_at(cut);
        session.send(id, &StreamFrame::List { list: ListName::Argv, go: false, bytes: head });
        let env_list = b"LANG=C\0LD_PRELOAD=/evil.so\0OP_TOKEN=mine\0";
        session.send(id, &StreamFrame::List { list: ListName::Env, go: false, bytes: env_list });
        session.send(id, &StreamFrame::List { list: ListName::Argv, go: false, bytes: tail });
        session.send(id, &StreamFrame::List { list: ListName::Cwd, go: true, bytes: b"/home/me\0" });
        let stream = Stream::Run { tag: run.tag, stdin: run.stdin, sent: 0, has_ended: false };
        self.streams.insert(id, stream);
    }

    /// Bodies and standard inputs go on, as far as there is credit.
    fn upload(&mut self, env: &mut Env) {
        let Some(session) = &mut self.session else { return };
        while session.poll_unclogged().is_some() {}
        let mut goes_on = false;
        for (id, stream) in &mut self.streams {
            if session.is_clogged(*id) {
                continue;
            }
            match stream {
                Stream::Exchange { tag, body: Some(body), sent, .. } => {
                    let left = body.bytes.get(*sent..).unwrap_or_default();
                    let count = env.chance.size(0, left.len().min(50_000));
                    let is_last = count == left.len();
                    let bytes = left.get(..count).unwrap_or_default();
                    session.send_data(*id, Channel::Main, bytes, is_last, false);
                    if body.is_pattern {
                        env.ledger.sent(*tag, Lane::Up, count);
                    }
                    *sent += count;
                    goes_on |= !is_last;
                    if is_last && let Stream::Exchange { body, .. } = stream {
                        *body = None;
                    }
                }
                Stream::Run { tag, stdin, sent, has_ended } if !*has_ended => {
                    let left = usize::try_from(*stdin - *sent).unwrap_or(0);
                    let count = env.chance.size(0, left.min(50_000));
                    let is_last = count == left;
                    let bytes = pattern::bytes(*tag, Lane::Up.number(), *sent, count);
                    session.send_data(*id, Channel::Main, &bytes, is_last, false);
                    env.ledger.sent(*tag, Lane::Up, count);
                    *sent += count as u64;
                    *has_ended = is_last;
                    goes_on |= !is_last;
                }
                Stream::Exchange { .. } | Stream::Run { .. } => {}
            }
        }
        if goes_on {
            env.alarm_in(Entity::Actor(self.id), 500);
        }
    }

    /// What was heard is handed on: at once, or when it pleases.
    fn pay(&mut self, env: &mut Env) {
        let Some(session) = &mut self.session else { return };
        for (id, owed) in &mut self.owed {
            if *owed > 0 && (!self.is_rude || env.is_calm || env.chance.is(200)) {
                session.consumed(*id, core::mem::take(owed));
            }
        }
    }

    // ---- the connection ----

    fn keep_alive(&mut self, env: &mut Env) {
        let Some(session) = &mut self.session else { return };
        let due = session.poll_timeout();
        if due <= env.now && !session.handle_timeout(env.now) {
            return self.leave(env, Closing::Orderly);
        }
        let due = session.poll_timeout();
        env.alarm(Entity::Actor(self.id), due);
    }

    fn flush(&mut self, env: &mut Env) {
        while !self.is_over {
            let is_greeting = !self.greeting.is_empty();
            let bytes = match &self.session {
                _ if is_greeting => self.greeting.clone(),
                Some(session) => session.unsent().to_vec(),
                None => return,
            };
            if bytes.is_empty() {
                return;
            }
            match env.write(self.end, &bytes) {
                Wrote::Count(0) => return,
                Wrote::Count(count) => {
                    if is_greeting {
                        self.greeting.drain(..count);
                    } else if let Some(session) = &mut self.session {
                        session.sent(count);
                    }
                }
                Wrote::Broken => return self.leave(env, Closing::Orderly),
            }
        }
    }

    fn leave(&mut self, env: &mut Env, how: Closing) {
        if core::mem::replace(&mut self.is_over, true) {
            return;
        }
        env.close(self.end, how);
        for stream in self.streams.values() {
            env.ledger.gone(stream.tag());
        }
    }
}

fn fields(mut items: Items<'_>) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut fields = Vec::new();
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        fields.push((text(name), text(value)));
    }
    fields
}
