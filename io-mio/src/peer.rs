//! Who is at the other end of a connection, as the kernel tells it.

use mio::net::UnixStream;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, getsockopt, recv, sendto, socket,
    sockopt,
};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

/// Credentials of whoever connected to a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: i32,
}

/// Asks for the credentials of a Unix socket's peer, as they were when it connected.
pub(crate) fn credentials(stream: &UnixStream) -> nix::Result<Credentials> {
    let found = getsockopt(stream, sockopt::PeerCredentials)?;
    Ok(Credentials { uid: found.uid(), gid: found.gid(), pid: found.pid() })
}

/// The uid that owns the socket at the other end of a TCP connection, where that is on this machine.
///
/// A socket that its process has closed already belongs to nobody, and the kernel then says uid 0: only one that is
/// established and still open counts.
pub(crate) fn tcp_owner(peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    let (peer, local) = (canonical(peer), canonical(local));
    if !peer.ip().is_loopback() && peer.ip() != local.ip() {
        return None;
    }
    let entry = diag(peer, local).or_else(|| table(peer, local))?;
    (entry.state == ESTABLISHED && entry.inode != 0).then_some(entry.uid)
}

/// What the kernel says of one TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    state: u8,
    uid: u32,
    inode: u32,
}

/// `TCP_ESTABLISHED`.
const ESTABLISHED: u8 = 1;

/// A listener on `[::]` sees IPv4 peers under mapped addresses; the peer's own socket knows nothing of that.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Asks for exactly one socket (`sock_diag(7)`).
fn diag(peer: SocketAddr, local: SocketAddr) -> Option<Entry> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .ok()?;
    let fd = netlink.as_raw_fd();
    sendto(fd, &diag_request(peer, local), &NetlinkAddr::new(0, 0), MsgFlags::empty()).ok()?;
    let mut answer = [0; 512];
    // The kernel answers within sendto, so there is nothing to wait for.
    let count = recv(fd, &mut answer, MsgFlags::MSG_DONTWAIT).ok()?;
    diag_answer(answer.get(..count)?)
}

/// `SOCK_DIAG_BY_FAMILY`, in both directions.
const DIAG_BY_FAMILY: u16 = 20;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST_BYTES: u32 = 16 + 56;

fn diag_request(peer: SocketAddr, local: SocketAddr) -> Vec<u8> {
    const REQUEST: u16 = 1;
    const TCP: u8 = 6;
    let family: u8 = if peer.is_ipv4() { 2 } else { 10 };
    let mut request = Vec::new();
    request.extend(REQUEST_BYTES.to_ne_bytes());
    request.extend(DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8]); // sequence number, port
    request.extend([family, TCP, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes()); // in any state
    request.extend(peer.port().to_be_bytes());
    request.extend(local.port().to_be_bytes());
    request.extend(padded(peer.ip()));
    request.extend(padded(local.ip()));
    request.extend([0; 4]); // on any interface
    request.extend([0xff; 8]); // whatever its cookie
    request
}

fn padded(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn diag_answer(answer: &[u8]) -> Option<Entry> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    if kind != DIAG_BY_FAMILY {
        return None;
    }
    let message = answer.get(HEADER_BYTES..)?;
    let word = |at: usize| Some(u32::from_ne_bytes(*message.get(at..)?.first_chunk()?));
    Some(Entry { state: *message.get(1)?, uid: word(64)?, inode: word(68)? })
}

/// Reads the kernel's table, where the above is not to be had. Slower the more sockets there are.
fn table(peer: SocketAddr, local: SocketAddr) -> Option<Entry> {
    let path = if peer.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let wanted = (hex(peer), hex(local));
    let lines = BufReader::new(File::open(path).ok()?).lines();
    lines.map_while(Result::ok).find_map(|line| table_entry(&line, &wanted))
}

fn table_entry(line: &str, wanted: &(String, String)) -> Option<Entry> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (own, other, state) = (fields.next()?, fields.next()?, fields.next()?);
    if own != wanted.0 || other != wanted.1 {
        return None;
    }
    let mut fields = fields.skip(3);
    let (uid, inode) = (fields.next()?, fields.nth(1)?);
    Some(Entry {
        state: u8::from_str_radix(state, 16).ok()?,
        uid: uid.parse().ok()?,
        // Cut to its low half, as in the other interface; only zero means something.
        inode: inode.parse::<u64>().ok().map(|inode| u32::try_from(inode).unwrap_or(u32::MAX))?,
    })
}

/// An address as the table writes it: each four bytes as one number of this machine.
fn hex(addr: SocketAddr) -> String {
    let word = |bytes: &[u8; 4]| format!("{:08X}", u32::from_ne_bytes(*bytes));
    let ip = match addr.ip() {
        IpAddr::V4(ip) => word(&ip.octets()),
        IpAddr::V6(ip) => ip.octets().as_chunks().0.iter().map(word).collect(),
    };
    format!("{ip}:{:04X}", addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::getuid;
    use std::net::{TcpListener, TcpStream};

    fn pair(listen: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn the_owner_of_a_loopback_peer_is_found_in_both_ways() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (client, server) = pair(listen);
            let (peer, local) = (client.local_addr().unwrap(), server.local_addr().unwrap());
            assert_eq!(tcp_owner(peer, local), Some(getuid().as_raw()), "{listen}");
            let entry = table(peer, local).unwrap();
            assert_eq!((entry.uid, entry.state), (getuid().as_raw(), ESTABLISHED), "{listen}");
            assert!(entry.inode != 0);
        }
    }

    #[test]
    fn a_mapped_peer_is_found() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, peer) = listener.accept().unwrap();
        assert!(peer.is_ipv6());
        assert_eq!(tcp_owner(peer, server.local_addr().unwrap()), Some(getuid().as_raw()));
    }

    #[test]
    fn a_socket_that_was_closed_belongs_to_nobody() {
        let (client, server) = pair("127.0.0.1:0");
        let (peer, local) = (client.local_addr().unwrap(), server.local_addr().unwrap());
        drop(client);
        assert_eq!(tcp_owner(peer, local), None);
    }

    #[test]
    fn a_peer_elsewhere_has_no_owner_here() {
        let (peer, local) = ("192.0.2.1:5".parse().unwrap(), "192.0.2.2:6".parse().unwrap());
        assert_eq!(tcp_owner(peer, local), None);
    }
}
