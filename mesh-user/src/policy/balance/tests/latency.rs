//! SEMANTICS §5.11: peak EWMA over a simulated pool, with a virtual clock.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;
use crate::policy::breaker::RequestPermit;

/// How an endpoint behaves.
#[derive(Clone, Copy)]
struct Host {
    takes: Duration,
    status: u16,
    retry_after: Option<Duration>,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn host(takes_ms: u64, status: u16) -> Host {
    Host {
        takes: ms(takes_ms),
        status,
        retry_after: None,
    }
}

fn ewma(count: usize) -> Snapshot {
    let mut model = pool_model(Balance::PeakEwma.into(), &vec![1; count]);
    model.policies[0].ejection = None;
    compile(model)
}

/// A pool under load: so many requests at all times, each followed by the next.
struct Simulation {
    snapshot: Snapshot,
    rng: Rng,
    now: MonoNanos,
    clients: usize,
    /// When each ends, which it is, and when it began.
    running: BinaryHeap<Reverse<(MonoNanos, usize)>>,
    requests: Vec<(usize, MonoNanos, Option<RequestPermit>)>,
}

impl Simulation {
    fn new(snapshot: Snapshot, clients: usize, seed: u64) -> Self {
        Self {
            snapshot,
            rng: Rng::new(seed),
            now: at_ms(1_000),
            clients,
            running: BinaryHeap::new(),
            requests: Vec::new(),
        }
    }

    fn send(&mut self, hosts: &[Host], counts: &mut [usize]) {
        let plan = self.snapshot.version(ALL);
        let chosen = pick(&self.snapshot, ALL, &[], &mut self.rng, self.now).unwrap();
        let at = plan
            .endpoints
            .iter()
            .position(|endpoint| endpoint.id == chosen.id)
            .unwrap();
        counts[at] += 1;
        let permit = plan.breaker.request(&chosen).unwrap();
        let ends = self.now.after(hosts[at].takes);
        self.running.push(Reverse((ends, self.requests.len())));
        self.requests.push((at, self.now, Some(permit)));
    }

    /// The share of each host over a span.
    fn run(&mut self, span: Duration, hosts: &[Host]) -> Vec<f64> {
        let mut counts = vec![0; hosts.len()];
        let end = self.now.after(span);
        while self.running.len() < self.clients {
            self.send(hosts, &mut counts);
        }
        while self.now < end {
            let Reverse((ended, number)) = self.running.pop().unwrap();
            self.now = ended;
            let (at, began, permit) = &mut self.requests[number];
            let at = *at;
            let endpoint = &self.snapshot.version(ALL).endpoints[at];
            self.snapshot.observe(
                ALL,
                endpoint,
                Outcome::Status(hosts[at].status),
                Some(ended.since(*began)),
                hosts[at].retry_after,
                ended,
            );
            drop(permit.take());
            self.send(hosts, &mut counts);
        }
        let sum: usize = counts.iter().sum();
        counts.iter().map(|n| *n as f64 / sum as f64).collect()
    }
}

#[test]
fn ewma_slow_host_of_ten_gets_under_three_percent_and_recovers_within_three_decays() {
    for seed in 1..=5 {
        let mut pool = Simulation::new(ewma(10), 20, seed);
        let mut hosts = [host(10, 200); 10];
        hosts[0] = host(100, 200);
        pool.run(secs(5), &hosts);
        let shares = pool.run(secs(60), &hosts);
        assert!(shares[0] < 0.03, "seed {seed}: {shares:?}");
        assert!(shares[0] > 0.0, "it is tried again now and then");
        // Fast again.
        hosts[0] = host(10, 200);
        pool.run(secs(30), &hosts);
        let shares = pool.run(secs(10), &hosts);
        assert!(shares[0] > 0.05, "seed {seed}: {shares:?}");
    }
}

#[test]
fn ewma_host_that_fails_fast_attracts_no_load() {
    for seed in 1..=5 {
        for status in [500, 503, 429] {
            let mut pool = Simulation::new(ewma(10), 20, seed);
            let mut hosts = [host(20, 200); 10];
            hosts[0] = host(1, status);
            let shares = pool.run(secs(60), &hosts);
            assert!(shares[0] < 0.1 / 2.0, "{status}, seed {seed}: {shares:?}");
        }
        // What the penalty is for: by its latency alone it would get most.
        let mut pool = Simulation::new(ewma(10), 20, seed);
        let mut hosts = [host(20, 200); 10];
        hosts[0] = host(1, 404);
        assert!(pool.run(secs(60), &hosts)[0] > 0.15);
    }
}

#[test]
fn ewma_estimate_rises_at_once_and_falls_with_the_decay() {
    let policy = BalancePolicy::from(Balance::PeakEwma);
    let latency = Latency::default();
    let near = |estimate: f32, expected_ms: f64| {
        let off = (f64::from(estimate) / (expected_ms * 1e6) - 1.0).abs();
        assert!(off < 1e-3, "{estimate} instead of {expected_ms} ms");
    };
    let ok = Outcome::Status(200);
    let at = |ms: u64| at_ms(10_000 + ms);
    near(latency.estimate(&policy, at(0)), 30.0);
    // Nobody asked: what was assumed falls too, so that it gets its chance.
    near(
        latency.estimate(&policy, at(10_000)),
        30.0 * (-1.0_f64).exp(),
    );
    latency.observe(ok, ms(40), None, &policy, at(10_000));
    near(latency.estimate(&policy, at(10_000)), 40.0);
    // A peak replaces it at once.
    latency.observe(ok, ms(200), None, &policy, at(10_001));
    near(latency.estimate(&policy, at(10_001)), 200.0);
    // A lower one blends by 1 - exp(-5/10).
    latency.observe(ok, ms(100), None, &policy, at(15_001));
    let kept = (-0.5_f64).exp();
    near(
        latency.estimate(&policy, at(15_001)),
        200.0 * kept + 100.0 * (1.0 - kept),
    );
    // Above what it has fallen to, though below what it was: a peak.
    latency.observe(ok, ms(100), None, &policy, at(45_001));
    near(latency.estimate(&policy, at(45_001)), 100.0);
}

#[test]
fn ewma_failure_counts_as_penalty_or_as_long_as_it_asks() {
    let policy = BalancePolicy::from(Balance::PeakEwma);
    let after = |outcome, took, wait| {
        let latency = Latency::default();
        latency.observe(outcome, took, wait, &policy, at_ms(1));
        f64::from(latency.estimate(&policy, at_ms(1))) / 1e9
    };
    for (outcome, took, wait, expected) in [
        (Outcome::Status(503), ms(1), None, 5.0),
        (Outcome::Status(429), ms(1), None, 5.0),
        (Outcome::Reset, ms(1), None, 5.0),
        (Outcome::ConnectFailed, ms(1), None, 5.0),
        (Outcome::Timeout, secs(15), None, 15.0),
        (Outcome::Status(503), ms(1), Some(secs(2)), 2.0),
        (Outcome::Status(503), ms(1), Some(secs(9_000)), 300.0),
        (Outcome::Status(404), ms(1), None, 0.001),
        // Cancelled: what it took so far.
        (Outcome::Abandoned, ms(700), None, 0.7),
    ] {
        let got = after(outcome, took, wait);
        assert!((got / expected - 1.0).abs() < 1e-3, "{outcome:?}: {got}");
    }
}

#[test]
fn ewma_estimate_survives_the_clock_going_round() {
    let policy = BalancePolicy::from(Balance::PeakEwma);
    let latency = Latency::default();
    let round = 1_u64 << 32;
    latency.observe(
        Outcome::Status(200),
        ms(100),
        None,
        &policy,
        at_ms(round - 5_000),
    );
    let estimate = latency.estimate(&policy, at_ms(round + 5_000));
    assert!((f64::from(estimate) / (1e8 * (-1.0_f64).exp()) - 1.0).abs() < 1e-3);
    // A reading from before the last one changes nothing.
    let before = latency.estimate(&policy, at_ms(round - 6_000));
    assert!((f64::from(before) / 1e8 - 1.0).abs() < 1e-3);
}

#[test]
fn ewma_pick_prefers_the_lower_cost_of_latency_and_requests() {
    let snapshot = ewma(2);
    let endpoints = &snapshot.version(ALL).endpoints;
    let took = [ms(10), ms(35)];
    for (endpoint, took) in endpoints.iter().zip(took) {
        let ok = Outcome::Status(200);
        snapshot.observe(ALL, endpoint, ok, Some(took), None, NOW);
    }
    let breaker = &snapshot.version(ALL).breaker;
    let mut held = Vec::new();
    // 10 x 1, 10 x 2, 10 x 3 are below 35; 10 x 4 is not.
    for expected in [0, 0, 0, 1] {
        let counts = counts(&snapshot, 50, &[], &mut Rng::new(1));
        assert_eq!(counts[expected], 50, "{} held", held.len());
        held.push(breaker.request(&endpoints[0]).unwrap());
    }
}
