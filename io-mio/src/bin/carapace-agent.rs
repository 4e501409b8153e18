//! The untrusted side of Carapace: see `carapace_io_mio::agent`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    carapace_io_mio::agent::main()
}
