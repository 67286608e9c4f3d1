//! The numbers of versions and of connection caps in the maps.
//!
//! Sockets remember them (`Intent::cap`) and so do endpoints (`Backend::version_id`), so they must
//! outlive the agent: they stand by name in a small JSON file in the run directory, written before
//! any map is. Where that file is lost the next agent starts anew, and leaves out the numbers of
//! caps that connections still hold places of: a place that is given back is never another's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use mesh_common::service::CAPS_MAX;
use serde::{Deserialize, Serialize};

use super::{Instance, error::KernelError};
use crate::model::kernel_table::KernelVersion;

/// By `namespace/name:port version`.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    versions: Names,
    caps: Names,
    /// Caps without a version, whose places connections still hold.
    lingering: BTreeSet<String>,
    /// Whether the file has something else.
    changed: bool,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    versions: BTreeMap<String, u32>,
    caps: BTreeMap<String, u32>,
}

/// Names with their numbers.
#[derive(Clone, Debug, Default)]
struct Names {
    given: HashMap<String, Given>,
    /// Below the next number that was never given.
    last: u32,
    free: BTreeSet<u32>,
    /// Freed in this round: another's in the next one at the earliest.
    resting: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Given {
    number: u32,
    /// How many tables name it.
    uses: u32,
}

/// What a version is called in the file.
fn name(version: &KernelVersion) -> String {
    format!("{}:{} {}", version.service, version.port, version.version)
}

fn file(instance: &Instance) -> PathBuf {
    instance.run_dir().join("versions.json")
}

impl Names {
    fn new(given: BTreeMap<String, u32>) -> Self {
        let last = given.values().copied().max().unwrap_or(0);
        let taken: BTreeSet<u32> = given.values().copied().collect();
        let given = given.into_iter();
        Self {
            given: given
                .map(|(name, number)| (name, Given { number, uses: 0 }))
                .collect(),
            last,
            free: (1..last).filter(|number| !taken.contains(number)).collect(),
            resting: Vec::new(),
        }
    }

    fn turn(&mut self) {
        self.free.extend(self.resting.drain(..));
    }

    fn get(&self, name: &str) -> Option<u32> {
        self.given.get(name).map(|given| given.number)
    }

    /// Notes one use more. The number, and whether it is new.
    fn take(&mut self, name: String, busy: &dyn Fn(u32) -> bool) -> (u32, bool) {
        if let Some(given) = self.given.get_mut(&name) {
            given.uses += 1;
            return (given.number, false);
        }
        let free = self.free.iter().copied().find(|number| !busy(*number));
        let number = match free {
            Some(number) => number,
            None => loop {
                self.last += 1;
                if !busy(self.last) {
                    break self.last;
                }
                self.free.insert(self.last);
            },
        };
        self.free.remove(&number);
        self.given.insert(name, Given { number, uses: 1 });
        (number, true)
    }

    /// Notes one use less; whether none is left.
    fn leave(&mut self, name: &str) -> bool {
        let given = self.given.get_mut(name);
        given.is_some_and(|given| {
            given.uses = given.uses.saturating_sub(1);
            given.uses == 0
        })
    }

    /// Takes a name that nobody uses out; whether it was there.
    fn forget(&mut self, name: &str) -> bool {
        if self.given.get(name).is_none_or(|given| given.uses > 0) {
            return false;
        }
        if let Some(given) = self.given.remove(name) {
            self.resting.push(given.number);
        }
        true
    }

    fn unused(&self) -> Vec<String> {
        let given = self.given.iter();
        let unused = given.filter(|(_, given)| given.uses == 0);
        unused.map(|(name, _)| name.clone()).collect()
    }

    fn sorted(&self) -> BTreeMap<String, u32> {
        let given = self.given.iter();
        given
            .map(|(name, given)| (name.clone(), given.number))
            .collect()
    }
}

impl Numbers {
    /// What an agent before us gave out; nothing when there is no file or it can't be read as one.
    pub(super) fn read(instance: &Instance) -> Self {
        let read = fs::read(file(instance)).ok();
        let known = read.and_then(|bytes| serde_json::from_slice::<File>(&bytes).ok());
        let File { versions, caps } = known.unwrap_or_default();
        Self {
            versions: Names::new(versions),
            caps: Names::new(caps),
            ..Self::default()
        }
    }

    /// Replaces the file, atomically, when it has something else.
    pub(super) fn write(&mut self, instance: &Instance) -> io::Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let path = file(instance);
        let fresh = path.with_extension("json.new");
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        let content = File {
            versions: self.versions.sorted(),
            caps: self.caps.sorted(),
        };
        fs::write(&fresh, serde_json::to_vec(&content)?)?;
        fs::rename(fresh, path)
    }

    /// Begins a round: what was freed in the last one is free.
    ///
    /// `busy` says whether connections hold places of a cap. Such a cap keeps its number, also
    /// while its version has no cap or is gone.
    pub(super) fn turn(&mut self, busy: &dyn Fn(u32) -> bool) {
        self.versions.turn();
        self.caps.turn();
        for name in std::mem::take(&mut self.lingering) {
            self.forget_cap(name, busy);
        }
    }

    fn forget_cap(&mut self, name: String, busy: &dyn Fn(u32) -> bool) {
        if self.caps.get(&name).is_some_and(busy) {
            self.lingering.insert(name);
        } else {
            self.changed |= self.caps.forget(&name);
        }
    }

    /// Numbers for a version of one more table, those that it has, else the lowest free ones from 1:
    /// its own, and that of its cap (0: it has none).
    pub(super) fn take(
        &mut self,
        version: &KernelVersion,
        busy: &dyn Fn(u32) -> bool,
    ) -> Result<(u32, u32), KernelError> {
        let name = name(version);
        let mut cap = 0;
        if version.cap.is_some() {
            let (number, new) = self.caps.take(name.clone(), busy);
            self.changed |= new;
            self.lingering.remove(&name);
            cap = number;
        }
        if cap >= CAPS_MAX {
            return Err(KernelError::Full {
                map: "CAPS",
                needed: cap as usize + 1,
                capacity: CAPS_MAX as usize,
            });
        }
        let (number, new) = self.versions.take(name, &|_| false);
        self.changed |= new;
        Ok((number, cap))
    }

    /// One table less names the version. The number of the cap that nothing is under any more.
    pub(super) fn leave(
        &mut self,
        version: &KernelVersion,
        busy: &dyn Fn(u32) -> bool,
    ) -> Option<u32> {
        let name = name(version);
        let mut unused = None;
        if version.cap.is_some() && self.caps.leave(&name) {
            unused = self.caps.get(&name);
            self.forget_cap(name.clone(), busy);
        }
        if self.versions.leave(&name) {
            self.changed |= self.versions.forget(&name);
        }
        unused
    }

    /// Lets go of what no table names: after the first one of an agent.
    pub(super) fn sweep(&mut self, busy: &dyn Fn(u32) -> bool) {
        for name in self.versions.unused() {
            self.changed |= self.versions.forget(&name);
        }
        for name in self.caps.unused() {
            self.forget_cap(name, busy);
        }
    }

    /// Number of a version; 0: none.
    pub(super) fn version(&self, version: &KernelVersion) -> u32 {
        self.versions.get(&name(version)).unwrap_or(0)
    }

    /// Number of a version's cap; 0: it has none.
    #[cfg(test)]
    pub(super) fn cap(&self, version: &KernelVersion) -> u32 {
        match version.cap {
            Some(_) => self.caps.get(&name(version)).unwrap_or(0),
            None => 0,
        }
    }

    /// Names by number: `namespace/name:port` and version.
    pub(super) fn names(&self) -> BTreeMap<u32, (String, String)> {
        let parts = |name: &str| {
            let (service, version) = name.split_once(' ').unwrap_or((name, "?"));
            (service.to_owned(), version.to_owned())
        };
        let given = self.versions.given.iter();
        given
            .map(|(name, given)| (given.number, parts(name)))
            .collect()
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

    /// The next round, of which these versions are all: what `had` names and it doesn't goes.
    fn next(
        numbers: &Numbers,
        had: &[&KernelVersion],
        wanted: &[&KernelVersion],
        busy: &dyn Fn(u32) -> bool,
    ) -> Result<Numbers, KernelError> {
        let mut next = numbers.clone();
        next.turn(busy);
        for version in wanted {
            next.take(version, busy)?;
        }
        for version in had {
            next.leave(version, busy);
        }
        Ok(next)
    }

    #[test]
    fn numbers_stay_and_freed_ones_rest_for_one_round() {
        let (a, b, c) = (
            version("a", Some(1)),
            version("b", None),
            version("c", Some(9)),
        );
        let none = Numbers::default();
        let first = next(&none, &[], &[&a, &b], &idle).unwrap();
        assert_eq!((first.version(&a), first.version(&b)), (1, 2));
        assert_eq!((first.cap(&a), first.cap(&b)), (1, 0));
        let second = next(&first, &[&a, &b], &[&b, &c], &idle).unwrap();
        assert_eq!((second.version(&b), second.version(&c)), (2, 3));
        assert_eq!(second.cap(&c), 2, "what `a` had is nobody's yet");
        let third = next(&second, &[&b, &c], &[&b, &c, &a], &idle).unwrap();
        assert_eq!((third.version(&a), third.cap(&a)), (1, 1));
        assert_eq!((third.version(&c), third.cap(&c)), (3, 2));
    }

    /// Without it: a connection gives its place back to another version's cap.
    #[test]
    fn cap_keeps_its_number_while_connections_hold_places() {
        let (a, b) = (version("a", Some(1)), version("b", Some(1)));
        let none = Numbers::default();
        let first = next(&none, &[], &[&a], &idle).unwrap();
        let busy = |number| number == 1;
        let gone = next(&first, &[&a], &[], &busy).unwrap();
        let gone = next(&gone, &[], &[], &busy).unwrap();
        let other = next(&gone, &[], &[&b], &busy).unwrap();
        assert_eq!(other.cap(&b), 2);
        let back = next(&other, &[&b], &[&a, &b], &busy).unwrap();
        assert_eq!((back.cap(&a), back.cap(&b)), (1, 2));
        // Without the file the number is left out all the same.
        let lost = next(&none, &[], &[&b], &busy).unwrap();
        assert_eq!(lost.cap(&b), 2);
    }

    #[test]
    fn more_caps_than_the_map_holds_are_refused_by_its_name() {
        let versions: Vec<KernelVersion> = (0..CAPS_MAX)
            .map(|n| version(&n.to_string(), Some(1)))
            .collect();
        let all: Vec<&KernelVersion> = versions.iter().collect();
        let none = Numbers::default();
        assert!(next(&none, &[], &all[1..], &idle).is_ok());
        let error = next(&none, &[], &all, &idle);
        let error = error.expect_err("refused").to_string();
        assert!(error.contains("CAPS"), "{error}");
    }

    #[test]
    fn names_are_split_as_they_were_joined() {
        let tagged = KernelVersion {
            version: "app=x y,z=1".into(),
            ..version("", None)
        };
        let numbers = next(&Numbers::default(), &[], &[&tagged], &idle).unwrap();
        let (service, version) = &numbers.names()[&1];
        assert_eq!((&**service, &**version), ("default/web:80", "app=x y,z=1"));
    }
}
