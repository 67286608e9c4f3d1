//! `sendmsg4`, `sendmsg6`: outbound rules for datagrams of unconnected sockets. Attached only while
//! a rule denies datagrams.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{
    abi::Config,
    addr::Addr,
    maps::{OUT_RULE_FIXED_BITS, OutRuleKey, OutRulePrefix},
    reason::{Event, Reason},
};
use mesh_ebpf::decide::datagram::{World, refused};

use crate::{
    count::{count, event},
    ctx::{self, sock_addr::SockAddr},
    maps,
};

/// Return values of the hook.
const ALLOW: i32 = 1;
const DENY: i32 = 0;

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (addr, port) = ctx.v4();
    send(ctx, &addr, port)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (addr, port) = ctx.v6();
    send(ctx, &addr, port)
}

#[inline(always)]
fn send(ctx: SockAddr, addr: &Addr, port: u16) -> i32 {
    if !ctx.is_udp() {
        return ALLOW;
    }
    let pod_id = refused(addr, port, ctx::current_cgroup(), &Kernel(ctx));
    if pod_id == 0 {
        return ALLOW;
    }
    count(Reason::RefuseDatagram);
    event(&Event {
        time_ns: ctx::now(),
        netns: ctx.netns(),
        src: Addr::UNSPECIFIED,
        dst: *addr,
        sport: 0,
        dport: port,
        reason: Reason::RefuseDatagram as u32,
        pod_id,
        tgid: ctx::current_tgid(),
    });
    ctx.refuse();
    DENY
}

/// `OUT_RULES` for UDP: the action of the longest prefix for exactly this port (0: any).
#[inline(always)]
pub(super) fn rule(port: u16, addr: &Addr) -> Option<u32> {
    maps::OUT_RULES.get(&OutRulePrefix {
        bits: OUT_RULE_FIXED_BITS + 128,
        data: OutRuleKey::udp(*addr, port),
    })
}

struct Kernel(SockAddr);

impl World for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<Config> {
        ctx::config()
    }
    #[inline(always)]
    fn pod_id(&self) -> u32 {
        match maps::POD_BY_NETNS.get(&self.0.netns()) {
            Some(pod) => pod.pod_id,
            None => 0,
        }
    }
    #[inline(always)]
    fn rule(&self, port: u16, addr: &Addr) -> Option<u32> {
        rule(port, addr)
    }
}
