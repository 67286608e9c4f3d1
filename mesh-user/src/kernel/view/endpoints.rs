//! Endpoints of the kernel path, with what was counted at them.

use std::collections::{BTreeSet, HashMap};

use mesh_common::{
    maps::get,
    service::{BACKEND_ON, BACKEND_REFUSE, Backend, ServiceEntry},
};

use super::{EndpointRow, View};

impl View {
    /// Endpoints that the kernel may choose, by service, version and address.
    pub fn endpoints(&self) -> Vec<EndpointRow> {
        let slots = self.slots_by_place();
        let mut rows = Vec::new();
        for place in 0..get("BACKENDS").capacity {
            let Ok(backend) = self.tables.backends.get(&place, 0) else {
                break;
            };
            // Places are given out in order: the first that was never written to ends them.
            if backend.addr.is_unspecified() && backend.port == 0 && backend.version_id == 0 {
                break;
            }
            if backend.version_id != 0 && backend.state != BACKEND_REFUSE {
                let own = slots.get(&place).copied().unwrap_or(0);
                rows.push(self.endpoint(place, &backend, own));
            }
        }
        rows.sort_by(|a, b| {
            (&a.service, &a.version, a.address).cmp(&(&b.service, &b.version, b.address))
        });
        rows
    }

    fn endpoint(&self, place: u32, backend: &Backend, slots: u32) -> EndpointRow {
        let stats = self.tables.ep_stats.get(&place, 0).unwrap_or_default();
        let (service, version) = self.named(backend.version_id);
        let cap = (backend.cap != 0)
            .then(|| self.tables.caps.get(&backend.cap, 0).ok())
            .flatten();
        let ended = stats.failed + stats.abandoned + stats.closed;
        EndpointRow {
            service,
            version,
            address: backend.addr.with_port(backend.port),
            state: if backend.state == BACKEND_ON {
                "on"
            } else {
                "out"
            }
            .to_owned(),
            slots,
            active: stats.opened.saturating_sub(ended),
            cap_active: cap.map(|cap| cap.active),
            cap_limit: cap.and_then(|_| self.tables.cap_limits.get(&backend.cap, 0).ok()),
            cap_refused: cap.map(|cap| cap.refused),
            opened: stats.opened,
            established: stats.established,
            failed: stats.failed,
            abandoned: stats.abandoned,
            closed: stats.closed,
            bytes_out: stats.bytes_out,
            bytes_in: stats.bytes_in,
        }
    }

    /// How many slots name each place. Virtual addresses that split alike share a range.
    fn slots_by_place(&self) -> HashMap<u32, u32> {
        let mut counts = HashMap::new();
        let mut seen = BTreeSet::new();
        for (_, entry) in self.tables.services.iter().flatten() {
            if !seen.insert(entry.slots_off) {
                continue;
            }
            for index in entry.slots_off..entry.slots_off.saturating_add(entry.slots_len) {
                // Out of range: nonsense in the map, nothing more to find.
                let Ok(place) = self.tables.slots.get(&index, 0) else {
                    break;
                };
                *counts.entry(place).or_default() += 1;
            }
        }
        counts
    }

    /// Names of a version, by its number.
    fn named(&self, version: u32) -> (String, String) {
        let names = self.versions.get(&version).cloned();
        names.unwrap_or_else(|| ("?".to_owned(), "?".to_owned()))
    }

    /// The version that a flow's backend belongs to.
    pub(super) fn version_of(&self, backend: u32) -> Option<String> {
        let backend = self.tables.backends.get(&backend, 0).ok()?;
        Some(self.named(backend.version_id).1).filter(|name| name != "?")
    }

    /// A service's name, by the endpoints of its split.
    pub(super) fn service_of(&self, entry: &ServiceEntry) -> String {
        let first = (entry.slots_len > 0)
            .then(|| self.tables.slots.get(&entry.slots_off, 0).ok())
            .flatten();
        let backend = first.and_then(|place| self.tables.backends.get(&place, 0).ok());
        backend.map_or_else(
            || "?".to_owned(),
            |backend| self.named(backend.version_id).0,
        )
    }
}
