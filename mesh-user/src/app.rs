//! To be written.

/// What the agent is started with.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The configuration file, absolute.
    pub config: std::path::PathBuf,
    /// The instance.
    pub instance: crate::kernel::Instance,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// Anything that keeps it from serving, by name.
pub fn run(_options: RunOptions) -> anyhow::Result<()> {
    unimplemented!("app")
}
