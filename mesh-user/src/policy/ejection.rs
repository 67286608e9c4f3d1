//! Passive ejection with Envoy's clock (SEMANTICS §5.5).
//!
//! - A consecutive count acts at once, on the answer that reaches it. Any 2xx-4xx answer resets
//!   the counts; so do an ejection and a return. While an endpoint is ejected nothing counts.
//! - Without `consecutive-local-origin`, failures that never reached an answer count as 503 or 504
//!   (Envoy's unsplit mode); with it they have a count of their own.
//! - An ejection lasts base x k, at most max; an endpoint returns at the first sweep after that.
//!   k grows by one with each ejection and shrinks by one at each sweep that finds the endpoint in
//!   rotation.
//! - The ejected share is counted inside the version through which the failure was seen, over the
//!   endpoints that could be chosen at all (ready, weight above 0): at most max-percent of them,
//!   rounded down, but at least one when there are two or more. A single endpoint is ejected only
//!   with max-percent 100; with max-percent 0 nothing ever is, and what would have been is
//!   reported as skipped.
//! - An endpoint's state is shared by all versions that contain it: ejected from one, it is out of
//!   all. The version that ejected it brings it back.
//!
//! - Success rate, failure percentage and latency are judged at a sweep, over what happened since
//!   the sweep before, among the endpoints that were in rotation.
//!
//! Counting is lock-free; ejecting and sweeping, which are rare, take the lock of the service port.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::Serialize;

use super::{
    balance,
    rng::Rng,
    snapshot::{EndpointState, Outcome},
};
use crate::{clock::MonoNanos, model::EjectionPolicy};

mod latency;
mod live;
mod rate;

pub(super) use live::{InFlight, tally, tally_many};
pub use live::{Live, Standing};
use live::{PROBE_CHOSEN, PROBE_DUE, PROBE_NONE, reset};

/// Ejection of one version: its policy and the sweep clock.
#[derive(Debug)]
pub struct Ejection {
    /// The policy in force.
    pub policy: EjectionPolicy,
    shared: Arc<Clock>,
    /// One lock for all versions of a service port: they share endpoints.
    port: Arc<Mutex<()>>,
    /// `namespace/name:port`.
    service: Arc<str>,
    first_sweep: u64,
}

/// What outlives a reload.
#[derive(Debug)]
struct Clock {
    id: u64,
    next_sweep: AtomicU64,
    /// By endpoint: what had been counted at the last sweep.
    marks: Mutex<HashMap<u64, rate::Mark>>,
}

/// An endpoint left or returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `namespace/name:port` of the service.
    pub service: String,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// What happened.
    pub what: What,
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Ejected: why, and for how many milliseconds.
    Ejected {
        /// The detector.
        by: Detector,
        /// Ejection time in milliseconds.
        for_ms: u64,
    },
    /// Should have been ejected, but the ejected share is at its limit.
    Skipped {
        /// The detector.
        by: Detector,
    },
    /// Returned at a sweep.
    Returned,
}

/// Which count ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// `consecutive-5xx`.
    #[serde(rename = "consecutive_5xx")]
    Consecutive5xx,
    /// `consecutive-gateway`.
    ConsecutiveGateway,
    /// `consecutive-local-origin`.
    ConsecutiveLocalOrigin,
    /// The probing request after a return failed.
    Probe,
    /// `success-rate`.
    SuccessRate,
    /// `success-rate`, of failures that never reached an answer.
    LocalOriginSuccessRate,
    /// `failure-percentage`.
    FailurePercentage,
    /// `failure-percentage`, of failures that never reached an answer.
    LocalOriginFailurePercentage,
    /// `latency`.
    Latency,
}

impl Ejection {
    /// A new sweep clock, or that of the previous snapshot.
    pub(super) fn new(
        policy: EjectionPolicy,
        previous: Option<&Self>,
        port: Arc<Mutex<()>>,
        service: Arc<str>,
        now: MonoNanos,
    ) -> Self {
        let first_sweep = now.after(policy.interval).0;
        let shared = previous.map_or_else(
            || {
                Arc::new(Clock {
                    id: super::next_id(),
                    next_sweep: AtomicU64::new(first_sweep),
                    marks: Mutex::default(),
                })
            },
            |previous| Arc::clone(&previous.shared),
        );
        Self {
            policy,
            shared,
            port,
            service,
            first_sweep,
        }
    }

    /// A shorter interval counts from the time at which the snapshot was compiled.
    pub(super) fn enforce(&self) {
        self.shared.next_sweep.fetch_min(self.first_sweep, Relaxed);
    }

    pub(super) fn id(&self) -> u64 {
        self.shared.id
    }

    /// Counts how an attempt ended. `members`: the endpoints of the version.
    pub(super) fn record(
        &self,
        endpoint: &EndpointState,
        members: &[Arc<EndpointState>],
        outcome: Outcome,
        now: MonoNanos,
    ) -> Option<Change> {
        let live = &endpoint.live;
        if live.ejected_until.load(Relaxed) != 0 {
            return None;
        }
        let failed = self.count(live, outcome);
        // Only a probe that is out can be answered.
        if live.probe.load(Relaxed) >= PROBE_CHOSEN {
            return match outcome {
                Outcome::Abandoned => None,
                _ if outcome.is_failure() => self.eject(endpoint, members, Detector::Probe, now),
                _ => {
                    live.probe.store(PROBE_NONE, Relaxed);
                    None
                }
            };
        }
        let by = failed?;
        if !self.is_enforced(by, endpoint, now) {
            endpoint.live.reset_counts();
            return None;
        }
        self.eject(endpoint, members, by, now)
    }

    /// Whether this one of the endpoints that a detector finds is ejected.
    fn is_enforced(&self, by: Detector, endpoint: &EndpointState, now: MonoNanos) -> bool {
        let policy = &self.policy;
        let percent = match by {
            Detector::Consecutive5xx => policy.enforcing_5xx,
            Detector::ConsecutiveGateway => policy.enforcing_gateway,
            Detector::ConsecutiveLocalOrigin => policy.enforcing_local_origin,
            Detector::Probe => 100,
            Detector::SuccessRate | Detector::LocalOriginSuccessRate => {
                policy.success_rate.map_or(0, |rate| rate.enforcing)
            }
            Detector::FailurePercentage | Detector::LocalOriginFailurePercentage => {
                policy.failure_percentage.map_or(0, |rate| rate.enforcing)
            }
            Detector::Latency => policy.latency.map_or(0, |latency| latency.enforcing),
        };
        percent >= 100 || chance(endpoint, now).below(100) < u32::from(percent)
    }

    /// Counts; the detector that reached its limit.
    fn count(&self, live: &Live, outcome: Outcome) -> Option<Detector> {
        let split = self.policy.consecutive_local_origin > 0;
        let status = match outcome {
            Outcome::Abandoned => return None,
            Outcome::ConnectFailed | Outcome::Reset | Outcome::Timeout if split => {
                return reached(&live.local_errors, self.policy.consecutive_local_origin)
                    .then_some(Detector::ConsecutiveLocalOrigin);
            }
            Outcome::ConnectFailed | Outcome::Reset => 503,
            Outcome::Timeout => 504,
            Outcome::Connected => 200,
            Outcome::Status(status) => status,
        };
        reset(&live.local_errors);
        let gateway = matches!(status, 502..=504);
        let gateway_reached = if gateway {
            reached(&live.gateway_errors, self.policy.consecutive_gateway)
        } else {
            reset(&live.gateway_errors);
            false
        };
        let errors_reached = if status >= 500 {
            reached(&live.errors, self.policy.consecutive_5xx)
        } else {
            reset(&live.errors);
            false
        };
        if gateway_reached {
            return Some(Detector::ConsecutiveGateway);
        }
        errors_reached.then_some(Detector::Consecutive5xx)
    }

    fn eject(
        &self,
        endpoint: &EndpointState,
        members: &[Arc<EndpointState>],
        by: Detector,
        now: MonoNanos,
    ) -> Option<Change> {
        let _held = lock(&self.port);
        self.eject_held(endpoint, members, by, now)
    }

    /// The same with the lock of the port held.
    fn eject_held(
        &self,
        endpoint: &EndpointState,
        members: &[Arc<EndpointState>],
        by: Detector,
        now: MonoNanos,
    ) -> Option<Change> {
        let live = &endpoint.live;
        // Another core was first.
        if live.ejected_until.load(Relaxed) != 0 {
            return None;
        }
        live.reset_counts();
        if !self.has_room(endpoint.id, members) {
            live.skipped.fetch_add(1, Relaxed);
            // A failed probe with no room to eject again is back in rotation: it must not be
            // probed for ever while it is needed.
            live.probe.store(PROBE_NONE, Relaxed);
            return Some(self.change(endpoint, What::Skipped { by }));
        }
        let times = self.next_times(live.times.load(Relaxed));
        let span = self.policy.base.saturating_mul(times).min(self.longest());
        let span = span.saturating_add(self.jitter(endpoint, now));
        live.times.store(times, Relaxed);
        live.owner.store(self.id(), Relaxed);
        live.probe.store(PROBE_NONE, Relaxed);
        live.ejections.fetch_add(1, Relaxed);
        // Never 0, which means «in rotation».
        live.ejected_until.store(now.after(span).0.max(1), Relaxed);
        balance::changed();
        let for_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Some(self.change(endpoint, What::Ejected { by, for_ms }))
    }

    /// As Envoy: k stops growing where base x k has passed max, so that it also shrinks in time.
    fn next_times(&self, times: u32) -> u32 {
        let span = self.policy.base.saturating_mul(times);
        let limit = self.longest().saturating_add(self.policy.base);
        if span < limit {
            times.saturating_add(1)
        } else {
            times.max(1)
        }
    }

    /// Anywhere in [0, the longest jitter], in milliseconds as Envoy's.
    fn jitter(&self, endpoint: &EndpointState, now: MonoNanos) -> Duration {
        let most = u32::try_from(self.policy.jitter_max.as_millis()).unwrap_or(u32::MAX - 1);
        Duration::from_millis(chance(endpoint, now).below(most.saturating_add(1)).into())
    }

    fn longest(&self) -> Duration {
        self.policy.max.max(self.policy.base)
    }

    /// Whether one more endpoint may be ejected.
    fn has_room(&self, endpoint: u64, members: &[Arc<EndpointState>]) -> bool {
        let (mut usable, mut out) = (0_u64, 0_u64);
        for member in members
            .iter()
            .filter(|member| member.is_usable() || member.id == endpoint)
        {
            usable += 1;
            out += u64::from(member.live.ejected_until.load(Relaxed) != 0);
        }
        let always = u64::from(self.policy.always_one);
        out < allowed(usable, self.policy.max_percent).max(always)
    }

    fn change(&self, endpoint: &EndpointState, what: What) -> Change {
        Change {
            service: self.service.to_string(),
            endpoint: endpoint.address,
            what,
        }
    }

    /// Runs the sweep when it is due.
    pub(super) fn sweep(&self, members: &[Arc<EndpointState>], now: MonoNanos) -> Vec<Change> {
        let due = self.shared.next_sweep.load(Relaxed);
        if now.0 < due {
            return Vec::new();
        }
        let _held = lock(&self.port);
        // On the beat; beats that were missed are not made up for.
        let next = MonoNanos(due).after(self.policy.interval);
        let next = if next <= now {
            now.after(self.policy.interval)
        } else {
            next
        };
        self.shared.next_sweep.store(next.0, Relaxed);
        // Who returns now was not in rotation in the interval that is judged.
        let mut changes = self.judge(members, now);
        changes.extend(
            members
                .iter()
                .filter_map(|member| self.sweep_one(member, now)),
        );
        changes
    }

    fn sweep_one(&self, endpoint: &EndpointState, now: MonoNanos) -> Option<Change> {
        let live = &endpoint.live;
        // Its times are the business of the version that ejected it.
        if live.owner.load(Relaxed) != self.id() {
            return None;
        }
        let until = live.ejected_until.load(Relaxed);
        if until == 0 {
            let since = MonoNanos(live.probe_since.load(Relaxed));
            // Chosen for the probe, but nothing was ever sent: due again.
            if now.since(since) >= self.policy.interval {
                live.move_probe(PROBE_CHOSEN, PROBE_DUE);
            }
            if live.probe.load(Relaxed) == PROBE_NONE {
                let times = live.times.load(Relaxed);
                live.times.store(times.saturating_sub(1), Relaxed);
            }
            return None;
        }
        if now.0 < until {
            return None;
        }
        live.reset_counts();
        live.probe.store(
            if self.policy.probe {
                PROBE_DUE
            } else {
                PROBE_NONE
            },
            Relaxed,
        );
        live.ejected_until.store(0, Relaxed);
        live.returned(now);
        Some(self.change(endpoint, What::Returned))
    }
}

impl Outcome {
    /// Whether it speaks against the endpoint.
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Status(status) => status >= 500,
            Self::ConnectFailed | Self::Reset | Self::Timeout => true,
            Self::Connected | Self::Abandoned => false,
        }
    }
}

/// How many of `usable` endpoints may be out at once.
pub const fn allowed(usable: u64, max_percent: u8) -> u64 {
    let share = usable * max_percent as u64 / 100;
    if share == 0 && usable >= 2 && max_percent > 0 {
        1
    } else {
        share
    }
}

/// Counts one up; whether the limit is reached. A limit of 0 is off.
fn reached(count: &AtomicU32, limit: u32) -> bool {
    limit > 0 && count.fetch_add(1, Relaxed) + 1 >= limit
}

/// Randomness without a source: of the endpoint and the moment.
fn chance(endpoint: &EndpointState, now: MonoNanos) -> Rng {
    Rng::new(now.0 ^ endpoint.id.rotate_left(40))
}

fn lock(port: &Mutex<()>) -> MutexGuard<'_, ()> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod rate_tests;
#[cfg(test)]
mod tests;
