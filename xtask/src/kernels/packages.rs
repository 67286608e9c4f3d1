//! Kernels from Debian's packages: found in the archive that this machine's own sources name,
//! downloaded into `target/kernels`, unpacked there. Nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run;

/// Releases of Debian whose kernels are looked at, old ones first: the archive's path below the
/// mirror, and the suite.
const SUITES: [(&str, &str); 5] = [
    ("debian", "bullseye"),
    ("debian-security", "bullseye-security"),
    ("debian", "bookworm"),
    ("debian", "trixie"),
    ("debian", "sid"),
];
/// Names the kernel of a suite by a dependency. The cloud flavour is the same source with fewer
/// drivers.
const META: &str = "linux-image-cloud-amd64";
/// Packages that a kernel is split into.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// One kernel, unpacked.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// `6.1`, or `newest`: what was asked for.
    pub(super) wanted: String,
    /// Debian's version of the package.
    pub(super) version: String,
    /// The image that qemu boots.
    pub(super) image: PathBuf,
    /// Where its modules are: `.../lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
}

/// apt with lists and sources of our own, beside the machine's.
#[derive(Debug)]
struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Makes the folders and the sources, from the mirror that the machine itself uses.
    fn prepare(root: &Path) -> Result<Self> {
        let dir = root.join("apt");
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        let mirror = mirror()?;
        let sources: String = SUITES
            .iter()
            .map(|(archive, suite)| {
                format!(
                    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                     {mirror}/{archive} {suite} main\n"
                )
            })
            .collect();
        fs::write(dir.join("sources.list"), sources)?;
        Ok(Self { dir })
    }

    fn command(&self, program: &str) -> Command {
        let path = |sub: &str| self.dir.join(sub).display().to_string();
        let mut command = run::command(program);
        for (option, value) in [
            ("Dir::Etc::sourcelist", path("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::State::lists", path("lists")),
            ("Dir::State::status", path("status")),
            ("Dir::Cache", path("cache")),
            ("Acquire::Languages", "none".to_owned()),
            ("APT::Architecture", "amd64".to_owned()),
            // The folder is ours alone: apt's own user can't write to it.
            ("APT::Sandbox::User", "root".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        command
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        let output = self.command("apt-cache").args(args).output()?;
        ensure!(
            output.status.success(),
            "apt-cache {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Kernels by version: Debian's version, and the package that is the kernel.
    fn kernels(&self) -> Result<Vec<(String, String)>> {
        let text = self.ask(&["show", META])?;
        let mut found: Vec<(String, String)> = text.split("\n\n").filter_map(stanza).collect();
        found.sort_by_key(|(version, _)| numbers(version));
        Ok(found)
    }

    /// The package and the parts of the kernel that it depends on.
    fn parts(&self, package: &str) -> Result<Vec<String>> {
        let mut found = vec![package.to_owned()];
        let mut next = 0;
        while let Some(package) = found.get(next).cloned() {
            next += 1;
            let text = self.ask(&["show", "--no-all-versions", &package])?;
            for name in field(&text, "Depends").into_iter().flat_map(depends) {
                let part = PARTS.iter().any(|part| name.starts_with(part));
                if part && !found.contains(&name) {
                    found.push(name);
                }
            }
        }
        Ok(found)
    }
}

/// Downloads and unpacks the kernels that were asked for.
pub(super) fn get(root: &Path, wanted: &[String]) -> Result<Vec<Kernel>> {
    let apt = Apt::prepare(root)?;
    let mut update = apt.command("apt-get");
    run::run(update.args(["-qq", "update"])).context("the package lists can't be fetched")?;
    let kernels = apt.kernels()?;
    let mut found = Vec::new();
    for name in wanted {
        let (version, package) = choose(&kernels, name).with_context(|| {
            let all: Vec<&str> = kernels
                .iter()
                .map(|(version, _)| version.as_str())
                .collect();
            format!("no packaged kernel {name}; there are {}", all.join(", "))
        })?;
        let dir = root.join(package);
        if !dir.join("complete").is_file() {
            unpack(&apt, package, &dir)?;
        }
        let modules = modules_below(&dir)?;
        // Newer packages have the image beside the modules.
        let image = match modules.join("vmlinuz") {
            image if image.is_file() => image,
            _ => one_below(&dir.join("boot"), "vmlinuz-")?,
        };
        found.push(Kernel {
            wanted: name.clone(),
            version: version.clone(),
            image,
            modules,
        });
    }
    Ok(found)
}

/// `newest`, or the newest of a series such as `6.1`.
fn choose<'a>(kernels: &'a [(String, String)], wanted: &str) -> Option<&'a (String, String)> {
    if wanted == "newest" {
        return kernels.last();
    }
    let series = format!("{wanted}.");
    kernels
        .iter()
        .rfind(|(version, _)| version.starts_with(&series))
}

fn unpack(apt: &Apt, package: &str, dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    let debs = dir.join("debs");
    fs::create_dir_all(&debs)?;
    let parts = apt.parts(package)?;
    let mut download = apt.command("apt-get");
    download.args(["-qq", "download"]).args(&parts);
    run::run(download.current_dir(&debs)).with_context(|| format!("can't download {package}"))?;
    for entry in fs::read_dir(&debs)? {
        let mut unpack = run::command("dpkg-deb");
        run::run(unpack.arg("-x").arg(entry?.path()).arg(dir))?;
    }
    fs::remove_dir_all(&debs)?;
    Ok(fs::write(dir.join("complete"), "")?)
}

/// The base of Debian's mirror, as the machine's own sources name it.
fn mirror() -> Result<String> {
    let lines = run::ask(
        "apt-get",
        &["indextargets", "--format", "$(REPO_URI)", "Origin: Debian"],
    )
    .unwrap_or_default();
    let base = lines.lines().find_map(|line| {
        let line = line.trim_end_matches('/');
        line.strip_suffix("/debian").map(str::to_owned)
    });
    match base {
        Some(base) => Ok(base),
        None => bail!(
            "no Debian archive among this machine's package sources: kernels come from its packages"
        ),
    }
}

/// Version and kernel package of one stanza of `apt-cache show`.
fn stanza(text: &str) -> Option<(String, String)> {
    let version = field(text, "Version")?;
    let package = depends(field(text, "Depends")?).find(|name| name.starts_with(PARTS[0]))?;
    Some((version.to_owned(), package))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// The first name of each alternative.
fn depends(line: &str) -> impl Iterator<Item = String> {
    line.split(", ")
        .filter_map(|item| item.split([' ', '|']).next())
        .map(str::to_owned)
}

/// What versions are compared by: all numbers in it.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn one_below(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) {
            return Ok(path);
        }
    }
    bail!("nothing named {prefix}* in {}", dir.display())
}

/// `lib/modules/*`, which newer packages have below `usr`.
fn modules_below(dir: &Path) -> Result<PathBuf> {
    let places = [dir.join("lib/modules"), dir.join("usr/lib/modules")];
    places
        .iter()
        .find_map(|place| one_below(place, "").ok())
        .with_context(|| format!("no modules in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_is_the_newest_of_its_series() {
        let list: Vec<(String, String)> = ["5.10.223-1", "5.10.262-1", "6.1.176-1", "6.12.9-1"]
            .map(|version| (version.to_owned(), format!("linux-image-{version}")))
            .into();
        let version = |wanted| choose(&list, wanted).map(|(version, _)| version.as_str());
        assert_eq!(version("5.10"), Some("5.10.262-1"));
        assert_eq!(version("6.1"), Some("6.1.176-1"), "6.12 is another series");
        assert_eq!(version("newest"), Some("6.12.9-1"));
        assert_eq!(version("4.19"), None);
    }

    #[test]
    fn kernel_package_is_read_from_the_dependencies() {
        let text = "Package: m\nVersion: 7.2.13-1\nDepends: linux-base-cloud-amd64 (= 7.2.13-1), \
                    linux-image-7.2.13-cloud-amd64 (= 7.2.13-1)";
        let expected = (
            "7.2.13-1".to_owned(),
            "linux-image-7.2.13-cloud-amd64".to_owned(),
        );
        assert_eq!(stanza(text), Some(expected));
        assert_eq!(stanza("Package: m"), None);
        assert!(numbers("6.12.9-1") > numbers("6.1.176-1"));
    }
}
