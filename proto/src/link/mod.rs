//! What agent and server say to each other once a connection stands.
//!
//! A [`Session`] is one side of a conversation: streams with credit, frames that are counted and acknowledged,
//! keepalive. It knows neither sockets nor what the streams are for; [`crate::server`] and [`crate::agent`] hold one
//! for each link, feed it frames and put its bytes on the connection. It is apart from the connection, because it is
//! what outlives it when sessions are resumed.

mod flow;
mod session;

pub use session::{Event, Misbehavior, Session};
