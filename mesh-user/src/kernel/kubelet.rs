//! The kubelet's own cgroup: what processes in it open towards workloads are probes.
//!
//! systemd makes the cgroup anew when the kubelet is restarted, and the kernel's link dies with the
//! old one: so it is looked at once a second, and followed.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Kernel,
    audit::Hook,
    cgroups::Cgroup,
    error::KernelError,
    object::PROBE_OPS,
    pins::Pins,
    sys::{self, AttachType, LinkTarget},
};

/// Where the kubelet is found, below the cgroup2 mount: the unit that kubeadm and most
/// distributions make, its slice, a plain container or process manager, Talos. Distributions that
/// run the kubelet inside a larger process (k3s) have no cgroup of its own, and none is guessed: all
/// that the process dials would pass.
const USUAL: [&str; 4] = [
    "system.slice/kubelet.service",
    "kubelet.slice",
    "kubelet",
    "podruntime/kubelet",
];

/// How often the cgroup is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The program, where it is attached, and where it should be.
#[derive(Debug)]
pub(super) struct Kubelet {
    mount: PathBuf,
    named: Option<PathBuf>,
    program: OwnedFd,
    attached: Option<Attached>,
    looked: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    path: PathBuf,
    id: u64,
}

/// Where the link stands that is pinned for a cgroup.
fn target(pins: &Pins, id: u64) -> Option<LinkTarget> {
    let info = sys::open_pin(&pins.link(PROBE_OPS, id)).and_then(sys::link_info);
    info.ok().map(|info| info.target)
}

/// The kubelet's cgroup, by its usual names.
pub(super) fn usual(mount: &Path) -> Option<PathBuf> {
    let mut places = USUAL.iter().map(|name| mount.join(name));
    places.find(|path| path.join("cgroup.procs").exists())
}

impl Kubelet {
    pub(super) const fn program(&self) -> &OwnedFd {
        &self.program
    }

    /// Attaches at the cgroup that is named, or at the one that is found.
    ///
    /// # Errors
    /// [`KernelError::KubeletMissing`] for a named one that is not there; the kernel refused.
    pub(super) fn start(
        pins: &Pins,
        mount: &Path,
        named: Option<&Path>,
        program: OwnedFd,
    ) -> Result<Self, KernelError> {
        let named = named.map(|path| {
            if path.starts_with(mount) {
                path.to_owned()
            } else {
                mount.join(path.strip_prefix("/").unwrap_or(path))
            }
        });
        if let Some(path) = named.as_ref().filter(|path| !path.is_dir()) {
            return Err(KernelError::KubeletMissing(path.clone()));
        }
        let mut kubelet = Self {
            mount: mount.to_owned(),
            named,
            program,
            attached: None,
            looked: Instant::now(),
        };
        kubelet.follow(pins)?;
        Ok(kubelet)
    }

    /// The pin of its link.
    pub(super) fn pin(&self, pins: &Pins) -> Option<PathBuf> {
        let attached = self.attached.as_ref()?;
        Some(pins.link(PROBE_OPS, attached.id))
    }

    /// What must stand at its cgroup; `None`: there is no such cgroup now.
    pub(super) fn hook(&self, pins: &Pins) -> Option<Hook> {
        let attached = self.attached.as_ref()?;
        let there = fs::metadata(&attached.path).is_ok_and(|found| found.ino() == attached.id);
        there.then(|| Hook {
            program: PROBE_OPS,
            kind: AttachType::SockOps,
            cgroup: attached.path.clone(),
            id: attached.id,
            pin: pins.link(PROBE_OPS, attached.id),
        })
    }

    /// Makes the link anew, wherever the kubelet's cgroup is now.
    pub(super) fn repair(&mut self, pins: &Pins) -> Result<(), KernelError> {
        if let Some(pin) = self.pin(pins) {
            // Detached by force, it can't be updated.
            let _none = fs::remove_file(pin);
        }
        self.again(pins)
    }

    fn wanted(&self) -> Option<Attached> {
        let path = match &self.named {
            Some(path) => path.clone(),
            None => usual(&self.mount)?,
        };
        let id = fs::metadata(&path).ok()?.ino();
        Some(Attached { path, id })
    }

    /// Attaches where the cgroup is now, if it is not where it was, or the link is not there.
    fn follow(&mut self, pins: &Pins) -> Result<(), KernelError> {
        let wanted = self.wanted();
        let stands = |to: &Attached| target(pins, to.id) == Some(LinkTarget::Cgroup(to.id));
        if wanted == self.attached && wanted.as_ref().is_none_or(stands) {
            return Ok(());
        }
        self.put(pins, wanted)
    }

    /// Puts our program where the cgroup is now, whatever stands there or elsewhere: another agent
    /// has written here.
    pub(super) fn again(&mut self, pins: &Pins) -> Result<(), KernelError> {
        let wanted = self.wanted();
        self.put(pins, wanted)
    }

    fn put(&mut self, pins: &Pins, wanted: Option<Attached>) -> Result<(), KernelError> {
        if let Some(to) = &wanted {
            self.attach(pins, to)?;
        }
        for (name, id, path) in pins.all_links() {
            let kept = wanted.as_ref().is_some_and(|to| to.id == id);
            if name == PROBE_OPS && !kept {
                // Its cgroup is gone, or no longer the kubelet's.
                let _ = fs::remove_file(path);
            }
        }
        self.attached = wanted;
        Ok(())
    }

    fn attach(&self, pins: &Pins, to: &Attached) -> Result<(), KernelError> {
        let refused = |source| KernelError::Attach {
            program: PROBE_OPS,
            at: to.path.display().to_string(),
            source,
        };
        let pin = pins.link(PROBE_OPS, to.id);
        if let Ok(link) = sys::open_pin(&pin) {
            let info = sys::link_info(&link).map_err(refused)?;
            if info.target == LinkTarget::Cgroup(to.id) {
                return sys::link_update(&link, &self.program).map_err(refused);
            }
            // Its cgroup was removed, and the kernel gave the number to a new one.
            fs::remove_file(&pin).map_err(refused)?;
        }
        let cgroup = Cgroup::open(&to.path).map_err(refused)?;
        let link =
            sys::link_create(&self.program, &cgroup.dir, AttachType::SockOps).map_err(refused)?;
        sys::pin(&link, &pin).map_err(refused)
    }
}

impl Kernel {
    /// The kubelet's cgroup, where there is one: its connections pass as probes.
    pub fn kubelet_cgroup(&self) -> Option<&Path> {
        let attached = self.kubelet.attached.as_ref();
        attached.map(|attached| attached.path.as_path())
    }

    /// Follows a kubelet that was restarted, or that came late.
    pub(super) fn follow_kubelet(&mut self) {
        if self.kubelet.looked.elapsed() < LOOK {
            return;
        }
        self.kubelet.looked = Instant::now();
        let before = self.kubelet.attached.clone();
        if let Err(error) = self.kubelet.follow(&self.pins) {
            tracing::warn!(%error, "the kubelet's probes are not told apart");
        } else if before != self.kubelet.attached {
            tracing::info!(
                cgroup = ?self.kubelet.attached.as_ref().map(|to| &to.path),
                "the kubelet's cgroup changed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_cgroup_is_found_by_its_files_not_by_its_name() {
        let mount = std::env::temp_dir().join(format!("mesh-kubelet-{}", std::process::id()));
        let unit = mount.join("system.slice/kubelet.service");
        fs::create_dir_all(&unit).unwrap();
        assert_eq!(usual(&mount), None);
        fs::write(unit.join("cgroup.procs"), "").unwrap();
        assert_eq!(usual(&mount), Some(unit));
        fs::remove_dir_all(&mount).unwrap();
    }
}
