use crate::config::{Code, Severity, analyze_text};

const HEAD: &str = "apiVersion: mesh/v1alpha1\nkind: MeshConfig\n";
const WEB: &str = "services:
  - name: web
    addresses: [10.0.0.1]
    ports: [{name: http, number: 80, protocol: http}, {name: raw, number: 81, protocol: tcp}]
    versions: {v1: {version: v1}, v2: {version: v2}}
    endpoints: [{address: 10.1.0.1, tags: {version: v1}}, {address: 10.1.0.2, tags: {version: v2}}]
";
const BOTH: &str = "[{version: v1, weight: 90}, {version: v2, weight: 10}]";

/// Codes with the fields that they are about.
fn found(rest: &str) -> Vec<(Code, String)> {
    let examined = analyze_text("test", &format!("{HEAD}{WEB}{rest}"));
    assert!(
        examined.config.is_some(),
        "{}",
        examined.report.render(false)
    );
    let problems = examined.report.problems.iter();
    problems
        .map(|problem| {
            assert!(problem.line > 0, "{problem:?}");
            (problem.code, problem.field.clone())
        })
        .collect()
}

fn rules(rules: &[&str]) -> Vec<(Code, String)> {
    let lines: Vec<String> = rules
        .iter()
        .map(|rule| format!("  - {{service: web, {rule}}}\n"))
        .collect();
    let last = format!("  - {{service: web, name: last, precedence: -9, route: {BOTH}}}\n");
    found(&format!("rules:\n{}{last}", lines.concat()))
}

/// One rule in front, one behind: what is said of the one behind.
fn behind(first: &str, second: &str) -> Option<Code> {
    let route = "route: [{version: v1}]";
    let found = rules(&[
        &format!("name: a, match: [{first}], {route}"),
        &format!("name: b, match: [{second}], {route}"),
    ]);
    let of_b = found
        .into_iter()
        .find(|(_, field)| field.starts_with("rules[1]"));
    of_b.map(|(code, _)| code)
}

#[test]
fn analysis_of_a_sound_configuration_finds_nothing() {
    assert_eq!(rules(&[]), []);
    assert_eq!(
        rules(&["name: beta, match: [{headers: {x-user: beta}}], route: [{version: v2}]"]),
        []
    );
}

#[test]
fn rule_that_an_earlier_one_covers_is_shadowed() {
    for (first, second) in [
        ("{path: {prefix: /a}}", "{path: {prefix: /a/b}}"),
        ("{path: {prefix: /a}}", "{path: {exact: /a}}"),
        (
            "{path: {prefix: /a/}}",
            "{path: {exact: /a/b}, method: GET}",
        ),
        (
            "{path: {exact: /a}}",
            "{path: {exact: /a}, headers: {x: y}}",
        ),
        ("{path: {regex: '/a[0-9]+'}}", "{path: {exact: /a12}}"),
        (
            "{path: {regex: '/a[0-9]+'}}",
            "{path: {regex: '/a[0-9]+'}, method: PUT}",
        ),
        ("{method: [GET, HEAD]}", "{method: GET}"),
        ("{headers: {x: {present: true}}}", "{headers: {x: y, z: z}}"),
        (
            "{headers: {x: {prefix: a}}}",
            "{headers: {x: {prefix: ab}}}",
        ),
        ("{headers: {x: {regex: 'a.*'}}}", "{headers: {x: abc}}"),
        ("{query: {q: {present: true}}}", "{query: {q: '1'}}"),
        ("{authority: {prefix: web}}", "{authority: web.shop}"),
        (
            "{source: {tags: {a: b}}}",
            "{source: {tags: {a: b, c: d}, namespace: x}}",
        ),
        (
            "{source: {namespace: x}}",
            "{source: {namespace: x, workload: y}}",
        ),
    ] {
        assert_eq!(
            behind(first, second),
            Some(Code::ShadowedRule),
            "{first} before {second}"
        );
    }
}

#[test]
fn rule_that_may_still_decide_is_not_shadowed() {
    for (first, second) in [
        ("{path: {prefix: /a/b}}", "{path: {prefix: /a}}"),
        ("{path: {prefix: /a}}", "{path: {prefix: /ab}}"),
        ("{path: {exact: /a}}", "{path: {prefix: /a}}"),
        ("{path: {regex: '/a[0-9]+'}}", "{path: {exact: /ax}}"),
        ("{path: {regex: '/a.*'}}", "{path: {regex: '/a.b'}}"),
        ("{method: GET}", "{method: [GET, HEAD]}"),
        ("{method: GET}", "{path: {prefix: /x}}"),
        ("{headers: {x: y, z: z}}", "{headers: {x: y}}"),
        ("{headers: {x: {present: false}}}", "{headers: {x: y}}"),
        (
            "{headers: {x: {present: true}}}",
            "{headers: {x: {present: false}}}",
        ),
        ("{query: {q: a}}", "{query: {q: {prefix: a}}}"),
        ("{source: {tags: {a: b, c: d}}}", "{source: {tags: {a: b}}}"),
        ("{source: {namespace: x}}", "{source: {workload: y}}"),
    ] {
        assert_eq!(behind(first, second), None, "{first} before {second}");
    }
}

#[test]
fn rule_on_another_port_hides_only_what_is_on_its_own() {
    let narrow = "match: [{source: {namespace: x}}], route: [{version: v1}]";
    let hidden = |first: &str, second: &str| {
        let found = rules(&[
            &format!("name: a, {first} {narrow}"),
            &format!("name: b, {second} {narrow}"),
        ]);
        found.iter().any(|(code, _)| *code == Code::ShadowedRule)
    };
    assert!(hidden("", "port: http,"));
    assert!(hidden("port: http,", "port: http,"));
    assert!(!hidden("port: http,", ""), "it decides on the other port");
    assert!(!hidden("port: http,", "port: raw,"));
}

#[test]
fn alternative_that_another_covers_is_named_by_its_place() {
    let found = rules(&[
        "name: a, match: [{path: {prefix: /a}}, {path: {exact: /a/b}}], route: [{version: v1}]",
        "name: b, match: [{path: {exact: /a/c}}, {path: {exact: /d}}], route: [{version: v1}]",
    ]);
    assert_eq!(
        found,
        [
            (Code::ShadowedMatch, "rules[0].match[1]".to_owned()),
            (Code::ShadowedMatch, "rules[1].match[0]".to_owned()),
        ]
    );
}

#[test]
fn version_and_policy_that_nothing_reaches_are_named() {
    let only_v1 = "rules: [{service: web, route: [{version: v1}]}]\n";
    assert_eq!(
        found(only_v1),
        [(Code::UnusedVersion, "services[0].versions.v2".to_owned())]
    );
    let policy = format!("{only_v1}policies: [{{service: web, version: v2, balance: random}}]\n");
    assert!(found(&policy).contains(&(Code::UnusedPolicy, "policies[0]".to_owned())));
    let by_tags = "rules: [{service: web, route: [{version: v1, weight: 50}, \
                   {tags: {version: v2}, weight: 50}]}]\n";
    assert_eq!(found(by_tags), []);
}

#[test]
fn weights_that_look_like_percentages_and_are_none_are_named() {
    let weights = |a: u32, b: u32| {
        let route = format!("[{{version: v1, weight: {a}}}, {{version: v2, weight: {b}}}]");
        let found = found(&format!("rules: [{{service: web, route: {route}}}]\n"));
        found
            .iter()
            .any(|(code, field)| *code == Code::WeightsSum && field == "rules[0].route")
    };
    assert!(weights(90, 20) && weights(90, 9) && weights(1000, 1));
    assert!(!weights(90, 10) && !weights(3, 1) && !weights(100, 0));
}

#[test]
fn port_whose_rules_leave_something_over_is_named() {
    let rule = "match: [{path: {prefix: /a}}], route: [{version: v1, weight: 50}, \
                {version: v2, weight: 50}]";
    let found = found(&format!("rules: [{{service: web, port: http, {rule}}}]\n"));
    assert_eq!(found, [(Code::NoCatchAll, "rules[0]".to_owned())]);
}

#[test]
fn service_without_endpoints_or_ready_ones_is_named() {
    let text = |endpoints: &str| {
        format!(
            "{HEAD}services: [{{name: a, addresses: [10.0.0.1], ports: [{{number: 80}}], \
             endpoints: {endpoints}}}]\n"
        )
    };
    let codes = |text: &str| -> Vec<Code> {
        let report = analyze_text("test", text).report;
        report.problems.iter().map(|problem| problem.code).collect()
    };
    assert!(codes(&text("[]")).contains(&Code::NoEndpoints));
    assert_eq!(
        codes(&text("[{address: 10.1.0.1, healthy: false}]")),
        [Code::NoReadyEndpoints]
    );
    assert_eq!(codes(&text("[{address: 10.1.0.1}]")), []);
}

#[test]
fn analysis_of_an_invalid_file_says_only_why_it_is_invalid() {
    let examined = analyze_text(
        "test",
        &format!("{HEAD}{WEB}rules: [{{service: nobody, route: []}}]"),
    );
    assert!(examined.config.is_none());
    let mut problems = examined.report.problems.iter();
    assert!(problems.all(|problem| problem.severity == Severity::Error));
}

/// Without a bound the comparison of all with all would take hours.
#[test]
fn analysis_of_many_similar_rules_is_bounded_and_says_so() {
    let mut text = format!("{HEAD}{WEB}rules:\n");
    for n in 0..20_000 {
        text.push_str(&format!(
            "  - {{service: web, match: [{{headers: {{x-user: u{n}}}}}], route: [{{version: v1}}]}}\n"
        ));
    }
    let report = analyze_text("test", &text).report;
    assert!(
        report
            .problems
            .iter()
            .any(|problem| problem.code == Code::AnalysisBounded)
    );
}
