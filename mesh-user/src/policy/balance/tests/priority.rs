//! Priorities, locality and panic (SEMANTICS §5.6), and ejection beside them.

use super::*;
use crate::{
    model::{LocalityPolicy, balance::Level, health::HealthCheck},
    policy::health::{CheckResult, Finding},
};

/// Ten endpoints of priority 0 and ten of priority 1, ejected at the first failure.
fn two_priorities(threshold: u8) -> Model {
    let balance = BalancePolicy {
        panic_threshold: Some(threshold),
        ..Balance::Random.into()
    };
    let mut model = pool_model(balance, &[1; 20]);
    for endpoint in &mut model.services[0].endpoints[10..] {
        endpoint.priority = 1;
    }
    model
}

fn sick() -> Option<Finding> {
    Some(Finding {
        sick: true,
        last: CheckResult::Timeout,
    })
}

/// Percent of the picks among the first ten and the others.
fn split(snapshot: &Snapshot, seed: u64) -> (f64, f64) {
    let picks = 20_000;
    let counts = counts(snapshot, picks, &[], &mut Rng::new(seed));
    let percent = |counts: &[usize]| counts.iter().sum::<usize>() as f64 * 100.0 / picks as f64;
    (percent(&counts[..10]), percent(&counts[10..]))
}

#[test]
fn priorities_fill_in_order_as_endpoints_fall_sick() {
    let seed = 11;
    for (down, expected) in [
        (0, 100.0),
        (2, 100.0),
        (3, 98.0),
        (5, 70.0),
        (8, 28.0),
        (10, 0.0),
    ] {
        let snapshot = compile(two_priorities(0));
        for at in 0..down {
            nth(&snapshot, at).live.set_health(sick(), NOW);
        }
        let (first, second) = split(&snapshot, seed);
        assert!(
            (first - expected).abs() < 1.0,
            "{down} down: {first} / {second}"
        );
        let counts = counts(&snapshot, 2_000, &[], &mut Rng::new(seed));
        assert_eq!(
            counts[..down].iter().sum::<usize>(),
            0,
            "sick ones get nothing"
        );
    }
}

#[test]
fn priorities_behind_an_empty_one_serve_at_once_when_none_is_left() {
    let snapshot = compile(two_priorities(0));
    for at in 0..20 {
        nth(&snapshot, at).live.set_health(sick(), NOW);
    }
    let none = pick(&snapshot, ALL, &[], &mut Rng::new(1), NOW);
    assert_eq!(none.err(), Some(Reject::NoHealthyEndpoint));
    nth(&snapshot, 17).live.set_health(None, NOW);
    let found = pick(&snapshot, ALL, &[], &mut Rng::new(1), NOW).unwrap();
    assert_eq!(found.id, nth(&snapshot, 17).id);
    // A retry leaves the priority rather than ask the same endpoint again.
    let snapshot = compile(two_priorities(0));
    let tried: Vec<u64> = (0..10).map(|at| nth(&snapshot, at).id).collect();
    let found = pick(&snapshot, ALL, &tried, &mut Rng::new(1), NOW).unwrap();
    assert!(!tried.contains(&found.id));
}

#[test]
fn panic_uses_all_endpoints_ejected_ones_too_and_is_counted() {
    let balance = |threshold| BalancePolicy {
        panic_threshold: Some(threshold),
        ..Balance::RoundRobin.into()
    };
    let snapshot = pool_of(balance(50), &[1; 10]);
    for at in 0..5 {
        eject(&snapshot, at);
    }
    // Half are healthy: not below.
    let half = counts(&snapshot, 1_000, &[], &mut Rng::new(1));
    assert_eq!(half[..5], [0; 5]);
    assert_eq!(snapshot.version(ALL).table.panics(), 0);
    eject(&snapshot, 5);
    let panic = counts(&snapshot, 1_000, &[], &mut Rng::new(1));
    assert_eq!(panic, [100; 10]);
    assert_eq!(snapshot.version(ALL).table.panics(), 1_000);
    // One back, and it is over.
    assert!(nth(&snapshot, 5).live.uneject(NOW));
    assert_eq!(counts(&snapshot, 1_000, &[], &mut Rng::new(1))[..5], [0; 5]);
    // Without a threshold all may be out.
    let never = pool_of(balance(0), &[1; 2]);
    eject(&never, 0);
    eject(&never, 1);
    let none = pick(&never, ALL, &[], &mut Rng::new(1), NOW);
    assert_eq!(none.err(), Some(Reject::NoHealthyEndpoint));
}

#[test]
fn panic_threshold_without_a_word_is_half_with_health_checks_and_none_without() {
    for (checks, panics) in [(vec![HealthCheck::default()], true), (Vec::new(), false)] {
        let mut model = pool_model(Balance::LeastRequest.into(), &[1; 4]);
        model.policies[0].health_checks = checks;
        let snapshot = compile(model);
        for at in 0..4 {
            nth(&snapshot, at).live.set_health(sick(), NOW);
        }
        let found = pick(&snapshot, ALL, &[], &mut Rng::new(1), NOW);
        assert_eq!(found.is_ok(), panics);
        assert_eq!(candidates(snapshot.version(ALL)).count() > 0, panics);
    }
}

#[test]
fn panic_never_asks_an_endpoint_that_the_platform_calls_unready() {
    let balance = BalancePolicy {
        panic_threshold: Some(100),
        ..Balance::Random.into()
    };
    let mut model = pool_model(balance, &[1; 4]);
    model.services[0].endpoints[0].healthy = false;
    let snapshot = compile(model);
    eject(&snapshot, 1);
    let counts = counts(&snapshot, 1_000, &[], &mut Rng::new(1));
    assert_eq!(counts[0], 0);
    assert!(counts[1] > 200, "{counts:?}");
}

fn local(prefer: Level, failover: &[&str], node: &str, localities: &[&str]) -> Snapshot {
    let mut model = pool_model(Balance::Random.into(), &vec![1; localities.len()]);
    for (endpoint, locality) in model.services[0].endpoints.iter_mut().zip(localities) {
        endpoint.locality = (*locality).to_owned();
    }
    model.policies[0].locality = Some(LocalityPolicy {
        prefer: Some(prefer),
        failover: failover.iter().map(|region| (*region).to_owned()).collect(),
        ..LocalityPolicy::default()
    });
    model.locality = node.to_owned();
    compile(model)
}

#[test]
fn locality_nearest_healthy_endpoints_are_asked_first() {
    let localities = ["eu/a", "eu/b", "us/a", "asia/a"];
    let snapshot = local(Level::Zone, &["asia"], "eu/a/rack", &localities);
    let mut order = Vec::new();
    for _ in 0..4 {
        let counts = counts(&snapshot, 100, &[], &mut Rng::new(1));
        let at = counts
            .iter()
            .position(|count| *count == 100)
            .expect("one has all");
        order.push(localities[at]);
        nth(&snapshot, at).live.set_health(sick(), NOW);
    }
    assert_eq!(order, ["eu/a", "eu/b", "asia/a", "us/a"]);
}

#[test]
fn locality_of_a_node_that_is_nowhere_prefers_nobody() {
    let snapshot = local(Level::Zone, &[], "", &["eu/a", "eu/b", "us/a"]);
    let counts = counts(&snapshot, 3_000, &[], &mut Rng::new(1));
    assert!(counts.iter().all(|count| *count > 800), "{counts:?}");
}

#[test]
fn locality_comes_inside_explicit_priorities() {
    let mut model = pool_model(Balance::Random.into(), &[1; 3]);
    for (endpoint, (locality, priority)) in
        model.services[0]
            .endpoints
            .iter_mut()
            .zip([("eu/a", 1), ("us/a", 0), ("eu/b", 0)])
    {
        (endpoint.locality, endpoint.priority) = (locality.to_owned(), priority);
    }
    model.policies[0].locality = Some(LocalityPolicy {
        prefer: Some(Level::Zone),
        ..LocalityPolicy::default()
    });
    model.locality = "eu/a".to_owned();
    let snapshot = compile(model);
    assert_eq!(counts(&snapshot, 100, &[], &mut Rng::new(1)), [0, 0, 100]);
}

#[test]
fn priorities_beyond_the_eighth_share_one() {
    let mut model = pool_model(Balance::Random.into(), &[1; 12]);
    for (at, endpoint) in (0..).zip(&mut model.services[0].endpoints) {
        endpoint.priority = at;
    }
    let snapshot = compile(model);
    for at in 0..7 {
        nth(&snapshot, at).live.set_health(sick(), NOW);
    }
    let counts = counts(&snapshot, 5_000, &[], &mut Rng::new(1));
    assert!(counts[7..].iter().all(|count| *count > 800), "{counts:?}");
}

#[test]
fn priorities_with_a_key_are_chosen_by_it() {
    let balance = BalancePolicy {
        hash: vec![crate::model::Attribute::SourceAddress],
        ..Balance::Maglev.into()
    };
    let mut model = pool_model(balance, &[1; 20]);
    for endpoint in &mut model.services[0].endpoints[10..] {
        endpoint.priority = 1;
    }
    let snapshot = compile(model);
    for at in 0..5 {
        nth(&snapshot, at).live.set_health(sick(), NOW);
    }
    let key = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let owner = |n: u64, seed: u64| {
        pick_by(&snapshot, ALL, Some(key(n)), &[], &mut Rng::new(seed), NOW)
            .unwrap()
            .id
    };
    let mut first = 0;
    for n in 0..10_000 {
        let id = owner(n, n);
        assert_eq!(id, owner(n, n + 1), "chance has no say");
        first += u32::from((0..10).any(|at| nth(&snapshot, at).id == id));
    }
    assert!((6_700..7_300).contains(&first), "70 %: {first}");
}
