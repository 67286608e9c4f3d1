//! The socket as h2 sees it: what was read already comes first, and what comes in is counted.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::Guard;
use crate::{
    clock::{self, MonoNanos},
    proxy::{buffer::Buf, socket::Socket},
};

/// A socket with its counter.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Socket,
    read: Buf,
    guard: Guard,
    watch: Rc<Watch>,
}

/// What whoever drives the connection has to look at after each turn.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// The peer floods: nothing more is read.
    pub(super) flooded: Cell<bool>,
    /// A whole frame has come: of a server it is its settings.
    pub(super) settled: Cell<bool>,
    /// Since when a header block has been incomplete.
    pub(super) headers_since: Cell<Option<MonoNanos>>,
}

impl Wire {
    /// `preface`: how many bytes come before the first frame.
    pub(super) fn new(stream: Socket, read: Buf, preface: usize) -> Self {
        let guard = Guard::new(preface, clock::now());
        Self {
            stream,
            read,
            guard,
            watch: Rc::default(),
        }
    }

    /// Tells how the peer behaves.
    pub(super) fn watch(&self) -> Rc<Watch> {
        Rc::clone(&self.watch)
    }

    fn count(&mut self, bytes: &[u8]) {
        if self.guard.received(bytes, clock::now()).is_err() {
            self.watch.flooded.set(true);
        }
        if !self.watch.settled.get() && !bytes.is_empty() && self.guard.is_between_frames() {
            self.watch.settled.set(true);
        }
        self.watch.headers_since.set(self.guard.headers_since());
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.watch.flooded.get() {
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
