//! Connections that come to a workload: accepted in its namespace, judged by its inbound rules,
//! passed on to its application with the client's own address.
//!
//! The engines are those of the other direction. What differs is here: the port comes from the
//! workload instead of the destination, the source from the peer's address instead of the listener,
//! the endpoint is the application at the address that was dialled ([`Inbound`]), and the dial
//! spoofs the client ([`dial`]). What this agent dials for a client of the same node is judged
//! before it is dialled ([`judge`]), unless the destination wants a second pass.

pub(super) mod dial;
mod judge;
mod ports;

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

pub(super) use judge::{Judged, judge};
pub(super) use ports::{Held, Ports};

use super::core::{Conn, Core};
use crate::{
    clock::MonoNanos,
    policy::{PortIx, Reject, Snapshot, SourceIx, VersionIx, balance, snapshot::EndpointState},
};

/// The dial to an application: for whom, and where to. Connections are pooled by it, so that no
/// client's requests ever travel under another one's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct App {
    pub(super) client: IpAddr,
    pub(super) to: SocketAddr,
}

/// What a connection that comes in has beside what every connection has.
#[derive(Debug)]
pub(super) struct Inbound {
    endpoint: Arc<EndpointState>,
    app: App,
    /// Keeps the client's port from being chosen for a dial.
    _live: Held,
}

impl Inbound {
    /// Of an accepted connection; both addresses in their own family.
    ///
    /// # Errors
    /// [`Reject::Loop`]: it is a dial of ours that came back, or it goes to the listener itself.
    /// Passing it on would go round for ever.
    pub(super) fn new(
        core: &Rc<Core>,
        listener: SocketAddr,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Result<Self, Reject> {
        let app = App {
            client: peer.ip(),
            to: local,
        };
        let itself = local.port() == listener.port()
            && (listener.ip().is_unspecified() || listener.ip() == local.ip());
        if itself || peer.ip() == local.ip() || core.app_ports.dialled(app, peer.port()) {
            return Err(Reject::Loop);
        }
        let endpoint = Arc::new(EndpointState {
            // Never compared: pools know the application by its address.
            id: 0,
            address: local,
            tags: EndpointState::no_tags(),
            identity: None,
            weight: 1,
            healthy: true,
            priority: 0,
            locality: None,
            since: MonoNanos(0),
            live: Arc::default(),
        });
        Ok(Self {
            endpoint,
            app,
            _live: Ports::hold(core, app, peer.port()),
        })
    }

    pub(super) const fn app(&self) -> App {
        self.app
    }
}

/// The workload of this node that an inbound connection comes from, if it is one.
pub(super) fn source(core: &Core, snapshot: &Snapshot, peer: IpAddr) -> Option<SourceIx> {
    let key = core.shared.origins.workload_at(peer)?;
    snapshot.source(&key)
}

/// Whether the client of an inbound connection may come in; always so in the other direction.
///
/// # Errors
/// [`Reject::InboundDenied`].
pub(super) fn authorise(
    conn: &Conn,
    snapshot: &Snapshot,
    port: PortIx,
    source: Option<SourceIx>,
) -> Result<(), Reject> {
    if conn.inbound.is_none() {
        return Ok(());
    }
    let peer = snapshot.peer(conn.peer.ip(), source);
    snapshot.authorise(port, conn.destination.port(), &peer)
}

/// The endpoint of an attempt: the application itself, or the balancer's choice.
///
/// # Errors
/// As [`balance::pick_by`].
pub(super) fn pick(
    conn: &Conn,
    snapshot: &Snapshot,
    version: VersionIx,
    key: Option<u64>,
    tried: &[u64],
    now: MonoNanos,
) -> Result<Arc<EndpointState>, Reject> {
    match &conn.inbound {
        Some(inbound) => Ok(Arc::clone(&inbound.endpoint)),
        None => {
            let mut rng = conn.core.rng.borrow_mut();
            balance::pick_by(snapshot, version, key, tried, &mut rng, now)
        }
    }
}
