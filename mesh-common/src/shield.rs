//! The shield's part of the ABI: the maps of the second eBPF object, which is loaded only on nodes
//! that configure it, and why it lets a frame pass or drops it.

use crate::{
    addr::Addr,
    flow::Tuple,
    maps::{Kind, Spec},
    plain::{Plain, plain},
};

/// Most prefixes that the lists may hold together.
pub const PREFIXES_MAX: usize = 1_000_000;
/// Most rules: each has a name and counters of its own.
pub const RULES_MAX: u32 = 4_096;
/// Most entries that an operator adds by the command line.
pub const MANUAL_MAX: u32 = 1_024;

/// `BPF_F_NO_PREALLOC`: a trie takes memory for the prefixes that it holds only.
const NO_PREALLOC: u32 = 1;

/// The value of `SHIELD_CONFIG[0]`.
///
/// Rates are kept as what the bucket adds up, so that the programs never divide.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// [`crate::abi::ABI_VERSION`] of the writer. Anything else: every frame passes.
    pub abi: u32,
    /// 1: frames with flags that no TCP sends are dropped.
    pub drop_bogus: u32,
    /// Nanoseconds that one SYN costs its source; 0: no limit.
    pub syn_interval_ns: u64,
    /// How far ahead of the clock a source's SYNs may be: (burst - 1) intervals.
    pub syn_tolerance_ns: u64,
    /// Nanoseconds that one new connection costs its source; 0: no limit.
    pub connection_interval_ns: u64,
    /// How far ahead of the clock a source's connections may be: (burst - 1) intervals.
    pub connection_tolerance_ns: u64,
    #[doc(hidden)]
    pub _reserved: [u64; 3],
}
plain!(Settings, 64, [u32, u32, u64, u64, u64, u64, [u64; 3]]);

/// Key of `SHIELD_PREFIXES` as the kernel wants it: how many bits count, then the bits. IPv4
/// stands as v4-mapped, so its prefix lengths are 96 longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// Bits that count, 0 to 128.
    pub bits: u32,
    /// The address; bits beyond are 0.
    pub addr: Addr,
}
plain!(Prefix, 20, [u32, Addr]);

/// Bits before an IPv4 address inside its v4-mapped form.
pub const V4_BITS: u32 = 96;

/// What a prefix means: the value of `SHIELD_PREFIXES`.
///
/// The lower bits are the number of the rule, whose counters it counts into.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u32);
plain!(Entry, 4, [u32]);

impl Entry {
    const DENY: u32 = 1 << 31;
    const ALLOW: u32 = 1 << 30;
    const RULE: u32 = Self::ALLOW - 1;

    /// No rule: ends what a shorter prefix says.
    pub const NONE: Self = Self(0);

    /// Frames from here are dropped.
    #[inline(always)]
    pub const fn deny(rule: u32) -> Self {
        Self(Self::DENY | (rule & Self::RULE))
    }

    /// Frames from here pass, whatever else is said.
    #[inline(always)]
    pub const fn allow(rule: u32) -> Self {
        Self(Self::ALLOW | (rule & Self::RULE))
    }

    /// Whether it denies.
    #[inline(always)]
    pub const fn is_deny(self) -> bool {
        self.0 & Self::DENY != 0
    }

    /// Whether it allows.
    #[inline(always)]
    pub const fn is_allow(self) -> bool {
        self.0 & Self::ALLOW != 0
    }

    /// The rule's number; `None`: it belongs to no rule.
    #[inline(always)]
    pub const fn rule(self) -> Option<u32> {
        if self.is_deny() || self.is_allow() {
            Some(self.0 & Self::RULE)
        } else {
            None
        }
    }
}

/// Value of `SHIELD_SOURCES`: the buckets of one source (an IPv4 address or an IPv6 /64).
///
/// A bucket is one number, the time at which it would be full again (GCRA, ITU-T I.371): no lock,
/// no division. The error is stated at `mesh_ebpf::decide::shield::take`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// When its SYN bucket is full again: CLOCK_MONOTONIC, nanoseconds.
    pub syn_full_ns: u64,
    /// When its bucket of new connections is full again: CLOCK_MONOTONIC, nanoseconds.
    pub connection_full_ns: u64,
    /// SYNs that passed.
    pub passed: u64,
    /// SYNs that were dropped.
    pub dropped: u64,
}
plain!(Source, 32, [u64, u64, u64, u64]);

/// Whose bucket an address has: IPv4 by address, IPv6 by /64, which is what one host is given
/// (RFC 6177 §1) and can fill with addresses at will.
#[inline(always)]
pub const fn bucket_of(source: &Addr) -> Addr {
    if source.is_v4() {
        return *source;
    }
    let w = source.v6_be();
    Addr::from_v6_be([w[0], w[1], 0, 0])
}

/// Frames and their bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
}
plain!(Tally, 16, [u64, u64]);

/// Value of `SHIELD_RULES`: the name of a rule, so that its number means the same after a restart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleName {
    /// Bytes of the name; 0: the number is free.
    pub len: u32,
    /// UTF-8, rest 0.
    pub name: [u8; RULE_NAME_MAX],
}
plain!(RuleName, 128, [u32, [u8; RULE_NAME_MAX]]);

/// Longest name of a rule, in bytes.
pub const RULE_NAME_MAX: usize = 124;

/// Value of `SHIELD_MANUAL`: an entry that an operator added. It outlives the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manual {
    /// When it ends: CLOCK_MONOTONIC, nanoseconds; 0: never.
    pub expires_ns: u64,
    /// What it says; its rule's name is the prefix itself.
    pub entry: Entry,
    #[doc(hidden)]
    pub _pad: u32,
}
plain!(Manual, 16, [u64, Entry, u32]);

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $label:literal, $drops:literal;)+) => {
        /// What the shield did with a frame. Also the index into `SHIELD_COUNTS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl Reason {
            /// Every reason, by code.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),+];

            /// Its name in metrics, the CLI and the docs.
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)+ }
            }

            /// Whether the frame was dropped for it.
            pub const fn drops(self) -> bool {
                match self { $(Reason::$name => $drops,)+ }
            }

            /// What it means, one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Reason::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// Nothing speaks against it.
    Pass = 0, "pass", false;
    /// The allow list names its source.
    PassAllow = 1, "pass_allow", false;
    /// Neither IPv4 nor IPv6 (ARP, LLDP, ...), or more than two VLAN tags: the shield has no opinion.
    PassNotIp = 2, "pass_not_ip", false;
    /// Its headers end too early, contradict each other, or go on for too long: left to the kernel.
    PassUnparsed = 3, "pass_unparsed", false;
    /// A fragment without the transport header: lists apply to it, nothing else can.
    PassFragment = 4, "pass_fragment", false;
    /// There are no settings, or those of another build: everything passes.
    PassNoSettings = 5, "pass_no_settings", false;
    /// A source found no room in the map of buckets: not limited.
    PassNoRoom = 6, "pass_no_room", false;
    /// The deny list names its source.
    DropDeny = 7, "drop_deny", true;
    /// TCP flags that no TCP sends together.
    DropFlags = 8, "drop_flags", true;
    /// A fragment that splits the TCP header (RFC 1858, RFC 3128).
    DropFragment = 9, "drop_fragment", true;
    /// Its source sent more SYNs than its bucket holds.
    DropSyn = 10, "drop_syn_rate", true;
    /// Its source opened more connections than its bucket holds.
    DropConnection = 11, "drop_connection_rate", true;
}

/// Capacity of `SHIELD_COUNTS`; room for reasons to come.
pub const COUNTS_MAX: u32 = 32;

/// The program for drivers that give XDP one buffer.
pub const XDP: &str = "shield";
/// The program for drivers that give XDP a frame in several buffers (Linux 5.18).
pub const XDP_FRAGS: &str = "shield_frags";
/// The program for tcx and clsact.
pub const TC: &str = "shield_tc";

const fn map(name: &'static str, kind: Kind, key: usize, value: usize, capacity: u32) -> Spec {
    Spec {
        name,
        kind,
        key,
        value,
        capacity,
        flags: 0,
        writer: "agent",
        full: "can't be",
    }
}

/// Every map of the object, by name.
pub const MAPS: &[Spec] = &[
    map("SHIELD_CONFIG", Kind::Array, 4, Settings::SIZE, 1),
    Spec {
        writer: "programs",
        ..map(
            "SHIELD_COUNTS",
            Kind::PerCpuArray,
            4,
            Tally::SIZE,
            COUNTS_MAX,
        )
    },
    Spec {
        writer: "programs; the agent clears a number that it gives to another rule",
        ..map("SHIELD_HITS", Kind::PerCpuArray, 4, Tally::SIZE, RULES_MAX)
    },
    Spec {
        full: "the addition is refused by name",
        ..map(
            "SHIELD_MANUAL",
            Kind::Hash,
            Prefix::SIZE,
            Manual::SIZE,
            MANUAL_MAX,
        )
    },
    Spec {
        flags: NO_PREALLOC,
        // A list is replaced by adding the new entries first, so both fit, with an operator's
        // entries and the one that keeps IPv6's rules from IPv4.
        full: "lists above 1,000,000 prefixes are refused by name, the old ones stay",
        ..map(
            "SHIELD_PREFIXES",
            Kind::LpmTrie,
            Prefix::SIZE,
            Entry::SIZE,
            2 * (PREFIXES_MAX as u32 + MANUAL_MAX + 1),
        )
    },
    Spec {
        full: "lists with more rules are refused by name, the old ones stay",
        ..map("SHIELD_RULES", Kind::Array, 4, RuleName::SIZE, RULES_MAX)
    },
    Spec {
        writer: "programs",
        full: "the source that was silent for longest is forgotten: it starts with a full bucket",
        ..map(
            "SHIELD_SOURCES",
            Kind::LruHash,
            Addr::SIZE,
            Source::SIZE,
            262_144,
        )
    },
    Spec {
        writer: "programs",
        full: "the oldest is forgotten: its next SYN counts as a new connection",
        ..map("SHIELD_SYNS", Kind::LruHash, Tuple::SIZE, 8, 65_536)
    },
];

/// The map of that name.
pub const fn get(name: &str) -> &'static Spec {
    crate::maps::find(MAPS, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shield_maps_fit_the_kernel_and_have_names_of_their_own() {
        for pair in MAPS.windows(2) {
            assert!(pair[0].name < pair[1].name);
        }
        for spec in MAPS {
            assert!(spec.name.len() <= 15, "{}", spec.name);
            assert!(crate::maps::ALL.iter().all(|other| other.name != spec.name));
        }
    }

    #[test]
    fn shield_reasons_are_dense_and_say_in_their_name_whether_they_drop() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(reason.drops(), reason.label().starts_with("drop_"));
        }
        assert!(Reason::ALL.len() <= COUNTS_MAX as usize);
    }

    #[test]
    fn shield_entry_keeps_action_and_rule_apart() {
        assert!(Entry::deny(7).is_deny() && !Entry::deny(7).is_allow());
        assert!(Entry::allow(7).is_allow() && !Entry::allow(7).is_deny());
        assert_eq!(Entry::deny(RULES_MAX - 1).rule(), Some(RULES_MAX - 1));
        assert_eq!(Entry::NONE.rule(), None);
    }
}
