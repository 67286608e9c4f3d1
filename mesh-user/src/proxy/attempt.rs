//! What every protocol does for an attempt: decide, and record how it ended.

use std::{rc::Rc, sync::Arc};

use super::{
    core::{Conn, Core, Place, Snap},
    inbound,
};
use crate::{
    clock::MonoNanos,
    model::action::Fraction,
    policy::{
        Client, HeaderView, NoObserver, Reject, RequestView, Snapshot, VersionIx,
        action::{Action, Asked, Edits},
        rate_limit::{self, Verdict},
        route::{self, Plan},
        session,
        snapshot::{EndpointState, Outcome},
    },
};

/// A request that has a version and was admitted by its rate limits.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) plan: Plan,
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
        unix_s: 0,
    }
}

/// The endpoint of an attempt: that of the request's session as long as it can be used, else the
/// balancer's choice.
///
/// # Errors
/// As [`inbound::pick`].
pub(super) fn pick(
    conn: &Conn,
    snapshot: &Snapshot,
    plan: &Plan,
    tried: &[u64],
    now: MonoNanos,
) -> Result<Arc<EndpointState>, Reject> {
    if plan.session.is_some()
        && tried.is_empty()
        && let Some(endpoint) = session::endpoint(snapshot, plan, now)
    {
        return Ok(endpoint);
    }
    inbound::pick(conn, snapshot, plan.version, tried, now)
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
            session: None,
        }),
        ..refuse(reject)
    })?;
    let mut cursors = conn.core.cursors.borrow_mut();
    let plan = route::decide(
        snapshot,
        port,
        Client {
            unix_s: conn.core.unix_s(now),
            ..client(conn, place)
        },
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
    Ok(Admitted { plan, verdict })
}

/// What the rule does with the request besides; none for a rule without actions.
pub(super) fn act<H: HeaderView>(
    conn: &Conn,
    snapshot: &Snapshot,
    place: &Place,
    plan: &Plan,
    request: &RequestView<'_, H>,
    grpc: bool,
) -> Option<Box<Action>> {
    let actions = snapshot.actions(plan)?;
    let asked = Asked {
        client: client(conn, place),
        request,
        scheme: conn.scheme(),
        port: conn.destination.port(),
        grpc,
    };
    let mut rng = conn.core.rng.borrow_mut();
    let hit = |share: Fraction| rng.below(share.denominator) < share.numerator;
    let action = actions.decide(&asked, hit, &mut NoObserver);
    Some(Box::new(action))
}

/// The edits of an endpoint's answer: those of the rule, and its session.
pub(super) fn answer_edits(
    conn: &Conn,
    snapshot: &Snapshot,
    plan: &Plan,
    endpoint: &EndpointState,
    edits: Option<&Arc<Edits>>,
    now: MonoNanos,
) -> Option<Arc<Edits>> {
    let (unix_s, secure) = (conn.core.unix_s(now), conn.scheme() == "https");
    let Some(session) = session::answer(snapshot, plan, endpoint, unix_s, secure) else {
        return edits.cloned();
    };
    let before = edits.map(|edits| Edits::clone(edits)).unwrap_or_default();
    Some(Arc::new(before.then(&session)))
}

/// Records how an attempt ended and logs what that changed.
pub(super) fn record(
    core: &Core,
    snapshot: &Snapshot,
    version: VersionIx,
    endpoint: &EndpointState,
    outcome: Outcome,
    now: MonoNanos,
) {
    if let Some(change) = snapshot.record(version, endpoint, outcome, now) {
        core.shared.telemetry.ejection(&change);
        tracing::info!(
            service = change.service,
            endpoint = %change.endpoint,
            what = ?change.what,
            "endpoint ejection"
        );
    }
}
