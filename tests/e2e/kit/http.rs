//! An HTTP client that sends what it is given, byte for byte, and is strict about what it gets.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use super::LONG;

/// A connection to an HTTP server.
pub(crate) struct Connection {
    stream: TcpStream,
    addr: SocketAddr,
    unread: VecDeque<u8>,
}

/// What a server answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of a field that must not be there twice.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} twice: {:?}", self.fields);
        value
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of the JSON-RPC error that this is.
    pub(crate) fn code(&self) -> i64 {
        let json = self.json();
        assert_eq!(json["jsonrpc"], "2.0", "{json}");
        json["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error: {json}"))
    }
}

impl Connection {
    pub(crate) fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap_or_else(|error| panic!("{addr}: {error}"));
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self { stream, addr, unread: VecDeque::new() }
    }

    /// What `Host` is to say.
    pub(crate) fn host(&self) -> String {
        self.addr.to_string()
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends what the other end may refuse to take; whether it took everything.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends a call, with the fields that OpenClaw sends.
    pub(crate) fn call(&mut self, body: impl AsRef<[u8]>) {
        self.post("/api/v1/rpc", "", body);
    }

    /// Sends a POST of JSON, with these lines in its head.
    pub(crate) fn post(&mut self, target: &str, lines: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let mut request = format!(
            "POST {target} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{lines}\r\n",
            self.addr,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.send(request);
    }

    /// Says that no more will be sent.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads an answer, a `100 Continue` aside.
    pub(crate) fn answer(&mut self) -> Answer {
        let head = self.final_head();
        self.with_body(head)
    }

    /// Reads the answer to a HEAD.
    pub(crate) fn answer_to_head(&mut self) -> Answer {
        self.final_head()
    }

    fn final_head(&mut self) -> Answer {
        let head = self.head();
        if head.status == 100 { self.head() } else { head }
    }

    /// Reads a head.
    pub(crate) fn head(&mut self) -> Answer {
        let status_line = self.line();
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {status_line:?}"));
        let mut fields = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return Answer { status, fields, body: Vec::new() };
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
            assert!(!name.is_empty() && !name.contains([' ', '\t']), "no field name: {name:?}");
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// Reads the body that belongs to a head.
    pub(crate) fn with_body(&mut self, mut answer: Answer) -> Answer {
        let length = answer.field("content-length").map(|length| length.parse::<usize>().unwrap());
        let is_chunked = answer.field("transfer-encoding").is_some_and(|coding| coding == "chunked");
        assert!(length.is_none() || !is_chunked, "two framings: {answer:?}");
        if matches!(answer.status, 204 | 304) {
            assert!(!is_chunked, "{answer:?}");
        } else if let Some(length) = length {
            answer.body = self.exactly(length);
        } else if is_chunked {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
        } else {
            assert_eq!(answer.field("connection"), Some("close"), "a body without an end: {answer:?}");
            answer.body = self.rest();
        }
        answer
    }

    /// The next chunk of a body, `None` for the last.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line();
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("no chunk size: {size:?}"));
        let chunk = self.exactly(size);
        assert_eq!(self.line(), "", "what ends a chunk");
        (size > 0).then_some(chunk)
    }

    /// Everything up to the end of the connection, which must come.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        self.unread.drain(..).collect()
    }

    /// Whether the other end has closed and nothing is left to read. Waits for one of both.
    pub(crate) fn is_ended(&mut self) -> bool {
        self.unread.is_empty() && !self.fill()
    }

    fn line(&mut self) -> String {
        let end = loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            let seen = String::from_utf8_lossy(self.unread.make_contiguous()).into_owned();
            assert!(self.fill(), "the connection ends in a line: {seen:?}");
        };
        let line: Vec<u8> = self.unread.drain(..=end).collect();
        let line = line.strip_suffix(b"\r\n").unwrap_or_else(|| panic!("a bare LF: {line:?}"));
        String::from_utf8(line.to_vec()).unwrap()
    }

    fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(self.fill(), "the connection ends {} bytes into {count}", self.unread.len());
        }
        self.unread.drain(..count).collect()
    }

    /// Reads more; `false` at the end. A reset is an end, too: it is for the caller to say whether all had come.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.unread.extend(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(),
            Err(error) => panic!("nothing to read from {}: {error}", self.addr),
        }
    }
}
