//! A policy file and a request, put to every tool of it in every way there is. The checks are the policy's own tests'.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../policy/tests/hostile/mod.rs"]
mod hostile;

fuzz_target!(|input: &[u8]| hostile::check(input));
