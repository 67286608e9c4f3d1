//! What this agent dials for a workload of its own node: the destination's inbound rules are
//! applied here, and `steer` lets the dial through to the application. One pass past the proxy,
//! every rule once.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::super::{core::Conn, retry::Charged};
use crate::{
    clock::MonoNanos,
    policy::{
        NoObserver, PortIx, Reject, Snapshot, SourceIx,
        breaker::{Breaker, InboundPermit},
        inbound::BeforeDialling,
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
    /// Nothing was applied here: the connection comes to the destination's inbound listener.
    pub(in crate::proxy) second_pass: bool,
    _request: Option<InboundPermit>,
}

/// Applies the inbound rules of the workload that has the endpoint, if it is one of this node and
/// its second pass is collapsed. `charged`: the rate limits that the request has paid already.
///
/// # Errors
/// [`Reject::InboundDenied`], [`Reject::RateLimited`], [`Reject::OverflowRequests`].
pub(in crate::proxy) fn judge<'a>(
    conn: &Conn,
    snapshot: &'a Snapshot,
    source: Option<SourceIx>,
    endpoint: &EndpointState,
    charged: &mut Charged,
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
    let port = match snapshot.inbound_before_dialling(&workload, address.port()) {
        BeforeDialling::Nothing => return Ok(Judged::default()),
        BeforeDialling::SecondPass => {
            return Ok(Judged {
                second_pass: true,
                ..Judged::default()
            });
        }
        BeforeDialling::Judge(port) => port,
    };
    authorise(conn, snapshot, source, port, address)?;
    let version = snapshot.port(port).all;
    if charged.by(port) {
        admit(snapshot, source, port, now)?;
    }
    let breaker = &snapshot.version(version).breaker;
    Ok(Judged {
        breaker: Some(breaker),
        second_pass: false,
        _request: Some(breaker.inbound_request()?),
    })
}

/// By the address that the dial will have. The one that the client came with may be another: its
/// loopback (mode `loopback`), or one of the other family. Which one of several the dial leaves with
/// only its route says: it is the first as a rule, and none of them may be denied.
fn authorise(
    conn: &Conn,
    snapshot: &Snapshot,
    source: Option<SourceIx>,
    port: PortIx,
    to: SocketAddr,
) -> Result<(), Reject> {
    let known = conn.workload.sockets.addresses();
    let same = |ip: &&IpAddr| ip.is_ipv4() == to.ip().to_canonical().is_ipv4();
    let mut own = known.iter().filter(same).copied();
    let first = own.next().unwrap_or(conn.peer.ip());
    snapshot.authorise(port, to.port(), &snapshot.peer(first, source))?;
    if own.any(|other| snapshot.denies(port, &snapshot.peer(other, source))) {
        return Err(Reject::InboundDenied);
    }
    Ok(())
}

fn admit(
    snapshot: &Snapshot,
    source: Option<SourceIx>,
    port: PortIx,
    now: MonoNanos,
) -> Result<(), Reject> {
    let plan = Plan {
        port,
        rule: None,
        target: 0,
        version: snapshot.port(port).all,
        session: None,
    };
    // Keys of inbound limits are about the source only.
    let none: Option<&RequestView<'_, HeaderList>> = None;
    let verdict = rate_limit::admit(snapshot, &plan, source, none, now, &mut NoObserver);
    if verdict.refused.is_some() {
        return Err(Reject::RateLimited);
    }
    Ok(())
}
