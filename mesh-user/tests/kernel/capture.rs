//! What is captured, what is not, and what the two sides see of it.

use std::net::SocketAddr;

use mesh_common::abi::MARK_MASK;

use crate::support::{
    Mesh, PORT, VIP4,
    agent::Service,
    client::{Dial, connect, dial, python},
    objects, serve_in, serve_vips_on_node, vip4, vip6,
};

/// Without it: the proxy does not know where a connection was going, or the application sees a
/// peer that it never dialled.
#[test]
fn captured_connection_keeps_its_true_addresses_in_every_family() {
    let mut mesh = Mesh::new("addr");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    let cases = [
        (vip4(), false, std::net::IpAddr::from(pod.v4)),
        (vip4(), true, pod.v4.into()),
        (vip6(), false, pod.v6.into()),
    ];
    for (to, mapped, own) in cases {
        let seen = dial(
            &mesh.bed,
            &pod,
            to,
            Dial {
                mapped,
                ..Dial::default()
            },
        );
        assert_eq!(
            (seen.errno, seen.data.as_str()),
            (0, format!("proxy {to}").as_str())
        );
        assert_eq!(seen.peer(), to, "getpeername");
        assert_eq!(seen.own(), own, "getsockname");
        let accept = mesh.agent().accepts().pop().expect("one accept");
        assert_eq!(
            (accept.pod_id, accept.local, accept.peer.ip()),
            (id, to, own)
        );
        assert_eq!(
            accept.asked,
            Some(to),
            "the flow table knew it before the accept"
        );
    }
    assert_eq!(mesh.agent().accepts().len(), cases.len());
    assert_eq!(mesh.count("captured"), cases.len() as u64);
}

/// Without it: a pod that nobody asked to be in the mesh is in it.
#[test]
fn pod_that_is_not_enrolled_is_untouched() {
    let mut mesh = Mesh::new("free");
    let (_, _) = mesh.live_pod("a", false);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    let free = mesh.bed.pod("free").unwrap();
    for to in [vip4(), vip6()] {
        let seen = connect(&mesh.bed, &free, to);
        assert!(seen.data.starts_with("node "), "{seen:?}");
        assert_eq!(seen.mark & MARK_MASK, 0);
    }
    assert!(mesh.agent().accepts().is_empty());
    assert_eq!(mesh.count("pass_unknown_netns"), 2);
}

/// Without it: enrolled too early, or captured before the listeners are served.
#[test]
fn enrolled_pod_is_captured_only_after_go_live() {
    let mut mesh = Mesh::new("live");
    let pod = mesh.bed.pod("a").unwrap();
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    let id = mesh.agent().enrol("a", &pod.netns, false).unwrap();
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("node "));
    mesh.agent().live(id).unwrap();
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("proxy "));
    mesh.agent().release(id);
    assert!(connect(&mesh.bed, &pod, vip4()).data.starts_with("node "));
}

/// Without it: an application that talks to itself meets the proxy.
#[test]
fn loopback_and_own_address_are_untouched() {
    let mut mesh = Mesh::new("lo");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let port = serve_in(&mesh.bed, &pod, "self");
    let own4 = pod.v4.to_string();
    let cases: [(SocketAddr, &str); 6] = [
        (([127, 0, 0, 1], port).into(), ""),
        (
            "[::1]:1"
                .parse::<SocketAddr>()
                .map(|a| (a.ip(), port).into())
                .unwrap(),
            "",
        ),
        ((pod.v4, port).into(), ""),
        ((pod.v6, port).into(), ""),
        (([0, 0, 0, 0], port).into(), ""),
        // Bound to the pod's address, dialling loopback: steer sees a pod that leaves.
        (([127, 0, 0, 1], port).into(), &own4),
    ];
    for (to, bind) in cases {
        let seen = dial(
            &mesh.bed,
            &pod,
            to,
            Dial {
                bind,
                ..Dial::default()
            },
        );
        assert!(seen.data.starts_with("self "), "{to}: {seen:?}");
    }
    assert!(mesh.agent().accepts().is_empty());
    assert_eq!(mesh.count("pass_loopback"), 4);
    assert_eq!(mesh.count("pass_pod_address"), 2);
}

/// Without it: traffic between pods by address is routed as if it were for a service, or a
/// destination outside the model is taken.
#[test]
fn pod_addresses_and_unknown_destinations_pass() {
    let mut mesh = Mesh::new("pass");
    let (a, _) = mesh.live_pod("a", false);
    let (b, _) = mesh.live_pod("b", false);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    let port = serve_in(&mesh.bed, &b, "b");
    for ip in [std::net::IpAddr::from(b.v4), b.v6.into()] {
        let seen = connect(&mesh.bed, &a, (ip, port).into());
        assert_eq!(seen.data, format!("b {}", seen.own()));
    }
    assert_eq!(mesh.count("pass_pod_address"), 2);
    assert_eq!(mesh.count("steer_pass_in"), 2);
    // Another port of the virtual address is no service: it goes to the node, which refuses it.
    let seen = connect(&mesh.bed, &a, (VIP4, PORT + 1).into());
    assert_eq!(seen.errno, libc::ECONNREFUSED);
    assert_eq!(mesh.count("pass_outside_model"), 1);
    assert!(mesh.agent().accepts().is_empty());
}

/// Without it: the proxy proxies itself until the node has no descriptor left.
#[test]
fn agent_dial_to_a_captured_address_is_not_captured() {
    let mut mesh = Mesh::new("loop");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    for (to, own) in [
        (vip4(), std::net::IpAddr::from(pod.v4)),
        (vip6(), pod.v6.into()),
    ] {
        let before = mesh.agent().accepts().len();
        mesh.agent().dial_back(Some(to));
        let seen = connect(&mesh.bed, &pod, to);
        assert_eq!(
            seen.data,
            format!("node {own}"),
            "dialled from the pod's namespace"
        );
        assert_eq!(
            mesh.agent().accepts().len(),
            before + 1,
            "one accept for each request"
        );
    }
    mesh.eventually("the agent's flows end", || mesh.entries("PROXY_FLOWS") == 0);
    // Two dials, two self-probes.
    assert_eq!(mesh.count("proxy_flow_opened"), 4, "workload {id}");
    assert_eq!(mesh.count("proxy_flow_closed"), 4);
}

/// Without it: the mesh breaks applications that mark their sockets, or leaks its own bits.
#[test]
fn foreign_mark_bits_survive_and_ours_are_never_left() {
    let mut mesh = Mesh::new("mark");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    let foreign = 0x0f00_4001;
    let captured = dial(
        &mesh.bed,
        &pod,
        vip4(),
        Dial {
            mark: foreign,
            ..Dial::default()
        },
    );
    assert!(captured.data.starts_with("proxy "), "{captured:?}");
    assert_eq!(captured.mark & !MARK_MASK, foreign);
    assert_ne!(captured.mark & MARK_MASK, 0);
    // An application that claims to be the agent gains nothing: its bits are taken away.
    for mark in [foreign | MARK_MASK, 0x0020_0000] {
        let passed = dial(
            &mesh.bed,
            &pod,
            (VIP4, PORT + 1).into(),
            Dial {
                mark,
                ..Dial::default()
            },
        );
        assert_eq!(passed.mark, mark & !MARK_MASK);
        let claimed = dial(
            &mesh.bed,
            &pod,
            vip4(),
            Dial {
                mark,
                ..Dial::default()
            },
        );
        assert!(claimed.data.starts_with("proxy "), "{claimed:?}");
    }
}

/// Without it: a socket that was captured once and is used again for another address goes to the
/// proxy, which does not know it.
#[test]
fn reused_socket_is_decided_anew() {
    let mut mesh = Mesh::new("reuse");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    serve_vips_on_node(&mesh.bed);
    let script = r"
import ctypes, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket()
s.connect((sys.argv[1], 80))
print(s.recv(100).decode().split()[0])
# AF_UNSPEC dissolves the association: the socket may connect again.
assert libc.connect(s.fileno(), struct.pack('H14x', 0), 16) == 0
try:
    s.connect((sys.argv[1], 81))
except ConnectionRefusedError:
    print('refused', s.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
";
    let out = python(&mesh.bed, &pod, script, &[&VIP4.to_string()]);
    assert_eq!(out, "proxy\nrefused 0\n");
    assert_eq!(mesh.agent().accepts().len(), 1);
}

/// Without it: clients that connect in another way slip past the mesh, or datagrams are caught.
#[test]
fn nonblocking_bound_and_multipath_clients_are_captured_and_datagrams_are_not() {
    let mut mesh = Mesh::new("style");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let script = r"
import errno, select, socket, sys
vip, own = sys.argv[1:3]
def answer(s):
    s.settimeout(5)
    print(s.recv(100).decode(), s.getpeername()[0])
s = socket.socket()
s.setblocking(False)
assert s.connect_ex((vip, 80)) == errno.EINPROGRESS
assert select.select([], [s], [], 5)[1] and s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
answer(s)
s = socket.socket()
s.bind((own, 0))
s.connect((vip, 80))
answer(s)
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.connect((vip, 80))
answer(s)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((vip, 80))
print('mark', s.getsockopt(socket.SOL_SOCKET, socket.SO_MARK))
";
    let out = python(
        &mesh.bed,
        &pod,
        script,
        &[&VIP4.to_string(), &pod.v4.to_string()],
    );
    let expected = format!("proxy {VIP4}:80 {VIP4}\n").repeat(3) + "mark 0\n";
    assert_eq!(out, expected);
    assert_eq!((mesh.count("captured"), mesh.count("pass_not_tcp")), (3, 1));
}

/// Without it: counters and reality drift apart, flows leak, or one shard does all the work.
#[test]
fn two_thousand_connects_are_counted_spread_and_forgotten() {
    const CONNECTS: u64 = 2_000;
    let mut mesh = Mesh::with("many", 4, false);
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let script = r"
import socket, sys
ok = 0
for i in range(int(sys.argv[2])):
    s = socket.create_connection((sys.argv[1], 80), 5)
    while s.recv(100): pass
    s.close()
    ok += 1
print(ok)
";
    let out = python(
        &mesh.bed,
        &pod,
        script,
        &[&VIP4.to_string(), &CONNECTS.to_string()],
    );
    assert_eq!(out.trim(), CONNECTS.to_string());
    let accepts = mesh.agent().accepts();
    assert_eq!(accepts.len() as u64, CONNECTS);
    // The self-probes are steered too, but never pass the connect hook's capture.
    assert_eq!(mesh.count("captured"), CONNECTS);
    assert_eq!(mesh.count("steer_out"), CONNECTS + 2);
    assert_eq!(mesh.count("flow_opened"), CONNECTS);
    assert_eq!(mesh.count("flow_established"), CONNECTS);
    for shard in 0..4 {
        let share = accepts
            .iter()
            .filter(|accept| accept.shard == shard)
            .count() as u64;
        assert!(
            share > CONNECTS / 8,
            "shard {shard} got {share} of {CONNECTS}"
        );
    }
    mesh.eventually("flows end", || mesh.entries("FLOWS") == 0);
    assert_eq!(mesh.count("flow_closed"), CONNECTS);
    let left = objects::entries(&mesh.instance, "INTENTS");
    assert_eq!(left, 0, "flow_ops took each");
}

/// Without it: the first-class kernel path (no proxy) sends to the wrong place or shows the
/// endpoint to the application.
#[test]
fn kernel_decided_service_goes_to_its_endpoints_in_turn() {
    let mut mesh = Mesh::new("l4");
    let (pod, _) = mesh.live_pod("a", false);
    let (one, two) = (mesh.bed.pod("one").unwrap(), mesh.bed.pod("two").unwrap());
    let ports = [
        serve_in(&mesh.bed, &one, "one"),
        serve_in(&mesh.bed, &two, "two"),
    ];
    let services = [
        Service::kernel(vip4()).to(&[(one.v4, ports[0]).into(), (two.v4, ports[1]).into()]),
        Service::kernel(vip6()).to(&[(one.v6, ports[0]).into(), (two.v6, ports[1]).into()]),
    ];
    mesh.agent().table(&services, &[]).unwrap();
    let script = r"
import socket, sys
for i in range(40):
    s = socket.create_connection((sys.argv[1], 80), 5)
    assert s.getpeername()[:2] == (sys.argv[1], 80), s.getpeername()
    print(s.recv(100).decode().split()[0])
";
    for vip in [vip4(), vip6()] {
        let out = python(&mesh.bed, &pod, script, &[&vip.ip().to_string()]);
        let to_one = out.lines().filter(|line| *line == "one").count();
        // Exact on each CPU: two CPUs may be off by one each.
        assert!((18..=22).contains(&to_one), "{to_one} of 40 to one");
        assert_eq!(out.lines().count(), 40);
    }
    let mapped = dial(
        &mesh.bed,
        &pod,
        vip4(),
        Dial {
            mapped: true,
            ..Dial::default()
        },
    );
    assert_eq!((mapped.errno, mapped.peer()), (0, vip4()));
    assert!(mesh.agent().accepts().is_empty());
    assert_eq!(mesh.count("kernel_l4"), 81);
    mesh.eventually("flows end", || mesh.entries("FLOWS") == 0);
}
