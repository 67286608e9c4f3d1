//! The deterministic weighted split: smooth weighted round robin, one cursor per core and rule.
//!
//! Each target gains its weight, the one that then has most is chosen and pays the sum of all.
//! After every whole cycle (sum of weights / their greatest common divisor) the counts are exact,
//! and in between the picks are spread evenly. Cores don't share cursors, so that over k cores a
//! count may be off by what one core may be off, k times.

use super::{Snapshot, hash::IdMap, route::TargetPlan};

/// Cursors kept at least, before those of vanished rules are looked for.
const PRUNE_MIN: usize = 64;

/// The split positions of one core. Kept over requests and reloads; starts anew where a rule's
/// targets or weights change.
#[derive(Clone, Debug, Default)]
pub struct Cursors {
    positions: IdMap<Box<[i64]>>,
    prune_at: usize,
}

/// The weights of one rule, summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Names the targets and weights for the life of the process: equal id, equal weights.
    pub(super) id: u64,
    /// Sum of the weights.
    pub(super) sum: u64,
    /// The only target with a weight, when there is just one: needs no cursor.
    only: Option<u32>,
}

impl Split {
    pub(super) fn new(id: u64, targets: &[TargetPlan]) -> Self {
        let mut weighted = (0_u32..)
            .zip(targets)
            .filter(|(_, target)| target.weight > 0);
        let only = weighted
            .next()
            .map(|(at, _)| at)
            .filter(|_| weighted.next().is_none());
        let sum = targets.iter().map(|target| u64::from(target.weight)).sum();
        Self { id, sum, only }
    }
}

impl Cursors {
    /// The target whose turn it is; none when all weights are 0.
    pub(super) fn next(
        &mut self,
        snapshot: &Snapshot,
        split: Split,
        targets: &[TargetPlan],
    ) -> Option<usize> {
        if let Some(only) = split.only {
            return Some(only as usize);
        }
        if split.sum == 0 {
            return None;
        }
        if !self.positions.contains_key(&split.id) {
            self.begin(snapshot, split, targets.len());
        }
        let positions = self.positions.get_mut(&split.id)?;
        let mut most: Option<(usize, i64)> = None;
        for (at, (position, TargetPlan { weight, .. })) in
            positions.iter_mut().zip(targets).enumerate()
        {
            *position += i64::from(*weight);
            // The first of equals wins; a target without weight never stands above 0 and is
            // never chosen, also when all others stand below.
            if *weight > 0 && most.is_none_or(|(_, best)| *position > best) {
                most = Some((at, *position));
            }
        }
        let (chosen, _) = most?;
        // Sums stay far from the limits: weights are at most 10^6, targets at most 2^32.
        positions[chosen] -= split.sum as i64;
        Some(chosen)
    }

    #[cold]
    fn begin(&mut self, snapshot: &Snapshot, split: Split, targets: usize) {
        if self.positions.len() >= self.prune_at.max(PRUNE_MIN) {
            let live: std::collections::HashSet<u64> =
                snapshot.rules.iter().map(|rule| rule.split.id).collect();
            self.positions.retain(|id, _| live.contains(id));
            // Twice what is left: the cost of looking is spread over as many new cursors.
            self.prune_at = 2 * self.positions.len();
        }
        self.positions.insert(split.id, vec![0; targets].into());
    }

    /// How many rules have a position.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether no rule has a position.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }
}

#[cfg(test)]
mod tests;
