//! A client's connection: head after head, decision, attempts, end.

use std::{future::poll_fn, pin::Pin, rc::Rc, task::Poll, time::Duration};

use super::{
    answer::{self, After},
    body::Body,
    fields::Fields,
    next_head::{Head, NextHead, NoHead},
    request::{self, Request},
};
use crate::{
    clock::{self, MonoNanos},
    policy::{Reject, action::Action, rate_limit::Verdict, route::Plan},
    proxy::{
        attempt::{self, Admitted, Refused},
        buffer::{Buf, HeadBuf},
        core::{Conn, Place},
        http2,
        io::{poll_fill, poll_write_two, reset_on_close},
        record::{ConnectionLog, RequestLog},
        socket::Socket,
        stores,
        timer::Timer,
    },
    telemetry::Spoken,
};

/// After an answer that the client did not wait for, its bytes are read and dropped so long: a
/// close with unread bytes would be a reset, which may destroy the answer on its way.
const LINGER: Duration = Duration::from_secs(1);
/// And so many of them.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// What becomes of the client's connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next request.
    Open,
    /// It is closed; unread bytes are waited out.
    Close,
    /// It is reset: the answer is not whole.
    Reset,
    /// It has gone, or was used up.
    Gone,
}

/// A connection that speaks HTTP/1.x.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) conn: Rc<Conn>,
    place: Place,
    pub(super) stream: Socket,
    pub(super) buf: Buf,
    pub(super) timer: Timer,
    log: ConnectionLog,
}

/// Serves a connection that speaks HTTP/1.x; one that turns out to speak HTTP/2 is handed over.
pub(in crate::proxy) async fn serve(
    conn: Rc<Conn>,
    place: Place,
    stream: Socket,
    buf: Buf,
    timer: Timer,
) {
    let (mut stream, mut buf, mut timer) = (stream, buf, timer);
    let mut head = NextHead::new(true);
    let first = poll_fn(|cx| head.poll(cx, &conn, &mut stream, &mut buf, &mut timer)).await;
    if matches!(first, Err(NoHead::Http2)) {
        return Box::pin(http2::serve(conn, place, stream, buf, timer)).await;
    }
    // Counted as opened once its protocol is known.
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

/// A request that goes on its way.
#[derive(Debug)]
pub(super) struct Going {
    pub(super) request: Request,
    /// When its head was complete.
    pub(super) complete: MonoNanos,
    pub(super) plan: Plan,
    pub(super) key: Option<u64>,
    pub(super) verdict: Verdict,
    /// What its rule does besides; none for most.
    pub(super) action: Option<Box<Action>>,
}

/// What becomes of a request.
enum Decision {
    Forward(Going),
    /// A refusal; the request is known if its head could be read.
    Refuse(Option<Request>, Refused),
    /// The last hop of `Max-Forwards`.
    LastHop(Request),
}

impl Decision {
    /// A request that was to be forwarded, had its stores not been against it.
    fn refused(self, reject: Reject) -> Self {
        match self {
            Self::Forward(going) => Self::Refuse(
                Some(going.request),
                Refused {
                    plan: Some(going.plan),
                    reject,
                    verdict: going.verdict,
                },
            ),
            other => other,
        }
    }
}

impl Session {
    async fn run(&mut self, first: Result<Head, NoHead>) -> Next {
        let mut head = first;
        loop {
            let next = match head {
                Ok(head) => self.request(head).await,
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
        self.stream.shut_write();
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
        let snapshot = self.place.refresh(&conn);
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
    pub(super) async fn refuse(
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
            && !self.conn.is_aged(&self.conn.core.limits())
            && request.is_some_and(|request| request.keep_alive);
        let http10 = request.is_some_and(|request| request.http10);
        let is_head = request.is_some_and(|request| request.is_head);
        let after = After::of(open, http10);
        let mut out = HeadBuf::take();
        let limits = self.conn.core.limits();
        let overload = limits.overload_header.as_deref();
        answer::refusal(&mut out, reject, verdict, after, is_head, overload);
        log.status = verdict.status(reject);
        self.send(log, &out, open).await
    }

    /// Sends a whole answer of our own.
    pub(super) async fn send(&mut self, log: &mut RequestLog, out: &[u8], open: bool) -> Next {
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
    fn decide(&mut self, head: Head, log: &mut RequestLog) -> Decision {
        let Head {
            length, complete, ..
        } = head;
        let conn = &self.conn;
        let core = &conn.core;
        let decision = request::parse(&self.buf.bytes()[..length], &core.limits(), |parsed| {
            let mut destination = String::new();
            if !parsed.has_authority() {
                destination = conn.destination.to_string();
            }
            parsed.secure.set(conn.is_secure());
            if parsed.wants_tls() && !conn.is_secure() {
                return Err(Reject::BadRequest);
            }
            let request = {
                let mut rng = core.rng.borrow_mut();
                parsed.write(&mut log.head, &mut log.spans, &destination, &mut rng, None)
            };
            if request.ends_here {
                return Ok(Decision::LastHop(request));
            }
            let fields = Fields(parsed.fields);
            let view = parsed.view(&fields, &destination);
            let admitted = attempt::admit(conn, &log.snapshot, &self.place, &view, complete);
            Ok(match admitted {
                Ok(Admitted { plan, key, verdict }) => {
                    let action =
                        attempt::act(conn, &log.snapshot, &self.place, &plan, &view, false);
                    if let Some(action) = action.as_ref().filter(|action| action.edits_head()) {
                        log.keep_asked();
                        let mut rng = core.rng.borrow_mut();
                        let change = Some(&**action);
                        let (head, spans) = (&mut log.head, &mut log.spans);
                        parsed.write(head, spans, &destination, &mut rng, change);
                    }
                    Decision::Forward(Going {
                        request,
                        complete,
                        plan,
                        key,
                        verdict,
                        action,
                    })
                }
                Err(refused) => Decision::Refuse(Some(request), refused),
            })
        });
        self.buf.consume(length);
        decision.unwrap_or_else(|reject| {
            let verdict = Verdict::default();
            Decision::Refuse(
                None,
                Refused {
                    plan: None,
                    reject,
                    verdict,
                },
            )
        })
    }

    async fn request(&mut self, head: Head) -> Next {
        let mut log = self.request_log(head.began);
        let mut decision = self.decide(head, &mut log);
        if let Decision::Forward(going) = &mut decision
            && let Some(held) = &mut going.verdict.held
        {
            if held.waits() {
                if let Err(reject) = self.ask_stores(&mut going.verdict).await {
                    decision = decision.refused(reject);
                }
            } else {
                stores::tell(&self.conn.core, held);
            }
        }
        match decision {
            Decision::Forward(going) => self.forward(going, log).await,
            Decision::LastHop(request) => {
                let open = request.keep_alive && self.takes_rest(&request);
                let http10 = request.http10;
                let after = After::of(open, http10);
                let mut out = HeadBuf::take();
                log.status = answer::last_hop(&mut out, log.method(), after);
                self.send(&mut log, &out, open).await
            }
            Decision::Refuse(
                request,
                Refused {
                    plan,
                    reject,
                    mut verdict,
                },
            ) => {
                log.held = verdict.held.take();
                log.rule = plan.and_then(|plan| plan.rule);
                log.version = plan.map(|plan| plan.version);
                let close = !request.is_some_and(|request| self.takes_rest(&request));
                self.refuse(&mut log, request.as_ref(), reject, &verdict, close)
                    .await
            }
        }
    }

    /// Asks the stores of shared limits, as long as the client is there. Boxed: rare, and large
    /// beside the state of an idle connection.
    fn ask_stores<'f>(
        &'f mut self,
        verdict: &'f mut Verdict,
    ) -> Pin<Box<dyn Future<Output = Result<(), Reject>> + 'f>> {
        Box::pin(async move {
            let core = Rc::clone(&self.conn.core);
            stores::ask(&core, verdict, |cx| self.client_has_left(cx)).await
        })
    }

    /// Takes the body of a request that is answered here, if all of it is at hand: then the next
    /// request can follow.
    pub(super) fn takes_rest(&mut self, request: &Request) -> bool {
        let mut body = request.body;
        self.drop_body(&mut body)
    }

    pub(super) fn drop_body(&mut self, body: &mut Body) -> bool {
        while !body.is_done() && !self.buf.is_empty() {
            match body.step(self.buf.bytes()) {
                Ok(step) => self.buf.consume(step.skip + step.forward),
                Err(_) => return false,
            }
        }
        body.is_done()
    }
}
