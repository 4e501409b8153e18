//! Clients of event streams: many connections, one thread.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::Clock;
use crate::chunks::Chunks;
use crate::process::wait_until;

/// Open event streams, read by a thread of their own. They close when this is dropped.
#[derive(Debug)]
pub(crate) struct Clients {
    shared: Arc<Shared>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_stopping: AtomicBool,
    /// Streams whose response has begun.
    open: AtomicUsize,
    ended: AtomicUsize,
    events: AtomicU64,
    latencies: Mutex<Vec<u64>>,
}

/// What of the events is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Their number.
    Count,
    /// Their number, and the time in each.
    Time,
}

impl Clients {
    /// Opens `count` streams, and waits until all responses have begun.
    pub(crate) fn open(addr: SocketAddr, count: usize, look: Look, clock: Clock) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token(count))?;
        let mut streams = Vec::with_capacity(count);
        let request =
            format!("GET /api/v1/events HTTP/1.1\r\nHost: {addr}\r\nAccept: text/event-stream\r\n\r\n");
        for index in 0..count {
            let mut socket = std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
            socket.write_all(request.as_bytes())?;
            socket.set_nonblocking(true)?;
            let mut socket = TcpStream::from_std(socket);
            poll.registry().register(&mut socket, Token(index), Interest::READABLE)?;
            streams.push(Stream { socket, chunks: Chunks::new(), text: Vec::new(), is_open: false });
        }
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("clients".to_owned())
            .spawn(move || read_all(poll, streams, look, clock, &for_thread))?;
        let clients = Self { shared, waker, thread: Some(thread) };
        let is_open = || clients.shared.open.load(Ordering::Relaxed) == count;
        if wait_until(Duration::from_secs(30), is_open) {
            return Ok(clients);
        }
        let open = clients.shared.open.load(Ordering::Relaxed);
        Err(io::Error::other(format!("only {open} of {count} event streams opened")))
    }

    /// Events received on all streams together.
    pub(crate) fn events(&self) -> u64 {
        self.shared.events.load(Ordering::Relaxed)
    }

    /// Waits until so many events have been received.
    pub(crate) fn wait_for(&self, events: u64, timeout: Duration) -> io::Result<()> {
        if wait_until(timeout, || self.events() >= events) {
            return Ok(());
        }
        let ended = self.shared.ended.load(Ordering::Relaxed);
        Err(io::Error::other(format!("{} of {events} events received; {ended} streams ended", self.events())))
    }

    /// The latencies of the events received since this was last asked, in nanoseconds.
    pub(crate) fn take_latencies(&self) -> Vec<u64> {
        std::mem::take(&mut *self.shared.latencies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        // It has ended already when it cannot be woken.
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Stream {
    socket: TcpStream,
    chunks: Chunks,
    /// Of an event that is not whole yet.
    text: Vec<u8>,
    is_open: bool,
}

fn read_all(mut poll: Poll, mut streams: Vec<Stream>, look: Look, clock: Clock, shared: &Shared) {
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 256 * 1024];
    while !shared.is_stopping.load(Ordering::Relaxed) {
        if poll.poll(&mut events, None).is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
            return;
        }
        for event in &events {
            let Some(stream) = streams.get_mut(event.token().0) else { continue };
            if stream.read(&mut buffer, look, clock, shared).is_err() {
                shared.ended.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8], look: Look, clock: Clock, shared: &Shared) -> io::Result<()> {
        loop {
            let read = match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if !self.is_open {
                self.is_open = true;
                shared.open.fetch_add(1, Ordering::Relaxed);
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            match look {
                Look::Count => self.count(bytes, shared),
                Look::Time => self.time(bytes, clock, shared),
            }
            if self.chunks.is_done() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn count(&mut self, bytes: &[u8], shared: &Shared) {
        let text = &mut self.text;
        let mut events = 0;
        self.chunks.take(bytes, |data| {
            // Only whether the last byte was a line end needs to be known of what came before.
            let before = usize::from(text.last() == Some(&b'\n') && data.first() == Some(&b'\n'));
            let within = data.windows(2).filter(|pair| *pair == b"\n\n").count();
            events += u64::try_from(before + within).unwrap_or_default();
            text.clear();
            text.extend(data.last());
        });
        shared.events.fetch_add(events, Ordering::Relaxed);
    }

    fn time(&mut self, bytes: &[u8], clock: Clock, shared: &Shared) {
        let now = clock.now();
        let text = &mut self.text;
        self.chunks.take(bytes, |data| text.extend_from_slice(data));
        let mut taken = 0;
        let mut latencies = Vec::new();
        let mut events = 0;
        while let Some(length) =
            text.get(taken..).and_then(|rest| rest.windows(2).position(|end| end == b"\n\n"))
        {
            let event = text.get(taken..taken + length).unwrap_or_default();
            // Comments and such are no events.
            if let Some(sent) = time_in(event) {
                latencies.push(now.saturating_sub(sent));
                events += 1;
            }
            taken += length + 2;
        }
        text.drain(..taken);
        shared.latencies.lock().unwrap_or_else(PoisonError::into_inner).append(&mut latencies);
        shared.events.fetch_add(events, Ordering::Relaxed);
    }
}

fn time_in(event: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(event).ok()?;
    let (_, rest) = text.split_once("\"t\":")?;
    rest.split(',').next()?.trim().parse().ok()
}
