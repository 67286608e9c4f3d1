//! The hooks at the workloads' cgroups: pinned, at the cgroup where they were put, and in force.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

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
    pub(super) fn audit_hooks(&self) -> Vec<(String, Outcome)> {
        let missing = self.audit.hooks.iter().filter(|hook| !stands(hook));
        missing
            .map(|hook| {
                let what = format!("{} at {}", hook.program, hook.cgroup.display());
                let outcome = match self.attach_again(hook) {
                    Ok(()) => Outcome::Repaired,
                    Err(error) => failed(&error),
                };
                (what, outcome)
            })
            .collect()
    }

    fn attach_again(&self, hook: &Hook) -> io::Result<()> {
        let program = sys::open_pin(&self.pins.prog(hook.program))?;
        let cgroup = File::open(&hook.cgroup)?;
        match fs::remove_file(&hook.pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let link = sys::link_create(&program, &cgroup, hook.kind)?;
        sys::pin(&link, &hook.pin)
    }
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
