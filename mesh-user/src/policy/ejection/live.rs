//! What is counted at an endpoint, lock-free.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::{
    clock::MonoNanos,
    policy::{
        balance::{self, Latency},
        health::{Checked, Finding},
        histogram::Histogram,
        snapshot::Outcome,
    },
};

/// Live state of an endpoint: requests in flight, consecutive failures, ejection.
#[derive(Debug, Default)]
pub struct Live {
    in_flight: AtomicU32,
    /// When the ejection ends, in nanoseconds; 0: in rotation.
    pub(super) ejected_until: AtomicU64,
    /// One of the `PROBE_` values.
    pub(super) probe: AtomicU8,
    /// When the probe was given out.
    pub(super) probe_since: AtomicU64,
    pub(super) errors: AtomicU32,
    pub(super) gateway_errors: AtomicU32,
    pub(super) local_errors: AtomicU32,
    /// Envoy's back-off: k.
    pub(super) times: AtomicU32,
    /// Id of the [`Ejection`] that ejected it last: only that one brings it back.
    pub(super) owner: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
    /// What peak EWMA knows.
    pub(in crate::policy) latency: Latency,
    /// What active checks found.
    health: Checked,
    /// When it came back, by an ejection's end or a check; 0: never.
    healthy_since: AtomicU64,
    /// Of the failures, those that never reached an answer.
    local_failures: AtomicU64,
    /// How long answers took; made by the first ejection that asks.
    measured: OnceLock<Box<Histogram>>,
    pub(super) ejections: AtomicU64,
    pub(super) skipped: AtomicU64,
}

/// No probe is asked for.
pub(super) const PROBE_NONE: u8 = 0;
/// The next request is the probe.
pub(super) const PROBE_DUE: u8 = 1;
/// The endpoint was chosen for the probe.
pub(super) const PROBE_CHOSEN: u8 = 2;
/// The probe is in flight.
pub(super) const PROBE_SENT: u8 = 3;

/// What an endpoint may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Any request.
    InRotation,
    /// None until then, and the sweep after.
    Ejected {
        /// When the ejection time is over.
        until: MonoNanos,
    },
    /// One request, which decides whether it is back.
    Probing,
}

impl Live {
    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Attempts recorded, and how many of them failed.
    pub fn recorded(&self) -> (u64, u64) {
        (self.requests.load(Relaxed), self.failures.load(Relaxed))
    }

    /// Of the failures, those that never reached an answer.
    pub(super) fn local_failures(&self) -> u64 {
        self.local_failures.load(Relaxed)
    }

    pub(super) fn measured(&self) -> &Histogram {
        self.measured.get_or_init(Box::default)
    }

    /// How often it was ejected, and how often `max-percent` forbade it.
    pub fn ejections(&self) -> (u64, u64) {
        (self.ejections.load(Relaxed), self.skipped.load(Relaxed))
    }

    /// What it may be given.
    pub fn standing(&self) -> Standing {
        match (self.ejected_until.load(Relaxed), self.probe.load(Relaxed)) {
            (0, PROBE_NONE) => Standing::InRotation,
            (0, _) => Standing::Probing,
            (until, _) => Standing::Ejected {
                until: MonoNanos(until),
            },
        }
    }

    /// Whether a request may be sent to it now: neither ejected nor busy with its probe.
    pub fn is_eligible(&self) -> bool {
        self.is_in_rotation() && self.probe.load(Relaxed) <= PROBE_DUE
    }

    /// Whether it is neither ejected nor found sick by an active check.
    pub fn is_in_rotation(&self) -> bool {
        self.ejected_until.load(Relaxed) == 0 && !self.health.is_sick()
    }

    /// What active checks found last; none when nobody checks it.
    pub fn health(&self) -> Option<Finding> {
        self.health.get()
    }

    /// Notes what an active check found; none: nobody checks it any more. Whether it left the
    /// rotation or came back by that.
    pub fn set_health(&self, finding: Option<Finding>, now: MonoNanos) -> bool {
        let was_sick = self.health.set(finding);
        let is_sick = self.health.is_sick();
        if was_sick && !is_sick {
            self.healthy_since.store(now.0, Relaxed);
        }
        if was_sick != is_sick {
            balance::changed();
        }
        was_sick != is_sick
    }

    /// A successful check ends an ejection. How often it was ejected stays known, so that the next
    /// one is longer. Whether it was ejected.
    pub fn uneject(&self, now: MonoNanos) -> bool {
        let was_out = self.ejected_until.swap(0, Relaxed) != 0;
        if was_out {
            self.probe.store(PROBE_NONE, Relaxed);
            self.reset_counts();
            self.returned(now);
        }
        was_out
    }

    /// It was ejected, and is back.
    pub(super) fn returned(&self, now: MonoNanos) {
        self.healthy_since.store(now.0, Relaxed);
        balance::changed();
    }

    /// When it came back into the rotation last; 0: never.
    pub(in crate::policy) fn healthy_since(&self) -> MonoNanos {
        MonoNanos(self.healthy_since.load(Relaxed))
    }

    /// Takes the endpoint for a request. False when it is out, or another request is its probe.
    pub(in crate::policy) fn choose(&self, now: MonoNanos) -> bool {
        if !self.is_in_rotation() {
            return false;
        }
        match self.probe.load(Relaxed) {
            PROBE_NONE => true,
            PROBE_DUE if self.move_probe(PROBE_DUE, PROBE_CHOSEN) => {
                self.probe_since.store(now.0, Relaxed);
                true
            }
            _ => false,
        }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(in crate::policy) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        let probe =
            self.probe.load(Relaxed) == PROBE_CHOSEN && self.move_probe(PROBE_CHOSEN, PROBE_SENT);
        InFlight {
            live: Arc::clone(self),
            probe,
        }
    }

    /// The request for which it was chosen was refused by a cap.
    pub(in crate::policy) fn probe_refused(&self) {
        if self.probe.load(Relaxed) == PROBE_CHOSEN {
            self.move_probe(PROBE_CHOSEN, PROBE_DUE);
        }
    }

    pub(super) fn move_probe(&self, from: u8, to: u8) -> bool {
        self.probe
            .compare_exchange(from, to, Relaxed, Relaxed)
            .is_ok()
    }

    pub(super) fn reset_counts(&self) {
        for count in [&self.errors, &self.gateway_errors, &self.local_errors] {
            reset(count);
        }
    }

    /// The id of the ejection that holds it out or waits for its probe.
    pub(in crate::policy) fn held_by(&self) -> Option<u64> {
        (self.standing() != Standing::InRotation).then(|| self.owner.load(Relaxed))
    }

    /// Through a version without ejection: nothing counts, but an answer to the probe is one.
    pub(in crate::policy) fn answer_probe(&self, outcome: Outcome) {
        let is_answer = outcome != Outcome::Abandoned && !outcome.is_failure();
        if is_answer && self.probe.load(Relaxed) == PROBE_SENT {
            self.move_probe(PROBE_SENT, PROBE_NONE);
        }
    }

    /// Back into rotation without a sweep: the policy that ejected it is gone. Whether it was
    /// ejected, not only waiting for its probe.
    pub(in crate::policy) fn pardon(&self) -> bool {
        let was_out = self.ejected_until.swap(0, Relaxed) != 0;
        balance::changed();
        self.probe.store(PROBE_NONE, Relaxed);
        self.times.store(0, Relaxed);
        self.reset_counts();
        was_out
    }
}

/// One request in flight at an endpoint: what least-request compares.
#[derive(Debug)]
#[must_use]
pub(in crate::policy) struct InFlight {
    live: Arc<Live>,
    probe: bool,
}

impl InFlight {
    /// The endpoint has answered well, while the request goes on: if it is the probe, that is its
    /// verdict.
    pub(in crate::policy) fn answered(&mut self) {
        if std::mem::take(&mut self.probe) {
            self.live.move_probe(PROBE_SENT, PROBE_NONE);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.live.in_flight.fetch_sub(1, Relaxed);
        if self.probe {
            // A probe that ended without a verdict is due again.
            self.live.move_probe(PROBE_SENT, PROBE_DUE);
        }
    }
}

/// Writes only when there is something to reset: the line stays shared between cores.
pub(super) fn reset(count: &AtomicU32) {
    if count.load(Relaxed) != 0 {
        count.store(0, Relaxed);
    }
}

/// Counts attempts that somebody else has counted: good ones and failed ones.
pub(in crate::policy) fn tally_many(live: &Live, good: u64, failed: u64) {
    live.requests
        .fetch_add(good.saturating_add(failed), Relaxed);
    live.failures.fetch_add(failed, Relaxed);
    live.local_failures.fetch_add(failed, Relaxed);
}

/// Counts every attempt, with and without an ejection policy.
pub(in crate::policy) fn tally(live: &Live, outcome: Outcome) {
    if outcome != Outcome::Abandoned {
        live.requests.fetch_add(1, Relaxed);
        if outcome.is_failure() {
            live.failures.fetch_add(1, Relaxed);
            if !matches!(outcome, Outcome::Status(_)) {
                live.local_failures.fetch_add(1, Relaxed);
            }
        }
    }
}
