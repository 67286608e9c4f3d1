//! The one front door: `cargo xtask COMMAND`. One file per command; every command prints what it
//! runs and how long it took, and works from any directory.

mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod doctor;
mod kernels;
mod lint;
mod metadata;
mod needs;
mod object;
mod run;
mod setup;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, set up, test, demonstrate and measure mesh.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Build the eBPF programs into target/bpf/mesh.o.
    BuildEbpf(build_ebpf::Args),
    /// Install what is missing for the eBPF build, the tests and the demo (Debian, Ubuntu; root).
    Setup,
    /// Say what is missing on this machine, with the fix for each thing.
    Doctor,
    /// Run the tests: all, or those of the named groups.
    Test(test::Args),
    /// Check format, lints, imports, docs and what is committed.
    Lint(lint::Args),
    /// Build everything and run the demo (as root).
    Demo(demo::Args),
    /// Measure direct, mesh, nginx, HAProxy and Envoy in one run (as root).
    Bench(bench::Args),
    /// Boot Debian's kernels in qemu and try everything there (as root).
    Kernels(kernels::Args),
    /// What CI runs: lint, build-ebpf, test, demo --script.
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Cmd::BuildEbpf(args) => build_ebpf::run(&args).map(|_| ()),
        Cmd::Setup => setup::run(),
        Cmd::Doctor => doctor::run(),
        Cmd::Test(args) => test::run(&args),
        Cmd::Lint(args) => lint::run(&args),
        Cmd::Demo(args) => demo::run(&args),
        Cmd::Bench(args) => bench::run(&args),
        Cmd::Kernels(args) => kernels::run(&args),
        Cmd::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
