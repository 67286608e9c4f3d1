//! `egress_guard`: at the node's side of a guarded workload's veth.
//!
//! One program for tcx and clsact: «next» and «unspecified» are the same number, and programs of
//! others before and after it run as if it were not there.

use aya_ebpf::{macros::classifier, programs::TcContext};
use mesh_common::{
    abi::ABI_VERSION,
    addr::Addr,
    flow::Tuple,
    maps::{OUT_RULE_FIXED_BITS, OutRuleKey, OutRulePrefix},
    pod::{GUARD_EVENT_NS, Guarded},
    reason::{Event, Reason},
};
use mesh_ebpf::decide::guard::{Verdict, World, decide};

use crate::{
    count::{count_code, event},
    ctx::{self, packet::Packet},
    maps,
};

/// `TCX_NEXT` and `TC_ACT_UNSPEC`. Never OK: that would end the chain.
const NEXT: i32 = -1;
/// `TCX_DROP` and `TC_ACT_SHOT`.
const DROP: i32 = 2;

#[classifier]
fn egress_guard(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    let interface = packet.interface();
    let Some(slot) = maps::GUARDED.lookup(&interface) else {
        return NEXT;
    };
    let guarded = maps::copy(slot);
    let Some(config) = ctx::config() else {
        return NEXT;
    };
    if config.abi != ABI_VERSION {
        return NEXT;
    }
    let world = Kernel {
        packet,
        agent_cgroup: config.agent_cgroup,
    };
    let mut seen = Tuple {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        sport: 0,
        dport: 0,
    };
    let reason = match decide(&packet, &world, guarded.pod_id, &mut seen) {
        Verdict::Next => return NEXT,
        Verdict::Pass => Reason::GuardPass as u32,
        Verdict::Drop(reason) => reason as u32,
    };
    count_code(reason);
    if reason == Reason::GuardPass as u32 {
        return NEXT;
    }
    report(slot, &guarded, &seen, reason);
    DROP
}

/// One event each [`GUARD_EVENT_NS`]; two CPUs at the same time may send two.
#[inline(always)]
fn report(slot: *mut Guarded, guarded: &Guarded, seen: &Tuple, reason: u32) {
    let now = ctx::now();
    if now.saturating_sub(guarded.event_ns) < GUARD_EVENT_NS {
        return;
    }
    ctx::set_event_time(slot, now);
    event(&Event {
        time_ns: now,
        netns: 0,
        src: seen.src,
        dst: seen.dst,
        sport: seen.sport,
        dport: seen.dport,
        reason,
        pod_id: guarded.pod_id,
        tgid: 0,
    });
}

struct Kernel {
    packet: Packet,
    agent_cgroup: u64,
}

impl World for Kernel {
    #[inline(always)]
    fn pod(&self, addr: &Addr) -> u32 {
        maps::POD_BY_ADDR.get(addr).map_or(0, |pod| pod.pod_id)
    }
    #[inline(always)]
    fn dialled(&self, tuple: &Tuple) -> bool {
        maps::PROXY_FLOWS.lookup(tuple).is_some()
    }
    #[inline(always)]
    fn granted(&self, tuple: &Tuple) -> u32 {
        maps::GRANTS.get(tuple).map_or(0, |grant| grant.pod_id)
    }
    #[inline(always)]
    fn out_rule(&self, proto: u8, port: u16, addr: &Addr) -> Option<u32> {
        let data = OutRuleKey {
            proto,
            ..OutRuleKey::tcp(*addr, port)
        };
        maps::OUT_RULES.get(&OutRulePrefix {
            bits: OUT_RULE_FIXED_BITS + 128,
            data,
        })
    }
    #[inline(always)]
    fn sent_by_agent(&self) -> bool {
        self.packet.sender() == self.agent_cgroup
    }
}
