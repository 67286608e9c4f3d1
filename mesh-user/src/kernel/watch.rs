//! Notices namespaces that go away and addresses that change.

use std::net::IpAddr;

use super::{
    Gone, Kernel,
    route::Netlink,
    sockets,
    workload::{Sources, Workload},
};
use crate::proxy::wire::SocketSource as _;

/// Workloads whose addresses are read in one call. Every workload has its turn within two seconds
/// (eight calls) up to 512 of them; a namespace that is gone is noticed on every call.
const ADDRESSES_EACH: usize = 64;

impl Kernel {
    /// Workloads whose namespace went away since the last call. Cheap: called every 250 ms. Also
    /// follows address changes of the others.
    ///
    /// Of those named, nothing is left here: no descriptor, no entry, no link. What the caller
    /// still holds (listeners, connections) keeps the namespace alive until it closes them.
    pub fn poll_gone(&mut self) -> Vec<Gone> {
        self.expire_adopted();
        self.follow_kubelet();
        let gone: Vec<Gone> = self
            .workloads
            .iter()
            .filter_map(|(pod_id, workload)| {
                let why = workload.identity.gone()?;
                Some(Gone {
                    pod_id: *pod_id,
                    key: workload.key.clone(),
                    why,
                })
            })
            .collect();
        for Gone { pod_id, .. } in &gone {
            self.release(*pod_id);
        }
        self.follow_addresses();
        gone
    }

    fn follow_addresses(&mut self) {
        let after = self.workloads.range(self.watch_from..).map(|(id, _)| *id);
        let before = self.workloads.range(..self.watch_from).map(|(id, _)| *id);
        let turn: Vec<u32> = after.chain(before).take(ADDRESSES_EACH).collect();
        self.watch_from = turn.last().map_or(0, |last| last.wrapping_add(1));
        for pod_id in turn {
            if let Some(now) = self.workloads.get(&pod_id).and_then(read_addresses) {
                self.follow(pod_id, &now);
            }
        }
    }

    pub(super) fn follow(&mut self, pod_id: u32, now: &[IpAddr]) {
        let Some(workload) = self.workloads.get(&pod_id) else {
            return;
        };
        let lost: Vec<IpAddr> = workload
            .addresses
            .iter()
            .filter(|ip| !now.contains(ip))
            .copied()
            .collect();
        let new: Vec<IpAddr> = now
            .iter()
            .filter(|ip| !workload.addresses.contains(ip))
            .copied()
            .collect();
        let (key, old_source) = (workload.key.clone(), workload.source);
        if *workload.sockets.addresses() != *now {
            workload.sockets.move_to(now);
        }
        for ip in lost {
            self.disclaim(pod_id, ip);
        }
        for ip in new {
            if let Err(error) = self.claim(pod_id, ip) {
                // Once a round as long as it lasts: two workloads with one address need a human.
                tracing::warn!(workload = %key, %error, "a new address is not captured");
            }
        }
        let fresh = Sources::of(now);
        if fresh != old_source {
            self.move_source(pod_id, fresh);
        }
    }

    fn move_source(&mut self, pod_id: u32, source: Sources) {
        let steering = self.steering();
        let Some(workload) = self.workloads.get_mut(&pod_id) else {
            return;
        };
        let Some(netns) = workload.sockets.namespace() else {
            return;
        };
        let done = if workload.steered {
            sockets::inside(&netns, || Netlink::open()?.steer(steering, source))
        } else {
            Ok(Ok(()))
        };
        match done.and_then(|inner| inner) {
            Ok(()) => workload.source = source,
            Err(error) => {
                tracing::warn!(workload = %workload.key, %error, "the route keeps its old source");
            }
        }
        self.follow_sources(pod_id);
    }
}

/// `None`: the namespace could not be asked; it may be going away.
fn read_addresses(workload: &Workload) -> Option<Vec<IpAddr>> {
    let netns = workload.sockets.namespace()?;
    sockets::inside(&netns, || Netlink::open()?.addresses())
        .ok()?
        .ok()
}
