//! Carapace protocol core: pure state machines for server, agent and client.
#![forbid(unsafe_code)]

pub mod wire;
