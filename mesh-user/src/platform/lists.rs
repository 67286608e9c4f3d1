//! List files: one address range a line.
//!
//! A file that can't be used is refused as a whole, with the place of each fault; what was read from
//! it last stays in force.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::file::Fingerprint;
use crate::model::shield::Net;

/// Largest file. A million of the longest lines take 50 MB.
const BYTES_MAX: u64 = 64 << 20;

/// Faults that are told of one file.
const FAULTS_MAX: usize = 10;

/// A list file that is watched.
#[derive(Debug)]
pub struct ListFile {
    path: PathBuf,
    seen: Option<Fingerprint>,
    /// What was in it last that could be used; none: nothing yet.
    pub good: Option<Arc<[Net]>>,
    /// Why what is in it now can't be used.
    pub fault: Option<String>,
}

impl ListFile {
    /// A file that was not read yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            seen: None,
            good: None,
            fault: None,
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it when it was written since the last look, or in any case; whether its good content
    /// is another one now.
    pub fn look(&mut self, anyway: bool) -> bool {
        // Before reading: what is written meanwhile is seen by the next look.
        let now = Fingerprint::of(&self.path);
        let first = self.good.is_none() && self.fault.is_none();
        if !anyway && !first && now == self.seen {
            return false;
        }
        self.seen = now;
        let read = read_or(&self.path, || {
            // It may be readable the next time without having been written: look again.
            self.seen = None;
        });
        match read {
            Ok(nets) => {
                self.fault = None;
                let new = self.good.as_deref() != Some(&nets);
                self.good = Some(nets.into());
                new
            }
            Err(fault) => {
                if self.fault.as_ref() != Some(&fault) {
                    tracing::warn!(%fault, "list file refused, its last good content stays in force");
                }
                self.fault = Some(fault);
                false
            }
        }
    }
}

/// Reads a list.
///
/// # Errors
/// The file can't be read, or lines in it are no ranges: up to ten of them, each with its place.
pub fn read(path: &Path) -> Result<Vec<Net>, String> {
    read_or(path, || {})
}

/// The same; `unread` is told of a failure that says nothing of the file's content.
fn read_or(path: &Path, unread: impl FnOnce()) -> Result<Vec<Net>, String> {
    let name = path.display();
    let text = match text(path) {
        Ok(text) => text,
        Err(error) => {
            // Not UTF-8: reading it again makes it no better.
            if error.kind() != io::ErrorKind::InvalidData {
                unread();
            }
            return Err(format!("{name}: {error}"));
        }
    };
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("{name}: larger than {} MiB", BYTES_MAX >> 20));
    }
    parse(&name.to_string(), &text)
}

fn text(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(name: &str, text: &str) -> Result<Vec<Net>, String> {
    let mut nets = Vec::new();
    let mut faults = Vec::new();
    let mut more = 0;
    for (line, number) in text.lines().zip(1..) {
        let value = line.split('#').next().unwrap_or_default().trim();
        if value.is_empty() {
            continue;
        }
        match value.parse() {
            Ok(net) => nets.push(net),
            Err(_) if faults.len() >= FAULTS_MAX => more += 1,
            Err(error) => {
                let shown: String = value
                    .chars()
                    .take(64)
                    .flat_map(char::escape_debug)
                    .collect();
                faults.push(format!("{name}:{number}: `{shown}` {error}"));
            }
        }
    }
    if faults.is_empty() {
        return Ok(nets);
    }
    if more > 0 {
        faults.push(format!("{name}: {more} more lines can't be used"));
    }
    Err(faults.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_takes_ranges_addresses_comments_and_empty_lines() {
        let nets = parse(
            "x",
            "# head\n\n203.0.113.0/24  # why\r\n2001:db8::/32\n10.0.0.1\n",
        );
        let shown: Vec<String> = nets.expect("good").iter().map(Net::to_string).collect();
        assert_eq!(shown, ["203.0.113.0/24", "2001:db8::/32", "10.0.0.1/32"]);
    }

    #[test]
    fn list_faults_are_named_with_their_lines() {
        let error = parse("/x", "10.0.0.0/8\n10.0.0.1/8\nexample.org\n").expect_err("two faults");
        let lines: Vec<&str> = error.lines().collect();
        assert!(
            lines[0].starts_with("/x:2: `10.0.0.1/8` has bits set"),
            "{error}"
        );
        assert!(lines[0].ends_with("10.0.0.0/8?"), "{error}");
        assert!(
            lines[1].starts_with("/x:3: `example.org` is no address range"),
            "{error}"
        );
        let many = "x\n".repeat(15);
        let error = parse("/x", &many).expect_err("all");
        assert_eq!(error.lines().count(), FAULTS_MAX + 1);
        assert!(error.ends_with("/x: 5 more lines can't be used"), "{error}");
    }

    #[test]
    fn list_with_a_fault_keeps_its_last_good_content() {
        let path = std::env::temp_dir().join(format!("mesh-shield-list-{}", std::process::id()));
        let mut list = ListFile::new(&path);
        assert!(!list.look(false));
        assert!(
            list.fault
                .as_deref()
                .expect("missing")
                .contains("No such file")
        );
        std::fs::write(&path, "10.0.0.0/8\n").expect("write");
        assert!(list.look(false));
        assert!(!list.look(false) && !list.look(true), "nothing new");
        std::fs::write(&path, "10.0.0.0/8\nx\n").expect("write");
        assert!(!list.look(false));
        assert!(list.fault.as_deref().expect("a fault").contains(":2:"));
        assert_eq!(list.good.as_deref().map(<[Net]>::len), Some(1));
        std::fs::write(&path, "10.0.0.0/8\n11.0.0.0/8\n").expect("write");
        assert!(list.look(false) && list.fault.is_none());
        std::fs::remove_file(&path).expect("clean up");
    }

    /// Without it: a failure to read that passes by itself (no descriptors, a slow mount) stays until
    /// somebody writes the file.
    #[test]
    fn list_that_could_not_be_read_is_read_again_unchanged() {
        let folder = std::env::temp_dir();
        let mut list = ListFile::new(&folder);
        assert!(!list.look(false) && list.fault.is_some());
        assert_eq!(list.seen, None, "the next look reads");
        let path = folder.join(format!("mesh-shield-bad-{}", std::process::id()));
        std::fs::write(&path, "nonsense\n").expect("write");
        let mut list = ListFile::new(&path);
        assert!(!list.look(false) && list.fault.is_some());
        assert_ne!(list.seen, None, "what was read is not read again");
        std::fs::write(&path, [0xff, 0xfe]).expect("write");
        assert!(!list.look(false));
        assert_ne!(list.seen, None, "nor what is no text");
        std::fs::remove_file(&path).expect("clean up");
    }
}
