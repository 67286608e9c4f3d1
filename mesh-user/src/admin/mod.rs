//! The admin interface: a unix socket for the CLI, a TCP port for metrics and health.
//!
//! Runs on its own thread with its own small runtime: control work never delays a request. Knows
//! the agent only through [`Agent`]; `app` implements it. The CLI reads the same structs back, so
//! both must stay `Serialize + Deserialize`.

pub mod status;

use std::{net::SocketAddr, sync::Arc};

pub use status::{
    Condition, ConfigStatus, Drain, LastError, Status, WorkloadState, WorkloadStatus,
};

use crate::{
    kernel::{
        Instance,
        view::{MapRow, StatRow},
    },
    policy::Snapshot,
    telemetry::Telemetry,
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

    /// Reads the configuration again now; returns the generation in force.
    ///
    /// # Errors
    /// The rendered problems of the file: the old snapshot stays in force.
    fn reload(&self) -> Result<u64, String>;
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
}

/// The running admin interface. Dropping it stops it and removes its socket.
#[derive(Debug)]
pub struct Admin {}

/// Why the admin interface could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {}

impl Admin {
    /// Binds both listeners and starts the thread.
    ///
    /// # Errors
    /// Socket held by a live agent, port taken, no permission: each by name. Nothing is left.
    pub fn start(_options: AdminOptions) -> Result<Self, AdminError> {
        unimplemented!("ops")
    }
}
