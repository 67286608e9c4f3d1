//! The agent's own process, from `/proc/self`, under the names that every exporter uses.

use std::{fs, sync::OnceLock, time::SystemTime};

use nix::sys::resource::{Resource, getrlimit};

/// What `/proc` says. What can't be read is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) threads: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) start_seconds: Option<f64>,
}

/// Reads it. Some system calls, and one for each few hundred open descriptors.
pub(super) fn read() -> Process {
    let mut process = fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|stat| parse_stat(&stat))
        .unwrap_or_default();
    process.open_fds = fs::read_dir("/proc/self/fd")
        .ok()
        .map(|fds| fds.count() as u64);
    process.max_fds = getrlimit(Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(soft, _)| soft);
    process
}

/// Fields of proc(5) `stat` behind the command, which may contain anything but ends at the last
/// `)`.
fn parse_stat(stat: &str) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3 (state) is fields[0].
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = ticks_per_second();
    let page = page_bytes();
    Some(Process {
        cpu_seconds: Some((number(14)? + number(15)?) as f64 / ticks),
        threads: number(20),
        virtual_bytes: number(23),
        resident_bytes: number(24).map(|pages| pages * page),
        start_seconds: number(22).and_then(|start| started(start as f64 / ticks)),
        open_fds: None,
        max_fds: None,
    })
}

/// [`start_time`] of this process, found out once: uptime and wall clock are read one after the
/// other, and a value that trembles looks like restarts.
fn started(since_boot: f64) -> Option<f64> {
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED.get_or_init(|| start_time(since_boot))
}

/// Seconds since 1970 of a point that is given in seconds since boot.
fn start_time(since_boot: f64) -> Option<f64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_ascii_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    Some(now.as_secs_f64() - uptime + since_boot)
}

fn ticks_per_second() -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten();
    ticks.map_or(100.0, |ticks| ticks as f64)
}

fn page_bytes() -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten();
    page.and_then(|page| u64::try_from(page).ok())
        .unwrap_or(4_096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_parentheses_in_the_command_is_read_behind_the_last() {
        let stat = "7 (a) b) c) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1000 4096 3 18446744073709551615";
        let process = parse_stat(stat).expect("it is a valid line");
        assert_eq!(process.cpu_seconds, Some(300.0 / ticks_per_second()));
        assert_eq!(process.threads, Some(9));
        assert_eq!(process.virtual_bytes, Some(4_096));
        assert_eq!(process.resident_bytes, Some(3 * page_bytes()));
    }

    #[test]
    fn stat_that_is_cut_short_is_absent() {
        assert_eq!(parse_stat("7 (mesh) S 1 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn own_process_has_every_number() {
        let process = read();
        assert!(
            process.resident_bytes.is_some_and(|bytes| bytes > 100_000),
            "{process:?}"
        );
        assert!(process.open_fds.is_some_and(|fds| fds >= 3), "{process:?}");
        assert!(
            process.max_fds.is_some() && process.threads.is_some(),
            "{process:?}"
        );
        assert!(
            process.start_seconds.is_some_and(|start| start > 1.5e9),
            "{process:?}"
        );
    }
}
