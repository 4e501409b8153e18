//! One question, one answer: the machine under the client library.
//!
//! A [`Probe`] speaks the link's handshake as a probe, asks how the server is, and is done. It neither opens streams
//! nor acknowledges anything, because it leaves before an acknowledgement would be due.

use crate::limits::HANDSHAKE_FRAME_BYTES_MAX;
use crate::wire::frame::{Frame, FrameReader};
use crate::wire::message::{HealthReport, Hello, Message, Role, VERSION};
use core::fmt;

/// A server's state, as it tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// `ok`, or `draining`.
    pub status: String,
    /// Connections of agents and probes, the asking one included.
    pub connections: u64,
    /// The server's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// The version of the policy in force.
    pub policy: String,
    /// Calls begun since it started.
    pub calls: u64,
    /// Calls, or elements of batches, that were denied.
    pub denied: u64,
    /// Calls that run.
    pub running: u64,
}

impl From<HealthReport<'_>> for Health {
    fn from(report: HealthReport<'_>) -> Self {
        Self {
            status: report.status.into_owned(),
            connections: report.connections,
            version: report.version.into_owned(),
            uptime_secs: report.uptime_secs,
            policy: report.policy.into_owned(),
            calls: report.calls,
            denied: report.denied,
            running: report.running,
        }
    }
}

/// Why a probe got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// What came is not the link's protocol; the sentence says how.
    NotCarapace(String),
    /// The server does not serve this account, or not in this version; in its own words.
    Refused(String),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCarapace(how) => write!(f, "this is no carapace-server: {how}"),
            Self::Refused(reason) => write!(f, "the server refused: {reason}"),
        }
    }
}

impl core::error::Error for ProbeError {}

/// Asks a server how it is.
#[derive(Debug)]
pub struct Probe {
    software: String,
    reader: FrameReader,
    out: Vec<u8>,
    health: Option<Health>,
}

impl Probe {
    /// A probe that calls itself `software`. The server speaks first.
    pub const fn new(software: String) -> Self {
        Self { software, reader: FrameReader::new(), out: Vec::new(), health: None }
    }

    /// Takes in what the server sent.
    ///
    /// # Errors
    ///
    /// [`ProbeError`]; the connection is of no further use.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), ProbeError> {
        let mut reader = core::mem::take(&mut self.reader);
        let mut input = bytes;
        loop {
            let frame = reader.next(&mut input, HANDSHAKE_FRAME_BYTES_MAX);
            match frame.map_err(|error| ProbeError::NotCarapace(error.to_string()))? {
                Some(Frame::Json(json)) => self.handle(json)?,
                Some(Frame::Stream(..)) => {
                    return Err(ProbeError::NotCarapace("it sent a stream that nobody opened".to_owned()));
                }
                None => break,
            }
        }
        self.reader = reader;
        Ok(())
    }

    /// What is to be sent, once.
    pub fn take_unsent(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.out)
    }

    /// The answer, once it has come.
    pub fn health(&self) -> Option<&Health> {
        self.health.as_ref()
    }

    fn handle(&mut self, json: &[u8]) -> Result<(), ProbeError> {
        let message = Message::parse(json)
            .map_err(|_| ProbeError::NotCarapace("it sent an unknown message".to_owned()))?;
        match message {
            Message::Nonce(nonce) => {
                let hello = Message::Hello(Hello {
                    nonce: nonce.nonce,
                    version: VERSION,
                    role: Role::Probe,
                    software: self.software.as_str().into(),
                    resume: None,
                });
                hello.write(&mut self.out);
            }
            Message::Welcome(_) => Message::Health {}.write(&mut self.out),
            Message::HealthReport(report) => self.health = Some(report.into()),
            Message::Refused { reason } => return Err(ProbeError::Refused(reason.into_owned())),
            Message::Ack { .. }
            | Message::Error { .. }
            | Message::Health {}
            | Message::Hello(_)
            | Message::Ping {}
            | Message::Pong {} => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::{Nonce, Welcome};

    fn frame(message: &Message<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        bytes
    }

    fn report() -> Message<'static> {
        Message::HealthReport(HealthReport {
            status: "ok".into(),
            connections: 1,
            version: "1".into(),
            uptime_secs: 2,
            policy: "p".into(),
            calls: 3,
            denied: 1,
            running: 0,
        })
    }

    #[test]
    fn a_probe_says_hello_asks_and_hears_whatever_the_cuts() {
        let server = [
            frame(&Message::Nonce(Nonce { nonce: "ab".into(), version: VERSION })),
            frame(&Message::Welcome(Welcome { session: "s".into(), resumed: false, received: 0 })),
            frame(&report()),
        ]
        .concat();
        for piece in [1, 7, server.len()] {
            let mut probe = Probe::new("test".to_owned());
            for bytes in server.chunks(piece) {
                probe.receive(bytes).unwrap();
            }
            let said = probe.take_unsent();
            assert!(String::from_utf8_lossy(&said).contains(r#""nonce":"ab""#));
            assert!(said.ends_with(br#"{"health":{}}"#));
            assert_eq!(probe.health().map(|health| (health.connections, health.calls)), Some((1, 3)));
        }
    }

    #[test]
    fn a_refusal_and_a_stranger_are_told_apart() {
        let mut probe = Probe::new(String::new());
        let refused = frame(&Message::Refused { reason: "no".into() });
        assert_eq!(probe.receive(&refused), Err(ProbeError::Refused("no".to_owned())));
        let mut probe = Probe::new(String::new());
        assert!(matches!(probe.receive(b"SSH-2.0-OpenSSH_9.2\r\n"), Err(ProbeError::NotCarapace(_))));
    }
}
