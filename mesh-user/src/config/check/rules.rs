//! Rules.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use super::{Findings, port, version};
use crate::{
    config::{path::FieldPath, report::Code, text},
    model::{
        Endpoint, Match, Model, PathMatch, Protocol, Rule, Select, Service, Target, ValueMatch,
        selects,
    },
};

/// Largest weight of a target, as in Gateway API.
const WEIGHT_MAX: u32 = 1_000_000;

pub(super) fn check(model: &Model, out: &mut Findings) {
    // A rule made from another API's object is made for each port.
    let mut names: HashMap<(usize, &str, Option<&str>), usize> = HashMap::new();
    let mut regexes = Regexes {
        good: HashSet::new(),
    };
    for (i, rule) in model.rules.iter().enumerate() {
        let item = FieldPath::item("rules", i);
        let service = model
            .services
            .get(rule.service)
            .map(|service| (rule.service, service));
        if service.is_some()
            && let Some(first) = names.insert(
                (
                    rule.service,
                    &rule.name,
                    rule.port.as_deref().filter(|_| is_made(rule)),
                ),
                i,
            )
        {
            let message = format!("`{}` is the name of rules[{first}] too", rule.name);
            out.error(
                Code::Duplicate,
                item.key("name"),
                message,
                "a name that is unique inside its service",
            );
        }
        port(rule.port.as_deref(), service, &item, out);
        super::resilience::rule(rule, &item, out);
        targets(rule, model, service, &item, out);
        super::actions::check(model, rule, &item, out);
        for (k, condition) in rule.matches.iter().enumerate() {
            matches(condition, &item.key("match").at(k), &mut regexes, out);
        }
        if let Some((_, service)) = service {
            never_http(rule, service, &item, out);
        }
    }
    unreachable(model, out);
}

/// Whether a rule was made, not written: its name is none that can be written.
fn is_made(rule: &Rule) -> bool {
    rule.extra().origin.is_some() || rule.name == "-"
}

fn targets(
    rule: &Rule,
    model: &Model,
    own: Option<(usize, &Service)>,
    item: &FieldPath,
    out: &mut Findings,
) {
    let route = item.key("route");
    if rule.route.is_empty() && rule.extra().actions.terminal.is_none() {
        out.error(
            Code::BadCount,
            route.clone(),
            "there are 0 items".to_owned(),
            "at least 1",
        );
    }
    for (k, target) in rule.route.iter().enumerate() {
        let path = route.at(k);
        let service = match target.backend {
            Some(to) => model.services.get(to.service).map(|of| (to.service, of)),
            None => own,
        };
        if target.weight > WEIGHT_MAX {
            let message = format!("`{}` is out of range", target.weight);
            out.error(
                Code::OutOfRange,
                path.key("weight"),
                message,
                "0 to 1000000",
            );
        }
        match &target.select {
            Select::Version(name) => version(name, service, path.key("version"), out),
            Select::Tags(tags) => {
                let empty = service.is_some_and(|(_, service)| {
                    !service.endpoints.is_empty()
                        && !service
                            .endpoints
                            .iter()
                            .any(|endpoint| selects(tags, &endpoint.tags))
                });
                if empty {
                    let message =
                        "no endpoint carries these tags: their share answers 503".to_owned();
                    out.warning(
                        Code::EmptyVersion,
                        path.key("tags"),
                        message,
                        "tags of an endpoint",
                    );
                }
            }
            Select::Endpoints(addresses) => {
                // Any port of the service: which one is dialled is known with a connection only.
                let known = |at: &SocketAddr| {
                    service.is_none_or(|(_, service)| {
                        service.ports.iter().any(|port| {
                            let number = |to: &Endpoint| {
                                to.ports.get(&port.name).copied().unwrap_or(port.target)
                            };
                            let mut endpoints = service.endpoints.iter();
                            endpoints.any(|to| to.address == at.ip() && number(to) == at.port())
                        })
                    })
                };
                for (n, at) in addresses.iter().enumerate().filter(|(_, at)| !known(at)) {
                    let message = format!("`{at}` is no endpoint of the service: it is left out");
                    let expected = "the address and port of an endpoint";
                    let path = path.key("endpoints").at(n);
                    out.warning(Code::EmptyVersion, path, message, expected);
                }
            }
            Select::All | Select::Invalid(_) => {}
        }
    }
    if !rule.route.is_empty() && rule.route.iter().all(|Target { weight, .. }| *weight == 0) {
        let message = "all weights are 0: what matches is refused".to_owned();
        out.warning(Code::NoEffect, route, message, "a weight above 0");
    }
}

/// Compiles each pattern once.
struct Regexes<'m> {
    good: HashSet<&'m str>,
}

impl<'m> Regexes<'m> {
    fn check(&mut self, pattern: &'m str, path: FieldPath, out: &mut Findings) {
        if self.good.contains(pattern) {
            return;
        }
        match text::check_regex(pattern) {
            Ok(()) => {
                self.good.insert(pattern);
            }
            Err(fault) => {
                let expected = text::Text::Regex.describe();
                out.error(fault.code, path, fault.message, &expected);
            }
        }
    }
}

/// The conditions of a limit: as those of a rule.
pub(super) fn condition(condition: &Match, path: &FieldPath, out: &mut Findings) {
    let mut regexes = Regexes {
        good: HashSet::new(),
    };
    matches(condition, path, &mut regexes, out);
}

fn matches<'m>(
    condition: &'m Match,
    path: &FieldPath,
    regexes: &mut Regexes<'m>,
    out: &mut Findings,
) {
    match &condition.path {
        Some(PathMatch::Regex(pattern)) => {
            regexes.check(pattern, path.key("path").key("regex"), out);
        }
        Some(PathMatch::Exact(text) | PathMatch::Prefix(text)) if !text.starts_with('/') => {
            let message = format!("`{}` is not a path", text::shown(text));
            out.error(Code::BadValue, path.key("path"), message, "a leading slash");
        }
        _ => {}
    }
    for (k, method) in condition.methods.iter().enumerate() {
        if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            let message = format!("`{method}` is in lower case, and methods are case-sensitive");
            let expected = format!("probably {}", method.to_ascii_uppercase());
            out.warning(Code::NoEffect, path.key("method").at(k), message, &expected);
        }
    }
    let mut seen = HashSet::new();
    for (name, value) in &condition.headers {
        let at = path.key("headers").key(name);
        let valid = text::Text::HeaderName.check(name).is_ok()
            && !name.bytes().any(|byte| byte.is_ascii_uppercase());
        if !valid {
            let message = format!("`{}` is not a header field name", text::shown(name));
            out.error(
                Code::BadValue,
                at.clone(),
                message,
                "a lower-case token (RFC 9110 §5.6.2)",
            );
        } else if !seen.insert(name) {
            let message = format!("`{name}` is matched twice");
            out.error(Code::DuplicateKey, at.clone(), message, "each header once");
        }
        regex_of(value, at, regexes, out);
    }
    for (name, value) in &condition.query {
        regex_of(value, path.key("query").key(name), regexes, out);
    }
    if let Some(value) = &condition.authority {
        authority(value, &path.key("authority"), out);
        regex_of(value, path.key("authority"), regexes, out);
    }
}

fn regex_of<'m>(
    value: &'m ValueMatch,
    path: FieldPath,
    regexes: &mut Regexes<'m>,
    out: &mut Findings,
) {
    if let ValueMatch::Regex(pattern) = value {
        regexes.check(pattern, path.key("regex"), out);
    }
}

/// A host with a port never matches: the port is cut off before.
fn authority(value: &ValueMatch, path: &FieldPath, out: &mut Findings) {
    let ValueMatch::Exact(host) = value else {
        return;
    };
    let port = host.rsplit_once(':').filter(|(name, port)| {
        !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && (!name.contains(':') || name.ends_with(']'))
    });
    if let Some((name, _)) = port {
        let message = format!("`{host}` has a port, and hosts are matched without");
        out.error(Code::BadValue, path.clone(), message, name);
    }
}

/// Protocols of the ports that a rule is about.
fn protocols<'m>(rule: &'m Rule, service: &'m Service) -> impl Iterator<Item = Protocol> + 'm {
    let wanted = rule.port.as_deref();
    service
        .ports
        .iter()
        .filter(move |port| wanted.is_none_or(|name| port.name == name))
        .map(|port| port.protocol)
}

/// A rule that asks for HTTP on ports that are opaque.
fn never_http(rule: &Rule, service: &Service, item: &FieldPath, out: &mut Findings) {
    let opaque =
        protocols(rule, service).all(|protocol| matches!(protocol, Protocol::Tcp | Protocol::Tls));
    let http = !rule.matches.is_empty() && rule.matches.iter().all(Match::needs_http);
    if opaque && http && protocols(rule, service).next().is_some() {
        let message = format!("`{}` never matches: its port is of protocol tcp", rule.name);
        let expected = "`protocol: http`, or conditions on the source alone";
        out.warning(Code::UnreachableRule, item.key("match"), message, expected);
    }
}

/// Whether a rule takes all that reaches it.
fn takes_all(rule: &Rule, service: &Service) -> bool {
    let any_path = |condition: &Match| {
        matches!(&condition.path, Some(PathMatch::Prefix(prefix)) if prefix == "/")
            && *condition
                == Match {
                    path: condition.path.clone(),
                    ..Match::default()
                }
            && protocols(rule, service).all(Protocol::is_http)
    };
    rule.matches.is_empty()
        || rule
            .matches
            .iter()
            .any(|m| *m == Match::default() || any_path(m))
}

/// Rules behind one that takes everything.
fn unreachable(model: &Model, out: &mut Findings) {
    let mut by_service: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, rule) in model.rules.iter().enumerate() {
        by_service.entry(rule.service).or_default().push(i);
    }
    for (service, mut order) in by_service {
        let Some(service) = model.services.get(service) else {
            continue;
        };
        // A stable sort: equal precedence keeps the order of the file.
        order.sort_by_key(|i| model.rules.get(*i).map(Rule::order));
        let mut taken: HashMap<&str, usize> = HashMap::new();
        for i in order {
            let Some(rule) = model.rules.get(i) else {
                continue;
            };
            let ports: Vec<&str> = service
                .ports
                .iter()
                .map(|port| port.name.as_str())
                .filter(|name| rule.port.as_deref().is_none_or(|wanted| wanted == *name))
                .collect();
            let by: Option<Vec<usize>> =
                ports.iter().map(|name| taken.get(name).copied()).collect();
            if let Some(by) = by.filter(|by| !by.is_empty()) {
                let first = by.iter().min().copied().unwrap_or(0);
                let before = model.rules.get(first);
                let name = before.map(|rule| rule.name.as_str()).unwrap_or_default();
                let place = if before.is_some_and(is_made) {
                    String::new()
                } else {
                    format!(" (rules[{first}])")
                };
                let message = format!(
                    "`{}` never decides: `{name}`{place} comes before it and takes everything",
                    rule.name
                );
                let path = FieldPath::item("rules", i);
                let expected = if is_made(rule) {
                    "a narrower match there, or none here: the order of routes is that of Gateway API"
                } else {
                    "a higher `precedence`, or a place before that rule"
                };
                out.warning(Code::UnreachableRule, path, message, expected);
            } else if takes_all(rule, service) {
                for name in ports {
                    taken.entry(name).or_insert(i);
                }
            }
        }
    }
}
