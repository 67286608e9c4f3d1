//! The files and folders that `gateway-api` names.

use std::{
    fs,
    hash::Hasher,
    path::{Path, PathBuf},
};

use crate::config::{
    report::Code,
    source::{self, FILE_BYTES_MAX, ReadFault},
};

/// Most files of all folders together, and most bytes of all files.
const FILES_MAX: usize = 1024;
const BYTES_MAX: u64 = 4 * FILE_BYTES_MAX;

/// A file, with the entry of the list that it belongs to.
pub(crate) struct Found {
    pub(crate) entry: usize,
    pub(crate) path: PathBuf,
    pub(crate) text: Result<String, ReadFault>,
}

/// Reads what the entries name, in their order; of a folder the files that end in `.yaml` or `.yml`,
/// by name, without those that begin with a dot.
pub(crate) fn read(entries: &[PathBuf]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for (entry, path) in entries.iter().enumerate() {
        match members(path) {
            Ok(paths) => {
                for path in paths {
                    let mut text = source::read(&path);
                    if found.len() >= FILES_MAX {
                        text = Err((
                            Code::BadCount,
                            format!("is one of more than {FILES_MAX} files"),
                            "fewer files, with several objects in each",
                        ));
                    }
                    bytes += text.as_ref().map_or(0, |text| text.len() as u64);
                    if bytes > BYTES_MAX {
                        text = Err((
                            Code::FileTooLarge,
                            format!("is beyond {} MiB of all files together", BYTES_MAX >> 20),
                            "smaller files",
                        ));
                    }
                    let stop = found.len() >= FILES_MAX || bytes > BYTES_MAX;
                    found.push(Found { entry, path, text });
                    if stop {
                        return found;
                    }
                }
            }
            Err(fault) => found.push(Found {
                entry,
                path: path.clone(),
                text: Err(fault),
            }),
        }
    }
    found
}

/// The files of a folder; a file is its own only one.
fn members(path: &Path) -> Result<Vec<PathBuf>, ReadFault> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let fault = |error: std::io::Error| {
        (
            Code::FileUnreadable,
            format!("can't be read: {error}"),
            "a folder that the agent's user may read",
        )
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let yaml = name.ends_with(b".yaml") || name.ends_with(b".yml");
        if yaml && !name.starts_with(b".") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The paths whose change may be a change of what [`read`] gives.
pub(crate) fn watched(entries: &[PathBuf]) -> Vec<PathBuf> {
    let files = entries
        .iter()
        .flat_map(|path| members(path).unwrap_or_default());
    entries.iter().cloned().chain(files).collect()
}

/// Hashes names and contents.
pub(crate) fn digest(found: &[Found], hasher: &mut impl Hasher) {
    for file in found {
        let name = file.path.file_name().unwrap_or_default();
        hasher.write(name.as_encoded_bytes());
        hasher.write(&[0]);
        match &file.text {
            Ok(text) => hasher.write(text.as_bytes()),
            Err((code, why, _)) => {
                hasher.write(code.name().as_bytes());
                hasher.write(why.as_bytes());
            }
        }
        hasher.write(&[0]);
    }
}
