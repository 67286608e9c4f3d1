//! The admin interface: a unix socket for the CLI, a TCP port for metrics and health.
//!
//! Runs on its own thread with its own small runtime: control work never delays a request. Knows
//! the agent only through [`Agent`]; `app` implements it. The CLI reads the same structs back, so
//! both must stay `Serialize + Deserialize`.

mod body;
pub mod document;
pub mod events;
pub mod explain;
mod listen;
mod routes;
mod server;
mod shield;
pub mod status;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use tokio::sync::oneshot;

use listen::Place;
pub use routes::TAKEOVER_PROTOCOL;
pub use shield::ShieldAsk;
pub use status::{
    Condition, ConfigStatus, Drain, LastError, Status, WorkloadState, WorkloadStatus,
};

use crate::{
    kernel::{
        Instance,
        view::{MapRow, StatRow},
    },
    policy::Snapshot,
    telemetry::{LiveConnection, ShieldSample, Telemetry},
};

/// What the admin interface needs of a running agent. Calls come from the admin thread, never
/// from a worker, and may block for milliseconds (`reload`: for as long as a reload takes).
pub trait Agent: Send + Sync + std::fmt::Debug {
    /// How the agent is now. Cheap: no system call for each workload.
    fn status(&self) -> Status;

    /// The snapshot in force.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Reads the kernel's counters and map fills. The caller keeps the answer for a few seconds,
    /// so that frequent scrapes don't walk the maps each time.
    fn kernel(&self) -> KernelSample;

    /// Resumes (`true`) or pauses capture; returns when it is in force.
    ///
    /// # Errors
    /// Why the kernel's map could not be written.
    fn redirect(&self, on: bool) -> Result<(), String>;

    /// Whether the data path moves. An error makes `/livez` fail: only what a restart would mend.
    ///
    /// # Errors
    /// What stands still.
    fn live(&self) -> Result<(), String> {
        Ok(())
    }

    /// Answers a question about the shield, or changes it.
    ///
    /// # Errors
    /// It is not configured, or what was asked for is not possible, by name.
    fn shield(&self, ask: &ShieldAsk) -> Result<serde_json::Value, String> {
        let _ = ask;
        Err("this agent has no shield".to_owned())
    }

    /// Open connections through the proxy with their last decisions: of one client, or all. May
    /// take half a second.
    fn connections(&self, peer: Option<SocketAddr>) -> Vec<LiveConnection> {
        let _ = peer;
        Vec::new()
    }

    /// What the shield counted; none: there is none.
    fn shield_sample(&self) -> Option<ShieldSample> {
        None
    }

    /// Reads the configuration again now; returns the generation in force.
    ///
    /// # Errors
    /// The rendered problems of the file: the old snapshot stays in force.
    fn reload(&self) -> Result<u64, String>;

    /// Speaks with a successor until it has taken over, has failed or is gone. Has a thread of its
    /// own.
    fn hand_over(&self, successor: UnixStream) {
        drop(successor);
    }
}

/// What the kernel counted, for `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct KernelSample {
    /// Reason counters.
    pub stats: Vec<StatRow>,
    /// Map fills.
    pub maps: Vec<MapRow>,
}

/// What the admin interface is started with.
#[derive(Clone, Debug)]
pub struct AdminOptions {
    /// The instance: names the socket.
    pub instance: Instance,
    /// Where metrics and health are served; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The agent.
    pub agent: Arc<dyn Agent>,
    /// The counters that `/metrics` shows.
    pub telemetry: Arc<Telemetry>,
    /// What `/events` tells.
    pub events: Arc<events::Events>,
}

/// The running admin interface. Dropping it stops it and removes its socket.
#[derive(Debug)]
pub struct Admin {
    metrics: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    retire: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    place: Place,
}

/// Why the admin interface could not be started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another agent has the instance.
    #[error(
        "instance {instance:?} is held by a live agent{}: stop it first, or choose another name \
         with --instance",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Held {
        /// The instance.
        instance: String,
        /// The agent, when it left its number.
        pid: Option<u32>,
    },
    /// A directory, the lock or the socket could not be made.
    #[error("admin socket: can't {what} {path}: {source}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The metrics port is taken.
    #[error(
        "metrics port {address} is taken by another process: set `agent.metrics` to a free \
         address, or stop the process (`ss -ltnp`)"
    )]
    PortTaken {
        /// The address.
        address: SocketAddr,
    },
    /// The metrics port can't be bound for another reason.
    #[error("metrics port: can't listen on {address} (`agent.metrics`): {source}")]
    Port {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No thread or runtime could be made.
    #[error("admin: can't start its thread: {0}")]
    Thread(#[source] io::Error),
}

impl Admin {
    /// Binds both listeners and starts the thread.
    ///
    /// # Errors
    /// Socket held by a live agent, port taken, no permission: each by name. Nothing is left.
    pub fn start(options: AdminOptions) -> Result<Self, AdminError> {
        let run_dir = options.instance.run_dir();
        let socket = options.instance.admin_socket();
        Self::start_at(&run_dir, &socket, options)
    }

    fn start_at(run_dir: &Path, socket: &Path, options: AdminOptions) -> Result<Self, AdminError> {
        let (place, unix) = Place::take(options.instance.name(), run_dir, socket)?;
        let tcp = (options.metrics)
            .map(|address| listen::metrics(address, false))
            .transpose()?;
        Self::serve(options, place, unix, tcp)
    }

    /// Starts in the place of a predecessor, whose lock this is and who serves metrics at
    /// `metrics`: binds the port beside it, and its own socket over the other's, last.
    ///
    /// # Errors
    /// As for [`Admin::start`]. The other's socket is where it was.
    pub fn take_over(
        options: AdminOptions,
        lock: File,
        metrics: Option<SocketAddr>,
    ) -> Result<Self, AdminError> {
        let tcp = (options.metrics)
            .map(|address| listen::metrics(address, Some(address) == metrics))
            .transpose()?;
        let (place, unix) = Place::take_over(lock, &options.instance.admin_socket())?;
        Self::serve(options, place, unix, tcp)
    }

    fn serve(
        options: AdminOptions,
        place: Place,
        unix: UnixListener,
        tcp: Option<std::net::TcpListener>,
    ) -> Result<Self, AdminError> {
        let metrics = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Reloads, scrapes, status: none of them many at once.
            .max_blocking_threads(4)
            .build()
            .map_err(AdminError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let (retire, retired) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("mesh-admin".into())
            .spawn(move || runtime.block_on(server::run(options, unix, tcp, retired, stopped)))
            .map_err(AdminError::Thread)?;
        Ok(Self {
            metrics,
            stop: Some(stop),
            retire: Some(retire),
            thread: Some(thread),
            place,
        })
    }

    /// Leaves the metrics port to a successor. What is connected is answered.
    pub fn retire(&mut self) {
        if let Some(retire) = self.retire.take() {
            // An error says that the thread ended already.
            let _ = retire.send(());
        }
    }

    /// A descriptor of the lock, for a successor.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn share_lock(&self) -> io::Result<File> {
        self.place.share_lock()
    }

    /// Where metrics and health are served: the port that was taken when 0 was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error says that the thread ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // A panic in it was its own message.
            let _ = thread.join();
        }
    }
}
