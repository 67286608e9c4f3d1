//! Rate limits: what is counted, for whom, and where the count is kept.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;

use super::{Attribute, Match};

/// A limit on requests, bytes or concurrent requests: of this node, or shared with others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateLimitPolicy {
    /// Name in the `RateLimit-Policy` field, metrics and `explain`.
    pub name: String,
    /// What is counted.
    pub unit: LimitUnit,
    /// One bucket for each distinct combination of these; empty: one for all.
    pub key: Vec<Attribute>,
    /// Units in each `per`. At least 1. Of concurrent requests: how many at once.
    pub requests: u64,
    /// The period of `requests`; zero of concurrent requests.
    pub per: Duration,
    /// Size of the bucket. At least 1. Of concurrent requests: as `requests`.
    pub burst: u64,
    /// Only requests for which one of these holds; empty: all.
    pub matches: Vec<Match>,
    /// Other values for some; the first that holds decides. Each has buckets of its own.
    pub overrides: Vec<LimitOverride>,
    /// It refuses nothing and only counts what it would have refused.
    pub dry_run: bool,
    /// How a refusal looks.
    pub answer: LimitAnswer,
    /// Shared with other nodes; none: of this node alone.
    pub global: Option<GlobalLimit>,
}

impl Default for RateLimitPolicy {
    /// One request a second.
    fn default() -> Self {
        Self {
            name: String::new(),
            unit: LimitUnit::Requests,
            key: Vec::new(),
            requests: 1,
            per: Duration::from_secs(1),
            burst: 1,
            matches: Vec::new(),
            overrides: Vec::new(),
            dry_run: false,
            answer: LimitAnswer::default(),
            global: None,
        }
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitUnit {
    /// Requests; opaque connections.
    #[default]
    Requests,
    /// Bytes of request and answer bodies, or of an opaque connection, charged when it ends. A
    /// request is admitted as long as the bucket holds a byte; what it takes beyond is a debt.
    Bytes,
    /// Requests, or opaque connections, at the same time.
    Concurrent,
}

impl LimitUnit {
    /// `qu` of the `RateLimit-Policy` field; requests are what it means without one.
    pub const fn quota_unit(self) -> Option<&'static str> {
        match self {
            Self::Requests => None,
            Self::Bytes => Some("content-bytes"),
            Self::Concurrent => Some("concurrent-requests"),
        }
    }
}

/// Other values of a limit, for requests whose attributes are all equal to these.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LimitOverride {
    /// At least one.
    pub when: Vec<(Attribute, String)>,
    /// As in [`RateLimitPolicy`].
    pub requests: u64,
    /// As in [`RateLimitPolicy`].
    pub per: Duration,
    /// As in [`RateLimitPolicy`].
    pub burst: u64,
}

/// How a refusal looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LimitAnswer {
    /// HTTP status, 400 to 599. Default 429.
    pub status: u16,
    /// gRPC status UNAVAILABLE instead of RESOURCE_EXHAUSTED, as Envoy without
    /// `rate_limited_as_resource_exhausted`.
    pub grpc_unavailable: bool,
    /// `x-ratelimit-limit`, `-remaining` and `-reset` as well (Envoy's `DRAFT_VERSION_03`).
    pub draft_03: bool,
    /// `x-envoy-ratelimited: true` as well.
    pub envoy_ratelimited: bool,
}

impl Default for LimitAnswer {
    fn default() -> Self {
        Self {
            status: 429,
            grpc_unavailable: false,
            draft_03: false,
            envoy_ratelimited: false,
        }
    }
}

/// How a limit is shared.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GlobalLimit {
    /// Name of a [`RateLimitService`].
    pub service: String,
    /// What happens while it does not answer.
    pub failure: StoreFailure,
    /// How many of the shared tokens this node may hold (Redis only).
    pub lease: Lease,
    /// Ordered entries of the descriptor (Envoy only); empty: one for each attribute of the key,
    /// or `generic_key` with the limit's name.
    pub descriptor: Vec<DescriptorEntry>,
    /// `hits_addend` (Envoy only): what a request counts. At least 1.
    pub hits: u32,
}

/// An entry of a descriptor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DescriptorEntry {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: DescriptorValue,
}

/// Where the value of an entry comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DescriptorValue {
    /// This text.
    Text(String),
    /// An attribute. A request that does not have it is not limited (as with Envoy).
    Attribute(Attribute),
}

/// What happens while a shared store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreFailure {
    /// Requests are admitted, and counted.
    #[default]
    Open,
    /// They are refused: `rate_limit_service`.
    Closed,
}

/// Tokens that a node takes from the store in one go, to serve from without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lease {
    /// The largest share of the burst that this node holds for a key, in percent, 0 to 100. 0: the
    /// store is asked for each request.
    pub share_percent: u8,
    /// How long tokens may be used after they were taken; none: a tenth of the period, from 10 ms
    /// to 1 s. They are then lost to everybody, which admits less, never more.
    pub time: Option<Duration>,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            share_percent: 10,
            time: None,
        }
    }
}

impl Lease {
    /// How long tokens may be used, for a limit with this period.
    pub fn time(&self, per: Duration) -> Duration {
        let tenth = (per / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
        self.time.unwrap_or(tenth)
    }
}

/// A store of shared counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateLimitService {
    /// Name, unique.
    pub name: String,
    /// Where it listens.
    pub address: StoreAddress,
    /// What is spoken.
    pub kind: StoreKind,
    /// How long a request waits for its answer. Default 20 ms, as Envoy.
    pub timeout: Duration,
}

/// Where a store listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreAddress {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// What a store speaks.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// Redis, with an atomic script.
    Redis(RedisStore),
    /// Envoy's `envoy.service.ratelimit.v3.RateLimitService`, unary gRPC without TLS.
    Envoy {
        /// `domain` of the requests.
        domain: String,
    },
}

/// How a Redis server is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RedisStore {
    /// Number of the database.
    pub database: u32,
    /// User name; none: the default user.
    pub username: Option<String>,
    /// File that holds the password (its first line), read at each connect.
    pub password_file: Option<PathBuf>,
    /// What keys begin with.
    pub prefix: String,
    /// TLS, with the name that the certificate must have; none: no TLS.
    pub tls: Option<String>,
}
