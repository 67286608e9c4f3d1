//! `egress_guard` at every way out of a guarded workload: the node's side of its veths.
//!
//! A link (tcx, Linux 6.6) is pinned as `links/egress_guard-INTERFACE`, so that it stands while no
//! agent runs. Where tcx is refused the program is a clsact filter, which the interface itself keeps.
//! `GUARDED` says for both whose interface it is; the program does nothing without an entry.
//!
//! A way out that is no veth (macvlan, ipvlan, a device moved in) can't be guarded from here: a
//! workload with `failure: closed` is refused by name then, one with `failure: open` goes on and
//! the gap is in `mesh status` (docs/decisions/0031).

mod clsact;
mod exits;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, OwnedFd},
};

use mesh_common::{maps::get, pod::Guarded};

use super::{
    Kernel,
    error::EnrolError,
    object::EGRESS_GUARD,
    pins::Pins,
    sys::{self, LinkTarget},
};
use crate::model::Failure;

pub(super) use self::exits::NodeLinks;

/// What is attached, beside what `GUARDED` and the pins say.
#[derive(Debug)]
pub(super) struct Guard {
    program: OwnedFd,
    /// Whether links are tried; false where the kernel refused one.
    tcx: bool,
    /// Guarded workloads with a way out that is not guarded: why.
    gaps: BTreeMap<u32, String>,
}

/// What [`Kernel::guard_exits`] did.
#[derive(Debug, Default)]
pub(super) struct Guarding {
    /// Interfaces where the program was put (again).
    pub(super) attached: Vec<u32>,
    /// A way out that is not guarded.
    pub(super) gap: Option<String>,
}

impl Guard {
    pub(super) const fn program(&self) -> &OwnedFd {
        &self.program
    }

    pub(super) fn new(program: OwnedFd) -> Self {
        Self {
            program,
            tcx: true,
            gaps: BTreeMap::new(),
        }
    }

    /// Puts the program at an interface, before those of others; whether it was not there.
    fn attach(&mut self, pins: &Pins, interface: u32) -> io::Result<bool> {
        let pin = pins.link(EGRESS_GUARD, u64::from(interface));
        if stands(pins, interface) {
            return Ok(false);
        }
        // Of an interface that had this number before.
        remove_pin(pins, interface)?;
        if self.tcx {
            match sys::link_create_tcx_first(&self.program, interface) {
                Ok(link) => return sys::pin(&link, &pin).map(|()| true),
                // An attach type that the kernel doesn't know.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.tcx = false,
                Err(error) => return Err(error),
            }
        }
        clsact::attach(self.program.as_fd(), interface)
    }
}

/// Whether our pinned link stands at the interface.
fn stands(pins: &Pins, interface: u32) -> bool {
    target(pins, interface) == Some(LinkTarget::Interface(interface))
}

fn target(pins: &Pins, interface: u32) -> Option<LinkTarget> {
    let pin = pins.link(EGRESS_GUARD, u64::from(interface));
    let info = sys::open_pin(&pin).and_then(sys::link_info);
    info.ok().map(|info| info.target)
}

fn remove_pin(pins: &Pins, interface: u32) -> io::Result<bool> {
    match fs::remove_file(pins.link(EGRESS_GUARD, u64::from(interface))) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the program away from an interface, however it was put there.
pub(super) fn detach(pins: &Pins, interface: u32) -> io::Result<()> {
    if remove_pin(pins, interface)? {
        return Ok(());
    }
    clsact::detach(interface)
}

/// Interfaces of an instance where the program stands as a filter, from its map: for a cleanup.
pub(super) fn filters(pins: &Pins) -> Vec<u32> {
    let Ok(guarded) = super::tables::guarded(pins) else {
        return Vec::new();
    };
    let all: Vec<u32> = guarded.keys().flatten().collect();
    all.into_iter()
        .filter(|interface| target(pins, *interface).is_none() && clsact::stands(*interface))
        .collect()
}

impl Kernel {
    /// As on a kernel without tcx: the program goes where filters go.
    ///
    /// For tests of the way that kernels below 6.6 take.
    #[doc(hidden)]
    pub fn guard_without_tcx(&mut self) {
        self.guard.tcx = false;
    }

    /// Guarded workloads with a way out that can't be guarded: number and why.
    pub fn guard_gaps(&self) -> impl Iterator<Item = (u32, &str)> {
        let gaps = self.guard.gaps.iter();
        gaps.map(|(pod_id, why)| (*pod_id, why.as_str()))
    }

    /// Puts `bypass-guard` of a workload in force, on or off.
    ///
    /// # Errors
    /// `failure: closed` and a way out that can't be guarded.
    pub(super) fn put_guard(&mut self, pod_id: u32) -> Result<(), EnrolError> {
        let workload = self
            .workloads
            .get(&pod_id)
            .ok_or(EnrolError::Unknown(pod_id))?;
        if !workload.interception.bypass_guard {
            self.unguard(pod_id);
            return Ok(());
        }
        let (key, closed) = (
            workload.key.clone(),
            workload.interception.failure == Failure::Closed,
        );
        let guarding = self
            .guard_exits(pod_id, &mut NodeLinks::default())
            .map_err(EnrolError::io(format!("interfaces of {key}")))?;
        match guarding.gap {
            Some(why) if closed => Err(EnrolError::NotGuarded {
                workload: key.to_string(),
                why,
            }),
            _ => Ok(()),
        }
    }

    /// Attaches where the program is missing, lets go of interfaces that are no way out any more.
    pub(super) fn guard_exits(
        &mut self,
        pod_id: u32,
        node: &mut NodeLinks,
    ) -> io::Result<Guarding> {
        let mut done = Guarding::default();
        let Some(workload) = self.workloads.get(&pod_id) else {
            return Ok(done);
        };
        let (key, sockets) = (workload.key.clone(), workload.sockets.clone());
        let Some(netns) = sockets.namespace() else {
            return Ok(done);
        };
        let exits = node.exits(netns.as_fd())?;
        let mut gaps = exits.open;
        for interface in &exits.guardable {
            match self.guard_one(pod_id, *interface) {
                Ok(true) => done.attached.push(*interface),
                Ok(false) => {}
                Err(error) => gaps.push(format!("interface {interface}: {error}")),
            }
        }
        let wanted: BTreeSet<u32> = exits.guardable.into_iter().collect();
        for interface in self.guarded_by(pod_id) {
            if !wanted.contains(&interface) {
                self.unguard_one(interface);
            }
        }
        done.gap = (!gaps.is_empty()).then(|| gaps.join("; "));
        self.note_gap(pod_id, &key, done.gap.clone());
        Ok(done)
    }

    fn guard_one(&mut self, pod_id: u32, interface: u32) -> io::Result<bool> {
        let entry = Guarded {
            pod_id,
            _pad: 0,
            event_ns: 0,
        };
        let known = self.tables.guarded.get(&interface, 0);
        if known.map_or(0, |known| known.pod_id) != pod_id {
            let result = self.tables.guarded.insert(interface, entry, 0);
            result.map_err(|error| {
                io::Error::other(format!(
                    "map GUARDED ({} entries): {error}",
                    get("GUARDED").capacity
                ))
            })?;
        }
        self.guard.attach(&self.pins, interface)
    }

    fn note_gap(&mut self, pod_id: u32, key: &str, gap: Option<String>) {
        let before = self.guard.gaps.get(&pod_id);
        if before == gap.as_ref() {
            return;
        }
        match gap {
            Some(why) => {
                tracing::warn!(workload = key, %why, "a way out is not guarded");
                self.guard.gaps.insert(pod_id, why);
            }
            None => {
                self.guard.gaps.remove(&pod_id);
            }
        }
    }

    fn guarded_by(&self, pod_id: u32) -> Vec<u32> {
        let all = self.tables.guarded.iter().flatten();
        all.filter(|(_, entry)| entry.pod_id == pod_id)
            .map(|(interface, _)| interface)
            .collect()
    }

    /// Takes the guard away from all interfaces of a workload.
    pub(super) fn unguard(&mut self, pod_id: u32) {
        self.guard.gaps.remove(&pod_id);
        for interface in self.guarded_by(pod_id) {
            self.unguard_one(interface);
        }
    }

    fn unguard_one(&mut self, interface: u32) {
        if let Err(error) = detach(&self.pins, interface) {
            tracing::warn!(interface, %error, "egress_guard is left; without its entry it does nothing");
        }
        super::enrol::report("GUARDED", self.tables.guarded.remove(&interface));
    }

    /// Gives the program of this build to what an agent before us attached, and lets go of
    /// interfaces that went away.
    pub(super) fn adopt_guard(&mut self) {
        let known: Vec<u32> = self.tables.guarded.keys().flatten().collect();
        for interface in known {
            if !self.adopt_interface(interface) {
                self.unguard_one(interface);
            }
        }
        for (name, number, _) in self.pins.all_links() {
            let interface = u32::try_from(number).unwrap_or(0);
            if name == EGRESS_GUARD && self.tables.guarded.get(&interface, 0).is_err() {
                self.unguard_one(interface);
            }
        }
    }

    fn adopt_interface(&self, interface: u32) -> bool {
        if stands(&self.pins, interface) {
            let pin = self.pins.link(EGRESS_GUARD, u64::from(interface));
            let updated =
                sys::open_pin(&pin).and_then(|link| sys::link_update(&link, &self.guard.program));
            return updated.is_ok();
        }
        clsact::stands(interface) && clsact::replace(self.guard.program.as_fd(), interface).is_ok()
    }
}
