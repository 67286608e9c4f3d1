//! Measures what a proxy costs: mesh, nginx, HAProxy, Envoy and no proxy at all, in one run, over
//! the same namespaces, with equivalent rules.
//!
//! Called by `cargo xtask bench`, which builds and installs what it needs. The leading figure is
//! CPU per request: unlike requests per second it hardly moves with what else the machine does.

mod cores;
mod cpu;
mod leg;
mod machine;
mod plain;
mod results;
mod scenario;
mod stage;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use mesh_user::demo::{echo, load};

use crate::{
    leg::{Leg, Tools},
    results::Results,
    scenario::{Plan, Scenario},
    stage::Stage,
};

/// Measure mesh side by side with nginx, HAProxy, Envoy and no proxy at all.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    args: Args,
}

/// What the bench starts in namespaces: itself.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    Echo(echo::EchoArgs),
    #[command(hide = true)]
    Load(load::LoadArgs),
    #[command(hide = true)]
    Plain(plain::PlainArgs),
}

#[derive(clap::Args)]
struct Args {
    /// What to measure; none: all.
    scenarios: Vec<Scenario>,
    /// One short round: for a look, not for a record.
    #[arg(long)]
    quick: bool,
    /// How often; none: three times, once when quick. The table shows medians.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Whom to measure; none: all.
    #[arg(long = "leg", value_name = "LEG")]
    legs: Vec<Leg>,
    /// Write the table here as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// The mesh binary.
    #[arg(long, default_value = "target/release/mesh", value_name = "FILE")]
    mesh: PathBuf,
    /// The Envoy binary.
    #[arg(long, default_value = "target/bench/envoy", value_name = "FILE")]
    envoy: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.part {
        Some(Part::Echo(args)) => echo::run_echo(&args),
        Some(Part::Load(args)) => load::run_load(&args),
        Some(Part::Plain(args)) => plain::run(&args),
        None => bench(&cli.args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<()> {
    cores::raise_descriptor_limit().context("can't raise the limit of open files")?;
    let plan = Plan::new(args.quick, &args.scenarios, args.rounds);
    let legs = if args.legs.is_empty() {
        Leg::ALL.to_vec()
    } else {
        args.legs.clone()
    };
    let tools = Tools::find(&legs, &args.mesh, &args.envoy)?;
    let stage = Stage::build()?;
    let mut results = Results::default();
    for round in 0..plan.rounds {
        // There and back: what drifts with time then hits all alike.
        let mut order = legs.clone();
        if round % 2 == 1 {
            order.reverse();
        }
        for leg in order {
            eprintln!("round {} of {}: {}", round + 1, plan.rounds, leg.name());
            let measured = scenario::measure(&stage, &tools, leg, &plan, round);
            results.add(
                leg,
                measured.with_context(|| format!("{} in this round", leg.name()))?,
            );
        }
    }
    drop(stage);
    let table = table::Table::new(&legs, &results);
    print!("{}", table.text());
    if let Some(path) = &args.markdown {
        let page = machine::page(&table, &plan, &tools);
        std::fs::write(path, page).with_context(|| format!("can't write {}", path.display()))?;
        eprintln!("written to {}", path.display());
    }
    Ok(())
}
