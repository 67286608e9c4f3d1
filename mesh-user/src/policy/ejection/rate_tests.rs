use std::time::Duration;

use super::{
    super::{
        Snapshot, VersionIx,
        fixture::{at_ms, compile, model, policy, secs, service},
        rng::Rng,
    },
    *,
};
use crate::model::{EjectionPolicy, FailurePercentage, LatencyOutlier, Policy, SuccessRate};

const ALL: VersionIx = VersionIx(0);
const SWEEP: MonoNanos = at_ms(10_000);

/// Endpoints of one version; no consecutive count ejects.
fn pool(endpoints: usize, change: impl FnOnce(&mut EjectionPolicy)) -> Snapshot {
    let mut ejection = EjectionPolicy {
        consecutive_5xx: 0,
        max_percent: 100,
        ..EjectionPolicy::default()
    };
    change(&mut ejection);
    let policies = vec![Policy {
        ejection: Some(ejection),
        ..policy()
    }];
    compile(model(service(endpoints, 0), Vec::new(), policies))
}

fn nth(snapshot: &Snapshot, at: usize) -> &Arc<EndpointState> {
    &snapshot.version(ALL).endpoints[at]
}

fn see(snapshot: &Snapshot, at: usize, outcome: Outcome, times: u64, took: Option<Duration>) {
    for _ in 0..times {
        snapshot.record(ALL, nth(snapshot, at), outcome, took, at_ms(1));
    }
}

/// `(good, failed)` of each endpoint, then the sweep: who was ejected, and by what.
fn judged(snapshot: &Snapshot, seen: &[(u64, u64)], failure: Outcome) -> Vec<(usize, Detector)> {
    for (at, (good, failed)) in seen.iter().enumerate() {
        see(snapshot, at, Outcome::Status(200), *good, None);
        see(snapshot, at, failure, *failed, None);
    }
    swept(snapshot, SWEEP)
}

fn swept(snapshot: &Snapshot, now: MonoNanos) -> Vec<(usize, Detector)> {
    let place = |change: &Change| {
        let members = &snapshot.version(ALL).endpoints;
        let place = members.iter().position(|e| e.address == change.endpoint);
        place.unwrap()
    };
    let changes = snapshot.sweep(now);
    changes
        .iter()
        .filter_map(|change| match change.what {
            What::Ejected { by, .. } | What::Skipped { by } => Some((place(change), by)),
            What::Returned => None,
        })
        .collect()
}

fn rate(ejection: &mut EjectionPolicy) {
    ejection.success_rate = Some(SuccessRate::default());
}

/// Mean 98, deviation 4: the threshold is 98 - 1.9 x 4 = 90.4.
#[test]
fn success_rate_ejects_below_mean_minus_factor_deviations() {
    let seen = [(100, 0), (100, 0), (100, 0), (100, 0), (90, 10)];
    let by = Detector::SuccessRate;
    assert_eq!(
        judged(&pool(5, rate), &seen, Outcome::Status(500)),
        [(4, by)]
    );
    // Of five hosts one outlier is always 2 deviations off: a larger factor spares it.
    let spares = pool(5, |ejection| {
        rate(ejection);
        ejection.success_rate.as_mut().unwrap().factor_milli = 2_100;
    });
    assert_eq!(judged(&spares, &seen, Outcome::Status(500)), []);
    // All equally bad: nobody is an outlier.
    assert_eq!(
        judged(&pool(5, rate), &[(50, 50); 5], Outcome::Status(500)),
        []
    );
}

#[test]
fn success_rate_needs_hosts_and_volume() {
    let failing = Outcome::Status(503);
    let four = [(100, 0), (100, 0), (100, 0), (0, 100)];
    assert_eq!(judged(&pool(4, rate), &four, failing), []);
    let few = [(100, 0), (100, 0), (100, 0), (100, 0), (0, 99)];
    assert_eq!(judged(&pool(5, rate), &few, failing), []);
    let enough = [(100, 0), (100, 0), (100, 0), (100, 0), (0, 100)];
    assert_eq!(judged(&pool(5, rate), &enough, failing).len(), 1);
}

#[test]
fn success_rate_looks_at_the_last_interval_only() {
    let snapshot = pool(5, rate);
    let good = [(100, 0); 5];
    assert_eq!(judged(&snapshot, &good, Outcome::Status(500)), []);
    // What was before is forgotten: fresh failures are not thinned out by it.
    for at in 0..5 {
        see(&snapshot, at, Outcome::Status(200), 100, None);
    }
    see(&snapshot, 2, Outcome::Status(500), 60, None);
    assert_eq!(swept(&snapshot, at_ms(20_000)).len(), 1);
    assert_eq!(
        swept(&snapshot, at_ms(30_000)),
        [],
        "nothing new, nothing judged"
    );
}

#[test]
fn failure_percentage_ejects_at_its_threshold_whatever_the_others_do() {
    let with = |threshold| {
        pool(5, move |ejection: &mut EjectionPolicy| {
            ejection.failure_percentage = Some(FailurePercentage {
                threshold,
                ..FailurePercentage::default()
            });
        })
    };
    let seen = [(15, 85), (16, 84), (0, 100), (100, 0), (100, 0)];
    let by = Detector::FailurePercentage;
    let found = judged(&with(85), &seen, Outcome::Status(500));
    assert_eq!(found, [(0, by), (2, by)]);
    assert_eq!(judged(&with(100), &seen, Outcome::Status(500)), [(2, by)]);
    let few = [(0, 49), (0, 49), (0, 49), (0, 49), (0, 49)];
    assert_eq!(judged(&with(85), &few, Outcome::Status(500)), []);
}

/// Envoy's split: what never reached an answer is judged by itself.
#[test]
fn local_failures_are_judged_apart_when_they_are_split() {
    let with = |local| {
        pool(5, move |ejection: &mut EjectionPolicy| {
            rate(ejection);
            ejection.consecutive_local_origin = local;
        })
    };
    let seen = [(100, 0), (100, 0), (100, 0), (100, 0), (100, 30)];
    let unsplit = judged(&with(0), &seen, Outcome::Reset);
    assert_eq!(unsplit, [(4, Detector::SuccessRate)]);
    let split = judged(&with(10_000), &seen, Outcome::Reset);
    assert_eq!(split, [(4, Detector::LocalOriginSuccessRate)]);
    let answered = judged(&with(10_000), &seen, Outcome::Status(500));
    assert_eq!(answered, [(4, Detector::SuccessRate)]);
}

fn latency(change: impl FnOnce(&mut LatencyOutlier)) -> impl FnOnce(&mut EjectionPolicy) {
    let mut latency = LatencyOutlier::default();
    change(&mut latency);
    move |ejection| ejection.latency = Some(latency)
}

fn slow(snapshot: &Snapshot, ms: &[u64]) -> Vec<(usize, Detector)> {
    for (at, ms) in ms.iter().enumerate() {
        let took = Some(Duration::from_millis(*ms));
        see(snapshot, at, Outcome::Status(200), 30, took);
    }
    swept(snapshot, SWEEP)
}

#[test]
fn latency_ejects_above_the_pools_median_by_factor_and_difference() {
    let by = Detector::Latency;
    let pool_of = |n| pool(n, latency(|_| ()));
    assert_eq!(slow(&pool_of(4), &[10, 10, 12, 510]), [(3, by)]);
    // Ten times slower, but nobody would notice.
    assert_eq!(slow(&pool_of(4), &[1, 1, 1, 10]), []);
    // 60 ms more, but not three times as much.
    assert_eq!(slow(&pool_of(4), &[100, 100, 100, 160]), []);
    // Half of the pool is slow: compared with the other half.
    assert_eq!(slow(&pool_of(4), &[10, 10, 510, 510]), [(2, by), (3, by)]);
    assert_eq!(
        slow(&pool_of(2), &[10, 510]),
        [],
        "a median of two says nothing"
    );
}

#[test]
fn latency_needs_volume_and_forgets_what_was_before() {
    let snapshot = pool(3, latency(|latency| latency.volume_min = 31));
    assert_eq!(slow(&snapshot, &[10, 10, 510]), []);
    assert_eq!(
        slow(&snapshot, &[10, 10, 510]),
        [],
        "each interval by itself"
    );
}

#[test]
fn latency_of_time_outs_counts_and_of_refusals_not() {
    let snapshot = pool(3, latency(|_| ()));
    let took = Some(Duration::from_millis(500));
    see(&snapshot, 0, Outcome::Timeout, 30, took);
    see(
        &snapshot,
        1,
        Outcome::Status(200),
        30,
        Some(Duration::from_millis(5)),
    );
    see(
        &snapshot,
        2,
        Outcome::Status(200),
        30,
        Some(Duration::from_millis(5)),
    );
    assert_eq!(swept(&snapshot, SWEEP), [(0, Detector::Latency)]);
    let snapshot = pool(3, latency(|_| ()));
    see(&snapshot, 0, Outcome::ConnectFailed, 30, took);
    see(
        &snapshot,
        1,
        Outcome::Status(200),
        30,
        Some(Duration::from_millis(5)),
    );
    see(
        &snapshot,
        2,
        Outcome::Status(200),
        30,
        Some(Duration::from_millis(5)),
    );
    assert_eq!(swept(&snapshot, SWEEP), []);
}

/// Part 2, item 12: one of ten endpoints adds 500 ms; within one interval its share is below 2 %.
#[test]
fn slow_endpoint_of_ten_loses_its_share_within_one_interval() {
    for balance in [
        crate::model::Balance::RoundRobin,
        crate::model::Balance::Random,
    ] {
        let policies = vec![Policy {
            ejection: Some(EjectionPolicy {
                latency: Some(LatencyOutlier::default()),
                ..EjectionPolicy::default()
            }),
            balance: Some(balance.into()),
            ..policy()
        }];
        let snapshot = compile(model(service(10, 0), Vec::new(), policies));
        let seed = 12;
        let mut rng = Rng::new(seed);
        let mut shares = Vec::new();
        for interval in 0..3_u64 {
            let mut slow = 0;
            for n in 0..1_000_u64 {
                let now = at_ms(interval * 10_000 + n * 10);
                let chosen = balance::pick(&snapshot, ALL, &[], &mut rng, now).unwrap();
                let is_slow = chosen.id == nth(&snapshot, 3).id;
                slow += u32::from(is_slow);
                let took = Duration::from_millis(if is_slow { 505 } else { 5 });
                snapshot.record(ALL, &chosen, Outcome::Status(200), Some(took), now);
            }
            snapshot.sweep(at_ms((interval + 1) * 10_000));
            shares.push(f64::from(slow) / 1_000.0);
        }
        assert!(shares[0] > 0.05, "{shares:?}");
        assert!(
            shares[1] < 0.02 && shares[2] < 0.02,
            "{shares:?}, seed {seed}"
        );
    }
}

/// «Choose» of SEMANTICS §5.5: at least one of two or more.
#[test]
fn small_pools_may_lose_one_endpoint_and_a_lone_one_only_with_always_one() {
    let lose = |endpoints: usize, always_one: bool, max_percent: u8| {
        let snapshot = pool(endpoints, |ejection| {
            ejection.consecutive_5xx = 1;
            ejection.max_percent = max_percent;
            ejection.always_one = always_one;
        });
        for at in 0..endpoints {
            see(&snapshot, at, Outcome::Status(500), 1, None);
        }
        let members = &snapshot.version(ALL).endpoints;
        let out = |e: &&Arc<EndpointState>| matches!(e.live.standing(), Standing::Ejected { .. });
        members.iter().filter(out).count()
    };
    for (endpoints, lost) in [(1, 0), (2, 1), (5, 1), (9, 1), (10, 1), (11, 1), (20, 2)] {
        assert_eq!(lose(endpoints, false, 10), lost, "{endpoints}");
        assert_eq!(lose(endpoints, true, 10), lost.max(1), "{endpoints}");
        assert_eq!(lose(endpoints, false, 0), 0, "{endpoints}");
        assert_eq!(lose(endpoints, true, 0), 1, "{endpoints}");
    }
}

#[test]
fn enforcing_percentage_ejects_that_share_of_what_is_found() {
    let ejected = |percent| {
        (0..1_000_u64)
            .filter(|n| {
                let snapshot = pool(1, |ejection| {
                    ejection.consecutive_5xx = 1;
                    ejection.enforcing_5xx = percent;
                    ejection.always_one = true;
                });
                let endpoint = nth(&snapshot, 0);
                let now = at_ms(n + 1);
                let change = snapshot.record(ALL, endpoint, Outcome::Status(500), None, now);
                change.is_some()
            })
            .count()
    };
    assert_eq!(ejected(0), 0);
    assert_eq!(ejected(100), 1_000);
    let third = ejected(33);
    assert!((280..=380).contains(&third), "{third}");
}

#[test]
fn ejection_jitter_lengthens_by_at_most_its_span() {
    let mut spans = Vec::new();
    for n in 0..200 {
        let snapshot = pool(2, |ejection| {
            ejection.consecutive_5xx = 1;
            ejection.jitter_max = secs(10);
        });
        let change = snapshot.record(ALL, nth(&snapshot, 0), Outcome::Reset, None, at_ms(n));
        match change.unwrap().what {
            What::Ejected { for_ms, .. } => spans.push(for_ms),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        spans.iter().all(|ms| (30_000..=40_000).contains(ms)),
        "{spans:?}"
    );
    assert!(spans.iter().any(|ms| *ms > 38_000) && spans.iter().any(|ms| *ms < 32_000));
}

#[test]
fn counts_of_another_version_do_not_disturb_a_version_and_a_reload_keeps_the_marks() {
    let policies = || {
        let mut ejection = EjectionPolicy {
            consecutive_5xx: 0,
            max_percent: 100,
            ..EjectionPolicy::default()
        };
        rate(&mut ejection);
        vec![Policy {
            ejection: Some(ejection),
            ..policy()
        }]
    };
    let first = compile(model(service(5, 0), Vec::new(), policies()));
    for at in 0..5 {
        see(&first, at, Outcome::Status(200), 60, None);
    }
    see(&first, 4, Outcome::Status(500), 60, None);
    let second = super::super::fixture::recompile(
        model(service(5, 0), Vec::new(), policies()),
        &first,
        at_ms(5_000),
    );
    for at in 0..5 {
        see(&second, at, Outcome::Status(200), 60, None);
    }
    assert_eq!(swept(&second, SWEEP), [(4, Detector::SuccessRate)]);
}
