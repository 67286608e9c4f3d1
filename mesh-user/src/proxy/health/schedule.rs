//! What is due when: one heap, whatever the number of endpoints.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use super::At;
use crate::{model::HealthCheck, policy::rng::Rng};

/// A check that is due: of which endpoint, and which of its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) endpoint: u64,
    pub(super) check: usize,
    /// Of which entry of the watch: what was due for an endpoint that went is not for one that came.
    pub(super) entry: u64,
}

/// First checks in each second, at most: a start with 100,000 endpoints must not be one burst.
const FIRST_PER_SECOND: u64 = 5_000;

/// What is due when.
#[derive(Debug)]
pub(super) struct Schedule {
    heap: BinaryHeap<Reverse<(At, Due)>>,
    rng: Rng,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            heap: BinaryHeap::new(),
            rng: Rng::new(seed),
        }
    }

    pub(super) fn put(&mut self, at: At, due: Due) {
        self.heap.push(Reverse((at, due)));
    }

    /// When the next one is due.
    pub(super) fn next_at(&self) -> Option<At> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// One that is due now.
    pub(super) fn take(&mut self, now: At) -> Option<Due> {
        self.next_at().filter(|at| *at <= now)?;
        self.heap.pop().map(|Reverse((_, due))| due)
    }

    /// After how long one of `count` new checks is made first.
    pub(super) fn first(&mut self, count: usize, check: &HealthCheck) -> Duration {
        let spread = Duration::from_micros(count as u64 * 1_000_000 / FIRST_PER_SECOND);
        self.random_below(spread.min(check.interval))
    }

    /// From the end of a check to the next.
    pub(super) fn again(&mut self, check: &HealthCheck, often: bool) -> Duration {
        let interval = if often {
            check.interval
        } else {
            check.interval.max(check.no_traffic_interval)
        };
        let jitter = interval.saturating_mul(check.jitter_percent.into()) / 100;
        interval.saturating_add(self.random_below(jitter))
    }

    fn random_below(&mut self, bound: Duration) -> Duration {
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        let product = u128::from(self.rng.next_u64()) * u128::from(nanos);
        Duration::from_nanos((product >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MonoNanos;

    const fn due(endpoint: u64) -> Due {
        Due {
            endpoint,
            check: 0,
            entry: 0,
        }
    }

    #[test]
    fn due_checks_come_in_order_and_not_before_their_time() {
        let mut schedule = Schedule::new(1);
        for (at, endpoint) in [(30, 3), (10, 1), (20, 2)] {
            schedule.put(MonoNanos(at), due(endpoint));
        }
        assert_eq!(schedule.next_at(), Some(MonoNanos(10)));
        assert_eq!(schedule.take(MonoNanos(9)), None);
        assert_eq!(schedule.take(MonoNanos(20)), Some(due(1)));
        assert_eq!(schedule.take(MonoNanos(20)), Some(due(2)));
        assert_eq!(schedule.take(MonoNanos(20)), None);
    }

    #[test]
    fn interval_has_its_jitter_and_is_longer_without_traffic() {
        let mut schedule = Schedule::new(1);
        let check = HealthCheck {
            interval: Duration::from_secs(10),
            jitter_percent: 20,
            ..HealthCheck::default()
        };
        let often: Vec<_> = (0..1_000).map(|_| schedule.again(&check, true)).collect();
        let (least, most) = (Duration::from_secs(10), Duration::from_secs(12));
        assert!(often.iter().all(|span| (least..=most).contains(span)));
        assert!(
            often
                .iter()
                .any(|span| *span > Duration::from_millis(11_500))
        );
        let seldom = schedule.again(&check, false);
        assert!(seldom >= Duration::from_secs(60), "{seldom:?}");
        let still = HealthCheck {
            jitter_percent: 0,
            ..check
        };
        assert_eq!(schedule.again(&still, true), Duration::from_secs(10));
    }

    #[test]
    fn first_checks_of_many_spread_over_time_and_of_few_do_not() {
        let mut schedule = Schedule::new(1);
        let check = HealthCheck {
            interval: Duration::from_secs(60),
            ..HealthCheck::default()
        };
        let most = |schedule: &mut Schedule, count: usize, check: &HealthCheck| {
            (0..2_000)
                .map(|_| schedule.first(count, check))
                .max()
                .unwrap()
        };
        assert!(most(&mut schedule, 1, &check) < Duration::from_millis(1));
        let spread = most(&mut schedule, 100_000, &check);
        assert!((Duration::from_secs(18)..Duration::from_secs(20)).contains(&spread));
        // But never over more than an interval.
        let short = HealthCheck {
            interval: Duration::from_secs(1),
            ..check
        };
        assert!(most(&mut schedule, 100_000, &short) < Duration::from_secs(1));
    }
}
