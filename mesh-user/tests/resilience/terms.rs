//! SEMANTICS §5.3 and §5.7: which time-out ends what, and what the client then gets.

use super::*;

fn timed(request: Option<u64>, backend: Option<u64>) -> impl FnOnce(&mut RuleExtra) {
    move |extra| {
        extra.timeouts = RuleTimeouts {
            request: request.map(ms),
            backend_request: backend.map(ms),
        };
    }
}

fn with_retries(attempts: u32, timed: impl FnOnce(&mut RuleExtra)) -> impl FnOnce(&mut RuleExtra) {
    move |extra| {
        timed(extra);
        extra.retries = Some(RetryPolicy {
            attempts,
            backoff: ms(1),
            // No condition that a time-out would meet.
            on: vec![RetryOn::RefusedStream],
            ..RetryPolicy::default()
        });
    }
}

#[test]
fn request_time_out_of_a_rule_answers_504_and_zero_turns_the_versions_off() {
    let (slow, _) = scripted(|_| (ms(400), OK.to_owned()));
    let short = Mesh::start(ruled(one(slow), timed(Some(100), None)));
    let began = Instant::now();
    let refused = get(&short);
    assert_eq!(refused.status(), 504);
    assert_eq!(refused.field("x-mesh-reject").unwrap(), "upstream_timeout");
    let took = began.elapsed();
    assert!(took >= ms(100) && took < ms(350), "{took:?}");
    let of_version = one(slow).policy(|policy| policy.timeouts.request = Some(ms(100)));
    let none = Mesh::start(ruled(of_version, timed(Some(0), None)));
    assert_eq!(get(&none).status(), 200);
    at_rest(&short);
}

/// Gateway API's example: backend time-out 200 ms, attempts 3, two slow answers, then a fast one.
#[test]
fn backend_time_out_is_retried_with_no_code_listed_for_it() {
    let (address, asked) = scripted(|n| (ms(if n < 2 { 300 } else { 0 }), OK.to_owned()));
    let terms = with_retries(3, timed(None, Some(200)));
    let mesh = Mesh::start(ruled(one(address), terms));
    assert_eq!(get(&mesh).status(), 200);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    at_rest(&mesh);
}

#[test]
fn backend_time_outs_that_exhaust_the_attempts_answer_504() {
    let (address, asked) = scripted(|_| (ms(250), OK.to_owned()));
    let terms = with_retries(2, timed(None, Some(50)));
    let mesh = Mesh::start(ruled(one(address), terms));
    assert_eq!(get(&mesh).status(), 504);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

/// `backendRequest` bounds the attempt until its answer's end; the per-try time-out ends with the
/// head.
#[test]
fn backend_time_out_cuts_an_answer_under_way_and_per_try_does_not() {
    let drip = || {
        endpoint(|stream| {
            let mut reader = Reader::new(stream);
            if reader.message().is_some() {
                reader.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab");
                thread::sleep(ms(400));
                let _gone = std::io::Write::write_all(&mut reader.stream, b"cd");
            }
        })
    };
    let mesh = Mesh::start(ruled(one(drip()), timed(None, Some(150))));
    let mut client = Reader::new(mesh.connect());
    client.send(GET);
    let all = client.all();
    assert!(all.ends_with(b"ab"), "{all:?}");
    let per_try = retrying(one(drip()), |retries| retries.per_try = Some(ms(150)));
    assert_eq!(get(&Mesh::start(per_try)).body, b"abcd");
}

#[test]
fn attempts_times_per_try_above_the_request_time_out_end_at_that() {
    let (address, _) = scripted(|_| (ms(2_000), OK.to_owned()));
    let plan = retrying(one(address), |retries| {
        retries.attempts = 10;
        retries.per_try = Some(ms(80));
    });
    let mesh = Mesh::start(
        plan.policy(|policy| {
            policy.version = Some("v1".into());
            policy.timeouts.request = Some(ms(300));
        })
        .route(Vec::new(), &[("v1", 1)]),
    );
    let began = Instant::now();
    assert_eq!(get(&mesh).status(), 504);
    let took = began.elapsed();
    // The slack is that of a busy machine.
    assert!(took >= ms(300) && took < ms(550), "{took:?}");
}

#[test]
fn exhausted_by_status_the_last_status_is_the_answer() {
    let (address, asked) = scripted(|n| (ms(0), answer([503, 502, 500][n])));
    let mesh = Mesh::start(retrying(one(address), |_| ()));
    assert_eq!(get(&mesh).status(), 500);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    let refused = Mesh::start(retrying(one(nobody()), |_| ()));
    let refused = get(&refused);
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.field("x-mesh-reject").unwrap(), "connect_failed");
}

#[test]
fn retries_of_a_rule_take_the_place_of_the_versions() {
    let (address, asked) = scripted(|_| (ms(0), answer(503)));
    let of_version = retrying(one(address), |retries| retries.attempts = 9);
    let mesh = Mesh::start(ruled(of_version, |extra| {
        extra.retries = Some(RetryPolicy {
            attempts: 1,
            backoff: ms(1),
            ..RetryPolicy::default()
        });
    }));
    assert_eq!(get(&mesh).status(), 503);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}
