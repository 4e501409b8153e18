//! Runs a tool on the Carapace host as if it were local.
#![forbid(unsafe_code)]
fn main() {}
