//! Programs that are attached only while something needs them: what nobody uses costs no system
//! call a microsecond.
//!
//! Links that an agent before us left are kept at a start while they may be needed: the rules that
//! they enforce are in the maps already.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::{
    attach::{attach, attach_all, hook},
    audit::Hook,
    cgroups::Cgroup,
    error::KernelError,
    object::{DATAGRAM_HOOKS, FLOW_OPS, LOOPBACK_HOOKS, ORIGINAL_DST, Programs},
    pins::Pins,
    sys::{self, AttachType, LinkTarget},
};

/// The programs, and where they go.
pub(super) struct Hooks {
    programs: Programs,
    points: Vec<Cgroup>,
    agent: Cgroup,
    /// What is attached on demand now.
    datagrams: bool,
    loopback: bool,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

impl Hooks {
    pub(super) fn new(programs: Programs, points: Vec<Cgroup>, agent: Cgroup) -> Self {
        Self {
            programs,
            points,
            agent,
            datagrams: false,
            loopback: false,
        }
    }

    /// Puts pins and links back that a successor gave its own programs.
    pub(super) fn again(
        &self,
        pins: &Pins,
        taken: &[(&'static str, &OwnedFd)],
        loopback: bool,
    ) -> Result<(), KernelError> {
        self.programs.pin_again(pins, taken)?;
        let (points, made) = (&self.points, &mut Vec::new());
        let loopback = loopback || self.loopback;
        attach_all(pins, &self.programs, points, &self.agent, loopback, made).map(drop)
    }

    /// Outbound rules for datagrams are in force, or there are none.
    pub(super) fn datagrams(&mut self, pins: &Pins, needed: bool) -> Result<(), KernelError> {
        // What can't be removed is of no use, and none of the audit's.
        self.datagrams &= needed;
        for (name, kind) in DATAGRAM_HOOKS {
            self.set(pins, name, kind, &self.points, needed)?;
        }
        self.datagrams = needed;
        Ok(())
    }

    /// Whether mode `loopback` can work with this kernel.
    pub(super) const fn can_loop(&self) -> bool {
        self.programs.can_loop()
    }

    /// A workload is about to be in mode `loopback`. They stay for as long as the agent runs:
    /// sockets that were sent to the loopback outlive a change of mode.
    pub(super) fn loopback(&mut self, pins: &Pins) -> Result<(), KernelError> {
        for (name, kind) in LOOPBACK_HOOKS {
            self.set(pins, name, kind, &self.points, true)?;
        }
        let agent = std::slice::from_ref(&self.agent);
        self.set(pins, ORIGINAL_DST.0, ORIGINAL_DST.1, agent, true)?;
        self.loopback = true;
        Ok(())
    }

    /// What is attached on demand now and must stand.
    pub(super) fn in_force(&self, pins: &Pins) -> Vec<Hook> {
        let mut all = Vec::new();
        let mut add = |hooks: &[(&'static str, AttachType)], points: &[Cgroup]| {
            for (name, kind) in hooks {
                let put = |point: &Cgroup| hook(name, *kind, point, pins.link(name, point.id));
                all.extend(points.iter().map(put));
            }
        };
        if self.datagrams {
            add(&DATAGRAM_HOOKS, &self.points);
        }
        if self.loopback {
            add(&LOOPBACK_HOOKS, &self.points);
            add(&[ORIGINAL_DST], std::slice::from_ref(&self.agent));
        }
        all
    }

    /// Attaches a hook that is not there any more, with the variant that belongs there.
    pub(super) fn repair(&self, pins: &Pins, hook: &Hook) -> Result<(), KernelError> {
        // Opened anew: it may have been removed and made again.
        let point = Cgroup::open(&hook.cgroup)
            .map_err(KernelError::io(hook.cgroup.display().to_string()))?;
        let own = (self.programs.agents_flow_ops())
            .filter(|_| hook.program == FLOW_OPS && hook.id == self.agent.id);
        let program = own.map_or_else(|| self.programs.get(hook.program), Ok)?;
        remove(hook.pin.clone())?;
        attach(
            pins,
            program,
            hook.program,
            hook.kind,
            &point,
            &mut Vec::new(),
        )
        .map(drop)
    }

    fn set(
        &self,
        pins: &Pins,
        name: &'static str,
        kind: AttachType,
        points: &[Cgroup],
        needed: bool,
    ) -> Result<(), KernelError> {
        for point in points {
            let path = pins.link(name, point.id);
            if needed && !at(&path, point.id) {
                attach(
                    pins,
                    self.programs.get(name)?,
                    name,
                    kind,
                    point,
                    &mut Vec::new(),
                )?;
            } else if !needed {
                remove(path)?;
            }
        }
        Ok(())
    }
}

/// Whether a pinned link is at this cgroup.
fn at(pin: &Path, id: u64) -> bool {
    let info = sys::open_pin(pin).and_then(sys::link_info);
    info.is_ok_and(|info| info.target == LinkTarget::Cgroup(id))
}

fn remove(path: PathBuf) -> Result<(), KernelError> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::io(format!("{}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

/// At a start: puts this build's programs in the place of those that pinned links hold, where they
/// may be needed still; the paths of those links.
pub(super) fn renew(
    pins: &Pins,
    programs: &Programs,
    points: &[Cgroup],
    agent: &Cgroup,
    loopback: bool,
) -> Result<Vec<PathBuf>, KernelError> {
    let mut kept = Vec::new();
    let mut renew = |name, kind, points: &[Cgroup]| -> Result<(), KernelError> {
        for point in points {
            if pins.link(name, point.id).exists() {
                kept.push(attach(
                    pins,
                    programs.get(name)?,
                    name,
                    kind,
                    point,
                    &mut Vec::new(),
                )?);
            }
        }
        Ok(())
    };
    for (name, kind) in DATAGRAM_HOOKS {
        renew(name, kind, points)?;
    }
    if loopback {
        for (name, kind) in LOOPBACK_HOOKS {
            renew(name, kind, points)?;
        }
        renew(ORIGINAL_DST.0, ORIGINAL_DST.1, std::slice::from_ref(agent))?;
    }
    Ok(kept)
}
