//! Enrolled workloads.

use crate::{addr::Addr, plain::plain};

/// A workload number, given by the agent at enrolment and never reused within one instance's
/// lifetime. 0 is «none».
pub type PodId = u32;

/// Value of `POD_BY_NETNS`: an enrolled workload, by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// The workload's number.
    pub pod_id: PodId,
    /// How it is captured: [`MODE_MARK`], [`MODE_LOOPBACK`] or [`MODE_OFF`].
    pub mode: u8,
    /// What happens when the agent is gone: [`FAIL_OPEN`] or [`FAIL_CLOSED`].
    pub fail: u8,
    /// Bit 0: [`POD_GUARDED`]; bit 1: [`POD_BROKEN`].
    pub flags: u16,
    /// Generation of the agent that wrote it.
    pub generation: u32,
    #[doc(hidden)]
    pub _pad2: u32,
}
plain!(PodEntry, 16, [u32, u8, u8, u16, u32, u32]);

/// `PodEntry::mode`: not captured.
pub const MODE_OFF: u8 = 0;
/// `PodEntry::mode`: mark + local route + `sk_lookup`.
pub const MODE_MARK: u8 = 1;
/// `PodEntry::mode`: rewrite to the workload's own loopback, where the agent listens.
pub const MODE_LOOPBACK: u8 = 2;

/// `PodEntry::flags`: `bypass-guard: on`. Its connects leave entries in `GRANTS`, and it may not
/// touch our mark bits.
pub const POD_GUARDED: u16 = 1;
/// `PodEntry::flags`: the agent's audit found its path to the listeners broken and could not repair
/// it. Its failure mode holds, as with a dead agent.
pub const POD_BROKEN: u16 = 2;

/// `PodEntry::fail`: connections go direct when the agent is gone.
pub const FAIL_OPEN: u8 = 0;
/// `PodEntry::fail`: ECONNREFUSED at once when the agent is gone.
pub const FAIL_CLOSED: u8 = 1;

/// Value of `POD_BY_ADDR`: the workload that has this address.
///
/// `steer` can't ask for the network namespace (`bpf_get_netns_cookie` is refused in `sk_lookup`),
/// so what it needs of the workload stands here too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddr {
    /// The workload's number.
    pub pod_id: PodId,
    /// Generation of the agent that wrote it.
    pub generation: u32,
    /// Like `PodEntry::fail`.
    pub fail: u8,
    /// What happens to connections that come in on a port without an entry in `IN_RULES`:
    /// [`INBOUND_PASS`], [`INBOUND_CAPTURE`] or [`INBOUND_DENY`].
    pub inbound: u8,
    /// Bit 0: [`ADDR_SECOND_PASS`].
    pub flags: u8,
    #[doc(hidden)]
    pub _pad: u8,
}
plain!(PodAddr, 12, [u32, u32, u8, u8, u8, u8]);

/// An inbound connection goes to the application untouched.
pub const INBOUND_PASS: u8 = 0;
/// An inbound connection goes to the agent's inbound listener.
pub const INBOUND_CAPTURE: u8 = 1;
/// An inbound connection is dropped.
pub const INBOUND_DENY: u8 = 2;

/// `PodAddr::flags`: what the agent of this node dials for a local client passes the inbound
/// listener too (`second-pass: full`).
pub const ADDR_SECOND_PASS: u8 = 1;

/// Value of `POD_SOURCES`, by workload: the addresses that its connections leave with. What
/// `getsockname` says where a connection was sent to the loopback.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSources {
    /// Its IPv4 address; unspecified when it has none.
    pub v4: Addr,
    /// Its IPv6 address; unspecified when it has none.
    pub v6: Addr,
}
plain!(PodSources, 32, [Addr, Addr]);

/// Key of `IN_RULES`: one port of a workload. Its value is one of the `INBOUND_*` as `u32`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InRuleKey {
    /// The workload.
    pub pod_id: PodId,
    /// Port, host order.
    pub port: u16,
    /// IP protocol: 6 for TCP.
    pub proto: u8,
    #[doc(hidden)]
    pub _pad: u8,
}
plain!(InRuleKey, 8, [u32, u16, u8, u8]);

/// Value of `GUARDED`, by interface index of the node's side of a veth.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The workload behind the interface.
    pub pod_id: PodId,
    #[doc(hidden)]
    pub _pad: u32,
    /// When `egress_guard` last sent an event about it: CLOCK_MONOTONIC, nanoseconds. Every drop is
    /// counted; events are limited to one each [`GUARD_EVENT_NS`].
    pub event_ns: u64,
}
plain!(Guarded, 16, [u32, u32, u64]);

/// Shortest time between two events of one guarded interface, nanoseconds. Ten a second say all that
/// a flood has to say, and leave room in `EVENTS` for others.
pub const GUARD_EVENT_NS: u64 = 100_000_000;
