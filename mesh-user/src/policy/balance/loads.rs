//! How much each priority gets, and where there is panic: Envoy's arithmetic (SEMANTICS §5.6).
//!
//! - A priority's capacity is its healthy share times the over-provisioning factor, at most all.
//!   Priorities are filled in order until 100 % are given out.
//! - When the capacities of all together are below 100 %, each gets its part of what there is; one
//!   whose healthy share is below the panic threshold then uses all of its endpoints.
//! - When nobody is healthy, each gets what it has of the endpoints.
//!
//! Counting looks at every endpoint, so the result is kept until any endpoint changes.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::*},
};

/// Most priorities; what comes behind shares the last.
pub(super) const PRIORITIES_MAX: usize = 8;

/// Counts whenever an endpoint of this process leaves the rotation or comes back.
static CHANGES: AtomicU64 = AtomicU64::new(1);

/// To be called after an endpoint has left the rotation or come back.
pub(in crate::policy) fn changed() {
    CHANGES.fetch_add(1, Release);
}

/// Endpoints of a priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) healthy: u32,
    pub(super) total: u32,
}

/// Shares in percent, and panic: a byte for each priority, panic in its highest bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Loads(u64);

impl Loads {
    pub(super) fn new(health: &[Health], over_provisioning: u32, threshold: u8) -> Self {
        let percent = |part: u64, whole: u64| (part * 100).checked_div(whole).unwrap_or(0);
        let capacity = |of: &Health| {
            let share = u64::from(over_provisioning) * u64::from(of.healthy);
            share.checked_div(u64::from(of.total)).unwrap_or(0).min(100)
        };
        let sum: u64 = health.iter().map(capacity).sum::<u64>().min(100);
        let all: u64 = health.iter().map(|of| u64::from(of.total)).sum();
        let mut left = 100;
        let mut shares = [0_u64; PRIORITIES_MAX];
        for (share, of) in shares.iter_mut().zip(health) {
            *share = match sum {
                0 => percent(u64::from(of.total), all),
                _ => percent(capacity(of), sum),
            }
            .min(left);
            left -= *share;
        }
        // What rounding left over.
        let first = health.iter().position(|of| {
            if sum == 0 {
                of.total > 0
            } else {
                capacity(of) > 0
            }
        });
        shares[first.unwrap_or(0)] += left;
        let mut word = 0;
        for (at, (share, of)) in shares.iter().zip(health).enumerate() {
            let sick = u64::from(of.healthy) * 100 < u64::from(threshold) * u64::from(of.total);
            let panic = sum < 100 && sick;
            word |= (share | u64::from(panic) << 7) << (8 * at);
        }
        Self(word)
    }

    /// The share of a priority, in percent.
    pub(super) const fn share(self, at: usize) -> u64 {
        (self.0 >> (8 * at)) & 0x7f
    }

    /// Whether it uses all of its endpoints.
    pub(super) const fn panics(self, at: usize) -> bool {
        (self.0 >> (8 * at + 7)) & 1 == 1
    }

    /// The priority at a point of the 100 %.
    pub(super) fn at(self, mut point: u64) -> usize {
        for at in 0..PRIORITIES_MAX {
            let share = self.share(at);
            if point < share {
                return at;
            }
            point -= share;
        }
        0
    }
}

/// The loads as they were when an endpoint changed last.
#[derive(Debug, Default)]
pub(super) struct Kept {
    loads: AtomicU64,
    /// Of which count of changes; 0: of none yet.
    seen: AtomicU64,
    counting: Mutex<()>,
}

impl Kept {
    /// The loads now; `count` is called when an endpoint has changed.
    pub(super) fn get(&self, count: impl FnOnce() -> Loads) -> Loads {
        let changes = CHANGES.load(Acquire);
        let seen = self.seen.load(Acquire);
        if seen != changes {
            // Who comes second works with the old ones, unless there are none yet.
            let held = match self.counting.try_lock() {
                Ok(held) => Some(held),
                Err(_) if seen != 0 => None,
                Err(_) => Some(
                    self.counting
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner),
                ),
            };
            if held.is_some() {
                // A change from here on is seen at the next look.
                let changes = CHANGES.load(Acquire);
                self.loads.store(count().0, Relaxed);
                self.seen.store(changes, Release);
            }
        }
        Loads(self.loads.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(health: &[(u32, u32)], threshold: u8) -> (Vec<u64>, Vec<bool>) {
        let of = |(healthy, total): &(u32, u32)| Health {
            healthy: *healthy,
            total: *total,
        };
        let health: Vec<Health> = health.iter().map(of).collect();
        let loads = Loads::new(&health, 140, threshold);
        let each = 0..health.len();
        (
            each.clone().map(|at| loads.share(at)).collect(),
            each.map(|at| loads.panics(at)).collect(),
        )
    }

    /// SEMANTICS §5.6, row by row.
    #[test]
    fn loads_of_two_priorities_are_envoys() {
        for (p0, p1, shares, panic) in [
            (100, 100, [100, 0], [false, false]),
            (72, 100, [100, 0], [false, false]),
            (71, 100, [99, 1], [false, false]),
            (50, 100, [70, 30], [false, false]),
            (25, 100, [35, 65], [false, false]),
            (25, 25, [50, 50], [true, true]),
            (0, 100, [0, 100], [false, false]),
        ] {
            let got = loads(&[(p0, 100), (p1, 100)], 50);
            assert_eq!(got, (shares.to_vec(), panic.to_vec()), "{p0} / {p1}");
        }
    }

    #[test]
    fn panic_begins_below_the_threshold_and_never_with_zero() {
        for (healthy, threshold, panic) in [
            (50, 50, false),
            (49, 50, true),
            (0, 50, true),
            (0, 0, false),
            (20, 0, false),
            (0, 1, true),
            (99, 100, false),
            (70, 100, true),
        ] {
            let (shares, panics) = loads(&[(healthy, 100)], threshold);
            assert_eq!(shares, [100]);
            assert_eq!(panics, [panic], "{healthy} % of {threshold} %");
        }
    }

    #[test]
    fn loads_always_sum_up_to_all() {
        for a in 0..=7 {
            for b in 0..=5 {
                for c in 0..=3 {
                    let (shares, _) = loads(&[(a, 7), (b, 5), (c, 3)], 50);
                    assert_eq!(shares.iter().sum::<u64>(), 100, "{a} {b} {c}: {shares:?}");
                }
            }
        }
        // Nobody is healthy: by their numbers.
        assert_eq!(loads(&[(0, 1), (0, 3)], 50).0, [25, 75]);
        assert_eq!(loads(&[(0, 0), (3, 3)], 50).0, [0, 100]);
        assert_eq!(loads(&[], 50).0, [0_u64; 0]);
    }
}
