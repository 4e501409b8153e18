//! The untrusted side.
