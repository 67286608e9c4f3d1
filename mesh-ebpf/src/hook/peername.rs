//! `getpeername4`, `getpeername6`: the application sees what it dialled, also where the connect
//! hook rewrote the destination: to an endpoint, or to the loopback. A connection captured by its
//! mark needs no help: its peer *is* what it dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::flow::{INTENT_LOOPBACK, Intent, VERDICT_KERNEL};

use crate::ctx::{self, sock_addr::SockAddr};

/// These hooks may not refuse.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(intent) = rewritten(ctx) {
        ctx.set_v4(&intent.asked, intent.asked_port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    if let Some(intent) = rewritten(ctx) {
        ctx.set_v6(&intent.asked, intent.asked_port);
    }
    ALLOW
}

#[inline(always)]
fn rewritten(ctx: SockAddr) -> Option<Intent> {
    ctx::intent(ctx.sk()).filter(|intent| {
        intent.verdict == VERDICT_KERNEL || intent.flags & INTENT_LOOPBACK != 0
    })
}
