//! One stream: decision, attempts, both directions at once.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest, server::SendResponse};
use http::{HeaderName, HeaderValue, Method, Request};

use super::{
    actions::Acted,
    client::{Lease, open_stream},
    exchange::{End, Exchange, Spans},
    flow::{Flow, Kept},
    grpc,
    head::{self, Head},
    hedge::{self, Right, Whole, Won},
    mirrored::Listener,
    refuse,
    tunnel::{Tunnel, Way},
};
use crate::{
    clock::{self, MonoNanos},
    policy::{
        Reject,
        action::{Edits, MirrorPlan, as_http},
        rate_limit::Verdict,
        retry::{AnswerHead, Failure},
        route::Plan,
        snapshot::{EndpointState, Outcome},
        terms::Terms,
    },
    proxy::{
        attempt::{self, Admitted},
        buffer::HeadBuf,
        core::{Conn, Core, Place, Snap},
        flows::{Flows, LONG},
        hedge::Hedges,
        inbound,
        mirror::Comparison,
        record::RequestLog,
        retry::{Attempts, On, retry_after},
        stores,
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
    pub(super) deadline: MonoNanos,
    /// Whoever compares the answer with a mirror's.
    compare: Option<Rc<Comparison>>,
    /// What the rule edits of the answer.
    pub(super) edits: Option<Arc<Edits>>,
    /// That, and the session of the attempt's endpoint.
    pub(super) answer_edits: Option<Arc<Edits>>,
    /// It asks for a tunnel.
    pub(super) asks_tunnel: bool,
    /// It has one.
    pub(super) is_tunnel: bool,
    /// When it began, a rule's pause left out.
    pub(super) begun: MonoNanos,
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
        compare: None,
        edits: None,
        answer_edits: None,
        asks_tunnel: false,
        is_tunnel: false,
        begun: started,
    };
    let (reject, verdict) = match stream.decide(place, Request::from_parts(parts, ())) {
        Ok((
            mut head,
            Admitted {
                plan,
                key,
                mut verdict,
            },
        )) => {
            let asked = stream.ask_stores(&mut verdict).await;
            stream.log.held = verdict.held.take();
            if let Err(reject) = asked {
                stream.refuse(reject, &verdict);
                return;
            }
            let (conn, snapshot) = (&stream.conn, &stream.snapshot);
            let action = attempt::act(conn, snapshot, &place, &plan, &head.view(), stream.grpc);
            let mut mirrors = Vec::new();
            let acted = match action {
                None => Acted::Forward,
                // Boxed: rare, and large beside the state of a stream.
                Some(mut action) => {
                    mirrors = std::mem::take(&mut action.mirrors);
                    Box::pin(stream.act(&mut action, &mut head, &verdict)).await
                }
            };
            let refused = match acted {
                Acted::Forward => stream.forward(&head, plan, key, &verdict, &mirrors).await,
                Acted::Answered => None,
                Acted::Refuse(reject) => Some(reject),
            };
            (refused, verdict)
        }
        Err((reject, verdict)) => (Some(reject), verdict),
    };
    if let Some(reject) = reject {
        stream.refuse(reject, &verdict);
    }
}

/// What stays the same over the attempts of a request.
#[derive(Clone, Copy)]
pub(super) struct Course<'a> {
    head: &'a Head,
    pub(super) plan: Plan,
    verdict: &'a Verdict,
    pub(super) on: On<'a>,
    core: &'a Rc<Core>,
    pub(super) snapshot: &'a Snap,
}

impl Course<'_> {
    pub(super) fn record(
        &self,
        endpoint: &EndpointState,
        outcome: Outcome,
        took: Option<Duration>,
        retry_after: Option<Duration>,
        at: MonoNanos,
    ) {
        let (core, snapshot) = (self.core, self.snapshot);
        attempt::record(
            core,
            snapshot,
            self.plan.version,
            endpoint,
            outcome,
            took,
            retry_after,
            at,
        );
    }
}

/// What follows an attempt.
pub(super) enum Turn {
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

    /// Asks the stores of shared limits, where there are such.
    async fn ask_stores(&mut self, verdict: &mut Verdict) -> Result<(), Reject> {
        let Some(held) = &mut verdict.held else {
            return Ok(());
        };
        if held.waits() {
            let respond = &mut self.respond;
            let gone = |cx: &mut Context<'_>| respond.poll_reset(cx).is_ready();
            return Box::pin(stores::ask(&self.conn.core, verdict, gone)).await;
        }
        stores::tell(&self.conn.core, held);
        Ok(())
    }

    fn refuse(&mut self, reject: Reject, verdict: &Verdict) {
        self.log.reject = Some(reject);
        if reject.status() == 0 {
            return;
        }
        let status = verdict.status(reject);
        self.log.status = if self.grpc { 200 } else { status };
        self.log.grpc_status = self.grpc.then(|| verdict.grpc_status(reject));
        let limits = self.conn.core.limits();
        let overload = limits.overload_header.as_deref();
        let (grpc, is_head) = (self.grpc, self.is_head);
        refuse::send(&mut self.respond, reject, verdict, grpc, is_head, overload);
    }

    /// Attempts until an answer went out; the refusal to send otherwise.
    async fn forward(
        &mut self,
        head: &Head,
        plan: Plan,
        key: Option<u64>,
        verdict: &Verdict,
        mirrors: &[MirrorPlan],
    ) -> Option<Reject> {
        let snapshot = Rc::clone(&self.snapshot);
        let version = &snapshot.versions[plan.version.0 as usize];
        let terms = snapshot.terms(&plan);
        if let Some(protocol) = head.protocol() {
            if !version.admits_upgrade([protocol.as_bytes()]) {
                return Some(Reject::UpgradeRefused);
            }
            // Its end is not the end of a request: there has to be an answer in time.
            let open = deadline(self.begun, terms.request);
            self.deadline = self.deadline.min(open);
            self.asks_tunnel = true;
        }
        self.kept = Kept::new(match terms.keeps() {
            true => self.conn.core.limits().replay_bytes_max,
            false => 0,
        });
        if let Some(budget) = &version.budget {
            budget.offered(self.log.started);
        }
        if self.body.is_end_stream() {
            self.kept.ended = true;
            self.complete = Some(self.begun);
        }
        self.compare = self.mirror(head, mirrors);
        let mut attempts = Attempts::by(key);
        loop {
            match self.attempt(head, plan, verdict, &mut attempts).await {
                Turn::Done => return None,
                Turn::Refuse(reject) => return Some(reject),
                Turn::Again(pause) => {
                    let end = clock::now().after(pause).min(self.until(terms.request));
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

    /// Whether an answer has no body.
    pub(super) const fn is_head(&self) -> bool {
        self.is_head
    }

    /// The request of an attempt. A client's `grpc-timeout` is shortened to what the endpoint has
    /// of it: what is left, and no more than the attempt is given.
    fn request(&self, head: &Head, terms: Terms<'_>, attempt: u32, over_tls: bool) -> Request<()> {
        let mut request = head.request(over_tls);
        if let Some(name) = terms.retry.attempt_header()
            && let Ok(name) = HeaderName::try_from(name)
        {
            request
                .headers_mut()
                .insert(name, HeaderValue::from(attempt));
        }
        if self.grpc && self.deadline != NEVER {
            let now = clock::now();
            let until = self
                .until(terms.request)
                .min(deadline(now, terms.per_try()))
                .min(deadline(now, terms.backend));
            if attempt > 1 || until < self.deadline {
                let left = grpc::timeout(until.since(now));
                request.headers_mut().insert("grpc-timeout", left);
            }
        }
        request
    }

    /// Waits. Whether the client is still there.
    pub(super) async fn wait(&mut self, end: MonoNanos) -> bool {
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
        let terms = snapshot.terms(&plan);
        let on = On { version, terms };
        let started = clock::now();
        attempts.count += 1;
        let until = self.until(terms.request);
        if started >= until {
            return Turn::Refuse(Reject::UpstreamTimeout);
        }
        let picked = attempt::pick(
            &conn,
            &snapshot,
            &plan,
            attempts.key,
            &attempts.tried,
            started,
        );
        let endpoint = match picked {
            Ok(endpoint) => endpoint,
            Err(reject) => return Turn::Refuse(reject),
        };
        self.log.going_to(endpoint.address, started);
        let edits = self.edits.as_ref();
        self.answer_edits =
            attempt::answer_edits(&conn, &snapshot, &plan, &endpoint, edits, started);
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
        let course = Course {
            head,
            plan,
            verdict,
            on,
            core,
            snapshot: &snapshot,
        };
        let record = |outcome, took, wait, at| course.record(&endpoint, outcome, took, wait, at);
        let method = head.method.as_str();
        let opened = if head.is_tunnel() {
            let way = Way {
                target: &target,
                declared: snapshot.port(version.port).protocol,
                until,
                idle: version.idle_timeout,
                verdict,
                permit: &mut permit,
                record: &|outcome, at| record(outcome, None, None, at),
                watch: Flows::watch(core, &snapshot, &plan, &endpoint),
            };
            match Box::pin(self.tunnel(head, way)).await {
                Tunnel::Http2 => self.connect(&target, until).await,
                Tunnel::NoConnection(why) => Err(why),
                Tunnel::Ended(turn) => return turn,
            }
        } else {
            self.connect(&target, until).await
        };
        let (lease, mut sender) = match opened {
            Ok(opened) => opened,
            Err(None) => return Turn::Refuse(Reject::DownstreamClosed),
            Err(Some(failed)) => {
                // The permit, which may be that of a probe, outlives the record.
                let Some(outcome) = failed.outcome() else {
                    return Turn::Refuse(failed.reject());
                };
                let ended = clock::now();
                record(outcome, attempt::took(started, None, ended), None, ended);
                attempts.tried.push(endpoint.id);
                let whole = self.kept.whole;
                return retry_after(on, attempts, method, Failure::Connect, whole, core)
                    .map_or(Turn::Refuse(failed.reject()), Turn::Again);
            }
        };
        self.kept.seal();
        let ends = self.kept.ended && self.kept.data.is_empty() && self.kept.trailers.is_none();
        let (response, sink) = match sender.send_request(
            self.request(head, terms, attempts.count, target.tls.is_some()),
            ends,
        ) {
            Ok(sent) => sent,
            Err(error) => {
                // Nothing was sent: the connection closed while the stream was on its way to it.
                tracing::debug!(%error, "upstream HTTP/2 connection takes no stream");
                lease.retire();
                record(Outcome::Abandoned, None, None, clock::now());
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
        let exchange = Exchange::new(flow, sink, response, started);
        let right = Right {
            permit,
            _lease: lease,
            _judged: judged,
        };
        let hedges = Hedges::new(on, method, &attempts.tried, endpoint.id);
        self.converse(
            &course, &endpoint, right, exchange, started, hedges, attempts,
        )
        .await
    }

    /// Goes on with the endpoint that won.
    async fn resume(
        &mut self,
        course: &Course<'_>,
        won: Box<Won<'_>>,
        attempts: &mut Attempts,
    ) -> Turn {
        let Won {
            endpoint,
            right,
            sink,
            response,
            started,
            ..
        } = *won;
        self.log.endpoint = Some(endpoint.address);
        let (snapshot, edits) = (course.snapshot, self.edits.as_ref());
        self.answer_edits = attempt::answer_edits(
            &self.conn,
            snapshot,
            &course.plan,
            &endpoint,
            edits,
            started,
        );
        let exchange = Exchange::resumed(sink, response, started);
        Box::pin(self.converse(course, &endpoint, right, exchange, started, None, attempts)).await
    }

    /// [`resume`](Self::resume), boxed in here: what is passed to `Box::pin` would take its room in
    /// every stream.
    fn resumed<'f>(
        &'f mut self,
        course: &'f Course<'f>,
        won: Box<Won<'f>>,
        attempts: &'f mut Attempts,
    ) -> Pin<Box<dyn Future<Output = Turn> + 'f>> {
        Box::pin(self.resume(course, won, attempts))
    }

    /// Waits for the hedges that are left when the first endpoint is out of the race. None: none
    /// of them answered. The error: why the request is given up.
    async fn rest<'c>(
        &mut self,
        hedges: &mut Hedges<'c, Won<'c>>,
        request: Duration,
    ) -> Result<Option<Box<Won<'c>>>, Reject> {
        let until = self.until(request);
        poll_fn(|cx| {
            if let Poll::Ready(won) = hedges.poll_rest(cx) {
                return Poll::Ready(Ok(won.map(Box::new)));
            }
            if self.respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Reject::DownstreamClosed));
            }
            let late = self.timer.poll(cx, until);
            late.map(|()| Err(Reject::UpstreamTimeout))
        })
        .await
    }

    /// One attempt from when its request is on its way.
    #[expect(
        clippy::too_many_arguments,
        reason = "the state of an attempt, each for its own use"
    )]
    async fn converse<'c>(
        &mut self,
        course: &'c Course<'c>,
        endpoint: &EndpointState,
        mut right: Right<'_>,
        mut exchange: Exchange,
        started: MonoNanos,
        mut hedges: Option<Box<Hedges<'c, Won<'c>>>>,
        attempts: &mut Attempts,
    ) -> Turn {
        let Course {
            head,
            plan,
            verdict,
            on,
            core,
            snapshot,
        } = *course;
        let (terms, version) = (on.terms, on.version);
        let method = head.method.as_str();
        let record = |outcome, took, wait, at| course.record(endpoint, outcome, took, wait, at);
        let number = attempts.count;
        let compare = self.compare.clone().map(Listener::Comparison);
        exchange.answer_kept.listener = compare.map(Box::new);
        // Legs that may still answer better than a bad answer.
        let others = Cell::new(0);
        let mut won = None;
        let spans = Spans {
            request: terms.request,
            per_try: terms.per_try(),
            backend: terms.backend,
            idle: version.idle_timeout,
            started,
        };
        let mut pause = None;
        let mut retry = |answer: &dyn AnswerHead, whole: bool| {
            if others.get() > 0 && answer.status() >= 500 {
                return true;
            }
            if terms.retry.policy.is_none() {
                return false;
            }
            let failure = Failure::Answer(terms.retry.read(answer));
            pause = retry_after(on, attempts, method, failure, whole, core);
            pause.is_some()
        };
        let mut watch = Flows::watch(core, snapshot, &plan, endpoint);
        let end = poll_fn(|cx| {
            let turn = exchange.poll(cx, self, spans, verdict, &mut retry);
            let answer = exchange.answer.as_ref();
            if turn.is_pending() && answer.is_some_and(|answer| answer.status < 500) {
                right.permit.answered();
            }
            if turn.is_pending()
                && let Some(watch) = &mut watch
                && let Some(answered) = exchange.answered_at
                && watch.poll_after(cx, answered.after(LONG)).is_ready()
            {
                return Poll::Ready(End::Changed);
            }
            if turn.is_pending()
                && let Some(hedges) = &mut hedges
                && exchange.is_waiting()
                && self.kept.whole
            {
                let number = number + hedges.begun + 1;
                let mut begin = |tried: &[u64]| {
                    let over_tls = version.effective.tls.value.is_some();
                    let request = self.request(head, terms, number, over_tls);
                    let whole = Whole::new(request, &mut self.kept);
                    let (source, grpc) = (self.log.source, self.grpc);
                    hedge::start(course, &self.conn, source, grpc, whole, tried)
                };
                if let Poll::Ready(answer) = hedges.poll(cx, false, &mut begin) {
                    won = Some(Box::new(answer));
                    return Poll::Ready(End::Hedged);
                }
                others.set(hedges.in_flight());
            }
            turn
        })
        .await;
        let ended = clock::now();
        self.log.ended = Some(ended);
        let head_at = exchange.answered_at.unwrap_or(ended);
        let took = attempt::took(started, self.complete, head_at);
        let wait = exchange.retry_after;
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
            Outcome::Status(code.map_or(status, as_http))
        });
        if let Some(mut left) = hedges {
            attempts.count += left.begun;
            self.log.attempts += left.begun;
            let fails = match end {
                // Without a pause nobody wanted to repeat it but those who wait for a better one.
                End::Retry(_) => pause.is_none(),
                End::Upstream { .. } | End::TryTimeout | End::BackendTimeout => {
                    exchange.answer.is_none()
                }
                _ => false,
            };
            let waits = won.is_none() && fails && left.in_flight() > 0;
            if won.is_some() || waits || (fails && matches!(end, End::Retry(_))) {
                let rest = match won {
                    Some(won) => Ok(Some(won)),
                    None => self.rest(&mut left, terms.request).await,
                };
                // An endpoint that was too slow for the per-try time-out has met it, as with Envoy.
                let by_time_out = terms.hedge.is_some_and(|hedge| hedge.after.is_none());
                let (outcome, failure) = match end {
                    End::Hedged if by_time_out => (Outcome::Timeout, Failure::PerTry),
                    End::Hedged => (Outcome::Abandoned, Failure::PerTry),
                    End::Retry(status) => (Outcome::Status(status), Failure::status(status)),
                    End::TryTimeout => (Outcome::Timeout, Failure::PerTry),
                    End::BackendTimeout => (Outcome::Timeout, Failure::Backend),
                    _ => (Outcome::Reset, Failure::Reset),
                };
                record(outcome, took, wait, ended);
                attempts.tried.clone_from(&left.tried);
                exchange.sink.send_reset(Reason::CANCEL);
                drop((left, exchange, right));
                return match rest {
                    Ok(Some(won)) => self.resumed(course, won, attempts).await,
                    Err(reject) => Turn::Refuse(reject),
                    Ok(None) => {
                        let whole = self.kept.whole;
                        let reject = match failure {
                            Failure::PerTry | Failure::Backend => Reject::UpstreamTimeout,
                            _ => Reject::UpstreamReset,
                        };
                        retry_after(on, attempts, method, failure, whole, core)
                            .map_or(Turn::Refuse(reject), Turn::Again)
                    }
                };
            }
        }
        match end {
            End::Complete => {
                if let (Some(compare), Some(status)) = (&self.compare, answered) {
                    compare.end(status, self.log.grpc_status);
                }
                record(outcome.unwrap_or(Outcome::Abandoned), took, wait, ended);
                Turn::Done
            }
            End::Retry(status) => {
                record(Outcome::Status(status), took, wait, ended);
                attempts.tried.push(endpoint.id);
                exchange.sink.send_reset(Reason::CANCEL);
                Turn::Again(pause.unwrap_or_default())
            }
            End::Downstream(reason) => {
                record(outcome.unwrap_or(Outcome::Abandoned), took, wait, ended);
                exchange.sink.send_reset(reason);
                Turn::Refuse(Reject::DownstreamClosed)
            }
            End::Upstream {
                reason,
                unprocessed,
            } => {
                record(Outcome::Reset, took, wait, ended);
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
                retry_after(on, attempts, method, failure, whole, core)
                    .map_or(Turn::Refuse(Reject::UpstreamReset), Turn::Again)
            }
            // Gone on with above.
            End::Hedged => Turn::Refuse(Reject::UpstreamReset),
            End::Changed => {
                record(outcome.unwrap_or(Outcome::Abandoned), took, wait, ended);
                exchange.sink.send_reset(Reason::CANCEL);
                if let Some(answer) = &mut exchange.answer {
                    answer.end(Reject::RouteChanged, self.grpc);
                }
                self.log.reject = Some(Reject::RouteChanged);
                Turn::Done
            }
            End::BodyTimeout => {
                record(outcome.unwrap_or(Outcome::Abandoned), took, wait, ended);
                exchange.sink.send_reset(Reason::CANCEL);
                if let Some(answer) = &mut exchange.answer {
                    answer.sink.send_reset(Reason::CANCEL);
                    self.log.reject = Some(Reject::BodyTimeout);
                    return Turn::Done;
                }
                Turn::Refuse(Reject::BodyTimeout)
            }
            End::RequestTimeout | End::TryTimeout | End::BackendTimeout | End::Still => {
                record(outcome.unwrap_or(Outcome::Timeout), took, wait, ended);
                attempts.tried.push(endpoint.id);
                exchange.sink.send_reset(Reason::CANCEL);
                if let Some(answer) = &mut exchange.answer {
                    answer.sink.send_reset(Reason::CANCEL);
                    self.log.reject = Some(Reject::UpstreamTimeout);
                    return Turn::Done;
                }
                let whole = self.kept.whole;
                let failure = match end {
                    End::TryTimeout => Some(Failure::PerTry),
                    End::BackendTimeout => Some(Failure::Backend),
                    _ => None,
                };
                failure
                    .and_then(|failure| retry_after(on, attempts, method, failure, whole, core))
                    .map_or(Turn::Refuse(Reject::UpstreamTimeout), Turn::Again)
            }
        }
    }
}
