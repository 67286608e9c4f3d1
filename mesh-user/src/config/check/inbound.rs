//! Inbound rules.

use std::collections::{HashMap, HashSet};

use super::Findings;
use crate::{
    config::{path::FieldPath, report::Code},
    model::{
        Attribute, Inbound, Model, SourceMatch,
        inbound::{InboundAction, InboundPorts, InboundRule, PeerMatch},
    },
};

/// Entries of the kernel's map `IN_RULES` (`mesh_common::maps`).
const IN_RULES_MAX: usize = 65_536;

pub(super) fn check(model: &Model, out: &mut Findings) {
    let mut names = HashMap::new();
    for (i, rule) in model.inbound.iter().enumerate() {
        let item = FieldPath::item("inbound", i);
        if let Some(first) = names.insert(rule.name.as_str(), i) {
            let message = format!("`{}` is the name of inbound[{first}] too", rule.name);
            let path = item.key("name");
            out.error(Code::Duplicate, path, message, "a unique name");
        }
        needs_capture(rule, &item, out);
        limits(model, rule, &item, out);
        peers(&rule.allow, &item.key("allow"), out);
        peers(&rule.deny, &item.key("deny"), out);
        ports(rule, &item, out);
        covers(model, i, rule, &item, out);
    }
    let needed: usize = model
        .workloads
        .iter()
        .filter(|workload| workload.capture)
        .map(|workload| InboundPorts::of(workload, &model.inbound).ports.len())
        .sum();
    if needed > IN_RULES_MAX {
        let message =
            format!("these rules need {needed} entries in the kernel, it holds {IN_RULES_MAX}");
        out.error(
            Code::BadCount,
            FieldPath::item("inbound", 0),
            message,
            "rules about every port (no `ports`), or about fewer workloads",
        );
    }
}

/// What would silently not be enforced is refused.
fn needs_capture(rule: &InboundRule, item: &FieldPath, out: &mut Findings) {
    if rule.action == InboundAction::Capture || !rule.needs_proxy() {
        return;
    }
    let word = match rule.action {
        InboundAction::Deny => "deny",
        InboundAction::Pass | InboundAction::Capture => "pass",
    };
    let message = format!(
        "`action: {word}` never reaches the proxy, which would apply `allow`, `deny`, `rate-limit` and `breaker`"
    );
    let path = item.key("action");
    out.error(Code::NeedsCapture, path, message, "`action: capture`");
}

fn limits(model: &Model, rule: &InboundRule, item: &FieldPath, out: &mut Findings) {
    super::limits::list(
        model,
        &rule.rate_limits,
        item,
        super::limits::Of::Inbound,
        out,
    );
    for (k, limit) in rule.rate_limits.iter().enumerate() {
        let path = item.key("rate-limit").at(k);
        for (n, key) in limit.key.iter().enumerate() {
            let about_source = matches!(
                key,
                Attribute::SourceWorkload
                    | Attribute::SourceNamespace
                    | Attribute::SourceIdentity
                    | Attribute::SourceTag(_)
                    | Attribute::SourceAddress
            );
            if !about_source {
                let message =
                    "this is no key of an inbound limit: it must hold for opaque connections, \
                               and for what is judged before it is dialled"
                        .to_owned();
                let expected = "source.workload, source.namespace, source.identity, source.address or source.tag.NAME";
                out.error(Code::BadKey, path.key("key").at(n), message, expected);
            }
        }
    }
}

fn peers(list: &[PeerMatch], path: &FieldPath, out: &mut Findings) {
    for (k, peer) in list.iter().enumerate() {
        if peer
            .source
            .as_ref()
            .is_some_and(|source| *source == SourceMatch::default())
        {
            let message = "an empty `source` is anybody who is known at all".to_owned();
            let expected = "workload, namespace, identity or tags";
            out.error(
                Code::EmptySource,
                path.at(k).key("source"),
                message,
                expected,
            );
        }
    }
}

fn ports(rule: &InboundRule, item: &FieldPath, out: &mut Findings) {
    let mut seen = HashSet::new();
    for (k, port) in rule.ports.iter().enumerate() {
        if !seen.insert(port) {
            let message = format!("port {port} is there twice");
            let path = item.key("ports").at(k);
            out.warning(Code::Duplicate, path, message, "each port once");
        }
    }
}

/// Rules that decide nothing: no workload, or earlier rules decide it all.
fn covers(model: &Model, i: usize, rule: &InboundRule, item: &FieldPath, out: &mut Findings) {
    let mut covered = model
        .workloads
        .iter()
        .filter(|workload| workload.capture && rule.select.covers(workload))
        .peekable();
    if covered.peek().is_none() {
        let message = "no captured workload of this node is meant".to_owned();
        out.warning(Code::NoEffect, item.clone(), message, "");
        return;
    }
    let mut covered = covered
        .filter(|workload| workload.interception.inbound != Inbound::Pass)
        .peekable();
    if covered.peek().is_none() {
        let message = "every workload that is meant has `inbound: pass`".to_owned();
        out.warning(Code::NoEffect, item.clone(), message, "`inbound: rules`");
        return;
    }
    let before = &model.inbound[..i];
    let taken = covered.all(|workload| {
        let mut earlier = before.iter().filter(|rule| rule.select.covers(workload));
        if rule.ports.is_empty() {
            earlier.any(|rule| rule.ports.is_empty())
        } else {
            let earlier: Vec<&InboundRule> = earlier.collect();
            rule.ports
                .iter()
                .all(|port| earlier.iter().any(|rule| rule.covers_port(*port)))
        }
    });
    if taken {
        let message = format!(
            "`{}` never decides: earlier rules cover all that it covers",
            rule.name
        );
        out.warning(Code::UnreachableRule, item.clone(), message, "before them");
    }
}
