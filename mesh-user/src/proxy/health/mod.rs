//! Active health checks: asks endpoints how they are, and tells their live state.
//!
//! One thread for the node, with a runtime of its own, started by the first policy that wants a
//! check: checks must not wait for the control loop's system calls, and no worker waits for a
//! check. An endpoint is asked once, however many versions contain it. What was found stands in
//! [`Live`](crate::policy::ejection::Live), which every pick and the kernel's split read: nothing
//! is compiled anew.
//!
//! Bounded: checks that run at once, connections that are kept, bytes of an answer. What is due
//! meanwhile waits; a check that comes late is late, no more.

mod grpc;
mod http;
mod schedule;
mod tcp;
mod watch;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    net::{TcpSocket, TcpStream},
    sync::watch::Sender,
    task::JoinSet,
};

use super::wire::SocketSource;
use crate::{
    clock::{self, MonoNanos},
    model::{HealthCheck, health::Probe},
    policy::{Snapshot, health::CheckResult},
    telemetry::Telemetry,
};
use schedule::Due;
use watch::{Targets, Watch};

/// Checks that run at once. With 1 ms each that is 256,000 a second: far more than one thread can.
const RUNNING_MAX: usize = 256;

/// Connections that are kept for the next check. An agent must not hold a descriptor for each of
/// 100,000 endpoints.
const KEPT_MAX: usize = 1_024;

/// Asks the endpoints of the snapshot that it follows.
#[derive(Debug)]
pub struct HealthChecks {
    sockets: Arc<dyn SocketSource>,
    telemetry: Arc<Telemetry>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    targets: Sender<Arc<Targets>>,
    thread: JoinHandle<()>,
}

impl HealthChecks {
    /// Asks nobody yet. `sockets` dial the endpoints: those of the agent's own namespace.
    pub fn new(sockets: Arc<dyn SocketSource>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            sockets,
            telemetry,
            running: Mutex::default(),
        }
    }

    /// Asks the endpoints of this snapshot from now on; what is known of those that stay is kept.
    pub fn follow(&self, snapshot: &Snapshot) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let targets = Arc::new(watch::targets(snapshot));
        if let Some(running) = &*running {
            // The thread lives as long as this.
            running.targets.send_replace(targets);
            return;
        }
        if targets.is_empty() {
            return;
        }
        match self.start(targets) {
            Ok(started) => *running = Some(started),
            Err(error) => tracing::error!(%error, "no thread for health checks: none are made"),
        }
    }

    fn start(&self, targets: Arc<Targets>) -> io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (sender, receiver) = tokio::sync::watch::channel(targets);
        let (sockets, telemetry) = (Arc::clone(&self.sockets), Arc::clone(&self.telemetry));
        let thread = std::thread::Builder::new()
            .name("health".to_owned())
            .spawn(move || runtime.block_on(run(receiver, sockets, telemetry)))?;
        Ok(Running {
            targets: sender,
            thread,
        })
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        let running = self
            .running
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(Running { targets, thread }) = running.take() {
            drop(targets);
            // A panic in there was logged by its own hook.
            let _ended = thread.join();
        }
    }
}

/// What a check needs to know.
#[derive(Clone, Debug)]
struct Ask {
    check: Arc<HealthCheck>,
    address: SocketAddr,
    /// For `Host` and `:authority`.
    host: Arc<str>,
}

/// A connection from the last check.
#[derive(Debug)]
enum Kept {
    Http(http::Connection),
    Grpc(grpc::Connection),
}

/// How a check ended, and a connection for the next.
#[derive(Debug)]
struct Done {
    due: Due,
    result: CheckResult,
    took: Duration,
    kept: Option<Kept>,
}

/// Lives until the sender is dropped.
async fn run(
    mut targets: tokio::sync::watch::Receiver<Arc<Targets>>,
    sockets: Arc<dyn SocketSource>,
    telemetry: Arc<Telemetry>,
) {
    let mut watch = Watch::new(telemetry);
    let mut running: JoinSet<Done> = JoinSet::new();
    let first = Arc::clone(&targets.borrow_and_update());
    watch.follow(&first, clock::now());
    loop {
        let now = clock::now();
        while running.len() < RUNNING_MAX
            && let Some((due, ask, kept)) = watch.next(now)
        {
            let sockets = Arc::clone(&sockets);
            running.spawn(async move { check(due, ask, kept, sockets).await });
        }
        let wait = match watch.due() {
            Some(at) if running.len() < RUNNING_MAX => at.since(now),
            _ => Duration::from_secs(3_600),
        };
        tokio::select! {
            biased;
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                let next = Arc::clone(&targets.borrow_and_update());
                watch.follow(&next, clock::now());
            }
            Some(done) = running.join_next() => match done {
                Ok(done) => watch.note(done, KEPT_MAX, clock::now()),
                // Whose it was is not known: what runs is due anew.
                Err(error) => {
                    tracing::error!(%error, "a health check panicked");
                    watch.lost(clock::now());
                }
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn check(due: Due, ask: Ask, kept: Option<Kept>, sockets: Arc<dyn SocketSource>) -> Done {
    let started = clock::now();
    let asked = async {
        let reused = kept.is_some();
        let (result, next) = attempt(&ask, kept, &*sockets).await;
        // Closed while it lay idle, which says nothing about the endpoint.
        if reused && result == CheckResult::Broken {
            return attempt(&ask, None, &*sockets).await;
        }
        (result, next)
    };
    let (result, kept) = match tokio::time::timeout(ask.check.timeout, asked).await {
        Ok(ended) => ended,
        Err(_elapsed) => (CheckResult::Timeout, None),
    };
    Done {
        due,
        result,
        took: clock::now().since(started),
        kept: kept.filter(|_| ask.check.reuse_connection),
    }
}

async fn attempt(
    ask: &Ask,
    kept: Option<Kept>,
    sockets: &dyn SocketSource,
) -> (CheckResult, Option<Kept>) {
    match &ask.check.probe {
        Probe::Http(probe) => {
            let kept = kept.and_then(|kept| match kept {
                Kept::Http(connection) => Some(connection),
                Kept::Grpc(_) => None,
            });
            let (result, kept) = http::check(probe, ask, kept, sockets).await;
            (result, kept.map(Kept::Http))
        }
        Probe::Grpc(probe) => {
            let kept = kept.and_then(|kept| match kept {
                Kept::Grpc(connection) => Some(connection),
                Kept::Http(_) => None,
            });
            let (result, kept) = grpc::check(probe, ask, kept, sockets).await;
            (result, kept.map(Kept::Grpc))
        }
        Probe::Tcp(probe) => (tcp::check(probe, ask, sockets).await, None),
    }
}

async fn connect(ask: &Ask, sockets: &dyn SocketSource) -> Result<TcpStream, CheckResult> {
    let socket = sockets.tcp_socket(ask.address);
    let socket = socket.map_err(|_| CheckResult::ConnectFailed)?;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let stream = socket.connect(ask.address).await;
    let stream = stream.map_err(|_| CheckResult::ConnectFailed)?;
    // Small writes, each awaited; without it the check still works, later.
    let _slower = stream.set_nodelay(true);
    Ok(stream)
}

/// When something is due, as the schedule has it.
type At = MonoNanos;
