//! Balancing, locality and priorities.

use super::Findings;
use crate::{
    config::{path::FieldPath, report::Code},
    model::{Balance, BalancePolicy, Model, Policy, balance::is_prime},
};

/// `opaque`: all ports that the policy covers are of protocol tcp.
pub(super) fn policy(
    policy: &Policy,
    model: &Model,
    opaque: bool,
    item: &FieldPath,
    out: &mut Findings,
) {
    if let Some(balance) = &policy.balance {
        let path = item.key("balance");
        values(balance, &path, out);
        foreign(balance, &path, out);
        hash_keys(balance, opaque, &path, out);
    }
    if let Some(locality) = &policy.locality {
        let path = item.key("locality");
        if locality.prefer.is_none() && !locality.failover.is_empty() {
            let message =
                "`failover` orders regions by nearness, which nothing asks for".to_owned();
            out.warning(
                Code::NoEffect,
                path.key("failover"),
                message,
                "`prefer` beside it",
            );
        }
        if locality.prefer.is_some() && model.locality.is_empty() {
            let message = "`agent.locality` is not set: all endpoints are equally near".to_owned();
            out.warning(
                Code::NoEffect,
                path.key("prefer"),
                message,
                "`agent.locality: region/zone`",
            );
        }
    }
}

fn values(balance: &BalancePolicy, path: &FieldPath, out: &mut Findings) {
    if balance.algorithm.is_hashed() && balance.hash.is_empty() {
        let message = format!("`{}` needs a key", balance.algorithm.label());
        out.error(
            Code::BadKey,
            path.clone(),
            message,
            "`hash`: attributes such as header.x-user or source.address",
        );
    }
    if !is_prime(balance.table_size) {
        let message = format!("{} is not a prime", balance.table_size);
        out.error(
            Code::BadValue,
            path.key("table-size"),
            message,
            "a prime such as 65537 or 1048583",
        );
    }
    if balance.ring_min > balance.ring_max {
        let message = format!(
            "{} is more than `ring-max`, {}",
            balance.ring_min, balance.ring_max
        );
        out.error(
            Code::LimitConflict,
            path.key("ring-min"),
            message,
            "at most `ring-max`",
        );
    }
}

/// A parameter that the algorithm doesn't read.
fn foreign(balance: &BalancePolicy, path: &FieldPath, out: &mut Findings) {
    use Balance::{LeastRequest, Maglev, PeakEwma, RingHash, RoundRobin};
    let plain = BalancePolicy::from(balance.algorithm);
    let parameters: [(&str, bool, &[Balance]); 11] = [
        ("hash", balance.hash != plain.hash, &[RingHash, Maglev]),
        ("seed", balance.seed != plain.seed, &[RingHash, Maglev]),
        ("ring-min", balance.ring_min != plain.ring_min, &[RingHash]),
        ("ring-max", balance.ring_max != plain.ring_max, &[RingHash]),
        (
            "table-size",
            balance.table_size != plain.table_size,
            &[Maglev],
        ),
        (
            "bounded-load",
            balance.bounded_load.is_some(),
            &[RingHash, Maglev],
        ),
        (
            "bias-percent",
            balance.bias_percent != plain.bias_percent,
            &[LeastRequest],
        ),
        ("decay", balance.decay != plain.decay, &[PeakEwma]),
        ("start", balance.start != plain.start, &[PeakEwma]),
        ("penalty", balance.penalty != plain.penalty, &[PeakEwma]),
        (
            "slow-start",
            balance.slow_start.is_some(),
            &[RoundRobin, LeastRequest],
        ),
    ];
    for (name, set, of) in parameters {
        if set && !of.contains(&balance.algorithm) {
            let names: Vec<&str> = of.iter().map(|algorithm| algorithm.label()).collect();
            let message = format!(
                "`{name}` is a parameter of {}, not of {}",
                names.join(" and "),
                balance.algorithm.label()
            );
            out.error(Code::Conflict, path.key(name), message, "no such field");
        }
    }
}

fn hash_keys(balance: &BalancePolicy, opaque: bool, path: &FieldPath, out: &mut Findings) {
    for (at, attribute) in balance.hash.iter().enumerate() {
        let path = path.key("hash").at(at);
        if balance.hash[..at].contains(attribute) {
            let message = format!("`{attribute}` stands here twice");
            out.error(Code::Duplicate, path, message, "each attribute once");
        } else if opaque && attribute.needs_http() {
            let message =
                format!("`{attribute}` is about requests, and the port is of protocol tcp");
            out.warning(
                Code::NoEffect,
                path,
                message,
                "an attribute that every connection has, such as source.address",
            );
        }
    }
}

/// `region/zone/subzone`, from the left.
fn is_locality(text: &str) -> bool {
    text.is_empty()
        || (text.split('/').count() <= 3 && text.split('/').all(|part| !part.is_empty()))
}

/// This node's and the endpoints' localities.
pub(super) fn localities(model: &Model, out: &mut Findings) {
    let mut wrong = |text: &str, path: FieldPath| {
        if !is_locality(text) {
            let message = format!("`{text}` is not a locality");
            let expected = "region/zone/subzone, from the left as far as it is known";
            out.error(Code::BadValue, path, message, expected);
        }
    };
    let agent = FieldPath::default().key("agent").key("locality");
    wrong(&model.locality, agent);
    for (i, service) in model.services.iter().enumerate() {
        for (k, endpoint) in service.endpoints.iter().enumerate() {
            if !endpoint.locality.is_empty() {
                let path = FieldPath::item("services", i).key("endpoints").at(k);
                wrong(&endpoint.locality, path.key("locality"));
            }
        }
    }
}
