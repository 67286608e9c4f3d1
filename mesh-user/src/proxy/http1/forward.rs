//! A request on its way: attempts until an answer went out, or none will come.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    answer,
    exchange::{End, Exchange, Outlook, Spans, Wires},
    hedge::{self, Won},
    mirrored,
    raw_head::with_attempt,
    request::{self, Request},
    sending::Sending,
    serve::{Going, Next, Session},
};
use crate::{
    clock::{self, MonoNanos},
    policy::{
        Reject, VersionIx,
        action::Edits,
        breaker::RequestPermit,
        retry::{AnswerHead, Failure, is_idempotent},
        route::Plan,
        snapshot::{EndpointState, Outcome, VersionPlan},
        terms::Terms,
    },
    proxy::{
        attempt,
        core::{Conn, Core, Snap},
        flows::{Flows, LONG, Watch},
        hedge::Hedges,
        inbound,
        io::poll_fill,
        record::RequestLog,
        retry::{Attempts, On, retry_after},
        tcp::{CopyEnd, Side, carry},
        timer::{NEVER, deadline},
        upstream::{NoConnection, Target, Upstream, connect_queued, put_back},
    },
};

/// What stays the same over the attempts of a request.
pub(super) struct Course<'a> {
    core: &'a Rc<Core>,
    pub(super) snapshot: &'a Snap,
    pub(super) at: VersionIx,
    pub(super) version: &'a VersionPlan,
    terms: Terms<'a>,
    plan: &'a Plan,
    request: &'a Request,
    /// When the request's head was complete.
    complete: MonoNanos,
    /// `RateLimit` lines for the answer.
    extra: &'a [u8],
    /// Edits of the answer's fields.
    edits: Option<Arc<Edits>>,
}

/// The endpoint of an attempt, and the right to use it.
struct Chosen {
    endpoint: Arc<EndpointState>,
    permit: RequestPermit,
}

/// An exchange that a hedge began.
#[derive(Clone, Copy, Debug)]
struct Resumed {
    /// The endpoint answered before it had the whole request.
    early: bool,
}

/// How the hedges ended that were left alone.
enum Rest<'a> {
    Won(Box<Won<'a>>),
    /// None of them answered.
    Lost,
    /// The client went away.
    Gone,
    /// The request's time is over.
    Late,
}

/// An attempt with hedges, at its end.
struct Race<'a> {
    end: End,
    outlook: Outlook,
    took: Option<Duration>,
    ended: MonoNanos,
    endpoint: &'a EndpointState,
    /// Its answer is to be tried again by the policy.
    is_repeated: bool,
}

/// What follows for an attempt with hedges.
enum Raced<'a> {
    /// The same as without them.
    Alone,
    Turn(Turn),
    /// Its answer counts.
    Won(Box<Won<'a>>),
}

/// The request of a hedge: it says its own number, where it says one.
fn whole(course: &Course<'_>, head: &[u8], body: &[u8], number: u32) -> Vec<u8> {
    let mut request = match course.terms.retry.attempt_header() {
        Some(name) => with_attempt(head, name, number),
        None => head.to_vec(),
    };
    request.extend_from_slice(body);
    request
}

/// What follows an attempt.
enum Turn {
    Next(Next),
    Again(Duration),
    Refuse(Reject),
}

impl Turn {
    fn gone(log: &mut RequestLog) -> Self {
        log.reject = Some(Reject::DownstreamClosed);
        Self::Next(Next::Reset)
    }

    /// A failure: an answer when none is under way, a reset otherwise.
    fn fail(log: &mut RequestLog, reject: Reject, outlook: Outlook) -> Self {
        if outlook.can_answer {
            Self::Refuse(reject)
        } else {
            log.reject = Some(reject);
            Self::Next(Next::Reset)
        }
    }
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
        let (core, snapshot, version) = (self.core, self.snapshot, self.at);
        attempt::record(
            core,
            snapshot,
            version,
            endpoint,
            outcome,
            took,
            retry_after,
            at,
        );
    }

    const fn on(&self) -> On<'_> {
        On {
            version: self.version,
            terms: self.terms,
        }
    }

    /// Chooses an endpoint; the breaker's word comes last.
    fn choose(&self, conn: &Conn, attempts: &Attempts, now: MonoNanos) -> Result<Chosen, Reject> {
        let endpoint = attempt::pick(
            conn,
            self.snapshot,
            self.plan,
            attempts.key,
            &attempts.tried,
            now,
        )?;
        let permit = self.version.breaker.request(&endpoint)?;
        Ok(Chosen { endpoint, permit })
    }

    /// Whether the policy allows another attempt.
    fn again(
        &self,
        log: &RequestLog,
        attempts: &mut Attempts,
        failure: Failure,
        sending: &Sending,
    ) -> Option<Turn> {
        let (method, replayable) = (log.method(), sending.replayable);
        retry_after(self.on(), attempts, method, failure, replayable, self.core).map(Turn::Again)
    }
}

impl Session {
    /// Attempts until an answer went out, or none will come.
    pub(super) async fn forward(&mut self, mut going: Going, mut log: RequestLog) -> Next {
        log.rule = going.plan.rule;
        log.version = Some(going.plan.version);
        log.held = going.verdict.held.take();
        if going.action.is_some() {
            // Boxed: rare, and its state is no part of what an idle connection holds.
            let ended = Box::pin(self.act(&mut going, &mut log)).await;
            if let Some(next) = ended {
                return next;
            }
        }
        let Going {
            request,
            complete,
            plan,
            key,
            verdict,
            action,
        } = going;
        let (edits, mirrors) =
            action.map_or_else(Default::default, |action| (action.response, action.mirrors));
        let snapshot = Rc::clone(&log.snapshot);
        let core = Rc::clone(&self.conn.core);
        let version = &snapshot.versions[plan.version.0 as usize];
        let terms = snapshot.terms(&plan);
        let keep_max = match terms.keeps() {
            true => core.limits().replay_bytes_max,
            false => 0,
        };
        if let Some(budget) = &version.budget {
            budget.offered(complete);
        }
        let extra = answer::limit_lines(&verdict);
        let course = Course {
            core: &core,
            snapshot: &snapshot,
            at: plan.version,
            version,
            terms,
            plan: &plan,
            request: &request,
            complete,
            extra: &extra,
            edits,
        };
        if request.upgrade && !version.admits_upgrade(request::offered(&log.head)) {
            let close = !self.takes_rest(&request);
            let (refused, verdict) = (Reject::UpgradeRefused, &verdict);
            return self
                .refuse(&mut log, Some(&request), refused, verdict, close)
                .await;
        }
        let mut sending = Sending::new(request.body, keep_max, complete);
        if !mirrors.is_empty() {
            mirrored::begin(&self.conn, &log, &mirrors, &request, &mut sending);
        }
        let mut attempts = Attempts::by(key);
        loop {
            let turn = self
                .attempt(&course, &mut sending, &mut attempts, &mut log)
                .await;
            log.bytes_in = log.bytes_in.max(sending.bytes);
            match turn {
                Turn::Next(next) => return next,
                Turn::Again(pause) if self.pause(pause, &sending, terms.request).await => {}
                Turn::Again(_) => {
                    log.reject = Some(Reject::DownstreamClosed);
                    return Next::Gone;
                }
                Turn::Refuse(reject) => {
                    sending.drop_ready(&mut self.buf);
                    // After a broken body nobody knows where the next request begins.
                    let close = reject == Reject::BadRequest
                        || !(sending.is_taken() || self.drop_body(&mut sending.body));
                    return self
                        .refuse(&mut log, Some(&request), reject, &verdict, close)
                        .await;
                }
            }
        }
    }

    /// Waits before another attempt. Whether the client is still there.
    async fn pause(&mut self, pause: Duration, sending: &Sending, request: Duration) -> bool {
        if pause.is_zero() {
            return true;
        }
        // The request time-out covers the pause; the next attempt finds that it has passed.
        let limit = |complete| deadline(complete, request);
        let end = clock::now().after(pause);
        let end = sending
            .complete
            .map_or(end, |complete| end.min(limit(complete)));
        poll_fn(|cx| {
            if self.client_is_gone(cx) {
                return Poll::Ready(false);
            }
            self.timer.poll(cx, end).map(|()| true)
        })
        .await
    }

    pub(super) fn client_is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        self.buf.is_empty()
            && matches!(
                poll_fill(&mut self.stream, cx, &mut self.buf),
                Poll::Ready(Ok(0) | Err(_))
            )
    }

    /// The same for a wait in which nobody takes what the client sends: its end is seen behind as
    /// much of a body as a block holds.
    pub(super) fn client_has_left(&mut self, cx: &mut Context<'_>) -> bool {
        while self.buf.has_room() {
            match poll_fill(&mut self.stream, cx, &mut self.buf) {
                Poll::Pending => return false,
                Poll::Ready(Ok(0) | Err(_)) => return true,
                Poll::Ready(Ok(_)) => {}
            }
        }
        false
    }

    /// A connection to the endpoint: an idle one, or a new one while the client waits.
    async fn connect(
        &mut self,
        target: &Target<'_>,
        attempts: &Attempts,
        careful: bool,
        until: MonoNanos,
    ) -> Result<Upstream, Option<NoConnection>> {
        let conn = Rc::clone(&self.conn);
        let fresh = attempts.stale;
        if !fresh && let Some(upstream) = conn.core.pool.take(&target.key, careful) {
            return Ok(upstream);
        }
        // Boxed: rare, and large beside the state of an idle connection.
        let mut connecting = Box::pin(connect_queued(&conn.core, &conn.workload, target, fresh));
        poll_fn(|cx| {
            if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(Some));
            }
            if self.client_is_gone(cx) {
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
        course: &Course<'_>,
        sending: &mut Sending,
        attempts: &mut Attempts,
        log: &mut RequestLog,
    ) -> Turn {
        let now = if attempts.count == 0 {
            course.complete
        } else {
            clock::now()
        };
        attempts.count += 1;
        // The time of a request whose body is still to come has not begun: the span then bounds
        // only the wait for a connection.
        let until = deadline(sending.complete.unwrap_or(now), course.terms.request);
        if now >= until {
            return Turn::Refuse(Reject::UpstreamTimeout);
        }
        let chosen = match course.choose(&self.conn, attempts, now) {
            Ok(chosen) => chosen,
            Err(reject) => return Turn::Refuse(reject),
        };
        log.going_to(chosen.endpoint.address, now);
        // Held until the attempt has ended.
        let judged = inbound::judge(
            &self.conn,
            course.snapshot,
            log.source,
            &chosen.endpoint,
            &mut attempts.charged,
            now,
        );
        let judged = match judged {
            Ok(judged) => judged,
            Err(reject) => return Turn::Refuse(reject),
        };
        let target = Target::new(
            course.snapshot,
            course.at,
            &chosen.endpoint,
            &self.conn,
            &judged,
        );
        let careful = !is_idempotent(log.method());
        let upstream = match self.connect(&target, attempts, careful, until).await {
            Ok(upstream) => upstream,
            Err(None) => return Turn::gone(log),
            Err(Some(failed)) => {
                // The permit, which may be that of a probe, outlives the record.
                let refuse = Turn::Refuse(failed.reject());
                let Some(outcome) = failed.outcome() else {
                    return refuse;
                };
                let ended = clock::now();
                let took = attempt::took(now, None, ended);
                course.record(&chosen.endpoint, outcome, took, None, ended);
                attempts.tried.push(chosen.endpoint.id);
                return course
                    .again(log, attempts, Failure::Connect, sending)
                    .unwrap_or(refuse);
            }
        };
        let started = if attempts.count == 1 && upstream.reused {
            now
        } else {
            clock::now()
        };
        self.exchange(
            course,
            &target,
            upstream,
            chosen.permit,
            started,
            sending,
            attempts,
            log,
            None,
        )
        .await
    }

    /// Goes on with the endpoint that won.
    async fn resume(
        &mut self,
        course: &Course<'_>,
        won: Box<Won<'_>>,
        sending: &mut Sending,
        attempts: &mut Attempts,
        log: &mut RequestLog,
    ) -> Turn {
        let Won {
            endpoint,
            permit,
            judged,
            upstream,
            early,
            started,
            ..
        } = *won;
        log.endpoint = Some(endpoint.address);
        let target = Target::new(course.snapshot, course.at, &endpoint, &self.conn, &judged);
        Box::pin(self.exchange(
            course,
            &target,
            upstream,
            permit,
            started,
            sending,
            attempts,
            log,
            Some(Resumed { early }),
        ))
        .await
    }

    /// [`resume`](Self::resume), boxed in here: what is passed to `Box::pin` would take its room in
    /// every connection.
    fn resumed<'f>(
        &'f mut self,
        course: &'f Course<'f>,
        won: Box<Won<'f>>,
        sending: &'f mut Sending,
        attempts: &'f mut Attempts,
        log: &'f mut RequestLog,
    ) -> Pin<Box<dyn Future<Output = Turn> + 'f>> {
        Box::pin(self.resume(course, won, sending, attempts, log))
    }

    /// [`race`](Self::race), boxed in here.
    #[expect(
        clippy::too_many_arguments,
        reason = "the end of a race, each for its own use"
    )]
    fn raced<'f, 'c: 'f>(
        &'f mut self,
        course: &'f Course<'f>,
        race: Race<'f>,
        left: Box<Hedges<'c, Won<'c>>>,
        won: Option<Box<Won<'c>>>,
        sending: &'f Sending,
        attempts: &'f mut Attempts,
        log: &'f mut RequestLog,
    ) -> Pin<Box<dyn Future<Output = Raced<'c>> + 'f>> {
        Box::pin(self.race(course, race, left, won, sending, attempts, log))
    }

    /// What follows for an attempt that had hedges. Those that lost are cancelled.
    #[expect(
        clippy::too_many_arguments,
        reason = "the end of a race, each for its own use"
    )]
    async fn race<'c>(
        &mut self,
        course: &Course<'_>,
        race: Race<'_>,
        mut left: Box<Hedges<'c, Won<'c>>>,
        won: Option<Box<Won<'c>>>,
        sending: &Sending,
        attempts: &mut Attempts,
        log: &mut RequestLog,
    ) -> Raced<'c> {
        let Race { end, outlook, .. } = race;
        let fails = match end {
            End::Retry(_) => !race.is_repeated,
            End::UpstreamGone { .. }
            | End::UpstreamMalformed
            | End::TryTimeout
            | End::BackendTimeout => !outlook.responding,
            _ => false,
        };
        let rest = match won {
            Some(won) => Rest::Won(won),
            None if fails && left.in_flight() > 0 => {
                self.rest(&mut left, sending, course.terms.request).await
            }
            None if fails && matches!(end, End::Retry(_)) => Rest::Lost,
            None => return Raced::Alone,
        };
        attempts.tried.clone_from(&left.tried);
        if matches!(rest, Rest::Lost) && !matches!(end, End::Retry(_)) {
            return Raced::Alone;
        }
        // An endpoint that was too slow for the per-try time-out has met it, as with Envoy.
        let by_time_out = course
            .terms
            .hedge
            .is_some_and(|hedge| hedge.after.is_none());
        let outcome = match end {
            End::Hedged if by_time_out => Outcome::Timeout,
            End::TryTimeout | End::BackendTimeout => Outcome::Timeout,
            End::Retry(status) => Outcome::Status(status),
            End::UpstreamGone { .. } | End::UpstreamMalformed => Outcome::Reset,
            _ => Outcome::Abandoned,
        };
        course.record(
            race.endpoint,
            outcome,
            race.took,
            outlook.retry_after,
            race.ended,
        );
        match rest {
            Rest::Won(won) => Raced::Won(won),
            Rest::Gone => Raced::Turn(Turn::gone(log)),
            Rest::Late => Raced::Turn(Turn::fail(log, Reject::UpstreamTimeout, outlook)),
            Rest::Lost => {
                let failure = match end {
                    End::Retry(status) => Failure::status(status),
                    _ => Failure::Reset,
                };
                let again = course.again(log, attempts, failure, sending);
                Raced::Turn(
                    again.unwrap_or_else(|| Turn::fail(log, Reject::UpstreamReset, outlook)),
                )
            }
        }
    }

    /// Waits for the hedges that are left when the first endpoint is out of the race.
    async fn rest<'c>(
        &mut self,
        hedges: &mut Hedges<'c, Won<'c>>,
        sending: &Sending,
        request: Duration,
    ) -> Rest<'c> {
        let until = sending
            .complete
            .map_or(NEVER, |complete| deadline(complete, request));
        poll_fn(|cx| {
            if let Poll::Ready(won) = hedges.poll_rest(cx) {
                return Poll::Ready(won.map_or(Rest::Lost, |won| Rest::Won(Box::new(won))));
            }
            if self.client_is_gone(cx) {
                return Poll::Ready(Rest::Gone);
            }
            self.timer.poll(cx, until).map(|()| Rest::Late)
        })
        .await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of an attempt, each for its own use"
    )]
    async fn exchange(
        &mut self,
        course: &Course<'_>,
        target: &Target<'_>,
        mut upstream: Upstream,
        mut permit: RequestPermit,
        started: MonoNanos,
        sending: &mut Sending,
        attempts: &mut Attempts,
        log: &mut RequestLog,
        resumed: Option<Resumed>,
    ) -> Turn {
        let (core, version) = (course.core, course.version);
        let spans = Spans {
            request: course.terms.request,
            per_try: course.terms.per_try(),
            backend: course.terms.backend,
            idle: version.idle_timeout,
        };
        let limits = core.limits();
        let edits = attempt::answer_edits(
            &self.conn,
            course.snapshot,
            course.plan,
            target.endpoint,
            course.edits.as_ref(),
            started,
        );
        let counted = course
            .terms
            .retry
            .attempt_header()
            .map(|name| with_attempt(&log.head, name, attempts.count));
        let head = counted.as_deref().unwrap_or(&log.head);
        let mut exchange = Exchange::new(course.request, head, sending, &limits, spans, started)
            .with_edits(edits.as_deref());
        mirrored::watch(&mut exchange, sending);
        let conn = Rc::clone(&self.conn);
        let keep_alive =
            || course.request.keep_alive && !core.draining.get() && !conn.is_aged(&limits);
        let asked: &RequestLog = log;
        let method = asked.method();
        let number = attempts.count;
        let mut hedges = match resumed {
            Some(_) => None,
            None => Hedges::new(course.on(), method, &attempts.tried, target.endpoint.id),
        };
        if let Some(Resumed { early }) = resumed {
            exchange.resume(early);
        }
        let mut won = None;
        // Legs that may still answer better than a bad answer.
        let others = Cell::new(0);
        let mut pause = None;
        let mut retry = |answer: &dyn AnswerHead, replayable: bool| {
            if others.get() > 0 && answer.status() >= 500 {
                return true;
            }
            if course.terms.retry.policy.is_none() {
                return false;
            }
            let failure = Failure::Answer(course.terms.retry.read(answer));
            pause = retry_after(course.on(), attempts, method, failure, replayable, core);
            pause.is_some()
        };
        let mut watch = Flows::watch(core, course.snapshot, course.plan, target.endpoint);
        let mut wires = Wires {
            down: &mut self.stream,
            down_buf: &mut self.buf,
            up: &mut upstream,
            timer: &mut self.timer,
        };
        let end = poll_fn(|cx| {
            let turn = exchange.poll(
                cx,
                &mut wires,
                sending,
                &keep_alive,
                course.extra,
                &mut retry,
            );
            if turn.is_pending() && exchange.answers_well() {
                permit.answered();
            }
            if turn.is_pending()
                && let Some(watch) = &mut watch
                && let Some(answered) = exchange.answered_at()
                && watch.poll_after(cx, answered.after(LONG)).is_ready()
            {
                return Poll::Ready(End::Changed);
            }
            if turn.is_pending()
                && let Some(hedges) = &mut hedges
                && exchange.is_waiting()
                && sending.replayable
            {
                let number = number + hedges.begun + 1;
                let mut begin = |tried: &[u64]| {
                    let request = whole(course, &asked.head, &sending.kept, number);
                    hedge::start(course, &conn, asked, request, tried)
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
        let outlook = exchange.outlook(&upstream);
        drop(exchange);
        let ended = clock::now();
        if let Some(hedges) = &hedges {
            attempts.count += hedges.begun;
            // The one that wins counts when it has gone on.
            log.attempts += hedges.begun - u32::from(won.is_some());
        }
        log.ended = Some(ended);
        log.attempts += u32::from(outlook.was_sent);
        log.upstream = outlook.answered_after.or(log.upstream);
        log.bytes_out += outlook.bytes;
        log.status = outlook.status.unwrap_or(log.status);
        let endpoint = target.endpoint;
        let head_at = outlook
            .answered_after
            .map_or(ended, |span| started.after(span));
        let took = attempt::took(started, sending.complete, head_at);
        if let Some(left) = hedges.take() {
            let race = Race {
                end,
                outlook,
                took,
                ended,
                endpoint,
                // Without a pause nobody wanted to repeat a bad answer but those who wait for a
                // better one.
                is_repeated: pause.is_some(),
            };
            let raced = self.raced(course, race, left, won, sending, attempts, log);
            match raced.await {
                Raced::Alone => {}
                Raced::Turn(turn) => return turn,
                Raced::Won(won) => {
                    drop(upstream);
                    drop(permit);
                    return self.resumed(course, won, sending, attempts, log).await;
                }
            }
        }
        match end {
            End::Complete => {
                mirrored::answered(sending, outlook.status);
                course.record(
                    endpoint,
                    Outcome::Status(outlook.status.unwrap_or(0)),
                    took,
                    outlook.retry_after,
                    ended,
                );
                drop(permit);
                if outlook.is_reusable {
                    put_back(core, target, upstream, ended);
                }
                let stays = keep_alive() && outlook.is_delimited && sending.is_taken();
                Turn::Next(if stays { Next::Open } else { Next::Close })
            }
            End::Upgraded => {
                course.record(endpoint, Outcome::Status(101), took, None, ended);
                let watch = watch.take();
                let next = self
                    .upgraded(upstream, version.idle_timeout, watch, log)
                    .await;
                drop(permit);
                Turn::Next(next)
            }
            End::Retry(status) => {
                let outcome = Outcome::Status(status);
                course.record(endpoint, outcome, took, outlook.retry_after, ended);
                attempts.tried.push(endpoint.id);
                Turn::Again(pause.unwrap_or_default())
            }
            failed => {
                let reused = upstream.reused;
                drop(upstream);
                let turn = settle(
                    course, endpoint, failed, outlook, took, reused, sending, attempts, log,
                );
                // After the record: a probe without a verdict is due again.
                drop(permit);
                turn
            }
        }
    }

    /// After 101: opaque bytes, no HTTP time-outs but the idle one.
    async fn upgraded(
        &mut self,
        mut up: Upstream,
        idle: Duration,
        watch: Option<Box<Watch>>,
        log: &mut RequestLog,
    ) -> Next {
        let mut bytes = (0, 0);
        let down = Side {
            stream: &mut self.stream,
            buf: &mut self.buf,
        };
        let up = Side {
            stream: &mut up.stream,
            buf: &mut up.buf,
        };
        let timer = &mut self.timer;
        let end = carry(down, up, timer, idle, &mut bytes, watch).await;
        log.bytes_in += bytes.0;
        log.bytes_out += bytes.1;
        log.ended = Some(clock::now());
        log.reject = match end {
            CopyEnd::Closed => None,
            CopyEnd::DownstreamReset => Some(Reject::DownstreamClosed),
            CopyEnd::UpstreamReset => Some(Reject::UpstreamReset),
            CopyEnd::Idle => Some(Reject::UpstreamTimeout),
            CopyEnd::Changed => Some(Reject::RouteChanged),
        };
        Next::Gone
    }
}

/// Records an attempt that failed, and says what follows. Its connection is gone.
#[expect(
    clippy::too_many_arguments,
    reason = "the end of an attempt, each for its own use"
)]
fn settle(
    course: &Course<'_>,
    endpoint: &EndpointState,
    end: End,
    outlook: Outlook,
    took: Option<Duration>,
    reused: bool,
    sending: &Sending,
    attempts: &mut Attempts,
    log: &mut RequestLog,
) -> Turn {
    let ended = log.ended.unwrap_or(log.started);
    // An answer that was under way says how the endpoint did, whatever befell it later.
    let seen = |otherwise| outlook.status.map_or(otherwise, Outcome::Status);
    let stale = reused && !outlook.any_byte && !attempts.stale && sending.replayable;
    let (outcome, failure, reject) = match end {
        End::UpstreamGone { .. } if stale && (!outlook.was_sent || is_idempotent(log.method())) => {
            // Closed while it lay idle, which says nothing about the endpoint.
            course.record(endpoint, Outcome::Abandoned, None, None, ended);
            attempts.stale = true;
            attempts.count -= 1;
            return Turn::Again(Duration::ZERO);
        }
        End::UpstreamGone { reset } => {
            let failure = if outlook.was_sent {
                Failure::Reset
            } else {
                Failure::Unsent
            };
            let reject = if reset {
                Reject::UpstreamReset
            } else {
                Reject::UpstreamClosed
            };
            (Outcome::Reset, Some(failure), reject)
        }
        End::UpstreamMalformed => (Outcome::Reset, None, Reject::UpstreamMalformed),
        End::TryTimeout => (
            seen(Outcome::Timeout),
            Some(Failure::PerTry),
            Reject::UpstreamTimeout,
        ),
        End::BackendTimeout => (
            seen(Outcome::Timeout),
            Some(Failure::Backend),
            Reject::UpstreamTimeout,
        ),
        End::RequestTimeout | End::IdleTimeout => {
            (seen(Outcome::Timeout), None, Reject::UpstreamTimeout)
        }
        End::Changed => (seen(Outcome::Abandoned), None, Reject::RouteChanged),
        End::BadBody => (seen(Outcome::Abandoned), None, Reject::BadRequest),
        End::BodyTimeout => (seen(Outcome::Abandoned), None, Reject::BodyTimeout),
        End::DownstreamGone | End::Complete | End::Upgraded | End::Hedged | End::Retry(_) => {
            let outcome = seen(Outcome::Abandoned);
            course.record(endpoint, outcome, took, outlook.retry_after, ended);
            return Turn::gone(log);
        }
    };
    course.record(endpoint, outcome, took, outlook.retry_after, ended);
    attempts.tried.push(endpoint.id);
    failure
        .filter(|_| !outlook.responding)
        .and_then(|failure| course.again(log, attempts, failure, sending))
        .unwrap_or_else(|| Turn::fail(log, reject, outlook))
}
