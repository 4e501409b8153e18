//! The operators tool for Carapace.
#![forbid(unsafe_code)]
fn main() {}
