//! What CI runs: everything, to the end, with one closing line.

use anyhow::Result;

use crate::{demo, kernels, lint, run, setup, test};

/// Runs every step even after a failure, so that one run shows all that is broken.
///
/// Steps that are not tests count as one failure each in the closing line.
pub(crate) fn run() -> Result<()> {
    let mut totals = test::Totals::default();
    let mut broken = Vec::new();
    step("setup", setup::run(), &mut broken);
    step("lint", lint::run(&lint::Args::default()), &mut broken);
    match test::measure(&test::Args::default()) {
        Ok(tests) => totals.add(tests),
        Err(error) => step("test", Err(error), &mut broken),
    }
    step("demo --script", demo_script(), &mut broken);
    step(
        "kernels --quick",
        kernels::run(&kernels::Args::quick()),
        &mut broken,
    );
    for (name, error) in &broken {
        println!("{name}: {error}");
    }
    totals.failed += broken.len() as u64;
    totals.close()
}

fn demo_script() -> Result<()> {
    demo::build()?;
    let mut demo = run::command(run::root().join("target/release/mesh"));
    run::run(demo.args(["demo", "--script"]))
}

fn step(name: &'static str, result: Result<()>, broken: &mut Vec<(&'static str, String)>) {
    if let Err(error) = result {
        eprintln!("{name} failed: {error:#}");
        broken.push((name, format!("{error:#}")));
    }
}
