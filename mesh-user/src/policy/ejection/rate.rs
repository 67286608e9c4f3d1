//! What is judged at a sweep: shares of good answers, failures, and latencies since the last one.

use std::{collections::HashMap, sync::Arc, sync::MutexGuard, sync::PoisonError, time::Duration};

use super::{Change, Detector, Ejection, Live, latency};
use crate::{
    clock::MonoNanos,
    policy::{
        histogram::{self, Counts},
        snapshot::{EndpointState, Outcome},
    },
};

/// What had been counted at an endpoint at some moment. The counters only go up and are shared by
/// every version that contains the endpoint, so each keeps its own marks.
#[derive(Debug)]
pub(super) struct Mark {
    requests: u64,
    failures: u64,
    local: u64,
    latency: Option<Box<Counts>>,
}

impl Mark {
    fn of(live: &Live, latency: bool) -> Self {
        let (requests, failures) = live.recorded();
        Self {
            requests,
            failures,
            local: live.local_failures(),
            latency: latency.then(|| Box::new(live.measured().counts())),
        }
    }

    /// What happened since `earlier`.
    fn since(&self, earlier: &Self, at: usize) -> Seen {
        let latency = match (&earlier.latency, &self.latency) {
            (Some(earlier), Some(now)) => Some(Box::new(histogram::between(earlier, now))),
            _ => None,
        };
        Seen {
            at,
            requests: self.requests.saturating_sub(earlier.requests),
            failures: self.failures.saturating_sub(earlier.failures),
            local: self.local.saturating_sub(earlier.local),
            latency,
        }
    }
}

/// What an endpoint saw in an interval.
pub(super) struct Seen {
    /// Its place among the members.
    pub(super) at: usize,
    requests: u64,
    failures: u64,
    local: u64,
    pub(super) latency: Option<Box<Counts>>,
}

impl Ejection {
    fn marks(&self) -> MutexGuard<'_, HashMap<u64, Mark>> {
        let marks = self.shared.marks.lock();
        marks.unwrap_or_else(PoisonError::into_inner)
    }

    fn judges(&self) -> bool {
        let policy = &self.policy;
        policy.success_rate.is_some()
            || policy.failure_percentage.is_some()
            || policy.latency.is_some()
    }

    /// Begins to watch endpoints that are new; of the others it goes on.
    pub(in crate::policy) fn begin(&self, members: &[Arc<EndpointState>]) {
        if !self.judges() {
            return;
        }
        let mut marks = self.marks();
        for member in members {
            let latency = self.policy.latency.is_some();
            let mark = marks
                .entry(member.id)
                .or_insert_with(|| Mark::of(&member.live, latency));
            if latency && mark.latency.is_none() {
                mark.latency = Some(Box::new(member.live.measured().counts()));
            }
        }
    }

    /// Counts how long an answer took.
    pub(in crate::policy) fn measure(&self, live: &Live, outcome: Outcome, took: Option<Duration>) {
        // A time-out took as long as an answer would have taken at least; what failed at once says
        // nothing of how fast the endpoint works.
        let is_answer = matches!(
            outcome,
            Outcome::Status(_) | Outcome::Connected | Outcome::Timeout
        );
        if self.policy.latency.is_some()
            && is_answer
            && let Some(took) = took
        {
            live.measured().add(took);
        }
    }

    /// Ejects whom a detector finds. The lock of the port is held.
    pub(super) fn judge(&self, members: &[Arc<EndpointState>], now: MonoNanos) -> Vec<Change> {
        if !self.judges() {
            return Vec::new();
        }
        let seen = self.look(members);
        let mut changes = Vec::new();
        for (by, at) in self.found(&seen) {
            let endpoint = &members[at];
            if self.is_enforced(by, endpoint, now) {
                changes.extend(self.eject_held(endpoint, members, by, now));
            }
        }
        changes
    }

    /// What the endpoints in rotation saw since the last look.
    fn look(&self, members: &[Arc<EndpointState>]) -> Vec<Seen> {
        let mut marks = self.marks();
        let mut fresh = HashMap::with_capacity(members.len());
        let mut seen = Vec::new();
        for (at, member) in members.iter().enumerate() {
            let mark = Mark::of(&member.live, self.policy.latency.is_some());
            if let Some(earlier) = marks.get(&member.id)
                && member.is_usable()
                && member.live.is_eligible()
            {
                seen.push(mark.since(earlier, at));
            }
            fresh.insert(member.id, mark);
        }
        *marks = fresh;
        seen
    }

    /// Who is an outlier, by which detector; each endpoint once.
    fn found(&self, seen: &[Seen]) -> Vec<(Detector, usize)> {
        let mut found: Vec<(Detector, usize)> = Vec::new();
        let mut add = |by, all: Vec<usize>| {
            for at in all {
                if !found.iter().any(|(_, other)| *other == at) {
                    found.push((by, at));
                }
            }
        };
        // Without a split everything counts as the endpoint's own.
        let split = self.policy.consecutive_local_origin > 0;
        let shares = |local: bool| -> Vec<Share> {
            let of = |seen: &Seen| {
                let (total, failed) = match (split, local) {
                    (false, _) => (seen.requests, seen.failures),
                    (true, true) => (seen.requests, seen.local),
                    (true, false) => (seen.requests - seen.local, seen.failures - seen.local),
                };
                Share {
                    at: seen.at,
                    total,
                    failed,
                }
            };
            seen.iter().map(of).collect()
        };
        for local in [false, true] {
            if local && !split {
                break;
            }
            let shares = shares(local);
            if let Some(rate) = self.policy.success_rate {
                let by = match local {
                    true => Detector::LocalOriginSuccessRate,
                    false => Detector::SuccessRate,
                };
                let enough = with_volume(&shares, rate.volume_min, rate.hosts_min);
                add(
                    by,
                    below_mean(&enough, f64::from(rate.factor_milli) / 1_000.0),
                );
            }
            if let Some(rate) = self.policy.failure_percentage {
                let by = match local {
                    true => Detector::LocalOriginFailurePercentage,
                    false => Detector::FailurePercentage,
                };
                let enough = with_volume(&shares, rate.volume_min, rate.hosts_min);
                let above =
                    |share: &&Share| share.failed * 100 >= u64::from(rate.threshold) * share.total;
                add(
                    by,
                    enough.iter().filter(above).map(|share| share.at).collect(),
                );
            }
        }
        if let Some(policy) = self.policy.latency {
            add(Detector::Latency, latency::outliers(seen, policy));
        }
        found
    }
}

/// Requests of an endpoint in an interval.
#[derive(Clone, Copy, Debug)]
struct Share {
    at: usize,
    total: u64,
    failed: u64,
}

/// Those with enough requests; nobody when they are too few.
fn with_volume(shares: &[Share], volume: u32, hosts: u32) -> Vec<Share> {
    let enough = |share: &&Share| share.total >= u64::from(volume.max(1));
    let enough: Vec<Share> = shares.iter().filter(enough).copied().collect();
    if (enough.len() as u64) < u64::from(hosts) {
        return Vec::new();
    }
    enough
}

/// Whose share of good answers is more than `factor` standard deviations below the mean.
fn below_mean(shares: &[Share], factor: f64) -> Vec<usize> {
    let rate = |share: &Share| 100.0 - share.failed as f64 * 100.0 / share.total as f64;
    let count = shares.len() as f64;
    let mean = shares.iter().map(rate).sum::<f64>() / count;
    let variance = shares
        .iter()
        .map(|share| (rate(share) - mean).powi(2))
        .sum::<f64>()
        / count;
    let threshold = mean - factor * variance.sqrt();
    shares
        .iter()
        .filter(|share| rate(share) < threshold)
        .map(|share| share.at)
        .collect()
}
