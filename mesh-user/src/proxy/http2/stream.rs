//! One stream: decision, attempts, both directions at once.

use std::{future::poll_fn, rc::Rc, task::Poll, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest, server::SendResponse};
use http::{Method, Request};

use super::{
    client::{Lease, open_stream},
    exchange::{End, Exchange, Spans},
    flow::{Flow, Kept},
    grpc,
    head::{self, Head},
    refuse,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{Reject, rate_limit::Verdict, retry::Failure, route::Plan, snapshot::Outcome},
    proxy::{
        attempt::{self, Admitted},
        buffer::HeadBuf,
        core::{Conn, Place, Snap},
        inbound,
        record::RequestLog,
        retry::{Attempts, retry_after},
        timer::{NEVER, Timer, deadline},
        upstream::{NoConnection, Target},
    },
    telemetry::Spoken,
};

/// A stream of a client and everything about it.
pub(super) struct Stream {
    pub(super) conn: Rc<Conn>,
    snapshot: Snap,
    pub(super) body: RecvStream,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) timer: Timer,
    pub(super) log: RequestLog,
    pub(super) grpc: bool,
    is_head: bool,
    pub(super) kept: Kept,
    /// When the request was complete.
    pub(super) complete: Option<MonoNanos>,
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
            head::check(request, &core.limits()).map_err(|reject| (reject, Verdict::default()))?;
        head.identify(&mut core.rng.borrow_mut());
        if self.conn.is_secure() {
            head.secure();
        }
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

    /// When the request is given up.
    pub(super) fn until(&self, request: Duration) -> MonoNanos {
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
    ) -> Result<(Lease, SendRequest<Bytes>), Option<NoConnection>> {
        let conn = Rc::clone(&self.conn);
        let mut lease = Box::pin(open_stream(&conn.core, &conn.workload, target));
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
        let picked = inbound::pick(&conn, &snapshot, plan.version, &attempts.tried, started);
        let endpoint = match picked {
            Ok(endpoint) => endpoint,
            Err(reject) => return Turn::Refuse(reject),
        };
        self.log.endpoint = Some(endpoint.address);
        let mut permit = match version.breaker.request(&endpoint) {
            Ok(permit) => permit,
            Err(reject) => return Turn::Refuse(reject),
        };
        // Held until the attempt has ended.
        let judged = inbound::judge(
            &conn,
            &snapshot,
            self.log.source,
            &endpoint,
            &mut attempts.charged,
            started,
        );
        let judged = match judged {
            Ok(judged) => judged,
            Err(reject) => return Turn::Refuse(reject),
        };
        let target = Target::new(&snapshot, plan.version, &endpoint, &conn, &judged);
        let record =
            |outcome, at| attempt::record(core, &snapshot, plan.version, &endpoint, outcome, at);
        let method = head.method.as_str();
        let (lease, mut sender) = match self.connect(&target, until).await {
            Ok(opened) => opened,
            Err(None) => return Turn::Refuse(Reject::DownstreamClosed),
            Err(Some(failed)) => {
                // The permit, which may be that of a probe, outlives the record.
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
        self.kept.seal();
        let ends = self.kept.ended && self.kept.data.is_empty() && self.kept.trailers.is_none();
        let (response, sink) = match sender.send_request(head.request(target.tls.is_some()), ends) {
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
        let flow = Flow::new(&self.kept, ends);
        let mut exchange = Exchange::new(flow, sink, response, started);
        let spans = Spans {
            request: version.request_timeout,
            per_try: version.retry.per_try().unwrap_or_default(),
            idle: version.idle_timeout,
            started,
        };
        let mut pause = None;
        let mut retry = |status: u16, whole: bool| {
            let failure = Failure::Status(status);
            pause = retry_after(version, attempts, method, failure, whole, core);
            pause.is_some()
        };
        let end = poll_fn(|cx| {
            let turn = exchange.poll(cx, self, spans, verdict, &mut retry);
            let answer = exchange.answer.as_ref();
            if turn.is_pending() && answer.is_some_and(|answer| answer.status < 500) {
                permit.answered();
            }
            turn
        })
        .await;
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
            End::BodyTimeout => {
                record(outcome.unwrap_or(Outcome::Abandoned), ended);
                exchange.sink.send_reset(Reason::CANCEL);
                if let Some(answer) = &mut exchange.answer {
                    answer.sink.send_reset(Reason::CANCEL);
                    self.log.reject = Some(Reject::BodyTimeout);
                    return Turn::Done;
                }
                Turn::Refuse(Reject::BodyTimeout)
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
}
