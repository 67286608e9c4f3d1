use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use super::{
    super::{
        NoObserver, SourceIx, VersionIx,
        fixture::{
            Ask, PORT, at_ms, compile, get, model, policy, recompile, secs, service, workload,
        },
        request::HeaderList,
        rng::Rng,
    },
    *,
};
use crate::model::{Attribute, Model, Policy};

fn limit(
    name: &str,
    key: Vec<Attribute>,
    requests: u64,
    per: Duration,
    burst: u64,
) -> RateLimitPolicy {
    RateLimitPolicy {
        name: name.to_owned(),
        key,
        requests,
        per,
        burst,
    }
}

fn limited(limits: Vec<RateLimitPolicy>) -> Model {
    let limits = Policy {
        rate_limits: limits,
        ..policy()
    };
    let mut model = model(service(1, 1), Vec::new(), vec![limits]);
    model.workloads = vec![
        workload("a", &[("app", "x")]),
        workload("b", &[("app", "x")]),
    ];
    model
}

const ALL: Plan = Plan {
    port: PORT,
    rule: None,
    target: 0,
    version: VersionIx(0),
    session: None,
};

fn ask(snapshot: &Snapshot, source: Option<SourceIx>, ask: &Ask, now: MonoNanos) -> Verdict {
    admit(
        snapshot,
        &ALL,
        source,
        Some(&ask.view()),
        now,
        &mut NoObserver,
    )
}

fn is_admitted(snapshot: &Snapshot, now: MonoNanos) -> bool {
    ask(snapshot, None, &get("/"), now).refused.is_none()
}

#[test]
fn burst_is_admitted_and_one_more_is_not() {
    for burst in [1, 2, 100] {
        let snapshot = compile(limited(vec![limit("l", Vec::new(), 1, secs(1), burst)]));
        let admitted = (0..2 * burst)
            .filter(|_| is_admitted(&snapshot, at_ms(5)))
            .count() as u64;
        assert_eq!(admitted, burst);
    }
}

/// Attempts from 0 to `end`, `gap` apart (in nanoseconds): how many were admitted.
fn attempts(snapshot: &Snapshot, end: MonoNanos, mut gap: impl FnMut() -> u64) -> u64 {
    let (mut now, mut admitted) = (MonoNanos(0), 0);
    while is_admitted(snapshot, now) {
        admitted += 1;
    }
    while now < end {
        now = MonoNanos(now.0 + gap()).min(end);
        admitted += u64::from(is_admitted(snapshot, now));
    }
    admitted
}

#[test]
fn closed_loop_admits_burst_plus_rate_over_three_decades() {
    let seed = 77;
    let mut rng = Rng::new(seed);
    for burst in [1, 10, 100, 1_000] {
        for rate in [1, 10, 100, 1_000_u64] {
            for seconds in [1, 10, 100] {
                let limited = || {
                    let limit = limit("l", Vec::new(), rate, secs(1), burst);
                    compile(limited(vec![limit]))
                };
                let expected = burst + rate * seconds;
                let quarter = 1_000_000_000 / rate / 4;
                let end = at_ms(seconds * 1_000);
                let what = format!("B {burst}, r {rate}, T {seconds} s, seed {seed}");
                // Always there when a token is: nothing is lost, nothing is given away.
                assert_eq!(attempts(&limited(), end, || quarter), expected, "{what}");
                // At uneven times: never more.
                let uneven = attempts(&limited(), end, || {
                    1 + u64::from(rng.below(3 * quarter as u32))
                });
                assert!(uneven <= expected, "{what}: {uneven}");
                assert!(
                    burst == 1 || uneven * 100 >= expected * 99 - 100,
                    "{what}: {uneven}"
                );
            }
        }
    }
}

#[test]
fn rates_that_divide_badly_are_kept_within_a_thousandth() {
    for (requests, per, tokens) in [
        (3, secs(1), 100),
        (7, secs(1), 100),
        (333, secs(1), 1_000),
        (1_000_003, secs(1), 10_000),
        (7, secs(3_600), 100),
    ] {
        let shape = Shape::new(requests, per, 1, MonoNanos(0));
        let word = AtomicU64::new(0);
        // So often that little is lost by coming late.
        let token = per.as_nanos() as u64 / requests;
        let (step, end) = ((token / 2_000).max(1), token * tokens);
        let (mut now, mut admitted) = (0, 0_u64);
        while now <= end {
            admitted += u64::from(shape.take(&word, shape.time(MonoNanos(now))).admitted);
            now += step;
        }
        let what = format!("{requests} in {per:?}: {admitted} of {tokens}");
        assert!(admitted <= tokens + 1, "{what}");
        assert!(admitted * 1_000 >= tokens * 998, "{what}");
    }
}

#[test]
fn sixteen_threads_share_one_exact_bucket() {
    let keyed = vec![Attribute::Header("x".into())];
    for key in [Vec::new(), keyed] {
        let snapshot = compile(limited(vec![limit("l", key, 1_000, secs(1), 50)]));
        let clock = AtomicU64::new(0);
        let admitted = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let one = get("/").with("x", "same");
                    loop {
                        // One clock for all, 10 us further with each request: 2 s in all.
                        let now = clock.fetch_add(10_000, Ordering::Relaxed);
                        if now > 2_000_000_000 {
                            break;
                        }
                        if ask(&snapshot, None, &one, MonoNanos(now)).refused.is_none() {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let admitted = admitted.into_inner();
        assert!(admitted <= 2_050, "{admitted}");
        assert!(admitted >= 2_030, "{admitted}");
    }
}

#[test]
fn burst_after_idle_is_the_bucket_and_no_more() {
    let snapshot = compile(limited(vec![limit("l", Vec::new(), 10, secs(1), 5)]));
    for now in [0, 3_600_000, 10 * 3_600_000] {
        let admitted = (0..100)
            .filter(|_| is_admitted(&snapshot, at_ms(now)))
            .count();
        assert_eq!(admitted, 5);
    }
}

#[test]
fn clock_that_steps_back_admits_nothing_more() {
    let snapshot = compile(limited(vec![limit("l", Vec::new(), 1, secs(1), 2)]));
    assert!(is_admitted(&snapshot, at_ms(7_200_000)));
    assert!(is_admitted(&snapshot, at_ms(7_200_000)));
    assert!(!is_admitted(&snapshot, at_ms(3_600_000)));
    assert!(!is_admitted(&snapshot, at_ms(0)));
    assert!(is_admitted(&snapshot, at_ms(7_201_000)));
}

#[test]
fn client_that_waits_retry_after_is_admitted_and_one_second_less_would_not_do() {
    for (requests, per, burst) in [
        (1, secs(1), 1),
        (1, secs(60), 3),
        (10, secs(1), 5),
        (3, secs(7), 2),
        (1, secs(3_600), 1),
    ] {
        let snapshot = compile(limited(vec![limit("l", Vec::new(), requests, per, burst)]));
        let mut now = at_ms(123_457);
        let refused = loop {
            let verdict = ask(&snapshot, None, &get("/"), now);
            if verdict.refused.is_some() {
                break verdict;
            }
            now = now.after(Duration::from_millis(13));
        };
        let wait = refused.retry_after_s().unwrap();
        assert_eq!(wait, refused.asked[0].reset_s);
        if wait > 1 {
            assert!(
                !is_admitted(&snapshot, now.after(secs(wait - 1))),
                "{requests} in {per:?}"
            );
        }
        assert!(
            is_admitted(&snapshot, now.after(secs(wait))),
            "{requests} in {per:?}"
        );
    }
}

#[test]
fn fields_are_structured_fields_with_quota_window_rest_and_reset() {
    let limits = vec![
        limit("perhr", Vec::new(), 1_000, secs(3_600), 1_000),
        limit("odd \"n\\me", vec![Attribute::Path], 1, secs(2), 3),
    ];
    let snapshot = compile(limited(limits));
    let verdict = ask(&snapshot, None, &get("/a"), at_ms(1));
    assert_eq!(verdict.refused, None);
    assert_eq!(
        verdict.policy_field(),
        r#""perhr";q=1000;w=3600, "odd \"n\\me";q=3;w=6"#
    );
    assert_eq!(
        verdict.limit_field(),
        r#""perhr";r=999;t=4, "odd \"n\\me";r=2;t=2"#
    );
    assert_eq!(verdict.retry_after_s(), None);
    assert_eq!(Verdict::default().policy_field(), "");
}

#[test]
fn integers_in_fields_stay_in_their_range_and_names_in_ascii() {
    let snapshot = compile(limited(vec![limit(
        "größe\n",
        Vec::new(),
        u64::MAX,
        secs(1),
        u64::MAX,
    )]));
    let verdict = ask(&snapshot, None, &get("/"), at_ms(1));
    assert!(
        verdict
            .policy_field()
            .starts_with("\"gr??e?\";q=999999999999999;w=")
    );
}

#[test]
fn refused_request_spends_nothing_of_the_other_limits() {
    let limits = vec![
        limit("wide", Vec::new(), 1, secs(1_000), 10),
        limit("narrow", Vec::new(), 1, secs(1_000), 1),
        limit("keyed", vec![Attribute::Method], 1, secs(1_000), 10),
    ];
    let snapshot = compile(limited(limits));
    assert_eq!(ask(&snapshot, None, &get("/"), at_ms(1)).refused, None);
    for _ in 0..50 {
        let verdict = ask(&snapshot, None, &get("/"), at_ms(1));
        assert_eq!(verdict.refused, Some(1));
        let left: Vec<u64> = verdict.asked.iter().map(|asked| asked.left).collect();
        assert_eq!(left, [9, 0, 9]);
    }
}

#[test]
fn keys_have_buckets_of_their_own() {
    let sources = |key: Attribute, asks: &[(Option<&str>, Ask)]| -> Vec<bool> {
        let snapshot = compile(limited(vec![limit("l", vec![key], 1, secs(1_000), 1)]));
        asks.iter()
            .map(|(source, one)| {
                let source = source.and_then(|key| snapshot.source(key));
                ask(&snapshot, source, one, at_ms(1)).refused.is_none()
            })
            .collect()
    };
    let (a, b, unknown) = (Some("default/a"), Some("default/b"), None);
    let root = || get("/");
    let three = [
        (a, root()),
        (b, root()),
        (a, root()),
        (unknown, root()),
        (unknown, root()),
    ];
    assert_eq!(
        sources(Attribute::SourceWorkload, &three),
        [true, true, false, true, false]
    );
    assert_eq!(
        sources(Attribute::SourceIdentity, &three),
        [true, true, false, true, false]
    );
    assert_eq!(
        sources(Attribute::SourceNamespace, &three),
        [true, false, false, true, false]
    );
    assert_eq!(
        sources(Attribute::SourceTag("app".into()), &three),
        [true, false, false, true, false]
    );
    // Who has no such tag shares one bucket, known or not.
    assert_eq!(
        sources(Attribute::SourceTag("no".into()), &three),
        [true, false, false, false, false]
    );
    assert_eq!(
        sources(Attribute::Destination, &three),
        [true, false, false, false, false]
    );
    let asks = [
        (a, root().with("x", "1")),
        (b, root().with("x", "1")),
        (a, root().with("x", "2")),
        (a, root()),
        (b, root()),
        // There, but empty: not the same as missing.
        (a, root().with("x", "")),
        (a, root().with("x", "1").with("x", "2")),
        (a, root().with("x", "1, 2")),
    ];
    let expected = [true, false, true, true, false, true, true, false];
    assert_eq!(sources(Attribute::Header("x".into()), &asks), expected);
    let asks = [
        (a, get("/a")),
        (a, get("/a?q")),
        (a, get("/b")),
        (a, get("/a").method("PUT")),
    ];
    assert_eq!(sources(Attribute::Path, &asks), [true, false, true, false]);
    assert_eq!(
        sources(Attribute::Method, &asks),
        [true, false, false, true]
    );
}

#[test]
fn combined_keys_do_not_run_into_each_other() {
    let key = vec![Attribute::Header("x".into()), Attribute::Header("y".into())];
    let snapshot = compile(limited(vec![limit("l", key, 1, secs(1_000), 1)]));
    for (x, y) in [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")] {
        let one = get("/").with("x", x).with("y", y);
        assert_eq!(
            ask(&snapshot, None, &one, at_ms(1)).refused,
            None,
            "{x:?} {y:?}"
        );
        assert_eq!(
            ask(&snapshot, None, &one, at_ms(1)).refused,
            Some(0),
            "{x:?} {y:?}"
        );
    }
}

#[test]
fn versions_share_the_service_limit_unless_the_key_says_version() {
    let v2 = Plan {
        version: VersionIx(2),
        ..ALL
    };
    for (key, expected) in [(Vec::new(), Some(0)), (vec![Attribute::Version], None)] {
        let snapshot = compile(limited(vec![limit("l", key, 1, secs(1_000), 1)]));
        assert_eq!(ask(&snapshot, None, &get("/"), at_ms(1)).refused, None);
        let second = admit(
            &snapshot,
            &v2,
            None,
            Some(&get("/").view()),
            at_ms(1),
            &mut NoObserver,
        );
        assert_eq!(second.refused, expected);
    }
}

#[test]
fn opaque_connection_is_limited_by_what_it_has() {
    let key = vec![Attribute::SourceWorkload, Attribute::Path];
    let snapshot = compile(limited(vec![limit("l", key, 1, secs(1_000), 1)]));
    let connect = |source: &str| {
        let source = snapshot.source(source);
        admit::<HeaderList>(&snapshot, &ALL, source, None, at_ms(1), &mut NoObserver).refused
    };
    assert_eq!(connect("default/a"), None);
    assert_eq!(connect("default/a"), Some(0));
    assert_eq!(connect("default/b"), None);
}

#[test]
fn peek_spends_nothing_and_says_what_admit_will_say() {
    let limits = vec![limit("l", vec![Attribute::Path], 1, secs(1_000), 2)];
    let snapshot = compile(limited(limits));
    let look = || {
        let one = get("/a");
        peek(
            &snapshot,
            &ALL,
            None,
            Some(&one.view()),
            at_ms(1),
            &mut NoObserver,
        )
    };
    for left in [2, 1] {
        for _ in 0..10 {
            assert_eq!((look().refused, look().asked[0].left), (None, left));
        }
        assert_eq!(ask(&snapshot, None, &get("/a"), at_ms(1)).refused, None);
    }
    assert_eq!((look().refused, look().asked[0].left), (Some(0), 0));
}

#[test]
fn reload_keeps_the_level_of_an_unchanged_limit_only() {
    let with = |burst| {
        limited(vec![limit(
            "l",
            vec![Attribute::Path],
            1,
            secs(1_000),
            burst,
        )])
    };
    let first = compile(with(2));
    assert!(is_admitted(&first, at_ms(1)) && is_admitted(&first, at_ms(1)));
    let second = recompile(with(2), &first, at_ms(2));
    assert!(!is_admitted(&second, at_ms(3)));
    let third = recompile(with(3), &second, at_ms(4));
    assert!(is_admitted(&third, at_ms(5)));
}

#[test]
fn version_limit_replaces_the_service_limit() {
    let mut model = limited(vec![limit("service", Vec::new(), 1, secs(1_000), 1)]);
    let of_v1 = vec![limit("v1", Vec::new(), 1, secs(1_000), 5)];
    model.policies.push(Policy {
        version: Some("v1".into()),
        rate_limits: of_v1,
        ..policy()
    });
    let snapshot = compile(model);
    let v1 = Plan {
        version: VersionIx(1),
        ..ALL
    };
    let verdict = admit(
        &snapshot,
        &v1,
        None,
        Some(&get("/").view()),
        at_ms(1),
        &mut NoObserver,
    );
    assert_eq!(verdict.asked.len(), 1);
    assert_eq!(&*verdict.asked[0].name, "v1");
}

/// Spreads consecutive numbers as the keyed hash does.
fn spread(n: u64) -> u64 {
    super::super::hash::of(99, &n.to_le_bytes())
}

#[test]
fn keys_beyond_the_bound_are_never_admitted_more_than_the_burst() {
    // Twice as many keys as places, all in use: memory stays bounded, and no key gets more
    // than its burst, whoever shares with whom.
    let buckets = Buckets::new();
    let shape = Shape::new(1, secs(1_000_000), 3, MonoNanos(0));
    let keys = 2 * KEYS_MAX as u64;
    let mut admitted = vec![0_u8; keys as usize];
    for _ in 0..5 {
        for key in 0..keys {
            let taken = buckets.take(&shape, spread(key), shape.time(at_ms(1_000)));
            admitted[key as usize] += u8::from(taken.answer.admitted);
        }
    }
    assert!(admitted.iter().all(|count| *count <= 3));
    let full = admitted.iter().filter(|count| **count == 3).count();
    assert!(
        full > KEYS_MAX * 3 / 4,
        "{full} keys have a bucket of their own"
    );
    assert!(buckets.in_use(shape.time(at_ms(1_000))) <= KEYS_MAX);
}

#[test]
fn key_that_shared_the_spare_bucket_gets_no_second_burst_with_a_place_of_its_own() {
    let buckets = Buckets::new();
    // 3 tokens, one every 10 s.
    let shape = Shape::new(1, secs(10), 3, MonoNanos(0));
    let spent = |key: u64, ms: u64| {
        let time = shape.time(at_ms(ms));
        (0..10)
            .filter(|_| buckets.take(&shape, spread(key), time).answer.admitted)
            .count()
    };
    // At 1 s all places are taken. At 31 s these buckets and the spare ones are full again, and
    // the places are kept busy until 41 s.
    for key in 0..2 * KEYS_MAX as u64 {
        spent(key, 1_000);
    }
    for key in (0..2 * KEYS_MAX as u64)
        .map(spread)
        .filter(|key| buckets.has(*key))
    {
        let _ = buckets.take(&shape, key, shape.time(at_ms(31_000)));
    }
    // Finds no place, and spends what a spare bucket has.
    let late: Vec<u64> = (0..1_000).map(|n| 1_000_000_000 + n).collect();
    let first: Vec<usize> = late.iter().map(|key| spent(*key, 31_100)).collect();
    assert!(first.iter().filter(|count| **count == 3).count() > 300);
    // Places are free: each of them gets one of its own.
    let second: Vec<usize> = late.iter().map(|key| spent(*key, 42_000)).collect();
    for (first, second) in first.iter().zip(&second) {
        // In 11 s: the burst and one token more.
        assert!(first + second <= 4, "{first} and then {second}");
    }
}

#[test]
fn full_buckets_give_their_places_to_new_keys() {
    let buckets = Buckets::new();
    let shape = Shape::new(1, secs(1), 1, MonoNanos(0));
    // A new population every two seconds, each a third of the places.
    for second in 0..20_u64 {
        let time = shape.time(at_ms(1_000 + 2_000 * second));
        let fresh = (0..KEYS_MAX as u64 / 3).filter(|n| {
            buckets
                .take(&shape, spread(second * 1_000_000 + n), time)
                .answer
                .admitted
        });
        let fresh = fresh.count();
        assert!(
            fresh * 1_000 > KEYS_MAX / 3 * 999,
            "second {second}: {fresh}"
        );
    }
}

#[test]
fn keyed_buckets_on_many_threads_with_eviction_admit_no_more_than_the_bound() {
    // Few tokens, much churn: every thread hits the same keys while others push them out.
    let buckets = Buckets::new();
    let shape = Shape::new(1_000, secs(1), 2, MonoNanos(0));
    let clock = AtomicU64::new(1_000_000);
    let hot: Vec<AtomicU64> = (0..4).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (buckets, clock, hot) = (&buckets, &clock, &hot);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                for _ in 0..20_000 {
                    // 1 us for each turn: 160 ms in all.
                    let now = MonoNanos(clock.fetch_add(1_000, Ordering::Relaxed));
                    let time = shape.time(now);
                    let which = rng.below(4) as u64;
                    if buckets.take(&shape, spread(which), time).answer.admitted {
                        hot[which as usize].fetch_add(1, Ordering::Relaxed);
                    }
                    for _ in 0..4 {
                        let other = 10 + u64::from(rng.below(1 << 20));
                        let _ = buckets.take(&shape, spread(other), time);
                    }
                }
            });
        }
    });
    for count in &hot {
        let count = count.load(Ordering::Relaxed);
        // 2 + 1000/s x 0.16 s.
        assert!(count <= 162, "{count}");
        assert!(count > 100, "{count}");
    }
}
