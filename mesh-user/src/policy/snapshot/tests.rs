use super::{
    super::{
        Reject, balance,
        describe::Origin,
        fixture::{
            PORT, at_ms, compile, decide, endpoint, get, model, policy, port, recompile, rule,
            secs, service, tags, to, workload,
        },
        rng::Rng,
        split::Cursors,
    },
    *,
};
use crate::model::{
    BreakerPolicy, EjectionPolicy, Match, Policy, RateLimitPolicy, RetryPolicy, Rule, Select,
    Target, TimeoutPolicy,
};

fn names(snapshot: &Snapshot) -> Vec<&str> {
    let versions = snapshot.port(PORT).versions.iter();
    versions.map(|ix| &*snapshot.version(*ix).name).collect()
}

fn addresses(snapshot: &Snapshot, name: &str) -> Vec<String> {
    let version = snapshot
        .versions
        .iter()
        .find(|version| &*version.name == name)
        .unwrap();
    version
        .endpoints
        .iter()
        .map(|endpoint| endpoint.address.ip().to_string())
        .collect()
}

fn by_tags(pairs: &[(&str, &str)]) -> Rule {
    let target = Target {
        select: Select::Tags(tags(pairs)),
        weight: 1,
        ..Target::default()
    };
    rule("by-tags", 0, Vec::new(), vec![target])
}

#[test]
fn version_has_the_endpoints_whose_tags_contain_its_own() {
    let mut web = service(2, 1);
    web.endpoints[0].tags.insert("env".into(), "staging".into());
    web.endpoints[2].tags.insert("env".into(), "staging".into());
    web.versions
        .insert("staging".into(), tags(&[("env", "staging")]));
    web.versions.insert("everything".into(), tags(&[]));
    web.versions.insert("none".into(), tags(&[("env", "prod")]));
    let snapshot = compile(model(web, Vec::new(), Vec::new()));
    assert_eq!(
        names(&snapshot),
        ["*", "everything", "none", "staging", "v1", "v2"]
    );
    let all = ["10.0.1.1", "10.0.1.2", "10.0.2.1"];
    assert_eq!(addresses(&snapshot, "*"), all);
    assert_eq!(addresses(&snapshot, "everything"), all);
    // Overlapping versions; no key is special.
    assert_eq!(addresses(&snapshot, "v1"), ["10.0.1.1", "10.0.1.2"]);
    assert_eq!(addresses(&snapshot, "staging"), ["10.0.1.1", "10.0.2.1"]);
    assert_eq!(addresses(&snapshot, "none"), [""; 0]);
}

#[test]
fn version_without_endpoint_keeps_its_share_and_answers_no_endpoint() {
    let rules = vec![rule("split", 0, Vec::new(), vec![to("v1", 3), to("v2", 1)])];
    let snapshot = compile(model(service(1, 0), rules, Vec::new()));
    let (mut cursors, mut rng) = (Cursors::default(), Rng::new(1));
    let refused = (0..400)
        .filter(|_| {
            let plan = decide(&snapshot, None, &get("/").view(), &mut cursors).unwrap();
            let picked = balance::pick(&snapshot, plan.version, &[], &mut rng, at_ms(1));
            picked.err() == Some(Reject::NoEndpoint)
        })
        .count();
    assert_eq!(refused, 100, "a quarter, not shifted to v1");
}

#[test]
fn tags_of_a_target_are_a_version_of_their_own_or_the_named_one_that_has_them() {
    let named = compile(model(
        service(1, 1),
        vec![by_tags(&[("version", "v2")])],
        Vec::new(),
    ));
    assert_eq!(names(&named), ["*", "v1", "v2"]);
    let plan = decide(&named, None, &get("/").view(), &mut Cursors::default()).unwrap();
    assert_eq!(&*named.version(plan.version).name, "v2");

    let mut web = service(1, 1);
    web.endpoints[1].tags.insert("zone".into(), "a".into());
    let rule = by_tags(&[("zone", "a"), ("version", "v2")]);
    let own = compile(model(web, vec![rule], Vec::new()));
    assert_eq!(names(&own), ["*", "v1", "v2", "version=v2,zone=a"]);
    assert_eq!(addresses(&own, "version=v2,zone=a"), ["10.0.2.1"]);

    let empty = compile(model(service(1, 1), vec![by_tags(&[])], Vec::new()));
    let plan = decide(&empty, None, &get("/").view(), &mut Cursors::default()).unwrap();
    assert_eq!(plan.version, empty.port(PORT).all);
}

#[test]
fn endpoint_port_is_its_own_or_the_target() {
    let mut web = service(2, 0);
    web.endpoints[0].ports.insert("http".into(), 55_446);
    let snapshot = compile(model(web, Vec::new(), Vec::new()));
    let ports: Vec<u16> = snapshot
        .version(VersionIx(0))
        .endpoints
        .iter()
        .map(|e| e.address.port())
        .collect();
    assert_eq!(ports, [55_446, 8_080]);
}

#[test]
fn port_is_found_by_every_address_and_name() {
    let mut web = service(1, 0);
    web.ports.push(port("admin", 81, Protocol::Tcp));
    let snapshot = compile(model(web, Vec::new(), Vec::new()));
    let at = |ip: &str, port: u16| snapshot.port_at(ip.parse().unwrap(), port).map(|ix| ix.0);
    assert_eq!(at("10.96.0.1", 80), Some(0));
    assert_eq!(at("::ffff:10.96.0.1", 80), Some(0));
    assert_eq!(at("fd00:96::1", 81), Some(1));
    assert_eq!(at("10.96.0.1", 82), None);
    assert_eq!(at("10.96.0.2", 80), None);
    let named = |host: &str, port: u16| snapshot.port_named(host, port).map(|ix| ix.0);
    for host in [
        "web",
        "WEB.default.svc",
        "web.",
        "default/web",
        "10.96.0.1",
        "fd00:96::1",
        "[fd00:96::1]",
    ] {
        assert_eq!(
            (named(host, 80), named(host, 81)),
            (Some(0), Some(1)),
            "{host}"
        );
    }
    assert_eq!(named("other", 80), None);
    assert_eq!(named("web", 82), None);
}

#[test]
fn port_passes_only_when_there_is_nothing_to_decide() {
    let decided = |change: &dyn Fn(&mut Model)| {
        let mut model = model(service(1, 1), Vec::new(), Vec::new());
        change(&mut model);
        let snapshot = compile(model);
        let port = snapshot.port(PORT);
        (port.path, port.path_reason.clone())
    };
    assert_eq!(decided(&|_| ()), (Path::Pass, "no rule, no policy".into()));
    let proxy = |reason: &str| (Path::Proxy, reason.to_owned());
    assert_eq!(
        decided(&|model| model.services[0].routable = false),
        proxy("nobody else routes the address")
    );
    let with = |matches: Vec<Match>, route: Vec<Target>| {
        decided(&|model| model.rules = vec![rule("r", 0, matches.clone(), route.clone())].into())
    };
    let header = Match {
        methods: vec!["GET".into()].into(),
        ..Match::default()
    };
    assert_eq!(
        with(vec![header], vec![to("v1", 1)]),
        proxy("rule \"r\" matches on HTTP")
    );
    assert_eq!(
        with(Vec::new(), vec![to("v1", 1), to("v2", 1)]),
        proxy("rule \"r\" splits by weight")
    );
    assert_eq!(
        with(Vec::new(), vec![to("v1", 1)]),
        proxy("rule \"r\" chooses endpoints")
    );
    let source = Match {
        source: Some(Box::default()),
        ..Match::default()
    };
    assert_eq!(
        with(vec![source], vec![to("v1", 1)]),
        proxy("rule \"r\" matches the source")
    );

    let kinds: [(&str, Policy); 6] = [
        (
            "breaker",
            Policy {
                breaker: Some(BreakerPolicy::default()),
                ..policy()
            },
        ),
        (
            "ejection",
            Policy {
                ejection: Some(EjectionPolicy::default()),
                ..policy()
            },
        ),
        (
            "rate-limit",
            Policy {
                rate_limits: vec![limit("l", 1)],
                ..policy()
            },
        ),
        (
            "balance",
            Policy {
                balance: Some(Balance::Random.into()),
                ..policy()
            },
        ),
        (
            "timeout",
            Policy {
                timeouts: TimeoutPolicy {
                    idle: Some(secs(1)),
                    ..TimeoutPolicy::default()
                },
                ..policy()
            },
        ),
        (
            "retries",
            Policy {
                retries: Some(retries(1)),
                ..policy()
            },
        ),
    ];
    for (kind, one) in kinds {
        let of_version = Policy {
            version: Some("v2".into()),
            ..one.clone()
        };
        for one in [one.clone(), of_version] {
            let got = decided(&|model| model.policies = vec![one.clone()].into());
            assert_eq!(got, proxy(&format!("policy: {kind}")));
        }
        // Of another port: this one still passes.
        let other = Policy {
            port: Some("admin".into()),
            ..one
        };
        let got = decided(&|model| {
            model.services[0]
                .ports
                .push(port("admin", 81, Protocol::Tcp));
            model.policies = vec![other.clone()].into();
        });
        assert_eq!(got.0, Path::Pass, "{kind}");
    }
}

fn limit(name: &str, requests: u64) -> RateLimitPolicy {
    RateLimitPolicy {
        name: name.to_owned(),
        key: Vec::new(),
        requests,
        per: secs(1),
        burst: requests,
        ..RateLimitPolicy::default()
    }
}

fn retries(attempts: u32) -> RetryPolicy {
    RetryPolicy {
        attempts,
        per_try: None,
        on: Vec::new(),
        statuses: Vec::new(),
        non_idempotent: false,
        backoff: Duration::from_millis(25),
        ..RetryPolicy::default()
    }
}

#[test]
fn effective_policy_is_put_together_field_by_field_most_specific_first() {
    let caps = |n| {
        Some(BreakerPolicy {
            max_requests: n,
            ..BreakerPolicy::default()
        })
    };
    let (v1, http) = (Some("v1".to_owned()), Some("http".to_owned()));
    let idle = |s| TimeoutPolicy {
        idle: Some(secs(s)),
        ..TimeoutPolicy::default()
    };
    let policies = vec![
        Policy {
            breaker: caps(1),
            balance: Some(Balance::Random.into()),
            retries: Some(retries(1)),
            timeouts: TimeoutPolicy {
                request: Some(secs(1)),
                ..idle(1)
            },
            ..policy()
        },
        Policy {
            port: http.clone(),
            breaker: caps(2),
            retries: Some(retries(2)),
            timeouts: idle(2),
            ..policy()
        },
        Policy {
            version: v1.clone(),
            breaker: caps(3),
            timeouts: idle(3),
            ..policy()
        },
        Policy {
            version: v1,
            port: http,
            breaker: caps(4),
            ..policy()
        },
        // Of equally specific ones the first counts.
        Policy {
            breaker: caps(5),
            balance: Some(Balance::RoundRobin.into()),
            ..policy()
        },
    ];
    let mut web = service(1, 1);
    web.ports.push(port("admin", 81, Protocol::Http));
    let snapshot = compile(model(web, Vec::new(), policies));
    let of = |port: usize, name: &str| {
        let versions = snapshot.ports[port]
            .versions
            .iter()
            .map(|ix| snapshot.version(*ix));
        let version = versions
            .into_iter()
            .find(|version| &*version.name == name)
            .unwrap();
        let e = &version.effective;
        assert_eq!(version.breaker.caps(), e.breaker.value);
        assert_eq!(
            (version.idle_timeout, version.balance),
            (e.idle.value, e.balance.value)
        );
        let attempts = e.retries.value.as_ref().unwrap().attempts;
        [
            (e.breaker.from, e.breaker.value.max_requests),
            (e.idle.from, e.idle.value.as_secs() as u32),
            (e.retries.from, attempts),
            (e.request.from, e.request.value.as_secs() as u32),
        ]
    };
    use Origin::{Service, ServicePort, Version, VersionPort};
    assert_eq!(
        of(0, "v1"),
        [
            (VersionPort, 4),
            (Version, 3),
            (ServicePort, 2),
            (Service, 1)
        ]
    );
    assert_eq!(
        of(0, "v2"),
        [
            (ServicePort, 2),
            (ServicePort, 2),
            (ServicePort, 2),
            (Service, 1)
        ]
    );
    assert_eq!(of(0, "*"), of(0, "v2"));
    assert_eq!(
        of(1, "v1"),
        [(Version, 3), (Version, 3), (Service, 1), (Service, 1)]
    );
    assert_eq!(
        of(1, "v2"),
        [(Service, 1), (Service, 1), (Service, 1), (Service, 1)]
    );
    assert!(
        snapshot
            .versions
            .iter()
            .all(|version| version.balance == Balance::Random)
    );
}

#[test]
fn defaults_are_those_that_the_documentation_states() {
    let snapshot = compile(model(service(1, 0), Vec::new(), Vec::new()));
    let version = snapshot.version(VersionIx(0));
    assert_eq!(version.breaker.caps(), BreakerPolicy::default());
    assert_eq!(version.request_timeout, secs(15));
    assert_eq!(version.connect_timeout, secs(5));
    assert_eq!(version.idle_timeout, secs(3_600));
    assert!(version.ejection.is_none() && version.limits.is_empty());
    assert_eq!(
        (version.balance, version.retry.policy.clone()),
        (Balance::LeastRequest, None)
    );
}

#[test]
fn zero_means_no_time_out_but_the_connect_time_out_stays_bounded() {
    let zero = Some(Duration::ZERO);
    let timeouts = TimeoutPolicy {
        request: zero,
        connect: zero,
        idle: zero,
    };
    let snapshot = compile(model(
        service(1, 0),
        Vec::new(),
        vec![Policy {
            timeouts,
            ..policy()
        }],
    ));
    let version = snapshot.version(VersionIx(0));
    assert_eq!(
        (version.request_timeout, version.idle_timeout),
        (Duration::ZERO, Duration::ZERO)
    );
    assert!(!version.connect_timeout.is_zero());
}

#[test]
fn reload_keeps_endpoints_counters_and_identity_over_any_change() {
    let first = compile(model(service(2, 1), Vec::new(), Vec::new()));
    let all = |snapshot: &Snapshot| -> Vec<(u64, String)> {
        let endpoints = &snapshot.version(snapshot.port(PORT).all).endpoints;
        endpoints
            .iter()
            .map(|e| (e.id, e.address.to_string()))
            .collect()
    };
    let before = all(&first);
    let kept = Arc::clone(&first.version(VersionIx(0)).endpoints[0]);
    let permit = first.version(VersionIx(0)).breaker.request(&kept).unwrap();

    // Another service in front, one endpoint gone, one new, one with other tags.
    let mut changed = service(2, 1);
    changed.endpoints.remove(1);
    changed.endpoints[1]
        .tags
        .insert("canary".into(), "yes".into());
    changed.endpoints.push(endpoint("10.0.1.9", "v1"));
    let mut next = model(changed, Vec::new(), Vec::new());
    let mut other = service(1, 0);
    other.name = "other".into();
    other.addresses.clear();
    next.services.insert(0, other);
    let second = recompile(next, &first, at_ms(5));
    let web = second.port_named("default/web", 80).unwrap();
    let version = second.version(second.port(web).all);
    assert!(
        Arc::ptr_eq(&version.endpoints[0], &kept),
        "unchanged: the very same"
    );
    assert_eq!(
        version.endpoints[1].id, before[2].0,
        "changed tags: the same identity"
    );
    assert!(
        before.iter().all(|(id, _)| *id != version.endpoints[2].id),
        "new: a new one"
    );
    assert_eq!(
        (version.breaker.gauges().requests, kept.live.in_flight()),
        (1, 1)
    );
    drop(permit);
    assert_eq!(
        (version.breaker.gauges().requests, kept.live.in_flight()),
        (0, 0)
    );
    assert_eq!(second.generation, first.generation + 1);
}

#[test]
fn snapshot_that_is_put_back_has_its_own_caps_in_force() {
    let capped = |max_requests| {
        let breaker = BreakerPolicy {
            max_requests,
            ..BreakerPolicy::default()
        };
        let policy = Policy {
            breaker: Some(breaker),
            ..policy()
        };
        model(service(1, 0), Vec::new(), vec![policy])
    };
    let first = compile(capped(5));
    let cap = || first.version(VersionIx(0)).breaker.caps().max_requests;
    let second = recompile(capped(9), &first, at_ms(1));
    assert_eq!(cap(), 9);
    first.enforce();
    assert_eq!(cap(), 5);
    second.sweep(at_ms(2));
    assert_eq!(cap(), 5, "a sweep changes only what was never in force");
}

#[test]
fn endpoint_that_becomes_unready_is_left_out_at_once() {
    let first = compile(model(service(2, 0), Vec::new(), Vec::new()));
    let mut next = service(2, 0);
    next.endpoints[0].healthy = false;
    let second = recompile(model(next, Vec::new(), Vec::new()), &first, at_ms(1));
    let mut rng = Rng::new(1);
    for _ in 0..100 {
        let chosen = balance::pick(&second, VersionIx(0), &[], &mut rng, at_ms(1)).unwrap();
        assert_eq!(chosen.address.ip().to_string(), "10.0.1.2");
    }
}

#[test]
fn breakers_are_per_version_and_port() {
    let mut web = service(1, 1);
    web.ports.push(port("admin", 81, Protocol::Http));
    let snapshot = compile(model(web, Vec::new(), Vec::new()));
    let breakers: std::collections::HashSet<_> = snapshot
        .versions
        .iter()
        .map(|version| Arc::as_ptr(&version.breaker))
        .collect();
    assert_eq!(breakers.len(), 6);
}

#[test]
fn rule_change_applies_to_the_next_decision_through_the_new_snapshot() {
    let with = |version: &str| {
        model(
            service(1, 1),
            vec![rule("r", 0, Vec::new(), vec![to(version, 1)])],
            Vec::new(),
        )
    };
    let mut cursors = Cursors::default();
    let mut to_of = |snapshot: &Snapshot| {
        let plan = decide(snapshot, None, &get("/").view(), &mut cursors).unwrap();
        snapshot.version(plan.version).name.to_string()
    };
    let first = compile(with("v1"));
    let second = recompile(with("v2"), &first, at_ms(1));
    assert_eq!((to_of(&first), to_of(&second)), ("v1".into(), "v2".into()));
}

#[test]
fn sources_are_found_by_namespace_and_name() {
    let mut model = model(service(1, 0), Vec::new(), Vec::new());
    model.workloads = vec![workload("a", &[("app", "a")]), workload("b", &[])];
    let snapshot = compile(model);
    let a = snapshot.source("default/a").unwrap();
    assert_eq!(&*snapshot.source_of(a).workload, "a");
    assert_eq!(snapshot.source_of(a).tags, tags(&[("app", "a")]));
    assert_eq!(snapshot.source("a"), None);
}

#[test]
fn empty_snapshot_knows_nothing_and_asks_nothing_of_the_kernel() {
    let snapshot = Snapshot::empty();
    assert_eq!(snapshot.port_at("10.96.0.1".parse().unwrap(), 80), None);
    assert_eq!(snapshot.kernel_table().services.len(), 0);
    assert!(snapshot.sweep(at_ms(100_000)).is_empty());
    assert!(snapshot.describe_services().is_empty());
}

#[test]
fn policy_of_an_unknown_service_or_rule_index_is_left_out_without_panic() {
    let mut odd = model(service(1, 0), Vec::new(), Vec::new());
    odd.rules = vec![Rule {
        service: 9,
        ..rule("r", 0, Vec::new(), vec![to("v1", 1)])
    }]
    .into();
    odd.policies = vec![Policy {
        service: 9,
        ..policy()
    }]
    .into();
    odd.rules
        .push(rule("typo", 0, Vec::new(), vec![to("v9", 1)]));
    let snapshot = compile(odd);
    let plan = decide(&snapshot, None, &get("/").view(), &mut Cursors::default()).unwrap();
    assert!(
        snapshot.version(plan.version).endpoints.is_empty(),
        "an unknown version is empty"
    );
}
