//! SEMANTICS §5.10, (a) to (e).

use std::collections::HashMap;

use super::*;
use crate::{
    clock::MonoNanos,
    model::{Attribute, Endpoint},
    policy::{
        Snapshot, VersionIx, balance,
        fixture::{at_ms, balanced, compile, get, model, recompile, service},
        request::{Client, HeaderList, RequestView},
        rng::Rng,
        route::Plan,
        snapshot::Outcome,
    },
};

const ALL: VersionIx = VersionIx(0);
const NOW: MonoNanos = at_ms(1);
const EACH: [Balance; 2] = [Balance::RingHash, Balance::Maglev];
/// Keys of a measurement.
const KEYS: u64 = 20_000;

fn policy(algorithm: Balance) -> BalancePolicy {
    BalancePolicy {
        hash: vec![Attribute::Header("x-user".to_owned())],
        // Smooth enough to measure; with 1,024 entries shares differ by a third.
        ring_min: 65_536,
        ..algorithm.into()
    }
}

fn snapshot(policy: BalancePolicy, weights: &[u32]) -> Snapshot {
    compile(model(web(weights), Vec::new(), vec![of(policy)]))
}

fn of(policy: BalancePolicy) -> crate::model::Policy {
    crate::model::Policy {
        balance: Some(policy),
        ejection: Some(crate::model::EjectionPolicy {
            consecutive_5xx: 1,
            max_percent: 100,
            ..crate::model::EjectionPolicy::default()
        }),
        ..crate::model::Policy::default()
    }
}

fn web(weights: &[u32]) -> crate::model::Service {
    let mut web = service(1, 0);
    let one = web.endpoints.remove(0);
    let endpoints = (1_u32..).zip(weights).map(|(number, weight)| Endpoint {
        address: std::net::Ipv4Addr::from_bits(0x0a01_0000 + number).into(),
        weight: *weight,
        ..one.clone()
    });
    web.endpoints = endpoints.collect();
    web
}

fn table(snapshot: &Snapshot) -> &Hashed {
    &snapshot.version(ALL).table.more_for_tests().hashed[0]
}

fn key(user: u64) -> u64 {
    XxHash64::oneshot(0, &user.to_be_bytes())
}

/// Who gets each key.
fn owners(snapshot: &Snapshot) -> Vec<SocketAddr> {
    let mut rng = Rng::new(1);
    let owner = |user| {
        let chosen = balance::pick_by(snapshot, ALL, Some(key(user)), &[], &mut rng, NOW);
        chosen.unwrap().address
    };
    (0..KEYS).map(owner).collect()
}

#[test]
fn table_is_the_same_in_whatever_order_the_endpoints_come() {
    for algorithm in EACH {
        let weights = [1, 2, 3, 4, 5, 6, 7];
        let first = owners(&snapshot(policy(algorithm), &weights));
        let mut turned = web(&weights);
        turned.endpoints.reverse();
        turned.endpoints.swap(1, 4);
        let other = compile(model(turned, Vec::new(), vec![of(policy(algorithm))]));
        assert_eq!(owners(&other), first, "{algorithm:?}");
    }
}

#[test]
fn table_of_two_nodes_is_the_same_and_of_another_seed_is_not() {
    for algorithm in EACH {
        let one = owners(&snapshot(policy(algorithm), &[1; 9]));
        // Compiled apart, with other ids: as on another node.
        assert_eq!(owners(&snapshot(policy(algorithm), &[1; 9])), one);
        let other = BalancePolicy {
            seed: 7,
            ..policy(algorithm)
        };
        assert_ne!(owners(&snapshot(other, &[1; 9])), one, "{algorithm:?}");
    }
}

#[test]
fn table_without_an_endpoint_moves_few_other_keys() {
    for (algorithm, most) in [(Balance::RingHash, 0.0), (Balance::Maglev, 0.01)] {
        for count in [10, 100, 600] {
            let before = owners(&snapshot(policy(algorithm), &vec![1; count]));
            let mut fewer = web(&vec![1; count]);
            let gone = fewer.endpoints.remove(3).address;
            let after = owners(&compile(model(
                fewer,
                Vec::new(),
                vec![of(policy(algorithm))],
            )));
            let others = before
                .iter()
                .zip(&after)
                .filter(|(had, _)| had.ip() != gone);
            let moved = others.filter(|(had, has)| had != has).count();
            let share = moved as f64 / KEYS as f64;
            // Sampling: three sigma of the bound itself.
            let bound = most + 3.0 * (most / KEYS as f64).sqrt();
            assert!(share <= bound, "{algorithm:?} of {count}: {share}");
        }
    }
}

#[test]
fn table_shares_follow_the_weights() {
    for (weights, bound) in [
        (vec![1; 3], 0.02),
        (vec![1; 100], 0.02),
        (vec![1, 2], 0.02),
        (vec![1, 2, 3, 4], 0.02),
        (vec![5, 0, 5], 0.02),
    ] {
        let snapshot = snapshot(policy(Balance::Maglev), &weights);
        owners(&snapshot);
        let hashed = table(&snapshot);
        let Some(Built::Maglev(table)) = hashed.built.get().map(|built| &**built) else {
            panic!("no table");
        };
        let sum: u32 = weights.iter().sum();
        let with_weight: Vec<u32> = weights.iter().copied().filter(|w| *w > 0).collect();
        for (member, (_, weight)) in (0_u32..).zip(&hashed.recipe.members) {
            assert!(with_weight.contains(weight));
            let entries = table.iter().filter(|entry| **entry == member).count();
            let share = entries as f64 / table.len() as f64;
            let exact = f64::from(*weight) / f64::from(sum);
            let off = (share / exact - 1.0).abs();
            assert!(off <= bound, "{weights:?}: {share} instead of {exact}");
        }
    }
}

#[test]
fn ring_shares_follow_the_weights_within_what_hashes_allow() {
    let snapshot = snapshot(policy(Balance::RingHash), &[1, 2, 3, 4]);
    let mut counts: HashMap<SocketAddr, usize> = HashMap::new();
    for owner in owners(&snapshot) {
        *counts.entry(owner).or_default() += 1;
    }
    for endpoint in &snapshot.version(ALL).endpoints {
        let share = counts[&endpoint.address] as f64 / KEYS as f64;
        let exact = f64::from(endpoint.weight) / 10.0;
        assert!((share / exact - 1.0).abs() < 0.06, "{share} of {exact}");
    }
}

#[test]
fn ring_size_is_between_least_and_most() {
    for (weights, ring_min, ring_max, expected) in [
        (vec![1; 3], 1_024, 8_388_608, 1_536..=1_536),
        (vec![1; 3], 1, 8_388_608, 3..=3),
        (vec![1, 9], 1, 8_388_608, 10..=10),
        (vec![1; 2_000], 1_024, 8_388_608, 2_000..=2_000),
        (vec![1, 1], 1_024, 1_024, 1_024..=1_024),
        (vec![1, 1_000_000], 1_024, 2_048, 2_048..=2_049),
    ] {
        let policy = BalancePolicy {
            ring_min,
            ring_max,
            ..policy(Balance::RingHash)
        };
        let snapshot = snapshot(policy, &weights);
        let size = table(&snapshot).recipe.ring().len();
        assert!(
            expected.contains(&size),
            "{} members: {size}",
            weights.len()
        );
    }
}

#[test]
fn key_of_an_ejected_endpoint_moves_alone_and_comes_back() {
    for algorithm in EACH {
        let snapshot = snapshot(policy(algorithm), &[1; 10]);
        let before = owners(&snapshot);
        let endpoint = &snapshot.version(ALL).endpoints[4];
        snapshot
            .record(ALL, endpoint, Outcome::Reset, None, NOW)
            .expect("ejected");
        let meanwhile = owners(&snapshot);
        let mut heirs = std::collections::HashSet::new();
        for (had, has) in before.iter().zip(&meanwhile) {
            assert_ne!(*has, endpoint.address);
            if *had == endpoint.address {
                heirs.insert(*has);
            } else {
                assert_eq!(had, has, "{algorithm:?}: a key that is not its own");
            }
        }
        assert!(heirs.len() >= 8, "its keys spread: {heirs:?}");
        assert!(endpoint.live.uneject(NOW));
        assert_eq!(owners(&snapshot), before, "{algorithm:?}");
    }
}

#[test]
fn key_of_an_unready_endpoint_moves_alone_and_comes_back_with_the_next_snapshots() {
    for algorithm in EACH {
        let ready = || model(web(&[1; 10]), Vec::new(), vec![of(policy(algorithm))]);
        let mut without = ready();
        without.services[0].endpoints[4].healthy = false;
        let first = compile(ready());
        let before = owners(&first);
        let second = recompile(without, &first, at_ms(2));
        let gone = second.version(ALL).endpoints[4].address;
        let changed = owners(&second);
        for (had, has) in before.iter().zip(&changed) {
            assert_eq!(had == has, *had != gone);
        }
        let third = recompile(ready(), &second, at_ms(3));
        assert_eq!(owners(&third), before);
        // One table for all three: it says nothing of health.
        assert!(table(&first).is_shared_with(table(&third)));
    }
}

#[test]
fn key_with_hardly_anybody_left_still_finds_one_and_the_same() {
    for algorithm in EACH {
        let snapshot = snapshot(policy(algorithm), &[1; 300]);
        for endpoint in &snapshot.version(ALL).endpoints[2..] {
            snapshot.record(ALL, endpoint, Outcome::Reset, None, NOW);
        }
        let found = owners(&snapshot);
        assert_eq!(owners(&snapshot), found);
        for endpoint in &snapshot.version(ALL).endpoints[..2] {
            let share = found.iter().filter(|owner| **owner == endpoint.address);
            let share = share.count() as f64 / KEYS as f64;
            assert!((0.4..0.6).contains(&share), "{algorithm:?}: {share}");
        }
    }
}

#[test]
fn bounded_load_caps_every_endpoint_at_its_share_of_the_mean() {
    for algorithm in EACH {
        for (percent, weights) in [(100, vec![1; 8]), (125, vec![1; 8]), (150, vec![1, 1, 2])] {
            let policy = BalancePolicy {
                bounded_load: Some(percent),
                ..policy(algorithm)
            };
            let snapshot = snapshot(policy, &weights);
            let plan = snapshot.version(ALL);
            let sum: u32 = weights.iter().sum();
            let mut held = Vec::new();
            // Every request wants the same endpoint.
            for count in 1..=400_u64 {
                let mut rng = Rng::new(1);
                let chosen =
                    balance::pick_by(&snapshot, ALL, Some(key(5)), &[], &mut rng, NOW).unwrap();
                held.push(plan.breaker.request(&chosen).unwrap());
                for endpoint in &plan.endpoints {
                    let cap = (u64::from(percent) * count * u64::from(endpoint.weight))
                        .div_ceil(100 * u64::from(sum));
                    let busy = u64::from(endpoint.live.in_flight());
                    assert!(busy <= cap, "{algorithm:?} {percent} %: {busy} of {count}");
                }
            }
        }
    }
    // And without a bound it gets all.
    let snapshot = snapshot(policy(Balance::Maglev), &[1; 8]);
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut rng = Rng::new(1);
        let chosen = balance::pick_by(&snapshot, ALL, Some(key(5)), &[], &mut rng, NOW).unwrap();
        held.push(snapshot.version(ALL).breaker.request(&chosen).unwrap());
    }
    let most = snapshot.version(ALL).endpoints.iter();
    assert_eq!(most.map(|e| e.live.in_flight()).max(), Some(100));
}

#[test]
fn key_of_a_retry_leads_elsewhere_but_always_to_the_same() {
    for algorithm in EACH {
        let snapshot = snapshot(policy(algorithm), &[1; 5]);
        for user in 0..200 {
            let pick = |tried: &[u64]| {
                let mut rng = Rng::new(user);
                balance::pick_by(&snapshot, ALL, Some(key(user)), tried, &mut rng, NOW).unwrap()
            };
            let first = pick(&[]);
            let second = pick(&[first.id]);
            assert_ne!(first.id, second.id);
            assert_eq!(second.id, pick(&[first.id]).id);
        }
    }
}

#[test]
fn key_is_of_all_attributes_and_none_is_any_endpoint() {
    let two = BalancePolicy {
        hash: vec![
            Attribute::Header("x-user".to_owned()),
            Attribute::SourceAddress,
        ],
        ..policy(Balance::Maglev)
    };
    let two = snapshot(two, &[1; 5]);
    let plan = Plan {
        session: None,
        port: crate::policy::PortIx(0),
        rule: None,
        target: 0,
        version: ALL,
    };
    let of = |snapshot: &Snapshot, user: Option<&str>, address: Option<&str>| {
        let ask = match user {
            Some(user) => get("/").with("x-user", user),
            None => get("/"),
        };
        let client = Client {
            unix_s: 0,
            source: None,
            address: address.map(|address| address.parse().unwrap()),
        };
        balance::key(snapshot, &plan, client, Some(&ask.view()))
    };
    let both = of(&two, Some("a"), Some("10.0.0.1"));
    assert_eq!(both, of(&two, Some("a"), Some("::ffff:10.0.0.1")));
    let mut seen = vec![both.expect("a key")];
    for (user, address) in [
        (Some("b"), Some("10.0.0.1")),
        (Some("a"), Some("10.0.0.2")),
        (Some("a"), None),
        (None, Some("10.0.0.1")),
    ] {
        let other = of(&two, user, address).expect("a part is enough");
        assert!(!seen.contains(&other), "{user:?} {address:?}");
        seen.push(other);
    }
    assert_eq!(of(&two, None, None), None);
    // Over TCP there is no header.
    let client = Client {
        unix_s: 0,
        source: None,
        address: Some("10.0.0.1".parse().unwrap()),
    };
    let none: Option<&RequestView<'_, HeaderList>> = None;
    assert_eq!(
        balance::key(&two, &plan, client, none),
        of(&two, None, Some("10.0.0.1"))
    );
    // Without a key every endpoint gets some.
    let mut rng = Rng::new(3);
    let without: std::collections::HashSet<u64> = (0..200)
        .map(|_| {
            balance::pick_by(&two, ALL, None, &[], &mut rng, NOW)
                .unwrap()
                .id
        })
        .collect();
    assert_eq!(without.len(), 5);
    // Other algorithms need none.
    let plain = compile(model(
        web(&[1; 5]),
        Vec::new(),
        vec![balanced(Balance::Random)],
    ));
    assert_eq!(of(&plain, Some("a"), Some("10.0.0.1")), None);
}

#[test]
fn table_is_built_by_the_first_request_and_again_with_the_snapshot_after() {
    let of_count = |count| {
        model(
            web(&vec![1; count]),
            Vec::new(),
            vec![of(policy(Balance::Maglev))],
        )
    };
    let built = |snapshot: &Snapshot| table(snapshot).is_built();
    let first = compile(of_count(5));
    assert!(!built(&first), "a full load builds none");
    owners(&first);
    assert!(built(&first));
    let second = recompile(of_count(6), &first, at_ms(2));
    assert!(built(&second), "no request waits for it");
    let third = recompile(of_count(6), &second, at_ms(3));
    assert!(table(&second).is_shared_with(table(&third)));
}

#[test]
fn table_size_that_is_no_prime_falls_back_instead_of_filling_for_ever() {
    let policy = BalancePolicy {
        table_size: 1_000,
        ..policy(Balance::Maglev)
    };
    assert_eq!(owners(&snapshot(policy, &[1; 3])).len() as u64, KEYS);
}
