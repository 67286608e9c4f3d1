//! Puts processes and threads into namespaces and cgroups, and gets rid of them.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::Context;
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::wait_until;

/// Spawns a command that stands in the namespace and the cgroup before its first instruction, so
/// that every socket it makes belongs to both.
pub(super) fn spawn(mut command: Command, netns: &Path, cgroup: &Path) -> anyhow::Result<Child> {
    let netns_file = File::open(netns).with_context(|| format!("{}", netns.display()))?;
    let procs = cgroup.join("cgroup.procs");
    let procs_file = fs::OpenOptions::new()
        .write(true)
        .open(&procs)
        .with_context(|| format!("{}", procs.display()))?;
    let enter = move || {
        // «0» is the writing process itself.
        nix::unistd::write(procs_file.as_fd(), b"0")?;
        setns(netns_file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        Ok(())
    };
    #[expect(unsafe_code, reason = "code between fork and exec")]
    // SAFETY: the closure runs in the forked child and makes only the system calls write and setns
    // on descriptors opened before the fork: both are async-signal-safe, neither allocates nor
    // takes a lock (`io::Error` from an errno holds no heap memory).
    unsafe {
        command.pre_exec(enter);
    }
    command.spawn().with_context(|| format!("{command:?}"))
}

/// Runs a closure on a fresh thread inside a namespace.
pub(super) fn in_netns<T: Send + 'static>(
    netns: &Path,
    f: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let file = File::open(netns).with_context(|| format!("{}", netns.display()))?;
    let thread = std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| {
                // A long closure must not hold the namespace by this descriptor too.
                drop(file);
                f()
            })
        })?;
    match thread.join() {
        Ok(result) => result.with_context(|| format!("entering {}", netns.display())),
        // A failed assertion in the closure is the caller's.
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Kills everything in a cgroup and below.
pub(super) fn kill_cgroup(cgroup: &Path, limit: Duration) {
    // Not there: nothing to kill. Kernels before 5.14 lack the file: process by process.
    if fs::write(cgroup.join("cgroup.kill"), "1").is_err() {
        for pid in pids(cgroup) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    wait_until(limit, || pids(cgroup).is_empty());
}

fn pids(cgroup: &Path) -> Vec<Pid> {
    let mut found: Vec<Pid> = fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok().map(Pid::from_raw))
        .collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(pids(&entry.path()));
        }
    }
    found
}

/// Removes a cgroup that holds nothing but dying processes.
pub(super) fn remove_cgroup(cgroup: &Path, limit: Duration) -> anyhow::Result<()> {
    let mut last = None;
    let gone = wait_until(limit, || match fs::remove_dir(cgroup) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            last = Some(error);
            false
        }
    });
    match last {
        Some(error) if !gone => Err(error).with_context(|| format!("{}", cgroup.display())),
        _ => Ok(()),
    }
}

/// Kills every process whose network namespace is this one; never the caller.
pub(super) fn kill_in_netns(netns: &Path, limit: Duration) {
    let Ok(target) = File::open(netns).and_then(|file| {
        // Without its mount (a stale name) this is a plain file: nobody lives in it.
        let stat = fs::metadata(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok((stat.dev(), stat.ino()))
    }) else {
        return;
    };
    wait_until(limit, || {
        let found = living_in(target);
        for pid in &found {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        found.is_empty()
    });
}

fn living_in(target: (u64, u64)) -> Vec<Pid> {
    let own = nix::unistd::getpid();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|stat| (stat.dev(), stat.ino()) == target)
        })
        .collect()
}
