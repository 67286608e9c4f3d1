//! One table of all maps: name, kind, sizes, capacity, who writes, what happens when full.
//!
//! The built object is compared with this table (`object_contract`), so it can't drift.

use crate::{
    abi::Config,
    addr::Addr,
    flow::{Flow, FlowKey, Grant, Intent, LoopFlow, ProxyFlow, Tuple},
    listener::ListenerKey,
    plain::{Plain, plain},
    pod::{Guarded, InRuleKey, PodAddr, PodEntry, PodSources},
    reason::COUNTERS_MAX,
    service::{Backend, CAPS_MAX, Cap, EndpointStats, SERVICE_PORTS_MAX, ServiceEntry, ServiceKey},
};

/// Data of an `OUT_RULES` key, behind the prefix length.
///
/// Port and protocol stand before the address, so that one LPM look-up with the exact port and
/// one with port 0 («any port») cover all rules.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutRuleKey {
    /// IP protocol: 6 for TCP, 17 for UDP.
    pub proto: u8,
    /// 4 or 6. IPv4 addresses stand as v4-mapped, so without it `::/0` would mean all of IPv4 too.
    pub family: u8,
    /// Port, network order; 0: any.
    pub port_be: [u8; 2],
    /// Address; a prefix of it counts.
    pub addr: Addr,
}

impl OutRuleKey {
    /// For TCP to this address (or range) and port (0: any).
    #[inline(always)]
    pub const fn tcp(addr: Addr, port: u16) -> Self {
        Self {
            proto: 6,
            family: if addr.is_v4() { 4 } else { 6 },
            port_be: port.to_be_bytes(),
            addr,
        }
    }

    /// For UDP to this address (or range) and port (0: any).
    #[inline(always)]
    pub const fn udp(addr: Addr, port: u16) -> Self {
        Self {
            proto: 17,
            ..Self::tcp(addr, port)
        }
    }
}
plain!(OutRuleKey, 20, [u8, u8, [u8; 2], Addr]);

/// Key of `OUT_RULES` as the kernel wants it: how many bits count, then the bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutRulePrefix {
    /// [`OUT_RULE_FIXED_BITS`] plus the prefix length of the address.
    pub bits: u32,
    /// What they are compared with.
    pub data: OutRuleKey,
}
plain!(OutRulePrefix, 24, [u32, OutRuleKey]);

/// Bits of an [`OutRuleKey`] before the address.
pub const OUT_RULE_FIXED_BITS: u32 = 32;

/// Value of `OUT_RULES`: leave the connection alone.
pub const OUT_PASS: u32 = 0;
/// Value of `OUT_RULES`: refuse with ECONNREFUSED.
pub const OUT_DENY: u32 = 1;

/// Kind of a map: the kernel's `bpf_map_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_SOCKHASH`.
    SockHash = 18,
    /// `BPF_MAP_TYPE_SK_STORAGE`.
    SkStorage = 24,
    /// `BPF_MAP_TYPE_RINGBUF`.
    RingBuf = 27,
}

/// One map.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Name, at most 15 characters: also its pin's file name.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Size of a key in bytes; 0 for a ring buffer.
    pub key: usize,
    /// Size of a value in bytes; 0 for a ring buffer.
    pub value: usize,
    /// Capacity in entries (bytes for a ring buffer; 0 for socket storage).
    pub capacity: u32,
    /// `BPF_F_*` creation flags.
    pub flags: u32,
    /// Who writes and who deletes.
    pub writer: &'static str,
    /// What happens when it is full.
    pub full: &'static str,
}

const fn spec(name: &'static str, kind: Kind, key: usize, value: usize, capacity: u32) -> Spec {
    Spec {
        name,
        kind,
        key,
        value,
        capacity,
        flags: 0,
        writer: "",
        full: "",
    }
}

const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

/// All maps, by name.
pub const ALL: &[Spec] = &[
    Spec {
        writer: "agent, on every snapshot",
        full: "snapshot refused by name: too many endpoints for the kernel path",
        ..spec("BACKENDS", Kind::Array, 4, Backend::SIZE, 131_072)
    },
    Spec {
        writer: "connect hooks, flow_ops, sock_release",
        full: "can't be",
        ..spec("CAPS", Kind::Array, 4, Cap::SIZE, CAPS_MAX)
    },
    Spec {
        writer: "agent, on every snapshot",
        full: "snapshot refused by name: too many connection caps for the kernel path",
        ..spec("CAP_LIMITS", Kind::Array, 4, 8, CAPS_MAX)
    },
    Spec {
        writer: "agent, at start and on `mesh redirect`",
        full: "can't be",
        ..spec("CONFIG", Kind::Array, 4, Config::SIZE, 1)
    },
    Spec {
        writer: "every program; the agent what its audit did",
        full: "can't be",
        ..spec("COUNTERS", Kind::PerCpuArray, 4, 8, COUNTERS_MAX)
    },
    Spec {
        flags: MMAPABLE,
        writer: "flow_ops; the agent reads it through a memory mapping",
        full: "can't be",
        ..spec("EP_STATS", Kind::Array, 4, EndpointStats::SIZE, 131_072)
    },
    Spec {
        writer: "connect hooks, steer",
        full: "record lost, counted as event_lost",
        ..spec("EVENTS", Kind::RingBuf, 0, 0, 1 << 20)
    },
    Spec {
        writer: "flow_ops, at connect and at close",
        full: "the oldest entry goes, counted as flow_lost when its connection ends: diagnostics only",
        ..spec("FLOWS", Kind::LruHash, FlowKey::SIZE, Flow::SIZE, 131_072)
    },
    Spec {
        writer: "flow_ops, when a guarded workload connects without the proxy; deleted at close",
        full: "counted as grant_map_full; egress_guard drops the SYN",
        ..spec("GRANTS", Kind::Hash, Tuple::SIZE, Grant::SIZE, 65_536)
    },
    Spec {
        writer: "agent, at enrolment, by interface index of the node's side of the veth; egress_guard \
                 the time of its last event",
        full: "enrolment refused by name",
        ..spec("GUARDED", Kind::Hash, 4, Guarded::SIZE, 4_096)
    },
    Spec {
        flags: MMAPABLE,
        writer: "agent, every 250 ms, through its memory mapping",
        full: "can't be",
        ..spec("HEARTBEAT", Kind::Array, 4, 8, 1)
    },
    Spec {
        flags: NO_PREALLOC,
        writer: "connect hooks; dies with the socket",
        full: "failure mode of the workload",
        ..spec("INTENT", Kind::SkStorage, 4, Intent::SIZE, 0)
    },
    Spec {
        writer: "connect hooks, at a capture; flow_ops takes it away within the same system call",
        full: "the oldest goes, of a connect that failed in between: diagnostics only",
        ..spec("INTENTS", Kind::LruHash, 8, Intent::SIZE, 16_384)
    },
    Spec {
        writer: "agent, with a workload's inbound rules",
        full: "inbound rules refused by name",
        ..spec("IN_RULES", Kind::Hash, InRuleKey::SIZE, 4, 65_536)
    },
    Spec {
        writer: "agent; the kernel removes closed sockets",
        full: "enrolment refused by name",
        ..spec("LISTENERS", Kind::SockHash, ListenerKey::SIZE, 8, 65_536)
    },
    Spec {
        writer: "flow_ops, when a connect was sent to the loopback; deleted at close",
        full: "counted as loop_flow_map_full; the proxy refuses the connection",
        ..spec(
            "LOOP_FLOWS",
            Kind::Hash,
            FlowKey::SIZE,
            LoopFlow::SIZE,
            65_536,
        )
    },
    Spec {
        flags: NO_PREALLOC,
        writer: "flow_ops, when the agent takes a connection of mode loopback; dies with the socket",
        full: "the proxy refuses the connection",
        ..spec("ORIGIN", Kind::SkStorage, 4, LoopFlow::SIZE, 0)
    },
    Spec {
        flags: NO_PREALLOC,
        writer: "agent, on every snapshot",
        full: "snapshot refused by name",
        ..spec("OUT_RULES", Kind::LpmTrie, OutRulePrefix::SIZE, 4, 65_536)
    },
    Spec {
        writer: "agent, before steer is attached",
        full: "enrolment refused by name",
        ..spec("POD_BY_ADDR", Kind::Hash, Addr::SIZE, PodAddr::SIZE, 16_384)
    },
    Spec {
        writer: "agent, last step of enrolment, first of release",
        full: "enrolment refused by name",
        ..spec("POD_BY_NETNS", Kind::Hash, 8, PodEntry::SIZE, 4_096)
    },
    Spec {
        writer: "agent, when it puts a workload in mode loopback, and as its addresses change",
        full: "enrolment refused by name",
        ..spec("POD_SOURCES", Kind::Hash, 4, PodSources::SIZE, 4_096)
    },
    Spec {
        writer: "probe_ops, when the kubelet connects",
        full: "the oldest entry goes: that probe meets the inbound rules",
        ..spec("PROBE_FLOWS", Kind::LruHash, Tuple::SIZE, 8, 8_192)
    },
    Spec {
        writer: "flow_ops, when the agent dials; deleted at close",
        full: "counted; the agent's dial permits are sized below it",
        ..spec(
            "PROXY_FLOWS",
            Kind::Hash,
            Tuple::SIZE,
            ProxyFlow::SIZE,
            65_536,
        )
    },
    Spec {
        // Few nodes have so many: what is not used costs nothing.
        flags: NO_PREALLOC,
        writer: "agent, on every snapshot",
        full: "snapshot refused by name",
        ..spec(
            "SERVICES",
            Kind::Hash,
            ServiceKey::SIZE,
            ServiceEntry::SIZE,
            131_072,
        )
    },
    Spec {
        writer: "agent, on every snapshot",
        full: "the service gets no kernel split, said in its PATH column",
        ..spec("SLOTS", Kind::Array, 4, 4, 1_048_576)
    },
    Spec {
        writer: "connect hooks",
        full: "can't be",
        ..spec("SPLIT_SEQ", Kind::Array, 4, 8, SERVICE_PORTS_MAX)
    },
];

/// The map of that name.
pub const fn get(name: &str) -> &'static Spec {
    find(ALL, name)
}

/// The map of that name in one of the tables.
pub(crate) const fn find(table: &'static [Spec], name: &str) -> &'static Spec {
    let mut i = 0;
    while i < table.len() {
        if same(table[i].name, name) {
            return &table[i];
        }
        i += 1;
    }
    panic!("no such map")
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_names_fit_the_kernel_and_are_sorted() {
        for pair in ALL.windows(2) {
            assert!(pair[0].name < pair[1].name);
        }
        for spec in ALL {
            assert!(spec.name.len() <= 15, "{}", spec.name);
            assert!(
                !spec.writer.is_empty() && !spec.full.is_empty(),
                "{}",
                spec.name
            );
        }
    }
}
