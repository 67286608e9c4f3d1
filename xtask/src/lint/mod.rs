//! Checks that need no run of the program: format, lints, imports, docs, what is committed.

mod files;
mod imports;
mod source;

use anyhow::{Result, bail};

use crate::{build_ebpf, metadata, run, toolchain};

#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Mend what rustfmt and clippy can mend by themselves.
    #[arg(long)]
    fix: bool,
}

/// Runs every check, so that one run shows all that is to be mended.
pub(crate) fn run(args: &Args) -> Result<()> {
    let packages = metadata::packages()?;
    let mut failed = Vec::new();
    let mut check = |name: &'static str, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{name}: {error:#}");
            failed.push(name);
        }
    };
    check("format", format(args));
    check("imports", findings(imports::check(&run::root())));
    check("lints", findings(files::lints_opted_in(&packages)));
    check("committed files", findings(files::committed(&run::root())));
    check("clippy", clippy(args));
    check("eBPF target", ebpf());
    check("docs", docs());
    if !failed.is_empty() {
        bail!("{}", failed.join(", "));
    }
    Ok(())
}

/// An error that lists what a check found.
fn findings(found: Result<Vec<String>>) -> Result<()> {
    let found = found?;
    if !found.is_empty() {
        bail!("{} found\n  {}", found.len(), found.join("\n  "));
    }
    Ok(())
}

fn format(args: &Args) -> Result<()> {
    let mut cargo = run::cargo();
    cargo.args(["fmt", "--all"]);
    if !args.fix {
        cargo.arg("--check");
    }
    run::run(&mut cargo)
}

fn clippy(args: &Args) -> Result<()> {
    let mut cargo = run::cargo();
    cargo.args(["clippy", "--locked", "--workspace", "--all-targets"]);
    if args.fix {
        cargo.args(["--fix", "--allow-dirty", "--allow-staged"]);
    }
    run::run(cargo.args(["--", "-D", "warnings"]))
}

/// What is compiled for the kernel only is seen by no other check.
fn ebpf() -> Result<()> {
    match toolchain::find() {
        Ok(toolchain) => build_ebpf::check(&toolchain),
        Err(missing) => {
            println!("SKIPPED: eBPF target not checked: {}", missing.join("; "));
            Ok(())
        }
    }
}

fn docs() -> Result<()> {
    let mut cargo = run::cargo();
    cargo.env("RUSTDOCFLAGS", "-D warnings");
    run::run(cargo.args(["doc", "--locked", "--workspace", "--no-deps"]))
}
