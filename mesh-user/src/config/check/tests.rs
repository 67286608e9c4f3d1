//! The checks over models as other adapters may make them.

use std::time::Duration;

use super::*;
use crate::model::{Match, Policy, RateLimitPolicy, Rule, Select, Target, ValueMatch};

fn model(text: &str) -> Model {
    let head = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\n";
    crate::config::parse("test", &format!("{head}{text}"))
        .unwrap()
        .model
}

fn rule(service: usize) -> Rule {
    Rule {
        name: "r".to_owned(),
        service,
        port: Some("p".to_owned()),
        precedence: 0,
        matches: vec![Match::default()],
        route: vec![Target {
            select: Select::Version("v".to_owned()),
            weight: 1,
            ..Target::default()
        }],
        extra: None,
    }
}

fn codes(model: &Model) -> Vec<(Code, String)> {
    check(model)
        .into_iter()
        .map(|finding| (finding.code, finding.path.to_string()))
        .collect()
}

/// Without it: an adapter's slip panics the agent.
#[test]
fn check_references_beyond_the_services_are_survived() {
    let policy = Policy {
        service: 7,
        version: Some("v".to_owned()),
        port: Some("p".to_owned()),
        ..Policy::default()
    };
    let model = Model {
        rules: vec![rule(usize::MAX)].into(),
        policies: vec![policy].into(),
        ..Model::default()
    };
    assert!(
        check(&model)
            .iter()
            .all(|finding| finding.severity == Severity::Warning)
    );
}

/// What a file can't hold, since its form is checked before.
#[test]
fn check_values_that_no_file_can_hold_are_found() {
    let mut model = model(
        "services: [{name: a, addresses: [10.0.0.1], ports: [{name: p, number: 80}], \
         versions: {v: {}}, endpoints: [{address: 10.1.0.1, ports: {p: 1}}]}]\n\
         policies: [{service: a, rate-limit: {rate: 1/s}}]\n",
    );
    assert_eq!(codes(&model), []);
    model.services[0].ports[0].target = 0;
    model.services[0].endpoints[0].weight = 1_000_001;
    model.services[0].endpoints[0]
        .ports
        .insert("p".to_owned(), 0);
    let mut wrong = rule(0);
    wrong.route[0].weight = 1_000_001;
    wrong.matches[0].headers = vec![("X".to_owned(), ValueMatch::Present(true))].into();
    let empty = Rule {
        name: "empty".to_owned(),
        route: Vec::new(),
        ..rule(0)
    };
    model.rules = vec![wrong, empty].into();
    model.policies[0].rate_limits[0] = RateLimitPolicy {
        name: "x".to_owned(),
        key: Vec::new(),
        requests: 0,
        per: Duration::from_secs(1),
        burst: 0,
        ..RateLimitPolicy::default()
    };
    let found = codes(&model);
    for wanted in [
        (Code::OutOfRange, "services[0].ports[0].target"),
        (Code::OutOfRange, "services[0].endpoints[0].weight"),
        (Code::OutOfRange, "services[0].endpoints[0].ports.p"),
        (Code::OutOfRange, "rules[0].route[0].weight"),
        (Code::BadValue, "rules[0].match[0].headers.X"),
        (Code::BadCount, "rules[1].route"),
        (Code::OutOfRange, "policies[0].rate-limit[0].rate"),
        (Code::OutOfRange, "policies[0].rate-limit[0].burst"),
    ] {
        assert!(
            found.contains(&(wanted.0, wanted.1.to_owned())),
            "{wanted:?} is not in {found:?}"
        );
    }
}

/// Without it: a snapshot is refused by a full kernel map, long after the file was taken.
#[test]
fn check_what_the_kernel_maps_hold_at_and_above_the_limit() {
    let mut text = String::from("services:\n");
    // 2,048 services with 64 ports each make 131,072 pairs.
    for i in 0..2_048_u32 {
        let ports: Vec<_> = (1..=64).map(|port| format!("{{number: {port}}}")).collect();
        let (hi, lo) = (i >> 8, i & 255);
        text.push_str(&format!(
            "  - {{name: s{i}, addresses: [10.9.{hi}.{lo}], ports: [{}]}}\n",
            ports.join(",")
        ));
    }
    let mut model = model(&text);
    assert!(
        check(&model)
            .iter()
            .all(|finding| finding.code != Code::BadCount)
    );
    model.services[0]
        .addresses
        .push("10.10.0.1".parse().unwrap());
    assert!(
        check(&model)
            .iter()
            .any(|finding| finding.code == Code::BadCount)
    );
}

/// Without it: the limits here and the kernel's differ.
#[test]
fn check_limits_are_those_of_the_maps() {
    let capacity = |name: &str| {
        let spec = mesh_common::maps::ALL.iter().find(|spec| spec.name == name);
        spec.map(|spec| spec.capacity as usize)
    };
    assert_eq!(capacity("SERVICES"), Some(services::SERVICE_ENTRIES_MAX));
    assert_eq!(capacity("OUT_RULES"), Some(services::OUT_RULES_MAX));
}

/// A port that insists on the kernel names what stands in its way, at that place; one that prefers
/// it, and one of another name, do not mind.
#[test]
fn check_port_that_insists_on_the_kernel_refuses_what_needs_the_proxy() {
    use crate::model::PathChoice::{Auto, Kernel, PreferKernel};

    let found = |path: crate::model::PathChoice, more: &str| {
        let mut model = model(&format!(
            "services: [{{name: a, addresses: [10.0.0.1], ports: [{{name: p, number: 80, \
             protocol: tcp}}, {{name: q, number: 81, protocol: http}}], versions: {{v: {{}}}}, \
             endpoints: [{{address: 10.1.0.1}}]}}]\n{more}"
        ));
        model.services[0].ports[0].path = path;
        let mut found = codes(&model);
        found.retain(|(code, _)| *code == Code::NeedsProxy);
        found
    };
    let at = |path: &str| vec![(Code::NeedsProxy, path.to_owned())];
    let source = "rules: [{service: a, port: p, match: [{source: {workload: w}}], \
                  route: [{version: v}]}]\n";
    assert_eq!(found(Kernel, source), at("rules[0]"));
    assert_eq!(found(PreferKernel, source), []);
    assert_eq!(found(Auto, source), []);
    for policy in [
        "rate-limit: {rate: 1/s}",
        "balance: random",
        "timeout: {idle: 1s}",
        "retries: {}",
        "breaker: {ejection: {probe: true}}",
    ] {
        let text = |port| format!("policies: [{{service: a, port: {port}, {policy}}}]\n");
        assert_eq!(found(Kernel, &text("p")), at("policies[0]"), "{policy}");
        assert_eq!(found(Kernel, &text("q")), [], "{policy}");
    }
    for policy in [
        "breaker: {max-connections: 5, max-requests: 5}",
        "breaker: {ejection: {consecutive-5xx: 2}}",
        "balance: round-robin",
    ] {
        let text = format!("policies: [{{service: a, {policy}}}]\n");
        assert_eq!(found(Kernel, &text), [], "{policy}");
    }
}
