//! Bytes, concurrency, overrides, conditions, dry runs, rules' own limits, and answers.

use super::*;
use crate::model::{
    LimitUnit, Match, Rule, RuleExtra,
    limit::{LimitAnswer, LimitOverride},
};

fn bytes(name: &str, requests: u64, burst: u64) -> RateLimitPolicy {
    RateLimitPolicy {
        unit: LimitUnit::Bytes,
        ..limit(name, Vec::new(), requests, secs(1), burst)
    }
}

fn concurrent(key: Vec<Attribute>, most: u64) -> RateLimitPolicy {
    RateLimitPolicy {
        unit: LimitUnit::Concurrent,
        ..limit("c", key, most, Duration::ZERO, most)
    }
}

#[test]
fn closed_loop_of_bytes_passes_burst_and_rate_and_at_most_one_request_more() {
    let seed = 5;
    let mut rng = Rng::new(seed);
    for rate in [1_000_u64, 1_000_000, 5_000_000_000] {
        for burst in [1_000, 1_000_000] {
            for seconds in [1, 10] {
                let snapshot = compile(limited(vec![bytes("b", rate, burst)]));
                // Requests of about a tenth of a second's bytes.
                let most = (rate / 10).max(2) as u32;
                let (mut now, mut passed) = (MonoNanos(0), 0);
                let end = at_ms(seconds * 1_000);
                while now < end {
                    let mut verdict = ask(&snapshot, None, &get("/"), now);
                    if verdict.refused.is_none() {
                        let size = u64::from(rng.below(most));
                        passed += size;
                        verdict.held.as_mut().unwrap().end(size, now);
                    } else {
                        let wait = rate.min(1_000_000);
                        now = now.after(Duration::from_micros(1_000_000 / wait + 100));
                    }
                    now = MonoNanos(now.0 + 1);
                }
                let expected = burst + rate * seconds;
                let what = format!("rate {rate}, burst {burst}, {seconds} s: {passed}");
                assert!(passed <= expected + u64::from(most), "{what}");
                assert!(passed * 100 >= expected * 99, "{what}");
            }
        }
    }
}

#[test]
fn debt_of_bytes_is_paid_off_before_the_next_request_and_retry_after_says_when() {
    let keyed = RateLimitPolicy {
        key: vec![Attribute::Path],
        ..bytes("b", 1_000, 500)
    };
    for limit in [bytes("b", 1_000, 500), keyed] {
        let snapshot = compile(limited(vec![limit]));
        let mut verdict = ask(&snapshot, None, &get("/"), at_ms(0));
        assert_eq!((verdict.refused, verdict.asked[0].left), (None, 500));
        assert!(
            verdict
                .policy_field()
                .starts_with("\"b\";q=500;w=1;qu=\"content-bytes\"")
        );
        // 10,000 more than there are: 10 s of debt.
        verdict.held.as_mut().unwrap().end(10_500, at_ms(0));
        let refused = ask(&snapshot, None, &get("/"), at_ms(1));
        assert_eq!(refused.refused, Some(0));
        let wait = refused.retry_after_s().unwrap();
        assert_eq!(wait, 10);
        assert!(
            ask(&snapshot, None, &get("/"), at_ms(9_000))
                .refused
                .is_some()
        );
        assert!(
            ask(&snapshot, None, &get("/"), at_ms(1 + wait * 1_000))
                .refused
                .is_none()
        );
    }
}

#[test]
fn concurrent_requests_are_counted_by_key_until_their_end() {
    let key = vec![Attribute::Header("x".into())];
    let snapshot = compile(limited(vec![concurrent(key, 2)]));
    let of = |value: &str| ask(&snapshot, None, &get("/").with("x", value), at_ms(1));
    let (first, mut second) = (of("a"), of("a"));
    assert_eq!((first.refused, second.refused), (None, None));
    assert_eq!(second.asked[0].left, 0);
    let third = of("a");
    assert_eq!(third.refused, Some(0));
    assert_eq!(
        third.retry_after_s(),
        None,
        "nobody knows when a place is free"
    );
    let field = third.policy_field();
    assert!(
        field.starts_with("\"c\";q=2;qu=\"concurrent-requests\";pk=:"),
        "{field}"
    );
    assert!(third.limit_field().starts_with("\"c\";r=0;pk=:"));
    assert!(of("b").refused.is_none(), "another key");
    // One ends, the other is cut short: both give their places back, once.
    second.held.as_mut().unwrap().end(5, at_ms(2));
    drop(second);
    let fourth = of("a");
    assert_eq!(fourth.refused, None);
    assert_eq!(of("a").refused, Some(0));
    drop((first, fourth));
    let again = ["a"; 3].map(|key| of(key).refused);
    assert_eq!(
        again,
        [None, None, None],
        "each was dropped before the next"
    );
}

#[test]
fn hundred_places_are_never_exceeded_by_sixteen_threads_and_none_is_lost() {
    let snapshot = compile(limited(vec![concurrent(Vec::new(), 100)]));
    let (running, most, admitted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..16_u64 {
            let (snapshot, running, most, admitted) = (&snapshot, &running, &most, &admitted);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                let mut held = Vec::new();
                for _ in 0..5_000 {
                    let verdict = ask(snapshot, None, &get("/"), at_ms(1));
                    if verdict.refused.is_none() {
                        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(now, Ordering::SeqCst);
                        admitted.fetch_add(1, Ordering::Relaxed);
                        held.push(verdict);
                    }
                    if held.len() > rng.below(20) as usize {
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(held.pop());
                    }
                }
                running.fetch_sub(held.len() as u64, Ordering::SeqCst);
            });
        }
    });
    assert!(most.into_inner() <= 100);
    assert!(admitted.into_inner() > 1_000);
    let all: Vec<Verdict> = (0..101)
        .map(|_| ask(&snapshot, None, &get("/"), at_ms(2)))
        .collect();
    let refused = all
        .iter()
        .filter(|verdict| verdict.refused.is_some())
        .count();
    assert_eq!(refused, 1, "all places are free again");
}

#[test]
fn override_gives_other_values_and_buckets_and_the_first_that_holds_counts() {
    let when = |pairs: &[(Attribute, &str)]| -> Vec<(Attribute, String)> {
        pairs
            .iter()
            .map(|(key, value)| (key.clone(), (*value).to_owned()))
            .collect()
    };
    let other = |when, burst| LimitOverride {
        when,
        requests: 1,
        per: secs(1_000),
        burst,
    };
    let identity = "spiffe://cluster.local/ns/default/sa/a";
    let policy = RateLimitPolicy {
        overrides: vec![
            other(
                when(&[
                    (Attribute::SourceIdentity, identity),
                    (Attribute::Method, "PUT"),
                ]),
                1,
            ),
            other(when(&[(Attribute::SourceIdentity, identity)]), 5),
            other(when(&[(Attribute::SourceAddress, "10.0.0.9")]), 3),
        ],
        ..limit("l", Vec::new(), 1, secs(1_000), 2)
    };
    let snapshot = compile(limited(vec![policy]));
    let count = |source: Option<&str>, address: Option<&str>, method: &str| {
        let client = Client {
            unix_s: 0,
            source: source.and_then(|key| snapshot.source(key)),
            address: address.map(|address| address.parse().unwrap()),
        };
        let one = get("/").method(method);
        let admitted = || {
            let view = one.view();
            admit(
                &snapshot,
                &ALL,
                client,
                Some(&view),
                at_ms(1),
                &mut NoObserver,
            )
        };
        (0..20).filter(|_| admitted().refused.is_none()).count()
    };
    assert_eq!(count(Some("default/a"), None, "GET"), 5);
    assert_eq!(count(Some("default/a"), None, "PUT"), 1);
    assert_eq!(count(Some("default/b"), None, "GET"), 2);
    assert_eq!(
        count(None, None, "GET"),
        0,
        "shares the limit's own bucket with b"
    );
    assert_eq!(count(None, Some("::ffff:10.0.0.9"), "GET"), 3);
}

#[test]
fn limit_with_a_condition_leaves_other_requests_alone() {
    let put = Match {
        methods: vec!["PUT".into()].into(),
        ..Match::default()
    };
    let of_a = Match {
        source: Some(Box::new(crate::model::SourceMatch {
            workload: Some("a".into()),
            ..Default::default()
        })),
        ..Match::default()
    };
    let policy = RateLimitPolicy {
        matches: vec![put, of_a],
        ..limit("l", Vec::new(), 1, secs(1_000), 1)
    };
    let snapshot = compile(limited(vec![policy.clone()]));
    let a = snapshot.source("default/a");
    for _ in 0..5 {
        let verdict = ask(&snapshot, None, &get("/"), at_ms(1));
        assert_eq!((verdict.refused, verdict.asked.len()), (None, 0));
    }
    assert_eq!(
        ask(&snapshot, None, &get("/").method("PUT"), at_ms(1)).refused,
        None
    );
    assert_eq!(
        ask(&snapshot, None, &get("/").method("PUT"), at_ms(1)).refused,
        Some(0)
    );
    assert_eq!(ask(&snapshot, a, &get("/"), at_ms(1)).refused, Some(0));
    // Another order of workloads in the next snapshot: the limiter goes on, its condition follows.
    let mut model = limited(vec![policy]);
    model.workloads.reverse();
    let next = recompile(model, &snapshot, at_ms(2));
    let (a, b) = (next.source("default/a"), next.source("default/b"));
    assert_ne!(a, snapshot.source("default/a"));
    assert_eq!(ask(&next, b, &get("/"), at_ms(3)).refused, None);
    assert_eq!(ask(&next, a, &get("/"), at_ms(3)).refused, Some(0));
}

#[test]
fn dry_run_refuses_nothing_and_counts_what_it_would_have() {
    let dry = RateLimitPolicy {
        dry_run: true,
        ..limit("dry", Vec::new(), 1, secs(1_000), 3)
    };
    let wide = limit("wide", Vec::new(), 1, secs(1_000), 10);
    let snapshot = compile(limited(vec![dry, wide]));
    let mut marked = 0;
    for n in 0..12 {
        let verdict = ask(&snapshot, None, &get("/"), at_ms(1));
        assert_eq!(verdict.refused.is_some(), n >= 10, "{n}");
        // A client is not told of it.
        assert_eq!(verdict.asked.len(), 1);
        let mark = verdict.held.as_ref().and_then(|held| held.dry_run());
        marked += usize::from(mark == Some("dry"));
    }
    assert_eq!(marked, 7);
    let rows = snapshot.limit_rows();
    let of = |name: &str| rows.iter().find(|row| row.limit == name).unwrap().counts;
    // What another limit refuses is none of its.
    assert_eq!(of("dry"), [3, 0, 7, 0, 0]);
    assert_eq!(of("wide"), [10, 2, 0, 0, 0]);
}

fn with_rule_limit(rule_burst: u64, version_burst: u64) -> Model {
    let mut model = limited(vec![limit("v", Vec::new(), 1, secs(1_000), version_burst)]);
    model.services[0]
        .ports
        .push(super::super::super::fixture::port(
            "other",
            81,
            crate::model::Protocol::Http,
        ));
    model.rules.push(Rule {
        name: "r".into(),
        matches: vec![Match {
            methods: vec!["GET".into()].into(),
            ..Match::default()
        }],
        route: vec![crate::model::Target::default()],
        extra: Some(Box::new(RuleExtra {
            rate_limits: vec![limit("r", Vec::new(), 1, secs(1_000), rule_burst)],
            ..RuleExtra::default()
        })),
        ..Rule::default()
    });
    model.rules.push(Rule {
        name: "rest".into(),
        route: vec![crate::model::Target::default()],
        ..Rule::default()
    });
    model
}

#[test]
fn rule_and_version_must_both_admit_and_ports_share_the_rules_limit() {
    let decide = |snapshot: &Snapshot, port: u32, method: &str| {
        let one = get("/").method(method);
        let mut cursors = crate::policy::split::Cursors::default();
        let plan = crate::policy::route::decide(
            snapshot,
            crate::policy::PortIx(port),
            None,
            &one.view(),
            &mut cursors,
            &mut NoObserver,
        );
        let plan = plan.unwrap();
        admit(
            snapshot,
            &plan,
            None,
            Some(&one.view()),
            at_ms(1),
            &mut NoObserver,
        )
    };
    let snapshot = compile(with_rule_limit(2, 10));
    let first = decide(&snapshot, 0, "GET");
    let names: Vec<&str> = first.asked.iter().map(|asked| &*asked.name).collect();
    assert_eq!(names, ["r", "v"]);
    assert_eq!(decide(&snapshot, 1, "GET").refused, None);
    assert_eq!(
        decide(&snapshot, 0, "GET").refused,
        Some(0),
        "on both ports together"
    );
    assert_eq!(decide(&snapshot, 0, "PUT").asked.len(), 1, "another rule");
    let narrow = compile(with_rule_limit(10, 1));
    assert_eq!(decide(&narrow, 0, "GET").refused, None);
    let refused = decide(&narrow, 0, "GET");
    assert_eq!((refused.refused, refused.asked[0].left), (Some(1), 9));
    // A reload keeps the level, and the counts even when the limit changes.
    let next = recompile(with_rule_limit(2, 10), &snapshot, at_ms(2));
    assert_eq!(decide(&next, 0, "GET").refused, Some(0));
    let counts = |snapshot: &Snapshot| {
        let rows = snapshot.limit_rows();
        rows.iter()
            .find(|row| row.limit == "rule/r/r")
            .unwrap()
            .counts
    };
    assert_eq!(counts(&next), [2, 2, 0, 0, 0]);
    let changed = recompile(with_rule_limit(3, 10), &next, at_ms(2));
    assert_eq!(decide(&changed, 0, "GET").refused, None);
    assert_eq!(counts(&changed), [3, 2, 0, 0, 0]);
}

#[test]
fn answer_of_the_refusing_limit_has_its_status_and_fields() {
    let policy = RateLimitPolicy {
        answer: LimitAnswer {
            status: 503,
            grpc_unavailable: true,
            draft_03: true,
            envoy_ratelimited: true,
        },
        ..limit("l", Vec::new(), 1, secs(10), 1)
    };
    let snapshot = compile(limited(vec![
        policy,
        limit("m", Vec::new(), 100, secs(1), 100),
    ]));
    let admitted = ask(&snapshot, None, &get("/"), at_ms(1));
    assert!(!admitted.is_envoy_ratelimited());
    let told = admitted.draft_03().unwrap();
    assert_eq!(told, ["1, 1;w=10;name=\"l\"", "0", "10"].map(str::to_owned));
    let refused = ask(&snapshot, None, &get("/"), at_ms(1));
    let reject = refused.reject().unwrap();
    assert_eq!(reject, crate::policy::Reject::RateLimited);
    assert_eq!(
        (refused.status(reject), refused.grpc_status(reject)),
        (503, 14)
    );
    assert!(refused.is_envoy_ratelimited());
    let plain = compile(limited(vec![limit("l", Vec::new(), 1, secs(10), 1)]));
    let _first = ask(&plain, None, &get("/"), at_ms(1));
    let refused = ask(&plain, None, &get("/"), at_ms(1));
    let reject = refused.reject().unwrap();
    assert_eq!(
        (refused.status(reject), refused.grpc_status(reject)),
        (429, 8)
    );
    assert!(!refused.is_envoy_ratelimited() && refused.draft_03().is_none());
}

#[test]
fn wall_clock_is_asked_by_no_limit() {
    // All of time comes from the caller, and the proxy's is CLOCK_MONOTONIC: a step of the wall
    // clock reaches no bucket.
    for file in [
        "bucket.rs",
        "keyed.rs",
        "lease.rs",
        "limiter.rs",
        "global.rs",
        "held.rs",
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy/rate_limit");
        let text = std::fs::read_to_string(path.join(file)).unwrap();
        for clock in ["SystemTime", "Instant", "clock::now"] {
            assert!(!text.contains(clock), "{file} asks {clock}");
        }
    }
}

#[test]
fn places_of_keys_that_ended_take_no_memory() {
    let places = places::Places::new();
    for key in 0..10_000_u64 {
        assert_eq!(places.take(key << 40, 1), Ok(0));
        assert_eq!(places.take(key << 40, 1), Err(1));
    }
    assert_eq!(places.keys(), 10_000);
    for key in 0..10_000_u64 {
        places.give_back(key << 40);
    }
    assert_eq!(places.keys(), 0);
}
