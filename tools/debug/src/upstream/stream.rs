//! Event streams: a thread that writes, and one that notices when the client has gone.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};

use super::http::Reader;
use super::{Shared, spawn};

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-type: text/event-stream\r\nTransfer-encoding: chunked\r\n\r\n";
const KEEP_ALIVE: &[u8] = b"2\r\n:\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// An event to send on the open streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The `id:` field.
    pub id: Option<String>,
    /// The `event:` field.
    pub event: Option<String>,
    /// The data; each line of it becomes a `data:` field.
    pub data: String,
}

impl Event {
    /// An event of signal-cli's: `receive`, with this data.
    #[must_use]
    pub fn receive(data: impl Into<String>) -> Self {
        Self { id: None, event: Some("receive".to_owned()), data: data.into() }
    }

    /// The bytes that stand on the wire for it, without the chunk's framing.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.data.len() + 64);
        let id = self.id.iter().map(|id| ("id:", id.as_str()));
        let event = self.event.iter().map(|event| ("event:", event.as_str()));
        let data = self.data.split('\n').map(|line| ("data:", line));
        for (name, value) in id.chain(event).chain(data) {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(b'\n');
        }
        bytes.push(b'\n');
        bytes
    }
}

/// What a stream's writer is told.
#[derive(Debug, Clone)]
pub(super) enum Order {
    /// Write a chunk, framed already.
    Chunk(Arc<[u8]>),
    /// Close without the last chunk.
    Cut,
    /// Write the last chunk and close.
    End,
}

impl Order {
    /// No bytes make no chunk: an empty one would end the stream.
    pub(super) fn chunk(bytes: &[u8]) -> Self {
        let mut framed = Vec::new();
        if !bytes.is_empty() {
            framed.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
            framed.extend_from_slice(bytes);
            framed.extend_from_slice(b"\r\n");
        }
        Self::Chunk(framed.into())
    }
}

/// An open stream, as the handle sees it.
#[derive(Debug)]
pub(super) struct Stream {
    orders: Sender<Order>,
}

impl Stream {
    /// Whether the stream's writer is still there.
    pub(super) fn send(&self, order: Order) -> bool {
        self.orders.send(order).is_ok()
    }
}

/// Serves the connection as an event stream until either side ends it.
pub(super) fn serve(socket: &TcpStream, reader: &mut Reader<'_>, shared: &Arc<Shared>) -> io::Result<()> {
    static OPENED: AtomicU64 = AtomicU64::new(0);
    let id = OPENED.fetch_add(1, Ordering::Relaxed);
    let mut writer = socket.try_clone()?;
    if !shared.options.hold_headers {
        writer.write_all(HEAD)?;
    }
    let (orders, inbox) = mpsc::channel();
    let for_writer = Arc::clone(shared);
    let writing = spawn("events", move || {
        // An error here is a client that went away: the reading side says so, too.
        let _ = write(&mut writer, &inbox, &for_writer);
        let _ = writer.shutdown(Shutdown::Both);
    })?;
    shared.state().streams.insert(id, Stream { orders: orders.clone() });
    shared.changed.notify_all();
    let drained = reader.drain();
    shared.state().streams.remove(&id);
    shared.changed.notify_all();
    let _ = orders.send(Order::Cut);
    let _ = writing.join();
    drained
}

fn write(socket: &mut TcpStream, inbox: &Receiver<Order>, shared: &Shared) -> io::Result<()> {
    let mut held: &[u8] = if shared.options.hold_headers { HEAD } else { &[] };
    loop {
        let chunk: Arc<[u8]> = match inbox.recv_timeout(shared.options.keep_alive) {
            Ok(Order::Chunk(chunk)) => chunk,
            Ok(Order::Cut) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Order::End) => return socket.write_all(&[held, LAST_CHUNK].concat()),
            Err(RecvTimeoutError::Timeout) => KEEP_ALIVE.into(),
        };
        if held.is_empty() {
            socket.write_all(&chunk)?;
        } else {
            socket.write_all(&[held, &chunk].concat())?;
            held = &[];
        }
    }
}
