//! The protocol core of Carapace: pure machines that decide, for a thin loop that obeys.
//!
//! Nothing in this crate performs I/O, reads a clock, starts a thread or asks for chance; a `clippy.toml` beside
//! its manifest and a test hold it to that. Time is an argument ([`time::Instant`]), chance is a seed, bytes come in
//! as slices and wait to be sent inside the machine ([`machine::Machine::unsent`]).
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | the one shape: inputs, outputs, sources, sinks |
//! | [`wire`] | codecs: frames, messages, HTTP/1.1, event streams |
//! | [`link`] | what agent and server say to each other: session, streams, credit, acknowledgement, keepalive |
//! | [`server`] | the trusted side: judges, records, carries out |
//! | [`client`] | one question, one answer |
//! | [`agent`] | the untrusted side: an HTTP front, a front for shims, one uplink |
//!
//! Without the feature `core` only the frame codec is left, which is all that a shim needs.
#![forbid(unsafe_code)]

pub mod buffer;
pub mod ids;
pub mod limits;
pub mod time;
pub mod wire;

#[cfg(feature = "core")]
pub mod agent;
#[cfg(feature = "core")]
pub mod client;
#[cfg(feature = "core")]
pub mod link;
#[cfg(feature = "core")]
pub mod machine;
#[cfg(feature = "core")]
mod outbox;
#[cfg(feature = "core")]
pub mod random;
#[cfg(feature = "core")]
pub mod server;
#[cfg(feature = "core")]
mod timers;
