//! Worker threads: one runtime, one shard, one set of pools each.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::LocalSet,
};

use super::{
    accept::{self, Listeners},
    core::{Core, Shared},
    live::{self, Describe},
    tls, upstream,
    wire::{OriginLookup, SocketSource, WorkloadHandle},
};
use crate::{
    clock::{self, MonoNanos},
    config::Limits,
    policy::Snapshot,
    telemetry::{Direction, LiveConnection, Telemetry},
};

/// How often a worker shows that it turns. The kernel takes it for hung after 1 s.
const TICK: Duration = Duration::from_millis(250);

/// How long a drain leaves idle HTTP/1 connections open. Closing one at once resets the request that
/// its client is just sending (RFC 9112 §9.6); so the next request is answered, with
/// `connection: close`, and only clients that asked nothing for so long find a closed connection.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// What the control side tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve this listener of a workload: already bound, listening and non-blocking.
    Listen {
        /// The workload.
        workload: Arc<WorkloadHandle>,
        /// The listener that stands in its namespace.
        listener: std::net::TcpListener,
    },
    /// The same for connections that come to the workload.
    ListenInbound {
        /// The workload.
        workload: Arc<WorkloadHandle>,
        /// The listener that stands in its namespace.
        listener: std::net::TcpListener,
    },
    /// The workload is gone: close its listener, its connections and pools, so that nothing of
    /// ours keeps its namespace alive.
    Release {
        /// The workload's number.
        pod_id: u32,
    },
}

/// What a worker is told: by the control side, or by another worker.
#[derive(Debug)]
pub(super) enum Order {
    /// From the control side.
    Command(Command),
    /// Another worker has a request that waits for a connection of this breaker: close an idle one.
    Evict {
        /// Address of the shared breaker.
        breaker: usize,
    },
    /// Tell of open connections.
    Describe(Describe),
    /// Another snapshot is in force: long connections that are to follow it do.
    Swapped,
    /// End: requests in flight may finish for so long.
    Drain {
        /// Then the rest is cut.
        limit: Duration,
    },
}

/// What workers are started with.
#[derive(Clone, Debug)]
pub struct WorkersOptions {
    /// How many worker threads, 1 to 8 (`SHARDS_MAX`).
    pub workers: usize,
    /// Pin worker N to the N-th allowed CPU.
    pub pin: bool,
    /// Limits of the data path.
    pub limits: Limits,
    /// For the original destination.
    pub origins: Arc<dyn OriginLookup>,
    /// Dials from the agent's own namespace.
    pub node_sockets: Arc<dyn SocketSource>,
    /// Metrics and access log.
    pub telemetry: Arc<Telemetry>,
}

/// The running workers. Dropping it ends them at once; [`Workers::drain`] ends them gently.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    orders: Vec<UnboundedSender<Order>>,
    /// Each returns how many connections it had to cut.
    threads: Mutex<Vec<JoinHandle<usize>>>,
    /// Snapshots that were replaced, as long as a worker has them: the last one who lets go of a
    /// snapshot takes it apart, and that may take milliseconds.
    replaced: Mutex<VecDeque<Arc<Snapshot>>>,
}

/// Replaced snapshots that are kept at most: beyond, requests outlive changes by far, and what
/// snapshots don't share is little.
const REPLACED_MAX: usize = 1_024;

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread or runtime could not be made.
    pub fn start(options: WorkersOptions, first: Arc<Snapshot>) -> io::Result<Self> {
        let count = options
            .workers
            .clamp(1, mesh_common::abi::SHARDS_MAX as usize);
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::new(first),
            swaps: AtomicU64::new(0),
            upstream: AtomicU32::new(0),
            limits: ArcSwap::from_pointee(options.limits),
            origins: options.origins,
            node_sockets: options.node_sockets,
            stores: super::stores::Stores::default(),
            tls: Arc::new(tls::Store::new(Arc::clone(&options.telemetry))),
            telemetry: options.telemetry,
            ticks: (0..count).map(|_| AtomicU64::new(clock::now().0)).collect(),
        });
        shared.tls.follow(&shared.snapshot.load().tls);
        let cpus = if options.pin {
            allowed_cpus()
        } else {
            Vec::new()
        };
        let (orders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded_channel()).unzip();
        let workers = Self {
            shared,
            orders,
            threads: Mutex::default(),
            replaced: Mutex::default(),
        };
        for (index, receiver) in receivers.into_iter().enumerate() {
            let peers = workers.orders.iter().enumerate();
            let peers = peers
                .filter(|(peer, _)| *peer != index)
                .map(|(_, o)| o.clone())
                .collect();
            let shared = Arc::clone(&workers.shared);
            let cpu = cpus.get(index % cpus.len().max(1)).copied();
            // Made here, so that its failure is an error of `start`, not of a thread.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let thread = std::thread::Builder::new()
                .name(format!("mesh-worker-{index}"))
                .spawn(move || run(&runtime, index, shared, peers, receiver, cpu))?;
            workers.threads().push(thread);
        }
        Ok(workers)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<usize>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are: the number of shards.
    pub fn count(&self) -> usize {
        self.orders.len()
    }

    /// Sends a command to worker `index`.
    pub fn send(&self, index: usize, command: Command) {
        match self.orders.get(index) {
            // A worker that panicked out of its loop drops what it is told; its heartbeat, which
            // has stopped, is what the agent acts on.
            Some(order) => drop(order.send(Order::Command(command))),
            None => tracing::error!(index, workers = self.orders.len(), "no such worker"),
        }
    }

    /// Puts a snapshot in force: the next request on every connection uses it. Reads the files of TLS
    /// settings that are new.
    pub fn swap(&self, snapshot: Arc<Snapshot>) {
        snapshot.enforce();
        self.shared.tls.follow(&snapshot.tls);
        let old = self.shared.snapshot.swap(snapshot);
        self.shared.swaps.fetch_add(1, Ordering::Release);
        for order in &self.orders {
            // A worker that has ended has no connections.
            let _ended = order.send(Order::Swapped);
        }
        self.replaced().push_back(old);
        self.take_apart();
    }

    fn replaced(&self) -> MutexGuard<'_, VecDeque<Arc<Snapshot>>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes apart replaced snapshots that no worker has any more. To be called now and then.
    pub fn take_apart(&self) {
        let mut replaced = self.replaced();
        let surplus = replaced.len().saturating_sub(REPLACED_MAX);
        let mut gone: Vec<Arc<Snapshot>> = replaced.drain(..surplus).collect();
        let mut kept = VecDeque::with_capacity(replaced.len());
        for snapshot in replaced.drain(..) {
            // Nobody can get at it but through the workers' copies: one is ours for good.
            if Arc::strong_count(&snapshot) == 1 {
                gone.push(snapshot);
            } else {
                kept.push_back(snapshot);
            }
        }
        *replaced = kept;
        drop(replaced);
        drop(gone);
    }

    /// Puts limits in force: the next connection uses them, and so does the next request where a
    /// limit is asked for each request.
    pub fn set_limits(&self, limits: &Limits) {
        self.shared.limits.store(Arc::new(limits.clone()));
        self.shared.swaps.fetch_add(1, Ordering::Release);
    }

    /// Why the newest content of certificate, key and CA files is not in force; none where no TLS
    /// begins or ends here.
    pub fn tls_problems(&self) -> Option<Vec<String>> {
        (!self.shared.tls.is_empty()).then(|| self.shared.tls.problems())
    }

    /// The time of the oldest worker's last turn, CLOCK_MONOTONIC: each worker ticks every 250 ms;
    /// the agent's heartbeat writes the oldest tick into the kernel.
    pub fn oldest_tick(&self) -> MonoNanos {
        let ticks = self
            .shared
            .ticks
            .iter()
            .map(|tick| tick.load(Ordering::Relaxed));
        MonoNanos(ticks.min().unwrap_or(0))
    }

    /// The time of each worker's last turn, in their order, CLOCK_MONOTONIC.
    pub fn ticks(&self) -> impl Iterator<Item = MonoNanos> {
        let ticks = self.shared.ticks.iter();
        ticks.map(|tick| MonoNanos(tick.load(Ordering::Relaxed)))
    }

    /// Open connections with their last decisions: of one client, or all. Waits for the workers at
    /// most half a second; one that is hung is left out.
    pub fn connections(&self, peer: Option<SocketAddr>) -> Vec<LiveConnection> {
        let (answer, answers) = mpsc::channel();
        for order in &self.orders {
            let answer = answer.clone();
            let _ended = order.send(Order::Describe(Describe { peer, answer }));
        }
        drop(answer);
        let until = std::time::Instant::now() + live::PATIENCE;
        let mut all = Vec::new();
        let left = || until.saturating_duration_since(std::time::Instant::now());
        while let Ok(told) = answers.recv_timeout(left()) {
            all.extend(told);
        }
        all
    }

    /// Stops accepting, lets requests in flight end (HTTP/1.1 answers get `connection: close`,
    /// HTTP/2 a GOAWAY), then cuts the rest after `limit`. Idle HTTP/1 connections are open for
    /// another second. Returns how many were cut.
    pub fn drain(&self, limit: Duration) -> usize {
        for order in &self.orders {
            let _ended = order.send(Order::Drain { limit });
        }
        self.threads()
            .drain(..)
            .map(|thread| thread.join().unwrap_or(0))
            .sum()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for order in &self.orders {
            let _ended = order.send(Order::Drain {
                limit: Duration::ZERO,
            });
        }
        for thread in self.threads().drain(..) {
            let _panicked = thread.join();
        }
    }
}

/// The CPUs that this process may use.
fn allowed_cpus() -> Vec<usize> {
    let own = nix::unistd::Pid::from_raw(0);
    let Ok(set) = nix::sched::sched_getaffinity(own) else {
        return Vec::new();
    };
    (0..nix::sched::CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect()
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}

fn run(
    runtime: &tokio::runtime::Runtime,
    index: usize,
    shared: Arc<Shared>,
    peers: Vec<UnboundedSender<Order>>,
    mut orders: UnboundedReceiver<Order>,
    cpu: Option<usize>,
) -> usize {
    if let Some(cpu) = cpu
        && let Err(error) = pin(cpu)
    {
        tracing::warn!(index, cpu, %error, "worker is not pinned");
    }
    // Distinct for each worker: equal seeds would make all cores choose the same endpoints.
    let seed = clock::now().0 ^ ((index as u64 + 1) << 56);
    let core = Core::new(index, shared, peers, seed);
    let local = LocalSet::new();
    let cut = local.block_on(runtime, async {
        let tick = tokio::task::spawn_local(heartbeat(Rc::clone(&core)));
        let watch = tokio::task::spawn_local(upstream::watch_idle(Rc::clone(&core)));
        let cut = obey(&core, &mut orders).await;
        tick.abort();
        watch.abort();
        cut
    });
    // Idle connections hold the worker's state through their permits: break the ring.
    core.pool.clear();
    core.h2.clear();
    core.mirrors.clear();
    cut
}

/// Shows that the worker turns, and does what is due now and then.
async fn heartbeat(core: Rc<Core>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = clock::now();
        core.shared.ticks[core.index].store(now.0, Ordering::Relaxed);
        core.pool.expire(now, core.limits().upstream_idle_timeout);
        core.h2.expire(now, core.limits().upstream_idle_timeout);
        core.mirrors.expire(now);
        // An idle worker lets go of a snapshot that is no longer in force.
        drop(core.snapshot());
    }
}

async fn obey(core: &Rc<Core>, orders: &mut UnboundedReceiver<Order>) -> usize {
    let mut listeners = Listeners::default();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Command(Command::Listen { workload, listener }) => {
                listen(
                    core,
                    &mut listeners,
                    workload,
                    listener,
                    Direction::Outbound,
                );
            }
            Order::Command(Command::ListenInbound { workload, listener }) => {
                listen(core, &mut listeners, workload, listener, Direction::Inbound);
            }
            Order::Command(Command::Release { pod_id }) => {
                listeners.remove(pod_id);
                release(core, pod_id);
            }
            Order::Evict { breaker } => {
                if !core.mirrors.evict_of_breaker(breaker) && !core.pool.evict_of_breaker(breaker) {
                    core.h2.evict_of_breaker(breaker);
                }
            }
            Order::Describe(question) => question.reply(core),
            Order::Swapped => core.flows.review(core),
            Order::Drain { limit } => {
                drop(listeners);
                return drain(core, limit, orders).await;
            }
        }
    }
    0
}

fn listen(
    core: &Rc<Core>,
    listeners: &mut Listeners,
    workload: Arc<WorkloadHandle>,
    listener: std::net::TcpListener,
    direction: Direction,
) {
    let pod_id = workload.pod_id;
    if let Err(error) = listeners.add(core, workload, listener, direction) {
        tracing::error!(pod_id, %error, "listener can not be served");
    }
}

/// Drains, and still lets go of workloads that disappear meanwhile.
async fn drain(core: &Rc<Core>, limit: Duration, orders: &mut UnboundedReceiver<Order>) -> usize {
    let releases = async {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Command(Command::Release { pod_id }) => release(core, pod_id),
                Order::Describe(question) => question.reply(core),
                _ => {}
            }
        }
        // The control side is gone: nobody will tell us anything any more.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        cut = end_all(core, limit) => cut,
        () = releases => 0,
    }
}

fn release(core: &Core, pod_id: u32) {
    accept::abort_where(core, |slot| slot.pod_id == pod_id);
    core.pool.release(pod_id);
    core.h2.release(pod_id);
    core.mirrors.release(pod_id);
}

async fn end_all(core: &Rc<Core>, limit: Duration) -> usize {
    core.draining.set(true);
    core.pool.clear();
    core.mirrors.clear();
    core.drained.notify_waiters();
    let grace = limit.min(IDLE_GRACE);
    if tokio::time::timeout(grace, empty(core)).await.is_err() {
        // One that becomes idle from here on closes by itself.
        core.grace_over.set(true);
        accept::abort_where(core, |slot| slot.idle.get());
        let _elapsed = tokio::time::timeout(limit - grace, empty(core)).await;
    }
    let cut = core.slots.borrow().len();
    accept::abort_where(core, |_| true);
    // Let the aborted tasks run their ends: each writes its record.
    for _turn in 0..1000 {
        if core.slots.borrow().is_empty() {
            break;
        }
        tokio::task::yield_now().await;
    }
    cut
}

/// Waits for the last connection to end, which notifies.
async fn empty(core: &Core) {
    while !core.slots.borrow().is_empty() {
        core.emptied.notified().await;
    }
}
