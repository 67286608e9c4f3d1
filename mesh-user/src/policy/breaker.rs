//! Caps that are exact over the whole node: one counter for all cores.
//!
//! A counter is raised by compare-exchange only while it is below its cap, so never more than the
//! cap are admitted, and nobody is refused while there is room. Permits are values: dropping one
//! gives its place back, in whatever way the request ended. Caps may be changed while permits are
//! out; a lowered cap takes effect as they return.
//!
//! Requests that wait for a connection stand in one queue for all cores. Its lock is taken only
//! when somebody waits.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::{Reject, ejection::InFlight, snapshot::EndpointState};
use crate::model::BreakerPolicy;

/// A counter with a cap.
#[derive(Debug)]
struct Gauge {
    used: AtomicU32,
    cap: AtomicU32,
}

impl Gauge {
    fn new(cap: u32) -> Self {
        Self {
            used: AtomicU32::new(0),
            cap: AtomicU32::new(cap),
        }
    }

    // SeqCst: the queue of waiters relies on one order of «released (or raised the cap), then
    // looked for waiters» and «queued, then tried again». A try that fails is only a load, so the
    // loads need it too.
    fn admit(&self) -> bool {
        let cap = self.cap.load(Ordering::SeqCst);
        let raise = |used: u32| (used < cap).then(|| used + 1);
        self.used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, raise)
            .is_ok()
    }

    fn release(&self) {
        let before = self.used.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "released more than was admitted");
    }

    fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    fn cap(&self) -> u32 {
        self.cap.load(Ordering::Relaxed)
    }
}

/// Counters and caps of one version.
#[derive(Debug)]
pub struct Breaker {
    connections: Gauge,
    pending: Gauge,
    requests: Gauge,
    retries: Gauge,
    /// How many stand in `queue`: spares the lock when nobody does.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
    adapting: Mutex<Adapting>,
}

/// Who may change the cap of requests between two configurations.
#[derive(Debug, Default)]
struct Adapting {
    /// The adaptive limit in force; none: nobody may.
    by: Option<u64>,
    /// The configured cap, above which it never is.
    most: u32,
}

/// Who waits for a connection, by ticket. Who has a ticket that isn't in here has been granted one.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new(BreakerPolicy::default())
    }
}

/// The right to one request in flight. Counts at the endpoint too (least request). Dropping it
/// releases both.
#[derive(Debug)]
#[must_use]
pub struct RequestPermit {
    breaker: Arc<Breaker>,
    in_flight: InFlight,
}

impl RequestPermit {
    /// The endpoint took the connection, or began a good answer that may go on for long: a probe
    /// is answered by that, and does not hold off all others until its end. How the request ended
    /// is recorded all the same.
    pub fn answered(&mut self) {
        self.in_flight.answered();
    }
}

/// The right to one connection. Dropping it releases it and wakes one waiter.
#[derive(Debug)]
#[must_use]
pub struct ConnectionPermit {
    breaker: Arc<Breaker>,
}

/// The right to wait for a connection. Dropping it leaves the queue; a connection that it was
/// granted but never took goes to the next.
#[derive(Debug)]
#[must_use]
pub struct PendingPermit {
    breaker: Arc<Breaker>,
    ticket: Option<u64>,
}

/// The right to one request in flight that another breaker counts at its endpoint: what a
/// destination's inbound rules give. Dropping it releases it.
#[derive(Debug)]
#[must_use]
pub struct InboundPermit {
    breaker: Arc<Breaker>,
}

/// The right to one retry in flight.
#[derive(Debug)]
#[must_use]
pub struct RetryPermit {
    breaker: Arc<Breaker>,
}

/// Gauges of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Gauges {
    /// Connections.
    pub connections: u32,
    /// Requests that wait.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
    /// Retries in flight.
    pub retries: u32,
}

impl Breaker {
    /// With these caps. A cap of 0 refuses everything.
    pub fn new(caps: BreakerPolicy) -> Self {
        Self {
            connections: Gauge::new(caps.max_connections),
            pending: Gauge::new(caps.max_pending),
            requests: Gauge::new(caps.max_requests),
            retries: Gauge::new(caps.max_retries),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
            adapting: Mutex::default(),
        }
    }

    /// The caps in force.
    pub fn caps(&self) -> BreakerPolicy {
        BreakerPolicy {
            max_connections: self.connections.cap(),
            max_pending: self.pending.cap(),
            max_requests: self.requests.cap(),
            max_retries: self.retries.cap(),
        }
    }

    /// Changes the caps; permits that are out stay valid. `adaptive`: the adaptive limit that is in
    /// force from now on, by its number, and what it says.
    pub(super) fn set_caps(&self, caps: BreakerPolicy, adaptive: Option<(u64, u32)>) {
        self.connections
            .cap
            .store(caps.max_connections, Ordering::SeqCst);
        self.pending.cap.store(caps.max_pending, Ordering::Relaxed);
        self.retries.cap.store(caps.max_retries, Ordering::Relaxed);
        let mut adapting = self.adapting();
        *adapting = Adapting {
            by: adaptive.map(|(by, _)| by),
            most: caps.max_requests,
        };
        let limit = adaptive.map_or(u32::MAX, |(_, limit)| limit);
        let cap = caps.max_requests.min(limit);
        self.requests.cap.store(cap, Ordering::Relaxed);
        drop(adapting);
        // A raised cap has room for waiters.
        self.serve_waiters();
    }

    /// An adaptive limit has changed. One that is no longer in force, of which requests of the
    /// snapshot before may still speak, changes nothing.
    pub(super) fn adapt(&self, by: u64, limit: u32) {
        let adapting = self.adapting();
        if adapting.by == Some(by) {
            let cap = limit.min(adapting.most);
            self.requests.cap.store(cap, Ordering::Relaxed);
        }
    }

    fn adapting(&self) -> MutexGuard<'_, Adapting> {
        let adapting = self.adapting.lock();
        adapting.unwrap_or_else(PoisonError::into_inner)
    }

    /// The counters now.
    pub fn gauges(&self) -> Gauges {
        Gauges {
            connections: self.connections.used(),
            pending: self.pending.used(),
            requests: self.requests.used(),
            retries: self.retries.used(),
        }
    }

    /// Admits one request to `endpoint`: the last step before it is forwarded.
    ///
    /// # Errors
    /// [`Reject::OverflowRequests`].
    pub fn request(
        self: &Arc<Self>,
        endpoint: &Arc<EndpointState>,
    ) -> Result<RequestPermit, Reject> {
        if !self.requests.admit() {
            endpoint.live.probe_refused();
            return Err(Reject::OverflowRequests);
        }
        Ok(RequestPermit {
            breaker: Arc::clone(self),
            in_flight: endpoint.live.enter(),
        })
    }

    /// Admits one request that is counted at its endpoint elsewhere.
    ///
    /// # Errors
    /// [`Reject::OverflowRequests`].
    pub fn inbound_request(self: &Arc<Self>) -> Result<InboundPermit, Reject> {
        if !self.requests.admit() {
            return Err(Reject::OverflowRequests);
        }
        Ok(InboundPermit {
            breaker: Arc::clone(self),
        })
    }

    /// Admits one connection. Whoever waits already goes first.
    ///
    /// # Errors
    /// [`Reject::OverflowConnections`].
    pub fn connection(self: &Arc<Self>) -> Result<ConnectionPermit, Reject> {
        if self.has_waiters() || !self.connections.admit() {
            return Err(Reject::OverflowConnections);
        }
        Ok(ConnectionPermit {
            breaker: Arc::clone(self),
        })
    }

    /// Admits one request to the queue for a connection. It counts as pending until the permit is
    /// dropped.
    ///
    /// # Errors
    /// [`Reject::OverflowPending`].
    pub fn pending(self: &Arc<Self>) -> Result<PendingPermit, Reject> {
        if !self.pending.admit() {
            return Err(Reject::OverflowPending);
        }
        Ok(PendingPermit {
            breaker: Arc::clone(self),
            ticket: None,
        })
    }

    /// Waits until a connection may be made (std wakers only: no runtime in here). First come,
    /// first served, among the waiters of all cores. `waiting` must be a permit of this breaker.
    pub fn poll_connection(
        self: &Arc<Self>,
        waiting: &mut PendingPermit,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionPermit> {
        debug_assert!(
            Arc::ptr_eq(self, &waiting.breaker),
            "a permit of another breaker"
        );
        let mut queue = self.lock();
        match waiting.ticket {
            None => {
                let ticket = queue.next;
                queue.next += 1;
                queue.wakers.insert(ticket, cx.waker().clone());
                self.waiting.store(queue.wakers.len(), Ordering::SeqCst);
                waiting.ticket = Some(ticket);
            }
            Some(ticket) => {
                if let Some(waker) = queue.wakers.get_mut(&ticket) {
                    waker.clone_from(cx.waker());
                }
            }
        }
        // Registered first, then tried (see `release`): a place that is given back in between is
        // seen either here or there.
        let woken = self.grant(&mut queue);
        let granted = waiting
            .ticket
            .is_some_and(|ticket| !queue.wakers.contains_key(&ticket));
        drop(queue);
        if granted {
            waiting.ticket = None;
        }
        // Our own waker may be among them: one needless poll at most.
        woken.into_iter().for_each(Waker::wake);
        if granted {
            return Poll::Ready(ConnectionPermit {
                breaker: Arc::clone(self),
            });
        }
        Poll::Pending
    }

    /// Whether somebody waits for a connection: an idle one should then be closed rather than
    /// kept, unless a local waiter takes it.
    pub fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Admits one retry; `None` when `max-retries` is reached: the first failure is then the
    /// answer.
    pub fn retry(self: &Arc<Self>) -> Option<RetryPermit> {
        self.retries.admit().then(|| RetryPermit {
            breaker: Arc::clone(self),
        })
    }

    /// Admits one retry while there are fewer than `percent` of the requests that are none, or
    /// than `floor`.
    pub(super) fn retry_within(self: &Arc<Self>, percent: u8, floor: u32) -> Option<RetryPermit> {
        let all = u64::from(self.requests.used()) + u64::from(self.pending.used());
        let raise = |used: u32| {
            let share = all.saturating_sub(u64::from(used)) * u64::from(percent) / 100;
            (u64::from(used) < share.max(u64::from(floor))).then(|| used + 1)
        };
        self.retries
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, raise)
            .ok()
            .map(|_| RetryPermit {
                breaker: Arc::clone(self),
            })
    }

    /// Counts one retry that was admitted elsewhere.
    pub(super) fn retry_counted(self: &Arc<Self>) -> RetryPermit {
        self.retries.used.fetch_add(1, Ordering::SeqCst);
        RetryPermit {
            breaker: Arc::clone(self),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing in the critical sections can leave the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives free places to waiters, in their order.
    fn grant(&self, queue: &mut Queue) -> Vec<Waker> {
        let mut woken = Vec::new();
        while !queue.wakers.is_empty() && self.connections.admit() {
            woken.extend(queue.wakers.pop_first().map(|(_, waker)| waker));
        }
        self.waiting.store(queue.wakers.len(), Ordering::SeqCst);
        woken
    }

    fn serve_waiters(&self) {
        if self.has_waiters() {
            let woken = self.grant(&mut self.lock());
            // Outside the lock: a waker may run anything.
            woken.into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.breaker.requests.release();
    }
}

impl Drop for InboundPermit {
    fn drop(&mut self) {
        self.breaker.requests.release();
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.breaker.connections.release();
        self.breaker.serve_waiters();
    }
}

impl Drop for PendingPermit {
    fn drop(&mut self) {
        self.breaker.pending.release();
        let Some(ticket) = self.ticket else { return };
        let mut queue = self.breaker.lock();
        let waited = queue.wakers.remove(&ticket).is_some();
        self.breaker
            .waiting
            .store(queue.wakers.len(), Ordering::SeqCst);
        drop(queue);
        if !waited {
            // Granted, never taken: the next one's turn.
            self.breaker.connections.release();
        }
        self.breaker.serve_waiters();
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.breaker.retries.release();
    }
}

#[cfg(test)]
mod tests;
