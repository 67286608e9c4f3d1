//! One agent hands its instance to the next while both run.
//!
//! The old one [freezes](Kernel::freeze): from then on only the successor writes maps, links and
//! pins, while the old one's listeners, connections and heartbeat go on. The successor does what
//! every restart does ([`Kernel::take_over`], then enrolment): it updates links in place and puts
//! its own listeners over the old ones, shard by shard, and the count of shards last.
//!
//! When it fails on its way, [`Kernel::take_back`] puts everything back that the old one holds. When
//! it is done, the old one only watches for namespaces that go away.

use std::{fs::File, io};

use super::{
    Kernel, KernelOptions, attach, capability, cgroups,
    error::KernelError,
    object::{self, EGRESS_GUARD, PROBE_OPS, STEER},
    pins::Lock,
    records::{self, Record},
    workload::{self, Stood, attach_steer},
    write_config,
};
use crate::model::{Mode, kernel_table::KernelTables};

/// What a successor gets of the agent that it follows.
#[derive(Debug)]
pub struct Inherited {
    /// The instance's lock: held by both as long as both live.
    pub lock: File,
    /// How many shards its listeners have.
    pub shards: u32,
}

impl Kernel {
    /// Like [`Kernel::start`], beside an agent of this instance that lives and is frozen. Afterwards
    /// enrol what it has enrolled, then [`Kernel::complete_takeover`], and when the other has let go
    /// [`Kernel::settle_takeover`].
    ///
    /// # Errors
    /// As for a start; what was changed until then the other agent takes back.
    pub fn take_over(options: &KernelOptions, from: Inherited) -> Result<Self, KernelError> {
        object::present()?;
        capability::require()?;
        let mount = cgroups::mount()?;
        let points = cgroups::attach_points(&mount, &options.attach)?;
        let lock = Lock::handed_over(&options.instance, from.lock);
        let mut kernel = attach::start(options, &mount, points, lock, Some(from.shards))?;
        kernel.beside = true;
        Ok(kernel)
    }

    /// Writes of a table what changes services that the kernel knows already, and forgets those that
    /// go. What is new waits for [`Kernel::apply`]: as long as another agent serves connections, the
    /// kernel must not capture for a service that it never heard of.
    ///
    /// # Errors
    /// As for [`Kernel::apply`].
    pub fn apply_known(&mut self, wanted: &KernelTables) -> Result<(), KernelError> {
        let known = wanted.retain(|key| self.installed.knows(key));
        self.apply(&known)
    }

    /// Every workload has our listeners: the count of shards becomes ours, and the lock says who
    /// holds it.
    ///
    /// # Errors
    /// `CONFIG` could not be written.
    pub fn complete_takeover(&mut self) -> Result<(), KernelError> {
        let config = mesh_common::abi::Config {
            shards: u32::from(self.shards),
            ..self.config
        };
        write_config(&mut self.tables, config)?;
        let before = std::mem::replace(&mut self.config, config).shards;
        for pod_id in self.workloads.keys() {
            self.listeners.forget(*pod_id, self.shards, before);
        }
        if let Err(error) = self.lock.sign() {
            tracing::warn!(%error, "the instance's lock names the agent before us");
        }
        Ok(())
    }

    /// The agent before us has let go for good: what the model does not name any more goes at once.
    /// Not a moment earlier, for a takeover that fails must leave those workloads captured.
    pub fn settle_takeover(&mut self) {
        self.beside = false;
        self.drop_unwanted();
    }

    /// Whether an agent before us serves a workload, which we could not enrol.
    pub fn is_served_by_another(&self, key: &str) -> bool {
        let left = |record: &Record| record.key == key && !record.held;
        self.beside && self.adopted.values().any(left)
    }

    /// A descriptor of the instance's lock, for a successor.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn share_lock(&self) -> io::Result<File> {
        self.lock.share()
    }

    /// How many shards each workload's listeners have.
    pub fn shard_count(&self) -> u32 {
        self.config.shards
    }

    /// From here on a successor writes maps, links and pins.
    pub fn freeze(&mut self) {
        self.listeners.freeze();
    }

    /// Workloads whose namespace went away while frozen. Lets the namespace go, writes nothing.
    pub fn let_go_of_gone(&mut self) -> Vec<u32> {
        let gone: Vec<u32> = self
            .workloads
            .iter()
            .filter(|(_, workload)| {
                workload.sockets.namespace().is_some() && workload.identity.gone().is_some()
            })
            .map(|(pod_id, _)| *pod_id)
            .collect();
        for pod_id in &gone {
            if let Some(workload) = self.workloads.get(pod_id) {
                workload.sockets.close();
            }
        }
        gone
    }

    /// The successor failed: this agent serves again, with everything as it was. Can be repeated.
    ///
    /// # Errors
    /// What could not be put back first; the rest was tried all the same.
    pub fn take_back(&mut self, table: &KernelTables) -> Result<(), KernelError> {
        // Listeners first: they died with the successor, and as long as they are missing the failure
        // mode is in force.
        let listeners = (self.listeners.take_back()).map_err(KernelError::io("map LISTENERS"));
        let config = write_config(&mut self.tables, self.config);
        let taken = [
            (STEER, &self.steer),
            (EGRESS_GUARD, self.guard.program()),
            (PROBE_OPS, self.kubelet.program()),
        ];
        let loopback =
            (self.workloads.values()).any(|workload| workload.interception.mode == Mode::Loopback);
        let hooks = self.hooks.again(&self.pins, &taken, loopback);
        let kubelet = self.kubelet.again(&self.pins);
        self.installed = super::apply::Installed::adopt(&self.tables, &self.instance);
        let table = self.apply(table);
        self.purge_strangers();
        self.adopt_guard();
        let ids: Vec<u32> = self.workloads.keys().copied().collect();
        for pod_id in ids {
            if let Err(error) = self.restore(pod_id) {
                tracing::error!(pod_id, %error, "a workload is not what it was");
            }
        }
        self.write_records();
        if let Err(error) = self.lock.sign() {
            tracing::warn!(%error, "the instance's lock names another agent");
        }
        listeners.and(config).and(hooks).and(kubelet).and(table)
    }

    /// What the maps say of a workload, its link, and what stands in its namespace.
    fn restore(&mut self, pod_id: u32) -> Result<(), super::EnrolError> {
        let Some(workload) = self.workloads.get(&pod_id) else {
            return Ok(());
        };
        // Gone meanwhile: the next poll takes it away.
        let Some(netns) = workload.sockets.namespace() else {
            return Ok(());
        };
        let (live, cookie) = (workload.live, workload.identity.cookie);
        let (interception, inode) = (workload.interception, workload.identity.inode);
        let (steered, source) = (workload.steered, workload.source);
        let addresses: Vec<_> = workload.addresses.iter().copied().collect();
        self.disclaim_others(pod_id, &addresses.iter().copied().collect());
        self.restore_inbound(pod_id)?;
        for ip in addresses {
            self.claim(pod_id, ip)?;
        }
        let pin = self.pins.link(STEER, u64::from(pod_id));
        attach_steer(&self.steer, &netns, inode, &pin)?;
        // The successor may have let it go. Before a connection is marked, or it would leave with
        // nothing that turns it around.
        if steered {
            workload::steer(&netns, self.steering(), source, Stood::Yes)?;
        }
        if live {
            self.write_interception(pod_id, cookie, interception)?;
            self.put_guard(pod_id)?;
        }
        Ok(())
    }

    /// Removes what the successor enrolled and we did not.
    fn purge_strangers(&mut self) {
        let records = records::read(&self.instance);
        let ours = |id: &u32| self.workloads.contains_key(id) || self.adopted.contains_key(id);
        let mut strangers: Vec<u32> = (self.tables.pod_by_netns.iter().flatten())
            .map(|(_, entry)| entry.pod_id)
            .chain((self.tables.pod_by_addr.iter().flatten()).map(|(_, entry)| entry.pod_id))
            .chain(records.iter().map(|record| record.pod_id))
            .filter(|id| !ours(id))
            .collect();
        strangers.sort_unstable();
        strangers.dedup();
        for id in strangers {
            let record: Option<&Record> = records.iter().find(|record| record.pod_id == id);
            self.purge(id, record);
            // A number is never given twice.
            self.next_id = self.next_id.max(id.saturating_add(1));
        }
    }
}
