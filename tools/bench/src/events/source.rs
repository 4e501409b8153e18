//! An upstream of event streams. It answers calls, too, for want of nginx.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use super::Clock;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST_CONNECTION: usize = 2;

const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const CALL_RESULT: &str = r#"{"jsonrpc":"2.0","result":{"timestamp":1700000000000,"results":[]},"id":"1"}"#;

/// What a source is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send an event to every stream.
    All,
    /// Send events on every stream as fast as it takes them.
    Flood(Writes),
    /// Send an event on one stream: the next in turn.
    One,
    /// Send no more of a flood.
    Quiet,
    /// End.
    Stop,
}

/// How many events of a flood are written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    /// Many: what then limits is not the source.
    Blocks,
    /// One, as signal-cli does.
    Events,
}

/// Events in a block of a flood.
const BLOCK_EVENTS: usize = 512;
/// Writes of a flood in one go; then it is looked at what else there is to do.
const WRITES_AT_ONCE: usize = 256;

/// A running source.
#[derive(Debug)]
pub(crate) struct Source {
    addr: SocketAddr,
    orders: Sender<Order>,
    waker: Waker,
    streams: Arc<AtomicUsize>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Source {
    /// Starts one on a free port; a thread of its own serves it.
    pub(crate) fn start(clock: Clock) -> io::Result<Self> {
        let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = listener.local_addr()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (orders, inbox) = mpsc::channel();
        let streams = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&streams);
        let serving = Serving {
            clock,
            poll,
            listener,
            inbox,
            connections: BTreeMap::new(),
            next_token: FIRST_CONNECTION,
            streams: counter,
            turn: 0,
            flood: None,
        };
        let thread = thread::Builder::new().name("source".to_owned()).spawn(move || serving.serve())?;
        Ok(Self { addr, orders, waker, streams, thread: Some(thread) })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many streams are open.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub(crate) fn order(&self, order: Order) -> io::Result<()> {
        self.orders.send(order).map_err(|_| io::Error::other("the event source has ended"))?;
        self.waker.wake()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // It has ended already when it cannot be told.
        let _ = self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    socket: TcpStream,
    /// Of a request that is not whole yet.
    received: Vec<u8>,
    /// What the socket has not taken yet.
    unsent: Vec<u8>,
    is_stream: bool,
    /// How far into the block of a flood it is.
    flooded: usize,
    /// Whether the socket took less than it was given, and has not become writable since.
    is_full: bool,
}

struct Serving {
    clock: Clock,
    poll: Poll,
    listener: TcpListener,
    inbox: Receiver<Order>,
    connections: BTreeMap<usize, Connection>,
    next_token: usize,
    streams: Arc<AtomicUsize>,
    /// Behind which connection the next [`Order::One`] goes.
    turn: usize,
    flood: Option<Flood>,
}

/// Events that are sent again and again.
struct Flood {
    block: Vec<u8>,
    /// How much is written at once.
    write_bytes: usize,
}

impl Serving {
    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let is_flooding =
                self.flood.is_some() && self.connections.values().any(|connection| connection.is_flooded());
            match self.poll.poll(&mut events, is_flooding.then_some(Duration::ZERO)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    WAKER => {
                        while let Ok(order) = self.inbox.try_recv() {
                            if order == Order::Stop {
                                return Ok(());
                            }
                            self.obey(order);
                        }
                    }
                    Token(token) => self.progress(token),
                }
            }
            self.pour();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nodelay(true)?;
            let token = self.next_token;
            self.next_token += 1;
            self.poll.registry().register(
                &mut socket,
                Token(token),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            let connection = Connection {
                socket,
                received: Vec::new(),
                unsent: Vec::new(),
                is_stream: false,
                flooded: 0,
                is_full: false,
            };
            self.connections.insert(token, connection);
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::All => {
                let tokens: Vec<usize> = self.connections.keys().copied().collect();
                tokens.into_iter().for_each(|token| self.emit(token));
            }
            Order::One => {
                let is_stream = |(_, connection): &(&usize, &Connection)| connection.is_stream;
                let behind = self.connections.range(self.turn + 1..).find(is_stream);
                let next =
                    behind.or_else(|| self.connections.iter().find(is_stream)).map(|(token, _)| *token);
                if let Some(token) = next {
                    self.turn = token;
                    self.emit(token);
                }
            }
            Order::Flood(writes) => {
                let block: Vec<u8> = (0..BLOCK_EVENTS).flat_map(|_| event(self.clock)).collect();
                let write_bytes = match writes {
                    Writes::Blocks => block.len(),
                    Writes::Events => block.len() / BLOCK_EVENTS,
                };
                self.flood = Some(Flood { block, write_bytes });
            }
            Order::Quiet => self.flood = None,
            Order::Stop => {}
        }
    }

    fn emit(&mut self, token: usize) {
        let clock = self.clock;
        self.with(token, |connection| {
            if connection.is_stream {
                connection.unsent.extend_from_slice(&event(clock));
                connection.send()?;
            }
            Ok(())
        });
    }

    fn progress(&mut self, token: usize) {
        self.with(token, |connection| {
            connection.is_full = false;
            connection.receive()?;
            connection.send()
        });
    }

    /// Goes on with a flood.
    fn pour(&mut self) {
        let Some(flood) = self.flood.take() else { return };
        let flooded = self.connections.iter().filter(|(_, connection)| connection.is_flooded());
        let tokens: Vec<usize> = flooded.map(|(token, _)| *token).collect();
        for token in tokens {
            self.with(token, |connection| connection.pour(&flood));
        }
        self.flood = Some(flood);
    }

    /// Does something with a connection, and forgets it when that fails.
    fn with(&mut self, token: usize, work: impl FnOnce(&mut Connection) -> io::Result<()>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let was_stream = connection.is_stream;
        let is_gone = work(connection).is_err();
        let is_stream = connection.is_stream && !is_gone;
        if is_gone {
            self.connections.remove(&token);
        }
        match (was_stream, is_stream) {
            (false, true) => self.streams.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.streams.fetch_sub(1, Ordering::Relaxed),
            (true, true) | (false, false) => 0,
        };
    }
}

impl Connection {
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.received.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while let Some(length) = self.request_length() {
            let request: Vec<u8> = self.received.drain(..length).collect();
            if request.starts_with(b"GET /api/v1/events") {
                self.is_stream = true;
                self.unsent.extend_from_slice(STREAM_HEAD);
            } else {
                let body = if request.starts_with(b"POST ") { CALL_RESULT } else { "" };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
                );
                self.unsent.extend_from_slice(head.as_bytes());
                self.unsent.extend_from_slice(body.as_bytes());
            }
        }
        Ok(())
    }

    /// How many bytes the first request received takes, once it is whole.
    fn request_length(&self) -> Option<usize> {
        let head = self.received.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
        let text = String::from_utf8_lossy(self.received.get(..head)?).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        let whole = head + length.unwrap_or(0);
        (self.received.len() >= whole).then_some(whole)
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_flooded(&self) -> bool {
        self.is_stream && !self.is_full && self.unsent.is_empty()
    }

    /// Sends of a block, again and again, until the socket takes no more or others have waited long enough.
    fn pour(&mut self, flood: &Flood) -> io::Result<()> {
        for _ in 0..WRITES_AT_ONCE {
            let end =
                flood.block.len().min(self.flooded - self.flooded % flood.write_bytes + flood.write_bytes);
            match self.socket.write(flood.block.get(self.flooded..end).unwrap_or_default()) {
                Ok(written) => self.flooded = (self.flooded + written) % flood.block.len(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_full = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// An event as signal-cli sends one, as a chunk: the size of a short message's.
fn event(clock: Clock) -> Vec<u8> {
    let event = format!(
        "event:receive\ndata:{{\"t\":{:>16},\"envelope\":{{\"sourceNumber\":\"+15550100002\",\"message\":\"hello\"}}}}\n\n",
        clock.now()
    );
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}
