//! Builds everything and hands over to `mesh demo`.

use std::{ffi::OsString, os::unix::process::CommandExt as _};

use anyhow::Result;

use crate::{build_ebpf, run, setup};

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Arguments of `mesh demo`, such as --script.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Replaces this process by the demo, so that keys and signals reach it directly.
pub(crate) fn run(args: &Args) -> Result<()> {
    build()?;
    let mut demo = run::command(run::root().join("target/release/mesh"));
    demo.arg("demo").args(&args.args);
    eprintln!("$ {}", run::shown(&demo));
    Err(demo.exec().into())
}

/// The release binary with the release object in it.
pub(crate) fn build() -> Result<()> {
    setup::run()?;
    build_ebpf::run(&build_ebpf::Args::release())?;
    let mut cargo = run::cargo();
    run::run(cargo.args([
        "build",
        "--locked",
        "--release",
        "--package",
        "mesh-user",
        "--bin",
        "mesh",
    ]))
}
