//! What an agent before us left in the maps, and what becomes of it.
//!
//! Its workloads stay captured or refused by their failure mode until they are enrolled again:
//! a restart opens no hole. Those whose namespace is gone go at once, those that nobody enrols go
//! after a grace.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use mesh_common::addr::Addr;

use super::{
    Kernel,
    enrol::report,
    netns::{self, Identity},
    object::STEER,
    records::{self, Record},
    sys::{self, LinkTarget},
    workload::{self, map_addr},
};

/// How long an adopted workload waits to be enrolled again: the first snapshot comes within
/// seconds of the start.
const GRACE: Duration = Duration::from_secs(10);

impl Kernel {
    /// Sorts what is there into «adopted» and «removed».
    pub(super) fn adopt(&mut self) {
        let mut ids: BTreeSet<u32> = BTreeSet::new();
        let mut generation = 0;
        for (_, entry) in self.tables.pod_by_netns.iter().flatten() {
            ids.insert(entry.pod_id);
            generation = generation.max(entry.generation);
        }
        for (_, entry) in self.tables.pod_by_addr.iter().flatten() {
            ids.insert(entry.pod_id);
            generation = generation.max(entry.generation);
        }
        let links = self.pins.all_links();
        let steers = links.iter().filter(|(name, _, _)| name == STEER);
        ids.extend(steers.filter_map(|(_, number, _)| u32::try_from(*number).ok()));
        let known = records::read(&self.instance);
        ids.extend(known.iter().map(|record| record.pod_id));
        self.generation = generation.saturating_add(1);
        self.next_id = ids.last().map_or(1, |last| last.saturating_add(1));
        for id in ids {
            let record = known.iter().find(|record| record.pod_id == id).cloned();
            match record {
                Some(record) if self.still_there(&record) => {
                    self.adopted.insert(id, record);
                }
                other => self.purge(id, other.as_ref()),
            }
        }
        self.write_records();
    }

    /// Whether the namespace is the same, and our link on it took the new program.
    fn still_there(&self, record: &Record) -> bool {
        let live = self
            .tables
            .pod_by_netns
            .get(&record.cookie, 0)
            .is_ok_and(|entry| entry.pod_id == record.pod_id);
        let same = netns::inside_if(&record.netns, record.inode, || ());
        if !live || !matches!(same, Ok(Some(()))) {
            return false;
        }
        let pin = self.pins.link(STEER, u64::from(record.pod_id));
        let updated = sys::open_pin(&pin).and_then(|link| {
            let info = sys::link_info(&link)?;
            sys::link_update(&link, &self.steer)?;
            Ok(info.target == LinkTarget::Netns(record.inode as u32))
        });
        updated.unwrap_or(false)
    }

    /// The adopted workload with this namespace, which is then enrolled anew under its number. What
    /// the maps say of it stays until the new truth stands beside it: it may be captured already.
    pub(super) fn take_adopted(&mut self, identity: &Identity) -> Option<Record> {
        let id = self
            .adopted
            .iter()
            .find(|(_, record)| record.cookie == identity.cookie)
            .map(|(id, _)| *id)?;
        self.adopted.remove(&id)
    }

    /// Gives back what `POD_BY_ADDR` says of a workload beyond its addresses: they may have changed
    /// while nobody watched.
    pub(super) fn disclaim_others(&mut self, pod_id: u32, addresses: &BTreeSet<IpAddr>) {
        let wanted: BTreeSet<Addr> = addresses.iter().map(map_addr).collect();
        for key in self.addresses_of(pod_id) {
            if !wanted.contains(&key) {
                report("POD_BY_ADDR", self.tables.pod_by_addr.remove(&key));
            }
        }
    }

    fn addresses_of(&self, pod_id: u32) -> Vec<Addr> {
        self.tables
            .pod_by_addr
            .iter()
            .flatten()
            .filter(|(_, entry)| entry.pod_id == pod_id)
            .map(|(key, _)| key)
            .collect()
    }

    /// Removes adopted workloads that are gone, or that nobody enrolled in time.
    pub(super) fn expire_adopted(&mut self) {
        let late = self.started.elapsed() > GRACE;
        let over: Vec<u32> = self
            .adopted
            .iter()
            .filter(|(_, record)| {
                late || !matches!(
                    netns::inside_if(&record.netns, record.inode, || ()),
                    Ok(Some(()))
                )
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &over {
            let record = self.adopted.remove(id);
            self.purge(*id, record.as_ref());
        }
        if !over.is_empty() {
            self.write_records();
        }
    }

    /// Removes every trace of a workload that nobody manages.
    fn purge(&mut self, pod_id: u32, record: Option<&Record>) {
        let cookies: Vec<u64> = self
            .tables
            .pod_by_netns
            .iter()
            .flatten()
            .filter(|(_, entry)| entry.pod_id == pod_id)
            .map(|(cookie, _)| cookie)
            .collect();
        for cookie in cookies {
            report("POD_BY_NETNS", self.tables.pod_by_netns.remove(&cookie));
        }
        self.unpin_steer(pod_id);
        self.remove_listeners(pod_id);
        for key in self.addresses_of(pod_id) {
            report("POD_BY_ADDR", self.tables.pod_by_addr.remove(&key));
        }
        if let Some(record) = record {
            let before = record.sysctl_before.as_deref();
            let steering = self.steering();
            // Gone: nothing to undo.
            let _ = netns::inside_if(&record.netns, record.inode, || {
                super::route::Netlink::open()
                    .map(|mut netlink| workload::undo_here(&mut netlink, steering, before))
            });
        }
    }
}
