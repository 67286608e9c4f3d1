//! Server names against the rules one by one, and the cost of many.

use std::time::{Duration, Instant};

use super::super::{
    NoObserver, Reject, Snapshot,
    explain::explain_tls,
    fixture::{PORT, at_ms, compile, get, model, port, rule, rule_of, service, to, workload},
    rng::Rng,
    route::{decide_tcp, decide_tls},
    split::Cursors,
};
use crate::model::{Match, Model, PathMatch, Protocol, Rule, SourceMatch};

fn sni(names: &[&str]) -> Match {
    Match {
        sni: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Match::default()
    }
}

fn with(rules: Vec<Rule>) -> Model {
    let mut web = service(1, 1);
    web.ports = vec![port("tls", 443, Protocol::Tls)];
    let mut model = model(web, rules, Vec::new());
    model.workloads = vec![workload("a", &[]), workload("b", &[])];
    model
}

fn named(name: &str, matches: Vec<Match>) -> Rule {
    rule(name, 0, matches, vec![to("v1", 1)])
}

fn of(snapshot: &Snapshot, source: &str, name: Option<&str>) -> Result<String, Reject> {
    let source = snapshot.source(source);
    let cursors = &mut Cursors::default();
    let plan = decide_tls(snapshot, PORT, source, name, cursors, &mut NoObserver)?;
    Ok(plan
        .rule
        .map_or_else(String::new, |rule| snapshot.rule(rule).name.to_string()))
}

#[test]
fn names_match_exactly_or_by_suffix_of_one_label_or_more() {
    let snapshot = compile(with(vec![
        named("exact", vec![sni(&["a.example", "b.example"])]),
        named("wild", vec![sni(&["*.shop.example"])]),
    ]));
    let rule = |name| of(&snapshot, "default/a", Some(name));
    for (name, expected) in [
        ("a.example", Ok("exact")),
        ("b.example", Ok("exact")),
        ("v1.shop.example", Ok("wild")),
        ("deep.v1.shop.example", Ok("wild")),
        ("shop.example", Err(Reject::NoRoute)),
        ("xshop.example", Err(Reject::NoRoute)),
        ("c.example", Err(Reject::NoRoute)),
        ("a.example.org", Err(Reject::NoRoute)),
        ("example", Err(Reject::NoRoute)),
    ] {
        assert_eq!(rule(name), expected.map(str::to_owned), "{name}");
    }
}

#[test]
fn no_server_name_takes_the_rule_that_asks_for_none_or_is_refused() {
    let by_name = || named("by-name", vec![sni(&["a.example"])]);
    let snapshot = compile(with(vec![by_name()]));
    assert_eq!(of(&snapshot, "default/a", None), Err(Reject::NoRoute));
    let snapshot = compile(with(vec![by_name(), named("rest", Vec::new())]));
    assert_eq!(of(&snapshot, "default/a", None), Ok("rest".to_owned()));
    let other = of(&snapshot, "default/a", Some("b.example"));
    assert_eq!(other, Ok("rest".to_owned()));
    let snapshot = compile(with(Vec::new()));
    assert_eq!(of(&snapshot, "default/a", None), Ok(String::new()));
}

#[test]
fn first_rule_in_order_decides_however_specific() {
    let snapshot = compile(with(vec![
        named("wild", vec![sni(&["*.example"])]),
        named("exact", vec![sni(&["a.example"])]),
    ]));
    let rule = of(&snapshot, "default/a", Some("a.example"));
    assert_eq!(rule, Ok("wild".to_owned()));
}

#[test]
fn source_and_name_must_both_hold() {
    let mut both = sni(&["a.example"]);
    both.source = Some(Box::new(SourceMatch {
        workload: Some("a".into()),
        ..SourceMatch::default()
    }));
    let snapshot = compile(with(vec![named("both", vec![both])]));
    let name = Some("a.example");
    assert_eq!(of(&snapshot, "default/a", name), Ok("both".to_owned()));
    assert_eq!(of(&snapshot, "default/b", name), Err(Reject::NoRoute));
    assert_eq!(of(&snapshot, "default/a", None), Err(Reject::NoRoute));
}

#[test]
fn rules_by_name_take_neither_requests_nor_opaque_connections() {
    let mut model = with(vec![named("by-name", vec![sni(&["a.example"])])]);
    model.services[0].ports[0].protocol = Protocol::Auto;
    let snapshot = compile(model);
    assert_eq!(
        rule_of(&snapshot, None, &get("/").authority("a.example")),
        None
    );
    let cursors = &mut Cursors::default();
    let opaque = decide_tcp(&snapshot, PORT, None, cursors, &mut NoObserver);
    assert_eq!(opaque, Err(Reject::NoRoute));
}

#[test]
fn requests_on_a_port_take_no_connection_of_tls() {
    let path = Match {
        path: Some(PathMatch::Prefix("/".into())),
        ..sni(&["a.example"])
    };
    let snapshot = compile(with(vec![named("http", vec![path])]));
    let name = Some("a.example");
    assert_eq!(of(&snapshot, "default/a", name), Err(Reject::NoRoute));
}

#[test]
fn explanation_names_the_server_name_that_did_not_match() {
    let snapshot = compile(with(vec![
        named("a", vec![sni(&["a.example", "*.a.example"])]),
        named("b", vec![sni(&["b.example"])]),
    ]));
    let why = explain_tls(
        &snapshot,
        PORT,
        None,
        Some("b.example"),
        &Cursors::default(),
        at_ms(1),
    );
    assert_eq!(why.rule.as_deref(), Some("b"));
    let failed = why.tried[0].failed.as_deref();
    assert_eq!(failed, Some("sni a.example|*.a.example"));
}

#[test]
fn index_and_one_by_one_agree() {
    let seed = 0x51;
    let mut rng = Rng::new(seed);
    let label = |rng: &mut Rng| ["a", "b", "c"][rng.below(3) as usize];
    for case in 0..200 {
        let mut rules = Vec::new();
        for at in 0..rng.below(12) {
            let mut matches = Vec::new();
            for _ in 0..rng.below(3) {
                let mut names = Vec::new();
                for _ in 0..rng.below(3) {
                    let star = if rng.below(2) == 0 { "*." } else { "" };
                    let mut name = format!("{star}{}", label(&mut rng));
                    for _ in 0..rng.below(3) {
                        name = format!("{name}.{}", label(&mut rng));
                    }
                    names.push(name);
                }
                let source = (rng.below(3) == 0).then(|| SourceMatch {
                    workload: Some(label(&mut rng).into()),
                    ..SourceMatch::default()
                });
                matches.push(Match {
                    sni: names.into(),
                    source: source.map(Box::new),
                    ..Match::default()
                });
            }
            rules.push(named(&format!("r{at}"), matches));
        }
        let snapshot = compile(with(rules));
        for _ in 0..20 {
            let mut name = label(&mut rng).to_owned();
            for _ in 0..rng.below(4) {
                name = format!("{name}.{}", label(&mut rng));
            }
            let name = (rng.below(5) > 0).then_some(&*name);
            let key = ["default/a", "default/b", "default/z"][rng.below(3) as usize];
            let source = snapshot.source(key);
            let cursors = Cursors::default();
            let why = explain_tls(&snapshot, PORT, source, name, &cursors, at_ms(1));
            let live = of(&snapshot, key, name).unwrap_or_default();
            let told = why.rule.as_deref().unwrap_or_default();
            assert_eq!(live, told, "seed {seed}, case {case}: {key} {name:?}");
        }
    }
}

#[test]
fn names_cost_the_same_among_ten_and_a_hundred_thousand_rules() {
    let took = |count: usize| {
        let rules = (0..count)
            .map(|at| {
                let name = format!("n{at}.example");
                let wild = format!("*.w{at}.example");
                named(&format!("r{at}"), vec![sni(&[&name, &wild])])
            })
            .collect();
        let snapshot = compile(with(rules));
        let source = snapshot.source("default/a");
        let last = format!("x.w{}.example", count - 1);
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            for _ in 0..200 {
                let cursors = &mut Cursors::default();
                let plan = decide_tls(
                    &snapshot,
                    PORT,
                    source,
                    Some(&last),
                    cursors,
                    &mut NoObserver,
                );
                assert!(plan.is_ok());
            }
            best = best.min(start.elapsed());
        }
        best / 200
    };
    let (few, many) = (took(10), took(100_000));
    println!("10 rules: {few:?}, 100,000 rules: {many:?}");
    // Caches, not the number of rules: one by one it would be a thousand times as much.
    assert!(many < few * 10, "{few:?} against {many:?}");
}
