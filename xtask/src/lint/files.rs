//! What is committed: no object files, every crate under the workspace's lints, no huge file.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{metadata::Package, run};

/// A file of more lines is worth a question: does it hold two ideas?
const LINES_MAX: usize = 700;

/// Crates that do not opt in to the workspace's lints.
pub(super) fn lints_opted_in(packages: &[Package]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for package in packages {
        let manifest = package.dir.join("Cargo.toml");
        let text = fs::read_to_string(&manifest)
            .with_context(|| format!("can't read {}", manifest.display()))?;
        if !opts_in(&text) {
            found.push(format!(
                "{}: no `[lints] workspace = true`",
                manifest.display()
            ));
        }
    }
    Ok(found)
}

fn opts_in(manifest: &str) -> bool {
    let mut lines = manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[lints]")
        .skip(1);
    let mut section = lines.by_ref().take_while(|line| !line.starts_with('['));
    section.any(|line| line.replace(' ', "") == "workspace=true")
}

/// Built files under version control; prints which sources are long.
pub(super) fn committed(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in tracked(root)? {
        let path = root.join(&file);
        // A file that is removed but not yet committed as such.
        if !path.is_file() {
            continue;
        }
        if is_object(&path)? {
            found.push(format!(
                "{file}: a built object; `cargo xtask build-ebpf` makes it"
            ));
        } else if file.ends_with(".rs") {
            let lines = fs::read_to_string(&path)
                .with_context(|| format!("can't read {file}"))?
                .lines()
                .count();
            if lines > LINES_MAX {
                println!("note: {file} has {lines} lines: does it hold two ideas?");
            }
        }
    }
    Ok(found)
}

fn tracked(root: &Path) -> Result<Vec<String>> {
    let mut git = run::command("git");
    let output = git
        .current_dir(root)
        .args(["ls-files", "-z"])
        .output()
        .context("no git")?;
    if !output.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

/// ELF files and static libraries, whatever they are called.
fn is_object(path: &PathBuf) -> Result<bool> {
    let mut magic = Vec::new();
    let file = fs::File::open(path).with_context(|| format!("can't open {}", path.display()))?;
    file.take(8).read_to_end(&mut magic)?;
    Ok(magic.starts_with(b"\x7fELF") || magic.starts_with(b"!<arch>\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opting_in_is_found_in_its_own_section_only() {
        assert!(opts_in(
            "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"
        ));
        assert!(!opts_in("[package]\nworkspace = true\n"));
        assert!(!opts_in("[lints]\n[dependencies]\nworkspace = true\n"));
        assert!(!opts_in("[lints]\nworkspace = false\n"));
    }

    #[test]
    fn objects_are_known_by_their_first_bytes() {
        let path = std::env::temp_dir().join(format!("xtask-magic-{}", std::process::id()));
        for (bytes, object) in [
            (&b"\x7fELF\x02"[..], true),
            (b"fn main() {}", false),
            (b"", false),
        ] {
            fs::write(&path, bytes).expect("written");
            assert_eq!(is_object(&path).expect("read"), object, "{bytes:?}");
        }
        fs::remove_file(&path).expect("removed");
    }
}
