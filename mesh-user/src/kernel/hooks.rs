//! Programs that are attached only while something needs them: what nobody uses costs no system
//! call a microsecond.
//!
//! Links that an agent before us left are kept at a start while they may be needed: the rules that
//! they enforce are in the maps already.

use std::{fs, io, os::fd::OwnedFd, path::PathBuf};

use super::{
    attach::{attach, attach_all},
    cgroups::Cgroup,
    error::KernelError,
    object::{DATAGRAM_HOOKS, LOOPBACK_HOOKS, ORIGINAL_DST, Programs},
    pins::Pins,
    sys::AttachType,
};

/// The programs, and where they go.
pub(super) struct Hooks {
    programs: Programs,
    points: Vec<Cgroup>,
    agent: Cgroup,
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
        attach_all(pins, &self.programs, points, &self.agent, loopback, made).map(drop)
    }

    /// Outbound rules for datagrams are in force, or there are none.
    pub(super) fn datagrams(&self, pins: &Pins, needed: bool) -> Result<(), KernelError> {
        for (name, kind) in DATAGRAM_HOOKS {
            self.set(pins, name, kind, &self.points, needed)?;
        }
        Ok(())
    }

    /// Whether mode `loopback` can work with this kernel.
    pub(super) const fn can_loop(&self) -> bool {
        self.programs.can_loop()
    }

    /// A workload is about to be in mode `loopback`. They stay for as long as the agent runs:
    /// sockets that were sent to the loopback outlive a change of mode.
    pub(super) fn loopback(&self, pins: &Pins) -> Result<(), KernelError> {
        for (name, kind) in LOOPBACK_HOOKS {
            self.set(pins, name, kind, &self.points, true)?;
        }
        let agent = std::slice::from_ref(&self.agent);
        self.set(pins, ORIGINAL_DST.0, ORIGINAL_DST.1, agent, true)
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
            if needed && !path.exists() {
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
