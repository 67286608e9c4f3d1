//! What the configuration says about mistakes: all at once, each at its place, with what would be
//! right.

use mesh_user::config::{self, Code, ConfigError, Severity};

const HEAD: &str = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\n";

/// Two services that the snippets may refer to, on one line: snippets begin at line 4.
const SERVICES: &str = "services: [{name: a, addresses: [10.0.0.1], versions: {v1: {v: \"1\"}}, ports: [{name: web, number: 80, protocol: http}], endpoints: [{address: 10.1.0.1, tags: {v: \"1\"}}]}, {name: t, addresses: [10.0.0.2], ports: [{number: 90, protocol: tcp}], endpoints: [{address: 10.1.0.2}]}]\n";

fn error(text: &str) -> ConfigError {
    config::parse("mesh.yaml", text).expect_err(text)
}

/// `LINE:COLUMN code field` of each problem.
fn short(error: &config::Report) -> Vec<String> {
    error
        .problems
        .iter()
        .map(|p| format!("{}:{} {} {}", p.line, p.column, p.code.name(), p.field))
        .collect()
}

/// Without it: people fix one mistake, start again, and meet the next.
#[test]
fn problems_of_all_kinds_are_reported_at_once() {
    let text = "\
apiVersion: mesh/v1alpha1
kind: MeshConfig
attach: [kubepods, kubepods/burstable]
agent:
  workers: 9
  limits: {head-bytes-max: 8KiB, detect-timeout: 200ms}
services:
  - name: reviews
    addresses: [127.0.0.1, 10.96.0.10]
    ports: [{name: http, number: 0}, {number: eighty}]
    versions: {v1: {version: 1}}
    endpoints: [{address: 10.244.1.5}]
    endpoints: []
rules:
  - service: revews
    route: [{version: v1, wieght: 90}, {version: v2, weight: 10}]
  - service: reviews
    match: [{path: {regex: \"(\"}, headers: {\"x y\": z}}]
    route: [{weight: 1000001}]
policies:
  - service: reviews
    rate-limit: [{rate: 100/d}]
    timeout: {request: 15}
workloads:
  - {name: client, netns: /a, pid: 1}
  - {name: web}
colour: red
";
    let error = error(text);
    let found = short(error.report());
    let wanted = [
        "3:20 nested-attach attach[1]",
        "5:12 out-of-range agent.workers",
        "6:28 limit-conflict agent.limits.head-bytes-max",
        "6:50 out-of-range agent.limits.detect-timeout",
        "9:17 bad-address services[0].addresses[0]",
        "10:34 out-of-range services[0].ports[0].number",
        "10:47 wrong-type services[0].ports[1].number",
        "11:30 wrong-type services[0].versions.v1.version",
        "13:5 duplicate-key services[0].endpoints",
        "15:14 unknown-service rules[0].service",
        "16:13 missing-field rules[0].route[0].weight",
        "16:27 unknown-field rules[0].route[0].wieght",
        "18:28 bad-regex rules[1].match[0].path.regex",
        "18:44 bad-value rules[1].match[0].headers[\"x y\"]",
        "19:22 out-of-range rules[1].route[0].weight",
        "22:25 bad-value policies[0].rate-limit[0].rate",
        "23:24 wrong-type policies[0].timeout.request",
        "25:31 conflict workloads[0].pid",
        "26:5 missing-field workloads[1]",
        "27:1 unknown-field colour",
    ];
    assert_eq!(found, wanted, "\n{error}");
    for problem in &error.report().problems {
        assert_eq!(problem.severity, Severity::Error);
        assert!(problem.expected.is_some(), "{problem:?}");
    }
}

#[test]
fn problem_looks_as_in_rustc() {
    let error = error(&format!(
        "{HEAD}{SERVICES}rules:\n  - service: a\n    route: [{{version: v1, wieght: 90}}]\n"
    ));
    let wanted = "\
error[unknown-field]: unknown field `wieght`
 --> mesh.yaml:6:27
  |
6 |     route: [{version: v1, wieght: 90}]
  |                           ^^^^^^
  = field: rules[0].route[0].wieght
  = expected: `weight`; known here: version, tags, endpoints, service, port, weight, headers, rewrite, redirect, respond, fault, mirror

mesh.yaml: 1 error
";
    assert_eq!(error.render(false), wanted);
    let coloured = error.render(true);
    assert!(coloured.contains("\u{1b}[1;31merror[unknown-field]\u{1b}[0m"));
    assert_eq!(error.to_string(), wanted);
}

#[test]
fn problem_as_json_has_the_promised_fields() {
    let error = error(&format!("{HEAD}rulez: []\n"));
    let wanted = serde_json::json!([{
        "code": "unknown-field",
        "file": "mesh.yaml",
        "line": 3,
        "column": 1,
        "field": "rulez",
        "message": "unknown field `rulez`",
        "expected": "`rules`; known here: apiVersion, kind, attach, agent, services, rules, policies, rate-limit-services, workloads, outbound, inbound, gateway-api, shield",
        "severity": "error",
    }]);
    assert_eq!(error.to_json(), wanted);
}

/// One mistake each: the snippet with » before the place that must be named, code and field, and a
/// part of what would be right.
const MISTAKES: &[(&str, &str, &str)] = &[
    // Form.
    (
        "agent: »[1]",
        "wrong-type agent",
        "a mapping with the fields workers",
    ),
    ("rules»:", "wrong-type rules", "leave the field out"),
    (
        "agent: {workers: »two}",
        "wrong-type agent.workers",
        "1 to 8",
    ),
    (
        "agent: {workers: »1.5}",
        "wrong-type agent.workers",
        "1 to 8",
    ),
    (
        "agent: {workers: »0}",
        "out-of-range agent.workers",
        "1 to 8",
    ),
    ("agent: {drain: »10}", "wrong-type agent.drain", "10s"),
    ("agent: {drain: »1.5s}", "bad-value agent.drain", "1s500ms"),
    ("agent: {drain: »2h}", "out-of-range agent.drain", "1h"),
    (
        "agent: {metrics: »localhost:1}",
        "bad-value agent.metrics",
        "`off`",
    ),
    (
        "agent: {limits: {replay-bytes-max: »64kb}}",
        "wrong-type agent.limits.replay-bytes-max",
        "64KiB",
    ),
    (
        "agent: {limits: {»head_bytes_max: 1}}",
        "unknown-field agent.limits.head_bytes_max",
        "`head-bytes-max`",
    ),
    (
        "agent: {»<<: {}}",
        "yaml-key agent[\"<<\"]",
        "the fields themselves",
    ),
    (
        "attach: [»/sys/fs/cgroup/x]",
        "bad-value attach[0]",
        "without a leading",
    ),
    ("attach: [»a/../b]", "bad-value attach[0]", ""),
    (
        "outbound: [{cidr: »10.1.2.3/8, action: pass}]",
        "bad-value outbound[0].cidr",
        "10.0.0.0/8",
    ),
    (
        "outbound: [{cidr: 10.0.0.0/8, action: »allow}]",
        "bad-value outbound[0].action",
        "pass, deny",
    ),
    (
        "workloads: [{name: »a b, pid: 1}]",
        "bad-value workloads[0].name",
        "a name",
    ),
    (
        "workloads: [{name: w, pid: 1, capture: »yes}]",
        "wrong-type workloads[0].capture",
        "true",
    ),
    (
        "workloads: [{name: w, pid: 1, tags: {v: »2}}]",
        "wrong-type workloads[0].tags.v",
        "quotes",
    ),
    (
        "workloads: [{name: w, netns: »netns/w}]",
        "bad-value workloads[0].netns",
        "absolute",
    ),
    (
        "rules: [{service: a, route: »[]}]",
        "bad-count rules[0].route",
        "at least 1",
    ),
    (
        "rules: [{service: a, match: »[], route: [{}]}]",
        "bad-count rules[0].match",
        "at least 1",
    ),
    (
        "rules: [{service: a, route: [{version: v1, »tags: {}}]}]",
        "conflict rules[0].route[0].tags",
        "at most one",
    ),
    (
        "rules: [{service: a, route: [{}], precedence: »2147483648}]",
        "out-of-range rules[0].precedence",
        "2147483647",
    ),
    (
        "rules: [{service: a, route: [{}], precedence: »-2147483649}]",
        "out-of-range rules[0].precedence",
        "-2147483648",
    ),
    (
        "rules: [{service: a, match: {path: {exact: /a, »prefix: /b}}, route: [{}]}]",
        "conflict rules[0].match[0].path.prefix",
        "exactly one",
    ),
    (
        "rules: [{service: a, match: {path: »{}}, route: [{}]}]",
        "missing-field rules[0].match[0].path",
        "exactly one",
    ),
    (
        "rules: [{service: a, match: {path: {prefix: »a}}, route: [{}]}]",
        "bad-value rules[0].match[0].path.prefix",
        "/a",
    ),
    (
        "rules: [{service: a, match: {headers: {»\":path\": x}}, route: [{}]}]",
        "bad-value rules[0].match[0].headers[\":path\"]",
        "`path`",
    ),
    (
        "rules: [{service: a, match: {headers: {X-A: x, »x-a: y}}, route: [{}]}]",
        "duplicate-key rules[0].match[0].headers.x-a",
        "once",
    ),
    (
        "rules: [{service: a, match: {headers: {x-a: »1}}, route: [{}]}]",
        "wrong-type rules[0].match[0].headers.x-a",
        "quotes",
    ),
    (
        "policies: [{service: a, balance: »roundrobin}]",
        "bad-value policies[0].balance",
        "`round-robin`",
    ),
    (
        "policies: [{service: a, rate-limit: {rate: »100}}]",
        "wrong-type policies[0].rate-limit[0].rate",
        "100/s",
    ),
    (
        "policies: [{service: a, rate-limit: {rate: »0/s}}]",
        "bad-value policies[0].rate-limit[0].rate",
        "at least 1",
    ),
    (
        "policies: [{service: a, rate-limit: {rate: 1/s, burst: »0}}]",
        "out-of-range policies[0].rate-limit[0].burst",
        "from 1",
    ),
    (
        "policies: [{service: a, rate-limit: {rate: 1/s, key: [»cookie]}}]",
        "bad-value policies[0].rate-limit[0].key[0]",
        "header.NAME",
    ),
    (
        "policies: [{service: a, retries: {on: [»5xx]}}]",
        "bad-value policies[0].retries.on[0]",
        "server-error",
    ),
    (
        "policies: [{service: a, timeout: {connect: »0s}}]",
        "out-of-range policies[0].timeout.connect",
        "1ms",
    ),
    (
        "policies: [{service: a, breaker: {ejection: {max-percent: »101}}}]",
        "out-of-range policies[0].breaker.ejection.max-percent",
        "100",
    ),
    // Meaning.
    (
        "rules: [{service: »b, route: [{}]}]",
        "unknown-service rules[0].service",
        "one of default/a, default/t",
    ),
    (
        "rules: [{service: »n/a, route: [{}]}]",
        "unknown-service rules[0].service",
        "default/a",
    ),
    (
        "rules: [{service: a, route: [{version: »v2}]}]",
        "unknown-version rules[0].route[0].version",
        "`v1`",
    ),
    (
        "rules: [{service: t, route: [{version: »v2}]}]",
        "unknown-version rules[0].route[0].version",
        "none",
    ),
    (
        "rules: [{service: a, port: »wbe, route: [{}]}]",
        "unknown-port rules[0].port",
        "`web`",
    ),
    (
        "rules: [{service: a, port: »81, route: [{}]}]",
        "unknown-port rules[0].port",
        "web",
    ),
    (
        "policies: [{service: a, version: »v2, balance: random}]",
        "unknown-version policies[0].version",
        "`v1`",
    ),
    (
        "policies: [{service: a, port: »x, balance: random}]",
        "unknown-port policies[0].port",
        "web",
    ),
    (
        "rules: [{service: a, name: r, port: web, match: {method: A}, route: [{}]}, {service: a, name: »r, route: [{}]}]",
        "duplicate rules[1].name",
        "unique",
    ),
    (
        "rules: [{service: a, match: {headers: {h: {regex: »\"[z-a]\"}}}, route: [{}]}]",
        "bad-regex rules[0].match[0].headers.h.regex",
        "regular expression",
    ),
    (
        "rules: [{service: a, match: {query: {q: {regex: »\"(?=a)\"}}}, route: [{}]}]",
        "bad-regex rules[0].match[0].query.q.regex",
        "look-around",
    ),
    (
        "rules: [{service: a, match: {authority: »\"a:80\"}, route: [{}]}]",
        "bad-value rules[0].match[0].authority",
        "a",
    ),
    (
        "policies: [{service: a, balance: random}, »{service: a, balance: random}]",
        "duplicate policies[1]",
        "one policy",
    ),
    (
        "workloads: [{name: w, pid: 1}]\ninbound: [{name: x, ports: [80]}, {name: »x}]",
        "duplicate inbound[1].name",
        "unique",
    ),
    (
        "workloads: [{name: w, pid: 1}]\ninbound: [{action: »pass, allow: {cidr: 10.0.0.0/8}}]",
        "needs-capture inbound[0].action",
        "action: capture",
    ),
    (
        "workloads: [{name: w, pid: 1}]\ninbound: [{action: »deny, breaker: {max-requests: 1}}]",
        "needs-capture inbound[0].action",
        "action: capture",
    ),
    (
        "workloads: [{name: w, pid: 1}]\ninbound: [{deny: {»source: {}}}]",
        "empty-source inbound[0].deny[0].source",
        "workload",
    ),
    (
        "workloads: [{name: w, pid: 1}]\ninbound: [{allow: [»{}]}]",
        "missing-field inbound[0].allow[0]",
        "at least one of",
    ),
    (
        "workloads: [{name: w, pid: 1}]\ninbound: [{breaker: »{}}]",
        "missing-field inbound[0].breaker",
        "at least one of",
    ),
    (
        "workloads: [{name: w, pid: 1}]\ninbound: [{rate-limit: {rate: 1/s, key: [source.workload, »path]}}]",
        "bad-key inbound[0].rate-limit[0].key[1]",
        "source.workload",
    ),
    (
        "policies: [{service: a, breaker: {ejection: {base: 10s, max: »5s}}}]",
        "limit-conflict policies[0].breaker.ejection.max",
        "at least",
    ),
    (
        "policies: [{service: a, rate-limit: [{name: x, rate: 1/s}, {name: »x, rate: 2/s}]}]",
        "duplicate policies[0].rate-limit[1].name",
        "unique",
    ),
    (
        "workloads: [{name: w, pid: 1}, {name: »w, pid: 2}]",
        "duplicate workloads[1].name",
        "unique",
    ),
    (
        "workloads: [{name: w, pid: 1}, {name: x, pid: »1}]",
        "duplicate workloads[1].pid",
        "alone",
    ),
    (
        "workloads: [{name: w, netns: /n}, {name: x, netns: »/n}]",
        "duplicate workloads[1].netns",
        "alone",
    ),
    (
        "outbound: [{cidr: 10.0.0.0/8, action: pass}, {cidr: »10.0.0.0/8, action: deny}]",
        "duplicate outbound[1].cidr",
        "one decision",
    ),
    (
        "outbound: [{cidr: 10.0.0.0/8, protocol: udp, action: pass}, {cidr: 10.0.0.0/8, action: deny}, \
         {cidr: »10.0.0.0/8, protocol: any, action: deny}]",
        "duplicate outbound[2].cidr",
        "one decision",
    ),
    (
        "attach: [a, »a]",
        "nested-attach attach[1]",
        "none is inside",
    ),
    (
        "agent: {limits: {target-bytes-max: »32KiB, head-bytes-max: 16KiB}}",
        "limit-conflict agent.limits.target-bytes-max",
        "head",
    ),
    (
        "agent: {limits: {upstream-connections-max: »10}}",
        "limit-conflict agent.limits.upstream-connections-max",
        "idle",
    ),
];

/// The one problem of a snippet that stands in a file: `LINE:COLUMN code field`, wanted and found.
fn at_the_mark(before: &str, snippet: &str, wanted: &str) -> (config::Report, String, Vec<String>) {
    let text = format!("{before}{snippet}\n");
    let up_to_mark = text.split('»').next().unwrap();
    let line = up_to_mark.lines().count();
    let column = up_to_mark.lines().next_back().unwrap().chars().count() + 1;
    let report = config::examine_text("mesh.yaml", &text.replace('»', "")).report;
    let found = short(&report);
    (report, format!("{line}:{column} {wanted}"), found)
}

#[test]
fn mistakes_are_named_at_their_place_with_what_would_be_right() {
    let general = MISTAKES
        .iter()
        .map(|row| (format!("{HEAD}{SERVICES}"), row));
    let services = SERVICE_MISTAKES
        .iter()
        .map(|row| (format!("{HEAD}services: ["), row));
    for (before, (snippet, wanted, hint)) in general.chain(services) {
        let close = if before.ends_with('[') { "]" } else { "" };
        let (report, wanted, found) = at_the_mark(&before, &format!("{snippet}{close}"), wanted);
        assert!(report.has_errors());
        assert_eq!(found, [wanted], "\n{}", report.render(false));
        let expected = report.problems[0].expected.clone().unwrap_or_default();
        assert!(expected.contains(hint), "{hint:?} is not in {expected:?}");
    }
}

/// As above, for the services themselves.
const SERVICE_MISTAKES: &[(&str, &str, &str)] = &[
    ("»{name: x}", "missing-field services[0].ports", "a list"),
    (
        "»{ports: [{number: 1}]}",
        "missing-field services[0].name",
        "a name",
    ),
    (
        "{name: x, ports: »[]}",
        "bad-count services[0].ports",
        "at least 1",
    ),
    (
        "{name: x, ports: [{number: »65536}]}",
        "out-of-range services[0].ports[0].number",
        "65535",
    ),
    (
        "{name: x, ports: [{number: 1, protocol: »https}]}",
        "bad-value services[0].ports[0].protocol",
        "`http`",
    ),
    (
        "{name: x, ports: [{number: 1}, {number: »1, name: b}]}",
        "duplicate services[0].ports[1].number",
        "once",
    ),
    (
        "{name: x, ports: [{number: 1, name: b}, {number: 2, name: »b}]}",
        "duplicate services[0].ports[1].name",
        "once",
    ),
    (
        "{name: x, hostnames: [»\"x:80\"], ports: [{number: 1}]}",
        "bad-value services[0].hostnames[0]",
        "without scheme and port",
    ),
    (
        "{name: x, hostnames: [»\"*.x\"], ports: [{number: 1}]}",
        "bad-value services[0].hostnames[0]",
        "wildcards",
    ),
    (
        "{name: x, addresses: [»10.0.0], ports: [{number: 1}]}",
        "bad-value services[0].addresses[0]",
        "",
    ),
    (
        "{name: x, addresses: [»0.0.0.0], ports: [{number: 1}]}",
        "bad-address services[0].addresses[0]",
        "route",
    ),
    (
        "{name: x, addresses: [»\"::1\"], ports: [{number: 1}]}",
        "bad-address services[0].addresses[0]",
        "route",
    ),
    (
        "{name: x, addresses: [»169.254.1.1], ports: [{number: 1}]}",
        "bad-address services[0].addresses[0]",
        "route",
    ),
    (
        "{name: x, addresses: [»\"fe80::1\"], ports: [{number: 1}]}",
        "bad-address services[0].addresses[0]",
        "route",
    ),
    (
        "{name: x, addresses: [»224.0.0.1], ports: [{number: 1}]}",
        "bad-address services[0].addresses[0]",
        "route",
    ),
    (
        "{name: x, addresses: [»\"::ffff:10.0.0.1\"], ports: [{number: 1}]}",
        "bad-address services[0].addresses[0]",
        "route",
    ),
    (
        "{name: x, addresses: [10.0.0.1, »10.0.0.1], ports: [{number: 1}]}",
        "duplicate services[0].addresses[1]",
        "once",
    ),
    (
        "{name: x, ports: [{number: 1}], endpoints: [{address: »127.0.0.1}]}",
        "bad-address services[0].endpoints[0].address",
        "dial-from: node",
    ),
    (
        "{name: x, ports: [{number: 1}], endpoints: [{address: 10.0.0.1}, {address: »10.0.0.1}]}",
        "duplicate services[0].endpoints[1].address",
        "once",
    ),
    (
        "{name: x, ports: [{number: 1, name: p}], endpoints: [{address: 10.0.0.1, ports: {q: »2}}]}",
        "unknown-port services[0].endpoints[0].ports.q",
        "p",
    ),
    (
        "{name: x, ports: [{number: 1}]}, {name: »x, ports: [{number: 2}]}",
        "duplicate services[1].name",
        "unique",
    ),
    (
        "{name: x, addresses: [10.0.0.1], ports: [{number: 1}]}, {name: y, addresses: [»10.0.0.1], ports: [{number: 2}, {number: 1}]}",
        "duplicate services[1].addresses[0]",
        "alone",
    ),
];

/// What is taken with a warning: as above, and a word of the message.
const WARNINGS: &[(&str, &str, &str)] = &[
    (
        "rules: [{service: a, route: [{»tags: {v: \"2\"}}]}]",
        "empty-version rules[0].route[0].tags",
        "503",
    ),
    (
        "rules: [{service: a, name: all, route: [{}]}, »{service: a, match: {method: GET}, route: [{}]}]",
        "unreachable-rule rules[1]",
        "`all`",
    ),
    (
        "rules: [»{service: a, match: {method: GET}, route: [{}]}, {service: a, precedence: 1, name: high, route: [{}]}]",
        "unreachable-rule rules[0]",
        "`high`",
    ),
    (
        "rules: [{service: a, match: {path: {prefix: /}}, route: [{}]}, »{service: a, route: [{}]}]",
        "unreachable-rule rules[1]",
        "rule-1",
    ),
    (
        "rules: [{service: t, »match: {method: GET}, route: [{}]}]",
        "unreachable-rule rules[0].match",
        "tcp",
    ),
    (
        "rules: [{service: a, match: {method: »get}, route: [{}]}]",
        "no-effect rules[0].match[0].method[0]",
        "case-sensitive",
    ),
    (
        "rules: [{service: a, »route: [{weight: 0}]}]",
        "no-effect rules[0].route",
        "weights are 0",
    ),
    (
        "policies: [»{service: a}]",
        "no-effect policies[0]",
        "sets nothing",
    ),
    (
        "policies: [{service: t, »retries: {}}]",
        "no-effect policies[0].retries",
        "tcp",
    ),
    (
        "policies: [{service: a, retries: {per-try: »15s}}]",
        "no-effect policies[0].retries.per-try",
        "not shorter",
    ),
];

#[test]
fn doubtful_things_are_warnings_at_their_place() {
    for (snippet, wanted, word) in WARNINGS {
        let (report, wanted, found) = at_the_mark(&format!("{HEAD}{SERVICES}"), snippet, wanted);
        assert!(!report.has_errors(), "{}", report.render(false));
        assert_eq!(found, [wanted], "\n{}", report.render(false));
        assert!(
            report.problems[0].message.contains(word),
            "{}",
            report.render(false)
        );
    }
}

/// Rules that look shadowed and are not.
#[test]
fn rules_that_decide_something_are_not_called_unreachable() {
    for rules in [
        // Another port.
        "[{service: a, port: web, route: [{}]}, {service: t, route: [{}]}]",
        // Behind one that asks something.
        "[{service: a, match: {source: {namespace: x}}, route: [{}]}, {service: a, route: [{}]}]",
        "[{service: a, match: {path: {prefix: /}, method: GET}, route: [{}]}, {service: a, route: [{}]}]",
        // First in the file, last by precedence.
        "[{service: a, precedence: -1, route: [{}]}, {service: a, match: {method: GET}, route: [{}]}]",
    ] {
        let text = format!("{HEAD}{SERVICES}rules: {rules}\n");
        let examined = config::examine_text("mesh.yaml", &text);
        assert!(
            examined.report.is_empty(),
            "{}",
            examined.report.render(false)
        );
    }
}

/// A rule naming a version without endpoints is taken and reported (ACCEPTANCE S6).
#[test]
fn version_without_endpoints_is_a_warning_and_the_rule_stays() {
    let text = format!(
        "{HEAD}services: [{{name: a, addresses: [10.0.0.1], versions: {{v1: {{}}, v2: {{v: \"2\"}}}}, \
         ports: [{{number: 80}}], endpoints: [{{address: 10.1.0.1}}]}}]\n\
         rules: [{{service: a, route: [{{version: v2}}]}}]\n"
    );
    let examined = config::examine_text("mesh.yaml", &text);
    assert_eq!(
        short(&examined.report),
        ["3:64 empty-version services[0].versions.v2"]
    );
    assert_eq!(examined.config.unwrap().model.rules.len(), 1);
}

/// Without it: one broken service makes twenty errors elsewhere.
#[test]
fn what_follows_from_an_error_is_not_said_again() {
    let text = format!(
        "{HEAD}services: [{{name: a, versions: [v1], ports: [{{number: x}}], endpoints: [{{address: y}}]}}]\n\
         rules: [{{service: a, port: 80, route: [{{version: v1}}]}}]\n"
    );
    assert_eq!(
        short(error(&text).report()),
        [
            "3:32 wrong-type services[0].versions",
            "3:55 wrong-type services[0].ports[0].number",
            "3:82 bad-value services[0].endpoints[0].address",
        ]
    );
}

/// Without it: a file of garbage makes a report that fills the memory.
#[test]
fn report_is_bounded_and_says_how_many_more() {
    let mut text = HEAD.to_owned();
    for i in 0..1000 {
        text.push_str(&format!("field-{i}: 1\n"));
    }
    let error = error(&text);
    let report = error.report();
    assert_eq!(
        (report.problems.len(), report.more),
        (config::PROBLEMS_MAX, 800)
    );
    assert!(error.render(false).contains("... and 800 more"));
    // Errors are not pushed out by warnings.
    let mut text = format!("{HEAD}{SERVICES}rules:\n");
    for _ in 0..300 {
        text.push_str("  - {service: a, route: [{weight: 0}]}\n");
    }
    text.push_str("  - {service: a, route: [{version: v9}]}\n");
    let examined = config::examine_text("mesh.yaml", &text);
    assert!(examined.config.is_none());
    assert!(
        examined
            .report
            .problems
            .iter()
            .any(|problem| problem.code == Code::UnknownVersion)
    );
}

/// The names of problems are what scripts compare: a change must be seen in review.
#[test]
fn codes_have_unique_kebab_case_names() {
    let mut names: Vec<_> = Code::ALL.iter().map(|code| code.name()).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    for code in Code::ALL {
        assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        assert!(
            code.name()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit())
        );
    }
}
