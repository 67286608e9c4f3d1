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

/// The settings of a namespace that mode `mark` needs: name, what it is changed from (anything,
/// where this is empty), what to.
///
/// - `tcp_fwmark_accept`: replies to a captured connection carry its mark (needed once the agent
///   dials a workload with a foreign source address).
/// - `tcp_tw_reuse`: a connection may take the port of one that ended a second ago. By default the
///   kernel allows it for the loopback alone, which a captured connection crosses without having
///   its addresses. Applications and the agent dial out of one port space, so without it some
///   28,000 connections a minute to one address are the limit. Where somebody switched it off, it
///   stays off.
const SYSCTLS: [(&str, &str, &str); 2] =
    [("tcp_fwmark_accept", "", "1"), ("tcp_tw_reuse", "2", "1")];

fn sysctl(name: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4").join(name)
}

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

/// Sets what mode `mark` needs, in the calling thread's namespace. What was changed and what it was
/// before: `name=value`, by spaces; `None`: nothing.
pub(super) fn set_sysctls() -> io::Result<Option<String>> {
    let changes = changes()?;
    for (name, to, _) in &changes {
        fs::write(sysctl(name), to)?;
    }
    Ok(told(&changes))
}

/// What [`set_sysctls`] would say, and change.
pub(super) fn sysctls_to_set() -> io::Result<Option<String>> {
    Ok(told(&changes()?))
}

/// Name, value to set, value now.
type Change = (&'static str, &'static str, String);

fn told(changes: &[Change]) -> Option<String> {
    let words: Vec<String> = (changes.iter())
        .map(|(name, _, value)| format!("{name}={value}"))
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn changes() -> io::Result<Vec<Change>> {
    let mut changes = Vec::new();
    for (name, from, to) in SYSCTLS {
        let value = match fs::read_to_string(sysctl(name)) {
            Ok(value) => value.trim().to_owned(),
            // A kernel without it; only the first one is needed by all.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !from.is_empty() => continue,
            Err(error) => return Err(error),
        };
        if value != to && (from.is_empty() || value == from) {
            changes.push((name, to, value));
        }
    }
    Ok(changes)
}

/// Puts back what [`set_sysctls`] found. In the calling thread's namespace.
pub(super) fn restore_sysctls(before: &str) -> io::Result<()> {
    for word in before.split_ascii_whitespace() {
        // A value alone is the first one's: what builds before this one recorded.
        let (name, value) = word.split_once('=').unwrap_or((SYSCTLS[0].0, word));
        if SYSCTLS.iter().any(|(known, ..)| *known == name) {
            fs::write(sysctl(name), value)?;
        }
    }
    Ok(())
}

/// What two rounds of [`set_sysctls`] have changed; of a setting that both did, what the first
/// found.
pub(super) fn merged(first: Option<&str>, second: Option<&str>) -> Option<String> {
    let words = |text: Option<&str>| -> Vec<String> {
        text.unwrap_or_default()
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let mut all = words(first);
    for word in words(second) {
        let name = word.split('=').next().unwrap_or_default();
        if !all
            .iter()
            .any(|known| known.split('=').next() == Some(name))
        {
            all.push(word);
        }
    }
    (!all.is_empty()).then(|| all.join(" "))
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

    /// Without it: a second enrolment forgets what the first one changed.
    #[test]
    fn settings_before_us_are_those_that_the_first_round_found() {
        let first = Some("tcp_fwmark_accept=0");
        assert_eq!(merged(None, None), None);
        assert_eq!(merged(first, None).as_deref(), first);
        assert_eq!(merged(None, first).as_deref(), first);
        let second = Some("tcp_tw_reuse=2 tcp_fwmark_accept=5");
        assert_eq!(
            merged(first, second).as_deref(),
            Some("tcp_fwmark_accept=0 tcp_tw_reuse=2")
        );
    }

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
