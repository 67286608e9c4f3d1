//! The endpoints of one priority, made once: what a draw needs.

use std::sync::Arc;

use crate::policy::{rng::Rng, slots, snapshot::EndpointState};

/// The longest round of weighted round robin; with more, shares are rounded to 1/1024.
const ROUND_MAX: usize = 1_024;

/// Endpoints that a pick may choose among.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Positions in the version's endpoints: ready, weight above 0.
    pub(super) usable: Vec<u32>,
    /// Running sums of the weights of `usable`; empty when all weights are equal.
    sums: Vec<u64>,
    /// Positions in `usable` in weighted, interleaved order; empty when all weights are equal.
    round: Vec<u32>,
    /// Sum of the weights.
    pub(super) weight_sum: u64,
}

impl Group {
    /// `members`: positions in `endpoints`.
    pub(super) fn new(
        endpoints: &[Arc<EndpointState>],
        members: impl Iterator<Item = u32>,
    ) -> Self {
        let usable: Vec<u32> = members
            .filter(|at| endpoints[*at as usize].is_usable())
            .collect();
        let weights: Vec<u32> = usable
            .iter()
            .map(|at| endpoints[*at as usize].weight)
            .collect();
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self {
                weight_sum: weights.iter().map(|weight| u64::from(*weight)).sum(),
                usable,
                ..Self::default()
            };
        }
        let mut sum = 0_u64;
        let sums = weights.iter().map(|weight| {
            sum += u64::from(*weight);
            sum
        });
        let sums: Vec<u64> = sums.collect();
        let shares: Vec<u128> = weights.iter().map(|weight| u128::from(*weight)).collect();
        Self {
            usable,
            weight_sum: sum,
            sums,
            round: slots::interleave(&shares, ROUND_MAX),
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.usable.len() as u32
    }

    /// Whether weights differ.
    pub(super) fn is_weighted(&self) -> bool {
        !self.sums.is_empty()
    }

    fn total(&self) -> u64 {
        self.sums
            .last()
            .copied()
            .unwrap_or(self.usable.len() as u64)
    }

    pub(super) fn weight(&self, at: u32) -> u64 {
        let at = at as usize;
        match self.sums.get(at) {
            Some(sum) => sum - if at == 0 { 0 } else { self.sums[at - 1] },
            None => 1,
        }
    }

    /// Whose turn it is.
    pub(super) fn in_turn(&self, turn: u32) -> u32 {
        if self.round.is_empty() {
            turn % self.len()
        } else {
            self.round[turn as usize % self.round.len()]
        }
    }

    /// One at random, by weight.
    pub(super) fn draw(&self, rng: &mut Rng) -> u32 {
        if self.sums.is_empty() {
            return rng.below(self.len());
        }
        self.at(below(rng, self.total()))
    }

    /// One at random, by weight, but not `first`.
    pub(super) fn draw_other(&self, first: u32, rng: &mut Rng) -> u32 {
        if self.sums.is_empty() {
            let other = rng.below(self.len() - 1);
            return other + u32::from(other >= first);
        }
        let weight = self.weight(first);
        let start = self.sums[first as usize] - weight;
        let point = below(rng, self.total() - weight);
        self.at(if point >= start {
            point + weight
        } else {
            point
        })
    }

    fn at(&self, point: u64) -> u32 {
        self.sums.partition_point(|sum| *sum <= point) as u32
    }
}

pub(super) fn below(rng: &mut Rng, bound: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}
