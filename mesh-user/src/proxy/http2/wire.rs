//! The socket as h2 sees it: what was read already comes first, and what comes in is counted.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::guard::Guard;
use crate::{
    clock,
    proxy::{buffer::Buf, io::reset_on_close},
};

/// A socket with its counter.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    read: Buf,
    guard: Guard,
    /// Set when the peer floods: nothing more is read.
    flooded: Rc<Cell<bool>>,
}

impl Wire {
    /// `preface`: how many bytes come before the first frame.
    pub(super) fn new(stream: TcpStream, read: Buf, preface: usize) -> Self {
        let guard = Guard::new(preface, clock::now());
        Self { stream, read, guard, flooded: Rc::default() }
    }

    /// Tells whether the peer floods.
    pub(super) fn flooded(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.flooded)
    }

    fn count(&mut self, bytes: &[u8]) {
        if self.guard.received(bytes, clock::now()).is_err() {
            self.flooded.set(true);
            reset_on_close(&self.stream);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flooded.get() {
            // Whoever drives the connection looks at the flag after each turn, and ends it.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.read.is_empty() {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        } else {
            let count = this.read.len().min(buf.remaining());
            buf.put_slice(&this.read.bytes()[..count]);
            this.read.consume(count);
        }
        this.count(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.guard.sent(count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bytes))?;
        this.guard.sent(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
