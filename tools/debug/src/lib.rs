//! The operator's tool for Carapace, and the stand-in upstream that the demo and the tests share.
#![forbid(unsafe_code)]

pub mod upstream;
