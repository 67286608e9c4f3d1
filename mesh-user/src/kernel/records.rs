//! What the agent leaves for those who come after it: names for the command line, and what
//! `mesh cleanup` must undo in each namespace. A small JSON file in the run directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Instance;

/// A workload that was enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pod_id: u32,
    /// `namespace/name`.
    pub(super) key: String,
    /// Where its namespace was found.
    pub(super) netns: PathBuf,
    /// Inode of the namespace: a path may hold another one by now.
    pub(super) inode: u64,
    /// Cookie of the namespace.
    pub(super) cookie: u64,
    /// Settings of the namespace before us, where we changed them: `name=value`, by spaces.
    pub(super) sysctl_before: Option<String>,
    /// Its enrolment failed, its failure mode holds: nobody has probed its path yet.
    #[serde(default)]
    pub(super) held: bool,
}

fn file(instance: &Instance) -> PathBuf {
    instance.run_dir().join("workloads.json")
}

/// The records; none when there is no file or it can't be read as one.
pub(super) fn read(instance: &Instance) -> Vec<Record> {
    fs::read(file(instance))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// What other instances have recorded: instance name, records.
pub(super) fn of_others(own: &Instance) -> Vec<(String, Vec<Record>)> {
    let dir = own.run_dir();
    let siblings = dir.parent().map(fs::read_dir).into_iter().flatten();
    siblings
        .flatten()
        .flatten()
        .filter_map(|entry| Instance::new(entry.file_name().to_str()?).ok())
        .filter(|other| other != own)
        .map(|other| (other.name().to_owned(), read(&other)))
        .collect()
}

/// Replaces the records, atomically.
pub(super) fn write(instance: &Instance, records: &[&Record]) -> io::Result<()> {
    let path = file(instance);
    let fresh = path.with_extension("json.new");
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    fs::write(&fresh, serde_json::to_vec_pretty(records)?)?;
    fs::rename(fresh, path)
}
