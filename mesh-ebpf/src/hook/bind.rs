//! `bind4`, `bind6`: a bind to a port gets SO_REUSEADDR, in a workload of mode `mark`.
//!
//! A connection captured by its mark is accepted with the destination's own port: a socket inside
//! the workload's namespace that uses, say, port 80 for as long as the connection lives. Without
//! SO_REUSEADDR on both sides no server of the workload could bind that port meanwhile. The agent's
//! side has it (docs/decisions/0040).

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{pod::MODE_MARK, reason::Reason};

use crate::{
    count::count,
    ctx::{self, sock_addr::SockAddr},
    maps,
};

/// The bind goes on.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(bind4)]
fn bind4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (_, port) = ctx.v4();
    bind(ctx, port)
}

#[cgroup_sock_addr(bind6)]
fn bind6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (_, port) = ctx.v6();
    bind(ctx, port)
}

/// A port that the kernel chooses is one that nobody uses: it needs no help, and the option would
/// change which it chooses.
#[inline(always)]
fn bind(ctx: SockAddr, port: u16) -> i32 {
    if port == 0 || !ctx.is_tcp() {
        return ALLOW;
    }
    let Some(pod) = maps::POD_BY_NETNS.get(&ctx.netns()) else {
        return ALLOW;
    };
    let Some(config) = ctx::config() else {
        return ALLOW;
    };
    if pod.mode != MODE_MARK || ctx::current_cgroup() == config.agent_cgroup {
        return ALLOW;
    }
    // Kernels before 6.1 refuse this option here: the bind goes on as it is.
    if ctx.reuse_address() {
        count(Reason::BindReuse);
    }
    ALLOW
}
