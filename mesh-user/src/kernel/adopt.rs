//! What an agent before us left in the maps, and what becomes of it.
//!
//! Its workloads stay captured or refused by their failure mode until they are enrolled again:
//! a restart opens no hole. Those whose namespace is gone go at once, those that the model does not
//! name go after a grace. One that is named and can't be enrolled is *held*: its failure mode stays
//! in force, as that of any workload with `failure: closed` whose enrolment fails.

use std::{collections::BTreeSet, net::IpAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use mesh_common::addr::Addr;

use super::{
    Enrol, Kernel,
    enrol::report,
    error::EnrolError,
    netns::{self, Identity},
    object::STEER,
    records::{self, Record},
    route::Netlink,
    sockets,
    sys::{self, LinkTarget},
    workload::{self, attach_steer, map_addr},
};

/// How long an adopted workload waits to be named by the model: the first snapshot comes within
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
        let ruled = self.tables.in_rules.keys().flatten();
        ids.extend(ruled.map(|key| key.pod_id));
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
                Some(mut record) if self.still_there(&record) => {
                    // Without the link its path must be probed again.
                    record.held |= !self.adopt_steer(&record);
                    self.adopted.insert(id, record);
                }
                other => self.purge(id, other.as_ref()),
            }
        }
        // What is dialled for a workload of this node is judged by its inbound rules, whether it is
        // enrolled again by then or not.
        let adopted = self.adopted.values();
        self.origins.learn_all(adopted.flat_map(|record| {
            let key: Arc<str> = record.key.as_str().into();
            let addresses = self.addresses_of(record.pod_id).into_iter();
            addresses.map(move |address| (address.to_ip(), Arc::clone(&key)))
        }));
        self.adopt_guard();
        self.write_records();
    }

    /// Whether the namespace is the same, and its failure mode in force.
    fn still_there(&self, record: &Record) -> bool {
        let live = self
            .tables
            .pod_by_netns
            .get(&record.cookie, 0)
            .is_ok_and(|entry| entry.pod_id == record.pod_id);
        let same = netns::inside_if(&record.netns, record.inode, || ());
        live && matches!(same, Ok(Some(())))
    }

    /// Whether our link on its namespace took the new program.
    fn adopt_steer(&self, record: &Record) -> bool {
        let pin = self.pins.link(STEER, u64::from(record.pod_id));
        let updated = sys::open_pin(&pin).and_then(|link| {
            let info = sys::link_info(&link)?;
            sys::link_update(&link, &self.steer)?;
            Ok(info.target == LinkTarget::Netns(record.inode as u32))
        });
        updated.unwrap_or(false)
    }

    /// Names the workloads that the model wants captured: one that is adopted or held and not among
    /// them goes, after the grace of a start. Before the first call none does: no model says so.
    pub fn want(&mut self, keys: impl IntoIterator<Item = Arc<str>>) {
        self.wanted = Some(keys.into_iter().collect());
    }

    /// Keeps the failure mode of a workload in force that could not be enrolled, and its inbound
    /// rules: without a live listener the connect hooks refuse what it says to refuse, and `steer`
    /// drops what is denied and, with `failure: closed`, what is to be captured.
    pub(super) fn hold(&mut self, record: Record, wanted: &Enrol, netns: &OwnedFd) {
        let (pod_id, inode) = (record.pod_id, record.inode);
        self.remove_listeners(pod_id);
        if let Err(error) = self.write_netns(pod_id, record.cookie, wanted.interception) {
            tracing::warn!(pod_id, %error, "the failure mode of a workload is not in force");
        }
        let rules = self.hold_ports(pod_id, &wanted.inbound);
        self.hold_addresses(pod_id, wanted, netns);
        self.drop_stale_ports(pod_id, &wanted.inbound);
        let pin = self.pins.link(STEER, u64::from(pod_id));
        if let Err(error) = attach_steer(&self.steer, netns, inode, &pin).and(rules) {
            tracing::warn!(pod_id, %error, "inbound rules of a workload are not in force");
        }
        let held = true;
        self.adopted.insert(pod_id, Record { held, ..record });
        self.write_records();
    }

    /// What its inbound rules are about, as far as it can be told; an address that another workload
    /// has stays that one's.
    fn hold_addresses(&mut self, pod_id: u32, wanted: &Enrol, netns: &OwnedFd) {
        let value = self.pod_addr(pod_id, wanted.interception, wanted.inbound.default);
        let found = sockets::inside(netns, || Netlink::open()?.addresses());
        if let Ok(Ok(found)) = found {
            self.disclaim_others(pod_id, &found.iter().copied().collect());
            for ip in found {
                match self.enter(ip, value) {
                    Ok(()) | Err(EnrolError::AddressTaken { .. }) => {}
                    Err(error) => tracing::warn!(pod_id, %error, "an address is not protected"),
                }
            }
        }
        let (interception, inbound) = (wanted.interception, wanted.inbound.default);
        if let Err(error) = self.write_addresses(pod_id, interception, inbound) {
            tracing::warn!(pod_id, %error, "the failure mode of a workload is not in force");
        }
        let addresses = self.addresses_of(pod_id).into_iter();
        let learnt = addresses.map(|address| (address.to_ip(), Arc::clone(&wanted.key)));
        self.origins.learn_all(learnt);
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
                self.origins.forget([&key.to_ip()]);
            }
        }
    }

    pub(super) fn addresses_of(&self, pod_id: u32) -> Vec<Addr> {
        self.tables
            .pod_by_addr
            .iter()
            .flatten()
            .filter(|(_, entry)| entry.pod_id == pod_id)
            .map(|(key, _)| key)
            .collect()
    }

    /// Removes adopted workloads that are gone, or that the model did not name in time.
    pub(super) fn expire_adopted(&mut self) {
        let late = self.started.elapsed() > GRACE;
        let over: Vec<u32> = self
            .adopted
            .iter()
            .filter(|(_, record)| {
                let unwanted = (self.wanted.as_ref())
                    .is_some_and(|wanted| !wanted.contains(record.key.as_str()));
                (late && unwanted)
                    || !matches!(
                        netns::inside_if(&record.netns, record.inode, || ()),
                        Ok(Some(()))
                    )
            })
            .map(|(id, _)| *id)
            .collect();
        self.drop_adopted(&over);
    }

    /// Removes adopted workloads that the model does not name, without the grace of a start.
    pub(super) fn drop_unwanted(&mut self) {
        let Some(wanted) = &self.wanted else { return };
        let over: Vec<u32> = self
            .adopted
            .iter()
            .filter(|(_, record)| !wanted.contains(record.key.as_str()))
            .map(|(id, _)| *id)
            .collect();
        self.drop_adopted(&over);
    }

    /// Removes what is adopted or held under this name in another namespace: the workload lives
    /// here now.
    pub(super) fn expire_elsewhere(&mut self, key: &str, cookie: u64) {
        let elsewhere = |record: &Record| record.key == key && record.cookie != cookie;
        let over: Vec<u32> = self
            .adopted
            .iter()
            .filter(|(_, record)| elsewhere(record))
            .map(|(id, _)| *id)
            .collect();
        self.drop_adopted(&over);
    }

    fn drop_adopted(&mut self, ids: &[u32]) {
        for id in ids {
            let record = self.adopted.remove(id);
            self.purge(*id, record.as_ref());
        }
        if !ids.is_empty() {
            self.write_records();
        }
    }

    /// Removes every trace of a workload that nobody manages.
    pub(super) fn purge(&mut self, pod_id: u32, record: Option<&Record>) {
        let cookies: Vec<u64> = self
            .tables
            .pod_by_netns
            .iter()
            .flatten()
            .filter(|(_, entry)| entry.pod_id == pod_id)
            .map(|(cookie, _)| cookie)
            .collect();
        // Off before its connects leave no grants any more.
        self.unguard(pod_id);
        for cookie in cookies {
            report("POD_BY_NETNS", self.tables.pod_by_netns.remove(&cookie));
        }
        self.unpin_steer(pod_id);
        self.remove_listeners(pod_id);
        let stands = self.installed_inbound(pod_id);
        self.remove_inbound(pod_id, &stands);
        for key in self.addresses_of(pod_id) {
            report("POD_BY_ADDR", self.tables.pod_by_addr.remove(&key));
            self.origins.forget([&key.to_ip()]);
        }
        report("POD_SOURCES", self.tables.pod_sources.remove(&pod_id));
        if let Some(record) = record {
            let before = record.sysctl_before.as_deref();
            let steering = self.steering();
            // Gone: nothing to undo.
            let _ = netns::inside_if(&record.netns, record.inode, || {
                Netlink::open()
                    .map(|mut netlink| workload::undo_here(&mut netlink, steering, before))
            });
        }
    }
}
