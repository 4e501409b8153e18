//! Client library for Carapace: blocking, over the pure machine of [`carapace_proto::client`].
//!
//! ```no_run
//! use carapace_client::{DEFAULT_PORT, health};
//! use std::time::Duration;
//!
//! let health = health("127.0.0.1", DEFAULT_PORT, Duration::from_secs(5))?;
//! println!("{} connections, policy {}", health.connections, health.policy);
//! # Ok::<(), carapace_client::ClientError>(())
//! ```
#![forbid(unsafe_code)]

pub use carapace_proto::client::{Health, ProbeError};

use carapace_proto::client::Probe;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// The port a server listens on for agents and probes.
pub const DEFAULT_PORT: u16 = 8765;

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection could be made, or it broke.
    Connection(io::Error),
    /// The other end does not speak the protocol, or refuses.
    Protocol(ProbeError),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => write!(f, "Connection failed: {error}"),
            Self::Protocol(error) => write!(f, "Protocol error: {error}"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection(error) => Some(error),
            Self::Protocol(error) => Some(error),
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Connection(error)
    }
}

impl From<ProbeError> for ClientError {
    fn from(error: ProbeError) -> Self {
        Self::Protocol(error)
    }
}

/// Asks the server at `host` and `port` how it is. `timeout` is for everything together, name look-up aside.
///
/// # Errors
///
/// [`ClientError::Connection`] when nobody answers in time, [`ClientError::Protocol`] when somebody else does or the
/// server does not serve this account.
pub fn health(host: &str, port: u16, timeout: Duration) -> Result<Health, ClientError> {
    let deadline = Instant::now() + timeout;
    let mut stream = connect(host, port, deadline)?;
    stream.set_nodelay(true)?;
    let mut probe = Probe::new(concat!("carapace-client ", env!("CARGO_PKG_VERSION")).to_owned());
    let mut bytes = [0; 4096];
    loop {
        if let Some(health) = probe.health() {
            return Ok(health.clone());
        }
        stream.set_read_timeout(Some(left(deadline)?))?;
        let count = match stream.read(&mut bytes) {
            Ok(0) => return Err(closed().into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(timed_out().into()),
            Err(error) => return Err(error.into()),
        };
        probe.receive(bytes.get(..count).unwrap_or_default())?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        stream.write_all(&probe.take_unsent())?;
    }
}

/// Tries each address that the name has, until one answers.
fn connect(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or_else(timed_out)
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection without an answer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// A listener that says `bytes` to whoever connects, and closes.
    fn speaker(bytes: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(bytes).unwrap();
        });
        port
    }

    #[test]
    fn nobody_there_is_a_connection_error() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = health("127.0.0.1", port, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, ClientError::Connection(_)), "{error}");
    }

    #[test]
    fn somebody_else_is_a_protocol_error() {
        let port = speaker(b"220 mail.example ESMTP\r\n");
        let error = health("127.0.0.1", port, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(error, ClientError::Protocol(ProbeError::NotCarapace(_))), "{error}");
    }

    #[test]
    fn a_server_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = health("127.0.0.1", port, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("no answer in time"), "{error}");
    }

    #[test]
    fn a_connection_closed_without_an_answer_is_said_to_be() {
        let port = speaker(b"");
        let error = health("127.0.0.1", port, Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("closed the connection"), "{error}");
    }
}
