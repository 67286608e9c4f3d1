//! A request on its way: attempts until an answer went out, or none will come.

use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    answer,
    exchange::{End, Exchange, Outlook, Spans, Wires},
    mirrored,
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
        retry::Failure,
        route::Plan,
        snapshot::{EndpointState, Outcome, VersionPlan},
    },
    proxy::{
        attempt,
        core::{Conn, Core, Snap},
        inbound,
        io::poll_fill,
        record::RequestLog,
        retry::{Attempts, retry_after},
        tcp::{CopyEnd, Side, copy},
        timer::deadline,
        upstream::{NoConnection, Target, Upstream, connect_queued, put_back},
    },
};

/// What stays the same over the attempts of a request.
struct Course<'a> {
    core: &'a Rc<Core>,
    snapshot: &'a Snap,
    at: VersionIx,
    plan: Plan,
    version: &'a VersionPlan,
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

/// RFC 9110, section 9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

impl Course<'_> {
    fn record(&self, endpoint: &EndpointState, outcome: Outcome, at: MonoNanos) {
        attempt::record(self.core, self.snapshot, self.at, endpoint, outcome, at);
    }

    /// Chooses an endpoint; the breaker's word comes last.
    fn choose(&self, conn: &Conn, attempts: &Attempts, now: MonoNanos) -> Result<Chosen, Reject> {
        let endpoint = attempt::pick(conn, self.snapshot, &self.plan, &attempts.tried, now)?;
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
        retry_after(
            self.version,
            attempts,
            method,
            failure,
            replayable,
            self.core,
        )
        .map(Turn::Again)
    }
}

impl Session {
    /// Attempts until an answer went out, or none will come.
    pub(super) async fn forward(&mut self, mut going: Going, mut log: RequestLog) -> Next {
        log.rule = going.plan.rule;
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
            verdict,
            action,
        } = going;
        let (edits, mirrors) = action.map_or_else(Default::default, |action| {
            (action.response, action.mirrors)
        });
        log.version = Some(plan.version);
        let snapshot = Rc::clone(&log.snapshot);
        let core = Rc::clone(&self.conn.core);
        let version = &snapshot.versions[plan.version.0 as usize];
        let keep_max = version
            .retry
            .policy
            .as_ref()
            .map_or(0, |_| core.limits().replay_bytes_max);
        let extra = answer::limit_lines(&verdict);
        let course = Course {
            core: &core,
            snapshot: &snapshot,
            at: plan.version,
            plan,
            version,
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
        let mut attempts = Attempts::default();
        loop {
            let turn = self
                .attempt(&course, &mut sending, &mut attempts, &mut log)
                .await;
            log.bytes_in = log.bytes_in.max(sending.bytes);
            match turn {
                Turn::Next(next) => return next,
                Turn::Again(pause) if self.pause(pause, &sending, version).await => {}
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
    async fn pause(&mut self, pause: Duration, sending: &Sending, version: &VersionPlan) -> bool {
        if pause.is_zero() {
            return true;
        }
        // The request time-out covers the pause; the next attempt finds that it has passed.
        let limit = |complete| deadline(complete, version.request_timeout);
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
        let version = course.version;
        let now = if attempts.count == 0 {
            course.complete
        } else {
            clock::now()
        };
        attempts.count += 1;
        // The time of a request whose body is still to come has not begun: the span then bounds
        // only the wait for a connection.
        let until = deadline(sending.complete.unwrap_or(now), version.request_timeout);
        if now >= until {
            return Turn::Refuse(Reject::UpstreamTimeout);
        }
        let chosen = match course.choose(&self.conn, attempts, now) {
            Ok(chosen) => chosen,
            Err(reject) => return Turn::Refuse(reject),
        };
        log.endpoint = Some(chosen.endpoint.address);
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
                course.record(&chosen.endpoint, outcome, clock::now());
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
        )
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
    ) -> Turn {
        let (core, version) = (course.core, course.version);
        let spans = Spans {
            request: version.request_timeout,
            per_try: version.retry.per_try().unwrap_or_default(),
            idle: version.idle_timeout,
        };
        let limits = core.limits();
        let edits = attempt::answer_edits(
            &self.conn,
            course.snapshot,
            &course.plan,
            target.endpoint,
            course.edits.as_ref(),
            started,
        );
        let mut exchange =
            Exchange::new(course.request, &log.head, sending, &limits, spans, started)
                .with_edits(edits.as_deref());
        mirrored::watch(&mut exchange, sending);
        let keep_alive = || course.request.keep_alive && !core.draining.get();
        let method = log.method();
        let mut pause = None;
        let mut retry = |status: u16, replayable: bool| {
            let failure = Failure::Status(status);
            pause = retry_after(version, attempts, method, failure, replayable, core);
            pause.is_some()
        };
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
            turn
        })
        .await;
        let outlook = exchange.outlook(&upstream);
        drop(exchange);
        let ended = clock::now();
        log.ended = Some(ended);
        log.attempts += u32::from(outlook.was_sent);
        log.upstream = outlook.answered_after.or(log.upstream);
        log.bytes_out += outlook.bytes;
        log.status = outlook.status.unwrap_or(log.status);
        let endpoint = target.endpoint;
        match end {
            End::Complete => {
                mirrored::answered(sending, outlook.status);
                course.record(
                    endpoint,
                    Outcome::Status(outlook.status.unwrap_or(0)),
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
                course.record(endpoint, Outcome::Status(101), ended);
                let next = self.upgraded(upstream, version.idle_timeout, log).await;
                drop(permit);
                Turn::Next(next)
            }
            End::Retry(status) => {
                course.record(endpoint, Outcome::Status(status), ended);
                attempts.tried.push(endpoint.id);
                Turn::Again(pause.unwrap_or_default())
            }
            failed => {
                let reused = upstream.reused;
                drop(upstream);
                let turn = settle(
                    course, endpoint, failed, outlook, reused, sending, attempts, log,
                );
                // After the record: a probe without a verdict is due again.
                drop(permit);
                turn
            }
        }
    }

    /// After 101: opaque bytes, no HTTP time-outs but the idle one.
    async fn upgraded(&mut self, mut up: Upstream, idle: Duration, log: &mut RequestLog) -> Next {
        let mut bytes = (0, 0);
        let down = Side {
            stream: &mut self.stream,
            buf: &mut self.buf,
        };
        let up = Side {
            stream: &mut up.stream,
            buf: &mut up.buf,
        };
        let end = copy(down, up, &mut self.timer, idle, &mut bytes).await;
        log.bytes_in += bytes.0;
        log.bytes_out += bytes.1;
        log.ended = Some(clock::now());
        log.reject = match end {
            CopyEnd::Closed => None,
            CopyEnd::DownstreamReset => Some(Reject::DownstreamClosed),
            CopyEnd::UpstreamReset => Some(Reject::UpstreamReset),
            CopyEnd::Idle => Some(Reject::UpstreamTimeout),
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
            course.record(endpoint, Outcome::Abandoned, ended);
            attempts.stale = true;
            attempts.count -= 1;
            return Turn::Again(Duration::ZERO);
        }
        End::UpstreamGone { reset } => {
            let failure = if outlook.was_sent {
                Failure::Reset
            } else {
                Failure::Connect
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
        End::RequestTimeout | End::IdleTimeout => {
            (seen(Outcome::Timeout), None, Reject::UpstreamTimeout)
        }
        End::BadBody => (seen(Outcome::Abandoned), None, Reject::BadRequest),
        End::BodyTimeout => (seen(Outcome::Abandoned), None, Reject::BodyTimeout),
        End::DownstreamGone | End::Complete | End::Upgraded | End::Retry(_) => {
            course.record(endpoint, seen(Outcome::Abandoned), ended);
            return Turn::gone(log);
        }
    };
    course.record(endpoint, outcome, ended);
    attempts.tried.push(endpoint.id);
    failure
        .filter(|_| !outlook.responding)
        .and_then(|failure| course.again(log, attempts, failure, sending))
        .unwrap_or_else(|| Turn::fail(log, reject, outlook))
}
