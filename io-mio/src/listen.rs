//! Listening sockets.

use crate::port::{Io, Key};
use crate::{exit::Exit, peer};
use carapace_proto::ids::ListenerId;
use carapace_proto::machine::PeerAddr;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 1024;

/// A socket that accepts connections.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp { io: TcpListener, names_owner: bool },
    Unix { io: UnixListener, place: Place },
}

/// A socket file that is ours to remove.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for Place {
    fn drop(&mut self) {
        // Another process may have put its own there since.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether to find out who owns the socket at the other end of a connection from this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Ask the kernel.
    Ask,
    /// Nobody wants to know.
    Ignore,
}

impl Listener {
    /// Listens on a TCP address.
    pub fn tcp(addr: SocketAddr, owner: Owner) -> Result<Self, BindError> {
        let listen = || -> io::Result<TcpListener> {
            let socket = Socket::new(
                Domain::for_address(addr),
                Type::STREAM.nonblocking().cloexec(),
                Some(Protocol::TCP),
            )?;
            socket.set_reuse_address(true)?;
            // Connections inherit it: one call here instead of one for each of them.
            socket.set_tcp_nodelay(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from_std(socket.into()))
        };
        let io = listen().map_err(|error| BindError::new(addr, error))?;
        Ok(Self { kind: Kind::Tcp { io, names_owner: owner == Owner::Ask } })
    }

    /// Listens on a Unix socket that has `mode` from the first instant, with the group of this process.
    ///
    /// It is made in a directory that only we can enter, and moved to its place when it is ready. What stands there
    /// gives way only if it is a socket on which nobody listens.
    pub fn unix(path: &Path, mode: u32) -> Result<Self, BindError> {
        let failed = |error| BindError::new(path.display(), error);
        give_way(path).map_err(failed)?;
        let (io, identity) = bind_beside(path, mode).map_err(failed)?;
        Ok(Self { kind: Kind::Unix { io, place: Place { path: path.to_owned(), identity } } })
    }

    /// Where it really listens, with the port that the kernel chose where 0 was asked for.
    pub fn address(&self) -> String {
        match &self.kind {
            Kind::Tcp { io, .. } => io.local_addr().map_or_else(|_| "?".into(), |addr| addr.to_string()),
            Kind::Unix { place, .. } => place.path.display().to_string(),
        }
    }

    /// The TCP address it really listens on.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp { io, .. } => io.local_addr().ok(),
            Kind::Unix { .. } => None,
        }
    }

    pub(crate) fn register(&mut self, registry: &Registry, id: ListenerId) -> io::Result<()> {
        let token = Key::Listener(id).token();
        match &mut self.kind {
            Kind::Tcp { io, .. } => registry.register(io, token, Interest::READABLE),
            Kind::Unix { io, .. } => registry.register(io, token, Interest::READABLE),
        }
    }

    /// Accepts one connection.
    pub(crate) fn accept(&self) -> io::Result<(Io, PeerAddr)> {
        match &self.kind {
            Kind::Tcp { io, names_owner } => {
                let (stream, addr) = io.accept()?;
                let uid = if *names_owner { peer::tcp_owner(addr, stream.local_addr()?) } else { None };
                Ok((Io::Tcp(stream), PeerAddr::Tcp { addr, uid }))
            }
            Kind::Unix { io, .. } => {
                let (stream, _) = io.accept()?;
                let peer::Credentials { uid, gid, pid } = peer::credentials(&stream)?;
                Ok((Io::Unix(stream), PeerAddr::Unix { uid, gid, pid }))
            }
        }
    }
}

/// Fails unless `path` is free, or held by a socket that is dead.
fn give_way(path: &Path) -> io::Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        meta => meta?,
    };
    if !meta.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "there is something that is not a socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "somebody listens there already")),
        Err(error) => Err(error),
    }
}

fn bind_beside(path: &Path, mode: u32) -> io::Result<(UnixListener, (u64, u64))> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let private = private_directory(parent)?;
    let made = bind_in(&private, path, mode);
    let _ = fs::remove_dir(&private);
    made
}

fn private_directory(parent: &Path) -> io::Result<PathBuf> {
    // A few names, in case one was left behind; short, because the whole path must fit into a socket's address.
    let mut names = (0..16).map(|n| parent.join(format!(".{:x}{n:x}", std::process::id())));
    names
        .find_map(|path| match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
            made => Some(made.map(|()| path)),
        })
        .unwrap_or_else(|| Err(ErrorKind::AlreadyExists.into()))
}

fn bind_in(private: &Path, path: &Path, mode: u32) -> io::Result<(UnixListener, (u64, u64))> {
    let fresh = private.join("s");
    let make = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.bind(&SockAddr::unix(&fresh)?)?;
        fs::set_permissions(&fresh, Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)?;
        let meta = fs::symlink_metadata(&fresh)?;
        fs::rename(&fresh, path)?;
        Ok((UnixListener::from_std(OwnedFd::from(socket).into()), (meta.dev(), meta.ino())))
    };
    let made = make();
    if made.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    made
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    address: String,
    error: io::Error,
}

impl BindError {
    fn new(address: impl fmt::Display, error: io::Error) -> Self {
        Self { address: address.to_string(), error }
    }

    /// The status to end with.
    pub const fn exit(&self) -> Exit {
        Exit::Unavailable
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.address, self.error)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_unix_socket_appears_with_its_mode_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = Listener::unix(&path, 0o660).unwrap();
        assert_eq!(mode(&path), 0o660);
        UnixStream::connect(&path).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["s.sock"], "nothing else is left behind");
        drop(listener);
        assert!(!path.exists());
    }

    /// Until the socket stands in its place, it is in a directory that nobody else can enter.
    #[test]
    fn a_unix_socket_is_made_where_nobody_else_can_reach_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("s.sock");
        assert!(Listener::unix(&path, 0o660).is_err());
        let private = dir.path().join(".p");
        DirBuilder::new().mode(0o700).create(&private).unwrap();
        assert_eq!(mode(&private), 0o700);
        let unreachable = dir.path().join("gone/s.sock");
        assert!(bind_in(&private, &unreachable, 0o660).is_err());
        assert_eq!(fs::read_dir(&private).unwrap().count(), 0, "a failure leaves no socket");
    }

    #[test]
    fn a_dead_socket_gives_way_and_a_live_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = Listener::unix(&path, 0o600).unwrap();
        let error = Listener::unix(&path, 0o600).unwrap_err();
        assert_eq!(error.exit(), Exit::Unavailable);
        assert!(error.to_string().ends_with("s.sock: somebody listens there already"), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(live);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        fs::write(&path, "precious").unwrap();
        let error = Listener::unix(&path, 0o600).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Listener::unix(&link, 0o600).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_listener_removes_only_its_own_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = Listener::unix(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_port_in_use_is_an_error_that_names_it() {
        let first = Listener::tcp("127.0.0.1:0".parse().unwrap(), Owner::Ignore).unwrap();
        let addr = first.tcp_addr().unwrap();
        let error = Listener::tcp(addr, Owner::Ignore).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot listen on {addr}: ")), "{error}");
    }

    #[test]
    fn accepted_connections_send_without_delay_and_are_named() {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap(), Owner::Ask).unwrap();
        let client = std::net::TcpStream::connect(listener.tcp_addr().unwrap()).unwrap();
        let (Io::Tcp(stream), peer) = listener.accept().unwrap() else { panic!("not TCP") };
        assert!(stream.nodelay().unwrap());
        let uid = Some(nix::unistd::getuid().as_raw());
        assert_eq!(peer, PeerAddr::Tcp { addr: client.local_addr().unwrap(), uid });
    }
}
