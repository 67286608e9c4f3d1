//! `probe_ops`: the connections that the kubelet opens, at the kubelet's own cgroup only.
//!
//! Its entry stands before the SYN leaves, so `steer` knows a probe by its exact tuple: no address
//! of the node is trusted, and nothing else that runs on it.

use aya_ebpf::{bindings::BPF_SOCK_OPS_TCP_CONNECT_CB, macros::sock_ops, programs::SockOpsContext};
use mesh_common::reason::Reason;

use crate::{
    count::count,
    ctx::{self, sock_ops::SockOps},
    maps,
};

/// Return value of the program: not looked at for this callback.
const DONE: u32 = 1;

#[sock_ops]
fn probe_ops(ctx: SockOpsContext) -> u32 {
    let snapshot = SockOps::new(&ctx).snapshot();
    // Only towards workloads: the kubelet's other connections are none of our business.
    if snapshot.op == BPF_SOCK_OPS_TCP_CONNECT_CB
        && maps::POD_BY_ADDR.lookup(&snapshot.tuple.dst).is_some()
        && maps::PROBE_FLOWS.insert(&snapshot.tuple, &ctx::now())
    {
        count(Reason::ProbeFlowOpened);
    }
    DONE
}
