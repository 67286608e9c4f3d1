//! Connect hooks of others that run before ours: below our attach point, or at it and attached
//! earlier. One that rewrites the destination hides the virtual address from us (pitfall 11); one at
//! a parent runs after us and does not.
//!
//! The kernel runs the hooks of a socket's cgroup first, then those of each parent, at one cgroup in
//! the order in which they were attached. `BPF_PROG_QUERY` of what is effective lists them so.

use std::{
    fs::{self, File},
    os::unix::fs::DirEntryExt as _,
    path::{Path, PathBuf},
};

use super::{
    mounts,
    pins::Pins,
    sys::{self, AttachType, LinkTarget},
};

/// Our hooks that decide by the destination.
const DECIDING: [(&str, AttachType); 2] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
];
/// Cgroups below one attach point that are asked; a node has a few for each pod.
const CGROUPS_MAX: usize = 16_384;
/// How deep below the mount an attach point is searched for, and cgroups below it.
const DEPTH: usize = 8;

/// Somebody's hook before ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignHook {
    /// The cgroup at which it stands first, below the mount.
    pub cgroup: String,
    /// Before which of our hooks.
    pub hook: &'static str,
    /// Numbers of the programs.
    pub programs: Vec<u32>,
}

/// Looks at every cgroup from our attach points down. What can't be read is left out: it may go
/// away while we look.
pub(super) fn before_ours(pins: &Pins) -> Vec<ForeignHook> {
    let Ok(Some(mount)) = mounts::cgroup2() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (hook, attach) in DECIDING {
        for (name, _, path) in pins.all_links() {
            let info = sys::open_pin(&path).and_then(sys::link_info);
            let (true, Ok(info)) = (name == hook, info) else {
                continue;
            };
            let LinkTarget::Cgroup(id) = info.target else {
                continue;
            };
            let Some(point) = find(&mount, id, DEPTH) else {
                continue;
            };
            let mut walk = Walk {
                mount: &mount,
                hook,
                attach,
                ours: info.prog_id,
                left: CGROUPS_MAX,
                found: &mut found,
            };
            walk.down(&point, &[], DEPTH);
        }
    }
    found.sort();
    found
}

struct Walk<'a> {
    mount: &'a Path,
    hook: &'static str,
    attach: AttachType,
    ours: u32,
    left: usize,
    found: &'a mut Vec<ForeignHook>,
}

impl Walk<'_> {
    /// `known`: what stands before ours at the parent, and is reported there.
    fn down(&mut self, dir: &Path, known: &[u32], depth: usize) {
        if self.left == 0 || depth == 0 {
            return;
        }
        self.left -= 1;
        let effective = File::open(dir).and_then(|dir| sys::effective(dir, self.attach));
        let Ok(effective) = effective else { return };
        let Some(place) = effective.iter().position(|id| *id == self.ours) else {
            return;
        };
        let before = &effective[..place];
        let fresh: Vec<u32> = before
            .iter()
            .copied()
            .filter(|id| !known.contains(id))
            .collect();
        if !fresh.is_empty() {
            let name = dir.strip_prefix(self.mount).unwrap_or(dir);
            self.found.push(ForeignHook {
                cgroup: format!("/{}", name.display()),
                hook: self.hook,
                programs: fresh,
            });
        }
        for child in children(dir) {
            self.down(&child, before, depth - 1);
        }
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The cgroup with this number: its folder's inode.
pub(super) fn find(dir: &Path, id: u64, depth: usize) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.ino() == id {
            return Some(entry.path());
        }
        below.push(entry.path());
    }
    if depth <= 1 {
        return None;
    }
    below.iter().find_map(|dir| find(dir, id, depth - 1))
}
