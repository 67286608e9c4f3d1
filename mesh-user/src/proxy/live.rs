//! What a worker can tell of its open connections: `mesh explain --live`.
//!
//! Written once a request, on the thread that reads it, so cells do. A decision is kept with a weak
//! hand on its snapshot: an idle connection must not keep an old configuration in memory.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::{Arc, mpsc},
    time::Duration,
};

use super::{
    core::{Conn, Core, Snap},
    record::RequestLog,
    wire::WorkloadHandle,
};
use crate::{
    clock::{self, MonoNanos},
    policy::{Reject, RuleIx, Snapshot, SourceIx, VersionIx},
    telemetry::{Direction, LiveConnection, LiveDecision, Spoken},
};

/// Connections that one worker describes at most: a question must not hold it up for long.
const DESCRIBED_MAX: usize = 4_096;

/// What is known of an open connection. Shared by its task and the worker's control task.
#[derive(Debug)]
pub(super) struct Watched {
    workload: Arc<WorkloadHandle>,
    direction: Direction,
    peer: SocketAddr,
    opened: MonoNanos,
    idle: Cell<bool>,
    destination: Cell<Option<SocketAddr>>,
    spoken: Cell<Option<Spoken>>,
    requests: Cell<u64>,
    last: RefCell<Option<Last>>,
}

#[derive(Debug)]
struct Last {
    snapshot: Weak<Arc<Snapshot>>,
    generation: u64,
    source: Option<SourceIx>,
    rule: Option<RuleIx>,
    version: Option<VersionIx>,
    endpoint: Option<SocketAddr>,
    status: u16,
    reject: Option<Reject>,
    at: MonoNanos,
}

impl Watched {
    pub(super) fn new(
        workload: &Arc<WorkloadHandle>,
        direction: Direction,
        peer: SocketAddr,
        opened: MonoNanos,
    ) -> Rc<Self> {
        Rc::new(Self {
            workload: Arc::clone(workload),
            direction,
            peer,
            opened,
            idle: Cell::new(false),
            destination: Cell::new(None),
            spoken: Cell::new(None),
            requests: Cell::new(0),
            last: RefCell::new(None),
        })
    }

    /// Whether it is between requests: may be closed without harm.
    pub(super) fn set(&self, idle: bool) {
        self.idle.set(idle);
    }

    pub(super) fn get(&self) -> bool {
        self.idle.get()
    }

    /// Its protocol is known.
    pub(super) fn opened(&self, conn: &Conn, spoken: Spoken) {
        self.destination.set(Some(conn.destination));
        self.spoken.set(Some(spoken));
    }

    /// A request began.
    pub(super) fn counted(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// A request goes to an endpoint, or has ended.
    pub(super) fn request(&self, log: &RequestLog, now: MonoNanos) {
        *self.last.borrow_mut() = Some(Last {
            snapshot: Rc::downgrade(&log.snapshot),
            generation: log.snapshot.generation,
            source: log.source,
            rule: log.rule,
            version: log.version,
            endpoint: log.endpoint,
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
            generation: snapshot.generation,
            source,
            rule,
            version,
            endpoint,
            status: 0,
            reject: None,
            at: now,
        });
    }

    fn describe(&self, core: &Core, now: MonoNanos) -> LiveConnection {
        let millis = |since: MonoNanos| u64::try_from(now.since(since).as_millis()).unwrap_or(0);
        let protocol = self.spoken.get().map(|spoken| match spoken {
            Spoken::Http1 => "http/1",
            Spoken::Http2 | Spoken::Grpc => "http/2",
            Spoken::Tcp => "tcp",
        });
        let in_force = core.snapshot().0.generation;
        LiveConnection {
            worker: core.index,
            direction: match self.direction {
                Direction::Outbound => "outbound",
                Direction::Inbound => "inbound",
            }
            .to_owned(),
            workload: self.workload.key.to_string(),
            peer: self.peer,
            destination: self.destination.get().unwrap_or(self.peer),
            protocol: protocol.map(str::to_owned),
            age_ms: millis(self.opened),
            requests: self.requests.get(),
            idle: self.idle.get(),
            last: self.last.borrow().as_ref().map(|last| LiveDecision {
                age_ms: millis(last.at),
                ..last.describe(in_force)
            }),
        }
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
            generation: self.generation,
            current: self.generation == in_force,
            source: snapshot
                .zip(self.source)
                .map(|(snapshot, source)| name(&snapshot.source_of(source).key)),
            rule: snapshot
                .zip(self.rule)
                .map(|(snapshot, rule)| name(&snapshot.rule(rule).name)),
            service: snapshot
                .zip(version)
                .map(|(snapshot, version)| name(&snapshot.port(version.port).key)),
            version: version.map(|version| name(&version.name)),
            endpoint: self.endpoint,
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
            .filter(|slot| self.peer.is_none_or(|peer| peer == slot.idle.peer))
            .take(DESCRIBED_MAX)
            .map(|slot| slot.idle.describe(core, now))
            .collect();
        told.sort_by_key(|connection| std::cmp::Reverse(connection.age_ms));
        // Who asked may have stopped waiting.
        let _gone = self.answer.send(told);
    }
}

/// How long a worker may take to answer: one that is hung doesn't.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);
