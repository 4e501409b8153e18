//! Carapace policy: may this call run, and as exactly what. Pure.
#![forbid(unsafe_code)]
