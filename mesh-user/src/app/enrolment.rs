//! The workloads of this node: wanted by the model, enrolled in the kernel, served by the workers.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use crate::{
    admin::{WorkloadState, WorkloadStatus},
    clock::MonoNanos,
    kernel::{Enrol, EnrolError, Kernel},
    model::{Interception, Model, SecondPass, Workload, inbound::InboundPorts},
    proxy::{Command, Workers, wire::WorkloadHandle},
};

/// How long after a failed enrolment it is tried again. A second: a namespace that appears late is
/// captured soon, and a broken one costs little.
const RETRY: Duration = Duration::from_secs(1);

/// Every workload of the model, by key.
#[derive(Debug, Default)]
pub(super) struct Enrolments {
    slots: BTreeMap<Arc<str>, Slot>,
}

#[derive(Debug)]
struct Slot {
    wanted: Workload,
    inbound: InboundPorts,
    /// How it is intercepted while it is enrolled; none: not as it should be.
    stands: Option<Interception>,
    /// Inbound ports could not be put in force.
    lacks_inbound: bool,
    pod_id: Option<u32>,
    state: WorkloadState,
    error: Option<String>,
    retry_at: MonoNanos,
}

impl Enrolments {
    /// Follows the model: releases what is no longer wanted or moved, enrols what is new, changes
    /// failure modes in place.
    pub(super) fn follow(
        &mut self,
        model: &Model,
        kernel: &mut Kernel,
        workers: &Workers,
        now: MonoNanos,
    ) {
        let wanted: BTreeMap<Arc<str>, &Workload> = model
            .workloads
            .iter()
            .filter(|workload| workload.capture)
            .map(|workload| (Arc::from(workload.key()), workload))
            .collect();
        kernel.want(wanted.keys().map(Arc::clone));
        let stale: Vec<Arc<str>> = self
            .slots
            .iter()
            .filter(|(key, slot)| {
                wanted
                    .get(*key)
                    .is_none_or(|w| !same_place(w, &slot.wanted))
            })
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in stale {
            if let Some(slot) = self.slots.remove(&key) {
                let_go(slot.pod_id, kernel, workers);
            }
        }
        for (key, workload) in wanted {
            let inbound = InboundPorts::of(workload, &model.inbound);
            match self.slots.entry(key) {
                Entry::Vacant(slot) => {
                    slot.insert(Slot {
                        wanted: workload.clone(),
                        inbound,
                        stands: None,
                        lacks_inbound: false,
                        pod_id: None,
                        state: WorkloadState::Pending,
                        error: None,
                        retry_at: now,
                    });
                }
                Entry::Occupied(mut slot) => {
                    slot.get_mut().change(workload, inbound, kernel, now);
                }
            }
        }
        self.retry(kernel, workers, now);
    }

    /// Stops capturing what the next model no longer captures: before the workers forget its
    /// rules, as [`follow`](Self::follow) begins what is new only after they know it. A second pass
    /// that begins does so here: the workers leave the rules to it from the moment they know of it.
    pub(super) fn narrow(&mut self, next: &Model, kernel: &mut Kernel) {
        let workloads: BTreeMap<String, &Workload> = next
            .workloads
            .iter()
            .map(|workload| (workload.key(), workload))
            .collect();
        for (key, slot) in &mut self.slots {
            let workload = workloads.get(&**key);
            let second = workload.is_some_and(|next| {
                next.capture && next.interception.second_pass == SecondPass::Full
            });
            if second {
                let interception = Interception {
                    second_pass: SecondPass::Full,
                    ..slot.wanted.interception
                };
                slot.put_interception(interception, kernel);
            }
            let next = match workload {
                Some(workload) => InboundPorts::of(workload, &next.inbound),
                None => InboundPorts::default(),
            };
            if next != slot.inbound {
                let step = slot.inbound.towards(&next);
                slot.put_inbound(&step, kernel);
            }
        }
    }

    /// Takes [`narrow`](Self::narrow) back: the next model was not put in force.
    pub(super) fn widen(&mut self, kernel: &mut Kernel) {
        for slot in self.slots.values_mut() {
            slot.put(kernel);
        }
    }

    /// Lets go of workloads whose namespace went away, and tries those that are due again.
    pub(super) fn tick(&mut self, kernel: &mut Kernel, workers: &Workers, now: MonoNanos) {
        self.let_go_of_gone(kernel, workers, now);
        self.retry(kernel, workers, now);
    }

    /// Lets go of workloads whose namespace went away.
    pub(super) fn let_go_of_gone(
        &mut self,
        kernel: &mut Kernel,
        workers: &Workers,
        now: MonoNanos,
    ) {
        for gone in kernel.poll_gone() {
            tracing::info!(workload = %gone.key, why = %gone.why, "workload gone");
            let_go(Some(gone.pod_id), kernel, workers);
            if let Some(slot) = self.slots.get_mut(&gone.key)
                && slot.pod_id == Some(gone.pod_id)
            {
                slot.pod_id = None;
                slot.state = WorkloadState::Gone;
                slot.error = Some(gone.why);
                slot.retry_at = now.after(RETRY);
            }
        }
    }

    fn retry(&mut self, kernel: &mut Kernel, workers: &Workers, now: MonoNanos) {
        for (key, slot) in &mut self.slots {
            if slot.retry_at > now {
                continue;
            }
            if slot.pod_id.is_some() {
                slot.repair(kernel, now);
                continue;
            }
            match enrol(key, slot, kernel, workers) {
                Ok(pod_id) => {
                    tracing::info!(workload = %key, pod_id, "workload enrolled");
                    slot.pod_id = Some(pod_id);
                    slot.stands = Some(slot.wanted.interception);
                    slot.lacks_inbound = false;
                    slot.state = WorkloadState::Live;
                    slot.error = None;
                }
                Err(error) => {
                    let text = error.to_string();
                    // The same fault every second would drown the log.
                    if slot.error.as_ref() != Some(&text) {
                        tracing::warn!(workload = %key, error = %text, "workload not enrolled");
                    }
                    if slot.state != WorkloadState::Gone {
                        slot.state = WorkloadState::Failed;
                    }
                    slot.error = Some(text);
                    slot.retry_at = now.after(RETRY);
                    // The takeover has failed: each further workload would be taken from the agent
                    // that goes on.
                    if kernel.is_served_by_another(key) {
                        return;
                    }
                }
            }
        }
    }

    /// Workloads that are captured.
    pub(super) fn live(&self) -> Vec<String> {
        let live = self.slots.iter().filter(|(_, slot)| slot.pod_id.is_some());
        live.map(|(key, _)| key.to_string()).collect()
    }

    /// Why a workload of these is not captured here although it is wanted; `None`: all are.
    pub(super) fn lost(&self, live: &[String]) -> Option<String> {
        live.iter()
            .find_map(|key| {
                let slot = self.slots.get(key.as_str())?;
                let why = slot.error.as_deref().filter(|_| slot.pod_id.is_none())?;
                Some(format!("workload {key} can't be taken over: {why}"))
            })
            .or_else(|| {
                // After the first error of one that was not said to be captured.
                let left = live.iter().find(|key| {
                    let slot = self.slots.get(key.as_str());
                    slot.is_some_and(|slot| slot.pod_id.is_none())
                })?;
                Some(format!(
                    "workload {left} was not taken over: another before it failed"
                ))
            })
    }

    /// How each workload stands.
    pub(super) fn status(&self) -> Vec<WorkloadStatus> {
        self.slots
            .iter()
            .map(|(key, slot)| WorkloadStatus {
                key: key.to_string(),
                pod_id: slot.pod_id,
                state: slot.state,
                error: slot.error.clone(),
            })
            .collect()
    }
}

impl Slot {
    /// The same workload in the same place, with other settings: its connections live on.
    fn change(
        &mut self,
        wanted: &Workload,
        inbound: InboundPorts,
        kernel: &mut Kernel,
        now: MonoNanos,
    ) {
        let same = wanted.interception == self.wanted.interception && inbound == self.inbound;
        if self.pod_id.is_none() && !same {
            // What holds a workload that could not be enrolled is what it was held with.
            self.retry_at = now;
        }
        self.wanted = wanted.clone();
        self.inbound = inbound;
        self.put(kernel);
    }

    /// Puts in force what is wanted, where it is not yet. Whether all of it is.
    fn put(&mut self, kernel: &mut Kernel) -> bool {
        let done = self.put_interception(self.wanted.interception, kernel);
        self.put_inbound(&self.inbound.clone(), kernel) && done
    }

    fn put_interception(&mut self, interception: Interception, kernel: &mut Kernel) -> bool {
        let Some(pod_id) = self.pod_id else {
            return true;
        };
        if self.stands == Some(interception) {
            return true;
        }
        let result = kernel.set_interception(pod_id, interception);
        // Of what failed nobody knows how far it came.
        self.stands = result.is_ok().then_some(interception);
        self.note(result, "it is intercepted as before")
    }

    fn put_inbound(&mut self, inbound: &InboundPorts, kernel: &mut Kernel) -> bool {
        let Some(pod_id) = self.pod_id else {
            return true;
        };
        let result = kernel.set_inbound(pod_id, inbound);
        self.lacks_inbound = result.is_err();
        self.note(result, "its inbound rules are not all in force")
    }

    /// Tries again what could not be put in force.
    fn repair(&mut self, kernel: &mut Kernel, now: MonoNanos) {
        if self.stands == Some(self.wanted.interception) && !self.lacks_inbound {
            return;
        }
        if self.put(kernel) {
            tracing::info!(workload = self.wanted.key(), "its settings are in force");
            self.error = None;
        } else {
            self.retry_at = now.after(RETRY);
        }
    }

    /// The same fault every second would drown the log.
    fn note(&mut self, result: Result<(), EnrolError>, what: &str) -> bool {
        let Err(error) = result else { return true };
        let text = error.to_string();
        if self.error.as_ref() != Some(&text) {
            tracing::warn!(workload = self.wanted.key(), error = %text, "{what}");
        }
        self.error = Some(text);
        false
    }
}

/// Whether an enrolled workload can stay: the failure mode is changed in place, tags and identity
/// live in the snapshot.
fn same_place(a: &Workload, b: &Workload) -> bool {
    a.netns == b.netns
}

/// State first, capture second: listeners are served before the kernel sends anything to them.
fn enrol(
    key: &Arc<str>,
    slot: &Slot,
    kernel: &mut Kernel,
    workers: &Workers,
) -> Result<u32, EnrolError> {
    let enrolled = kernel.enrol(&Enrol {
        key: Arc::clone(key),
        netns: slot.wanted.netns.clone(),
        interception: slot.wanted.interception,
        inbound: slot.inbound.clone(),
    })?;
    let handle = Arc::new(WorkloadHandle {
        pod_id: enrolled.pod_id,
        key: Arc::clone(key),
        sockets: enrolled.sockets,
        connections: AtomicU32::new(0),
    });
    for (index, listener) in enrolled.listeners.into_iter().enumerate() {
        let workload = Arc::clone(&handle);
        workers.send(index, Command::Listen { workload, listener });
    }
    for (index, listener) in enrolled.inbound.into_iter().enumerate() {
        let workload = Arc::clone(&handle);
        workers.send(index, Command::ListenInbound { workload, listener });
    }
    if let Err(error) = kernel.go_live(enrolled.pod_id) {
        // In the kernel the failure mode holds where it must: it knows no such workload any more.
        let_go(Some(enrolled.pod_id), kernel, workers);
        return Err(error);
    }
    Ok(enrolled.pod_id)
}

fn let_go(pod_id: Option<u32>, kernel: &mut Kernel, workers: &Workers) {
    let Some(pod_id) = pod_id else { return };
    kernel.stop_capture(pod_id);
    for index in 0..workers.count() {
        workers.send(index, Command::Release { pod_id });
    }
    kernel.release(pod_id);
}
