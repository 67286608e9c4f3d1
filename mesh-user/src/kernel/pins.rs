//! Where an instance's objects are pinned, and that only one agent holds them.
//!
//! ```text
//! <bpffs>/mesh/<instance>/v<ABI>/MAP           every map of mesh_common::maps
//! <bpffs>/mesh/<instance>/v<ABI>/progs/NAME    every program
//! <bpffs>/mesh/<instance>/v<ABI>/links/NAME-N  N: cgroup id, or the workload's number for steer
//! /run/mesh/<instance>/                        lock, admin socket, workloads.json, versions.json
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use mesh_common::{
    abi::ABI_VERSION,
    maps::{ALL, Spec},
};

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
            fs::create_dir_all(&dir).map_err(|source| KernelError::PinsRefused { dir, source })?;
        }
        Ok(pins)
    }

    /// Whether an agent with another kernel layout left programs in force. They can't be taken
    /// over (their maps are laid out differently), and beside them every hook would run twice.
    pub(super) fn check_versions(&self) -> Result<(), KernelError> {
        for root in children(Some(&self.instance)) {
            let other = Self {
                instance: self.instance.clone(),
                root,
            };
            if other.root != self.root && !is_empty(&other.root) {
                return Err(KernelError::PredecessorAbi {
                    instance: name_of(&self.instance),
                    found: name_of(&other.root),
                    links: other.all_links().len(),
                    expected: ABI_VERSION,
                });
            }
        }
        Ok(())
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

    /// Directories of every instance and ABI: instance name, its pins.
    pub(super) fn every(&self) -> Vec<(String, Self)> {
        let mut found = Vec::new();
        for instance in children(self.instance.parent()) {
            let name = instance.file_name().and_then(|name| name.to_str());
            let Some(name) = name.map(str::to_owned) else {
                continue;
            };
            for root in children(Some(&instance)) {
                let pins = Self {
                    instance: instance.clone(),
                    root,
                };
                found.push((name.clone(), pins));
            }
        }
        found
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

    /// Whether every pinned map is one that this build would make, with these capacities where they
    /// are others than the table's. `None`: whatever they are, for a reader.
    pub(super) fn check_layouts(
        &self,
        capacities: Option<&[(String, u32)]>,
    ) -> Result<(), KernelError> {
        for spec in ALL {
            let path = self.map(spec.name);
            if path.exists() {
                let capacity = capacities.map(|others| {
                    let other = others.iter().find(|(map, _)| map == spec.name);
                    other.map_or(spec.capacity, |(_, entries)| *entries)
                });
                check_layout(spec, capacity, &path)?;
            }
        }
        Ok(())
    }
}

fn children(dir: Option<&Path>) -> Vec<PathBuf> {
    let entries = dir.map(fs::read_dir).into_iter().flatten().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Whether there is no pin in it: a start that was killed early leaves empty directories.
fn is_empty(dir: &Path) -> bool {
    children(Some(dir))
        .iter()
        .all(|child| child.is_dir() && is_empty(child))
}

/// Whether a pinned map is the one of the table. `capacity`: of how many entries; `None`: any.
pub(super) fn check_layout(
    spec: &'static Spec,
    capacity: Option<u32>,
    path: &Path,
) -> Result<(), KernelError> {
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
        capacity.unwrap_or(info.max_entries()),
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
///
/// The lock belongs to the open file, not to the process: a successor that was handed a descriptor
/// of it holds it too, and nobody else gets in between the two. So it is given back by closing,
/// never by an explicit unlock.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
    /// Nobody had left the file before us.
    fresh: bool,
}

impl Lock {
    /// The lock that a predecessor handed over.
    pub(super) fn handed_over(instance: &Instance, file: File) -> Self {
        Self {
            file,
            path: instance.run_dir().join("lock"),
            fresh: false,
        }
    }

    /// A descriptor of the lock, for a successor.
    pub(super) fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Writes the holder's number: only to say who.
    pub(super) fn sign(&self) -> io::Result<()> {
        let pid = std::process::id().to_string();
        // Not the cursor: it is shared with whom the lock is shared.
        self.file.set_len(0)?;
        self.file.write_all_at(pid.as_bytes(), 0)
    }

    /// Whether nobody had left the file before us.
    pub(super) fn fresh(&self) -> bool {
        self.fresh
    }

    /// Takes the file back that this call of [`lock`] made, and directories that are empty then.
    /// Held to the end: whoever waits for the file finds another in its place.
    pub(super) fn undo(&self) {
        if self.fresh && fs::remove_file(&self.path).is_ok() {
            // /run/mesh/<instance>, then /run/mesh.
            for dir in self.path.ancestors().skip(1).take(2) {
                let _ = fs::remove_dir(dir);
            }
        }
    }
}

/// How often a lock is taken again because its file was removed in the meantime.
const LOCK_TRIES: usize = 8;

/// Takes the instance.
pub(super) fn lock(instance: &Instance) -> Result<Lock, KernelError> {
    let path = instance.run_dir().join("lock");
    let at = || KernelError::io(format!("{}", path.display()));
    for _ in 0..LOCK_TRIES {
        let (file, fresh) = match open_lock(&path) {
            // A cleanup took the directory away between the two steps.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(at())?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(instance, file)),
            Err(TryLockError::Error(error)) => return Err(at()(error)),
        }
        // A cleanup may have removed the file between the two: then nobody else would see our lock.
        let ours = file.metadata().map_err(at())?.ino();
        if fs::metadata(&path).is_ok_and(|now| now.ino() == ours) {
            let path = path.clone();
            let lock = Lock { file, path, fresh };
            lock.sign().map_err(at())?;
            return Ok(lock);
        }
    }
    Err(held_by(instance, "?".to_owned()))
}

/// Opens the file; whether it was made.
fn open_lock(path: &Path) -> io::Result<(File, bool)> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.clone().create_new(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Truncated once it is locked: until then the number in it is the holder's.
            let file = options.create(true).truncate(false).open(path)?;
            Ok((file, false))
        }
        Err(error) => Err(error),
    }
}

fn held(instance: &Instance, mut file: File) -> KernelError {
    let mut pid = String::new();
    // Only to say who: an unreadable number changes nothing.
    let _ = file.read_to_string(&mut pid);
    held_by(instance, if pid.is_empty() { "?".to_owned() } else { pid })
}

fn held_by(instance: &Instance, pid: String) -> KernelError {
    KernelError::Locked {
        instance: instance.name().to_owned(),
        pid,
    }
}
