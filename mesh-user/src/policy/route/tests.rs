use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use self::{draw::Draw, naive::naive_rule};
use super::{
    super::{
        NoObserver,
        fixture::{
            Ask, PORT, compile, decide, get, model, port, rule, rule_of, service, tags, to,
            workload,
        },
        rng::Rng,
    },
    *,
};
use crate::model::{Model, PathMatch, Protocol, ValueMatch};

pub(in crate::policy) mod draw;
mod naive;

fn exact(value: &str) -> ValueMatch {
    ValueMatch::Exact(value.to_owned())
}

fn path(path: PathMatch) -> Match {
    Match {
        path: Some(path),
        ..Match::default()
    }
}

fn header(name: &str, value: ValueMatch) -> Match {
    Match {
        headers: vec![(name.to_owned(), value)].into(),
        ..Match::default()
    }
}

fn from(source: SourceMatch) -> Match {
    Match {
        source: Some(Box::new(source)),
        ..Match::default()
    }
}

/// One rule with these alternatives, and nothing else.
fn only(matches: Vec<Match>) -> Snapshot {
    compile(model(
        service(1, 1),
        vec![rule("it", 0, matches, vec![to("v1", 1)])],
        Vec::new(),
    ))
}

fn matches(snapshot: &Snapshot, ask: &Ask) -> bool {
    rule_of(snapshot, None, ask).is_some()
}

#[test]
fn prefix_is_matched_by_elements_and_exact_and_regex_are_whole() {
    let asks = [
        "/abc", "/abc/", "/abc/d", "/abcd", "/ab", "/", "/abc//d", "/ABC",
    ];
    let hits = |cond: PathMatch| -> Vec<&str> {
        let snapshot = only(vec![path(cond)]);
        asks.into_iter()
            .filter(|ask| matches(&snapshot, &get(ask)))
            .collect()
    };
    let below = ["/abc", "/abc/", "/abc/d", "/abc//d"];
    assert_eq!(hits(PathMatch::Prefix("/abc".into())), below);
    assert_eq!(hits(PathMatch::Prefix("/abc/".into())), below);
    assert_eq!(hits(PathMatch::Prefix("/".into())), asks);
    assert_eq!(hits(PathMatch::Exact("/abc".into())), ["/abc"]);
    assert_eq!(hits(PathMatch::Exact("/abc/".into())), ["/abc/"]);
    assert_eq!(
        hits(PathMatch::Regex("/abc.*".into())),
        ["/abc", "/abc/", "/abc/d", "/abcd", "/abc//d"]
    );
    assert_eq!(hits(PathMatch::Regex("abc".into())), [""; 0]);
    // `OPTIONS *` has no path.
    assert!(!matches(
        &only(vec![path(PathMatch::Prefix("/".into()))]),
        &get("*")
    ));
}

#[test]
fn path_is_matched_without_query() {
    let snapshot = only(vec![path(PathMatch::Exact("/abc".into()))]);
    assert!(matches(&snapshot, &get("/abc?d=e")));
}

#[test]
fn alternatives_are_ored_and_conditions_anded() {
    let both = Match {
        path: Some(PathMatch::Prefix("/a".into())),
        headers: vec![("x".into(), exact("1")), ("y".into(), exact("2"))].into(),
        ..Match::default()
    };
    let snapshot = only(vec![both, path(PathMatch::Exact("/other".into()))]);
    assert!(matches(&snapshot, &get("/a").with("x", "1").with("y", "2")));
    assert!(!matches(&snapshot, &get("/a").with("x", "1")));
    assert!(!matches(
        &snapshot,
        &get("/b").with("x", "1").with("y", "2")
    ));
    assert!(matches(&snapshot, &get("/other")));
}

#[test]
fn methods_are_alternatives_and_case_sensitive() {
    let methods = Match {
        methods: vec!["GET".into(), "PUT".into()].into(),
        ..Match::default()
    };
    let snapshot = only(vec![methods]);
    assert!(matches(&snapshot, &get("/")));
    assert!(matches(&snapshot, &get("/").method("PUT")));
    assert!(!matches(&snapshot, &get("/").method("POST")));
    assert!(!matches(&snapshot, &get("/").method("get")));
}

#[test]
fn duplicate_names_in_a_rule_count_once_the_first() {
    let twice = Match {
        headers: vec![("x".into(), exact("1")), ("X".into(), exact("2"))].into(),
        query: vec![("q".into(), exact("1")), ("q".into(), exact("2"))].into(),
        ..Match::default()
    };
    let snapshot = only(vec![twice]);
    assert!(matches(&snapshot, &get("/?q=1").with("x", "1")));
    assert!(!matches(&snapshot, &get("/?q=2").with("x", "2")));
}

#[test]
fn higher_precedence_first_then_the_order_given() {
    let rules = vec![
        rule("late", 0, Vec::new(), vec![to("v1", 1)]),
        rule("first-of-equals", 5, Vec::new(), vec![to("v1", 1)]),
        rule("second-of-equals", 5, Vec::new(), vec![to("v1", 1)]),
        rule("negative", -1, Vec::new(), vec![to("v1", 1)]),
        rule(
            "narrow",
            10,
            vec![header("x", exact("1"))],
            vec![to("v2", 1)],
        ),
    ];
    let snapshot = compile(model(service(1, 1), rules, Vec::new()));
    assert_eq!(
        rule_of(&snapshot, None, &get("/")).as_deref(),
        Some("first-of-equals")
    );
    assert_eq!(
        rule_of(&snapshot, None, &get("/").with("x", "1")).as_deref(),
        Some("narrow")
    );
}

#[test]
fn no_match_is_no_route_and_no_rules_is_all_endpoints() {
    let snapshot = only(vec![path(PathMatch::Exact("/a".into()))]);
    let refused = decide(&snapshot, None, &get("/b").view(), &mut Cursors::default());
    assert_eq!(refused, Err(Reject::NoRoute));

    let free = compile(model(service(1, 1), Vec::new(), Vec::new()));
    let plan = decide(&free, None, &get("/b").view(), &mut Cursors::default()).unwrap();
    assert_eq!((plan.rule, plan.version), (None, free.port(PORT).all));
    assert_eq!(free.version(plan.version).endpoints.len(), 2);
}

#[test]
fn all_weights_zero_is_no_weight() {
    let rules = vec![rule("off", 0, Vec::new(), vec![to("v1", 0), to("v2", 0)])];
    let snapshot = compile(model(service(1, 1), rules, Vec::new()));
    let refused = decide(&snapshot, None, &get("/").view(), &mut Cursors::default());
    assert_eq!(refused, Err(Reject::NoWeight));
}

#[test]
fn source_conditions_are_met_by_known_workloads_only() {
    let source = |change: fn(&mut SourceMatch)| {
        let mut source = SourceMatch::default();
        change(&mut source);
        let mut model = model(
            service(1, 1),
            vec![rule("it", 0, vec![from(source)], vec![to("v1", 1)])],
            Vec::new(),
        );
        model.workloads = vec![
            workload("a", &[("app", "a"), ("v", "1")]),
            workload("b", &[("app", "b")]),
        ];
        model.workloads[1].namespace = "other".into();
        let snapshot = compile(model);
        let hit = |key: &str| {
            let known = snapshot.source(key);
            assert!(known.is_some(), "{key}");
            rule_of(&snapshot, known, &get("/")).is_some()
        };
        (
            hit("default/a"),
            hit("other/b"),
            rule_of(&snapshot, None, &get("/")).is_some(),
        )
    };
    assert_eq!(
        source(|s| s.workload = Some("a".into())),
        (true, false, false)
    );
    assert_eq!(
        source(|s| s.namespace = Some("other".into())),
        (false, true, false)
    );
    let identity = |s: &mut SourceMatch| {
        s.identity = Some("spiffe://cluster.local/ns/default/sa/a".into());
    };
    assert_eq!(source(identity), (true, false, false));
    assert_eq!(
        source(|s| s.tags = tags(&[("app", "a")])),
        (true, false, false)
    );
    assert_eq!(
        source(|s| s.tags = tags(&[("app", "a"), ("v", "2")])),
        (false, false, false)
    );
    // «Any workload of the mesh»: an unknown one is not.
    assert_eq!(source(|_| ()), (true, true, false));
}

#[test]
fn tcp_connection_never_matches_http_conditions() {
    let mut model = model(
        service(1, 1),
        vec![
            rule(
                "http",
                9,
                vec![path(PathMatch::Prefix("/".into()))],
                vec![to("v2", 1)],
            ),
            rule(
                "source",
                5,
                vec![from(SourceMatch {
                    workload: Some("a".into()),
                    ..SourceMatch::default()
                })],
                vec![to("v2", 1)],
            ),
            rule(
                "rest",
                0,
                vec![header("x", exact("1")), Match::default()],
                vec![to("v1", 1)],
            ),
        ],
        Vec::new(),
    );
    model.workloads = vec![workload("a", &[]), workload("b", &[])];
    let snapshot = compile(model);
    let name = |key: &str| {
        let source = snapshot.source(key);
        let plan = decide_tcp(
            &snapshot,
            PORT,
            source,
            &mut Cursors::default(),
            &mut NoObserver,
        )
        .unwrap();
        snapshot.rule(plan.rule.unwrap()).name.to_string()
    };
    assert_eq!(name("default/a"), "source");
    assert_eq!(name("default/b"), "rest");
    assert_eq!(name("default/unknown"), "rest");

    let http_only = only(vec![header("x", ValueMatch::Present(false))]);
    let refused = decide_tcp(
        &http_only,
        PORT,
        None,
        &mut Cursors::default(),
        &mut NoObserver,
    );
    assert_eq!(refused, Err(Reject::NoRoute));
}

/// What an observer was told.
#[derive(Default)]
struct Heard(Vec<(RuleIx, Option<String>)>);

impl Observer for Heard {
    fn rule(&mut self, rule: RuleIx, failed: Option<&dyn Display>) {
        self.0.push((rule, failed.map(ToString::to_string)));
    }

    fn active(&self) -> bool {
        true
    }
}

#[test]
fn observer_hears_every_rule_tried_and_the_condition_that_came_furthest() {
    let far = Match {
        path: Some(PathMatch::Prefix("/a".into())),
        headers: vec![("x".into(), exact("1"))].into(),
        ..Match::default()
    };
    let rules = vec![
        rule(
            "one",
            3,
            vec![path(PathMatch::Exact("/b".into())), far],
            vec![to("v1", 1)],
        ),
        rule(
            "two",
            2,
            vec![path(PathMatch::Prefix("/a".into()))],
            vec![to("v1", 1)],
        ),
        rule("never tried", 1, Vec::new(), vec![to("v1", 1)]),
    ];
    let snapshot = compile(model(service(1, 1), rules, Vec::new()));
    let mut heard = Heard::default();
    let ask = get("/a/b");
    let decided = super::decide(
        &snapshot,
        PORT,
        None,
        &ask.view(),
        &mut Cursors::default(),
        &mut heard,
    );
    assert_eq!(decided.unwrap().rule, Some(RuleIx(1)));
    assert_eq!(
        heard.0,
        [
            (RuleIx(0), Some("header x: \"1\"".to_owned())),
            (RuleIx(1), None)
        ]
    );
}

#[test]
fn rule_of_one_port_does_not_apply_to_another() {
    let mut web = service(1, 1);
    web.ports.push(port("admin", 81, Protocol::Http));
    let mut admin = rule("admin", 0, Vec::new(), vec![to("v2", 1)]);
    admin.port = Some("admin".into());
    let snapshot = compile(model(web, vec![admin], Vec::new()));
    assert_eq!(rule_of(&snapshot, None, &get("/")), None);
    let ask = get("/");
    let admin = super::decide(
        &snapshot,
        PortIx(1),
        None,
        &ask.view(),
        &mut Cursors::default(),
        &mut NoObserver,
    );
    assert_eq!(&*snapshot.version(admin.unwrap().version).name, "v2");
}

#[test]
fn indexed_decision_equals_watched_decision_and_naive_scan() {
    let seed = 0x1d3;
    let mut draw = Draw(Rng::new(seed));
    let (mut matched, mut missed) = (0, 0);
    for case in 0..200 {
        let model = draw.model();
        let snapshot = compile(model.clone());
        for _ in 0..100 {
            let ask = draw.ask();
            let at = draw.0.below(4) as usize;
            let workload = model.workloads.get(at);
            let source = workload.and_then(|workload| snapshot.source(&workload.key()));
            let mut cursors = Cursors::default();
            let quick = decide(&snapshot, source, &ask.view(), &mut cursors);
            let mut heard = Heard::default();
            let watched = super::decide(
                &snapshot,
                PORT,
                source,
                &ask.view(),
                &mut Cursors::default(),
                &mut heard,
            );
            assert_eq!(quick, watched, "seed {seed}, case {case}: {ask:?}");
            let naive = naive_rule(&model, workload, &ask);
            let told = heard.0.last().filter(|(_, failed)| failed.is_none());
            let told = told.map(|(rule, _)| snapshot.rule(*rule).name.to_string());
            assert_eq!(
                told, naive,
                "seed {seed}, case {case}: {ask:?}\n{:?}",
                model.rules
            );
            match quick {
                Ok(plan) => {
                    let name = plan.rule.map(|rule| snapshot.rule(rule).name.to_string());
                    assert_eq!(name, naive, "seed {seed}, case {case}: {ask:?}");
                }
                Err(Reject::NoRoute) => assert_eq!(naive, None),
                Err(reject) => panic!("{reject:?}"),
            }
            if naive.is_some() {
                matched += 1
            } else {
                missed += 1
            }
        }
    }
    // The draw must reach both ends, or the test says nothing.
    assert!(
        matched > 4_000 && missed > 2_000,
        "{matched} matched, {missed} missed"
    );
}

/// `count` rules of mixed kinds, of which the request meets the last one of its kind.
fn many(count: usize, kind: usize) -> (Model, Ask) {
    let one = |n: usize| match kind {
        0 => path(PathMatch::Exact(format!("/svc/item/{n}"))),
        1 => path(PathMatch::Prefix(format!("/svc/{n}"))),
        2 => header("x-user", exact(&format!("user-{n}"))),
        3 => Match {
            path: Some(PathMatch::Prefix("/".into())),
            headers: vec![("x-user".into(), exact(&format!("user-{n}")))].into(),
            ..Match::default()
        },
        4 => Match {
            authority: Some(Box::new(exact(&format!("host-{n}")))),
            ..Match::default()
        },
        _ => Match {
            query: vec![("id".into(), exact(&n.to_string()))].into(),
            ..Match::default()
        },
    };
    let rules = (0..count).map(|n| rule(&format!("r{n}"), 0, vec![one(n)], vec![to("v1", 1)]));
    let last = count - 1;
    let ask = match kind {
        0 => get(&format!("/svc/item/{last}")),
        1 => get(&format!("/svc/{last}/below")),
        2 | 3 => get("/a/b").with("x-user", &format!("user-{last}")),
        4 => get("/").authority(&format!("HOST-{last}:80")),
        _ => get(&format!("/?id={last}")),
    };
    (model(service(1, 1), rules.collect(), Vec::new()), ask)
}

#[test]
fn cost_stays_flat_from_10_to_20_000_rules() {
    // Counted, not timed: how many alternatives are looked at.
    for kind in 0..6 {
        for count in [10, 1_000, 20_000] {
            let (model, ask) = many(count, kind);
            let snapshot = compile(model);
            let mut looked = 0;
            let table = &snapshot.port(PORT).routes;
            table
                .index
                .each_list(None, &ask.view(), |list| looked += list.len());
            let name = rule_of(&snapshot, None, &ask);
            assert_eq!(name, Some(format!("r{}", count - 1)), "kind {kind}");
            assert!(
                looked <= 2,
                "kind {kind}, {count} rules: {looked} alternatives looked at"
            );
        }
    }
}

#[test]
fn many_path_patterns_are_searched_together() {
    let pattern = |n: usize| path(PathMatch::Regex(format!("/p{n}/[0-9]+")));
    let count = 150;
    let rules = (0..count).map(|n| rule(&format!("r{n}"), 0, vec![pattern(n)], vec![to("v1", 1)]));
    let snapshot = compile(model(service(1, 1), rules.collect(), Vec::new()));
    for n in [0, 1, 63, 64, 127, 128, 149] {
        let ask = get(&format!("/p{n}/42"));
        let mut looked = 0;
        snapshot
            .port(PORT)
            .routes
            .index
            .each_list(None, &ask.view(), |list| looked += list.len());
        assert_eq!(looked, 1, "rule {n}");
        assert_eq!(rule_of(&snapshot, None, &ask), Some(format!("r{n}")));
    }
    assert_eq!(rule_of(&snapshot, None, &get("/p1/42/x")), None);
}

#[test]
fn compile_of_20_000_rules_is_quick() {
    // A quadratic step somewhere would take minutes; the bound is loose for slow machines.
    let (model, _) = many(20_000, 3);
    let begun = Instant::now();
    let snapshot = compile(model);
    let rows = snapshot.describe_routes();
    assert_eq!(rows.len(), 20_000);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

/// Without it: a request pays for every route of its port.
#[test]
fn look_up_tries_no_more_alternatives_with_more_routes() {
    let tried = |count: usize, by: &dyn Fn(usize) -> Match, ask: &Ask| {
        let rules = (0..count).map(|n| rule(&format!("r{n}"), 0, vec![by(n)], vec![to("v1", 1)]));
        let snapshot = compile(model(service(1, 1), rules.collect(), Vec::new()));
        let routes = &snapshot.port(PORT).routes;
        let (mut lists, mut entries) = (0, 0);
        routes.index.each_list(None, &ask.view(), |list| {
            lists += 1;
            entries += list.len();
        });
        assert!(rule_of(&snapshot, None, ask).is_some());
        (lists, entries)
    };
    let exact = |n| Match {
        path: Some(PathMatch::Exact(format!("/svc/{n}/items"))),
        ..Match::default()
    };
    let prefix = |n| Match {
        path: Some(PathMatch::Prefix(format!("/svc/{n}"))),
        ..Match::default()
    };
    let header = |n| Match {
        headers: vec![("x-tenant".to_owned(), ValueMatch::Exact(format!("t{n}")))].into(),
        ..Match::default()
    };
    let host = |n| Match {
        authority: Some(Box::new(ValueMatch::Exact(format!("t{n}.example")))),
        ..Match::default()
    };
    let ask = get("/svc/7/items")
        .with("x-tenant", "t7")
        .authority("t7.example");
    let by: [&dyn Fn(usize) -> Match; 4] = [&exact, &prefix, &header, &host];
    for (which, by) in by.into_iter().enumerate() {
        let few = tried(10, by, &ask);
        assert_eq!(tried(5_000, by, &ask), few, "condition {which}");
        assert!(few.0 <= 2 && few.1 == 1, "condition {which}: {few:?}");
    }
}
