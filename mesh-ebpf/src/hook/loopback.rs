//! Mode `loopback`: where a connection was going that the connect hook sent to the workload's own
//! loopback, for the agent that accepts it and for the application that asks for its own address.
//!
//! ```text
//! connect hook: INTENT (application's socket)   getpeername4/6, getsockname4/6 read it
//!   -> connecting: LOOP_FLOWS[tuple, workload]   before the SYN, so before anybody accepts
//!     -> accepted: ORIGIN (agent's socket)       before the accept queue has the connection
//!       -> SO_ORIGINAL_DST, or the agent reads ORIGIN by the descriptor
//! ```
//! Two steps, because an application may connect, write and close before the agent accepts: its
//! entry in `LOOP_FLOWS` goes with its socket. The handshake's last packet goes before the end of
//! the connection, and `accepted` runs on that one.

use aya_ebpf::{
    bindings::bpf_sock,
    macros::{cgroup_sock_addr, cgroup_sockopt},
    programs::{SockAddrContext, SockoptContext},
};
use mesh_common::{
    addr::Addr,
    flow::{FlowKey, INTENT_LOOPBACK, Intent, LoopFlow, Tuple},
    pod::PodSources,
    reason::Reason,
};

use crate::{
    count::count,
    ctx::{self, sock_addr::SockAddr, sock_ops::SockOps, sockopt::Sockopt},
    features, maps,
};

/// The hooks for names may not refuse; for options it means «the answer stands».
const ALLOW: i32 = 1;

/// The SYN is not sent yet.
#[inline(always)]
pub(super) fn connecting(tuple: &Tuple, intent: &Intent) {
    if intent.flags & INTENT_LOOPBACK == 0 {
        return;
    }
    let origin = LoopFlow {
        asked: intent.asked,
        asked_port: intent.asked_port,
        _pad: [0; 6],
        connect_ns: intent.connect_ns,
    };
    if !maps::LOOP_FLOWS.insert(&key(tuple, intent.pod_id), &origin) {
        count(Reason::LoopFlowFull);
    }
}

/// The application's socket is closed.
#[inline(always)]
pub(super) fn closed(tuple: &Tuple, intent: &Intent) {
    if intent.flags & INTENT_LOOPBACK != 0 {
        let _ = maps::LOOP_FLOWS.remove(&key(tuple, intent.pod_id));
    }
}

/// A connection was accepted by the kernel, perhaps by a listener of the agent: those have its
/// mark, which a workload may set too and gain nothing, for nothing is sent to its listeners.
#[inline(always)]
pub(super) fn accepted(ctx: SockOps, tuple: &Tuple, sk: *mut bpf_sock) {
    if !tuple.src.is_loopback() || features::HAS_OPS_NETNS.load() == 0 {
        return;
    }
    let Some(config) = ctx::config() else {
        return;
    };
    if ctx::mark(sk) & config.mark_mask != config.agent_mark {
        return;
    }
    let Some(pod) = maps::POD_BY_NETNS.get(&ctx.netns()) else {
        return;
    };
    // As the one that connected sees it.
    let tuple = Tuple {
        src: tuple.dst,
        dst: tuple.src,
        sport: tuple.dport,
        dport: tuple.sport,
    };
    if let Some(origin) = maps::LOOP_FLOWS.get(&key(&tuple, pod.pod_id)) {
        ctx::set_origin(sk, &origin);
    }
}

#[inline(always)]
fn key(tuple: &Tuple, pod_id: u32) -> FlowKey {
    FlowKey {
        tuple: *tuple,
        pod_id,
    }
}

#[cgroup_sock_addr(getsockname4)]
fn getsockname4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (addr, port) = ctx.v4();
    if let Some(sources) = sources::<false>(ctx, &addr)
        && !sources.v4.is_unspecified()
    {
        ctx.set_v4(&sources.v4, port);
    }
    ALLOW
}

#[cgroup_sock_addr(getsockname6)]
fn getsockname6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (addr, port) = ctx.v6();
    if let Some(sources) = sources::<true>(ctx, &addr) {
        let own = if addr.is_v4() { sources.v4 } else { sources.v6 };
        if !own.is_unspecified() {
            ctx.set_v6(&own, port);
        }
    }
    ALLOW
}

/// The addresses of the workload, where the socket was sent to the loopback and its own address
/// says so. A socket that was bound to an address has that one.
#[inline(always)]
fn sources<const V6: bool>(ctx: SockAddr, addr: &Addr) -> Option<PodSources> {
    if !addr.is_loopback() {
        return None;
    }
    let pod_id = match ctx::intent(ctx.sk()) {
        Some(intent) if intent.flags & INTENT_LOOPBACK == 0 => return None,
        Some(intent) => intent.pod_id,
        None => of_multipath::<V6>(ctx)?.0,
    };
    maps::POD_SOURCES.get(&pod_id)
}

/// The workload and the origin of a multipath TCP socket's connection that was sent to the
/// loopback. The connect hook sees the first subflow, a socket of its own, and the intent stands
/// with that one; names are asked of the socket above it, which has the same tuple.
#[inline(always)]
pub(super) fn of_multipath<const V6: bool>(ctx: SockAddr) -> Option<(u32, LoopFlow)> {
    if !ctx.is_multipath() {
        return None;
    }
    let tuple = ctx.tuple::<V6>();
    if !tuple.dst.is_loopback() {
        return None;
    }
    let pod = maps::POD_BY_NETNS.get(&ctx.netns())?;
    let origin = maps::LOOP_FLOWS.get(&key(&tuple, pod.pod_id))?;
    Some((pod.pod_id, origin))
}

/// Answers `SO_ORIGINAL_DST` for sockets that the agent accepted, as netfilter's NAT would.
#[cgroup_sockopt(getsockopt)]
fn original_dst(ctx: SockoptContext) -> i32 {
    let ctx = Sockopt::new(&ctx);
    if let Some(v6) = ctx.asks_original_dst() {
        if let Some(origin) = ctx::origin(ctx.sk())
            && origin.asked.is_v4() != v6
        {
            ctx.answer(&origin.asked, origin.asked_port);
        }
    } else {
        ctx.leave();
    }
    ALLOW
}
