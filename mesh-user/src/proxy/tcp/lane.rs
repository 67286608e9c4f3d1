//! One direction of a copy.
//!
//! Small amounts are read and sent through the connection's buffer. When more than a block is left
//! in the receive queue, bytes go through a pipe instead ([`Pipe`]) for as long as each fill brings
//! a block or more. Either way only a read may say that the queue is empty or that the stream has
//! ended: splice says the same in front of an urgent mark.

use std::{
    io,
    ops::ControlFlow,
    task::{Context, Poll},
};

use tokio::{io::Interest, net::TcpStream};

use crate::proxy::{
    buffer::{BLOCK_BYTES, Buf},
    io::{Tried, poll_receive, poll_send, poll_try, shut_write},
    splice::Pipe,
};

/// Bytes that a direction moves before others get their turn: some 50 us. The runtime looks at the
/// sockets after 61 turns, so a busy one delays the others by a few milliseconds.
const TURN_BYTES: u64 = 128 << 10;
/// Fewer bytes at once are cheaper to copy than to splice.
const SPLICE_FROM_BYTES: usize = BLOCK_BYTES;

/// Which side a step failed on.
pub(super) enum Broken {
    Source,
    Sink,
}

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// For bytes, or the end: the source is being listened to.
    Source,
    /// For room: nobody listens to the source.
    Sink,
    /// For nothing: others are let go first.
    Turn,
    /// For nothing ever: the end was passed on.
    Ended,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Open,
    /// The source has ended; its last bytes may still be under way.
    Ending,
    Ended,
}

/// The state of one direction.
#[derive(Debug, Default)]
pub(super) struct Lane {
    flow: Flow,
    /// Enough at once to be worth a pipe.
    bulk: bool,
    pipe: Option<Pipe>,
}

/// The sockets of one direction.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) source: &'a TcpStream,
    pub(super) sink: &'a TcpStream,
}

type Step = Result<ControlFlow<Waits>, Broken>;

const ON: ControlFlow<Waits> = ControlFlow::Continue(());

impl Lane {
    /// Whether the end was passed on.
    pub(super) fn has_ended(&self) -> bool {
        self.flow == Flow::Ended
    }

    /// Moves bytes until one of the sockets blocks, or it is others' turn. Adds what the sink took
    /// to `moved`.
    pub(super) fn poll(
        &mut self,
        ends: Ends<'_>,
        buf: &mut Buf,
        moved: &mut u64,
        cx: &mut Context<'_>,
    ) -> Result<Waits, Broken> {
        let turn = *moved + TURN_BYTES;
        while *moved < turn {
            let step = if !buf.is_empty() {
                send(ends.sink, buf, moved, cx)?
            } else if self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0) {
                self.drain(ends.sink, moved, cx)?
            } else {
                match self.flow {
                    Flow::Open => self.take(ends.source, buf, cx)?,
                    Flow::Ending => {
                        shut_write(ends.sink);
                        self.flow = Flow::Ended;
                        ON
                    }
                    Flow::Ended => ControlFlow::Break(Waits::Ended),
                }
            };
            if let ControlFlow::Break(waits) = step {
                return Ok(waits);
            }
        }
        cx.waker().wake_by_ref();
        Ok(Waits::Turn)
    }

    /// Takes bytes out of the source: into a pipe when that pays, else into `buf`.
    fn take(&mut self, source: &TcpStream, buf: &mut Buf, cx: &mut Context<'_>) -> Step {
        if self.bulk && self.fill(source, cx)? {
            return Ok(ON);
        }
        // An idle connection holds no pipe.
        self.pipe = None;
        match poll_receive(source, cx, buf) {
            Poll::Pending => return Ok(ControlFlow::Break(Waits::Source)),
            Poll::Ready(Ok(received)) if received.count == 0 => self.flow = Flow::Ending,
            Poll::Ready(Ok(received)) => {
                self.bulk = received.left.unwrap_or(0) >= SPLICE_FROM_BYTES;
            }
            Poll::Ready(Err(_)) => return Err(Broken::Source),
        }
        Ok(ON)
    }

    /// Fills a pipe. False when there is no pipe, or nothing comes this way: a read says why.
    fn fill(&mut self, source: &TcpStream, cx: &mut Context<'_>) -> Result<bool, Broken> {
        if source.poll_read_ready(cx).is_pending() {
            return Ok(false);
        }
        let Some(mut pipe) = self.pipe.take().or_else(Pipe::borrow) else {
            self.bulk = false;
            return Ok(false);
        };
        // EAGAIN is kept from tokio: it may be an urgent mark, and then the socket is still ready.
        let filled = source.try_io(Interest::READABLE, || match pipe.fill(source) {
            Err(error) if is_again(&error) => Ok(0),
            other => other,
        });
        match filled {
            Ok(0) => Ok(false),
            Err(error) if is_again(&error) => Ok(false),
            Ok(count) => {
                self.bulk = count >= SPLICE_FROM_BYTES;
                self.pipe = Some(pipe);
                Ok(true)
            }
            // The socket says it once: a read would take the stream for ended.
            Err(_) => Err(Broken::Source),
        }
    }

    /// Sends what stands in the pipe.
    fn drain(&mut self, sink: &TcpStream, moved: &mut u64, cx: &mut Context<'_>) -> Step {
        let Some(pipe) = &mut self.pipe else {
            return Ok(ON);
        };
        let drained = poll_try(sink, cx, Interest::WRITABLE, || {
            pipe.drain(sink).map(|value| Tried {
                value,
                exhausted: false,
            })
        });
        settle(drained, moved).map(|step| step.map_continue(|_count| ()))
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Sends what stands in the buffer.
fn send(sink: &TcpStream, buf: &mut Buf, moved: &mut u64, cx: &mut Context<'_>) -> Step {
    let sent = poll_send(sink, cx, buf.bytes());
    Ok(settle(sent, moved)?.map_continue(|count| buf.consume(count)))
}

fn settle(
    sent: Poll<io::Result<usize>>,
    moved: &mut u64,
) -> Result<ControlFlow<Waits, usize>, Broken> {
    match sent {
        Poll::Pending => Ok(ControlFlow::Break(Waits::Sink)),
        Poll::Ready(Ok(count)) => {
            *moved += count as u64;
            Ok(ControlFlow::Continue(count))
        }
        Poll::Ready(Err(_)) => Err(Broken::Sink),
    }
}
