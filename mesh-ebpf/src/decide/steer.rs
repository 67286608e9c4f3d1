//! Which listener takes a SYN that arrives inside a workload's namespace.
//!
//! By addresses: `sk_lookup` does not know the network namespace (the helper is refused). The
//! interface says whether our route turned the connection around (then it came over `lo`) or it
//! entered from outside, for an address of which we may know nothing
//! (docs/decisions/0008).

use mesh_common::{
    abi::{ABI_VERSION, Config, SHARDS_MAX},
    addr::Addr,
    pod::{FAIL_CLOSED, PodAddr},
    reason::Reason,
};

use super::{TCP, fresh};

/// A lookup for a listening socket.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Who connects.
    pub remote: Addr,
    /// From which port, host order.
    pub remote_port: u16,
    /// To which address.
    pub local: Addr,
    /// IP protocol.
    pub proto: u8,
    /// Interface that it came in by. For what a namespace sends to an address of its own this is
    /// the interface that has the address; for what our route turned around it is [`LOOPBACK`].
    /// [`UNKNOWN_INTERFACE`] where the kernel doesn't tell.
    pub interface: u32,
}

/// Number of `lo` in every network namespace.
pub const LOOPBACK: u32 = 1;
/// Before Linux 5.17 the kernel doesn't tell: then addresses alone decide, and a captured
/// connection that somebody sent to another workload of this node enters that one
/// (docs/decisions/0055).
pub const UNKNOWN_INTERFACE: u32 = 0;

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
    /// Gives the connection to the listener; whether there was one.
    fn assign(&self, pod_id: u32, shard: u16) -> bool;
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
            Some(local) => entering(local),
            None => other(Reason::SteerPassOther),
        };
    }
    let remote = world.pod(&request.remote);
    let pod = match (&local, &remote) {
        (Some(local), Some(remote))
            if request.interface == LOOPBACK && local.pod_id != remote.pod_id =>
        {
            remote
        }
        (Some(local), _) => return entering(local),
        (None, Some(remote)) => remote,
        (None, None) => return other(Reason::SteerPassOther),
    };
    Verdict {
        pod_id: pod.pod_id,
        ..outbound(request, world, &config, pod)
    }
}

#[inline(always)]
const fn entering(pod: &PodAddr) -> Verdict {
    Verdict {
        pass: true,
        reason: Reason::SteerPassIn,
        pod_id: pod.pod_id,
    }
}

#[inline(always)]
fn outbound(request: &Request, world: &impl World, config: &Config, pod: &PodAddr) -> Verdict {
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
        let shard = shard(request, config.shards);
        if world.assign(pod.pod_id, shard) {
            return verdict(true, Reason::SteerOut);
        }
        if shard != 0 && world.assign(pod.pod_id, 0) {
            return verdict(true, Reason::SteerFallback);
        }
    }
    if pod.fail == FAIL_CLOSED {
        verdict(false, Reason::SteerMissClosed)
    } else {
        verdict(true, Reason::SteerMissOpen)
    }
}

/// The listener shard: the same for every packet of a connection, so that the ACK of a SYN cookie
/// meets the same listener.
///
/// Multiplicative hashing, high bits taken: Linux hands out ephemeral ports of one parity, so the
/// low bits alone would leave every second shard idle.
#[inline(always)]
pub fn shard(request: &Request, shards: u32) -> u16 {
    let words = request.remote.v6_be();
    let seed = words[0] ^ words[1] ^ words[2] ^ words[3];
    let mixed = (seed ^ u32::from(request.remote_port)).wrapping_mul(0x9E37_79B1);
    let hash = (mixed ^ (mixed >> 15)).wrapping_mul(0x85EB_CA77);
    // Scaled, not a remainder: uses the high bits, and the verifier sees the bound.
    let count = u64::from(shards.clamp(1, SHARDS_MAX));
    ((u64::from(hash) * count) >> 32) as u16
}

#[cfg(test)]
mod tests;
