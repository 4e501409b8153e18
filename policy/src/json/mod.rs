//! JSON, strictly: one pass over the bytes that builds no tree and copies nothing.
//!
//! [`Scan`] checks a text that may still be arriving and remembers where its outer values lie; [`Value`] walks a text that
//! was checked; [`escape`] writes strings; [`rpc_ids`] finds what an error reply needs.

mod rpc;
mod scan;
mod token;
mod value;
mod write;

pub(crate) use rpc::{Call, Calls, refusal};
pub use rpc::{Id, RpcIds, rpc_ids};
pub use scan::{DEPTH_MAX, JsonError, Scan};
pub(crate) use value::unescape;
pub use value::{Kind, Value};
pub use write::{escape, escape_bytes};
