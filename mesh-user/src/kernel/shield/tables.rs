//! Handles on the shield's maps.

use std::os::fd::OwnedFd;

use aya::{
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use mesh_common::addr::Addr;
use mesh_common::shield::{Entry, Manual, Prefix, RULES_MAX, RuleName, Settings, Source, Tally};

use super::{
    super::{
        error::KernelError,
        sys::{self, batch},
    },
    lists::{self, Difference, Line},
    object::Place,
};

/// The maps.
pub(super) struct Tables {
    pub(super) config: Array<MapData, Settings>,
    pub(super) counts: PerCpuArray<MapData, Tally>,
    hits: PerCpuArray<MapData, Tally>,
    pub(super) manual: HashMap<MapData, Prefix, Manual>,
    prefixes: OwnedFd,
    rules: Array<MapData, RuleName>,
    pub(super) sources: HashMap<MapData, Addr, Source>,
}

// aya's maps have no `Debug`.
impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

fn open<T>(place: &Place, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(place.map(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(failed(name))
}

pub(super) fn failed(map: &'static str) -> impl FnOnce(MapError) -> KernelError {
    move |source| KernelError::Map { map, source }
}

/// Whether there was no such entry.
pub(super) fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

const PREFIXES: &str = "SHIELD_PREFIXES";

impl Tables {
    pub(super) fn open(place: &Place) -> Result<Self, KernelError> {
        Ok(Self {
            config: open(place, "SHIELD_CONFIG")?,
            counts: open(place, "SHIELD_COUNTS")?,
            hits: open(place, "SHIELD_HITS")?,
            manual: open(place, "SHIELD_MANUAL")?,
            prefixes: sys::open_pin(&place.map(PREFIXES)).map_err(KernelError::io(PREFIXES))?,
            rules: open(place, "SHIELD_RULES")?,
            sources: open(place, "SHIELD_SOURCES")?,
        })
    }

    /// What stands in the trie, sorted.
    pub(super) fn installed(&self) -> Result<Vec<Line>, KernelError> {
        let mut found = Vec::new();
        let mut walk = batch::Walk::<_, Prefix, Entry>::new(&self.prefixes);
        while let Some((keys, values)) = walk.next().map_err(KernelError::io(PREFIXES))? {
            let lines = keys.iter().zip(values);
            found.extend(lines.map(|(key, entry)| Line {
                net: lists::net(key),
                entry,
            }));
        }
        found.sort_by_key(|line| line.net);
        Ok(found)
    }

    /// Carries a difference out. In an order in which no moment is worse than both ends: what lets
    /// pass comes before what denies, and goes after it; everything new before anything goes.
    pub(super) fn change(&self, mut difference: Difference) -> Result<(), KernelError> {
        difference.set.sort_by_key(|line| line.entry.is_deny());
        difference.gone.sort_by_key(|line| !line.entry.is_deny());
        let keys: Vec<Prefix> = difference.set.iter().map(Line::key).collect();
        let entries: Vec<Entry> = difference.set.iter().map(|line| line.entry).collect();
        batch::update(&self.prefixes, &keys, &entries).map_err(KernelError::io(PREFIXES))?;
        let gone: Vec<Prefix> = difference.gone.iter().map(Line::key).collect();
        batch::delete(&self.prefixes, &gone).map_err(KernelError::io(PREFIXES))
    }

    /// What the trie itself says of an address.
    pub(super) fn lookup(&self, address: Addr) -> Result<Option<Entry>, KernelError> {
        let key = Prefix {
            bits: 128,
            addr: address,
        };
        batch::lookup(&self.prefixes, &key).map_err(KernelError::io(PREFIXES))
    }

    /// The names of rules, by number; empty: free.
    pub(super) fn rule_names(&self) -> Result<Vec<String>, KernelError> {
        (0..RULES_MAX)
            .map(|rule| {
                let name = self.rules.get(&rule, 0).map_err(failed("SHIELD_RULES"))?;
                let len = (name.len as usize).min(name.name.len());
                Ok(String::from_utf8_lossy(&name.name[..len]).into_owned())
            })
            .collect()
    }

    /// Gives a number to a rule, with counters at zero; an empty name frees it.
    pub(super) fn name_rule(&mut self, rule: u32, name: &str) -> Result<(), KernelError> {
        let zero = PerCpuValues::try_from(vec![Tally::default(); cpus()?])
            .map_err(KernelError::io("counters for each CPU"))?;
        self.hits
            .set(rule, zero, 0)
            .map_err(failed("SHIELD_HITS"))?;
        let mut value = RuleName {
            len: name.len() as u32,
            name: [0; _],
        };
        value.name[..name.len()].copy_from_slice(name.as_bytes());
        self.rules
            .set(rule, value, 0)
            .map_err(failed("SHIELD_RULES"))
    }

    /// What a rule counted.
    pub(super) fn hits(&self, rule: u32) -> Tally {
        sum(&self.hits, rule)
    }
}

fn cpus() -> Result<usize, KernelError> {
    nr_cpus().map_err(|(what, source)| KernelError::io(what)(source))
}

/// A slot of all CPUs together.
pub(super) fn sum(map: &PerCpuArray<MapData, Tally>, index: u32) -> Tally {
    let values = map.get(&index, 0);
    let mut sum = Tally::default();
    for tally in values.iter().flat_map(|values| values.iter()) {
        sum.packets += tally.packets;
        sum.bytes += tally.bytes;
    }
    sum
}
