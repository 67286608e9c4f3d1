//! The hooks at the workloads' cgroups: pinned, at the cgroup where they were put, and in force.

use std::{fs::File, path::PathBuf};

use super::{super::Kernel, Outcome, failed};
use crate::kernel::sys::{self, AttachType, LinkTarget};

/// One hook at one cgroup.
#[derive(Clone, Debug)]
pub(in super::super) struct Hook {
    pub(in super::super) program: &'static str,
    pub(in super::super) kind: AttachType,
    /// The cgroup.
    pub(in super::super) cgroup: PathBuf,
    pub(in super::super) id: u64,
    /// The link's pin.
    pub(in super::super) pin: PathBuf,
}

impl Kernel {
    pub(super) fn audit_hooks(&mut self) -> Vec<(String, Outcome)> {
        let on_demand = self.hooks.in_force(&self.pins);
        let always = self.audit.hooks.iter();
        let missing = always.chain(&on_demand).filter(|hook| !stands(hook));
        let mut found: Vec<_> = missing
            .map(|hook| (told(hook), self.hooks.repair(&self.pins, hook)))
            .collect();
        // At the cgroup that is the kubelet's now, which may be another one by this time.
        let kubelet = self.kubelet.hook(&self.pins);
        if let Some(hook) = kubelet.filter(|hook| !stands(hook)) {
            found.push((told(&hook), self.kubelet.repair(&self.pins)));
        }
        found
            .into_iter()
            .map(|(what, repaired)| match repaired {
                Ok(()) => (what, Outcome::Repaired),
                Err(error) => (what, failed(&error)),
            })
            .collect()
    }
}

fn told(hook: &Hook) -> String {
    format!("{} at {}", hook.program, hook.cgroup.display())
}

/// Attached by our link, and among what the kernel runs there.
fn stands(hook: &Hook) -> bool {
    let Ok(info) = sys::open_pin(&hook.pin).and_then(sys::link_info) else {
        return false;
    };
    if info.target != LinkTarget::Cgroup(hook.id) {
        return false;
    }
    let effective = File::open(&hook.cgroup).and_then(|dir| sys::effective(dir, hook.kind));
    // A cgroup that can't be asked is one that goes away: nothing to put back there.
    effective.map_or(true, |ids| ids.contains(&info.prog_id))
}
