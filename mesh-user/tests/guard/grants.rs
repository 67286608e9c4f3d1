//! What a guarded workload may open, and for how long.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpListener},
};

use crate::support::{
    LIMIT, Mesh,
    agent::Service,
    client::{connect, python},
    serve_in, vip4,
};

/// Without it: the guard cuts off the agent itself, or what the connect hook let through.
#[test]
fn guarded_workload_reaches_what_proxy_and_hooks_let_through() {
    let mut mesh = Mesh::new("gpass");
    let server = mesh.bed.pod("b").expect("a pod");
    let port = serve_in(&mesh.bed, &server, "server");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    let [v4, v6] = [server.v4.into(), server.v6.into()].map(|ip| SocketAddr::new(ip, port));
    let virtual_ip = SocketAddr::new(vip4().ip(), 81);
    let services = [
        Service::proxy(vip4()),
        Service::kernel(virtual_ip).to(&[v4]),
    ];
    mesh.agent().table(&services, &[]).expect("table");
    assert_eq!(mesh.entries("GUARDED"), 1);
    // Not in the model.
    for to in [v4, v6] {
        let seen = connect(&mesh.bed, &pod, to);
        assert!(seen.data.starts_with("server"), "{to}: {seen:?}");
    }
    // The kernel's choice.
    let seen = connect(&mesh.bed, &pod, virtual_ip);
    assert!(seen.data.starts_with("server"), "{seen:?}");
    assert_eq!(mesh.count("guard_pass"), 3);
    // The agent's own dial, out of the workload's namespace.
    for to in [v4, v6] {
        mesh.agent().dial_back(Some(to));
        let seen = connect(&mesh.bed, &pod, vip4());
        assert!(seen.data.starts_with("server"), "{to}: {seen:?}");
    }
    assert_eq!(mesh.count("guard_pass"), 5);
    mesh.eventually("no grant is left", || mesh.entries("GRANTS") == 0);
    for reason in [
        "refuse_guard_syn",
        "refuse_guard_source",
        "refuse_guard_forged",
    ] {
        assert_eq!(mesh.count(reason), 0, "{reason}");
    }
}

/// A data segment on the agent's own connection, from a packet socket beside it: what a pod with
/// NET_RAW would use to speak past the proxy on a connection that is open already.
const FORGE: &str = r"
import socket, struct, sys, time
own, to, dport = socket.inet_aton(sys.argv[1]), socket.inet_aton(sys.argv[2]), int(sys.argv[3])
s = socket.socket(17, 3, socket.htons(3))
s.bind(('eth0', 0))
s.settimeout(5)
c = socket.socket()
c.connect((sys.argv[4], 80))
end = time.monotonic() + 3
while True:
    assert time.monotonic() < end, 'no segment of the agent was seen'
    f, a = s.recvfrom(2048)
    if f[23] == 6 and a[2] == 4 and f[36:38] == struct.pack('>H', dport) and f[47] == 16: break
def csum(b):
    t = sum(struct.unpack('>%dH' % (len(b) // 2), b))
    while t >> 16: t = (t & 0xffff) + (t >> 16)
    return ~t & 0xffff
data = b'GET /past-the-proxy\r\n'
data += b'\n' * (len(data) % 2)
t = f[34:46] + struct.pack('>BBHHH', 0x50, 24, 1024, 0, 0) + data
t = t[:16] + struct.pack('>H', csum(own + to + struct.pack('>BBH', 0, 6, len(t)) + t)) + t[18:]
h = struct.pack('>BBHHHBBH4s4s', 0x45, 0, 20 + len(t), 1, 0, 64, 6, 0, own, to)
h = h[:10] + struct.pack('>H', csum(h)) + h[12:]
s.send(f[:14] + h + t)
";

/// Without it: the guard keeps connections from being opened, and whoever reads along in the pod's
/// namespace writes into those of the agent.
#[test]
fn data_forged_into_a_connection_of_the_agent_does_not_arrive() {
    for guarded in [true, false] {
        let mut mesh = Mesh::new("gforge");
        let server = mesh.bed.pod("b").expect("a pod");
        let listener = mesh
            .bed
            .in_netns(&server, || TcpListener::bind("0.0.0.0:0").expect("bound"))
            .expect("netns");
        let port = listener.local_addr().expect("bound").port();
        // What the server hears until its client is gone.
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut said = [0; 64];
            let length = stream.read(&mut said).unwrap_or(0);
            let _ = told.send(String::from_utf8_lossy(&said[..length]).into_owned());
        });
        let (pod, id) = mesh.live_pod("a", false);
        mesh.agent().guard(id, false, guarded).expect("set");
        mesh.proxied();
        mesh.agent()
            .dial_back(Some(SocketAddr::new(server.v4.into(), port)));
        let args = [
            pod.v4.to_string(),
            server.v4.to_string(),
            port.to_string(),
            vip4().ip().to_string(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        python(&mesh.bed, &pod, FORGE, &args);
        let forged = mesh.count("refuse_guard_forged");
        if guarded {
            assert_eq!(forged, 1);
            mesh.agent = None;
        }
        let heard = heard.recv_timeout(LIMIT).expect("data, or the end");
        if guarded {
            assert_eq!(heard, "", "the agent's own end, and nothing before it");
        } else {
            assert!(heard.contains("past-the-proxy"), "{heard:?}");
            assert_eq!(forged, 0);
        }
    }
}

const LARGE: &str = r"
import socket, struct
s = socket.socket()
for size in (4, 4096, 4097, 65536):
    s.setsockopt(1, 8, struct.pack('I', 50000 + size // 4).ljust(size, b'\xff'))
    assert s.getsockopt(1, 8) == 2 * (50000 + size // 4), size
    s.setsockopt(1, 36, struct.pack('I', 0x539).ljust(size, b'\xff'))
    assert s.getsockopt(1, 36) == 0x539, size
print('good')
";

/// Pitfall 28: options above 4,096 bytes work in a guarded pod and beside it.
#[test]
fn options_above_a_page_are_set() {
    let mut mesh = Mesh::new("glarge");
    let (pod, id) = mesh.live_pod("a", false);
    let free = mesh.bed.pod("free").expect("a pod");
    mesh.agent().guard(id, false, true).expect("guarded");
    for pod in [&pod, &free] {
        assert_eq!(python(&mesh.bed, pod, LARGE, &[]).trim(), "good");
    }
    assert_eq!(mesh.count("refuse_mark"), 0);
}

const RACE: &str = r"
import ctypes, socket, threading
libc = ctypes.CDLL(None)
value = (ctypes.c_uint32 * 2048)()
value[0] = 0x200000
assert libc.setsockopt(socket.socket().fileno(), 1, 36, value, 4) != 0
stop = False
def flip():
    while not stop:
        value[0] = 0x200000
        value[0] = 0
t = threading.Thread(target=flip)
t.start()
s, bad, good = socket.socket(), 0, 0
for i in range(20000):
    good += libc.setsockopt(s.fileno(), 1, 36, value, 8192 if i % 2 else 4) == 0
    bad += s.getsockopt(1, 36) != 0
stop = True
t.join()
print(bad, good > 0)
";

/// Without it: a second thread changes the value between our look and the kernel's.
#[test]
fn mark_that_changes_under_our_eyes_is_not_set() {
    let mut mesh = Mesh::new("grace");
    let (pod, id) = mesh.live_pod("a", false);
    mesh.agent().guard(id, false, true).expect("guarded");
    assert_eq!(python(&mesh.bed, &pod, RACE, &[]).trim(), "0 True");
    assert!(mesh.count("refuse_mark") > 0, "it was tried");
}
