//! Budgets, hedges, adaptive limits, time-outs of rules.

use super::Findings;
use crate::{
    config::{path::FieldPath, report::Code, units::show_duration},
    model::{Model, Policy, RetryPolicy, Rule, ValueMatch},
    policy::retry::is_idempotent,
};

/// Names that the proxy writes itself, or that frame a message.
const NOT_FOR_ATTEMPTS: [&str; 8] = [
    "connection",
    "content-length",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

pub(super) fn policy(model: &Model, policy: &Policy, item: &FieldPath, out: &mut Findings) {
    if let Some(adaptive) = policy
        .adaptive
        .filter(|adaptive| adaptive.max < adaptive.min)
    {
        let message = format!("`{}` is less than `min`, {}", adaptive.max, adaptive.min);
        let path = item.key("breaker").key("adaptive").key("max");
        out.error(Code::LimitConflict, path, message, "at least `min`");
    }
    if let Some(retries) = &policy.retries {
        self::retries(retries, &item.key("retries"), out);
    }
    let per_try = |other: &Policy| {
        let retries = other.retries.as_ref();
        other.service == policy.service && retries.is_some_and(|retries| retries.per_try.is_some())
    };
    let waits_for_per_try = policy.hedge.is_some_and(|hedge| hedge.after.is_none());
    let of_rule = |rule: &Rule| {
        let retries = rule.extra.as_ref().and_then(|extra| extra.retries.as_ref());
        rule.service == policy.service && retries.is_some_and(|retries| retries.per_try.is_some())
    };
    if waits_for_per_try && !model.policies.iter().any(per_try) && !model.rules.iter().any(of_rule)
    {
        let message = "there is no per-try time-out after which to hedge".to_owned();
        out.error(
            Code::NoEffect,
            item.key("hedge"),
            message,
            "`hedge.after`, or `retries.per-try`",
        );
    }
}

/// Retries of a policy or rule.
fn retries(retries: &RetryPolicy, path: &FieldPath, out: &mut Findings) {
    for (name, value) in &retries.headers {
        if let ValueMatch::Regex(pattern) = value
            && let Err(fault) = crate::config::text::check_regex(pattern)
        {
            let path = path.key("headers").key(name).key("regex");
            let expected = crate::config::text::Text::Regex.describe();
            out.error(fault.code, path, fault.message, &expected);
        }
    }
    if let Some(name) = &retries.attempt_header
        && NOT_FOR_ATTEMPTS.contains(&name.as_str())
    {
        let message = format!("`{name}` means something else");
        let path = path.key("attempt-header");
        out.error(
            Code::LimitConflict,
            path,
            message,
            "a name of its own, such as `x-envoy-attempt-count`",
        );
    }
}

pub(super) fn rule(rule: &Rule, item: &FieldPath, out: &mut Findings) {
    let Some(extra) = &rule.extra else { return };
    if let Some(retries) = &extra.retries {
        self::retries(retries, &item.key("retries"), out);
        // Methods that the rule's every alternative asks for.
        let unsafe_only = !rule.matches.is_empty()
            && rule.matches.iter().all(|condition| {
                !condition.methods.is_empty()
                    && condition
                        .methods
                        .iter()
                        .all(|method| !is_idempotent(method))
            });
        if unsafe_only && !retries.non_idempotent && retries.attempts > 0 {
            let message = "these methods are retried only when nothing was processed".to_owned();
            out.warning(
                Code::NoEffect,
                item.key("retries"),
                message,
                "`non-idempotent: true`, if the service can take a request twice",
            );
        }
    }
    let timeouts = extra.timeouts;
    if let (Some(request), Some(backend)) = (timeouts.request, timeouts.backend_request)
        && !request.is_zero()
        && backend > request
    {
        let message = format!(
            "`{}` is longer than `request`, {}",
            show_duration(backend),
            show_duration(request)
        );
        let path = item.key("timeout").key("backend-request");
        out.error(Code::LimitConflict, path, message, "at most `request`");
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Code, examine_text};

    /// One service, and these rules and policies.
    fn found(rest: &str) -> Vec<(Code, String)> {
        let text = format!(
            "apiVersion: mesh/v1alpha1\nkind: MeshConfig\nservices:\n  - name: web\n    \
             addresses: [10.0.0.1]\n    ports: [{{name: http, number: 80, protocol: http}}]\n    \
             endpoints: [{{address: 10.1.0.1}}]\n{rest}\n"
        );
        let report = examine_text("mesh.yaml", &text).report;
        report
            .problems
            .iter()
            .map(|problem| (problem.code, problem.field.clone()))
            .collect()
    }

    #[test]
    fn contradictions_of_resilience_are_found_where_they_stand() {
        for (rest, code, path) in [
            (
                "policies: [{service: web, breaker: {adaptive: {min: 9, max: 8}}}]",
                Code::LimitConflict,
                "policies[0].breaker.adaptive.max",
            ),
            (
                "policies: [{service: web, hedge: {max: 1}}]",
                Code::NoEffect,
                "policies[0].hedge",
            ),
            (
                "policies: [{service: web, retries: {attempt-header: host}}]",
                Code::LimitConflict,
                "policies[0].retries.attempt-header",
            ),
            (
                "policies: [{service: web, retries: {headers: {x-a: {regex: '('}}}}]",
                Code::BadRegex,
                "policies[0].retries.headers.x-a.regex",
            ),
            (
                "rules: [{service: web, route: [{}], timeout: {request: 1s, backend-request: 2s}}]",
                Code::LimitConflict,
                "rules[0].timeout.backend-request",
            ),
            (
                "rules: [{service: web, match: {method: POST}, route: [{}], retries: {attempts: 2}}]",
                Code::NoEffect,
                "rules[0].retries",
            ),
        ] {
            assert_eq!(found(rest), [(code, path.to_owned())], "{rest}");
        }
        for rest in [
            "policies: [{service: web, hedge: {after: 50ms}}]",
            "policies: [{service: web, hedge: {max: 1}, retries: {per-try: 1s}}]",
            "rules: [{service: web, route: [{}], timeout: {request: 0s, backend-request: 2s}}]",
        ] {
            assert_eq!(found(rest), [], "{rest}");
        }
    }
}
