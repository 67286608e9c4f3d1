//! A stream and its counterpart at the endpoint, both directions at once.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, HeaderValue, Response, header::RETRY_AFTER};

use super::{
    flow::{Broken, Flow, Kept, reason},
    grpc, refuse,
    stream::Stream,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{Reject, action::as_http, rate_limit::Verdict, retry::AnswerHead},
    proxy::{
        attempt,
        timer::{NEVER, deadline},
    },
};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    Retry(u16),
    /// The client reset the stream, or went away.
    Downstream(Reason),
    /// The endpoint reset the stream, or went away.
    Upstream {
        reason: Reason,
        unprocessed: bool,
    },
    RequestTimeout,
    TryTimeout,
    /// The try took longer than its rule allows.
    BackendTimeout,
    /// Another endpoint answered first.
    Hedged,
    /// Nothing moved, and it is the client's turn: to send, or to take the answer.
    BodyTimeout,
    /// The configuration no longer sends there.
    Changed,
    /// Nothing moved, and it is the endpoint's turn.
    Still,
}

/// What an attempt may take for how long.
#[derive(Clone, Copy)]
pub(super) struct Spans {
    pub(super) request: Duration,
    /// Until the answer's head.
    pub(super) per_try: Duration,
    /// Until the answer's end.
    pub(super) backend: Duration,
    pub(super) idle: Duration,
    pub(super) started: MonoNanos,
}

/// The answer under way.
pub(super) struct Answer {
    pub(super) status: u16,
    body: RecvStream,
    pub(super) sink: SendStream<Bytes>,
    pub(super) flow: Flow,
}

impl Answer {
    /// Ends an answer that is under way: of gRPC with a status, else with a reset.
    pub(super) fn end(&mut self, reject: Reject, grpc: bool) {
        if grpc {
            let mut trailers = HeaderMap::new();
            trailers.insert(
                "grpc-status",
                HeaderValue::from(u16::from(reject.grpc_status())),
            );
            trailers.insert("grpc-message", HeaderValue::from_static(reject.explain()));
            if self.sink.send_trailers(trailers).is_ok() {
                return;
            }
        }
        self.sink.send_reset(Reason::CANCEL);
    }
}

/// One attempt.
pub(super) struct Exchange {
    pub(super) request: Flow,
    pub(super) sink: SendStream<Bytes>,
    response: Coming,
    pub(super) answer: Option<Answer>,
    /// When its head came.
    pub(super) answered_at: Option<MonoNanos>,
    /// How long the endpoint wants to be left alone.
    pub(super) retry_after: Option<Duration>,
    pub(super) answer_kept: Kept,
    /// The endpoint takes no more of the request; it may answer all the same.
    request_broken: Option<Reason>,
    /// An interim head went out.
    told: bool,
    last: MonoNanos,
}

impl Exchange {
    pub(super) fn new(
        request: Flow,
        sink: SendStream<Bytes>,
        response: ResponseFuture,
        started: MonoNanos,
    ) -> Self {
        Self {
            request,
            sink,
            response: Coming::Awaited(response),
            answer: None,
            answered_at: None,
            retry_after: None,
            answer_kept: Kept::new(0),
            request_broken: None,
            told: false,
            last: started,
        }
    }

    /// Of a stream whose whole request is at the endpoint, and whose answer has come.
    pub(super) fn resumed(
        sink: SendStream<Bytes>,
        response: Response<RecvStream>,
        started: MonoNanos,
    ) -> Self {
        Self {
            request: Flow::new(&Kept::default(), true),
            sink,
            response: Coming::Here(Some(Box::new(response))),
            answer: None,
            answered_at: None,
            retry_after: None,
            answer_kept: Kept::new(0),
            request_broken: None,
            told: false,
            last: started,
        }
    }

    /// Whether the endpoint has the whole request and nothing of an answer was told.
    pub(super) const fn is_waiting(&self) -> bool {
        self.request.done && self.answer.is_none() && !self.told
    }

    /// Goes on until the exchange ends. `retry` is asked once, for the final status, whether to
    /// try again instead of answering.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        spans: Spans,
        verdict: &Verdict,
        retry: &mut dyn FnMut(&dyn AnswerHead, bool) -> bool,
    ) -> Poll<End> {
        if self.answer.is_none()
            && let Poll::Ready(why) = stream.respond.poll_reset(cx)
        {
            return Poll::Ready(End::Downstream(why.unwrap_or_else(|e| reason(&e))));
        }
        if let Some(end) = self.poll_request(cx, stream) {
            return Poll::Ready(end);
        }
        if self.answer.is_none()
            && let Some(end) = self.poll_head(cx, stream, verdict, retry)
        {
            return Poll::Ready(end);
        }
        if let Some(end) = self.poll_body(cx, stream.is_tunnel) {
            return Poll::Ready(end);
        }
        self.poll_time(cx, stream, spans)
    }

    fn poll_request(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Option<End> {
        if self.request_broken.is_some() {
            return None;
        }
        match self
            .request
            .poll(cx, &mut stream.body, &mut self.sink, &mut stream.kept)
        {
            Poll::Ready(Ok(())) => {
                stream.complete.get_or_insert_with(clock::now);
                if let Some(listener) = &stream.kept.listener {
                    listener.end(self.request.trailers.as_ref());
                }
            }
            Poll::Ready(Err(Broken::Source(why))) => return Some(End::Downstream(why)),
            // RFC 9113, section 8.1: an endpoint that answered early may stop the request.
            Poll::Ready(Err(Broken::Sink(why))) => self.request_broken = Some(why),
            Poll::Pending => {}
        }
        None
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        verdict: &Verdict,
        retry: &mut dyn FnMut(&dyn AnswerHead, bool) -> bool,
    ) -> Option<End> {
        while let Poll::Ready(Some(interim)) = self.response.poll_informational(cx) {
            let Ok(interim) = interim else { break };
            self.told = true;
            // An error means that the client has gone, which its stream tells.
            let _gone = stream.respond.send_informational(interim);
        }
        let response = match self.response.poll(cx) {
            Poll::Pending => return None,
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(error)) => {
                let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
                let unprocessed = error.is_remote() && (refused || error.is_go_away());
                return Some(End::Upstream {
                    reason: reason(&error),
                    unprocessed,
                });
            }
        };
        let now = clock::now();
        self.answered_at = Some(now);
        stream.log.upstream = Some(now.since(self.last));
        let seen = Seen::of(&response, stream.grpc);
        let wait = response.headers().get(RETRY_AFTER);
        self.retry_after = attempt::retry_after(seen.status, wait.map(HeaderValue::as_bytes));
        if retry(&seen, stream.kept.whole) {
            return Some(End::Retry(seen.status));
        }
        match stream.answer(response, verdict) {
            Ok(answer) => self.answer = Some(answer),
            Err(Broken::Sink(why) | Broken::Source(why)) => return Some(End::Downstream(why)),
        }
        None
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, is_tunnel: bool) -> Option<End> {
        let answer = self.answer.as_mut()?;
        let done = answer.flow.poll(
            cx,
            &mut answer.body,
            &mut answer.sink,
            &mut self.answer_kept,
        );
        match done {
            Poll::Pending => None,
            // Each side of a tunnel ends for itself.
            Poll::Ready(Ok(()))
                if is_tunnel && !self.request.done && self.request_broken.is_none() =>
            {
                None
            }
            // What is left of the request is of no interest: dropping the stream says so.
            Poll::Ready(Ok(())) => Some(End::Complete),
            Poll::Ready(Err(Broken::Sink(why))) => Some(End::Downstream(why)),
            Poll::Ready(Err(Broken::Source(why))) => Some(End::Upstream {
                reason: why,
                unprocessed: false,
            }),
        }
    }

    fn poll_time(&mut self, cx: &mut Context<'_>, stream: &mut Stream, spans: Spans) -> Poll<End> {
        let moved = std::mem::take(&mut self.request.moved)
            | self
                .answer
                .as_mut()
                .is_some_and(|answer| std::mem::take(&mut answer.flow.moved));
        if moved {
            self.last = clock::now();
        }
        let request = if stream.is_tunnel {
            NEVER
        } else {
            stream.until(spans.request)
        };
        // The endpoint's time begins when it has the whole request.
        let from = stream
            .complete
            .map_or(spans.started, |at| at.max(spans.started));
        let until = |span| match self.request.done {
            true if !stream.is_tunnel => deadline(from, span),
            _ => NEVER,
        };
        let backend = until(spans.backend);
        let per_try = match self.answer {
            None => until(spans.per_try),
            Some(_) => NEVER,
        };
        // What the endpoint no longer takes, the client no longer owes.
        let sends = self.request_broken.is_none() && self.request.waits_for_source;
        let takes = self
            .answer
            .as_ref()
            .is_some_and(|answer| !answer.flow.waits_for_source);
        let owed = sends || takes;
        // A gRPC stream may be silent for as long as its client likes; of any other request the
        // body has to come.
        let span = if owed && !stream.grpc && !stream.asks_tunnel {
            stream.conn.core.limits().body_timeout
        } else {
            spans.idle
        };
        let still = deadline(self.last, span);
        let first = request.min(per_try).min(backend).min(still);
        stream.timer.poll(cx, first).map(|()| {
            if first == request {
                End::RequestTimeout
            } else if first == backend {
                End::BackendTimeout
            } else if first == per_try {
                End::TryTimeout
            } else if owed && !stream.asks_tunnel {
                End::BodyTimeout
            } else {
                End::Still
            }
        })
    }
}

impl Stream {
    /// Sends the endpoint's head on.
    fn answer(
        &mut self,
        response: Response<RecvStream>,
        verdict: &Verdict,
    ) -> Result<Answer, Broken> {
        let (mut parts, body) = response.into_parts();
        refuse::put_limits(&mut parts.headers, verdict);
        if let Some(edits) = &self.answer_edits {
            edits.apply(&mut parts.headers);
        }
        let ends = body.is_end_stream();
        if ends {
            self.log.grpc_status = grpc::status(&parts.headers);
        }
        let status = parts.status.as_u16();
        let sink = self
            .respond
            .send_response(Response::from_parts(parts, ()), ends)
            .map_err(|error| Broken::Sink(reason(&error)))?;
        self.log.status = status;
        self.is_tunnel = self.asks_tunnel && (200..300).contains(&status);
        Ok(Answer {
            status,
            body,
            sink,
            flow: Flow::new(&Kept::default(), ends),
        })
    }
}

/// An answer's head, on its way or here.
enum Coming {
    Awaited(ResponseFuture),
    Here(Option<Box<Response<RecvStream>>>),
}

impl Coming {
    fn poll_informational(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Response<()>, h2::Error>>> {
        match self {
            Self::Awaited(response) => response.poll_informational(cx),
            Self::Here(_) => Poll::Ready(None),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, h2::Error>> {
        match self {
            Self::Awaited(response) => Pin::new(response).poll(cx),
            Self::Here(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(*response)),
                None => Poll::Pending,
            },
        }
    }
}

/// An answer's head as a retry policy sees it: of gRPC only a status that stands in it counts.
pub(super) struct Seen<'a> {
    status: u16,
    grpc: Option<u8>,
    headers: &'a HeaderMap,
}

impl<'a> Seen<'a> {
    pub(super) fn of(response: &'a Response<RecvStream>, grpc: bool) -> Self {
        let headers = response.headers();
        let alone = grpc && response.body().is_end_stream() && response.status().is_success();
        let grpc = alone.then(|| grpc::status(headers)).flatten();
        Self {
            status: grpc.map_or(response.status().as_u16(), as_http),
            grpc,
            headers,
        }
    }
}

impl AnswerHead for Seen<'_> {
    fn status(&self) -> u16 {
        self.status
    }

    fn grpc(&self) -> Option<u8> {
        self.grpc
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }
}
