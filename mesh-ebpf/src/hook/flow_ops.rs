//! `flow_ops`: which connections there are, and what became of those to an endpoint that the
//! kernel chose.
//!
//! «The agent's own» is decided by the cgroup of the process that connects: a connect happens in
//! the caller's context, and no workload can take the agent's cgroup. The mark would not do: a
//! workload with CAP_NET_ADMIN sets any mark, and would write entries that grant passage. At close
//! there may be no caller: then the socket's storage and its mark tell a workload's socket from the
//! agent's. A workload that changes its mark in between spoils nothing but the record of its own
//! connection.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    abi::{ABI_VERSION, Config},
    flow::{BACKEND_NONE, CONNECTING, Flow, FlowKey, Intent, ProxyFlow, Tuple},
    reason::Reason,
    service::EndpointStats,
};

use crate::{
    count::{add, count},
    ctx::{
        self,
        sock_ops::{Snapshot, SockOps},
    },
    maps,
};

/// Return value of the program: not looked at for these callbacks.
const DONE: u32 = 1;
/// `BPF_TCP_SYN_SENT`.
const SYN_SENT: u32 = 2;
/// `BPF_TCP_CLOSE`.
const CLOSE: u32 = 7;

#[sock_ops]
fn flow_ops(ctx: SockOpsContext) -> u32 {
    let ctx = SockOps::new(&ctx);
    let snapshot = ctx.snapshot();
    let sk = ctx.sk();
    if sk.is_null() {
        return DONE;
    }
    match snapshot.op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx, &snapshot, sk),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&snapshot, sk),
        BPF_SOCK_OPS_STATE_CB if snapshot.new_state == CLOSE => closed(&snapshot, sk),
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
    if ctx::current_cgroup() == config.agent_cgroup {
        proxy_connecting(ctx, &snapshot.tuple);
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

/// What the connect hook decided a moment ago. One that an earlier, failed connect of the same
/// socket left is never met: only a captured socket has our mark.
#[inline(always)]
fn intent(ctx: SockOps, sk: *mut bpf_sock, config: &Config) -> Option<Intent> {
    if !captured(sk, config) {
        return ctx::intent(sk);
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
    endpoint(intent.backend, Outcome::Opened);
    ctx.arm(BPF_SOCK_OPS_STATE_CB_FLAG);
}

#[inline(always)]
fn proxy_connecting(ctx: SockOps, tuple: &Tuple) {
    let pod_id = match maps::POD_BY_ADDR.get(&tuple.src) {
        Some(pod) => pod.pod_id,
        None => 0,
    };
    let flow = ProxyFlow {
        pod_id,
        kind: 0,
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
fn established(snapshot: &Snapshot, sk: *mut bpf_sock) {
    let Some(intent) = ctx::intent(sk) else {
        if let Some(key) = captured_key(snapshot, sk)
            && let Some(flow) = maps::FLOWS.lookup(&key)
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
    endpoint(intent.backend, Outcome::Established);
}

/// The socket is full and its ports are still set: the kernel calls before it forgets them.
#[inline(always)]
fn closed(snapshot: &Snapshot, sk: *mut bpf_sock) {
    let Some(intent) = ctx::intent(sk) else {
        let key = captured_key(snapshot, sk);
        if let Some(key) = &key
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
    // An entry that the LRU took is closed all the same.
    let _ = maps::FLOWS.remove(&FlowKey {
        tuple: snapshot.tuple,
        pod_id: intent.pod_id,
    });
    count(Reason::FlowClosed);
    let never = snapshot.old_state == SYN_SENT;
    endpoint(
        intent.backend,
        if never {
            Outcome::Failed
        } else {
            Outcome::Closed
        },
    );
}

#[derive(Clone, Copy)]
enum Outcome {
    Opened,
    Established,
    Failed,
    Closed,
}

#[inline(always)]
fn endpoint(backend: u32, outcome: Outcome) {
    if backend == BACKEND_NONE {
        return;
    }
    let Some(stats) = maps::EP_STATS.lookup(&backend) else {
        return;
    };
    let offset = match outcome {
        Outcome::Opened => core::mem::offset_of!(EndpointStats, opened),
        Outcome::Established => core::mem::offset_of!(EndpointStats, established),
        Outcome::Failed => core::mem::offset_of!(EndpointStats, failed),
        Outcome::Closed => core::mem::offset_of!(EndpointStats, closed),
    };
    // Inside the value: the offset is that of one of its four words.
    add(stats.cast::<u8>().wrapping_add(offset).cast(), 1);
}
