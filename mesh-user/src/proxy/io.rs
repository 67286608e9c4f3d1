//! Socket steps that both engines use. Every one is a try first; readiness is awaited only when
//! the socket says so, and a short read needs no second call to learn that nothing is left.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, Interest, ReadBuf},
    net::TcpStream,
};

use super::{
    buffer::Buf,
    inq::{self, Received},
    socket::Socket,
};

/// A peer that has been silent for so long is asked whether it lives.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// And again, if there is no answer.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// Reads once into `buf`. `Ok(0)` is the end of the stream. Takes a block only when there is
/// something to read. The caller makes sure that `buf` has room.
pub(super) fn poll_fill(
    stream: &mut Socket,
    cx: &mut Context<'_>,
    buf: &mut Buf,
) -> Poll<io::Result<usize>> {
    debug_assert!(
        buf.has_room(),
        "reading into no room looks like the end of the stream"
    );
    if !buf.holds_block()
        && let Socket::Plain(tcp) = stream
    {
        ready!(tcp.poll_read_ready(cx))?;
    }
    let mut room = ReadBuf::new(buf.spare());
    let result = Pin::new(stream).poll_read(cx, &mut room);
    let count = room.filled().len();
    buf.filled(count);
    if buf.is_empty() {
        buf.release();
    }
    ready!(result)?;
    Poll::Ready(Ok(count))
}

/// Writes once from `first` then `second`, in one call.
pub(super) fn poll_write_two(
    stream: &mut Socket,
    cx: &mut Context<'_>,
    first: &[u8],
    second: &[u8],
) -> Poll<io::Result<usize>> {
    stream.poll_write_two(cx, first, second)
}

/// Half-closes: no more bytes will be sent. An error means that the other side is gone, which the
/// next read reports.
pub(super) fn shut_write(stream: &TcpStream) {
    let _gone = SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}

/// Closes so that the peer gets a RST instead of a FIN: what it received is not to be taken for
/// the whole.
pub(super) fn reset_on_close(socket: impl AsFd) {
    let _closed = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// Sends small writes at once: a proxy that holds bytes back adds latency to every exchange.
pub(super) fn set_nodelay(stream: &TcpStream) {
    let _closed = stream.set_nodelay(true);
}

/// Options of opaque connections: urgent bytes stay in their place, receives say what is left, and
/// a peer that vanished is noticed within 60 s + 10 s x `tcp_keepalive_probes` (9). Not left to the
/// listener to hand down: a connection may be accepted before it has them.
pub(super) fn set_opaque(socket: impl AsFd) {
    let reference = SockRef::from(&socket);
    // A socket that is closed already says so at the next read; a kernel without TCP_INQ costs one
    // more call for each read.
    let _closed = reference.set_out_of_band_inline(true);
    let _unknown = inq::enable(&socket);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY);
    let _closed = reference.set_tcp_keepalive(&keepalive);
    // A lone urgent byte that came before it was to stand in line was no news to epoll.
    let _closed = inq::look_again(&socket);
}

/// What a try says of the socket afterwards.
pub(super) struct Tried<T> {
    /// What it brought.
    pub(super) value: T,
    /// Whether the socket has nothing more to give, or no more room: the next try then waits for
    /// the socket, without a call that would only return EAGAIN.
    pub(super) exhausted: bool,
}

/// Tries once when the socket is ready; otherwise the task is woken when it is.
pub(super) fn poll_try<T>(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    interest: Interest,
    mut operation: impl FnMut() -> io::Result<Tried<T>>,
) -> Poll<io::Result<T>> {
    loop {
        if interest.is_readable() {
            ready!(stream.poll_read_ready(cx))?;
        } else {
            ready!(stream.poll_write_ready(cx))?;
        }
        let mut brought = None;
        // `WouldBlock` is how tokio is told that the socket is not ready any more. It forgets
        // nothing that came in meanwhile.
        let result = stream.try_io(interest, || {
            let tried = operation()?;
            if tried.exhausted {
                brought = Some(tried.value);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(tried.value)
        });
        match (brought, result) {
            (Some(value), _) => return Poll::Ready(Ok(value)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The kernel interrupts no call that can't wait; asked again all the same.
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, result) => return Poll::Ready(result),
        }
    }
}

/// Reads once into `buf`, as [`poll_fill`], and says what is left. Needs no unique access, and is not
/// fooled by an urgent mark.
pub(super) fn poll_receive(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    buf: &mut Buf,
) -> Poll<io::Result<Received>> {
    debug_assert!(
        buf.has_room(),
        "reading into no room looks like the end of the stream"
    );
    let result = poll_try(stream, cx, Interest::READABLE, || {
        let value = inq::receive(stream, buf.spare())?;
        Ok(Tried {
            value,
            exhausted: value.count > 0 && value.left == Some(0),
        })
    });
    if let Poll::Ready(Ok(received)) = &result {
        buf.filled(received.count);
    }
    if buf.is_empty() {
        buf.release();
    }
    result
}

/// Sends once.
pub(super) fn poll_send(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    poll_try(stream, cx, Interest::WRITABLE, || {
        let value = SockRef::from(stream).send_with_flags(bytes, libc::MSG_NOSIGNAL)?;
        Ok(Tried {
            value,
            exhausted: value < bytes.len(),
        })
    })
}

/// Whether the error is a reset rather than an orderly end.
pub(super) fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
    )
}
