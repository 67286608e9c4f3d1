use super::{
    super::{
        NoObserver, VersionIx,
        fixture::{
            PORT, at_ms, compile, decide, get, model, policy, rule, secs, service, to, workload,
        },
        snapshot::Outcome,
    },
    *,
};
use crate::{
    model::{
        AdaptivePolicy, Attribute, BreakerPolicy, EjectionPolicy, HedgePolicy, Match, PathMatch,
        Policy, RateLimitPolicy, RetryBudget, RetryPolicy, RuleExtra, SourceMatch, ValueMatch,
        action::RuleTimeouts, limit::LimitAnswer,
    },
    policy::health::{CheckResult, Finding},
};

fn of(snapshot: &Snapshot, ask: &super::super::fixture::Ask) -> Explanation {
    let source = snapshot.source("default/client");
    explain(
        snapshot,
        PORT,
        source,
        &ask.view(),
        &Cursors::default(),
        at_ms(1_000),
    )
}

fn beta() -> crate::model::Rule {
    let header = Match {
        headers: vec![("x-user".into(), ValueMatch::Exact("beta".into()))].into(),
        ..Match::default()
    };
    let tester = Match {
        path: Some(PathMatch::Prefix("/".into())),
        source: Some(Box::new(SourceMatch {
            workload: Some("tester".into()),
            ..SourceMatch::default()
        })),
        ..Match::default()
    };
    rule("beta", 10, vec![header, tester], vec![to("v2", 1)])
}

fn example(policies: Vec<Policy>) -> Snapshot {
    let split = rule("split", 0, Vec::new(), vec![to("v1", 90), to("v2", 10)]);
    let mut model = model(service(2, 1), vec![beta(), split], policies);
    model.workloads = vec![workload("client", &[])];
    compile(model)
}

#[test]
fn explanation_names_every_rule_tried_and_the_shares() {
    let snapshot = example(Vec::new());
    let why = of(&snapshot, &get("/a"));
    let tried: Vec<(&str, Option<&str>)> = why
        .tried
        .iter()
        .map(|tried| (&*tried.rule, tried.failed.as_deref()))
        .collect();
    assert_eq!(
        tried,
        [
            ("beta", Some("source workload \"tester\"")),
            ("split", None)
        ]
    );
    assert_eq!(why.rule.as_deref(), Some("split"));
    let shares: Vec<(&str, f64)> = why
        .targets
        .iter()
        .map(|target| (&*target.version, target.share))
        .collect();
    assert_eq!(shares, [("v1", 90.0), ("v2", 10.0)]);
    assert_eq!(why.next.as_deref(), Some("v1"));
    assert_eq!(why.source.as_deref(), Some("default/client"));
    assert_eq!(
        (why.path, why.path_reason.as_str()),
        (Path::Proxy, "rule \"beta\" matches on HTTP")
    );
    assert_eq!(why.endpoints.len(), 2);
    let to = ["10.0.1.1:8080", "10.0.1.2:8080"].map(|address| address.parse().unwrap());
    assert_eq!(why.outcome, Fate::Forwarded { to: to.into() });

    let beta = of(&snapshot, &get("/a").with("x-user", "beta"));
    assert_eq!(
        (beta.rule.as_deref(), beta.next.as_deref()),
        (Some("beta"), Some("v2"))
    );
    assert_eq!(beta.tried.len(), 1);
}

#[test]
fn explanation_moves_no_cursor_and_spends_no_token() {
    let limit = RateLimitPolicy {
        name: "one".into(),
        key: vec![Attribute::SourceWorkload],
        requests: 1,
        per: secs(1_000),
        burst: 1,
        ..RateLimitPolicy::default()
    };
    let snapshot = example(vec![Policy {
        rate_limits: vec![limit],
        ..policy()
    }]);
    let first = of(&snapshot, &get("/"));
    for _ in 0..100 {
        assert_eq!(of(&snapshot, &get("/")), first);
    }
    let expected = LimitState {
        name: "one".into(),
        key: "source.workload=default/client".into(),
        left: 1,
        admitted: true,
        note: String::new(),
    };
    assert_eq!(first.limits, [expected]);

    let source = snapshot.source("default/client");
    let ask = get("/");
    let plan = decide(&snapshot, source, &ask.view(), &mut Cursors::default()).unwrap();
    let view = ask.view();
    rate_limit::admit(
        &snapshot,
        &plan,
        source,
        Some(&view),
        at_ms(1_000),
        &mut NoObserver,
    );
    let refused = of(&snapshot, &get("/"));
    assert_eq!(
        (refused.limits[0].left, refused.limits[0].admitted),
        (0, false)
    );
    assert_eq!(refused.outcome, fate(Reject::RateLimited));
}

fn fate(reject: Reject) -> Fate {
    Fate::Refused {
        reject,
        status: reject.status(),
        because: reject.explain(),
    }
}

#[test]
fn explanation_says_how_a_request_is_refused() {
    let mut one = model(service(1, 0), vec![beta()], Vec::new());
    let no_route = compile(one.clone());
    let why = of(&no_route, &get("/"));
    assert_eq!(
        (why.outcome, why.next, why.targets.len()),
        (fate(Reject::NoRoute), None, 0)
    );
    let empty = of(&no_route, &get("/").with("x-user", "beta"));
    assert_eq!(empty.outcome, fate(Reject::NoEndpoint));

    one.rules = vec![rule("off", 0, Vec::new(), vec![to("v1", 0)])].into();
    let off = of(&compile(one), &get("/"));
    assert_eq!(
        (off.outcome, off.rule.as_deref()),
        (fate(Reject::NoWeight), Some("off"))
    );

    let caps = BreakerPolicy {
        max_requests: 1,
        ..Default::default()
    };
    let ejection = EjectionPolicy {
        consecutive_5xx: 1,
        max_percent: 100,
        ..Default::default()
    };
    let both = Policy {
        breaker: Some(caps),
        ejection: Some(ejection),
        ..policy()
    };
    let full = compile(model(service(1, 0), Vec::new(), vec![both]));
    let version = full.version(VersionIx(0));
    let permit = version.breaker.request(&version.endpoints[0]).unwrap();
    let why = of(&full, &get("/"));
    assert_eq!(why.outcome, fate(Reject::OverflowRequests));
    assert_eq!(
        (why.gauges.unwrap().requests, why.caps.unwrap().max_requests),
        (1, 1)
    );
    drop(permit);
    full.record(
        VersionIx(0),
        &version.endpoints[0],
        Outcome::Reset,
        None,
        at_ms(1),
    )
    .unwrap();
    let why = of(&full, &get("/"));
    assert_eq!(why.outcome, fate(Reject::NoHealthyEndpoint));
    assert_eq!(why.endpoints[0].state, "ejected");
}

#[test]
fn explanation_of_an_opaque_connection_tries_the_same_rules() {
    let snapshot = example(Vec::new());
    let source = snapshot.source("default/client");
    let why = explain_tcp(&snapshot, PORT, source, &Cursors::default(), at_ms(1));
    assert_eq!(why.rule.as_deref(), Some("split"));
    assert!(why.tried[0].failed.is_some());
}

#[test]
fn explanation_tells_the_terms_in_force() {
    let mut model = model(service(1, 1), vec![beta()], Vec::new());
    model.rules[0].extra = Some(Box::new(RuleExtra {
        timeouts: RuleTimeouts {
            request: Some(secs(7)),
            backend_request: Some(secs(2)),
        },
        ..RuleExtra::default()
    }));
    model.policies = vec![Policy {
        retries: Some(RetryPolicy {
            attempts: 2,
            per_try: Some(secs(1)),
            ..RetryPolicy::default()
        }),
        hedge: Some(HedgePolicy {
            after: None,
            max: 1,
            non_idempotent: false,
        }),
        retry_budget: Some(RetryBudget {
            percent: 20,
            floor: 3,
            interval: None,
        }),
        adaptive: Some(AdaptivePolicy::default()),
        ..policy()
    }]
    .into();
    let snapshot = compile(model);
    let ask = get("/").with("x-user", "beta");
    let why = of(&snapshot, &ask);
    let adaptive = snapshot.version(why.plan.unwrap().version);
    let limit = adaptive.adaptive.as_ref().unwrap().limit();
    let wanted = [
        "request 7s",
        "backend-request 2s",
        // With a hedge upon it the per-try time-out ends nothing.
        "per-try none",
        "connect 5s",
        "retries 2",
        "hedge after 1s, at most 1",
        "retry budget 0 of 3 in flight",
        &format!("adaptive limit {limit}"),
    ];
    assert_eq!(why.terms, wanted);
    let endpoint = &snapshot.version(why.plan.unwrap().version).endpoints[0];
    assert_eq!(why.endpoints[0].check, None);
    let finding = Finding {
        sick: true,
        last: CheckResult::Status(503),
    };
    endpoint.live.set_health(Some(finding), at_ms(1));
    let sick = of(&snapshot, &ask);
    assert_eq!(sick.endpoints[0].check.as_deref(), Some("status 503"));
    assert_eq!(sick.outcome, fate(Reject::NoHealthyEndpoint));
    let tcp = explain_tcp(
        &example(Vec::new()),
        PORT,
        None,
        &Cursors::default(),
        at_ms(1),
    );
    assert_eq!(tcp.terms, ["connect 5s", "idle 1h"]);
    let nobody = of(&snapshot, &get("/"));
    assert_eq!(nobody.terms, [""; 0]);
}

/// Without it: explain tells 429 where the limit answers with its own status, or that a limit
/// refuses which is never asked.
#[test]
fn explanation_tells_the_status_of_the_limit_that_refuses() {
    let limit = RateLimitPolicy {
        name: "own".into(),
        answer: LimitAnswer {
            status: 503,
            ..LimitAnswer::default()
        },
        ..RateLimitPolicy::default()
    };
    let snapshot = example(vec![Policy {
        rate_limits: vec![limit],
        ..policy()
    }]);
    let ask = get("/");
    let plan = decide(&snapshot, None, &ask.view(), &mut Cursors::default()).unwrap();
    let (view, now) = (ask.view(), at_ms(1_000));
    rate_limit::admit(&snapshot, &plan, None, Some(&view), now, &mut NoObserver);
    let refused = Fate::Refused {
        reject: Reject::RateLimited,
        status: 503,
        because: Reject::RateLimited.explain(),
    };
    assert_eq!(of(&snapshot, &ask).outcome, refused);
}

#[test]
fn explanation_is_serializable() {
    let value = serde_json::to_value(of(&example(Vec::new()), &get("/"))).unwrap();
    assert_eq!(value["outcome"]["forwarded"]["to"][0], "10.0.1.1:8080");
    assert_eq!(value["rule"], "split");
}

#[test]
fn shared_limit_and_dry_run_are_explained_with_what_is_held() {
    use crate::model::limit::{GlobalLimit, RateLimitService, RedisStore, StoreAddress, StoreKind};

    let shared = RateLimitPolicy {
        name: "shared".into(),
        key: vec![Attribute::Method],
        requests: 10,
        burst: 10,
        global: Some(GlobalLimit {
            service: "store".into(),
            ..GlobalLimit::default()
        }),
        ..RateLimitPolicy::default()
    };
    let dry = RateLimitPolicy {
        name: "dry".into(),
        dry_run: true,
        ..RateLimitPolicy::default()
    };
    let limits = Policy {
        rate_limits: vec![shared, dry],
        ..policy()
    };
    let mut model = model(service(1, 1), Vec::new(), vec![limits]);
    model.rate_limit_services = vec![RateLimitService {
        name: "store".into(),
        address: StoreAddress::Unix("/x".into()),
        kind: StoreKind::Redis(RedisStore::default()),
        timeout: secs(1),
    }];
    let snapshot = compile(model);
    let explained = || of(&snapshot, &get("/")).limits;
    let first = explained();
    let texts = |limits: &[LimitState]| -> Vec<(String, bool, String)> {
        let text = |limit: &LimitState| (limit.name.clone(), limit.admitted, limit.note.clone());
        limits.iter().map(text).collect()
    };
    let note = "lease: none, `store` default/web/shared:GET is asked";
    assert_eq!(
        texts(&first),
        [
            ("shared".to_owned(), true, note.to_owned()),
            ("dry".to_owned(), true, "dry run".to_owned())
        ]
    );
    assert_eq!(explained(), first, "nothing is spent");
    // Tokens come, and the dry run's bucket is used up.
    let version = &snapshot.versions[0];
    let global = version.limits[0].limiter.global().unwrap();
    let key = "default/web/shared:GET";
    let wanted = global.want(key, 0, at_ms(1));
    let grant = rate_limit::Grant {
        wanted,
        given: 5,
        left: 3,
        wait: secs(0),
    };
    global.granted(key, 0, grant, at_ms(1), at_ms(1));
    let one = get("/");
    let plan = Plan {
        session: None,
        port: PORT,
        rule: None,
        target: 0,
        version: snapshot.port(PORT).all,
    };
    let mut observer = NoObserver;
    let live = rate_limit::admit(
        &snapshot,
        &plan,
        None,
        Some(&one.view()),
        at_ms(2),
        &mut observer,
    );
    assert_eq!(live.refused, None);
    let cursors = Cursors::default();
    let later = explain(&snapshot, PORT, None, &one.view(), &cursors, at_ms(2)).limits;
    assert_eq!(
        texts(&later),
        [
            (
                "shared".to_owned(),
                true,
                "lease: 4 held of `store` default/web/shared:GET".to_owned()
            ),
            ("dry".to_owned(), false, "dry run: would refuse".to_owned())
        ]
    );
}
