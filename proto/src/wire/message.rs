//! JSON messages: what the two ends of a link say about the link itself.
//!
//! Each is an object with one key, its type: `{"ping":{}}`. Unknown fields are ignored, so that a newer peer can say
//! more; an unknown type is answered with an error and is no reason to part.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The version of the link protocol that this crate speaks.
pub const VERSION: u32 = 1;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message<'a> {
    /// So many counted frames have been received in this session, from its beginning.
    Ack {
        /// How many.
        received: u64,
    },
    /// What was said could not be understood, and was passed over.
    Error {
        /// One sentence.
        #[serde(borrow)]
        reason: Cow<'a, str>,
    },
    /// What a probe asks.
    Health {},
    /// What a probe hears.
    HealthReport(#[serde(borrow)] HealthReport<'a>),
    /// First words of the agent, or of a probe: in answer to `nonce`.
    Hello(#[serde(borrow)] Hello<'a>),
    /// First words of the server: speak after me.
    Nonce(#[serde(borrow)] Nonce<'a>),
    /// Are you there?
    Ping {},
    /// I am.
    Pong {},
    /// The server will not serve this peer; it closes the connection.
    Refused {
        /// One sentence.
        #[serde(borrow)]
        reason: Cow<'a, str>,
    },
    /// The session stands.
    Welcome(#[serde(borrow)] Welcome<'a>),
}

/// The server's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nonce<'a> {
    /// 128 fresh bits in hexadecimal: recorded bytes of an agent are worthless.
    #[serde(borrow)]
    pub nonce: Cow<'a, str>,
    /// The highest protocol version that the server speaks.
    pub version: u32,
}

/// The agent's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello<'a> {
    /// The server's nonce.
    #[serde(borrow)]
    pub nonce: Cow<'a, str>,
    /// The protocol version that will be spoken.
    pub version: u32,
    /// What the peer wants to be.
    pub role: Role,
    /// Its own name and version, for logs.
    #[serde(borrow, default)]
    pub software: Cow<'a, str>,
    /// The session to be taken up again; absent for a new one.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume<'a>>,
}

/// What a peer wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// An agent: opens streams.
    Agent,
    /// A probe: asks for health and leaves.
    Probe,
}

/// Which session, and how much of it has arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume<'a> {
    /// The session's token.
    #[serde(borrow)]
    pub session: Cow<'a, str>,
    /// Counted frames received in it.
    pub received: u64,
}

/// The server's answer to `hello`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome<'a> {
    /// The session's token: 128 random bits in hexadecimal.
    #[serde(borrow)]
    pub session: Cow<'a, str>,
    /// Whether it is the session that was asked for; if not, that one is gone.
    pub resumed: bool,
    /// Counted frames received in it.
    pub received: u64,
}

/// How a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport<'a> {
    /// `ok`, or `draining`.
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    /// Connections of agents and probes, this one included.
    pub connections: u64,
    /// Its version.
    #[serde(borrow)]
    pub version: Cow<'a, str>,
    /// Seconds since it started.
    pub uptime_secs: u64,
    /// The policy in force.
    #[serde(borrow)]
    pub policy: Cow<'a, str>,
    /// Calls begun since it started.
    pub calls: u64,
    /// Calls denied.
    pub denied: u64,
    /// Calls that run.
    pub running: u64,
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// Not JSON, or not in the shape that its type has. The link is of no further use.
    Invalid(String),
    /// A type that this version does not know.
    UnknownType(String),
}

impl<'a> Message<'a> {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`MessageError`].
    pub fn parse(json: &'a [u8]) -> Result<Self, MessageError> {
        serde_json::from_slice(json).map_err(|error| {
            let tags: Result<BTreeMap<Cow<'_, str>, &RawValue>, _> = serde_json::from_slice(json);
            match tags.ok().and_then(|tags| tags.into_keys().next()) {
                Some(tag) if !KNOWN.contains(&&*tag) => {
                    MessageError::UnknownType(tag.chars().take(64).collect())
                }
                Some(_) | None => MessageError::Invalid(error.to_string()),
            }
        })
    }

    /// Appends the message as a frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let Ok(json) = serde_json::to_vec(self) {
            super::frame::write_json(&json, out);
        }
    }
}

const KNOWN: [&str; 10] =
    ["ack", "error", "health", "health_report", "hello", "nonce", "ping", "pong", "refused", "welcome"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_as_they_were_written() {
        let messages = [
            Message::Ack { received: 7 },
            Message::Ping {},
            Message::Refused { reason: "no \"key\"".into() },
            Message::Hello(Hello {
                nonce: "00ff".into(),
                version: VERSION,
                role: Role::Agent,
                software: "".into(),
                resume: Some(Resume { session: "aa".into(), received: 3 }),
            }),
        ];
        for message in messages {
            let mut frame = Vec::new();
            message.write(&mut frame);
            assert_eq!(Message::parse(&frame[4..]).unwrap(), message);
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_types_are_named() {
        assert_eq!(Message::parse(br#"{"ack":{"received":1,"later":[]}}"#), Ok(Message::Ack { received: 1 }));
        assert_eq!(
            Message::parse(br#"{"teleport":{"to":"moon"}}"#),
            Err(MessageError::UnknownType("teleport".into()))
        );
        for bad in [&b"{"[..], b"{}", br#"{"ack":{}}"#, br#"{"ack":{"received":-1}}"#] {
            assert!(matches!(Message::parse(bad), Err(MessageError::Invalid(_))), "{bad:?}");
        }
    }

    #[test]
    fn every_type_is_known() {
        let mut out = Vec::new();
        Message::Health {}.write(&mut out);
        for tag in KNOWN {
            let json = format!("{{\"{tag}\":0}}");
            assert!(matches!(Message::parse(json.as_bytes()), Err(MessageError::Invalid(_))), "{tag}");
        }
    }
}
