//! Reads the **pinned** maps, also with the agent dead: what `mesh bpf ...` and `/metrics` show.
//!
//! Opening a pin needs no CAP_SYS_ADMIN; enumerating objects by id would.

use std::net::SocketAddr;

use serde::Serialize;

use super::{Instance, KernelError};

/// The pinned maps of one instance.
#[derive(Debug)]
pub struct View {}

/// A row of `mesh bpf workloads list`: an enrolled workload.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadRow {
    /// Number.
    pub pod_id: u32,
    /// `namespace/name` where the agent left its name, else `?`.
    pub workload: String,
    /// Cookie of its network namespace; 0 when it is not live.
    pub netns: u64,
    /// `mark` or `off`.
    pub mode: String,
    /// `open` or `closed`.
    pub failure: String,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
}

/// A row of `mesh bpf redirect list`: what a connect to this address does.
#[derive(Clone, Debug, Serialize)]
pub struct RedirectRow {
    /// Number of the workload.
    pub pod_id: u32,
    /// `namespace/name`.
    pub workload: String,
    /// `out`.
    pub direction: String,
    /// Listener shard.
    pub shard: u16,
    /// Cookie of the listener's socket, as the kernel gives it.
    pub listener: u64,
    /// Whether capture is on now: agent alive, not paused.
    pub state: String,
}

/// A row of `mesh bpf services list`.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceRow {
    /// Virtual address and port.
    pub address: SocketAddr,
    /// Service number.
    pub service_id: u32,
    /// `pass`, `kernel` or `proxy`.
    pub decision: String,
    /// Endpoints of the kernel's last split with their share of the slots.
    pub backends: Vec<(SocketAddr, u32)>,
    /// Whether the platform routes the address.
    pub routable: bool,
}

/// A row of `mesh bpf conns list`.
#[derive(Clone, Debug, Serialize)]
pub struct ConnRow {
    /// `out` (workload to proxy or direct) or `up` (proxy to endpoint).
    pub leg: String,
    /// Number of the workload.
    pub pod_id: u32,
    /// `namespace/name`.
    pub workload: String,
    /// Connecting side.
    pub source: SocketAddr,
    /// Where the packets go.
    pub destination: SocketAddr,
    /// What the application asked for (`out` only).
    pub asked: Option<SocketAddr>,
    /// `pass`, `kernel`, `proxy`; `-` for `up`.
    pub verdict: String,
    /// `connecting` or `established`.
    pub state: String,
    /// Seconds since connect.
    pub age_s: f64,
    /// Thread group of the process (`out` only).
    pub tgid: u32,
}

/// A row of `mesh bpf stats list`: a reason counter.
#[derive(Clone, Debug, Serialize)]
pub struct StatRow {
    /// The reason's label.
    pub reason: String,
    /// Sum over the CPUs.
    pub count: u64,
    /// Whether it refuses.
    pub refusal: bool,
}

/// A map's fill, for `mesh check` and `mesh_bpf_map_entries`.
#[derive(Clone, Debug, Serialize)]
pub struct MapRow {
    /// Name.
    pub map: String,
    /// Entries now; none where it can't be counted.
    pub entries: Option<u64>,
    /// Capacity.
    pub capacity: u64,
}

/// A row of `mesh bpf progs`: a pinned link.
#[derive(Clone, Debug, Serialize)]
pub struct ProgRow {
    /// Pin's file name.
    pub pin: String,
    /// Program name.
    pub program: String,
    /// Program type.
    pub kind: String,
    /// Program id.
    pub prog_id: u32,
    /// Link id.
    pub link_id: u32,
    /// Where it is attached: cgroup id or path, or namespace inode.
    pub attached: String,
    /// Verified instructions.
    pub verified_insns: u32,
}

impl View {
    /// Opens the pins of an instance.
    ///
    /// # Errors
    /// No pins (nothing runs or ran), or pins of another ABI, by name.
    pub fn open(_instance: &Instance) -> Result<Self, KernelError> {
        unimplemented!("kernel")
    }

    /// Enrolled workloads, by number.
    pub fn workloads(&self) -> Vec<WorkloadRow> {
        unimplemented!("kernel")
    }

    /// Redirections, by workload and shard.
    pub fn redirects(&self) -> Vec<RedirectRow> {
        unimplemented!("kernel")
    }

    /// Services, by address.
    pub fn services(&self) -> Vec<ServiceRow> {
        unimplemented!("kernel")
    }

    /// Connections, by workload and age.
    pub fn conns(&self) -> Vec<ConnRow> {
        unimplemented!("kernel")
    }

    /// Counters, by code; all of them, also zeros.
    pub fn stats(&self) -> Vec<StatRow> {
        unimplemented!("kernel")
    }

    /// Fill of every map.
    pub fn maps(&self) -> Vec<MapRow> {
        unimplemented!("kernel")
    }

    /// Pinned links with their programs.
    pub fn progs(&self) -> Vec<ProgRow> {
        unimplemented!("kernel")
    }

    /// Whether capture is paused.
    pub fn paused(&self) -> bool {
        unimplemented!("kernel")
    }

    /// Age of the heartbeat; none when it was never written.
    pub fn heartbeat_age(&self, _now: crate::clock::MonoNanos) -> Option<std::time::Duration> {
        unimplemented!("kernel")
    }
}
