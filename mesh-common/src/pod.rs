//! Enrolled workloads.

use crate::plain::plain;

/// A workload number, given by the agent at enrolment and never reused within one instance's
/// lifetime. 0 is «none».
pub type PodId = u32;

/// Value of `POD_BY_NETNS`: an enrolled workload, by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// The workload's number.
    pub pod_id: PodId,
    /// How it is captured: [`MODE_MARK`] or [`MODE_OFF`].
    pub mode: u8,
    /// What happens when the agent is gone: [`FAIL_OPEN`] or [`FAIL_CLOSED`].
    pub fail: u8,
    #[doc(hidden)]
    pub _pad: u16,
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
    #[doc(hidden)]
    pub _pad: [u8; 3],
}
plain!(PodAddr, 12, [u32, u32, u8, [u8; 3]]);
