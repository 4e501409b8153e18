//! A driver made of lists: what the server wants done is kept for the test to look at, and done only when it says so.

use carapace_policy::{Exec, Policy};
use carapace_proto::ids::{ConnId, JobId, ListenerId, RecordId, StreamId};
use carapace_proto::limits::FRAME_BYTES_MAX;
use carapace_proto::link::{Event, Session};
use carapace_proto::machine::{Input, Machine, Output, PeerAddr, Sink, Source};
use carapace_proto::server::{Server, ServerConfig};
use carapace_proto::time::{Duration, Instant, Wall};
use carapace_proto::wire::frame::{Channel, Frame, FrameReader, Items, ListName, ResponseBody, StreamFrame};
use carapace_proto::wire::message::{Hello, Message, Role, VERSION};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub(crate) const LINK: ConnId = ConnId::accepted(0);

pub(crate) const POLICY: &str = r#"
tools:
  signal-cli:
    type: http
    upstream: "http://127.0.0.1:18080"
    jsonrpc_allow_methods: [send, version, receive]
    jsonrpc_deny_methods: [deleteEverything]
    jsonrpc_param_filters:
      send: { field: recipient, allow_patterns: ["+1*"], deny_patterns: ["+15551234567"], audit_as: phone_number }
    timeout_secs: 30
  filtered:
    type: http
    api: signal-cli
    upstream: "http://127.0.0.1:18081"
    jsonrpc_allow_methods: [receive]
    event_filters:
      receive: { field: envelope.sourceNumber, allow_patterns: ["+1*"] }
  files:
    type: http
    upstream: "http://127.0.0.1:18082/base"
    http_allow: ["GET /get/*", "POST /put/*"]
    timeout_secs: 10
  echo:
    type: cli
    binary: /bin/echo
    argv_allow_patterns: ["hello **", "hello"]
    env_allow: [LANG]
    env_inject: { TOKEN: { literal: "correct horse" } }
    stdin: true
    max_concurrent: 1
    max_output_bytes: 100000
    timeout_secs: 10
  silent:
    type: cli
    binary: /bin/true
    argv_allow_patterns: ["**"]
"#;

/// What came back on a stream.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: Option<u16>,
    pub(crate) kind: Option<ResponseBody>,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) credit: u64,
    pub(crate) end: Option<String>,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

pub(crate) struct Host {
    pub(crate) server: Server,
    pub(crate) now: Instant,
    pub(crate) session: Session,
    reader: FrameReader,
    pub(crate) replies: BTreeMap<StreamId, Reply>,
    pub(crate) messages: Vec<String>,
    pub(crate) dials: VecDeque<ConnId>,
    pub(crate) upstream: BTreeMap<ConnId, Vec<u8>>,
    pub(crate) closed: Vec<ConnId>,
    pub(crate) paused: Vec<Source>,
    pub(crate) starts: VecDeque<(JobId, Box<Exec>)>,
    pub(crate) stdin: BTreeMap<JobId, Vec<u8>>,
    pub(crate) stdin_closed: Vec<JobId>,
    pub(crate) signals: Vec<(JobId, u8)>,
    pub(crate) forgotten: Vec<JobId>,
    pub(crate) drained: bool,
    pub(crate) log: String,
    /// Records that the disk has, and has not said so yet.
    unsaid: Option<RecordId>,
    pub(crate) disk: Disk,
    last_stream: u64,
    /// Whether payload is handed on as it comes.
    pub(crate) drains: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Good,
    Full,
    /// Takes records and does not say so before [`Host::say_recorded`].
    Slow,
}

impl Host {
    /// A server with one agent whose session stands.
    pub(crate) fn new() -> Self {
        Self::under(POLICY)
    }

    /// The same under another policy.
    pub(crate) fn under(policy: &str) -> Self {
        let mut host = Self::unlinked_under(policy);
        host.connect(LINK, Some(1000));
        let nonce = host.nonce(LINK);
        host.hello(LINK, &nonce, VERSION, Role::Agent);
        let bytes = host.written(LINK);
        let (mut reader, mut input) = (FrameReader::new(), &bytes[..]);
        let welcome = reader.next(&mut input, FRAME_BYTES_MAX).unwrap();
        let Some(Frame::Json(json)) = welcome else { panic!("no welcome") };
        assert!(matches!(Message::parse(json), Ok(Message::Welcome(_))));
        host
    }

    pub(crate) fn unlinked() -> Self {
        Self::unlinked_under(POLICY)
    }

    fn unlinked_under(policy: &str) -> Self {
        let now = Instant::from_micros(1);
        let config = ServerConfig {
            policy: Arc::new(Policy::parse("policy.yaml", policy).unwrap()),
            own_uid: 1000,
            insecure: false,
            seed: [7; 32],
            version: "0.0.0".to_owned(),
        };
        let mut server = Server::new(now, config);
        server.handle(now, Input::Wall { wall: Wall::from_unix_micros(1_700_000_000_000_000) });
        Self {
            server,
            now,
            session: Session::new(now),
            reader: FrameReader::new(),
            replies: BTreeMap::new(),
            messages: Vec::new(),
            dials: VecDeque::new(),
            upstream: BTreeMap::new(),
            closed: Vec::new(),
            paused: Vec::new(),
            starts: VecDeque::new(),
            stdin: BTreeMap::new(),
            stdin_closed: Vec::new(),
            signals: Vec::new(),
            forgotten: Vec::new(),
            drained: false,
            log: String::new(),
            unsaid: None,
            disk: Disk::Good,
            last_stream: 0,
            drains: true,
        }
    }

    // ---- the link ----

    pub(crate) fn connect(&mut self, conn: ConnId, uid: Option<u32>) {
        let addr = "127.0.0.1:5000".parse().unwrap();
        self.handle(Input::Accepted { conn, listener: ListenerId(0), peer: PeerAddr::Tcp { addr, uid } });
    }

    /// Everything the server has for a connection, as far as the driver was told to write.
    pub(crate) fn written(&mut self, conn: ConnId) -> Vec<u8> {
        let bytes = self.server.unsent(Sink::Conn(conn)).to_vec();
        if !bytes.is_empty() {
            self.handle(Input::Sent { sink: Sink::Conn(conn), count: bytes.len() });
        }
        bytes
    }

    pub(crate) fn nonce(&mut self, conn: ConnId) -> String {
        let bytes = self.written(conn);
        match Message::parse(&bytes[4..]) {
            Ok(Message::Nonce(nonce)) => nonce.nonce.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn hello(&mut self, conn: ConnId, nonce: &str, version: u32, role: Role) {
        let hello = Hello { nonce: nonce.into(), version, role, software: "test".into(), resume: None };
        let mut frame = Vec::new();
        Message::Hello(hello).write(&mut frame);
        self.handle(Input::Bytes { source: Source::Conn(conn), bytes: &frame });
    }

    /// Carries what the agent's session wants to say, and takes in what the server says, until nobody says more.
    pub(crate) fn exchange(&mut self) {
        loop {
            let bytes = self.session.unsent().to_vec();
            if !bytes.is_empty() {
                self.session.sent(bytes.len());
                self.handle(Input::Bytes { source: Source::Conn(LINK), bytes: &bytes });
            }
            let back = self.written(LINK);
            if back.is_empty() && bytes.is_empty() {
                return;
            }
            self.take_in(&back);
        }
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.session.heard(self.now, bytes.len());
        let mut reader = std::mem::take(&mut self.reader);
        let mut input = bytes;
        while let Some(frame) = reader.next(&mut input, FRAME_BYTES_MAX).unwrap() {
            match self.session.handle(self.now, frame).unwrap() {
                Event::Done => {}
                Event::Message(message) => self.messages.push(format!("{message:?}")),
                Event::Stream(stream, frame) => self.note(stream, frame),
            }
        }
        self.reader = reader;
    }

    fn note(&mut self, stream: StreamId, frame: StreamFrame<'_>) {
        let reply = self.replies.entry(stream).or_default();
        match frame {
            StreamFrame::Data { channel, end, bytes, .. } => {
                match channel {
                    Channel::Stderr => reply.stderr.extend_from_slice(bytes),
                    Channel::Main | Channel::Stdout => {
                        reply.body.extend_from_slice(bytes);
                        reply.ended |= end;
                    }
                }
                if self.drains {
                    self.session.consumed(stream, bytes.len());
                }
            }
            StreamFrame::Response { status, body, items } => {
                reply.status = Some(status);
                reply.kind = Some(body);
                let texts: Vec<String> =
                    items.map(|item| String::from_utf8_lossy(item).into_owned()).collect();
                reply.fields = texts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
                reply.ended |= body == ResponseBody::None;
            }
            StreamFrame::Credit { bytes } => reply.credit += u64::from(bytes),
            other => reply.end = Some(format!("{other:?}")),
        }
    }

    /// Asks for something over HTTP; the stream's replies are in `replies`.
    pub(crate) fn request(&mut self, method: &str, target: &str, body: Option<&[u8]>) -> StreamId {
        self.request_of("signal-cli", method, target, body)
    }

    pub(crate) fn request_of(
        &mut self,
        tool: &str,
        method: &str,
        target: &str,
        body: Option<&[u8]>,
    ) -> StreamId {
        let stream = self.open();
        self.session.open(stream);
        let mut items = format!("{tool}\0{method}\0{target}\0").into_bytes();
        if let Some(body) = body {
            items.extend_from_slice(
                format!("content-type\0application/json\0content-length\0{}\0", body.len()).as_bytes(),
            );
        }
        items.extend_from_slice(b"Cookie\0secret\0X-Other\0no\0Accept\0*/*\0");
        self.session.send(stream, &StreamFrame::Request { body: body.is_some(), items: Items(&items) });
        if let Some(body) = body {
            self.session.send_data(stream, Channel::Main, body, true, false);
        }
        self.exchange();
        stream
    }

    /// Asks to pass on a body of so many bytes, of which none is sent.
    pub(crate) fn open_upload(&mut self, tool: &str, target: &str, length: usize) -> StreamId {
        let stream = self.open();
        self.session.open(stream);
        let items = format!("{tool}\0POST\0{target}\0content-length\0{length}\0").into_bytes();
        self.session.send(stream, &StreamFrame::Request { body: true, items: Items(&items) });
        self.exchange();
        stream
    }

    pub(crate) fn rpc(&mut self, body: &str) -> StreamId {
        self.request("POST", "/api/v1/rpc", Some(body.as_bytes()))
    }

    pub(crate) fn run(&mut self, tool: &str, argv: &str, env: &str) -> StreamId {
        let stream = self.open();
        self.session.open_run(stream);
        self.session.send(stream, &StreamFrame::Run { terminal: false, tool: tool.as_bytes() });
        for (list, go, bytes) in
            [(ListName::Argv, false, argv), (ListName::Env, false, env), (ListName::Cwd, true, "/tmp\0")]
        {
            self.session.send(stream, &StreamFrame::List { list, go, bytes: bytes.as_bytes() });
        }
        self.exchange();
        stream
    }

    pub(crate) fn send(&mut self, stream: StreamId, frame: &StreamFrame<'_>) {
        self.session.send(stream, frame);
        self.exchange();
    }

    fn open(&mut self) -> StreamId {
        self.last_stream += 1;
        StreamId(self.last_stream)
    }

    // ---- the world ----

    pub(crate) fn handle(&mut self, input: Input<'_>) {
        self.server.handle(self.now, input);
        self.obey();
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((at, _)) = self.server.poll_timeout() {
            if at > until {
                break;
            }
            self.now = at.max(self.now);
            self.server.handle_timeout(self.now);
            self.obey();
            assert!(self.server.poll_timeout().is_none_or(|(next, _)| next > self.now), "a busy loop");
            // A peer that lives answers.
            if self.session.poll_timeout() <= self.now {
                assert!(self.session.handle_timeout(self.now));
            }
            self.exchange();
        }
        self.now = until;
    }

    fn obey(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Dial { conn, .. } => self.dials.push_back(conn),
                Output::Write(_) => {}
                Output::Pause(source) => self.paused.push(source),
                Output::Resume(source) => self.paused.retain(|other| *other != source),
                Output::Close { conn, .. } | Output::Shutdown(conn) => self.closed.push(conn),
                Output::Record { through } => self.record(through),
                Output::Start { job, exec } => self.starts.push_back((job, exec)),
                Output::CloseStdin(job) => self.stdin_closed.push(job),
                Output::Signal { job, signal } => self.signals.push((job, signal)),
                Output::Forget(job) => self.forgotten.push(job),
                Output::Drained => self.drained = true,
                _ => panic!("an output that this host does not know"),
            }
        }
        self.write();
    }

    fn record(&mut self, through: RecordId) {
        if self.disk == Disk::Full {
            return self.server.handle(self.now, Input::RecordFailed { through });
        }
        let bytes = self.server.unsent(Sink::Audit).to_vec();
        self.log.push_str(std::str::from_utf8(&bytes).unwrap());
        self.server.handle(self.now, Input::Sent { sink: Sink::Audit, count: bytes.len() });
        match self.disk {
            Disk::Slow => self.unsaid = Some(through),
            Disk::Good | Disk::Full => self.server.handle(self.now, Input::Recorded { through }),
        }
    }

    pub(crate) fn say_recorded(&mut self) {
        let through = self.unsaid.take().expect("nothing was recorded");
        self.handle(Input::Recorded { through });
        self.exchange();
    }

    /// Takes what is unsent for upstreams and jobs.
    fn write(&mut self) {
        let conns: Vec<ConnId> = self.upstream.keys().copied().collect();
        for conn in conns {
            let bytes = self.server.unsent(Sink::Conn(conn)).to_vec();
            if !bytes.is_empty() {
                self.upstream.get_mut(&conn).unwrap().extend_from_slice(&bytes);
                self.handle(Input::Sent { sink: Sink::Conn(conn), count: bytes.len() });
            }
        }
        let jobs: Vec<JobId> = self.stdin.keys().copied().collect();
        for job in jobs {
            let bytes = self.server.unsent(Sink::Stdin(job)).to_vec();
            if !bytes.is_empty() {
                self.stdin.get_mut(&job).unwrap().extend_from_slice(&bytes);
                self.handle(Input::Sent { sink: Sink::Stdin(job), count: bytes.len() });
            }
        }
    }

    /// The connection that the server dials next stands.
    pub(crate) fn accept_upstream(&mut self) -> ConnId {
        let conn = self.dials.pop_front().expect("no dial");
        self.upstream.insert(conn, Vec::new());
        self.handle(Input::Connected { conn });
        conn
    }

    pub(crate) fn upstream_says(&mut self, conn: ConnId, bytes: &[u8]) {
        self.handle(Input::Bytes { source: Source::Conn(conn), bytes });
        self.exchange();
    }

    /// What the upstream got since the last look.
    pub(crate) fn upstream_got(&mut self, conn: ConnId) -> String {
        String::from_utf8(std::mem::take(self.upstream.get_mut(&conn).unwrap())).unwrap()
    }

    pub(crate) fn started(&mut self) -> (JobId, Box<Exec>) {
        let (job, exec) = self.starts.pop_front().expect("no start");
        self.stdin.insert(job, Vec::new());
        self.handle(Input::Started { job, pid: 4711 });
        self.exchange();
        (job, exec)
    }

    pub(crate) fn records(&self) -> Vec<serde_json::Value> {
        self.log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }
}
