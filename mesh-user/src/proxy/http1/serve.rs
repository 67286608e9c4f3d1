//! A client's connection: head after head, decision, attempts, end.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::net::TcpStream;

use super::{
    answer::{self, After},
    exchange::{End, Exchange, Sending, Spans, Wires},
    fields::Fields,
    request::{self, Request},
    scan::Scan,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{
        Reject, balance, rate_limit::Verdict, retry::Failure, route::Plan, snapshot::Outcome,
    },
    proxy::{
        attempt::{self, Refused},
        buffer::{Buf, HeadBuf},
        core::{Conn, Place, Snap},
        detect::{self, Guess},
        http2,
        io::{poll_fill, poll_write_two, reset_on_close, shut_write},
        record::{ConnectionLog, RequestLog},
        retry::{Attempts, retry_after},
        tcp::{CopyEnd, Side, copy},
        timer::{Timer, deadline},
        upstream::{NoConnection, Target, Upstream, connect_queued, put_back},
    },
    telemetry::Spoken,
};

/// After an answer that the client did not wait for, its bytes are read and dropped so long: a
/// close with unread bytes would be a reset, which may destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(1);
/// And so many of them.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Longest start line besides its target: method, spaces, version.
const LINE_REST_BYTES_MAX: usize = 64;

/// What becomes of the client's connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The next request.
    Open,
    /// It is closed; unread bytes are waited out.
    Close,
    /// It is reset: the answer is not whole.
    Reset,
    /// It has gone, or was used up.
    Gone,
}

struct Session {
    conn: Rc<Conn>,
    place: Place,
    stream: TcpStream,
    buf: Buf,
    timer: Timer,
    log: ConnectionLog,
}

/// What came instead of a request head.
enum NoHead {
    /// The client closed, or was idle too long.
    Closed,
    /// The connection speaks HTTP/2.
    Http2,
    /// A head that is refused, and when it began.
    Refused(Reject, MonoNanos),
}

/// Serves a connection that speaks HTTP/1.x; one that turns out to speak HTTP/2 is handed over.
pub(in crate::proxy) async fn serve(
    conn: Rc<Conn>,
    place: Place,
    stream: TcpStream,
    buf: Buf,
    timer: Timer,
) {
    // Counted as opened once its protocol is known.
    let mut session = Waiting { stream, buf, timer };
    let first = session.head(&conn, true).await;
    let Waiting { stream, buf, timer } = session;
    if matches!(first, Err(NoHead::Http2)) {
        return Box::pin(http2::serve(conn, place, stream, buf, timer)).await;
    }
    let log = ConnectionLog::open(Rc::clone(&conn), Spoken::Http1);
    let mut session = Session {
        conn,
        place,
        stream,
        buf,
        timer,
        log,
    };
    let next = session.run(first).await;
    session.end(next).await;
}

/// A connection between requests.
struct Waiting {
    stream: TcpStream,
    buf: Buf,
    timer: Timer,
}

impl Waiting {
    async fn head(&mut self, conn: &Conn, first: bool) -> Result<(usize, MonoNanos), NoHead> {
        let mut head = NextHead::new(first);
        poll_fn(|cx| head.poll(cx, conn, &mut self.stream, &mut self.buf, &mut self.timer)).await
    }
}

/// Reads up to the end of the next head.
struct NextHead {
    scan: Scan,
    began: Option<MonoNanos>,
    idle_since: Option<MonoNanos>,
    /// The connection may still turn out to speak HTTP/2.
    first: bool,
    /// RFC 9112, section 2.2: one empty line before a request line is ignored.
    may_skip: bool,
}

impl NextHead {
    const fn new(first: bool) -> Self {
        Self {
            scan: Scan { at: 0, line: 0 },
            began: None,
            idle_since: None,
            first,
            may_skip: true,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        stream: &mut TcpStream,
        buf: &mut Buf,
        timer: &mut Timer,
    ) -> Poll<Result<(usize, MonoNanos), NoHead>> {
        let limits = conn.core.limits();
        let line_max = limits.target_bytes_max + LINE_REST_BYTES_MAX;
        loop {
            if self.may_skip && buf.bytes().starts_with(b"\r\n") {
                buf.consume(2);
                self.may_skip = false;
            }
            let undecided = self.may_skip && buf.bytes() == b"\r";
            if !buf.is_empty() && !undecided {
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
                            Ok(Some(length)) => return Poll::Ready(Ok((length, began))),
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
                    return timer.poll(cx, deadline(from, span)).map(|()| {
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

/// A request that goes on its way.
struct Going {
    request: Request,
    plan: Plan,
    verdict: Verdict,
}

/// A request that is answered here.
enum Here {
    /// A refusal.
    Refused(Option<Request>, Refused),
    /// The last hop of `Max-Forwards`.
    LastHop(Request),
}

impl Session {
    async fn run(&mut self, first: Result<(usize, MonoNanos), NoHead>) -> Next {
        let mut head = first;
        loop {
            let next = match head {
                Ok((length, began)) => self.request(length, began).await,
                Err(NoHead::Refused(reject, began)) => self.refuse_head(reject, began).await,
                Err(NoHead::Closed | NoHead::Http2) => Next::Gone,
            };
            if next != Next::Open {
                return next;
            }
            let mut wait = NextHead::new(false);
            head = poll_fn(|cx| {
                wait.poll(
                    cx,
                    &self.conn,
                    &mut self.stream,
                    &mut self.buf,
                    &mut self.timer,
                )
            })
            .await;
        }
    }

    async fn end(&mut self, next: Next) {
        match next {
            Next::Reset => reset_on_close(&self.stream),
            Next::Close => self.linger().await,
            Next::Open | Next::Gone => {}
        }
    }

    /// Sends the end, then reads what the client is still sending, for a while.
    async fn linger(&mut self) {
        shut_write(&self.stream);
        let until = clock::now().after(LINGER);
        let mut left = LINGER_BYTES_MAX;
        poll_fn(|cx| {
            loop {
                self.buf.release();
                match poll_fill(&mut self.stream, cx, &mut self.buf) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(count)) => match left.checked_sub(count) {
                        Some(rest) => left = rest,
                        None => return Poll::Ready(()),
                    },
                    Poll::Pending => return self.timer.poll(cx, until),
                }
            }
        })
        .await;
    }

    fn request_log(&mut self, began: MonoNanos) -> RequestLog {
        let conn = Rc::clone(&self.conn);
        let snapshot = self
            .place
            .refresh(&conn.core, conn.destination, &conn.workload.key);
        self.log.requests += 1;
        let source = self.place.source;
        RequestLog::new(
            conn,
            snapshot,
            source,
            Spoken::Http1,
            HeadBuf::take(),
            began,
        )
    }

    /// Refuses a head that could not be read.
    async fn refuse_head(&mut self, reject: Reject, began: MonoNanos) -> Next {
        let mut log = self.request_log(began);
        self.refuse(&mut log, None, reject, &Verdict::default(), true)
            .await
    }

    /// Sends a refusal. `close`: the framing of what follows is not to be trusted.
    async fn refuse(
        &mut self,
        log: &mut RequestLog,
        request: Option<&Request>,
        reject: Reject,
        verdict: &Verdict,
        close: bool,
    ) -> Next {
        log.reject = Some(reject);
        if reject.status() == 0 {
            return Next::Gone;
        }
        let open = !close
            && !self.conn.core.draining.get()
            && request.is_some_and(|request| request.keep_alive);
        let http10 = request.is_some_and(|request| request.http10);
        let is_head = request.is_some_and(|request| request.is_head);
        let after = if open {
            After::Open { http10 }
        } else {
            After::Close
        };
        let mut out = HeadBuf::take();
        answer::refusal(&mut out, reject, verdict, after, is_head);
        log.status = reject.status();
        self.send(log, &out, open).await
    }

    /// Sends a whole answer of our own.
    async fn send(&mut self, log: &mut RequestLog, out: &[u8], open: bool) -> Next {
        let until = clock::now().after(self.conn.core.limits().body_timeout);
        let mut sent = 0;
        let written = poll_fn(|cx| {
            while sent < out.len() {
                match poll_write_two(&mut self.stream, cx, &out[sent..], &[]) {
                    Poll::Ready(Ok(count)) => sent += count,
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return self.timer.poll(cx, until).map(|()| false),
                }
            }
            Poll::Ready(true)
        })
        .await;
        log.ended = Some(clock::now());
        match (written, open) {
            (false, _) => Next::Gone,
            (true, true) => Next::Open,
            (true, false) => Next::Close,
        }
    }

    /// Reads, checks, decides: everything that needs the head as it came.
    #[expect(
        clippy::result_large_err,
        reason = "moved once within a call; a box would be an allocation for each refusal"
    )]
    fn decide(&mut self, length: usize, log: &mut RequestLog) -> Result<Going, Here> {
        let conn = &self.conn;
        let core = &conn.core;
        let parsed = request::parse(&self.buf.bytes()[..length], core.limits(), |parsed| {
            let destination = if parsed.has_authority() {
                String::new()
            } else {
                conn.destination.to_string()
            };
            let mut rng = core.rng.borrow_mut();
            let request = parsed.write(&mut log.head, &mut log.spans, &destination, &mut rng);
            drop(rng);
            if request.ends_here {
                return Ok(Err(Here::LastHop(request)));
            }
            let fields = Fields(parsed.fields);
            let view = parsed.view(&fields, &destination);
            Ok(
                match attempt::admit(conn, &log.snapshot, &self.place, &view, log.started) {
                    Ok(admitted) => Ok((request, admitted)),
                    Err(refused) => Err(Here::Refused(Some(request), refused)),
                },
            )
        });
        self.buf.consume(length);
        match parsed {
            Ok(Ok((request, admitted))) => Ok(Going {
                request,
                plan: admitted.plan,
                verdict: admitted.verdict,
            }),
            Ok(Err(here)) => Err(here),
            Err(reject) => {
                let verdict = Verdict::default();
                Err(Here::Refused(
                    None,
                    Refused {
                        plan: None,
                        reject,
                        verdict,
                    },
                ))
            }
        }
    }

    async fn request(&mut self, length: usize, began: MonoNanos) -> Next {
        let mut log = self.request_log(began);
        match self.decide(length, &mut log) {
            Ok(going) => self.forward(going, log).await,
            Err(Here::LastHop(request)) => {
                let open = request.keep_alive && self.takes_rest(&request);
                let http10 = request.http10;
                let after = if open {
                    After::Open { http10 }
                } else {
                    After::Close
                };
                let mut out = HeadBuf::take();
                log.status = answer::last_hop(&mut out, log.method(), after);
                self.send(&mut log, &out, open).await
            }
            Err(Here::Refused(
                request,
                Refused {
                    plan,
                    reject,
                    verdict,
                },
            )) => {
                log.rule = plan.and_then(|plan| plan.rule);
                log.version = plan.map(|plan| plan.version);
                let close = !request.is_some_and(|request| self.takes_rest(&request));
                self.refuse(&mut log, request.as_ref(), reject, &verdict, close)
                    .await
            }
        }
    }

    /// Takes the body of a request that is answered here, if all of it is at hand: then the next
    /// request can follow.
    fn takes_rest(&mut self, request: &Request) -> bool {
        let mut body = request.body;
        self.drop_body(&mut body)
    }

    fn drop_body(&mut self, body: &mut super::body::Body) -> bool {
        while !body.is_done() && !self.buf.is_empty() {
            match body.step(self.buf.bytes()) {
                Ok(step) => self.buf.consume(step.skip + step.forward),
                Err(_) => return false,
            }
        }
        body.is_done()
    }

    /// Attempts until an answer went out, or none will come.
    async fn forward(&mut self, going: Going, mut log: RequestLog) -> Next {
        let Going {
            request,
            plan,
            verdict,
        } = going;
        log.rule = plan.rule;
        log.version = Some(plan.version);
        let snapshot: Snap = Rc::clone(&log.snapshot);
        let version = &snapshot.versions[plan.version.0 as usize];
        let keep_max = match &version.retry.policy {
            Some(_) => self.conn.core.limits().replay_bytes_max,
            None => 0,
        };
        let mut sending = Sending::new(request.body, keep_max, log.started);
        let mut attempts = Attempts::default();
        let extra = answer::limit_lines(&verdict);
        loop {
            let turn = self
                .attempt(
                    &request,
                    plan,
                    &mut sending,
                    &mut attempts,
                    &extra,
                    &mut log,
                )
                .await;
            match turn {
                Turn::Next(next) => {
                    log.bytes_in = sending.bytes;
                    return next;
                }
                Turn::Again(pause) => {
                    let there = pause.is_zero()
                        || self.pause(pause, &sending, version.request_timeout).await;
                    if !there {
                        log.bytes_in = sending.bytes;
                        log.reject = Some(Reject::DownstreamClosed);
                        return Next::Gone;
                    }
                }
                Turn::Refuse(reject) => {
                    log.bytes_in = sending.bytes;
                    sending.drop_ready(&mut self.buf);
                    let close = !(sending.is_taken() || self.drop_body(&mut sending.body));
                    return self
                        .refuse(&mut log, Some(&request), reject, &verdict, close)
                        .await;
                }
            }
        }
    }

    /// Waits before another attempt. Whether the client is still there.
    async fn pause(&mut self, pause: Duration, sending: &Sending, limit: Duration) -> bool {
        let end = clock::now().after(pause);
        // The request time-out covers the pause; the next attempt finds that it has passed.
        let end = sending
            .complete
            .map_or(end, |complete| end.min(deadline(complete, limit)));
        poll_fn(|cx| {
            if self.client_is_gone(cx) {
                return Poll::Ready(false);
            }
            self.timer.poll(cx, end).map(|()| true)
        })
        .await
    }

    fn client_is_gone(&mut self, cx: &mut Context<'_>) -> bool {
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
        fresh: bool,
        until: MonoNanos,
    ) -> Result<Upstream, Option<NoConnection>> {
        let conn = Rc::clone(&self.conn);
        if !fresh && let Some(upstream) = conn.core.pool.take(&target.key) {
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

    #[expect(
        clippy::too_many_lines,
        reason = "one attempt from its choice to its record"
    )]
    async fn attempt(
        &mut self,
        request: &Request,
        plan: Plan,
        sending: &mut Sending,
        attempts: &mut Attempts,
        extra: &[u8],
        log: &mut RequestLog,
    ) -> Turn {
        let conn = Rc::clone(&self.conn);
        let core = &conn.core;
        let snapshot: Snap = Rc::clone(&log.snapshot);
        let version = &snapshot.versions[plan.version.0 as usize];
        let now = if attempts.count == 0 {
            log.started
        } else {
            clock::now()
        };
        attempts.count += 1;
        let until = deadline(
            sending.complete.unwrap_or(log.started),
            version.request_timeout,
        );
        if now >= until {
            return Turn::Refuse(Reject::UpstreamTimeout);
        }
        let picked = balance::pick(
            &snapshot,
            plan.version,
            &attempts.tried,
            &mut core.rng.borrow_mut(),
            now,
        );
        let endpoint = match picked {
            Ok(endpoint) => endpoint,
            Err(reject) => return Turn::Refuse(reject),
        };
        log.endpoint = Some(endpoint.address);
        let permit = match version.breaker.request(&endpoint) {
            Ok(permit) => permit,
            Err(reject) => return Turn::Refuse(reject),
        };
        let target = Target::new(&snapshot, plan.version, &endpoint, &conn.workload);
        let record =
            |outcome, at| attempt::record(core, &snapshot, plan.version, &endpoint, outcome, at);
        let mut upstream = match self.connect(&target, attempts.stale, until).await {
            Ok(upstream) => upstream,
            Err(None) => return Turn::gone(log),
            Err(Some(failed)) => {
                drop(permit);
                let Some(outcome) = failed.outcome() else {
                    return Turn::Refuse(failed.reject());
                };
                record(outcome, clock::now());
                attempts.tried.push(endpoint.id);
                return self
                    .again(log, plan, attempts, Failure::Connect, sending)
                    .unwrap_or(Turn::Refuse(failed.reject()));
            }
        };
        log.attempts += 1;
        let spans = Spans {
            request: version.request_timeout,
            per_try: version.retry.per_try().unwrap_or_default(),
            idle: version.idle_timeout,
        };
        let started = if log.attempts > 1 || !upstream.reused {
            clock::now()
        } else {
            now
        };
        let mut exchange =
            Exchange::new(request, &log.head, sending, core.limits(), spans, started);
        let keep_alive = || request.keep_alive && !core.draining.get();
        let method = log.method();
        let mut wait = None;
        let mut choose = |status: u16, replayable: bool| {
            let failure = Failure::Status(status);
            wait = retry_after(version, attempts, method, failure, replayable, core);
            wait.is_some()
        };
        let end = {
            let mut wires = Wires {
                down: &mut self.stream,
                down_buf: &mut self.buf,
                up: &mut upstream,
                timer: &mut self.timer,
            };
            poll_fn(|cx| exchange.poll(cx, &mut wires, sending, &keep_alive, extra, &mut choose))
                .await
        };
        let ended = clock::now();
        let answered = exchange.response.map(|response| response.status);
        let upstream_time = exchange.answered_at.map(|at| at.since(started));
        let (responding, was_sent, bytes) =
            (exchange.responding, exchange.was_sent(), exchange.bytes);
        let can_answer = exchange.can_answer();
        let any_byte = exchange.answered;
        let reusable = exchange.upstream_is_reusable(&upstream);
        let delimited = exchange
            .response
            .is_some_and(|response| response.is_delimited);
        drop(exchange);
        log.ended = Some(ended);
        log.upstream = upstream_time.or(log.upstream);
        log.bytes_out += bytes;
        if let Some(status) = answered {
            log.status = status;
        }
        if !was_sent {
            log.attempts -= 1;
        }
        match end {
            End::Complete => {
                record(Outcome::Status(answered.unwrap_or(0)), ended);
                drop(permit);
                if reusable {
                    put_back(core, &target, upstream, ended);
                }
                let stays = keep_alive() && delimited && sending.is_taken();
                Turn::Next(if stays { Next::Open } else { Next::Close })
            }
            End::Upgraded => {
                record(Outcome::Status(101), ended);
                let next = self.upgraded(upstream, version.idle_timeout, log).await;
                drop(permit);
                Turn::Next(next)
            }
            End::Retry(status) => {
                record(Outcome::Status(status), ended);
                drop(permit);
                attempts.tried.push(endpoint.id);
                Turn::Again(wait.unwrap_or_default())
            }
            End::DownstreamGone => {
                // An answer that was under way says how the endpoint did.
                record(answered.map_or(Outcome::Abandoned, Outcome::Status), ended);
                Turn::gone(log)
            }
            End::BadBody | End::BodyTimeout => {
                record(answered.map_or(Outcome::Abandoned, Outcome::Status), ended);
                let reject = if end == End::BadBody {
                    Reject::BadRequest
                } else {
                    Reject::BodyTimeout
                };
                Turn::fail(log, reject, can_answer)
            }
            End::RequestTimeout | End::TryTimeout | End::IdleTimeout => {
                record(answered.map_or(Outcome::Timeout, Outcome::Status), ended);
                drop(permit);
                attempts.tried.push(endpoint.id);
                let again = (end == End::TryTimeout && !responding)
                    .then(|| self.again(log, plan, attempts, Failure::PerTry, sending))
                    .flatten();
                again.unwrap_or_else(|| Turn::fail(log, Reject::UpstreamTimeout, can_answer))
            }
            End::UpstreamMalformed => {
                record(Outcome::Reset, ended);
                Turn::fail(log, Reject::UpstreamMalformed, can_answer)
            }
            End::UpstreamGone { reset } => {
                let stale = upstream.reused && !any_byte && !attempts.stale && sending.replayable;
                if stale && (!was_sent || is_idempotent(log.method())) {
                    // Closed while it lay idle, which says nothing about the endpoint.
                    record(Outcome::Abandoned, ended);
                    attempts.stale = true;
                    attempts.count -= 1;
                    return Turn::Again(Duration::ZERO);
                }
                record(Outcome::Reset, ended);
                drop(permit);
                attempts.tried.push(endpoint.id);
                let again = (!responding)
                    .then(|| {
                        let failure = if was_sent {
                            Failure::Reset
                        } else {
                            Failure::Connect
                        };
                        self.again(log, plan, attempts, failure, sending)
                    })
                    .flatten();
                let reject = if reset {
                    Reject::UpstreamReset
                } else {
                    Reject::UpstreamClosed
                };
                again.unwrap_or_else(|| Turn::fail(log, reject, can_answer))
            }
        }
    }

    /// Whether the policy allows another attempt.
    fn again(
        &self,
        log: &RequestLog,
        plan: Plan,
        attempts: &mut Attempts,
        failure: Failure,
        sending: &Sending,
    ) -> Option<Turn> {
        let version = &log.snapshot.versions[plan.version.0 as usize];
        let replayable = sending.replayable;
        retry_after(
            version,
            attempts,
            log.method(),
            failure,
            replayable,
            &self.conn.core,
        )
        .map(Turn::Again)
    }

    /// After 101: opaque bytes, no HTTP time-outs but the idle one.
    async fn upgraded(&mut self, mut up: Upstream, idle: Duration, log: &mut RequestLog) -> Next {
        let mut bytes = (0, 0);
        let end = copy(
            Side {
                stream: &mut self.stream,
                buf: &mut self.buf,
            },
            Side {
                stream: &mut up.stream,
                buf: &mut up.buf,
            },
            &mut self.timer,
            idle,
            &mut bytes,
        )
        .await;
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
    fn fail(log: &mut RequestLog, reject: Reject, can_answer: bool) -> Self {
        if can_answer {
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
