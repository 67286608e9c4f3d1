//! Extended CONNECT (RFC 8441): a stream that becomes a tunnel, for WebSocket and others.
//!
//! To an endpoint whose port speaks HTTP/2, and that says it takes such streams, it goes on as one,
//! by the way of every stream. Else it becomes an upgrade of an HTTP/1.1 connection here. A tunnel
//! has no time-outs but the idle one, once it is open.

use std::{
    future::{Future, poll_fn},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::{
    client::open_stream,
    flow::reason,
    head::Head,
    refuse,
    stream::{Stream, Turn},
};
use crate::{
    clock::{self, MonoNanos},
    model::Protocol,
    policy::{Reject, breaker::RequestPermit, rate_limit::Verdict, snapshot::Outcome},
    proxy::{
        flows::Watch,
        http1::{Answered, Handshake, NoAnswer, Offer, Rest},
        io::{poll_fill, poll_write_two, reset_on_close},
        timer::{Timer, deadline},
        upstream::{NoConnection, Target, Upstream, connect_queued},
    },
};

/// How a tunnel went.
pub(super) enum Tunnel {
    /// The endpoint takes it as a stream.
    Http2,
    /// No connection; none: the client has gone.
    NoConnection(Option<NoConnection>),
    Ended(Turn),
}

/// What a tunnel is opened with.
pub(super) struct Way<'a> {
    pub(super) target: &'a Target<'a>,
    /// What the endpoint's port speaks.
    pub(super) declared: Protocol,
    /// When it has to be open.
    pub(super) until: MonoNanos,
    pub(super) idle: Duration,
    pub(super) verdict: &'a Verdict,
    pub(super) permit: &'a mut RequestPermit,
    pub(super) record: &'a dyn Fn(Outcome, MonoNanos),
    /// Says when the configuration no longer sends there.
    pub(super) watch: Option<Box<Watch>>,
}

impl Stream {
    /// Opens a tunnel and keeps it to its end, unless it goes on over HTTP/2.
    pub(super) async fn tunnel(&mut self, head: &Head, way: Way<'_>) -> Tunnel {
        let conn = Rc::clone(&self.conn);
        if matches!(way.declared, Protocol::Http2 | Protocol::Grpc) {
            let takes = async {
                let (lease, sender) = open_stream(&conn.core, &conn.workload, way.target).await?;
                Ok(lease.settled().await && sender.is_extended_connect_protocol_enabled())
            };
            match self.meanwhile(way.until, takes).await {
                Ok(true) => return Tunnel::Http2,
                // It may speak HTTP/1.1 as well.
                Ok(false) => {}
                Err(why) => return Tunnel::NoConnection(why),
            }
        }
        let dial = connect_queued(&conn.core, &conn.workload, way.target, true);
        match self.meanwhile(way.until, dial).await {
            Ok(up) => Tunnel::Ended(self.upgrade(head, up, way).await),
            Err(why) => Tunnel::NoConnection(why),
        }
    }

    /// Waits for something as long as the client does. No error: the client has gone.
    async fn meanwhile<T>(
        &mut self,
        until: MonoNanos,
        step: impl Future<Output = Result<T, NoConnection>>,
    ) -> Result<T, Option<NoConnection>> {
        let mut step = std::pin::pin!(step);
        poll_fn(|cx| {
            if let Poll::Ready(result) = step.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(Some));
            }
            if self.respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(None));
            }
            self.timer
                .poll(cx, until)
                .map(|()| Err(Some(NoConnection::Local(Reject::UpstreamTimeout))))
        })
        .await
    }

    async fn upgrade(&mut self, head: &Head, mut up: Upstream, way: Way<'_>) -> Turn {
        let conn = Rc::clone(&self.conn);
        let limits = conn.core.limits();
        let mut handshake = {
            let mut rng = conn.core.rng.borrow_mut();
            Handshake::new(head.offer(), &mut rng)
        };
        self.log.attempts += 1;
        let started = clock::now();
        let answered = poll_fn(|cx| {
            if self.respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Err((Outcome::Abandoned, Reject::DownstreamClosed)));
            }
            if let Poll::Ready(answered) = handshake.poll(cx, &mut up, &limits) {
                return Poll::Ready(answered.map_err(|why| (Outcome::Reset, reject(why))));
            }
            let late = self.timer.poll(cx, way.until);
            late.map(|()| Err((Outcome::Timeout, Reject::UpstreamTimeout)))
        })
        .await;
        let now = clock::now();
        let Answered { mut response, rest } = match answered {
            Ok(answered) => answered,
            Err((outcome, reject)) => {
                (way.record)(outcome, now);
                return Turn::Refuse(reject);
            }
        };
        self.log.upstream = Some(now.since(started));
        let status = response.status().as_u16();
        (way.record)(
            Outcome::Status(if rest.is_none() { 101 } else { status }),
            now,
        );
        if status < 500 {
            way.permit.answered();
        }
        refuse::put_limits(response.headers_mut(), way.verdict);
        if let Some(edits) = &self.answer_edits {
            edits.apply(response.headers_mut());
        }
        let Ok(sink) = self.respond.send_response(response, false) else {
            return Turn::Refuse(Reject::DownstreamClosed);
        };
        self.log.status = status;
        let mut pipe = Pipe::new(up, sink, rest);
        let (body, timer) = (&mut self.body, &mut self.timer);
        let end = pipe.run(body, timer, way.idle, way.watch).await;
        self.log.bytes_in = pipe.bytes_in;
        self.log.bytes_out = pipe.bytes_out;
        self.log.ended = Some(clock::now());
        self.log.reject = match end {
            End::Closed => None,
            End::Downstream => Some(Reject::DownstreamClosed),
            End::Upstream => Some(Reject::UpstreamReset),
            End::Idle => Some(Reject::UpstreamTimeout),
            End::Changed => Some(Reject::RouteChanged),
        };
        Turn::Done
    }
}

const fn reject(why: NoAnswer) -> Reject {
    match why {
        NoAnswer::Closed => Reject::UpstreamClosed,
        NoAnswer::Reset => Reject::UpstreamReset,
        NoAnswer::Malformed => Reject::UpstreamMalformed,
    }
}

impl Head {
    fn offer(&self) -> Offer<'_> {
        let target = self.uri.path_and_query();
        Offer {
            protocol: self.protocol().unwrap_or_default(),
            target: target.map_or("/", |target| target.as_str()),
            authority: self.authority(),
            headers: &self.headers,
        }
    }
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both sides ended in order.
    Closed,
    /// The client reset its stream, or went away.
    Downstream,
    /// The endpoint reset, or its answer broke off.
    Upstream,
    /// Nothing moved for the idle time-out.
    Idle,
    /// The configuration no longer sends there.
    Changed,
}

fn has_ended(body: &mut RecvStream, cx: &mut Context<'_>) -> bool {
    loop {
        match body.poll_data(cx) {
            Poll::Pending => return false,
            Poll::Ready(None | Some(Err(_))) => return true,
            // An error says that the stream has ended.
            Poll::Ready(Some(Ok(data))) => {
                let _ended = body.flow_control().release_capacity(data.len());
            }
        }
    }
}

/// A stream and a connection, both directions at once. Dropped before its end it resets the
/// connection: what the endpoint received is not the whole.
struct Pipe {
    up: Upstream,
    sink: SendStream<Bytes>,
    /// The answer's body, where it is no tunnel.
    rest: Option<Rest>,
    /// Bytes at the front of the endpoint's buffer that the client gets.
    ready: usize,
    /// Taken from the client, not yet taken by the endpoint.
    chunk: Bytes,
    forth_ended: bool,
    back_ended: bool,
    bytes_in: u64,
    bytes_out: u64,
    closed: bool,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if !self.closed {
            reset_on_close(&self.up.stream);
        }
    }
}

impl Pipe {
    fn new(up: Upstream, sink: SendStream<Bytes>, rest: Option<Rest>) -> Self {
        Self {
            up,
            sink,
            // What a client sends for a tunnel that there is not is of no interest.
            forth_ended: rest.is_some(),
            rest,
            ready: 0,
            chunk: Bytes::new(),
            back_ended: false,
            bytes_in: 0,
            bytes_out: 0,
            closed: false,
        }
    }

    async fn run(
        &mut self,
        body: &mut RecvStream,
        timer: &mut Timer,
        idle: Duration,
        mut watch: Option<Box<Watch>>,
    ) -> End {
        let mut last = clock::now();
        let mut seen = (0, 0);
        let end = poll_fn(|cx| {
            if let Err(end) = self.forth(cx, body).and_then(|()| self.back(cx)) {
                return Poll::Ready(end);
            }
            if self.forth_ended && self.back_ended {
                return Poll::Ready(End::Closed);
            }
            if seen != (self.bytes_in, self.bytes_out) {
                seen = (self.bytes_in, self.bytes_out);
                last = clock::now();
            }
            if let Some(watch) = &mut watch
                && watch.poll(cx).is_ready()
            {
                return Poll::Ready(End::Changed);
            }
            timer.poll(cx, deadline(last, idle)).map(|()| End::Idle)
        })
        .await;
        self.closed = end == End::Closed;
        if end == End::Changed {
            let grace = watch.map_or(Duration::ZERO, |watch| watch.grace());
            self.closed = !grace.is_zero() && self.part(body, timer, grace).await;
        }
        if !self.closed && end != End::Downstream {
            // RFC 8441, section 5: a reset of the connection is a CANCEL.
            self.sink.send_reset(Reason::CANCEL);
        }
        end
    }

    /// Tells both sides the end and drops what they still send, until both have ended too or the
    /// grace is over. Whether they have.
    async fn part(&mut self, body: &mut RecvStream, timer: &mut Timer, grace: Duration) -> bool {
        let until = clock::now().after(grace);
        self.up.stream.shut_write();
        if !self.back_ended && self.end_back().is_err() {
            return false;
        }
        // What ended before was not told the end a second time.
        let (mut down_ended, mut up_ended) = (self.forth_ended, false);
        poll_fn(|cx| {
            down_ended = down_ended || has_ended(body, cx);
            up_ended = up_ended || self.up_has_ended(cx);
            if down_ended && up_ended {
                return Poll::Ready(true);
            }
            timer.poll(cx, until).map(|()| false)
        })
        .await
    }

    fn up_has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            self.up.buf.release();
            match poll_fill(&mut self.up.stream, cx, &mut self.up.buf) {
                Poll::Pending => return false,
                Poll::Ready(Ok(0) | Err(_)) => return true,
                Poll::Ready(Ok(count)) => self.up.buf.consume(count),
            }
        }
    }

    /// From the client to the endpoint, as fast as the endpoint takes it.
    fn forth(&mut self, cx: &mut Context<'_>, body: &mut RecvStream) -> Result<(), End> {
        while !self.forth_ended {
            if !self.chunk.is_empty() {
                match poll_write_two(&mut self.up.stream, cx, &self.chunk, &[]) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Err(_)) => return Err(End::Upstream),
                    Poll::Ready(Ok(count)) => {
                        let _taken = self.chunk.split_to(count);
                        self.bytes_in += count as u64;
                        // An error says that the stream has ended.
                        let _ended = body.flow_control().release_capacity(count);
                    }
                }
                continue;
            }
            match body.poll_data(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(data))) => self.chunk = data,
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(reason = %reason(&error), "tunnel reset");
                    return Err(End::Downstream);
                }
                Poll::Ready(None) => {
                    self.forth_ended = true;
                    self.up.stream.shut_write();
                }
            }
        }
        Ok(())
    }

    /// From the endpoint to the client, as far as its window reaches.
    fn back(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while !self.back_ended {
            if self.sink.poll_reset(cx).is_ready() {
                return Err(End::Downstream);
            }
            if self.ready == 0 {
                self.ready = match &mut self.rest {
                    None => self.up.buf.len(),
                    Some(rest) => rest.payload(&mut self.up.buf).map_err(|_| End::Upstream)?,
                };
            }
            if self.ready > 0 {
                if self.send(cx)?.is_pending() {
                    return Ok(());
                }
                continue;
            }
            if self.rest.as_ref().is_some_and(Rest::is_done) {
                return self.end_back();
            }
            match poll_fill(&mut self.up.stream, cx, &mut self.up.buf) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => {
                    let whole = self.rest.as_ref().is_none_or(Rest::ends_with_connection);
                    return if whole {
                        self.end_back()
                    } else {
                        Err(End::Upstream)
                    };
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(End::Upstream),
            }
        }
        Ok(())
    }

    /// Sends as much of what is ready as the client has room for.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        self.sink.reserve_capacity(self.ready);
        let room = match self.sink.capacity() {
            0 => match self.sink.poll_capacity(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Some(Ok(room))) => room,
                Poll::Ready(_) => return Err(End::Downstream),
            },
            room => room,
        };
        let count = room.min(self.ready);
        let part = Bytes::copy_from_slice(&self.up.buf.bytes()[..count]);
        let sent = self.sink.send_data(part, false);
        sent.map_err(|_| End::Downstream)?;
        self.up.buf.consume(count);
        self.ready -= count;
        self.bytes_out += count as u64;
        Ok(Poll::Ready(()))
    }

    fn end_back(&mut self) -> Result<(), End> {
        self.back_ended = true;
        let ended = self.sink.send_data(Bytes::new(), true);
        ended.map_err(|_| End::Downstream)
    }
}
