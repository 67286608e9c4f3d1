//! The kernel side's user half: loads, attaches, pins, fills maps, enrols workloads.
//!
//! The only module that names aya's types. Everything it makes is pinned below one versioned
//! directory, so that the CLI reads it with the agent dead and a restart adopts it.
//!
//! Order that is an invariant (DESIGN §2): connect hooks and `flow_ops` -> sysctl, rule and route
//! in the pod (inert until something is marked) -> listeners -> `LISTENERS` -> `POD_BY_ADDR` ->
//! `steer` -> self-probe -> `POD_BY_NETNS`. Undo: `POD_BY_NETNS`, `steer`, listeners, routes.

pub mod cleanup;
pub mod mounts;
pub mod probe;
pub mod view;

use std::{net::TcpListener, path::PathBuf, sync::Arc};

use serde::Serialize;

use crate::{
    clock::MonoNanos,
    model::{Failure, Netns, kernel_table::KernelTable},
    proxy::wire::SocketSource,
};

/// The name that keeps agents on one machine apart (DESIGN §10.1): pin directory, admin socket,
/// agent cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance(String);

impl Instance {
    /// From a name of 1 to 32 characters of `a-z`, `0-9` and `-`.
    ///
    /// # Errors
    /// Any other name, with what is allowed.
    pub fn new(name: &str) -> Result<Self, String> {
        let good = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if good {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!(
                "instance name {name:?}: expected 1 to 32 of a-z, 0-9 and '-'"
            ))
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Where its admin socket and run-time files are.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/mesh").join(&self.0)
    }

    /// Its admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir().join("admin.sock")
    }
}

/// What the kernel side is started with.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// The instance.
    pub instance: Instance,
    /// Cgroups at which the connect hooks attach, below the cgroup2 mount or absolute. Empty:
    /// search for the kubepods parent.
    pub attach: Vec<PathBuf>,
    /// Listener shards for each workload: the number of workers.
    pub shards: u16,
    /// Whether unknown network namespaces below the attach point are refused.
    pub refuse_unknown: bool,
}

/// A workload that shall be enrolled.
#[derive(Clone, Debug)]
pub struct Enrol {
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Its network namespace.
    pub netns: Netns,
    /// What happens when the agent is gone.
    pub failure: Failure,
}

/// A workload that is enrolled: everything stands but `POD_BY_NETNS`. The caller hands the
/// listeners to the workers, then calls [`Kernel::go_live`]: state first, capture second.
#[derive(Debug)]
pub struct Enrolled {
    /// Its number.
    pub pod_id: u32,
    /// One listener for each shard, in order; listening and non-blocking.
    pub listeners: Vec<TcpListener>,
    /// Makes sockets in its namespace.
    pub sockets: Arc<dyn SocketSource>,
}

/// Why a workload disappeared without being asked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The workload's number.
    pub pod_id: u32,
    /// `namespace/name`.
    pub key: Arc<str>,
    /// What was seen.
    pub why: String,
}

/// The programs and maps of one instance, loaded, attached and pinned.
#[derive(Debug)]
pub struct Kernel {}

/// Why the kernel side could not be started. Nothing half-attached is left.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Placeholder until the module is written.
    #[error("the kernel side is not built")]
    NotBuilt,
}

/// Why a workload could not be enrolled. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Placeholder until the module is written.
    #[error("the kernel side is not built")]
    NotBuilt,
}

/// Writes the heartbeat: a plain store into mapped memory, from any thread.
#[derive(Debug)]
pub struct Heartbeat {}

impl Heartbeat {
    /// Writes the tick of the oldest worker.
    pub fn beat(&self, _tick: MonoNanos) {
        unimplemented!("kernel")
    }
}

impl Kernel {
    /// Probes, loads (or adopts pinned maps and updates pinned links), attaches, pins. Moves the
    /// calling process into the instance's agent cgroup.
    ///
    /// # Errors
    /// The missing feature, capability or mount by name, with what to do.
    pub fn start(_options: &KernelOptions) -> Result<Self, KernelError> {
        unimplemented!("kernel")
    }

    /// Enrols a workload up to the self-probe. Synchronous; takes milliseconds.
    ///
    /// # Errors
    /// Namespace gone, address taken by another workload, map full, probe failed, ...
    pub fn enrol(&mut self, _workload: &Enrol) -> Result<Enrolled, EnrolError> {
        unimplemented!("kernel")
    }

    /// Last step: from the next connect on the workload is captured.
    ///
    /// # Errors
    /// `POD_BY_NETNS` is full.
    pub fn go_live(&mut self, _pod_id: u32) -> Result<(), EnrolError> {
        unimplemented!("kernel")
    }

    /// First step of release: capture stops at once. Connections live on.
    pub fn stop_capture(&mut self, _pod_id: u32) {
        unimplemented!("kernel")
    }

    /// Last step of release: steer, listeners, rule, routes, addresses.
    pub fn release(&mut self, _pod_id: u32) {
        unimplemented!("kernel")
    }

    /// Workloads whose namespace went away since the last call. Cheap: called every 250 ms. Also
    /// follows address changes of the others.
    pub fn poll_gone(&mut self) -> Vec<Gone> {
        unimplemented!("kernel")
    }

    /// Writes the difference between the maps and the table.
    ///
    /// # Errors
    /// A map is full: nothing was changed.
    pub fn apply(&mut self, _table: &KernelTable) -> Result<(), KernelError> {
        unimplemented!("kernel")
    }

    /// Pauses or resumes capture (`mesh redirect off|on`).
    ///
    /// # Errors
    /// The map could not be written.
    pub fn set_paused(&mut self, _paused: bool) -> Result<(), KernelError> {
        unimplemented!("kernel")
    }

    /// The heartbeat's writer.
    ///
    /// # Errors
    /// The map could not be mapped.
    pub fn heartbeat(&self) -> Result<Heartbeat, KernelError> {
        unimplemented!("kernel")
    }

    /// Sockets that leave from the agent's own namespace, with the agent's mark.
    pub fn node_sockets(&self) -> Arc<dyn SocketSource> {
        unimplemented!("kernel")
    }

    /// Looks original destinations up in `FLOWS`.
    pub fn origins(&self) -> Arc<dyn crate::proxy::wire::OriginLookup> {
        unimplemented!("kernel")
    }
}
