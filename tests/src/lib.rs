//! What is true of the whole: simulation, end-to-end, house rules.
#![forbid(unsafe_code)]
