//! `getpeername4`, `getpeername6`: the application sees what it dialled, also where the connect
//! hook rewrote the destination: to an endpoint, or to the loopback. A connection captured by its
//! mark needs no help: its peer *is* what it dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{
    addr::Addr,
    flow::{INTENT_LOOPBACK, VERDICT_KERNEL},
};

use super::loopback;
use crate::ctx::{self, sock_addr::SockAddr};

/// These hooks may not refuse.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some((asked, port)) = asked::<false>(ctx) {
        ctx.set_v4(&asked, port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some((asked, port)) = asked::<true>(ctx) {
        ctx.set_v6(&asked, port);
    }
    ALLOW
}

/// What was asked for, where the hook rewrote it.
#[inline(always)]
fn asked<const V6: bool>(ctx: SockAddr) -> Option<(Addr, u16)> {
    if let Some(intent) = ctx::intent(ctx.sk()) {
        let rewritten = intent.verdict == VERDICT_KERNEL || intent.flags & INTENT_LOOPBACK != 0;
        return rewritten.then_some((intent.asked, intent.asked_port));
    }
    let (_, origin) = loopback::of_multipath::<V6>(ctx)?;
    Some((origin.asked, origin.asked_port))
}
