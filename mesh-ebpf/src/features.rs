//! What the kernel has: constants that the loader sets before the verifier walks the programs, so
//! that code for a feature that is absent is dead code to it (docs/decisions/0055).
//!
//! Read in the branch that needs the feature and nowhere else: a branch that is never taken on any
//! kernel costs nothing where the feature is there.

use aya_ebpf::Global;

/// `bpf_set_retval` in connect hooks.
#[expect(unsafe_code, reason = "the loader finds it by its name")]
#[unsafe(no_mangle)]
pub(crate) static HAS_SET_RETVAL: Global<u32> = Global::new(1);

/// How `flow_ops` knows the agent's own sockets: [`ROLE_ASK`], or by where it is attached, since a
/// socket's hooks are those of the cgroup in which it was made.
#[expect(unsafe_code, reason = "the loader finds it by its name")]
#[unsafe(no_mangle)]
pub(crate) static FLOW_ROLE: Global<u32> = Global::new(ROLE_ASK);
/// By the caller's cgroup: `bpf_get_current_cgroup_id` in sock_ops (about Linux 6.2).
pub(crate) const ROLE_ASK: u32 = 0;
/// Attached to the agent's cgroup: every socket is the agent's. (2: to the workloads' cgroups, none
/// is.)
pub(crate) const ROLE_AGENT: u32 = 1;

/// `bpf_get_netns_cookie` in sock_ops: mode `loopback` needs it.
#[expect(unsafe_code, reason = "the loader finds it by its name")]
#[unsafe(no_mangle)]
pub(crate) static HAS_OPS_NETNS: Global<u32> = Global::new(1);

/// `bpf_skc_to_mptcp_sock` in connect hooks.
#[expect(unsafe_code, reason = "the loader finds it by its name")]
#[unsafe(no_mangle)]
pub(crate) static HAS_MULTIPATH: Global<u32> = Global::new(1);

/// `ingress_ifindex` in `sk_lookup`.
#[expect(unsafe_code, reason = "the loader finds it by its name")]
#[unsafe(no_mangle)]
pub(crate) static HAS_INTERFACE: Global<u32> = Global::new(1);
