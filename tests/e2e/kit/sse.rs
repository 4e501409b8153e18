//! A client of event streams, after the WHATWG's rules and none of Carapace's code.

use std::collections::VecDeque;
use std::time::Instant;

use super::http::{Answer, Connection};

/// An event as a page would get it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Received {
    pub(crate) event: String,
    pub(crate) data: String,
    /// The last id seen, as the standard has it.
    pub(crate) id: String,
}

/// An open event stream.
pub(crate) struct EventStream {
    connection: Connection,
    pub(crate) head: Answer,
    line: Vec<u8>,
    /// A CR was the last byte: an LF that follows belongs to it.
    after_cr: bool,
    next: Received,
    has_data: bool,
    received: VecDeque<(Received, Instant)>,
    pub(crate) comments: Vec<String>,
    pub(crate) retry: Option<u64>,
    /// How the stream ended: with its last chunk, or without.
    ended: Option<bool>,
}

impl EventStream {
    /// Reads the head.
    pub(crate) fn begin(mut connection: Connection) -> Self {
        let head = connection.head();
        Self {
            connection,
            head,
            line: Vec::new(),
            after_cr: false,
            next: Received::default(),
            has_data: false,
            received: VecDeque::new(),
            comments: Vec::new(),
            retry: None,
            ended: None,
        }
    }

    /// The next event.
    pub(crate) fn next(&mut self) -> Received {
        self.next_at().0
    }

    /// The next event, and when its last byte was read.
    pub(crate) fn next_at(&mut self) -> (Received, Instant) {
        loop {
            if let Some(received) = self.received.pop_front() {
                return received;
            }
            assert!(self.read(), "the stream ended: {:?}", self.ended);
        }
    }

    /// Reads until a comment has come.
    pub(crate) fn wait_for_comment(&mut self) {
        while self.comments.is_empty() {
            assert!(self.read(), "the stream ended: {:?}", self.ended);
        }
    }

    /// Waits for the end; whether the last chunk came before it. No event may come any more.
    pub(crate) fn end(&mut self) -> bool {
        while self.read() {}
        assert!(self.received.is_empty(), "more events: {:?}", self.received);
        self.ended == Some(true)
    }

    /// Reads one chunk; `false` at the end.
    fn read(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        // A cut stream ends where a chunk's size would stand.
        if self.connection.is_ended() {
            self.ended = Some(false);
            return false;
        }
        match self.connection.chunk() {
            Some(bytes) => {
                let now = Instant::now();
                bytes.into_iter().for_each(|byte| self.push(byte, now));
                true
            }
            None => {
                self.ended = Some(true);
                false
            }
        }
    }

    fn push(&mut self, byte: u8, now: Instant) {
        match byte {
            b'\n' if std::mem::take(&mut self.after_cr) => {}
            b'\n' | b'\r' => {
                self.after_cr = byte == b'\r';
                let line = String::from_utf8(std::mem::take(&mut self.line)).expect("UTF-8 is never cut");
                self.line_ended(&line, now);
            }
            _ => {
                self.after_cr = false;
                self.line.push(byte);
            }
        }
    }

    fn line_ended(&mut self, line: &str, now: Instant) {
        if line.is_empty() {
            return self.dispatch(now);
        }
        if let Some(comment) = line.strip_prefix(':') {
            return self.comments.push(comment.to_owned());
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => self.next.event = value.to_owned(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.next.data.push('\n');
                }
                self.next.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.next.id = value.to_owned(),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => self.retry = value.parse().ok(),
            _ => {}
        }
    }

    fn dispatch(&mut self, now: Instant) {
        let id = self.next.id.clone();
        let mut received = std::mem::replace(&mut self.next, Received { id, ..Received::default() });
        if std::mem::take(&mut self.has_data) {
            if received.event.is_empty() {
                received.event = "message".to_owned();
            }
            self.received.push_back((received, now));
        }
    }
}
