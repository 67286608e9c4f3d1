//! What this machine can do: found by trying, never by version string.

use serde::Serialize;

/// One line of `mesh check`.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at: `kernel`, `btf`, `cgroup2`, `bpffs`, `capability BPF`, ...
    pub name: String,
    /// Whether it is good.
    pub ok: bool,
    /// Whether the agent can't run without it.
    pub required: bool,
    /// What was found.
    pub found: String,
    /// What to do when it is not good.
    pub remedy: Option<String>,
}

/// Looks at everything that the agent needs. Leaves nothing behind.
pub fn check() -> Vec<Check> {
    unimplemented!("kernel")
}
