//! The maps: exactly the table in `mesh_common::shield` (compared with the object by a test).

use core::arch::asm;

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use mesh_common::{
    addr::Addr,
    flow::Tuple,
    shield::{Entry, Manual, Prefix, RuleName, Settings, Source, Tally, get},
};
use mesh_ebpf::decide::shield::{Bucket, Spend, Verdict, World};

const fn capacity(name: &str) -> usize {
    get(name).capacity as usize
}

#[btf_map]
static SHIELD_CONFIG: Array<Settings, { capacity("SHIELD_CONFIG") }> = Array::new();
#[btf_map]
static SHIELD_COUNTS: PerCpuArray<Tally, { capacity("SHIELD_COUNTS") }> = PerCpuArray::new();
#[btf_map]
static SHIELD_HITS: PerCpuArray<Tally, { capacity("SHIELD_HITS") }> = PerCpuArray::new();
/// For the agent only: what an operator added.
#[btf_map]
static SHIELD_MANUAL: HashMap<Prefix, Manual, { capacity("SHIELD_MANUAL") }> = HashMap::new();
#[btf_map]
static SHIELD_PREFIXES: LpmTrie<Addr, Entry, { capacity("SHIELD_PREFIXES") }> = LpmTrie::new();
/// For the agent only: the names of rules.
#[btf_map]
static SHIELD_RULES: Array<RuleName, { capacity("SHIELD_RULES") }> = Array::new();
#[btf_map]
static SHIELD_SOURCES: LruHashMap<Addr, Source, { capacity("SHIELD_SOURCES") }> = LruHashMap::new();
#[btf_map]
static SHIELD_SYNS: LruHashMap<Tuple, u64, { capacity("SHIELD_SYNS") }> = LruHashMap::new();

/// What the decision looks up, in the maps.
pub(crate) struct Maps;

/// Reads a number that other CPUs write.
#[inline(always)]
fn load(slot: *const u64) -> u64 {
    #[expect(unsafe_code, reason = "map memory comes as a pointer")]
    // SAFETY: points into a map value that a look-up found, aligned to 8 bytes, live for the whole
    // program run; volatile, for others write it.
    let value = unsafe { slot.read_volatile() };
    value
}

/// Writes a number that other CPUs read.
#[inline(always)]
fn store(slot: *mut u64, value: u64) {
    #[expect(unsafe_code, reason = "map memory comes as a pointer")]
    // SAFETY: as for `load`.
    unsafe {
        slot.write_volatile(value);
    }
}

/// Adds atomically. In assembly: `core` has no `fetch_add` for this target.
#[inline(always)]
fn add(slot: *mut u64, by: u64) {
    #[expect(unsafe_code, reason = "one instruction that the language lacks")]
    // SAFETY: as for `load`; the instruction touches those 8 bytes only.
    unsafe {
        asm!("lock *(u64 *)({slot} + 0) += {by}", slot = in(reg) slot, by = in(reg) by);
    }
}

/// The address of a field of a map value.
macro_rules! field {
    ($value:expr, $field:ident) => {{
        let value = $value;
        #[expect(unsafe_code, reason = "a place behind a raw pointer")]
        // SAFETY: a pointer to a whole value of its map; no reference is made.
        let place = unsafe { &raw mut (*value).$field };
        place
    }};
}

/// Counts a frame in a slot of this CPU. Plain additions: XDP and tc run with softirqs off, so
/// nobody else of this CPU comes in between.
#[inline(always)]
fn tally(slot: Option<*mut Tally>, bytes: u64) {
    if let Some(slot) = slot {
        let packets = field!(slot, packets);
        store(packets, load(packets) + 1);
        let sum = field!(slot, bytes);
        store(sum, load(sum) + bytes);
    }
}

/// Counts what was decided, by reason and by rule.
#[inline(always)]
pub(crate) fn count(verdict: &Verdict, bytes: u64) {
    tally(SHIELD_COUNTS.get_ptr_mut(verdict.reason as u32), bytes);
    if let Some(rule) = verdict.rule {
        tally(SHIELD_HITS.get_ptr_mut(rule), bytes);
    }
}

#[inline(always)]
fn full(source: *mut Source, bucket: Bucket) -> *mut u64 {
    match bucket {
        Bucket::Syn => field!(source, syn_full_ns),
        Bucket::Connection => field!(source, connection_full_ns),
    }
}

impl World for Maps {
    type Source = *mut Source;

    #[inline(always)]
    fn settings(&self) -> Option<Settings> {
        SHIELD_CONFIG.get(0).copied()
    }

    #[inline(always)]
    fn entry(&self, source: &Addr) -> Entry {
        SHIELD_PREFIXES
            .get(&Key::new(128, *source))
            .copied()
            .unwrap_or(Entry::NONE)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        #[expect(unsafe_code, reason = "kernel helper")]
        // SAFETY: takes nothing, returns a number.
        let now = unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_ns() };
        now
    }

    #[inline(always)]
    fn source(&self, key: &Addr) -> Option<*mut Source> {
        if let Some(found) = SHIELD_SOURCES.get_ptr_mut(key) {
            return Some(found);
        }
        let fresh = Source {
            syn_full_ns: 0,
            connection_full_ns: 0,
            passed: 0,
            dropped: 0,
        };
        // BPF_NOEXIST: another CPU may have just made it, and spent from it.
        let _there_now = SHIELD_SOURCES.insert(key, fresh, 1);
        SHIELD_SOURCES.get_ptr_mut(key)
    }

    #[inline(always)]
    fn full_ns(&self, source: *mut Source, bucket: Bucket) -> u64 {
        load(full(source, bucket))
    }

    #[inline(always)]
    fn spend(&self, source: *mut Source, bucket: Bucket, spend: Spend) {
        match spend {
            Spend::Start(at) => store(full(source, bucket), at),
            Spend::Add(by) => add(full(source, bucket), by),
            Spend::Refused => {}
        }
    }

    #[inline(always)]
    fn note(&self, source: *mut Source, passed: bool) {
        let slot = if passed {
            field!(source, passed)
        } else {
            field!(source, dropped)
        };
        add(slot, 1);
    }

    #[inline(always)]
    fn seen(&self, connection: &Tuple) -> Option<u64> {
        SHIELD_SYNS.get_ptr(connection).map(|then| load(then))
    }

    #[inline(always)]
    fn remember(&self, connection: &Tuple, now: u64) {
        // No room can't be: the map forgets its oldest entry.
        let _forgotten_at_worst = SHIELD_SYNS.insert(connection, now, 0);
    }
}
