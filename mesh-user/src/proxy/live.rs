//! What a worker can tell of its open connections: `mesh explain --live`.
//!
//! Written once a request, on the thread that reads it, so cells do. A decision is kept with a weak
//! hand on its snapshot: an idle connection must not keep an old configuration in memory.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{
    core::{Conn, Core, Snap},
    record::RequestLog,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{Reject, RuleIx, Snapshot, SourceIx, VersionIx},
    telemetry::{Direction, LiveConnection, LiveDecision, Spoken},
};

/// Connections that one worker describes at most: a question must not hold it up for long.
const DESCRIBED_MAX: usize = 4_096;

/// What the worker's control task knows of an open connection.
#[derive(Debug, Default)]
pub(super) struct Watched {
    idle: Cell<bool>,
    conn: RefCell<Weak<Conn>>,
}

impl Watched {
    /// Whether it is between requests: may be closed without harm.
    pub(super) fn set(&self, idle: bool) {
        self.idle.set(idle);
    }

    pub(super) fn get(&self) -> bool {
        self.idle.get()
    }

    fn conn(&self) -> Option<Rc<Conn>> {
        self.conn.borrow().upgrade()
    }
}

/// What can be told of a connection besides who it is.
#[derive(Debug, Default)]
pub(super) struct Told {
    spoken: Cell<Option<Spoken>>,
    requests: Cell<u32>,
    last: RefCell<Option<Last>>,
}

/// Kept small: every idle connection has one.
#[derive(Debug)]
struct Last {
    snapshot: Weak<Arc<Snapshot>>,
    at: MonoNanos,
    generation: u32,
    source: Option<SourceIx>,
    rule: Option<RuleIx>,
    version: Option<VersionIx>,
    /// Port 0: none.
    endpoint: ([u8; 16], u16),
    status: u16,
    reject: Option<Reject>,
}

/// An endpoint's address in few bytes; scopes and flow labels are no part of one.
fn pack(endpoint: Option<SocketAddr>) -> ([u8; 16], u16) {
    let Some(endpoint) = endpoint else {
        return ([0; 16], 0);
    };
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    (ip.octets(), endpoint.port())
}

fn unpack((octets, port): ([u8; 16], u16)) -> Option<SocketAddr> {
    let ip = IpAddr::from(octets).to_canonical();
    (port > 0).then(|| SocketAddr::new(ip, port))
}

impl Conn {
    /// Its protocol is known.
    pub(super) fn told_protocol(self: &Rc<Self>, spoken: Spoken) {
        *self.idle.conn.borrow_mut() = Rc::downgrade(self);
        self.told.spoken.set(Some(spoken));
    }
}

impl Told {
    /// A request began.
    pub(super) fn counted(&self) {
        self.requests.set(self.requests.get().saturating_add(1));
    }

    /// A request goes to an endpoint, or has ended.
    pub(super) fn request(&self, log: &RequestLog, now: MonoNanos) {
        *self.last.borrow_mut() = Some(Last {
            snapshot: Rc::downgrade(&log.snapshot),
            generation: log.snapshot.generation as u32,
            source: log.source,
            rule: log.rule,
            version: log.version,
            endpoint: pack(log.endpoint),
            status: log.status,
            reject: log.reject,
            at: now,
        });
    }

    /// An opaque connection goes to an endpoint.
    pub(super) fn connection(
        &self,
        snapshot: &Snap,
        (source, rule, version): (Option<SourceIx>, Option<RuleIx>, Option<VersionIx>),
        endpoint: Option<SocketAddr>,
        now: MonoNanos,
    ) {
        *self.last.borrow_mut() = Some(Last {
            snapshot: Rc::downgrade(snapshot),
            generation: snapshot.generation as u32,
            source,
            rule,
            version,
            endpoint: pack(endpoint),
            status: 0,
            reject: None,
            at: now,
        });
    }
}

fn describe(conn: &Conn, now: MonoNanos) -> LiveConnection {
    let millis = |since: MonoNanos| u64::try_from(now.since(since).as_millis()).unwrap_or(0);
    let protocol = conn.told.spoken.get().map(|spoken| match spoken {
        Spoken::Http1 => "http/1",
        Spoken::Http2 | Spoken::Grpc => "http/2",
        Spoken::Tcp => "tcp",
    });
    let in_force = conn.core.snapshot().0.generation;
    LiveConnection {
        worker: conn.core.index,
        direction: match conn.direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
        .to_owned(),
        workload: conn.workload.key.to_string(),
        peer: conn.peer,
        destination: conn.destination,
        protocol: protocol.map(str::to_owned),
        age_ms: millis(conn.opened),
        requests: conn.told.requests.get().into(),
        idle: conn.idle.get(),
        last: conn.told.last.borrow().as_ref().map(|last| LiveDecision {
            age_ms: millis(last.at),
            ..last.describe(in_force)
        }),
    }
}

impl Last {
    fn describe(&self, in_force: u64) -> LiveDecision {
        let snapshot = self.snapshot.upgrade();
        let snapshot = snapshot.as_deref();
        let version = snapshot
            .zip(self.version)
            .map(|(snapshot, version)| snapshot.version(version));
        let name = |text: &Arc<str>| text.to_string();
        LiveDecision {
            generation: self.generation.into(),
            current: u64::from(self.generation) == in_force & u64::from(u32::MAX),
            source: snapshot
                .zip(self.source)
                .map(|(snapshot, source)| name(&snapshot.source_of(source).key)),
            rule: snapshot
                .zip(self.rule)
                .map(|(snapshot, rule)| snapshot.rule(rule).name.to_string()),
            service: snapshot
                .zip(version)
                .map(|(snapshot, version)| name(&snapshot.port(version.port).key)),
            version: version.map(|version| name(&version.name)),
            endpoint: unpack(self.endpoint),
            status: (self.status > 0).then_some(self.status),
            reject: self.reject.map(|reject| reject.label().to_owned()),
            age_ms: 0,
        }
    }
}

/// A question to one worker.
#[derive(Debug)]
pub(super) struct Describe {
    /// Only connections of this client; none: all.
    pub(super) peer: Option<SocketAddr>,
    pub(super) answer: mpsc::Sender<Vec<LiveConnection>>,
}

impl Describe {
    pub(super) fn reply(&self, core: &Core) {
        let now = clock::now();
        let slots = core.slots.borrow();
        let mut told: Vec<_> = slots
            .values()
            .filter_map(|slot| slot.idle.conn())
            .filter(|conn| self.peer.is_none_or(|peer| peer == conn.peer))
            .take(DESCRIBED_MAX)
            .map(|conn| describe(&conn, now))
            .collect();
        told.sort_by_key(|connection| std::cmp::Reverse(connection.age_ms));
        // Who asked may have stopped waiting.
        let _gone = self.answer.send(told);
    }
}

/// How long a worker may take to answer: one that is hung doesn't.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
