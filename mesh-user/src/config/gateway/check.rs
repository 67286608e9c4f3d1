//! What the CRDs' validation rules (CEL) say beyond the form, and what only the data path can say:
//! whether an expression compiles.

use std::{collections::HashMap, fmt::Display, hash::Hash};

mod filters;
mod names;

use names::{is_method, is_service, path_fault};

use super::{Kind, duration::duration};
use crate::config::{
    collect::Collector,
    locate::head,
    path::Trail,
    report::Code,
    text::{check_regex, shown},
    tree::Node,
};

/// Most matches of all rules of a route together.
const MATCHES_MAX: usize = 128;

/// Checks the `spec` of an object.
pub(super) fn spec(kind: Kind, spec: &Node, trail: Trail<'_>, out: &mut Collector) {
    if kind == Kind::ReferenceGrant {
        return;
    }
    let mut check = Check { out };
    check.parents(spec, trail.key("parentRefs"));
    let rules = spec.items("rules");
    let all: usize = rules.iter().map(|rule| matches_of(kind, rule)).sum();
    if all > MATCHES_MAX {
        let message = format!("the rules have {all} matches together");
        let expected = format!("at most {MATCHES_MAX} in a route");
        let at = spec.get("rules").unwrap_or(spec);
        check.error(Code::BadCount, at, trail.key("rules"), message, expected);
    }
    let at = trail.key("rules");
    let names = rules.iter().map(|rule| rule.get("name"));
    check.unique(names, &at, "name", "rule");
    for (index, rule) in rules.iter().enumerate() {
        check.rule(kind, rule, at.at(index));
    }
    if kind == Kind::Tls {
        let at = trail.key("hostnames");
        for (index, host) in spec.items("hostnames").iter().enumerate() {
            let name = host.as_text().unwrap_or_default();
            if name.parse::<std::net::IpAddr>().is_ok() {
                let message = format!("`{}` is an address", shown(name));
                let expected = "a name: server names of TLS are none (RFC 6066 §3)";
                check.error(Code::BadValue, host, at.at(index), message, expected);
            }
        }
    }
}

/// A rule without matches has the default one.
fn matches_of(kind: Kind, rule: &Node) -> usize {
    let given = rule.items("matches").len();
    if kind == Kind::Http {
        given.max(1)
    } else {
        given
    }
}

struct Check<'o> {
    out: &'o mut Collector,
}

impl Check<'_> {
    fn error(
        &mut self,
        code: Code,
        node: &Node,
        trail: Trail<'_>,
        message: impl Into<String>,
        expected: impl Into<String>,
    ) {
        let path = trail.path();
        // What the form says already need not be said again.
        if !self.out.spoils(&path) {
            let expected = Some(expected.into());
            self.out
                .error(code, head(node), path, message.into(), expected);
        }
    }

    fn parents(&mut self, spec: &Node, trail: Trail<'_>) {
        let parents = spec.items("parentRefs");
        let section = |node: &Node| {
            (
                node.text("sectionName").map(str::to_owned),
                node.int::<u16>("port"),
            )
        };
        for (index, parent) in parents.iter().enumerate() {
            for other in &parents[..index] {
                let same = |name: &str, default: &str| {
                    parent.text(name).unwrap_or(default) == other.text(name).unwrap_or(default)
                };
                let group = "gateway.networking.k8s.io";
                if !(same("group", group)
                    && same("kind", "Gateway")
                    && same("namespace", "")
                    && same("name", ""))
                {
                    continue;
                }
                let (mine, its) = (section(parent), section(other));
                if mine == its {
                    let message = "this parent stands here twice";
                    let expected = "each `sectionName` or `port` of a parent once";
                    self.error(Code::Duplicate, parent, trail.at(index), message, expected);
                } else if mine.0.is_some() != its.0.is_some() || mine.1.is_some() != its.1.is_some()
                {
                    let message = "a parent stands here with a section and without";
                    let expected = "`sectionName` or `port` in each reference to the same parent";
                    self.error(Code::Conflict, parent, trail.at(index), message, expected);
                }
            }
        }
    }

    /// Reports texts or numbers that are there twice.
    fn unique<'n>(
        &mut self,
        nodes: impl Iterator<Item = Option<&'n Node>>,
        trail: &Trail<'_>,
        field: &str,
        what: &str,
    ) {
        let mut seen = HashMap::new();
        for (index, node) in nodes.enumerate() {
            let Some((node, text)) = node.and_then(|node| Some((node, node.as_text()?))) else {
                continue;
            };
            if let Some(first) = seen.insert(text, index) {
                let message = format!("`{}` is the name of {what} {first} too", shown(text));
                let at = trail.at(index);
                self.error(
                    Code::Duplicate,
                    node,
                    at.key(field),
                    message,
                    "each name once",
                );
            }
        }
    }

    /// Reports items of a set that are there twice.
    fn set<T: Eq + Hash + Display>(
        &mut self,
        items: &[Node],
        trail: Trail<'_>,
        key: impl Fn(&Node) -> Option<T>,
    ) {
        let mut seen = HashMap::new();
        for (index, node) in items.iter().enumerate() {
            let Some(value) = key(node) else { continue };
            if let Some(first) = seen.get(&value) {
                let message = format!("`{value}` is item {first} too");
                self.error(
                    Code::Duplicate,
                    node,
                    trail.at(index),
                    message,
                    "each item once",
                );
            } else {
                seen.insert(value, index);
            }
        }
    }

    fn rule(&mut self, kind: Kind, rule: &Node, trail: Trail<'_>) {
        let matches = rule.items("matches");
        let at = trail.key("matches");
        for (index, condition) in matches.iter().enumerate() {
            match kind {
                Kind::Http => self.http_match(condition, at.at(index)),
                Kind::Grpc => self.grpc_match(condition, at.at(index)),
                _ => {}
            }
        }
        let one_prefix = match matches {
            [] => true,
            [only] => only
                .get("path")
                .is_none_or(|path| path.text("type").unwrap_or("PathPrefix") == "PathPrefix"),
            _ => false,
        };
        self.filters(rule, one_prefix, trail);
        let backends = rule.items("backendRefs");
        let redirects = |filter: &Node| filter.get("requestRedirect").is_some();
        if !backends.is_empty()
            && let Some(filter) = rule
                .items("filters")
                .iter()
                .find(|filter| redirects(filter))
        {
            let message = "a redirect stands beside backendRefs";
            let expected = "one of them: what is redirected goes to no backend";
            self.error(
                Code::Conflict,
                filter,
                trail.key("filters"),
                message,
                expected,
            );
        }
        let at = trail.key("backendRefs");
        for (index, backend) in backends.iter().enumerate() {
            self.reference(backend, at.at(index));
            self.filters(backend, one_prefix, at.at(index));
        }
        if let Some(timeouts) = rule.get("timeouts") {
            let of = |name| timeouts.text(name).and_then(duration);
            if let (Some(request), Some(each)) = (of("request"), of("backendRequest"))
                && !request.is_zero()
                && each > request
            {
                let at = trail.key("timeouts");
                let node = timeouts.get("backendRequest").unwrap_or(timeouts);
                let message = "`backendRequest` is longer than `request`";
                let expected = "a part of `request`, which bounds all attempts";
                self.error(
                    Code::LimitConflict,
                    node,
                    at.key("backendRequest"),
                    message,
                    expected,
                );
            }
        }
        if let Some(session) = rule.get("sessionPersistence") {
            self.session(session, trail.key("sessionPersistence"));
        }
    }

    fn session(&mut self, session: &Node, trail: Trail<'_>) {
        let cookie = session.text("type").unwrap_or("Cookie") == "Cookie";
        let config = session.get("cookieConfig");
        if let Some(config) = config.filter(|_| !cookie) {
            let message = "`cookieConfig` stands beside `type: Header`";
            self.error(
                Code::Conflict,
                config,
                trail.key("cookieConfig"),
                message,
                "`type: Cookie`",
            );
        }
        let permanent =
            config.is_some_and(|config| config.text("lifetimeType") == Some("Permanent"));
        if permanent && session.get("absoluteTimeout").is_none() {
            let message = "a permanent cookie without `absoluteTimeout`";
            let expected = "`absoluteTimeout`: how long the cookie lasts";
            self.error(
                Code::MissingField,
                session,
                trail.key("absoluteTimeout"),
                message,
                expected,
            );
        }
    }

    fn reference(&mut self, backend: &Node, trail: Trail<'_>) {
        let service = backend.text("group").unwrap_or_default().is_empty()
            && backend.text("kind").unwrap_or("Service") == "Service";
        if service && backend.get("port").is_none() {
            let message = "the field `port` is missing: a Service has several";
            self.error(
                Code::MissingField,
                backend,
                trail.key("port"),
                message,
                "`port`: a port of the Service",
            );
        }
    }

    fn regex(&mut self, node: &Node, trail: Trail<'_>) {
        if let Some(Err(fault)) = node.as_text().map(check_regex) {
            let expected = "an expression of the Rust crate `regex`: no look-around";
            self.error(fault.code, node, trail, fault.message, expected);
        }
    }

    fn http_match(&mut self, condition: &Node, trail: Trail<'_>) {
        if let Some(path) = condition.get("path") {
            let at = trail.key("path");
            let value = path.get("value");
            match (path.text("type").unwrap_or("PathPrefix"), value) {
                ("RegularExpression", Some(value)) => self.regex(value, at.key("value")),
                ("RegularExpression", None) | (_, None) => {}
                (_, Some(value)) => {
                    if let Some(fault) = value.as_text().and_then(path_fault) {
                        let text = shown(value.as_text().unwrap_or_default());
                        let message = format!("`{text}` {fault}");
                        let expected = "a path that begins with `/`, in normal form";
                        self.error(Code::BadValue, value, at.key("value"), message, expected);
                    }
                }
            }
        }
        self.values(condition, "headers", trail);
        self.values(condition, "queryParams", trail);
    }

    /// Header fields or query parameters.
    fn values(&mut self, condition: &Node, field: &str, trail: Trail<'_>) {
        let items = condition.items(field);
        let at = trail.key(field);
        self.set(items, at, |item| item.text("name").map(str::to_owned));
        for (index, item) in items.iter().enumerate() {
            if let Some(value) = item.get("value")
                && item.text("type") == Some("RegularExpression")
            {
                let here = at.at(index);
                self.regex(value, here.key("value"));
            }
        }
    }

    fn grpc_match(&mut self, condition: &Node, trail: Trail<'_>) {
        self.values(condition, "headers", trail);
        let Some(method) = condition.get("method") else {
            return;
        };
        let at = trail.key("method");
        let (service, name) = (method.get("service"), method.get("method"));
        if service.is_none() && name.is_none() {
            let message = "neither `service` nor `method` is given";
            return self.error(
                Code::MissingField,
                method,
                at,
                message,
                "one of them, or both",
            );
        }
        let exact = method.text("type") != Some("RegularExpression");
        for (node, field, holds) in [
            (service, "service", is_service as fn(&str) -> bool),
            (name, "method", is_method),
        ] {
            let Some(node) = node else { continue };
            if !exact {
                self.regex(node, at.key(field));
            } else if node.as_text().is_some_and(|text| !holds(text)) {
                let message = format!(
                    "`{}` is no gRPC {field}",
                    shown(node.as_text().unwrap_or_default())
                );
                self.error(
                    Code::BadValue,
                    node,
                    at.key(field),
                    message,
                    "letters, digits, `_`, and `.` in a service",
                );
            }
        }
    }
}
