//! The application sees its client.

use std::net::IpAddr;

use crate::{
    scene::{self, eventually, told},
    stage::{Accepted, ECHO, HTTP, How, OPAQUE, PLAIN, Stage, VIP},
};

const CAPTURE: &str = "inbound:\n  - {workload: app, ports: [8080, 9000]}\n";
/// The application closes after its answer, so that the next request needs a dial of its own.
const LAST: How<'static> = How {
    path: "/last",
    ..PLAIN
};
/// Ports that dials with a client's address take.
const SPOOFED: std::ops::RangeInclusive<u64> = 10_000..=31_999;

/// Pitfalls 3 and 4: over three families, from outside of the mesh and from the same node, exactly
/// one connection reaches the application for each request, from its client's own address.
#[test]
fn application_accepts_once_from_the_clients_own_address_in_every_family() {
    let stage = Stage::start("in-addr", "", CAPTURE);
    let mapped = How {
        how: "mapped",
        ..LAST
    };
    let app = &stage.app;
    let mut asked = 0;
    for client in [&stage.outside, &stage.scene.client] {
        let cases = [
            (IpAddr::from(app.v4), HTTP, LAST, client.v4.to_string()),
            (app.v6.into(), HTTP, LAST, client.v6.to_string()),
            (app.v4.into(), HTTP, mapped, client.v4.to_string()),
            (app.v4.into(), ECHO, OPAQUE, client.v4.to_string()),
            (app.v6.into(), ECHO, OPAQUE, client.v6.to_string()),
        ];
        for (to, port, how, own) in cases {
            let seen = stage.ask(client, to, port, how);
            assert_eq!(seen.own, own, "{to} {how:?}: {seen:?}");
            let body = if port == ECHO { "hello" } else { &own };
            assert_eq!(seen.body, body, "{to} {how:?}: {seen:?}");
            let accepted = stage.accepted();
            assert_eq!((&accepted.peer, accepted.port), (&own, u64::from(port)));
            assert!(SPOOFED.contains(&accepted.peer_port), "{accepted:?}");
            asked += 1;
        }
    }
    assert_eq!(
        stage.others(),
        Vec::<Accepted>::new(),
        "one for each request"
    );
    assert_eq!(
        (stage.count("steer_in"), stage.count("steer_pass_proxied")),
        (asked, asked)
    );
    assert_eq!(stage.logged("request", "inbound").len(), 6);
    assert_eq!(stage.logged("request", "outbound").len(), 0);
}

/// A client's next requests go over the connection that it has to the application; another client
/// never gets it.
#[test]
fn connection_to_the_application_is_reused_for_the_same_client_only() {
    let stage = Stage::start("in-pool", "", CAPTURE);
    for client in [&stage.outside, &stage.scene.tester] {
        for _ in 0..3 {
            let seen = stage.ask(client, stage.app.v4, HTTP, PLAIN);
            assert_eq!(seen.body, client.v4.to_string(), "{seen:?}");
        }
    }
    let accepted = stage.others();
    let of = |pod: &mesh_user::testbed::Pod| {
        let own = pod.v4.to_string();
        accepted
            .iter()
            .filter(|accepted| accepted.peer == own)
            .count()
    };
    // Connections of one client may stand on different workers.
    assert!((1..=3).contains(&of(&stage.outside)), "{accepted:?}");
    assert!((1..=3).contains(&of(&stage.scene.tester)), "{accepted:?}");
    assert_eq!(of(&stage.outside) + of(&stage.scene.tester), accepted.len());
}

/// Pitfall 31: over the workload's own addresses and loopback, also where its port is denied.
#[test]
fn workload_that_talks_to_itself_is_untouched() {
    let deny = "inbound:\n  - {workload: app, ports: [8080], action: deny}\n  - {workload: app}\n";
    let stage = Stage::start("in-self", "failure: closed", deny);
    let app = &stage.app;
    let loopback = IpAddr::from([127, 0, 0, 1]);
    for (to, port) in [
        (IpAddr::from(app.v4), HTTP),
        (app.v6.into(), HTTP),
        (loopback, HTTP),
        (app.v4.into(), crate::stage::OTHER),
    ] {
        let seen = stage.ask(app, to, port, PLAIN);
        assert_eq!(
            (seen.status, &seen.body),
            (200, &to.to_string()),
            "{seen:?}"
        );
        let accepted = stage.accepted();
        assert_eq!(accepted.peer, to.to_string());
        assert_eq!(accepted.peer_port, seen.own_port, "no proxy in between");
    }
    assert_eq!(stage.count("steer_pass_self"), 3);
    assert_eq!(stage.count("steer_in"), 0);
}

/// Pitfall 30: the kernel knows a workload by its addresses, so one that comes later must be
/// learnt.
#[test]
fn address_that_is_added_later_is_captured_too() {
    let stage = Stage::start("in-late", "", CAPTURE);
    let late = "10.77.200.9";
    scene::shell(
        &stage.scene,
        &stage.app,
        &format!("ip addr add {late}/16 dev eth0"),
    );
    eventually("the new address is captured", || {
        let before = stage.count("steer_in");
        let to: IpAddr = late.parse().unwrap();
        let seen = stage.ask(&stage.outside, to, HTTP, PLAIN);
        assert_eq!(seen.body, stage.outside.v4.to_string(), "{seen:?}");
        stage.count("steer_in") > before
    });
    scene::shell(
        &stage.scene,
        &stage.app,
        &format!("ip addr del {late}/16 dev eth0"),
    );
}

/// Same node, second pass collapsed: one pass past the proxy; full: two.
#[test]
fn connection_on_the_node_passes_the_proxy_once_or_twice_by_setting() {
    let stage = Stage::start("in-pass", "second-pass: collapse", CAPTURE);
    let vip: IpAddr = VIP.parse().unwrap();
    let client = stage.scene.client.v4.to_string();
    let lines = |stage: &Stage| {
        (
            stage.logged("request", "outbound").len(),
            stage.logged("request", "inbound").len(),
        )
    };
    let seen = stage.ask(&stage.scene.client, vip, 80, PLAIN);
    assert_eq!((seen.status, &seen.body), (200, &client), "{seen:?}");
    eventually("the line is written", || lines(&stage) == (1, 0));
    assert_eq!(stage.accepted().peer, client);
    assert_eq!(
        (stage.count("steer_in"), stage.count("steer_pass_proxied")),
        (0, 1)
    );
    stage.reload("second-pass: full", CAPTURE);
    let seen = stage.ask(&stage.scene.client, vip, 80, PLAIN);
    assert_eq!((seen.status, &seen.body), (200, &client), "{seen:?}");
    eventually("both lines are written", || lines(&stage) == (2, 1));
    assert_eq!(stage.count("steer_in"), 1);
    let inbound = stage.logged("request", "inbound");
    let last = inbound.last().unwrap();
    assert_eq!(last["mesh.workload"], "default/app");
}

/// Pitfall 8: the client's port is one that a dial would take: the dial takes another one.
#[test]
fn client_with_a_port_of_the_spoofed_range_is_served_at_once() {
    let stage = Stage::build("in-pin");
    let mut stage = stage;
    let text = stage.config(&crate::stage::Setup {
        app: "",
        more: CAPTURE,
        agent: "  workers: 1\n",
    });
    stage.scene.start_with(&text).unwrap();
    scene::live(&stage.scene, 3);
    let mut took = Vec::new();
    for port in 10_000..10_006 {
        let how = How {
            bind: port,
            path: "/last",
            ..PLAIN
        };
        let seen = stage.ask(&stage.outside, stage.app.v4, HTTP, how);
        assert_eq!(seen.body, stage.outside.v4.to_string(), "{seen:?}");
        assert_eq!(seen.own_port, u64::from(port));
        // A second is what a lost SYN costs; the rest is this machine's load.
        assert!(seen.ms < 500.0, "{seen:?}");
        took.push(seen.ms);
        let accepted = stage.accepted();
        assert_eq!(accepted.peer, stage.outside.v4.to_string());
        assert_ne!(accepted.peer_port, u64::from(port));
    }
    took.sort_by(f64::total_cmp);
    assert!(took[2] < 100.0, "{took:?}");
}

/// Pitfall 8: a connection that was there before its port was captured has the very tuple that the
/// next dial takes. Nobody knows of it: the dial is given up and made with the workload's own
/// address, within 100 ms, and counted.
#[test]
fn clash_with_a_connection_from_before_the_capture_is_served_by_the_fallback() {
    let mut stage = Stage::build("in-clash");
    let setup = |more| crate::stage::Setup {
        app: "",
        more,
        agent: "  workers: 1\n",
    };
    let text = stage.config(&setup(""));
    stage.scene.start_with(&text).unwrap();
    scene::live(&stage.scene, 3);
    // Straight to the application, from the first port that a dial will take.
    let program = "
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('', 10000))
s.connect((sys.argv[1], 8080))
tell('open')
sys.stdin.readline()
s.settimeout(5)
s.sendall(b'GET /last HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n')
tell(everything(s).decode().split('\\r\\n')[0])
";
    let to = stage.app.v4.to_string();
    let mut before = scene::Talker::start(&stage.scene, &stage.outside, program, &[&to]);
    assert_eq!(before.next(), "open");
    assert_eq!(stage.accepted().peer_port, 10_000);
    stage
        .scene
        .put_in_force(&stage.config(&setup(CAPTURE)))
        .unwrap();
    let seen = stage.ask(&stage.outside, stage.app.v4, HTTP, PLAIN);
    assert_eq!(seen.body, to, "the workload's own address: {seen:?}");
    assert!(seen.ms < 500.0, "{seen:?}");
    println!("by the fallback within {:.1} ms", seen.ms);
    let next = stage.ask(
        &stage.outside,
        stage.app.v4,
        HTTP,
        How {
            path: "/last",
            ..PLAIN
        },
    );
    assert_eq!(next.status, 200, "{next:?}");
    before.say("go");
    assert_eq!(before.next(), "HTTP/1.1 200 OK", "it lives on");
}

/// v6 and v4 of one client, many at a time: each of them is served, from its own address.
#[test]
fn many_connections_of_one_client_are_all_served_with_its_address() {
    let stage = Stage::start("in-many", "", CAPTURE);
    let program = "
bad = []
def one(n):
    try:
        s = dial(sys.argv[1], 8080)
        s.sendall(b'GET /last HTTP/1.1\\r\\nhost: a\\r\\nconnection: close\\r\\n\\r\\n')
        body = everything(s).partition(b'\\r\\n\\r\\n')[2].decode()
        if body != sys.argv[2]:
            bad.append(body)
    except OSError as e:
        bad.append(repr(e))
for _ in range(10):
    threads = [threading.Thread(target=one, args=(n,)) for n in range(40)]
    [t.start() for t in threads]
    [t.join() for t in threads]
tell(bad)
";
    let own = stage.outside.v6.to_string();
    let arguments = [&*stage.app.v6.to_string(), &*own];
    let bad = told(&stage.scene, &stage.outside, program, &arguments);
    assert_eq!(bad, serde_json::json!([]));
    assert_eq!(stage.others().len(), 400, "one for each");
}
