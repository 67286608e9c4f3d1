//! Which endpoint of the version.
//!
//! Endpoints that the platform calls unready, or that have weight 0, are left out when the
//! snapshot is compiled; ejected ones are found out at the pick. As long as the draws hit none of
//! these, a pick costs two draws, however many endpoints there are; else it looks at all of them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::{
    Reject, Snapshot, VersionIx,
    rng::Rng,
    snapshot::{EndpointState, VersionPlan},
};
use crate::{clock::MonoNanos, model::Balance};

/// State of round robin, shared by all cores.
#[derive(Debug, Default)]
pub struct Turn(pub AtomicU32);

impl Turn {
    /// Where the next snapshot goes on.
    pub(super) fn carry(&self) -> Self {
        Self(AtomicU32::new(self.0.load(Ordering::Relaxed)))
    }
}

/// The longest round of weighted round robin; with more, shares are rounded to 1/1024.
const ROUND_MAX: usize = 1_024;

/// What a pick needs, made once: the endpoints that may be chosen at all.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Positions in the version's endpoints.
    usable: Vec<u32>,
    /// Running sums of the weights of `usable`; empty when all weights are equal.
    sums: Vec<u64>,
    /// Positions in `usable` in weighted, interleaved order; empty when all weights are equal.
    round: Vec<u32>,
}

impl Table {
    pub(super) fn new(endpoints: &[Arc<EndpointState>]) -> Self {
        let usable: Vec<u32> = (0_u32..)
            .zip(endpoints)
            .filter(|(_, endpoint)| endpoint.is_usable())
            .map(|(at, _)| at)
            .collect();
        let weights: Vec<u32> = usable
            .iter()
            .map(|at| endpoints[*at as usize].weight)
            .collect();
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self {
                usable,
                ..Self::default()
            };
        }
        let mut sum = 0_u64;
        let sums = weights.iter().map(|weight| {
            sum += u64::from(*weight);
            sum
        });
        let sums = sums.collect();
        let shares: Vec<u128> = weights.iter().map(|weight| u128::from(*weight)).collect();
        Self {
            usable,
            sums,
            round: super::slots::interleave(&shares, ROUND_MAX),
        }
    }

    fn len(&self) -> u32 {
        self.usable.len() as u32
    }

    fn total(&self) -> u64 {
        self.sums
            .last()
            .copied()
            .unwrap_or(self.usable.len() as u64)
    }

    fn weight(&self, at: u32) -> u64 {
        let at = at as usize;
        match self.sums.get(at) {
            Some(sum) => sum - if at == 0 { 0 } else { self.sums[at - 1] },
            None => 1,
        }
    }

    /// One at random, by weight.
    fn draw(&self, rng: &mut Rng) -> u32 {
        if self.sums.is_empty() {
            return rng.below(self.len());
        }
        self.at(below(rng, self.total()))
    }

    /// One at random, by weight, but not `first`.
    fn draw_other(&self, first: u32, rng: &mut Rng) -> u32 {
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

fn below(rng: &mut Rng, bound: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

/// Chooses an endpoint. Ejected and unhealthy endpoints are left out; those in `tried` are only
/// taken when nothing else is left.
///
/// # Errors
/// [`Reject::NoEndpoint`] when the version has none, [`Reject::NoHealthyEndpoint`] when none may
/// be used.
pub fn pick(
    snapshot: &Snapshot,
    version: VersionIx,
    tried: &[u64],
    rng: &mut Rng,
    now: MonoNanos,
) -> Result<Arc<EndpointState>, Reject> {
    let plan = snapshot.version(version);
    if plan.endpoints.is_empty() {
        return Err(Reject::NoEndpoint);
    }
    if plan.table.usable.is_empty() {
        return Err(Reject::NoHealthyEndpoint);
    }
    let turn = match plan.balance {
        Balance::RoundRobin => plan.turn.0.fetch_add(1, Ordering::Relaxed),
        Balance::LeastRequest | Balance::Random => 0,
    };
    let at = quick(plan, tried, turn, rng)
        .filter(|at| endpoint(plan, *at).live.choose(now))
        .or_else(|| thorough(plan, tried, turn, rng, now))
        .or_else(|| thorough(plan, &[], turn, rng, now))
        .ok_or(Reject::NoHealthyEndpoint)?;
    Ok(Arc::clone(endpoint(plan, at)))
}

/// Whether the version has an endpoint that a pick could return now.
pub(super) fn candidates(plan: &VersionPlan) -> impl Iterator<Item = &Arc<EndpointState>> {
    let endpoints = plan
        .table
        .usable
        .iter()
        .map(|at| &plan.endpoints[*at as usize]);
    endpoints.filter(|endpoint| endpoint.live.is_eligible())
}

fn endpoint(plan: &VersionPlan, at: u32) -> &Arc<EndpointState> {
    &plan.endpoints[plan.table.usable[at as usize] as usize]
}

/// The draw as if every endpoint could be had; none when it hits one that can't.
fn quick(plan: &VersionPlan, tried: &[u64], turn: u32, rng: &mut Rng) -> Option<u32> {
    let table = &plan.table;
    let free = |at: u32| is_free(endpoint(plan, at), tried);
    match plan.balance {
        Balance::Random => Some(table.draw(rng)).filter(|at| free(*at)),
        Balance::RoundRobin if table.round.is_empty() => {
            Some(turn % table.len()).filter(|at| free(*at))
        }
        Balance::RoundRobin => {
            Some(table.round[turn as usize % table.round.len()]).filter(|at| free(*at))
        }
        Balance::LeastRequest if table.len() == 1 => Some(0).filter(|at| free(*at)),
        Balance::LeastRequest => {
            let first = table.draw(rng);
            let second = table.draw_other(first, rng);
            (free(first) && free(second)).then(|| less_busy(plan, first, second))
        }
    }
}

fn is_free(endpoint: &EndpointState, tried: &[u64]) -> bool {
    endpoint.live.is_eligible() && !tried.contains(&endpoint.id)
}

/// The one with fewer requests in flight for its weight; the first when equal, so that idle
/// endpoints are chosen by weight alone.
fn less_busy(plan: &VersionPlan, first: u32, second: u32) -> u32 {
    let load = |at: u32, other: u32| {
        u64::from(endpoint(plan, at).live.in_flight()).saturating_mul(plan.table.weight(other))
    };
    if load(second, first) < load(first, second) {
        second
    } else {
        first
    }
}

/// The draw among those that can be had: looks at all.
#[cold]
fn thorough(
    plan: &VersionPlan,
    tried: &[u64],
    turn: u32,
    rng: &mut Rng,
    now: MonoNanos,
) -> Option<u32> {
    let table = &plan.table;
    // A probe may be snatched away between look and choice: each round then has one less.
    for _ in 0..=table.len() {
        let free = |at: &u32| is_free(endpoint(plan, *at), tried);
        let weights = (0..table.len()).filter(free).map(|at| table.weight(at));
        let total: u64 = weights.sum();
        if total == 0 {
            return None;
        }
        let nth = |point: u64, without: Option<u32>| {
            let mut left = point;
            (0..table.len())
                .filter(free)
                .filter(|at| Some(*at) != without)
                .find(|at| {
                    let weight = table.weight(*at);
                    let hit = left < weight;
                    left = left.saturating_sub(weight);
                    hit
                })
        };
        let chosen = match plan.balance {
            // What the missing ones would have had goes to the others in turn.
            Balance::RoundRobin => nth(u64::from(turn / table.len()) % total, None),
            Balance::Random => nth(below(rng, total), None),
            Balance::LeastRequest => nth(below(rng, total), None).map(|first| {
                let others = total - table.weight(first).min(total);
                match nth(below(rng, others), Some(first)) {
                    Some(second) if others > 0 => less_busy(plan, first, second),
                    _ => first,
                }
            }),
        };
        match chosen {
            Some(at) if endpoint(plan, at).live.choose(now) => return Some(at),
            // Changed under our eyes: look again.
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests;
