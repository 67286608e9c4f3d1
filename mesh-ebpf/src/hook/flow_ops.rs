//! `flow_ops`: which connections there are, and what became of those to an endpoint that the
//! kernel chose.
//!
//! «The agent's own» is decided by the cgroup of the process that connects: a connect happens in
//! the caller's context, and no workload can take the agent's cgroup. The mark would not do: a
//! workload with CAP_NET_ADMIN sets any mark, and would write entries that grant passage. At close
//! there may be no caller: then the socket's storage and its mark tell a workload's socket from the
//! agent's. A workload that changes its mark in between spoils nothing but the record of its own
//! connection.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    abi::{ABI_VERSION, Config},
    flow::{
        BACKEND_NONE, CONNECTING, Flow, FlowKey, Grant, INTENT_CONFIRMED, INTENT_GUARDED,
        INTENT_LOOPBACK, INTENT_RELEASED, Intent, PROXY_APP, PROXY_UP, ProxyFlow, Tuple,
    },
    reason::Reason,
    service::EndpointStats,
};

use super::loopback;
use crate::{
    count::{add, count},
    ctx::{
        self,
        sock_ops::{CLOSE, Snapshot, SockOps},
    },
    features, maps,
};

/// Return value of the program: not looked at for these callbacks.
const DONE: u32 = 1;
/// `BPF_TCP_SYN_SENT`.
const SYN_SENT: u32 = 2;
/// `BPF_TCP_FIN_WAIT2`.
const FIN_WAIT2: u32 = 5;
/// `BPF_TCP_CLOSE_WAIT`.
const CLOSE_WAIT: u32 = 8;
/// `BPF_TCP_LAST_ACK`.
const LAST_ACK: u32 = 9;
/// `BPF_TCP_CLOSING`.
const CLOSING: u32 = 11;

#[sock_ops]
fn flow_ops(ctx: SockOpsContext) -> u32 {
    let ctx = SockOps::new(&ctx);
    // A connection calls a dozen times, and three of them matter.
    if !ctx.matters() {
        return DONE;
    }
    let snapshot = ctx.snapshot();
    let sk = ctx.sk();
    if sk.is_null() {
        return DONE;
    }
    match snapshot.op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx, &snapshot, sk),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx, &snapshot, sk),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => loopback::accepted(ctx, &snapshot.tuple, sk),
        BPF_SOCK_OPS_STATE_CB if snapshot.new_state == CLOSE => closed(ctx, &snapshot, sk),
        _ => {}
    }
    DONE
}

/// The ports are chosen, the SYN is not sent yet: whoever accepts will find the entry.
#[inline(always)]
fn connecting(ctx: SockOps, snapshot: &Snapshot, sk: *mut bpf_sock) {
    let Some(config) = ctx::config() else {
        return;
    };
    if config.abi != ABI_VERSION {
        return;
    }
    if is_agents(&config) {
        proxy_connecting(ctx, &snapshot.tuple, captured(sk, &config));
        debug!(
            &ctx,
            "the agent dials [{:i}]:{}",
            snapshot.tuple.dst.octets(),
            snapshot.tuple.dport
        );
    } else if let Some(intent) = intent(ctx, sk, &config) {
        debug!(
            &ctx,
            "flow from port {} to [{:i}]:{}, workload {}",
            snapshot.tuple.sport,
            snapshot.tuple.dst.octets(),
            snapshot.tuple.dport,
            intent.pod_id
        );
        app_connecting(ctx, &snapshot.tuple, &intent);
    }
}

#[inline(always)]
fn is_agents(config: &Config) -> bool {
    match features::FLOW_ROLE.load() {
        features::ROLE_ASK => ctx::current_cgroup() == config.agent_cgroup,
        role => role == features::ROLE_AGENT,
    }
}

/// What the connect hook decided a moment ago. One that an earlier, failed connect of the same
/// socket left is never met: only a captured socket has our mark.
#[inline(always)]
fn intent(ctx: SockOps, sk: *mut bpf_sock, config: &Config) -> Option<Intent> {
    if !captured(sk, config) {
        return ctx::confirm(sk);
    }
    let cookie = ctx.cookie();
    let intent = maps::INTENTS.get(&cookie);
    maps::INTENTS.remove(&cookie);
    intent
}

#[inline(always)]
fn captured(sk: *mut bpf_sock, config: &Config) -> bool {
    ctx::mark(sk) & config.mark_mask == config.capture_mark
}

/// The key of a connection with the capture mark; the agent's self-probes have it too, and no such
/// entry. Its workload is known by its address, as to `steer`.
#[inline(always)]
fn captured_key(snapshot: &Snapshot, sk: *mut bpf_sock) -> Option<FlowKey> {
    let config = ctx::config()?;
    if !captured(sk, &config) {
        return None;
    }
    let pod = maps::POD_BY_ADDR.get(&snapshot.tuple.src)?;
    Some(FlowKey {
        tuple: snapshot.tuple,
        pod_id: pod.pod_id,
    })
}

#[inline(always)]
fn app_connecting(ctx: SockOps, tuple: &Tuple, intent: &Intent) {
    let flow = Flow {
        asked: intent.asked,
        asked_port: intent.asked_port,
        verdict: intent.verdict,
        state: CONNECTING,
        service_id: intent.service_id,
        backend: intent.backend,
        tgid: intent.tgid,
        cgroup: intent.cgroup,
        cookie: ctx.cookie(),
        connect_ns: intent.connect_ns,
        established_ns: 0,
    };
    let stored = maps::FLOWS.insert(
        &FlowKey {
            tuple: *tuple,
            pod_id: intent.pod_id,
        },
        &flow,
    );
    count(if stored {
        Reason::FlowOpened
    } else {
        Reason::FlowFull
    });
    loopback::connecting(tuple, intent);
    grant(tuple, intent);
    endpoint(intent.backend, offset_of!(EndpointStats, opened), 1);
    ctx.arm(BPF_SOCK_OPS_STATE_CB_FLAG);
}

/// Whether a row of `FLOWS` is that of this socket. A dial of the agent that keeps the client's
/// address may have the tuple of the client's own captured connection, and its mark.
#[inline(always)]
fn own_flow(ctx: SockOps, key: &FlowKey) -> Option<*mut Flow> {
    let flow = maps::FLOWS.lookup(key)?;
    (ctx::flow_cookie(flow) == ctx.cookie()).then_some(flow)
}

/// Whether a SYN with this intent needs a grant. One that was sent to the loopback meets no guard.
#[inline(always)]
fn granted(intent: &Intent) -> bool {
    intent.flags & INTENT_GUARDED != 0 && intent.flags & INTENT_LOOPBACK == 0
}

/// What the connect hook let a guarded workload open itself: `egress_guard` sees the SYN next.
#[inline(always)]
fn grant(tuple: &Tuple, intent: &Intent) {
    if !granted(intent) {
        return;
    }
    let grant = Grant {
        pod_id: intent.pod_id,
        _pad: 0,
        connect_ns: intent.connect_ns,
    };
    if !maps::GRANTS.insert(tuple, &grant) {
        count(Reason::GrantFull);
    }
}

/// A dial of the agent. One that has the capture mark and goes to a workload is the one to its
/// application: its source is the client's address, and the mark brings the answer back.
#[inline(always)]
fn proxy_connecting(ctx: SockOps, tuple: &Tuple, marked: bool) {
    let (kind, of) = match (marked, maps::POD_BY_ADDR.get(&tuple.dst)) {
        (true, Some(pod)) => (PROXY_APP, Some(pod)),
        _ => (PROXY_UP, maps::POD_BY_ADDR.get(&tuple.src)),
    };
    let flow = ProxyFlow {
        pod_id: of.map_or(0, |pod| pod.pod_id),
        kind,
        state: CONNECTING,
        _pad: [0; 2],
        connect_ns: ctx::now(),
    };
    if maps::PROXY_FLOWS.insert(tuple, &flow) {
        count(Reason::ProxyFlowOpened);
        ctx.arm(BPF_SOCK_OPS_STATE_CB_FLAG);
    } else {
        count(Reason::ProxyFlowFull);
    }
}

#[inline(always)]
fn established(ctx: SockOps, snapshot: &Snapshot, sk: *mut bpf_sock) {
    let Some(intent) = ctx::intent(sk) else {
        if let Some(key) = captured_key(snapshot, sk)
            && let Some(flow) = own_flow(ctx, &key)
        {
            ctx::set_established(flow, ctx::now());
            count(Reason::FlowEstablished);
        } else if let Some(flow) = maps::PROXY_FLOWS.lookup(&snapshot.tuple) {
            ctx::set_proxy_established(flow);
        }
        return;
    };
    let key = FlowKey {
        tuple: snapshot.tuple,
        pod_id: intent.pod_id,
    };
    if let Some(flow) = maps::FLOWS.lookup(&key) {
        ctx::set_established(flow, ctx::now());
    }
    count(Reason::FlowEstablished);
    endpoint(intent.backend, offset_of!(EndpointStats, established), 1);
}

/// The socket is full and its ports are still set: the kernel calls before it forgets them.
#[inline(always)]
fn closed(ctx: SockOps, snapshot: &Snapshot, sk: *mut bpf_sock) {
    let Some(intent) = ctx::ended(sk) else {
        let key = captured_key(snapshot, sk);
        if let Some(key) = &key
            && own_flow(ctx, key).is_some()
            && maps::FLOWS.remove(key)
        {
            count(Reason::FlowClosed);
        } else if maps::PROXY_FLOWS.remove(&snapshot.tuple) {
            count(Reason::ProxyFlowClosed);
        } else if key.is_some() {
            count(Reason::FlowLost);
        }
        return;
    };
    if granted(&intent) {
        // Before the port can be used again: an entry that is left grants passage.
        maps::GRANTS.remove(&snapshot.tuple);
    }
    // An earlier connect of the socket asked for the report; this one ended before its SYN.
    if intent.flags & INTENT_CONFIRMED == 0 {
        return;
    }
    // An entry that the LRU took is closed all the same.
    let _ = maps::FLOWS.remove(&FlowKey {
        tuple: snapshot.tuple,
        pod_id: intent.pod_id,
    });
    loopback::closed(&snapshot.tuple, &intent);
    count(Reason::FlowClosed);
    ended(ctx, snapshot, &intent);
}

/// Counts at the endpoint how the connection ended.
#[inline(always)]
fn ended(ctx: SockOps, snapshot: &Snapshot, intent: &Intent) {
    if intent.backend == BACKEND_NONE {
        return;
    }
    let traffic = ctx.traffic();
    if snapshot.old_state == SYN_SENT {
        // Closed by the application within the second after which the first SYN is sent again:
        // nobody can say that the endpoint would not have answered.
        let abandoned = intent.flags & INTENT_RELEASED != 0 && traffic.retransmitted == 0;
        let what = if abandoned {
            offset_of!(EndpointStats, abandoned)
        } else {
            offset_of!(EndpointStats, failed)
        };
        return endpoint(intent.backend, what, 1);
    }
    // The kernel counts SYN and FIN as a byte each. Of our FIN the old state says whether it was
    // acknowledged, of the peer's whether it came. It can't say so of a socket that the application
    // let go before the peer ended, nor after a reset: then one byte too many or too few is counted.
    let (ours, theirs) = match snapshot.old_state {
        LAST_ACK | CLOSING => (1, 1),
        FIN_WAIT2 => (1, u64::from(intent.flags & INTENT_RELEASED == 0)),
        CLOSE_WAIT => (0, 1),
        _ => (0, 0),
    };
    let sent = traffic.acknowledged.saturating_sub(1 + ours);
    let received = traffic.received.saturating_sub(theirs);
    endpoint(intent.backend, offset_of!(EndpointStats, closed), 1);
    endpoint(intent.backend, offset_of!(EndpointStats, bytes_out), sent);
    endpoint(
        intent.backend,
        offset_of!(EndpointStats, bytes_in),
        received,
    );
}

/// Adds to one word of an endpoint's numbers.
#[inline(always)]
fn endpoint(backend: u32, offset: usize, by: u64) {
    if backend == BACKEND_NONE {
        return;
    }
    if let Some(stats) = maps::EP_STATS.lookup(&backend) {
        // Inside the value: the offset is that of one of its words.
        add(stats.cast::<u8>().wrapping_add(offset).cast(), by);
    }
}
