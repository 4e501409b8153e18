//! Codecs: bytes to values and back.

#[cfg(feature = "core")]
pub mod http1;
#[cfg(feature = "core")]
pub mod sse;
