//! Benchmarks of the whole of Carapace.
#![forbid(unsafe_code)]
fn main() {}
