use super::{
    super::{
        Reject, Snapshot, VersionIx, balance,
        fixture::{at_ms, compile, model, policy, recompile, secs, service},
        rng::Rng,
    },
    *,
};
use crate::model::{EjectionPolicy, Policy};

fn with(ejection: EjectionPolicy) -> Vec<Policy> {
    vec![Policy {
        ejection: Some(ejection),
        ..policy()
    }]
}

/// `endpoints` of v1; the version `*`.
fn pool(endpoints: usize, change: impl FnOnce(&mut EjectionPolicy)) -> Snapshot {
    let mut ejection = EjectionPolicy {
        max_percent: 100,
        ..EjectionPolicy::default()
    };
    change(&mut ejection);
    compile(model(service(endpoints, 0), Vec::new(), with(ejection)))
}

const ALL: VersionIx = VersionIx(0);

fn nth(snapshot: &Snapshot, at: usize) -> &Arc<EndpointState> {
    &snapshot.version(ALL).endpoints[at]
}

fn fail(snapshot: &Snapshot, at: usize, outcome: Outcome, times: u32, now: MonoNanos) -> Vec<What> {
    (0..times)
        .filter_map(|_| snapshot.record(ALL, nth(snapshot, at), outcome, None, now))
        .map(|change| change.what)
        .collect()
}

fn is_out(snapshot: &Snapshot, at: usize) -> bool {
    matches!(nth(snapshot, at).live.standing(), Standing::Ejected { .. })
}

fn seconds(changes: &[What]) -> Vec<u64> {
    changes
        .iter()
        .filter_map(|what| match what {
            What::Ejected { for_ms, .. } => Some(for_ms / 1_000),
            _ => None,
        })
        .collect()
}

/// Sweeps every second from `from` on until the endpoint is back; when it came back.
fn until_back(snapshot: &Snapshot, at: usize, from: MonoNanos) -> MonoNanos {
    let mut now = from;
    while is_out(snapshot, at) {
        now = now.after(secs(1));
        snapshot.sweep(now);
        assert!(now.since(from) < secs(2_000), "never came back");
    }
    now
}

#[test]
fn ejection_acts_at_once_on_the_fifth_consecutive_5xx_and_not_on_the_fourth() {
    let snapshot = pool(2, |_| ());
    assert_eq!(fail(&snapshot, 0, Outcome::Status(500), 4, at_ms(1)), []);
    assert!(!is_out(&snapshot, 0));
    let what = What::Ejected {
        by: Detector::Consecutive5xx,
        for_ms: 30_000,
    };
    assert_eq!(
        fail(&snapshot, 0, Outcome::Status(500), 1, at_ms(2)),
        [what]
    );
    assert!(is_out(&snapshot, 0));
    assert!(!is_out(&snapshot, 1));
}

#[test]
fn ejection_change_names_service_and_endpoint() {
    let snapshot = pool(2, |ejection| ejection.consecutive_5xx = 1);
    let change = snapshot
        .record(ALL, nth(&snapshot, 1), Outcome::Timeout, None, at_ms(1))
        .unwrap();
    assert_eq!(change.service, "default/web:80");
    assert_eq!(change.endpoint, "10.0.1.2:8080".parse().unwrap());
}

#[test]
fn count_is_reset_by_2xx_3xx_4xx_and_a_connection() {
    for outcome in [
        Outcome::Status(200),
        Outcome::Status(301),
        Outcome::Status(404),
        Outcome::Status(429),
        Outcome::Status(499),
        Outcome::Connected,
    ] {
        let snapshot = pool(2, |_| ());
        fail(&snapshot, 0, Outcome::Status(503), 4, at_ms(1));
        fail(&snapshot, 0, outcome, 1, at_ms(1));
        fail(&snapshot, 0, Outcome::Status(503), 4, at_ms(1));
        assert!(!is_out(&snapshot, 0), "{outcome:?}");
        fail(&snapshot, 0, Outcome::Status(503), 1, at_ms(1));
        assert!(is_out(&snapshot, 0), "{outcome:?}");
    }
}

#[test]
fn abandoned_request_neither_counts_nor_resets() {
    let snapshot = pool(2, |_| ());
    fail(&snapshot, 0, Outcome::Status(500), 4, at_ms(1));
    fail(&snapshot, 0, Outcome::Abandoned, 100, at_ms(1));
    assert!(!is_out(&snapshot, 0));
    assert_eq!(nth(&snapshot, 0).live.recorded(), (4, 4));
    fail(&snapshot, 0, Outcome::Status(500), 1, at_ms(1));
    assert!(is_out(&snapshot, 0));
}

#[test]
fn local_refusals_never_reach_the_endpoint() {
    let caps = crate::model::BreakerPolicy {
        max_requests: 0,
        ..Default::default()
    };
    let ejection = EjectionPolicy {
        consecutive_5xx: 1,
        ..EjectionPolicy::default()
    };
    let both = Policy {
        breaker: Some(caps),
        ejection: Some(ejection),
        ..policy()
    };
    let snapshot = compile(model(service(2, 0), Vec::new(), vec![both]));
    for _ in 0..100 {
        let refused = snapshot.version(ALL).breaker.request(nth(&snapshot, 0));
        assert_eq!(refused.err(), Some(Reject::OverflowRequests));
    }
    assert_eq!(nth(&snapshot, 0).live.recorded(), (0, 0));
    assert!(!is_out(&snapshot, 0));
    assert_eq!(nth(&snapshot, 0).live.in_flight(), 0);
}

#[test]
fn connect_failures_resets_and_time_outs_count_as_5xx_when_not_split() {
    for outcome in [Outcome::ConnectFailed, Outcome::Reset, Outcome::Timeout] {
        let snapshot = pool(2, |_| ());
        fail(&snapshot, 0, Outcome::Status(500), 2, at_ms(1));
        let changes = fail(&snapshot, 0, outcome, 3, at_ms(1));
        let by = Detector::Consecutive5xx;
        assert_eq!(
            changes,
            [What::Ejected { by, for_ms: 30_000 }],
            "{outcome:?}"
        );
    }
}

#[test]
fn local_origin_failures_have_their_own_count_when_split() {
    let split = |ejection: &mut EjectionPolicy| ejection.consecutive_local_origin = 3;
    let snapshot = pool(2, split);
    fail(&snapshot, 0, Outcome::Status(500), 4, at_ms(1));
    assert_eq!(fail(&snapshot, 0, Outcome::ConnectFailed, 2, at_ms(1)), []);
    // An answer, even a bad one, shows that the endpoint is reached.
    fail(&snapshot, 0, Outcome::Status(200), 1, at_ms(1));
    assert_eq!(fail(&snapshot, 0, Outcome::ConnectFailed, 2, at_ms(1)), []);
    let by = Detector::ConsecutiveLocalOrigin;
    let changes = fail(&snapshot, 0, Outcome::Timeout, 1, at_ms(1));
    assert_eq!(changes, [What::Ejected { by, for_ms: 30_000 }]);
}

#[test]
fn gateway_count_is_reset_by_other_5xx_and_off_by_default() {
    let snapshot = pool(2, |ejection| {
        ejection.consecutive_gateway = 3;
        ejection.consecutive_5xx = 0;
    });
    fail(&snapshot, 0, Outcome::Status(502), 2, at_ms(1));
    fail(&snapshot, 0, Outcome::Status(500), 1, at_ms(1));
    assert_eq!(fail(&snapshot, 0, Outcome::Status(503), 2, at_ms(1)), []);
    let by = Detector::ConsecutiveGateway;
    let changes = fail(&snapshot, 0, Outcome::Status(504), 1, at_ms(1));
    assert_eq!(changes, [What::Ejected { by, for_ms: 30_000 }]);

    let off = pool(2, |ejection| ejection.consecutive_5xx = 0);
    assert_eq!(fail(&off, 0, Outcome::Status(503), 1_000, at_ms(1)), []);
    assert!(!is_out(&off, 0));
}

#[test]
fn ejection_times_back_to_back_are_30_60_90_to_300_and_stay_there() {
    let snapshot = pool(2, |ejection| ejection.consecutive_5xx = 1);
    let mut now = at_ms(1_000);
    let mut times = Vec::new();
    for _ in 0..13 {
        times.extend(seconds(&fail(&snapshot, 0, Outcome::Status(500), 1, now)));
        now = until_back(&snapshot, 0, now);
    }
    assert_eq!(
        times,
        [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]
    );
}

#[test]
fn ejection_time_shrinks_by_one_base_for_each_healthy_sweep_down_to_one_base() {
    for (ejections, healthy, expected) in [
        (4, 3, 60),
        (4, 0, 150),
        (4, 1, 120),
        (4, 4, 30),
        (4, 5, 30),
        (4, 100, 30),
        (10, 3, 240),
    ] {
        let snapshot = pool(2, |ejection| ejection.consecutive_5xx = 1);
        let mut now = at_ms(0);
        for _ in 0..ejections {
            fail(&snapshot, 0, Outcome::Status(500), 1, now);
            now = until_back(&snapshot, 0, now);
        }
        for _ in 0..healthy {
            now = now.after(secs(10));
            snapshot.sweep(now);
        }
        let next = seconds(&fail(&snapshot, 0, Outcome::Status(500), 1, now));
        // (k - healthy + 1) x 30, at least 30.
        assert_eq!(
            next,
            [expected],
            "{ejections} ejections, {healthy} healthy sweeps"
        );
    }
}

#[test]
fn endpoint_returns_only_at_a_sweep_and_not_before_its_time() {
    // Sweeps at 10, 20, 30 ...; ejected at 1 s for 30 s: over at 31 s, back at 40 s.
    let snapshot = pool(2, |ejection| ejection.consecutive_5xx = 1);
    fail(&snapshot, 0, Outcome::Status(500), 1, at_ms(1_000));
    for now in (1_000..40_000).step_by(500) {
        assert_eq!(snapshot.sweep(at_ms(now)), [], "at {now} ms");
        assert!(is_out(&snapshot, 0), "at {now} ms");
    }
    let returned = snapshot.sweep(at_ms(40_000));
    assert_eq!(returned.len(), 1);
    assert_eq!(returned[0].what, What::Returned);
    assert!(!is_out(&snapshot, 0));
    assert_eq!(snapshot.sweep(at_ms(40_001)), []);
}

#[test]
fn ejected_endpoint_gets_no_traffic_and_all_ejected_is_a_named_refusal() {
    let snapshot = pool(3, |ejection| ejection.consecutive_5xx = 1);
    let mut rng = Rng::new(7);
    fail(&snapshot, 1, Outcome::Status(500), 1, at_ms(1));
    for _ in 0..1_000 {
        let chosen = balance::pick(&snapshot, ALL, &[], &mut rng, at_ms(2)).unwrap();
        assert_ne!(chosen.id, nth(&snapshot, 1).id);
    }
    fail(&snapshot, 0, Outcome::Status(500), 1, at_ms(1));
    fail(&snapshot, 2, Outcome::Status(500), 1, at_ms(1));
    let refused = balance::pick(&snapshot, ALL, &[], &mut rng, at_ms(2));
    assert_eq!(refused.err(), Some(Reject::NoHealthyEndpoint));
}

#[test]
fn max_percent_for_small_pools_allows_one_from_two_endpoints_on() {
    // Default 10 %: Envoy's arithmetic alone would allow none below 10 hosts.
    for (endpoints, expected) in [(1, 0), (2, 1), (5, 1), (9, 1), (10, 1), (11, 1), (20, 2)] {
        let snapshot = pool(endpoints, |ejection| {
            ejection.consecutive_5xx = 1;
            ejection.max_percent = 10;
        });
        let changes: Vec<What> = (0..endpoints)
            .flat_map(|at| fail(&snapshot, at, Outcome::Status(500), 1, at_ms(1)))
            .collect();
        let ejected = seconds(&changes).len();
        assert_eq!(ejected, expected, "{endpoints} endpoints");
        let skipped = What::Skipped {
            by: Detector::Consecutive5xx,
        };
        let skips = changes.iter().filter(|what| **what == skipped).count();
        assert_eq!(skips, endpoints - expected, "{endpoints} endpoints");
    }
}

#[test]
fn max_percent_bounds_are_rounded_down_and_exact() {
    for (usable, percent, expected) in [
        (0, 100, 0),
        (1, 99, 0),
        (1, 100, 1),
        (2, 0, 0),
        (2, 1, 1),
        (2, 99, 1),
        (2, 100, 2),
        (3, 67, 2),
        (3, 66, 1),
        (100, 0, 0),
        (100, 50, 50),
        (101, 50, 50),
    ] {
        assert_eq!(
            allowed(usable, percent),
            expected,
            "{usable} at {percent} %"
        );
    }
}

#[test]
fn skipped_ejection_is_counted_and_tried_again_only_after_a_full_count() {
    let snapshot = pool(1, |ejection| ejection.max_percent = 50);
    let skipped = What::Skipped {
        by: Detector::Consecutive5xx,
    };
    assert_eq!(
        fail(&snapshot, 0, Outcome::Status(500), 10, at_ms(1)),
        [skipped, skipped]
    );
    assert_eq!(nth(&snapshot, 0).live.ejections(), (0, 2));
    assert!(!is_out(&snapshot, 0));
}

#[test]
fn unready_endpoints_are_not_counted_in_the_share() {
    // Two endpoints, one of them unready: ejecting the other would leave none.
    let mut web = service(2, 0);
    web.endpoints[1].healthy = false;
    let ejection = EjectionPolicy {
        consecutive_5xx: 1,
        max_percent: 50,
        ..EjectionPolicy::default()
    };
    let snapshot = compile(model(web, Vec::new(), with(ejection)));
    let skipped = What::Skipped {
        by: Detector::Consecutive5xx,
    };
    assert_eq!(
        fail(&snapshot, 0, Outcome::Status(500), 1, at_ms(1)),
        [skipped]
    );
}

#[test]
fn failures_while_ejected_do_not_count() {
    let snapshot = pool(2, |_| ());
    fail(&snapshot, 0, Outcome::Status(500), 5, at_ms(1));
    // Requests that were in flight at the ejection still end.
    assert_eq!(fail(&snapshot, 0, Outcome::Status(500), 50, at_ms(2)), []);
    let now = until_back(&snapshot, 0, at_ms(2));
    assert_eq!(fail(&snapshot, 0, Outcome::Status(500), 4, now), []);
    assert_eq!(
        seconds(&fail(&snapshot, 0, Outcome::Status(500), 1, now)),
        [60]
    );
}

#[test]
fn endpoint_shared_by_versions_is_out_of_all_and_returned_once() {
    let ejection = EjectionPolicy {
        consecutive_5xx: 1,
        ..EjectionPolicy::default()
    };
    let snapshot = compile(model(service(2, 0), Vec::new(), with(ejection)));
    let v1 = snapshot.port(super::super::fixture::PORT).versions[1];
    let victim = Arc::clone(&snapshot.version(v1).endpoints[0]);
    assert!(
        snapshot
            .record(v1, &victim, Outcome::Reset, None, at_ms(1))
            .is_some()
    );
    assert!(is_out(&snapshot, 0), "also in *");
    let mut returned = 0;
    for now in 1..100 {
        returned += snapshot.sweep(at_ms(now * 1_000)).len();
    }
    assert_eq!(returned, 1);
}

#[test]
fn reload_keeps_ejection_and_its_clock() {
    let model = || {
        let ejection = EjectionPolicy {
            consecutive_5xx: 1,
            ..EjectionPolicy::default()
        };
        model(service(2, 1), Vec::new(), with(ejection))
    };
    let first = compile(model());
    fail(&first, 0, Outcome::Status(500), 1, at_ms(1_000));
    let second = recompile(model(), &first, at_ms(8_000));
    assert!(is_out(&second, 0));
    // Sweeps stay on the beat of the first snapshot: 10, 20, 30, 40 s, not 18 ... 48 s.
    for now in 9..40 {
        assert_eq!(second.sweep(at_ms(now * 1_000)), [], "at {now} s");
    }
    assert_eq!(second.sweep(at_ms(40_000)).len(), 1);
}

#[test]
fn endpoint_whose_ejection_policy_is_gone_returns_at_the_next_sweep() {
    let ejection = EjectionPolicy {
        consecutive_5xx: 1,
        ..EjectionPolicy::default()
    };
    let first = compile(model(service(2, 0), Vec::new(), with(ejection)));
    fail(&first, 0, Outcome::Status(500), 1, at_ms(1_000));
    let second = recompile(
        model(service(2, 0), Vec::new(), Vec::new()),
        &first,
        at_ms(2_000),
    );
    assert!(is_out(&second, 0));
    assert_eq!(second.sweep(at_ms(3_000)).len(), 1);
    assert!(!is_out(&second, 0));
}

#[test]
fn endpoint_that_left_the_version_that_ejected_it_returns_at_the_next_sweep() {
    let only_v1 = |service| {
        let ejection = EjectionPolicy {
            consecutive_5xx: 1,
            ..EjectionPolicy::default()
        };
        let policy = Policy {
            version: Some("v1".to_owned()),
            ejection: Some(ejection),
            ..policy()
        };
        model(service, Vec::new(), vec![policy])
    };
    let first = compile(only_v1(service(2, 0)));
    let v1 = first.port(super::super::fixture::PORT).versions[1];
    let victim = Arc::clone(&first.version(v1).endpoints[0]);
    first
        .record(v1, &victim, Outcome::Reset, None, at_ms(1))
        .unwrap();
    let mut moved = service(2, 0);
    moved.endpoints[0]
        .tags
        .insert("version".to_owned(), "v2".to_owned());
    let second = recompile(only_v1(moved), &first, at_ms(2));
    assert!(is_out(&second, 0));
    assert_eq!(second.sweep(at_ms(1_000)).len(), 1);
    assert!(!is_out(&second, 0));
}

/// A probing pool of two whose first endpoint has just returned, due for its probe.
fn probing() -> (Snapshot, MonoNanos) {
    let snapshot = pool(2, |ejection| {
        ejection.consecutive_5xx = 1;
        ejection.probe = true;
    });
    fail(&snapshot, 0, Outcome::Status(500), 1, at_ms(1));
    let now = until_back(&snapshot, 0, at_ms(1));
    assert_eq!(nth(&snapshot, 0).live.standing(), Standing::Probing);
    (snapshot, now)
}

fn picks(snapshot: &Snapshot, count: usize, now: MonoNanos) -> usize {
    let mut rng = Rng::new(11);
    (0..count)
        .filter(|_| {
            let chosen = balance::pick(snapshot, ALL, &[], &mut rng, now).unwrap();
            chosen.id == nth(snapshot, 0).id
        })
        .count()
}

#[test]
fn probe_is_one_request_and_its_success_restores_the_endpoint() {
    let (snapshot, now) = probing();
    assert_eq!(picks(&snapshot, 200, now), 1);
    let permit = snapshot
        .version(ALL)
        .breaker
        .request(nth(&snapshot, 0))
        .unwrap();
    assert_eq!(picks(&snapshot, 200, now), 0);
    assert!(
        snapshot
            .record(ALL, nth(&snapshot, 0), Outcome::Status(200), None, now)
            .is_none()
    );
    drop(permit);
    assert_eq!(nth(&snapshot, 0).live.standing(), Standing::InRotation);
    assert!(picks(&snapshot, 200, now) > 50);
}

#[test]
fn probe_that_fails_ejects_at_once_for_longer() {
    let (snapshot, now) = probing();
    assert_eq!(picks(&snapshot, 50, now), 1);
    let permit = snapshot
        .version(ALL)
        .breaker
        .request(nth(&snapshot, 0))
        .unwrap();
    let changes = fail(&snapshot, 0, Outcome::Status(500), 1, now);
    assert_eq!(
        changes,
        [What::Ejected {
            by: Detector::Probe,
            for_ms: 60_000
        }]
    );
    drop(permit);
    assert!(is_out(&snapshot, 0));
}

#[test]
fn probe_whose_ejection_policy_is_gone_is_not_asked_for() {
    let (first, now) = probing();
    let second = recompile(model(service(2, 0), Vec::new(), Vec::new()), &first, now);
    assert_eq!(nth(&second, 0).live.standing(), Standing::Probing);
    assert!(second.sweep(now).is_empty(), "its return is known");
    assert_eq!(nth(&second, 0).live.standing(), Standing::InRotation);
}

#[test]
fn probe_through_a_version_without_ejection_is_answered() {
    let ejection = EjectionPolicy {
        consecutive_5xx: 1,
        probe: true,
        ..EjectionPolicy::default()
    };
    let policy = Policy {
        version: Some("v1".to_owned()),
        ejection: Some(ejection),
        ..policy()
    };
    let snapshot = compile(model(service(2, 0), Vec::new(), vec![policy]));
    let v1 = snapshot.port(super::super::fixture::PORT).versions[1];
    let endpoint = Arc::clone(nth(&snapshot, 0));
    snapshot
        .record(v1, &endpoint, Outcome::Reset, None, at_ms(1))
        .unwrap();
    let now = until_back(&snapshot, 0, at_ms(1));
    for (outcome, standing) in [
        (Outcome::Status(500), Standing::Probing),
        (Outcome::Abandoned, Standing::Probing),
        (Outcome::Status(200), Standing::InRotation),
    ] {
        assert_eq!(picks(&snapshot, 50, now), 1);
        let permit = snapshot.version(ALL).breaker.request(&endpoint).unwrap();
        assert!(
            snapshot
                .record(ALL, &endpoint, outcome, None, now)
                .is_none()
        );
        drop(permit);
        assert_eq!(endpoint.live.standing(), standing);
    }
}

#[test]
fn probe_without_verdict_is_due_again() {
    let (snapshot, now) = probing();
    // The client went away.
    assert_eq!(picks(&snapshot, 50, now), 1);
    let permit = snapshot
        .version(ALL)
        .breaker
        .request(nth(&snapshot, 0))
        .unwrap();
    assert!(
        snapshot
            .record(ALL, nth(&snapshot, 0), Outcome::Abandoned, None, now)
            .is_none()
    );
    drop(permit);
    assert_eq!(picks(&snapshot, 50, now), 1);
    // Chosen, but never sent: a sweep asks again.
    assert_eq!(picks(&snapshot, 50, now.after(secs(9))), 0);
    snapshot.sweep(now.after(secs(10)));
    assert_eq!(picks(&snapshot, 50, now.after(secs(10))), 1);
}

#[test]
fn ejection_from_many_threads_never_passes_max_percent() {
    let snapshot = pool(16, |ejection| {
        ejection.consecutive_5xx = 1;
        ejection.max_percent = 25;
    });
    let most = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (snapshot, most) = (&snapshot, &most);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                for step in 0..2_000 {
                    let at = rng.below(16) as usize;
                    fail(snapshot, at, Outcome::Status(500), 1, at_ms(step * 20));
                    if thread == 0 {
                        snapshot.sweep(at_ms(step * 20));
                    }
                    let out = (0..16).filter(|at| is_out(snapshot, *at)).count() as u32;
                    most.fetch_max(out, Relaxed);
                }
            });
        }
    });
    assert_eq!(most.into_inner(), 4, "reached, and never passed");
}
