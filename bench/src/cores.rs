//! Who runs where.
//!
//! The proxy has a processor of its own, the last that we may use: nothing then runs in its place,
//! and what it did not use is really idle. On two processors client and servers share the first:
//! together they need less of it for a request than any proxy needs of its own, so it is the proxy
//! that is full first. With three or more, client and servers have one each.

use std::{ffi::OsStr, process::Command};

use anyhow::{Result, bail};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};

/// Processors by role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) client: usize,
    pub(crate) server: usize,
    pub(crate) proxy: usize,
}

impl Cores {
    /// # Errors
    /// Fewer than two processors: proxy and load would fight for one.
    pub(crate) fn assign() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let allowed: Vec<usize> = (0..CpuSet::count())
            .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
            .collect();
        Self::of(&allowed)
    }

    fn of(allowed: &[usize]) -> Result<Self> {
        match allowed {
            [] | [_] => bail!("the bench needs two processors: one is for the proxy alone"),
            [first, last] => Ok(Self {
                client: *first,
                server: *first,
                proxy: *last,
            }),
            [first, second, .., last] => Ok(Self {
                client: *first,
                server: *second,
                proxy: *last,
            }),
        }
    }

    /// For people.
    pub(crate) fn text(self) -> String {
        if self.client == self.server {
            let Self { client, proxy, .. } = self;
            return format!("proxy alone on processor {proxy}, client and servers on {client}");
        }
        let Self {
            client,
            server,
            proxy,
        } = self;
        format!("proxy alone on processor {proxy}, client on {client}, servers on {server}")
    }
}

/// A command that runs on one processor; `taskset` replaces itself by it.
pub(crate) fn pinned(core: usize, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

/// As many open files as we may have, for us and what we start: idle connections are counted in
/// thousands.
pub(crate) fn raise_descriptor_limit() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_never_shares_its_processor() {
        for allowed in [&[0, 1][..], &[2, 5], &[0, 1, 2], &[1, 3, 5, 7]] {
            let Cores {
                client,
                server,
                proxy,
            } = Cores::of(allowed).expect("enough");
            assert!(proxy != client && proxy != server, "{allowed:?}");
        }
        assert!(Cores::of(&[0]).is_err());
    }
}
