//! Shared HTTP/2 connections to endpoints: many streams on one connection, never more than the
//! peer allows.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use tokio::{sync::Notify, task::AbortHandle};

use super::{settings, wire::Wire};
use crate::{
    clock::{self, MonoNanos},
    policy::{Reject, breaker::Breaker},
    proxy::{
        accept::guarded,
        age::Life,
        buffer::Buf,
        core::Core,
        pool::{Key, KeyState},
        tls::Inside,
        upstream::{NoConnection, Permits, Target, Upstream, dial, permits_now},
        wire::WorkloadHandle,
    },
};

/// How many connections in a row may turn out to be closing before the endpoint counts as failed.
const STALE_MAX: usize = 3;

/// A connection that streams share.
#[derive(Debug)]
struct Shared {
    sender: SendRequest<Bytes>,
    streams: Cell<usize>,
    /// It takes no new streams: the peer said so, or it broke.
    closing: Cell<bool>,
    idle_since: Cell<MonoNanos>,
    life: Cell<Life>,
    /// Counts it.
    breaker: Arc<Breaker>,
    /// Counts it too.
    inbound: Option<Arc<Breaker>>,
    driver: RefCell<Option<AbortHandle>>,
    /// The endpoint's settings are known.
    settled: Cell<bool>,
    /// Wakes who waits for that, or for the end.
    told: Notify,
}

impl Shared {
    fn has_room(&self, streams_max: usize) -> bool {
        !self.closing.get()
            && self.streams.get() < self.sender.current_max_send_streams().min(streams_max)
    }

    /// Takes no new streams once its life is over.
    fn age(&self) {
        if !self.closing.get() && self.life.get().is_over() {
            self.closing.set(true);
            if self.streams.get() == 0 {
                self.cut();
            }
        }
    }

    fn spend(&self) {
        let mut life = self.life.get();
        life.spend();
        self.life.set(life);
    }

    fn cut(&self) {
        self.closing.set(true);
        if let Some(driver) = self.driver.take() {
            driver.abort();
        }
    }
}

/// Connections with one key.
#[derive(Debug, Default)]
struct Group {
    open: RefCell<Vec<Rc<Shared>>>,
    /// Somebody dials: the others wait for the outcome instead of dialling too.
    dialling: Cell<bool>,
    /// How the last dial failed, and how many dials there were: who waited for dial N shares
    /// its outcome.
    failed: Cell<Option<(u64, NoConnection)>>,
    dials: Cell<u64>,
    /// The workload has gone: nothing is added any more.
    released: Cell<bool>,
    changed: Notify,
}

impl Group {
    /// Takes a new connection in, unless its workload has gone while it was made: it would keep
    /// the namespace alive, and nobody would ever find it.
    fn add(&self, shared: Rc<Shared>) -> Result<(), NoConnection> {
        if self.released.get() {
            shared.cut();
            return Err(NoConnection::Local(Reject::ConnectFailed));
        }
        self.open.borrow_mut().push(shared);
        Ok(())
    }
}

/// The right to one stream on a shared connection.
#[derive(Debug)]
pub(super) struct Lease {
    shared: Rc<Shared>,
    group: Rc<Group>,
}

impl Lease {
    /// The connection is of no more use.
    pub(super) fn retire(&self) {
        self.shared.closing.set(true);
    }

    /// Waits for the endpoint's settings. Whether it speaks HTTP/2 at all.
    pub(super) async fn settled(&self) -> bool {
        while !self.shared.settled.get() {
            if self.shared.closing.get() {
                return false;
            }
            self.shared.told.notified().await;
        }
        true
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let streams = self.shared.streams.get() - 1;
        self.shared.streams.set(streams);
        if streams == 0 {
            self.shared.idle_since.set(clock::now());
            // As with HTTP/1: nothing is kept idle while somebody waits for its permit.
            let inbound = self.shared.inbound.as_ref();
            let waited = inbound.is_some_and(|breaker| breaker.has_waiters());
            self.shared.age();
            if self.shared.closing.get() || waited || self.shared.breaker.has_waiters() {
                self.shared.cut();
            }
        }
        self.group.changed.notify_one();
    }
}

/// All shared connections of a worker.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Connections {
    groups: RefCell<HashMap<Key, Rc<Group>, KeyState>>,
}

/// Ends a dial for those who wait for it, also when the dialling request was cut short.
struct Dialling(Rc<Group>);

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.dialling.set(false);
        self.0.changed.notify_waiters();
        self.0.changed.notify_one();
    }
}

impl Connections {
    fn group(&self, key: Key) -> Rc<Group> {
        Rc::clone(self.groups.borrow_mut().entry(key).or_default())
    }

    fn cut_where(&self, mut which: impl FnMut(&Key, &Shared) -> bool) -> usize {
        let mut cut = 0;
        for (key, group) in self.groups.borrow().iter() {
            group.open.borrow_mut().retain(|shared| {
                let go = which(key, shared);
                if go {
                    shared.cut();
                    cut += 1;
                }
                !go
            });
        }
        cut
    }

    /// Closes everything.
    pub(in crate::proxy) fn clear(&self) {
        self.cut_where(|_, _| true);
        self.groups.borrow_mut().clear();
    }

    /// Closes what left from this workload's namespace.
    pub(in crate::proxy) fn release(&self, pod_id: u32) {
        self.cut_where(|key, _| key.source == pod_id);
        self.groups.borrow_mut().retain(|key, group| {
            let gone = key.source == pod_id;
            group.released.set(gone);
            !gone
        });
    }

    /// Closes one connection of this breaker that carries no stream. Whether there was one.
    pub(in crate::proxy) fn evict_of_breaker(&self, breaker: usize) -> bool {
        let mut done = false;
        self.cut_where(|key, shared| {
            let go = !done && key.counted_by(breaker) && shared.streams.get() == 0;
            done |= go;
            go
        });
        done
    }

    /// Closes what has carried no stream for longer than `max`, forgets groups without use.
    pub(in crate::proxy) fn expire(&self, now: MonoNanos, max: Duration) {
        self.cut_where(|_, shared| {
            shared.streams.get() == 0
                && (now.since(shared.idle_since.get()) >= max || shared.life.get().is_over())
        });
        self.groups
            .borrow_mut()
            .retain(|_, group| Rc::strong_count(group) > 1 || !group.open.borrow().is_empty());
    }
}

fn lease(group: &Rc<Group>, streams_max: usize) -> Option<Lease> {
    let mut open = group.open.borrow_mut();
    open.iter().for_each(|shared| shared.age());
    open.retain(|shared| !shared.closing.get());
    // The busiest one with room: the others can run empty and be closed.
    let shared = open
        .iter()
        .filter(|shared| shared.has_room(streams_max))
        .max_by_key(|shared| shared.streams.get())?;
    shared.streams.set(shared.streams.get() + 1);
    shared.spend();
    Some(Lease {
        shared: Rc::clone(shared),
        group: Rc::clone(group),
    })
}

/// A place for one stream on a connection that is ready to open it.
///
/// # Errors
/// See [`NoConnection`].
pub(super) async fn open_stream(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    target: &Target<'_>,
) -> Result<(Lease, SendRequest<Bytes>), NoConnection> {
    for _try in 0..STALE_MAX {
        let lease = checkout(core, workload, target).await?;
        match lease.shared.sender.clone().ready().await {
            Ok(sender) => return Ok((lease, sender)),
            // It closed while the stream was on its way to it: nothing was sent.
            Err(error) => {
                tracing::debug!(%error, "upstream HTTP/2 connection takes no stream");
                lease.retire();
            }
        }
    }
    Err(NoConnection::Failed)
}

/// A stream to an endpoint: on a connection with room, on a new one, or once one of both can be
/// had.
///
/// # Errors
/// See [`NoConnection`].
async fn checkout(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    target: &Target<'_>,
) -> Result<Lease, NoConnection> {
    let streams_max = core.limits().h2_streams_max as usize;
    let group = core.h2.group(target.key);
    loop {
        if let Some(lease) = lease(&group, streams_max) {
            return Ok(lease);
        }
        if group.dialling.get() {
            let dial = group.dials.get();
            group.changed.notified().await;
            match group.failed.get() {
                Some((failed, why)) if failed == dial => return Err(why),
                _ => continue,
            }
        }
        match permits_now(core, target) {
            Ok(permits) => open(core, workload, target, &group, permits).await?,
            Err(Reject::OverflowConnections) => {
                let permits = wait(core, target, &group, streams_max).await?;
                if let Some(permits) = permits {
                    open(core, workload, target, &group, permits).await?;
                }
            }
            Err(reject) => return Err(NoConnection::Local(reject)),
        }
    }
}

/// Waits in the breaker's queue, or for a stream to end, whichever comes first.
async fn wait(
    core: &Rc<Core>,
    target: &Target<'_>,
    group: &Rc<Group>,
    streams_max: usize,
) -> Result<Option<Permits>, NoConnection> {
    let mut queued = std::pin::pin!(crate::proxy::upstream::permits_queued(core, target));
    let mut changed = Box::pin(group.changed.notified());
    poll_fn(|cx| {
        if let Poll::Ready(permits) = queued.as_mut().poll(cx) {
            return Poll::Ready(permits.map(Some).map_err(NoConnection::Local));
        }
        while changed.as_mut().poll(cx).is_ready() {
            if group
                .open
                .borrow()
                .iter()
                .any(|shared| shared.has_room(streams_max))
            {
                return Poll::Ready(Ok(None));
            }
            changed.set(group.changed.notified());
        }
        Poll::Pending
    })
    .await
}

/// Dials and adds the connection to the group.
async fn open(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    target: &Target<'_>,
    group: &Rc<Group>,
    permits: Permits,
) -> Result<(), NoConnection> {
    group.dials.set(group.dials.get() + 1);
    group.dialling.set(true);
    let dialling = Dialling(Rc::clone(group));
    let result = connect(core, workload, target, permits).await;
    if let Err(why) = result.and_then(|shared| group.add(shared)) {
        group.failed.set(Some((group.dials.get(), why)));
    }
    drop(dialling);
    result_of(group)
}

/// How the last dial ended.
fn result_of(group: &Group) -> Result<(), NoConnection> {
    match group.failed.get() {
        Some((dial, why)) if dial == group.dials.get() => Err(why),
        _ => Ok(()),
    }
}

async fn connect(
    core: &Rc<Core>,
    workload: &WorkloadHandle,
    target: &Target<'_>,
    permits: Permits,
) -> Result<Rc<Shared>, NoConnection> {
    let target = &Target {
        inside: Inside::Http2,
        ..*target
    };
    let Upstream {
        stream,
        permits,
        life,
        ..
    } = dial(core, workload, target, permits).await?;
    let wire = Wire::new(stream, Buf::default(), 0);
    let watch = wire.watch();
    let (sender, mut connection) = settings::client(&core.limits())
        .handshake(wire)
        .await
        .map_err(|_| NoConnection::Failed)?;
    let shared = Rc::new(Shared {
        sender,
        streams: Cell::new(0),
        closing: Cell::new(false),
        idle_since: Cell::new(clock::now()),
        life: Cell::new(life),
        breaker: Arc::clone(target.breaker),
        inbound: target.inbound.cloned(),
        driver: RefCell::new(None),
        settled: Cell::new(false),
        told: Notify::new(),
    });
    let driven = {
        let shared = Rc::clone(&shared);
        move || async move {
            let _permits = permits;
            let ended = poll_fn(|cx| {
                let turn = std::pin::Pin::new(&mut connection).poll(cx);
                if watch.settled.get() && !shared.settled.replace(true) {
                    shared.told.notify_waiters();
                }
                if watch.flooded.get() {
                    // An endpoint that floods: its streams fail, its connection closes.
                    return Poll::Ready(Err(h2::Error::from(Reason::ENHANCE_YOUR_CALM)));
                }
                turn
            });
            if let Err(error) = ended.await {
                tracing::debug!(%error, "upstream HTTP/2 connection ended");
            }
            shared.closing.set(true);
            shared.told.notify_waiters();
            shared.driver.take();
        }
    };
    let task = tokio::task::spawn_local(guarded(Rc::clone(core), "h2_upstream", driven));
    shared.driver.replace(Some(task.abort_handle()));
    Ok(shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shared() -> Rc<Shared> {
        let (wire, _peer) = tokio::io::duplex(1024);
        let (sender, _connection) = h2::client::handshake(wire).await.unwrap();
        Rc::new(Shared {
            sender,
            streams: Cell::new(0),
            closing: Cell::new(false),
            idle_since: Cell::new(clock::now()),
            life: Cell::new(Life::new(
                crate::model::ConnectionPolicy::default(),
                &mut crate::policy::rng::Rng::new(1),
            )),
            breaker: Arc::default(),
            inbound: None,
            driver: RefCell::default(),
            settled: Cell::default(),
            told: Notify::default(),
        })
    }

    #[tokio::test]
    async fn connection_made_for_a_workload_that_has_gone_is_cut() {
        let connections = Connections::default();
        let key = |source| Key {
            source,
            breaker: 1,
            endpoint: 1,
            inbound: 0,
            app: None,
            tls: 0,
        };
        let (gone, stays) = (connections.group(key(7)), connections.group(key(8)));
        connections.release(7);
        let (late, other) = (shared().await, shared().await);
        gone.add(Rc::clone(&late)).unwrap_err();
        assert!(late.closing.get() && gone.open.borrow().is_empty());
        stays.add(Rc::clone(&other)).unwrap();
        assert!(!other.closing.get());
        assert_eq!(stays.open.borrow().len(), 1);
    }
}
