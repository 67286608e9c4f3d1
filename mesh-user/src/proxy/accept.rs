//! Accepting connections, and the bounds on them.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use super::{
    connection,
    core::{Conn, Core, Slot, canonical},
    live::{Told, Watched},
    wire::WorkloadHandle,
};
use crate::{clock, policy::Reject, telemetry::Direction};

/// Connections that one wake accepts before others get their turn.
const ACCEPTS_PER_WAKE: usize = 32;
/// Pause when no descriptor is left: an immediate retry would spin at 100 % CPU.
const NO_DESCRIPTOR_PAUSE: Duration = Duration::from_millis(10);

/// The listeners of one worker, by workload.
#[derive(Debug, Default)]
pub(super) struct Listeners(HashMap<u32, Vec<AbortHandle>>);

impl Listeners {
    /// Serves one more listener.
    ///
    /// # Errors
    /// The runtime can't watch it.
    pub(super) fn add(
        &mut self,
        core: &Rc<Core>,
        workload: Arc<WorkloadHandle>,
        listener: std::net::TcpListener,
        direction: Direction,
    ) -> io::Result<()> {
        let pod_id = workload.pod_id;
        let address = canonical(listener.local_addr()?);
        let listener = TcpListener::from_std(listener)?;
        let from = From {
            workload,
            address,
            direction,
        };
        let accepting = Rc::clone(core);
        let task = guarded(Rc::clone(core), "accept", move || {
            accept(accepting, from, listener)
        });
        let task = tokio::task::spawn_local(task);
        self.0.entry(pod_id).or_default().push(task.abort_handle());
        Ok(())
    }

    /// Closes the listeners of a workload.
    pub(super) fn remove(&mut self, pod_id: u32) {
        for listener in self.0.remove(&pod_id).unwrap_or_default() {
            listener.abort();
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.0.values().flatten().for_each(AbortHandle::abort);
    }
}

/// Ends connections.
pub(super) fn abort_where(core: &Core, mut which: impl FnMut(&Slot) -> bool) {
    core.slots
        .borrow()
        .values()
        .filter(|slot| which(slot))
        .for_each(|slot| slot.abort.abort());
}

/// Runs the task that `make` makes; a panic in it is counted and ends this task only. Made in here
/// because a future that is passed in would take its room twice: as an argument, and where it runs.
pub(super) async fn guarded<F: Future<Output = ()>>(
    core: Rc<Core>,
    name: &'static str,
    make: impl FnOnce() -> F,
) {
    let mut task = pin!(make());
    let panicked = poll_fn(|cx| {
        // After a panic the future is dropped, never polled again: nothing sees it half-way.
        match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
            Ok(poll) => poll.map(|()| false),
            Err(_panic) => Poll::Ready(true),
        }
    })
    .await;
    if panicked {
        core.shared.telemetry.task_panicked(name);
    }
}

/// The listener that a connection was accepted from.
#[derive(Clone, Debug)]
pub(super) struct From {
    pub(super) workload: Arc<WorkloadHandle>,
    pub(super) address: SocketAddr,
    pub(super) direction: Direction,
}

async fn accept(core: Rc<Core>, from: From, listener: TcpListener) {
    loop {
        match accept_some(&core, &from, &listener).await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    let pauses = core.accept_pauses.get() + 1;
                    core.accept_pauses.set(pauses);
                    // Every listener pauses a hundred times a second: few lines say it as well.
                    if pauses.is_power_of_two() {
                        tracing::warn!(pauses, %error, "accept pauses, no descriptor is left");
                    }
                    tokio::time::sleep(NO_DESCRIPTOR_PAUSE).await;
                }
                // The connection ended before it was accepted, or a firewall forbade it
                // (accept(2) names all of them): the next one may be fine.
                _ => tracing::debug!(%error, "accept failed"),
            },
        }
    }
}

async fn accept_some(core: &Rc<Core>, from: &From, listener: &TcpListener) -> io::Result<()> {
    let (stream, peer) = listener.accept().await?;
    start(core, from, stream, peer);
    let mut accepted = 1;
    poll_fn(|cx: &mut Context<'_>| {
        while accepted < ACCEPTS_PER_WAKE {
            match listener.poll_accept(cx) {
                Poll::Ready(Ok((stream, peer))) => start(core, from, stream, peer),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
            accepted += 1;
        }
        Poll::Ready(Ok(()))
    })
    .await
}

/// Counts an open downstream connection, here and at the workload.
struct Open {
    core: Rc<Core>,
    workload: Arc<WorkloadHandle>,
    slot: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.workload.connections.fetch_sub(1, Ordering::Relaxed);
        let mut slots = self.core.slots.borrow_mut();
        slots.remove(&self.slot);
        if slots.is_empty() {
            self.core.emptied.notify_one();
        }
    }
}

fn start(core: &Rc<Core>, from: &From, stream: TcpStream, peer: SocketAddr) {
    let workload = &from.workload;
    let peer = canonical(peer);
    let max = core.limits().workload_connections_max;
    let idle = Rc::new(Watched::default());
    let taken = workload
        .connections
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
            (open < max).then_some(open + 1)
        });
    if taken.is_err() {
        let destination = stream.local_addr().map_or(from.address, canonical);
        let conn = Conn {
            core: Rc::clone(core),
            workload: Arc::clone(workload),
            peer,
            destination,
            opened: clock::now(),
            direction: from.direction,
            inbound: None,
            idle,
            told: Told::default(),
            tls: std::cell::OnceCell::new(),
        };
        connection::refuse(Rc::new(conn), &stream, Reject::WorkloadConnections);
        return;
    }
    let slot = core.next_slot();
    let open = Open {
        core: Rc::clone(core),
        workload: Arc::clone(workload),
        slot,
    };
    let pod_id = workload.pod_id;
    let served = {
        let (core, from, idle) = (Rc::clone(core), from.clone(), Rc::clone(&idle));
        move || async move {
            // Dropped last: the socket is closed before the connection stops counting.
            let _open = open;
            // Boxed, so that its room is given back before the engine runs.
            let engine = Box::pin(connection::begin(core, from, stream, peer, idle)).await;
            if let Some(engine) = engine {
                engine.await;
            }
        }
    };
    let task = tokio::task::spawn_local(guarded(Rc::clone(core), "connection", served));
    let abort = task.abort_handle();
    core.slots.borrow_mut().insert(
        slot,
        Slot {
            pod_id,
            abort,
            idle,
        },
    );
}
