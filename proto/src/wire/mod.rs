//! Codecs: slices in, values out, each with its own tests. None of them buffers what its caller buffers.

pub mod frame;
#[cfg(feature = "core")]
pub mod http1;
#[cfg(feature = "core")]
pub mod message;
#[cfg(feature = "core")]
pub mod sse;
