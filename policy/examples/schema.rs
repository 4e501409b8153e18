//! Prints the JSON schema of a policy file:
//! `cargo run -p carapace-policy --example schema > examples/policy.schema.json`

use std::io::{self, Write};

fn main() -> io::Result<()> {
    io::stdout().write_all(carapace_policy::schema().as_bytes())
}
