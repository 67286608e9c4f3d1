//! Budgets, hedges, adaptive limits, outliers, long connections; time-outs of rules.

use super::{Reader, reader, rules::value_match};
use crate::model::{
    AdaptivePolicy, ChangeAction, ConnectionPolicy, EjectionPolicy, FailurePercentage, HedgePolicy,
    LatencyOutlier, OnChange, Policy, RetryBudget, RetryPolicy, SuccessRate, action::RuleTimeouts,
};

/// Floor of a budget over an interval: as Gateway API.
const FLOOR_OF_INTERVAL: u32 = 10;

/// What a policy says besides.
pub(super) fn policy(from: Reader<'_>, policy: Policy) -> Policy {
    let there = |name| from.has(name).then(|| from.object(name));
    let breaker = from.object("breaker");
    let of_breaker = |name| breaker.has(name).then(|| breaker.object(name));
    Policy {
        retry_budget: of_breaker("retry-budget").map(retry_budget),
        adaptive: of_breaker("adaptive").map(adaptive),
        hedge: there("hedge").map(hedge),
        connection: there("connection").map(connection),
        on_change: there("on-change").map(on_change),
        ..policy
    }
}

fn retry_budget(from: Reader<'_>) -> RetryBudget {
    let default = RetryBudget::default();
    let interval = from.duration("interval");
    let floor = interval.map_or(default.floor, |_| FLOOR_OF_INTERVAL);
    RetryBudget {
        percent: from.int("percent").unwrap_or(default.percent),
        floor: from.int("floor").unwrap_or(floor),
        interval,
    }
}

fn adaptive(from: Reader<'_>) -> AdaptivePolicy {
    let default = AdaptivePolicy::default();
    AdaptivePolicy {
        min: from.int("min").unwrap_or(default.min),
        max: from.int("max").unwrap_or(default.max),
        window: from.duration("window").unwrap_or(default.window),
        tolerance: from.int("tolerance").unwrap_or(default.tolerance),
        remember: from.duration("remember").unwrap_or(default.remember),
    }
}

fn hedge(from: Reader<'_>) -> HedgePolicy {
    HedgePolicy {
        after: from.duration("after"),
        max: from.int("max").unwrap_or(1),
        non_idempotent: from.bool("non-idempotent").unwrap_or(false),
    }
}

fn connection(from: Reader<'_>) -> ConnectionPolicy {
    let default = ConnectionPolicy::default();
    ConnectionPolicy {
        requests_max: from.int("max-requests").unwrap_or(default.requests_max),
        age_max: from.duration("max-age").unwrap_or(default.age_max),
        age_jitter: from.int("age-jitter").unwrap_or(default.age_jitter),
    }
}

fn on_change(from: Reader<'_>) -> OnChange {
    let default = OnChange::default();
    OnChange {
        action: match from.text("action") {
            Some("drain") => ChangeAction::Drain,
            Some("close") => ChangeAction::Close,
            _ => ChangeAction::Keep,
        },
        deadline: from.duration("deadline").unwrap_or(default.deadline),
    }
}

/// What an ejection says beyond consecutive errors.
pub(super) fn ejection(from: Reader<'_>, ejection: EjectionPolicy) -> EjectionPolicy {
    let there = |name| from.has(name).then(|| from.object(name));
    EjectionPolicy {
        enforcing_5xx: from.int("enforcing-5xx").unwrap_or(ejection.enforcing_5xx),
        enforcing_gateway: from
            .int("enforcing-gateway")
            .unwrap_or(ejection.enforcing_gateway),
        enforcing_local_origin: from
            .int("enforcing-local-origin")
            .unwrap_or(ejection.enforcing_local_origin),
        jitter_max: from.duration("max-jitter").unwrap_or(ejection.jitter_max),
        always_one: from.bool("always-one").unwrap_or(ejection.always_one),
        success_rate: there("success-rate").map(success_rate),
        failure_percentage: there("failure-percentage").map(failure_percentage),
        latency: there("latency").map(latency),
        ..ejection
    }
}

fn success_rate(from: Reader<'_>) -> SuccessRate {
    let default = SuccessRate::default();
    SuccessRate {
        hosts_min: from.int("hosts").unwrap_or(default.hosts_min),
        volume_min: from.int("requests").unwrap_or(default.volume_min),
        factor_milli: from.int("factor").unwrap_or(default.factor_milli),
        enforcing: from.int("enforcing").unwrap_or(default.enforcing),
    }
}

fn failure_percentage(from: Reader<'_>) -> FailurePercentage {
    let default = FailurePercentage::default();
    FailurePercentage {
        threshold: from.int("threshold").unwrap_or(default.threshold),
        hosts_min: from.int("hosts").unwrap_or(default.hosts_min),
        volume_min: from.int("requests").unwrap_or(default.volume_min),
        enforcing: from.int("enforcing").unwrap_or(default.enforcing),
    }
}

fn latency(from: Reader<'_>) -> LatencyOutlier {
    let default = LatencyOutlier::default();
    LatencyOutlier {
        quantile: from.int("quantile").unwrap_or(default.quantile),
        factor_milli: from.int("factor").unwrap_or(default.factor_milli),
        difference_min: from
            .duration("difference")
            .unwrap_or(default.difference_min),
        hosts_min: from.int("hosts").unwrap_or(default.hosts_min),
        volume_min: from.int("requests").unwrap_or(default.volume_min),
        enforcing: from.int("enforcing").unwrap_or(default.enforcing),
    }
}

/// What retries say beyond conditions.
pub(super) fn retries(from: Reader<'_>, retries: RetryPolicy) -> RetryPolicy {
    RetryPolicy {
        headers: from
            .entries("headers")
            .filter_map(|(name, node)| Some((name.to_ascii_lowercase(), value_match(node)?)))
            .collect(),
        reset_headers: from
            .nodes("reset-headers")
            .iter()
            .filter_map(reader::text)
            .map(str::to_ascii_lowercase)
            .collect(),
        reset_max: from.duration("reset-max").unwrap_or(retries.reset_max),
        attempt_header: from.text("attempt-header").map(str::to_ascii_lowercase),
        ..retries
    }
}

/// Time-outs of a rule.
pub(super) fn rule_timeouts(from: Reader<'_>) -> RuleTimeouts {
    RuleTimeouts {
        request: from.duration("request"),
        backend_request: from.duration("backend-request"),
    }
}
