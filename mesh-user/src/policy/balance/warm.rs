//! Slow start: what a new endpoint has of its weight.

use crate::{
    clock::MonoNanos,
    model::balance::SlowStart,
    policy::{rng::Rng, snapshot::EndpointState},
};

/// One: the whole weight.
pub(super) const WHOLE: u64 = 1 << 16;

/// The share of its weight that an endpoint has, of [`WHOLE`]:
/// max(min, (t / window)^(1 / aggression)).
pub(super) fn factor(policy: &SlowStart, endpoint: &EndpointState, now: MonoNanos) -> u64 {
    let since = endpoint.since.max(endpoint.live.healthy_since());
    let age = now.since(since);
    // The time of its birth is not known: it was there before us.
    if since == MonoNanos(0) || age >= policy.window {
        return WHOLE;
    }
    let part = age.as_secs_f64() / policy.window.as_secs_f64();
    let part = if policy.aggression_percent == 100 {
        part
    } else {
        part.powf(100.0 / f64::from(policy.aggression_percent.max(1)))
    };
    let least = f64::from(policy.min_percent) / 100.0;
    (part.max(least).min(1.0) * WHOLE as f64) as u64
}

/// Whether an endpoint that was drawn by its whole weight is taken.
pub(super) fn accept(factor: u64, rng: &mut Rng) -> bool {
    factor >= WHOLE || u64::from(rng.below(WHOLE as u32)) < factor
}
