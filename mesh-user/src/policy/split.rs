//! The deterministic weighted split: smooth weighted round robin, one cursor per core and rule.

/// The split positions of one core. Kept over requests; resets where a rule's targets change.
#[derive(Debug, Default)]
pub struct Cursors {}
