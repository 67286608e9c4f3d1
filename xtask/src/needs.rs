//! What this machine needs, each thing with the way to get it: read by `doctor` and `setup`.

use std::path::Path;

use crate::{run, toolchain};

/// One thing that building, testing or the demo needs.
#[derive(Debug)]
pub(crate) struct Need {
    /// What it is.
    pub(crate) what: &'static str,
    /// What it is for: without it, that does not work.
    pub(crate) used_by: &'static str,
    /// What was found, or why it is missing and the exact fix.
    pub(crate) state: Result<String, Missing>,
}

/// Something that is not there.
#[derive(Debug)]
pub(crate) struct Missing {
    /// Why it counts as missing.
    pub(crate) why: String,
    /// One line that mends it.
    pub(crate) fix: String,
}

impl Missing {
    fn new(why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            fix: fix.into(),
        }
    }
}

/// Version of bpf-linker that the project is built with.
pub(crate) const LINKER_VERSION: &str = "0.13.0";

/// Debian's compiler whose BPF back end and sources fit (a backport beside the old `rustc`).
pub(crate) const DEBIAN_RUST: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// All needs, in the order in which they are best met.
pub(crate) fn all() -> Vec<Need> {
    vec![
        compiler(),
        linker(),
        program("cc", "gcc", "build"),
        program("ip", "iproute2", "test"),
        program("redis-server", "redis-server", "test"),
        kernel_btf(),
        cgroup2(),
        bpffs(),
        root(),
    ]
}

fn compiler() -> Need {
    let state = toolchain::find()
        .map(|toolchain| format!("{} ({})", toolchain.version, toolchain.origin()))
        .map_err(|missing| {
            let fix = if run::which("rustup").is_some() {
                "rustup toolchain install nightly --profile minimal --component rust-src".to_owned()
            } else {
                format!(
                    "apt-get install {}, or install rustup (rustup.rs)",
                    DEBIAN_RUST.join(" ")
                )
            };
            Missing::new(missing.join("; "), fix)
        });
    Need {
        what: "eBPF compiler",
        used_by: "build-ebpf",
        state,
    }
}

fn linker() -> Need {
    let state = toolchain::linker()
        .ok_or_else(|| Missing::new("bpf-linker is not installed", linker_fix()))
        .and_then(|path| {
            let version = run::ask(&path, &["--version"]).ok_or_else(|| {
                Missing::new(format!("{} does not start", path.display()), linker_fix())
            })?;
            Ok(format!("{version} ({})", path.display()))
        });
    Need {
        what: "bpf-linker",
        used_by: "build-ebpf",
        state,
    }
}

/// How bpf-linker is installed for the compiler's LLVM.
fn linker_fix() -> String {
    // 22: the LLVM of Debian's compiler, which `setup` would install.
    let llvm = toolchain::find().map_or(22, |toolchain| toolchain.llvm);
    format!(
        "apt-get install {} && LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install bpf-linker \
         --version {LINKER_VERSION} --locked --no-default-features --features llvm-{llvm}",
        llvm_packages(llvm).join(" ")
    )
}

/// Debian packages that building bpf-linker against LLVM `major` takes.
pub(crate) fn llvm_packages(major: u32) -> Vec<String> {
    let mut packages = vec![format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")];
    packages.extend(["zlib1g-dev", "libzstd-dev", "g++"].map(str::to_owned));
    packages
}

fn program(name: &'static str, package: &str, used_by: &'static str) -> Need {
    let state = run::which(name)
        .map(|path| path.display().to_string())
        .ok_or_else(|| Missing::new("not on PATH", format!("apt-get install {package}")));
    Need {
        what: name,
        used_by,
        state,
    }
}

fn kernel_btf() -> Need {
    let path = "/sys/kernel/btf/vmlinux";
    let state = Path::new(path)
        .exists()
        .then(|| path.to_owned())
        .ok_or_else(|| {
            Missing::new(
                "the kernel has no BTF",
                "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
            )
        });
    Need {
        what: "kernel BTF",
        used_by: "test, demo",
        state,
    }
}

fn cgroup2() -> Need {
    let fix = "mount -t cgroup2 none /sys/fs/cgroup/unified (after mkdir)";
    mounted(
        "cgroup2",
        "cgroup2",
        Missing::new("no cgroup2 is mounted", fix),
    )
}

fn bpffs() -> Need {
    let fix = "mount -t bpf bpf /sys/fs/bpf";
    mounted("bpffs", "bpf", Missing::new("no bpffs is mounted", fix))
}

fn mounted(what: &'static str, kind: &str, missing: Missing) -> Need {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let found = mounts
        .lines()
        .find_map(|line| mount_point(line, kind))
        .map(str::to_owned);
    Need {
        what,
        used_by: "test, demo",
        state: found.ok_or(missing),
    }
}

/// The mount point of a `mountinfo` line, when it is of that kind (proc(5)).
fn mount_point<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    let (before, after) = line.split_once(" - ")?;
    (after.split(' ').next()? == kind).then_some(())?;
    before.split(' ').nth(4)
}

fn root() -> Need {
    let state = if run::is_root() {
        Ok("uid 0".to_owned())
    } else {
        Err(Missing::new(
            "not root",
            "run as root: sudo -E env PATH=\"$PATH\" cargo xtask ...",
        ))
    };
    Need {
        what: "root",
        used_by: "test, demo",
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_point_is_found_by_kind_behind_optional_fields() {
        let line = "36 24 0:30 / /sys/fs/cgroup/unified rw,nosuid shared:9 master:1 - cgroup2 c rw";
        assert_eq!(mount_point(line, "cgroup2"), Some("/sys/fs/cgroup/unified"));
        assert_eq!(mount_point(line, "bpf"), None);
        assert_eq!(mount_point("", "bpf"), None);
    }

    #[test]
    fn every_missing_thing_has_a_fix() {
        for need in all() {
            if let Err(missing) = need.state {
                assert!(
                    !missing.fix.is_empty() && !missing.why.is_empty(),
                    "{}",
                    need.what
                );
            }
        }
    }
}
