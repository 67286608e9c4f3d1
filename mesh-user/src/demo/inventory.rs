//! What is in the kernel and on the machine, to prove that nothing was left.

use std::{collections::BTreeSet, fmt, path::Path};

use anyhow::Context as _;

use crate::{
    kernel::{Instance, inventory, mounts, view::View},
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
    /// Looks around: programs and maps with the names that only ours have, as `name#id`, this
    /// demo's pins, namespaces and cgroups.
    pub(super) fn take(name: &str) -> anyhow::Result<Self> {
        let instance = Instance::new(name).map_err(anyhow::Error::msg)?;
        let objects = inventory::loaded_objects().context("can't list the kernel's programs")?;
        let prefix = format!("mb-{name}");
        let cgroup2 = mounts::cgroup2()?.context("no cgroup2 mount")?;
        let mut cgroups = names(&cgroup2, |entry| entry.starts_with(&prefix));
        cgroups.extend(names(&cgroup2, |entry| {
            entry == format!("mesh-agent-{name}")
        }));
        Ok(Self {
            programs: objects.programs.into_iter().collect(),
            maps: objects.maps.into_iter().collect(),
            pins: inventory::pins(&instance)
                .iter()
                .map(|pin| pin.display().to_string())
                .collect(),
            namespaces: names(Path::new(testbed::NETNS_DIR), |entry| {
                entry.starts_with(&prefix)
            }),
            cgroups,
        })
    }

    /// What is left of this demo: of programs and maps those that were its own, for another agent
    /// may have started meanwhile.
    pub(super) fn left(name: &str, own: &BTreeSet<String>) -> anyhow::Result<Self> {
        let mut left = Self::take(name)?;
        left.programs.retain(|object| own.contains(object));
        left.maps.retain(|object| own.contains(object));
        Ok(left)
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
                write!(
                    f,
                    " ({})",
                    count.iter().cloned().collect::<Vec<_>>().join(", ")
                )?;
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

/// The programs and maps that an instance has pinned now, as `name#id`.
pub(super) fn pinned(instance: &Instance) -> anyhow::Result<BTreeSet<String>> {
    let view = View::open(instance).context("no pins of the agent")?;
    let mut own: BTreeSet<String> = view
        .progs()
        .iter()
        .map(|row| format!("{}#{}", row.program, row.prog_id))
        .collect();
    own.extend(inventory::pinned_maps(instance));
    Ok(own)
}

/// What is left once the kernel had time to free what nobody refers to any more (it waits for its
/// readers first).
pub(super) fn settled(name: &str, own: &BTreeSet<String>) -> anyhow::Result<Inventory> {
    let mut left = Inventory::left(name, own)?;
    let limit = std::time::Duration::from_secs(5);
    testbed::wait_until(limit, || {
        if let Ok(now) = Inventory::left(name, own) {
            left = now;
        }
        left.is_empty()
    });
    Ok(left)
}

fn names(dir: &Path, mut wanted: impl FnMut(&str) -> bool) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|entry| wanted(entry))
        .collect()
}
