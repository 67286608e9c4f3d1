//! Copies of requests for a mirror: sent beside the primary, answered to nobody.
//!
//! A mirror never slows or fails its primary. It has tasks, connections and time-outs of its own;
//! whoever forwards the primary hands bytes over ([`Tee`]) and never waits. Everything is bounded
//! for each worker: how many mirrors are in flight, how many body bytes wait for them, how many
//! connections lie idle. At a bound the mirror is skipped or given up and counted, and the primary
//! goes on. The endpoints of a mirror are picked and counted as for any request, but the record
//! that ejects them hears nothing of mirrors.
//!
//! The engines call [`begin`] with the mirrors that the rule's actions drew for the request.

mod body;
mod compare;
mod exchange;
mod idle;
mod send;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use http::Request;
use tokio::task::AbortHandle;

pub(super) use body::Tee;
pub(super) use compare::Comparison;

use self::{body::Queue, compare::Pair, idle::Idle, send::Sent};
use super::{
    accept::guarded,
    core::{Conn, Core, Snap},
};
use crate::{
    clock::MonoNanos,
    policy::{SourceIx, action::MirrorPlan},
    telemetry::mirror::{MirrorCounts, MirrorResult},
};

/// Mirrors in flight on a worker; each holds at most 128 KiB of its connection's buffers besides.
const IN_FLIGHT_MAX: usize = 256;
/// Body bytes that wait for the mirrors of a worker.
const BUFFERED_BYTES_MAX: usize = 16 << 20;
/// Body bytes that wait for one mirror: what a fast primary takes while its shadow is dialled.
const MIRROR_BYTES_MAX: usize = 1 << 20;
/// Counters that a worker remembers. Above it starts anew: a cache, not a record.
const COUNTS_KEPT_MAX: usize = 1024;

/// What a worker knows of its mirrors.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    running: RefCell<HashMap<u64, Running>>,
    next: Cell<u64>,
    /// Body bytes that wait.
    buffered: Rc<Cell<usize>>,
    idle: Idle,
    counts: RefCell<HashMap<Arc<str>, Arc<MirrorCounts>>>,
}

#[derive(Debug)]
struct Running {
    pod_id: u32,
    task: Option<AbortHandle>,
}

/// A place among the mirrors in flight.
struct Place {
    core: Rc<Core>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.core.mirrors.running.borrow_mut().remove(&self.number);
    }
}

impl Mirrors {
    /// Lets go of everything that left from this workload's namespace.
    pub(super) fn release(&self, pod_id: u32) {
        self.abort_where(|running| running.pod_id == pod_id);
        self.idle.drop_where(|key| key.source == pod_id);
    }

    /// Lets go of everything.
    pub(super) fn clear(&self) {
        self.abort_where(|_| true);
        self.idle.drop_where(|_| true);
    }

    /// Closes one idle connection of this breaker. Whether there was one.
    pub(super) fn evict_of_breaker(&self, breaker: usize) -> bool {
        self.idle.evict(|key| key.counted_by(breaker))
    }

    /// Closes one idle connection. Whether there was one.
    pub(super) fn evict_any(&self) -> bool {
        self.idle.evict(|_| true)
    }

    /// Closes idle connections that have been so for long.
    pub(super) fn expire(&self, now: MonoNanos) {
        self.idle.expire(now);
    }

    fn abort_where(&self, which: impl Fn(&Running) -> bool) {
        // The task's end takes the place out of the list, later.
        for running in self.running.borrow().values().filter(|it| which(it)) {
            if let Some(task) = &running.task {
                task.abort();
            }
        }
    }

    fn counts(&self, core: &Core, service: &Arc<str>) -> Arc<MirrorCounts> {
        let mut counts = self.counts.borrow_mut();
        if counts.len() >= COUNTS_KEPT_MAX && !counts.contains_key(service) {
            counts.clear();
        }
        let new = || core.shared.telemetry.mirror_counts(service);
        Arc::clone(counts.entry(Arc::clone(service)).or_insert_with(new))
    }
}

/// What the client speaks: its copy is sent in the same version of HTTP, unless the mirror's port
/// says that it speaks HTTP/2 only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// What an engine has to do for the mirrors of a request.
#[derive(Debug)]
pub(super) struct Begun {
    /// Gets the body as it is forwarded.
    pub(super) tee: Tee,
    /// Gets the primary's answer, where somebody wants to compare it.
    pub(super) compare: Option<Rc<Comparison>>,
}

/// A request of which mirrors are made.
pub(super) struct Original<'a> {
    pub(super) conn: &'a Rc<Conn>,
    pub(super) snapshot: &'a Snap,
    pub(super) source: Option<SourceIx>,
    pub(super) spoken: Spoken,
    /// It asks for another protocol: what follows is no body.
    pub(super) upgrades: bool,
    /// It has no body.
    pub(super) ends: bool,
}

/// Sends copies of a request's head on their way; none: nothing was drawn, or nothing may be sent.
/// `head`: the request as it is forwarded.
#[cold]
pub(super) fn begin(
    original: &Original<'_>,
    mirrors: &[MirrorPlan],
    head: impl Fn() -> Option<Request<()>>,
) -> Option<Begun> {
    let core = &original.conn.core;
    let mut queues = Vec::new();
    let mut pairs = Vec::new();
    for mirror in mirrors {
        let port = original.snapshot.version(mirror.version).port;
        let service = &original.snapshot.port(port).key;
        let counts = core.mirrors.counts(core, service);
        match start(original, mirror, &head, &counts) {
            Ok((queue, pair)) => {
                queues.push(queue);
                pairs.extend(pair);
            }
            Err(result) => counts.count(result),
        }
    }
    if queues.is_empty() {
        return None;
    }
    Some(Begun {
        tee: Tee::new(queues),
        compare: (!pairs.is_empty()).then(|| Rc::new(Comparison::new(pairs))),
    })
}

fn start(
    original: &Original<'_>,
    mirror: &MirrorPlan,
    head: &impl Fn() -> Option<Request<()>>,
    counts: &Arc<MirrorCounts>,
) -> Result<(Rc<Queue>, Option<Rc<Pair>>), MirrorResult> {
    let conn = original.conn;
    let mirrors = &conn.core.mirrors;
    if original.upgrades {
        return Err(MirrorResult::SkippedUpgrade);
    }
    if conn.core.draining.get() || mirrors.running.borrow().len() >= IN_FLIGHT_MAX {
        return Err(MirrorResult::SkippedInFlight);
    }
    if mirrors.buffered.get() >= BUFFERED_BYTES_MAX {
        return Err(MirrorResult::SkippedBuffer);
    }
    // A head that was forwarded can be read; if not, there is nothing to copy.
    let request = head().ok_or(MirrorResult::FailedReset)?;
    let queue = Queue::new(Rc::clone(&mirrors.buffered), original.ends);
    let pair = mirror.compare.then(|| Pair::new(Arc::clone(counts)));
    let number = mirrors.next.get();
    mirrors.next.set(number + 1);
    let pod_id = conn.workload.pod_id;
    let running = Running { pod_id, task: None };
    mirrors.running.borrow_mut().insert(number, running);
    let place = Place {
        core: Rc::clone(&conn.core),
        number,
    };
    let sent = Sent {
        conn: Rc::clone(conn),
        snapshot: Rc::clone(original.snapshot),
        source: original.source,
        version: mirror.version,
        spoken: original.spoken,
        queue: Rc::clone(&queue),
        pair: pair.clone(),
        counts: Arc::clone(counts),
        ended: Cell::new(None),
    };
    let task = guarded(Rc::clone(&conn.core), "mirror", move || async move {
        let _place = place;
        sent.run(request).await;
    });
    let task = tokio::task::spawn_local(task).abort_handle();
    if let Some(running) = mirrors.running.borrow_mut().get_mut(&number) {
        running.task = Some(task);
    }
    Ok((queue, pair))
}
