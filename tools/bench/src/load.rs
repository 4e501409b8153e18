//! A load generator: keep-alive connections, one call at a time on each, one thread.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// What to send, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// So many answers have come.
    Calls(u64),
    /// So much time has passed.
    Elapsed(Duration),
}

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Calls answered with 200.
    pub(crate) calls: u64,
    /// From the first call to the last answer.
    pub(crate) elapsed: Duration,
    /// How long each took, in nanoseconds.
    pub(crate) latencies: Vec<u64>,
}

impl Load {
    pub(crate) fn calls_per_second(&self) -> f64 {
        crate::stats::figure(self.calls) / self.elapsed.as_secs_f64()
    }
}

/// The bytes of a call that the policy of [`crate::bench`] judges: a method, a filter on a parameter.
pub(crate) fn call_to(addr: SocketAddr) -> Vec<u8> {
    let body = concat!(
        r#"{"jsonrpc":"2.0","id":"1","method":"send","#,
        r#""params":{"recipient":["+15550100002"],"message":"hello from the benchmark"}}"#
    );
    format!(
        "POST /api/v1/rpc HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

struct Connection {
    socket: TcpStream,
    received: Vec<u8>,
    /// How much of the request the socket has not taken yet.
    unsent: usize,
    asked: Instant,
}

/// Calls `addr` over `connections` connections. An answer that is not 200 ends it with an error: a benchmark of
/// refusals would look good.
pub(crate) fn run(addr: SocketAddr, connections: usize, until: Until) -> io::Result<Load> {
    let request = call_to(addr);
    let mut poll = Poll::new()?;
    let mut all = Vec::with_capacity(connections);
    let start = Instant::now();
    for index in 0..connections {
        let socket = std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let mut socket = TcpStream::from_std(socket);
        poll.registry().register(&mut socket, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        all.push(Connection { socket, received: Vec::with_capacity(1024), unsent: 0, asked: start });
    }
    let mut load = Load::default();
    let start = Instant::now();
    for connection in &mut all {
        ask(connection, &request)?;
    }
    let mut events = Events::with_capacity(connections.max(16));
    let mut buffer = vec![0; 64 * 1024];
    while !is_over(until, &load, start) {
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        if start.elapsed() > Duration::from_secs(600) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for event in &events {
            let Some(connection) = all.get_mut(event.token().0) else { continue };
            progress(connection, &request, &mut buffer, &mut load)?;
        }
    }
    load.elapsed = start.elapsed();
    Ok(load)
}

fn is_over(until: Until, load: &Load, start: Instant) -> bool {
    match until {
        Until::Calls(calls) => load.calls >= calls,
        Until::Elapsed(time) => start.elapsed() >= time,
    }
}

fn ask(connection: &mut Connection, request: &[u8]) -> io::Result<()> {
    connection.asked = Instant::now();
    connection.unsent = request.len();
    send(connection, request)
}

fn send(connection: &mut Connection, request: &[u8]) -> io::Result<()> {
    while connection.unsent > 0 {
        let rest = request.get(request.len() - connection.unsent..).unwrap_or_default();
        match connection.socket.write(rest) {
            Ok(written) => connection.unsent -= written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Does what the connection is ready for: readiness is told once, so everything there is has to be taken.
fn progress(
    connection: &mut Connection,
    request: &[u8],
    buffer: &mut [u8],
    load: &mut Load,
) -> io::Result<()> {
    send(connection, request)?;
    loop {
        let read = match connection.socket.read(buffer) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        connection.received.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if is_answered(&connection.received)? {
            connection.received.clear();
            load.calls += 1;
            load.latencies.push(u64::try_from(connection.asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
            ask(connection, request)?;
        }
        if read < buffer.len() {
            return Ok(());
        }
    }
}

/// Whether these bytes are a whole answer with 200.
fn is_answered(received: &[u8]) -> io::Result<bool> {
    let Some(head_length) = received.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4) else {
        return Ok(false);
    };
    let (head, body) = received.split_at(head_length);
    let invalid = |why: &str| io::Error::other(format!("{why}: {}", String::from_utf8_lossy(received)));
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(invalid("not the answer of a success"));
    }
    let head = std::str::from_utf8(head).map_err(|_| invalid("not text"))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let Some(length) = length else {
        return Ok(body.ends_with(b"0\r\n\r\n"));
    };
    if body.len() >= length && body.windows(7).any(|word| word == b"\"error\"") {
        return Err(invalid("an error"));
    }
    Ok(body.len() >= length)
}

#[cfg(test)]
mod tests {
    use super::is_answered;

    #[test]
    fn answers_are_recognised() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-Length: 2\r\n\r\n{}";
        assert!(is_answered(whole).expect("valid"));
        for length in 0..whole.len() {
            assert!(!is_answered(&whole[..length]).expect("valid so far"), "{length}");
        }
        assert!(
            is_answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
                .expect("valid")
        );
        assert!(is_answered(b"HTTP/1.1 503 No\r\n\r\n").is_err());
        assert!(is_answered(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"error\":1}").is_err());
    }
}
