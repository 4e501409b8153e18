//! The agent against a scripted server, made of a session and frames, and scripted clients. No socket anywhere.
#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not expect, it refuses")]

mod chaos;
mod events;
mod http;
mod outage;
mod shims;

use super::*;
use crate::limits::FRAME_BYTES_MAX;
use crate::link::Session;
use crate::machine::{DialError, Loss};
use crate::time::{Duration, Wall};
use crate::wire::frame::{Channel, Fault, FrameReader, Items, ResponseBody, push_item};
use crate::wire::message::{Nonce, VERSION, Welcome};

/// Two HTTP listeners and one for shims.
const HTTP: ListenerId = ListenerId(0);
const SHIM: ListenerId = ListenerId(2);

/// What the server saw.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Credit(u64, u32),
    Data(u64, Vec<u8>, bool),
    List(u64, Vec<u8>, bool),
    Request(u64, Vec<String>, bool),
    Reset(u64, Fault),
    Run(u64, String),
    Signal(u64, u8),
    Window(u64, u16, u16),
}

/// A client as the driver has it.
#[derive(Debug)]
struct Client {
    received: Vec<u8>,
    reads: bool,
    /// The most that it takes at once.
    gulp: usize,
    is_paused: bool,
    was_shut_down: bool,
    closed: Option<Closing>,
}

#[derive(Debug)]
struct Rig {
    now: Instant,
    agent: Agent,
    clients: BTreeMap<ConnId, Client>,
    next_client: u64,
    /// The link's connection as the driver has it, and whether the server has answered its dial.
    link: Option<ConnId>,
    /// Whether the server's side of the link takes bytes.
    server_reads: bool,
    server: Option<Session>,
    reader: FrameReader,
    seen: Vec<Seen>,
    dials: Vec<Instant>,
    drained: bool,
}

fn config() -> AgentConfig {
    let http = |tool: &str, port| AgentListener::Http { tool: tool.into(), port, addr: "10.1.2.3".into() };
    AgentConfig {
        server: Address::Tcp { host: "server".into(), port: 8765 },
        listeners: vec![http("signal-cli", 8080), http("github", 8081), AgentListener::Shim],
        allowed_hosts: vec!["vm.example".into()],
        own_uid: 1000,
        http_conns_max: 8,
        seed: [7; 32],
        software: "test".into(),
    }
}

impl Rig {
    /// An agent that has dialled, and no server.
    fn down() -> Self {
        let now = Instant::from_micros(1_000_000);
        let mut rig = Self {
            now,
            agent: Agent::new(now, config()),
            clients: BTreeMap::new(),
            next_client: 0,
            link: None,
            server_reads: true,
            server: None,
            reader: FrameReader::new(),
            seen: Vec::new(),
            dials: Vec::new(),
            drained: false,
        };
        let wall = Wall::from_unix_micros(784_111_777_000_000);
        rig.agent.handle(now, Input::Wall { wall });
        rig.pump();
        rig
    }

    /// An agent with its link.
    fn up() -> Self {
        let mut rig = Self::down();
        rig.server_comes();
        rig
    }

    fn handle(&mut self, input: Input<'_>) {
        self.agent.handle(self.now, input);
        self.pump();
    }

    /// Answers the dial that is under way and welcomes the agent.
    fn server_comes(&mut self) {
        self.server_reads = true;
        let conn = self.link.expect("no dial is under way");
        self.handle(Input::Connected { conn });
        self.server_says(&Message::Nonce(Nonce { nonce: "00ff".into(), version: VERSION }));
        let hello = self.agent.unsent(Sink::Conn(conn)).to_vec();
        assert!(hello.is_empty(), "a hello that was not announced");
        self.server = Some(Session::new(self.now));
        self.server_says(&Message::Welcome(Welcome { session: "aa".into(), resumed: false, received: 0 }));
        assert!(self.agent.hub.uplink.session_ref().is_some());
    }

    fn server_says(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        self.link_bytes(&bytes);
    }

    fn link_bytes(&mut self, bytes: &[u8]) {
        let conn = self.link.expect("no link");
        self.handle(Input::Bytes { source: Source::Conn(conn), bytes });
    }

    fn server_goes(&mut self) {
        let conn = self.link.expect("no link");
        self.server = None;
        self.reader = FrameReader::new();
        self.link = None;
        self.handle(Input::Lost { conn, loss: Loss::Reset });
    }

    fn refuse_dial(&mut self) {
        let conn = self.link.take().expect("no dial is under way");
        self.handle(Input::DialFailed { conn, error: DialError::Refused });
    }

    // ---- time ----

    /// Lets time pass, waking the agent when it wants to be.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..10_000 {
            let agent = self.agent.poll_timeout().map(|(at, _)| at);
            let server = self.server.as_ref().map(Session::poll_timeout);
            let Some(at) = agent.into_iter().chain(server).min().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            if let Some(server) = &mut self.server
                && server.poll_timeout() <= self.now
                && !server.handle_timeout(self.now)
            {
                assert!(!self.server_reads, "the agent is silent");
                self.server_goes();
            }
            if self.agent.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                self.agent.handle_timeout(self.now);
            }
            self.pump();
        }
        panic!("the agent never rests: {:?}", self.agent.poll_timeout());
    }

    fn pass_ms(&mut self, millis: u64) {
        self.pass(Duration::from_millis(millis));
    }

    // ---- what a driver does ----

    fn pump(&mut self) {
        for _ in 0..10_000 {
            while let Some(output) = self.agent.poll_output() {
                self.carry_out(output);
            }
            if !self.exchange() {
                return;
            }
        }
        panic!("agent and driver never rest");
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { conn, to: _ } => {
                assert!(self.link.replace(conn).is_none(), "a second dial");
                self.dials.push(self.now);
            }
            Output::Write(Sink::Conn(_)) => {}
            Output::Pause(Source::Conn(conn)) => self.client(conn).pause(true),
            Output::Resume(Source::Conn(conn)) => self.client(conn).pause(false),
            Output::Shutdown(conn) => {
                assert!(self.agent.unsent(Sink::Conn(conn)).is_empty());
                self.client(conn).was_shut_down = true;
            }
            Output::Close { conn, how } if self.link == Some(conn) => {
                assert_eq!(how, Closing::Orderly);
                self.link = None;
                self.server = None;
                self.reader = FrameReader::new();
            }
            Output::Close { conn, how } => {
                assert!(self.client(conn).closed.replace(how).is_none(), "{conn} closed twice");
            }
            Output::Drained => self.drained = true,
            other => panic!("an agent does not {other:?}"),
        }
    }

    fn client(&mut self, conn: ConnId) -> &mut Client {
        self.clients.get_mut(&conn).expect("no such client")
    }

    /// Moves bytes once; false when none moved.
    fn exchange(&mut self) -> bool {
        let mut moved = false;
        let reading = self.clients.iter().filter(|(_, client)| client.reads && client.closed.is_none());
        for conn in reading.map(|(conn, _)| *conn).collect::<Vec<_>>() {
            let unsent = self.agent.unsent(Sink::Conn(conn));
            let bytes = unsent[..unsent.len().min(self.clients[&conn].gulp)].to_vec();
            if !bytes.is_empty() {
                moved = true;
                self.client(conn).received.extend_from_slice(&bytes);
                self.agent.handle(self.now, Input::Sent { sink: Sink::Conn(conn), count: bytes.len() });
            }
        }
        moved | self.exchange_on_link()
    }

    fn exchange_on_link(&mut self) -> bool {
        let Some(conn) = self.link else { return false };
        let bytes = self.agent.unsent(Sink::Conn(conn)).to_vec();
        let mut moved = false;
        if self.server_reads && !bytes.is_empty() {
            moved = true;
            self.agent.handle(self.now, Input::Sent { sink: Sink::Conn(conn), count: bytes.len() });
            self.server_reads_bytes(&bytes);
        }
        let answer = self.server.as_ref().map(|server| server.unsent().to_vec()).unwrap_or_default();
        if !answer.is_empty() {
            moved = true;
            self.server().sent(answer.len());
            self.agent.handle(self.now, Input::Bytes { source: Source::Conn(conn), bytes: &answer });
        }
        moved
    }

    fn server_reads_bytes(&mut self, mut bytes: &[u8]) {
        let Some(server) = &mut self.server else { return };
        server.heard(self.now, bytes.len());
        while let Some(frame) = self.reader.next(&mut bytes, FRAME_BYTES_MAX).expect("frames") {
            let Event::Stream(StreamId(stream), frame) = server.handle(self.now, frame).expect("sense")
            else {
                continue;
            };
            let id = StreamId(stream);
            let seen = match frame {
                StreamFrame::Request { body, items } => {
                    server.open(id);
                    Seen::Request(stream, items.map(|i| String::from_utf8_lossy(i).into()).collect(), body)
                }
                StreamFrame::Run { tool, .. } => {
                    server.accept_run(id);
                    Seen::Run(stream, String::from_utf8_lossy(tool).into())
                }
                StreamFrame::Data { bytes, end, .. } => {
                    server.consumed(id, bytes.len());
                    Seen::Data(stream, bytes.to_vec(), end)
                }
                StreamFrame::Reset { fault, .. } => {
                    server.close(id);
                    Seen::Reset(stream, fault)
                }
                StreamFrame::List { bytes, go, .. } => Seen::List(stream, bytes.to_vec(), go),
                StreamFrame::Signal { number } => Seen::Signal(stream, number),
                StreamFrame::Window { rows, columns } => Seen::Window(stream, rows, columns),
                StreamFrame::Credit { bytes } => Seen::Credit(stream, bytes),
                other => panic!("an agent does not send {other:?}"),
            };
            self.seen.push(seen);
        }
    }

    // ---- the server's script ----

    fn server(&mut self) -> &mut Session {
        self.server.as_mut().expect("no server")
    }

    fn take_seen(&mut self) -> Vec<Seen> {
        core::mem::take(&mut self.seen)
    }

    fn respond(&mut self, stream: u64, status: u16, body: ResponseBody, fields: &[(&str, &str)]) {
        let mut items = Vec::new();
        for (name, value) in fields {
            push_item(&mut items, name.as_bytes());
            push_item(&mut items, value.as_bytes());
        }
        let frame = StreamFrame::Response { status, body, items: Items(&items) };
        self.server().send(StreamId(stream), &frame);
        self.pump();
    }

    fn data(&mut self, stream: u64, bytes: &[u8], end: bool) {
        self.server().send_data(StreamId(stream), Channel::Main, bytes, end, false);
        if end {
            self.server_ends(stream);
        }
        self.pump();
    }

    /// What a server does when a response was sent to its end.
    fn server_ends(&mut self, stream: u64) {
        if !self.server().is_clogged(StreamId(stream)) {
            self.server().close(StreamId(stream));
        }
    }

    fn reset(&mut self, stream: u64, fault: Fault, text: &str) {
        self.server().send_now(StreamId(stream), &StreamFrame::Reset { fault, text: text.as_bytes() });
        self.server().close(StreamId(stream));
        self.pump();
    }

    /// Answers a call the way the server does.
    fn answer(&mut self, stream: u64, body: &str) {
        let length = body.len().to_string();
        let fields = [("Content-Type", "application/json"), ("Content-Length", &length)];
        self.respond(stream, 200, ResponseBody::Whole, &fields);
        self.data(stream, body.as_bytes(), true);
    }

    // ---- the clients' script ----

    fn connect(&mut self, listener: ListenerId) -> ConnId {
        self.next_client += 1;
        let conn = ConnId::accepted(self.next_client);
        let client = Client {
            received: Vec::new(),
            reads: true,
            gulp: usize::MAX,
            is_paused: false,
            was_shut_down: false,
            closed: None,
        };
        self.clients.insert(conn, client);
        let peer = PeerAddr::Unix { uid: 1000, gid: 1000, pid: 1 };
        self.handle(Input::Accepted { conn, listener, peer });
        conn
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        assert!(!self.client(conn).is_paused, "{conn} is paused");
        self.handle(Input::Bytes { source: Source::Conn(conn), bytes });
    }

    fn eof(&mut self, conn: ConnId) {
        self.handle(Input::Eof { source: Source::Conn(conn) });
    }

    /// What a client has received since it was last asked.
    fn received(&mut self, conn: ConnId) -> String {
        String::from_utf8(core::mem::take(&mut self.client(conn).received)).expect("text")
    }

    fn closed(&mut self, conn: ConnId) -> Option<Closing> {
        self.client(conn).closed
    }

    /// Sends a request on a connection of its own and gives what comes back.
    fn ask(&mut self, request: &str) -> (ConnId, String) {
        let conn = self.connect(HTTP);
        self.send(conn, request.as_bytes());
        let answer = self.received(conn);
        (conn, answer)
    }
}

impl Client {
    fn pause(&mut self, is_paused: bool) {
        assert!(self.is_paused != is_paused, "paused or resumed twice");
        self.is_paused = is_paused;
    }
}

/// A call as OpenClaw sends it.
fn call(id: &str) -> String {
    let body = format!(r#"{{"jsonrpc":"2.0","method":"send","id":{id}}}"#);
    format!(
        "POST /api/v1/rpc HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

const EVENTS: &str =
    "GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept: text/event-stream\r\n\r\n";

/// Status, head and body of the first response in `bytes`, whose length must be told.
fn response(text: &str) -> (u16, &str, &str) {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
    (head[9..12].parse().expect("a status"), head, body)
}
