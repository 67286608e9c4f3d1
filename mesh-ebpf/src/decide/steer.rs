//! Which listener takes a SYN that arrives inside a workload's namespace.
//!
//! By addresses: `sk_lookup` does not know the network namespace (the helper is refused). The
//! interface says whether our route turned the connection around (then it came over `lo`) or it
//! entered from outside, for an address of which we may know nothing
//! (docs/decisions/0008).
//!
//! What enters is the application's, unless its port is captured or denied (`IN_RULES`, or the
//! workload's default). Of a captured port four things pass untouched, each by an exact tuple or by
//! both addresses: the workload's talk to itself, our own dial to its application, our dial for a
//! client of this node that the inbound rules have judged already, and the kubelet's probes. Of a
//! denied port all of them but the third: no rule lets such a dial through.

use mesh_common::{
    abi::{ABI_VERSION, Config},
    addr::Addr,
    flow::{PROXY_APP, ProxyFlow, Tuple},
    listener::{KIND_IN, KIND_OUT},
    pod::{ADDR_SECOND_PASS, FAIL_CLOSED, INBOUND_CAPTURE, INBOUND_DENY, InRuleKey, PodAddr},
    reason::Reason,
};

use super::{TCP, fresh};

pub use mesh_common::listener::shard;

/// A lookup for a listening socket.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Who connects.
    pub remote: Addr,
    /// From which port, host order.
    pub remote_port: u16,
    /// To which address.
    pub local: Addr,
    /// To which port, host order.
    pub local_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Interface that it came in by. For what a namespace sends to an address of its own this is
    /// the interface that has the address; for what our route turned around it is [`LOOPBACK`].
    /// [`UNKNOWN_INTERFACE`] where the kernel doesn't tell.
    pub interface: u32,
}

impl Request {
    /// As the connecting side sees it.
    #[inline(always)]
    const fn tuple(&self) -> Tuple {
        Tuple {
            src: self.remote,
            dst: self.local,
            sport: self.remote_port,
            dport: self.local_port,
        }
    }
}

/// Number of `lo` in every network namespace.
pub const LOOPBACK: u32 = 1;
/// Before Linux 5.17 the kernel doesn't tell: then addresses alone decide, and a captured
/// connection that somebody sent to another workload of this node enters that one
/// (docs/decisions/0055).
pub const UNKNOWN_INTERFACE: u32 = 0;

/// An entry of `PROBE_FLOWS` grants passage for so long: a probe's SYN follows its entry within
/// the same system call, and the entries are never deleted by their connections.
pub const PROBE_AGE_NS: u64 = 10_000_000_000;

/// What the decision may look up; asked only when needed.
pub trait World {
    /// `CONFIG[0]`.
    fn config(&self) -> Option<Config>;
    /// `POD_BY_ADDR`.
    fn pod(&self, addr: &Addr) -> Option<PodAddr>;
    /// `HEARTBEAT[0]`.
    fn heartbeat(&self) -> u64;
    /// CLOCK_MONOTONIC, nanoseconds.
    fn now(&self) -> u64;
    /// `IN_RULES`.
    fn rule(&self, key: &InRuleKey) -> Option<u32>;
    /// `PROXY_FLOWS`.
    fn proxy_flow(&self, tuple: &Tuple) -> Option<ProxyFlow>;
    /// `PROBE_FLOWS`: when the probe connected.
    fn probe(&self, tuple: &Tuple) -> Option<u64>;
    /// Gives the connection to the listener of this kind; whether there was one.
    fn assign(&self, pod_id: u32, kind: u16, shard: u16) -> bool;
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the lookup goes on (with the listener, when one was assigned) or ends.
    pub pass: bool,
    /// Why; counted.
    pub reason: Reason,
    /// The workload, 0 when none.
    pub pod_id: u32,
}

/// Decides, and assigns the listener.
#[inline(always)]
pub fn decide(request: &Request, world: &impl World) -> Verdict {
    let other = |reason| Verdict {
        pass: true,
        reason,
        pod_id: 0,
    };
    let Some(config) = world.config() else {
        return other(Reason::NoConfig);
    };
    if config.abi != ABI_VERSION {
        return other(Reason::NoConfig);
    }
    // A client that bound the workload's address may dial loopback: not ours.
    if request.proto != TCP || request.local.is_loopback() {
        return other(Reason::SteerPassOther);
    }
    let local = world.pod(&request.local);
    // From outside: whoever has the destination gets it, also one that takes addresses which we
    // don't know (AnyIP ranges, one that was added a moment ago): what was captured comes over
    // `lo`, so the source's listener has no business here. Over `lo` a workload gets only its own
    // traffic: the address of another one is there because a marked connection was turned around.
    if request.interface != LOOPBACK && request.interface != UNKNOWN_INTERFACE {
        return match &local {
            Some(local) => entering(request, world, &config, local),
            None => other(Reason::SteerPassOther),
        };
    }
    let remote = world.pod(&request.remote);
    let pod = match (&local, &remote) {
        (Some(local), Some(remote))
            if request.interface == LOOPBACK && local.pod_id != remote.pod_id =>
        {
            // Where a workload's address stands on `lo`, our dial to its application comes over
            // `lo` too, with the address of a client of this node.
            if proxied(request, world, local) == Some(PROXY_APP) {
                return Verdict {
                    pod_id: local.pod_id,
                    ..other(Reason::SteerPassProxied)
                };
            }
            remote
        }
        (Some(local), _) => return entering(request, world, &config, local),
        (None, Some(remote)) => remote,
        (None, None) => return other(Reason::SteerPassOther),
    };
    Verdict {
        pod_id: pod.pod_id,
        ..captured(request, world, &config, pod, (KIND_OUT, Reason::SteerOut))
    }
}

/// Whether a dial of the agent is let through to the application, and which kind it is.
#[inline(always)]
fn proxied(request: &Request, world: &impl World, pod: &PodAddr) -> Option<u8> {
    let kind = world.proxy_flow(&request.tuple())?.kind;
    (kind == PROXY_APP || pod.flags & ADDR_SECOND_PASS == 0).then_some(kind)
}

/// A connection to a workload. What passes anyway is asked first: it pays for one look-up.
#[inline(always)]
fn entering(request: &Request, world: &impl World, config: &Config, pod: &PodAddr) -> Verdict {
    let verdict = |pass, reason| Verdict {
        pass,
        reason,
        pod_id: pod.pod_id,
    };
    let key = InRuleKey {
        pod_id: pod.pod_id,
        port: request.local_port,
        proto: TCP,
        _pad: 0,
    };
    let action = match world.rule(&key) {
        Some(action) => action,
        None => u32::from(pod.inbound),
    };
    let denied = action == u32::from(INBOUND_DENY);
    if !denied && action != u32::from(INBOUND_CAPTURE) {
        return verdict(true, Reason::SteerPassIn);
    }
    // The interface does not tell: for an address of its own a namespace reports the interface
    // that has it, and our dial to the application looks the same.
    if world
        .pod(&request.remote)
        .is_some_and(|remote| remote.pod_id == pod.pod_id)
    {
        return verdict(true, Reason::SteerPassSelf);
    }
    // Of a denied port none but what came in by the proxy already: for a client of this node the
    // agent judges, but it dials without asking where it doesn't know the workload (yet).
    if let Some(kind) = proxied(request, world, pod)
        && (kind == PROXY_APP || !denied)
    {
        return verdict(true, Reason::SteerPassProxied);
    }
    if let Some(then) = world.probe(&request.tuple())
        && world.now().saturating_sub(then) <= PROBE_AGE_NS
    {
        return verdict(true, Reason::SteerPassProbe);
    }
    if denied {
        return verdict(false, Reason::RefuseInbound);
    }
    if config.paused != 0 {
        return verdict(true, Reason::SteerPassIn);
    }
    Verdict {
        pod_id: pod.pod_id,
        ..captured(request, world, config, pod, (KIND_IN, Reason::SteerIn))
    }
}

/// Gives a connection to a listener of the workload, or ends as its failure mode says.
#[inline(always)]
fn captured(
    request: &Request,
    world: &impl World,
    config: &Config,
    pod: &PodAddr,
    (kind, steered): (u16, Reason),
) -> Verdict {
    let verdict = |pass, reason| Verdict {
        pass,
        reason,
        pod_id: 0,
    };
    // A hung agent's backlog would complete the handshake and leave the client with a peer that
    // never answers. Without a listener IPv6 clients get a reset; IPv4 ones send their SYN again
    // (the kernel sends no reset from an address that is not its own), and are served when the
    // agent ticks again. New connects follow the failure mode in the connect hook.
    if fresh(world.heartbeat(), world.now(), config.heartbeat_stale_ns) {
        let shard = shard(&request.remote, request.remote_port, config.shards);
        if world.assign(pod.pod_id, kind, shard) {
            return verdict(true, steered);
        }
        if shard != 0 && world.assign(pod.pod_id, kind, 0) {
            return verdict(true, Reason::SteerFallback);
        }
    }
    if pod.fail == FAIL_CLOSED {
        verdict(false, Reason::SteerMissClosed)
    } else {
        verdict(true, Reason::SteerMissOpen)
    }
}

#[cfg(test)]
mod tests;
