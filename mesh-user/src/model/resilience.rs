//! How a version is protected from its clients, and its clients from sick endpoints, beyond caps
//! and consecutive errors.

use std::time::Duration;

use serde::Serialize;

/// Which share of the requests may be retries; takes the place of `max-retries`.
///
/// Without an interval as Envoy's `retry_budget` (retries in flight against requests in flight),
/// with one as Gateway API's `XBackendTrafficPolicy` (retries against requests in the last
/// interval).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RetryBudget {
    /// Retries for each 100 requests that are none themselves, 0 to 100. Default 20, as Envoy.
    pub percent: u8,
    /// Retries that are always allowed: in flight, or with an interval in each second. Default 3
    /// (Envoy), with an interval 10 (Gateway API).
    pub floor: u32,
    /// Over which time requests and retries are counted, 1 s to 1 h; none: in flight now.
    pub interval: Option<Duration>,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20,
            floor: 3,
            interval: None,
        }
    }
}

/// The same request to a second endpoint while the first has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HedgePolicy {
    /// How long an endpoint may take until the next one is asked too. None: the per-try time-out,
    /// which then ends no try.
    pub after: Option<Duration>,
    /// More endpoints that are asked at most, 1 to 5. Default 1.
    pub max: u32,
    /// Also methods that are not idempotent.
    pub non_idempotent: bool,
}

/// A concurrency limit that follows the latency: gradient of the smallest latency seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AdaptivePolicy {
    /// Fewest requests in flight that are admitted. Default 3, as Envoy.
    pub min: u32,
    /// Most; `max-requests` holds beside it. Default 1000, as Envoy.
    pub max: u32,
    /// The limit is reckoned anew after each such time. Default 100 ms, as Envoy.
    pub window: Duration,
    /// How far above the smallest latency counts as none, in percent. Default 25, as Envoy.
    pub tolerance: u8,
    /// The smallest latency is measured anew after each such time, at half of the limit. Default
    /// 60 s, as Envoy.
    pub remember: Duration,
}

impl Default for AdaptivePolicy {
    fn default() -> Self {
        Self {
            min: 3,
            max: 1_000,
            window: Duration::from_millis(100),
            tolerance: 25,
            remember: Duration::from_secs(60),
        }
    }
}

/// How long upstream connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConnectionPolicy {
    /// Requests of a connection; 0: no limit, 1: no keep-alive. Default 0.
    pub requests_max: u32,
    /// A connection takes no more requests once it is so old; zero: no limit. Default zero.
    pub age_max: Duration,
    /// By how much of `age_max` a connection may be older, in percent, at random. Default 10.
    pub age_jitter: u8,
}

impl Default for ConnectionPolicy {
    fn default() -> Self {
        Self {
            requests_max: 0,
            age_max: Duration::ZERO,
            age_jitter: 10,
        }
    }
}

/// What becomes of long connections and streams whose endpoint left their version, or whose rule
/// no longer sends to their version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OnChange {
    /// What.
    pub action: ChangeAction,
    /// Until when all are closed, for [`ChangeAction::Drain`]. Default 30 s.
    pub deadline: Duration,
}

impl Default for OnChange {
    fn default() -> Self {
        Self {
            action: ChangeAction::Keep,
            deadline: Duration::from_secs(30),
        }
    }
}

/// See [`OnChange`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeAction {
    /// They go on.
    #[default]
    Keep,
    /// They are closed, spread evenly over the deadline.
    Drain,
    /// They are closed at once.
    Close,
}

/// Ejection of endpoints whose share of good answers is far below the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SuccessRate {
    /// Fewest endpoints with enough requests. Default 5.
    pub hosts_min: u32,
    /// Fewest requests of an endpoint in an interval. Default 100.
    pub volume_min: u32,
    /// Standard deviations below the mean, in thousandths. Default 1900.
    pub factor_milli: u32,
    /// How many of 100 endpoints that are found are ejected. Default 100.
    pub enforcing: u8,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            hosts_min: 5,
            volume_min: 100,
            factor_milli: 1_900,
            enforcing: 100,
        }
    }
}

/// Ejection of endpoints whose share of failures is above a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FailurePercentage {
    /// Failures in percent, at least. Default 85.
    pub threshold: u8,
    /// Fewest endpoints with enough requests. Default 5.
    pub hosts_min: u32,
    /// Fewest requests of an endpoint in an interval. Default 50.
    pub volume_min: u32,
    /// How many of 100 endpoints that are found are ejected. Default 100: who writes it down wants
    /// it (Envoy: 0).
    pub enforcing: u8,
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self {
            threshold: 85,
            hosts_min: 5,
            volume_min: 50,
            enforcing: 100,
        }
    }
}

/// Ejection of endpoints that are far slower than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LatencyOutlier {
    /// Which quantile of an interval's latencies is compared, in percent, 1 to 99. Default 50.
    pub quantile: u8,
    /// How many times the median of the endpoints' quantiles, in thousandths. Default 3000.
    pub factor_milli: u32,
    /// And how much above it at least. Default 50 ms.
    pub difference_min: Duration,
    /// Fewest endpoints with enough requests. Default 3.
    pub hosts_min: u32,
    /// Fewest requests of an endpoint in an interval. Default 20.
    pub volume_min: u32,
    /// How many of 100 endpoints that are found are ejected. Default 100.
    pub enforcing: u8,
}

impl Default for LatencyOutlier {
    fn default() -> Self {
        Self {
            quantile: 50,
            factor_milli: 3_000,
            difference_min: Duration::from_millis(50),
            hosts_min: 3,
            volume_min: 20,
            enforcing: 100,
        }
    }
}
