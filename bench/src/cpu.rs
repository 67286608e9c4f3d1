//! What processes used: processor time and memory, read from `/proc` and the cgroup.
//!
//! The kernel charges the network's work (softirq) to whoever runs when it is done, which on
//! loopback and veth is the sender; so a process's time includes what its packets cost.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// A process and all that it started.
///
/// Looked up at each reading: nginx listens, and so counts as started, before its worker is forked.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: u32,
}

impl Tree {
    pub(crate) fn of(root: u32) -> Self {
        Self { root }
    }

    fn pids(&self) -> Vec<u32> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if let Some(parent) = parent(&stat) {
                parents.push((pid, parent));
            }
        }
        let mut pids = vec![self.root];
        let mut at = 0;
        while at < pids.len() {
            let above = pids[at];
            pids.extend(
                parents
                    .iter()
                    .filter(|(_, parent)| *parent == above)
                    .map(|(pid, _)| pid),
            );
            at += 1;
        }
        pids
    }

    /// Processor time of all threads that live now.
    ///
    /// # Errors
    /// The root is gone.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.sum(process_cpu)
    }

    /// Resident memory in bytes, by a line of `smaps_rollup`: `Rss`, or `Pss` (shared pages by
    /// share).
    ///
    /// # Errors
    /// The root is gone, or there is no such line.
    pub(crate) fn memory(&self, line: &str) -> Result<u64> {
        self.sum(|pid| process_memory(pid, line))
    }

    /// A process below the root may end between the listing and its reading (a zombie has no
    /// memory to read): it then counts as if it had ended before both.
    fn sum<T: std::iter::Sum>(&self, of: impl Fn(u32) -> Result<T>) -> Result<T> {
        let root = self.root;
        let pids = self.pids().into_iter();
        pids.map(|pid| (pid, of(pid)))
            .filter(|(pid, read)| *pid == root || read.is_ok())
            .map(|(_, read)| read)
            .sum()
    }
}

/// Parent in `/proc/PID/stat`: the second field behind the command, which may hold anything.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn process_cpu(pid: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    let tasks = format!("/proc/{pid}/task");
    for entry in fs::read_dir(&tasks).with_context(|| format!("process {pid} is gone"))? {
        // A thread may end between the two calls; what it used is then lost to all readers.
        let Ok(text) = fs::read_to_string(entry?.path().join("schedstat")) else {
            continue;
        };
        let used = text.split(' ').next().and_then(|first| first.parse().ok());
        sum += Duration::from_nanos(used.context("schedstat has no time")?);
    }
    Ok(sum)
}

fn process_memory(pid: u32, line: &str) -> Result<u64> {
    let text = read(Path::new(&format!("/proc/{pid}/smaps_rollup")))?;
    let field = text
        .lines()
        .find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib: u64 = field
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {line} of process {pid}"))?;
    Ok(kib * 1024)
}

/// The processor time of everything that takes part: the pods' cgroup, the proxy, and the kernel's
/// own network threads.
#[derive(Clone, Debug)]
pub(crate) struct Path_ {
    cgroup: PathBuf,
    proxy: Option<Tree>,
    kernel: Vec<u32>,
}

impl Path_ {
    pub(crate) fn new(cgroup: &Path, proxy: Option<Tree>) -> Self {
        Self {
            cgroup: cgroup.join("cpu.stat"),
            proxy,
            kernel: kernel_threads(),
        }
    }

    /// # Errors
    /// The proxy or the cgroup is gone.
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        let text = read(&self.cgroup)?;
        let used = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        let pods = Duration::from_micros(used.context("cpu.stat has no usage_usec")?);
        let kernel: Duration = self
            .kernel
            .iter()
            .map(|pid| process_cpu(*pid))
            .sum::<Result<_>>()?;
        let proxy = self.proxy.as_ref().map_or(Ok(Duration::ZERO), Tree::cpu)?;
        Ok(Cpu {
            proxy,
            path: pods + kernel + proxy,
        })
    }
}

/// Processor time so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// Of the proxy.
    pub(crate) proxy: Duration,
    /// Of the whole path, the proxy included.
    pub(crate) path: Duration,
}

impl Cpu {
    /// What was used since an earlier reading.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            proxy: self.proxy.saturating_sub(earlier.proxy),
            path: self.path.saturating_sub(earlier.path),
        }
    }
}

/// Processor time of the whole machine so far, stolen time included, to 10 ms.
///
/// # Errors
/// `/proc/stat` can't be read.
pub(crate) fn machine() -> Result<Duration> {
    let text = read(Path::new("/proc/stat"))?;
    busy(&text).context("/proc/stat has no first line")
}

/// All but idle and iowait, and without guest time, which user time holds already (proc(5)).
fn busy(stat: &str) -> Option<Duration> {
    let fields = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace();
    let ticks: Vec<u64> = fields
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else {
        return None;
    };
    // USER_HZ is 100 on every architecture that runs this.
    Some(
        Duration::from_millis(10)
            * u32::try_from(user + nice + system + irq + softirq + steal).ok()?,
    )
}

/// `ksoftirqd/N` take over the network's work when there is much of it.
fn kernel_threads() -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("ksoftirqd/") {
            found.extend(entry.file_name().to_string_lossy().parse::<u32>());
        }
    }
    found
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_is_found_behind_a_strange_name() {
        assert_eq!(parent("12 (a) b) (c) S 7 12 12 0"), Some(7));
        assert_eq!(parent("12 (a"), None);
    }

    #[test]
    fn own_time_and_memory_grow_with_use() {
        let tree = Tree::of(std::process::id());
        let (before, small) = (tree.cpu().expect("ours"), tree.memory("Rss").expect("ours"));
        let start = std::time::Instant::now();
        let mut block = vec![0_u8; 32 << 20];
        while start.elapsed() < Duration::from_millis(50) {
            for at in (0..block.len()).step_by(4096) {
                block[at] = block[at].wrapping_add(1);
            }
        }
        let (after, large) = (tree.cpu().expect("ours"), tree.memory("Rss").expect("ours"));
        std::hint::black_box(block);
        assert!(
            after - before > Duration::from_millis(20),
            "{before:?} {after:?}"
        );
        assert!(large > small + (30 << 20), "{small} {large}");
    }

    #[test]
    fn busy_time_is_all_but_waiting_and_guests() {
        let stat = "cpu  10 20 30 1000 500 1 2 3 10 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy(stat), Some(Duration::from_millis(660)));
        assert_eq!(busy("cpu  10 20"), None);
    }

    #[test]
    fn tree_holds_children() {
        let child = std::process::Command::new("sleep").arg("60").spawn();
        let mut child = child.expect("coreutils are there");
        assert!(Tree::of(std::process::id()).pids().contains(&child.id()));
        child.kill().expect("ours");
        child.wait().expect("ours");
    }
}
