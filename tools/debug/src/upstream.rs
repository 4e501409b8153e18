//! A stand-in for signal-cli's HTTP daemon, its error cases and its leniency included.
//!
//! It answers as signal-cli does (`POST /api/v1/rpc`, `GET /api/v1/events`, `GET /api/v1/check`), keeps every request
//! for assertions, and misbehaves on demand ([`Fault`]). A thread a connection: it serves the demo and the tests, not
//! benchmarks.

mod http;
mod rpc;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

use self::http::{Head, Respond};
pub use self::stream::Event;

/// Requests kept for [`Upstream::requests`]; the oldest give way, so that a demo left running does not grow.
const REQUESTS_KEPT: usize = 10_000;

/// How the stand-in is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The accounts that exist. Any other gets 400 on the events URL, and an error object in a call.
    pub accounts: Vec<String>,
    /// The pause between two keep-alive comments on an event stream.
    pub keep_alive: Duration,
    /// Hold a stream's response head back until the first event or comment, as versions before 0.14.4 do.
    pub hold_headers: bool,
    /// Refuse a `Host` that is not this listener's own.
    pub pin_host: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            accounts: vec!["+15550100001".to_owned()],
            keep_alive: Duration::from_secs(15),
            hold_headers: false,
            pin_host: true,
        }
    }
}

/// A way to misbehave, instead of or on the way to the right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Send the answer's body chunked, a few bytes to a chunk. (No misbehaviour, but rarely tried.)
    Chunked,
    /// Read the request, then close without a byte.
    Close,
    /// Send the head and half of the body, then close.
    CutBody,
    /// Wait this long, then answer.
    Delay(Duration),
    /// Answer rightly, with this many bytes of padding in the result of each call.
    Large(usize),
    /// Send these bytes in place of an answer, then close.
    Raw(Vec<u8>),
    /// Read the request and never answer; the connection stays open.
    Stall,
    /// Send the head and half of the body, and then nothing; the connection stays open.
    StallBody,
    /// Answer with this status, and with this body as `application/json`.
    Status(u16, String),
    /// Send the answer one byte at a time, with this pause after each.
    Trickle(Duration),
}

/// A request as it was received.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which connection carried it, counted from 0.
    pub connection: u64,
    /// When its last byte had been read.
    pub received: Instant,
    /// The method, as sent.
    pub method: String,
    /// The target, as sent, with its query.
    pub target: String,
    /// The headers in their order, names as sent.
    pub headers: Vec<(String, String)>,
    /// The body, its framing removed.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of this name, whatever its case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The target without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(self.target.as_str(), |(path, _)| path)
    }

    /// The body as JSON, `None` when it is not.
    #[must_use]
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// A running stand-in. It stops, and closes every connection, when it is dropped.
#[derive(Debug)]
pub struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the connections' threads share with the handle.
#[derive(Debug)]
struct Shared {
    options: Options,
    addr: SocketAddr,
    is_stopping: AtomicBool,
    connections_opened: AtomicU64,
    state: Mutex<State>,
    /// Told whenever a request, a stream or a connection comes or goes.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<u64, TcpStream>,
    requests: VecDeque<Request>,
    requests_seen: usize,
    streams: BTreeMap<u64, stream::Stream>,
    fault: Option<Fault>,
    faults_once: VecDeque<Fault>,
    results: BTreeMap<String, Value>,
    delays: BTreeMap<String, Duration>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Waits until `is_reached` holds of the state; whether it did before `timeout` passed.
    fn wait(&self, timeout: Duration, mut is_reached: impl FnMut(&State) -> bool) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), timeout, |state| !is_reached(state))
            .unwrap_or_else(PoisonError::into_inner);
        is_reached(&state)
    }
}

impl Upstream {
    /// Listens, and serves from threads of its own.
    ///
    /// # Errors
    /// When the address cannot be bound or no thread can be made.
    pub fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen)?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            options,
            addr,
            is_stopping: AtomicBool::new(false),
            connections_opened: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let for_acceptor = Arc::clone(&shared);
        let acceptor = spawn("accept", move || accept(&listener, &for_acceptor))?;
        Ok(Self { addr, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and the address, as a policy's `upstream` wants it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every request received so far, oldest first (the last 10,000).
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.iter().cloned().collect()
    }

    /// The requests received whose path is this one, oldest first.
    #[must_use]
    pub fn requests_to(&self, path: &str) -> Vec<Request> {
        self.shared.state().requests.iter().filter(|request| request.path() == path).cloned().collect()
    }

    /// Forgets the requests received so far.
    pub fn clear_requests(&self) {
        let mut state = self.shared.state();
        state.requests.clear();
        state.requests_seen = 0;
    }

    /// Waits until at least `count` requests have been received (since [`Self::clear_requests`]); whether they were.
    #[must_use]
    pub fn wait_for_requests(&self, count: usize, timeout: Duration) -> bool {
        self.shared.wait(timeout, |state| state.requests_seen >= count)
    }

    /// Connections open now.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    /// Event streams open now.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.shared.state().streams.len()
    }

    /// Waits until exactly `count` event streams are open; whether they were.
    #[must_use]
    pub fn wait_for_streams(&self, count: usize, timeout: Duration) -> bool {
        self.shared.wait(timeout, |state| state.streams.len() == count)
    }

    /// Sends an event to every open stream; to how many.
    pub fn emit(&self, event: &Event) -> usize {
        self.to_streams(&stream::Order::chunk(&event.encode()))
    }

    /// Sends these bytes, as they are and as one chunk, to every open stream: half an event, CR line ends, anything.
    pub fn emit_bytes(&self, bytes: &[u8]) -> usize {
        self.to_streams(&stream::Order::chunk(bytes))
    }

    /// Sends the first `bytes` bytes of an event to every open stream, then cuts the connections.
    pub fn emit_cut(&self, event: &Event, bytes: usize) -> usize {
        let encoded = event.encode();
        self.emit_bytes(encoded.get(..bytes).unwrap_or(&encoded));
        self.cut_streams()
    }

    /// Ends every open stream properly, with the last chunk.
    pub fn end_streams(&self) -> usize {
        self.to_streams(&stream::Order::End)
    }

    /// Closes every open stream's connection without the last chunk.
    pub fn cut_streams(&self) -> usize {
        self.to_streams(&stream::Order::Cut)
    }

    /// Closes every connection at once, whatever it is doing.
    pub fn cut_connections(&self) {
        for socket in self.shared.state().connections.values() {
            // A socket that its peer has reset needs no shutting down.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Misbehaves like this on every request from here on; `None` ends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.shared.state().fault = fault;
    }

    /// Misbehaves like this on one request. Several calls make a queue.
    pub fn fault_once(&self, fault: Fault) {
        self.shared.state().faults_once.push_back(fault);
    }

    /// Answers calls of `method` with this result.
    pub fn set_result(&self, method: &str, result: Value) {
        self.shared.state().results.insert(method.to_owned(), result);
    }

    /// Lets each call of `method` take this long: in a batch, its answer then comes after the quicker ones.
    pub fn set_delay(&self, method: &str, delay: Duration) {
        self.shared.state().delays.insert(method.to_owned(), delay);
    }

    fn to_streams(&self, order: &stream::Order) -> usize {
        let state = self.shared.state();
        state.streams.values().filter(|stream| stream.send(order.clone())).count()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        // The acceptor sits in accept(2): a connection wakes it.
        let _ = TcpStream::connect(self.addr);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.cut_connections();
        // Their threads hold their sockets: only when they are gone may the port be bound again with nothing left over.
        self.shared.wait(Duration::from_secs(2), |state| state.connections.is_empty());
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(256 * 1024).spawn(body)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for socket in listener.incoming() {
        if shared.is_stopping() {
            return;
        }
        let Ok(socket) = socket else {
            // Out of descriptors, most likely: some will come back.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        let id = shared.connections_opened.fetch_add(1, Ordering::Relaxed);
        let Ok(kept) = socket.try_clone() else { continue };
        shared.state().connections.insert(id, kept);
        let for_connection = Arc::clone(shared);
        let spawned = spawn("connection", move || {
            // An error here is a peer that went away.
            let _ = serve(&socket, id, &for_connection);
            let _ = socket.shutdown(Shutdown::Both);
            for_connection.state().connections.remove(&id);
            for_connection.changed.notify_all();
        });
        if spawned.is_err() {
            shared.state().connections.remove(&id);
        }
    }
}

/// One connection: requests one after the other, until it closes or becomes an event stream.
fn serve(socket: &TcpStream, connection: u64, shared: &Arc<Shared>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = http::Reader::new(socket);
    while let Some(head) = reader.head()? {
        let body = reader.body(&head)?;
        let keeps_alive = head.keeps_alive();
        let fault = note(shared, connection, &head, body.clone());
        match &fault {
            Some(Fault::Close) => return Ok(()),
            Some(Fault::Raw(bytes)) => return (&mut &*socket).write_all(bytes),
            Some(Fault::Stall) => return reader.drain(),
            Some(Fault::Delay(delay)) => thread::sleep(*delay),
            Some(
                Fault::Chunked
                | Fault::CutBody
                | Fault::Large(_)
                | Fault::StallBody
                | Fault::Status(..)
                | Fault::Trickle(_),
            )
            | None => {}
        }
        let answer = match route(&head, &body, shared, fault.as_ref()) {
            Routed::Answer(answer) => answer,
            Routed::Stream => return stream::serve(socket, &mut reader, shared),
        };
        let stays_open = http::write(socket, &answer, fault.as_ref())?;
        if fault == Some(Fault::StallBody) {
            return reader.drain();
        }
        if !keeps_alive || !stays_open {
            return Ok(());
        }
    }
    Ok(())
}

/// Keeps the request, and says which fault its answer is to have.
fn note(shared: &Shared, connection: u64, head: &Head, body: Vec<u8>) -> Option<Fault> {
    let mut state = shared.state();
    if state.requests.len() == REQUESTS_KEPT {
        state.requests.pop_front();
    }
    state.requests_seen += 1;
    state.requests.push_back(Request {
        connection,
        received: Instant::now(),
        method: head.method.clone(),
        target: head.target.clone(),
        headers: head.headers.clone(),
        body,
    });
    let fault = state.faults_once.pop_front().or_else(|| state.fault.clone());
    drop(state);
    shared.changed.notify_all();
    fault
}

enum Routed {
    Answer(Respond),
    Stream,
}

fn route(head: &Head, body: &[u8], shared: &Shared, fault: Option<&Fault>) -> Routed {
    let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
    if let Some(Fault::Status(status, body)) = fault {
        return Routed::Answer(Respond::json(*status, body.clone()));
    }
    if shared.options.pin_host && !is_own_host(head.header("host"), shared.addr) {
        return Routed::Answer(Respond::empty(421));
    }
    let expected = match path {
        "/api/v1/rpc" => "POST",
        "/api/v1/check" | "/api/v1/events" => "GET",
        _ => return Routed::Answer(Respond::empty(404)),
    };
    if head.method != expected {
        return Routed::Answer(Respond::empty(405));
    }
    match path {
        "/api/v1/check" => Routed::Answer(Respond::empty(200)),
        "/api/v1/events" if knows_account(query, shared) => Routed::Stream,
        "/api/v1/events" => Routed::Answer(Respond::empty(400)),
        _ if head.header("content-type").is_some_and(|kind| kind.starts_with("application/json")) => {
            let padding = if let Some(Fault::Large(bytes)) = fault { *bytes } else { 0 };
            let answer = rpc::answer(body, shared, padding);
            Routed::Answer(answer.map_or_else(|| Respond::empty(201), |json| Respond::json(200, json)))
        }
        _ => Routed::Answer(Respond::empty(415)),
    }
}

fn is_own_host(host: Option<&str>, addr: SocketAddr) -> bool {
    host.is_some_and(|host| host == addr.to_string() || host == format!("localhost:{}", addr.port()))
}

/// Without an account a stream carries those of all of them.
fn knows_account(query: &str, shared: &Shared) -> bool {
    let account = query.split('&').find_map(|pair| pair.strip_prefix("account="));
    account.is_none_or(|account| shared.options.accounts.contains(&http::percent_decoded(account)))
}

#[cfg(test)]
mod tests;
