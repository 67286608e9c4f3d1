//! `mesh analyze`: what a valid model probably does not mean.
//!
//! [`super::check`] refuses what can't be; here is what can be and yet surprises: rules that an
//! earlier one takes everything from, versions that nobody sends to, shares that don't add up,
//! services without endpoints. All of it is deduced from the model alone.

use std::collections::{HashMap, HashSet};

use super::{
    check::Finding,
    path::FieldPath,
    report::{Code, Severity},
};
use crate::model::{Model, Rule, Select, Service};

mod covers;
mod shadow;

/// What is found in a model that has no error, in no particular order.
pub(super) fn analyze(model: &Model) -> Vec<Finding> {
    let mut out = Vec::new();
    let rules = by_service(model);
    for (index, service) in model.services.iter().enumerate() {
        let rules = rules.get(&index).map(Vec::as_slice).unwrap_or_default();
        endpoints(index, service, &mut out);
        versions(model, index, service, rules, &mut out);
        shadow::find(service, rules, &mut out);
        catch_all(service, rules, &mut out);
    }
    for (at, rule) in model.rules.iter().enumerate() {
        weights(at, rule, &mut out);
    }
    out
}

/// A rule with its place in the model.
type Placed<'m> = (usize, &'m Rule);

/// The rules of each service in the order in which they are tried.
fn by_service(model: &Model) -> HashMap<usize, Vec<Placed<'_>>> {
    let mut rules: HashMap<usize, Vec<Placed<'_>>> = HashMap::new();
    for (at, rule) in model.rules.iter().enumerate() {
        rules.entry(rule.service).or_default().push((at, rule));
    }
    for of_service in rules.values_mut() {
        // Stable, as the data path sorts them.
        of_service.sort_by_key(|(_, rule)| std::cmp::Reverse(rule.precedence));
    }
    rules
}

fn finding(
    severity: Severity,
    code: Code,
    path: FieldPath,
    message: String,
    expected: &str,
) -> Finding {
    Finding {
        severity,
        code,
        path,
        because: None,
        message,
        expected: Some(expected.to_owned()).filter(|text| !text.is_empty()),
    }
}

fn endpoints(index: usize, service: &Service, out: &mut Vec<Finding>) {
    let path = FieldPath::item("services", index);
    let key = service.key();
    if service.endpoints.is_empty() {
        let message = format!("`{key}` has no endpoint: everything sent to it answers 503");
        out.push(finding(
            Severity::Warning,
            Code::NoEndpoints,
            path,
            message,
            "at least one endpoint",
        ));
    } else if !service.endpoints.iter().any(|e| e.healthy && e.weight > 0) {
        let message = format!("no endpoint of `{key}` is ready: everything sent to it answers 503");
        out.push(finding(
            Severity::Warning,
            Code::NoReadyEndpoints,
            path.key("endpoints"),
            message,
            "one that is healthy, of a weight above 0",
        ));
    }
}

/// Versions and their policies that no rule sends anything to.
fn versions(
    model: &Model,
    index: usize,
    service: &Service,
    rules: &[Placed<'_>],
    out: &mut Vec<Finding>,
) {
    // Rules of other services may send here too.
    let mut sent: HashSet<&str> = HashSet::new();
    let mut any = !rules.is_empty();
    for rule in &model.rules {
        for target in rule.targets() {
            let to = target
                .backend
                .map_or(rule.service, |backend| backend.service);
            if to != index {
                continue;
            }
            any = true;
            match &target.select {
                Select::Version(name) if target.weight > 0 => {
                    sent.insert(name);
                }
                // Tags that a version has mean that version.
                Select::Tags(tags) if target.weight > 0 => {
                    let same = service.versions.iter().filter(|(_, own)| *own == tags);
                    sent.extend(same.map(|(name, _)| name.as_str()));
                }
                _ => {}
            }
        }
    }
    for name in service
        .versions
        .keys()
        .filter(|name| !sent.contains(name.as_str()))
    {
        let path = FieldPath::item("services", index).key("versions").key(name);
        let policies = model.policies.iter().enumerate().filter(|(_, policy)| {
            policy.service == index && policy.version.as_deref() == Some(name)
        });
        for (at, _) in policies {
            out.push(unused_policy(at, service, name));
        }
        if any {
            let message = format!(
                "no rule sends anything to `{name}` of `{}`: only rules that name no version reach \
                 its endpoints",
                service.key()
            );
            out.push(finding(
                Severity::Note,
                Code::UnusedVersion,
                path,
                message,
                "a rule with this version and a weight above 0",
            ));
        }
    }
}

fn unused_policy(at: usize, service: &Service, version: &str) -> Finding {
    let message = format!(
        "the policy for `{version}` of `{}` does nothing: no rule sends anything to this version",
        service.key()
    );
    finding(
        Severity::Warning,
        Code::UnusedPolicy,
        FieldPath::item("policies", at),
        message,
        "a rule that names the version, or a policy of the service",
    )
}

/// Shares that are no percentages, though they look like some.
fn weights(at: usize, rule: &Rule, out: &mut Vec<Finding>) {
    let sum: u64 = rule
        .route
        .iter()
        .map(|target| u64::from(target.weight))
        .sum();
    let largest = rule.route.iter().map(|target| target.weight).max();
    if rule.route.len() < 2 || sum == 0 || sum == 100 || largest.is_none_or(|most| most < 10) {
        return;
    }
    let shares: Vec<String> = rule
        .route
        .iter()
        .map(|target| format!("{:.1} %", f64::from(target.weight) * 100.0 / sum as f64))
        .collect();
    let message = format!(
        "the weights of `{}` add up to {sum}: the shares are {}",
        rule.name,
        shares.join(", ")
    );
    out.push(finding(
        Severity::Note,
        Code::WeightsSum,
        FieldPath::item("rules", at).key("route"),
        message,
        "weights that add up to 100, if they are meant as percentages",
    ));
}

/// A port with rules of which none takes what the others leave.
fn catch_all(service: &Service, rules: &[Placed<'_>], out: &mut Vec<Finding>) {
    for port in &service.ports {
        let mut of_port = rules.iter().filter(|(_, rule)| rule.covers(&port.name));
        let Some((last, rule)) = of_port.clone().next_back() else {
            continue;
        };
        if of_port.any(|(_, rule)| covers::takes_all(rule, port.protocol)) {
            continue;
        }
        let answer = if port.protocol.is_http() {
            "404"
        } else {
            "a reset"
        };
        let message = format!(
            "what no rule of `{}` port {} matches is refused with {answer}: `{}` is its last rule",
            service.key(),
            port.number,
            rule.name
        );
        out.push(finding(
            Severity::Note,
            Code::NoCatchAll,
            FieldPath::item("rules", *last),
            message,
            "a last rule without `match`, if the others should be served",
        ));
    }
}

#[cfg(test)]
mod tests;
