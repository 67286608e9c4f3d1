//! Waits for the next request head of a connection.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::scan::Scan;
use crate::{
    clock::{self, MonoNanos},
    policy::Reject,
    proxy::{
        buffer::Buf,
        core::Conn,
        detect::{self, Guess},
        io::poll_fill,
        socket::Socket,
        timer::{Timer, deadline},
    },
};

/// Longest start line besides its target: method, spaces, version.
const LINE_REST_BYTES_MAX: usize = 64;

/// A connection whose time is over is closed once it has been idle so long: a client that is busy
/// hears it with its next answer instead, and loses no request on the way.
const AGED_IDLE: Duration = Duration::from_millis(500);

/// What came instead of a request head.
#[derive(Debug)]
pub(super) enum NoHead {
    /// The client closed, or was idle too long.
    Closed,
    /// The connection speaks HTTP/2.
    Http2,
    /// A head that is refused, and when it began.
    Refused(Reject, MonoNanos),
}

/// A request head that stands at the front of the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Its length.
    pub(super) length: usize,
    /// When its first byte was seen: for the log.
    pub(super) began: MonoNanos,
    /// When its last byte was: time-outs of the request count from here.
    pub(super) complete: MonoNanos,
}

/// Reads up to the end of the next head.
#[derive(Debug)]
pub(super) struct NextHead {
    scan: Scan,
    began: Option<MonoNanos>,
    idle_since: Option<MonoNanos>,
    /// The connection may still turn out to speak HTTP/2.
    first: bool,
    /// RFC 9112, section 2.2: one empty line before a request line is ignored.
    may_skip: bool,
}

impl NextHead {
    pub(super) const fn new(first: bool) -> Self {
        Self {
            scan: Scan::new(),
            began: None,
            idle_since: None,
            first,
            may_skip: true,
        }
    }

    /// The head, once all of it is there.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        stream: &mut Socket,
        buf: &mut Buf,
        timer: &mut Timer,
    ) -> Poll<Result<Head, NoHead>> {
        let limits = conn.core.limits();
        let line_max = limits.target_bytes_max + LINE_REST_BYTES_MAX;
        loop {
            if self.may_skip && buf.bytes().starts_with(b"\r\n") {
                buf.consume(2);
                self.may_skip = false;
            }
            let undecided = self.may_skip && buf.bytes() == b"\r";
            if !buf.is_empty() && !undecided {
                // The clock is read again only for a head that took more than one read.
                let earlier = self.began;
                let began = *self.began.get_or_insert_with(clock::now);
                conn.idle.set(false);
                match if self.first {
                    detect::declared_http(buf.bytes())
                } else {
                    Guess::Http1
                } {
                    Guess::Http2 => return Poll::Ready(Err(NoHead::Http2)),
                    Guess::More => {}
                    _ => {
                        self.first = false;
                        match self
                            .scan
                            .advance(buf.bytes(), limits.head_bytes_max, line_max)
                        {
                            Ok(Some(length)) => {
                                return Poll::Ready(Ok(Head {
                                    length,
                                    began,
                                    complete: earlier.map_or(began, |_| clock::now()),
                                }));
                            }
                            Ok(None) => {}
                            Err(reject) => {
                                return Poll::Ready(Err(NoHead::Refused(reject, began)));
                            }
                        }
                    }
                }
            } else if conn.core.grace_over.get() {
                return Poll::Ready(Err(NoHead::Closed));
            } else {
                conn.idle.set(true);
            }
            if !buf.has_room() {
                buf.grow();
            }
            match poll_fill(stream, cx, buf) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    return Poll::Ready(Err(match self.began {
                        Some(began) => NoHead::Refused(Reject::DownstreamClosed, began),
                        None => NoHead::Closed,
                    }));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    let (from, span) = match self.began {
                        Some(began) => (began, limits.header_timeout),
                        None => (
                            *self.idle_since.get_or_insert_with(clock::now),
                            limits.keep_alive_timeout,
                        ),
                    };
                    let until = match self.began {
                        Some(_) => deadline(from, span),
                        None => {
                            let aged = conn.expires(&limits).max(from.after(AGED_IDLE));
                            deadline(from, span).min(aged)
                        }
                    };
                    return timer.poll(cx, until).map(|()| {
                        Err(match self.began {
                            Some(began) => NoHead::Refused(Reject::HeaderTimeout, began),
                            None => NoHead::Closed,
                        })
                    });
                }
            }
        }
    }
}
