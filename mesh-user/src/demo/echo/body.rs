//! The bodies of answers.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// What `/bytes/N` repeats: one frame of 64 KiB.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The body of an answer.
#[derive(Debug)]
pub(super) enum EchoBody {
    /// These bytes, once.
    Once(Bytes),
    /// So many zero bytes.
    Zeros(u64),
    /// What comes, sent back as it comes.
    Back {
        /// Where from.
        incoming: Incoming,
        /// What follows instead of the sender's own trailers.
        trailers: Option<HeaderMap>,
    },
    /// Nothing more.
    End,
}

impl Body for EchoBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (frame, next) = match &mut *self {
            Self::End => return Poll::Ready(None),
            Self::Once(bytes) => (std::mem::take(bytes), Self::End),
            Self::Zeros(left) => {
                let length = (*left).min(ZEROS.len() as u64);
                let rest = *left - length;
                // At most 64 KiB, so it fits.
                let bytes = Bytes::from_static(&ZEROS[..usize::try_from(length).unwrap_or(0)]);
                (
                    bytes,
                    if rest == 0 {
                        Self::End
                    } else {
                        Self::Zeros(rest)
                    },
                )
            }
            Self::Back { incoming, trailers } => {
                let frame = std::task::ready!(Pin::new(incoming).poll_frame(context));
                return Poll::Ready(match frame {
                    // Our own trailers stand for the sender's.
                    Some(Ok(frame)) if frame.is_trailers() && trailers.is_some() => {
                        let own = trailers.take().map(|own| Ok(Frame::trailers(own)));
                        *self = Self::End;
                        own
                    }
                    None => {
                        let own = trailers.take().map(|own| Ok(Frame::trailers(own)));
                        *self = Self::End;
                        own
                    }
                    frame => frame,
                });
            }
        };
        *self = next;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::End => true,
            Self::Once(bytes) => bytes.is_empty(),
            Self::Zeros(left) => *left == 0,
            Self::Back { incoming, trailers } => trailers.is_none() && incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::End => SizeHint::with_exact(0),
            Self::Once(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Zeros(left) => SizeHint::with_exact(*left),
            Self::Back {
                incoming,
                trailers: None,
            } => incoming.size_hint(),
            // Unknown on purpose: HTTP/2 ends a stream of known length without trailers.
            Self::Back { .. } => SizeHint::new(),
        }
    }
}
