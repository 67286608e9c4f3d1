//! Opaque bytes in both directions when a side is TLS: no splice, for the bytes change on the way.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::AsyncWrite as _;

use crate::{
    clock,
    proxy::{
        buffer::Buf,
        io::{poll_fill, reset_on_close},
        socket::Socket,
        tcp::{CopyEnd, Side},
        timer::{Timer, deadline},
    },
};

/// Bytes that a direction moves before others get their turn.
const TURN_BYTES: u64 = 128 << 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Open,
    /// The source has ended.
    Ending,
    /// The end was passed on.
    Ended,
}

enum Broken {
    Source,
    Sink,
}

/// As `tcp::copy`, in user space. A side that breaks while nobody reads it is noticed by the next
/// write to the other, or by the idle time-out.
pub(in crate::proxy) async fn copy(
    down: Side<'_>,
    up: Side<'_>,
    timer: &mut Timer,
    idle: Duration,
    bytes: &mut (u64, u64),
) -> CopyEnd {
    let mut cut = Cut {
        down: down.stream,
        up: up.stream,
        end: CopyEnd::Idle,
    };
    let (mut forth, mut back) = (Flow::default(), Flow::default());
    let mut last = clock::now();
    let mut seen = *bytes;
    let end = poll_fn(|cx| {
        match poll_half(&mut forth, cut.down, cut.up, down.buf, &mut bytes.0, cx) {
            Ok(()) => {}
            Err(Broken::Source) => return Poll::Ready(CopyEnd::DownstreamReset),
            Err(Broken::Sink) => return Poll::Ready(CopyEnd::UpstreamReset),
        }
        match poll_half(&mut back, cut.up, cut.down, up.buf, &mut bytes.1, cx) {
            Ok(()) => {}
            Err(Broken::Source) => return Poll::Ready(CopyEnd::UpstreamReset),
            Err(Broken::Sink) => return Poll::Ready(CopyEnd::DownstreamReset),
        }
        if forth == Flow::Ended && back == Flow::Ended {
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
    down: &'a mut Socket,
    up: &'a mut Socket,
    end: CopyEnd,
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if matches!(self.end, CopyEnd::DownstreamReset | CopyEnd::Idle) {
            reset_on_close(&*self.up);
        }
        if matches!(self.end, CopyEnd::UpstreamReset | CopyEnd::Idle) {
            reset_on_close(&*self.down);
        }
    }
}

fn poll_half(
    flow: &mut Flow,
    source: &mut Socket,
    sink: &mut Socket,
    buf: &mut Buf,
    moved: &mut u64,
    cx: &mut Context<'_>,
) -> Result<(), Broken> {
    let turn = *moved + TURN_BYTES;
    while *moved < turn {
        if !buf.is_empty() {
            match sink.poll_write_two(cx, buf.bytes(), &[]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(count)) => {
                    *moved += count as u64;
                    buf.consume(count);
                }
                Poll::Ready(Err(_)) => return Err(Broken::Sink),
            }
            continue;
        }
        match flow {
            Flow::Open => match poll_fill(source, cx, buf) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => *flow = Flow::Ending,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(Broken::Source),
            },
            Flow::Ending => match Pin::new(&mut *sink).poll_shutdown(cx) {
                Poll::Pending => return Ok(()),
                // An end that can't be told because the other side has gone: its read says so.
                Poll::Ready(Ok(())) => *flow = Flow::Ended,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::NotConnected => {
                    *flow = Flow::Ended;
                }
                Poll::Ready(Err(_)) => return Err(Broken::Sink),
            },
            Flow::Ended => return Ok(()),
        }
    }
    cx.waker().wake_by_ref();
    Ok(())
}
