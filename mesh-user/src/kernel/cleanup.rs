//! Removes everything that an instance left in the kernel, also without an agent.
//!
//! Only what is this instance's: its pins, and rules in namespaces that its links or its records
//! name. Other instances use the same mark and table in their own workloads' namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Instance, KernelError, cgroups, guard,
    marks::Marks,
    mounts,
    object::{EGRESS_GUARD, STEER},
    pins::{self, Lock, Pins},
    records,
    route::Steering,
    shield,
    sys::{self, LinkTarget},
    workload,
};

/// What was removed, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Each thing removed: `link connect4`, `map FLOWS`, `rule in /run/netns/x`, ...
    pub removed: Vec<String>,
    /// Each thing that could not be removed, and why.
    pub failed: Vec<String>,
}

impl Report {
    pub(super) fn note(&mut self, what: String, result: io::Result<()>) {
        match result {
            Ok(()) => self.removed.push(what),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }
}

/// Removes links, maps, pins, rules, routes, cgroup. `dry_run` only says what would go.
///
/// Refuses (in `failed`) while a live agent holds the instance, unless `force`.
///
/// A bpffs that an agent mounted stays mounted: others may use it by now.
pub fn cleanup(instance: &Instance, dry_run: bool, force: bool) -> Report {
    let mut report = Report::default();
    let run_dir = instance.run_dir();
    // Also where there is no directory yet: an agent may make it at any moment.
    let lock = match pins::lock(instance) {
        Ok(lock) => Some(lock),
        // Who may not make the directory may look.
        Err(KernelError::Io { .. }) if !run_dir.exists() => None,
        Err(_) if force => None,
        Err(error) => {
            report.failed.push(error.to_string());
            return report;
        }
    };
    let pins = match Pins::find(instance) {
        Ok(pins) => pins,
        Err(error) => {
            report.failed.push(format!("/proc/self/mountinfo: {error}"));
            if let Some(lock) = &lock {
                lock.undo();
            }
            return report;
        }
    };
    let namespaces = namespaces(instance, pins.as_ref());
    // Before the pins go. Without them: what everybody has who sets nothing else.
    let marks = pins.as_ref().and_then(Marks::pinned).unwrap_or_default();
    let steering = Steering {
        mark: marks.capture,
        mask: marks.mask(),
    };
    if let Some(pins) = &pins {
        for interface in guard::filters(pins) {
            let result = if dry_run {
                Ok(())
            } else {
                guard::detach(pins, interface)
            };
            report.note(format!("filter egress_guard-{interface}"), result);
        }
        // Links first: nothing is captured from here on.
        remove_links(pins, dry_run, &mut report);
        shield::clean(instance, pins, dry_run, &mut report);
    }
    for place in &namespaces {
        undo_namespace(place, steering, dry_run, &mut report);
    }
    if let Some(pins) = &pins {
        remove_tree(&pins.instance, dry_run, &mut report);
        if !dry_run {
            // Only when no other instance is there.
            let _ = pins.instance.parent().map(fs::remove_dir);
        }
    }
    remove_cgroup(instance, dry_run, &mut report);
    remove_run_dir(&run_dir, lock.as_ref(), dry_run, &mut report);
    drop(lock);
    report
}

/// The lock's file last, and held until the directory is gone: from the moment its name is free an
/// agent may start, and nothing of it may be taken for ours.
fn remove_run_dir(dir: &Path, held: Option<&Lock>, dry_run: bool, report: &mut Report) {
    let lock = dir.join("lock");
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path() != lock {
            remove_entry(&entry, dry_run, report);
        }
    }
    if let Some(held) = held.filter(|held| held.fresh()) {
        // Ours alone: nothing to tell.
        held.undo();
        return;
    }
    if dry_run {
        if lock.exists() {
            report.removed.push(format!("{}", lock.display()));
        }
        return;
    }
    report.note(format!("{}", lock.display()), fs::remove_file(&lock));
    match fs::remove_dir(dir) {
        // Somebody has started in between: it is theirs.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && lock.exists() => {}
        result => report.note(format!("{}", dir.display()), result),
    }
    let _ = dir.parent().map(fs::remove_dir);
}

/// A namespace with something of ours in it.
struct Place {
    inode: u64,
    path: PathBuf,
    sysctl_before: Option<String>,
}

/// From the links (exact, but without paths) and from the records (which may be lost), searched
/// for under `/run/netns` and `/proc`.
fn namespaces(instance: &Instance, pins: Option<&Pins>) -> Vec<Place> {
    let mut inodes: BTreeSet<u64> = BTreeSet::new();
    for (name, _, path) in pins.map(Pins::all_links).unwrap_or_default() {
        let info = sys::open_pin(&path).and_then(|link| sys::link_info(&link));
        if let Ok(LinkTarget::Netns(inode)) = info.map(|info| info.target)
            && name == STEER
            && inode != 0
        {
            inodes.insert(u64::from(inode));
        }
    }
    let mut sysctls: BTreeMap<u64, String> = BTreeMap::new();
    let mut paths: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for record in records::read(instance) {
        inodes.insert(record.inode);
        if let Some(before) = record.sysctl_before {
            sysctls.insert(record.inode, before);
        }
        if inode_of(&record.netns) == Some(record.inode) {
            paths.insert(record.inode, record.netns);
        }
    }
    if inodes.iter().any(|inode| !paths.contains_key(inode)) {
        for path in candidates() {
            if let Some(inode) = inode_of(&path).filter(|inode| inodes.contains(inode)) {
                paths.entry(inode).or_insert(path);
            }
        }
    }
    // One that is found nowhere is gone, with all that was in it.
    paths
        .into_iter()
        .map(|(inode, path)| Place {
            inode,
            path,
            sysctl_before: sysctls.remove(&inode),
        })
        .collect()
}

fn inode_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|stat| stat.ino())
}

fn candidates() -> Vec<PathBuf> {
    let children = |dir: &str| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    let named = children("/run/netns");
    let processes = children("/proc")
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.as_encoded_bytes()[0].is_ascii_digit())
        })
        .map(|path| path.join("ns/net"));
    named.chain(processes).collect()
}

fn undo_namespace(place: &Place, steering: Steering, dry_run: bool, report: &mut Report) {
    let name = place.path.display();
    if dry_run {
        report.removed.push(format!("rule and routes in {name}"));
        return;
    }
    let undone = File::open(&place.path).and_then(|file| {
        if file.metadata()?.ino() != place.inode {
            return Ok((Vec::new(), Vec::new()));
        }
        workload::undo(&file, steering, place.sysctl_before.as_deref())
    });
    match undone {
        Ok((removed, failed)) => {
            report
                .removed
                .extend(removed.into_iter().map(|what| format!("{what} in {name}")));
            report
                .failed
                .extend(failed.into_iter().map(|what| format!("{name}: {what}")));
        }
        Err(error) => report.failed.push(format!("{name}: {error}")),
    }
}

/// The guard first: what connects while the hooks go has no grant. Then the connect hooks before
/// `steer`: otherwise a captured SYN would find no listener.
fn remove_links(pins: &Pins, dry_run: bool, report: &mut Report) {
    let (steers, hooks): (Vec<_>, Vec<_>) = pins
        .all_links()
        .into_iter()
        .partition(|(name, _, _)| name == STEER);
    let (guards, hooks): (Vec<_>, Vec<_>) = hooks
        .into_iter()
        .partition(|(name, _, _)| name == EGRESS_GUARD);
    for (name, number, path) in guards.into_iter().chain(hooks).chain(steers) {
        let result = if dry_run {
            Ok(())
        } else {
            fs::remove_file(&path)
        };
        report.note(format!("link {name}-{number}"), result);
    }
}

/// A directory of pins, of every ABI, or below the run directory.
fn remove_tree(dir: &Path, dry_run: bool, report: &mut Report) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        remove_entry(&entry, dry_run, report);
    }
    if !dry_run {
        report.note(format!("{}", dir.display()), fs::remove_dir(dir));
    }
}

fn remove_entry(entry: &fs::DirEntry, dry_run: bool, report: &mut Report) {
    let path = entry.path();
    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
        remove_tree(&path, dry_run, report);
    } else if !(dry_run && path.parent().is_some_and(|dir| dir.ends_with("links"))) {
        let result = if dry_run {
            Ok(())
        } else {
            fs::remove_file(&path)
        };
        report.note(format!("{}", path.display()), result);
    }
}

/// An agent whose start failed cleans up after itself, but is in the cgroup: it goes to the root,
/// which takes everybody. Where that is not allowed, the cgroup is reported as occupied.
fn leave_cgroup(mount: &Path, path: &Path) {
    let inside = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let own = std::process::id().to_string();
    if inside.lines().any(|pid| pid == own) {
        let _refused = fs::write(mount.join("cgroup.procs"), "0");
    }
}

fn remove_cgroup(instance: &Instance, dry_run: bool, report: &mut Report) {
    let Ok(Some(mount)) = mounts::cgroup2() else {
        return;
    };
    let path = cgroups::agent_path(&mount, instance);
    if !path.exists() {
        return;
    }
    if !dry_run {
        leave_cgroup(&mount, &path);
    }
    let inside = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<&str> = inside.lines().collect();
    if !pids.is_empty() {
        let list = pids.join(", ");
        report.failed.push(format!(
            "cgroup {}: processes {list} are in it",
            path.display()
        ));
        return;
    }
    let result = if dry_run {
        Ok(())
    } else {
        fs::remove_dir(&path)
    };
    report.note(format!("cgroup {}", path.display()), result);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without it: an agent that starts while a cleanup ends loses its lock file, and a second one
    /// starts beside it.
    #[test]
    fn agent_that_starts_during_a_cleanup_keeps_its_files() {
        let name = format!("cleanup-{}", std::process::id());
        let instance = Instance::new(&name).expect("a good name");
        let socket = instance.admin_socket();
        let start = || {
            // One that is refused meets a cleanup, and comes again.
            let Ok(lock) = pins::lock(&instance) else {
                return false;
            };
            fs::write(&socket, "").expect("the directory is there");
            for _ in 0..10 {
                let second = pins::lock(&instance);
                assert!(matches!(second, Err(KernelError::Locked { .. })));
                assert!(socket.exists());
                std::thread::yield_now();
            }
            drop(lock);
            true
        };
        std::thread::scope(|scope| {
            let agents = scope.spawn(|| (0..100_000).filter(|_| start()).take(300).count());
            while !agents.is_finished() {
                cleanup(&instance, false, false);
            }
            assert_eq!(agents.join().expect("no panic"), 300);
        });
        let last = cleanup(&instance, false, false);
        assert_eq!(last.failed, Vec::<String>::new());
        assert!(!instance.run_dir().exists());
    }
}
