//! Typed handles on the pinned maps. The only place that names aya's map types.

use std::{io, os::fd::OwnedFd};

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, lpm_trie};
use mesh_common::{
    abi::Config,
    addr::Addr,
    flow::{Flow, FlowKey, Grant, LoopFlow, ProxyFlow, Tuple},
    listener::ListenerKey,
    maps::{OutRuleKey, get},
    plain::Plain,
    pod::{Guarded, InRuleKey, PodAddr, PodEntry, PodSources},
    service::{Backend, Cap, EndpointStats, ServiceEntry, ServiceKey},
};

use super::{error::KernelError, pins::Pins, sys};

pub(super) type Hash<K, V> = HashMap<MapData, K, V>;
pub(super) type Slots<V> = Array<MapData, V>;
pub(super) type PerCpu<V> = PerCpuArray<MapData, V>;
pub(super) type Rules = LpmTrie<MapData, OutRuleKey, u32>;

/// Opens one pinned map as the type that the caller expects.
fn open<T>(pins: &Pins, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(pins.map(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(|source| KernelError::Map { map: name, source })
}

macro_rules! tables {
    ($(#[$doc:meta])* $table:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $name:literal,)+ }) => {
        $(#[$doc])*
        pub(super) struct $table {
            $($(#[$field_doc])* pub(super) $field: $type,)+
        }
        // aya's maps have no `Debug`.
        impl std::fmt::Debug for $table {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($table)).finish_non_exhaustive()
            }
        }
        impl $table {
            /// Opens the pins.
            pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
                Ok(Self { $($field: open(pins, $name)?,)+ })
            }
        }
    };
}

tables! {
    /// What the agent writes.
    Tables {
        backends: Slots<Backend> = "BACKENDS",
        cap_limits: Slots<u64> = "CAP_LIMITS",
        caps: Slots<Cap> = "CAPS",
        config: Slots<Config> = "CONFIG",
        counters: PerCpu<u64> = "COUNTERS",
        events: RingBuf<MapData> = "EVENTS",
        guarded: Hash<u32, Guarded> = "GUARDED",
        heartbeat: Slots<u64> = "HEARTBEAT",
        in_rules: Hash<InRuleKey, u32> = "IN_RULES",
        pod_by_addr: Hash<Addr, PodAddr> = "POD_BY_ADDR",
        pod_by_netns: Hash<u64, PodEntry> = "POD_BY_NETNS",
        pod_sources: Hash<u32, PodSources> = "POD_SOURCES",
        services: Hash<ServiceKey, ServiceEntry> = "SERVICES",
        slots: Slots<u32> = "SLOTS",
        out_rules: Rules = "OUT_RULES",
        /// The same maps again, for many entries in one call.
        many_backends: Many = "BACKENDS",
        many_ep_stats: Many = "EP_STATS",
        many_services: Many = "SERVICES",
        many_slots: Many = "SLOTS",
    }
}

tables! {
    /// What the command line reads.
    Readable {
        backends: Slots<Backend> = "BACKENDS",
        cap_limits: Slots<u64> = "CAP_LIMITS",
        caps: Slots<Cap> = "CAPS",
        config: Slots<Config> = "CONFIG",
        ep_stats: Slots<EndpointStats> = "EP_STATS",
        counters: PerCpu<u64> = "COUNTERS",
        flows: Hash<FlowKey, Flow> = "FLOWS",
        grants: Hash<Tuple, Grant> = "GRANTS",
        guarded: Hash<u32, Guarded> = "GUARDED",
        heartbeat: Slots<u64> = "HEARTBEAT",
        in_rules: Hash<InRuleKey, u32> = "IN_RULES",
        listeners: Sockets = "LISTENERS",
        loop_flows: Hash<FlowKey, LoopFlow> = "LOOP_FLOWS",
        out_rules: Rules = "OUT_RULES",
        pod_by_addr: Hash<Addr, PodAddr> = "POD_BY_ADDR",
        pod_by_netns: Hash<u64, PodEntry> = "POD_BY_NETNS",
        proxy_flows: Hash<Tuple, ProxyFlow> = "PROXY_FLOWS",
        services: Hash<ServiceKey, ServiceEntry> = "SERVICES",
        slots: Slots<u32> = "SLOTS",
    }
}

/// The flow table alone, for original destinations.
pub(super) fn flows(pins: &Pins) -> Result<Hash<FlowKey, Flow>, KernelError> {
    open(pins, "FLOWS")
}

/// The guarded interfaces alone, for a cleanup.
pub(super) fn guarded(pins: &Pins) -> Result<Hash<u32, Guarded>, KernelError> {
    open(pins, "GUARDED")
}

/// A map into which many entries are written at once.
#[derive(Debug)]
pub(super) struct Many(OwnedFd);

impl TryFrom<Map> for Many {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        use std::os::fd::AsFd as _;
        let (Map::Array(data) | Map::HashMap(data)) = map else {
            return Err(MapError::InvalidMapType { map_type: 0 });
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        Ok(Self(fd.map_err(|_| MapError::ElementNotFound)?))
    }
}

impl Many {
    /// Writes entries; after an error some of them stand.
    pub(super) fn update<K: Plain, V: Plain>(
        &self,
        map: &'static str,
        keys: &[K],
        values: &[V],
    ) -> Result<(), KernelError> {
        sys::batch::update(&self.0, keys, values).map_err(KernelError::io(map))
    }

    /// Removes entries. One that is not there is no error.
    pub(super) fn delete<K: Plain>(
        &self,
        map: &'static str,
        keys: &[K],
    ) -> Result<(), KernelError> {
        sys::batch::delete(&self.0, keys).map_err(KernelError::io(map))
    }
}

/// `LISTENERS`: a sockhash read as what user space sees, key to cookie.
#[derive(Debug)]
pub(super) struct Sockets(OwnedFd);

impl TryFrom<Map> for Sockets {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        let Map::SockHash(data) = map else {
            return Err(MapError::InvalidMapType { map_type: 0 });
        };
        use std::os::fd::AsFd as _;
        let fd = data.fd().as_fd().try_clone_to_owned();
        Ok(Self(fd.map_err(|_| MapError::ElementNotFound)?))
    }
}

impl Sockets {
    /// For writing.
    pub(super) fn pinned(pins: &Pins) -> Result<Self, KernelError> {
        let path = pins.map("LISTENERS");
        sys::open_pin(&path)
            .map(Self)
            .map_err(KernelError::io(format!("{}", path.display())))
    }

    pub(super) fn insert(
        &self,
        key: &ListenerKey,
        socket: impl std::os::fd::AsFd,
    ) -> io::Result<()> {
        sys::sockhash_insert(&self.0, key, socket)
    }

    pub(super) fn delete(&self, key: &ListenerKey) -> io::Result<()> {
        sys::map_delete(&self.0, key)
    }

    /// Keys with the cookies of their sockets.
    pub(super) fn all(&self) -> io::Result<Vec<(ListenerKey, u64)>> {
        let mut found = Vec::new();
        let mut key = None;
        // A key that is removed while we stand on it restarts the walk: bounded by twice the size.
        let limit = get("LISTENERS").capacity as usize * 2;
        while let Some(next) = sys::map_next::<ListenerKey>(&self.0, key.as_ref())? {
            if let Some(cookie) = sys::batch::lookup::<_, u64>(&self.0, &next)? {
                found.push((next, cookie));
            }
            key = Some(next);
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }
}

/// IP protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// IP protocol number of UDP.
pub(super) const UDP: u8 = 17;

/// A key of `OUT_RULES`.
pub(super) fn rule_key(proto: u8, addr: Addr, prefix: u8, port: u16) -> lpm_trie::Key<OutRuleKey> {
    let data = OutRuleKey {
        proto,
        ..OutRuleKey::tcp(masked(addr, prefix), port)
    };
    lpm_trie::Key::new(
        mesh_common::maps::OUT_RULE_FIXED_BITS + u32::from(prefix.min(128)),
        data,
    )
}

/// The bits that count; a key with others set would never be removed by its own prefix.
fn masked(addr: Addr, prefix: u8) -> Addr {
    let value = u128::from_be_bytes(addr.octets());
    let keep = u32::from(prefix.min(128));
    let mask = if keep == 0 {
        0
    } else {
        u128::MAX << (128 - keep)
    };
    Addr::from_octets((value & mask).to_be_bytes())
}
