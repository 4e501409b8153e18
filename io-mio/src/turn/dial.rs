//! Connections that we make: a name is resolved off the loop, then its addresses are tried in order.

use super::Loop;
use crate::port::{Io, Key, Port};
use crate::resolve::{Answer, Resolver};
use carapace_proto::ids::ConnId;
use carapace_proto::machine::{Address, DialError, Input, Machine};
use mio::event::Event;
use mio::net::{TcpStream, UnixStream};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;

/// Dials under way.
#[derive(Debug, Default)]
pub(super) struct Dials {
    resolver: Resolver,
    under_way: HashMap<ConnId, Dial>,
}

#[derive(Debug)]
enum Dial {
    /// Its name is being looked up.
    Resolving { port: u16 },
    /// Its socket is connecting; these addresses are left to try, the next one last.
    Connecting { left: Vec<SocketAddr> },
}

impl Dials {
    pub(super) fn is_connecting(&self, conn: ConnId) -> bool {
        matches!(self.under_way.get(&conn), Some(Dial::Connecting { .. }))
    }

    /// The machine has given it up.
    pub(super) fn forget(&mut self, conn: ConnId) {
        self.under_way.remove(&conn);
    }
}

impl<M: Machine> Loop<M> {
    pub(super) fn dial(&mut self, conn: ConnId, to: &Address) {
        match to {
            Address::Tcp { host, port } => {
                match self.dials.resolver.resolve(self.now, host, conn, &self.post) {
                    Ok(Answer::Known(addresses)) => self.connect_to(conn, &addresses, *port),
                    Ok(Answer::Later) => {
                        self.dials.under_way.insert(conn, Dial::Resolving { port: *port });
                    }
                    Err(error) => self.dial_failed(conn, &error),
                }
            }
            Address::Unix(path) => self.connect_unix(conn, path),
        }
    }

    /// A name was looked up.
    pub(super) fn resolved(&mut self, host: String, addresses: &[SocketAddr]) {
        for conn in self.dials.resolver.resolved(self.now, host, addresses) {
            if let Some(Dial::Resolving { port }) = self.dials.under_way.get(&conn) {
                self.connect_to(conn, addresses, *port);
            }
        }
    }

    fn connect_to(&mut self, conn: ConnId, addresses: &[SocketAddr], port: u16) {
        let left = addresses.iter().rev().map(|address| {
            let mut address = *address;
            address.set_port(port);
            address
        });
        self.connect(conn, left.collect(), ErrorKind::NotFound.into(), DialError::NoSuchHost);
    }

    /// Begins to connect to the next address. When none is left, says what was wrong with the last.
    fn connect(&mut self, conn: ConnId, mut left: Vec<SocketAddr>, mut error: io::Error, none: DialError) {
        let mut said = none;
        while let Some(address) = left.pop() {
            match self.start_connecting(conn, address) {
                Ok(()) => {
                    self.dials.under_way.insert(conn, Dial::Connecting { left });
                    return;
                }
                Err(failed) => {
                    said = dial_error(&failed);
                    error = failed;
                }
            }
        }
        log::debug!("{conn}: not made: {error}");
        self.dials.forget(conn);
        self.machine.handle(self.now, Input::DialFailed { conn, error: said });
    }

    fn start_connecting(&mut self, conn: ConnId, address: SocketAddr) -> io::Result<()> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        self.enter(conn, Io::Tcp(stream))
    }

    fn connect_unix(&mut self, conn: ConnId, path: &Path) {
        // A Unix socket connects at once or not at all.
        match UnixStream::connect(path).and_then(|stream| self.enter(conn, Io::Unix(stream))) {
            Ok(()) => self.machine.handle(self.now, Input::Connected { conn }),
            Err(error) => self.dial_failed(conn, &error),
        }
    }

    fn enter(&mut self, conn: ConnId, io: Io) -> io::Result<()> {
        let mut port = Port::new(io);
        port.register(self.poll.registry(), Key::Conn(conn))?;
        self.ports.insert(Key::Conn(conn), port);
        Ok(())
    }

    /// Something happened to a socket that is connecting.
    pub(super) fn dial_progressed(&mut self, conn: ConnId, event: &Event) {
        let key = Key::Conn(conn);
        let Some(port) = self.ports.get(&key) else { return };
        match outcome(port) {
            Ok(false) => {}
            Ok(true) => {
                self.dials.forget(conn);
                self.machine.handle(self.now, Input::Connected { conn });
                self.port_changed(key, event);
            }
            Err(error) => {
                self.remove_port(key);
                let left = match self.dials.under_way.remove(&conn) {
                    Some(Dial::Connecting { left }) => left,
                    Some(Dial::Resolving { .. }) | None => Vec::new(),
                };
                let said = dial_error(&error);
                self.connect(conn, left, error, said);
            }
        }
    }

    fn dial_failed(&mut self, conn: ConnId, error: &io::Error) {
        log::debug!("{conn}: not made: {error}");
        self.machine.handle(self.now, Input::DialFailed { conn, error: dial_error(error) });
    }
}

/// Whether a socket has connected; an error when it never will.
fn outcome(port: &Port) -> io::Result<bool> {
    if let Some(error) = port.take_error()? {
        return Err(error);
    }
    let Io::Tcp(stream) = &port.io else { return Ok(true) };
    match stream.peer_addr() {
        // A port on this machine to which nobody listens may be given to us as our own end, and connects to itself.
        Ok(peer) if stream.local_addr()? == peer => Err(ErrorKind::ConnectionRefused.into()),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

fn dial_error(error: &io::Error) -> DialError {
    if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) {
        DialError::Refused
    } else {
        DialError::Unreachable
    }
}
