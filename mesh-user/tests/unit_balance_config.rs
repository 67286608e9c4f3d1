//! What the configuration says about mistakes in balancing, localities and health checks; and what
//! it reads of them.

use std::time::Duration;

use mesh_user::{
    config::{self, Severity},
    model::{
        Attribute, Balance, BalancePolicy,
        balance::{Level, SlowStart},
        health::Probe,
    },
};

const HEAD: &str = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\n";

/// Two services that the snippets may refer to, on one line: snippets begin at line 4.
const SERVICES: &str = "services: [{name: a, addresses: [10.0.0.1], ports: [{name: web, number: 80, \
    protocol: http}], endpoints: [{address: 10.1.0.1}]}, {name: t, addresses: [10.0.0.2], \
    ports: [{number: 90, protocol: tcp}], endpoints: [{address: 10.1.0.2}]}]\n";

/// Every check needs these.
const REST: &str = "interval: 1s, timeout: 1s, unhealthy-threshold: 2, healthy-threshold: 1";

/// A snippet with a mark at the place, severity, `code field`, and a word of what would be right or
/// is wrong.
const MISTAKES: &[(&str, Severity, &str, &str)] = &[
    (
        "policies: [{service: a, »balance: {algorithm: maglev}}]",
        Severity::Error,
        "bad-key policies[0].balance",
        "hash",
    ),
    (
        "policies: [{service: a, balance: »ring-hash}]",
        Severity::Error,
        "bad-value policies[0].balance",
        "peak-ewma",
    ),
    (
        "policies: [{service: a, balance: {algorithm: maglev, hash: [path], table-size: »1000}}]",
        Severity::Error,
        "bad-value policies[0].balance.table-size",
        "prime",
    ),
    (
        "policies: [{service: a, balance: {algorithm: ring-hash, hash: [path], ring-min: »10, ring-max: 9}}]",
        Severity::Error,
        "limit-conflict policies[0].balance.ring-min",
        "ring-max",
    ),
    (
        "policies: [{service: a, balance: {algorithm: random, »hash: [path]}}]",
        Severity::Error,
        "conflict policies[0].balance.hash",
        "ring-hash and maglev",
    ),
    (
        "policies: [{service: a, balance: {algorithm: maglev, hash: [path], »slow-start: {window: 1s}}}]",
        Severity::Error,
        "conflict policies[0].balance.slow-start",
        "round-robin",
    ),
    (
        "policies: [{service: a, balance: {algorithm: maglev, hash: [»header], table-size: 11}}]",
        Severity::Error,
        "bad-value policies[0].balance.hash[0]",
        "header.NAME",
    ),
    (
        "policies: [{service: a, balance: {algorithm: maglev, hash: [path, »path]}}]",
        Severity::Error,
        "duplicate policies[0].balance.hash[1]",
        "once",
    ),
    (
        "policies: [{service: t, balance: {algorithm: maglev, hash: [»header.x]}}]",
        Severity::Warning,
        "no-effect policies[0].balance.hash[0]",
        "source.address",
    ),
    (
        "policies: [{service: a, balance: »least-requests}]",
        Severity::Error,
        "bad-value policies[0].balance",
        "least-request",
    ),
    (
        "policies: [{service: a, balance: {algorithm: random, bounded-load: »99}}]",
        Severity::Error,
        "out-of-range policies[0].balance.bounded-load",
        "100",
    ),
    (
        "policies: [{service: a, locality: {prefer: »zone}}]",
        Severity::Warning,
        "no-effect policies[0].locality.prefer",
        "agent.locality",
    ),
    (
        "policies: [{service: a, locality: {»failover: [eu]}}]",
        Severity::Warning,
        "no-effect policies[0].locality.failover",
        "prefer",
    ),
    (
        "agent: {locality: »eu//x}",
        Severity::Error,
        "bad-value agent.locality",
        "region/zone/subzone",
    ),
    (
        "policies: [{service: a, health-checks: »{REST}}]",
        Severity::Error,
        "missing-field policies[0].health-checks[0]",
        "exactly one of",
    ),
    (
        "policies: [{service: a, health-checks: {»tcp: {}, http: {}, REST}}]",
        Severity::Error,
        "conflict policies[0].health-checks[0].tcp",
        "exactly one of",
    ),
    (
        "policies: [{service: a, health-checks: »{tcp: {}, interval: 1s, timeout: 1s, healthy-threshold: 1}}]",
        Severity::Error,
        "missing-field policies[0].health-checks[0].unhealthy-threshold",
        "whole number",
    ),
    (
        "policies: [{service: a, health-checks: [{tcp: {}, REST}, »{tcp: {}, REST}]}]",
        Severity::Error,
        "duplicate policies[0].health-checks[1]",
        "once",
    ),
    (
        "policies: [{service: a, health-checks: {http: {statuses: [2xx], retriable: [»2xx]}, REST}}]",
        Severity::Error,
        "conflict policies[0].health-checks[0].http.retriable[0]",
        "statuses",
    ),
    (
        "policies: [{service: a, health-checks: {http: {path: »healthz}, REST}}]",
        Severity::Error,
        "bad-value policies[0].health-checks[0].http.path",
        "/healthz",
    ),
    (
        "policies: [{service: a, health-checks: {tcp: {}, no-traffic-interval: »500ms, REST}}]",
        Severity::Warning,
        "no-effect policies[0].health-checks[0].no-traffic-interval",
        "at least",
    ),
    (
        "policies: [{service: a, health-checks: {tcp: {}, interval: »1, timeout: 1s, unhealthy-threshold: 2, healthy-threshold: 1}}]",
        Severity::Error,
        "wrong-type policies[0].health-checks[0].interval",
        "a unit after the number",
    ),
];

#[test]
fn mistakes_in_balancing_and_checks_are_named_at_their_place() {
    for (snippet, severity, wanted, word) in MISTAKES {
        let snippet = snippet.replace("REST", REST);
        let text = format!("{HEAD}{SERVICES}{snippet}\n");
        let up_to_mark = text.split('»').next().unwrap();
        let line = up_to_mark.lines().count();
        let column = up_to_mark.lines().next_back().unwrap().chars().count() + 1;
        let report = config::examine_text("mesh.yaml", &text.replace('»', "")).report;
        let shown = report.render(false);
        let found: Vec<String> = report
            .problems
            .iter()
            .map(|p| format!("{}:{} {} {}", p.line, p.column, p.code.name(), p.field))
            .collect();
        assert_eq!(
            found,
            [format!("{line}:{column} {wanted}")],
            "\n{snippet}\n{shown}"
        );
        assert_eq!(report.problems[0].severity, *severity, "{shown}");
        assert!(shown.contains(word), "{word}: {shown}");
    }
}

fn policy(text: &str) -> mesh_user::model::Policy {
    let text = format!("{HEAD}{SERVICES}policies: [{{service: a, {text}}}]\n");
    let config = config::parse("mesh.yaml", &text).unwrap();
    config.model.policies[0].clone()
}

#[test]
fn balance_is_a_word_or_a_mapping_that_says_more() {
    for (word, algorithm) in [
        ("least-request", Balance::LeastRequest),
        ("round-robin", Balance::RoundRobin),
        ("random", Balance::Random),
        ("peak-ewma", Balance::PeakEwma),
    ] {
        let short = policy(&format!("balance: {word}"));
        assert_eq!(short.balance, Some(algorithm.into()));
        assert_eq!(short, policy(&format!("balance: {{algorithm: {word}}}")));
    }
    let long = policy(
        "balance: {algorithm: ring-hash, hash: [header.X-User, source.address], seed: 3, \
         ring-min: 5, ring-max: 6, bounded-load: 125, panic-threshold: 0}",
    );
    let expected = BalancePolicy {
        hash: vec![
            Attribute::Header("x-user".to_owned()),
            Attribute::SourceAddress,
        ],
        seed: 3,
        ring_min: 5,
        ring_max: 6,
        bounded_load: Some(125),
        panic_threshold: Some(0),
        ..Balance::RingHash.into()
    };
    assert_eq!(long.balance, Some(expected));
    let slow = policy("balance: {algorithm: round-robin, slow-start: {window: 1m}}");
    assert_eq!(
        slow.balance.unwrap().slow_start,
        Some(SlowStart {
            window: Duration::from_secs(60),
            ..SlowStart::default()
        })
    );
    let near = policy("locality: {prefer: subzone, failover: [eu]}").locality;
    let near = near.unwrap();
    assert_eq!(
        (near.prefer, near.over_provisioning),
        (Some(Level::Subzone), 140)
    );
}

#[test]
fn health_check_has_envoys_defaults() {
    let check = &policy(&format!("health-checks: {{http: {{}}, {REST}}}")).health_checks[0];
    assert_eq!(check.no_traffic_interval, Duration::from_secs(60));
    assert!(check.reuse_connection && check.uneject);
    let Probe::Http(http) = &check.probe else {
        panic!("{check:?}");
    };
    assert_eq!((http.method.as_str(), http.path.as_str()), ("GET", "/"));
    assert!(http.statuses.is_empty(), "200 alone");
    let check = &policy(&format!(
        "health-checks: [{{http: {{statuses: [2xx, 404]}}, {REST}}}]"
    ))
    .health_checks[0];
    let Probe::Http(http) = &check.probe else {
        panic!("{check:?}");
    };
    assert_eq!(http.statuses, [(200, 299), (404, 404)]);
}

/// What the kernel can't do for a connection moves its port to the proxy; what it can, does not.
#[test]
fn kernel_path_is_left_for_keys_and_priorities_and_kept_for_health_checks() {
    let path = |endpoints: &str, policy: &str| {
        let text = format!(
            "{HEAD}services: [{{name: t, addresses: [10.0.0.2], ports: [{{number: 90, protocol: tcp, \
             path: kernel}}], endpoints: [{endpoints}]}}]\npolicies: [{{service: t, {policy}}}]\n"
        );
        let report = config::examine_text("mesh.yaml", &text).report;
        report.problems.first().map(|p| p.message.clone())
    };
    let two = "{address: 10.1.0.1}, {address: 10.1.0.2}";
    let ranked = "{address: 10.1.0.1}, {address: 10.1.0.2, priority: 1}";
    let timeless = "breaker: {max-connections: 5}";
    for (endpoints, policy, word) in [
        (ranked, timeless, "priorities"),
        (
            two,
            "balance: {algorithm: maglev, hash: [source.address]}",
            "balance",
        ),
        (
            two,
            "balance: {algorithm: round-robin, slow-start: {window: 1m}}",
            "balance",
        ),
        (two, "locality: {over-provisioning: 150}", "locality"),
    ] {
        let message = path(endpoints, policy).expect(policy);
        assert!(message.contains(word), "{message}");
    }
    let check = format!("health-checks: {{tcp: {{}}, {REST}}}, balance: round-robin");
    assert_eq!(path(two, &check), None);
}
