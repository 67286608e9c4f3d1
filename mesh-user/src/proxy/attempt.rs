//! What every protocol does for an attempt: decide, and record how it ended.

use std::{rc::Rc, sync::Arc, time::Duration};

use super::{
    core::{Conn, Core, Place, Snap},
    http1::is_authority,
    inbound,
};
use crate::{
    clock::MonoNanos,
    model::action::Fraction,
    policy::{
        Client, HeaderView, NoObserver, Reject, RequestView, Snapshot, VersionIx,
        action::{Action, Asked, Edits, Then},
        balance,
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
    key: Option<u64>,
    tried: &[u64],
    now: MonoNanos,
) -> Result<Arc<EndpointState>, Reject> {
    if plan.session.is_some()
        && tried.is_empty()
        && let Some(endpoint) = session::endpoint(snapshot, plan, now)
    {
        return Ok(endpoint);
    }
    inbound::pick(conn, snapshot, plan.version, key, tried, now)
}

/// Route, version, rate limit: once for each request.
#[expect(
    clippy::result_large_err,
    reason = "a refusal is as common as an admission, and is never passed on far"
)]
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
    if let Some(reject) = verdict.reject() {
        return Err(Refused {
            plan: Some(plan),
            reject,
            verdict,
        });
    }
    let key = balance::key(snapshot, &plan, client(conn, place), Some(request));
    Ok(Admitted { plan, key, verdict })
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
    let mut action = actions.decide(&asked, hit, &mut NoObserver);
    if matches!(action.then, Then::Forward) && !can_be_sent(&action) {
        // Whatever a configuration says: no request is split in two by it.
        (action.authority, action.path) = (None, None);
        action.then = Then::Refuse(Reject::FilterUnresolved);
    }
    Some(Box::new(action))
}

/// Whether path and authority of a rewrite can stand in a request.
fn can_be_sent(action: &Action) -> bool {
    let is_path = |path: &str| {
        let is_of_path = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
        path.starts_with('/') && path.bytes().all(is_of_path)
    };
    let is_authority = |text: &str| !text.is_empty() && is_authority(text.as_bytes());
    action.path.as_deref().is_none_or(is_path)
        && action.authority.as_deref().is_none_or(is_authority)
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
