//! Looks every second whether what was put up still stands, and puts back what is missing: a
//! workload with NET_ADMIN in its own namespace may delete our rule, our routes, the sysctl; anybody
//! with enough rights may remove a link.
//!
//! What was done is counted (`repaired`, `repair_failed`, `interference`), sent as an event and
//! returned. As long as a workload's path to its listeners can't be repaired, its failure mode holds
//! (`POD_BROKEN`): the connect hooks take its listeners for gone.

mod hooks;
mod path;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use mesh_common::{
    addr::Addr,
    reason::{Event, Reason},
};

pub(super) use self::hooks::Hook;
use super::{
    Kernel,
    enrol::report,
    guard::NodeLinks,
    object::STEER,
    sockets,
    sys::{self, LinkTarget},
    workload::attach_steer,
};
use crate::{clock, model::Failure};

/// Workloads that are looked at in one call. Called every second: 512 have their turn within a
/// second on a node that calls with every tick, and all of them within eight.
const EACH: usize = 128;
/// Events that wait to be taken; older ones go, counted as lost like those of the programs.
const EVENTS_MAX: usize = 256;

/// What became of something that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was put back.
    Repaired,
    /// It could not be put back: why.
    Failed(String),
    /// It is somebody else's and stays; ours runs after it.
    Foreign,
}

/// One thing that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The workload's number; 0: it concerns all.
    pub pod_id: u32,
    /// `namespace/name`; empty: it concerns all.
    pub workload: Arc<str>,
    /// What: `IPv4 rule 150`, `steer link`, ...
    pub what: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl Finding {
    fn reason(&self) -> Reason {
        match self.outcome {
            Outcome::Repaired => Reason::Repaired,
            Outcome::Failed(_) => Reason::RepairFailed,
            Outcome::Foreign => Reason::Interference,
        }
    }
}

/// What the audit knows beside what it looks at.
#[derive(Debug, Default)]
pub(super) struct Audit {
    /// The cgroup hooks as they were attached at the start.
    hooks: Vec<Hook>,
    /// Where the next turn begins.
    from: u32,
    /// What was said already and still is so, by workload (0: all).
    told: BTreeMap<u32, BTreeSet<String>>,
    pub(super) events: VecDeque<Event>,
}

impl Audit {
    pub(super) fn of(hooks: Vec<Hook>) -> Self {
        Self {
            hooks,
            ..Self::default()
        }
    }
}

impl Kernel {
    /// Looks at hooks and workloads, and repairs. What is returned is new: a fault that lasts is
    /// told once.
    ///
    /// Costs some ten system calls a workload.
    pub fn audit(&mut self) -> Vec<Finding> {
        let hooks = self.audit_hooks();
        let mut told = self.tell(0, Arc::from(""), hooks);
        let after = self.workloads.range(self.audit.from..).map(|(id, _)| *id);
        let before = self.workloads.range(..self.audit.from).map(|(id, _)| *id);
        let turn: Vec<u32> = after.chain(before).take(EACH).collect();
        self.audit.from = turn.last().map_or(0, |last| last.wrapping_add(1));
        let mut node = NodeLinks::default();
        for pod_id in turn {
            let Some(workload) = self.workloads.get(&pod_id) else {
                continue;
            };
            let key = workload.key.clone();
            let found = self.audit_workload(pod_id, &mut node);
            told.extend(self.tell(pod_id, key, found));
        }
        let workloads = &self.workloads;
        (self.audit.told).retain(|pod_id, _| *pod_id == 0 || workloads.contains_key(pod_id));
        told
    }

    fn audit_workload(&mut self, pod_id: u32, node: &mut NodeLinks) -> Vec<(String, Outcome)> {
        let mut found = self.audit_path(pod_id);
        found.extend(self.audit_steer(pod_id));
        let path_broken = broken(&found);
        let (guard, open) = self.audit_guard(pod_id, node);
        found.extend(guard);
        self.set_broken(pod_id, path_broken || open);
        found
    }

    fn audit_path(&mut self, pod_id: u32) -> Vec<(String, Outcome)> {
        let Some(workload) = self.workloads.get(&pod_id) else {
            return Vec::new();
        };
        let (steering, sockets) = (self.steering(), workload.sockets.clone());
        let Some(netns) = sockets.namespace() else {
            return Vec::new();
        };
        // Addresses first: the routes leave with one of them.
        let addresses = sockets::inside(&netns, path::addresses).and_then(|inner| inner);
        match addresses {
            Ok(addresses) => self.follow(pod_id, &addresses),
            // It may be going away.
            Err(_) => return Vec::new(),
        }
        let Some(workload) = self.workloads.get(&pod_id) else {
            return Vec::new();
        };
        // In every mode connections come by `lo`; without marks there is nothing else on their way.
        let steering = workload.steered.then_some(steering);
        let source = workload.source;
        sockets::inside(&netns, || path::look_and_repair(steering, source))
            .unwrap_or_else(|error| vec![("namespace".to_owned(), failed(&error))])
    }

    fn audit_steer(&mut self, pod_id: u32) -> Option<(String, Outcome)> {
        let workload = self.workloads.get(&pod_id)?;
        let (inode, netns) = (workload.identity.inode, workload.sockets.namespace()?);
        let pin = self.pins.link(STEER, u64::from(pod_id));
        let target = sys::open_pin(&pin).and_then(sys::link_info);
        if target.is_ok_and(|info| info.target == LinkTarget::Netns(inode as u32)) {
            return None;
        }
        let outcome = match attach_steer(&self.steer, &netns, inode, &pin) {
            Ok(()) => Outcome::Repaired,
            Err(error) => failed(&error),
        };
        Some(("steer link".to_owned(), outcome))
    }

    /// What was put back; whether a way out stays open that must not.
    fn audit_guard(&mut self, pod_id: u32, node: &mut NodeLinks) -> (Vec<(String, Outcome)>, bool) {
        let Some(workload) = self.workloads.get(&pod_id) else {
            return (Vec::new(), false);
        };
        let interception = workload.interception;
        if !(interception.bypass_guard && workload.live) {
            return (Vec::new(), false);
        }
        let closed = interception.failure == Failure::Closed;
        match self.guard_exits(pod_id, node) {
            Ok(guarding) => {
                let attached = guarding.attached.iter().map(|interface| {
                    (
                        format!("egress_guard at interface {interface}"),
                        Outcome::Repaired,
                    )
                });
                let mut found: Vec<_> = attached.collect();
                let open = guarding.gap.is_some() && closed;
                found.extend(
                    guarding
                        .gap
                        .map(|why| ("guard".to_owned(), Outcome::Failed(why))),
                );
                found.extend(self.programs_before_guard(pod_id));
                (found, open)
            }
            Err(error) => (vec![("guard".to_owned(), failed(&error))], closed),
        }
    }

    /// Somebody else's program before ours may let a packet through that ours would drop.
    fn programs_before_guard(&self, pod_id: u32) -> Vec<(String, Outcome)> {
        let guarded = self.tables.guarded.iter().flatten();
        let own = guarded.filter(|(_, entry)| entry.pod_id == pod_id);
        own.filter_map(|(interface, _)| {
            let pin = self
                .pins
                .link(super::object::EGRESS_GUARD, u64::from(interface));
            let ours = sys::open_pin(&pin).and_then(sys::link_info).ok()?.prog_id;
            let first = *sys::tcx(interface).ok()?.first()?;
            (first != ours).then(|| {
                let what = format!("tc program {first} at interface {interface}");
                (what, Outcome::Foreign)
            })
        })
        .collect()
    }

    fn set_broken(&mut self, pod_id: u32, broken: bool) {
        let Some(workload) = self.workloads.get_mut(&pod_id) else {
            return;
        };
        if workload.broken == broken {
            return;
        }
        workload.broken = broken;
        if !workload.live {
            // `go_live` says it.
            return;
        }
        let (cookie, interception) = (workload.identity.cookie, workload.interception);
        if let Err(error) = self.write_netns(pod_id, cookie, interception) {
            tracing::warn!(pod_id, %error, "its failure mode can't be put in force");
        }
    }

    /// Counts and keeps as events what was not told before.
    fn tell(
        &mut self,
        pod_id: u32,
        workload: Arc<str>,
        found: Vec<(String, Outcome)>,
    ) -> Vec<Finding> {
        let before = self.audit.told.remove(&pod_id).unwrap_or_default();
        let mut lasting = BTreeSet::new();
        let mut fresh = Vec::new();
        for (what, outcome) in found {
            let finding = Finding {
                pod_id,
                workload: workload.clone(),
                what,
                outcome,
            };
            if finding.outcome != Outcome::Repaired {
                let text = format!("{} {:?}", finding.what, finding.outcome);
                let known = before.contains(&text);
                lasting.insert(text);
                if known {
                    continue;
                }
            }
            self.note(&finding);
            fresh.push(finding);
        }
        if !lasting.is_empty() {
            self.audit.told.insert(pod_id, lasting);
        }
        fresh
    }

    fn note(&mut self, finding: &Finding) {
        let reason = finding.reason();
        self.count(reason);
        if self.audit.events.len() >= EVENTS_MAX {
            self.audit.events.pop_front();
            self.count(Reason::EventLost);
        }
        let workload = self.workloads.get(&finding.pod_id);
        self.audit.events.push_back(Event {
            time_ns: clock::now().0,
            netns: workload.map_or(0, |workload| workload.identity.cookie),
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            sport: 0,
            dport: 0,
            reason: reason as u32,
            pod_id: finding.pod_id,
            tgid: std::process::id(),
        });
    }

    /// Counts what the agent itself did, where the programs count: in the slot of the first CPU. No
    /// program counts these reasons but `EventLost`, of which one may be lost.
    fn count(&mut self, reason: Reason) {
        let index = reason as u32;
        let Ok(cpus) = self.tables.counters.get(&index, 0) else {
            return;
        };
        let mut cpus: Vec<u64> = cpus.iter().copied().collect();
        if let Some(first) = cpus.first_mut() {
            *first += 1;
        }
        let set = aya::maps::PerCpuValues::try_from(cpus)
            .map_err(|error| tracing::debug!(%error, "not counted"))
            .map(|values| self.tables.counters.set(index, values, 0));
        if let Ok(result) = set {
            report("COUNTERS", result);
        }
    }
}

fn broken(found: &[(String, Outcome)]) -> bool {
    found
        .iter()
        .any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
}

fn failed(error: &dyn std::error::Error) -> Outcome {
    Outcome::Failed(error.to_string())
}
