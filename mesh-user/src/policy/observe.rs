//! Watching a decision: nothing on the data path, everything for `mesh explain`.

use super::snapshot::{RuleIx, VersionIx};

/// Is told each step of a decision. All methods do nothing by default, so that the data path
/// pays nothing for it.
pub trait Observer {
    /// A rule was tried; `failed` names the first condition that did not hold (of the alternative
    /// that came furthest), `None` when the rule matched.
    fn rule(&mut self, _rule: RuleIx, _failed: Option<&dyn std::fmt::Display>) {}
    /// A version was chosen by weight: its share and the sum of the shares.
    fn version(&mut self, _version: VersionIx, _weight: u32, _sum: u64) {}
    /// A rate limit was asked: its name, its key, what is left, whether it admitted.
    fn limit(&mut self, _name: &str, _key: &str, _left: u64, _admitted: bool) {}
    /// A target was chosen by something else than its turn: a session, a key.
    fn chosen_by(&mut self, _what: &dyn std::fmt::Display) {}
    /// An action of the rule or its target, in the order in which they are done.
    fn action(&mut self, _what: &dyn std::fmt::Display) {}
    /// Whether steps need to be described at all: lets the data path skip the formatting.
    fn active(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}
