//! The shield's numbers in a scrape.

use std::fmt;

use super::{expose::Writer, metrics};

/// What the shield counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShieldSample {
    /// Reason, frames, bytes.
    pub counts: Vec<(&'static str, u64, u64)>,
    /// Rules of the configuration and the files: name, frames. Not what operators add.
    pub rules: Vec<(String, u64)>,
    /// Interfaces: name, how the shield stands there (`none`: it does not).
    pub interfaces: Vec<(String, &'static str)>,
    /// Ranges in the lists.
    pub prefixes: u64,
}

impl ShieldSample {
    pub(super) fn encode(&self, to: &mut Writer<'_>) -> fmt::Result {
        let counts = &self.counts;
        to.named(
            &metrics::SHIELD_PACKETS,
            counts
                .iter()
                .map(|(reason, packets, _)| (*reason, *packets)),
        )?;
        to.named(
            &metrics::SHIELD_BYTES,
            counts.iter().map(|(reason, _, bytes)| (*reason, *bytes)),
        )?;
        to.named(
            &metrics::SHIELD_RULE_PACKETS,
            self.rules.iter().map(|(rule, packets)| (&**rule, *packets)),
        )?;
        to.single(&metrics::SHIELD_PREFIXES, self.prefixes)?;
        let stands = self.interfaces.iter();
        to.values(
            &metrics::SHIELD_ATTACHED,
            stands.map(|(name, how)| ([&**name, *how], 1.0)),
        )
    }
}
