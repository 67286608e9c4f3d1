//! One stream: decision, attempts, both directions at once.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use http::{HeaderMap, Method, Request, Response};

use super::{
    client::{Lease, checkout},
    flow::{Broken, Flow, Kept, reason},
    grpc,
    head::{self, Head},
    refuse,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{
        Reject, balance, rate_limit::Verdict, retry::Failure, route::Plan, snapshot::Outcome,
    },
    proxy::{
        attempt::{self, Admitted},
        buffer::HeadBuf,
        core::{Conn, Place, Snap},
        record::RequestLog,
        retry::{Attempts, retry_after},
        timer::{NEVER, Timer, deadline},
        upstream::{NoConnection, Target},
    },
    telemetry::Spoken,
};

/// A stream of a client and everything about it.
struct Stream {
    conn: Rc<Conn>,
    snapshot: Snap,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    timer: Timer,
    log: RequestLog,
    grpc: bool,
    is_head: bool,
    kept: Kept,
    /// When the request was complete.
    complete: Option<MonoNanos>,
    /// What the client allows.
    deadline: MonoNanos,
}

/// Serves one request.
pub(super) async fn serve(
    conn: Rc<Conn>,
    place: Place,
    snapshot: Snap,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let started = clock::now();
    let (parts, body) = request.into_parts();
    let grpc = grpc::is_grpc(&parts.headers);
    let spoken = if grpc { Spoken::Grpc } else { Spoken::Http2 };
    let log = RequestLog::new(
        Rc::clone(&conn),
        Rc::clone(&snapshot),
        place.source,
        spoken,
        HeadBuf::take(),
        started,
    );
    let deadline = grpc::deadline(&parts.headers)
        .filter(|_| grpc)
        .map_or(NEVER, |span| started.after(span));
    let mut stream = Stream {
        is_head: parts.method == Method::HEAD,
        conn,
        snapshot,
        body,
        respond,
        timer: Timer::new(started),
        log,
        grpc,
        kept: Kept::default(),
        complete: None,
        deadline,
    };
    let (reject, verdict) = match stream.decide(place, Request::from_parts(parts, ())) {
        Ok((head, admitted)) => {
            let refused = stream
                .forward(&head, admitted.plan, &admitted.verdict)
                .await;
            (refused, admitted.verdict)
        }
        Err((reject, verdict)) => (Some(reject), verdict),
    };
    if let Some(reject) = reject {
        stream.refuse(reject, &verdict);
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
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
    Still,
}

/// What follows an attempt.
enum Turn {
    Done,
    Again(Duration),
    Refuse(Reject),
}

impl Stream {
    fn decide(
        &mut self,
        place: Place,
        request: Request<()>,
    ) -> Result<(Head, Admitted), (Reject, Verdict)> {
        let core = &self.conn.core;
        let mut head =
            head::check(request, core.limits()).map_err(|reject| (reject, Verdict::default()))?;
        head.identify(&mut core.rng.borrow_mut());
        head.note(&mut self.log.head, &mut self.log.spans);
        let started = self.log.started;
        match attempt::admit(&self.conn, &self.snapshot, &place, &head.view(), started) {
            Ok(admitted) => {
                self.log.rule = admitted.plan.rule;
                self.log.version = Some(admitted.plan.version);
                Ok((head, admitted))
            }
            Err(refused) => {
                self.log.rule = refused.plan.and_then(|plan| plan.rule);
                self.log.version = refused.plan.map(|plan| plan.version);
                Err((refused.reject, refused.verdict))
            }
        }
    }

    fn refuse(&mut self, reject: Reject, verdict: &Verdict) {
        self.log.reject = Some(reject);
        if reject.status() == 0 {
            return;
        }
        self.log.status = if self.grpc { 200 } else { reject.status() };
        self.log.grpc_status = self.grpc.then(|| reject.grpc_status());
        refuse::send(&mut self.respond, reject, verdict, self.grpc, self.is_head);
    }

    /// Attempts until an answer went out; the refusal to send otherwise.
    async fn forward(&mut self, head: &Head, plan: Plan, verdict: &Verdict) -> Option<Reject> {
        let snapshot = Rc::clone(&self.snapshot);
        let version = &snapshot.versions[plan.version.0 as usize];
        self.kept = Kept::new(match &version.retry.policy {
            Some(_) => self.conn.core.limits().replay_bytes_max,
            None => 0,
        });
        if self.body.is_end_stream() {
            self.kept.ended = true;
            self.complete = Some(self.log.started);
        }
        let mut attempts = Attempts::default();
        loop {
            match self.attempt(head, plan, verdict, &mut attempts).await {
                Turn::Done => return None,
                Turn::Refuse(reject) => return Some(reject),
                Turn::Again(pause) => {
                    let end = clock::now()
                        .after(pause)
                        .min(self.until(version.request_timeout));
                    if !pause.is_zero() && !self.wait(end).await {
                        return Some(Reject::DownstreamClosed);
                    }
                }
            }
        }
    }

    fn until(&self, request: Duration) -> MonoNanos {
        self.complete
            .map_or(NEVER, |complete| deadline(complete, request))
            .min(self.deadline)
    }

    /// Waits. Whether the client is still there.
    async fn wait(&mut self, end: MonoNanos) -> bool {
        poll_fn(|cx| {
            if self.respond.poll_reset(cx).is_ready() {
                return Poll::Ready(false);
            }
            self.timer.poll(cx, end).map(|()| true)
        })
        .await
    }

    async fn connect(
        &mut self,
        target: &Target<'_>,
        until: MonoNanos,
    ) -> Result<Lease, Option<NoConnection>> {
        let conn = Rc::clone(&self.conn);
        let mut lease = Box::pin(checkout(&conn.core, &conn.workload, target));
        poll_fn(|cx| {
            if let Poll::Ready(lease) = lease.as_mut().poll(cx) {
                return Poll::Ready(lease.map_err(Some));
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

    #[expect(
        clippy::too_many_lines,
        reason = "one attempt from its choice to its record"
    )]
    async fn attempt(
        &mut self,
        head: &Head,
        plan: Plan,
        verdict: &Verdict,
        attempts: &mut Attempts,
    ) -> Turn {
        let conn = Rc::clone(&self.conn);
        let core = &conn.core;
        let snapshot = Rc::clone(&self.snapshot);
        let version = &snapshot.versions[plan.version.0 as usize];
        let started = clock::now();
        attempts.count += 1;
        let until = self.until(version.request_timeout);
        if started >= until {
            return Turn::Refuse(Reject::UpstreamTimeout);
        }
        let picked = balance::pick(
            &snapshot,
            plan.version,
            &attempts.tried,
            &mut core.rng.borrow_mut(),
            started,
        );
        let endpoint = match picked {
            Ok(endpoint) => endpoint,
            Err(reject) => return Turn::Refuse(reject),
        };
        self.log.endpoint = Some(endpoint.address);
        let permit = match version.breaker.request(&endpoint) {
            Ok(permit) => permit,
            Err(reject) => return Turn::Refuse(reject),
        };
        let target = Target::new(&snapshot, plan.version, &endpoint, &conn.workload);
        let record =
            |outcome, at| attempt::record(core, &snapshot, plan.version, &endpoint, outcome, at);
        let method = head.method.as_str();
        let lease = match self.connect(&target, until).await {
            Ok(lease) => lease,
            Err(None) => return Turn::Refuse(Reject::DownstreamClosed),
            Err(Some(failed)) => {
                drop(permit);
                let Some(outcome) = failed.outcome() else {
                    return Turn::Refuse(failed.reject());
                };
                record(outcome, clock::now());
                attempts.tried.push(endpoint.id);
                let whole = self.kept.whole;
                return retry_after(version, attempts, method, Failure::Connect, whole, core)
                    .map_or(Turn::Refuse(failed.reject()), Turn::Again);
            }
        };
        let ends = self.kept.ended && self.kept.data.is_empty() && self.kept.trailers.is_none();
        let sent = match lease.sender().ready().await {
            Ok(mut sender) => sender.send_request(head.request(), ends),
            Err(error) => Err(error),
        };
        let (response, sink) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                // Nothing was sent: the connection closed while the stream was on its way to it.
                tracing::debug!(%error, "upstream HTTP/2 connection takes no stream");
                lease.retire();
                record(Outcome::Abandoned, clock::now());
                if attempts.stale {
                    return Turn::Refuse(Reject::UpstreamClosed);
                }
                attempts.stale = true;
                attempts.count -= 1;
                return Turn::Again(Duration::ZERO);
            }
        };
        self.log.attempts += 1;
        let mut exchange = Exchange {
            request: Flow::new(&self.kept, ends),
            sink,
            response,
            answer: None,
            answer_kept: Kept::new(0),
            request_broken: None,
            last: started,
        };
        let spans = Spans {
            request: version.request_timeout,
            per_try: version.retry.per_try().unwrap_or_default(),
            idle: version.idle_timeout,
            started,
        };
        let whole_limit = &mut None;
        let mut choose = |status: u16, whole: bool| {
            *whole_limit = retry_after(
                version,
                attempts,
                method,
                Failure::Status(status),
                whole,
                core,
            );
            whole_limit.is_some()
        };
        let end = poll_fn(|cx| exchange.poll(cx, self, spans, verdict, &mut choose)).await;
        let pause = *whole_limit;
        let ended = clock::now();
        self.log.ended = Some(ended);
        self.log.bytes_in = exchange.request.bytes;
        let answered = exchange.answer.as_ref().map(|answer| answer.status);
        if let Some(answer) = &exchange.answer {
            self.log.bytes_out = answer.flow.bytes;
            let trailers = answer.flow.trailers.as_ref();
            self.log.grpc_status = trailers.and_then(grpc::status).or(self.log.grpc_status);
        }
        // For gRPC the endpoint's record is what its status means in HTTP.
        let outcome = answered.map(|status| {
            let code = self.log.grpc_status.filter(|_| self.grpc && status == 200);
            Outcome::Status(code.map_or(status, grpc::as_http))
        });
        match end {
            End::Complete => {
                record(outcome.unwrap_or(Outcome::Abandoned), ended);
                Turn::Done
            }
            End::Retry(status) => {
                record(Outcome::Status(status), ended);
                attempts.tried.push(endpoint.id);
                exchange.sink.send_reset(Reason::CANCEL);
                Turn::Again(pause.unwrap_or_default())
            }
            End::Downstream(reason) => {
                record(outcome.unwrap_or(Outcome::Abandoned), ended);
                exchange.sink.send_reset(reason);
                Turn::Refuse(Reject::DownstreamClosed)
            }
            End::Upstream {
                reason,
                unprocessed,
            } => {
                record(Outcome::Reset, ended);
                attempts.tried.push(endpoint.id);
                if let Some(answer) = &mut exchange.answer {
                    answer.sink.send_reset(reason);
                    self.log.reject = Some(Reject::UpstreamReset);
                    return Turn::Done;
                }
                let failure = if unprocessed {
                    Failure::Refused
                } else {
                    Failure::Reset
                };
                let whole = self.kept.whole;
                retry_after(version, attempts, method, failure, whole, core)
                    .map_or(Turn::Refuse(Reject::UpstreamReset), Turn::Again)
            }
            End::RequestTimeout | End::TryTimeout | End::Still => {
                record(outcome.unwrap_or(Outcome::Timeout), ended);
                attempts.tried.push(endpoint.id);
                exchange.sink.send_reset(Reason::CANCEL);
                if let Some(answer) = &mut exchange.answer {
                    answer.sink.send_reset(Reason::CANCEL);
                    self.log.reject = Some(Reject::UpstreamTimeout);
                    return Turn::Done;
                }
                let whole = self.kept.whole;
                (end == End::TryTimeout)
                    .then(|| retry_after(version, attempts, method, Failure::PerTry, whole, core))
                    .flatten()
                    .map_or(Turn::Refuse(Reject::UpstreamTimeout), Turn::Again)
            }
        }
    }

    /// Sends the endpoint's head on.
    fn answer(
        &mut self,
        response: Response<RecvStream>,
        verdict: &Verdict,
    ) -> Result<Answer, Broken> {
        let (mut parts, body) = response.into_parts();
        refuse::put_limits(&mut parts.headers, verdict);
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
        Ok(Answer {
            status,
            body,
            sink,
            flow: Flow::new(&Kept::default(), ends),
        })
    }
}

/// What an attempt may take for how long.
#[derive(Clone, Copy)]
struct Spans {
    request: Duration,
    per_try: Duration,
    idle: Duration,
    started: MonoNanos,
}

/// The answer under way.
struct Answer {
    status: u16,
    body: RecvStream,
    sink: SendStream<Bytes>,
    flow: Flow,
}

struct Exchange {
    request: Flow,
    sink: SendStream<Bytes>,
    response: ResponseFuture,
    answer: Option<Answer>,
    answer_kept: Kept,
    /// The endpoint takes no more of the request; it may answer all the same.
    request_broken: Option<Reason>,
    last: MonoNanos,
}

impl Exchange {
    fn poll(
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
        if let Some(end) = self.poll_body(cx) {
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

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Option<End> {
        let answer = self.answer.as_mut()?;
        let done = answer.flow.poll(
            cx,
            &mut answer.body,
            &mut answer.sink,
            &mut self.answer_kept,
        );
        match done {
            Poll::Pending => None,
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
        let request = stream.until(spans.request);
        let per_try = if self.answer.is_none() && self.request.done {
            deadline(spans.started, spans.per_try)
        } else {
            NEVER
        };
        // A gRPC stream may be silent for as long as its client likes; of any other request the
        // body has to come.
        let owed = !stream.grpc
            && (self.request.waits_for_source
                || self
                    .answer
                    .as_ref()
                    .is_some_and(|answer| !answer.flow.waits_for_source));
        let span = if owed {
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
            } else {
                End::Still
            }
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
