//! Finds and watches network namespaces.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use super::{cookie, error::EnrolError, sockets};
use crate::model::Netns;

/// What `tcp_fwmark_accept` was, and whether it had to be changed.
const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// A namespace by where it is found and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    pub(super) cookie: u64,
    /// For a namespace named by a process: its number, and its start time, since numbers come
    /// again.
    process: Option<(u32, u64)>,
}

/// Opens a namespace and tells which one it is.
pub(super) fn open(netns: &Netns) -> Result<(OwnedFd, Identity), EnrolError> {
    let (path, process) = match netns {
        Netns::Path(path) => (path.clone(), None),
        Netns::Pid(pid) => (PathBuf::from(format!("/proc/{pid}/ns/net")), Some(*pid)),
    };
    let place = path.display().to_string();
    let gone = |source| EnrolError::NamespaceGone {
        place: place.clone(),
        source,
    };
    let process = match process {
        Some(pid) => Some((pid, start_time(pid).map_err(gone)?)),
        None => None,
    };
    let file = File::open(&path).map_err(gone)?;
    let inode = file.metadata().map_err(gone)?.ino();
    // The name of a deleted namespace may be left as a plain file: setns says so.
    let cookie = match sockets::inside(&file, cookie::own) {
        Ok(cookie) => cookie.map_err(EnrolError::io("network namespace cookie"))?,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Err(EnrolError::NotANamespace(place));
        }
        Err(error) => return Err(EnrolError::io(format!("entering {place}"))(error)),
    };
    Ok((
        file.into(),
        Identity {
            path,
            inode,
            cookie,
            process,
        },
    ))
}

impl Identity {
    /// Why it is not there any more; `None` while it is.
    pub(super) fn gone(&self) -> Option<String> {
        match fs::metadata(&self.path) {
            Err(error) => return Some(format!("{}: {error}", self.path.display())),
            Ok(now) if now.ino() != self.inode => {
                return Some(format!("{} is another namespace now", self.path.display()));
            }
            Ok(_) => {}
        }
        let (pid, started) = self.process?;
        match start_time(pid) {
            Ok(time) if time == started => None,
            _ => Some(format!("process {pid} ended")),
        }
    }
}

/// Start time of a live process, in clock ticks since boot: field 22 of proc_pid_stat(5).
fn start_time(pid: u32) -> io::Result<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the process has ended"))
}

/// `None` for a zombie: it holds no namespace. The name in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    // The state is field 3.
    fields.nth(22 - 3 - 1)?.parse().ok()
}

/// Replies to a captured connection carry its mark (needed once the agent dials a workload with a
/// foreign source address). What it was before, where it had to be changed. In the calling
/// thread's namespace.
pub(super) fn accept_marks() -> io::Result<Option<String>> {
    let before = fs::read_to_string(FWMARK_ACCEPT)?.trim().to_owned();
    if before == "1" {
        return Ok(None);
    }
    fs::write(FWMARK_ACCEPT, "1")?;
    Ok(Some(before))
}

/// Puts back what [`accept_marks`] found. In the calling thread's namespace.
pub(super) fn restore_marks(before: &str) -> io::Result<()> {
    fs::write(FWMARK_ACCEPT, before)
}

/// Runs a closure in the namespace at a path if that is still the one with this inode.
pub(super) fn inside_if<T>(
    path: &Path,
    inode: u64,
    f: impl FnOnce() -> T,
) -> io::Result<Option<T>> {
    let Ok(file) = File::open(path) else {
        return Ok(None);
    };
    if file.metadata()?.ino() != inode {
        return Ok(None);
    }
    sockets::inside(file.as_fd(), f).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_start_time_survives_odd_names_and_ends_with_the_process() {
        let line = |state: &str| {
            let fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
            format!("7 (a ) S (b) {state} {}", fields.join(" "))
        };
        assert_eq!(parse_stat(&line("S")), Some(22));
        assert_eq!(parse_stat(&line("Z")), None);
        for bad in ["", "7", "7 (a", "7 (a) ", "7 (a) S", "7 (a) S 1 2 3"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
        assert!(start_time(std::process::id()).is_ok());
    }
}
