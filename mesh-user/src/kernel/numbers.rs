//! The numbers of versions and of connection caps in the maps.
//!
//! Sockets remember them (`Intent::cap`) and so do endpoints (`Backend::version_id`), so they must
//! outlive the agent: they stand by name in a small JSON file in the run directory, written before
//! any map is. Where that file is lost the next agent starts anew, and leaves out the numbers of
//! caps that connections still hold places of: a place that is given back is never another's.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use mesh_common::service::CAPS_MAX;
use serde::{Deserialize, Serialize};

use super::{Instance, error::KernelError};
use crate::model::kernel_table::KernelVersion;

/// By `namespace/name:port version`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Numbers {
    versions: BTreeMap<String, u32>,
    caps: BTreeMap<String, u32>,
}

/// What a version is called in the file.
fn name(version: &KernelVersion) -> String {
    format!("{}:{} {}", version.service, version.port, version.version)
}

fn file(instance: &Instance) -> PathBuf {
    instance.run_dir().join("versions.json")
}

impl Numbers {
    /// What an agent before us gave out; nothing when there is no file or it can't be read as one.
    pub(super) fn read(instance: &Instance) -> Self {
        fs::read(file(instance))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Replaces the file, atomically.
    pub(super) fn write(&self, instance: &Instance) -> io::Result<()> {
        let path = file(instance);
        let fresh = path.with_extension("json.new");
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::rename(fresh, path)
    }

    /// Numbers for these versions: those that they have, else the lowest free ones, from 1.
    ///
    /// `busy` says whether connections hold places of a cap. Such a cap keeps its number, also
    /// while its version has no cap or is gone.
    pub(super) fn next<'v>(
        &self,
        wanted: impl Iterator<Item = &'v KernelVersion> + Clone,
        busy: &dyn Fn(u32) -> bool,
    ) -> Result<Self, KernelError> {
        let mut caps: BTreeMap<String, u32> = self
            .caps
            .iter()
            .filter(|(_, number)| busy(**number))
            .map(|(name, number)| (name.clone(), *number))
            .collect();
        let capped = wanted.clone().filter(|version| version.cap.is_some());
        give(&self.caps, &mut caps, capped.map(name), busy);
        if let Some(most) = caps.values().max().filter(|most| **most >= CAPS_MAX) {
            return Err(KernelError::Full {
                map: "CAPS",
                needed: *most as usize + 1,
                capacity: CAPS_MAX as usize,
            });
        }
        let mut versions = BTreeMap::new();
        give(&self.versions, &mut versions, wanted.map(name), &|_| false);
        Ok(Self { versions, caps })
    }

    /// Number of a version; 0: none.
    pub(super) fn version(&self, version: &KernelVersion) -> u32 {
        self.versions.get(&name(version)).copied().unwrap_or(0)
    }

    /// Number of a version's cap; 0: it has none.
    pub(super) fn cap(&self, version: &KernelVersion) -> u32 {
        match version.cap {
            Some(_) => self.caps.get(&name(version)).copied().unwrap_or(0),
            None => 0,
        }
    }

    /// Names by number: `namespace/name:port` and version.
    pub(super) fn names(&self) -> BTreeMap<u32, (String, String)> {
        let parts = |name: &str| {
            let (service, version) = name.split_once(' ').unwrap_or((name, "?"));
            (service.to_owned(), version.to_owned())
        };
        self.versions
            .iter()
            .map(|(name, number)| (*number, parts(name)))
            .collect()
    }
}

/// Gives each name the number that it had, else the lowest that nobody has or had.
fn give(
    had: &BTreeMap<String, u32>,
    given: &mut BTreeMap<String, u32>,
    wanted: impl Iterator<Item = String>,
    busy: &dyn Fn(u32) -> bool,
) {
    let mut fresh = Vec::new();
    for name in wanted {
        match had.get(&name) {
            Some(number) => {
                given.insert(name, *number);
            }
            None => fresh.push(name),
        }
    }
    let taken: std::collections::BTreeSet<u32> =
        had.values().chain(given.values()).copied().collect();
    let mut free = (1..).filter(|number| !taken.contains(number) && !busy(*number));
    for name in fresh {
        given
            .entry(name)
            .or_insert_with(|| free.next().unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(name: &str, cap: Option<u32>) -> KernelVersion {
        KernelVersion {
            service: "default/web".into(),
            port: 80,
            version: name.into(),
            cap,
        }
    }

    fn idle(_: u32) -> bool {
        false
    }

    #[test]
    fn numbers_stay_and_freed_ones_rest_for_one_round() {
        let (a, b, c) = (
            version("a", Some(1)),
            version("b", None),
            version("c", Some(9)),
        );
        let first = Numbers::default()
            .next([&a, &b].into_iter(), &idle)
            .unwrap();
        assert_eq!((first.version(&a), first.version(&b)), (1, 2));
        assert_eq!((first.cap(&a), first.cap(&b)), (1, 0));
        let second = first.next([&b, &c].into_iter(), &idle).unwrap();
        assert_eq!((second.version(&b), second.version(&c)), (2, 3));
        assert_eq!(second.cap(&c), 2, "what `a` had is nobody's yet");
        let third = second.next([&b, &c, &a].into_iter(), &idle).unwrap();
        assert_eq!((third.version(&a), third.cap(&a)), (1, 1));
        assert_eq!((third.version(&c), third.cap(&c)), (3, 2));
    }

    /// Without it: a connection gives its place back to another version's cap.
    #[test]
    fn cap_keeps_its_number_while_connections_hold_places() {
        let (a, b) = (version("a", Some(1)), version("b", Some(1)));
        let first = Numbers::default().next([&a].into_iter(), &idle).unwrap();
        let busy = |number| number == 1;
        let gone = first.next([].into_iter(), &busy).unwrap();
        let gone = gone.next([].into_iter(), &busy).unwrap();
        let other = gone.next([&b].into_iter(), &busy).unwrap();
        assert_eq!(other.cap(&b), 2);
        let back = other.next([&a, &b].into_iter(), &busy).unwrap();
        assert_eq!((back.cap(&a), back.cap(&b)), (1, 2));
        // Without the file the number is left out all the same.
        let lost = Numbers::default().next([&b].into_iter(), &busy).unwrap();
        assert_eq!(lost.cap(&b), 2);
    }

    #[test]
    fn more_caps_than_the_map_holds_are_refused_by_its_name() {
        let versions: Vec<KernelVersion> = (0..CAPS_MAX)
            .map(|n| version(&n.to_string(), Some(1)))
            .collect();
        let fits = Numbers::default().next(versions.iter().skip(1), &idle);
        assert!(fits.is_ok());
        let error = Numbers::default().next(versions.iter(), &idle);
        let error = error.expect_err("refused").to_string();
        assert!(error.contains("CAPS"), "{error}");
    }

    #[test]
    fn names_are_split_as_they_were_joined() {
        let tagged = KernelVersion {
            version: "app=x y,z=1".into(),
            ..version("", None)
        };
        let numbers = Numbers::default()
            .next([&tagged].into_iter(), &idle)
            .unwrap();
        let (service, version) = &numbers.names()[&1];
        assert_eq!((&**service, &**version), ("default/web:80", "app=x y,z=1"));
    }
}
