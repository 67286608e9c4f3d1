//! Bodies of answers: at hand, or made while they are sent.

use std::{
    convert::Infallible,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

/// Size of a piece in bytes.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces that wait for the reader. With their size: what a scrape holds at most.
const PIECES_MAX: usize = 4;

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// Piece by piece.
    Pieces(mpsc::Receiver<Bytes>),
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Whole(Some(text.into()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take()),
            Self::Pieces(pieces) => pieces.poll_recv(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Pieces(_) => hyper::body::SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }
}

/// A body, and what writes it.
pub(super) fn stream() -> (Pieces, Body) {
    let (to, from) = mpsc::channel(PIECES_MAX);
    (
        Pieces {
            to,
            piece: String::new(),
        },
        Body::Pieces(from),
    )
}

/// Writes a body from a thread that may block.
#[derive(Debug)]
pub(super) struct Pieces {
    to: mpsc::Sender<Bytes>,
    piece: String,
}

impl Pieces {
    /// Sends what is left.
    pub(super) fn finish(mut self) {
        // An error says that the reader went away.
        let _ = self.send();
    }

    fn send(&mut self) -> fmt::Result {
        let piece = mem::take(&mut self.piece);
        self.to.blocking_send(piece.into()).map_err(|_| fmt::Error)
    }
}

impl fmt::Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.piece.push_str(text);
        if self.piece.len() >= PIECE_BYTES {
            self.send()
        } else {
            Ok(())
        }
    }
}
