//! Policies.

use std::time::Duration;

use super::{
    Reader,
    balance::{balance, locality},
    health,
    limits::rate_limits,
    reader, resilience,
    rules::{Index, port_name},
};
use crate::{
    config::{collect::Collector, path::FieldPath},
    model::{BreakerPolicy, EjectionPolicy, Policy, RetryOn, RetryPolicy, Service, TimeoutPolicy},
};

/// Retries at most, when the policy does not say: as Envoy.
const RETRY_ATTEMPTS: u32 = 1;
/// Base of the pause before a retry, as Envoy.
const RETRY_BACKOFF: Duration = Duration::from_millis(25);
/// What is retried when the policy does not say: no answer came. Whether the method may be
/// repeated is asked besides.
const RETRY_ON: [RetryOn; 4] = [
    RetryOn::ConnectFailure,
    RetryOn::RefusedStream,
    RetryOn::Reset,
    RetryOn::PerTryTimeout,
];

pub(super) fn policies(
    root: Reader<'_>,
    index: &Index,
    services: &[Service],
    out: &mut Collector,
) -> Vec<Policy> {
    root.items("policies")
        .enumerate()
        .map(|(i, from)| {
            let service = index.resolve(from, &FieldPath::item("policies", i), out);
            let breaker = from.object("breaker");
            let policy = Policy {
                service,
                version: from.text("version").map(str::to_owned),
                port: port_name(from, services.get(service)),
                breaker: self::breaker(from.has("breaker"), breaker),
                ejection: breaker
                    .has("ejection")
                    .then(|| ejection(breaker.object("ejection"))),
                rate_limits: rate_limits(from),
                balance: balance(from),
                locality: locality(from),
                health_checks: health::checks(from),
                timeouts: timeouts(from.object("timeout")),
                retries: from.has("retries").then(|| retries(from.object("retries"))),
                upgrades: from.has("upgrades").then(|| {
                    let names = from.nodes("upgrades").iter().filter_map(reader::text);
                    names.map(str::to_ascii_lowercase).collect()
                }),
                tls: super::tls::upstream(from, services.get(service)),
                ..Policy::default()
            };
            resilience::policy(from, policy)
        })
        .collect()
}

/// The caps. A breaker that holds `ejection` alone leaves the caps to the service's policy.
fn breaker(there: bool, from: Reader<'_>) -> Option<BreakerPolicy> {
    let caps = [
        "max-connections",
        "max-pending",
        "max-requests",
        "max-retries",
    ];
    if !there || !(from.is_empty() || caps.iter().any(|cap| from.has(cap))) {
        return None;
    }
    let default = BreakerPolicy::default();
    Some(BreakerPolicy {
        max_connections: from
            .int("max-connections")
            .unwrap_or(default.max_connections),
        max_pending: from.int("max-pending").unwrap_or(default.max_pending),
        max_requests: from.int("max-requests").unwrap_or(default.max_requests),
        max_retries: from.int("max-retries").unwrap_or(default.max_retries),
    })
}

fn ejection(from: Reader<'_>) -> EjectionPolicy {
    let default = EjectionPolicy::default();
    let base = from.duration("base").unwrap_or(default.base);
    let ejection = EjectionPolicy {
        consecutive_5xx: from
            .int("consecutive-5xx")
            .unwrap_or(default.consecutive_5xx),
        consecutive_gateway: from
            .int("consecutive-gateway")
            .unwrap_or(default.consecutive_gateway),
        consecutive_local_origin: from
            .int("consecutive-local-origin")
            .unwrap_or(default.consecutive_local_origin),
        interval: from.duration("interval").unwrap_or(default.interval),
        base,
        max: from.duration("max").unwrap_or(default.max.max(base)),
        max_percent: from.int("max-percent").unwrap_or(default.max_percent),
        probe: from.bool("probe").unwrap_or(default.probe),
        ..default
    };
    resilience::ejection(from, ejection)
}

fn timeouts(from: Reader<'_>) -> TimeoutPolicy {
    TimeoutPolicy {
        request: from.duration("request"),
        connect: from.duration("connect"),
        idle: from.duration("idle"),
    }
}

pub(super) fn retries(from: Reader<'_>) -> RetryPolicy {
    let retries = RetryPolicy {
        attempts: from.int("attempts").unwrap_or(RETRY_ATTEMPTS),
        per_try: from.duration("per-try"),
        on: if from.has("on") {
            from.nodes("on")
                .iter()
                .filter_map(reader::text)
                .filter_map(retry_on)
                .collect()
        } else {
            RETRY_ON.to_vec()
        },
        statuses: from
            .nodes("statuses")
            .iter()
            .filter_map(reader::int)
            .collect(),
        non_idempotent: from.bool("non-idempotent").unwrap_or(false),
        backoff: from.duration("backoff").unwrap_or(RETRY_BACKOFF),
        ..RetryPolicy::default()
    };
    resilience::retries(from, retries)
}

fn retry_on(word: &str) -> Option<RetryOn> {
    Some(match word {
        "connect-failure" => RetryOn::ConnectFailure,
        "refused-stream" => RetryOn::RefusedStream,
        "reset" => RetryOn::Reset,
        "gateway-error" => RetryOn::GatewayError,
        "server-error" => RetryOn::ServerError,
        "per-try-timeout" => RetryOn::PerTryTimeout,
        "reset-before-request" => RetryOn::ResetBeforeRequest,
        "retriable-4xx" => RetryOn::Retriable4xx,
        "rate-limited" => RetryOn::RateLimited,
        "cancelled" => RetryOn::Cancelled,
        "deadline-exceeded" => RetryOn::DeadlineExceeded,
        "internal" => RetryOn::Internal,
        "resource-exhausted" => RetryOn::ResourceExhausted,
        "unavailable" => RetryOn::Unavailable,
        _ => return None,
    })
}
