//! Removes everything that an instance left in the kernel, also without an agent.

use serde::Serialize;

use super::Instance;

/// What was removed, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Each thing removed: `link connect4`, `map FLOWS`, `rule in /run/netns/x`, ...
    pub removed: Vec<String>,
    /// Each thing that could not be removed, and why.
    pub failed: Vec<String>,
}

/// Removes links, maps, pins, rules, routes, cgroup. `dry_run` only says what would go.
///
/// Refuses (in `failed`) while a live agent holds the instance, unless `force`.
pub fn cleanup(_instance: &Instance, _dry_run: bool, _force: bool) -> Report {
    unimplemented!("kernel")
}
