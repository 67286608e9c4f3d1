//! `steer`: one program, a link for each workload's network namespace.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};
use mesh_common::{
    abi::Config,
    addr::Addr,
    flow::{ProxyFlow, Tuple},
    listener::ListenerKey,
    pod::{InRuleKey, PodAddr},
    reason::{Event, Reason},
};
use mesh_ebpf::decide::steer::{World, decide};

use crate::{
    count::{count, event},
    ctx::{self, sk_lookup::SkLookup},
    maps,
};

/// The lookup goes on, with the socket when one was assigned.
const PASS: u32 = 1;
/// The lookup ends without a socket.
const DROP: u32 = 0;

#[sk_lookup]
fn steer(ctx: SkLookupContext) -> u32 {
    let ctx = SkLookup::new(&ctx);
    let request = ctx.request();
    let verdict = decide(&request, &Kernel(ctx));
    count(verdict.reason);
    debug!(
        &ctx,
        "syn [{:i}]:{} to [{:i}]:{} by interface {}: reason {}, workload {}",
        request.remote.octets(),
        request.remote_port,
        request.local.octets(),
        request.local_port,
        request.interface,
        verdict.reason as u32,
        verdict.pod_id
    );
    if matches!(
        verdict.reason,
        Reason::SteerMissOpen | Reason::SteerMissClosed | Reason::RefuseInbound
    ) {
        event(&Event {
            time_ns: ctx::now(),
            netns: 0,
            src: request.remote,
            dst: request.local,
            sport: request.remote_port,
            dport: request.local_port,
            reason: verdict.reason as u32,
            pod_id: verdict.pod_id,
            tgid: 0,
        });
    }
    if verdict.pass { PASS } else { DROP }
}

struct Kernel(SkLookup);

impl World for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<Config> {
        ctx::config()
    }
    #[inline(always)]
    fn pod(&self, addr: &Addr) -> Option<PodAddr> {
        maps::POD_BY_ADDR.get(addr)
    }
    #[inline(always)]
    fn heartbeat(&self) -> u64 {
        ctx::heartbeat()
    }
    #[inline(always)]
    fn now(&self) -> u64 {
        ctx::now()
    }
    #[inline(always)]
    fn rule(&self, key: &InRuleKey) -> Option<u32> {
        maps::IN_RULES.get(key)
    }
    #[inline(always)]
    fn proxy_flow(&self, tuple: &Tuple) -> Option<ProxyFlow> {
        maps::PROXY_FLOWS.get(tuple)
    }
    #[inline(always)]
    fn probe(&self, tuple: &Tuple) -> Option<u64> {
        maps::PROBE_FLOWS.get(tuple)
    }
    #[inline(always)]
    fn assign(&self, pod_id: u32, kind: u16, shard: u16) -> bool {
        self.0.assign(&ListenerKey {
            pod_id,
            kind,
            shard,
        })
    }
}
