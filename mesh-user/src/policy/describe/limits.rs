//! Rate limits in rows, and in a sentence.

use std::fmt::Write as _;

use super::{Origin, PolicyRow};
use crate::{
    model::{
        LimitUnit, RateLimitPolicy,
        limit::{LimitAnswer, StoreFailure},
    },
    policy::{Snapshot, effective::span},
};

impl Snapshot {
    /// The limits of rules, as rows whose version is the rule.
    pub(super) fn rule_limits(&self) -> impl Iterator<Item = PolicyRow> {
        self.service_ports().flat_map(move |port| {
            let rules = port.routes.rules().iter().map(|rule| self.rule(*rule));
            rules.flat_map(move |rule| {
                let limits = rule.limits.iter();
                limits.map(move |limit| PolicyRow {
                    service: port.key.to_string(),
                    port: port.number,
                    version: (&rule.name).into(),
                    field: format!("rate-limit.{}", limit.limiter.policy().name),
                    value: limit_text(limit.limiter.policy()),
                    from: Origin::Rule,
                    reason: "",
                })
            })
        })
    }
}

/// `100 in 1s, burst 200, for each source.workload, dry run`.
pub(in crate::policy) fn limit_text(limit: &RateLimitPolicy) -> String {
    let values = |requests: u64, per, burst: u64| match limit.unit {
        LimitUnit::Requests => format!("{requests} in {}, burst {burst}", span(per)),
        LimitUnit::Bytes => format!("{requests} bytes in {}, burst {burst}", span(per)),
        LimitUnit::Concurrent => format!("{requests} at once"),
    };
    let mut text = values(limit.requests, limit.per, limit.burst);
    let keys: Vec<String> = limit.key.iter().map(ToString::to_string).collect();
    // Writing to a string can't fail.
    let _ = if keys.is_empty() {
        write!(text, ", all together")
    } else {
        write!(text, ", for each {}", keys.join(", "))
    };
    for other in &limit.overrides {
        let values = values(other.requests, other.per, other.burst);
        let when = other
            .when
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let _ = write!(
            text,
            "; {values} when {}",
            when.collect::<Vec<_>>().join(", ")
        );
    }
    if !limit.matches.is_empty() {
        text.push_str("; where its match holds");
    }
    if limit.answer.status != LimitAnswer::default().status {
        let _ = write!(text, "; status {}", limit.answer.status);
    }
    if let Some(global) = &limit.global {
        let failure = match global.failure {
            StoreFailure::Open => "open",
            StoreFailure::Closed => "closed",
        };
        let _ = write!(text, "; shared by `{}`, failure {failure}", global.service);
    }
    if limit.dry_run {
        text.push_str("; dry run");
    }
    text
}
