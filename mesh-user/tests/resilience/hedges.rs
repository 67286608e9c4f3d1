//! Hedges in HTTP/1.1; `grpc.rs` has those in HTTP/2.

use mesh_user::model::{Balance, HedgePolicy};

use super::*;

pub(super) fn hedged(plan: Plan, after: Option<u64>, max: u32, any: bool) -> Plan {
    plan.policy(|policy| {
        policy.hedge = Some(HedgePolicy {
            after: after.map(ms),
            max,
            non_idempotent: any,
        });
        policy.balance = Some(Balance::RoundRobin.into());
        if after.is_none() {
            policy.retries = Some(RetryPolicy {
                per_try: Some(ms(60)),
                ..RetryPolicy::default()
            });
        }
    })
}

/// Holds the connection and its requests; says when a client closed.
fn stuck() -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (asked, closed): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
    let (count, gone) = (Arc::clone(&asked), Arc::clone(&closed));
    let address = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        while reader.message().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
        }
        gone.fetch_add(1, Ordering::SeqCst);
    });
    (address, asked, closed)
}

#[test]
fn hedge_answers_from_the_second_endpoint_and_cancels_the_first() {
    for after in [Some(60), None] {
        let (slow, asked, closed) = stuck();
        let (fast, _) = scripted(|_| (ms(0), OK.to_owned()));
        let mesh = Mesh::start(hedged(one(slow).endpoint(fast, "v1"), after, 1, false));
        for _ in 0..6 {
            let began = Instant::now();
            let answer = get(&mesh);
            assert_eq!((answer.status(), answer.body), (200, b"ok".to_vec()));
            assert!(began.elapsed() < ms(1_000));
        }
        let asked = asked.load(Ordering::SeqCst);
        assert!(asked > 0);
        eventually("the loser is cancelled", || {
            closed.load(Ordering::SeqCst) == asked
        });
        at_rest(&mesh);
        let attempts: u64 = mesh
            .records("request")
            .iter()
            .map(|line| line["mesh.attempts"].as_u64().unwrap_or(1))
            .sum();
        assert_eq!(
            attempts,
            6 + asked as u64,
            "who met the slow one had a hedge"
        );
    }
}

#[test]
fn hedge_carries_the_body_and_needs_an_idempotent_method_or_permission() {
    for (method, any, status) in [
        ("PUT", false, 200),
        ("POST", false, 504),
        ("POST", true, 200),
    ] {
        let (slow, ..) = stuck();
        let fast = http_with(|request, _| {
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}",
                request.text()
            )
        });
        let plan = hedged(one(slow).endpoint(fast, "v1"), Some(50), 1, any);
        let mut plan = plan;
        plan.model.policies[0].timeouts.request = Some(ms(400));
        let mesh = Mesh::start(plan);
        let mut client = Reader::new(mesh.connect());
        let mut answers = Vec::new();
        for _ in 0..2 {
            client.send(format!(
                "{method} / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\n\r\nhello"
            ));
            let answer = client.message().unwrap();
            if answer.status() == 200 {
                assert_eq!(answer.body, b"hello");
            }
            answers.push(answer.status());
        }
        answers.sort_unstable();
        assert_eq!(answers, [200, status], "{method} {any}");
    }
}

/// The first good answer wins: a bad one of a hedge is not taken while the first endpoint may
/// still answer, nor a bad one of the first while a hedge may.
#[test]
fn bad_answer_waits_for_a_better_one() {
    // The first endpoint is slow and good, the hedge fast and bad.
    let (good, _) = scripted(|_| (ms(250), OK.to_owned()));
    let (bad, bad_asked) = scripted(|_| (ms(0), answer(503)));
    let mesh = Mesh::start(hedged(one(good).endpoint(bad, "v1"), Some(50), 1, false));
    assert_eq!(get(&mesh).status(), 200);
    assert_eq!(bad_asked.load(Ordering::SeqCst), 1);
    // The first endpoint is slow and bad, the hedge slower and good.
    let (bad, _) = scripted(|_| (ms(120), answer(503)));
    let (good, _) = scripted(|_| (ms(300), OK.to_owned()));
    let mesh = Mesh::start(hedged(one(bad).endpoint(good, "v1"), Some(50), 1, false));
    assert_eq!(get(&mesh).status(), 200);
    // Both are bad: the last one is the answer.
    let (first, _) = scripted(|_| (ms(120), answer(500)));
    let (last, _) = scripted(|_| (ms(300), answer(502)));
    let mesh = Mesh::start(hedged(one(first).endpoint(last, "v1"), Some(50), 1, false));
    assert_eq!(get(&mesh).status(), 502);
    at_rest(&mesh);
}

#[test]
fn hedge_takes_over_when_the_first_endpoint_breaks() {
    let breaks = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        if reader.message().is_some() {
            thread::sleep(ms(120));
            reset(reader.stream);
        }
    });
    let (good, _) = scripted(|_| (ms(300), OK.to_owned()));
    let mesh = Mesh::start(hedged(one(breaks).endpoint(good, "v1"), Some(50), 1, false));
    assert_eq!(get(&mesh).status(), 200);
    at_rest(&mesh);
}

#[test]
fn hedges_are_counted_as_retries_and_limited_by_max() {
    let plan = || {
        let mut plan = Plan::new(Protocol::Http);
        let mut counts = Vec::new();
        for _ in 0..5 {
            let (address, asked, _) = stuck();
            plan = plan.endpoint(address, "v1");
            counts.push(asked);
        }
        (plan, counts)
    };
    for (max, cap, wanted) in [(2, 10, 3), (4, 10, 5), (4, 1, 2), (4, 0, 1)] {
        let (plan, counts) = plan();
        let mut plan = hedged(plan, Some(30), max, false);
        plan.model.policies[0].timeouts.request = Some(ms(400));
        plan.model.policies[0].breaker = Some(mesh_user::model::BreakerPolicy {
            max_retries: cap,
            ..Default::default()
        });
        let mesh = Mesh::start(plan);
        assert_eq!(get(&mesh).status(), 504);
        let asked: Vec<usize> = counts.iter().map(|n| n.load(Ordering::SeqCst)).collect();
        assert_eq!(asked.iter().sum::<usize>(), wanted, "{asked:?}");
        assert!(
            asked.iter().all(|n| *n <= 1),
            "each endpoint once: {asked:?}"
        );
        at_rest(&mesh);
    }
}

/// An endpoint that answers a hedge before it has read all of it gets nothing else on that
/// connection: it would take the next request for the rest of the body.
#[test]
fn connection_of_a_hedge_that_was_answered_early_carries_no_other_request() {
    const BODY: usize = 24 << 20;
    let (slow, ..) = stuck();
    let early = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while let Some(head) = reader.head() {
            reader.send(OK);
            thread::sleep(ms(200));
            let length = head
                .field("content-length")
                .map_or(0, |it| it.parse().unwrap());
            if reader.at_most(length).len() < length {
                return;
            }
        }
    });
    let plan = hedged(one(slow).endpoint(early, "v1"), Some(50), 1, true);
    let mesh = Mesh::with(plan, 1, |limits| limits.replay_bytes_max = 2 * BODY);
    for _ in 0..2 {
        let mut client = Reader::new(mesh.connect());
        client.send(format!(
            "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: {BODY}\r\n\r\n"
        ));
        client.send(vec![b'x'; BODY]);
        assert_eq!(client.message().unwrap().status(), 200);
    }
    for _ in 0..4 {
        assert_eq!(get(&mesh).status(), 200);
    }
}
