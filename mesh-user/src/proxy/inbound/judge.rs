//! What this agent dials for a workload of its own node: the destination's inbound rules are
//! applied here, and `steer` lets the dial through to the application. One pass past the proxy,
//! every rule once.

use std::sync::Arc;

use super::super::core::Conn;
use crate::{
    clock::MonoNanos,
    policy::{
        NoObserver, Reject, Snapshot, SourceIx,
        breaker::{Breaker, InboundPermit},
        rate_limit,
        request::{HeaderList, RequestView},
        route::Plan,
        snapshot::EndpointState,
    },
};

/// What the destination's inbound rules gave for an attempt. Holds its place among the requests in
/// flight until it is dropped.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Judged<'a> {
    /// Counts the connections to the application.
    pub(in crate::proxy) breaker: Option<&'a Arc<Breaker>>,
    _request: Option<InboundPermit>,
}

/// Applies the inbound rules of the workload that has the endpoint, if it is one of this node and
/// its second pass is collapsed.
///
/// # Errors
/// [`Reject::InboundDenied`], [`Reject::RateLimited`], [`Reject::OverflowRequests`].
pub(in crate::proxy) fn judge<'a>(
    conn: &Conn,
    snapshot: &'a Snapshot,
    source: Option<SourceIx>,
    endpoint: &EndpointState,
    now: MonoNanos,
) -> Result<Judged<'a>, Reject> {
    // What came in has been judged: it goes to the workload's own application.
    if conn.inbound.is_some() || !snapshot.judges_before_dialling() {
        return Ok(Judged::default());
    }
    let address = endpoint.address;
    let Some(workload) = conn.core.shared.origins.workload_at(address.ip()) else {
        return Ok(Judged::default());
    };
    // A workload's talk to itself is its own affair, also by way of a service.
    if workload == conn.workload.key {
        return Ok(Judged::default());
    }
    let Some(port) = snapshot.inbound_before_dialling(&workload, address.port()) else {
        return Ok(Judged::default());
    };
    let peer = snapshot.peer(conn.peer.ip(), source);
    snapshot.authorise(port, address.port(), &peer)?;
    let plan = Plan {
        port,
        rule: None,
        version: snapshot.port(port).all,
    };
    // Keys of inbound limits are about the source only.
    let none: Option<&RequestView<'_, HeaderList>> = None;
    let verdict = rate_limit::admit(snapshot, &plan, source, none, now, &mut NoObserver);
    if verdict.refused.is_some() {
        return Err(Reject::RateLimited);
    }
    let breaker = &snapshot.version(plan.version).breaker;
    Ok(Judged {
        breaker: Some(breaker),
        _request: Some(breaker.inbound_request()?),
    })
}
