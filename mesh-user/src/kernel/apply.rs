//! Writes a snapshot's table into the maps, as a difference.
//!
//! A program that runs in the middle of it must see the old or the new answer for an address,
//! never a mixture: endpoints go to places that nothing points to, slots to ranges that nothing
//! points to, then each service entry changes in one write, and only then what is stale goes away.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

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
use crate::model::kernel_table::{KernelTables, PortTable};

/// An endpoint as it is told from others: address, port, number of its version.
type BackendKey = (Addr, u16, u32);
/// A service's address and port.
type Address = (Addr, u16);
/// A rule: address, prefix length, port.
type RuleKey = (u8, Addr, u8, u16);

/// Where an endpoint stands, whether it may be chosen, and which cap it is under.
#[derive(Clone, Copy, Debug)]
struct Placed {
    place: u32,
    state: u16,
    cap: u32,
    /// How many times the tables name it.
    uses: u32,
}

/// A service's entry.
#[derive(Clone, Copy, Debug)]
struct Standing {
    entry: ServiceEntry,
    /// How many tables have it.
    uses: u32,
}

/// A range of slots.
#[derive(Clone, Copy, Debug)]
struct Range {
    at: u32,
    /// How many entries name it.
    uses: u32,
}

/// An endpoint whose numbers the agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    /// The table that it is in.
    pub(super) table: u32,
    /// Its place in the table's `backends`.
    pub(super) backend: u32,
}

/// What stands in the maps.
#[derive(Clone, Debug)]
pub(super) struct Installed {
    /// The tables that stand.
    tables: KernelTables,
    services: HashMap<Address, Standing>,
    backends: HashMap<BackendKey, Placed>,
    /// Slot ranges by content: services that split alike share one.
    slots: HashMap<Arc<[u32]>, Range>,
    /// Their contents, by where they begin.
    contents: HashMap<u32, Arc<[u32]>>,
    rules: BTreeMap<RuleKey, u32>,
    places: Places,
    ranges: Ranges,
    numbers: Numbers,
    /// Limits by the number of their cap.
    limits: HashMap<u32, u64>,
    /// By place: which endpoint stands there.
    watched: Vec<Option<Watched>>,
    /// Something stands that an agent before us left: the next tables take it over or remove it.
    adopted: bool,
}

/// What is to be written. In the order in which it is.
#[derive(Debug, Default)]
struct Plan {
    limits: Vec<(u32, u64)>,
    /// Endpoints: the place, and whether nothing of it stood there before.
    backends: Vec<(u32, Backend, bool)>,
    new_slots: Vec<(u32, Arc<[u32]>)>,
    rules: Option<BTreeMap<RuleKey, u32>>,
    services: Vec<(Address, ServiceEntry)>,
    /// How many of these have no entry yet.
    inserted: usize,
    removed: Vec<Address>,
    /// How many entries there were.
    before: usize,
    retired: Vec<(u32, Backend)>,
    /// Places of which the agent watches another endpoint than before.
    moved: Vec<u32>,
}

/// What of the endpoints changed with the last tables.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Places that were given to an endpoint: their counters began at zero.
    pub(super) fresh: Vec<u32>,
    /// Places of which another endpoint is watched, or none any more.
    pub(super) moved: Vec<u32>,
}

impl Default for Installed {
    fn default() -> Self {
        Self {
            tables: KernelTables::default(),
            services: HashMap::new(),
            backends: HashMap::new(),
            slots: HashMap::new(),
            contents: HashMap::new(),
            rules: BTreeMap::new(),
            places: Places::new(get("BACKENDS").capacity),
            ranges: Ranges::new(get("SLOTS").capacity),
            numbers: Numbers::default(),
            limits: HashMap::new(),
            watched: Vec::new(),
            adopted: false,
        }
    }
}

impl Installed {
    /// Reads what an agent before us left. What can't be understood counts as free: the first
    /// table overwrites or removes it.
    pub(super) fn adopt(tables: &Tables, instance: &Instance) -> Self {
        let mut found = Self {
            numbers: Numbers::read(instance),
            adopted: true,
            ..Self::default()
        };
        let mut used = found.adopt_backends(tables);
        let mut seen = HashSet::new();
        for (key, entry) in tables.services.iter().flatten() {
            found
                .services
                .insert((key.addr, key.port), Standing { entry, uses: 0 });
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
                used.extend(&content);
                found.note_slots(content.into(), entry.slots_off);
            }
        }
        // Entries name what was adopted, as those of our own tables do.
        for standing in found.services.values() {
            let content = range_of(&standing.entry).and_then(|at| found.contents.get(&at));
            if let Some(range) = content.and_then(|content| found.slots.get_mut(content)) {
                range.uses += 1;
            }
        }
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
            uses: 0,
        };
        self.backends.insert(backend_key(backend), placed);
    }

    fn note_slots(&mut self, content: Arc<[u32]>, at: u32) {
        self.contents.insert(at, Arc::clone(&content));
        self.slots.insert(content, Range { at, uses: 0 });
    }

    /// By place: the endpoints of the tables that stand.
    pub(super) fn watched(&self) -> &[Option<Watched>] {
        &self.watched
    }

    /// Whether a service stands at this address and port.
    pub(super) fn knows(&self, key: &Address) -> bool {
        self.services.contains_key(key)
    }

    /// Writes the difference between what stands and the tables. After an error the next call starts
    /// from what the maps hold then.
    pub(super) fn apply(
        &mut self,
        tables: &mut Tables,
        wanted: &KernelTables,
        instance: &Instance,
    ) -> Result<News, KernelError> {
        let written = {
            let busy = |cap| tables.caps.get(&cap, 0).is_ok_and(|cap| cap.active != 0);
            self.plan(wanted, &busy)
        };
        let written = written.and_then(|plan| {
            // Before any map names one of them.
            if let Err(error) = self.numbers.write(instance) {
                tracing::warn!(%error, "versions.json could not be written: a restart counts anew");
            }
            plan.write(&mut self.rules, tables)
        });
        if written.is_err() {
            // Neither the old nor the new one stands: what does is in the maps alone.
            *self = Self::adopt(tables, instance);
        }
        written
    }

    /// Chooses places for everything that changed, and notes it as if it was written; refuses what
    /// doesn't fit or contradicts itself, and then is not what stands any more.
    fn plan(
        &mut self,
        wanted: &KernelTables,
        busy: &dyn Fn(u32) -> bool,
    ) -> Result<Plan, KernelError> {
        capacity(
            "OUT_RULES",
            wanted.outbound.len() + wanted.outbound_udp.len(),
        )?;
        self.ranges.turn();
        self.numbers.turn(busy);
        let had = std::mem::replace(&mut self.tables, wanted.clone());
        let of = |table: Option<&Arc<PortTable>>| table.map_or(0, |table| table.services.len());
        let (gone, come) = had
            .ports
            .changes(&wanted.ports)
            .fold((0, 0), |(gone, come), (_, old, new)| {
                (gone + of(old), come + of(new))
            });
        let stay = if self.adopted { 0 } else { self.services.len() };
        capacity("SERVICES", (stay + come).saturating_sub(gone))?;
        let mut plan = Plan {
            before: self.services.len(),
            ..Plan::default()
        };
        let mut left: Vec<u32> = Vec::new();
        // What comes before what goes: nothing that stays is without a use in between, and places
        // that are let go are not another's in the same round.
        for (at, _, new) in had.ports.changes(&wanted.ports) {
            if let Some(new) = new {
                self.add(at, new, &mut plan, &mut left, busy)?;
            }
        }
        for (at, old, _) in had.ports.changes(&wanted.ports) {
            if let Some(old) = old {
                self.subtract(at, old, &mut plan, busy);
            }
        }
        if std::mem::take(&mut self.adopted) {
            self.sweep(&mut plan, busy);
        }
        for key in &plan.removed {
            if let Some(standing) = self.services.remove(key) {
                left.extend(range_of(&standing.entry));
            }
        }
        left.into_iter().for_each(|at| self.leave_slots(at));
        if !Arc::ptr_eq(&had.outbound, &wanted.outbound)
            || !Arc::ptr_eq(&had.outbound_udp, &wanted.outbound_udp)
        {
            plan.rules = Some(rules(wanted));
        }
        Ok(plan)
    }

    /// One table more.
    fn add(
        &mut self,
        at: u32,
        table: &PortTable,
        plan: &mut Plan,
        left: &mut Vec<u32>,
        busy: &dyn Fn(u32) -> bool,
    ) -> Result<(), KernelError> {
        let mut numbers = Vec::with_capacity(table.versions.len());
        for version in &table.versions {
            let (number, cap) = self.numbers.take(version, busy)?;
            if let Some(limit) = version.cap.map(u64::from)
                && self.limits.insert(cap, limit) != Some(limit)
            {
                plan.limits.push((cap, limit));
            }
            numbers.push((number, cap));
        }
        let mut places = Vec::with_capacity(table.backends.len());
        for (index, backend) in (0..).zip(&table.backends) {
            let Some((version_id, cap)) = numbers.get(backend.version_id as usize).copied() else {
                return Err(KernelError::BadTable(format!(
                    "an endpoint of version {} of {}",
                    backend.version_id,
                    table.versions.len()
                )));
            };
            let backend = Backend {
                version_id,
                cap,
                ..*backend
            };
            let place = self.place(&backend, plan)?;
            self.watch(
                place,
                Some(Watched {
                    table: at,
                    backend: index,
                }),
                plan,
            );
            places.push(place);
        }
        for (key, entry) in &table.services {
            if !(1..SERVICE_PORTS_MAX).contains(&entry.service_id) {
                return Err(KernelError::BadTable(format!(
                    "service number {}",
                    entry.service_id
                )));
            }
            let content = content(table, &places, entry)?;
            let mut entry = *entry;
            entry.slots_off = self.range(content, plan)?;
            self.stand(*key, entry, plan, left);
        }
        Ok(())
    }

    /// The place of an endpoint, with one use more.
    fn place(&mut self, backend: &Backend, plan: &mut Plan) -> Result<u32, KernelError> {
        let key = backend_key(backend);
        if let Some(placed) = self.backends.get_mut(&key) {
            placed.uses += 1;
            if (placed.state, placed.cap) != (backend.state, backend.cap) {
                (placed.state, placed.cap) = (backend.state, backend.cap);
                plan.backends.push((placed.place, *backend, false));
            }
            return Ok(placed.place);
        }
        let Some(place) = self.places.allocate() else {
            return Err(full("BACKENDS", self.backends.len() + 1));
        };
        self.note(place, backend);
        if let Some(placed) = self.backends.get_mut(&key) {
            placed.uses = 1;
        }
        plan.backends.push((place, *backend, true));
        Ok(place)
    }

    /// Where slots of this content stand, with one use more.
    fn range(&mut self, content: Vec<u32>, plan: &mut Plan) -> Result<u32, KernelError> {
        if content.is_empty() {
            return Ok(0);
        }
        if let Some(range) = self.slots.get_mut(&*content) {
            range.uses += 1;
            return Ok(range.at);
        }
        let Some(at) = self.ranges.allocate(content.len() as u32) else {
            let needed: usize = self.slots.keys().map(|content| content.len()).sum();
            return Err(full("SLOTS", needed + content.len()));
        };
        let content: Arc<[u32]> = content.into();
        plan.new_slots.push((at, Arc::clone(&content)));
        self.note_slots(Arc::clone(&content), at);
        if let Some(range) = self.slots.get_mut(&content) {
            range.uses = 1;
        }
        Ok(at)
    }

    fn stand(&mut self, key: Address, entry: ServiceEntry, plan: &mut Plan, left: &mut Vec<u32>) {
        let Some(standing) = self.services.get_mut(&key) else {
            self.services.insert(key, Standing { entry, uses: 1 });
            plan.services.push((key, entry));
            plan.inserted += 1;
            return;
        };
        standing.uses += 1;
        // The new entry has taken a use of its range already.
        left.extend(range_of(&standing.entry));
        if standing.entry != entry {
            standing.entry = entry;
            plan.services.push((key, entry));
        }
    }

    /// One table less.
    fn subtract(
        &mut self,
        at: u32,
        table: &PortTable,
        plan: &mut Plan,
        busy: &dyn Fn(u32) -> bool,
    ) {
        let numbers = table.versions.iter();
        let numbers: Vec<u32> = numbers.map(|v| self.numbers.version(v)).collect();
        for backend in &table.backends {
            let number = numbers.get(backend.version_id as usize).copied();
            let key = (backend.addr, backend.port, number.unwrap_or_default());
            let Some(placed) = self.backends.get_mut(&key) else {
                continue;
            };
            placed.uses = placed.uses.saturating_sub(1);
            let place = placed.place;
            if placed.uses == 0 {
                self.retire(key, plan);
            } else if self
                .watched_by(place)
                .is_some_and(|by| self.is_stale(by, at, &key))
            {
                let other = self.other_watch(&key);
                self.watch(place, other, plan);
            }
        }
        for version in &table.versions {
            if let Some(cap) = self.numbers.leave(version, busy) {
                self.limits.remove(&cap);
            }
        }
        for (key, _) in &table.services {
            if let Some(standing) = self.services.get_mut(key) {
                standing.uses = standing.uses.saturating_sub(1);
                if standing.uses == 0 {
                    plan.removed.push(*key);
                }
            }
        }
    }

    /// What an agent before us left and no table names.
    fn sweep(&mut self, plan: &mut Plan, busy: &dyn Fn(u32) -> bool) {
        let unused = self.backends.iter().filter(|(_, placed)| placed.uses == 0);
        let unused: Vec<BackendKey> = unused.map(|(key, _)| *key).collect();
        for key in unused {
            self.retire(key, plan);
        }
        let gone = self.services.iter().filter(|(_, s)| s.uses == 0);
        plan.removed.extend(gone.map(|(key, _)| *key));
        self.numbers.sweep(busy);
    }

    /// An endpoint that no table names any more. Its place is free again, oldest first.
    fn retire(&mut self, key: BackendKey, plan: &mut Plan) {
        let Some(Placed { place, .. }) = self.backends.remove(&key) else {
            return;
        };
        let free = Backend {
            addr: key.0,
            port: key.1,
            state: BACKEND_OUT,
            version_id: 0,
            cap: 0,
            _pad: 0,
        };
        plan.retired.push((place, free));
        self.places.release(place);
        self.watch(place, None, plan);
    }

    fn leave_slots(&mut self, at: u32) {
        let Some(content) = self.contents.get(&at) else {
            return;
        };
        let Some(range) = self.slots.get_mut(content) else {
            return;
        };
        range.uses = range.uses.saturating_sub(1);
        if range.uses == 0 {
            self.ranges.release(at, content.len() as u32);
            self.slots.remove(content);
            self.contents.remove(&at);
        }
    }

    fn watched_by(&self, place: u32) -> Option<Watched> {
        self.watched.get(place as usize).copied().flatten()
    }

    fn watch(&mut self, place: u32, by: Option<Watched>, plan: &mut Plan) {
        let place = place as usize;
        if self.watched.len() <= place {
            self.watched.resize(place + 1, None);
        }
        if self.watched[place] != by {
            self.watched[place] = by;
            plan.moved.push(place as u32);
        }
    }

    /// Whether an endpoint is watched as one of a table that has it no more.
    fn is_stale(&self, by: Watched, at: u32, key: &BackendKey) -> bool {
        by.table == at && !self.is_at(by, key)
    }

    fn is_at(&self, by: Watched, key: &BackendKey) -> bool {
        let table = self.tables.ports.get(by.table as usize);
        let backend = table.and_then(|table| table.backends.get(by.backend as usize));
        backend.is_some_and(|backend| (backend.addr, backend.port) == (key.0, key.1))
    }

    /// Another table that has the endpoint. Rare: rules of two services send to the same version,
    /// and one of them went.
    fn other_watch(&self, key: &BackendKey) -> Option<Watched> {
        self.tables.ports.iter().find_map(|(table, port)| {
            let mut backends = (0_u32..).zip(&port.backends);
            let (backend, _) = backends.find(|(_, backend)| {
                let version = port.versions.get(backend.version_id as usize);
                (backend.addr, backend.port) == (key.0, key.1)
                    && version.is_some_and(|version| self.numbers.version(version) == key.2)
            })?;
            Some(Watched { table, backend })
        })
    }
}

fn backend_key(backend: &Backend) -> BackendKey {
    (backend.addr, backend.port, backend.version_id)
}

/// Where an entry's slots begin; none: it has none.
fn range_of(entry: &ServiceEntry) -> Option<u32> {
    (entry.slots_len > 0).then_some(entry.slots_off)
}

/// A service's slots, with the table's endpoint numbers replaced by places.
fn content(
    table: &PortTable,
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

fn rules(table: &KernelTables) -> BTreeMap<RuleKey, u32> {
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
        Err(full(map, needed))
    } else {
        Ok(())
    }
}

fn full(map: &'static str, needed: usize) -> KernelError {
    KernelError::Full {
        map,
        needed,
        capacity: get(map).capacity as usize,
    }
}

impl Plan {
    /// Writes all of it. `standing`: the outbound rules that stand.
    fn write(
        self,
        standing: &mut BTreeMap<RuleKey, u32>,
        tables: &mut Tables,
    ) -> Result<News, KernelError> {
        let at = |map| move |source: MapError| KernelError::Map { map, source };
        for (cap, limit) in &self.limits {
            tables
                .cap_limits
                .set(*cap, *limit, 0)
                .map_err(at("CAP_LIMITS"))?;
        }
        let fresh = self.write_backends(tables)?;
        let (mut slots, mut places) = (Vec::new(), Vec::new());
        for (start, content) in &self.new_slots {
            slots.extend((*start..).take(content.len()));
            places.extend_from_slice(content);
        }
        tables.many_slots.update("map SLOTS", &slots, &places)?;
        // Denials before the services that they are about.
        let rules = self.rules.as_ref().map(|rules| OutRules {
            now: standing,
            next: rules,
        });
        let crowded = rules.as_ref().map(|rules| rules.write(tables)).transpose();
        let crowded = crowded.map_err(at("OUT_RULES"))?;
        self.write_services(tables)?;
        if let (Some(rules), Some(false)) = (rules, crowded) {
            rules.remove_stale(tables).map_err(at("OUT_RULES"))?;
        }
        let (places, gone): (Vec<u32>, Vec<Backend>) = self.retired.into_iter().unzip();
        tables
            .many_backends
            .update("map BACKENDS", &places, &gone)?;
        if let Some(rules) = self.rules {
            *standing = rules;
        }
        Ok(News {
            fresh,
            moved: self.moved,
        })
    }

    /// A new endpoint starts from zero. The places of the new ones.
    fn write_backends(&self, tables: &Tables) -> Result<Vec<u32>, KernelError> {
        let fresh = self.backends.iter().filter(|(.., new)| *new);
        let fresh: Vec<u32> = fresh.map(|(place, ..)| *place).collect();
        let zeros = vec![EndpointStats::default(); fresh.len()];
        tables
            .many_ep_stats
            .update("map EP_STATS", &fresh, &zeros)?;
        let (places, backends): (Vec<u32>, Vec<Backend>) = self
            .backends
            .iter()
            .map(|(place, backend, _)| (*place, *backend))
            .unzip();
        tables
            .many_backends
            .update("map BACKENDS", &places, &backends)?;
        Ok(fresh)
    }

    fn write_services(&self, tables: &Tables) -> Result<(), KernelError> {
        let stale: Vec<ServiceKey> = self.removed.iter().map(service_key).collect();
        let (keys, entries): (Vec<ServiceKey>, Vec<ServiceEntry>) = self
            .services
            .iter()
            .map(|(key, entry)| (service_key(key), *entry))
            .unzip();
        // Removals first where the map could not hold both.
        let first = self.before + self.inserted > get("SERVICES").capacity as usize;
        if first {
            tables.many_services.delete("map SERVICES", &stale)?;
        }
        tables
            .many_services
            .update("map SERVICES", &keys, &entries)?;
        if first {
            return Ok(());
        }
        tables.many_services.delete("map SERVICES", &stale)
    }
}

/// Outbound rules that stand, and those that shall.
struct OutRules<'a> {
    now: &'a BTreeMap<RuleKey, u32>,
    next: &'a BTreeMap<RuleKey, u32>,
}

impl OutRules<'_> {
    /// New and changed rules; whether the stale ones had to go first, since the map could not hold
    /// both.
    fn write(&self, tables: &mut Tables) -> Result<bool, MapError> {
        let stale = self.now.keys().filter(|key| !self.next.contains_key(*key));
        let crowded = stale.count() + self.next.len() > get("OUT_RULES").capacity as usize;
        if crowded {
            self.remove_stale(tables)?;
        }
        for (key, action) in self.next {
            if self.now.get(key) != Some(action) {
                let (proto, addr, prefix, port) = *key;
                let key = rule_key(proto, addr, prefix, port);
                tables.out_rules.insert(&key, *action, 0)?;
            }
        }
        Ok(crowded)
    }

    fn remove_stale(&self, tables: &mut Tables) -> Result<(), MapError> {
        for key in self.now.keys() {
            if !self.next.contains_key(key) {
                let (proto, addr, prefix, port) = *key;
                let key = rule_key(proto, addr, prefix, port);
                absent(tables.out_rules.remove(&key))?;
            }
        }
        Ok(())
    }
}

fn service_key((addr, port): &Address) -> ServiceKey {
    ServiceKey {
        addr: *addr,
        port: *port,
        proto: 6,
        _pad: 0,
    }
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
