//! Breakers, ejection, limits, retries and time-outs, end to end (ACCEPTANCE S21, S22).

mod scene;

use std::time::{Duration, Instant};

use mesh_user::testbed::wait_until;
use scene::{Scene, json, report, start};

fn endpoint(scene: &Scene, pod: &str) -> serde_json::Value {
    let address = scene
        .bed
        .pods()
        .iter()
        .find(|p| p.name == pod)
        .expect("the pod")
        .v4;
    let rows = json(scene, &["config", "endpoints", "-o", "json"]);
    let items = rows["items"].as_array().expect("a list").clone();
    let wanted = format!("{address}:8080");
    items
        .into_iter()
        .find(|row| row["address"] == *wanted)
        .expect("the endpoint")
}

/// Part 2, item 4: the cap is the node's, not each client's or each core's.
#[test]
fn request_cap_is_exact_over_all_pods_and_ejects_nobody() {
    let scene = start(
        "t-cap",
        "rules:\n  - {service: web, route: [{version: v1}]}\n\
         policies:\n  - service: web\n    breaker: {max-requests: 10, ejection: {consecutive-5xx: 1}}\n",
    );
    let arguments = ["-c", "40", "-d", "0.5"];
    // Longer than the load asks: what was admitted is in flight until the end.
    let loads = [&scene.client, &scene.tester]
        .map(|pod| scene.load(pod, "/delay/1500", &arguments).unwrap());
    let [a, b] = loads.map(report);
    let good = a.statuses.get(&200).unwrap_or(&0) + b.statuses.get(&200).unwrap_or(&0);
    assert_eq!(good, 10, "{a:?} {b:?}");
    let refused = a.statuses.get(&503).unwrap_or(&0) + b.statuses.get(&503).unwrap_or(&0);
    assert!(refused >= 70, "{a:?} {b:?}");
    for pod in ["web-v1-a", "web-v1-b"] {
        let row = endpoint(&scene, pod);
        assert_eq!(
            row["ejections"], 0,
            "overflow never counts against an endpoint: {row}"
        );
    }
    // The refusal says what it is.
    let load = scene
        .load(&scene.tester, "/delay/1500", &["-c", "10", "-d", "0.3"])
        .unwrap();
    let mut overflow = None;
    wait_until(Duration::from_secs(1), || {
        overflow = scene
            .ask(&scene.client, &[])
            .ok()
            .filter(|answers| answers.status(503) == 1);
        overflow.is_some()
    });
    let overflow = overflow.expect("the cap is reached");
    assert_eq!(overflow.headers["x-mesh-overloaded"], "true");
    assert_eq!(overflow.headers["x-mesh-reject"], "overflow_requests");
    report(load);
    let free = scene.ask(&scene.client, &["--count", "20"]).unwrap();
    assert_eq!(free.status(200), 20, "permits come back: {free:?}");
    scene.tear_down().unwrap();
}

#[test]
fn connection_cap_queues_requests_and_refuses_beyond_the_queue() {
    let scene = start(
        "t-pending",
        "rules:\n  - {service: web, route: [{version: v2}]}\n\
         policies:\n  - {service: web, breaker: {max-connections: 2, max-pending: 3}}\n",
    );
    // 2 on connections, 3 wait for them, the others are refused; then the 3 are served too.
    let load = scene
        .load(&scene.client, "/delay/600", &["-c", "12", "-d", "0.3"])
        .unwrap();
    let report = report(load);
    assert_eq!(report.statuses.get(&200), Some(&5), "{report:?}");
    assert!(
        report
            .statuses
            .get(&503)
            .is_some_and(|refused| *refused >= 7),
        "{report:?}"
    );
    scene.tear_down().unwrap();
}

#[test]
fn sick_endpoint_is_ejected_at_once_and_returns_at_the_sweep() {
    let scene = start(
        "t-eject",
        "rules:\n  - {service: web, route: [{version: v1}]}\n\
         policies:\n  - service: web\n    breaker: {ejection: {consecutive-5xx: 5, interval: 1s, base: 2s, max-percent: 50}}\n",
    );
    scene.set_sick("web-v1-b", true).unwrap();
    let answers = scene.ask(&scene.client, &["--count", "100"]).unwrap();
    assert_eq!(
        answers.status(503),
        5,
        "exactly the threshold is met: {answers:?}"
    );
    assert_eq!(endpoint(&scene, "web-v1-b")["ejections"], 1);
    let ejected = Instant::now();
    scene.set_sick("web-v1-b", false).unwrap();
    let mut back = Duration::ZERO;
    let returned = wait_until(Duration::from_secs(10), || {
        let answers = scene.ask(&scene.client, &["--count", "20"]).unwrap();
        back = ejected.elapsed();
        answers.servers.contains_key("web-v1-b")
    });
    assert!(returned, "the endpoint did not return");
    assert!(
        back >= Duration::from_millis(1500),
        "it returned after {back:?}, base is 2 s"
    );
    scene.tear_down().unwrap();
}

#[test]
fn limit_refuses_with_429_and_a_retry_after_that_is_true() {
    let scene = start(
        "t-limit",
        "rules:\n  - {service: web, route: [{version: v1}]}\n\
         policies:\n  - {service: web, rate-limit: [{name: per-user, key: [source.workload, header.x-user], rate: 1/s, burst: 5}]}\n",
    );
    let answers = scene
        .ask(&scene.client, &["--count", "12", "-H", "x-user: ann"])
        .unwrap();
    assert_eq!(
        (answers.status(200), answers.status(429)),
        (5, 7),
        "{answers:?}"
    );
    assert_eq!(answers.headers["x-mesh-reject"], "rate_limited");
    // A limit with a key names the bucket in both fields.
    let (policy, bucket) = answers.headers["ratelimit-policy"]
        .split_once(";pk=")
        .expect("a key has a partition");
    assert_eq!(policy, "\"per-user\";q=5;w=5");
    let left = format!("\"per-user\";r=0;t=1;pk={bucket}");
    assert_eq!(answers.headers["ratelimit"], left);
    let after: u64 = answers.headers["retry-after"].parse().unwrap();
    // Other keys have buckets of their own.
    let other = scene
        .ask(&scene.client, &["--count", "5", "-H", "x-user: bob"])
        .unwrap();
    assert_eq!(other.status(200), 5);
    assert!(!other.headers["ratelimit"].ends_with(bucket), "{other:?}");
    let tester = scene
        .ask(&scene.tester, &["--count", "5", "-H", "x-user: ann"])
        .unwrap();
    assert_eq!(tester.status(200), 5);
    std::thread::sleep(Duration::from_secs(after));
    let again = scene.ask(&scene.client, &["-H", "x-user: ann"]).unwrap();
    assert_eq!(
        again.status(200),
        1,
        "whoever waits exactly so long is admitted"
    );
    scene.tear_down().unwrap();
}

#[test]
fn retries_are_safe_and_the_request_timeout_bounds_them() {
    let scene = start(
        "t-retry",
        "rules:\n  - {service: web, route: [{version: v1}]}\n\
         policies:\n  - {service: web, retries: {attempts: 1, on: [server-error], backoff: 1ms}, timeout: {request: 700ms}}\n",
    );
    scene.set_sick("web-v1-b", true).unwrap();
    // The retry avoids the endpoint that was just tried.
    let get = scene.ask(&scene.client, &["--count", "50"]).unwrap();
    assert_eq!(get.status(200), 50, "{get:?}");
    let post = scene
        .ask(&scene.client, &["--count", "50", "--method", "POST"])
        .unwrap();
    assert!(post.status(503) > 0, "a POST is not sent twice: {post:?}");
    scene.set_sick("web-v1-b", false).unwrap();
    let begun = Instant::now();
    let slow = scene
        .ask(&scene.client, &["--path", "/delay/5000"])
        .unwrap();
    assert_eq!(slow.status(504), 1, "{slow:?}");
    assert_eq!(slow.headers["x-mesh-reject"], "upstream_timeout");
    assert!(
        begun.elapsed() < Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
    scene.tear_down().unwrap();
}

/// S21: an address outside the mesh is a service like any other.
#[test]
fn outside_service_has_breaker_and_ejection_too() {
    let mut scene = scene::build("t-egress");
    let outside = scene
        .bed
        .pods()
        .iter()
        .find(|pod| pod.name == "web-v2")
        .unwrap()
        .v4;
    let text = format!(
        "{}\nservices:\n  - name: api\n    hostnames: [api.example]\n    addresses: [203.0.113.7]\n    \
         ports: [{{number: 80, target: 8080, protocol: http}}]\n    endpoints: [{{address: {outside}}}]\n\
         policies:\n  - {{service: api, breaker: {{max-requests: 3}}, rate-limit: [{{rate: 100/s}}]}}\n{}",
        scene.head_text(),
        scene.workloads_text("")
    );
    scene.start_with(&text).unwrap();
    let address = std::net::IpAddr::from([203, 0, 113, 7]);
    let answers = scene.ask_at(
        &scene.client,
        address,
        &["--count", "10", "--host", "api.example"],
    );
    let answers = answers.unwrap();
    assert_eq!(answers.servers.get("web-v2"), Some(&10), "{answers:?}");
    assert!(answers.headers.contains_key("ratelimit"), "{answers:?}");
    scene.tear_down().unwrap();
}
