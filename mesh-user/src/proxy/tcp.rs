//! Opaque connections: decided once, then bytes in both directions.

mod copy;
mod follow;
mod lane;
#[cfg(test)]
mod measure;

use std::{
    pin::{Pin, pin},
    rc::Rc,
};

use tokio::io::Interest;

pub(super) use self::{
    copy::{CopyEnd, Side},
    follow::carry,
};
use super::{
    attempt::{self, client},
    buffer::Buf,
    core::{Conn, Core, Place},
    flows::Flows,
    inbound,
    io::reset_on_close,
    record::ConnectionLog,
    retry::Charged,
    socket::Socket,
    stores,
    timer::Timer,
    tls::Inside,
    upstream::{Target, connect_now},
};
use crate::{
    clock,
    policy::{
        NoObserver, Reject, balance, breaker::RequestPermit, rate_limit, request, route,
        snapshot::Outcome,
    },
    telemetry::Spoken,
};

/// Serves an opaque connection: decides once, connects, copies.
pub(super) async fn serve(
    conn: Rc<Conn>,
    mut place: Place,
    stream: Socket,
    mut buf: Buf,
    mut timer: Timer,
) {
    let mut down = Down {
        stream,
        cut_short: true,
    };
    let mut log = ConnectionLog::open(Rc::clone(&conn), Spoken::Tcp);
    conn.idle.set(false);
    if let Err(reject) = forward(
        &conn,
        &mut place,
        &mut down.stream,
        &mut buf,
        &mut timer,
        &mut log,
    )
    .await
    {
        log.reject = Some(reject);
        // No answer is possible in a protocol that nobody knows: the reset says that it failed.
        reset_on_close(&down.stream);
    }
    down.cut_short = false;
}

/// The client's socket. Cut short (the workload is released, a drain is over) it closes with a
/// reset: an end would say that all was well.
struct Down {
    stream: Socket,
    cut_short: bool,
}

impl Drop for Down {
    fn drop(&mut self) {
        if self.cut_short {
            reset_on_close(&self.stream);
        }
    }
}

/// Counts what a copy delivered into the record, also when it is cut short.
struct Counted<'a> {
    log: &'a mut ConnectionLog,
    bytes: (u64, u64),
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        (self.log.bytes_in, self.log.bytes_out) = self.bytes;
    }
}

/// Asks the stores of shared limits, as long as the client is there: its end is no reason to give
/// up. Boxed: rare.
fn ask_stores<'f>(
    core: &'f Core,
    verdict: &'f mut rate_limit::Verdict,
    stream: &'f Socket,
) -> Pin<Box<dyn Future<Output = Result<(), Reject>> + 'f>> {
    Box::pin(async move {
        let mut reset = pin!(stream.tcp().ready(Interest::ERROR));
        stores::ask(core, verdict, |cx| reset.as_mut().poll(cx).is_ready()).await
    })
}

async fn forward(
    conn: &Rc<Conn>,
    place: &mut Place,
    stream: &mut Socket,
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
    let asks = client(conn, place);
    let plan = {
        let cursors = &mut core.cursors.borrow_mut();
        match conn.tls.get() {
            None => route::decide_tcp(&snapshot, port, asks, cursors, &mut NoObserver),
            Some(tls) => {
                let name = tls.server_name.as_deref();
                route::decide_tls(&snapshot, port, asks, name, cursors, &mut NoObserver)
            }
        }?
    };
    log.rule = plan.rule;
    log.version = Some(plan.version);
    let none: Option<&request::RequestView<'_, request::HeaderList>> = None;
    let mut verdict = rate_limit::admit(
        &snapshot,
        &plan,
        client(conn, place),
        none,
        now,
        &mut NoObserver,
    );
    if let Some(reject) = verdict.reject() {
        return Err(reject);
    }
    if let Some(held) = &mut verdict.held {
        if held.waits() {
            ask_stores(core, &mut verdict, stream).await?;
        } else {
            stores::tell(core, held);
        }
    }
    log.held = verdict.held;
    let version = &snapshot.versions[plan.version.0 as usize];
    let record = |endpoint: &_, outcome, took| {
        let (version, now) = (plan.version, clock::now());
        attempt::record(core, &snapshot, version, endpoint, outcome, took, None, now);
    };
    let key = balance::key(&snapshot, &plan, client(conn, place), none);
    let mut tried = Vec::new();
    let mut charged = Charged::default();
    let mut took;
    let (mut upstream, endpoint, mut permit, _judged): (_, _, RequestPermit, _) = loop {
        let endpoint = attempt::pick(conn, &snapshot, &plan, key, &tried, now)?;
        log.endpoint = Some(endpoint.address);
        let permit = version.breaker.request(&endpoint)?;
        let judged = inbound::judge(conn, &snapshot, place.source, &endpoint, &mut charged, now)?;
        let target = Target {
            inside: Inside::Opaque,
            ..Target::new(&snapshot, plan.version, &endpoint, conn, &judged)
        };
        let started = if tried.is_empty() { now } else { clock::now() };
        let connected = tokio::select! {
            biased;
            connected = connect_now(core, &conn.workload, &target) => connected,
            // The client's end is no reason to give up: it may still want to listen.
            _reset = stream.tcp().ready(Interest::ERROR) => return Err(Reject::DownstreamClosed),
        };
        took = attempt::took(started, None, clock::now());
        match connected {
            Ok(upstream) => break (upstream, endpoint, permit, judged),
            Err(failed) => {
                let Some(outcome) = failed.outcome() else {
                    return Err(failed.reject());
                };
                record(&endpoint, outcome, took);
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
    let (version_ix, outcome) = (plan.version, Outcome::Connected);
    snapshot.observe(version_ix, &endpoint, outcome, took, None, clock::now());
    log.tcp_opened();
    let mut counted = Counted {
        log: &mut *log,
        bytes: (0, 0),
    };
    let down = Side { stream, buf };
    let up = Side {
        stream: &mut upstream.stream,
        buf: &mut upstream.buf,
    };
    let (idle, bytes) = (version.idle_timeout, &mut counted.bytes);
    let watch = Flows::watch(core, &snapshot, &plan, &endpoint);
    let end = carry(down, up, timer, idle, bytes, watch).await;
    let (_, answered) = counted.bytes;
    drop(counted);
    if end == CopyEnd::UpstreamReset && answered == 0 {
        record(&endpoint, Outcome::Reset, took);
    } else {
        let (version, now) = (plan.version, clock::now());
        attempt::judge(
            core,
            &snapshot,
            version,
            &endpoint,
            Outcome::Connected,
            took,
            now,
        );
    }
    log.reject = match end {
        CopyEnd::Closed => None,
        CopyEnd::DownstreamReset => Some(Reject::DownstreamClosed),
        CopyEnd::UpstreamReset => Some(Reject::UpstreamReset),
        CopyEnd::Idle => Some(Reject::UpstreamTimeout),
        CopyEnd::Changed => Some(Reject::RouteChanged),
    };
    Ok(())
}
