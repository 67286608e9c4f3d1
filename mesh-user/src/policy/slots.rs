//! What the kernel's maps must hold: who decides for an address, and the split of each port as a
//! list of slots.
//!
//! A port whose path is `kernel` is split exactly as its rule says: endpoints that are ejected have
//! no slot, and the share of a version that has nobody left is refused, as the proxy answers it
//! with 503. For the other ports the slots serve only where nobody decides; then an answer is worth
//! more than an exact share, so such a version is left out.
//!
//! Numbers in a table mean something inside it alone (`kernel::apply` gives each entry a place that
//! stays), but for service ids, which stay from one snapshot to the next.

use std::{collections::BTreeSet, sync::Arc};

use mesh_common::{
    addr::Addr,
    maps,
    service::{
        BACKEND_ON, BACKEND_OUT, BACKEND_REFUSE, Backend, DECIDE_KERNEL, DECIDE_PASS, DECIDE_PROXY,
        FLAG_ROUTABLE, ServiceEntry,
    },
};

use super::{
    Snapshot, VersionIx, balance,
    describe::Origin,
    snapshot::{EndpointState, PortPlan, VersionPlan},
};
use crate::model::{
    Model, OutboundAction, Transport, kernel_path,
    kernel_table::{
        KernelTable, KernelTables, KernelVersion, OutboundEntry, Path, PortTable, ServiceName,
    },
};

/// Slots of one list at most, unless it has more than a quarter as many endpoints. Shares that fit
/// no shorter list are rounded to 1/1024: within 0.1 percentage points.
pub(super) const SLOTS_MAX: usize = 1_024;

/// Slots for each endpoint of a very long list: nobody is rounded to nothing.
const SLOTS_EACH: usize = 4;

/// The service ids that are given out: the lowest free one goes first, from 1.
#[derive(Clone, Debug, Default)]
pub(super) struct Ids {
    last: u32,
    free: BTreeSet<u32>,
}

impl Ids {
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            self.last += 1;
            self.last
        })
    }

    pub(super) fn give_back(&mut self, id: u32) {
        self.free.insert(id);
        // What is free at the end was never given.
        while self.last > 0 && self.free.remove(&self.last) {
            self.last -= 1;
        }
    }
}

/// Weighted, interleaved order: position `n` of the result says whose turn it is. Exact when the
/// weights' ratios need at most `max` turns, else rounded to 1/`max` (largest remainder). The turns
/// of each are spread evenly.
pub(super) fn interleave(weights: &[u128], max: usize) -> Vec<u32> {
    let counts = turns(weights, max);
    let mut order: Vec<(u64, u64, u32)> = Vec::new();
    for (at, count) in (0_u32..).zip(&counts) {
        // Turn i of c stands at (2i + 1) / 2c of the round.
        order.extend((0..*count).map(|turn| (2 * turn + 1, *count, at)));
    }
    order.sort_by(|a, b| (a.0 * b.1).cmp(&(b.0 * a.1)).then(a.2.cmp(&b.2)));
    order.into_iter().map(|(_, _, at)| at).collect()
}

fn turns(weights: &[u128], max: usize) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd);
    if divisor == 0 {
        return vec![0; weights.len()];
    }
    let exact = || -> Option<Vec<u64>> {
        let counts: Vec<u64> = weights
            .iter()
            .map(|w| u64::try_from(w / divisor).ok())
            .collect::<Option<_>>()?;
        let sum = counts
            .iter()
            .try_fold(0_u64, |sum, count| sum.checked_add(*count))?;
        (sum <= max as u64).then_some(counts)
    };
    exact().unwrap_or_else(|| apportion(weights, max))
}

/// Largest remainder: every share within one turn of the exact one, `max` turns in all.
fn apportion(weights: &[u128], max: usize) -> Vec<u64> {
    let sum: f64 = weights.iter().map(|weight| *weight as f64).sum();
    let quotas: Vec<f64> = weights
        .iter()
        .map(|weight| *weight as f64 / sum * max as f64)
        .collect();
    let mut counts: Vec<u64> = quotas.iter().map(|quota| quota.floor() as u64).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|a, b| {
        let (a_rest, b_rest) = (quotas[*a].fract(), quotas[*b].fract());
        b_rest.total_cmp(&a_rest).then(a.cmp(b))
    });
    let missing = (max as u64).saturating_sub(counts.iter().sum());
    for at in by_remainder.into_iter().take(missing as usize) {
        counts[at] += 1;
    }
    counts
}

fn gcd(a: u128, b: u128) -> u128 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// `OUT_RULES`: for TCP, for datagrams.
pub(super) fn outbounds(model: &Model) -> (Arc<[OutboundEntry]>, Arc<[OutboundEntry]>) {
    let tcp = outbound(model, Transport::tcp).into();
    (tcp, outbound(model, Transport::udp).into())
}

/// All tables in one, for people and tests. Versions stand in it by their index.
pub(super) fn flat(snapshot: &Snapshot, tables: &KernelTables) -> KernelTable {
    let nobody = KernelVersion {
        service: "".into(),
        port: 0,
        version: "".into(),
        cap: None,
    };
    let versions = (0..snapshot.versions.len()).map(|at| {
        let version = snapshot.versions.get(at);
        version.map_or_else(|| nobody.clone(), |version| named(snapshot, version))
    });
    let mut table = KernelTable {
        versions: versions.collect(),
        outbound: tables.outbound.to_vec(),
        outbound_udp: tables.outbound_udp.to_vec(),
        ..KernelTable::default()
    };
    for port in snapshot.service_ports() {
        let name = ServiceName {
            service: port.key.to_string(),
            port: port.number,
            path: port.path,
            reason: port.path_reason.clone(),
        };
        table.names.insert(port.service_id, name);
    }
    for (_, port) in tables.ports.iter() {
        let (slots, backends) = (table.slots.len() as u32, table.backends.len() as u32);
        for (key, entry) in &port.services {
            let mut entry = *entry;
            entry.slots_off += slots * u32::from(entry.slots_len > 0);
            table.services.entry(*key).or_insert(entry);
        }
        table
            .slots
            .extend(port.slots.iter().map(|at| at + backends));
        table.endpoints.extend(&port.endpoints);
        table
            .backends
            .extend(port.backends.iter().map(|backend| Backend {
                version_id: port.version_of(backend).unwrap_or_default(),
                ..*backend
            }));
    }
    table
}

fn named(snapshot: &Snapshot, version: &VersionPlan) -> KernelVersion {
    let port = snapshot.port(version.port);
    let breaker = &version.effective.breaker;
    let capped = port.path == Path::Kernel && breaker.from != Origin::Default;
    KernelVersion {
        service: Arc::clone(&port.key),
        port: port.number,
        version: Arc::clone(&version.name),
        cap: capped.then(|| kernel_path::cap(&breaker.value)),
    }
}

/// One version's part of a split.
struct Part {
    weight: u32,
    /// Numbers of its endpoints that may be chosen, whether they are IPv4, and their weights.
    usable: Vec<(u32, bool, u32)>,
    /// What stands for it when it has none: on the kernel path only.
    refuse: Option<u32>,
}

/// Where connections go that no condition speaks of: the targets of the first rule without
/// conditions, else all endpoints. On the kernel path there are no conditions.
fn targets(snapshot: &Snapshot, port: &PortPlan) -> Vec<(VersionIx, u32)> {
    match port.routes.catch_all() {
        Some(rule) => snapshot
            .rule(rule)
            .targets
            .iter()
            .filter(|target| !target.invalid)
            .map(|target| (target.version, target.weight))
            .collect(),
        None => vec![(port.all, 1)],
    }
}

/// What the maps must hold for a port, as endpoints are ejected now; whether there is no room for
/// its split. `room`: entries of `SLOTS` that are left.
pub(super) fn port(snapshot: &Snapshot, port: &PortPlan, room: usize) -> (PortTable, bool) {
    let mut table = PortTable::default();
    let parts: Vec<Part> = targets(snapshot, port)
        .into_iter()
        .map(|(version, weight)| Part {
            weight,
            ..part(&mut table, snapshot, port, version)
        })
        .collect();
    let Some(service) = snapshot.service_of(port) else {
        return (table, false);
    };
    let mut lists: [Option<Result<(u32, u32), NoRoom>>; 2] = [None, None];
    for address in &service.addresses {
        let v4 = address.to_canonical().is_ipv4();
        let known = lists[usize::from(v4)];
        let list = known.unwrap_or_else(|| {
            let other = lists[usize::from(!v4)];
            add_list(
                &mut table,
                &order(&parts, v4),
                other.and_then(Result::ok),
                room,
            )
        });
        lists[usize::from(v4)] = Some(list);
    }
    let full = lists.iter().flatten().any(Result::is_err);
    let path = match full {
        true => settled(port, full).0,
        false => port.path,
    };
    for address in &service.addresses {
        let claims = snapshot
            .by_address
            .get(&(address.to_canonical(), port.number));
        // The first that claims an address has it; the configuration refuses a second.
        if claims
            .is_none_or(|claims| snapshot.port(claims.first()).service_index != port.service_index)
        {
            continue;
        }
        let list = lists[usize::from(address.to_canonical().is_ipv4())];
        let (slots_off, slots_len) = list.and_then(Result::ok).unwrap_or_default();
        let entry = ServiceEntry {
            service_id: port.service_id,
            decision: match path {
                Path::Pass => DECIDE_PASS,
                Path::Kernel => DECIDE_KERNEL,
                Path::Proxy => DECIDE_PROXY,
            },
            slots_off,
            slots_len,
            flags: if service.routable { FLAG_ROUTABLE } else { 0 },
            _pad: 0,
        };
        let key = (Addr::from_ip(*address), port.number);
        if !table.services.iter().any(|(known, _)| *known == key) {
            table.services.push((key, entry));
        }
    }
    (table, full)
}

/// What is said of a port for whose split there is no room.
pub(super) const NO_ROOM: &str = "; no split in the kernel: SLOTS is full";

/// Without slots the kernel can't decide: the proxy does.
pub(super) fn settled(port: &PortPlan, full: bool) -> (Path, String) {
    let mut reason = port.path_reason.clone();
    if !full {
        return (port.path, reason);
    }
    reason.push_str(NO_ROOM);
    match port.path {
        Path::Kernel => (Path::Proxy, reason),
        path => (path, reason),
    }
}

/// `SLOTS` has no room.
#[derive(Clone, Copy)]
struct NoRoom;

/// Adds a list, or finds it equal to that of the other family.
fn add_list(
    table: &mut PortTable,
    order: &[u32],
    other: Option<(u32, u32)>,
    room: usize,
) -> Result<(u32, u32), NoRoom> {
    let range = |(first, count): (u32, u32)| first as usize..(first + count) as usize;
    if let Some(other) = other.filter(|other| table.slots[range(*other)] == *order) {
        return Ok(other);
    }
    let first = table.slots.len();
    if order.len() > room.saturating_sub(first) {
        return Err(NoRoom);
    }
    table.slots.extend_from_slice(order);
    Ok((first as u32, order.len() as u32))
}

/// A version's endpoints, added to the table. On the kernel path also those that get nothing now:
/// they keep their places, and with them their counters.
fn part(table: &mut PortTable, snapshot: &Snapshot, port: &PortPlan, version: VersionIx) -> Part {
    let kernel = port.path == Path::Kernel;
    let known = table.version_ixs.iter().position(|ix| *ix == version.0);
    let number = known.unwrap_or_else(|| {
        table
            .versions
            .push(named(snapshot, snapshot.version(version)));
        table.version_ixs.push(version.0);
        table.versions.len() - 1
    }) as u32;
    let mut usable = Vec::new();
    let plan = snapshot.version(version);
    for (index, endpoint) in (0..).zip(&plan.endpoints) {
        let on = match kernel {
            true => balance::is_on(plan, endpoint),
            false => endpoint.is_usable(),
        };
        if !on && !kernel {
            continue;
        }
        let backend = backend(endpoint, number, on);
        let place = push(table, backend, index);
        if on {
            usable.push((place, backend.addr.is_v4(), endpoint.weight));
        }
    }
    let refuse = kernel.then(|| {
        let nobody = Backend {
            addr: Addr::UNSPECIFIED,
            port: 0,
            state: BACKEND_REFUSE,
            version_id: number,
            cap: 0,
            _pad: 0,
        };
        push(table, nobody, u32::MAX)
    });
    Part {
        weight: 0,
        usable,
        refuse,
    }
}

fn backend(endpoint: &EndpointState, version: u32, on: bool) -> Backend {
    Backend {
        addr: Addr::from_ip(endpoint.address.ip()),
        port: endpoint.address.port(),
        state: if on { BACKEND_ON } else { BACKEND_OUT },
        version_id: version,
        cap: 0,
        _pad: 0,
    }
}

fn push(table: &mut PortTable, backend: Backend, endpoint: u32) -> u32 {
    table.backends.push(backend);
    table.endpoints.push(endpoint);
    table.backends.len() as u32 - 1
}

/// The order in which a virtual address of one family gives its connections out.
///
/// An IPv4 socket reaches IPv4 endpoints only. One that asked for an IPv6 address gets an IPv6
/// endpoint where its version has one, for it may be bound to that family; else a v4-mapped one.
fn order(parts: &[Part], v4: bool) -> Vec<u32> {
    let members: Vec<(u32, Vec<(u32, u32)>)> = parts
        .iter()
        .filter(|part| part.weight > 0)
        .map(|part| (part.weight, reachable(part, v4)))
        .collect();
    let sum = |members: &[(u32, u32)]| members.iter().map(|(_, w)| u128::from(*w)).sum::<u128>();
    // Over a common denominator all shares are whole; where that overflows, 10^-12 is fine enough.
    let common = members
        .iter()
        .map(|(_, members)| sum(members))
        .filter(|sum| *sum > 0)
        .try_fold(1_u128, |lcm, sum| {
            (lcm / gcd(lcm, sum))
                .checked_mul(sum)
                .filter(|lcm| *lcm < 1 << 60)
        });
    let mut numbers = Vec::new();
    let mut weights = Vec::new();
    for (weight, members) in &members {
        let sum = sum(members);
        for (number, own) in members {
            let parts = u128::from(*weight) * u128::from(*own);
            numbers.push(*number);
            weights.push(match common {
                Some(common) => parts * (common / sum),
                None => parts * 1_000_000_000_000 / sum,
            });
        }
    }
    interleave(&weights, SLOTS_MAX.max(SLOTS_EACH * weights.len()))
        .into_iter()
        .map(|at| numbers[at as usize])
        .collect()
}

/// Numbers and weights of a version's endpoints for a virtual address of one family.
fn reachable(part: &Part, v4: bool) -> Vec<(u32, u32)> {
    let of = |wanted: bool| -> Vec<(u32, u32)> {
        part.usable
            .iter()
            .filter(|(_, is_v4, _)| *is_v4 == wanted)
            .map(|(number, _, weight)| (*number, *weight))
            .collect()
    };
    let mut found = of(v4);
    if found.is_empty() && !v4 {
        found = of(true);
    }
    match (found.is_empty(), part.refuse) {
        (true, Some(nobody)) => vec![(nobody, 1)],
        _ => found,
    }
}

fn outbound(model: &Model, about: fn(Transport) -> bool) -> Vec<(Addr, u8, u16, u32)> {
    let mut rules = Vec::new();
    for rule in model.outbound.iter().filter(|rule| about(rule.protocol)) {
        // IPv4 stands as v4-mapped: its prefix is 96 bits longer.
        let longer = if rule.cidr.network().is_ipv4() { 96 } else { 0 };
        let network = Addr::from_ip(rule.cidr.network());
        let action = match rule.action {
            OutboundAction::Pass => maps::OUT_PASS,
            OutboundAction::Deny => maps::OUT_DENY,
        };
        let ports = if rule.ports.is_empty() {
            &[0][..]
        } else {
            &rule.ports
        };
        rules.extend(
            ports
                .iter()
                .map(|port| (network, rule.cidr.prefix_len() + longer, *port, action)),
        );
    }
    with_narrower_ranges_under_each_port(rules)
}

/// The hook looks the exact port up first, and any port (0) only when nothing covers the address
/// there. So that the longest range wins whichever look-up finds it, a range for any port that lies
/// inside a range for one port stands under that port too.
fn with_narrower_ranges_under_each_port(mut rules: Vec<OutboundEntry>) -> Vec<OutboundEntry> {
    let inside = |inner: &OutboundEntry, outer: &OutboundEntry| {
        let shift = 128 - u32::from(outer.1.min(128));
        let bits = |addr: &Addr| u128::from_be_bytes(addr.octets()).checked_shr(shift);
        inner.1 > outer.1
            && inner.0.is_v4() == outer.0.is_v4()
            && bits(&inner.0).unwrap_or(0) == bits(&outer.0).unwrap_or(0)
    };
    let mut more = Vec::new();
    for outer in rules.iter().filter(|rule| rule.2 != 0) {
        for inner in rules
            .iter()
            .filter(|rule| rule.2 == 0 && inside(rule, outer))
        {
            let entry = (inner.0, inner.1, outer.2, inner.3);
            let given = rules
                .iter()
                .any(|rule| (rule.0, rule.1, rule.2) == (entry.0, entry.1, entry.2));
            if !given && !more.contains(&entry) {
                more.push(entry);
            }
        }
    }
    rules.extend(more);
    rules
}

#[cfg(test)]
mod tests;
