//! `sock_release`: an application closes its socket. Most of what a socket holds is given back when
//! TCP reports its end; a socket whose connect failed before the SYN never reports any.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::ctx;

/// This hook can't refuse.
const ALLOW: i32 = 1;

#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    ctx::let_go(ctx.sock);
    ALLOW
}
