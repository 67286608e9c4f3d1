use super::{
    super::{
        Snapshot,
        fixture::{at_ms, balanced, compile, model, service},
        snapshot::Outcome,
    },
    *,
};
use crate::model::{EjectionPolicy, Policy};

const ALL: VersionIx = VersionIx(0);
const NOW: MonoNanos = at_ms(1);

/// Endpoints with these weights, ejected at the first failure.
fn pool(balance: Balance, weights: &[u32]) -> Snapshot {
    let mut web = service(weights.len(), 0);
    for (endpoint, weight) in web.endpoints.iter_mut().zip(weights) {
        endpoint.weight = *weight;
    }
    let ejection = EjectionPolicy {
        consecutive_5xx: 1,
        max_percent: 100,
        ..EjectionPolicy::default()
    };
    let policy = Policy {
        ejection: Some(ejection),
        ..balanced(balance)
    };
    compile(model(web, Vec::new(), vec![policy]))
}

fn nth(snapshot: &Snapshot, at: usize) -> &Arc<EndpointState> {
    &snapshot.version(ALL).endpoints[at]
}

fn eject(snapshot: &Snapshot, at: usize) {
    snapshot
        .record(ALL, nth(snapshot, at), Outcome::Reset, None, NOW)
        .expect("ejected");
}

fn counts(snapshot: &Snapshot, picks: usize, tried: &[u64], rng: &mut Rng) -> Vec<usize> {
    let endpoints = &snapshot.version(ALL).endpoints;
    let mut counts = vec![0; endpoints.len()];
    for _ in 0..picks {
        let chosen = pick(snapshot, ALL, tried, rng, NOW).unwrap();
        counts[endpoints
            .iter()
            .position(|endpoint| endpoint.id == chosen.id)
            .unwrap()] += 1;
    }
    counts
}

const EVERY: [Balance; 3] = [Balance::LeastRequest, Balance::RoundRobin, Balance::Random];

#[test]
fn empty_unready_and_ejected_versions_are_told_apart() {
    let mut rng = Rng::new(1);
    let pick = |snapshot: &Snapshot, rng: &mut Rng| pick(snapshot, ALL, &[], rng, NOW).err();
    for balance in EVERY {
        assert_eq!(
            pick(&pool(balance, &[]), &mut rng),
            Some(Reject::NoEndpoint)
        );
        assert_eq!(
            pick(&pool(balance, &[0, 0]), &mut rng),
            Some(Reject::NoHealthyEndpoint)
        );
        let snapshot = pool(balance, &[1]);
        assert_eq!(pick(&snapshot, &mut rng), None);
        eject(&snapshot, 0);
        assert_eq!(pick(&snapshot, &mut rng), Some(Reject::NoHealthyEndpoint));
    }
    let mut web = service(1, 0);
    web.endpoints[0].healthy = false;
    let unready = compile(model(web, Vec::new(), Vec::new()));
    assert_eq!(pick(&unready, &mut rng), Some(Reject::NoHealthyEndpoint));
}

#[test]
fn idle_endpoints_are_chosen_by_weight() {
    let seed = 9;
    for balance in EVERY {
        for weights in [&[1, 1][..], &[1, 3], &[1, 2, 3, 4], &[5, 0, 5], &[1; 10]] {
            let snapshot = pool(balance, weights);
            let picks = 20_000;
            let counts = counts(&snapshot, picks, &[], &mut Rng::new(seed));
            let sum: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let p = f64::from(*weight) / f64::from(sum);
                let expected = picks as f64 * p;
                // Four sigma; 0 for weight 0.
                let bound = 4.0 * (picks as f64 * p * (1.0 - p)).sqrt();
                let off = (*count as f64 - expected).abs();
                assert!(
                    off <= bound,
                    "{balance:?} {weights:?}, seed {seed}: {counts:?}"
                );
            }
        }
    }
}

#[test]
fn round_robin_is_exact_over_whole_rounds() {
    let snapshot = pool(Balance::RoundRobin, &[1, 1, 1]);
    let mut rng = Rng::new(1);
    for _ in 0..3 {
        assert_eq!(counts(&snapshot, 3, &[], &mut rng), [1, 1, 1]);
    }
    let weighted = pool(Balance::RoundRobin, &[3, 1]);
    assert_eq!(counts(&weighted, 4, &[], &mut rng), [3, 1]);
    assert_eq!(counts(&weighted, 400, &[], &mut rng), [300, 100]);
}

#[test]
fn round_robin_share_of_the_ejected_goes_to_all_others() {
    let snapshot = pool(Balance::RoundRobin, &[1, 1, 1, 1]);
    eject(&snapshot, 0);
    assert_eq!(
        counts(&snapshot, 1_200, &[], &mut Rng::new(1)),
        [0, 400, 400, 400]
    );
}

#[test]
fn least_request_of_two_always_takes_the_idler_one() {
    // Without replacement: with two endpoints the busier one is never chosen. With replacement it
    // would get a quarter.
    let snapshot = pool(Balance::LeastRequest, &[1, 1]);
    let busy = snapshot
        .version(ALL)
        .breaker
        .request(nth(&snapshot, 0))
        .unwrap();
    assert_eq!(counts(&snapshot, 1_000, &[], &mut Rng::new(3)), [0, 1_000]);
    drop(busy);
    let even = counts(&snapshot, 1_000, &[], &mut Rng::new(3));
    assert!(even.iter().all(|count| *count > 400), "{even:?}");
}

#[test]
fn least_request_with_weights_compares_load_for_weight() {
    let snapshot = pool(Balance::LeastRequest, &[3, 1]);
    let breaker = &snapshot.version(ALL).breaker;
    let mut held: Vec<_> = (0..2)
        .map(|_| breaker.request(nth(&snapshot, 0)).unwrap())
        .collect();
    held.push(breaker.request(nth(&snapshot, 1)).unwrap());
    // 2/3 against 1/1.
    assert_eq!(counts(&snapshot, 500, &[], &mut Rng::new(3)), [500, 0]);
    held.extend((0..2).map(|_| breaker.request(nth(&snapshot, 0)).unwrap()));
    // 4/3 against 1/1.
    assert_eq!(counts(&snapshot, 500, &[], &mut Rng::new(3)), [0, 500]);
}

#[test]
fn slow_endpoint_gets_little_of_ten() {
    // Virtual time: one endpoint takes ten times as long; ten requests are in flight at all times.
    let seed = 5;
    let snapshot = pool(Balance::LeastRequest, &[1; 10]);
    let breaker = &snapshot.version(ALL).breaker;
    let slow = nth(&snapshot, 0).id;
    let mut rng = Rng::new(seed);
    let mut in_flight = std::collections::BinaryHeap::new();
    let (mut to_slow, picks) = (0, 20_000_u64);
    let mut permits = std::collections::HashMap::new();
    for n in 0..picks {
        let mut now = n;
        if in_flight.len() >= 10 {
            let std::cmp::Reverse((done, which)) = in_flight.pop().unwrap();
            now = done;
            permits.remove(&which);
        }
        let chosen = pick(&snapshot, ALL, &[], &mut rng, NOW).unwrap();
        let takes = if chosen.id == slow { 1_000 } else { 100 };
        to_slow += u64::from(chosen.id == slow);
        permits.insert(n, breaker.request(&chosen).unwrap());
        in_flight.push(std::cmp::Reverse((now + takes, n)));
    }
    assert!(
        to_slow * 100 < picks * 6,
        "seed {seed}: {to_slow} of {picks}"
    );
    assert!(to_slow > 0);
}

#[test]
fn tried_endpoint_is_avoided_while_another_is_left() {
    for balance in EVERY {
        for weights in [&[1, 1, 1][..], &[1, 2, 3]] {
            let snapshot = pool(balance, weights);
            let mut rng = Rng::new(4);
            let ids: Vec<u64> = (0..3).map(|at| nth(&snapshot, at).id).collect();
            let without = counts(&snapshot, 600, &ids[..1], &mut rng);
            assert_eq!(without[0], 0, "{balance:?}");
            assert!(without[1] > 0 && without[2] > 0, "{balance:?}");
            assert_eq!(
                counts(&snapshot, 50, &ids[..2], &mut rng),
                [0, 0, 50],
                "{balance:?}"
            );
            // All tried: better one of them than none.
            assert_eq!(
                counts(&snapshot, 50, &ids, &mut rng).iter().sum::<usize>(),
                50
            );
            // The only one left is ejected: one that was tried, then.
            eject(&snapshot, 2);
            let last = counts(&snapshot, 200, &ids[..2], &mut rng);
            assert_eq!(last[2], 0, "{balance:?}");
        }
    }
}

#[test]
fn ejected_endpoints_share_is_split_by_weight() {
    for balance in EVERY {
        let snapshot = pool(balance, &[2, 1, 3]);
        eject(&snapshot, 2);
        let counts = counts(&snapshot, 9_000, &[], &mut Rng::new(8));
        assert_eq!(counts[2], 0, "{balance:?}");
        let share = counts[0] as f64 / 9_000.0;
        // Round robin gives the missing half of the turns out 2:1 as well.
        assert!((share - 2.0 / 3.0).abs() < 0.03, "{balance:?}: {counts:?}");
    }
}

#[test]
fn turn_goes_on_after_a_reload() {
    let make = || {
        model(
            service(3, 0),
            Vec::new(),
            vec![balanced(Balance::RoundRobin)],
        )
    };
    let first = compile(make());
    let mut rng = Rng::new(1);
    assert_eq!(counts(&first, 1, &[], &mut rng), [1, 0, 0]);
    let second = super::super::fixture::recompile(make(), &first, NOW);
    assert_eq!(counts(&second, 2, &[], &mut rng), [0, 1, 1]);
}
