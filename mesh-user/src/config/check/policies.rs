//! Policies.

use std::{collections::HashMap, time::Duration};

use super::{Findings, balance, health, port, version};
use crate::{
    config::{path::FieldPath, report::Code, units::show_duration},
    model::{Model, Policy, Protocol, TimeoutPolicy},
};

/// Whole-request time-out without a policy, as Envoy.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn check(model: &Model, out: &mut Findings) {
    let mut scopes = HashMap::new();
    for (i, policy) in model.policies.iter().enumerate() {
        let item = FieldPath::item("policies", i);
        let service = model
            .services
            .get(policy.service)
            .map(|service| (policy.service, service));
        port(policy.port.as_deref(), service, &item, out);
        if let Some(name) = &policy.version {
            version(name, service, item.key("version"), out);
        }
        let scope = (policy.service, &policy.version, &policy.port);
        if let (Some(first), Some((_, service))) = (scopes.insert(scope, i), service) {
            let message = format!(
                "policies[{first}] is about the same part of `{}` too",
                service.key()
            );
            out.error(
                Code::Duplicate,
                item.clone(),
                message,
                "one policy for each service, version and port",
            );
        }
        values(policy, &item, out);
        super::resilience::policy(model, policy, &item, out);
        let ports = service
            .map(|(_, service)| service.ports.as_slice())
            .unwrap_or_default();
        let mut about = ports
            .iter()
            .filter(|p| policy.port.as_ref().is_none_or(|name| *name == p.name));
        let opaque = !ports.is_empty()
            && about.all(|port| matches!(port.protocol, Protocol::Tcp | Protocol::Tls));
        without_effect(policy, opaque, &item, out);
        balance::policy(policy, model, opaque, &item, out);
        health::policy(policy, &item, out);
    }
}

fn values(policy: &Policy, item: &FieldPath, out: &mut Findings) {
    if let Some(ejection) = policy
        .ejection
        .filter(|ejection| ejection.max < ejection.base)
    {
        let message = format!(
            "`{}` is shorter than `base`, {}",
            show_duration(ejection.max),
            show_duration(ejection.base)
        );
        let path = item.key("breaker").key("ejection").key("max");
        out.error(Code::LimitConflict, path, message, "at least `base`");
    }
}

fn without_effect(policy: &Policy, opaque: bool, item: &FieldPath, out: &mut Findings) {
    let timeouts = policy.timeouts != TimeoutPolicy::default();
    let any = policy.breaker.is_some()
        || policy.ejection.is_some()
        || !policy.rate_limits.is_empty()
        || policy.balance.is_some()
        || policy.locality.is_some()
        || !policy.health_checks.is_empty()
        || policy.retries.is_some()
        || policy.retry_budget.is_some()
        || policy.hedge.is_some()
        || policy.adaptive.is_some()
        || policy.connection.is_some()
        || policy.on_change.is_some()
        || policy.tls.is_some()
        || policy.upgrades.is_some();
    if !any && !timeouts {
        let message = "this policy sets nothing".to_owned();
        out.warning(
            Code::NoEffect,
            item.clone(),
            message,
            "breaker, rate-limit, balance, locality, health-checks, timeout, retries, tls or upgrades",
        );
    }
    for (at, protocol) in policy.upgrades.iter().flatten().enumerate() {
        if protocol == "h2c" {
            out.warning(
                Code::NoEffect,
                item.key("upgrades").at(at),
                "`h2c` never passes: it would change what is spoken with the proxy".to_owned(),
                "`protocol: http2` at the port",
            );
        }
    }
    if opaque {
        let http = [
            ("retries", policy.retries.is_some(), item.key("retries")),
            ("hedge", policy.hedge.is_some(), item.key("hedge")),
            (
                "connection",
                policy.connection.is_some(),
                item.key("connection"),
            ),
            ("upgrades", policy.upgrades.is_some(), item.key("upgrades")),
            (
                "timeout.request",
                policy.timeouts.request.is_some(),
                item.key("timeout").key("request"),
            ),
        ];
        for (field, set, path) in http {
            if set {
                let message =
                    format!("`{field}` is about requests, and the port is of protocol tcp");
                out.warning(
                    Code::NoEffect,
                    path,
                    message,
                    "`protocol: http`, or no such field",
                );
            }
        }
    }
    let whole = policy.timeouts.request.unwrap_or(REQUEST_TIMEOUT);
    let per_try = policy.retries.as_ref().and_then(|retries| retries.per_try);
    if let Some(per_try) = per_try.filter(|per_try| !whole.is_zero() && *per_try >= whole) {
        let message = format!(
            "`{}` is not shorter than the whole request's time-out, {}: it never ends a try",
            show_duration(per_try),
            show_duration(whole)
        );
        let path = item.key("retries").key("per-try");
        out.warning(
            Code::NoEffect,
            path,
            message,
            "a time shorter than `timeout.request`",
        );
    }
}
