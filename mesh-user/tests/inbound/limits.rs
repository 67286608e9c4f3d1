//! Rate limits and caps, each exactly once.

use std::net::IpAddr;

use crate::{
    scene::{Talker, told},
    stage::{HTTP, Stage, VIP},
};

/// Many requests at once, each on a connection of its own; how often each status came.
const BURST: &str = "
host, port, count, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
seen = {}
lock = threading.Lock()
def one():
    try:
        s = dial(host, port, limit=10)
        s.sendall(b'GET %s HTTP/1.1\\r\\nhost: app\\r\\nconnection: close\\r\\n\\r\\n' % path.encode())
        status = everything(s).split(b' ', 2)[1].decode()
    except Exception as e:
        status = type(e).__name__
    with lock:
        seen[status] = seen.get(status, 0) + 1
        tell(seen)
threads = [threading.Thread(target=one) for _ in range(count)]
[t.start() for t in threads]
[t.join() for t in threads]
";

/// An hour's rate: nothing is refilled while the test runs.
const LIMIT: &str = "inbound:\n  - workload: app\n    ports: [8080]\n    \
                     rate-limit: {name: l, rate: 1/h, burst: 7}\n";

#[test]
fn rate_limit_admits_exactly_its_burst_whichever_way_requests_come() {
    for (name, pass, to, port) in [
        ("in-rate-c", "collapse", VIP, "80"),
        ("in-rate-f", "full", VIP, "80"),
        ("in-rate-d", "collapse", "", "8080"),
    ] {
        let stage = Stage::start(name, &format!("second-pass: {pass}"), LIMIT);
        let direct = stage.app.v4.to_string();
        let to = if to.is_empty() { &direct } else { to };
        let seen = told(
            &stage.scene,
            &stage.scene.client,
            BURST,
            &[to, port, "20", "/"],
        );
        assert_eq!(seen, serde_json::json!({"200": 7, "429": 13}), "{name}");
        // The same bucket for who comes from elsewhere.
        let seen = told(
            &stage.scene,
            &stage.outside,
            BURST,
            &[&direct, "8080", "3", "/"],
        );
        assert_eq!(seen, serde_json::json!({"429": 3}), "{name}");
    }
}

/// Three at a time, counted together over both ways in, whichever comes first.
#[test]
fn cap_on_requests_in_flight_is_exact_over_both_ways_in() {
    let rules = "inbound:\n  - {workload: app, ports: [8080], breaker: {max-requests: 3}}\n";
    let stage = Stage::start("in-cap", "", rules);
    let direct = stage.app.v4.to_string();
    let ways = [
        (&stage.scene.client, VIP, "80"),
        (&stage.outside, &*direct, "8080"),
    ];
    for (first, second) in [(0, 1), (1, 0)] {
        let start = |way: usize| {
            let (from, to, port) = ways[way];
            Talker::start(&stage.scene, from, BURST, &[to, port, "10", "/hold"])
        };
        let held = start(first);
        while held.next() != serde_json::json!({"503": 7}) {}
        let refused = start(second);
        while refused.next() != serde_json::json!({"503": 10}) {}
        stage.go();
        while held.next() != serde_json::json!({"503": 7, "200": 3}) {}
        stage.others();
    }
}

/// Connections to the application: HTTP waits in the queue for one, so all are served over two.
#[test]
fn cap_on_connections_is_never_exceeded_and_requests_wait_for_one() {
    let rules = "inbound:\n  - {workload: app, ports: [8080], breaker: {max-connections: 2}}\n";
    let stage = Stage::start("in-conns", "", rules);
    let direct = stage.app.v4.to_string();
    let (scene, outside) = (&stage.scene, &stage.outside);
    let seen = told(scene, outside, BURST, &[&direct, "8080", "12", "/"]);
    assert_eq!(seen, serde_json::json!({"200": 12}));
    let seen = told(scene, &scene.client, BURST, &[VIP, "80", "12", "/"]);
    assert_eq!(
        seen,
        serde_json::json!({"200": 12}),
        "after idle ones of another client are closed"
    );
    let to: IpAddr = stage.app.v4.into();
    assert_eq!(
        stage.ask(outside, to, HTTP, crate::stage::PLAIN).status,
        200
    );
}
