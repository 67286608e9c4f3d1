//! What is retried, how often, where, and what never is.

use std::{collections::HashMap, io::Read as _};

use mesh_user::model::{BreakerPolicy, RetryBudget};

use super::*;

#[test]
fn client_that_goes_stops_the_retries() {
    let (address, asked) = scripted(|_| (ms(0), answer(503)));
    let mesh = Mesh::start(retrying(one(address), |retries| {
        retries.attempts = 10;
        // The pause is drawn from up to ten times this.
        retries.backoff = ms(500);
    }));
    let mut client = Reader::new(mesh.connect());
    client.send(GET);
    eventually("the first try", || asked.load(Ordering::SeqCst) > 0);
    drop(client);
    at_rest(&mesh);
    let after = asked.load(Ordering::SeqCst);
    assert!(after < 5, "{after}");
    eventually("the record", || {
        let records = mesh.records("request");
        records
            .iter()
            .any(|line| line["mesh.reject"] == "downstream_closed")
    });
}

/// A body beyond what is kept: one delivery, whole; the failure is the answer.
#[test]
fn body_beyond_what_is_kept_is_not_retried_and_not_cut() {
    for (size, deliveries) in [(1_000, 2), (1_001, 1)] {
        let bodies: Arc<Mutex<Vec<usize>>> = Arc::default();
        let seen = Arc::clone(&bodies);
        let address = http_with(move |request, _| {
            let mut bodies = seen.lock().unwrap();
            bodies.push(request.body.len());
            answer(if bodies.len() == 1 { 503 } else { 200 })
        });
        let plan = retrying(one(address), |retries| retries.non_idempotent = true);
        let mesh = Mesh::with(plan, 1, |limits| limits.replay_bytes_max = 1_000);
        let mut client = Reader::new(mesh.connect());
        client.send(format!(
            "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: {size}\r\n\r\n{}",
            "x".repeat(size)
        ));
        let status = client.message().unwrap().status();
        assert_eq!(*bodies.lock().unwrap(), vec![size; deliveries]);
        assert_eq!(status, if deliveries == 2 { 200 } else { 503 });
    }
}

#[test]
fn retry_goes_to_another_endpoint() {
    let (bad, bad_asked) = scripted(|_| (ms(0), answer(503)));
    let (good, _) = scripted(|_| (ms(0), OK.to_owned()));
    let plan = one(bad).endpoint(good, "v1");
    let mesh = Mesh::start(retrying(plan, |retries| retries.attempts = 1));
    for _ in 0..40 {
        assert_eq!(get(&mesh).status(), 200);
    }
    assert!(bad_asked.load(Ordering::SeqCst) > 0);
}

#[test]
fn attempt_header_counts_and_what_the_client_says_is_dropped() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let said = Arc::clone(&seen);
    let address = http_with(move |request, _| {
        let mut said = said.lock().unwrap();
        said.push(request.field("x-envoy-attempt-count").unwrap_or_default());
        answer(if said.len() < 3 { 503 } else { 200 })
    });
    let mesh = Mesh::start(retrying(one(address), |retries| {
        retries.attempt_header = Some("x-envoy-attempt-count".into());
    }));
    let mut client = Reader::new(mesh.connect());
    client.send("GET / HTTP/1.1\r\nhost: web\r\nX-Envoy-Attempt-Count: 77\r\n\r\n");
    assert_eq!(client.message().unwrap().status(), 200);
    assert_eq!(*seen.lock().unwrap(), ["1", "2", "3"]);
}

#[test]
fn retry_waits_for_what_the_answer_says() {
    let busy = "HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
    let (address, _) = scripted(move |n| (ms(0), if n == 0 { busy } else { OK }.to_owned()));
    let mesh = Mesh::start(retrying(one(address), |retries| {
        retries.reset_headers = vec!["retry-after".into()];
    }));
    let began = Instant::now();
    assert_eq!(get(&mesh).status(), 200);
    let took = began.elapsed();
    assert!(took >= ms(1_000) && took < ms(1_900), "{took:?}");
}

#[test]
fn answer_of_a_rate_limit_is_not_retried_unless_asked_for() {
    let limited = "HTTP/1.1 503 No\r\nx-envoy-ratelimited: true\r\ncontent-length: 0\r\n\r\n";
    for (on, deliveries) in [(vec![], 1), (vec![RetryOn::RateLimited], 3)] {
        let (address, asked) = scripted(move |_| (ms(0), limited.to_owned()));
        let mesh = Mesh::start(retrying(one(address), |retries| retries.on = on));
        assert_eq!(get(&mesh).status(), 503);
        assert_eq!(asked.load(Ordering::SeqCst), deliveries);
    }
}

/// RFC 9110 §9.2.2: with everything retried that may be, an endpoint that kills the connection at
/// every byte of the request or of its answer never sees the same order twice. Orders it did not
/// get whole count, too: some servers act on less.
#[test]
fn order_is_never_delivered_twice_whichever_byte_kills_the_connection() {
    let orders: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let cut = Arc::new(AtomicUsize::new(0));
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let length = order(0).len();
    let (ledger, at) = (Arc::clone(&orders), Arc::clone(&cut));
    let address = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        loop {
            // Cuts beyond the request lie in the answer; every second one is a reset.
            let cut = at.load(Ordering::SeqCst);
            let mut got = Vec::new();
            while got.len() < length.min(cut) {
                match reader.stream.read(&mut [0; 1]) {
                    Ok(1) => got.push(0),
                    _ => return,
                }
            }
            if cut > 0 && got.is_empty() {
                return;
            }
            let id = at.load(Ordering::SeqCst).to_string();
            *ledger.lock().unwrap().entry(id).or_default() += 1;
            let sent = cut.saturating_sub(length);
            let part = &answer.as_bytes()[..sent.min(answer.len())];
            let _gone = std::io::Write::write_all(&mut reader.stream, part);
            if sent < answer.len() {
                if cut.is_multiple_of(2) {
                    reset(reader.stream);
                }
                return;
            }
        }
    });
    let mesh = Mesh::start(retrying(one(address), |retries| {
        retries.attempts = 5;
        retries.on = vec![
            RetryOn::Reset,
            RetryOn::ResetBeforeRequest,
            RetryOn::ServerError,
            RetryOn::GatewayError,
            RetryOn::PerTryTimeout,
        ];
    }));
    for at in 1..=length + answer.len() {
        cut.store(at, Ordering::SeqCst);
        let mut client = Reader::new(mesh.connect());
        client.send(order(at));
        let _ended = client.head();
        let times = orders.lock().unwrap().get(&at.to_string()).copied();
        assert!(
            times.unwrap_or(0) <= 1,
            "cut at {at}: delivered {times:?} times"
        );
        // The next one must not be the first to notice.
        drop(client);
    }
    let whole = orders.lock().unwrap().len();
    assert!(whole > answer.len(), "{whole} of {length} arrived");
}

/// An order whose length does not depend on its number.
fn order(number: usize) -> String {
    format!(
        "POST /orders HTTP/1.1\r\nhost: web\r\nx-request-id: {number:08}\r\ncontent-length: 5\r\n\r\n{number:05}"
    )
}

/// SEMANTICS §5.7: under 100 % failure the endpoints see at most 1.2 times what was asked, and the
/// floor.
#[test]
fn retry_budget_bounds_the_load_under_full_failure() {
    let (address, asked) = scripted(|_| (ms(2), answer(503)));
    let plan = retrying(one(address), |retries| retries.attempts = 3);
    let mut plan = plan;
    plan.model.policies[0].retry_budget = Some(RetryBudget {
        percent: 20,
        floor: 3,
        interval: Some(Duration::from_secs(10)),
    });
    plan.model.policies[0].breaker = Some(BreakerPolicy {
        max_retries: 0,
        ..BreakerPolicy::default()
    });
    let mesh = Mesh::with(plan, 2, |_| ());
    let began = Instant::now();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let stream = mesh.connect();
            thread::spawn(move || {
                let mut client = Reader::new(stream);
                for _ in 0..50 {
                    assert_eq!(client.send(GET).message().unwrap().status(), 503);
                }
            })
        })
        .collect();
    clients
        .into_iter()
        .for_each(|client| client.join().unwrap());
    let floor = 3 * (began.elapsed().as_secs() as usize + 1);
    let load = asked.load(Ordering::SeqCst);
    assert!(load <= 600 + floor, "{load} for 500");
    assert!(load >= 580, "the budget is used: {load} for 500");
    at_rest(&mesh);
}

#[test]
fn retry_cap_is_a_cap_of_retries_and_no_request_is_refused_for_it() {
    let (address, asked) = scripted(|_| (ms(150), answer(503)));
    let plan = retrying(one(address), |retries| retries.attempts = 1);
    let mut plan = plan;
    plan.model.policies[0].breaker = Some(BreakerPolicy {
        max_retries: 2,
        ..BreakerPolicy::default()
    });
    let mesh = Mesh::with(plan, 2, |_| ());
    let mut clients: Vec<_> = (0..10).map(|_| Reader::new(mesh.connect())).collect();
    for client in &mut clients {
        client.send(GET);
    }
    for client in &mut clients {
        let answer = client.message().unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(
            answer.field("x-mesh-reject"),
            None,
            "the first failure is the answer"
        );
    }
    assert_eq!(asked.load(Ordering::SeqCst), 12);
    at_rest(&mesh);
}
