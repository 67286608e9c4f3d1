//! What is in the kernel and on the machine, to prove that nothing was left.

use std::{collections::BTreeSet, fmt, path::Path};

use anyhow::Context as _;

use crate::{
    kernel::{Instance, inventory, mounts},
    testbed,
};

/// Everything that a demo could leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    programs: BTreeSet<String>,
    maps: BTreeSet<String>,
    pins: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    cgroups: BTreeSet<String>,
}

impl Inventory {
    /// Looks around. Programs and maps are counted by the names that only ours have.
    pub(super) fn take(name: &str) -> anyhow::Result<Self> {
        let instance = Instance::new(name).map_err(anyhow::Error::msg)?;
        let objects = inventory::loaded_objects().context("can't list the kernel's programs")?;
        let prefix = format!("mb-{name}");
        let cgroup2 = mounts::cgroup2()?.context("no cgroup2 mount")?;
        let mut cgroups = names(&cgroup2, |entry| entry.starts_with(&prefix));
        cgroups.extend(names(&cgroup2, |entry| entry == format!("mesh-agent-{name}")));
        Ok(Self {
            programs: objects.programs.into_iter().collect(),
            maps: objects.maps.into_iter().collect(),
            pins: inventory::pins(&instance)
                .iter()
                .map(|pin| pin.display().to_string())
                .collect(),
            namespaces: names(Path::new(testbed::NETNS_DIR), |entry| entry.starts_with(&prefix)),
            cgroups,
        })
    }

    /// What is here and was not there before.
    pub(super) fn since(&self, before: &Self) -> Self {
        let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| {
            now.difference(then).cloned().collect::<BTreeSet<_>>()
        };
        Self {
            programs: new(&self.programs, &before.programs),
            maps: new(&self.maps, &before.maps),
            pins: new(&self.pins, &before.pins),
            namespaces: new(&self.namespaces, &before.namespaces),
            cgroups: new(&self.cgroups, &before.cgroups),
        }
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = |count: &BTreeSet<String>, what: &str, last: bool| {
            write!(f, "{} {what}", count.len())?;
            if !count.is_empty() {
                write!(f, " ({})", count.iter().cloned().collect::<Vec<_>>().join(", "))?;
            }
            f.write_str(if last { " left" } else { ", " })
        };
        list(&self.programs, "programs", false)?;
        list(&self.maps, "maps", false)?;
        list(&self.pins, "pins", false)?;
        list(&self.namespaces, "namespaces", false)?;
        list(&self.cgroups, "cgroups", true)
    }
}

fn names(dir: &Path, mut wanted: impl FnMut(&str) -> bool) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeSet::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|entry| wanted(entry))
        .collect()
}
