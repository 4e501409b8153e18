//! The trusted side of Carapace: see `carapace_io_mio::server`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    carapace_io_mio::server::main()
}
