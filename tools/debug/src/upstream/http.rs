//! As much of HTTP/1.1 as the stand-in needs: it takes what clients send, and is no judge of it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::Fault;

/// A head longer than this is no request of a client under test.
const HEAD_BYTES_MAX: u64 = 1 << 20;
/// The largest body taken.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// A request's first line and headers.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    version: String,
}

impl Head {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(super) fn keeps_alive(&self) -> bool {
        let connection = self.header("connection").unwrap_or_default();
        self.version == "HTTP/1.1" && !connection.eq_ignore_ascii_case("close")
    }
}

/// Reads requests off a connection.
pub(super) struct Reader<'a> {
    socket: &'a TcpStream,
    buffered: BufReader<&'a TcpStream>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(socket: &'a TcpStream) -> Self {
        Self { socket, buffered: BufReader::new(socket) }
    }

    /// The next request's head; `None` when the client has closed instead.
    pub(super) fn head(&mut self) -> io::Result<Option<Head>> {
        let Some(first) = self.line()? else { return Ok(None) };
        let mut words = first.splitn(3, ' ').map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        let (method, target, version) = (word(), word(), word());
        let mut headers = Vec::new();
        loop {
            let line = self.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line.is_empty() {
                return Ok(Some(Head { method, target, headers, version }));
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The body that belongs to this head, its framing removed.
    pub(super) fn body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        if head.header("expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
            (&mut &*self.socket).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if head.header("transfer-encoding").is_some() {
            return self.chunks();
        }
        let length = head.header("content-length").map_or(Ok(0), |length| number(length, 10))?;
        let mut body = Vec::new();
        self.exactly(length, &mut body)?;
        Ok(body)
    }

    /// Reads and drops until the client closes.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        io::copy(&mut self.buffered, &mut io::sink()).map(|_| ())
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = self.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let size = number(size.split(';').next().unwrap_or_default().trim(), 16)?;
            self.exactly(size, &mut body)?;
            if size > 0 {
                self.line()?;
                continue;
            }
            // The trailers, to the empty line.
            while self.line()?.is_some_and(|line| !line.is_empty()) {}
            return Ok(body);
        }
    }

    fn exactly(&mut self, length: u64, into: &mut Vec<u8>) -> io::Result<()> {
        let held = u64::try_from(into.len()).unwrap_or(u64::MAX);
        if held.saturating_add(length) > BODY_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let read = Read::by_ref(&mut self.buffered).take(length).read_to_end(into)?;
        if u64::try_from(read).ok() == Some(length) {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        Read::by_ref(&mut self.buffered).take(HEAD_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.pop_if(|last| *last == b'\n').is_none() {
            return Ok(None);
        }
        line.pop_if(|last| *last == b'\r');
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }
}

fn number(digits: &str, radix: u32) -> io::Result<u64> {
    u64::from_str_radix(digits, radix).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// An answer to be sent.
#[derive(Debug)]
pub(super) struct Respond {
    status: u16,
    body: String,
}

impl Respond {
    pub(super) fn empty(status: u16) -> Self {
        Self { status, body: String::new() }
    }

    pub(super) fn json(status: u16, body: String) -> Self {
        Self { status, body }
    }

    fn head(&self, is_chunked: bool) -> String {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        if !self.body.is_empty() {
            head.push_str("Content-type: application/json\r\n");
        }
        if is_chunked {
            head.push_str("Transfer-encoding: chunked\r\n\r\n");
        } else {
            head.push_str(&format!("Content-length: {}\r\n\r\n", self.body.len()));
        }
        head
    }
}

/// Sends an answer, as the fault wants it; whether the connection can carry another one.
pub(super) fn write(mut socket: &TcpStream, answer: &Respond, fault: Option<&Fault>) -> io::Result<bool> {
    let body = answer.body.as_bytes();
    if fault == Some(&Fault::Chunked) && !body.is_empty() {
        let mut bytes = answer.head(true).into_bytes();
        for chunk in body.chunks(7) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        socket.write_all(&bytes)?;
        return Ok(true);
    }
    let mut bytes = answer.head(false).into_bytes();
    if matches!(fault, Some(Fault::CutBody | Fault::StallBody)) {
        bytes.extend_from_slice(body.get(..body.len() / 2).unwrap_or_default());
        socket.write_all(&bytes)?;
        return Ok(false);
    }
    bytes.extend_from_slice(body);
    match fault {
        Some(Fault::Trickle(pause)) => trickle(socket, &bytes, *pause)?,
        _ => socket.write_all(&bytes)?,
    }
    Ok(true)
}

fn trickle(mut socket: &TcpStream, bytes: &[u8], pause: Duration) -> io::Result<()> {
    for byte in bytes {
        socket.write_all(&[*byte])?;
        thread::sleep(pause);
    }
    Ok(())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        415 => "Unsupported Media Type",
        421 => "Misdirected Request",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Whatever",
    }
}

/// A query's value, `%2B` and the like decoded; a `%` that begins nothing stands for itself.
pub(super) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let byte = digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
