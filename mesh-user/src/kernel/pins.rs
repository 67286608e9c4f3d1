//! Where an instance's objects are pinned, and that only one agent holds them.
//!
//! ```text
//! <bpffs>/mesh/<instance>/v<ABI>/MAP           every map of mesh_common::maps
//! <bpffs>/mesh/<instance>/v<ABI>/progs/NAME    every program
//! <bpffs>/mesh/<instance>/v<ABI>/links/NAME-N  N: cgroup id, or the workload's number for steer
//! /run/mesh/<instance>/                        lock, admin socket, workloads.json
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use mesh_common::{
    abi::ABI_VERSION,
    maps::{ALL, Spec},
};
use nix::fcntl::{Flock, FlockArg};

use super::{Instance, error::KernelError, mounts};

/// Where a bpffs is mounted when there is none.
const USUAL_BPFFS: &str = "/sys/fs/bpf";

/// The directories of one instance.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    /// `<bpffs>/mesh/<instance>`.
    pub(super) instance: PathBuf,
    /// `<bpffs>/mesh/<instance>/v<ABI>`.
    pub(super) root: PathBuf,
}

impl Pins {
    /// `None`: no bpffs is mounted, so nothing is pinned.
    pub(super) fn find(instance: &Instance) -> io::Result<Option<Self>> {
        Ok(mounts::bpffs()?.map(|bpffs| Self::below(&bpffs, instance)))
    }

    fn below(bpffs: &Path, instance: &Instance) -> Self {
        let instance = bpffs.join("mesh").join(instance.name());
        Self {
            root: instance.join(format!("v{ABI_VERSION}")),
            instance,
        }
    }

    /// Mounts a bpffs where there is none: at the usual place, so that the CLI finds it. It stays
    /// mounted, like the one that systemd mounts: others may use it by then.
    pub(super) fn make(instance: &Instance) -> Result<Self, KernelError> {
        let found = mounts::bpffs().map_err(KernelError::io("/proc/self/mountinfo"))?;
        let bpffs = match found {
            Some(bpffs) => bpffs,
            None => {
                let flags = nix::mount::MsFlags::MS_NOSUID
                    | nix::mount::MsFlags::MS_NODEV
                    | nix::mount::MsFlags::MS_NOEXEC;
                let none: Option<&str> = None;
                nix::mount::mount(Some("bpf"), USUAL_BPFFS, Some("bpf"), flags, none)
                    .map_err(|errno| KernelError::NoBpffs(errno.into()))?;
                PathBuf::from(USUAL_BPFFS)
            }
        };
        let pins = Self::below(&bpffs, instance);
        for dir in [pins.progs(), pins.links()] {
            fs::create_dir_all(&dir).map_err(KernelError::io(format!("{}", dir.display())))?;
        }
        Ok(pins)
    }

    /// Why nothing of this ABI is pinned.
    pub(super) fn missing(&self) -> KernelError {
        let others: Vec<String> = fs::read_dir(&self.instance)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        if others.is_empty() {
            return KernelError::NoPins(self.root.clone());
        }
        KernelError::OtherAbi {
            dir: self.instance.clone(),
            found: others.join(", "),
            expected: ABI_VERSION,
        }
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(super) fn progs(&self) -> PathBuf {
        self.root.join("progs")
    }

    pub(super) fn prog(&self, name: &str) -> PathBuf {
        self.progs().join(name)
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(super) fn link(&self, name: &str, number: u64) -> PathBuf {
        self.links().join(format!("{name}-{number}"))
    }

    /// Every pinned link: program name, number, path.
    pub(super) fn all_links(&self) -> Vec<(String, u64, PathBuf)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.links()).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let split = file.to_str().and_then(|name| name.rsplit_once('-'));
            if let Some((name, Ok(number))) = split.map(|(n, number)| (n, number.parse())) {
                found.push((name.to_owned(), number, entry.path()));
            }
        }
        found.sort();
        found
    }

    /// Whether every pinned map is one that this build would make.
    pub(super) fn check_layouts(&self) -> Result<(), KernelError> {
        for spec in ALL {
            let path = self.map(spec.name);
            if path.exists() {
                check_layout(spec, &path)?;
            }
        }
        Ok(())
    }
}

fn check_layout(spec: &'static Spec, path: &Path) -> Result<(), KernelError> {
    let info = MapInfo::from_pin(path).map_err(|source| KernelError::Map {
        map: spec.name,
        source,
    })?;
    let kind = info.map_type().map(|kind| kind as u32).unwrap_or(0);
    let found = layout(
        kind,
        info.key_size(),
        info.value_size(),
        info.max_entries(),
        info.map_flags(),
    );
    let expected = layout(
        spec.kind as u32,
        spec.key as u32,
        spec.value as u32,
        spec.capacity,
        spec.flags,
    );
    if found == expected {
        Ok(())
    } else {
        Err(KernelError::MapLayout {
            map: spec.name,
            found,
            expected,
        })
    }
}

fn layout(kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> String {
    format!("type {kind}, key {key}, value {value}, {entries} entries, flags {flags:#x}")
}

/// Held as long as the agent lives; the kernel drops it when the process dies, however it dies.
pub(super) type Lock = Flock<File>;

/// Takes the instance.
pub(super) fn lock(instance: &Instance) -> Result<Lock, KernelError> {
    let dir = instance.run_dir();
    fs::create_dir_all(&dir).map_err(KernelError::io(format!("{}", dir.display())))?;
    let path = dir.join("lock");
    let what = || format!("{}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(KernelError::io(what()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).map_err(KernelError::io(what()))?;
            write!(lock, "{}", std::process::id()).map_err(KernelError::io(what()))?;
            Ok(lock)
        }
        Err((mut file, _)) => {
            let mut pid = String::new();
            // Only to say who: an unreadable number changes nothing.
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.is_empty() { "?".to_owned() } else { pid };
            Err(KernelError::Locked {
                instance: instance.name().to_owned(),
                pid,
            })
        }
    }
}
