//! `IN_RULES`: what happens at the ports of a workload, as a difference to what stands there.

use mesh_common::pod::{INBOUND_CAPTURE, INBOUND_DENY, INBOUND_PASS, InRuleKey};

use super::{
    Kernel,
    enrol::{map_error, report},
    error::EnrolError,
};
use crate::model::inbound::{InboundAction, InboundPorts};

/// An action as the kernel spells it.
pub(super) const fn code(action: InboundAction) -> u8 {
    match action {
        InboundAction::Pass => INBOUND_PASS,
        InboundAction::Capture => INBOUND_CAPTURE,
        InboundAction::Deny => INBOUND_DENY,
    }
}

/// What a code means; one that this build doesn't know does what `steer` does with it.
pub(super) const fn action(code: u32) -> InboundAction {
    match code {
        1 => InboundAction::Capture,
        2 => InboundAction::Deny,
        _ => InboundAction::Pass,
    }
}

const fn key(pod_id: u32, port: u16) -> InRuleKey {
    InRuleKey {
        pod_id,
        port,
        proto: 6,
        _pad: 0,
    }
}

impl Kernel {
    /// Changes what happens to connections that come to a workload. Its connections live on.
    ///
    /// # Errors
    /// `IN_RULES` is full, or there is no such workload. What could be written stands.
    pub fn set_inbound(&mut self, pod_id: u32, next: &InboundPorts) -> Result<(), EnrolError> {
        let unknown = || EnrolError::Unknown(pod_id);
        let workload = self.workloads.get(&pod_id).ok_or_else(unknown)?;
        if next.captures() && !workload.steered {
            self.steer_late(pod_id)?;
        }
        let workload = self.workloads.get_mut(&pod_id).ok_or_else(unknown)?;
        for (port, action) in &next.ports {
            if workload.inbound.ports.get(port) != Some(action) {
                self.tables
                    .in_rules
                    .insert(key(pod_id, *port), u32::from(code(*action)), 0)
                    .map_err(|error| map_error("IN_RULES", error))?;
                workload.inbound.ports.insert(*port, *action);
            }
        }
        let interception = workload.interception;
        if workload.inbound.default != next.default {
            self.write_addresses(pod_id, interception, next.default)?;
            if let Some(workload) = self.workloads.get_mut(&pod_id) {
                workload.inbound.default = next.default;
            }
        }
        // Last: under the new default they say what they said.
        self.remove_stale_inbound(pod_id, next);
        Ok(())
    }

    /// Writes again what stands of a workload, after another agent has written there.
    pub(super) fn restore_inbound(&mut self, pod_id: u32) -> Result<(), EnrolError> {
        let found = self.installed_inbound(pod_id);
        let workload = self
            .workloads
            .get_mut(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        let stands = std::mem::replace(&mut workload.inbound, found);
        self.set_inbound(pod_id, &stands)
    }

    fn remove_stale_inbound(&mut self, pod_id: u32, next: &InboundPorts) {
        let Some(workload) = self.workloads.get_mut(&pod_id) else {
            return;
        };
        workload.inbound.ports.retain(|port, _| {
            let stays = next.ports.contains_key(port);
            if !stays {
                report("IN_RULES", self.tables.in_rules.remove(&key(pod_id, *port)));
            }
            stays
        });
    }

    /// Writes the ports of a workload that is held; [`drop_stale_ports`](Self::drop_stale_ports)
    /// when its default stands too.
    pub(super) fn hold_ports(
        &mut self,
        pod_id: u32,
        next: &InboundPorts,
    ) -> Result<(), EnrolError> {
        for (port, action) in &next.ports {
            self.tables
                .in_rules
                .insert(key(pod_id, *port), u32::from(code(*action)), 0)
                .map_err(|error| map_error("IN_RULES", error))?;
        }
        Ok(())
    }

    /// Removes the ports of a workload that is held which say nothing any more.
    pub(super) fn drop_stale_ports(&mut self, pod_id: u32, next: &InboundPorts) {
        let mut stale = self.installed_inbound(pod_id);
        stale.ports.retain(|port, _| !next.ports.contains_key(port));
        self.remove_inbound(pod_id, &stale);
    }

    /// Removes what stands of a workload that is let go.
    pub(super) fn remove_inbound(&mut self, pod_id: u32, stands: &InboundPorts) {
        for port in stands.ports.keys() {
            report("IN_RULES", self.tables.in_rules.remove(&key(pod_id, *port)));
        }
    }

    /// What an agent before us left of a workload.
    pub(super) fn installed_inbound(&self, pod_id: u32) -> InboundPorts {
        let entries = self.tables.in_rules.iter().flatten();
        let ports = entries
            .filter(|(key, _)| key.pod_id == pod_id)
            .map(|(key, code)| (key.port, action(code)))
            .collect();
        let default = self
            .addresses_of(pod_id)
            .first()
            .and_then(|address| self.tables.pod_by_addr.get(address, 0).ok())
            .map_or(InboundAction::Pass, |entry| action(entry.inbound.into()));
        InboundPorts { default, ports }
    }
}
