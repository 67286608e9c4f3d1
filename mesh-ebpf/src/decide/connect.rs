//! What a `connect()` does: nothing, a capture, a rewrite to an endpoint, or a refusal.
//!
//! Cheap questions first, and every answer that is not «capture» leaves the socket without our
//! mark: a socket that is used again after a failed connect must not stay captured.

use mesh_common::{
    abi::{ABI_VERSION, Config, SHARDS_MAX, UNKNOWN_REFUSE},
    addr::Addr,
    flow::BACKEND_NONE,
    listener::{KIND_OUT, ListenerKey},
    maps::OUT_DENY,
    pod::{FAIL_CLOSED, MODE_LOOPBACK, MODE_MARK, POD_BROKEN, POD_GUARDED, PodEntry},
    reason::Reason,
    service::{
        BACKEND_ON, BACKEND_REFUSE, Backend, DECIDE_KERNEL, DECIDE_PROXY, FLAG_ROUTABLE,
        SERVICE_PORTS_MAX, ServiceEntry, ServiceKey,
    },
};

use super::{TCP, datagram, fresh, slot};

/// The connecting socket and what it asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Where to.
    pub addr: Addr,
    /// Which port, host order.
    pub port: u16,
    /// Whether it is a TCP (or multipath TCP) stream socket.
    pub tcp: bool,
    /// Whether it is a UDP socket.
    pub udp: bool,
    /// Whether the socket is an IPv6 one: it reaches IPv4 endpoints too, by v4-mapped addresses.
    pub v6_socket: bool,
    /// Cgroup id of the calling process.
    pub cgroup: u64,
}

/// What the decision may look up; asked only when needed.
pub trait World {
    /// `CONFIG[0]`.
    fn config(&self) -> Option<Config>;
    /// Cookie of the socket's network namespace.
    fn netns(&self) -> u64;
    /// `POD_BY_NETNS`.
    fn pod(&self, netns: u64) -> Option<PodEntry>;
    /// Whether `POD_BY_ADDR` has the address.
    fn is_pod(&self, addr: &Addr) -> bool;
    /// `OUT_RULES`: the action of the longest prefix for exactly this port (0: any).
    fn out_rule(&self, port: u16, addr: &Addr) -> Option<u32>;
    /// `SERVICES`.
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry>;
    /// `HEARTBEAT[0]`.
    fn heartbeat(&self) -> u64;
    /// CLOCK_MONOTONIC, nanoseconds.
    fn now(&self) -> u64;
    /// `OUT_RULES` for datagrams, like [`World::out_rule`].
    fn datagram_rule(&self, port: u16, addr: &Addr) -> Option<u32>;
    /// The port of the live socket in `LISTENERS`, host order; 0: there is none.
    fn listener(&self, key: &ListenerKey) -> u16;
    /// A number that differs from socket to socket.
    fn cookie(&self) -> u64;
    /// The next number of `SPLIT_SEQ` for a service, on this node.
    fn sequence(&self, service_id: u32) -> u64;
    /// `SLOTS`.
    fn slot(&self, index: u32) -> Option<u32>;
    /// `BACKENDS`.
    fn backend(&self, index: u32) -> Option<Backend>;
    /// Takes a place of a connection cap for this socket, which gives back first what an earlier
    /// connect of it still holds; whether there was one.
    fn reserve(&self, cap: u32) -> bool;
}

/// What is done with the socket. A number below 8: see [`Packed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Nothing at all, not even our mark is looked at: the agent's own socket, a namespace that is
    /// not ours, or no agent's settings to go by.
    Ignore = 0,
    /// It goes as the platform routes it.
    Pass = 1,
    /// ECONNREFUSED.
    Refuse = 2,
    /// Intent, then mark.
    Capture = 3,
    /// Intent, then the destination becomes the verdict's endpoint.
    Rewrite = 4,
    /// Intent, then the destination becomes the agent's listener on the workload's loopback.
    Loopback = 5,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub action: Action,
    /// Why; counted.
    pub reason: Reason,
    /// The workload, 0 when none.
    pub pod_id: u32,
    /// Its failure mode.
    pub fail: u8,
    /// Whether it is guarded: what it opens itself needs a grant.
    pub guarded: bool,
    /// The service, 0 when none.
    pub service_id: u32,
    /// The endpoint's number, [`BACKEND_NONE`] when none was chosen.
    pub backend: u32,
    /// The endpoint's address; unspecified when none was chosen.
    pub to: Addr,
    /// The endpoint's port, host order; 0 when none was chosen.
    pub to_port: u16,
    /// The connection cap of which a place is held for it, 0: none.
    pub cap: u32,
}

impl Verdict {
    #[inline(always)]
    const fn new(action: Action, reason: Reason) -> Self {
        Self {
            action,
            reason,
            pod_id: 0,
            fail: 0,
            guarded: false,
            service_id: 0,
            backend: BACKEND_NONE,
            to: Addr::UNSPECIFIED,
            to_port: 0,
            cap: 0,
        }
    }

    #[inline(always)]
    const fn of(self, pod: &PodEntry) -> Self {
        Self {
            pod_id: pod.pod_id,
            fail: pod.fail,
            guarded: pod.flags & POD_GUARDED != 0,
            ..self
        }
    }

    #[inline(always)]
    const fn to(self, service: &ServiceEntry) -> Self {
        Self {
            service_id: service.service_id,
            ..self
        }
    }

    /// What happens when the verdict (a capture or a rewrite of either kind) could not be carried out: the intent
    /// was not stored, or the mark not set.
    #[inline(always)]
    pub const fn failed(self) -> Self {
        let (action, reason) = if self.fail == FAIL_CLOSED {
            (Action::Refuse, Reason::RefuseState)
        } else {
            (Action::Pass, Reason::BypassState)
        };
        Self {
            action,
            reason,
            backend: BACKEND_NONE,
            ..self
        }
    }

    /// Whether an operator may have to act on it: goes to `EVENTS`.
    #[inline(always)]
    pub const fn is_event(&self) -> bool {
        self.reason.is_refusal()
            || matches!(
                self.reason,
                Reason::BypassAgentGone | Reason::DirectAgentGone | Reason::BypassState
            )
    }
}

/// What is left to do with a verdict, in one word: what it says in the lower half, what it becomes
/// when that can't be carried out in the upper half.
///
/// A word, because the hook makes the verifier forget its value: a decision ends in some forty
/// ways, and what follows would be walked once for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed(u64);

impl Packed {
    const EVENT: u64 = 1 << 3;
    const REASON: u32 = 4;
    const HALF: u32 = 16;
    const GUARDED: u64 = 1 << (2 * Self::HALF);

    /// From a verdict.
    #[inline(always)]
    pub const fn of(verdict: &Verdict) -> Self {
        let guarded = if verdict.guarded { Self::GUARDED } else { 0 };
        Self(Self::half(verdict) | (Self::half(&verdict.failed()) << Self::HALF) | guarded)
    }

    #[inline(always)]
    const fn half(verdict: &Verdict) -> u64 {
        let event = if verdict.is_event() { Self::EVENT } else { 0 };
        verdict.action as u64 | event | ((verdict.reason as u64) << Self::REASON)
    }

    /// The word, for a register.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// From a word that [`Packed::word`] gave.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// What it becomes when it can't be carried out.
    #[inline(always)]
    pub const fn failed(self) -> Self {
        Self(self.0 >> Self::HALF)
    }

    /// Whether this is to be done.
    #[inline(always)]
    pub const fn is(self, action: Action) -> bool {
        self.0 & (Self::EVENT - 1) == action as u64
    }

    /// Like [`Verdict::guarded`]. Not to be asked after [`Packed::failed`].
    #[inline(always)]
    pub const fn is_guarded(self) -> bool {
        self.0 & Self::GUARDED != 0
    }

    /// Like [`Verdict::is_event`].
    #[inline(always)]
    pub const fn is_event(self) -> bool {
        self.0 & Self::EVENT != 0
    }

    /// The reason's code.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        ((self.0 >> Self::REASON) & ((1 << (Self::HALF - Self::REASON)) - 1)) as u32
    }
}

/// Decides.
#[inline(always)]
pub fn decide(request: &Request, world: &impl World) -> Verdict {
    let Some(config) = world.config() else {
        return Verdict::new(Action::Ignore, Reason::NoConfig);
    };
    if config.abi != ABI_VERSION {
        return Verdict::new(Action::Ignore, Reason::NoConfig);
    }
    // The cgroup, never the mark: a workload with CAP_NET_ADMIN can set any mark.
    if request.cgroup == config.agent_cgroup {
        return Verdict::new(Action::Ignore, Reason::PassAgent);
    }
    if !request.tcp {
        return not_tcp(request, world);
    }
    // Before the namespace: what stays inside a namespace is nobody's business, also where unknown
    // namespaces are refused.
    if request.addr.is_loopback() || request.addr.is_unspecified() {
        return Verdict::new(Action::Pass, Reason::PassLoopback);
    }
    let netns = world.netns();
    let Some(pod) = world.pod(netns) else {
        return unknown(&config, netns);
    };
    workload(request, world, &config, &pod).of(&pod)
}

/// Datagrams pass but for an outbound rule that denies them; no service is looked up.
#[inline(always)]
fn not_tcp(request: &Request, world: &impl World) -> Verdict {
    let pass = Verdict::new(Action::Pass, Reason::PassNotTcp);
    if !request.udp || datagram::inside(&request.addr) {
        return pass;
    }
    let Some(pod) = world.pod(world.netns()) else {
        return pass;
    };
    let rule = |port| world.datagram_rule(port, &request.addr);
    if datagram::denied(request.port, rule) {
        Verdict::new(Action::Refuse, Reason::RefuseDatagram).of(&pod)
    } else {
        pass
    }
}

#[inline(always)]
fn unknown(config: &Config, netns: u64) -> Verdict {
    if config.unknown_netns == UNKNOWN_REFUSE && netns != config.agent_netns {
        Verdict::new(Action::Refuse, Reason::RefuseUnknown)
    } else {
        // Not even a mark of ours is taken away: it may be that of another instance, whose
        // workload this is (docs/decisions/0007).
        Verdict::new(Action::Ignore, Reason::PassUnknown)
    }
}

#[inline(always)]
fn workload(request: &Request, world: &impl World, config: &Config, pod: &PodEntry) -> Verdict {
    if world.is_pod(&request.addr) {
        return Verdict::new(Action::Pass, Reason::PassPod);
    }
    let rule = match world.out_rule(request.port, &request.addr) {
        None => world.out_rule(0, &request.addr),
        exact => exact,
    };
    if let Some(action) = rule {
        return if action == OUT_DENY {
            Verdict::new(Action::Refuse, Reason::RefuseRule)
        } else {
            Verdict::new(Action::Pass, Reason::PassRule)
        };
    }
    let key = ServiceKey {
        addr: request.addr,
        port: request.port,
        proto: TCP,
        _pad: 0,
    };
    let Some(service) = world.service(&key) else {
        return Verdict::new(Action::Pass, Reason::PassOutside);
    };
    by_service(request, world, config, pod, &service).to(&service)
}

#[inline(always)]
fn by_service(
    request: &Request,
    world: &impl World,
    config: &Config,
    pod: &PodEntry,
    service: &ServiceEntry,
) -> Verdict {
    // What shall happen when the kernel may choose the endpoint, and when it can't.
    let (reason, otherwise) = match service.decision {
        DECIDE_KERNEL => (Reason::Kernel, (Action::Refuse, Reason::RefuseNoEndpoint)),
        DECIDE_PROXY => {
            let off = pod.mode != MODE_MARK && pod.mode != MODE_LOOPBACK;
            // 0: the agent is gone.
            let listener = if config.paused != 0 || off {
                0
            } else {
                alive(world, config, pod)
            };
            if config.paused != 0 || off {
                (Reason::PassPaused, (Action::Pass, Reason::PassPaused))
            } else if listener != 0 && pod.mode == MODE_LOOPBACK {
                return to_loopback(request, world, config, pod, listener);
            } else if listener != 0 {
                return Verdict::new(Action::Capture, Reason::Captured);
            } else if pod.fail == FAIL_CLOSED {
                return Verdict::new(Action::Refuse, Reason::RefuseAgentGone);
            } else {
                (
                    Reason::DirectAgentGone,
                    (Action::Pass, Reason::BypassAgentGone),
                )
            }
        }
        _ => return Verdict::new(Action::Pass, Reason::PassService),
    };
    // Without the proxy, a platform that routes the address itself does so (DESIGN §10.8).
    let routed = service.decision != DECIDE_KERNEL && service.flags & FLAG_ROUTABLE != 0;
    if !routed {
        let chosen = choose(request, world, service);
        if chosen.index != BACKEND_NONE {
            // A cap is its version's: nobody else takes what is above it.
            if chosen.cap != 0 && !world.reserve(chosen.cap) {
                return Verdict::new(Action::Refuse, Reason::RefuseCap);
            }
            return Verdict {
                backend: chosen.index,
                to: chosen.addr,
                to_port: chosen.port,
                cap: chosen.cap,
                ..Verdict::new(Action::Rewrite, reason)
            };
        }
    }
    Verdict::new(otherwise.0, otherwise.1)
}

/// Whether a captured connection would be served: the agent ticks and its first listener stands.
/// The port of that listener, 0: no.
///
/// Shard 0 speaks for all: `steer` falls back to it, and which shard the connection will hash to
/// is not known before its source port is.
#[inline(always)]
fn alive(world: &impl World, config: &Config, pod: &PodEntry) -> u16 {
    if pod.flags & POD_BROKEN != 0
        || !fresh(world.heartbeat(), world.now(), config.heartbeat_stale_ns)
    {
        return 0;
    }
    world.listener(&ListenerKey {
        pod_id: pod.pod_id,
        kind: KIND_OUT,
        shard: 0,
    })
}

/// The destination becomes a listener of the agent on the workload's own loopback, of the family
/// that was asked for. The source port is not known yet, so the socket's cookie spreads
/// connections over the shards; `first` is the port of shard 0.
#[inline(always)]
fn to_loopback(
    request: &Request,
    world: &impl World,
    config: &Config,
    pod: &PodEntry,
    first: u16,
) -> Verdict {
    let mixed = (world.cookie() as u32).wrapping_mul(0x9E37_79B1);
    let count = u64::from(config.shards.clamp(1, SHARDS_MAX));
    let shard = ((u64::from(mixed) * count) >> 32) as u16;
    let port = world.listener(&ListenerKey {
        pod_id: pod.pod_id,
        kind: KIND_OUT,
        shard,
    });
    Verdict {
        to: if request.addr.is_v4() {
            Addr::LOOPBACK_V4
        } else {
            Addr::LOOPBACK_V6
        },
        to_port: if port == 0 { first } else { port },
        ..Verdict::new(Action::Loopback, Reason::CapturedLoopback)
    }
}

/// How many slots are tried when endpoints are out of rotation or of the wrong family. More would
/// cost verified instructions; the agent rewrites the slots when an endpoint leaves for long.
const TRIES: u64 = 4;

/// An endpoint; [`BACKEND_NONE`] as its index: none.
///
/// Not an `Option`: LLVM may compute with the fields of a `None` before it looks at the tag, and
/// the verifier refuses to read what was never written.
struct Chosen {
    index: u32,
    addr: Addr,
    port: u16,
    cap: u32,
}

#[inline(always)]
fn choose(request: &Request, world: &impl World, service: &ServiceEntry) -> Chosen {
    let mut chosen = Chosen {
        index: BACKEND_NONE,
        addr: Addr::UNSPECIFIED,
        port: 0,
        cap: 0,
    };
    if service.slots_len == 0 {
        return chosen;
    }
    let sequence = world.sequence(service.service_id % SERVICE_PORTS_MAX);
    let mut attempt = 0;
    while attempt < TRIES {
        if let Some(index) = world.slot(slot(service, sequence.wrapping_add(attempt)))
            && let Some(backend) = world.backend(index)
        {
            if backend.state == BACKEND_REFUSE {
                break;
            }
            if backend.state == BACKEND_ON && reachable(request, &backend) {
                chosen = Chosen {
                    index,
                    addr: backend.addr,
                    port: backend.port,
                    cap: backend.cap,
                };
                break;
            }
        }
        attempt += 1;
    }
    chosen
}

/// An IPv4 socket reaches IPv4 only; an IPv6 socket that asked for an IPv4 address is bound to
/// that family (v4-mapped); one that asked for IPv6 reaches IPv4 by a v4-mapped address.
#[inline(always)]
fn reachable(request: &Request, backend: &Backend) -> bool {
    let v4 = backend.addr.is_v4();
    v4 == request.addr.is_v4() || (v4 && request.v6_socket)
}

#[cfg(test)]
mod tests;
