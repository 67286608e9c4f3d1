//! One direction of a stream: data as the receiver takes it, then trailers.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::mirrored::Listener;

/// Which side a direction broke on, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The side that sends the data.
    Source(Reason),
    /// The side that takes it.
    Sink(Reason),
}

/// The reason behind an error; a connection that broke without one is cancelled streams.
pub(super) fn reason(error: &h2::Error) -> Reason {
    error.reason().unwrap_or(Reason::CANCEL)
}

fn give_back(source: &mut RecvStream, count: usize) {
    // An error says that the stream has ended: its window is of no interest any more.
    let _ended = source.flow_control().release_capacity(count);
}

/// Pieces below this many bytes are kept as copies: each piece holds the whole block that was read
/// from the socket, which many small ones would make a multiple of what is kept.
const COPIED_BELOW: usize = 1024;

/// What came before and is kept for another attempt.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) data: VecDeque<Bytes>,
    /// Copies that come after `data`.
    tail: BytesMut,
    bytes: usize,
    max: usize,
    /// Everything that was forwarded is kept.
    pub(super) whole: bool,
    pub(super) trailers: Option<HeaderMap>,
    pub(super) ended: bool,
    /// Gets what comes too.
    pub(super) listener: Option<Box<Listener>>,
}

impl Kept {
    /// Keeps at most `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            whole: true,
            ..Self::default()
        }
    }

    /// Whether it was kept.
    fn push(&mut self, data: &Bytes) -> bool {
        if let Some(listener) = &self.listener {
            listener.data(data);
        }
        self.bytes = self.bytes.saturating_add(data.len());
        self.whole &= self.bytes <= self.max;
        if !self.whole {
            self.data = VecDeque::new();
            self.tail = BytesMut::new();
        } else if data.len() < COPIED_BELOW {
            self.tail.extend_from_slice(data);
        } else {
            self.seal();
            self.data.push_back(data.clone());
        }
        self.whole
    }

    /// Makes all that is kept stand in `data`, for another attempt.
    pub(super) fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.data.push_back(self.tail.split().freeze());
        }
    }
}

/// One direction of a stream.
#[derive(Debug)]
pub(super) struct Flow {
    /// Taken from the source, not yet taken by the sink.
    chunk: Bytes,
    /// Its window is given back to the source as the sink takes it. What is kept was given back
    /// at once: it is bounded by itself.
    owed: bool,
    /// How many kept chunks of an earlier attempt were sent again.
    replayed: usize,
    kept: usize,
    ended: bool,
    /// The end is under way or was sent.
    pub(super) done: bool,
    /// Payload bytes that the sink took.
    pub(super) bytes: u64,
    /// Something happened since this was last cleared.
    pub(super) moved: bool,
    /// Trailers, once they passed.
    pub(super) trailers: Option<HeaderMap>,
    /// The source owes the next step, not the sink.
    pub(super) waits_for_source: bool,
}

impl Flow {
    /// `kept`: chunks that are sent again first. `done`: nothing comes after the head.
    pub(super) fn new(kept: &Kept, done: bool) -> Self {
        Self {
            chunk: Bytes::new(),
            owed: false,
            replayed: 0,
            kept: kept.data.len(),
            ended: kept.ended,
            done,
            bytes: 0,
            moved: false,
            trailers: kept.trailers.clone(),
            waits_for_source: false,
        }
    }

    /// Moves what can be moved. Ready once the end went out.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut RecvStream,
        sink: &mut SendStream<Bytes>,
        kept: &mut Kept,
    ) -> Poll<Result<(), Broken>> {
        while !self.done {
            if let Poll::Ready(why) = sink.poll_reset(cx) {
                return Poll::Ready(Err(Broken::Sink(why.unwrap_or_else(|e| reason(&e)))));
            }
            self.waits_for_source = false;
            if !self.chunk.is_empty() {
                ready!(self.poll_send(cx, source, sink))?;
                continue;
            }
            if self.replayed < self.kept {
                self.chunk = kept.data.get(self.replayed).cloned().unwrap_or_default();
                self.replayed += 1;
                self.owed = false;
                continue;
            }
            if self.ended {
                return Poll::Ready(self.send_end(sink));
            }
            self.waits_for_source = true;
            match ready!(source.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.moved = true;
                    self.owed = !kept.push(&data);
                    if !self.owed {
                        give_back(source, data.len());
                    }
                    self.kept = kept.data.len();
                    self.replayed = self.kept;
                    self.chunk = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(Broken::Source(reason(&error)))),
                None => match ready!(source.poll_trailers(cx)) {
                    Ok(trailers) => {
                        self.ended = true;
                        kept.ended = true;
                        kept.trailers.clone_from(&trailers);
                        self.trailers = trailers;
                    }
                    Err(error) => return Poll::Ready(Err(Broken::Source(reason(&error)))),
                },
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends as much of the chunk as the sink has room for. What the sink took is given back to
    /// the source as window: nobody sends more than the other side takes.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut RecvStream,
        sink: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Broken>> {
        let gone = |error: &h2::Error| Broken::Sink(reason(error));
        sink.reserve_capacity(self.chunk.len());
        let room = match sink.capacity() {
            0 => match ready!(sink.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(gone(&error))),
                None => return Poll::Ready(Err(Broken::Sink(Reason::CANCEL))),
            },
            room => room,
        };
        let part = self.chunk.split_to(room.min(self.chunk.len()));
        let count = part.len();
        // The last data carries the end, unless trailers do.
        let last = self.chunk.is_empty()
            && self.replayed == self.kept
            && self.trailers.is_none()
            && source.is_end_stream();
        sink.send_data(part, last).map_err(|error| gone(&error))?;
        self.moved = true;
        self.bytes += count as u64;
        self.done = last;
        if self.owed {
            give_back(source, count);
        }
        Poll::Ready(Ok(()))
    }

    fn send_end(&mut self, sink: &mut SendStream<Bytes>) -> Result<(), Broken> {
        self.done = true;
        self.moved = true;
        match self.trailers.clone() {
            Some(trailers) => sink.send_trailers(trailers),
            None => sink.send_data(Bytes::new(), true),
        }
        .map_err(|error| Broken::Sink(reason(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_pieces_are_whole_in_order_and_hold_no_block_when_small() {
        let block = Bytes::from((0..=255_u8).cycle().take(8 << 10).collect::<Vec<_>>());
        let mut kept = Kept::new(block.len());
        for at in 0..2000 {
            assert!(kept.push(&block.slice(at..=at)));
        }
        assert!(block.is_unique(), "small pieces are copies");
        assert!(kept.push(&block.slice(2000..4000)));
        assert!(kept.push(&block.slice(4000..4001)));
        kept.seal();
        assert_eq!(kept.data.len(), 3);
        assert!(kept.push(&block.slice(4001..8192)));
        assert_eq!(
            kept.data.iter().flatten().copied().collect::<Vec<_>>(),
            block
        );
        assert!(!kept.push(&block.slice(0..1)), "more than is kept");
        assert!(kept.data.is_empty() && kept.tail.is_empty());
        assert!(block.is_unique());
    }
}
