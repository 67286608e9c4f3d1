//! Rate limits and caps, each exactly once.

use std::net::IpAddr;

use crate::{
    scene::{Talker, eventually, told},
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

/// Two at a time, counted together over both ways in.
#[test]
fn cap_on_requests_in_flight_is_exact_over_both_ways_in() {
    let rules = "inbound:\n  - {workload: app, ports: [8080], breaker: {max-requests: 3}}\n";
    let stage = Stage::start("in-cap", "", rules);
    let direct = stage.app.v4.to_string();
    let mut ways = Vec::new();
    for (from, to, port) in [
        (&stage.scene.client, VIP, "80"),
        (&stage.outside, &*direct, "8080"),
    ] {
        ways.push(Talker::start(
            &stage.scene,
            from,
            BURST,
            &[to, port, "10", "/hold"],
        ));
    }
    // All but three are answered at once.
    let mut refused = 0;
    let mut last = [0, 0];
    while refused < 17 {
        for (at, way) in ways.iter().enumerate() {
            // The first may have none admitted, then the second has three.
            if last[at] == 10 || refused == 17 {
                continue;
            }
            let held = refused + usize::from(last[at] == 0) > 17;
            if held {
                continue;
            }
            let seen = way.next();
            assert!(seen.get("200").is_none(), "before anything may end: {seen}");
            let now = seen["503"].as_u64().expect("only refusals") as usize;
            refused += now - last[at];
            last[at] = now;
            if refused >= 17 || last[at] == 10 {
                break;
            }
            if last[1 - at] + 10 <= 10 && last[at] == 7 {
                break;
            }
        }
        if last.iter().any(|count| *count >= 7) && refused < 17 {
            // Whoever holds all three has seven refusals: the rest are the other's.
            let other = usize::from(last[0] >= 7 && last[1] < 10);
            while refused < 17 && last[other] < 10 {
                let seen = ways[other].next();
                let now = seen["503"].as_u64().expect("only refusals") as usize;
                refused += now - last[other];
                last[other] = now;
            }
        }
    }
    assert_eq!(last.iter().sum::<usize>(), 17);
    stage.go();
    eventually("three were admitted", || {
        stage.logged("request", "inbound").len() + stage.logged("request", "outbound").len() == 20
    });
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
