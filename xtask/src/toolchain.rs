//! Which compiler and linker build the eBPF programs.
//!
//! rustc's BPF target has no prebuilt `core`, so a compiler that takes `-Zbuild-std` and the
//! sources of `core` are needed: rustup's nightly with `rust-src`, or a distribution's rustc with
//! its `-src` package (there `RUSTC_BOOTSTRAP=1` admits the flag). bpf-linker reads the compiler's
//! bitcode, so its LLVM must not be older than the compiler's.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::run;

/// rustc's oldest minor version that builds the workspace (`rust-version` in `Cargo.toml`).
const RUSTC_MINOR_MIN: u32 = 95;

/// A compiler that can build the eBPF programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    kind: Kind,
    /// First line of `rustc --version`.
    pub(crate) version: String,
    /// Major version of its LLVM: what bpf-linker must be built with.
    pub(crate) llvm: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// `rustup run nightly`.
    Rustup,
    /// `/usr/bin/rustc` and `/usr/bin/cargo` of the distribution.
    System,
}

impl Toolchain {
    /// How it was found, for people.
    pub(crate) fn origin(&self) -> &'static str {
        match self.kind {
            Kind::Rustup => "rustup nightly with rust-src",
            Kind::System => "the distribution's /usr/bin/rustc with its sources",
        }
    }

    /// cargo of this toolchain, in the workspace's root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match self.kind {
            Kind::Rustup => {
                let mut command = run::command("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Kind::System => {
                let mut command = run::command("/usr/bin/cargo");
                command
                    .env("RUSTC", "/usr/bin/rustc")
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        // What belongs to the host's toolchain: its choice, its flags, its wrapper.
        let foreign = [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ];
        for name in foreign {
            command.env_remove(name);
        }
        command
    }
}

/// The first toolchain that is complete; otherwise why each candidate is not.
pub(crate) fn find() -> Result<Toolchain, Vec<String>> {
    let mut missing = Vec::new();
    for candidate in [rustup, system] {
        match candidate() {
            Ok(toolchain) => return Ok(toolchain),
            Err(why) => missing.push(why),
        }
    }
    Err(missing)
}

fn rustup() -> Result<Toolchain, String> {
    let Some(rustup) = run::which("rustup") else {
        return Err("rustup is not installed".into());
    };
    let Some(rustc) = run::ask(rustup, &["which", "--toolchain", "nightly", "rustc"]) else {
        return Err("rustup has no nightly toolchain".into());
    };
    probe(Kind::Rustup, Path::new(&rustc), "rustup's nightly")
}

fn system() -> Result<Toolchain, String> {
    if !Path::new("/usr/bin/cargo").is_file() {
        return Err("the distribution's cargo (/usr/bin/cargo) is not installed".into());
    }
    probe(
        Kind::System,
        Path::new("/usr/bin/rustc"),
        "the distribution's rustc",
    )
}

fn probe(kind: Kind, rustc: &Path, name: &str) -> Result<Toolchain, String> {
    let Some(verbose) = run::ask(rustc, &["-vV"]) else {
        return Err(format!("{name} ({}) is not installed", rustc.display()));
    };
    let (version, minor, llvm) =
        parse_version(&verbose).ok_or_else(|| format!("{name} has no readable version"))?;
    if minor < RUSTC_MINOR_MIN {
        return Err(format!(
            "{name} is too old: {version}, wanted 1.{RUSTC_MINOR_MIN} or newer"
        ));
    }
    let sysroot = run::ask(rustc, &["--print", "sysroot"]).unwrap_or_default();
    if !Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .is_file()
    {
        return Err(format!("{name} is there, but not the sources of core"));
    }
    Ok(Toolchain {
        kind,
        version,
        llvm,
    })
}

/// First line, minor version, LLVM's major version of `rustc -vV`.
fn parse_version(verbose: &str) -> Option<(String, u32, u32)> {
    let first = verbose.lines().next()?;
    let minor = first
        .strip_prefix("rustc 1.")?
        .split('.')
        .next()?
        .parse()
        .ok()?;
    let llvm = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    Some((
        first.to_owned(),
        minor,
        llvm.split('.').next()?.parse().ok()?,
    ))
}

/// Where bpf-linker is: `PATH` first, then where `cargo install` puts it.
pub(crate) fn linker() -> Option<PathBuf> {
    run::which("bpf-linker").or_else(|| {
        let installed = cargo_home()?.join("bin/bpf-linker");
        installed.is_file().then_some(installed)
    })
}

fn cargo_home() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_rustc_is_read() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n\
                       binary: rustc\nLLVM version: 22.1.8";
        let version = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)";
        assert_eq!(parse_version(verbose), Some((version.to_owned(), 96, 22)));
    }

    #[test]
    fn version_of_something_else_is_refused() {
        for verbose in [
            "",
            "rustc 2.0",
            "clang 1.96.0\nLLVM version: 22.1",
            "rustc 1.96.0",
        ] {
            assert_eq!(parse_version(verbose), None, "{verbose:?}");
        }
    }
}
