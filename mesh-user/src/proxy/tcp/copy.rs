//! Opaque bytes in both directions, as they come: half-close stays half-close, a reset stays a
//! reset, also when the side that resets is not being read at the time.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

use super::lane::{Broken, Ends, Lane, Waits};
use crate::{
    clock,
    proxy::{
        buffer::Buf,
        io::{reset_on_close, set_opaque},
        socket::Socket,
        timer::{Timer, deadline},
        tls,
    },
};

/// One side of a copy: its socket and what was read from it.
#[derive(Debug)]
pub(in crate::proxy) struct Side<'a> {
    pub(in crate::proxy) stream: &'a mut Socket,
    pub(in crate::proxy) buf: &'a mut Buf,
}

impl Side<'_> {
    /// The same for a shorter time.
    pub(in crate::proxy) fn again(&mut self) -> Side<'_> {
        Side {
            stream: self.stream,
            buf: self.buf,
        }
    }
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum CopyEnd {
    /// Both directions ended in order.
    Closed,
    /// The workload's side broke.
    DownstreamReset,
    /// The endpoint's side broke.
    UpstreamReset,
    /// Nothing moved for the idle time-out.
    Idle,
    /// The configuration no longer sends there.
    Changed,
}

/// Copies in both directions until both have ended, one side breaks, or nothing moves for `idle`
/// (zero: no limit). A side that broke makes the other one close with a reset; so does a copy that
/// is cut short, on both sides: what they received is not the whole.
///
/// `bytes` counts what was delivered: to the endpoint, to the workload.
pub(in crate::proxy) async fn copy(
    down: Side<'_>,
    up: Side<'_>,
    timer: &mut Timer,
    idle: Duration,
    bytes: &mut (u64, u64),
) -> CopyEnd {
    set_opaque(&*down.stream);
    set_opaque(&*up.stream);
    let (Socket::Plain(down_stream), Socket::Plain(up_stream)) = (&*down.stream, &*up.stream)
    else {
        return Box::pin(tls::copy(down, up, timer, idle, bytes)).await;
    };
    let mut cut = Cut {
        down: down_stream,
        up: up_stream,
        end: CopyEnd::Idle,
    };
    let (down_stream, up_stream) = (cut.down, cut.up);
    let mut forth = Half::new(down_stream, up_stream, down.buf);
    let mut back = Half::new(up_stream, down_stream, up.buf);
    let mut last = clock::now();
    let mut seen = *bytes;
    let end = poll_fn(|cx| {
        match forth.poll(&mut bytes.0, cx) {
            Ok(()) => {}
            Err(Broken::Source) => return Poll::Ready(CopyEnd::DownstreamReset),
            Err(Broken::Sink) => return Poll::Ready(CopyEnd::UpstreamReset),
        }
        match back.poll(&mut bytes.1, cx) {
            Ok(()) => {}
            Err(Broken::Source) => return Poll::Ready(CopyEnd::UpstreamReset),
            Err(Broken::Sink) => return Poll::Ready(CopyEnd::DownstreamReset),
        }
        if forth.lane.has_ended() && back.lane.has_ended() {
            return Poll::Ready(CopyEnd::Closed);
        }
        if seen != *bytes {
            seen = *bytes;
            last = clock::now();
        }
        timer.poll(cx, deadline(last, idle)).map(|()| CopyEnd::Idle)
    })
    .await;
    cut.end = end;
    end
}

/// Makes the sockets close as the copy ended. Until then: as one that was cut short.
struct Cut<'a> {
    down: &'a TcpStream,
    up: &'a TcpStream,
    end: CopyEnd,
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if matches!(self.end, CopyEnd::DownstreamReset | CopyEnd::Idle) {
            reset_on_close(self.up);
        }
        if matches!(self.end, CopyEnd::UpstreamReset | CopyEnd::Idle) {
            reset_on_close(self.down);
        }
    }
}

type Fault<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + 'a>>;

/// One direction, with a watch over its source for the time when nobody reads it.
struct Half<'a> {
    ends: Ends<'a>,
    buf: &'a mut Buf,
    lane: Lane,
    /// Made when the source is first not listened to, and kept: a direction that blocks once does
    /// so again.
    fault: Option<Fault<'a>>,
}

impl<'a> Half<'a> {
    fn new(source: &'a TcpStream, sink: &'a TcpStream, buf: &'a mut Buf) -> Self {
        Self {
            ends: Ends { source, sink },
            buf,
            lane: Lane::default(),
            fault: None,
        }
    }

    fn poll(&mut self, moved: &mut u64, cx: &mut Context<'_>) -> Result<(), Broken> {
        match self.lane.poll(self.ends, self.buf, moved, cx)? {
            // A read, now or soon, tells of a reset.
            Waits::Source | Waits::Turn => Ok(()),
            Waits::Sink | Waits::Ended => self.poll_fault(cx),
        }
    }

    /// A peer that resets while its bytes wait for the other side, or after its FIN, is told by
    /// nothing but the error state of the socket.
    fn poll_fault(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        let source = self.ends.source;
        let fault = self
            .fault
            .get_or_insert_with(|| Box::pin(source.ready(Interest::ERROR)));
        match fault.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(_) => Err(Broken::Source),
        }
    }
}
