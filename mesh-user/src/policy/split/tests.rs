use super::{
    super::{
        Reject,
        fixture::{compile, decide, get, model, recompile, rule, service, to},
        rng::Rng,
    },
    *,
};
use crate::{
    clock::MonoNanos,
    model::{Model, Rule, Target},
};

fn split(weights: &[u32]) -> Rule {
    let names = ["v1", "v2", "v3", "v4", "v5"];
    let route: Vec<Target> = weights
        .iter()
        .zip(names)
        .map(|(w, name)| to(name, *w))
        .collect();
    rule("split", 0, Vec::new(), route)
}

fn weighted(weights: &[u32]) -> Model {
    let mut web = service(2, 1);
    for name in ["v3", "v4", "v5"] {
        web.versions.insert(
            name.to_owned(),
            super::super::fixture::tags(&[("version", name)]),
        );
    }
    model(web, vec![split(weights)], Vec::new())
}

/// How often each target was chosen.
fn counts(snapshot: &Snapshot, cursors: &mut Cursors, picks: u64, targets: usize) -> Vec<u64> {
    let mut counts = vec![0; targets];
    for _ in 0..picks {
        let plan = decide(snapshot, None, &get("/").view(), cursors).unwrap();
        let rule = snapshot.rule(plan.rule.unwrap());
        let at = rule
            .targets
            .iter()
            .position(|target| target.version == plan.version)
            .unwrap();
        counts[at] += 1;
    }
    counts
}

#[test]
fn one_worker_is_exact_at_whole_cycles() {
    for weights in [
        &[90, 10][..],
        &[99, 1],
        &[1, 1],
        &[70, 30],
        &[1, 2, 3, 4, 5],
        &[5, 0, 5],
        &[1, 999],
        &[3, 3, 1],
    ] {
        let snapshot = compile(weighted(weights));
        let mut cursors = Cursors::default();
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        for cycle in 1..=5 {
            let counts = counts(&snapshot, &mut cursors, sum, weights.len());
            let expected: Vec<u64> = weights.iter().map(|weight| u64::from(*weight)).collect();
            assert_eq!(counts, expected, "{weights:?}, cycle {cycle}");
        }
    }
}

#[test]
fn cycle_is_as_short_as_the_ratio_allows() {
    // 900,000 : 100,000 is exact after 10 picks, not after a million.
    let snapshot = compile(weighted(&[900_000, 100_000]));
    let mut cursors = Cursors::default();
    for _ in 0..5 {
        assert_eq!(counts(&snapshot, &mut cursors, 10, 2), [9, 1]);
    }
}

#[test]
fn picks_are_spread_evenly_inside_a_cycle() {
    let snapshot = compile(weighted(&[90, 10]));
    let mut cursors = Cursors::default();
    for picks in 1..=300_u64 {
        let mut fresh = Cursors::default();
        let counted = counts(&snapshot, &mut fresh, picks, 2);
        let expected = picks as f64 * 0.1;
        assert!(
            (counted[1] as f64 - expected).abs() < 1.0,
            "{picks} picks: {counted:?}"
        );
    }
    assert_eq!(counts(&snapshot, &mut cursors, 0, 2), [0, 0]);
}

#[test]
fn k_workers_are_off_by_at_most_k_times_the_targets() {
    let seed = 42;
    let mut rng = Rng::new(seed);
    for weights in [&[90, 10][..], &[1, 2, 3, 4, 5], &[999_983, 17], &[7, 3, 1]] {
        let snapshot = compile(weighted(weights));
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        for workers in [1, 2, 8] {
            let mut cursors = vec![Cursors::default(); workers];
            let mut total = vec![0; weights.len()];
            let picks = 3_000 + u64::from(rng.below(1_000));
            for _ in 0..picks {
                let worker = rng.below(workers as u32) as usize;
                let one = counts(&snapshot, &mut cursors[worker], 1, weights.len());
                total.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
            }
            for (count, weight) in total.iter().zip(weights) {
                let expected = picks as f64 * f64::from(*weight) / sum as f64;
                let off = (*count as f64 - expected).abs();
                let bound = (workers * weights.len()) as f64;
                assert!(
                    off <= bound,
                    "{weights:?}, {workers} workers, seed {seed}: off by {off}"
                );
            }
        }
    }
}

#[test]
fn share_change_in_the_middle_is_exact_on_both_sides() {
    let before = compile(weighted(&[99, 1]));
    let mut cursors = Cursors::default();
    assert_eq!(counts(&before, &mut cursors, 1_000, 2), [990, 10]);
    // In the middle of a cycle.
    counts(&before, &mut cursors, 37, 2);
    let after = recompile(weighted(&[90, 10]), &before, MonoNanos(1));
    assert_eq!(counts(&after, &mut cursors, 1_000, 2), [900, 100]);
    let last = recompile(weighted(&[0, 100]), &after, MonoNanos(2));
    assert_eq!(counts(&last, &mut cursors, 1_000, 2), [0, 1_000]);
}

#[test]
fn gateway_conformance_script_never_fails_in_1000_runs() {
    // 500 requests from 10 connections on 4 workers: each share within 5 points.
    let seed = 4242;
    let mut rng = Rng::new(seed);
    let snapshot = compile(weighted(&[70, 30, 0]));
    for run in 0..1_000 {
        let mut cursors = vec![Cursors::default(); 4];
        let mut total = [0_u64; 3];
        for _ in 0..500 {
            let worker = rng.below(10) as usize % 4;
            let one = counts(&snapshot, &mut cursors[worker], 1, 3);
            total.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
        }
        for (count, share) in total.iter().zip([0.7, 0.3, 0.0]) {
            let off = (*count as f64 / 500.0 - share).abs();
            assert!(off <= 0.05, "run {run}, seed {seed}: {total:?}");
        }
        assert_eq!(total[2], 0, "weight 0 receives nothing");
    }
}

#[test]
fn weight_zero_is_never_chosen_and_all_zero_is_refused() {
    let snapshot = compile(weighted(&[0, 1, 0, 2, 0]));
    let counts = counts(&snapshot, &mut Cursors::default(), 3_000, 5);
    assert_eq!(counts, [0, 1_000, 0, 2_000, 0]);

    let off = compile(weighted(&[0, 0]));
    let refused = decide(&off, None, &get("/").view(), &mut Cursors::default());
    assert_eq!(refused, Err(Reject::NoWeight));
}

#[test]
fn largest_weights_do_not_overflow() {
    let snapshot = compile(weighted(&[1_000_000; 5]));
    let counts = counts(&snapshot, &mut Cursors::default(), 5_000, 5);
    assert_eq!(counts, [1_000; 5]);
}

#[test]
fn position_survives_a_reload_that_leaves_the_weights() {
    let before = compile(weighted(&[3, 1]));
    let mut cursors = Cursors::default();
    let first = counts(&before, &mut cursors, 2, 2);
    // Another rule before it moves every index.
    let mut with_more = weighted(&[3, 1]);
    let mut other = rule(
        "other",
        9,
        vec![crate::model::Match::default()],
        vec![to("v1", 1)],
    );
    other.matches[0].methods = vec!["POST".to_owned()].into();
    with_more.rules.insert(0, other);
    let after = recompile(with_more, &before, MonoNanos(1));
    let second = counts(&after, &mut cursors, 2, 2);
    assert_eq!([first[0] + second[0], first[1] + second[1]], [3, 1]);
    assert_eq!(cursors.len(), 1);
}

#[test]
fn position_starts_anew_when_weights_or_versions_change() {
    let before = compile(weighted(&[3, 1]));
    let id = |snapshot: &Snapshot| snapshot.rules.last().unwrap().split.id;
    let next = |model: Model| id(&recompile(model, &before, MonoNanos(1)));
    assert_eq!(next(weighted(&[3, 1])), id(&before));
    assert_ne!(next(weighted(&[3, 2])), id(&before));
    assert_ne!(next(weighted(&[3, 1, 0])), id(&before));
    let mut other_version = weighted(&[3, 1]);
    other_version.rules[0].route[1] = to("v3", 1);
    assert_ne!(next(other_version), id(&before));
    let mut other_name = weighted(&[3, 1]);
    other_name.rules[0].name = "renamed".to_owned();
    assert_ne!(next(other_name), id(&before));
}

#[test]
fn cursors_of_vanished_rules_are_dropped() {
    let mut cursors = Cursors::default();
    let mut snapshot = compile(weighted(&[1, 1]));
    for weight in 2..1_000 {
        counts(&snapshot, &mut cursors, 1, 2);
        snapshot = recompile(weighted(&[weight, 1]), &snapshot, MonoNanos(1));
        assert!(cursors.len() <= PRUNE_MIN, "{} cursors", cursors.len());
    }
}
