//! What the kernel's maps must hold: who decides for an address, and the last split of each port
//! as a list of slots.
//!
//! Every number that another map refers to (service ids, backend numbers, slot ranges) stays with
//! its owner from one snapshot to the next, and what a snapshot frees is given out again only by
//! the one after: the maps are written one entry at a time, and a connect in between must never
//! read another service's endpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use mesh_common::{
    addr::Addr,
    maps,
    service::{Backend, DECIDE_KERNEL, DECIDE_PASS, DECIDE_PROXY, FLAG_ROUTABLE, ServiceEntry},
};

use super::{Snapshot, VersionIx, snapshot::PortPlan};
use crate::model::{
    Model, OutboundAction, Transport,
    kernel_table::{KernelTable, Path, ServiceName},
};

/// Slots of one port at most. Shares that fit no shorter list are rounded to 1/1024: within 0.1
/// percentage points.
pub(super) const SLOTS_MAX: usize = 1_024;

/// Names a service port: `namespace/name` and port number.
type PortKey = (Arc<str>, u16);

/// The numbers that were given out.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    ids: BTreeMap<PortKey, u32>,
    backends: BTreeMap<(PortKey, SocketAddr), u32>,
    /// First slot and how many.
    ranges: BTreeMap<PortKey, (u32, u32)>,
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

/// The endpoints of the port's default split, with their weights in whole numbers.
///
/// The default split is what a connection gets that no condition speaks of: the targets of the
/// first rule without conditions, else all endpoints. Endpoints that aren't ready are left out, and
/// so is a version without any: it is used only when nobody decides, and then an answer is worth
/// more than an exact share.
fn default_split(snapshot: &Snapshot, port: &PortPlan) -> Vec<(SocketAddr, VersionIx, u128)> {
    let targets = match port.routes.catch_all() {
        Some(rule) => snapshot.rule(rule).targets.clone(),
        None => vec![(port.all, 1)],
    };
    let usable = |version: VersionIx| {
        snapshot
            .version(version)
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.is_usable())
    };
    let sums: Vec<u128> = targets
        .iter()
        .map(|(version, _)| {
            usable(*version)
                .map(|endpoint| u128::from(endpoint.weight))
                .sum()
        })
        .collect();
    // Over a common denominator all shares are whole; where that overflows, 10^-12 is fine enough.
    let common = sums
        .iter()
        .filter(|sum| **sum > 0)
        .try_fold(1_u128, |lcm, sum| {
            (lcm / gcd(lcm, *sum))
                .checked_mul(*sum)
                .filter(|lcm| *lcm < 1 << 60)
        });
    let mut split: BTreeMap<SocketAddr, (VersionIx, u128)> = BTreeMap::new();
    let mut order = Vec::new();
    for ((version, weight), sum) in targets.iter().zip(&sums) {
        for endpoint in usable(*version).filter(|_| *weight > 0) {
            let parts = u128::from(*weight) * u128::from(endpoint.weight);
            let share = match common {
                Some(common) => parts * (common / sum),
                None => parts * 1_000_000_000_000 / sum,
            };
            let entry = split.entry(endpoint.address).or_insert_with(|| {
                order.push(endpoint.address);
                (*version, 0)
            });
            entry.1 += share;
        }
    }
    order
        .into_iter()
        .map(|address| (address, split[&address].0, split[&address].1))
        .collect()
}

/// The maps' content, and the numbers in it.
pub(super) fn build(snapshot: &Snapshot, previous: Option<&Numbers>) -> (KernelTable, Numbers) {
    let lists: Vec<PortList> = snapshot
        .ports
        .iter()
        .map(|port| PortList::new(snapshot, port))
        .collect();
    let empty = Numbers::default();
    let numbers = Numbers::next(previous.unwrap_or(&empty), &lists);
    let backends = numbers
        .backends
        .values()
        .max()
        .map_or(0, |most| *most as usize + 1);
    let slots = numbers
        .ranges
        .values()
        .map(|(first, count)| (first + count) as usize)
        .max();
    let mut table = KernelTable {
        backends: vec![FREE; backends],
        slots: vec![0; slots.unwrap_or(0)],
        outbound: outbound(&snapshot.model, Transport::tcp),
        outbound_udp: outbound(&snapshot.model, Transport::udp),
        ..KernelTable::default()
    };
    for (port, list) in snapshot.ports.iter().zip(&lists) {
        let number_of = |at: u32| {
            let (address, ..) = list.split[at as usize];
            numbers.backends[&(list.key.clone(), address)]
        };
        for (at, (address, version, _)) in (0_u32..).zip(&list.split) {
            table.backends[number_of(at) as usize] = Backend {
                addr: Addr::from_ip(address.ip()),
                port: address.port(),
                state: 1,
                version_id: port
                    .versions
                    .iter()
                    .position(|ix| ix == version)
                    .unwrap_or(0) as u32,
                cap: 0,
                _pad: 0,
            };
        }
        let (first, count) = numbers.ranges.get(&list.key).copied().unwrap_or_default();
        for (slot, at) in (first..first + count).zip(&list.order) {
            table.slots[slot as usize] = number_of(*at);
        }
        let id = numbers.ids[&list.key];
        add_service(
            &mut table,
            snapshot,
            port,
            id,
            (first, count),
            list.order.len(),
        );
    }
    (table, numbers)
}

/// The slots of one port, before they have numbers.
struct PortList {
    key: PortKey,
    split: Vec<(SocketAddr, VersionIx, u128)>,
    /// Positions in `split`.
    order: Vec<u32>,
}

impl PortList {
    fn new(snapshot: &Snapshot, port: &PortPlan) -> Self {
        let split = default_split(snapshot, port);
        let weights: Vec<u128> = split.iter().map(|(.., weight)| *weight).collect();
        let order = interleave(&weights, SLOTS_MAX);
        Self {
            key: (Arc::clone(&port.key), port.number),
            split,
            order,
        }
    }
}

impl Numbers {
    fn next(previous: &Self, lists: &[PortList]) -> Self {
        let keys = lists.iter().map(|list| list.key.clone());
        let backends = lists.iter().flat_map(|list| {
            list.split
                .iter()
                .map(|(address, ..)| (list.key.clone(), *address))
        });
        let resting: BTreeSet<u32> = previous.backends.values().copied().collect();
        let wanted: Vec<(PortKey, u32)> = lists
            .iter()
            .map(|list| (list.key.clone(), list.order.len() as u32))
            .collect();
        Self {
            // A service id only names a counter and a row: it needs no rest.
            ids: number(&previous.ids, keys, &BTreeSet::new()),
            backends: number(&previous.backends, backends, &resting),
            ranges: ranges(&previous.ranges, &wanted),
        }
    }
}

/// Backend 0 is never used: what an unused slot holds says «free».
const FREE: Backend = Backend {
    addr: Addr::UNSPECIFIED,
    port: 0,
    state: 0,
    version_id: 0,
    cap: 0,
    _pad: 0,
};

fn add_service(
    table: &mut KernelTable,
    snapshot: &Snapshot,
    port: &PortPlan,
    service_id: u32,
    (slots_off, slots_len): (u32, u32),
    wanted: usize,
) {
    let service = &snapshot.model.services[port.service_index];
    let entry = ServiceEntry {
        service_id,
        decision: match port.path {
            Path::Pass => DECIDE_PASS,
            Path::Kernel => DECIDE_KERNEL,
            Path::Proxy => DECIDE_PROXY,
        },
        slots_off,
        slots_len,
        flags: if service.routable { FLAG_ROUTABLE } else { 0 },
        _pad: 0,
    };
    for address in &service.addresses {
        // The first that claims an address has it; the configuration refuses a second.
        table
            .services
            .entry((Addr::from_ip(*address), port.number))
            .or_insert(entry);
    }
    let mut reason = port.path_reason.clone();
    if wanted > 0 && slots_len == 0 {
        reason.push_str("; no split in the kernel: SLOTS is full");
    }
    let name = ServiceName {
        service: port.key.to_string(),
        port: port.number,
        path: port.path,
        reason,
    };
    table.names.insert(service_id, name);
}

/// Keeps the numbers of `previous`, and gives the lowest free ones, from 1, to the others.
fn number<K: Ord + Clone>(
    previous: &BTreeMap<K, u32>,
    wanted: impl Iterator<Item = K>,
    resting: &BTreeSet<u32>,
) -> BTreeMap<K, u32> {
    let wanted: BTreeSet<K> = wanted.collect();
    let mut given: BTreeMap<K, u32> = wanted
        .iter()
        .filter_map(|key| previous.get(key).map(|number| (key.clone(), *number)))
        .collect();
    let taken: BTreeSet<u32> = given.values().copied().collect();
    let mut free = (1..).filter(|n| !taken.contains(n) && !resting.contains(n));
    for key in wanted {
        given
            .entry(key)
            .or_insert_with(|| free.next().unwrap_or(u32::MAX));
    }
    given
}

/// Keeps ranges that still have the right length; the others get the first gap that is free in
/// both snapshots. Who finds none gets no range.
fn ranges(
    previous: &BTreeMap<PortKey, (u32, u32)>,
    wanted: &[(PortKey, u32)],
) -> BTreeMap<PortKey, (u32, u32)> {
    let capacity = maps::get("SLOTS").capacity;
    let mut gaps: Vec<(u32, u32)> = Vec::new();
    let mut taken: Vec<(u32, u32)> = previous
        .values()
        .copied()
        .filter(|(_, count)| *count > 0)
        .collect();
    taken.sort_unstable();
    let mut end = 0;
    for (first, count) in taken {
        if first > end {
            gaps.push((end, first));
        }
        end = end.max(first + count);
    }
    gaps.push((end, capacity));
    let mut given = BTreeMap::new();
    for (key, count) in wanted {
        if let Some(kept) = previous.get(key).filter(|(_, had)| had == count) {
            given.insert(key.clone(), *kept);
            continue;
        }
        if let Some(gap) = gaps
            .iter_mut()
            .find(|(from, to)| to.saturating_sub(*from) >= *count)
        {
            given.insert(key.clone(), (gap.0, *count));
            gap.0 += count;
        }
    }
    given
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

type OutboundEntry = (Addr, u8, u16, u32);

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
