//! Measures.
use anyhow::{Result, bail};
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {}
pub(crate) fn run(_args: &Args) -> Result<()> {
    bail!("not measured yet")
}
