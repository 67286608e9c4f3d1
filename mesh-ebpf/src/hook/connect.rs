//! `connect4`, `connect6`.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{
    abi::Config,
    addr::Addr,
    flow::{INTENT_GUARDED, INTENT_LOOPBACK, Intent, VERDICT_KERNEL, VERDICT_PASS, VERDICT_PROXY},
    listener::ListenerKey,
    maps::{OUT_RULE_FIXED_BITS, OutRuleKey, OutRulePrefix},
    pod::PodEntry,
    reason::Event,
    service::{Backend, ServiceEntry, ServiceKey},
};
use mesh_ebpf::decide::connect::{Action, Packed, Request, Verdict, World, decide};

use crate::{
    count::{add, count_code, event, fetch_add},
    ctx::{self, sock_addr::SockAddr},
    maps,
};

/// Return values of the hook.
const ALLOW: i32 = 1;
const DENY: i32 = 0;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (addr, port) = ctx.v4();
    connect::<false>(ctx, addr, port)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr::new(&ctx);
    let (addr, port) = ctx.v6();
    connect::<true>(ctx, addr, port)
}

/// `V6` is the hook's family, known when compiling: the verifier refuses a program that merely
/// contains a write to the other family's field.
#[inline(always)]
fn connect<const V6: bool>(ctx: SockAddr, addr: Addr, port: u16) -> i32 {
    let cgroup = ctx::current_cgroup();
    let request = Request {
        addr,
        port,
        tcp: ctx.is_tcp(),
        udp: ctx.is_udp(),
        v6_socket: V6,
        cgroup,
    };
    let verdict = decide(&request, &Kernel(ctx));
    let packed = ctx::forget(Packed::of(&verdict).word(), cgroup);
    let mut todo = Packed::from_word(packed);
    if !carry_out::<V6>(ctx, &request, &verdict, todo) {
        todo = todo.failed();
        leave(ctx, &request);
    }
    count_code(todo.reason());
    debug!(
        &ctx,
        "connect to [{:i}]:{}: reason {}, workload {}",
        addr.octets(),
        port,
        todo.reason(),
        verdict.pod_id
    );
    if todo.is_event() {
        report(ctx, &request, todo.reason(), verdict.pod_id);
    }
    if todo.is(Action::Refuse) {
        ctx.refuse();
        return DENY;
    }
    ALLOW
}

/// Whether it worked.
#[inline(always)]
fn carry_out<const V6: bool>(
    ctx: SockAddr,
    request: &Request,
    verdict: &Verdict,
    todo: Packed,
) -> bool {
    if todo.is(Action::Ignore) {
        return true;
    }
    // What a guarded workload opens itself needs a grant, which `flow_ops` makes of the intent when
    // the ports are known. With the socket, not in `INTENTS`: what lets a SYN through never lives
    // in an LRU.
    let granted = todo.is(Action::Pass) && todo.is_guarded() && request.tcp;
    if todo.is(Action::Refuse) || todo.is(Action::Pass) && !granted {
        leave(ctx, request);
        return true;
    }
    let (mark, mask) = marks();
    if todo.is(Action::Capture) {
        return hand_over(ctx, request, verdict) && ctx.set_mark(mark, mask);
    }
    let kind = if granted {
        VERDICT_PASS
    } else {
        VERDICT_KERNEL
    };
    let flags = if todo.is_guarded() { INTENT_GUARDED } else { 0 };
    let mut intent = intent(request, verdict, kind, flags);
    if todo.is(Action::Loopback) {
        // Bound to a device that can't reach the loopback, its SYN would leave by that one.
        if !ctx::reaches_loopback(ctx.sk()) {
            return false;
        }
        intent.verdict = VERDICT_PROXY;
        intent.flags |= INTENT_LOOPBACK;
    }
    // What an earlier connect of the same socket holds would be overwritten.
    ctx::give_back(ctx.sk());
    let stored = ctx::set_intent(ctx.sk(), &intent);
    if !stored {
        ctx::release_cap(verdict.cap);
    }
    let kept = stored && (verdict.cap == 0 || ctx::raise(ctx.sk(), &intent));
    let done = kept && ctx.set_mark(0, mask);
    if granted {
        return done;
    }
    if done && V6 {
        ctx.set_v6(&verdict.to, verdict.to_port);
    } else if done {
        ctx.set_v4(&verdict.to, verdict.to_port);
    }
    done
}

/// Takes back what an earlier connect of the same socket left: whatever is not a capture leaves
/// the socket without our mark. A mark that can't be cleared changes nothing about the verdict.
#[inline(always)]
fn leave(ctx: SockAddr, request: &Request) {
    if request.tcp {
        ctx::clear_intent(ctx.sk());
    }
    let _ = ctx.set_mark(0, marks().1);
}

/// The capture mark and the mask of all our bits. Nothing, when the settings are gone.
#[inline(always)]
fn marks() -> (u32, u32) {
    match ctx::config() {
        Some(config) => (config.capture_mark, config.mark_mask),
        None => (0, 0),
    }
}

/// Leaves the intent of a captured connect for `flow_ops`, which runs later in the same system
/// call. Not in the socket's storage: making that costs more than all the rest of a capture, and a
/// captured socket needs nothing of it afterwards.
#[inline(always)]
fn hand_over(ctx: SockAddr, request: &Request, verdict: &Verdict) -> bool {
    ctx::clear_intent(ctx.sk());
    maps::INTENTS.insert(&ctx.cookie(), &intent(request, verdict, VERDICT_PROXY, 0))
}

#[inline(always)]
fn intent(request: &Request, verdict: &Verdict, kind: u8, flags: u8) -> Intent {
    Intent {
        asked: request.addr,
        asked_port: request.port,
        verdict: kind,
        flags,
        pod_id: verdict.pod_id,
        service_id: verdict.service_id,
        backend: verdict.backend,
        tgid: ctx::current_tgid(),
        cap: verdict.cap,
        cgroup: request.cgroup,
        connect_ns: ctx::now(),
    }
}

#[inline(always)]
fn report(ctx: SockAddr, request: &Request, reason: u32, pod_id: u32) {
    info!(
        &ctx,
        "event: reason {}, workload {}, process {}",
        reason,
        pod_id,
        ctx::current_tgid()
    );
    event(&Event {
        time_ns: ctx::now(),
        netns: ctx.netns(),
        src: Addr::UNSPECIFIED,
        dst: request.addr,
        sport: 0,
        dport: request.port,
        reason,
        pod_id,
        tgid: ctx::current_tgid(),
    });
}

struct Kernel(SockAddr);

impl World for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<Config> {
        ctx::config()
    }
    #[inline(always)]
    fn netns(&self) -> u64 {
        self.0.netns()
    }
    #[inline(always)]
    fn pod(&self, netns: u64) -> Option<PodEntry> {
        maps::POD_BY_NETNS.get(&netns)
    }
    #[inline(always)]
    fn is_pod(&self, addr: &Addr) -> bool {
        maps::POD_BY_ADDR.lookup(addr).is_some()
    }
    #[inline(always)]
    fn out_rule(&self, port: u16, addr: &Addr) -> Option<u32> {
        let data = OutRuleKey::tcp(*addr, port);
        maps::OUT_RULES.get(&OutRulePrefix {
            bits: OUT_RULE_FIXED_BITS + 128,
            data,
        })
    }
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry> {
        maps::SERVICES.get(key)
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
    fn datagram_rule(&self, port: u16, addr: &Addr) -> Option<u32> {
        super::datagram::rule(port, addr)
    }
    #[inline(always)]
    fn listener(&self, key: &ListenerKey) -> u16 {
        ctx::listener_port(key)
    }
    #[inline(always)]
    fn cookie(&self) -> u64 {
        self.0.cookie()
    }
    #[inline(always)]
    fn sequence(&self, service_id: u32) -> u64 {
        let Some(slot) = maps::SPLIT_SEQ.lookup(&service_id) else {
            return 0;
        };
        fetch_add(slot, 1)
    }
    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        maps::SLOTS.get(&index)
    }
    #[inline(always)]
    fn reserve(&self, cap: u32) -> bool {
        ctx::give_back(self.0.sk());
        ctx::give_back_above(self.0.sk());
        let (Some(places), Some(limit)) = (maps::CAPS.lookup(&cap), maps::CAP_LIMITS.get(&cap))
        else {
            return false;
        };
        let active = ctx::active(places);
        // Looked at first, so that a full cap is not overdrawn by those who are refused: what is
        // given back in that moment would not be seen.
        if ctx::word(active) < limit {
            if fetch_add(active, 1) < limit {
                return true;
            }
            add(active, ctx::MINUS_ONE);
        }
        add(ctx::refused(places), 1);
        false
    }
    #[inline(always)]
    fn backend(&self, index: u32) -> Option<Backend> {
        maps::BACKENDS.get(&index)
    }
}
