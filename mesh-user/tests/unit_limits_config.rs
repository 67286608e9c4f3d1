//! Rate limits in the file: what is refused, where, and what would be right.

use mesh_user::config;

const HEAD: &str = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\n";

/// On one line: snippets begin at line 4.
const SERVICES: &str = "services: [{name: a, addresses: [10.0.0.1], ports: [{name: web, number: 80, protocol: http}], endpoints: [{address: 10.1.0.1}]}, {name: t, addresses: [10.0.0.2], ports: [{number: 90, protocol: tcp}], endpoints: [{address: 10.1.0.2}]}]\n";

const STORES: &str = "rate-limit-services: [{name: r, type: redis, address: 10.0.0.5:6379}, {name: e, type: envoy, address: /run/rls.sock}]\n";

/// `LINE:COLUMN code field` of each problem; what stands without a list is its first item.
fn found(snippet: &str) -> Vec<String> {
    let text = format!("{HEAD}{SERVICES}{snippet}");
    let examined = config::examine_text("mesh.yaml", &text);
    let problems = examined.report.problems.iter();
    problems
        .map(|p| {
            let field = p.field.to_string().replace("rate-limit[0]", "rate-limit");
            let field = field.replace("match[0]", "match");
            format!("{}:{} {} {field}", p.line, p.column, p.code.name())
        })
        .collect()
}

#[test]
fn each_mistake_in_a_limit_is_named_at_its_place() {
    let mut wrong = Vec::new();
    for (limit, wanted) in [
        ("{}", vec!["missing-field policies[0].rate-limit"]),
        (
            "{rate: 1/s, concurrent: 3}",
            vec!["conflict policies[0].rate-limit.concurrent"],
        ),
        (
            "{concurrent: 3, unit: bytes}",
            vec!["conflict policies[0].rate-limit.concurrent"],
        ),
        (
            "{concurrent: 3, burst: 5}",
            vec!["conflict policies[0].rate-limit.concurrent"],
        ),
        (
            "{concurrent: 0}",
            vec!["out-of-range policies[0].rate-limit.concurrent"],
        ),
        (
            "{rate: 1/s, unit: seconds}",
            vec!["bad-value policies[0].rate-limit.unit"],
        ),
        (
            "{rate: 1/s, answer: {status: 399}}",
            vec!["out-of-range policies[0].rate-limit.answer.status"],
        ),
        (
            "{rate: 1/s, key: [source.colour]}",
            vec!["bad-value policies[0].rate-limit.key[0]"],
        ),
        (
            "{rate: 1/s, overrides: [{when: {method: PUT}}]}",
            vec!["missing-field policies[0].rate-limit.overrides[0]"],
        ),
        (
            "{rate: 1/s, overrides: [{when: {}, rate: 1/s}]}",
            vec!["limit-conflict policies[0].rate-limit.overrides[0].when"],
        ),
        (
            "{rate: 1/s, overrides: [{when: {colour: x}, rate: 1/s}]}",
            vec!["bad-value policies[0].rate-limit.overrides[0].when.colour"],
        ),
        (
            "{rate: 1/s, overrides: [{when: {method: PUT}, concurrent: 1}]}",
            vec!["conflict policies[0].rate-limit.overrides[0].concurrent"],
        ),
        (
            "{concurrent: 1, overrides: [{when: {method: PUT}, rate: 1/s}]}",
            vec!["conflict policies[0].rate-limit.overrides[0].rate"],
        ),
        (
            "{rate: 1/s, match: {path: {regex: \"(\"}}}",
            vec!["bad-regex policies[0].rate-limit.match.path.regex"],
        ),
        (
            "{rate: 1/s, global: {service: x}}",
            vec!["unknown-service policies[0].rate-limit.global.service"],
        ),
        (
            "[{name: x, rate: 1/s}, {name: x, rate: 2/s}]",
            vec!["duplicate policies[0].rate-limit[1].name"],
        ),
    ] {
        let found = found(&format!(
            "policies: [{{service: a, rate-limit: {limit}}}]\n"
        ));
        let names = |list: &[String]| -> Vec<String> {
            list.iter()
                .map(|line| line.split_once(' ').unwrap().1.to_owned())
                .collect()
        };
        let wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
        if names(&found) != wanted {
            wrong.push(format!("{limit}: {found:?}, not {wanted:?}"));
        }
        assert!(
            found.iter().all(|line| line.starts_with("4:")),
            "{limit}: {found:?}"
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_kind_of_store_does_not_have_is_refused_by_name() {
    let with = |snippet: &str| found(&format!("{STORES}{snippet}"));
    let limit =
        |rest: &str| format!("policies: [{{service: a, rate-limit: {{rate: 1/s, {rest}}}}}]\n");
    assert_eq!(with(&limit("global: {service: r}")), Vec::<String>::new());
    assert_eq!(with(&limit("global: {service: e}")), Vec::<String>::new());
    for (rest, field) in [
        (
            "global: {service: e, lease: {share-percent: 5}}",
            "global.lease",
        ),
        (
            "global: {service: r, descriptor: [{key: k, value: v}]}",
            "global.descriptor",
        ),
        ("global: {service: r, hits: 2}", "global.hits"),
        ("unit: bytes, global: {service: r}", "global"),
        (
            "overrides: [{when: {method: PUT}, rate: 2/s}], global: {service: e}",
            "global",
        ),
    ] {
        let found = with(&limit(rest));
        assert_eq!(found.len(), 1, "{rest}: {found:?}");
        let wanted = format!("conflict policies[0].rate-limit.{field}");
        assert!(found[0].ends_with(&wanted), "{rest}: {found:?}");
    }
    for (field, value, kind) in [
        ("database", "1", "envoy"),
        ("username", "x", "envoy"),
        ("password-file", "/x", "envoy"),
        ("prefix", "x", "envoy"),
        ("tls", "x", "envoy"),
        ("domain", "x", "redis"),
    ] {
        let found = found(&format!(
            "rate-limit-services: [{{name: s, type: {kind}, address: /s, {field}: {value}}}]\n"
        ));
        assert_eq!(found.len(), 1, "{field}: {found:?}");
        let wanted = format!("conflict rate-limit-services[0].{field}");
        assert!(found[0].ends_with(&wanted), "{found:?}");
    }
    for address in ["redis:6379", "10.0.0.5", "10.0.0.5:99999", "x.sock"] {
        let found = found(&format!(
            "rate-limit-services: [{{name: s, type: redis, address: \"{address}\"}}]\n"
        ));
        assert_eq!(found.len(), 1, "{address}: {found:?}");
        assert!(
            found[0].contains("bad-value rate-limit-services[0].address"),
            "{found:?}"
        );
    }
    let twice = "rate-limit-services: [{name: s, type: redis, address: /s}, {name: s, type: redis, address: /t}]\n";
    assert!(found(twice)[0].contains("duplicate rate-limit-services[1].name"));
}

#[test]
fn inbound_rules_limit_requests_of_this_node_only() {
    let with = |limit: &str| {
        found(&format!(
            "{STORES}workloads: [{{name: w, netns: /run/netns/w}}]\ninbound: [{{workload: w, rate-limit: {limit}}}]\n"
        ))
    };
    assert_eq!(
        with("{rate: 1/s, dry-run: true, key: [source.workload]}"),
        Vec::<String>::new()
    );
    for (limit, field) in [
        ("{concurrent: 1}", "concurrent"),
        ("{rate: 1/s, unit: bytes}", "unit"),
        ("{rate: 1/s, global: {service: r}}", "global"),
        ("{rate: 1/s, match: {method: PUT}}", "match"),
    ] {
        let found = with(limit);
        assert_eq!(found.len(), 1, "{limit}: {found:?}");
        let wanted = format!("needs-proxy inbound[0].rate-limit.{field}");
        assert!(found[0].ends_with(&wanted), "{limit}: {found:?}");
    }
}

#[test]
fn limits_of_rules_are_read_and_condition_on_http_warns_for_opaque_ports() {
    let text = format!(
        "{HEAD}{SERVICES}rules: [{{service: a, route: [{{}}], rate-limit: {{rate: 5/m, burst: 9}}}}]\n"
    );
    let config = config::parse("mesh.yaml", &text).unwrap();
    let limits = &config.model.rules[0].extra().rate_limits;
    assert_eq!(
        (limits[0].requests, limits[0].burst, &*limits[0].name),
        (5, 9, "limit-1")
    );
    let warned = found("policies: [{service: t, rate-limit: {rate: 1/s, match: {method: PUT}}}]\n");
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].ends_with("no-effect policies[0].rate-limit.match"),
        "{warned:?}"
    );
}
