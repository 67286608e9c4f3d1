//! TLS on a socket, with the manners of a socket: what was written is in the kernel, an end is told
//! apart from a cut, a close says goodbye.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

/// TLS on a socket, its handshake behind it.
///
/// A write that rustls has taken is told as pending until the kernel has it too: engines write and
/// then wait for something else, and nobody would send what rustls keeps. So who retries a write
/// has to offer the same bytes first, as with h2 and hyper.
pub(in crate::proxy) struct TlsWire {
    inner: TlsStream<TcpStream>,
    /// Bytes that rustls has taken and the caller doesn't know of yet.
    taken: usize,
    /// The end is to be sent, or was.
    ending: bool,
    /// Reading or writing failed: there is nothing more to say.
    broken: bool,
}

/// Nothing of the session: it holds keys.
impl fmt::Debug for TlsWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsWire").finish_non_exhaustive()
    }
}

impl TlsWire {
    /// Wraps a session whose handshake is over.
    pub(in crate::proxy) fn new(inner: TlsStream<TcpStream>) -> Self {
        Self {
            inner,
            taken: 0,
            ending: false,
            broken: false,
        }
    }

    /// The socket.
    pub(in crate::proxy) fn tcp(&self) -> &TcpStream {
        self.inner.get_ref().0
    }

    fn note<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.broken |= matches!(result, Poll::Ready(Err(_)));
        result
    }

    /// Reads plaintext. The end of the stream is the peer's `close_notify`; a socket that ends
    /// without one is an error (RFC 8446, section 6.1: it may have been cut).
    pub(in crate::proxy) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ending {
            // Its outcome is no concern of a reader.
            let _sent = Pin::new(&mut self.inner).poll_shutdown(cx);
        }
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.note(read)
    }

    /// Writes once, to the kernel.
    pub(in crate::proxy) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.taken == 0 {
            let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bytes);
            self.taken = ready!(self.note(written))?;
        }
        ready!(self.poll_flush(cx))?;
        let offered: usize = bytes.iter().map(|slice| slice.len()).sum();
        debug_assert!(self.taken <= offered, "a write is retried with its bytes");
        Poll::Ready(Ok(std::mem::take(&mut self.taken).min(offered)))
    }

    /// Gives the kernel what rustls has.
    pub(in crate::proxy) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.note(flushed)
    }

    /// Sends the end: `close_notify`, then FIN.
    pub(in crate::proxy) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ending = true;
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.note(shut)
    }

    /// Sends the end, now or with the next reads.
    pub(in crate::proxy) fn shut_write(&mut self) {
        let _later = self.poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }
}

impl Drop for TlsWire {
    fn drop(&mut self) {
        if self.ending || self.broken {
            return;
        }
        // One that is to be reset has no orderly end: the peer could take what it has for the
        // whole.
        let reset = SockRef::from(self.tcp()).linger();
        if matches!(reset, Ok(None)) {
            self.shut_write();
        }
    }
}
