//! Getting a connection to an endpoint: an idle one, a new one, or a place in the queue.

use std::{future::poll_fn, io, rc::Rc, sync::Arc, task::Poll};

use tokio::net::TcpSocket;

use super::{
    age::Life,
    buffer::Buf,
    core::{Conn, Core, NodePermit},
    inbound::{Held, Judged, dial as app_dial},
    io::set_nodelay,
    pool::{Key, NODE, SECOND_PASS},
    socket::Socket,
    tls::{self, Inside},
    wire::WorkloadHandle,
};
use crate::{
    clock::{self, MonoNanos},
    model::{ConnectionPolicy, tls::Originate},
    policy::{
        Reject, Snapshot, VersionIx,
        breaker::{Breaker, ConnectionPermit},
        snapshot::{EndpointState, Outcome},
    },
    telemetry::{Handshake, TlsSide},
};

/// A connection to an endpoint with the permits that it holds for as long as it lives.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: Socket,
    /// What was read and not yet used.
    pub(super) buf: Buf,
    /// Whether it carried a request before.
    pub(super) reused: bool,
    pub(super) key: Key,
    pub(super) permits: Permits,
    pub(super) life: Life,
}

/// The rights that an upstream connection holds.
#[derive(Debug)]
pub(super) struct Permits {
    _connection: ConnectionPermit,
    /// Of the destination's inbound rules, where they were applied before the dial.
    _inbound: Option<ConnectionPermit>,
    _node: NodePermit,
    /// The port, where it is one of a client.
    port: Option<Held>,
}

/// Why no connection came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoConnection {
    /// A local cap or fault: says nothing about the endpoint.
    Local(Reject),
    /// The endpoint refused, or can't be reached.
    Failed,
    /// It did not answer in time.
    TimedOut,
    /// It answered, and then the handshake failed.
    Tls(Reject),
}

impl NoConnection {
    pub(super) const fn reject(self) -> Reject {
        match self {
            Self::Local(reject) | Self::Tls(reject) => reject,
            Self::Failed => Reject::ConnectFailed,
            Self::TimedOut => Reject::ConnectTimeout,
        }
    }

    /// What the endpoint's record says of it; none when the endpoint has no part in it.
    pub(super) const fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Local(_) => None,
            Self::Failed | Self::TimedOut | Self::Tls(_) => Some(Outcome::ConnectFailed),
        }
    }
}

/// Where an attempt goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) endpoint: &'a EndpointState,
    pub(super) breaker: &'a Arc<Breaker>,
    /// Counts the connection too: the destination's inbound rules, applied before the dial.
    pub(super) inbound: Option<&'a Arc<Breaker>>,
    pub(super) key: Key,
    pub(super) connect_timeout: std::time::Duration,
    pub(super) connection: ConnectionPolicy,
    /// TLS begins here, with these settings.
    pub(super) tls: Option<&'a Arc<Originate>>,
    /// What is spoken inside of it.
    pub(super) inside: Inside,
}

impl<'a> Target<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        version: VersionIx,
        endpoint: &'a EndpointState,
        conn: &Conn,
        judged: &Judged<'a>,
    ) -> Self {
        let plan = &snapshot.versions[version.0 as usize];
        let from_node = snapshot.ports[plan.port.0 as usize].dial_from_node;
        let tls = plan.effective.tls.value.as_ref();
        Self {
            key: Key {
                source: if from_node {
                    NODE
                } else {
                    conn.workload.pod_id
                },
                breaker: Arc::as_ptr(&plan.breaker).addr(),
                endpoint: endpoint.id,
                inbound: match judged.breaker {
                    Some(breaker) => Arc::as_ptr(breaker).addr(),
                    None if judged.second_pass => SECOND_PASS,
                    None => 0,
                },
                app: conn.inbound.as_ref().map(|inbound| inbound.app()),
                tls: tls.map_or(0, |tls| tls_id(&conn.core, tls)),
            },
            tls,
            inside: Inside::default(),
            breaker: &plan.breaker,
            inbound: judged.breaker,
            endpoint,
            connect_timeout: plan.connect_timeout,
            connection: plan.effective.connection.value,
        }
    }
}

/// What tells connections with other certificates and CAs apart. Those that can't be used have
/// none, and no connection comes about with them.
fn tls_id(core: &Core, settings: &Arc<Originate>) -> u64 {
    let client = core.shared.tls.client(settings);
    client.map_or(u64::MAX, |client| client.id)
}

/// Takes the permits if that needs no waiting; closes idle connections that stand in the way.
pub(super) fn permits_now(core: &Rc<Core>, target: &Target<'_>) -> Result<Permits, Reject> {
    let connection = now(core, target.breaker)?;
    let inbound = target
        .inbound
        .map(|breaker| now(core, breaker))
        .transpose()?;
    permits(core, connection, inbound)
}

fn permits(
    core: &Rc<Core>,
    connection: ConnectionPermit,
    inbound: Option<ConnectionPermit>,
) -> Result<Permits, Reject> {
    Ok(Permits {
        _connection: connection,
        _inbound: inbound,
        _node: node_permit(core)?,
        port: None,
    })
}

fn now(core: &Rc<Core>, breaker: &Arc<Breaker>) -> Result<ConnectionPermit, Reject> {
    match breaker.connection() {
        Err(_) if evict(core, Arc::as_ptr(breaker).addr()) => breaker.connection(),
        other => other,
    }
}

/// Closes one idle connection of this breaker, a mirror's first. Whether there was one.
fn evict(core: &Core, breaker: usize) -> bool {
    core.mirrors.evict_of_breaker(breaker) || core.pool.evict_of_breaker(breaker)
}

/// Takes the permits if there are any left: closes nothing and waits for nothing, for mirrors.
pub(super) fn permits_spare(core: &Rc<Core>, target: &Target<'_>) -> Result<Permits, Reject> {
    let inbound = target.inbound.map(Breaker::connection).transpose()?;
    Ok(Permits {
        _connection: target.breaker.connection()?,
        _inbound: inbound,
        _node: core.node_permit().ok_or(Reject::DialPermits)?,
        port: None,
    })
}

fn node_permit(core: &Rc<Core>) -> Result<NodePermit, Reject> {
    if let Some(permit) = core.node_permit() {
        return Ok(permit);
    }
    if !core.mirrors.evict_any() {
        core.pool.evict_any();
    }
    core.node_permit().ok_or(Reject::DialPermits)
}

/// Takes the permits, in the queue if need be: for requests. The endpoint's own cap comes last, so
/// that nobody who holds it waits for another one.
///
/// # Errors
/// [`Reject::OverflowPending`], [`Reject::DialPermits`].
pub(super) async fn permits_queued(
    core: &Rc<Core>,
    target: &Target<'_>,
) -> Result<Permits, Reject> {
    let connection = queued(core, target.breaker).await?;
    let inbound = match target.inbound {
        Some(breaker) => Some(queued(core, breaker).await?),
        None => None,
    };
    permits(core, connection, inbound)
}

async fn queued(core: &Rc<Core>, breaker: &Arc<Breaker>) -> Result<ConnectionPermit, Reject> {
    match now(core, breaker) {
        Err(Reject::OverflowConnections) => {}
        other => return other,
    }
    let address = Arc::as_ptr(breaker).addr();
    let mut place = breaker.pending()?;
    let mut asked = false;
    let connection = poll_fn(|cx| {
        let turn = breaker.poll_connection(&mut place, cx);
        if turn.is_pending() && !asked {
            // Only after the place in the queue is known: a worker that gets this message late
            // sees the waiter when it next puts a connection aside.
            asked = true;
            core.h2.evict_of_breaker(address);
            core.ask_peers_to_evict(address);
        }
        turn
    })
    .await;
    Ok(connection)
}

/// Connects to an endpoint with permits at hand.
///
/// # Errors
/// See [`NoConnection`].
pub(super) async fn dial(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    target: &Target<'_>,
    mut permits: Permits,
) -> Result<Upstream, NoConnection> {
    if let Some(app) = target.key.app {
        let (stream, port) = app_dial::connect(core, workload, app, target.connect_timeout).await?;
        permits.port = port;
        set_nodelay(&stream);
        return Ok(upstream(core, stream.into(), target, permits));
    }
    // Before anything is dialled in vain.
    let client = match target.tls {
        None => None,
        Some(settings) => match core.shared.tls.client(settings) {
            None => return Err(NoConnection::Local(Reject::NoCertificate)),
            client => client,
        },
    };
    let started = clock::now();
    let sockets = if target.key.source == NODE {
        &core.shared.node_sockets
    } else {
        &workload.sockets
    };
    let address = target.endpoint.address;
    let fd = sockets
        .tcp_socket(address)
        .map_err(|error| NoConnection::Local(local(&error)))?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(fd));
    let stream = match tokio::time::timeout(target.connect_timeout, socket.connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(match error.kind() {
                io::ErrorKind::TimedOut => NoConnection::TimedOut,
                // No local port is left: the endpoint has no part in it.
                io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => {
                    NoConnection::Local(Reject::DialPermits)
                }
                _ => NoConnection::Failed,
            });
        }
        Err(_elapsed) => return Err(NoConnection::TimedOut),
    };
    set_nodelay(&stream);
    let Some(client) = client else {
        return Ok(upstream(core, stream.into(), target, permits));
    };
    // Boxed: rare, and large beside a dial without.
    let shaking = Box::pin(tls::connect(
        stream,
        &client,
        target.inside,
        &core.shared.telemetry,
    ));
    let left = target
        .connect_timeout
        .saturating_sub(clock::now().since(started));
    match tokio::time::timeout(left, shaking).await {
        Ok(socket) => {
            let mut upstream = upstream(core, socket?, target, permits);
            upstream.key.tls = client.id;
            Ok(upstream)
        }
        Err(_elapsed) => {
            let telemetry = &core.shared.telemetry;
            telemetry.tls_handshake(TlsSide::Endpoint, Handshake::TimedOut);
            Err(NoConnection::TimedOut)
        }
    }
}

fn upstream(core: &Core, stream: Socket, target: &Target<'_>, permits: Permits) -> Upstream {
    Upstream {
        stream,
        buf: Buf::default(),
        reused: false,
        key: target.key,
        permits,
        life: Life::new(target.connection, &mut core.rng.borrow_mut()),
    }
}

/// A socket that could not be made: out of descriptors, or the namespace is gone.
pub(super) fn local(error: &io::Error) -> Reject {
    local_fault(error).unwrap_or(Reject::ConnectFailed)
}

/// Out of descriptors or memory, if that is what it is.
pub(super) fn local_fault(error: &io::Error) -> Option<Reject> {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            Some(Reject::DialPermits)
        }
        _ => None,
    }
}

/// A new connection for a request: waits in the queue when the version has no connection left.
/// `fresh`: an idle one will not do.
pub(super) async fn connect_queued(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    target: &Target<'_>,
    fresh: bool,
) -> Result<Upstream, NoConnection> {
    let permits = permits_queued(core, target)
        .await
        .map_err(NoConnection::Local)?;
    // A connection may have come back while this one stood in the queue.
    if !fresh && let Some(upstream) = core.pool.take(&target.key, true) {
        return Ok(upstream);
    }
    dial(core, workload, target, permits).await
}

/// A new connection for an opaque connection: refused when the version has none left.
pub(super) async fn connect_now(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    target: &Target<'_>,
) -> Result<Upstream, NoConnection> {
    let permits = permits_now(core, target).map_err(NoConnection::Local)?;
    dial(core, workload, target, permits).await
}

/// Puts a connection aside for the next request, unless somebody waits for its permit.
pub(super) fn put_back(core: &Core, target: &Target<'_>, mut upstream: Upstream, now: MonoNanos) {
    upstream.life.spend();
    if upstream.life.is_over() {
        return;
    }
    let waited = target.inbound.is_some_and(|breaker| breaker.has_waiters());
    if core.draining.get() || waited || target.breaker.has_waiters() {
        return;
    }
    core.pool
        .put(upstream, core.limits().upstream_idle_max as usize, now);
}

/// Watches idle connections for the life of the worker.
pub(super) async fn watch_idle(core: Rc<Core>) {
    poll_fn(|cx| {
        core.pool.poll_watch(cx);
        Poll::<()>::Pending
    })
    .await;
}
