//! What this kernel lacks, found by trying, and the variant of the programs that does without.
//!
//! A variant is a constant of the object that the loader sets before the verifier sees it: code
//! behind a constant «no» is never walked, so a helper or a context field that the kernel doesn't
//! know is no obstacle there (docs/decisions/0055). Never by version: distributions carry features
//! back.

use std::io;

use aya::EbpfLoader;

use super::sys::{self, AttachType};

/// `r0 = VALUE`.
pub(super) const fn mov_r0(value: i32) -> u64 {
    0xb7 | (value as u32 as u64) << 32
}
/// `r1 = VALUE`.
pub(super) const fn mov_r1(value: i32) -> u64 {
    0xb7 | 1 << 8 | (value as u32 as u64) << 32
}
/// `r0 = *(u32 *)(r1 + OFFSET)`.
pub(super) const fn load_r0(offset: u16) -> u64 {
    0x61 | 1 << 12 | (offset as u64) << 16
}
/// `r1 = *(u64 *)(r1 + OFFSET)`.
const fn load_r1_wide(offset: u16) -> u64 {
    0x79 | 1 << 8 | 1 << 12 | (offset as u64) << 16
}
/// Calls a helper.
pub(super) const fn call(helper: u32) -> u64 {
    0x85 | (helper as u64) << 32
}
pub(super) const EXIT: u64 = 0x95;

pub(super) const CGROUP_SOCK: u32 = 9;
pub(super) const SOCK_OPS: u32 = 13;
pub(super) const SOCK_ADDR: u32 = 18;
pub(super) const SOCKOPT: u32 = 25;
pub(super) const SK_LOOKUP: u32 = 30;

/// A connect hook that refuses with an errno of its own.
const SET_RETVAL: [u64; 4] = [mov_r1(-libc::ECONNREFUSED), call(187), mov_r0(0), EXIT];
/// An `sk_lookup` program that reads the interface.
const INTERFACE: [u64; 3] = [load_r0(64), mov_r0(1), EXIT];

/// A connect hook that asks for the multipath socket above its own.
const MULTIPATH: [u64; 4] = [load_r1_wide(64), call(196), mov_r0(1), EXIT];

/// A `sock_ops` program that asks for the caller's cgroup.
const CURRENT_CGROUP: [u64; 3] = [call(80), mov_r0(1), EXIT];
/// A program that asks for its socket's network namespace.
const NETNS: [u64; 3] = [call(122), mov_r0(1), EXIT];

/// For which cgroups a load of `flow_ops` is meant, where the program can't ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The agent's: every socket is the agent's own.
    Agent,
    /// The workloads': none is.
    Workloads,
}

/// What the programs do without where the kernel lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// `bpf_set_retval` (Linux 5.18): a refused connect fails with ECONNREFUSED, else with EPERM.
    pub(super) set_retval: bool,
    /// `ingress_ifindex` in `sk_lookup` (Linux 5.17): else `steer` goes by addresses alone.
    pub(super) interface: bool,
    /// `bpf_get_current_cgroup_id` in `sock_ops` (about Linux 6.2): else one variant of `flow_ops`
    /// is attached to the agent's cgroup and another to the workloads'.
    pub(super) current_cgroup: bool,
    /// `bpf_get_netns_cookie` in `sock_ops` (Linux 5.15): else mode `loopback` is refused.
    pub(super) ops_netns: bool,
    /// `bpf_skc_to_mptcp_sock` (Linux 5.19): else a multipath connect that fails before its SYN
    /// keeps its place of a connection cap.
    pub(super) multipath: bool,
}

impl Features {
    /// Tries each one with the smallest program that needs it.
    pub(super) fn probe() -> Self {
        Self {
            set_retval: set_retval().is_ok(),
            current_cgroup: current_cgroup().is_ok(),
            interface: interface().is_ok(),
            ops_netns: ops_netns().is_ok(),
            multipath: multipath().is_ok(),
        }
    }

    /// Sets the object's constants.
    pub(super) fn choose(self, loader: &mut EbpfLoader<'_>, role: Role) {
        // A static: the loader keeps references.
        static NUMBERS: [u32; 3] = [0, 1, 2];
        let number = |yes: bool| &NUMBERS[usize::from(yes)];
        // `features` of the programs: 0 asks, 1 is the agent's, 2 the workloads'.
        let flow_role = match (self.current_cgroup, role) {
            (true, _) => &NUMBERS[0],
            (false, Role::Agent) => &NUMBERS[1],
            (false, Role::Workloads) => &NUMBERS[2],
        };
        loader.override_global("FLOW_ROLE", flow_role, true);
        loader.override_global("HAS_SET_RETVAL", number(self.set_retval), true);
        loader.override_global("HAS_OPS_NETNS", number(self.ops_netns), true);
        loader.override_global("HAS_INTERFACE", number(self.interface), true);
        loader.override_global("HAS_MULTIPATH", number(self.multipath), true);
    }
}

/// Tries `bpf_set_retval` in a connect hook.
pub(super) fn set_retval() -> io::Result<()> {
    load(SOCK_ADDR, AttachType::Connect4, &SET_RETVAL)
}

/// Tries `bpf_get_current_cgroup_id` in `sock_ops`.
pub(super) fn current_cgroup() -> io::Result<()> {
    load(SOCK_OPS, AttachType::SockOps, &CURRENT_CGROUP)
}

/// Tries `bpf_get_netns_cookie` in `sock_ops`.
pub(super) fn ops_netns() -> io::Result<()> {
    load(SOCK_OPS, AttachType::SockOps, &NETNS)
}

/// Tries `bpf_get_netns_cookie` in a setsockopt program.
pub(super) fn sockopt_netns() -> io::Result<()> {
    load(SOCKOPT, AttachType::SetSockopt, &NETNS)
}

/// Tries `bpf_skc_to_mptcp_sock` in a connect hook.
pub(super) fn multipath() -> io::Result<()> {
    load(SOCK_ADDR, AttachType::Connect4, &MULTIPATH)
}

/// Tries `ingress_ifindex` in `sk_lookup`.
pub(super) fn interface() -> io::Result<()> {
    load(SK_LOOKUP, AttachType::SkLookup, &INTERFACE)
}

fn load(kind: u32, attach: AttachType, program: &[u64]) -> io::Result<()> {
    sys::prog_load(kind, attach as u32, program).map(drop)
}
