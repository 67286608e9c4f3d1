//! Rows of the tables that the command line prints.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

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
    pub addresses: Vec<IpAddr>,
}

/// A row of `mesh bpf redirect list`: what a connect to this address does.
#[derive(Clone, Debug, Serialize)]
pub struct RedirectRow {
    /// Number of the workload.
    pub pod_id: u32,
    /// `namespace/name`.
    pub workload: String,
    /// `out` or `in`.
    pub direction: String,
    /// Listener shard.
    pub shard: u16,
    /// Cookie of the listener's socket, as the kernel gives it.
    pub listener: u64,
    /// Whether capture is on now: agent alive, not paused.
    pub state: String,
}

/// A row of `mesh bpf inbound list`: what happens at a port of a workload.
#[derive(Clone, Debug, Serialize)]
pub struct InboundRow {
    /// Number of the workload.
    pub pod_id: u32,
    /// `namespace/name`.
    pub workload: String,
    /// Port; `*`: every port that is not listed.
    pub port: String,
    /// `pass`, `capture` or `deny`.
    pub action: String,
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
    /// `namespace/name:port`, where the agent left its name, else `?`.
    pub service: String,
    /// How many slots the kernel's split has.
    pub slots: u32,
    /// Endpoints of the kernel's last split with their share of the slots.
    pub backends: Vec<(SocketAddr, u32)>,
    /// Whether the platform routes the address.
    pub routable: bool,
}

/// A row of `mesh bpf endpoints list`: an endpoint of one version that the kernel may choose, and
/// what became of the connections that it sent there.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointRow {
    /// `namespace/name:port`, where the agent left its name, else `?`.
    pub service: String,
    /// The version, likewise.
    pub version: String,
    /// The endpoint.
    pub address: SocketAddr,
    /// `on`, or `out` of rotation.
    pub state: String,
    /// Its slots, over all virtual addresses.
    pub slots: u32,
    /// Connections that are under way or established.
    pub active: u64,
    /// Places of its version's cap that are held; none without a cap.
    pub cap_active: Option<u64>,
    /// The cap.
    pub cap_limit: Option<u64>,
    /// Connections that were refused for the cap.
    pub cap_refused: Option<u64>,
    /// Connections begun.
    pub opened: u64,
    /// Connections established.
    pub established: u64,
    /// Connections that failed before.
    pub failed: u64,
    /// Connections that the application gave up before an answer could be missed.
    pub abandoned: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Bytes that those sent.
    pub bytes_out: u64,
    /// Bytes that those received.
    pub bytes_in: u64,
}

/// A row of `mesh bpf conns list`.
#[derive(Clone, Debug, Serialize)]
pub struct ConnRow {
    /// `out` (workload to proxy or direct), `up` (proxy to endpoint) or `app` (proxy to the
    /// workload's own application).
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
    /// Service that it asked for, `namespace/name`: known to the running agent only.
    pub service: Option<String>,
    /// `pass`, `kernel`, `proxy`; `-` for `up`.
    pub verdict: String,
    /// Where the bytes end up: the kernel's choice, or the destination of `up`. None for a
    /// connection to the proxy: each of its requests may have another.
    pub endpoint: Option<SocketAddr>,
    /// The version that the kernel chose, or those that the endpoint belongs to: these are known to the
    /// running agent only.
    pub version: Option<String>,
    /// `connecting` or `established`.
    pub state: String,
    /// Seconds since connect.
    pub age_s: f64,
    /// Thread group of the process (`out` only).
    pub tgid: u32,
    /// Bytes sent, without repetitions; none when the socket is gone, or its namespace can't be
    /// entered.
    pub bytes_out: Option<u64>,
    /// Bytes received.
    pub bytes_in: Option<u64>,
    /// Smoothed round-trip time of TCP, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The kernel's number of the socket (`out` only).
    pub cookie: u64,
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
