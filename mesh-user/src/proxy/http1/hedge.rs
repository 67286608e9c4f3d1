//! A hedge in HTTP/1.1: the whole request on another connection, until its answer's head.

use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use super::{forward::Course, scan::Scan};
use crate::{
    clock::{self, MonoNanos},
    policy::{
        breaker::{RequestPermit, RetryPermit},
        retry::is_idempotent,
        snapshot::{EndpointState, Outcome},
    },
    proxy::{
        attempt,
        core::Conn,
        hedge::{Answer, Leg},
        inbound::{self, Judged},
        io::{poll_fill, poll_write_two},
        record::RequestLog,
        retry::Charged,
        upstream::{NoConnection, Target, Upstream, connect_queued},
    },
};

/// An endpoint that answered: its final head stands at the front of its connection's buffer.
pub(super) struct Won<'a> {
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) permit: RequestPermit,
    pub(super) judged: Judged<'a>,
    pub(super) upstream: Upstream,
    /// It answered before it had the whole request.
    pub(super) early: bool,
    pub(super) started: MonoNanos,
    _retry: RetryPermit,
    course: &'a Course<'a>,
    status: u16,
}

impl Answer for Won<'_> {
    fn status(&self) -> u16 {
        self.status
    }

    fn discard(self) {
        let ended = clock::now();
        let took = attempt::took(self.started, None, ended);
        let outcome = Outcome::Status(self.status);
        self.course
            .record(&self.endpoint, outcome, took, None, ended);
    }
}

/// Begins a leg at an endpoint that was not asked, if there is one and its caps allow it.
pub(super) fn start<'a>(
    course: &'a Course<'a>,
    conn: &Rc<Conn>,
    log: &RequestLog,
    request: Vec<u8>,
    tried: &[u64],
) -> Option<(u64, Leg<'a, Won<'a>>)> {
    let now = clock::now();
    let endpoint = inbound::pick(conn, course.snapshot, course.at, None, tried, now).ok()?;
    if tried.contains(&endpoint.id) {
        return None;
    }
    let retry = course.version.admit_retry(now)?;
    let permit = course.version.breaker.request(&endpoint).ok()?;
    let snapshot = course.snapshot;
    let charged = &mut Charged::default();
    let judged = inbound::judge(conn, snapshot, log.source, &endpoint, charged, now).ok()?;
    let id = endpoint.id;
    let careful = !is_idempotent(log.method());
    let conn = Rc::clone(conn);
    let leg = async move {
        let target = Target::new(snapshot, course.at, &endpoint, &conn, &judged);
        let asked = ask(&conn, &target, &request, careful).await;
        let ended = clock::now();
        match asked {
            Ok((upstream, status, early)) => Some(Won {
                endpoint,
                permit,
                judged,
                upstream,
                early,
                started: now,
                _retry: retry,
                course,
                status,
            }),
            Err(failed) => {
                // The permit, which may be that of a probe, outlives the record.
                if let Some(outcome) = failed {
                    let took = attempt::took(now, None, ended);
                    course.record(&endpoint, outcome, took, None, ended);
                }
                drop(permit);
                None
            }
        }
    };
    Some((id, Box::pin(leg)))
}

/// Sends the request and reads up to the final head: its status, and whether it came before the
/// request was sent whole. The error: what the endpoint's record says.
async fn ask(
    conn: &Rc<Conn>,
    target: &Target<'_>,
    request: &[u8],
    careful: bool,
) -> Result<(Upstream, u16, bool), Option<Outcome>> {
    let core = &conn.core;
    let mut upstream = match core.pool.take(&target.key, careful) {
        Some(upstream) => upstream,
        None => connect_queued(core, &conn.workload, target, false)
            .await
            .map_err(NoConnection::outcome)?,
    };
    let head_max = core.limits().head_bytes_max;
    let mut talk = Talk {
        sent: 0,
        scan: Scan::new(),
        head_max,
    };
    let status = poll_fn(|cx| talk.poll(cx, &mut upstream, request)).await?;
    Ok((upstream, status, talk.sent < request.len()))
}

struct Talk {
    sent: usize,
    scan: Scan,
    head_max: usize,
}

impl Talk {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut Upstream,
        request: &[u8],
    ) -> Poll<Result<u16, Option<Outcome>>> {
        let broken = || {
            // Of a connection that lay idle nobody knows since when it has been dead.
            let outcome = match upstream.reused {
                true => Outcome::Abandoned,
                false => Outcome::Reset,
            };
            Poll::Ready(Err(Some(outcome)))
        };
        while self.sent < request.len() {
            match poll_write_two(&mut upstream.stream, cx, &request[self.sent..], &[]) {
                Poll::Ready(Ok(count)) => self.sent += count,
                Poll::Ready(Err(_)) => return broken(),
                Poll::Pending => break,
            }
        }
        loop {
            let bytes = upstream.buf.bytes();
            match self.scan.advance(bytes, self.head_max, self.head_max) {
                Err(_) => return Poll::Ready(Err(Some(Outcome::Reset))),
                Ok(Some(length)) => match status(bytes) {
                    // Interim heads of a hedge are nobody's.
                    Some(status @ 100..=199) if status != 101 => {
                        upstream.buf.consume(length);
                        self.scan = Scan::new();
                        continue;
                    }
                    Some(status) => return Poll::Ready(Ok(status)),
                    None => return Poll::Ready(Err(Some(Outcome::Reset))),
                },
                Ok(None) => {}
            }
            if !upstream.buf.has_room() {
                upstream.buf.grow();
            }
            match poll_fill(&mut upstream.stream, cx, &mut upstream.buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return broken(),
                Poll::Ready(Ok(_)) => {}
            }
        }
    }
}

/// The status of a head that is complete.
fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    let digits = rest.get(2..5).filter(|_| rest.get(1) == Some(&b' '))?;
    let text = str::from_utf8(digits).ok()?;
    text.parse().ok().filter(|status| *status >= 100)
}
