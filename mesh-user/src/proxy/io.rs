//! Socket steps that both engines use. Every one is a try first; readiness is awaited only when
//! the socket says so, and a short read needs no second call to learn that nothing is left.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::buffer::Buf;

/// Reads once into `buf`. `Ok(0)` is the end of the stream. Takes a block only when there is
/// something to read. The caller makes sure that `buf` has room.
pub(super) fn poll_fill(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    buf: &mut Buf,
) -> Poll<io::Result<usize>> {
    debug_assert!(
        buf.has_room(),
        "reading into no room looks like the end of the stream"
    );
    if !buf.holds_block() {
        ready!(stream.poll_read_ready(cx))?;
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
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    first: &[u8],
    second: &[u8],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    if second.is_empty() {
        stream.poll_write(cx, first)
    } else if first.is_empty() {
        stream.poll_write(cx, second)
    } else {
        stream.poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(second)])
    }
}

/// Half-closes: no more bytes will be sent. An error means that the other side is gone, which the
/// next read reports.
pub(super) fn shut_write(stream: &TcpStream) {
    let _gone = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
}

/// Closes so that the peer gets a RST instead of a FIN: what it received is not to be taken for
/// the whole.
pub(super) fn reset_on_close(stream: &TcpStream) {
    let _closed = stream.set_zero_linger();
}

/// Sends small writes at once: a proxy that holds bytes back adds latency to every exchange.
pub(super) fn set_nodelay(stream: &TcpStream) {
    let _closed = stream.set_nodelay(true);
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
