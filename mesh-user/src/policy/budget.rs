//! How many retries a version takes: a share of its requests, exact over the whole node.
//!
//! Retries are measured against requests that are no retries themselves: however many endpoints
//! fail, they see at most (1 + percent) of what was asked, and the floor.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::breaker::{Breaker, RetryPermit};
use crate::{clock::MonoNanos, model::RetryBudget};

/// An interval is counted in so many parts: what leaves it does so in steps of a tenth.
const PARTS: usize = 10;
/// The time of the floor of an interval's budget.
const FLOOR_PER: Duration = Duration::from_secs(1);

/// A version's budget: shared by all cores and carried over a reload.
#[derive(Debug)]
pub struct Budget {
    policy: RetryBudget,
    window: Option<Mutex<Window>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Which tenth of an interval, counted from the clock's beginning.
    number: u64,
    requests: u64,
    retries: u64,
}

#[derive(Debug)]
struct Window {
    span: Duration,
    parts: [Part; PARTS],
    /// Which floor time, and how many retries were made in it.
    floor: (u64, u32),
}

impl Budget {
    /// The previous one, unless the policy has changed.
    pub(super) fn carry(policy: RetryBudget, previous: Option<&Arc<Self>>) -> Arc<Self> {
        match previous {
            Some(previous) if previous.policy == policy => Arc::clone(previous),
            _ => Arc::new(Self {
                window: policy.interval.map(|interval| {
                    Mutex::new(Window {
                        span: interval / PARTS as u32,
                        parts: [Part::default(); PARTS],
                        floor: (0, 0),
                    })
                }),
                policy,
            }),
        }
    }

    /// Counts a request: once, not for each attempt.
    pub fn offered(&self, now: MonoNanos) {
        if let Some(window) = &self.window {
            let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
            window.part(now).requests += 1;
        }
    }

    /// What is used of it, for people.
    pub(super) fn text(&self, breaker: &Breaker, now: MonoNanos) -> String {
        let percent = self.policy.percent;
        let Some(window) = &self.window else {
            let used = breaker.gauges();
            let own = (used.requests + used.pending).saturating_sub(used.retries);
            let share = u64::from(own) * u64::from(percent) / 100;
            let most = share.max(u64::from(self.policy.floor));
            return format!("retry budget {} of {most} in flight", used.retries);
        };
        let window = window.lock().unwrap_or_else(PoisonError::into_inner);
        let (requests, retries) = window.sums(now);
        format!("retry budget {retries} retries of {requests} requests, at most {percent} %")
    }

    /// Admits one retry; none when the budget is used up: the first failure is then the answer.
    pub(super) fn retry(&self, breaker: &Arc<Breaker>, now: MonoNanos) -> Option<RetryPermit> {
        let Some(window) = &self.window else {
            return breaker.retry_within(self.policy.percent, self.policy.floor);
        };
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        window
            .admit(self.policy, now)
            .then(|| breaker.retry_counted())
    }
}

impl Window {
    fn part(&mut self, now: MonoNanos) -> &mut Part {
        let number = now.0 / nanos(self.span);
        let part = &mut self.parts[number as usize % PARTS];
        if part.number != number {
            *part = Part {
                number,
                ..Part::default()
            };
        }
        part
    }

    /// Requests and retries of the interval.
    fn sums(&self, now: MonoNanos) -> (u64, u64) {
        let newest = now.0 / nanos(self.span);
        let recent = |part: &&Part| part.number + PARTS as u64 > newest;
        self.parts
            .iter()
            .filter(recent)
            .fold((0, 0), |(all, again), part| {
                (all + part.requests, again + part.retries)
            })
    }

    fn admit(&mut self, policy: RetryBudget, now: MonoNanos) -> bool {
        let (requests, retries) = self.sums(now);
        let second = now.0 / nanos(FLOOR_PER);
        if self.floor.0 != second {
            self.floor = (second, 0);
        }
        let within = (retries + 1) * 100 <= requests * u64::from(policy.percent);
        if !within && self.floor.1 >= policy.floor {
            return false;
        }
        self.floor.1 = self.floor.1.saturating_add(1);
        self.part(now).retries += 1;
        true
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::BreakerPolicy,
        policy::fixture::{at_ms, compile, model, secs, service},
    };

    fn budget(percent: u8, floor: u32, interval: Option<Duration>) -> Arc<Budget> {
        let policy = RetryBudget {
            percent,
            floor,
            interval,
        };
        Budget::carry(policy, None)
    }

    #[test]
    fn budget_in_flight_is_the_share_of_requests_that_are_no_retries() {
        let snapshot = compile(model(service(1, 0), vec![], vec![]));
        let version = &snapshot.versions[0];
        let breaker = Arc::new(Breaker::new(BreakerPolicy {
            max_retries: 0,
            ..BreakerPolicy::default()
        }));
        let mut requests = Vec::new();
        for (in_flight, wanted) in [(0, 3), (15, 3), (20, 4), (100, 20)] {
            while requests.len() < in_flight {
                requests.push(breaker.request(&version.endpoints[0]).unwrap());
            }
            let budget = budget(20, 3, None);
            let retries: Vec<_> = std::iter::from_fn(|| budget.retry(&breaker, at_ms(1)))
                .take(500)
                .collect();
            // Retries in flight are requests too, which the test leaves out: they count as such.
            let own = breaker.gauges().retries as usize;
            assert_eq!(retries.len(), own);
            assert!(own >= wanted.min(3) && own <= wanted, "{in_flight}: {own}");
        }
    }

    /// Gateway API: percent of what was asked in the interval, and the floor of each second.
    #[test]
    fn budget_over_an_interval_bounds_the_load_at_one_and_a_fifth() {
        let budget = budget(20, 10, Some(secs(10)));
        let breaker: Arc<Breaker> = Arc::default();
        let (mut offered, mut retried) = (0_u64, 0_u64);
        // 60 s of 200 requests a second, all of which fail and want three retries each.
        for ms in 0..60_000_u64 {
            if ms % 5 == 0 {
                offered += 1;
                budget.offered(at_ms(ms));
                for _ in 0..3 {
                    retried += u64::from(budget.retry(&breaker, at_ms(ms)).is_some());
                }
            }
        }
        let floor = 60 * 10;
        assert!(retried <= offered / 5 + floor, "{retried} of {offered}");
        assert!(
            retried >= offered / 6,
            "the budget is used: {retried} of {offered}"
        );
        assert_eq!(breaker.gauges().retries, 0);
    }

    #[test]
    fn budget_floor_holds_without_any_request_and_starts_anew_each_second() {
        let budget = budget(20, 10, Some(secs(10)));
        let breaker: Arc<Breaker> = Arc::default();
        for second in 0..3 {
            let made = (0..50)
                .filter(|n| budget.retry(&breaker, at_ms(second * 1_000 + n)).is_some())
                .count();
            assert_eq!(made, 10);
        }
    }

    #[test]
    fn budget_forgets_what_left_its_interval() {
        let budget = budget(50, 0, Some(secs(1)));
        let breaker: Arc<Breaker> = Arc::default();
        for _ in 0..10 {
            budget.offered(at_ms(0));
        }
        let made = |ms| {
            (0..20)
                .filter(|_| budget.retry(&breaker, at_ms(ms)).is_some())
                .count()
        };
        assert_eq!(made(900), 5);
        assert_eq!(made(1_000), 0, "the requests have left, the retries not");
        assert_eq!(made(5_000), 0);
    }

    #[test]
    fn budget_is_carried_unless_it_changed() {
        let first = budget(20, 3, Some(secs(10)));
        let same = Budget::carry(first.policy, Some(&first));
        assert!(Arc::ptr_eq(&first, &same));
        let other = RetryBudget {
            percent: 21,
            ..first.policy
        };
        assert!(!Arc::ptr_eq(&first, &Budget::carry(other, Some(&first))));
    }
}
