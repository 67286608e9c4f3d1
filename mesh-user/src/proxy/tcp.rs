//! Opaque bytes in both directions, as they come: half-close stays half-close, a reset stays a
//! reset.

use std::{
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::net::TcpStream;

use super::{
    buffer::Buf,
    core::{Conn, Place},
    inbound,
    io::{poll_fill, poll_write_two, reset_on_close, shut_write},
    record::ConnectionLog,
    timer::{Timer, deadline},
    upstream::{Target, connect_now},
};
use crate::{
    clock,
    policy::{
        NoObserver, Reject, breaker::RequestPermit, rate_limit, request, route, snapshot::Outcome,
    },
    telemetry::Spoken,
};

/// One side of a copy: its socket and what was read from it.
#[derive(Debug)]
pub(super) struct Side<'a> {
    pub(super) stream: &'a mut TcpStream,
    pub(super) buf: &'a mut Buf,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CopyEnd {
    /// Both directions ended in order.
    Closed,
    /// The workload's side broke.
    DownstreamReset,
    /// The endpoint's side broke.
    UpstreamReset,
    /// Nothing moved for the idle time-out.
    Idle,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    #[default]
    Open,
    /// The source has ended; its last bytes may still be under way.
    Ending,
    Ended,
}

/// Which side a step failed on.
enum Broken {
    Source,
    Sink,
}

/// Moves bytes from `source` to `sink` until one of them blocks. Adds what it moved to `moved`.
fn poll_flow(
    source: &mut Side<'_>,
    sink: &mut TcpStream,
    flow: &mut Flow,
    moved: &mut u64,
    cx: &mut Context<'_>,
) -> Result<(), Broken> {
    while *flow != Flow::Ended {
        if !source.buf.is_empty() {
            match poll_write_two(sink, cx, source.buf.bytes(), &[]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(count)) => {
                    source.buf.consume(count);
                    *moved += count as u64;
                }
                Poll::Ready(Err(_)) => return Err(Broken::Sink),
            }
        } else if *flow == Flow::Ending {
            shut_write(sink);
            *flow = Flow::Ended;
        } else {
            match poll_fill(source.stream, cx, source.buf) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => *flow = Flow::Ending,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(Broken::Source),
            }
        }
    }
    Ok(())
}

/// Copies in both directions until both have ended, one side breaks, or nothing moves for `idle`
/// (zero: no limit). A side that broke makes the other one close with a reset.
///
/// `bytes` counts what was delivered: to the endpoint, to the workload.
pub(super) async fn copy(
    mut down: Side<'_>,
    mut up: Side<'_>,
    timer: &mut Timer,
    idle: Duration,
    bytes: &mut (u64, u64),
) -> CopyEnd {
    let (mut forth, mut back) = (Flow::Open, Flow::Open);
    let mut last = clock::now();
    let mut seen = *bytes;
    poll_fn(|cx| {
        match poll_flow(&mut down, up.stream, &mut forth, &mut bytes.0, cx) {
            Ok(()) => {}
            Err(Broken::Source) => return Poll::Ready(CopyEnd::DownstreamReset),
            Err(Broken::Sink) => return Poll::Ready(CopyEnd::UpstreamReset),
        }
        match poll_flow(&mut up, down.stream, &mut back, &mut bytes.1, cx) {
            Ok(()) => {}
            Err(Broken::Source) => return Poll::Ready(CopyEnd::UpstreamReset),
            Err(Broken::Sink) => return Poll::Ready(CopyEnd::DownstreamReset),
        }
        if forth == Flow::Ended && back == Flow::Ended {
            return Poll::Ready(CopyEnd::Closed);
        }
        if seen != *bytes {
            seen = *bytes;
            last = clock::now();
        }
        timer.poll(cx, deadline(last, idle)).map(|()| CopyEnd::Idle)
    })
    .await
    .with_resets(down.stream, up.stream)
}

impl CopyEnd {
    /// A reset on one side becomes a reset on the other.
    fn with_resets(self, down: &TcpStream, up: &TcpStream) -> Self {
        match self {
            Self::Closed => {}
            Self::DownstreamReset => reset_on_close(up),
            Self::UpstreamReset => reset_on_close(down),
            Self::Idle => {
                reset_on_close(up);
                reset_on_close(down);
            }
        }
        self
    }
}

/// Serves an opaque connection: decides once, connects, copies.
pub(super) async fn serve(
    conn: Rc<Conn>,
    mut place: Place,
    mut stream: TcpStream,
    mut buf: Buf,
    mut timer: Timer,
) {
    let mut log = ConnectionLog::open(Rc::clone(&conn), Spoken::Tcp);
    conn.idle.set(false);
    if let Err(reject) = forward(
        &conn,
        &mut place,
        &mut stream,
        &mut buf,
        &mut timer,
        &mut log,
    )
    .await
    {
        log.reject = Some(reject);
        // No answer is possible in a protocol that nobody knows: the reset says that it failed.
        reset_on_close(&stream);
    }
}

async fn forward(
    conn: &Rc<Conn>,
    place: &mut Place,
    stream: &mut TcpStream,
    buf: &mut Buf,
    timer: &mut Timer,
    log: &mut ConnectionLog,
) -> Result<(), Reject> {
    let core = &conn.core;
    let now = clock::now();
    let snapshot = place.refresh(conn);
    log.snapshot = Some(Rc::clone(&snapshot));
    log.source = place.source;
    let port = place.port.ok_or(Reject::UnknownDestination)?;
    if let Err(reject) = inbound::authorise(conn, &snapshot, port, place.source) {
        log.version = Some(snapshot.port(port).all);
        return Err(reject);
    }
    let plan = route::decide_tcp(
        &snapshot,
        port,
        place.source,
        &mut core.cursors.borrow_mut(),
        &mut NoObserver,
    )?;
    log.rule = plan.rule;
    log.version = Some(plan.version);
    let none: Option<&request::RequestView<'_, request::HeaderList>> = None;
    let verdict = rate_limit::admit(&snapshot, &plan, place.source, none, now, &mut NoObserver);
    if verdict.refused.is_some() {
        return Err(Reject::RateLimited);
    }
    let version = &snapshot.versions[plan.version.0 as usize];
    let record = |endpoint: &_, outcome| {
        super::attempt::record(
            core,
            &snapshot,
            plan.version,
            endpoint,
            outcome,
            clock::now(),
        );
    };
    let mut tried = Vec::new();
    let (mut upstream, endpoint, mut permit, _judged): (_, _, RequestPermit, _) = loop {
        let endpoint = inbound::pick(conn, &snapshot, plan.version, &tried, now)?;
        log.endpoint = Some(endpoint.address);
        let permit = version.breaker.request(&endpoint)?;
        let judged = inbound::judge(conn, &snapshot, place.source, &endpoint, now)?;
        let target = Target::new(&snapshot, plan.version, &endpoint, conn, &judged);
        match connect_now(core, &conn.workload, &target).await {
            Ok(upstream) => break (upstream, endpoint, permit, judged),
            Err(failed) => {
                let Some(outcome) = failed.outcome() else {
                    return Err(failed.reject());
                };
                record(&endpoint, outcome);
                tried.push(endpoint.id);
                // Nothing was sent yet, so another endpoint may serve: as often as there are
                // endpoints that were not tried, at most three times (Envoy's default for TCP
                // is one, ours is bounded by the connect time-out of each).
                if tried.len() >= version.endpoints.len().min(3) {
                    return Err(failed.reject());
                }
            }
        }
    };
    // The connection may stay open for days.
    permit.answered();
    log.tcp_opened();
    let mut bytes = (0, 0);
    let end = copy(
        Side { stream, buf },
        Side {
            stream: &mut upstream.stream,
            buf: &mut upstream.buf,
        },
        timer,
        version.idle_timeout,
        &mut bytes,
    )
    .await;
    (log.bytes_in, log.bytes_out) = bytes;
    record(
        &endpoint,
        if end == CopyEnd::UpstreamReset && bytes.1 == 0 {
            Outcome::Reset
        } else {
            Outcome::Connected
        },
    );
    log.reject = match end {
        CopyEnd::Closed => None,
        CopyEnd::DownstreamReset => Some(Reject::DownstreamClosed),
        CopyEnd::UpstreamReset => Some(Reject::UpstreamReset),
        CopyEnd::Idle => Some(Reject::UpstreamTimeout),
    };
    Ok(())
}
