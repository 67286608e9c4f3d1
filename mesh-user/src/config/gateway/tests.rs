//! Form, bounds, validation rules, defaults, translation, statuses.

use std::time::Duration;

use crate::{
    config::{Config, Examined, Severity, examine_text},
    model::{
        PathMatch, RetryOn, Rule, Select, ValueMatch,
        action::{Fraction, HeaderEdits, PathRewrite, Rewrite, SessionCarrier, Terminal},
        route_status::RouteStatus,
    },
};

const HEAD: &str = "\
apiVersion: mesh/v1alpha1
kind: MeshConfig
services:
  - {name: web, namespace: shop, addresses: [10.96.0.1], endpoints: [{address: 10.1.0.1}], routable: true,
     ports: [{name: http, number: 80, protocol: http}, {name: any, number: 81}, {name: tcp, number: 82, protocol: tcp}]}
  - {name: next, namespace: shop, addresses: [10.96.0.2], endpoints: [{address: 10.1.0.2}], routable: true,
     ports: [{name: http, number: 80, protocol: http}, {name: tcp, number: 82, protocol: tcp}]}
  - {name: web, namespace: team, addresses: [10.96.0.3], endpoints: [{address: 10.1.0.3}], routable: true,
     ports: [{name: http, number: 80, protocol: http}]}
";

/// An object's head, up to its `spec:`.
fn object(kind: &str, name: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n"
    )
}

/// A route to `shop/web` port 80 (or 82) with these rules, in flow style.
fn route(kind: &str, name: &str, rules: &str) -> String {
    let port = if matches!(kind, "TCPRoute" | "TLSRoute") {
        82
    } else {
        80
    };
    let hostnames = if kind == "TLSRoute" {
        "  hostnames: [a.example]\n"
    } else {
        ""
    };
    format!(
        "{}{hostnames}  parentRefs: [{{group: \"\", kind: Service, name: web, port: {port}}}]\n  rules: {rules}\n",
        object(kind, name)
    )
}

fn http(rules: &str) -> String {
    route("HTTPRoute", "r", rules)
}

fn examine(documents: &str) -> Examined {
    examine_text("mesh.yaml", &format!("{HEAD}{documents}"))
}

fn load(documents: &str) -> Config {
    let examined = examine(documents);
    let shown = examined.report.render(false);
    examined
        .config
        .unwrap_or_else(|| panic!("{documents}\n{shown}"))
}

/// `CODE FIELD` of each problem of a severity.
fn problems(documents: &str, severity: Severity) -> Vec<String> {
    let report = examine(documents).report;
    let problems = report
        .problems
        .iter()
        .filter(|problem| problem.severity == severity);
    problems
        .map(|problem| {
            assert!(problem.line > 0 && problem.column > 0, "{problem:?}");
            format!("{} {}", problem.code.name(), problem.field)
        })
        .collect()
}

fn errors(documents: &str) -> Vec<String> {
    problems(documents, Severity::Error)
}

fn made(config: &Config) -> Vec<&Rule> {
    let mut rules: Vec<&Rule> = config.model.rules.iter().collect();
    rules.sort_by_key(|rule| rule.order());
    rules
}

/// The single rule that a rule of an HTTPRoute becomes.
fn only(rules: &str) -> Rule {
    let config = load(&http(rules));
    let mut rules = config.model.rules.iter();
    let (Some(rule), None) = (rules.next(), rules.next()) else {
        panic!("{:?}", config.model.rules);
    };
    rule.clone()
}

const TO: &str = "backendRefs: [{name: web, port: 80}]";

fn repeat(item: &str, count: usize) -> String {
    let items: Vec<String> = (0..count)
        .map(|n| item.replace('#', &n.to_string()))
        .collect();
    items.join(", ")
}

#[test]
fn gateway_bounds_hold_at_the_bound_and_not_beyond() {
    let rules = |count| http(&format!("[{}]", repeat(&format!("{{{TO}}}"), count)));
    let matches = |count| {
        http(&format!(
            "[{{matches: [{}], {TO}}}]",
            repeat("{path: {value: /a#}}", count)
        ))
    };
    let in_all = |first: usize, more: usize| {
        let of = |count| {
            format!(
                "{{matches: [{}], {TO}}}",
                repeat("{path: {value: /a#}}", count)
            )
        };
        http(&format!("[{}, {}, {}]", of(first), of(64), of(more)))
    };
    let headers = |count| {
        http(&format!(
            "[{{matches: [{{headers: [{}]}}], {TO}}}]",
            repeat("{name: h#, value: x}", count)
        ))
    };
    let query = |count| {
        http(&format!(
            "[{{matches: [{{queryParams: [{}]}}], {TO}}}]",
            repeat("{name: q#, value: x}", count)
        ))
    };
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}}}";
    let filters = |count| http(&format!("[{{filters: [{}], {TO}}}]", repeat(mirror, count)));
    let backends = |count| {
        http(&format!(
            "[{{backendRefs: [{}]}}]",
            repeat("{name: next, port: 80}", count)
        ))
    };
    let edits = |count| {
        let set = repeat("{name: h#, value: x}", count);
        http(&format!(
            "[{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{set}]}}}}], {TO}}}]"
        ))
    };
    let parents = |count: usize| {
        let refs = repeat("{group: \"\", kind: Service, name: s#}", count);
        format!(
            "{}  parentRefs: [{refs}]\n  rules: [{{{TO}}}]\n",
            object("HTTPRoute", "r")
        )
    };
    let weight = |weight: usize| {
        http(&format!(
            "[{{backendRefs: [{{name: next, port: 80, weight: {weight}}}]}}]"
        ))
    };
    let path = |length: usize| {
        http(&format!(
            "[{{matches: [{{path: {{value: /{}}}}}], {TO}}}]",
            "a".repeat(length - 1)
        ))
    };
    let grpc = |count: usize| {
        route(
            "GRPCRoute",
            "g",
            &format!(
                "[{{matches: [{}], {TO}}}]",
                repeat("{method: {service: s#}}", count)
            ),
        )
    };
    for (name, good, bad, field) in [
        ("rules", rules(16), rules(17), "spec.rules"),
        (
            "matches of a rule",
            matches(64),
            matches(65),
            "spec.rules[0].matches",
        ),
        (
            "matches of a route",
            in_all(0, 63),
            in_all(0, 64),
            "spec.rules",
        ),
        (
            "header matches",
            headers(16),
            headers(17),
            "spec.rules[0].matches[0].headers",
        ),
        (
            "query matches",
            query(16),
            query(17),
            "spec.rules[0].matches[0].queryParams",
        ),
        ("filters", filters(16), filters(17), "spec.rules[0].filters"),
        (
            "backends",
            backends(16),
            backends(17),
            "spec.rules[0].backendRefs",
        ),
        (
            "edits",
            edits(16),
            edits(17),
            "spec.rules[0].filters[0].requestHeaderModifier.set",
        ),
        ("parents", parents(32), parents(33), "spec.parentRefs"),
        (
            "weight",
            weight(1_000_000),
            weight(1_000_001),
            "spec.rules[0].backendRefs[0].weight",
        ),
        (
            "path",
            path(1024),
            path(1025),
            "spec.rules[0].matches[0].path.value",
        ),
        ("gRPC matches", grpc(64), grpc(65), "spec.rules[0].matches"),
    ] {
        assert_eq!(errors(&good), [""; 0], "{name}");
        let found = errors(&bad);
        assert!(
            found
                .iter()
                .any(|problem| problem.ends_with(&format!(" {field}"))),
            "{name}: {found:?}"
        );
    }
}

#[test]
fn gateway_paths_that_the_api_server_refuses_are_refused() {
    for (path, good) in [
        ("/", true),
        ("/a/b-c_d.e~!$&'()*+,;=:@", true),
        ("/a%20b", true),
        ("/...", true),
        ("a", false),
        ("", false),
        ("/a//b", false),
        ("/a/./b", false),
        ("/a/../b", false),
        ("/a/.", false),
        ("/a/..", false),
        ("/a%2fb", false),
        ("/a%2Fb", false),
        ("/a#b", false),
        ("/a b", false),
        ("/a?b", false),
        ("/a%2", false),
        ("/a%zz", false),
        ("/ä", false),
    ] {
        for kind in ["Exact", "PathPrefix"] {
            let quoted = path.replace('\'', "''");
            let found = errors(&http(&format!(
                "[{{matches: [{{path: {{type: {kind}, value: '{quoted}'}}}}], {TO}}}]"
            )));
            assert_eq!(found.is_empty(), good, "{path} {kind}: {found:?}");
        }
        // An expression is no path.
        let quoted = path.replace('\'', "''");
        let found = errors(&http(&format!(
            "[{{matches: [{{path: {{type: RegularExpression, value: '{quoted}'}}}}], {TO}}}]"
        )));
        assert_eq!(found, [""; 0], "{path}");
    }
}

/// Each with what would be refused, and where.
#[test]
fn gateway_rules_of_the_crds_are_kept() {
    let redirect = "{type: RequestRedirect, requestRedirect: {hostname: a.b}}";
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: a.b}}";
    let prefix = "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}";
    let edit = "{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}";
    for (rules, wanted) in [
        (
            format!("{{filters: [{redirect}], {TO}}}"),
            "conflict spec.rules[0].filters",
        ),
        (
            format!("{{filters: [{redirect}, {rewrite}]}}"),
            "conflict spec.rules[0].filters[1]",
        ),
        (
            format!("{{filters: [{redirect}, {redirect}]}}"),
            "duplicate spec.rules[0].filters[1]",
        ),
        (
            format!("{{filters: [{edit}, {edit}], {TO}}}"),
            "duplicate spec.rules[0].filters[1]",
        ),
        (
            format!(
                "{{filters: [{prefix}], matches: [{{path: {{value: /a}}}}, {{path: {{value: /b}}}}], {TO}}}"
            ),
            "conflict spec.rules[0].filters[0].urlRewrite.path",
        ),
        (
            format!(
                "{{filters: [{prefix}], matches: [{{path: {{type: Exact, value: /a}}}}], {TO}}}"
            ),
            "conflict spec.rules[0].filters[0].urlRewrite.path",
        ),
        (
            format!(
                "{{matches: [{{path: {{type: Exact, value: /a}}}}], backendRefs: [{{name: web, port: 80, filters: [{prefix}]}}]}}"
            ),
            "conflict spec.rules[0].backendRefs[0].filters[0].urlRewrite.path",
        ),
        (
            format!("{{filters: [{{type: URLRewrite}}], {TO}}}"),
            "missing-field spec.rules[0].filters[0].urlRewrite",
        ),
        (
            format!("{{filters: [{{type: CORS, cors: {{}}, urlRewrite: {{}}}}], {TO}}}"),
            "conflict spec.rules[0].filters[0].urlRewrite",
        ),
        (
            format!(
                "{{filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath}}}}}}], {TO}}}"
            ),
            "missing-field spec.rules[0].filters[0].urlRewrite.path.replaceFullPath",
        ),
        (
            format!(
                "{{filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /, replacePrefixMatch: /}}}}}}], {TO}}}"
            ),
            "conflict spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]}".to_owned(),
            "out-of-range spec.rules[0].filters[0].requestRedirect.statusCode",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {scheme: ftp}}]}".to_owned(),
            "bad-value spec.rules[0].filters[0].requestRedirect.scheme",
        ),
        (
            format!(
                "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: next, port: 80}}, percent: 1, fraction: {{numerator: 1}}}}}}], {TO}}}"
            ),
            "conflict spec.rules[0].filters[0].requestMirror.fraction",
        ),
        (
            format!(
                "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: next, port: 80}}, fraction: {{numerator: 101}}}}}}], {TO}}}"
            ),
            "out-of-range spec.rules[0].filters[0].requestMirror.fraction",
        ),
        (
            format!(
                "{{filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: next}}}}}}], {TO}}}"
            ),
            "missing-field spec.rules[0].filters[0].requestMirror.backendRef.port",
        ),
        (
            format!(
                "{{filters: [{{type: CORS, cors: {{allowOrigins: [\"*\", \"http://a\"]}}}}], {TO}}}"
            ),
            "conflict spec.rules[0].filters[0].cors.allowOrigins",
        ),
        (
            format!("{{filters: [{{type: CORS, cors: {{allowOrigins: [example.org]}}}}], {TO}}}"),
            "bad-value spec.rules[0].filters[0].cors.allowOrigins[0]",
        ),
        (
            format!(
                "{{matches: [{{headers: [{{name: a, value: x}}, {{name: a, value: y}}]}}], {TO}}}"
            ),
            "duplicate spec.rules[0].matches[0].headers[1]",
        ),
        (
            format!("{{matches: [{{headers: [{{name: \"a b\", value: x}}]}}], {TO}}}"),
            "bad-value spec.rules[0].matches[0].headers[0].name",
        ),
        (
            format!("{{matches: [{{headers: [{{name: a}}]}}], {TO}}}"),
            "missing-field spec.rules[0].matches[0].headers[0].value",
        ),
        (
            format!(
                "{{matches: [{{headers: [{{name: a, type: RegularExpression, value: \"(\"}}]}}], {TO}}}"
            ),
            "bad-regex spec.rules[0].matches[0].headers[0].value",
        ),
        (
            format!("{{matches: [{{path: {{type: RegularExpression, value: \"(\"}}}}], {TO}}}"),
            "bad-regex spec.rules[0].matches[0].path.value",
        ),
        (
            format!("{{matches: [{{method: get}}], {TO}}}"),
            "bad-value spec.rules[0].matches[0].method",
        ),
        (
            format!("{{matches: [{{paht: {{}}}}], {TO}}}"),
            "unknown-field spec.rules[0].matches[0].paht",
        ),
        (
            "{backendRefs: [{name: web}]}".to_owned(),
            "missing-field spec.rules[0].backendRefs[0].port",
        ),
        (
            "{backendRefs: [{port: 80}]}".to_owned(),
            "missing-field spec.rules[0].backendRefs[0].name",
        ),
        (
            format!("{{timeouts: {{request: 1s, backendRequest: 2s}}, {TO}}}"),
            "limit-conflict spec.rules[0].timeouts.backendRequest",
        ),
        (
            format!("{{timeouts: {{request: 1.5s}}, {TO}}}"),
            "bad-value spec.rules[0].timeouts.request",
        ),
        (
            format!("{{retry: {{codes: [399]}}, {TO}}}"),
            "out-of-range spec.rules[0].retry.codes[0]",
        ),
        (
            format!("{{sessionPersistence: {{type: Header, cookieConfig: {{}}}}, {TO}}}"),
            "conflict spec.rules[0].sessionPersistence.cookieConfig",
        ),
        (
            format!("{{sessionPersistence: {{cookieConfig: {{lifetimeType: Permanent}}}}, {TO}}}"),
            "missing-field spec.rules[0].sessionPersistence.absoluteTimeout",
        ),
        (
            format!(
                "{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: a, value: \"b\\r\\nc\"}}]}}}}], {TO}}}"
            ),
            "bad-value spec.rules[0].filters[0].requestHeaderModifier.set[0].value",
        ),
    ] {
        assert_eq!(errors(&http(&format!("[{rules}]"))), [wanted], "{rules}");
    }
    // What is allowed beside.
    for rules in [
        format!("{{timeouts: {{request: 0s, backendRequest: 2s}}, {TO}}}"),
        format!("{{timeouts: {{request: 2s, backendRequest: 2s}}, {TO}}}"),
        format!("{{filters: [{prefix}], {TO}}}"),
        format!("{{matches: [{{headers: [{{name: a, value: x}}, {{name: A, value: y}}]}}], {TO}}}"),
        format!(
            "{{sessionPersistence: {{absoluteTimeout: 1h, cookieConfig: {{lifetimeType: Permanent}}}}, {TO}}}"
        ),
    ] {
        assert_eq!(errors(&http(&format!("[{rules}]"))), [""; 0], "{rules}");
    }
    let twice = http(&format!("[{{name: a, {TO}}}, {{name: a, {TO}}}]"));
    assert_eq!(errors(&twice), ["duplicate spec.rules[1].name"]);
    assert_eq!(
        errors(&route(
            "GRPCRoute",
            "g",
            &format!("[{{matches: [{{method: {{}}}}], {TO}}}]")
        )),
        ["missing-field spec.rules[0].matches[0].method"]
    );
    assert_eq!(
        errors(&route(
            "GRPCRoute",
            "g",
            &format!("[{{matches: [{{method: {{service: \"a-b\"}}}}], {TO}}}]")
        )),
        ["bad-value spec.rules[0].matches[0].method.service"]
    );
    assert_eq!(
        errors(&route(
            "GRPCRoute",
            "g",
            &format!("[{{filters: [{rewrite}], {TO}}}]")
        )),
        ["unknown-field spec.rules[0].filters[0].urlRewrite"]
    );
    assert_eq!(
        errors(&route("TCPRoute", "t", "[{backendRefs: []}]")),
        ["bad-count spec.rules[0].backendRefs"]
    );
    let address = route("TLSRoute", "t", "[{backendRefs: [{name: next, port: 82}]}]")
        .replace("a.example", "10.0.0.1");
    assert_eq!(errors(&address), ["bad-value spec.hostnames[0]"]);
    for (refs, wanted) in [
        (
            "{name: web, port: 80}, {name: web, port: 80}",
            vec!["duplicate spec.parentRefs[1]"],
        ),
        (
            "{name: web, port: 80}, {name: web}",
            vec!["conflict spec.parentRefs[1]"],
        ),
        ("{name: web, port: 80}, {name: web, port: 81}", vec![]),
    ] {
        let refs = refs.replace("{name", "{group: \"\", kind: Service, name");
        let text = format!(
            "{}  parentRefs: [{refs}]\n  rules: [{{{TO}}}]\n",
            object("HTTPRoute", "r")
        );
        assert_eq!(errors(&text), wanted, "{refs}");
    }
}

#[test]
fn gateway_objects_that_are_not_ours_are_refused_by_name() {
    for (text, wanted) in [
        (
            "---\napiVersion: apps/v1\nkind: Deployment\n",
            "unknown-kind kind",
        ),
        (
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n",
            "unknown-kind kind",
        ),
        (
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n",
            "unknown-kind kind",
        ),
        (
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\n",
            "unknown-kind kind",
        ),
        (
            "---\napiVersion: gateway.networking.k8s.io/v2\nkind: HTTPRoute\n",
            "unknown-kind apiVersion",
        ),
        (
            "---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: HTTPRoute\n",
            "unknown-kind apiVersion",
        ),
        (
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\n",
            "missing-field spec",
        ),
    ] {
        assert_eq!(errors(text), [wanted], "{text}");
    }
    let second = "---\napiVersion: mesh/v1alpha1\nkind: MeshConfig\n";
    assert_eq!(errors(second), ["yaml-second-document "]);
    let alone = examine_text("x.yaml", &http(&format!("[{{{TO}}}]")));
    assert_eq!(alone.report.problems[0].code.name(), "missing-field");
    let twice = format!(
        "{}{}",
        http(&format!("[{{{TO}}}]")),
        http(&format!("[{{{TO}}}]"))
    );
    let report = examine(&twice).report;
    assert_eq!(report.problems[0].code.name(), "duplicate");
    // Both places: the problem's own, and the first one's in the message.
    assert!(
        report.problems[0].message.contains("mesh.yaml:11:1"),
        "{}",
        report.problems[0].message
    );
}

/// What `kubectl get -o yaml` prints goes in as it is.
#[test]
fn gateway_fields_of_the_cluster_are_taken() {
    let text = "---
apiVersion: v1
kind: List
metadata: {resourceVersion: \"\"}
items:
- apiVersion: gateway.networking.k8s.io/v1beta1
  kind: HTTPRoute
  metadata:
    annotations: {kubectl.kubernetes.io/last-applied-configuration: \"{}\"}
    creationTimestamp: 2025-01-31T12:00:00Z
    finalizers: [x]
    generation: 7
    labels: {app: x}
    managedFields: [{manager: kubectl, fieldsV1: {f:spec: {}}}]
    name: listed
    namespace: shop
    resourceVersion: \"123\"
    uid: 0f1e
  spec:
    parentRefs: [{group: \"\", kind: Service, name: web, port: 80, namespace: null}]
    rules: [{backendRefs: [{group: \"\", kind: Service, name: web, port: 80, weight: 1}]}]
  status: {parents: [{anything: goes}]}
";
    let config = load(text);
    assert_eq!(config.model.rules[0].name, "httproute/shop/listed/0");
    assert_eq!(config.model.routes[0].generation, 7);
    assert!(config.model.routes[0].is_accepted());
    let bad = text
        .replace("2025-01-31T12:00:00Z", "yesterday")
        .replace("status:", "statsu:");
    assert_eq!(
        errors(&bad),
        [
            "bad-value metadata.creationTimestamp",
            "unknown-field statsu"
        ]
    );
    // Every version that is served or was.
    for (kind, versions) in [
        ("HTTPRoute", &["v1", "v1beta1"][..]),
        ("GRPCRoute", &["v1", "v1alpha2"]),
        ("TLSRoute", &["v1", "v1alpha2", "v1alpha3"]),
        ("TCPRoute", &["v1", "v1alpha2"]),
    ] {
        for version in versions {
            let text = route(kind, "r", "[{backendRefs: [{name: next, port: 82}]}]");
            let text = text.replace("k8s.io/v1\n", &format!("k8s.io/{version}\n"));
            assert_eq!(errors(&text), [""; 0], "{kind} {version}");
        }
    }
}

#[test]
fn gateway_defaults_are_those_of_the_api_server() {
    let rule = only("[{backendRefs: [{name: next, port: 80}]}]");
    assert_eq!(rule.matches.len(), 1);
    assert_eq!(
        rule.matches[0].path,
        Some(PathMatch::Prefix("/".to_owned()))
    );
    assert_eq!(rule.route[0].weight, 1);
    assert_eq!(rule.route[0].select, Select::All);
    assert_eq!(rule.port.as_deref(), Some("http"));
    let to = rule.route[0].backend.unwrap();
    assert_eq!((to.service, to.port), (1, 80));
    // The service's own port needs no other's.
    assert_eq!(only(&format!("[{{{TO}}}]")).route[0].backend, None);
    let rule = only(&format!(
        "[{{matches: [{{path: {{value: /a}}, headers: [{{name: X-A, value: b}}], queryParams: [{{name: Q, value: \"1\"}}]}}], {TO}}}]"
    ));
    assert_eq!(
        rule.matches[0].path,
        Some(PathMatch::Prefix("/a".to_owned()))
    );
    assert_eq!(
        *rule.matches[0].headers,
        [("x-a".to_owned(), ValueMatch::Exact("b".to_owned()))]
    );
    assert_eq!(
        *rule.matches[0].query,
        [("Q".to_owned(), ValueMatch::Exact("1".to_owned()))]
    );
    // A route without rules has one that matches everything and goes nowhere.
    let text = format!(
        "{}  parentRefs: [{{group: \"\", kind: Service, name: web, port: 80}}]\n",
        object("HTTPRoute", "r")
    );
    let config = load(&text);
    assert!(matches!(
        config.model.rules[0].route[0].select,
        Select::Invalid(_)
    ));
    // Of header names that are equal without case the first counts.
    let rule = only(&format!(
        "[{{matches: [{{headers: [{{name: a, value: x}}, {{name: A, value: y}}]}}], {TO}}}]"
    ));
    assert_eq!(
        *rule.matches[0].headers,
        [("a".to_owned(), ValueMatch::Exact("x".to_owned()))]
    );
}

#[test]
fn gateway_filters_become_actions() {
    let text = "[{matches: [{path: {value: /a}}], filters: [\
        {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: \"1\"}], add: [{name: X-B, value: \"2\"}], remove: [X-C]}},\
        {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Server]}},\
        {type: URLRewrite, urlRewrite: {hostname: a.b, path: {type: ReplacePrefixMatch, replacePrefixMatch: /z}}},\
        {type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}, percent: 42}},\
        {type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}, fraction: {numerator: 3, denominator: 7}}},\
        {type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}},\
        {type: CORS, cors: {allowOrigins: [\"*\"]}}],\
        timeouts: {request: 10s, backendRequest: 0s}, retry: {codes: [500, 503], attempts: 3, backoff: 100ms},\
        sessionPersistence: {type: Header, sessionName: X-Session, idleTimeout: 1m},\
        backendRefs: [{name: web, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: to, value: web}]}}]}]}]";
    let rule = only(text);
    let extra = rule.extra();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let edits = HeaderEdits {
        set: vec![pair("x-a", "1")],
        add: vec![pair("x-b", "2")],
        remove: vec!["x-c".to_owned()],
    };
    assert_eq!(extra.actions.request_headers, edits);
    assert_eq!(extra.actions.response_headers.remove, ["server"]);
    let rewrite = Rewrite {
        hostname: Some("a.b".to_owned()),
        path: Some(PathRewrite::Prefix("/z".to_owned())),
    };
    assert_eq!(extra.actions.rewrite, Some(rewrite));
    let mirrors: Vec<Fraction> = extra
        .actions
        .mirrors
        .iter()
        .map(|mirror| mirror.fraction)
        .collect();
    let of = |numerator, denominator| Fraction {
        numerator,
        denominator,
    };
    assert_eq!(
        mirrors,
        [of(42, 100), of(3, 7)],
        "the one that leads nowhere is left out"
    );
    let cors = extra.actions.cors.as_ref().unwrap();
    assert_eq!(
        (cors.allow_origins.as_slice(), cors.max_age_s),
        (&["*".to_owned()][..], 5)
    );
    assert_eq!(extra.timeouts.request, Some(Duration::from_secs(10)));
    assert_eq!(extra.timeouts.backend_request, Some(Duration::ZERO));
    let retries = extra.retries.as_ref().unwrap();
    assert_eq!(
        (retries.attempts, retries.statuses.as_slice()),
        (3, &[500, 503][..])
    );
    assert_eq!(retries.backoff, Duration::from_millis(100));
    assert!(retries.backoff_is_least, "Gateway API: a lower bound");
    assert!(retries.on.contains(&RetryOn::PerTryTimeout) && !retries.non_idempotent);
    let session = extra.persistence.as_ref().unwrap();
    assert_eq!(
        (session.name.as_str(), session.carrier),
        ("X-Session", SessionCarrier::Header)
    );
    assert_eq!(session.idle, Some(Duration::from_secs(60)));
    let own = rule.route[0].actions.as_ref().unwrap();
    assert_eq!(own.request_headers.set, [pair("to", "web")]);
    let origin = extra.origin.as_ref().unwrap();
    assert_eq!(
        (origin.kind.as_str(), origin.name.as_str(), origin.rule),
        ("HTTPRoute", "r", 0)
    );

    let rule = only(
        "[{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443}}]}]",
    );
    let Some(Terminal::Redirect(redirect)) = &rule.extra().actions.terminal else {
        panic!("{rule:?}");
    };
    assert_eq!(
        (redirect.status, redirect.port, redirect.scheme.as_deref()),
        (302, Some(8443), Some("https"))
    );
    assert!(rule.route.is_empty());
}

#[test]
fn gateway_filters_that_are_not_known_answer_500() {
    for filter in [
        "{type: ExtensionRef, extensionRef: {group: example.org, kind: Lua, name: x}}",
        "{type: Sorcery}",
    ] {
        let text = http(&format!(
            "[{{filters: [{filter}, {{type: RequestHeaderModifier, requestHeaderModifier: {{remove: [a]}}}}], {TO}}}]"
        ));
        let config = load(&text);
        let rule = &config.model.rules[0];
        assert!(
            matches!(rule.extra().actions.terminal, Some(Terminal::Broken(_))),
            "{rule:?}"
        );
        assert!(
            matches!(rule.route[0].select, Select::Invalid(_)),
            "{rule:?}"
        );
        assert_eq!(
            problems(&text, Severity::Warning),
            ["unresolved-ref spec.rules[0].filters[0]"]
        );
        assert_eq!(
            reason(&config.model.routes[0], "ResolvedRefs"),
            "InvalidKind"
        );
        // Of one backend of two its share only.
        let config = load(&http(&format!(
            "[{{backendRefs: [{{name: web, port: 80, filters: [{filter}]}}, {{name: next, port: 80}}]}}]"
        )));
        let targets = &config.model.rules[0].route;
        assert!(matches!(targets[0].select, Select::Invalid(_)));
        assert_eq!((targets[0].weight, &targets[1].select), (1, &Select::All));
    }
}

fn reason(status: &RouteStatus, kind: &str) -> &'static str {
    status
        .condition(kind)
        .map_or("-", |condition| condition.reason)
}

#[test]
fn gateway_statuses_name_what_is_wrong() {
    for (parent, backend, accepted, resolved) in [
        (
            "name: web",
            "name: web, port: 80",
            "Accepted",
            "ResolvedRefs",
        ),
        (
            "name: web, port: 80",
            "name: web, port: 80",
            "Accepted",
            "ResolvedRefs",
        ),
        (
            "name: web, sectionName: http",
            "name: web, port: 80",
            "Accepted",
            "ResolvedRefs",
        ),
        (
            "name: web, sectionName: http, port: 80",
            "name: web, port: 80",
            "Accepted",
            "ResolvedRefs",
        ),
        (
            "name: web, sectionName: any, port: 80",
            "name: web, port: 80",
            "NoMatchingParent",
            "ResolvedRefs",
        ),
        (
            "name: web, port: 4711",
            "name: web, port: 80",
            "NoMatchingParent",
            "ResolvedRefs",
        ),
        (
            "name: nobody",
            "name: web, port: 80",
            "NoMatchingParent",
            "ResolvedRefs",
        ),
        (
            "name: web, port: 82",
            "name: web, port: 80",
            "NotAllowedByListeners",
            "ResolvedRefs",
        ),
        (
            "name: web, port: 80",
            "name: nobody, port: 80",
            "Accepted",
            "BackendNotFound",
        ),
        (
            "name: web, port: 80",
            "name: web, port: 4711",
            "Accepted",
            "BackendNotFound",
        ),
        (
            "name: web, port: 80",
            "name: web, namespace: team, port: 80",
            "Accepted",
            "RefNotPermitted",
        ),
        (
            "name: web, port: 80",
            "name: web, kind: Nothing, port: 80",
            "Accepted",
            "InvalidKind",
        ),
        (
            "name: web, port: 80",
            "name: web, group: other.example, kind: Service, port: 80",
            "Accepted",
            "InvalidKind",
        ),
    ] {
        let text = format!(
            "{}  parentRefs: [{{group: \"\", kind: Service, {parent}}}]\n  rules: [{{backendRefs: [{{{backend}}}]}}]\n",
            object("HTTPRoute", "r")
        );
        let config = load(&text);
        let [status] = config.model.routes.as_slice() else {
            panic!("{:?}", config.model.routes);
        };
        assert_eq!(reason(status, "Accepted"), accepted, "{parent}");
        assert_eq!(reason(status, "ResolvedRefs"), resolved, "{backend}");
        assert_eq!(status.is_accepted(), accepted == "Accepted");
        let warned = !problems(&text, Severity::Warning).is_empty();
        // A parent without a port takes the ports that fit, and says which do not.
        let fine = accepted == "Accepted" && resolved == "ResolvedRefs" && parent != "name: web";
        assert_eq!(warned, !fine, "{parent}, {backend}");
    }
    // A Gateway is somebody else's: no status, a warning.
    let text = format!(
        "{}  parentRefs: [{{name: gw}}]\n  rules: [{{{TO}}}]\n",
        object("HTTPRoute", "r")
    );
    assert_eq!(load(&text).model.routes, []);
    assert_eq!(
        problems(&text, Severity::Warning),
        ["no-effect spec.parentRefs[0]"]
    );
    let text = format!(
        "{}  hostnames: [a.b]\n  rules: [{{{TO}}}]\n",
        object("HTTPRoute", "r")
    );
    assert_eq!(
        problems(&text, Severity::Warning),
        ["no-effect spec", "no-effect spec.hostnames"]
    );
    // More than there are retries.
    let config = load(&http(&format!("[{{retry: {{attempts: 11}}, {TO}}}]")));
    assert_eq!(
        reason(&config.model.routes[0], "PartiallyInvalid"),
        "UnsupportedValue"
    );
    assert_eq!(
        config.model.rules[0]
            .extra()
            .retries
            .as_ref()
            .unwrap()
            .attempts,
        10
    );
}

#[test]
fn gateway_kinds_conflict_on_a_port_and_both_places_are_told() {
    let any = |text: String| {
        text.replace("port: 80}]\n", "port: 81}]\n")
            .replace("port: 82}]\n", "port: 81}]\n")
    };
    let order = ["GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute"];
    let to = "[{backendRefs: [{name: next, port: 80}]}]";
    for (at, winner) in order.iter().enumerate() {
        for loser in &order[at + 1..] {
            let text = any(format!(
                "{}{}",
                route(loser, "second", to),
                route(winner, "first", to)
            ));
            let examined = examine(&text);
            let config = examined.config.unwrap();
            let of = |kind: &str| {
                config
                    .model
                    .routes
                    .iter()
                    .find(|status| status.kind == kind)
                    .unwrap()
            };
            assert_eq!(
                reason(of(winner), "Accepted"),
                "Accepted",
                "{winner} {loser}"
            );
            assert_eq!(
                reason(of(loser), "Accepted"),
                "Conflicted",
                "{winner} {loser}"
            );
            let kinds: Vec<&str> = config
                .model
                .rules
                .iter()
                .map(|rule| rule.name.split('/').next().unwrap())
                .collect();
            assert_eq!(kinds, [winner.to_lowercase()]);
            let problem = &examined.report.problems[0];
            assert_eq!(problem.code.name(), "route-conflict");
            assert!(
                problem.line > 10 && problem.message.contains("(mesh.yaml:"),
                "{}",
                problem.message
            );
        }
    }
    // For other clients a route of another kind may be in force.
    let consumer = route("HTTPRoute", "mine", to)
        .replace("namespace: shop", "namespace: team")
        .replace("name: web, port", "name: web, namespace: shop, port");
    let config = load(&any(format!(
        "{}{consumer}",
        route("GRPCRoute", "theirs", to)
    )));
    assert!(
        config.model.routes.iter().all(RouteStatus::is_accepted),
        "{:?}",
        config.model.routes
    );
}

#[test]
fn gateway_native_rules_stand_around_routes() {
    let native = "rules:
  - {service: shop/web, name: before, precedence: 1, route: [{}]}
  - {service: shop/web, name: same, match: {path: {prefix: /x}}, route: [{}]}
  - {service: shop/web, name: after, precedence: -1, match: {path: {prefix: /y}}, route: [{}]}
";
    let config = load(&format!(
        "{native}{}",
        http(&format!("[{{matches: [{{path: {{value: /z}}}}], {TO}}}]"))
    ));
    let names: Vec<&str> = made(&config)
        .iter()
        .map(|rule| rule.name.as_str())
        .collect();
    assert_eq!(names, ["before", "httproute/shop/r/0", "same", "after"]);
    // A native rule that never decides because of a route is told.
    let native = "rules:\n  - {service: shop/web, port: http, name: same, route: [{}]}\n";
    let text = format!("{native}{}", http(&format!("[{{{TO}}}]")));
    let report = examine(&text).report;
    assert_eq!(report.problems[0].code.name(), "unreachable-rule");
    assert_eq!(report.problems[0].field, "rules[0]");
    assert!(
        report.problems[0]
            .message
            .contains("`httproute/shop/r/0` comes before it")
    );
}

/// Without it: `mesh analyze` points at a place that is in no file.
#[test]
fn gateway_findings_of_the_analysis_point_into_the_route() {
    let rules = format!(
        "[{{matches: [{{path: {{value: /a}}}}], {TO}}},\n    {{matches: [{{path: {{value: /a}}}}], {TO}}},\n    \
         {{matches: [{{path: {{value: /b}}}}], backendRefs: [{{name: web, port: 80, weight: 30}}, {{name: next, port: 80, weight: 30}}]}}]"
    );
    let text = format!("{HEAD}{}", http(&rules));
    let report = crate::config::analyze_text("mesh.yaml", &text).report;
    let line = |of: &str| 1 + text.lines().position(|line| line.contains(of)).unwrap();
    let first = line("rules: [");
    for (code, field, at) in [
        ("shadowed-rule", "spec.rules[1]", first + 1),
        ("weights-sum", "spec.rules[2]", first + 2),
        ("no-catch-all", "spec.rules[2]", first + 2),
    ] {
        let mut found = report.problems.iter();
        let problem = found.find(|problem| problem.code.name() == code);
        let problem = problem.unwrap_or_else(|| panic!("{code}: {}", report.render(false)));
        assert_eq!(
            (
                problem.field.as_str(),
                problem.line as usize,
                problem.file.as_str()
            ),
            (field, at, "mesh.yaml"),
            "{code}: {}",
            problem.message
        );
    }
    let shadowed = report
        .problems
        .iter()
        .find(|p| p.code.name() == "shadowed-rule");
    let message = &shadowed.unwrap().message;
    let place = "`httproute/shop/r/0` (HTTPRoute shop/r, spec.rules[0]) has matched before";
    assert!(message.contains(place), "{message}");
}

#[test]
fn gateway_matches_of_one_rule_stand_where_their_rank_is() {
    let config = load(&http(&format!(
        "[{{name: first, matches: [{{path: {{value: /}}}}, {{path: {{type: Exact, value: /a}}}}], {TO}}}, \
         {{matches: [{{path: {{value: /b}}}}, {{path: {{value: /bb}}}}], {TO}}}]"
    )));
    let found: Vec<(&str, usize)> = config
        .model
        .rules
        .iter()
        .map(|rule| (rule.name.as_str(), rule.matches.len()))
        .collect();
    assert_eq!(
        found,
        [
            ("httproute/shop/r/first", 1),
            ("httproute/shop/r/1", 2),
            ("httproute/shop/r/first~2", 1)
        ]
    );
}

#[test]
fn gateway_tls_routes_match_server_names_the_exact_ones_first() {
    let text = route("TLSRoute", "t", "[{backendRefs: [{name: next, port: 82}]}]").replace(
        "[a.example]",
        "[\"*.example\", \"*.b.example\", a.b.example]",
    );
    let config = load(&text);
    let mut rules = config.model.rules.iter();
    let (Some(rule), None) = (rules.next(), rules.next()) else {
        panic!("{:?}", config.model.rules);
    };
    let names: Vec<&[String]> = rule
        .matches
        .iter()
        .map(|condition| condition.sni.as_slice())
        .collect();
    assert_eq!(names, [["a.b.example"], ["*.b.example"], ["*.example"]]);
    assert!(
        rule.matches
            .iter()
            .all(|condition| condition.path.is_none())
    );
}

/// A TCPRoute to the service's own port asks for nothing that the kernel can't do.
#[test]
fn gateway_tcp_route_alone_needs_no_proxy() {
    let config = load(&route(
        "TCPRoute",
        "t",
        "[{backendRefs: [{name: web, port: 82}]}]",
    ));
    let rule = &config.model.rules[0];
    assert!(rule.extra().is_idle() && rule.extra().origin.is_some());
    let insists = HEAD.replace(
        "number: 82, protocol: tcp}]}\n  - {name: next",
        "number: 82, protocol: tcp, path: kernel}]}\n  - {name: next",
    );
    let text = format!(
        "{insists}{}",
        route("TCPRoute", "t", "[{backendRefs: [{name: next, port: 82}]}]")
    );
    let report = examine_text("mesh.yaml", &text).report;
    let found: Vec<(&str, &str)> = report
        .problems
        .iter()
        .map(|problem| (problem.code.name(), problem.field.as_str()))
        .collect();
    assert_eq!(
        found,
        [("needs-proxy", "spec.rules[0]")],
        "{}",
        report.render(false)
    );
}

#[test]
fn gateway_grpc_methods_become_paths() {
    for (method, path) in [
        (
            "service: a.B, method: C",
            PathMatch::Exact("/a.B/C".to_owned()),
        ),
        (
            "service: .a.B, method: C",
            PathMatch::Exact("/a.B/C".to_owned()),
        ),
        ("service: a.B", PathMatch::Prefix("/a.B".to_owned())),
        ("method: C", PathMatch::Regex("/[^/]+/C".to_owned())),
        (
            "type: RegularExpression, service: \"a[.].*\"",
            PathMatch::Regex("/(?:a[.].*)/[^/]+".to_owned()),
        ),
        (
            "type: RegularExpression, service: \"a|b\", method: \"c|d\"",
            PathMatch::Regex("/(?:a|b)/(?:c|d)".to_owned()),
        ),
    ] {
        let config = load(&route(
            "GRPCRoute",
            "g",
            &format!("[{{matches: [{{method: {{{method}}}}}], {TO}}}]"),
        ));
        assert_eq!(
            config.model.rules[0].matches[0].path,
            Some(path),
            "{method}"
        );
    }
}

#[test]
fn native_targets_name_services_ports_and_endpoints() {
    let rules = |target: &str| {
        format!(
            "rules:\n  - {{service: shop/web, port: http, match: {{path: {{prefix: /x}}}}, route: [{{{target}}}]}}\n"
        )
    };
    let target = |text: &str| load(&rules(text)).model.rules[0].route[0].clone();
    let to = |text: &str| target(text).backend.map(|to| (to.service, to.port));
    assert_eq!(to("service: shop/next, port: 80"), Some((1, 80)));
    assert_eq!(to("service: next, port: tcp"), Some((1, 82)));
    assert_eq!(to("service: team/web"), Some((2, 80)), "its only port");
    assert_eq!(to("port: any"), Some((0, 81)));
    assert_eq!(to(""), None);
    let endpoints = target("endpoints: [\"10.1.0.1:80\", \"[fd00::1]:8080\"]").select;
    assert_eq!(
        endpoints,
        Select::Endpoints(vec![
            "10.1.0.1:80".parse().unwrap(),
            "[fd00::1]:8080".parse().unwrap()
        ])
    );
    for (text, wanted) in [
        ("service: shop/next", "missing-field rules[0].route[0].port"),
        (
            "service: shop/nobody, port: 80",
            "unknown-service rules[0].route[0].service",
        ),
        (
            "service: shop/next, port: 4711",
            "unknown-port rules[0].route[0].port",
        ),
        (
            "service: shop/next, port: httpp",
            "unknown-port rules[0].route[0].port",
        ),
        (
            "service: shop/next, port: 80, version: v1",
            "unknown-version rules[0].route[0].version",
        ),
        (
            "endpoints: [\"10.1.0.1\"]",
            "bad-value rules[0].route[0].endpoints[0]",
        ),
        (
            "endpoints: [\"10.1.0.1:0\"]",
            "bad-value rules[0].route[0].endpoints[0]",
        ),
        ("endpoints: []", "bad-count rules[0].route[0].endpoints"),
        (
            "endpoints: [\"10.1.0.1:80\"], tags: {a: b}",
            "conflict rules[0].route[0].endpoints",
        ),
    ] {
        assert_eq!(errors(&rules(text)), [wanted], "{text}");
    }
    let unknown = rules("endpoints: [\"10.9.9.9:80\"]");
    assert_eq!(
        problems(&unknown, Severity::Warning),
        ["empty-version rules[0].route[0].endpoints[0]"]
    );
}

/// Without it: bytes of a route could panic the agent.
#[test]
fn gateway_documents_that_were_mangled_never_panic() {
    let whole = http(
        "[{name: a, matches: [{path: {type: Exact, value: /a}, headers: [{name: b, value: c}], method: GET}], \
         filters: [{type: RequestMirror, requestMirror: {backendRef: {name: next, port: 80}, percent: 1}}], \
         timeouts: {request: 1s}, backendRefs: [{name: web, port: 80, weight: 2}]}]",
    );
    let mut refused = 0;
    for at in 0..whole.len() {
        for noise in ["", "\0", "[", "}", ": ", "-1", "ä", "~", "&a ", "\n---\n"] {
            let mut text = whole.clone();
            text.replace_range(at..=at, noise);
            let examined = examine(&text);
            assert_eq!(examined.config.is_none(), examined.report.has_errors());
            refused += usize::from(examined.config.is_none());
        }
    }
    assert!(refused > 1000, "{refused}");
}
