//! Slow start (SEMANTICS §5.6).

use super::*;
use crate::model::balance::SlowStart;

const SLOW: SlowStart = SlowStart {
    window: Duration::from_secs(100),
    aggression_percent: 100,
    min_percent: 10,
};

fn policy(algorithm: Balance) -> BalancePolicy {
    BalancePolicy {
        slow_start: Some(SLOW),
        ..algorithm.into()
    }
}

const EACH: [Balance; 2] = [Balance::RoundRobin, Balance::LeastRequest];
const BORN: MonoNanos = at_ms(1_000_000);

/// `old` endpoints that were always there, and one that appears at [`BORN`].
fn grown(algorithm: Balance, old: usize) -> Snapshot {
    let first = compile(pool_model(policy(algorithm), &vec![1; old]));
    recompile(
        pool_model(policy(algorithm), &vec![1; old + 1]),
        &first,
        BORN,
    )
}

/// The share of the last endpoint, in percent of one of the others.
fn share_of_last(snapshot: &Snapshot, now: MonoNanos) -> f64 {
    let endpoints = &snapshot.version(ALL).endpoints;
    let last = endpoints.last().unwrap().id;
    let mut rng = Rng::new(7);
    let picks = 60_000;
    let hits = (0..picks)
        .filter(|_| pick(snapshot, ALL, &[], &mut rng, now).unwrap().id == last)
        .count() as f64;
    let others = (f64::from(picks) - hits) / (endpoints.len() - 1) as f64;
    hits * 100.0 / others
}

#[test]
fn slow_start_share_grows_with_age_from_the_least_to_the_whole() {
    for algorithm in EACH {
        for old in [1, 4] {
            let snapshot = grown(algorithm, old);
            for (age_s, percent) in [(0, 10.0), (5, 10.0), (25, 25.0), (50, 50.0), (100, 100.0)] {
                let share = share_of_last(&snapshot, BORN.after(secs(age_s)));
                assert!(
                    (share / percent - 1.0).abs() < 0.15,
                    "{algorithm:?}, {old} others, {age_s} s: {share} %"
                );
            }
        }
    }
}

#[test]
fn slow_start_aggression_makes_the_beginning_faster() {
    let snapshot = grown(Balance::RoundRobin, 1);
    let endpoint = &snapshot.version(ALL).endpoints[1];
    let percent = |aggression_percent, age_s| {
        let policy = SlowStart {
            aggression_percent,
            ..SLOW
        };
        let factor = super::super::warm::factor(&policy, endpoint, BORN.after(secs(age_s)));
        (factor as f64 * 100.0 / f64::from(1 << 16)).round() as u32
    };
    // (t / window)^(1 / aggression)
    assert_eq!(
        [percent(100, 25), percent(200, 25), percent(50, 50)],
        [25, 50, 25]
    );
    assert_eq!(
        [percent(100, 0), percent(100, 100), percent(100, 900)],
        [10, 100, 100]
    );
}

#[test]
fn slow_start_begins_when_an_endpoint_turns_healthy() {
    use crate::policy::health::{CheckResult, Finding};
    let finding = |sick| {
        let last = if sick {
            CheckResult::Timeout
        } else {
            CheckResult::Ok
        };
        Some(Finding { sick, last })
    };
    let now = BORN.after(secs(500));
    for turn in ["check", "ejection", "platform"] {
        let mut snapshot = grown(Balance::RoundRobin, 2);
        let last = Arc::clone(&snapshot.version(ALL).endpoints[2]);
        assert!(share_of_last(&snapshot, now) > 95.0);
        match turn {
            "check" => {
                assert!(last.live.set_health(finding(true), now));
                assert!(share_of_last(&snapshot, now) < 0.01);
                assert!(last.live.set_health(finding(false), now));
            }
            "ejection" => {
                snapshot.record(ALL, &last, Outcome::Reset, None, now);
                assert!(last.live.uneject(now));
            }
            _ => {
                let mut model = pool_model(policy(Balance::RoundRobin), &[1; 3]);
                model.services[0].endpoints[2].healthy = false;
                let without = recompile(model.clone(), &snapshot, at_ms(1));
                model.services[0].endpoints[2].healthy = true;
                snapshot = recompile(model, &without, now);
            }
        }
        let share = share_of_last(&snapshot, now);
        assert!((8.0..12.0).contains(&share), "{turn}: {share} %");
        let share = share_of_last(&snapshot, now.after(secs(100)));
        assert!(share > 95.0, "{turn}: {share} %");
    }
}

#[test]
fn slow_start_with_all_endpoints_new_serves_them_alike() {
    for algorithm in EACH {
        let empty = Snapshot::empty();
        let snapshot = recompile(pool_model(policy(algorithm), &[1; 4]), &empty, BORN);
        let counts = counts(&snapshot, 4_000, &[], &mut Rng::new(2));
        assert!(
            counts.iter().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
    }
}

#[test]
fn slow_start_holds_beside_ejected_endpoints() {
    for algorithm in EACH {
        let snapshot = grown(algorithm, 3);
        snapshot.record(ALL, nth(&snapshot, 0), Outcome::Reset, None, BORN);
        let mut rng = Rng::new(4);
        let last = nth(&snapshot, 3).id;
        let hits = (0..20_000)
            .filter(|_| pick(&snapshot, ALL, &[], &mut rng, BORN).unwrap().id == last)
            .count() as f64;
        // 0.1 of 2.1.
        assert!(
            (0.03..0.07).contains(&(hits / 20_000.0)),
            "{algorithm:?}: {hits}"
        );
    }
}
