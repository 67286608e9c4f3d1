//! A stream and its counterpart at the endpoint, both directions at once.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{HeaderMap, Response};

use super::{
    flow::{Broken, Flow, Kept, reason},
    grpc, refuse,
    stream::Stream,
};
use crate::{
    clock::{self, MonoNanos},
    policy::rate_limit::Verdict,
    proxy::timer::{NEVER, deadline},
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
    /// Nothing moved, and it is the client's turn: to send, or to take the answer.
    BodyTimeout,
    /// Nothing moved, and it is the endpoint's turn.
    Still,
}

/// What an attempt may take for how long.
#[derive(Clone, Copy)]
pub(super) struct Spans {
    pub(super) request: Duration,
    pub(super) per_try: Duration,
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

/// One attempt.
pub(super) struct Exchange {
    pub(super) request: Flow,
    pub(super) sink: SendStream<Bytes>,
    response: ResponseFuture,
    pub(super) answer: Option<Answer>,
    pub(super) answer_kept: Kept,
    /// The endpoint takes no more of the request; it may answer all the same.
    request_broken: Option<Reason>,
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
            response,
            answer: None,
            answer_kept: Kept::new(0),
            request_broken: None,
            last: started,
        }
    }

    /// Goes on until the exchange ends. `retry` is asked once, for the final status, whether to
    /// try again instead of answering.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        spans: Spans,
        verdict: &Verdict,
        retry: &mut dyn FnMut(u16, bool) -> bool,
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
        retry: &mut dyn FnMut(u16, bool) -> bool,
    ) -> Option<End> {
        while let Poll::Ready(Some(interim)) = self.response.poll_informational(cx) {
            let Ok(interim) = interim else { break };
            // An error means that the client has gone, which its stream tells.
            let _gone = stream.respond.send_informational(interim);
        }
        let response = match Pin::new(&mut self.response).poll(cx) {
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
        stream.log.upstream = Some(clock::now().since(self.last));
        let status = seen_status(&response, stream.grpc);
        if retry(status, stream.kept.whole) {
            return Some(End::Retry(status));
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
            Poll::Ready(Ok(())) if is_tunnel && !self.request.done && self.request_broken.is_none() => {
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
        let per_try = if self.answer.is_none() && self.request.done {
            // The endpoint's time begins when it has the whole request.
            let from = stream
                .complete
                .map_or(spans.started, |at| at.max(spans.started));
            deadline(from, spans.per_try)
        } else {
            NEVER
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
        let first = request.min(per_try).min(still);
        stream.timer.poll(cx, first).map(|()| {
            if first == request {
                End::RequestTimeout
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

/// The status as a retry policy sees it: of gRPC only one that stands in the head counts.
fn seen_status(response: &Response<RecvStream>, grpc: bool) -> u16 {
    let in_head = |headers: &HeaderMap| grpc::status(headers).map(grpc::as_http);
    let ends = response.body().is_end_stream();
    (grpc && ends && response.status().is_success())
        .then(|| in_head(response.headers()))
        .flatten()
        .unwrap_or(response.status().as_u16())
}
