//! The demo: namespaces as pods on this very machine, unmodified programs, real commands.
//!
//! Its parts are hidden verbs of the one binary, so that tests and the bench use the same: a plain
//! client (`ask`), echo servers (`echo`), a load generator (`load`).

pub mod ask;
pub mod echo;
mod inventory;
mod live;
pub mod load;
pub mod scene;
mod story;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};

/// `mesh demo`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArgs {
    #[command(subcommand)]
    part: Option<Part>,
    /// Plays the story without a terminal, asserts each step, prints a transcript.
    #[arg(long)]
    script: bool,
    /// Prefix of its namespaces, cgroups and pins: several demos can run side by side.
    #[arg(long, default_value = "demo")]
    name: String,
}

#[derive(Clone, Debug, Subcommand)]
enum Part {
    /// A plain HTTP client that prints what it saw, as JSON.
    #[command(hide = true)]
    Ask(ask::AskArgs),
    /// Echo servers that say who they are.
    #[command(hide = true)]
    Echo(echo::EchoArgs),
    /// A load generator that measures.
    #[command(hide = true)]
    Load(load::LoadArgs),
}

/// Runs the demo or one of its parts.
///
/// # Errors
/// Not root, the machine lacks something, or a step of the story is not true.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    if let Some(part) = &args.part {
        return match part {
            Part::Ask(args) => ask::run_ask(args),
            Part::Echo(args) => echo::run_echo(args),
            Part::Load(args) => load::run_load(args),
        };
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "mesh demo makes network namespaces and loads eBPF programs: run it as root"
    );
    let missing: Vec<String> = crate::kernel::probe::check()
        .into_iter()
        .filter(|check| check.required && !check.ok)
        .map(|check| format!("{}: {}", check.name, check.remedy.unwrap_or(check.found)))
        .collect();
    ensure!(
        missing.is_empty(),
        "this machine can't run mesh:\n  {}",
        missing.join("\n  ")
    );
    if args.script {
        story::play(&args.name)
    } else {
        live::show(&args.name)
    }
}

/// A scene whose parts run this very binary.
fn build(name: &str) -> anyhow::Result<scene::Scene> {
    let binary = std::env::current_exe().context("can't find the own binary")?;
    scene::Scene::build(name, &binary)
}
