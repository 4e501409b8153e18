//! The operator's tool for Carapace, and what it shares with the tests and the benchmarks: a stand-in upstream, and the
//! starting and stopping of daemons in a folder of their own.
#![forbid(unsafe_code)]

pub mod rig;
pub mod upstream;
