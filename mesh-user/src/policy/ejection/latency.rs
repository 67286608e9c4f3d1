//! Who is far slower than the others.

use std::time::Duration;

use super::rate::Seen;
use crate::{
    model::LatencyOutlier,
    policy::histogram::{quantile, total},
};

/// The places of the endpoints whose quantile lies above the median of all endpoints' quantiles by
/// the factor and by the least difference.
pub(super) fn outliers(seen: &[Seen], policy: LatencyOutlier) -> Vec<usize> {
    let of = |seen: &Seen| {
        let counts = seen.latency.as_deref()?;
        let enough = total(counts) >= u64::from(policy.volume_min.max(1));
        enough
            .then(|| quantile(counts, policy.quantile))
            .flatten()
            .map(|latency| (seen.at, latency))
    };
    let found: Vec<(usize, Duration)> = seen.iter().filter_map(of).collect();
    if (found.len() as u64) < u64::from(policy.hosts_min) {
        return Vec::new();
    }
    let mut sorted: Vec<Duration> = found.iter().map(|(_, latency)| *latency).collect();
    sorted.sort_unstable();
    // The lower one of an even count: half of the endpoints being slow is no reason to spare them.
    let Some(median) = sorted.get((sorted.len() - 1) / 2).copied() else {
        return Vec::new();
    };
    let factor = f64::from(policy.factor_milli) / 1_000.0;
    let threshold = median
        .mul_f64(factor)
        .max(median.saturating_add(policy.difference_min));
    found
        .into_iter()
        .filter(|(_, latency)| *latency > threshold)
        .map(|(at, _)| at)
        .collect()
}
