//! The body of a copy: handed over as the primary's is forwarded, taken as the mirror has room.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use super::{BUFFERED_BYTES_MAX, MIRROR_BYTES_MAX};

/// How far the body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// More may come.
    Open,
    /// It was handed over whole.
    Ended,
    /// The primary's ended before it was whole.
    Cut,
    /// The mirror took it too slowly.
    Over,
}

/// What waits for one mirror.
#[derive(Debug)]
pub(super) struct Queue {
    chunks: RefCell<VecDeque<Bytes>>,
    trailers: RefCell<Option<HeaderMap>>,
    bytes: Cell<usize>,
    /// The same of all mirrors of the worker.
    buffered: Rc<Cell<usize>>,
    state: Cell<State>,
    /// No body at all.
    empty: bool,
    reader: RefCell<Option<Waker>>,
    left_open: Notify,
}

/// The body did not come whole.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the copied body is not whole")]
pub(super) struct NotWhole;

impl Queue {
    pub(super) fn new(buffered: Rc<Cell<usize>>, empty: bool) -> Rc<Self> {
        Rc::new(Self {
            chunks: RefCell::default(),
            trailers: RefCell::default(),
            bytes: Cell::new(0),
            buffered,
            state: Cell::new(if empty { State::Ended } else { State::Open }),
            empty,
            reader: RefCell::default(),
            left_open: Notify::new(),
        })
    }

    pub(super) const fn state(&self) -> State {
        self.state.get()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.empty
    }

    fn push(&self, data: &Bytes) {
        if self.state.get() != State::Open || data.is_empty() {
            return;
        }
        let (bytes, all) = (
            self.bytes.get() + data.len(),
            self.buffered.get() + data.len(),
        );
        if bytes > MIRROR_BYTES_MAX || all > BUFFERED_BYTES_MAX {
            return self.leave(State::Over);
        }
        self.bytes.set(bytes);
        self.buffered.set(all);
        self.chunks.borrow_mut().push_back(data.clone());
        self.wake();
    }

    /// Ends what is open; what waited for a body that is of no use any more is dropped.
    fn leave(&self, state: State) {
        if self.state.get() != State::Open {
            return;
        }
        self.state.set(state);
        if state != State::Ended {
            self.forget();
        }
        self.left_open.notify_one();
        self.wake();
    }

    fn forget(&self) {
        self.chunks.take();
        let bytes = self.bytes.take();
        self.buffered.set(self.buffered.get() - bytes);
    }

    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Waits until nothing more comes, and says why.
    pub(super) async fn left_open(&self) -> State {
        while self.state.get() == State::Open {
            self.left_open.notified().await;
        }
        self.state.get()
    }

    /// The next piece; none at the end, after which there may be trailers.
    pub(super) fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, NotWhole>>> {
        if let Some(data) = self.chunks.borrow_mut().pop_front() {
            self.bytes.set(self.bytes.get() - data.len());
            self.buffered.set(self.buffered.get() - data.len());
            return Poll::Ready(Some(Ok(data)));
        }
        match self.state.get() {
            State::Ended => Poll::Ready(None),
            State::Cut | State::Over => Poll::Ready(Some(Err(NotWhole))),
            State::Open => {
                self.reader.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }

    pub(super) fn take_trailers(&self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.forget();
    }
}

/// As hyper takes a body.
pub(super) struct Taken(pub(super) Rc<Queue>);

impl Body for Taken {
    type Data = Bytes;
    type Error = NotWhole;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, NotWhole>>> {
        self.0.poll_data(cx).map(|next| match next {
            Some(data) => Some(data.map(Frame::data)),
            None => self.0.take_trailers().map(|it| Ok(Frame::trailers(it))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.0.is_empty() {
            SizeHint::with_exact(0)
        } else {
            SizeHint::default()
        }
    }
}

/// The engine's end: what it forwards of the body, for all mirrors of the request. Dropped before
/// [`end`](Self::end) it cuts them short.
#[derive(Debug)]
pub(in crate::proxy) struct Tee(Vec<Rc<Queue>>);

impl Tee {
    pub(super) const fn new(queues: Vec<Rc<Queue>>) -> Self {
        Self(queues)
    }

    /// Payload that was forwarded. Always copied: a slice would hold the whole block that was read
    /// from the socket, and what waits would be more than is counted.
    pub(in crate::proxy) fn data(&self, data: &[u8]) {
        if self.0.iter().any(|queue| queue.state.get() == State::Open) {
            let data = Bytes::copy_from_slice(data);
            for queue in &self.0 {
                queue.push(&data);
            }
        }
    }

    /// The body was forwarded whole.
    pub(in crate::proxy) fn end(&self, trailers: Option<&HeaderMap>) {
        for queue in &self.0 {
            if let Some(trailers) = trailers
                && queue.state.get() == State::Open
            {
                queue.trailers.replace(Some(trailers.clone()));
            }
            queue.leave(State::Ended);
        }
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        for queue in &self.0 {
            queue.leave(State::Cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(buffered: &Rc<Cell<usize>>) -> Rc<Queue> {
        Queue::new(Rc::clone(buffered), false)
    }

    #[test]
    fn body_at_its_bound_waits_and_above_is_given_up_whole() {
        let buffered = Rc::default();
        let one = queue(&buffered);
        let tee = Tee::new(vec![Rc::clone(&one)]);
        tee.data(&vec![0; MIRROR_BYTES_MAX]);
        assert_eq!(
            (one.state.get(), buffered.get()),
            (State::Open, MIRROR_BYTES_MAX)
        );
        tee.data(&[0]);
        assert_eq!((one.state.get(), buffered.get()), (State::Over, 0));
        assert!(one.chunks.borrow().is_empty());
    }

    #[test]
    fn bound_of_the_worker_counts_all_mirrors() {
        let buffered = Rc::default();
        let count = BUFFERED_BYTES_MAX / MIRROR_BYTES_MAX + 1;
        let queues: Vec<Rc<Queue>> = (0..count).map(|_| queue(&buffered)).collect();
        let tee = Tee::new(queues.clone());
        tee.data(&vec![0; MIRROR_BYTES_MAX]);
        assert_eq!(buffered.get(), BUFFERED_BYTES_MAX);
        let over = queues.iter().filter(|q| q.state.get() == State::Over);
        assert_eq!(over.count(), 1, "the last one found no room");
        drop((tee, queues));
        assert_eq!(buffered.get(), 0, "what nobody will take is forgotten");
    }

    #[test]
    fn body_that_was_not_handed_over_whole_is_an_error_not_an_end() {
        let one = queue(&Rc::default());
        let tee = Tee::new(vec![Rc::clone(&one)]);
        tee.data(b"half");
        drop(tee);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(one.poll_data(&mut cx), Poll::Ready(Some(Err(_)))));
    }
}
