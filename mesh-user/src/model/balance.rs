//! How an endpoint is chosen inside a version, and among which.

use std::time::Duration;

use serde::Serialize;

use super::Attribute;

/// How an endpoint is chosen inside a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Two random endpoints without replacement, the one with fewer requests in flight wins.
    #[default]
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// Two random endpoints without replacement, the one with the lower cost wins: estimate of its
    /// latency x (requests in flight + 1).
    PeakEwma,
    /// By a key: the next endpoint on a ring of hashes (Karger).
    RingHash,
    /// By a key: Maglev's table, with a cap on any endpoint's load if wanted.
    Maglev,
}

impl Balance {
    /// Its name in the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Self::LeastRequest => "least-request",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::PeakEwma => "peak-ewma",
            Self::RingHash => "ring-hash",
            Self::Maglev => "maglev",
        }
    }

    /// Whether a key decides.
    pub const fn is_hashed(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// The algorithm and its parameters. Those of other algorithms are not read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BalancePolicy {
    /// The algorithm.
    pub algorithm: Balance,
    /// Exponent of requests in flight against weight, in percent: the effective weight is
    /// weight / (in flight + 1)^bias. Default 100 (Envoy's `active_request_bias` 1.0); 0: weights
    /// alone. Least request.
    pub bias_percent: u32,
    /// The key: these attributes together; those that a request lacks are left out, and one that
    /// lacks all is sent to any endpoint. Ring hash and Maglev.
    pub hash: Vec<Attribute>,
    /// Seed of the hashes: nodes with the same seed and endpoints choose alike. Default 0.
    pub seed: u32,
    /// Fewest entries of the ring. Default 1,024, as Envoy.
    pub ring_min: u32,
    /// Most entries of the ring. Default 8,388,608, as Envoy.
    pub ring_max: u32,
    /// Entries of Maglev's table, a prime. Default 65,537, as Envoy.
    pub table_size: u32,
    /// Most load of an endpoint in percent of the mean for its weight, 100 or more. None: no bound.
    pub bounded_load: Option<u32>,
    /// Time constant with which an estimate of latency falls. Default 10 s, as Linkerd. Peak EWMA,
    /// as the next two.
    pub decay: Duration,
    /// Estimate of an endpoint that nobody has asked yet. Default 30 ms, as Linkerd.
    pub start: Duration,
    /// What a failed attempt counts as, unless its answer says how long to stay away. Default 5 s,
    /// as Linkerd.
    pub penalty: Duration,
    /// New endpoints begin with less. Round robin and least request.
    pub slow_start: Option<SlowStart>,
    /// Below this healthy share in percent every endpoint is used, sick or not; 0: never. None: 50
    /// where health checks run, else 0.
    pub panic_threshold: Option<u8>,
}

impl Default for BalancePolicy {
    fn default() -> Self {
        Self {
            algorithm: Balance::default(),
            bias_percent: 100,
            hash: Vec::new(),
            seed: 0,
            ring_min: 1_024,
            ring_max: 8_388_608,
            table_size: 65_537,
            bounded_load: None,
            decay: Duration::from_secs(10),
            start: Duration::from_millis(30),
            penalty: Duration::from_secs(5),
            slow_start: None,
            panic_threshold: None,
        }
    }
}

impl From<Balance> for BalancePolicy {
    fn from(algorithm: Balance) -> Self {
        Self {
            algorithm,
            ..Self::default()
        }
    }
}

/// Whether a table of this size is one that every step fills: Maglev's permutations need a prime.
pub const fn is_prime(number: u32) -> bool {
    if number < 2 {
        return false;
    }
    let mut divisor = 2;
    while divisor as u64 * divisor as u64 <= number as u64 {
        if number.is_multiple_of(divisor) {
            return false;
        }
        divisor += 1;
    }
    true
}

/// An endpoint that appeared or became healthy begins with less than its weight:
/// weight x max(min, (t / window)^(1 / aggression)), as Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SlowStart {
    /// Until it has its whole weight. Above 0.
    pub window: Duration,
    /// In percent: 100 is linear (Envoy's default 1.0), more is faster at first. Above 0.
    pub aggression_percent: u32,
    /// Smallest share of its weight, in percent. Default 10, as Envoy.
    pub min_percent: u8,
}

impl Default for SlowStart {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            aggression_percent: 100,
            min_percent: 10,
        }
    }
}

/// Nearness to this node decides which endpoints are asked first. Farther ones get what the nearer
/// ones have no healthy endpoints for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalityPolicy {
    /// The finest level at which nearness counts. None: only `Endpoint::priority` does.
    pub prefer: Option<Level>,
    /// Other regions in the order in which they step in; regions that are not named come last,
    /// together.
    pub failover: Vec<String>,
    /// A group's capacity is this many percent of its healthy share, at most all. 100 or more.
    /// Default 140, as Envoy.
    pub over_provisioning: u32,
}

impl Default for LocalityPolicy {
    fn default() -> Self {
        Self {
            prefer: None,
            failover: Vec::new(),
            over_provisioning: 140,
        }
    }
}

/// A level of `region/zone/subzone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The subzone.
    Subzone,
}

impl Level {
    /// Its name in the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Zone => "zone",
            Self::Subzone => "subzone",
        }
    }

    /// How many parts of a locality must be equal.
    pub const fn depth(self) -> usize {
        match self {
            Self::Region => 1,
            Self::Zone => 2,
            Self::Subzone => 3,
        }
    }
}
