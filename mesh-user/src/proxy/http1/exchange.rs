//! One request and its answer on one upstream connection, both directions at once: an endpoint
//! may answer before it has read the whole request, and nobody waits for the other.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::{
    body::Body,
    mirrored::Compared,
    raw_head::RawHead,
    request::Request,
    response::{self, Response, Write},
    scan::Scan,
    sending::Sending,
};
use crate::{
    clock::{self, MonoNanos},
    config::Limits,
    policy::{Reject, action::Edits, retry::AnswerHead},
    proxy::{
        buffer::{Buf, HeadBuf},
        io::{is_reset, poll_fill, poll_write_two},
        socket::Socket,
        timer::{NEVER, Timer, deadline},
        upstream::Upstream,
    },
};

/// Largest piece of a body that is copied behind its head.
const COPIED_BYTES_MAX: usize = 1024;

/// What an attempt may take for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spans {
    pub(super) request: Duration,
    /// Until the answer's head.
    pub(super) per_try: Duration,
    /// Until the answer's end.
    pub(super) backend: Duration,
    pub(super) idle: Duration,
}

/// The sockets and buffers of an exchange.
#[derive(Debug)]
pub(super) struct Wires<'a> {
    pub(super) down: &'a mut Socket,
    pub(super) down_buf: &'a mut Buf,
    pub(super) up: &'a mut Upstream,
    pub(super) timer: &'a mut Timer,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The answer went out whole.
    Complete,
    /// 101 went out: both sides speak something else now.
    Upgraded,
    /// An answer with this status came, and is to be tried again.
    Retry(u16),
    /// Another endpoint answered first.
    Hedged,
    /// The endpoint ended the connection: whether by a reset.
    UpstreamGone {
        /// RST rather than FIN.
        reset: bool,
    },
    /// The endpoint's answer is broken.
    UpstreamMalformed,
    /// The request took too long.
    RequestTimeout,
    /// The try took too long.
    TryTimeout,
    /// The try took longer than its rule allows.
    BackendTimeout,
    /// The configuration no longer sends there.
    Changed,
    /// Nothing moved for the idle time-out.
    IdleTimeout,
    /// The client's body made no progress, or the client takes no more of the answer.
    BodyTimeout,
    /// The client's body is broken.
    BadBody,
    /// The client went away.
    DownstreamGone,
}

/// What an exchange leaves behind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// Of the answer, once its final head came.
    pub(super) status: Option<u16>,
    /// How long that took.
    pub(super) answered_after: Option<Duration>,
    /// How long the endpoint wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// Any byte of an answer came.
    pub(super) any_byte: bool,
    /// Any byte was sent to the client, or was on its way.
    pub(super) responding: bool,
    /// Any byte of the request may have reached the endpoint.
    pub(super) was_sent: bool,
    /// An answer of our own would still be understood.
    pub(super) can_answer: bool,
    /// The answer's end could be told without closing the client's connection.
    pub(super) is_delimited: bool,
    /// The endpoint's connection may carry another request.
    pub(super) is_reusable: bool,
    /// Body bytes to the client, framing included.
    pub(super) bytes: u64,
}

/// One attempt.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    request: &'a Request,
    head: &'a [u8],
    limits: &'a Limits,
    /// Of the final answer's fields.
    edits: Option<&'a Edits>,
    spans: Spans,
    started: MonoNanos,
    /// Of the head and the kept body, how many bytes were sent.
    sent: usize,
    kept: usize,
    request_done: bool,
    /// The endpoint takes no more of the request; it may have answered all the same.
    request_broken: bool,
    /// The endpoint never gets the rest of the request.
    is_partial: bool,
    scan: Scan,
    /// Any byte of an answer came.
    answered: bool,
    /// The final head, once it came.
    response: Option<Response>,
    /// When it came.
    answered_at: Option<MonoNanos>,
    /// What it asks for, also when it is to be tried again.
    retry_after: Option<Duration>,
    out: HeadBuf,
    out_sent: usize,
    /// The client takes nothing at the moment; of TLS a part may be on its way all the same.
    is_stuck: bool,
    ready: usize,
    /// Any byte was sent to the client, or is on its way.
    responding: bool,
    response_done: bool,
    /// Body bytes to the client, framing included.
    bytes: u64,
    last: MonoNanos,
    moved: bool,
    /// Whoever compares the answer with a mirror's.
    pub(super) compared: Option<Box<Compared>>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        request: &'a Request,
        head: &'a [u8],
        sending: &Sending,
        limits: &'a Limits,
        spans: Spans,
        started: MonoNanos,
    ) -> Self {
        Self {
            request,
            head,
            limits,
            edits: None,
            spans,
            started,
            sent: 0,
            kept: sending.kept.len(),
            request_done: false,
            request_broken: false,
            is_partial: false,
            scan: Scan::default(),
            answered: false,
            response: None,
            answered_at: None,
            retry_after: None,
            out: HeadBuf::default(),
            out_sent: 0,
            is_stuck: false,
            ready: 0,
            responding: false,
            response_done: false,
            bytes: 0,
            last: started,
            moved: false,
            compared: None,
        }
    }

    /// With edits of the final answer's fields.
    pub(super) const fn with_edits(mut self, edits: Option<&'a Edits>) -> Self {
        self.edits = edits;
        self
    }

    /// The request is at the endpoint already, and its answer has begun to come. `early`: the
    /// endpoint has not got all of the request, and gets no more of it: what else was sent on its
    /// connection would be taken for the rest.
    pub(super) fn resume(&mut self, early: bool) {
        self.is_partial = early;
        self.sent = self.head.len() + self.kept;
        self.request_done = true;
        self.answered = true;
    }

    /// Whether the endpoint has the whole request and nothing of an answer was told.
    pub(super) const fn is_waiting(&self) -> bool {
        self.request_done && self.response.is_none() && !self.responding
    }

    /// Whether a good answer is under way.
    pub(super) fn answers_well(&self) -> bool {
        self.response.is_some_and(|response| response.status < 500)
    }

    /// When the final head came.
    pub(super) const fn answered_at(&self) -> Option<MonoNanos> {
        self.answered_at
    }

    /// What is left to know at the end.
    pub(super) fn outlook(&self, up: &Upstream) -> Outlook {
        let response = self.response.as_ref();
        Outlook {
            status: response.map(|response| response.status),
            answered_after: self.answered_at.map(|at| at.since(self.started)),
            retry_after: self.retry_after,
            any_byte: self.answered,
            responding: self.responding,
            was_sent: self.sent > 0,
            // Nothing of the final head, and no half of an interim one, has gone out.
            can_answer: (self.out_sent == 0 && !self.is_stuck)
                || (response.is_none() && self.out_sent == self.out.len()),
            is_delimited: response.is_some_and(|response| response.is_delimited),
            is_reusable: self.request_done
                && !self.is_partial
                && self.response_done
                && up.buf.is_empty()
                && response.is_some_and(|response| response.keeps_upstream),
            bytes: self.bytes,
        }
    }

    /// Goes on until the exchange ends. `retry` is asked once, for the final status, whether to
    /// try again instead of answering; `keep_alive` and `extra` go into the head.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        wires: &mut Wires<'_>,
        sending: &mut Sending,
        keep_alive: &dyn Fn() -> bool,
        extra: &[u8],
        retry: &mut dyn FnMut(&dyn AnswerHead, bool) -> bool,
    ) -> Poll<End> {
        self.moved = false;
        if let Some(end) = self.poll_request(cx, wires, sending) {
            // Once the answer is out, nothing that befalls the rest of the request changes it.
            return Poll::Ready(if self.response_done {
                End::Complete
            } else {
                end
            });
        }
        if !self.response_done
            && let Some(end) =
                self.poll_response(cx, wires, keep_alive, extra, sending.replayable, retry)
        {
            return Poll::Ready(end);
        }
        let closes = self
            .response
            .is_some_and(|response| !response.keeps_upstream);
        if self.response_done && (self.request_done || self.request_broken || closes) {
            return Poll::Ready(End::Complete);
        }
        if self.request_done && !self.response_done && self.client_is_gone(cx, wires) {
            return Poll::Ready(End::DownstreamGone);
        }
        self.poll_time(cx, wires, sending)
    }

    /// While an answer is awaited nothing is expected from the client; its end means that it
    /// wants no answer any more (as with nginx and Envoy: who half-closes after a request is
    /// taken to have gone).
    fn client_is_gone(&self, cx: &mut Context<'_>, wires: &mut Wires<'_>) -> bool {
        wires.down_buf.is_empty()
            && matches!(
                poll_fill(wires.down, cx, wires.down_buf),
                Poll::Ready(Ok(0) | Err(_))
            )
    }

    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        wires: &mut Wires<'_>,
        sending: &mut Sending,
    ) -> Option<End> {
        while !self.request_done && !self.request_broken {
            if sending.ready == 0 && !sending.body.is_done() && !wires.down_buf.is_empty() {
                // A request body passes unchanged: nothing is ever skipped.
                match sending.body.step(wires.down_buf.bytes()) {
                    Ok(step) => sending.ready = step.forward,
                    Err(_) => return Some(End::BadBody),
                }
            }
            let (head, kept) = (self.head.len(), self.kept);
            let (first, second): (&[u8], &[u8]) = if self.sent < head {
                let first = &self.head[self.sent..];
                if kept > 0 {
                    (first, &sending.kept[..kept])
                } else {
                    (first, &wires.down_buf.bytes()[..sending.ready])
                }
            } else if self.sent < head + kept {
                (
                    &sending.kept[self.sent - head..kept],
                    &wires.down_buf.bytes()[..sending.ready],
                )
            } else {
                (&wires.down_buf.bytes()[..sending.ready], &[])
            };
            if !first.is_empty() || !second.is_empty() {
                match poll_write_two(&mut wires.up.stream, cx, first, second) {
                    Poll::Pending => return None,
                    Poll::Ready(Ok(count)) => self.sent_bytes(count, wires, sending),
                    Poll::Ready(Err(_)) => {
                        // It may have answered before it closed: read on.
                        self.request_broken = true;
                    }
                }
            } else if sending.body.is_done() {
                self.request_done = true;
                sending.complete.get_or_insert_with(clock::now);
            } else {
                match poll_fill(wires.down, cx, wires.down_buf) {
                    Poll::Pending => return None,
                    Poll::Ready(Ok(0) | Err(_)) => return Some(End::DownstreamGone),
                    Poll::Ready(Ok(_)) => self.moved = true,
                }
            }
        }
        None
    }

    /// Accounts for bytes that were written to the endpoint.
    fn sent_bytes(&mut self, count: usize, wires: &mut Wires<'_>, sending: &mut Sending) {
        self.moved = true;
        let prefix = (self.head.len() + self.kept)
            .saturating_sub(self.sent)
            .min(count);
        self.sent += prefix;
        let body = count - prefix;
        if body > 0 {
            sending.forwarded(&wires.down_buf.bytes()[..body]);
            wires.down_buf.consume(body);
        }
    }

    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        wires: &mut Wires<'_>,
        keep_alive: &dyn Fn() -> bool,
        extra: &[u8],
        replayable: bool,
        retry: &mut dyn FnMut(&dyn AnswerHead, bool) -> bool,
    ) -> Option<End> {
        loop {
            if let Err(end) = self.take_answer(wires, keep_alive, extra, replayable, retry) {
                return Some(end);
            }
            let first = &self.out[self.out_sent..];
            let second = &wires.up.buf.bytes()[..self.ready];
            if !first.is_empty() || !second.is_empty() {
                match poll_write_two(wires.down, cx, first, second) {
                    Poll::Pending => {
                        self.is_stuck = matches!(wires.down, Socket::Tls(_));
                        return None;
                    }
                    Poll::Ready(Ok(count)) => {
                        self.moved = true;
                        let head = first.len().min(count);
                        self.out_sent += head;
                        self.ready -= count - head;
                        self.bytes += (count - head) as u64;
                        self.compare(&wires.up.buf.bytes()[..count - head]);
                        wires.up.buf.consume(count - head);
                    }
                    Poll::Ready(Err(_)) => return Some(End::DownstreamGone),
                }
                continue;
            }
            if let Some(response) = &self.response {
                if response.status == 101 {
                    return Some(End::Upgraded);
                }
                if response.body.is_done() {
                    self.response_done = true;
                    return None;
                }
                if !wires.up.buf.is_empty() {
                    continue;
                }
            }
            if !wires.up.buf.has_room() {
                wires.up.buf.grow();
            }
            match poll_fill(&mut wires.up.stream, cx, &mut wires.up.buf) {
                Poll::Pending => return None,
                Poll::Ready(Ok(0)) => match self.response {
                    Some(Response {
                        body: Body::UntilClose,
                        ..
                    }) => {
                        self.response_done = true;
                        return None;
                    }
                    _ => return Some(End::UpstreamGone { reset: false }),
                },
                Poll::Ready(Ok(_)) => {
                    self.moved = true;
                    self.answered = true;
                }
                Poll::Ready(Err(error)) => {
                    return Some(End::UpstreamGone {
                        reset: is_reset(&error),
                    });
                }
            }
        }
    }

    /// Makes sense of what the endpoint sent, as far as it is at hand.
    fn take_answer(
        &mut self,
        wires: &mut Wires<'_>,
        keep_alive: &dyn Fn() -> bool,
        extra: &[u8],
        replayable: bool,
        retry: &mut dyn FnMut(&dyn AnswerHead, bool) -> bool,
    ) -> Result<(), End> {
        while self.response.is_none() && !wires.up.buf.is_empty() {
            let bytes = wires.up.buf.bytes();
            // What is no HTTP at all may never end: told by its first bytes.
            const START: &[u8] = b"HTTP/1.";
            let start = bytes.len().min(START.len());
            if bytes[..start] != START[..start] {
                return Err(End::UpstreamMalformed);
            }
            let head_max = self.limits.head_bytes_max;
            let found = self.scan.advance(bytes, head_max, head_max);
            let Some(length) = found.map_err(|_| End::UpstreamMalformed)? else {
                return Ok(());
            };
            if self.out_sent == self.out.len() {
                self.out.clear();
                self.out_sent = 0;
            }
            let written = self.out.len();
            let how = Write {
                request: self.request,
                keep_alive: keep_alive(),
                extra,
                edits: self.edits,
            };
            let response = response::rewrite(&bytes[..length], self.limits, &mut self.out, how)
                .map_err(|_: Reject| End::UpstreamMalformed)?;
            let status = response.status;
            self.retry_after = response.retry_after;
            if !response.is_interim()
                && !self.responding
                && retry(&RawHead::new(status, &bytes[..length]), replayable)
            {
                self.answered_at = Some(clock::now());
                return Err(End::Retry(status));
            }
            wires.up.buf.consume(length);
            self.scan = Scan::default();
            if response.is_interim() {
                // RFC 9110, section 15.2: not to an HTTP/1.0 client.
                if self.request.http10 {
                    self.out.truncate(written);
                } else {
                    self.responding = true;
                }
                continue;
            }
            self.answered_at = Some(clock::now());
            self.responding = true;
            self.response = Some(response);
        }
        if let Some(response) = &mut self.response
            && self.ready == 0
            && !response.body.is_done()
            && !wires.up.buf.is_empty()
        {
            match response.body.step(wires.up.buf.bytes()) {
                Ok(step) => {
                    if step.skip > 0 {
                        wires.up.buf.consume(step.skip);
                    }
                    self.ready = step.forward;
                }
                Err(_) => return Err(End::UpstreamMalformed),
            }
            // A small body goes along with the head in one piece: copying it costs less than a
            // second segment of a vectored write.
            if self.ready <= COPIED_BYTES_MAX && self.out_sent < self.out.len() {
                self.out
                    .extend_from_slice(&wires.up.buf.bytes()[..self.ready]);
                self.compare(&wires.up.buf.bytes()[..self.ready]);
                wires.up.buf.consume(self.ready);
                self.bytes += self.ready as u64;
                self.ready = 0;
            }
        }
        Ok(())
    }

    /// Shows body bytes that were forwarded to whoever compares them.
    fn compare(&mut self, bytes: &[u8]) {
        if let (Some(compared), Some(response)) = (&mut self.compared, &self.response) {
            compared.forwarded(bytes, &response.body, self.request.http10);
        }
    }

    fn poll_time(
        &mut self,
        cx: &mut Context<'_>,
        wires: &mut Wires<'_>,
        sending: &Sending,
    ) -> Poll<End> {
        // The clock is read only when bytes moved and more are to come.
        if self.moved && (!self.request_done || self.response.is_some()) {
            self.last = clock::now();
        }
        let request = sending
            .complete
            .map_or(NEVER, |complete| deadline(complete, self.spans.request));
        // The endpoint's time begins when it has the whole request.
        let from = sending
            .complete
            .map_or(self.started, |at| at.max(self.started));
        let until = |span| match self.request_done {
            true => deadline(from, span),
            false => NEVER,
        };
        let backend = until(self.spans.backend);
        let per_try = match self.response {
            None => until(self.spans.per_try),
            Some(_) => NEVER,
        };
        let taking = self.out_sent < self.out.len() || self.ready > 0;
        let waits_for_client =
            (!self.request_done && !self.request_broken && sending.ready == 0) || taking;
        let still = if waits_for_client {
            deadline(self.last, self.limits.body_timeout)
        } else {
            deadline(self.last, self.spans.idle)
        };
        let first = request.min(per_try).min(backend).min(still);
        wires.timer.poll(cx, first).map(|()| {
            if self.response_done {
                End::Complete
            } else if first == request {
                End::RequestTimeout
            } else if first == backend {
                End::BackendTimeout
            } else if first == per_try {
                End::TryTimeout
            } else if waits_for_client {
                End::BodyTimeout
            } else {
                End::IdleTimeout
            }
        })
    }
}
