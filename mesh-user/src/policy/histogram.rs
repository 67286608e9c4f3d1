//! Durations in buckets of an eighth of an octave: a quantile is right within 12.5 %.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// 1 µs to 2^35 µs (9.5 h).
pub(super) const BUCKETS: usize = 272;

/// Counts by duration, lock-free.
#[derive(Debug)]
pub(super) struct Histogram([AtomicU32; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

/// A histogram at one moment.
pub(super) type Counts = [u32; BUCKETS];

impl Histogram {
    /// Counts one.
    pub(super) fn add(&self, span: Duration) {
        self.0[bucket(span)].fetch_add(1, Relaxed);
    }

    /// The counts now. They wrap: only differences mean something.
    pub(super) fn counts(&self) -> Counts {
        std::array::from_fn(|at| self.0[at].load(Relaxed))
    }

    /// The counts since the last call.
    pub(super) fn take(&self) -> Counts {
        std::array::from_fn(|at| self.0[at].swap(0, Relaxed))
    }
}

/// What was counted between two moments.
pub(super) fn between(earlier: &Counts, later: &Counts) -> Counts {
    std::array::from_fn(|at| later[at].wrapping_sub(earlier[at]))
}

/// How many, all together.
pub(super) fn total(counts: &Counts) -> u64 {
    counts.iter().map(|count| u64::from(*count)).sum()
}

/// The duration below which `percent` of them lie; none when there are none.
pub(super) fn quantile(counts: &Counts, percent: u8) -> Option<Duration> {
    let total = total(counts);
    let nth = (total * u64::from(percent)).div_ceil(100).max(1);
    let mut seen = 0;
    counts.iter().enumerate().find_map(|(at, count)| {
        seen += u64::from(*count);
        (seen >= nth && total > 0).then(|| middle(at))
    })
}

fn bucket(span: Duration) -> usize {
    let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    if micros < 8 {
        return micros as usize;
    }
    let octave = micros.ilog2();
    let eighth = (micros >> (octave - 3)) & 7;
    ((octave as usize - 2) * 8 + eighth as usize).min(BUCKETS - 1)
}

fn middle(bucket: usize) -> Duration {
    if bucket < 8 {
        return Duration::from_micros(bucket as u64);
    }
    let shift = bucket / 8 - 1;
    let from = (8 + bucket as u64 % 8) << shift;
    Duration::from_micros(from + (1 << shift) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_right_within_an_eighth() {
        for micros in [
            0_u64,
            1,
            7,
            8,
            9,
            15,
            16,
            100,
            1_000,
            65_535,
            1 << 20,
            1 << 34,
        ] {
            let histogram = Histogram::default();
            histogram.add(Duration::from_micros(micros));
            let seen = quantile(&histogram.counts(), 50).unwrap().as_micros() as f64;
            let error = (seen - micros as f64).abs();
            assert!(error <= micros as f64 / 8.0, "{micros}: {seen}");
        }
        let histogram = Histogram::default();
        assert_eq!(quantile(&histogram.counts(), 50), None);
        histogram.add(Duration::MAX);
        assert!(quantile(&histogram.counts(), 99).is_some());
        for ms in 1..=100 {
            histogram.add(Duration::from_millis(ms));
        }
        let counts = histogram.take();
        assert_eq!(total(&counts), 101);
        let median = quantile(&counts, 50).unwrap().as_millis();
        assert!((45..=58).contains(&median), "{median}");
        assert_eq!(total(&histogram.counts()), 0);
    }
}
