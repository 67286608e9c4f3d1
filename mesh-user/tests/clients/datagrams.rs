//! Datagrams: untouched, unless a rule of their own denies them.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use mesh_common::maps::{OUT_DENY, OUT_PASS};
use mesh_user::testbed::Pod;

use crate::support::{
    Mesh, VIP4, VIP6, agent::Service, client::python, objects, serve_vips_on_node,
};

/// Says what it received to whoever sent it, on the node's virtual addresses.
fn echo(mesh: &Mesh, port: u16) {
    for ip in [VIP4, VIP6] {
        let at = SocketAddr::new(ip, port);
        let socket = mesh
            .bed
            .in_node(move || UdpSocket::bind(at).expect("bind"))
            .expect("netns");
        std::thread::spawn(move || {
            let mut bytes = [0; 2_048];
            while let Ok((length, peer)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..length], peer);
            }
        });
    }
}

const SCRIPT: &str = r"
import socket, sys
out = []
for address, port, connected in [line.split(',') for line in sys.argv[1:]]:
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(3)
    try:
        if connected == 'c':
            s.connect((address, int(port)))
            s.send(b'hello')
            assert s.getpeername()[1] == int(port)
        else:
            s.sendto(b'hello', (address, int(port)))
        data, peer = s.recvfrom(100)
        assert data == b'hello' and peer[1] == int(port), (data, peer)
        out.append('ok')
    except OSError as e:
        out.append(str(e.errno))
print(' '.join(out))
";

/// Connected and unconnected, IPv4, IPv6 and v4-mapped, on a port.
fn ask(mesh: &Mesh, pod: &Pod, port: u16) -> String {
    let mut cases = Vec::new();
    for address in [VIP4.to_string(), VIP6.to_string(), format!("::ffff:{VIP4}")] {
        for how in ["c", "u"] {
            cases.push(format!("{address},{port},{how}"));
        }
    }
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    python(&mesh.bed, pod, SCRIPT, &cases).trim().to_owned()
}

/// DNS, QUIC, anything.
const PORTS: [u16; 3] = [53, 443, 9_000];

fn all(what: &str) -> String {
    [what; 6].join(" ")
}

/// Without it: DNS or QUIC of a captured pod is in the mesh's hands, or a rule for TCP takes it
/// away. Also: the hooks for datagrams cost nobody anything as long as no rule needs them.
#[test]
fn datagrams_of_a_captured_pod_pass_untouched() {
    let mut mesh = Mesh::new("udp");
    let (pod, _) = mesh.live_pod("a", false);
    serve_vips_on_node(&mesh.bed);
    // The same addresses and ports are the proxy's for TCP, or denied.
    let services: Vec<Service> = [VIP4, VIP6]
        .iter()
        .flat_map(|ip| PORTS.map(|port| Service::proxy(SocketAddr::new(*ip, port))))
        .collect();
    let deny = [(VIP4, 32, 9_000, OUT_DENY), (VIP6, 128, 9_000, OUT_DENY)];
    mesh.agent().table(&services, &deny).expect("table");
    for port in PORTS {
        echo(&mesh, port);
        assert_eq!(ask(&mesh, &pod, port), all("ok"), "port {port}");
    }
    let pods = mesh.bed.pods_cgroup();
    assert_eq!(objects::at_cgroup(&pods, "udp4_sendmsg"), 0);
    assert_eq!(mesh.count("refuse_datagram"), 0);
    assert!(mesh.agent().accepts().is_empty());
}

/// Without it: a rule that denies datagrams lets those of unconnected sockets through, or takes
/// more than it names; or it outlives its removal, or dies with the agent.
#[test]
fn denied_datagrams_are_refused_and_nothing_else_is() {
    let mut mesh = Mesh::new("deny");
    let (pod, _) = mesh.live_pod("a", false);
    let free = mesh.bed.pod("free").expect("a pod");
    serve_vips_on_node(&mesh.bed);
    for port in PORTS {
        echo(&mesh, port);
    }
    // Everything is denied, but DNS passes: exactly this port goes before any port.
    let everything: [(IpAddr, u8, u16, u32); 4] = [
        ("0.0.0.0".parse().expect("an address"), 0, 0, OUT_DENY),
        ("::".parse().expect("an address"), 0, 0, OUT_DENY),
        ("0.0.0.0".parse().expect("an address"), 0, 53, OUT_PASS),
        ("::".parse().expect("an address"), 0, 53, OUT_PASS),
    ];
    mesh.agent().datagrams(&everything);
    mesh.agent().table(&[], &[]).expect("table");
    let refused = all(&libc::ECONNREFUSED.to_string());
    let check = |mesh: &Mesh| {
        assert_eq!(ask(mesh, &pod, 443), refused);
        assert_eq!(ask(mesh, &pod, 53), all("ok"));
        assert_eq!(ask(mesh, &free, 443), all("ok"), "not a workload");
    };
    check(&mesh);
    assert_eq!(mesh.count("refuse_datagram"), 6);
    assert!(
        mesh.agent()
            .events()
            .iter()
            .all(|it| it == "refuse_datagram")
    );
    // TCP to the same addresses is not the rule's.
    let tcp = crate::support::client::connect(&mesh.bed, &pod, crate::support::vip4());
    assert!(tcp.data.starts_with("node"), "{tcp:?}");
    // The agent is killed: rules and hooks stay. The next one takes both over.
    mesh.agent = None;
    check(&mesh);
    mesh.start_agent(2, false).expect("it starts");
    let pods = mesh.bed.pods_cgroup();
    check(&mesh);
    assert_eq!(objects::at_cgroup(&pods, "udp4_sendmsg"), 1);
    assert_eq!(objects::at_cgroup(&pods, "udp6_sendmsg"), 1);
    // A narrower range passes, until there are no rules left.
    let narrow = [
        (VIP4, 16, 0, OUT_DENY),
        (VIP4, 32, 0, OUT_PASS),
        (VIP6, 64, 443, OUT_DENY),
    ];
    mesh.agent().datagrams(&narrow);
    mesh.agent().table(&[], &[]).expect("table");
    let errno = libc::ECONNREFUSED;
    assert_eq!(
        ask(&mesh, &pod, 443),
        format!("ok ok {errno} {errno} ok ok")
    );
    mesh.agent().datagrams(&[]);
    mesh.agent().table(&[], &[]).expect("table");
    assert_eq!(ask(&mesh, &pod, 443), all("ok"));
    assert_eq!(objects::at_cgroup(&pods, "udp4_sendmsg"), 0);
    assert_eq!(objects::at_cgroup(&pods, "udp6_sendmsg"), 0);
}

/// Pitfall 36: a name server is replaced while a client holds a connected socket. Without it: the
/// client keeps talking to an address that the mesh remembered.
#[test]
fn connected_datagram_socket_follows_its_server_when_that_is_replaced() {
    let mut mesh = Mesh::new("dns");
    let (pod, _) = mesh.live_pod("a", false);
    mesh.proxied();
    let script = r"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.2)
s.connect((sys.argv[1], 53))
for line in sys.stdin:
    answer = ''
    for _ in range(50):
        try:
            s.send(b'who')
            answer = s.recv(100).decode()
            break
        except OSError:
            continue
    print(answer, s.getpeername()[0], flush=True)
";
    use std::io::{BufRead as _, Write as _};
    let address: IpAddr = "10.77.250.53".parse().expect("an address");
    let mut command = std::process::Command::new("python3");
    command.args(["-c", script, &address.to_string()]);
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut client = mesh.bed.spawn_in(&pod, command).expect("python3");
    let mut input = client.stdin.take().expect("piped");
    let output = client.stdout.take().expect("piped");
    let mut lines = std::io::BufReader::new(output).lines();
    for name in ["old", "new"] {
        let server = mesh.bed.pod(name).expect("a pod");
        let netns = server.netns.file_name().expect("a name").to_owned();
        let status = std::process::Command::new("ip")
            .arg("-n")
            .arg(netns)
            .args(["addr", "add", "10.77.250.53/16", "dev", "eth0"])
            .status();
        assert!(status.expect("ip").success());
        let socket = mesh
            .bed
            .in_netns(&server, move || {
                UdpSocket::bind((address, 53)).expect("bind")
            })
            .expect("netns");
        // Tells the node where the address is now.
        let _ = socket.send_to(b"here", "10.77.0.1:9");
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        std::thread::spawn(move || {
            let mut bytes = [0; 100];
            while let Ok((_, peer)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(name.as_bytes(), peer);
                if name == "old" {
                    return;
                }
            }
        });
        writeln!(input, "ask").expect("it lives");
        let answer = lines.next().expect("a line").expect("text");
        assert_eq!(answer, format!("{name} {address}"));
        if name == "old" {
            mesh.bed.remove(&server).expect("removed");
            // The client's neighbour entry points to the one that is gone.
            let name = pod.netns.file_name().expect("a name");
            let status = std::process::Command::new("ip")
                .arg("-n")
                .arg(name)
                .args(["neigh", "flush", "all"])
                .status();
            assert!(status.expect("ip").success());
        }
    }
    let _ = client.kill();
    let _ = client.wait();
    assert_eq!(
        objects::at_cgroup(&mesh.bed.pods_cgroup(), "udp4_sendmsg"),
        0
    );
}
