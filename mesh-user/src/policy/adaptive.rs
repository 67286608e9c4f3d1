//! A cap of requests in flight that follows the latency (Envoy's gradient controller, simplified).
//!
//! After each window: `limit = limit x gradient + sqrt(limit)`, where the gradient is the smallest
//! latency (plus the tolerance) divided by the window's median, in [0.5, 2]. A limit that isn't
//! used is not raised. The smallest latency is measured anew now and then, at half of the limit, so
//! that it is not that of a queue of our own making.
//!
//! The limit is the cap of the version's breaker: a request pays nothing for it but the breaker's
//! own compare. Its end pays one count.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{breaker::Breaker, histogram::Histogram, histogram::quantile, histogram::total};
use crate::{clock::MonoNanos, model::AdaptivePolicy};

/// Fewest answers from which a window's latency is told.
const SAMPLES_MIN: u64 = 5;

/// A version's limit: shared by all cores and carried over a reload.
#[derive(Debug)]
pub struct Adaptive {
    /// Unique for the life of the process.
    id: u64,
    policy: AdaptivePolicy,
    limit: AtomicU32,
    window_end: AtomicU64,
    latencies: Histogram,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    smallest: Option<Duration>,
    /// When it was measured; while it is being measured, the limit to go back to.
    since: MonoNanos,
    measuring: Option<u32>,
}

impl Adaptive {
    /// The previous one, unless the policy has changed.
    pub(super) fn carry(policy: AdaptivePolicy, previous: Option<&Arc<Self>>) -> Arc<Self> {
        match previous {
            Some(previous) if previous.policy == policy => Arc::clone(previous),
            _ => Arc::new(Self {
                // As Envoy, it begins at the bottom: nothing is known yet.
                id: super::next_id(),
                limit: AtomicU32::new(policy.min),
                policy,
                window_end: AtomicU64::new(0),
                latencies: Histogram::default(),
                state: Mutex::default(),
            }),
        }
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Its number, and the limit now: what [`Breaker::set_caps`] wants.
    pub(super) fn in_force(&self) -> (u64, u32) {
        (self.id, self.limit())
    }

    /// Counts an answer; the first after a window's end reckons the limit anew.
    pub(super) fn record(&self, took: Duration, breaker: &Breaker, now: MonoNanos) {
        self.latencies.add(took);
        let end = self.window_end.load(Relaxed);
        if now.0 < end {
            return;
        }
        let next = now.after(self.policy.window).0;
        let first = self
            .window_end
            .compare_exchange(end, next, Relaxed, Relaxed)
            .is_ok();
        if first {
            let used = breaker.gauges().requests;
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(limit) = self.next(&mut state, used, now) {
                self.limit.store(limit, Relaxed);
                breaker.adapt(self.id, limit);
            }
        }
    }

    /// The next limit; none when the window had too few answers to tell.
    fn next(&self, state: &mut State, used: u32, now: MonoNanos) -> Option<u32> {
        let counts = self.latencies.take();
        if total(&counts) < SAMPLES_MIN {
            return None;
        }
        let median = quantile(&counts, 50)?.max(Duration::from_micros(1));
        let policy = &self.policy;
        let limit = self.limit();
        let bounded = |limit: f64| {
            let (min, max) = (policy.min.min(policy.max), policy.max);
            (limit as u32).clamp(min.max(1), max.max(1))
        };
        if let Some(before) = state.measuring.take() {
            state.smallest = Some(median);
            state.since = now;
            return Some(before);
        }
        let smallest = state.smallest.map_or(median, |known| known.min(median));
        if state.smallest.is_none() {
            state.since = now;
        }
        state.smallest = Some(smallest);
        if now.since(state.since) >= policy.remember {
            state.measuring = Some(limit);
            return Some(bounded(f64::from(limit) / 2.0));
        }
        let tolerated = smallest.as_secs_f64() * (1.0 + f64::from(policy.tolerance) / 100.0);
        let gradient = (tolerated / median.as_secs_f64()).clamp(0.5, 2.0);
        // What nobody uses says nothing about what could be borne.
        if gradient >= 1.0 && used < limit / 2 {
            return None;
        }
        let limit = f64::from(limit);
        Some(bounded(
            limit * gradient.min(1.0) + limit.sqrt() * gradient.min(1.0),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{BreakerPolicy, Policy},
        policy::{
            Snapshot, VersionIx,
            fixture::{at_ms, compile, model, policy, recompile, service},
            snapshot::Outcome,
        },
    };

    /// A server that works on `places` requests at once, 10 ms each; more wait in its queue.
    /// Offers `offered` at once for so long, in milliseconds; the limits that came about.
    fn simulate(
        adaptive: &Arc<Adaptive>,
        places: u32,
        offered: u32,
        span: std::ops::Range<u64>,
    ) -> Vec<u32> {
        let snapshot = compile(model(service(1, 0), vec![], vec![]));
        let endpoint = &snapshot.versions[0].endpoints[0];
        let breaker: Arc<Breaker> = Arc::default();
        let caps = BreakerPolicy {
            max_requests: u32::MAX,
            ..BreakerPolicy::default()
        };
        breaker.set_caps(caps, Some(adaptive.in_force()));
        // The queue: when each request will be answered, and since when it has been there.
        let mut flights: Vec<(u64, u64, super::super::breaker::RequestPermit)> = Vec::new();
        let mut free_at = vec![0_u64; places as usize];
        let mut limits = Vec::new();
        for ms in span {
            let (done, still): (Vec<_>, Vec<_>) =
                flights.into_iter().partition(|(end, ..)| *end <= ms);
            flights = still;
            for (end, began, permit) in done {
                let took = Duration::from_millis(end - began);
                adaptive.record(took, &breaker, at_ms(ms + 1));
                drop(permit);
            }
            while flights.len() < offered as usize {
                let Ok(permit) = breaker.request(endpoint) else {
                    break;
                };
                let place = free_at.iter_mut().min().unwrap();
                *place = (*place).max(ms) + 10;
                flights.push((*place, ms, permit));
            }
            limits.push(adaptive.limit());
        }
        limits
    }

    fn adaptive(change: impl FnOnce(&mut AdaptivePolicy)) -> Arc<Adaptive> {
        let mut policy = AdaptivePolicy::default();
        change(&mut policy);
        Adaptive::carry(policy, None)
    }

    /// Far more is offered than the server bears: the limit settles near what it bears, so that
    /// nothing waits long in it, also over the times at which the smallest latency is measured.
    #[test]
    fn adaptive_limit_converges_to_what_the_server_bears() {
        for places in [10, 40] {
            let adaptive = adaptive(|policy| policy.remember = Duration::from_secs(5));
            let limits = simulate(&adaptive, places, 500, 0..30_000);
            let late = &limits[5_000..];
            let mean = late.iter().map(|l| f64::from(*l)).sum::<f64>() / late.len() as f64;
            let places = f64::from(places);
            assert!(
                mean > places * 0.7 && mean < places * 2.5,
                "{places}: {mean}"
            );
            let last = f64::from(limits[limits.len() - 1]);
            assert!(last < places * 3.0, "it does not creep up: {last}");
        }
    }

    #[test]
    fn adaptive_limit_keeps_its_bounds_and_is_not_raised_unused() {
        let bounded = adaptive(|policy| (policy.min, policy.max) = (5, 20));
        let limits = simulate(&bounded, 100, 500, 0..3_000);
        assert_eq!(limits.iter().max(), Some(&20));
        assert!(limits.iter().all(|limit| (5..=20).contains(limit)));
        let idle = adaptive(|_| ());
        let limits = simulate(&idle, 100, 1, 0..3_000);
        assert!(limits.iter().all(|limit| *limit <= 6), "{limits:?}");
    }

    /// The server becomes slower by itself: the limit falls.
    #[test]
    fn adaptive_limit_falls_when_the_server_slows_down() {
        let adaptive = adaptive(|_| ());
        let before = *simulate(&adaptive, 40, 500, 0..5_000).last().unwrap();
        let after = *simulate(&adaptive, 5, 500, 5_000..10_000).last().unwrap();
        assert!(after < before / 2, "{before} -> {after}");
    }

    /// Without it: a limit that was taken out of the configuration comes back with the next answer
    /// to a request of the snapshot before, and stays.
    #[test]
    fn adaptive_limit_that_is_no_longer_in_force_changes_no_cap() {
        let with = |adaptive, max_requests| {
            let policy = Policy {
                adaptive,
                breaker: Some(BreakerPolicy {
                    max_requests,
                    ..BreakerPolicy::default()
                }),
                ..policy()
            };
            model(service(1, 0), vec![], vec![policy])
        };
        let policy = AdaptivePolicy::default();
        let first = compile(with(Some(policy), 1_000));
        first.enforce();
        let answers = |snapshot: &Snapshot, from: u64| {
            let endpoint = &snapshot.versions[0].endpoints[0];
            // Each time long after the one before: the smallest latency is measured anew.
            for n in 0..50 {
                let now = at_ms(from + 1_000_000 * (n / 10) + n % 10);
                let (took, ok) = (Some(Duration::from_millis(10)), Outcome::Status(200));
                snapshot.record(VersionIx(0), endpoint, ok, took, now);
            }
        };
        let cap = |snapshot: &Snapshot| snapshot.versions[0].breaker.caps().max_requests;
        assert_eq!(cap(&first), policy.min);
        // A lower cap holds for what the snapshot before says, too.
        let lower = recompile(with(Some(policy), 1), &first, at_ms(1));
        answers(&first, 1_000);
        assert_eq!(cap(&lower), 1);
        let without = recompile(with(None, 1_000), &lower, at_ms(2));
        answers(&lower, 10_000_000);
        answers(&first, 20_000_000);
        assert_eq!(cap(&without), 1_000);
    }

    #[test]
    fn adaptive_limit_is_carried_unless_its_policy_changed() {
        let first = adaptive(|_| ());
        first.limit.store(77, Relaxed);
        assert_eq!(Adaptive::carry(first.policy, Some(&first)).limit(), 77);
        let other = AdaptivePolicy {
            max: 50,
            ..first.policy
        };
        assert_eq!(Adaptive::carry(other, Some(&first)).limit(), 3);
    }
}
