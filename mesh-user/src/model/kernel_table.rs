//! What the kernel side must know of a snapshot: the exact desired content of its maps.
//!
//! Compiled by `policy::snapshot`, written (as a difference) by `kernel`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_common::{
    addr::Addr,
    service::{Backend, ServiceEntry},
};
use serde::Serialize;

use super::list::Chunks;

/// Desired content of `SERVICES`, `SLOTS`, `BACKENDS`, `CAP_LIMITS` and `OUT_RULES`: a table for
/// each service port. What two sets have in common is shared, so a difference costs what differs.
#[derive(Clone, Debug, Default)]
pub struct KernelTables {
    /// By an index that stays with the port.
    pub ports: Tables,
    /// Entries of `SLOTS` in all of them.
    pub slots: usize,
    /// `OUT_RULES` for TCP: (address, prefix length over 128 bits, port or 0, action).
    pub outbound: Arc<[OutboundEntry]>,
    /// `OUT_RULES` for datagrams, likewise.
    pub outbound_udp: Arc<[OutboundEntry]>,
}

/// An entry of `OUT_RULES`.
pub type OutboundEntry = (Addr, u8, u16, u32);

/// Tables by index.
#[derive(Clone, Debug, Default)]
pub struct Tables(Chunks<Option<Arc<PortTable>>>);

impl Tables {
    /// The table at an index.
    pub fn get(&self, at: usize) -> Option<&Arc<PortTable>> {
        self.0.get(at)?.as_ref()
    }

    /// All, by index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<PortTable>)> {
        let places = (0_u32..).zip(self.0.iter());
        places.filter_map(|(at, table)| Some((at, table.as_ref()?)))
    }

    /// Puts a table in its place; what was there.
    pub fn set(&mut self, at: u32, table: Arc<PortTable>) -> Option<Arc<PortTable>> {
        while self.0.len() <= at as usize {
            self.0.push(None);
        }
        self.0.get_mut(at as usize)?.replace(table)
    }

    /// Takes a table out.
    pub fn clear(&mut self, at: u32) -> Option<Arc<PortTable>> {
        // Nothing is copied where nothing is.
        self.get(at as usize)?;
        self.0.get_mut(at as usize)?.take()
    }

    /// Indexes at which two sets have different tables, with both.
    pub fn changes<'a>(
        &'a self,
        newer: &'a Self,
    ) -> impl Iterator<Item = (u32, Option<&'a Arc<PortTable>>, Option<&'a Arc<PortTable>>)> + 'a
    {
        self.0.suspects(&newer.0).filter_map(|at| {
            let (old, new) = (self.get(at), newer.get(at));
            let same = match (old, new) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                _ => false,
            };
            (!same).then_some((at as u32, old, new))
        })
    }
}

/// What the maps must hold for one service port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortTable {
    /// `SERVICES`, by (address, port); TCP only. Slots are counted inside this table.
    pub services: Vec<((Addr, u16), ServiceEntry)>,
    /// `SLOTS`: numbers of `backends` in weighted, interleaved order.
    pub slots: Vec<u32>,
    /// `BACKENDS`. `version_id` is an index in `versions`; `cap` is 0.
    pub backends: Vec<Backend>,
    /// For each of `backends` its index among its version's endpoints; `u32::MAX`: it is none.
    pub endpoints: Vec<u32>,
    /// The versions that backends belong to.
    pub versions: Vec<KernelVersion>,
    /// Their indexes in the snapshot.
    pub version_ixs: Vec<u32>,
}

impl PortTable {
    /// The version of one of its backends, as the snapshot's index.
    pub fn version_of(&self, backend: &Backend) -> Option<u32> {
        self.version_ixs.get(backend.version_id as usize).copied()
    }
}

impl KernelTables {
    /// The same without the services that `keep` does not hold for. What has none such is shared.
    pub fn retain(&self, keep: impl Fn(&(Addr, u16)) -> bool) -> Self {
        let mut kept = self.clone();
        for (at, table) in self.ports.iter() {
            if !table.services.iter().all(|(key, _)| keep(key)) {
                let mut table = PortTable::clone(table);
                table.services.retain(|(key, _)| keep(key));
                kept.ports.set(at, Arc::new(table));
            }
        }
        kept
    }

    /// The same without the services that `next` has no more; none: it has all of them.
    pub fn staying(&self, next: &Self) -> Option<Self> {
        let changes = || self.ports.changes(&next.ports);
        let come = changes().filter_map(|(.., new)| new);
        let come: std::collections::HashSet<(Addr, u16)> = come
            .flat_map(|table| table.services.iter().map(|(key, _)| *key))
            .collect();
        let mut staying = None;
        for (at, old, _) in changes() {
            let Some(old) =
                old.filter(|old| old.services.iter().any(|(key, _)| !come.contains(key)))
            else {
                continue;
            };
            let mut table = PortTable::clone(old);
            table.services.retain(|(key, _)| come.contains(key));
            let staying: &mut Self = staying.get_or_insert_with(|| self.clone());
            staying.ports.set(at, Arc::new(table));
        }
        staying
    }

    /// Whether a rule denies datagrams.
    pub fn denies_datagrams(&self) -> bool {
        let deny = mesh_common::maps::OUT_DENY;
        self.outbound_udp.iter().any(|(.., action)| *action == deny)
    }
}

impl From<KernelTable> for KernelTables {
    /// One table for all.
    fn from(table: KernelTable) -> Self {
        let mut tables = Self {
            slots: table.slots.len(),
            outbound: table.outbound.into(),
            outbound_udp: table.outbound_udp.into(),
            ..Self::default()
        };
        let all = PortTable {
            services: table.services.into_iter().collect(),
            slots: table.slots,
            backends: table.backends,
            endpoints: table.endpoints,
            version_ixs: (0..table.versions.len() as u32).collect(),
            versions: table.versions,
        };
        tables.ports.set(0, Arc::new(all));
        tables
    }
}

/// The same in one table, for people and tests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelTable {
    /// `SERVICES`, by (address, port); TCP only.
    pub services: BTreeMap<(Addr, u16), ServiceEntry>,
    /// `SLOTS`: backend numbers in weighted, interleaved order.
    pub slots: Vec<u32>,
    /// `BACKENDS`. `version_id` is an index in `versions`; `cap` is 0: both become numbers that
    /// outlive the table when it is written.
    pub backends: Vec<Backend>,
    /// For each of `backends` its index among its version's endpoints; `u32::MAX`: it is none.
    pub endpoints: Vec<u32>,
    /// The versions that backends belong to, in the order of the snapshot's.
    pub versions: Vec<KernelVersion>,
    /// Names for people, by `ServiceEntry::service_id`: `namespace/name:port`.
    pub names: BTreeMap<u32, ServiceName>,
    /// `OUT_RULES` for TCP: (address, prefix length over 128 bits, port or 0, action).
    pub outbound: Vec<(Addr, u8, u16, u32)>,
    /// `OUT_RULES` for datagrams, likewise.
    pub outbound_udp: Vec<(Addr, u8, u16, u32)>,
}

impl KernelTable {
    /// Whether a rule denies datagrams.
    pub fn denies_datagrams(&self) -> bool {
        let deny = mesh_common::maps::OUT_DENY;
        self.outbound_udp.iter().any(|(.., action)| *action == deny)
    }
}

/// A version of a service port, by its names: what numbers in the maps stay with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelVersion {
    /// `namespace/name` of the service.
    pub service: Arc<str>,
    /// Port number.
    pub port: u16,
    /// The version's name.
    pub version: Arc<str>,
    /// Connections that the kernel may open for it at once; none: any number.
    pub cap: Option<u32>,
}

/// What a service id means, and why the service takes the path it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceName {
    /// `namespace/name`.
    pub service: String,
    /// Port number.
    pub port: u16,
    /// Who decides.
    pub path: Path,
    /// The rule or policy that forced it.
    pub reason: String,
}

/// Who decides for a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Nobody: the connection is not touched.
    Pass,
    /// The connect hook.
    Kernel,
    /// The proxy.
    Proxy,
}
