//! What the kernel's TCP says about the connections of a network namespace: bytes and round-trip
//! time, asked by netlink (sock_diag(7)) when somebody looks. Nothing is counted for it on the way
//! of a connection.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_sys::Socket;

/// `NETLINK_SOCK_DIAG`.
const SOCK_DIAG: isize = 4;
/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// `INET_DIAG_INFO`: the number of the attribute, and one more than its bit in a request.
const INFO: u16 = 2;
const HEADER: usize = 16;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// Every state but LISTEN (10) and the half-open ones (12), which have no `tcp_info` of use.
const STATES: u32 = !(1 << 10 | 1 << 12);
/// Connections that are read of one namespace: the maps hold no more.
const CONNECTIONS_MAX: usize = 131_072;

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measured {
    /// Bytes sent, without repetitions.
    pub(super) sent: u64,
    /// Bytes received.
    pub(super) received: u64,
    /// Smoothed round-trip time, microseconds.
    pub(super) rtt_us: u32,
}

/// Connections of a namespace.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// By the socket's cookie.
    pub(super) by_cookie: HashMap<u64, Measured>,
    /// By local and remote address.
    pub(super) by_tuple: HashMap<(SocketAddr, SocketAddr), Measured>,
}

/// All TCP connections of the calling thread's namespace.
pub(super) fn connections() -> io::Result<Connections> {
    let mut found = Connections::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(family as u8, &mut found)?;
    }
    Ok(found)
}

fn dump(family: u8, found: &mut Connections) -> io::Result<()> {
    let mut socket = Socket::new(SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.send(&request(family), 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((kind, payload, tail)) = message(rest) {
            match kind {
                DONE => return Ok(()),
                ERROR => return Err(failure(payload)),
                _ => {}
            }
            if found.by_tuple.len() >= CONNECTIONS_MAX {
                return Ok(());
            }
            if let Some((cookie, tuple, measured)) = connection(payload) {
                found.by_cookie.insert(cookie, measured);
                found.by_tuple.insert(tuple, measured);
            }
            rest = tail;
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(family: u8) -> [u8; HEADER + 56] {
    let mut bytes = [0; HEADER + 56];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &((HEADER + 56) as u32).to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST_DUMP.to_ne_bytes());
    put(
        HEADER,
        &[family, libc::IPPROTO_TCP as u8, 1 << (INFO - 1), 0],
    );
    put(HEADER + 4, &STATES.to_ne_bytes());
    bytes
}

/// Type, payload and rest of the first message; `None` at the end or when it is cut short.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(part(bytes, 0)?) as usize;
    let kind = u16::from_ne_bytes(part(bytes, 4)?);
    let payload = bytes.get(HEADER..length)?;
    // The last one may lack its padding.
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((kind, payload, &bytes[next..]))
}

fn failure(payload: &[u8]) -> io::Error {
    match part(payload, 0).map(i32::from_ne_bytes) {
        Some(code) if code < 0 => io::Error::from_raw_os_error(-code),
        _ => io::Error::other("sock_diag: an answer that can't be read"),
    }
}

/// Cookie, local and remote address, and what was measured.
fn connection(payload: &[u8]) -> Option<(u64, (SocketAddr, SocketAddr), Measured)> {
    let v4 = match i32::from(*payload.first()?) {
        libc::AF_INET => true,
        libc::AF_INET6 => false,
        _ => return None,
    };
    // `struct inet_diag_sockid` behind four bytes.
    let port = |at| part(payload, at).map(u16::from_be_bytes);
    let local = SocketAddr::new(address(payload, 8, v4)?, port(4)?);
    let remote = SocketAddr::new(address(payload, 24, v4)?, port(6)?);
    let cookie = u64::from_ne_bytes(part(payload, 44)?);
    let info = attribute(payload.get(MESSAGE..)?, INFO)?;
    // `struct tcp_info`: tcpi_rtt, tcpi_bytes_received, tcpi_bytes_sent and _retrans (Linux 4.19;
    // tcpi_bytes_acked counts the SYN of whoever connects).
    let word = |at| part(info, at).map(u64::from_ne_bytes);
    let measured = Measured {
        rtt_us: u32::from_ne_bytes(part(info, 68)?),
        received: word(128)?,
        sent: word(200)?.saturating_sub(word(208)?),
    };
    Some((cookie, (local, remote), measured))
}

fn address(bytes: &[u8], at: usize, v4: bool) -> Option<IpAddr> {
    if v4 {
        return Some(Ipv4Addr::from(part::<4>(bytes, at)?).into());
    }
    // v4-mapped where an IPv6 socket speaks IPv4.
    Some(IpAddr::from(Ipv6Addr::from(part::<16>(bytes, at)?)).to_canonical())
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(part(bytes, 0)?));
        let kind = u16::from_ne_bytes(part(bytes, 2)?);
        let payload = bytes.get(4..length)?;
        if kind == wanted {
            return Some(payload);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn bytes_of_a_live_connection_are_found_by_both_ends_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).expect("up");
        let (mut server, _) = listener.accept().expect("accepted");
        client.write_all(&[7; 1_000]).expect("sent");
        server.read_exact(&mut [0; 1_000]).expect("received");
        let tuple = (
            client.local_addr().expect("local"),
            client.peer_addr().expect("peer"),
        );
        let found = connections().expect("sock_diag");
        let ours = found.by_tuple[&tuple];
        assert_eq!((ours.sent, ours.received), (1_000, 0));
        let theirs = found.by_tuple[&(tuple.1, tuple.0)];
        assert_eq!((theirs.sent, theirs.received), (0, 1_000));
    }

    #[test]
    fn damaged_answers_are_no_panic() {
        for length in 0..HEADER + MESSAGE + 8 {
            let mut bytes = vec![0xff; length];
            assert!(connection(&bytes).is_none());
            let _ = attribute(&bytes, INFO);
            if length >= 4 {
                bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
            }
            let _ = message(&bytes);
        }
        assert!(attribute(&[0, 0, 9, 0], INFO).is_none(), "no endless loop");
    }
}
