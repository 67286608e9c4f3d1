//! Checks that need no run of the program.
use anyhow::Result;
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Mend what can be mended.
    #[arg(long)]
    fix: bool,
}
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut fmt = crate::run::cargo();
    fmt.args(["fmt", "--all"]);
    if !args.fix {
        fmt.arg("--check");
    }
    crate::run::run(&mut fmt)
}
