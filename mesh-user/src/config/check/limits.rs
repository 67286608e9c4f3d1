//! Rate limits, of policies and rules, and their stores.

use std::{collections::HashMap, time::Duration};

use super::{Findings, one_of, rules};
use crate::{
    config::{path::FieldPath, report::Code},
    model::{
        LimitUnit, Model, Protocol, RateLimitPolicy, RateLimitService,
        limit::{Lease, StoreKind},
    },
};

/// Whose limits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Policy,
    Rule,
    Inbound,
}

pub(super) fn check(model: &Model, out: &mut Findings) {
    let mut names = HashMap::new();
    for (i, service) in model.rate_limit_services.iter().enumerate() {
        let item = FieldPath::item("rate-limit-services", i);
        if let Some(first) = names.insert(&service.name, i) {
            let message = format!(
                "`{}` is the name of rate-limit-services[{first}] too",
                service.name
            );
            let expected = "a name that is unique";
            out.error(Code::Duplicate, item.key("name"), message, expected);
        }
        if service.timeout > Duration::from_secs(1) {
            let message =
                "every request that needs the store waits so long when it hangs".to_owned();
            let expected = "some tens of milliseconds";
            out.warning(Code::LimitConflict, item.key("timeout"), message, expected);
        }
    }
    for (i, policy) in model.policies.iter().enumerate() {
        let item = FieldPath::item("policies", i);
        list(model, &policy.rate_limits, &item, Of::Policy, out);
        conditions(
            model,
            policy.service,
            policy.port.as_deref(),
            &policy.rate_limits,
            &item,
            out,
        );
    }
    for (i, rule) in model.rules.iter().enumerate() {
        let (limits, item) = (&rule.extra().rate_limits, FieldPath::item("rules", i));
        list(model, limits, &item, Of::Rule, out);
        conditions(
            model,
            rule.service,
            rule.port.as_deref(),
            limits,
            &item,
            out,
        );
    }
}

/// Conditions on HTTP that no opaque connection can meet.
fn conditions(
    model: &Model,
    service: usize,
    port: Option<&str>,
    limits: &[RateLimitPolicy],
    item: &FieldPath,
    out: &mut Findings,
) {
    let ports = model.services.get(service).map(|service| &*service.ports);
    let mut about = ports.unwrap_or_default().iter();
    let mut about = about
        .by_ref()
        .filter(|of| port.is_none_or(|name| of.name == name))
        .peekable();
    if about.peek().is_none() || !about.all(|port| port.protocol == Protocol::Tcp) {
        return;
    }
    for (k, limit) in limits.iter().enumerate() {
        let http = |condition: &crate::model::Match| condition.needs_http();
        if !limit.matches.is_empty() && limit.matches.iter().all(http) {
            let message = format!(
                "`{}` limits nothing: its port is of protocol tcp",
                limit.name
            );
            let path = item.key("rate-limit").at(k).key("match");
            out.warning(Code::NoEffect, path, message, "conditions on the source");
        }
    }
}

/// The limits of one policy or rule.
pub(super) fn list(
    model: &Model,
    limits: &[RateLimitPolicy],
    item: &FieldPath,
    of: Of,
    out: &mut Findings,
) {
    let mut names = HashMap::new();
    for (k, limit) in limits.iter().enumerate() {
        let path = item.key("rate-limit").at(k);
        if let Some(first) = names.insert(&limit.name, k) {
            let message = format!("`{}` is the name of rate-limit[{first}] too", limit.name);
            let expected = match of {
                Of::Policy => "a name that is unique inside its policy",
                Of::Rule | Of::Inbound => "a name that is unique inside its rule",
            };
            out.error(Code::Duplicate, path.key("name"), message, expected);
        }
        numbers(limit, &path, out);
        for (n, condition) in limit.matches.iter().enumerate() {
            let path = path.key("match").at(n);
            rules::condition(condition, &path, out);
            if !condition.sni.is_empty() {
                let message = "a limit asks for no TLS server name".to_owned();
                out.error(
                    Code::BadKey,
                    path.key("sni"),
                    message,
                    "conditions of the rule",
                );
            }
        }
        if of == Of::Inbound {
            inbound(limit, &path, out);
        }
        global(model, limit, &path, out);
    }
}

fn numbers(limit: &RateLimitPolicy, path: &FieldPath, out: &mut Findings) {
    let zero = |path: FieldPath, field: &str, out: &mut Findings| {
        let message = format!("a `{field}` of 0 admits nothing");
        out.error(Code::OutOfRange, path, message, "at least 1");
    };
    let concurrent = limit.unit == LimitUnit::Concurrent;
    let rate = if concurrent { "concurrent" } else { "rate" };
    for (field, value) in [(rate, limit.requests), ("burst", limit.burst)] {
        // Of concurrent requests the two are one.
        if value == 0 && !(concurrent && field == "burst") {
            zero(path.key(field), field, out);
        }
    }
    for (n, other) in limit.overrides.iter().enumerate() {
        let path = path.key("overrides").at(n);
        for (field, value) in [(rate, other.requests), ("burst", other.burst)] {
            if value == 0 && !(concurrent && field == "burst") {
                zero(path.key(field), field, out);
            }
        }
        if concurrent != other.per.is_zero() {
            let (wrong, right) = if concurrent {
                ("rate", "concurrent")
            } else {
                ("concurrent", "rate")
            };
            let message = format!("`{wrong}` in an override of a limit with `{right}`");
            out.error(
                Code::Conflict,
                path.key(wrong),
                message,
                &format!("`{right}`"),
            );
        }
        if other.when.is_empty() {
            let message = "an empty `when` holds for every request".to_owned();
            out.error(
                Code::LimitConflict,
                path.key("when"),
                message,
                "at least one attribute",
            );
        }
        let same = limit.overrides[..n]
            .iter()
            .position(|earlier| earlier.when == other.when);
        if let Some(first) = same {
            let message = format!("overrides[{first}] holds for the same requests");
            out.warning(Code::NoEffect, path.key("when"), message, "other values");
        }
    }
}

/// What comes in may be judged before it is dialled: there, nobody knows how it ends.
fn inbound(limit: &RateLimitPolicy, path: &FieldPath, out: &mut Findings) {
    let refuse = |field: &str, message: &str, expected: &str, out: &mut Findings| {
        out.error(
            Code::NeedsProxy,
            path.key(field),
            message.to_owned(),
            expected,
        );
    };
    match limit.unit {
        LimitUnit::Requests => {}
        LimitUnit::Bytes => refuse(
            "unit",
            "limits of inbound rules count requests",
            "`unit: requests`, or a limit in a policy of the service",
            out,
        ),
        LimitUnit::Concurrent => refuse(
            "concurrent",
            "limits of inbound rules count requests",
            "`breaker: {max-requests: N}` of the rule",
            out,
        ),
    }
    if limit.global.is_some() {
        let expected = "a limit in a policy of the service";
        refuse(
            "global",
            "limits of inbound rules are of this node",
            expected,
            out,
        );
    }
    let about_source = |condition: &crate::model::Match| !condition.needs_http();
    if !limit.matches.iter().all(about_source) {
        let expected = "conditions on the source, or a limit in a policy of the service";
        refuse("match", "inbound rules know only the source", expected, out);
    }
}

fn global(model: &Model, limit: &RateLimitPolicy, path: &FieldPath, out: &mut Findings) {
    let Some(global) = &limit.global else {
        return;
    };
    let path = path.key("global");
    if limit.unit != LimitUnit::Requests {
        let message = "a limit that is shared counts requests".to_owned();
        let expected = "`rate` of requests, or no `global`";
        out.error(Code::Conflict, path.clone(), message, expected);
    }
    let services = &model.rate_limit_services;
    let found = services
        .iter()
        .find(|service| service.name == global.service);
    let Some(RateLimitService { kind, .. }) = found else {
        let known: Vec<&str> = services.iter().map(|service| &*service.name).collect();
        let message = format!("there is no rate limit service `{}`", global.service);
        let expected = if known.is_empty() {
            "an entry of `rate-limit-services`".to_owned()
        } else {
            one_of(&global.service, &known)
        };
        out.error(
            Code::UnknownService,
            path.key("service"),
            message,
            &expected,
        );
        return;
    };
    let wrong = |field: &str, kind: &str, out: &mut Findings| {
        let message = format!("`{field}` means nothing to a store of type {kind}");
        out.error(Code::Conflict, path.key(field), message, "no such field");
    };
    match kind {
        StoreKind::Envoy { .. } => {
            if global.lease != Lease::default() {
                wrong("lease", "envoy", out);
            }
            if !limit.overrides.is_empty() {
                let message = "a service of type envoy has its own values".to_owned();
                let expected = "no `overrides`: the service's configuration says them";
                out.error(Code::Conflict, path.clone(), message, expected);
            }
        }
        StoreKind::Redis(_) => {
            if !global.descriptor.is_empty() {
                wrong("descriptor", "redis", out);
            }
            if global.hits > 1 {
                wrong("hits", "redis", out);
            }
        }
    }
}
