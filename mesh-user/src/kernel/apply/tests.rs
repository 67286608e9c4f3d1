use proptest::prelude::*;

use super::*;
use crate::model::kernel_table::{KernelTable, KernelVersion};

fn addr(last: u8) -> Addr {
    Addr::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last])
}

fn backend(last: u8) -> Backend {
    Backend {
        addr: addr(last),
        port: 80,
        state: 1,
        version_id: 0,
        cap: 0,
        _pad: 0,
    }
}

fn entry(service_id: u32, slots_off: u32, slots_len: u32) -> ServiceEntry {
    ServiceEntry {
        service_id,
        decision: 1,
        slots_off,
        slots_len,
        flags: 0,
        _pad: 0,
    }
}

fn version(cap: Option<u32>) -> KernelVersion {
    KernelVersion {
        service: "default/web".into(),
        port: 80,
        version: "*".into(),
        cap,
    }
}

/// What a table makes of what stands, and what is written for it.
struct Planned {
    next: Installed,
    plan: Plan,
}

impl std::ops::Deref for Planned {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        &self.plan
    }
}

fn plan(now: &Installed, table: &KernelTable) -> Result<Planned, KernelError> {
    let mut next = now.clone();
    let plan = next.plan(&table.clone().into(), &|_| false)?;
    Ok(Planned { next, plan })
}

/// A table with one service for each list of endpoints.
fn table(services: &[Vec<u8>]) -> KernelTable {
    let mut table = KernelTable {
        versions: vec![version(None)],
        ..KernelTable::default()
    };
    for (index, endpoints) in services.iter().enumerate() {
        let offset = table.slots.len() as u32;
        for last in endpoints {
            table.slots.push(table.backends.len() as u32);
            table.backends.push(backend(*last));
        }
        let entry = entry(index as u32 + 1, offset, endpoints.len() as u32);
        table.services.insert((addr(200), index as u16 + 1), entry);
    }
    table
}

#[test]
fn unchanged_service_keeps_its_slots_and_endpoints() {
    let first = plan(&Installed::default(), &table(&[vec![1, 2], vec![3]])).unwrap();
    let second = plan(&first.next, &table(&[vec![1, 2], vec![4]])).unwrap();
    let of = |plan: &Planned, port| plan.next.services[&(addr(200), port)].entry;
    assert_eq!(of(&first, 1), of(&second, 1));
    assert_ne!(of(&first, 2).slots_off, of(&second, 2).slots_off);
    assert_eq!(second.backends.len(), 1, "only the new endpoint is written");
    let third = plan(&second.next, &table(&[vec![1, 2], vec![4]])).unwrap();
    assert!(
        third.backends.is_empty() && third.new_slots.is_empty(),
        "nothing changed"
    );
}

#[test]
fn tables_that_contradict_themselves_are_refused() {
    let bad = |change: fn(&mut KernelTable)| {
        let mut table = table(&[vec![1, 2]]);
        change(&mut table);
        plan(&Installed::default(), &table)
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(bad(|_| {}), None);
    let change = |error: Option<String>| error.expect("refused");
    assert!(change(bad(|t| t.slots[0] = 7)).contains("no endpoint"));
    assert!(change(bad(|t| t.slots.truncate(1))).contains("slots 0+2 of 1"));
    assert!(change(bad(|t| set_first(t, |e| e.service_id = 0))).contains("service number 0"));
    assert!(change(bad(|t| set_first(t, |e| e.slots_off = u32::MAX))).contains("slots"));
}

fn set_first(table: &mut KernelTable, change: fn(&mut ServiceEntry)) {
    table.services.values_mut().take(1).for_each(change);
}

/// Without it: counters and caps of two versions that share an endpoint run together, and a changed
/// cap never reaches the kernel.
#[test]
fn endpoint_has_a_place_for_each_version_and_is_written_when_its_cap_changes() {
    let mut table = table(&[vec![1], vec![1]]);
    table.versions.push(KernelVersion {
        version: "v2".into(),
        ..version(Some(7))
    });
    table.backends[1].version_id = 1;
    let first = plan(&Installed::default(), &table).unwrap();
    let places: Vec<u32> = first.backends.iter().map(|(place, ..)| *place).collect();
    assert_eq!(places, [0, 1]);
    let caps: Vec<u32> = first
        .backends
        .iter()
        .map(|(_, backend, _)| backend.cap)
        .collect();
    assert_eq!(caps, [0, 1]);
    assert_eq!(first.next.limits, [(1, 7)].into());
    table.versions[0].cap = Some(9);
    let second = plan(&first.next, &table).unwrap();
    assert_eq!(second.backends.len(), 1);
    let (place, backend, new) = &second.backends[0];
    assert_eq!((*place, backend.cap, *new), (0, 2, false));
    assert_eq!(second.next.limits, [(1, 7), (2, 9)].into());
}

#[test]
fn too_many_services_are_refused_by_map_name() {
    let mut table = KernelTable::default();
    let capacity = get("SERVICES").capacity;
    for number in 0..=capacity {
        let ip = std::net::Ipv4Addr::from_bits(number);
        table
            .services
            .insert((Addr::from_ip(ip.into()), 80), entry(1, 0, 0));
    }
    let error = plan(&Installed::default(), &table)
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.contains("SERVICES is full") && error.contains("131073"),
        "{error}"
    );
    table.services.pop_last();
    assert!(plan(&Installed::default(), &table).is_ok());
}

proptest! {
    /// Whatever tables follow each other: each service's slots name exactly its endpoints, and no
    /// range or place that the table before used is written with something else.
    #[test]
    fn live_ranges_are_never_overwritten(
        tables in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(1_u8..12, 0..5), 0..6), 1..12)
    ) {
        let mut now = Installed::default();
        let mut slots: BTreeMap<u32, u32> = BTreeMap::new();
        let mut ends: BTreeMap<u32, Backend> = BTreeMap::new();
        for services in tables {
            let plan = plan(&now, &table(&services)).unwrap();
            let live: Vec<u32> = now
                .services
                .values()
                .flat_map(|s| s.entry.slots_off..s.entry.slots_off + s.entry.slots_len)
                .collect();
            for (place, backend, new) in &plan.backends {
                if *new {
                    prop_assert!(!now.backends.values().any(|placed| placed.place == *place));
                }
                ends.insert(*place, *backend);
            }
            for (start, content) in &plan.new_slots {
                for (slot, place) in (*start..).zip(content.iter()) {
                    prop_assert!(!live.contains(&slot));
                    slots.insert(slot, *place);
                }
            }
            for (index, endpoints) in services.iter().enumerate() {
                let entry = plan.next.services[&(addr(200), index as u16 + 1)].entry;
                let found: Vec<Addr> = (entry.slots_off..entry.slots_off + entry.slots_len)
                    .map(|slot| ends[&slots[&slot]].addr)
                    .collect();
                let wanted: Vec<Addr> = endpoints.iter().map(|last| addr(*last)).collect();
                prop_assert_eq!(found, wanted);
            }
            now = plan.next;
        }
    }
}
