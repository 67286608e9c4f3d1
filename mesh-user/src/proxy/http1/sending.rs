//! What a client sends of a request body, and what is kept of it for another attempt.

use super::{body::Body, mirrored::Mirrored};
use crate::{clock::MonoNanos, proxy::buffer::Buf};

/// The client's side of a request: survives attempts.
#[derive(Debug)]
pub(super) struct Sending {
    /// What the client still owes.
    pub(super) body: Body,
    /// Bytes at the front of the client's buffer that belong to the body and may be forwarded.
    pub(super) ready: usize,
    /// Body bytes that were forwarded, for another attempt.
    pub(super) kept: Vec<u8>,
    /// Whether all forwarded body bytes are kept.
    pub(super) replayable: bool,
    keep_max: usize,
    /// When the request was complete.
    pub(super) complete: Option<MonoNanos>,
    /// Body bytes from the client, framing included.
    pub(super) bytes: u64,
    /// Mirrors that get the body too.
    pub(super) mirrored: Option<Box<Mirrored>>,
}

impl Sending {
    /// `keep_max`: how many body bytes are kept for another attempt. `head`: when the head was
    /// complete.
    pub(super) fn new(body: Body, keep_max: usize, head: MonoNanos) -> Self {
        Self {
            ready: 0,
            kept: Vec::new(),
            replayable: true,
            keep_max,
            complete: body.is_done().then_some(head),
            bytes: 0,
            mirrored: None,
            body,
        }
    }

    /// Whether everything that the client sends has been taken in.
    pub(super) fn is_taken(&self) -> bool {
        self.body.is_done() && self.ready == 0
    }

    /// Drops what was taken in and not forwarded.
    pub(super) fn drop_ready(&mut self, buf: &mut Buf) {
        buf.consume(std::mem::take(&mut self.ready));
    }

    /// Notes that these bytes, the front of the client's buffer, were forwarded.
    pub(super) fn forwarded(&mut self, bytes: &[u8]) {
        self.ready -= bytes.len();
        self.bytes += bytes.len() as u64;
        if let Some(mirrored) = &mut self.mirrored {
            mirrored.forwarded(bytes, self.body.is_done() && self.ready == 0);
        }
        if self.replayable {
            if self.kept.len() + bytes.len() <= self.keep_max {
                self.kept.extend_from_slice(bytes);
            } else {
                self.replayable = false;
                self.kept = Vec::new();
            }
        }
    }
}
