//! Boots Debian's kernels in qemu, without KVM, and tries everything there: loads and attaches
//! every program of the object, sends real requests through the proxy, prints a matrix.
//!
//! Everything is below `target/kernels`; nothing of a kernel package is installed. The guest's side
//! is `mesh-user/examples/guest.rs`.

mod initramfs;
mod machine;
mod matrix;
mod packages;

use std::{fs, path::Path};

use anyhow::{Result, bail};

use self::{
    initramfs::{Archive, Programs},
    matrix::Row,
    packages::Kernel,
};
use crate::{build_ebpf, run, setup};

/// Kernels that are tried, by series.
const ALL: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];
/// The oldest that is supported in full, and the newest.
const QUICK: [&str; 2] = ["6.1", "newest"];

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Only these: series such as 6.1, or `newest`; with commas.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "KERNELS",
        conflicts_with = "quick"
    )]
    only: Vec<String>,
    /// Two kernels instead of all: 6.1 and the newest.
    #[arg(long)]
    quick: bool,
    /// Write the matrix into docs/KERNELS.md and README.md.
    #[arg(long)]
    write: bool,
}

impl Args {
    /// What CI tries.
    pub(crate) const fn quick() -> Self {
        Self {
            only: Vec::new(),
            quick: true,
            write: false,
        }
    }
}

/// Tries the kernels; one that fails is an error at the end, after all others.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted: Vec<String> = match (args.only.is_empty(), args.quick) {
        (false, _) => args.only.clone(),
        (true, true) => QUICK.map(str::to_owned).into(),
        (true, false) => ALL.map(str::to_owned).into(),
    };
    if !cfg!(target_arch = "x86_64") {
        bail!("Debian's amd64 kernels are tried with this machine's own programs: x86_64 only");
    }
    setup::run()?;
    let packages = ["qemu-system-x86", "xz-utils", "iproute2", "binutils"];
    setup::apt_install(&packages.map(str::to_owned))?;
    let root = run::root().join("target/kernels");
    fs::create_dir_all(&root)?;
    let kernels = packages::get(&root, &wanted)?;
    let archive = initramfs::programs(&build()?, &root)?;
    let mut rows = Vec::new();
    for kernel in &kernels {
        rows.push(one(kernel, archive.clone(), &root)?);
    }
    println!("{}", matrix::text(&rows));
    if args.write {
        matrix::write(&run::root(), &rows)?;
    }
    let bad: Vec<&str> = rows
        .iter()
        .filter(|row| !row.good())
        .map(|row| row.wanted.as_str())
        .collect();
    if bad.is_empty() {
        Ok(())
    } else {
        bail!("not as it should be on {}", bad.join(", "))
    }
}

fn build() -> Result<Programs> {
    build_ebpf::run(&build_ebpf::Args::release())?;
    let mut cargo = run::cargo();
    let what = [
        "--package",
        "mesh-user",
        "--bin",
        "mesh",
        "--example",
        "guest",
    ];
    run::run(cargo.args(["build", "--locked"]).args(what))?;
    let target = run::root().join("target/debug");
    Ok(Programs {
        guest: target.join("examples/guest"),
        mesh: target.join("mesh"),
    })
}

/// Boots one kernel. Failing in there is an outcome, not an error.
fn one(kernel: &Kernel, mut archive: Archive, root: &Path) -> Result<Row> {
    let dir = root.join(format!("run-{}", kernel.wanted));
    fs::create_dir_all(&dir)?;
    initramfs::add_modules(&mut archive, &kernel.modules)?;
    let file = dir.join("initramfs.cpio");
    fs::write(&file, archive.pack()?)?;
    let mut outcome = machine::boot(kernel, &file, &dir);
    if let Err(error) = &outcome {
        // Emulation has its accidents; a guest that ran to its end has told what is wrong.
        eprintln!("{error:#}\nno report: once more");
        outcome = machine::boot(kernel, &file, &dir);
    }
    fs::remove_file(&file)?;
    let row = Row::new(kernel, outcome);
    eprintln!("{}", row.line());
    Ok(row)
}
