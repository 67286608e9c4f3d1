//! Builds the eBPF programs into `target/bpf/mesh.o` and `target/bpf/shield.o`, which `mesh-user`
//! embeds: one object for each binary of `mesh-ebpf`.
//!
//! An object is replaced only when its content changed, and by rename: cargo rebuilds what embeds
//! it only then, and a concurrent reader never sees half of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    object, run,
    toolchain::{self, Toolchain},
};

#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Leave the DWARF out (BTF stays) and refuse debugging features: the object that is shipped.
    #[arg(long)]
    release: bool,
    /// Features of mesh-ebpf; `log`: aya-log in the programs.
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
}

impl Args {
    /// The object that is shipped.
    pub(crate) fn release() -> Self {
        Self {
            release: true,
            features: Vec::new(),
        }
    }
}

/// BTF for CO-RE and map types; v3 for the 32-bit jumps (Linux 5.1) that keep programs small. Both
/// are what rustc passes on to bpf-linker.
const RUSTFLAGS: &str = "-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Ctarget-cpu=v3";

/// Builds; returns the objects' paths.
pub(crate) fn run(args: &Args) -> Result<Vec<PathBuf>> {
    if args.release && args.features.iter().any(|feature| feature == "log") {
        bail!("--release refuses the feature log: release objects speak through counters");
    }
    let (toolchain, linker) = tools()?;
    eprintln!(
        "eBPF toolchain: {}: {}",
        toolchain.origin(),
        toolchain.version
    );
    let built = compile(args, &toolchain, &linker)?;
    built.iter().map(|object| finish(args, object)).collect()
}

/// Puts one built object where `mesh-user` looks for it, under the name of its binary.
fn finish(args: &Args, built: &Path) -> Result<PathBuf> {
    let name = built.file_stem().context("a binary without a name")?;
    let mut bytes = fs::read(built).with_context(|| format!("can't read {}", built.display()))?;
    if args.release {
        bytes = object::without_dwarf(&bytes)?;
    }
    let programs = object::programs(&bytes)?;
    if programs.is_empty() {
        bail!("{} holds no program", built.display());
    }
    let target = run::root()
        .join("target/bpf")
        .join(name)
        .with_extension("o");
    let changed = replace(&target, &bytes)?;
    report(&target, bytes.len(), changed, &programs);
    Ok(target)
}

fn tools() -> Result<(Toolchain, PathBuf)> {
    let toolchain = toolchain::find().map_err(|missing| {
        anyhow::anyhow!(
            "no compiler for eBPF: {}; `cargo xtask setup` installs one, `cargo xtask doctor` \
             says how",
            missing.join("; ")
        )
    })?;
    let linker = toolchain::linker()
        .context("bpf-linker is not installed; `cargo xtask setup` installs it")?;
    Ok((toolchain, linker))
}

fn compile(args: &Args, toolchain: &Toolchain, linker: &Path) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo(toolchain, "build");
    cargo
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .arg("--message-format=json-render-diagnostics");
    if !args.features.is_empty() {
        cargo.args(["--features", &args.features.join(",")]);
    }
    let mut executables = Vec::new();
    let ok = run::run_lines(&mut cargo, |line| executables.extend(executable(line)))?;
    if !ok {
        bail!("the eBPF programs do not build");
    }
    if executables.is_empty() {
        bail!("mesh-ebpf has no binary: nothing to load into the kernel");
    }
    executables.sort();
    Ok(executables)
}

/// Checks the programs for the kernel's target; a warning is an error.
pub(crate) fn check(toolchain: &Toolchain) -> Result<()> {
    let mut cargo = cargo(toolchain, "check");
    run::run(cargo.args(["-Zwarnings", "--config", "build.warnings=\"deny\""]))
}

/// cargo for the kernel's target.
fn cargo(toolchain: &Toolchain, verb: &str) -> Command {
    let mut cargo = toolchain.cargo();
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS)
        .args([
            verb,
            "--locked",
            "--package",
            "mesh-ebpf",
            "--bins",
            "--profile",
            "bpf",
        ])
        .args(["-Zbuild-std=core", "--target", "bpfel-unknown-none"])
        // An own folder: this cargo and the host's, of other versions, would throw away each
        // other's work.
        .args(["--target-dir", "target/bpf-build"]);
    cargo
}

/// The path in cargo's message about a binary of ours.
fn executable(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    (message["reason"] == "compiler-artifact").then_some(())?;
    message["executable"].as_str().map(PathBuf::from)
}

/// Writes only what changed; returns whether something did.
fn replace(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let dir = path.parent().expect("the object lies in a folder");
    fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let staged = path.with_extension(format!("o.{}", std::process::id()));
    fs::write(&staged, bytes).with_context(|| format!("can't write {}", staged.display()))?;
    fs::rename(&staged, path).with_context(|| format!("can't rename to {}", path.display()))?;
    Ok(true)
}

fn report(path: &Path, bytes: usize, changed: bool, programs: &[object::Program]) {
    let changed = if changed { "new" } else { "unchanged" };
    println!(
        "{}: {bytes} bytes, {} programs, {changed}",
        path.display(),
        programs.len()
    );
    for program in programs {
        println!(
            "  {:<16} {:<24} {:>5} instructions",
            program.name, program.section, program.instructions
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_taken_from_artifacts_only() {
        let artifact = r#"{"reason":"compiler-artifact","executable":"/t/mesh"}"#;
        assert_eq!(executable(artifact), Some(PathBuf::from("/t/mesh")));
        for other in [
            r#"{"reason":"compiler-artifact","executable":null}"#,
            r#"{"reason":"build-finished","success":true}"#,
            "not json",
        ] {
            assert_eq!(executable(other), None, "{other}");
        }
    }

    #[test]
    fn object_is_replaced_only_when_its_content_changed() {
        let dir = std::env::temp_dir().join(format!("xtask-replace-{}", std::process::id()));
        let path = dir.join("mesh.o");
        assert!(replace(&path, b"one").expect("written"));
        let first = fs::metadata(&path)
            .and_then(|m| m.modified())
            .expect("there");
        assert!(!replace(&path, b"one").expect("left alone"));
        assert_eq!(
            fs::metadata(&path)
                .and_then(|m| m.modified())
                .expect("there"),
            first
        );
        assert!(replace(&path, b"two").expect("written"));
        assert_eq!(fs::read(&path).expect("there"), b"two");
        assert_eq!(
            fs::read_dir(&dir).expect("there").count(),
            1,
            "no staged file is left"
        );
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn release_refuses_the_log_feature() {
        let args = Args {
            release: true,
            features: vec!["log".into()],
        };
        let error = run(&args).expect_err("log is for debugging");
        assert!(
            error.to_string().contains("refuses the feature log"),
            "{error}"
        );
    }
}
