//! What one worker's tasks share: the snapshot, the pools, the cursors. One thread, so `Rc` and
//! `RefCell`, no locks. What all workers share is in [`Shared`].

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, mpsc::UnboundedSender},
    task::AbortHandle,
};

use super::{
    inbound::{self, Inbound, Ports},
    live::{Told, Watched},
    pool::Pool,
    tls,
    wire::{OriginLookup, SocketSource, WorkloadHandle},
    worker::Order,
};
use crate::{
    clock::{self, MonoNanos},
    config::Limits,
    policy::{PortIx, Snapshot, SourceIx, rng::Rng, split::Cursors},
    telemetry::{Direction, Telemetry},
};

/// A worker's view of the snapshot in force: cloning it touches no shared cache line.
pub(super) type Snap = Rc<Arc<Snapshot>>;

/// What all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The snapshot in force.
    pub(super) snapshot: ArcSwap<Snapshot>,
    /// Counts swaps: a worker looks at this, not at the pointer.
    pub(super) swaps: AtomicU64,
    /// Upstream connections of the node.
    pub(super) upstream: AtomicU32,
    /// Limits of the data path.
    pub(super) limits: ArcSwap<Limits>,
    /// For the original destination.
    pub(super) origins: Arc<dyn OriginLookup>,
    /// Dials from the agent's own namespace.
    pub(super) node_sockets: Arc<dyn SocketSource>,
    /// Stores of rate limits that are shared with other nodes.
    pub(super) stores: super::stores::Stores,
    /// Metrics and access log.
    pub(super) telemetry: Arc<Telemetry>,
    /// Certificates, keys and CAs.
    pub(super) tls: Arc<tls::Store>,
    /// Each worker's last turn, CLOCK_MONOTONIC in nanoseconds.
    pub(super) ticks: Vec<AtomicU64>,
}

/// The right to one upstream connection of the node.
#[derive(Debug)]
#[must_use]
pub(super) struct NodePermit(Rc<Core>);

impl Drop for NodePermit {
    fn drop(&mut self) {
        self.0.shared.upstream.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Current {
    swaps: u64,
    snapshot: Snap,
    limits: Rc<Limits>,
}

/// One open downstream connection, as the worker's control task sees it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) pod_id: u32,
    pub(super) abort: AbortHandle,
    pub(super) idle: Rc<Watched>,
}

/// What one worker's tasks share.
#[derive(Debug)]
pub(super) struct Core {
    /// Which worker.
    pub(super) index: usize,
    /// What all workers share.
    pub(super) shared: Arc<Shared>,
    /// The other workers, for requests to free a connection.
    pub(super) peers: Vec<UnboundedSender<Order>>,
    current: RefCell<Current>,
    /// What turns the monotonic clock into seconds since the epoch; as of the last swap.
    epoch: Cell<Duration>,
    /// Split positions.
    pub(super) cursors: RefCell<Cursors>,
    /// Randomness for the policy.
    pub(super) rng: RefCell<Rng>,
    /// Idle upstream connections.
    pub(super) pool: Pool,
    /// Shared HTTP/2 upstream connections.
    pub(super) h2: super::http2::client::Connections,
    /// Long connections that follow changes.
    pub(super) flows: super::flows::Flows,
    /// Copies of requests.
    pub(super) mirrors: super::mirror::Mirrors,
    /// Source ports of dials to applications.
    pub(super) app_ports: Ports,
    /// Open downstream connections, by number.
    pub(super) slots: RefCell<HashMap<u64, Slot>>,
    next_slot: Cell<u64>,
    /// Set once: requests in flight end, nothing new begins.
    pub(super) draining: Cell<bool>,
    /// Set later in a drain: idle HTTP/1 connections are closed too.
    pub(super) grace_over: Cell<bool>,
    /// Wakes what waits for `draining`.
    pub(super) drained: Notify,
    /// Wakes the end of a drain when the last connection has gone.
    pub(super) emptied: Notify,
    /// How often accepting paused because no descriptor was left.
    pub(super) accept_pauses: Cell<u64>,
}

impl Core {
    pub(super) fn new(
        index: usize,
        shared: Arc<Shared>,
        peers: Vec<UnboundedSender<Order>>,
        seed: u64,
    ) -> Rc<Self> {
        let swaps = shared.swaps.load(Ordering::Acquire);
        let snapshot = Rc::new(shared.snapshot.load_full());
        let limits = Rc::new(Limits::clone(&shared.limits.load()));
        Rc::new(Self {
            index,
            peers,
            current: RefCell::new(Current {
                swaps,
                snapshot,
                limits,
            }),
            epoch: Cell::new(clock::epoch()),
            cursors: RefCell::default(),
            rng: RefCell::new(Rng::new(seed)),
            pool: Pool::default(),
            h2: super::http2::client::Connections::default(),
            flows: super::flows::Flows::default(),
            mirrors: super::mirror::Mirrors::default(),
            app_ports: Ports::default(),
            slots: RefCell::default(),
            next_slot: Cell::new(0),
            draining: Cell::new(false),
            grace_over: Cell::new(false),
            drained: Notify::new(),
            emptied: Notify::new(),
            accept_pauses: Cell::new(0),
            shared,
        })
    }

    /// Limits of the data path, as of this worker's last look at the snapshot.
    pub(super) fn limits(&self) -> Rc<Limits> {
        Rc::clone(&self.current.borrow().limits)
    }

    /// The snapshot in force, and the swap count that it belongs to. One atomic load when nothing
    /// changed.
    pub(super) fn snapshot(&self) -> (Snap, u64) {
        let swaps = self.shared.swaps.load(Ordering::Acquire);
        let mut current = self.current.borrow_mut();
        if current.swaps != swaps {
            self.epoch.set(clock::epoch());
            // The count is read first: a swap in between is seen at the next look.
            *current = Current {
                swaps,
                snapshot: Rc::new(self.shared.snapshot.load_full()),
                limits: Rc::new(Limits::clone(&self.shared.limits.load())),
            };
        }
        (Rc::clone(&current.snapshot), swaps)
    }

    /// A point of the monotonic clock in seconds since the epoch, without reading a clock.
    pub(super) fn unix_s(&self, at: MonoNanos) -> u64 {
        (self.epoch.get() + Duration::from_nanos(at.0)).as_secs()
    }

    /// Takes the right to one more upstream connection of the node, if there is one left.
    pub(super) fn node_permit(self: &Rc<Self>) -> Option<NodePermit> {
        let max = self.limits().upstream_connections_max;
        let taken = self
            .shared
            .upstream
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < max).then_some(n + 1)
            });
        taken.ok().map(|_| NodePermit(Rc::clone(self)))
    }

    /// A number for a new downstream connection.
    pub(super) fn next_slot(&self) -> u64 {
        let slot = self.next_slot.get();
        self.next_slot.set(slot + 1);
        slot
    }

    /// Asks the other workers to close one idle connection each that holds a permit of this
    /// breaker, because somebody here waits for one.
    pub(super) fn ask_peers_to_evict(&self, breaker: usize) {
        for peer in &self.peers {
            // A worker that has ended holds no connections.
            let _ended = peer.send(Order::Evict { breaker });
        }
    }
}

/// Where a connection goes, looked up again only when the snapshot changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    swaps: u64,
    /// The service port, or the inbound port of the workload; none: the destination is not in the
    /// model.
    pub(super) port: Option<PortIx>,
    /// The workload that asks, where it is one of this node.
    pub(super) source: Option<SourceIx>,
}

impl Place {
    /// In this snapshot, which came with this count of [`Core::snapshot`]: the indexes are good
    /// for no other.
    pub(super) fn find(snapshot: &Snapshot, swaps: u64, conn: &Conn) -> Self {
        let (workload, at) = (&conn.workload.key, conn.destination);
        if conn.direction == Direction::Inbound {
            return Self {
                swaps,
                port: snapshot.inbound_at(workload, at.port()),
                source: inbound::source(&conn.core, snapshot, conn.peer.ip()),
            };
        }
        Self {
            swaps,
            port: snapshot.port_at(at.ip(), at.port()),
            source: snapshot.source(workload),
        }
    }

    /// The snapshot in force, with this place found in it.
    pub(super) fn refresh(&mut self, conn: &Conn) -> Snap {
        let (snapshot, swaps) = conn.core.snapshot();
        if swaps != self.swaps {
            *self = Self::find(&snapshot, swaps, conn);
        }
        snapshot
    }
}

/// One accepted connection: who, where to, since when.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) core: Rc<Core>,
    pub(super) workload: Arc<WorkloadHandle>,
    pub(super) peer: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) opened: MonoNanos,
    pub(super) direction: Direction,
    /// For a connection that came to the workload and can be passed on.
    pub(super) inbound: Option<Inbound>,
    /// Between requests: may be closed without harm.
    pub(super) idle: Rc<Watched>,
    pub(super) told: Told,
    /// For a connection that speaks TLS, once that is known.
    pub(super) tls: OnceCell<Box<tls::Seen>>,
}

impl Conn {
    /// The host name that a client of TLS means, where it said one.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.tls.get()?.server_name.as_deref()
    }

    /// Whether the client's TLS ended here: what it asks for is `https`.
    pub(super) fn is_secure(&self) -> bool {
        self.tls.get().is_some_and(|tls| tls.terminated)
    }
}

impl Conn {
    /// What the client speaks to us: `http` or `https`.
    pub(super) fn scheme(&self) -> &'static str {
        if self.is_secure() { "https" } else { "http" }
    }
}

impl Conn {
    /// When it is to be closed for its age, with jitter: connections that began together don't
    /// end together.
    pub(super) fn expires(&self, limits: &Limits) -> MonoNanos {
        if limits.downstream_age_max.is_zero() {
            return super::timer::NEVER;
        }
        let seed = self.opened.0 ^ (u64::from(self.peer.port()) << 48);
        super::age::expiry(
            self.opened,
            limits.downstream_age_max,
            limits.downstream_age_jitter,
            Rng::new(seed).next_u64(),
        )
    }

    /// Whether its time is over.
    pub(super) fn is_aged(&self, limits: &Limits) -> bool {
        !limits.downstream_age_max.is_zero() && clock::now() >= self.expires(limits)
    }
}

/// An address in its own family: v4-mapped becomes IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
