use std::collections::VecDeque;

use super::*;
use crate::policy::rng::Rng;

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;
const LEASE: Duration = Duration::from_millis(100);

/// The shared bucket, as the script has it, on a virtual clock.
struct Shared {
    token: f64,
    full: f64,
    at: f64,
    calls: u64,
}

impl Shared {
    fn new(requests: u64, burst: u64) -> Self {
        let token = SECOND as f64 / requests as f64;
        Self {
            token,
            full: token * burst as f64,
            at: 0.0,
            calls: 0,
        }
    }

    fn take(&mut self, wanted: u64, now: u64) -> Grant {
        self.calls += 1;
        let now = now as f64;
        self.at = self.at.max(now);
        let there = ((self.full - (self.at - now)) / self.token + 0.001)
            .floor()
            .max(0.0) as u64;
        let given = wanted.min(there);
        self.at += given as f64 * self.token;
        let wait = (self.at + self.token - now - self.full).max(0.0);
        Grant {
            wanted,
            given,
            left: there - given,
            wait: Duration::from_nanos(wait.ceil() as u64),
        }
    }
}

/// One node: its leases, and the question that is out, with those who wait for it.
struct Node {
    leases: Leases,
    out: Option<(u64, Grant, u64)>,
    waiting: u64,
}

/// What a run gave: when requests were admitted, how many there were, and calls.
struct Run {
    admitted: VecDeque<u64>,
    asked: u64,
    calls: u64,
}

/// `nodes` nodes of which each asks about `each` times a second, unevenly, for `seconds`.
fn run(seed: u64, nodes: usize, each: u64, requests: u64, burst: u64, seconds: u64) -> Run {
    let mut rng = Rng::new(seed);
    let mut shared = Shared::new(requests, burst);
    let mut all: Vec<Node> = (0..nodes)
        .map(|_| Node {
            leases: Leases::new(
                burst,
                Duration::from_nanos(burst * SECOND / requests),
                10,
                LEASE,
            ),
            out: None,
            waiting: 0,
        })
        .collect();
    let mut run = Run {
        admitted: VecDeque::new(),
        asked: 0,
        calls: 0,
    };
    // A step of 100 us; in each a node asks with the probability that its rate needs.
    let step = SECOND / 10_000;
    for turn in 0..seconds * 10_000 {
        let now = MonoNanos(turn * step + SECOND);
        for node in &mut all {
            let key = "k";
            if let Some((asked_at, grant, _)) = node.out.take_if(|(_, _, until)| *until <= now.0) {
                let (waiting, asked_at) = (node.waiting, MonoNanos(asked_at));
                let served = node.leases.granted(key, waiting, grant, asked_at, now);
                run.admitted.extend((0..served).map(|_| now.0));
                // The others were refused, or ask again: here they are refused.
                node.waiting = 0;
            }
            let mut ask = false;
            if u64::from(rng.below(10_000)) < each {
                run.asked += 1;
                match node.leases.take(key, now) {
                    Take::Served { refill, .. } => {
                        run.admitted.push_back(now.0);
                        ask = refill;
                    }
                    Take::Empty { .. } => {}
                    Take::Ask => {
                        node.waiting += 1;
                        ask = true;
                    }
                }
            }
            if ask && node.out.is_none() {
                let wanted = node.leases.want(key, node.waiting, now);
                let grant = shared.take(wanted, now.0);
                // A way of 1 to 3 ms.
                let way = MS + u64::from(rng.below(2_000)) * 1_000;
                node.out = Some((now.0, grant, now.0 + way));
            }
        }
    }
    run.calls = shared.calls;
    run
}

#[test]
fn nodes_together_stay_below_the_limit_and_what_a_lease_adds_to_a_window() {
    for (seed, nodes, each, requests, burst) in [
        (1, 3, 1_000, 1_000, 1_000),
        (2, 10, 500, 1_000, 1_000),
        (3, 10, 2_000, 1_000, 200),
        (4, 25, 100, 1_000, 1_000),
        (5, 3, 3_000, 100, 10),
        (6, 10, 40, 1_000, 100),
    ] {
        let seconds = 5;
        let run = run(seed, nodes, each, requests, burst, seconds);
        let admitted = run.admitted.len() as u64;
        let what = format!(
            "seed {seed}: {nodes} nodes, {each}/s each, {requests}/s burst {burst}: {admitted} of \
             {} in {seconds} s with {} calls",
            run.asked, run.calls
        );
        println!("{what}");
        // From the beginning on: as one bucket.
        for (count, at) in (1..).zip(&run.admitted) {
            let most = burst as f64 + requests as f64 * (at - SECOND) as f64 / SECOND as f64;
            assert!(f64::from(count) <= most + 1.0, "{what}, at {at}");
        }
        // In any window of a second: what the rate gives in a lease's time more, and no more.
        let window = burst + requests + requests / 10;
        let mut first = 0;
        for last in 0..run.admitted.len() {
            while run.admitted[last] - run.admitted[first] > SECOND {
                first += 1;
            }
            assert!((last - first) as u64 <= window, "{what}");
        }
        // Also when there is nothing left nobody asks all the time: a node once in 25 ms, at most
        // in half of the time that the bucket takes to fill.
        let pause_ms = (burst * 1_000 / requests / 2).min(25);
        let asked = 1_100 / pause_ms * seconds * nodes as u64;
        assert!(run.calls <= asked + admitted, "{what}");
        // What is lost with leases that end unused is little where there is more than enough.
        if nodes as u64 * each >= 2 * requests {
            let most = burst + requests * seconds;
            assert!(admitted * 100 >= most * 80, "{what}");
        }
    }
}

#[test]
fn busy_node_asks_for_one_in_ten_requests_at_most() {
    for (each, most) in [(1_000, 0.06), (100, 0.3)] {
        let run = run(7, 3, each, 100_000, 100_000, 5);
        let calls = run.calls as f64 / run.asked as f64;
        println!("{each}/s on each node: {calls:.4} calls a request");
        assert!(calls < most, "{each}/s: {calls}");
        // With plenty of tokens nobody is refused but for a moment at the start.
        assert!(run.admitted.len() as u64 * 100 > run.asked * 97);
    }
}

#[test]
fn tokens_are_used_in_their_time_or_never() {
    let leases = Leases::new(100, Duration::from_secs(1), 10, LEASE);
    let at = |ms: u64| MonoNanos(ms * MS);
    assert_eq!(leases.take("k", at(1)), Take::Ask);
    assert_eq!(leases.want("k", 1, at(1)), 1, "slowly at first");
    let grant = |given| Grant {
        wanted: given,
        given,
        left: 50,
        wait: Duration::ZERO,
    };
    assert_eq!(leases.granted("k", 1, grant(10), at(1), at(2)), 1);
    assert_eq!(leases.tokens(), 9);
    for used in 0..9 {
        let take = leases.take("k", at(3));
        assert!(matches!(take, Take::Served { .. }), "{used}: {take:?}");
    }
    assert_eq!(leases.take("k", at(3)), Take::Ask);
    leases.want("k", 1, at(3));
    assert_eq!(leases.granted("k", 1, grant(5), at(3), at(4)), 1);
    assert!(matches!(leases.take("k", at(102)), Take::Served { .. }));
    assert_eq!(
        leases.take("k", at(103)),
        Take::Ask,
        "100 ms after they were asked for"
    );
    assert_eq!(leases.tokens(), 0);
}

#[test]
fn empty_store_is_not_asked_again_before_it_has_a_token() {
    let leases = Leases::new(10, Duration::from_secs(1), 10, LEASE);
    let at = |ms: u64| MonoNanos(ms * MS);
    let grant = |wait_ms| Grant {
        wanted: 1,
        given: 0,
        left: 0,
        wait: Duration::from_millis(wait_ms),
    };
    leases.want("k", 1, at(0));
    assert_eq!(leases.granted("k", 1, grant(300), at(0), at(1)), 0);
    let Take::Empty { wait } = leases.take("k", at(50)) else {
        panic!("it said when it has one")
    };
    assert_eq!(wait, Duration::from_millis(251));
    assert_eq!(leases.take("k", at(301)), Take::Ask);
    // Of a long wait the client is told, but the store is asked again after a second.
    leases.want("k", 1, at(301));
    leases.granted("k", 1, grant(60_000), at(301), at(301));
    assert_eq!(
        leases.take("k", at(1_300)),
        Take::Empty {
            wait: Duration::from_millis(59_001)
        }
    );
    assert_eq!(leases.take("k", at(1_301)), Take::Ask);
}

#[test]
fn node_holds_its_share_and_one_more_at_most() {
    let leases = Leases::new(1_000, Duration::from_secs(1), 10, LEASE);
    let mut now = 0;
    let mut held = 0;
    for _ in 0..200 {
        now += 20 * MS;
        let at = MonoNanos(now);
        let wanted = leases.want("k", 0, at);
        held = held.max(leases.tokens());
        assert!(wanted <= 100, "{wanted}");
        let grant = Grant {
            wanted,
            given: wanted,
            left: 500,
            wait: Duration::ZERO,
        };
        leases.granted("k", 0, grant, at, at);
        for _ in 0..95 {
            let _ = leases.take("k", at);
        }
    }
    assert!(held <= 101, "{held}");
}

#[test]
fn keys_beyond_the_bound_are_asked_for_each_time() {
    let leases = Leases::new(1_000, Duration::from_secs(1), 10, Duration::from_secs(10));
    let at = MonoNanos(MS);
    for key in 0..2 * LEASES_MAX {
        let key = key.to_string();
        let wanted = leases.want(&key, 1, at);
        let grant = Grant {
            wanted,
            given: wanted,
            left: 5,
            wait: Duration::ZERO,
        };
        leases.granted(&key, 1, grant, at, at);
        leases.granted(&key, 0, Grant { given: 1, ..grant }, at, at);
    }
    let kept: usize = leases
        .shards
        .iter()
        .map(|shard| shard.lock().unwrap().leases.len())
        .sum();
    assert!(kept <= LEASES_MAX, "{kept}");
    assert_eq!(leases.want("another", 3, at), 3);
    // Once the tokens have ended there is room again.
    let later = MonoNanos(60 * SECOND);
    leases.want("another", 3, later);
    assert!(matches!(leases.take("another", later), Take::Ask));
    assert!(leases.shard("another").leases.contains_key("another"));
}
