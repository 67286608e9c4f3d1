//! Peak EWMA: an estimate of an endpoint's latency that rises at once and falls slowly (Finagle,
//! Linkerd).
//!
//! A sample above the estimate as it has decayed replaces it; a lower one blends with it by
//! 1 - exp(-dt / decay). Without samples the estimate falls towards zero, so that an endpoint that
//! was slow is tried again. One word, written by compare-exchange: shared by all cores, no lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{clock::MonoNanos, model::BalancePolicy, policy::snapshot::Outcome};

/// The longest wait that an answer may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// The estimate in nanoseconds (f32, upper half) and when it was written (milliseconds of the
/// clock, lower half, which goes round after 49 days). 0: nobody has looked at the endpoint yet.
#[derive(Debug, Default)]
pub(in crate::policy) struct Latency(AtomicU64);

const fn pack(estimate: f32, at: u32) -> u64 {
    ((estimate.to_bits() as u64) << 32) | at as u64
}

const fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

const fn millis(now: MonoNanos) -> u32 {
    (now.0 / 1_000_000) as u32
}

/// What is left of the old estimate.
fn kept(since: u32, now: u32, decay: Duration) -> f32 {
    // Two cores may read the clock in one order and write in the other.
    let apart = now.wrapping_sub(since);
    if apart > u32::MAX / 2 {
        return 1.0;
    }
    (-(apart as f32) / (decay.as_secs_f32() * 1_000.0)).exp()
}

impl Latency {
    /// The estimate now, in nanoseconds. The first look starts the clock of an endpoint that has
    /// not answered yet: its assumed latency falls like any other, so that it gets its chance.
    pub(super) fn estimate(&self, policy: &BalancePolicy, now: MonoNanos) -> f32 {
        let word = self.0.load(Relaxed);
        let at = millis(now);
        if word == 0 {
            let start = policy.start.as_nanos() as f32;
            // Whoever wins: the values differ by nothing that matters.
            let _raced = self
                .0
                .compare_exchange(0, pack(start, at), Relaxed, Relaxed);
            return start;
        }
        let (estimate, since) = unpack(word);
        estimate * kept(since, at, policy.decay)
    }

    /// Takes a sample in.
    fn add(&self, sample: Duration, policy: &BalancePolicy, now: MonoNanos) {
        // Above 0, which means that there is no estimate.
        let sample = (sample.as_nanos() as f32).max(1.0);
        let at = millis(now);
        let blend = |word: u64| {
            if word == 0 {
                return pack(sample, at);
            }
            let (estimate, since) = unpack(word);
            let kept = kept(since, at, policy.decay);
            let decayed = estimate * kept;
            if sample > decayed {
                pack(sample, at)
            } else {
                pack(sample.mul_add(1.0 - kept, decayed).max(1.0), at)
            }
        };
        let _last = self
            .0
            .fetch_update(Relaxed, Relaxed, |word| Some(blend(word)));
    }

    /// Takes the end of an attempt in. A failure counts as the penalty, or as long as its answer
    /// asks to stay away: an endpoint that fails fast must not look fast. So does 429, by which an
    /// endpoint says that it has enough.
    pub(super) fn observe(
        &self,
        outcome: Outcome,
        took: Duration,
        retry_after: Option<Duration>,
        policy: &BalancePolicy,
        now: MonoNanos,
    ) {
        let failed = outcome.is_failure() || outcome == Outcome::Status(429);
        let sample = if failed {
            let penalty = retry_after.map_or(policy.penalty, |wait| wait.min(RETRY_AFTER_MAX));
            took.max(penalty)
        } else {
            took
        };
        self.add(sample, policy, now);
    }
}
