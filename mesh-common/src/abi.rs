//! Version of the shared layouts, and the agent's settings that the programs read.

use crate::plain::plain;

/// Version of every layout in this crate. Part of the pin path; bump it on any change.
pub const ABI_VERSION: u32 = 3;

/// The value of `CONFIG[0]`.
///
/// Written by the agent before the first program is attached and whenever a setting changes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// [`ABI_VERSION`] of the writer.
    pub abi: u32,
    /// Mark bits of a captured socket, inside `mark_mask`.
    pub capture_mark: u32,
    /// Mark bits of the agent's own sockets, inside `mark_mask`.
    pub agent_mark: u32,
    /// The only mark bits that we ever write.
    pub mark_mask: u32,
    /// Cgroup id (v2) of the agent: its sockets are never captured.
    pub agent_cgroup: u64,
    /// A heartbeat older than this means: the agent is dead or hung. Nanoseconds.
    pub heartbeat_stale_ns: u64,
    /// How many listener shards each workload has, 1 to [`SHARDS_MAX`].
    pub shards: u32,
    /// What happens to a network namespace that we don't know: [`UNKNOWN_PASS`] or
    /// [`UNKNOWN_REFUSE`].
    pub unknown_netns: u32,
    /// 1: capture is paused (`mesh redirect off`): what the proxy would decide goes as the platform
    /// routes it, or to an endpoint of the last split where nobody else routes the address.
    pub paused: u32,
    #[doc(hidden)]
    pub _pad: u32,
    /// Network namespace cookie of the agent itself: never «unknown».
    pub agent_netns: u64,
    #[doc(hidden)]
    pub _reserved: u64,
}
plain!(
    Config,
    64,
    [u32, u32, u32, u32, u64, u64, u32, u32, u32, u32, u64, u64]
);

/// At most this many listener shards for each workload (DESIGN §10.3).
pub const SHARDS_MAX: u32 = 8;

/// `Config::unknown_netns`: let it connect as if there were no mesh.
pub const UNKNOWN_PASS: u32 = 0;
/// `Config::unknown_netns`: refuse with ECONNREFUSED.
pub const UNKNOWN_REFUSE: u32 = 1;

/// Default capture mark: one bit that Cilium (0x0f00), Calico (0xff000000 by default), Istio
/// (0x539) and kube-proxy (0x4000, 0x8000) leave alone.
pub const CAPTURE_MARK: u32 = 0x0010_0000;
/// Default mark of the agent's own sockets.
pub const AGENT_MARK: u32 = 0x0020_0000;
/// Default mask: the two bits above.
pub const MARK_MASK: u32 = 0x0030_0000;
/// Default number of the route table in a workload's namespace.
pub const ROUTE_TABLE: u32 = 1_512;
/// Preference of our rule: after `local` (0), before `main` (32766).
pub const RULE_PREFERENCE: u32 = 150;
