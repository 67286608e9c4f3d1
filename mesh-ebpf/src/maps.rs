//! The maps: exactly the table in `mesh_common::maps` (compared with the object by a test).

use core::ptr;

use aya_ebpf::{
    helpers::generated::{
        bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem, bpf_ringbuf_output,
    },
    macros::btf_map,
};
use mesh_common::{
    abi::Config,
    addr::Addr,
    flow::{Flow, FlowKey, Grant, Intent, LoopFlow, ProxyFlow, Tuple},
    listener::ListenerKey,
    maps::{Kind, OutRulePrefix, get},
    pod::{Guarded, InRuleKey, PodAddr, PodEntry, PodSources},
    reason::Event,
    service::{Backend, Cap, EndpointStats, ServiceEntry, ServiceKey},
};

/// A BTF map definition: the loader reads the types, nobody reads the values.
///
/// One own type instead of aya's: it takes kind, capacity and flags from the shared table, and its
/// methods hand out raw pointers, so that references to memory that user space and other CPUs
/// write never exist.
#[repr(C)]
pub(crate) struct Map<K, V, const KIND: usize, const CAPACITY: usize, const FLAGS: usize> {
    r#type: *const [i32; KIND],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; CAPACITY],
    map_flags: *const [i32; FLAGS],
}

#[expect(unsafe_code, reason = "statics must be Sync")]
// SAFETY: the fields are never read nor written; the address alone is used, as the map's name.
unsafe impl<K, V, const KIND: usize, const CAPACITY: usize, const FLAGS: usize> Sync
    for Map<K, V, KIND, CAPACITY, FLAGS>
{
}

impl<K, V, const KIND: usize, const CAPACITY: usize, const FLAGS: usize>
    Map<K, V, KIND, CAPACITY, FLAGS>
{
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut core::ffi::c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The entry's memory, live for the whole program run.
    #[inline(always)]
    pub(crate) fn lookup(&self, key: &K) -> Option<*mut V> {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: the map pointer is relocated by the loader to this map, whose key size is that
        // of `K` (checked at creation); the kernel only reads the key.
        let value = unsafe { bpf_map_lookup_elem(self.as_ptr(), ptr::from_ref(key).cast()) };
        (!value.is_null()).then(|| value.cast())
    }

    /// A copy of the entry. May be torn where another CPU writes it in this moment: the agent
    /// writes entries before anything points to them, so readers never meet a half-written one
    /// that matters.
    #[inline(always)]
    pub(crate) fn get(&self, key: &K) -> Option<V>
    where
        V: Copy,
    {
        self.lookup(key).map(copy)
    }

    /// Writes an entry; whether the kernel took it.
    #[inline(always)]
    pub(crate) fn insert(&self, key: &K, value: &V) -> bool {
        let (key, value) = (ptr::from_ref(key).cast(), ptr::from_ref(value).cast());
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: as in `lookup`; the kernel copies key and value of the map's sizes.
        let result = unsafe { bpf_map_update_elem(self.as_ptr(), key, value, 0) };
        result == 0
    }

    /// Removes an entry; whether there was one.
    #[inline(always)]
    pub(crate) fn remove(&self, key: &K) -> bool {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: as in `lookup`.
        let result = unsafe { bpf_map_delete_elem(self.as_ptr(), ptr::from_ref(key).cast()) };
        result == 0
    }
}

/// A copy of what a look-up found.
#[inline(always)]
pub(crate) fn copy<V: Copy>(value: *mut V) -> V {
    #[expect(unsafe_code, reason = "map memory comes as a pointer")]
    // SAFETY: not null, of the value size of the map, and every bit pattern is a valid value
    // (`mesh_common::plain`). Aligned: the kernel aligns values to 8 bytes, behind an LPM key (24
    // bytes less 4 of length) to 4, which is all that its value `u32` needs.
    let copy = unsafe { value.read() };
    copy
}

impl<V, const KIND: usize, const CAPACITY: usize, const FLAGS: usize>
    Map<u32, V, KIND, CAPACITY, FLAGS>
{
    /// The memory of an array's first entry.
    ///
    /// The key is a variable: a literal behind a reference becomes read-only data, for which the
    /// loader would make one more map.
    #[inline(always)]
    pub(crate) fn first(&self) -> Option<*mut V> {
        let key = 0;
        self.lookup(&key)
    }
}

macro_rules! maps {
    ($($name:ident: $kind:ident<$key:ty, $value:ty>;)+) => {$(
        #[btf_map]
        pub(crate) static $name: Map<
            $key,
            $value,
            { Kind::$kind as usize },
            { get(stringify!($name)).capacity as usize },
            { get(stringify!($name)).flags as usize },
        > = Map::new();
    )+};
}

maps! {
    BACKENDS: Array<u32, Backend>;
    CAPS: Array<u32, Cap>;
    CAP_LIMITS: Array<u32, u64>;
    CONFIG: Array<u32, Config>;
    COUNTERS: PerCpuArray<u32, u64>;
    EP_STATS: Array<u32, EndpointStats>;
    FLOWS: LruHash<FlowKey, Flow>;
    GRANTS: Hash<Tuple, Grant>;
    GUARDED: Hash<u32, Guarded>;
    HEARTBEAT: Array<u32, u64>;
    INTENT: SkStorage<i32, Intent>;
    INTENTS: LruHash<u64, Intent>;
    IN_RULES: Hash<InRuleKey, u32>;
    LISTENERS: SockHash<ListenerKey, u64>;
    LOOP_FLOWS: Hash<FlowKey, LoopFlow>;
    ORIGIN: SkStorage<i32, LoopFlow>;
    OUT_RULES: LpmTrie<OutRulePrefix, u32>;
    POD_BY_ADDR: Hash<Addr, PodAddr>;
    POD_BY_NETNS: Hash<u64, PodEntry>;
    POD_SOURCES: Hash<u32, PodSources>;
    PROBE_FLOWS: LruHash<Tuple, u64>;
    PROXY_FLOWS: Hash<Tuple, ProxyFlow>;
    SERVICES: Hash<ServiceKey, ServiceEntry>;
    SLOTS: Array<u32, u32>;
    SPLIT_SEQ: Array<u32, u64>;
}

/// A ring buffer: no key, no value. (aya's own type states a value, which libbpf refuses.)
#[repr(C)]
pub(crate) struct Ring<const BYTES: usize> {
    r#type: *const [i32; Kind::RingBuf as usize],
    max_entries: *const [i32; BYTES],
}

#[expect(unsafe_code, reason = "statics must be Sync")]
// SAFETY: as for `Map`.
unsafe impl<const BYTES: usize> Sync for Ring<BYTES> {}

#[btf_map]
static EVENTS: Ring<{ get("EVENTS").capacity as usize }> = Ring {
    r#type: ptr::null(),
    max_entries: ptr::null(),
};

/// Sends a record; whether there was room.
#[inline(always)]
pub(crate) fn send(event: &Event) -> bool {
    let map = ptr::from_ref(&EVENTS).cast_mut().cast();
    let data = ptr::from_ref(event).cast_mut().cast();
    #[expect(unsafe_code, reason = "kernel helper")]
    // SAFETY: the map pointer is relocated by the loader to this map; the kernel copies the record
    // and writes nothing to it.
    let result = unsafe { bpf_ringbuf_output(map, data, size_of::<Event>() as u64, 0) };
    result == 0
}
