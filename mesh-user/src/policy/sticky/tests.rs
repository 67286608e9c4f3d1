use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::{
    model::{Protocol, RuleExtra, Service, Target},
    policy::{
        Client, NoObserver, Reject, Snapshot,
        fixture::{self, PORT, endpoint, get, service, tags, to, workload},
        route,
        split::Cursors,
    },
};

const KEYS: u32 = 10_000;

fn five() -> Service {
    let mut service = service(1, 1);
    for n in 3..=5 {
        let version = format!("v{n}");
        service
            .endpoints
            .push(endpoint(&format!("10.0.{n}.1"), &version));
        service
            .versions
            .insert(version.clone(), tags(&[("version", &version)]));
    }
    service
}

fn snapshot_of(key: &[Attribute], salt: &str, route: Vec<Target>, service: Service) -> Snapshot {
    let mut rule = fixture::rule("r", 0, Vec::new(), route);
    rule.extra = Some(Box::new(RuleExtra {
        sticky: Some(Sticky {
            key: key.to_vec(),
            salt: salt.to_owned(),
        }),
        ..RuleExtra::default()
    }));
    let mut model = fixture::model(service, vec![rule], Vec::new());
    model.workloads = vec![workload("a", &[("team", "x")]), workload("b", &[])];
    fixture::compile(model)
}

fn user() -> [Attribute; 1] {
    [Attribute::Header("x-user".to_owned())]
}

fn weighted(weights: &[u32]) -> Vec<Target> {
    let named = (1..).zip(weights);
    named
        .map(|(n, weight)| to(&format!("v{n}"), *weight))
        .collect()
}

/// The version of each key, `v1` being 1.
fn assignment(snapshot: &Snapshot) -> Vec<usize> {
    let mut cursors = Cursors::default();
    let version = |n| {
        let ask = get("/").with("x-user", &format!("user-{n}"));
        let plan = fixture::decide(snapshot, None, &ask.view(), &mut cursors).unwrap();
        let name = &snapshot.version(plan.version).name;
        name.trim_start_matches('v').parse().unwrap()
    };
    (0..KEYS).map(version).collect()
}

fn of_weights(weights: &[u32]) -> Vec<usize> {
    assignment(&snapshot_of(&user(), "s", weighted(weights), five()))
}

fn count(assigned: &[usize], version: usize) -> f64 {
    assigned.iter().filter(|at| **at == version).count() as f64
}

fn within_three_sigma(assigned: &[usize], version: usize, share: f64) {
    let n = f64::from(KEYS);
    let sigma = (n * share * (1.0 - share)).sqrt();
    let off = (count(assigned, version) - n * share).abs();
    assert!(off <= 3.0 * sigma, "v{version}: {off} off, sigma {sigma}");
}

#[test]
fn sticky_canary_raised_from_10_to_20_percent_loses_no_key() {
    let before = of_weights(&[90, 10]);
    let after = of_weights(&[80, 20]);
    within_three_sigma(&before, 2, 0.1);
    within_three_sigma(&after, 2, 0.2);
    for (before, after) in before.iter().zip(&after) {
        assert!(*before != 2 || *after == 2, "a key left v2");
    }
}

#[test]
fn sticky_raise_moves_keys_to_the_raised_target_alone_with_any_number_of_targets() {
    let before = of_weights(&[40, 30, 20, 10]);
    for (raised, weights) in [
        (1, [60, 30, 20, 10]),
        (2, [40, 31, 20, 10]),
        (3, [40, 30, 200, 10]),
        (4, [40, 30, 20, 1_000_000]),
    ] {
        let after = of_weights(&weights);
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b);
        let strays = moved.clone().filter(|(_, to)| **to != raised).count();
        assert_eq!(strays, 0, "{weights:?}");
        assert!(moved.count() > 0 || raised == 2, "{weights:?}");
    }
}

#[test]
fn sticky_shift_between_three_targets_moves_keys_the_right_way_only() {
    let steps = [
        [90, 5, 5],
        [80, 10, 10],
        [50, 25, 25],
        [20, 40, 40],
        [0, 50, 50],
    ];
    let assigned: Vec<Vec<usize>> = steps.iter().map(|step| of_weights(step)).collect();
    for pair in assigned.windows(2) {
        for (before, after) in pair[0].iter().zip(&pair[1]) {
            assert!(before == after || *before == 1, "{before} to {after}");
        }
    }
    assert_eq!(count(&assigned[4], 1), 0.0);
}

#[test]
fn sticky_shares_pass_chi_square_at_99_9_percent() {
    // Critical values of chi-square for 1 to 4 degrees of freedom.
    let critical = [10.828, 13.816, 16.266, 18.467];
    for weights in [
        vec![50, 50],
        vec![99, 1],
        vec![50, 30, 20],
        vec![1, 2, 3, 4],
        vec![70, 10, 10, 5, 5],
    ] {
        let assigned = of_weights(&weights);
        let sum: u32 = weights.iter().sum();
        let square: f64 = (1..)
            .zip(&weights)
            .map(|(version, weight)| {
                let expected = f64::from(KEYS) * f64::from(*weight) / f64::from(sum);
                (count(&assigned, version) - expected).powi(2) / expected
            })
            .sum();
        assert!(
            square < critical[weights.len() - 2],
            "{weights:?}: {square}"
        );
    }
}

#[test]
fn sticky_assignment_depends_on_the_salt_and_not_on_the_order_of_targets() {
    let plain = of_weights(&[50, 50]);
    let salted = assignment(&snapshot_of(&user(), "other", weighted(&[50, 50]), five()));
    let differ = plain.iter().zip(&salted).filter(|(a, b)| a != b).count();
    assert!((4_000..6_000).contains(&differ), "{differ}");
    let mut turned = weighted(&[70, 20, 10]);
    turned.reverse();
    let turned = assignment(&snapshot_of(&user(), "s", turned, five()));
    assert_eq!(turned, of_weights(&[70, 20, 10]));
}

#[test]
fn sticky_assignment_is_the_same_on_every_node_and_in_every_version_of_mesh() {
    // Golden: a change would move the users of everybody who upgrades.
    let assigned = of_weights(&[50, 30, 20]);
    assert_eq!(
        assigned[..20],
        [3, 2, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1, 2, 1, 2, 3, 1]
    );
}

#[test]
fn sticky_zero_weight_gets_nothing() {
    let assigned = of_weights(&[0, 50, 0, 50]);
    assert_eq!(count(&assigned, 1) + count(&assigned, 3), 0.0);
    let snapshot = snapshot_of(&user(), "s", weighted(&[0, 0]), five());
    let ask = get("/").with("x-user", "a");
    let decided = fixture::decide(&snapshot, None, &ask.view(), &mut Cursors::default());
    assert_eq!(decided, Err(Reject::NoWeight));
}

#[test]
fn sticky_without_key_goes_in_turn() {
    let snapshot = snapshot_of(&user(), "s", weighted(&[50, 50]), five());
    let mut cursors = Cursors::default();
    let mut versions = Vec::new();
    for _ in 0..4 {
        let plan = fixture::decide(&snapshot, None, &get("/").view(), &mut cursors).unwrap();
        versions.push(snapshot.version(plan.version).name.to_string());
    }
    assert_eq!(versions, ["v1", "v2", "v1", "v2"]);
}

#[test]
fn sticky_same_target_twice_has_two_shares() {
    let route = vec![to("v1", 25), to("v1", 25), to("v2", 50)];
    let assigned = assignment(&snapshot_of(&user(), "s", route, five()));
    within_three_sigma(&assigned, 2, 0.5);
}

#[test]
fn sticky_key_keeps_its_parts_apart() {
    let key = [
        Attribute::Header("a".to_owned()),
        Attribute::Header("b".to_owned()),
    ];
    let snapshot = snapshot_of(&key, "s", weighted(&[50, 50]), five());
    let hash = |a: Option<&str>, b: Option<&str>| {
        let mut ask = get("/");
        for (name, value) in [("a", a), ("b", b)] {
            if let Some(value) = value {
                ask = ask.with(name, value);
            }
        }
        let view = ask.view();
        let rule = snapshot.port(PORT).routes.rules()[0];
        let plan = snapshot.rule(rule).choice.as_ref().unwrap();
        plan.sticky.as_ref().unwrap().key(&Asker {
            snapshot: &snapshot,
            port: PORT,
            rule: Some(rule),
            version: None,
            client: Client::default(),
            request: Some(&view),
        })
    };
    let different = [
        hash(Some("x"), Some("yz")),
        hash(Some("xy"), Some("z")),
        hash(Some("xyz"), None),
        hash(None, Some("xyz")),
        hash(Some("xyz"), Some("")),
    ];
    for (at, one) in different.iter().enumerate() {
        assert!(one.is_some());
        assert!(different[at + 1..].iter().all(|other| one != other));
    }
    assert_eq!(hash(None, None), None);
}

#[test]
fn sticky_by_source_and_by_client_address_works_for_opaque_connections() {
    let mut service = five();
    service.ports[0].protocol = Protocol::Tcp;
    let versions = |snapshot: &Snapshot, clients: Vec<Client>| -> Vec<u32> {
        let mut cursors = Cursors::default();
        let version = |client: Client| {
            let plan = route::decide_tcp(snapshot, PORT, client, &mut cursors, &mut NoObserver);
            plan.unwrap().target
        };
        clients.into_iter().map(version).collect()
    };
    let address = |n: u32| Client {
        address: Some(IpAddr::V4(Ipv4Addr::from_bits(0x0a01_0000 + n))),
        ..Client::default()
    };
    let by_address = [Attribute::SourceAddress];
    let snapshot = snapshot_of(&by_address, "s", weighted(&[90, 10]), service.clone());
    let once = versions(&snapshot, (0..1000).map(address).collect());
    assert_eq!(once, versions(&snapshot, (0..1000).map(address).collect()));
    let second = once.iter().filter(|target| **target == 1).count();
    assert!((70..130).contains(&second), "{second}");

    for key in [Attribute::SourceWorkload, Attribute::SourceIdentity] {
        let snapshot = snapshot_of(&[key], "s", weighted(&[50, 50]), service.clone());
        let source = snapshot.source("default/a");
        let same = versions(&snapshot, vec![source.into(); 8]);
        assert!(same.iter().all(|target| *target == same[0]), "{same:?}");
    }
}

#[test]
fn logarithm_is_exact_to_the_last_bits() {
    for n in 0..1000 {
        let m = 1.0 + f64::from(n) / 1000.0;
        assert!((ln(m) - m.ln()).abs() < 1e-15, "{m}");
    }
    assert_eq!(exponential(u64::MAX), 0.0);
    assert!((exponential(0) - 53.0 * std::f64::consts::LN_2).abs() < 1e-12);
    assert!((exponential(1 << 63) - std::f64::consts::LN_2).abs() < 1e-12);
}
