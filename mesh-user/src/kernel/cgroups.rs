//! Attach points and the agent's own cgroup.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Instance, error::KernelError, mounts};

/// How deep below the mount the kubepods parent is searched for: container runtimes put at most
/// one slice above it.
const SEARCH_DEPTH: usize = 3;

/// A cgroup, open.
#[derive(Debug)]
pub(super) struct Cgroup {
    pub(super) path: PathBuf,
    /// Its inode, which is the kernel's cgroup id.
    pub(super) id: u64,
    pub(super) dir: File,
}

impl Cgroup {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let dir = File::open(path)?;
        let id = dir.metadata()?.ino();
        Ok(Self {
            path: path.to_owned(),
            id,
            dir,
        })
    }
}

/// The mount of the unified hierarchy.
pub(super) fn mount() -> Result<PathBuf, KernelError> {
    let found = mounts::cgroup2().map_err(KernelError::io("/proc/self/mountinfo"))?;
    found.ok_or(KernelError::NoCgroup2)
}

/// The cgroups to attach to: those named, or the kubepods parent.
pub(super) fn attach_points(mount: &Path, named: &[PathBuf]) -> Result<Vec<Cgroup>, KernelError> {
    let mut paths = Vec::new();
    for path in named {
        // A path below the mount may be written with a leading slash, as the kernel does.
        let absolute = if path.starts_with(mount) {
            path.clone()
        } else {
            mount.join(path.strip_prefix("/").unwrap_or(path))
        };
        let found = absolute.canonicalize();
        let path = found.map_err(|_| KernelError::AttachMissing(absolute))?;
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    if named.is_empty() {
        paths.extend(kubepods(mount, SEARCH_DEPTH));
    }
    if paths.is_empty() {
        return Err(KernelError::AttachUnknown);
    }
    check_nesting(mount, &paths)?;
    paths
        .iter()
        .map(|path| Cgroup::open(path).map_err(|_| KernelError::AttachMissing(path.clone())))
        .collect()
}

fn check_nesting(mount: &Path, paths: &[PathBuf]) -> Result<(), KernelError> {
    for inner in paths {
        if inner == mount || !inner.starts_with(mount) {
            return Err(KernelError::AttachRoot(inner.clone()));
        }
        for outer in paths {
            if inner != outer && inner.starts_with(outer) {
                return Err(KernelError::AttachNested {
                    inner: inner.clone(),
                    outer: outer.clone(),
                });
            }
        }
    }
    Ok(())
}

/// `kubepods` (cgroupfs driver) or `kubepods.slice` (systemd driver), nearest the root.
fn kubepods(dir: &Path, depth: usize) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == "kubepods" || entry.file_name() == "kubepods.slice" {
            return Some(entry.path());
        }
        below.push(entry.path());
    }
    if depth <= 1 {
        return None;
    }
    below.iter().find_map(|dir| kubepods(dir, depth - 1))
}

/// Where the agent's cgroup is.
pub(super) fn agent_path(mount: &Path, instance: &Instance) -> PathBuf {
    mount.join(format!("mesh-agent-{}", instance.name()))
}

/// Makes the agent's cgroup and moves the calling process there, so that every socket made from
/// now on is known as the agent's. Says whether it was made.
pub(super) fn enter_agent(
    mount: &Path,
    instance: &Instance,
) -> Result<(Cgroup, bool), KernelError> {
    let path = agent_path(mount, instance);
    let what = || format!("cgroup {}", path.display());
    let made = match fs::create_dir(&path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(KernelError::io(what())(error)),
    };
    let entered = fs::write(path.join("cgroup.procs"), "0")
        .and_then(|()| Cgroup::open(&path))
        .map_err(KernelError::io(what()));
    if entered.is_err() && made {
        let _ = fs::remove_dir(&path);
    }
    Ok((entered?, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nesting(paths: &[&str]) -> Result<(), KernelError> {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        check_nesting(Path::new("/cg"), &paths)
    }

    #[test]
    fn nested_attach_points_are_refused_by_name() {
        assert!(nesting(&["/cg/a", "/cg/ab", "/cg/c/d"]).is_ok());
        let error = nesting(&["/cg/a", "/cg/a/b"]).unwrap_err();
        assert!(matches!(error, KernelError::AttachNested { .. }));
        assert!(
            error.to_string().contains("/cg/a/b is inside /cg/a"),
            "{error}"
        );
    }

    #[test]
    fn root_and_foreign_trees_are_refused() {
        assert!(matches!(nesting(&["/cg"]), Err(KernelError::AttachRoot(_))));
        assert!(matches!(
            nesting(&["/elsewhere"]),
            Err(KernelError::AttachRoot(_))
        ));
    }
}
