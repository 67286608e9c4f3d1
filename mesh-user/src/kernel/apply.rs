//! Writes a snapshot's table into the maps, as a difference.
//!
//! A program that runs in the middle of it must see the old or the new answer for an address,
//! never a mixture: endpoints go to places that nothing points to, slots to ranges that nothing
//! points to, then each service entry changes in one write, and only then what is stale goes away.

use std::collections::{BTreeMap, HashMap, HashSet};

use aya::maps::MapError;
use mesh_common::{
    addr::Addr,
    maps::get,
    service::{BACKEND_OUT, Backend, EndpointStats, SERVICE_PORTS_MAX, ServiceEntry, ServiceKey},
};

use super::{
    Instance,
    error::KernelError,
    numbers::Numbers,
    ranges::{Places, Ranges},
    tables::{TCP, Tables, UDP, rule_key},
};
use crate::model::kernel_table::KernelTable;

/// An endpoint as it is told from others: address, port, number of its version.
type BackendKey = (Addr, u16, u32);
/// A rule: address, prefix length, port.
type RuleKey = (u8, Addr, u8, u16);

/// An endpoint to write: its place, and whether nothing of it stood there before.
type BackendWrite = (u32, Backend, bool);

/// Where an endpoint stands, whether it may be chosen, and which cap it is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    place: u32,
    state: u16,
    cap: u32,
}

/// An endpoint whose numbers the agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// Where it stands in `BACKENDS` and `EP_STATS`.
    pub(super) place: u32,
    /// Its place in the table's `backends`.
    pub(super) backend: u32,
}

/// What stands in the maps.
#[derive(Clone, Debug)]
pub(super) struct Installed {
    services: BTreeMap<(Addr, u16), ServiceEntry>,
    backends: HashMap<BackendKey, Placed>,
    /// Slot ranges by content: services that split alike share one.
    slots: HashMap<Vec<u32>, u32>,
    rules: BTreeMap<RuleKey, u32>,
    places: Places,
    ranges: Ranges,
    numbers: Numbers,
    /// Limits by the number of their cap.
    limits: BTreeMap<u32, u64>,
    watched: Vec<Watched>,
    /// Places that were given to an endpoint by the last table: their counters began at zero.
    fresh: Vec<u32>,
}

/// What a table needs, with places chosen and nothing written.
struct Plan {
    next: Installed,
    backends: Vec<BackendWrite>,
    new_slots: Vec<(u32, Vec<u32>)>,
}

impl Default for Installed {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            backends: HashMap::new(),
            slots: HashMap::new(),
            rules: BTreeMap::new(),
            places: Places::new(get("BACKENDS").capacity),
            ranges: Ranges::new(get("SLOTS").capacity),
            numbers: Numbers::default(),
            limits: BTreeMap::new(),
            watched: Vec::new(),
            fresh: Vec::new(),
        }
    }
}

impl Installed {
    /// Reads what an agent before us left. What can't be understood counts as free: the first
    /// table overwrites or removes it.
    pub(super) fn adopt(tables: &Tables, instance: &Instance) -> Self {
        let mut found = Self {
            numbers: Numbers::read(instance),
            ..Self::default()
        };
        let mut used = found.adopt_backends(tables);
        let mut seen = HashSet::new();
        for (key, entry) in tables.services.iter().flatten() {
            found.services.insert((key.addr, key.port), entry);
            if entry.slots_len == 0 || !seen.insert(entry.slots_off) {
                continue;
            }
            let end = entry.slots_off.saturating_add(entry.slots_len);
            let content: Result<Vec<u32>, _> = (entry.slots_off..end)
                .map(|at| tables.slots.get(&at, 0))
                .collect();
            if let Ok(content) = content
                && found.ranges.take(entry.slots_off, entry.slots_len)
            {
                for place in &content {
                    if let Ok(backend) = tables.backends.get(place, 0) {
                        found.note(*place, &backend);
                    }
                }
                found.slots.insert(content, entry.slots_off);
            }
        }
        used.extend(found.slots.keys().flatten().copied());
        found.places = Places::with_used(get("BACKENDS").capacity, used);
        for (key, action) in tables.out_rules.iter().flatten() {
            let (bits, data) = (key.prefix_len(), key.data());
            let prefix = bits.saturating_sub(mesh_common::maps::OUT_RULE_FIXED_BITS);
            let port = u16::from_be_bytes(data.port_be);
            found
                .rules
                .insert((data.proto, data.addr, prefix.min(128) as u8, port), action);
        }
        found
    }

    /// Endpoints that are out of rotation have no slot, but a place and counters. Places are given
    /// out in order and never empty again: the first that nothing was ever written to ends them.
    fn adopt_backends(&mut self, tables: &Tables) -> Vec<u32> {
        let mut used = Vec::new();
        for place in 0..get("BACKENDS").capacity {
            let Ok(backend) = tables.backends.get(&place, 0) else {
                break;
            };
            if backend.addr.is_unspecified() && backend.port == 0 && backend.version_id == 0 {
                break;
            }
            // A retired one is of no version.
            if backend.version_id != 0 {
                self.note(place, &backend);
                used.push(place);
            }
        }
        used
    }

    fn note(&mut self, place: u32, backend: &Backend) {
        let placed = Placed {
            place,
            state: backend.state,
            cap: backend.cap,
        };
        self.backends.insert(backend_key(backend), placed);
    }

    /// The endpoints of the table that stands.
    pub(super) fn watched(&self) -> &[Watched] {
        &self.watched
    }

    /// Places whose counters the last table has set to zero.
    pub(super) fn fresh(&self) -> &[u32] {
        &self.fresh
    }

    /// Whether a service stands at this address and port.
    pub(super) fn knows(&self, key: &(Addr, u16)) -> bool {
        self.services.contains_key(key)
    }

    /// Writes the difference between what stands and the table. After an error of a write the next
    /// call starts from what the maps hold then.
    pub(super) fn apply(
        &mut self,
        tables: &mut Tables,
        table: &KernelTable,
        instance: &Instance,
    ) -> Result<(), KernelError> {
        let busy = |cap| tables.caps.get(&cap, 0).is_ok_and(|cap| cap.active != 0);
        let plan = plan(self, table, &busy)?;
        // Before any map names one of them.
        if plan.next.numbers != self.numbers
            && let Err(error) = plan.next.numbers.write(instance)
        {
            tracing::warn!(%error, "versions.json could not be written: a restart counts anew");
        }
        match plan.write(self, tables) {
            Ok(()) => {
                *self = plan.next;
                Ok(())
            }
            Err(error) => {
                // Neither the old nor the new one stands: what does is in the maps alone.
                *self = Self::adopt(tables, instance);
                Err(error)
            }
        }
    }
}

fn backend_key(backend: &Backend) -> BackendKey {
    (backend.addr, backend.port, backend.version_id)
}

/// Chooses places for everything; refuses what doesn't fit or contradicts itself.
fn plan(
    now: &Installed,
    table: &KernelTable,
    busy: &dyn Fn(u32) -> bool,
) -> Result<Plan, KernelError> {
    capacity("SERVICES", table.services.len())?;
    capacity("OUT_RULES", table.outbound.len() + table.outbound_udp.len())?;
    let mut next = now.clone();
    next.ranges.turn();
    number(now, &mut next, table, busy)?;
    let (places, backends) = place_backends(now, &mut next, table)?;
    let mut wanted: HashMap<Vec<u32>, u32> = HashMap::new();
    let mut new_slots = Vec::new();
    let mut services = BTreeMap::new();
    for (address, entry) in &table.services {
        let mut entry = *entry;
        if !(1..SERVICE_PORTS_MAX).contains(&entry.service_id) {
            return Err(KernelError::BadTable(format!(
                "service number {}",
                entry.service_id
            )));
        }
        let content = content(table, &places, &entry)?;
        entry.slots_off = match (
            content.is_empty(),
            wanted.get(&content),
            now.slots.get(&content),
        ) {
            (true, _, _) => 0,
            (_, Some(at), _) | (_, None, Some(at)) => *at,
            (_, None, None) => {
                let length = content.len() as u32;
                let at = next
                    .ranges
                    .allocate(length)
                    .ok_or_else(|| full("SLOTS", table))?;
                new_slots.push((at, content.clone()));
                at
            }
        };
        if !content.is_empty() {
            wanted.insert(content, entry.slots_off);
        }
        services.insert(*address, entry);
    }
    for (content, at) in &now.slots {
        if !wanted.contains_key(content) {
            next.ranges.release(*at, content.len() as u32);
        }
    }
    next.slots = wanted;
    next.services = services;
    next.rules = rules(table);
    Ok(Plan {
        next,
        backends,
        new_slots,
    })
}

/// Numbers and limits of the versions that have endpoints in the table.
fn number(
    now: &Installed,
    next: &mut Installed,
    table: &KernelTable,
    busy: &dyn Fn(u32) -> bool,
) -> Result<(), KernelError> {
    let mut named = vec![false; table.versions.len()];
    for backend in &table.backends {
        match named.get_mut(backend.version_id as usize) {
            Some(named) => *named = true,
            None => {
                return Err(KernelError::BadTable(format!(
                    "an endpoint of version {} of {}",
                    backend.version_id,
                    table.versions.len()
                )));
            }
        }
    }
    let wanted = table.versions.iter().zip(&named);
    let wanted = wanted
        .filter(|(_, named)| **named)
        .map(|(version, _)| version);
    next.numbers = now.numbers.next(wanted.clone(), busy)?;
    next.limits = wanted
        .filter_map(|version| Some((next.numbers.cap(version), u64::from(version.cap?))))
        .collect();
    Ok(())
}

/// The place of each endpoint of the table, and what must be written for it.
fn place_backends(
    now: &Installed,
    next: &mut Installed,
    table: &KernelTable,
) -> Result<(Vec<u32>, Vec<BackendWrite>), KernelError> {
    let mut writes = Vec::new();
    next.backends = HashMap::with_capacity(table.backends.len());
    let mut places = Vec::with_capacity(table.backends.len());
    next.watched = Vec::with_capacity(table.backends.len());
    next.fresh.clear();
    for (at, backend) in (0..).zip(&table.backends) {
        let version = &table.versions[backend.version_id as usize];
        let backend = Backend {
            version_id: next.numbers.version(version),
            cap: next.numbers.cap(version),
            ..*backend
        };
        let key = backend_key(&backend);
        let standing = next
            .backends
            .get(&key)
            .or_else(|| now.backends.get(&key))
            .copied();
        let place = match standing {
            Some(standing) => standing.place,
            None => next
                .places
                .allocate()
                .ok_or_else(|| full("BACKENDS", table))?,
        };
        let placed = Placed {
            place,
            state: backend.state,
            cap: backend.cap,
        };
        if standing != Some(placed) {
            writes.push((place, backend, standing.is_none()));
        }
        if standing.is_none() {
            next.fresh.push(place);
        }
        next.backends.insert(key, placed);
        next.watched.push(Watched { place, backend: at });
        places.push(place);
    }
    for (key, placed) in &now.backends {
        if !next.backends.contains_key(key) {
            next.places.release(placed.place);
        }
    }
    Ok((places, writes))
}

/// A service's slots, with the table's endpoint numbers replaced by places.
fn content(
    table: &KernelTable,
    places: &[u32],
    entry: &ServiceEntry,
) -> Result<Vec<u32>, KernelError> {
    let (start, length) = (entry.slots_off as usize, entry.slots_len as usize);
    let slots = start
        .checked_add(length)
        .and_then(|end| table.slots.get(start..end));
    let slots = slots.ok_or_else(|| {
        KernelError::BadTable(format!("slots {start}+{length} of {}", table.slots.len()))
    })?;
    slots
        .iter()
        .map(|number| places.get(*number as usize).copied())
        .collect::<Option<_>>()
        .ok_or_else(|| KernelError::BadTable("a slot names no endpoint".to_owned()))
}

fn rules(table: &KernelTable) -> BTreeMap<RuleKey, u32> {
    let tcp = table.outbound.iter().map(|rule| (TCP, rule));
    let udp = table.outbound_udp.iter().map(|rule| (UDP, rule));
    tcp.chain(udp)
        .map(|(proto, (addr, prefix, port, action))| {
            let data = rule_key(proto, *addr, *prefix, *port).data();
            ((proto, data.addr, (*prefix).min(128), *port), *action)
        })
        .collect()
}

fn capacity(map: &'static str, needed: usize) -> Result<(), KernelError> {
    let capacity = get(map).capacity as usize;
    if needed > capacity {
        Err(KernelError::Full {
            map,
            needed,
            capacity,
        })
    } else {
        Ok(())
    }
}

fn full(map: &'static str, table: &KernelTable) -> KernelError {
    let needed = if map == "SLOTS" {
        table.slots.len()
    } else {
        table.backends.len()
    };
    KernelError::Full {
        map,
        needed,
        capacity: get(map).capacity as usize,
    }
}

impl Plan {
    fn write(&self, now: &Installed, tables: &mut Tables) -> Result<(), KernelError> {
        let at = |map| move |source: MapError| KernelError::Map { map, source };
        for (cap, limit) in &self.next.limits {
            if now.limits.get(cap) != Some(limit) {
                tables
                    .cap_limits
                    .set(*cap, *limit, 0)
                    .map_err(at("CAP_LIMITS"))?;
            }
        }
        for (place, backend, new) in &self.backends {
            if *new {
                zero_stats(tables, *place)?;
            }
            tables
                .backends
                .set(*place, *backend, 0)
                .map_err(at("BACKENDS"))?;
        }
        for (start, content) in &self.new_slots {
            for (slot, place) in (*start..).zip(content) {
                tables.slots.set(slot, *place, 0).map_err(at("SLOTS"))?;
            }
        }
        // Denials before the services that they are about.
        let crowded = self.write_rules(now, tables).map_err(at("OUT_RULES"))?;
        self.write_services(now, tables)?;
        if !crowded {
            remove_stale_rules(&self.next, now, tables).map_err(at("OUT_RULES"))?;
        }
        self.retire_backends(now, tables)
    }

    /// New and changed rules; whether the stale ones had to go first, since the map could not hold
    /// both.
    fn write_rules(&self, now: &Installed, tables: &mut Tables) -> Result<bool, MapError> {
        let crowded = crowded("OUT_RULES", &now.rules, &self.next.rules);
        if crowded {
            remove_stale_rules(&self.next, now, tables)?;
        }
        for (key, action) in &self.next.rules {
            if now.rules.get(key) != Some(action) {
                let (proto, addr, prefix, port) = *key;
                let key = rule_key(proto, addr, prefix, port);
                tables.out_rules.insert(&key, *action, 0)?;
            }
        }
        Ok(crowded)
    }

    fn write_services(&self, now: &Installed, tables: &mut Tables) -> Result<(), KernelError> {
        let at = |source| KernelError::Map {
            map: "SERVICES",
            source,
        };
        // Removals first where the map could not hold both.
        let first = crowded("SERVICES", &now.services, &self.next.services);
        if first {
            remove_stale(&self.next, now, tables).map_err(at)?;
        }
        for ((addr, port), entry) in &self.next.services {
            if now.services.get(&(*addr, *port)) != Some(entry) {
                tables
                    .services
                    .insert(service_key(*addr, *port), entry, 0)
                    .map_err(at)?;
            }
        }
        if first {
            Ok(())
        } else {
            remove_stale(&self.next, now, tables).map_err(at)
        }
    }

    /// Endpoints that no slot names any more. Their places are free again, oldest first.
    fn retire_backends(&self, now: &Installed, tables: &mut Tables) -> Result<(), KernelError> {
        for (key, Placed { place, .. }) in &now.backends {
            if !self.next.backends.contains_key(key) {
                let free = Backend {
                    addr: key.0,
                    port: key.1,
                    state: BACKEND_OUT,
                    version_id: 0,
                    cap: 0,
                    _pad: 0,
                };
                tables
                    .backends
                    .set(*place, free, 0)
                    .map_err(|source| KernelError::Map {
                        map: "BACKENDS",
                        source,
                    })?;
            }
        }
        Ok(())
    }
}

fn service_key(addr: Addr, port: u16) -> ServiceKey {
    ServiceKey {
        addr,
        port,
        proto: 6,
        _pad: 0,
    }
}

/// Whether a map can't hold what stands and what comes at the same time.
fn crowded<K: Ord, V>(map: &'static str, now: &BTreeMap<K, V>, next: &BTreeMap<K, V>) -> bool {
    let stale = now.keys().filter(|key| !next.contains_key(*key)).count();
    stale + next.len() > get(map).capacity as usize
}

fn remove_stale_rules(
    next: &Installed,
    now: &Installed,
    tables: &mut Tables,
) -> Result<(), MapError> {
    for key in now.rules.keys() {
        if !next.rules.contains_key(key) {
            let (proto, addr, prefix, port) = *key;
            absent(
                tables
                    .out_rules
                    .remove(&rule_key(proto, addr, prefix, port)),
            )?;
        }
    }
    Ok(())
}

fn remove_stale(next: &Installed, now: &Installed, tables: &mut Tables) -> Result<(), MapError> {
    for (addr, port) in now.services.keys() {
        if !next.services.contains_key(&(*addr, *port)) {
            absent(tables.services.remove(&service_key(*addr, *port)))?;
        }
    }
    Ok(())
}

/// A new endpoint starts from zero.
fn zero_stats(tables: &mut Tables, place: u32) -> Result<(), KernelError> {
    tables
        .ep_stats
        .set(place, EndpointStats::default(), 0)
        .map_err(|source| KernelError::Map {
            map: "EP_STATS",
            source,
        })
}

/// Removing what is not there is no error.
fn absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
