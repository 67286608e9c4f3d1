//! Installs what is missing: an explicit step before builds, which themselves fetch only crates.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{
    needs::{self, LINKER_VERSION, Need},
    run,
    toolchain::{self, Toolchain},
};

/// Installs what is missing and can be installed; says in one line what to do otherwise.
pub(crate) fn run() -> Result<()> {
    let missing = installable();
    if missing.is_empty() {
        eprintln!("setup: all is there");
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.what).collect();
    eprintln!("setup: missing {}", names.join(", "));
    for name in ["cc", "ip", "redis-server"] {
        if names.contains(&name) {
            let package = match name {
                "cc" => "gcc",
                "ip" => "iproute2",
                package => package,
            };
            apt_install(&[package.to_owned()])?;
        }
    }
    let toolchain = match toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(_) => install_compiler()?,
    };
    if toolchain::linker().is_none_or(|path| run::ask(path, &["--version"]).is_none()) {
        install_linker(&toolchain)?;
    }
    if names.contains(&"bpffs") {
        mount_bpffs()?;
    }
    match installable()
        .into_iter()
        .find_map(|need| Some((need.what, need.state.err()?)))
    {
        Some((what, lack)) => bail!("{what} is still missing: {}; fix: {}", lack.why, lack.fix),
        None => Ok(()),
    }
}

/// What is missing and can be installed; kernels and rights can't.
fn installable() -> Vec<Need> {
    let names = [
        "eBPF compiler",
        "bpf-linker",
        "cc",
        "ip",
        "redis-server",
        "bpffs",
    ];
    let missing = |need: &Need| names.contains(&need.what) && need.state.is_err();
    needs::all().into_iter().filter(missing).collect()
}

/// Debian's compiler where there is a new enough one, otherwise rustup's nightly.
fn install_compiler() -> Result<Toolchain> {
    let apt = apt_usable().and_then(|()| {
        let packages = needs::DEBIAN_RUST.map(str::to_owned);
        apt_install(&packages)?;
        toolchain::find().map_err(|missing| anyhow::anyhow!(missing.join("; ")))
    });
    let why = match apt {
        Ok(toolchain) => return Ok(toolchain),
        Err(why) => why,
    };
    if run::which("rustup").is_none() {
        bail!(
            "no eBPF compiler: {why:#}; install rustup (rustup.rs), then `rustup toolchain install \
             nightly --component rust-src`"
        );
    }
    eprintln!("setup: no compiler from packages ({why:#}); taking rustup's nightly");
    let mut rustup = run::command("rustup");
    rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
    run::run(rustup.args(["--component", "rust-src"]))?;
    toolchain::find().map_err(|missing| anyhow::anyhow!(missing.join("; ")))
}

/// Builds bpf-linker against the compiler's LLVM, into cargo's own folder: it stays for the next
/// checkout.
fn install_linker(toolchain: &Toolchain) -> Result<()> {
    let llvm = toolchain.llvm;
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("include/llvm-c/Core.h").is_file() {
        apt_usable()?;
    }
    apt_install(&needs::llvm_packages(llvm))?;
    let mut cargo = run::cargo();
    cargo
        .env("LLVM_PREFIX", prefix)
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--locked",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ]);
    run::run(&mut cargo).context("bpf-linker does not build")
}

/// Where every tool looks for pins; containers and minimal systems lack it.
fn mount_bpffs() -> Result<()> {
    if !run::is_root() {
        bail!("mounting bpffs needs root: run `cargo xtask setup` as root");
    }
    run::run(run::command("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]))
}

fn apt_usable() -> Result<()> {
    if run::which("apt-get").is_none() {
        bail!("no apt-get here: `cargo xtask doctor` names each missing thing and its fix");
    }
    if !run::is_root() {
        bail!("installing packages needs root: run `cargo xtask setup` as root");
    }
    Ok(())
}

/// Installs packages that are not there yet.
pub(crate) fn apt_install(packages: &[String]) -> Result<()> {
    let missing: Vec<&String> = packages
        .iter()
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_usable()?;
    let mut update = run::command("apt-get");
    run::run(update.args(["-qq", "update"])).context("the package lists can't be fetched")?;
    let mut install = run::command("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        // invoke-rc.d: services that come with a package are not started.
        .env("RUNLEVEL", "1")
        .args(["-qq", "install", "--yes", "--no-install-recommends"])
        .args(&missing);
    run::run(&mut install).with_context(|| format!("can't install {missing:?}"))
}

fn installed(package: &str) -> bool {
    let status = run::ask(
        "dpkg-query",
        &["--show", "--showformat=${db:Status-Status}", package],
    );
    status.as_deref() == Some("installed")
}
