//! A receive that also says how many bytes are left (TCP_INQ, Linux 4.18).
//!
//! A short read usually means that the receive queue is empty, and everybody relies on it to save
//! the read that would return EAGAIN. It is not true at an urgent mark: a read ends there with more
//! bytes behind it, and with edge-triggered readiness nobody would come back for them.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// The option, and the type of its control message (`linux/tcp.h`).
const TCP_INQ: libc::c_int = 36;

/// What one receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes read; 0 is the end of the stream.
    pub(super) count: usize,
    /// Bytes that are left in the receive queue; at least 1 when the end stands behind them. None:
    /// the kernel doesn't say.
    pub(super) left: Option<usize>,
}

/// `struct cmsghdr` with the one value that is asked for, aligned as the kernel writes it.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    left: libc::c_int,
}

/// Makes receives on this socket, and on those that a listener accepts, say what is left.
///
/// # Errors
/// The kernel doesn't know the option.
pub(super) fn enable(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, TCP_INQ)
}

/// Wakes whoever waits for the socket, if there is something to read.
///
/// Setting SO_RCVLOWAT asks the kernel to look again (`tcp_set_rcvlowat`). Needed where an option
/// makes readable what was not: the event of its arrival is over by then.
///
/// # Errors
/// As setsockopt(2).
pub(super) fn look_again(socket: impl AsFd) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT)
}

/// Sets an option to 1.
fn set(socket: impl AsFd, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    #[expect(unsafe_code, reason = "neither socket2 nor nix knows these options")]
    // SAFETY: the value is a `c_int` that lives for the call, and its size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads once.
///
/// # Errors
/// As recv(2); [`io::ErrorKind::WouldBlock`] when nothing is there.
pub(super) fn receive(socket: impl AsFd, room: &mut [u8]) -> io::Result<Received> {
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: 0,
            cmsg_level: 0,
            cmsg_type: 0,
        },
        left: 0,
    };
    let mut target = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    let mut message = libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: &raw mut target,
        msg_iovlen: 1,
        msg_control: (&raw mut control).cast(),
        msg_controllen: size_of::<Control>(),
        msg_flags: 0,
    };
    #[expect(
        unsafe_code,
        reason = "nix allocates for a control message that it doesn't know"
    )]
    // SAFETY: `message` refers to `target`, which describes `room`, and to `control` with its size;
    // all are writable, borrowed by nobody else, and live for the call.
    let count = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    let told = message.msg_controllen
        >= std::mem::offset_of!(Control, left) + size_of::<libc::c_int>()
        && control.header.cmsg_level == libc::IPPROTO_TCP
        && control.header.cmsg_type == TCP_INQ;
    Ok(Received {
        count: count as usize,
        left: told.then(|| usize::try_from(control.left).unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{Shutdown, TcpListener, TcpStream},
    };

    use super::*;

    fn got(count: usize, left: usize) -> Received {
        Received {
            count,
            left: Some(left),
        }
    }

    #[test]
    fn receive_says_what_is_left_and_the_option_is_inherited() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        enable(&listener).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut room = [0; 4];
        let error = receive(&server, &mut room).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        client.write_all(b"abcdef").unwrap();
        assert_eq!(receive(&server, &mut room).unwrap(), got(4, 2));
        assert_eq!(&room, b"abcd");
        assert_eq!(receive(&server, &mut room).unwrap(), got(2, 0));
        client.write_all(b"g").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive(&server, &mut room).unwrap().count, 1);
        assert_eq!(receive(&server, &mut room).unwrap().count, 0);
    }

    /// A read ends at an urgent mark although more is there: the one short read that is not the
    /// last.
    #[test]
    fn receive_at_an_urgent_mark_says_that_more_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        enable(&listener).unwrap();
        socket2::SockRef::from(&listener)
            .set_out_of_band_inline(true)
            .unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        socket2::SockRef::from(&client)
            .send_out_of_band(b"ab!")
            .unwrap();
        let mut room = [0; 9];
        assert_eq!(receive(&server, &mut room).unwrap(), got(2, 1));
        assert_eq!(receive(&server, &mut room).unwrap(), got(1, 0));
        assert_eq!(room[0], b'!');
    }

    #[test]
    fn receive_without_the_option_says_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(b"abc").unwrap();
        let received = receive(&server, &mut [0; 9]).unwrap();
        assert_eq!((received.count, received.left), (3, None));
    }
}
