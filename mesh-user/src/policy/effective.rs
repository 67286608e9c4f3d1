//! The policy of one version, put together field by field from what the configuration says.
//!
//! The most specific policy that says something wins: version and port, version, service and port,
//! service, default. Of equally specific ones the first.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

mod balancing;

pub use balancing::Balancing;

use super::{
    describe::{Origin, PolicyRow},
    retry::ON_DEFAULT,
};
use crate::model::{
    AdaptivePolicy, Balance, BreakerPolicy, ChangeAction, ConnectionPolicy, EjectionPolicy,
    HedgePolicy, OnChange, Policy, RateLimitPolicy, RetryBudget, RetryOn, RetryPolicy,
    tls::{Originate, UpstreamTls},
};

/// Whole request: Envoy's route time-out.
const REQUEST_DEFAULT: Duration = Duration::from_secs(15);
/// Envoy's connect time-out: longer than two SYN retransmissions (1 s, 3 s).
const CONNECT_DEFAULT: Duration = Duration::from_secs(5);
/// When no connect time-out is wanted the kernel's own ends it (6 SYN retransmissions).
const CONNECT_NONE: Duration = Duration::from_secs(127);
/// Envoy's idle time-out.
const IDLE_DEFAULT: Duration = Duration::from_secs(3_600);

/// A value and where it comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sourced<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub from: Origin,
}

/// Every value in force for a version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effective {
    /// Caps.
    pub breaker: Sourced<BreakerPolicy>,
    /// Passive ejection.
    pub ejection: Sourced<Option<EjectionPolicy>>,
    /// Rate limits.
    pub rate_limits: Sourced<Vec<RateLimitPolicy>>,
    /// The policy (its place in the model) that states the rate limits.
    pub(super) limits_of: Option<usize>,
    /// Balancing.
    pub balance: Sourced<Balance>,
    /// Its parameters, locality and health checks; none when no policy says any.
    pub balancing: Option<Box<Balancing>>,
    /// Request time-out; zero: none.
    pub request: Sourced<Duration>,
    /// Connect time-out; never zero.
    pub connect: Sourced<Duration>,
    /// Idle time-out; zero: none.
    pub idle: Sourced<Duration>,
    /// Retries.
    pub retries: Sourced<Option<RetryPolicy>>,
    /// Which share of the requests may be retries.
    pub retry_budget: Sourced<Option<RetryBudget>>,
    /// Hedges.
    pub hedge: Sourced<Option<HedgePolicy>>,
    /// A cap of requests that follows the latency.
    pub adaptive: Sourced<Option<AdaptivePolicy>>,
    /// How long connections are used.
    pub connection: Sourced<ConnectionPolicy>,
    /// What becomes of long connections when what they go to changes.
    pub on_change: Sourced<OnChange>,
    /// Protocols that may be upgraded to; none: any.
    pub upgrades: Sourced<Option<Vec<String>>>,
    /// TLS towards the endpoints.
    pub tls: Sourced<Option<Arc<Originate>>>,
}

impl Effective {
    /// From the policies of the service, with their places in the model. `version` is none for
    /// endpoint sets that have no name.
    pub(super) fn new(policies: &[(usize, &Policy)], version: Option<&str>, port: &str) -> Self {
        let mut apply: Vec<(Origin, usize, &Policy)> = policies
            .iter()
            .filter_map(|(at, policy)| Some((origin(policy, version, port)?, *at, *policy)))
            .collect();
        apply.sort_by_key(|(origin, at, _)| (std::cmp::Reverse(*origin), *at));
        let limits = apply
            .iter()
            .find(|(.., policy)| !policy.rate_limits.is_empty());
        Self {
            breaker: first(&apply, BreakerPolicy::default(), |policy| policy.breaker),
            ejection: first(&apply, None, |policy| policy.ejection.map(Some)),
            rate_limits: limits.map_or_else(Sourced::default, |(from, _, policy)| Sourced {
                value: policy.rate_limits.clone(),
                from: *from,
            }),
            limits_of: limits.map(|(_, at, _)| *at),
            balance: first(&apply, Balance::default(), |policy| {
                policy.balance.as_ref().map(|balance| balance.algorithm)
            }),
            balancing: Balancing::new(&apply),
            request: first(&apply, REQUEST_DEFAULT, |policy| policy.timeouts.request),
            connect: first(&apply, CONNECT_DEFAULT, |policy| {
                let connect = policy.timeouts.connect?;
                Some(if connect.is_zero() {
                    CONNECT_NONE
                } else {
                    connect
                })
            }),
            idle: first(&apply, IDLE_DEFAULT, |policy| policy.timeouts.idle),
            retries: first(&apply, None, |policy| policy.retries.clone().map(Some)),
            retry_budget: first(&apply, None, |policy| policy.retry_budget.map(Some)),
            hedge: first(&apply, None, |policy| policy.hedge.map(Some)),
            adaptive: first(&apply, None, |policy| policy.adaptive.map(Some)),
            connection: first(&apply, ConnectionPolicy::default(), |policy| {
                policy.connection
            }),
            on_change: first(&apply, OnChange::default(), |policy| policy.on_change),
            upgrades: first(&apply, None, |policy| policy.upgrades.clone().map(Some)),
            tls: first(&apply, None, |policy| match &policy.tls {
                None => None,
                Some(UpstreamTls::Off) => Some(None),
                Some(UpstreamTls::Simple(tls)) => Some(Some(Arc::clone(tls))),
            }),
        }
    }

    /// The same, shared by all to which no policy applies.
    pub(super) fn shared(
        policies: &[(usize, &Policy)],
        version: Option<&str>,
        port: &str,
    ) -> Arc<Self> {
        static DEFAULT: LazyLock<Arc<Effective>> =
            LazyLock::new(|| Arc::new(Effective::new(&[], None, "")));
        if policies.is_empty() {
            return Arc::clone(&DEFAULT);
        }
        Arc::new(Self::new(policies, version, port))
    }

    /// Of an inbound port: its caps, and no time-out that the application's own client does not
    /// set.
    pub(super) fn inbound(caps: BreakerPolicy) -> Self {
        let mut effective = Self::new(&[], None, "");
        effective.breaker.value = caps;
        effective.request.value = Duration::ZERO;
        effective
    }

    /// One row for each value. `row` fills in what all have in common.
    pub(super) fn rows(&self, row: &PolicyRow) -> Vec<PolicyRow> {
        let mut rows = Rows {
            row,
            rows: Vec::new(),
        };
        let caps = self.breaker.value;
        let from = self.breaker.from;
        let why = "Envoy's default";
        rows.add("breaker.max-connections", caps.max_connections, from, why);
        rows.add("breaker.max-pending", caps.max_pending, from, why);
        rows.add("breaker.max-requests", caps.max_requests, from, why);
        rows.add("breaker.max-retries", caps.max_retries, from, why);
        match &self.ejection.value {
            Some(policy) => rows.ejection(policy, self.ejection.from),
            None => rows.add(
                "breaker.ejection",
                "off",
                self.ejection.from,
                "only where asked for",
            ),
        }
        if self.rate_limits.value.is_empty() {
            rows.add(
                "rate-limit",
                "none",
                Origin::Default,
                "only where asked for",
            );
        }
        for limit in &self.rate_limits.value {
            rows.add(
                &format!("rate-limit.{}", limit.name),
                super::describe::limit_text(limit),
                self.rate_limits.from,
                "",
            );
        }
        rows.add(
            "balance",
            self.balance.value.label(),
            self.balance.from,
            "a slow endpoint gets less",
        );
        if let Some(balancing) = &self.balancing {
            balancing.rows(&mut rows);
        }
        rows.time("timeout.request", self.request, "Envoy's default");
        rows.time("timeout.connect", self.connect, "Envoy's default");
        rows.time("timeout.idle", self.idle, "Envoy's default");
        match &self.retries.value {
            Some(policy) => rows.retries(policy, self.retries.from),
            None => rows.add("retries", "off", self.retries.from, "only where asked for"),
        }
        self.resilience_rows(&mut rows);
        let upgrades = match &self.upgrades.value {
            None => "any but h2c".to_owned(),
            Some(protocols) if protocols.is_empty() => "none".to_owned(),
            Some(protocols) => protocols.join(", "),
        };
        rows.add(
            "upgrades",
            upgrades,
            self.upgrades.from,
            "the endpoint decides",
        );
        match &self.tls.value {
            Some(tls) => rows.tls(tls, self.tls.from),
            None => rows.add("tls", "off", self.tls.from, "only where asked for"),
        }
        rows.rows
    }
}

impl Effective {
    fn resilience_rows(&self, rows: &mut Rows<'_>) {
        const ASKED: &str = "only where asked for";
        let budget = self.retry_budget.value.map(|budget| {
            let over = match budget.interval {
                None => format!("of the requests in flight, at least {}", budget.floor),
                Some(interval) => format!(
                    "of the requests in {}, at least {} a second",
                    span(interval),
                    budget.floor
                ),
            };
            format!("{} % {over}", budget.percent)
        });
        let budget = budget.as_deref().unwrap_or("off");
        rows.add(
            "breaker.retry-budget",
            budget,
            self.retry_budget.from,
            ASKED,
        );
        let adaptive = self.adaptive.value.map(|adaptive| {
            format!(
                "{} to {}, each {}, tolerance {} %, measured each {}",
                adaptive.min,
                adaptive.max,
                span(adaptive.window),
                adaptive.tolerance,
                span(adaptive.remember)
            )
        });
        let adaptive = adaptive.as_deref().unwrap_or("off");
        rows.add("breaker.adaptive", adaptive, self.adaptive.from, ASKED);
        let hedge = self.hedge.value.map(|hedge| {
            let after = hedge
                .after
                .map_or_else(|| "the per-try time-out".to_owned(), span);
            let methods = match hedge.non_idempotent {
                true => "every method",
                false => "idempotent methods",
            };
            format!("after {after}, at most {}, {methods}", hedge.max)
        });
        let hedge = hedge.as_deref().unwrap_or("off");
        rows.add("hedge", hedge, self.hedge.from, ASKED);
        let (connection, from) = (self.connection.value, self.connection.from);
        let requests = match connection.requests_max {
            0 => "no limit".to_owned(),
            max => max.to_string(),
        };
        rows.add("connection.max-requests", requests, from, "as Envoy");
        let age = match connection.age_max {
            Duration::ZERO => "no limit".to_owned(),
            age => format!("{} + {} %", span(age), connection.age_jitter),
        };
        rows.add("connection.max-age", age, from, "as Envoy");
        let on_change = self.on_change.value;
        let action = match on_change.action {
            ChangeAction::Keep => "keep".to_owned(),
            ChangeAction::Drain => format!("drain within {}", span(on_change.deadline)),
            ChangeAction::Close => "close".to_owned(),
        };
        let why = "a change of a rule breaks nobody's connection";
        rows.add("on-change", action, self.on_change.from, why);
    }
}

struct Rows<'a> {
    row: &'a PolicyRow,
    rows: Vec<PolicyRow>,
}

impl Rows<'_> {
    fn add(&mut self, field: &str, value: impl ToString, from: Origin, why: &'static str) {
        self.rows.push(PolicyRow {
            field: field.to_owned(),
            value: value.to_string(),
            from,
            reason: if from == Origin::Default { why } else { "" },
            ..self.row.clone()
        });
    }

    fn time(&mut self, field: &str, value: Sourced<Duration>, why: &'static str) {
        let text = if value.value.is_zero() {
            "none".to_owned()
        } else {
            span(value.value)
        };
        self.add(field, text, value.from, why);
    }

    fn ejection(&mut self, policy: &EjectionPolicy, from: Origin) {
        let off = || "off".to_owned();
        let count = |count: u32| {
            if count == 0 {
                "off".to_owned()
            } else {
                count.to_string()
            }
        };
        for (field, value) in [
            ("consecutive-5xx", count(policy.consecutive_5xx)),
            ("consecutive-gateway", count(policy.consecutive_gateway)),
            (
                "consecutive-local-origin",
                count(policy.consecutive_local_origin),
            ),
            ("interval", span(policy.interval)),
            ("base", span(policy.base)),
            ("max", span(policy.max)),
            ("max-percent", format!("{} %", policy.max_percent)),
            ("probe", policy.probe.to_string()),
            ("enforcing-5xx", format!("{} %", policy.enforcing_5xx)),
            (
                "enforcing-gateway",
                format!("{} %", policy.enforcing_gateway),
            ),
            (
                "enforcing-local-origin",
                format!("{} %", policy.enforcing_local_origin),
            ),
            ("max-jitter", span(policy.jitter_max)),
            ("always-one", policy.always_one.to_string()),
            (
                "success-rate",
                policy.success_rate.map_or_else(off, |rate| {
                    format!(
                        "mean - {} x deviation, of {} hosts with {} requests, enforcing {} %",
                        f64::from(rate.factor_milli) / 1_000.0,
                        rate.hosts_min,
                        rate.volume_min,
                        rate.enforcing
                    )
                }),
            ),
            (
                "failure-percentage",
                policy.failure_percentage.map_or_else(off, |rate| {
                    format!(
                        "{} %, of {} hosts with {} requests, enforcing {} %",
                        rate.threshold, rate.hosts_min, rate.volume_min, rate.enforcing
                    )
                }),
            ),
            (
                "latency",
                policy.latency.map_or_else(off, |latency| {
                    format!(
                        "{} % quantile above {} x the median and by {}, of {} hosts with {} \
                         requests, enforcing {} %",
                        latency.quantile,
                        f64::from(latency.factor_milli) / 1_000.0,
                        span(latency.difference_min),
                        latency.hosts_min,
                        latency.volume_min,
                        latency.enforcing
                    )
                }),
            ),
        ] {
            self.add(&format!("breaker.ejection.{field}"), value, from, "");
        }
    }

    fn tls(&mut self, tls: &Originate, from: Origin) {
        let file = |path: &Option<std::path::PathBuf>, otherwise: &str| {
            path.as_ref()
                .map_or_else(|| otherwise.to_owned(), |path| path.display().to_string())
        };
        let or = |list: &[String], otherwise: &str| {
            if list.is_empty() {
                otherwise.to_owned()
            } else {
                list.join(", ")
            }
        };
        let own = tls.certificate.as_ref().map(|files| files.cert.clone());
        let verified = if tls.insecure_skip_verify {
            "NOTHING".to_owned()
        } else {
            file(&tls.ca, "the system's CAs")
        };
        let sni = tls.sni.as_deref().unwrap_or("the endpoint's address");
        for (field, value) in [
            ("sni", sni.to_owned()),
            ("ca", verified),
            ("cert", file(&own, "none")),
            ("alpn", or(&tls.alpn, "what is spoken")),
            ("subject-alt-names", or(&tls.subject_alt_names, sni)),
            ("min-version", tls.min_version.name().to_owned()),
        ] {
            self.add(&format!("tls.{field}"), value, from, "");
        }
    }

    fn retries(&mut self, policy: &RetryPolicy, from: Origin) {
        let on = if policy.on.is_empty() {
            ON_DEFAULT
        } else {
            &policy.on
        };
        let mut on: Vec<String> = on.iter().map(|on| on_name(*on).to_owned()).collect();
        on.extend(policy.statuses.iter().map(u16::to_string));
        on.extend(
            policy
                .headers
                .iter()
                .map(|(name, _)| format!("header {name}")),
        );
        let resets = match policy.reset_headers.as_slice() {
            [] => "none".to_owned(),
            names => format!("{}, at most {}", names.join(", "), span(policy.reset_max)),
        };
        let methods = if policy.non_idempotent {
            "every method"
        } else {
            "idempotent ones; every method where nothing was processed"
        };
        let backoff = match policy.backoff_is_least {
            true => format!("{} at least", span(policy.backoff)),
            false => span(policy.backoff),
        };
        for (field, value) in [
            ("attempts", policy.attempts.to_string()),
            (
                "per-try",
                policy.per_try.map_or_else(|| "none".to_owned(), span),
            ),
            ("on", on.join(", ")),
            ("methods", methods.to_owned()),
            ("backoff", backoff),
            ("reset-headers", resets),
            (
                "attempt-header",
                policy
                    .attempt_header
                    .as_deref()
                    .unwrap_or("none")
                    .to_owned(),
            ),
        ] {
            self.add(&format!("retries.{field}"), value, from, "");
        }
    }
}

const fn on_name(on: RetryOn) -> &'static str {
    match on {
        RetryOn::ConnectFailure => "connect-failure",
        RetryOn::RefusedStream => "refused-stream",
        RetryOn::Reset => "reset",
        RetryOn::GatewayError => "gateway-error",
        RetryOn::ServerError => "server-error",
        RetryOn::PerTryTimeout => "per-try-timeout",
        RetryOn::ResetBeforeRequest => "reset-before-request",
        RetryOn::Retriable4xx => "retriable-4xx",
        RetryOn::RateLimited => "rate-limited",
        RetryOn::Cancelled => "cancelled",
        RetryOn::DeadlineExceeded => "deadline-exceeded",
        RetryOn::Internal => "internal",
        RetryOn::ResourceExhausted => "resource-exhausted",
        RetryOn::Unavailable => "unavailable",
    }
}

/// `15s`, `250ms`, `1h`: as the configuration has it.
pub(super) fn span(span: Duration) -> String {
    let nanos = span.as_nanos();
    for (unit, name) in [
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ] {
        if nanos > 0 && nanos.is_multiple_of(unit) {
            return format!("{}{name}", nanos / unit);
        }
    }
    if nanos == 0 {
        return "0s".to_owned();
    }
    format!("{nanos}ns")
}

/// How specific the policy is for this version and port; none when it doesn't apply.
fn origin(policy: &Policy, version: Option<&str>, port: &str) -> Option<Origin> {
    if policy.version.is_some() && policy.version.as_deref() != version {
        return None;
    }
    match (policy.version.is_some(), policy.port.as_deref()) {
        (_, Some(other)) if other != port => None,
        (true, Some(_)) => Some(Origin::VersionPort),
        (true, None) => Some(Origin::Version),
        (false, Some(_)) => Some(Origin::ServicePort),
        (false, None) => Some(Origin::Service),
    }
}

fn first<T>(
    apply: &[(Origin, usize, &Policy)],
    default: T,
    field: impl Fn(&Policy) -> Option<T>,
) -> Sourced<T> {
    apply
        .iter()
        .find_map(|(from, _, policy)| {
            Some(Sourced {
                value: field(policy)?,
                from: *from,
            })
        })
        .unwrap_or(Sourced {
            value: default,
            from: Origin::Default,
        })
}
