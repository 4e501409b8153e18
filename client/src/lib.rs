//! Client library for Carapace.
#![forbid(unsafe_code)]
