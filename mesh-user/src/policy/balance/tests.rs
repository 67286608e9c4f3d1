use super::{
    super::{
        Snapshot,
        fixture::{at_ms, balanced, compile, model, recompile, secs, service},
        snapshot::Outcome,
    },
    *,
};
use crate::model::{BalancePolicy, EjectionPolicy, Model, Policy};

mod latency;
mod priority;
mod warm;

const ALL: VersionIx = VersionIx(0);
const NOW: MonoNanos = at_ms(1);

/// Endpoints with these weights, ejected at the first failure.
fn pool(balance: Balance, weights: &[u32]) -> Snapshot {
    pool_of(balance.into(), weights)
}

fn pool_of(balance: BalancePolicy, weights: &[u32]) -> Snapshot {
    compile(pool_model(balance, weights))
}

fn pool_model(balance: BalancePolicy, weights: &[u32]) -> Model {
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
        balance: Some(balance),
        ..Policy::default()
    };
    model(web, Vec::new(), vec![policy])
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

const EVERY: [Balance; 6] = [
    Balance::LeastRequest,
    Balance::RoundRobin,
    Balance::Random,
    Balance::PeakEwma,
    // Without a key.
    Balance::RingHash,
    Balance::Maglev,
];

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
fn least_request_with_weights_shares_by_effective_weight() {
    assert!((effective_weight(2, 4, 100) - 0.4).abs() < 1e-9);
    assert!((effective_weight(2, 3, 200) - 0.125).abs() < 1e-9);
    assert!((effective_weight(2, 99, 0) - 2.0).abs() < 1e-9);
    let seed = 3;
    for bias_percent in [0, 50, 100, 200] {
        for (weights, busy) in [
            (&[2, 1][..], &[4, 0][..]),
            (&[2, 1], &[0, 0]),
            (&[2, 1], &[9, 9]),
            (&[1, 2, 3, 4], &[3, 2, 1, 0]),
        ] {
            let policy = BalancePolicy {
                bias_percent,
                ..Balance::LeastRequest.into()
            };
            let snapshot = pool_of(policy, weights);
            let breaker = &snapshot.version(ALL).breaker;
            let held: Vec<_> = (0..)
                .zip(busy)
                .flat_map(|(at, busy)| (0..*busy).map(move |_| at))
                .map(|at| breaker.request(nth(&snapshot, at)).unwrap())
                .collect();
            let each: Vec<f64> = weights
                .iter()
                .zip(busy)
                .map(|(weight, busy)| effective_weight(u64::from(*weight), *busy, bias_percent))
                .collect();
            let sum: f64 = each.iter().sum();
            let picks = 20_000;
            let counts = counts(&snapshot, picks, &[], &mut Rng::new(seed));
            for (count, exact) in counts.iter().zip(&each) {
                let (share, exact) = (*count as f64 / picks as f64, exact / sum);
                assert!(
                    (share - exact).abs() < 0.015,
                    "{weights:?} {busy:?} {bias_percent} %, seed {seed}: {share} for {exact}"
                );
            }
            drop(held);
        }
    }
}

#[test]
fn least_request_with_many_weights_comes_near_to_the_effective_ones() {
    let weights: Vec<u32> = (1..=40).collect();
    let snapshot = pool(Balance::LeastRequest, &weights);
    let breaker = &snapshot.version(ALL).breaker;
    // The heaviest ten are busy.
    let held: Vec<_> = (30..40)
        .flat_map(|at| (0..4).map(move |_| at))
        .map(|at| breaker.request(nth(&snapshot, at)).unwrap())
        .collect();
    let share: f64 = counts(&snapshot, 20_000, &[], &mut Rng::new(8))[30..]
        .iter()
        .map(|count| *count as f64 / 20_000.0)
        .sum();
    let heavy = f64::from((31..=40).sum::<u32>()) / 5.0;
    let light = f64::from((1..=30).sum::<u32>());
    let exact = heavy / (heavy + light);
    assert!((share - exact).abs() < 0.05, "{share} for {exact}");
    drop(held);
}

#[test]
fn least_request_never_picks_the_busier_of_two() {
    for (busy, expected) in [([1, 0], [0, 500]), ([0, 7], [500, 0]), ([3, 2], [0, 500])] {
        let snapshot = pool(Balance::LeastRequest, &[1, 1]);
        let breaker = &snapshot.version(ALL).breaker;
        let held: Vec<_> = (0..2)
            .flat_map(|at| (0..busy[at]).map(move |_| at))
            .map(|at| breaker.request(nth(&snapshot, at)).unwrap())
            .collect();
        assert_eq!(counts(&snapshot, 500, &[], &mut Rng::new(3)), expected);
        drop(held);
    }
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
    let second = recompile(make(), &first, NOW);
    assert_eq!(counts(&second, 2, &[], &mut rng), [0, 1, 1]);
}
