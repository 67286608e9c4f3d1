//! The root file system of the machine under test: two programs, `ip`, their libraries, a few
//! kernel modules, as the kernel's own archive format (cpio, «newc»: Documentation/driver-api/
//! early-userspace/buffer-format.rst).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

use crate::run;

/// Modules that the test needs where the kernel has them as modules.
const MODULES: [&str; 5] = ["veth", "bridge", "sch_ingress", "cls_bpf", "tcp_diag"];

/// What the programs are copied from.
#[derive(Debug)]
pub(super) struct Programs {
    /// Becomes `/init`.
    pub(super) guest: PathBuf,
    /// Becomes `/bin/mesh`.
    pub(super) mesh: PathBuf,
}

/// Files by their path without the leading slash. Shared by all kernels: everything but modules.
pub(super) fn programs(programs: &Programs, scratch: &Path) -> Result<Archive> {
    let ip = run::which("ip").context("no `ip` command: apt-get install iproute2")?;
    let mut archive = Archive::default();
    for (source, to, strip) in [
        (&programs.guest, "init", true),
        (&programs.mesh, "bin/mesh", true),
        (&ip, "bin/ip", false),
    ] {
        let file = if strip {
            // Debug information is most of the file, and the guest's memory is small.
            let stripped = scratch.join("stripped");
            let mut strip = run::command("strip");
            run::run(strip.arg("-o").arg(&stripped).arg(source))?;
            fs::read(&stripped)?
        } else {
            fs::read(source)?
        };
        archive.file(to, file, 0o755);
        for library in libraries(source)? {
            let bytes = fs::read(&library).with_context(|| library.display().to_string())?;
            archive.file(&library.display().to_string(), bytes, 0o755);
        }
    }
    Ok(archive)
}

/// What the loader would map, and the loader itself.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let path = program.to_string_lossy();
    let text = run::ask("ldd", &[&path]).with_context(|| format!("ldd {path}"))?;
    Ok(text.lines().filter_map(library).collect())
}

/// `libc.so.6 => /lib/x/libc.so.6 (0x7f...)`, `/lib64/ld-linux-x86-64.so.2 (0x7f...)`.
fn library(line: &str) -> Option<PathBuf> {
    let target = line.split_once("=> ").map_or(line, |(_, target)| target);
    let path = target.split_whitespace().next()?;
    path.starts_with('/').then(|| path.into())
}

/// Adds the modules below `dir`, and the order in which they are loaded.
pub(super) fn add_modules(archive: &mut Archive, dir: &Path) -> Result<()> {
    let index = index(dir)?;
    let mut order = Vec::new();
    for name in MODULES {
        // Not among the modules: built in, or absent, which the guest's outcome will tell.
        add_module(archive, &index, name, &mut order)?;
    }
    archive.file("modules/order", order.join("\n").into_bytes(), 0o644);
    Ok(())
}

/// A module behind those that it needs.
fn add_module(
    archive: &mut Archive,
    index: &BTreeMap<String, PathBuf>,
    name: &str,
    order: &mut Vec<String>,
) -> Result<()> {
    let Some(path) = index.get(name) else {
        return Ok(());
    };
    let file = format!("{name}.ko");
    if order.contains(&file) {
        return Ok(());
    }
    let bytes = module(path)?;
    for need in needs(&bytes).with_context(|| path.display().to_string())? {
        add_module(archive, index, &need, order)?;
    }
    archive.file(&format!("modules/{file}"), bytes, 0o644);
    order.push(file);
    Ok(())
}

/// Every module by name. File names have `-` or `_` at will, names have `_`.
fn index(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.join("kernel")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
                continue;
            }
            let file = entry.file_name().to_string_lossy().replace('-', "_");
            if let Some((name, _)) = file.split_once(".ko") {
                found.insert(name.to_owned(), entry.path());
            }
        }
    }
    Ok(found)
}

/// The module's bytes, unpacked.
fn module(path: &Path) -> Result<Vec<u8>> {
    let unpacker = match path.extension().and_then(|name| name.to_str()) {
        Some("ko") => return Ok(fs::read(path)?),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{}: packed in a way that nobody here knows", path.display()),
    };
    let mut command = run::command(unpacker);
    let output = command.arg("-dc").arg(path).output();
    let output = output.with_context(|| format!("no `{unpacker}`: apt-get install it"))?;
    ensure!(
        output.status.success(),
        "{unpacker} -dc {}: {}",
        path.display(),
        output.status
    );
    Ok(output.stdout)
}

/// Modules that it needs: `depends=a,b` in its `.modinfo` (`modules.dep` is made when a kernel is
/// installed).
fn needs(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("not an ELF file")?;
    let section = file.section_by_name(".modinfo").context("no .modinfo")?;
    let line = section
        .data()?
        .split(|byte| *byte == 0)
        .find_map(|line| line.strip_prefix(b"depends="))
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(line)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect())
}

/// Files of an archive, by path.
#[derive(Clone, Debug, Default)]
pub(super) struct Archive {
    files: BTreeMap<String, (Vec<u8>, u32)>,
}

impl Archive {
    pub(super) fn file(&mut self, path: &str, bytes: Vec<u8>, mode: u32) {
        let path = path.trim_start_matches('/').to_owned();
        self.files.insert(path, (bytes, mode));
    }

    /// The archive's bytes: each folder before what is in it.
    pub(super) fn pack(&self) -> Result<Vec<u8>> {
        const DIR: u32 = 0o040_755;
        const FILE: u32 = 0o100_000;
        let mut folders: BTreeSet<PathBuf> = ["dev", "proc", "sys", "run", "tmp"]
            .map(PathBuf::from)
            .into();
        for path in self.files.keys() {
            let above = Path::new(path).ancestors().skip(1);
            folders.extend(
                above
                    .filter(|dir| *dir != Path::new(""))
                    .map(Path::to_owned),
            );
        }
        let mut packed = Vec::new();
        let mut number = 1;
        for folder in folders {
            entry(&mut packed, number, &folder.to_string_lossy(), DIR, &[])?;
            number += 1;
        }
        for (path, (bytes, mode)) in &self.files {
            entry(&mut packed, number, path, FILE | mode, bytes)?;
            number += 1;
        }
        entry(&mut packed, 0, "TRAILER!!!", 0, &[])?;
        Ok(packed)
    }
}

/// One entry: a header of 13 hexadecimal numbers, the name with its NUL, the bytes; name and bytes
/// are padded to four bytes.
fn entry(packed: &mut Vec<u8>, number: u32, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let size = u32::try_from(bytes.len()).context("a file of 4 GiB and more")?;
    let name_size = u32::try_from(name.len() + 1)?;
    packed.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, size, device (4), name size, check.
    for value in [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        packed.extend_from_slice(format!("{value:08X}").as_bytes());
    }
    packed.extend_from_slice(name.as_bytes());
    packed.push(0);
    pad(packed);
    packed.extend_from_slice(bytes);
    pad(packed);
    Ok(())
}

fn pad(packed: &mut Vec<u8>) {
    packed.resize(packed.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// The format is read by another reader than the kernel's: GNU cpio, where there is one, would
    /// list the same; here the header's own arithmetic is checked.
    #[test]
    fn archive_has_folders_before_files_and_a_trailer() {
        let mut archive = Archive::default();
        archive.file("/lib/x/a", b"12345".to_vec(), 0o644);
        let packed = archive.pack().expect("packs");
        let text = String::from_utf8_lossy(&packed).into_owned();
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name}"));
        assert!(at("lib\0") < at("lib/x\0") && at("lib/x\0") < at("lib/x/a\0"));
        assert!(text.ends_with("TRAILER!!!\0\0\0\0") && packed.len().is_multiple_of(4));
        // mode 0100644 and size 5 of the file's header.
        assert!(text.contains("000081A4") && text.contains("00000005"));
        std::io::sink().write_all(&packed).expect("a sink");
    }

    #[test]
    fn libraries_are_read_from_both_kinds_of_lines() {
        let path = |line| library(line).map(|path| path.display().to_string());
        let found = path("\tlibc.so.6 => /lib/x/libc.so.6 (0x7f00)");
        assert_eq!(found.as_deref(), Some("/lib/x/libc.so.6"));
        let found = path("\t/lib64/ld-linux-x86-64.so.2 (0x7f00)");
        assert_eq!(found.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(path("\tlinux-vdso.so.1 (0x7ffc)"), None);
    }
}
