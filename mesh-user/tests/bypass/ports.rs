//! A grant ends with its connection.

use std::net::TcpListener;

use crate::field::Field;

const CONNECTIONS: u64 = 30_000;

/// Pitfall 5: stale flow entries become permissions. 30,000 short connections that are let through,
/// then a SYN of a packet socket from each of their ports, to the same place and to a service: all
/// of them must drop, and nothing may be left in the map.
#[test]
fn ports_of_ended_connections_open_nothing() {
    let field = Field::new("bpport", true);
    let listener = field
        .mesh
        .bed
        .in_netns(&field.there, || TcpListener::bind("0.0.0.0:9000"))
        .expect("netns")
        .expect("bound");
    std::thread::spawn(move || for _ in listener.incoming() {});
    let said = field.run(0, CONNECT);
    let ports: u64 = said.trim().parse().unwrap_or_else(|_| panic!("{said}"));
    // One that the listener's full queue lost comes again.
    let passed = field.mesh.count("guard_pass");
    assert!(passed >= CONNECTIONS, "{passed} SYNs met the guard");
    field
        .mesh
        .eventually("no grant is left", || field.mesh.entries("GRANTS") == 0);
    field.forget();
    let before = field.mesh.count("refuse_guard_syn");
    assert_eq!(field.run(0, AGAIN).trim(), "");
    field.mesh.eventually("each SYN met the guard", || {
        field.mesh.count("refuse_guard_syn") - before >= 2 * ports
    });
    assert_eq!(field.mesh.count("refuse_guard_syn") - before, 2 * ports);
    assert_eq!((field.syns(7_000), field.syns(9_000)), (0, 0));
    // Ten a second and interface at most: a flood leaves room for the events of others.
    let events = field.mesh.agent().events();
    assert!(
        (1..1_000).contains(&events.len()),
        "{} events",
        events.len()
    );
    assert_eq!(field.mesh.count("event_lost"), 0);
}

/// Aborted, so that no port waits; the ports go to a file for the second script.
const CONNECT: &str = r"ports = set()
for i in range(30000):
    s = socket.socket(2, 1)
    s.setsockopt(1, 13, struct.pack('ii', 1, 0))
    s.connect((B4, 9000))
    ports.add(s.getsockname()[1])
    s.close()
open(CGROUP_FILE, 'w').write(' '.join(map(str, ports)))
print(len(ports))";

const AGAIN: &str = r"ports = [int(p) for p in open(CGROUP_FILE).read().split()]
os.unlink(CGROUP_FILE)
s = socket.socket(17, 3, 0)
s.bind(('eth0', 0))
head = BMAC + s.getsockname()[4] + b'\x08\0'
for p in ports:
    for to in (9000, 7000): s.send(head + ip4(6, syn4(sport=p, dport=to)))";
