//! What every protocol does for an attempt: decide, and record how it ended.

use std::{rc::Rc, time::Duration};

use super::{
    core::{Conn, Core, Place, Snap},
    inbound,
};
use crate::{
    clock::MonoNanos,
    policy::{
        Client, HeaderView, NoObserver, Reject, RequestView, Snapshot, VersionIx, balance,
        rate_limit::{self, Verdict},
        route::{self, Plan},
        snapshot::{EndpointState, Outcome},
    },
};

/// A request that has a version and was admitted by its rate limits.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) plan: Plan,
    /// By which its endpoint is found, where the version is balanced by a key.
    pub(super) key: Option<u64>,
    pub(super) verdict: Verdict,
}

/// A request that was refused, with what the limits said when they did it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) plan: Option<Plan>,
    pub(super) reject: Reject,
    pub(super) verdict: Verdict,
}

/// Who asks.
pub(super) fn client(conn: &Conn, place: &Place) -> Client {
    Client {
        source: place.source,
        address: Some(conn.peer.ip()),
    }
}

/// Route, version, rate limit: once for each request.
pub(super) fn admit<H: HeaderView>(
    conn: &Rc<Conn>,
    snapshot: &Snap,
    place: &Place,
    request: &RequestView<'_, H>,
    now: MonoNanos,
) -> Result<Admitted, Refused> {
    let refuse = |reject| Refused {
        plan: None,
        reject,
        verdict: Verdict::default(),
    };
    let port = place
        .port
        .ok_or_else(|| refuse(Reject::UnknownDestination))?;
    inbound::authorise(conn, snapshot, port, place.source).map_err(|reject| Refused {
        plan: Some(Plan {
            port,
            rule: None,
            target: 0,
            version: snapshot.port(port).all,
        }),
        ..refuse(reject)
    })?;
    let mut cursors = conn.core.cursors.borrow_mut();
    let plan = route::decide(
        snapshot,
        port,
        client(conn, place),
        request,
        &mut cursors,
        &mut NoObserver,
    )
    .map_err(refuse)?;
    let verdict = rate_limit::admit(
        snapshot,
        &plan,
        client(conn, place),
        Some(request),
        now,
        &mut NoObserver,
    );
    if verdict.refused.is_some() {
        return Err(Refused {
            plan: Some(plan),
            reject: Reject::RateLimited,
            verdict,
        });
    }
    let key = balance::key(snapshot, &plan, client(conn, place), Some(request));
    Ok(Admitted { plan, key, verdict })
}

/// How long an endpoint took until then: from when it had the whole request, unless it answered
/// before that. A client that sends slowly doesn't make the endpoint slow.
pub(super) fn took(
    started: MonoNanos,
    complete: Option<MonoNanos>,
    until: MonoNanos,
) -> Option<Duration> {
    let from = complete
        .filter(|at| *at <= until)
        .map_or(started, |at| at.max(started));
    Some(until.since(from))
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3); a date, which needs both clocks to agree, is not
/// read.
pub(super) fn retry_after(status: u16, value: Option<&[u8]>) -> Option<Duration> {
    let asks = status == 429 || status >= 500;
    let text = str::from_utf8(value.filter(|_| asks)?).ok()?;
    let seconds: u32 = text.trim_ascii().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

/// Records how an attempt ended and logs what that changed. `retry_after`: how long its answer asks
/// to stay away.
#[expect(clippy::too_many_arguments, reason = "what is known of an attempt")]
pub(super) fn record(
    core: &Core,
    snapshot: &Snapshot,
    version: VersionIx,
    endpoint: &EndpointState,
    outcome: Outcome,
    took: Option<Duration>,
    retry_after: Option<Duration>,
    now: MonoNanos,
) {
    snapshot.observe(version, endpoint, outcome, took, retry_after, now);
    judge(core, snapshot, version, endpoint, outcome, took, now);
}

/// The same for an attempt that the balancer knows of already.
pub(super) fn judge(
    core: &Core,
    snapshot: &Snapshot,
    version: VersionIx,
    endpoint: &EndpointState,
    outcome: Outcome,
    took: Option<Duration>,
    now: MonoNanos,
) {
    if let Some(change) = snapshot.record(version, endpoint, outcome, took, now) {
        core.shared.telemetry.ejection(&change);
        tracing::info!(
            service = change.service,
            endpoint = %change.endpoint,
            what = ?change.what,
            "endpoint ejection"
        );
    }
}
