use super::{
    super::{
        fixture::{at_ms, compile, model, policy, rule, secs, service, to, workload},
        snapshot::Outcome,
    },
    *,
};
use crate::model::{
    Attribute, Balance, BreakerPolicy, EjectionPolicy, Match, PathMatch, Policy, RateLimitPolicy,
    SourceMatch, ValueMatch,
};

fn example() -> Snapshot {
    let beta = Match {
        path: Some(PathMatch::Prefix("/api/".into())),
        methods: vec!["GET".into(), "HEAD".into()].into(),
        headers: vec![("x-user".into(), ValueMatch::Exact("beta".into()))].into(),
        query: vec![("q".into(), ValueMatch::Present(true))].into(),
        authority: Some(Box::new(ValueMatch::Regex("web.*".into()))),
        source: Some(Box::new(SourceMatch {
            tags: super::super::fixture::tags(&[("app", "tester")]),
            ..SourceMatch::default()
        })),
        ..Match::default()
    };
    let rules = vec![
        rule("default", 0, Vec::new(), vec![to("v1", 90), to("v2", 10)]),
        rule("beta", 10, vec![beta], vec![to("v2", 1)]),
    ];
    let policies = vec![
        Policy {
            breaker: Some(BreakerPolicy {
                max_requests: 7,
                ..BreakerPolicy::default()
            }),
            ejection: Some(EjectionPolicy {
                consecutive_5xx: 1,
                max_percent: 100,
                ..EjectionPolicy::default()
            }),
            rate_limits: vec![RateLimitPolicy {
                name: "each".into(),
                key: vec![Attribute::SourceWorkload],
                requests: 100,
                per: secs(1),
                burst: 200,
                ..RateLimitPolicy::default()
            }],
            ..policy()
        },
        Policy {
            version: Some("v1".into()),
            balance: Some(Balance::Random.into()),
            ..policy()
        },
    ];
    let mut model = model(service(2, 0), rules, policies);
    model.workloads = vec![workload("client", &[("app", "tester")])];
    compile(model)
}

#[test]
fn services_row_counts_rules_versions_and_usable_endpoints() {
    let snapshot = example();
    let ejected = &snapshot.version(VersionIx(0)).endpoints[0];
    snapshot
        .record(VersionIx(0), ejected, Outcome::Reset, None, at_ms(1))
        .unwrap();
    let rows = snapshot.describe_services();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(
        (&*row.namespace, &*row.service, &*row.port_name),
        ("default", "web", "http")
    );
    assert_eq!(
        (row.port, row.protocol, row.path),
        (80, Protocol::Http, Path::Proxy)
    );
    assert_eq!(row.reason, "rule \"beta\" matches on HTTP");
    assert_eq!((row.rules, row.endpoints, row.usable), (2, 2, 1));
    assert_eq!(
        row.versions.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["*", "v1", "v2"]
    );
    assert_eq!(row.addresses.len(), 2);
}

#[test]
fn routes_rows_stand_in_the_order_of_trial_with_conditions_and_shares() {
    let rows = example().describe_routes();
    let order: Vec<(usize, &str, i32)> = rows
        .iter()
        .map(|row| (row.order, &*row.rule, row.precedence))
        .collect();
    assert_eq!(order, [(1, "beta", 10), (2, "default", 0)]);
    assert_eq!(
        rows[0].matches,
        [
            "path prefix \"/api\", method GET|HEAD, header x-user: \"beta\", query q: present, \
          authority regex \"web.*\", source tag app=tester"
        ]
    );
    assert_eq!(rows[1].matches, [""; 0], "matches always");
    let targets: Vec<(&str, f64, usize, usize)> = rows[1]
        .targets
        .iter()
        .map(|t| (&*t.version, t.share, t.endpoints, t.usable))
        .collect();
    assert_eq!(targets, [("v1", 90.0, 2, 2), ("v2", 10.0, 0, 0)]);
}

#[test]
fn routes_of_a_port_without_rules_show_the_implicit_one() {
    let rows = compile(model(service(1, 1), Vec::new(), Vec::new())).describe_routes();
    assert_eq!(rows.len(), 1);
    assert_eq!((&*rows[0].rule, &*rows[0].targets[0].version), ("-", "*"));
    assert_eq!(rows[0].targets[0].share, 100.0);
}

#[test]
fn endpoints_rows_show_state_versions_and_counters() {
    let snapshot = example();
    let version = snapshot.version(VersionIx(0));
    let permit = version.breaker.request(&version.endpoints[1]).unwrap();
    snapshot.record(
        VersionIx(0),
        &version.endpoints[1],
        Outcome::Status(200),
        None,
        at_ms(1_000),
    );
    snapshot
        .record(
            VersionIx(0),
            &version.endpoints[0],
            Outcome::Reset,
            None,
            at_ms(1_000),
        )
        .unwrap();
    let rows = snapshot.describe_endpoints(at_ms(11_000));
    let seen: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.state,
                row.ejected_for_ms,
                row.in_flight,
                row.requests,
                row.failures,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [("ejected", Some(20_000), 0, 1, 1), ("ready", None, 1, 1, 0)]
    );
    assert_eq!((rows[0].ejections, rows[0].skipped), (1, 0));
    assert!(
        rows.iter()
            .all(|row| row.versions.len() == 1 && &*row.versions[0] == "v1")
    );
    drop(permit);

    let mut unready = service(1, 0);
    unready.endpoints[0].healthy = false;
    let rows = compile(model(unready, Vec::new(), Vec::new())).describe_endpoints(at_ms(1));
    assert_eq!(rows[0].state, "unready");
}

#[test]
fn policies_rows_say_every_value_and_where_it_comes_from() {
    let rows = example().describe_policies();
    let of = |version: &str, field: &str| {
        let row = rows
            .iter()
            .find(|row| &*row.version == version && row.field == field);
        let row = row.unwrap_or_else(|| panic!("no {field}"));
        assert_eq!(
            row.reason.is_empty(),
            row.from != Origin::Default,
            "{field}"
        );
        (row.value.as_str(), row.from.label())
    };
    assert_eq!(of("v1", "breaker.max-requests"), ("7", "service"));
    assert_eq!(of("v1", "balance"), ("random", "version"));
    assert_eq!(of("v2", "balance"), ("least-request", "default"));
    assert_eq!(of("v2", "timeout.request"), ("15s", "default"));
    assert_eq!(of("v2", "timeout.idle"), ("1h", "default"));
    assert_eq!(of("*", "breaker.ejection.base"), ("30s", "service"));
    assert_eq!(
        of("*", "breaker.ejection.consecutive-gateway"),
        ("off", "service")
    );
    assert_eq!(
        of("v1", "rate-limit.each"),
        ("100 in 1s, burst 200, for each source.workload", "service")
    );
    assert_eq!(of("v1", "retries"), ("off", "default"));
}

#[test]
fn rows_are_serializable() {
    let snapshot = example();
    let services = serde_json::to_value(snapshot.describe_services()).unwrap();
    assert_eq!(services[0]["path"], "proxy");
    let policies = serde_json::to_value(snapshot.describe_policies()).unwrap();
    assert_eq!(policies[0]["from"], "service");
    assert!(serde_json::to_string(&snapshot.describe_routes()).is_ok());
    assert!(serde_json::to_string(&snapshot.describe_endpoints(at_ms(1))).is_ok());
}

#[test]
fn limits_of_rules_and_their_options_stand_in_the_policies() {
    use crate::model::{
        Attribute, LimitUnit, Rule, RuleExtra, Target,
        limit::{GlobalLimit, LimitOverride},
    };

    let limit = RateLimitPolicy {
        name: "volume".into(),
        unit: LimitUnit::Bytes,
        requests: 1_000,
        burst: 2_000,
        overrides: vec![LimitOverride {
            when: vec![(Attribute::Method, "PUT".into())],
            requests: 5,
            per: std::time::Duration::from_secs(60),
            burst: 6,
        }],
        global: Some(GlobalLimit {
            service: "r".into(),
            ..GlobalLimit::default()
        }),
        dry_run: true,
        ..RateLimitPolicy::default()
    };
    let rule = Rule {
        name: "first".into(),
        route: vec![Target::default()],
        extra: Some(Box::new(RuleExtra {
            rate_limits: vec![limit],
            ..RuleExtra::default()
        })),
        ..Rule::default()
    };
    let snapshot = compile(model(service(1, 1), vec![rule], Vec::new()));
    let rows = snapshot.describe_policies();
    let row = rows.iter().find(|row| row.from == Origin::Rule).unwrap();
    assert_eq!((&*row.version, &*row.field), ("first", "rate-limit.volume"));
    assert_eq!(
        row.value,
        "1000 bytes in 1s, burst 2000, all together; 5 bytes in 1m, burst 6 when method=PUT; shared \
         by `r`, failure open; dry run"
    );
}
