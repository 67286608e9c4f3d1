//! The kernel L4 path on the real kernel: the split, the caps and what becomes of their places, the
//! counters of endpoints, and what the application sees. An agent process writes the maps.

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use mesh_user::{
    kernel::view::EndpointRow,
    testbed::{Pod, Testbed, wait_until},
};
use support::{
    Mesh,
    agent::Service,
    client::{Dial, dial, python},
    serve_in, vip4, vip6,
};

/// A Python program in a pod that is spoken to line by line. It ends with the value.
struct Talker {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Talker {
    fn start(bed: &Testbed, pod: &Pod, script: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.arg("-c").arg(script).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = bed.spawn_in(pod, command).expect("python3 starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let input = child.stdin.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            input,
            lines,
        }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("it listens");
    }

    fn next(&self) -> String {
        let line = self.lines.recv_timeout(Duration::from_secs(60));
        line.expect("it says something within a minute")
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves in a pod: reads until the end, sends back how many bytes that were, ends. How many
/// connections it has open, and how many it ever had open at once.
fn serve_counting(bed: &Testbed, pod: &Pod) -> (u16, Arc<AtomicU64>, Arc<AtomicU64>) {
    let listener = bed
        .in_netns(pod, || TcpListener::bind("[::]:0").expect("bind"))
        .expect("netns");
    let port = listener.local_addr().expect("bound").port();
    let (open, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, peak) = (Arc::clone(&open), Arc::clone(&most));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (counted, peak) = (Arc::clone(&counted), Arc::clone(&peak));
            peak.fetch_max(counted.fetch_add(1, Relaxed) + 1, Relaxed);
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(all.len().to_string().as_bytes());
                counted.fetch_sub(1, Relaxed);
            });
        }
    });
    (port, open, most)
}

/// A service with a connection cap.
fn capped(cap: u32) -> Service {
    Service {
        cap: Some(cap),
        ..Service::kernel(vip4())
    }
}

/// The row of an endpoint; of several versions the first.
fn row(mesh: &Mesh, address: SocketAddr) -> EndpointRow {
    let rows = mesh.view().endpoints();
    let found = rows.iter().find(|row| row.address == address);
    found
        .unwrap_or_else(|| panic!("no row for {address}: {rows:?}"))
        .clone()
}

/// Connects in turn and counts by what the server said; v4, v6 and v4-mapped in thirds.
const MANY: &str = r"
import collections, json, socket, sys
v4, v6, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
seen, errors = {'4': collections.Counter(), '6': collections.Counter()}, collections.Counter()
for n in range(count):
    kind = n % 3
    s = socket.socket(socket.AF_INET if kind == 0 else socket.AF_INET6, socket.SOCK_STREAM)
    s.settimeout(10)
    host = [v4, '::ffff:' + v4, v6][kind]
    try:
        s.connect((host, port))
        if s.getpeername()[:2] != (host, port):
            errors['peer ' + str(s.getpeername())] += 1
        seen['6' if kind == 2 else '4'][s.recv(64).decode().split()[0]] += 1
    except OSError as e:
        errors[str(e)] += 1
    s.close()
print(json.dumps({'seen': seen, 'errors': errors}))
";

/// SEMANTICS §5.9 for a deterministic split: with one sequence for the node every whole cycle is
/// exact, from whichever CPU, pod and family its connections come. `getpeername()` says what was
/// dialled for each of them.
#[test]
fn split_of_ten_thousand_connections_is_exact_over_pods_and_families() {
    let mut mesh = Mesh::new("dsplit");
    let pods: Vec<Pod> = ["a", "b", "c", "d"]
        .map(|name| mesh.live_pod(name, false).0)
        .into();
    let (one, two) = (mesh.bed.pod("one").unwrap(), mesh.bed.pod("two").unwrap());
    let first = serve_in(&mesh.bed, &one, "one");
    let second = serve_in(&mesh.bed, &two, "two");
    // 70 to 30 over ten slots; the IPv6 service reaches IPv4 endpoints by mapped addresses.
    let ends: [SocketAddr; 2] = [(one.v4, first).into(), (two.v4, second).into()];
    let slots = [0, 1, 0, 0, 1, 0, 0, 1, 0, 0].map(|at| ends[at]);
    let services = [
        Service::kernel(vip4()).to(&slots),
        Service::kernel(vip6()).to(&slots),
    ];
    mesh.agent().table(&services, &[]).unwrap();
    let (v4, v6, port) = (
        vip4().ip().to_string(),
        vip6().ip().to_string(),
        vip4().port().to_string(),
    );
    // 2,505 each: a third of them to IPv6, so that both services see whole cycles of ten.
    let arguments = [&*v4, &v6, &port, "2505"];
    let runs: Vec<Talker> = pods
        .iter()
        .map(|pod| Talker::start(&mesh.bed, pod, MANY, &arguments))
        .collect();
    let mut sums = [[0_u64; 2]; 2];
    for run in &runs {
        let told: serde_json::Value = serde_json::from_str(&run.next()).unwrap();
        assert_eq!(told["errors"], serde_json::json!({}));
        for (family, sum) in ["4", "6"].iter().zip(&mut sums) {
            for (name, sum) in ["one", "two"].iter().zip(sum) {
                *sum += told["seen"][*family][*name].as_u64().unwrap_or(0);
            }
        }
    }
    assert_eq!(sums, [[4_676, 2_004], [2_338, 1_002]]);
    assert_eq!(mesh.count("kernel_l4"), 10_020);
}

/// The application's view, family by family, with an IPv6 client that is sent to IPv4 and one that
/// is sent to IPv6.
#[test]
fn peer_name_is_what_was_dialled_in_each_family() {
    let mut mesh = Mesh::new("dpeer");
    let (pod, _) = mesh.live_pod("a", false);
    let end = mesh.bed.pod("end").unwrap();
    let port = serve_in(&mesh.bed, &end, "end");
    for v6_end in [IpAddr::from(end.v4), IpAddr::from(end.v6)] {
        let services = [
            Service::kernel(vip4()).to(&[(end.v4, port).into()]),
            Service::kernel(vip6()).to(&[(v6_end, port).into()]),
        ];
        mesh.agent().table(&services, &[]).unwrap();
        for (to, mapped) in [(vip4(), false), (vip4(), true), (vip6(), false)] {
            let how = Dial {
                mapped,
                ..Dial::default()
            };
            let seen = dial(&mesh.bed, &pod, to, how);
            assert_eq!((seen.errno, seen.peer()), (0, to), "{seen:?}");
            let own = if to == vip6() && v6_end.is_ipv6() {
                IpAddr::from(pod.v6)
            } else {
                pod.v4.into()
            };
            assert_eq!(seen.own(), own, "{seen:?}");
            assert_eq!(
                seen.data,
                format!("end {own}"),
                "the server sees the pod itself"
            );
        }
    }
}

/// Opens so many connections at the word, says how many it got and why not the others, and closes
/// them at the next word.
const HOLD: &str = r"
import collections, errno, json, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for line in sys.stdin:
    held, errors = [], collections.Counter()
    for n in range(count):
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        s.settimeout(10)
        try:
            s.connect((host, port))
            held.append(s)
        except OSError as e:
            errors[errno.errorcode.get(e.errno, '?')] += 1
            s.close()
    print(json.dumps({'held': len(held), 'errors': errors}), flush=True)
    sys.stdin.readline()
    for s in held:
        s.close()
    print('closed', flush=True)
";

/// SEMANTICS §5.4 for connections: cap 100, 200 attempts from 10 pods at once, exactly 100
/// established at the destination, the others ECONNREFUSED, nothing against the endpoint; and the
/// places come back.
#[test]
fn cap_is_exact_over_ten_pods_and_its_places_come_back() {
    let mut mesh = Mesh::new("dcap");
    let pods: Vec<Pod> = (0..10)
        .map(|n| mesh.live_pod(&format!("p{n}"), false).0)
        .collect();
    let end = mesh.bed.pod("end").unwrap();
    let (port, open, most) = serve_counting(&mesh.bed, &end);
    let address = (end.v4, port).into();
    let service = capped(100).to(&[address]);
    mesh.agent().table(&[service], &[]).unwrap();
    let (host, to) = (vip4().ip().to_string(), vip4().port().to_string());
    let mut runs: Vec<Talker> = pods
        .iter()
        .map(|pod| Talker::start(&mesh.bed, pod, HOLD, &[&host, &to, "20"]))
        .collect();
    for round in 1..=3 {
        runs.iter_mut().for_each(|run| run.say("go"));
        let (mut held, mut refused) = (0, 0);
        for run in &runs {
            let told: serde_json::Value = serde_json::from_str(&run.next()).unwrap();
            held += told["held"].as_u64().unwrap();
            refused += told["errors"]["ECONNREFUSED"].as_u64().unwrap_or(0);
        }
        assert_eq!((held, refused), (100, 100), "round {round}");
        mesh.eventually("the destination accepted all", || open.load(Relaxed) == 100);
        let seen = row(&mesh, address);
        assert_eq!((seen.cap_active, seen.cap_limit), (Some(100), Some(100)));
        assert_eq!((seen.active, seen.failed), (100, 0));
        assert_eq!(seen.cap_refused, Some(100 * round));
        runs.iter_mut().for_each(|run| run.say("close"));
        assert!(runs.iter().all(|run| run.next() == "closed"));
        mesh.eventually("every place is free", || {
            row(&mesh, address).cap_active == Some(0)
        });
        mesh.eventually("the destination is idle", || open.load(Relaxed) == 0);
    }
    assert_eq!(most.load(Relaxed), 100);
    assert_eq!(mesh.count("refuse_connection_cap"), 300);
}

/// Every way in which a socket may end, at random: see the names of the functions.
const ODD_ENDS: &str = r"
import errno, os, random, signal, socket, struct, sys, time
host, port, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
kept = []

def new():
    s = socket.socket(socket.AF_INET6 if rng.random() < .3 else socket.AF_INET, socket.SOCK_STREAM)
    s.settimeout(.3)
    return s

def connect(s):
    to = ('::ffff:' + host if s.family == socket.AF_INET6 else host, port)
    try:
        s.connect(to)
        return True
    except OSError:
        return False

def keep(s):
    kept.append(s)
    if len(kept) > 20:
        kept.pop(rng.randrange(len(kept))).close()

def plain():
    s = new(); connect(s); s.close()

def all_of_it():
    s = new()
    if connect(s):
        s.sendall(b'x' * rng.randrange(2000)); s.shutdown(socket.SHUT_WR)
        try:
            s.recv(64)
        except OSError:
            pass
    s.close()

def non_blocking_closed_at_once():
    s = new(); s.setblocking(False); connect(s); s.close()

def non_blocking_closed_later():
    s = new(); s.setblocking(False); connect(s); keep(s)

def again_on_the_same_socket():
    s = new()
    for _ in range(rng.randrange(2, 5)):
        connect(s)
    s.close()

def again_after_disconnect():
    s = new()
    for _ in range(3):
        connect(s)
        try:
            # AF_UNSPEC: Python has no such connect.
            import ctypes
            ctypes.CDLL(None).connect(s.fileno(), b'\0' * 16, 16)
        except OSError:
            pass
    s.close()

def reset():
    s = new(); connect(s)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()

def shut_down_while_connecting():
    s = new(); s.setblocking(False); connect(s)
    try:
        s.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    s.close()

def no_port_left():
    # Bound to the tuple that another connection has: EADDRINUSE or EADDRNOTAVAIL, after the hook.
    s = new()
    bound = None
    if connect(s):
        bound = new()
        if bound.family == s.family:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                bound.bind(s.getsockname())
                connect(bound)
            except OSError:
                pass
    if bound:
        (keep if rng.random() < .5 else socket.socket.close)(bound)
    s.close()

def fast_open_never_sent():
    s = new()
    s.setsockopt(socket.IPPROTO_TCP, 30, 1)
    connect(s)
    if rng.random() < .5:
        try:
            s.send(b'hello')
        except OSError:
            pass
    s.close()

def child_killed():
    child = os.fork()
    if child == 0:
        held = [new() for _ in range(3)]
        [connect(s) for s in held]
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)

def handed_to_a_child():
    s = new(); connect(s)
    child = os.fork()
    if child == 0:
        time.sleep(.001)
        os._exit(0)
    s.close(); os.waitpid(child, 0)

def listens_after_a_failure():
    s = new()
    if not connect(s):
        try:
            s.listen()
        except OSError:
            pass
    s.close()

ways = [f for name, f in list(globals().items())
        if callable(f) and getattr(f, '__module__', '') == '__main__' and f not in (new, connect, keep)]
rare = {child_killed, handed_to_a_child}
for n in range(count):
    way = rng.choice(ways)
    if way in rare and rng.random() < .9:
        way = plain
    way()
print('done', flush=True)
sys.stdin.readline()
for s in kept:
    s.close()
print('closed', flush=True)
sys.stdin.readline()
";

/// No place of a cap is ever lost or given back twice: 10,000 sockets that end in every odd way, to
/// an endpoint that answers, one that refuses, one that nobody routes, and one that is silent.
#[test]
fn no_place_of_a_cap_is_lost_or_given_back_twice() {
    let seed = std::process::id();
    println!("seed {seed}");
    let mut mesh = Mesh::new("dleak");
    let pods = ["a", "b"].map(|name| mesh.live_pod(name, false).0);
    let end = mesh.bed.pod("end").unwrap();
    let (port, open, _) = serve_counting(&mesh.bed, &end);
    let good: SocketAddr = (end.v4, port).into();
    let refusing: SocketAddr = (end.v4, 1).into();
    let unrouted: SocketAddr = "203.0.113.7:80".parse().unwrap();
    let silent: SocketAddr = "10.77.250.1:80".parse().unwrap();
    for pod in &pods {
        let script = "import subprocess\n\
            subprocess.run(['ip', 'route', 'add', 'unreachable', '203.0.113.0/24'], check=True)\n\
            subprocess.run('ip neigh add 10.77.250.1 lladdr 02:00:00:00:00:99 dev eth0'.split(), check=True)";
        python(&mesh.bed, pod, script, &[]);
    }
    // Answers mostly: a silent endpoint costs the client 300 ms of patience.
    let mut slots = vec![good; 40];
    slots[3] = refusing;
    slots[11] = unrouted;
    slots[17] = refusing;
    slots[23] = unrouted;
    slots[29] = silent;
    let service = capped(48).to(&slots);
    mesh.agent().table(&[service], &[]).unwrap();
    let (host, to) = (vip4().ip().to_string(), vip4().port().to_string());
    let mut runs: Vec<Talker> = (0..)
        .zip(&pods)
        .map(|(n, pod)| {
            let seed = (seed + n).to_string();
            Talker::start(&mesh.bed, pod, ODD_ENDS, &[&host, &to, &seed, "5000"])
        })
        .collect();
    assert!(runs.iter().all(|run| run.next() == "done"));
    let view = mesh.view();
    let held = || {
        let rows = view.endpoints();
        rows.iter().find_map(|row| row.cap_active).expect("a cap")
    };
    let now = held();
    assert!(now <= 48, "{now} places are held of 48");
    runs.iter_mut().for_each(|run| run.say("close"));
    assert!(runs.iter().all(|run| run.next() == "closed"));
    let freed = wait_until(Duration::from_secs(10), || held() == 0);
    assert!(freed, "{} places are held by nobody", held() as i64);
    let rows = view.endpoints();
    for row in &rows {
        assert_eq!(row.active, 0, "{row:?}");
    }
    let sum = |of: fn(&EndpointRow) -> u64| rows.iter().map(of).sum::<u64>();
    println!(
        "opened {} established {} failed {} abandoned {}",
        sum(|r| r.opened),
        sum(|r| r.established),
        sum(|r| r.failed),
        sum(|r| r.abandoned)
    );
    let (let_through, refused) = (mesh.count("kernel_l4"), mesh.count("refuse_connection_cap"));
    println!("let through {let_through}, refused for the cap {refused}");
    assert!(let_through + refused >= 10_000 && let_through >= 5_000 && refused > 0);
    assert!(
        sum(|r| r.opened) < mesh.count("kernel_l4"),
        "some never sent a SYN"
    );
    assert!(sum(|r| r.failed) > 0 && sum(|r| r.abandoned) > 0);
    mesh.eventually("the destination is idle", || open.load(Relaxed) == 0);
}

/// A connect that fails before its SYN holds its place no longer than its socket: the next connect
/// of the same socket gets it, and so does anybody once the socket is closed.
#[test]
fn place_of_a_connect_that_failed_before_its_syn_serves_the_next() {
    let mut mesh = Mesh::new("dpre");
    let (pod, _) = mesh.live_pod("a", false);
    let end = mesh.bed.pod("end").unwrap();
    let (port, ..) = serve_counting(&mesh.bed, &end);
    let good: SocketAddr = (end.v4, port).into();
    let unrouted: SocketAddr = "203.0.113.7:80".parse().unwrap();
    let script = "import subprocess\n\
        subprocess.run(['ip', 'route', 'add', 'unreachable', '203.0.113.0/24'], check=True)";
    python(&mesh.bed, &pod, script, &[]);
    // In turn: the first connect has no route, the second is answered.
    let service = capped(1).to(&[unrouted, good]);
    mesh.agent().table(&[service], &[]).unwrap();
    let program = r"
import errno, socket, sys
to = (sys.argv[1], int(sys.argv[2]))
def connect(s):
    try:
        s.connect(to)
        return 'good'
    except OSError as e:
        return errno.errorcode[e.errno]
s = socket.socket(); s.settimeout(5)
print(connect(s), connect(s), flush=True)
t = socket.socket(); t.settimeout(5)
print(connect(t), flush=True)
t.close()
s.shutdown(socket.SHUT_WR); s.recv(9); s.close()
sys.stdin.readline()
u = socket.socket(); u.settimeout(5)
print(connect(u), flush=True)
u.close()
sys.stdin.readline()
";
    let (host, to) = (vip4().ip().to_string(), vip4().port().to_string());
    let mut run = Talker::start(&mesh.bed, &pod, program, &[&host, &to]);
    assert_eq!(run.next(), "EHOSTUNREACH good");
    assert_eq!(run.next(), "ECONNREFUSED", "the cap is reached");
    mesh.eventually("the place is free", || {
        row(&mesh, good).cap_active == Some(0)
    });
    run.say("go on");
    let last = run.next();
    assert!(["good", "EHOSTUNREACH"].contains(&&*last), "{last}");
    mesh.eventually("the place is free", || {
        row(&mesh, good).cap_active == Some(0)
    });
    assert_eq!(
        row(&mesh, unrouted).opened,
        0,
        "no SYN, no word about the endpoint"
    );
    assert_eq!(row(&mesh, unrouted).failed, 0);
}

/// The hook sees the first subflow of a multipath TCP socket, and `sock_release` the socket above it.
///
/// Without it: an application that speaks multipath TCP uses a cap up by connects that fail.
#[test]
fn multipath_socket_whose_connect_failed_before_its_syn_keeps_no_place() {
    let mut mesh = Mesh::new("dmptcp");
    let (pod, _) = mesh.live_pod("a", false);
    let unrouted: SocketAddr = "203.0.113.7:80".parse().unwrap();
    let script = "import subprocess\n\
        subprocess.run(['ip', 'route', 'add', 'unreachable', '203.0.113.0/24'], check=True)";
    python(&mesh.bed, &pod, script, &[]);
    let service = capped(100).to(&[unrouted]);
    mesh.agent().table(&[service], &[]).unwrap();
    let program = r"
import collections, errno, socket, sys
seen = collections.Counter()
for n in range(20):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    for again in range(1 + n % 2):
        try:
            s.connect((sys.argv[1], int(sys.argv[2])))
        except OSError as e:
            seen[errno.errorcode[e.errno]] += 1
    s.close()
print(dict(seen))
";
    let (host, to) = (vip4().ip().to_string(), vip4().port().to_string());
    let seen = python(&mesh.bed, &pod, program, &[&host, &to]);
    assert_eq!(seen.trim(), "{'EHOSTUNREACH': 30}");
    mesh.eventually("every place is free", || {
        row(&mesh, unrouted).cap_active == Some(0)
    });
}

/// Without it: multipath TCP is the way past a cap, or a killed process keeps its places for ever.
#[test]
fn multipath_sockets_hold_a_place_each_until_they_are_closed() {
    let mut mesh = Mesh::new("dmpcap");
    let (pod, _) = mesh.live_pod("a", false);
    let end = mesh.bed.pod("end").unwrap();
    let (port, open, most) = serve_counting(&mesh.bed, &end);
    let good: SocketAddr = (end.v4, port).into();
    let service = capped(3).to(&[good]);
    mesh.agent().table(&[service], &[]).unwrap();
    let program = r"
import errno, socket, sys
held = []
for n in range(5):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.settimeout(5)
    try:
        s.connect((sys.argv[1], int(sys.argv[2])))
        held.append(s)
        print('good', flush=True)
    except OSError as e:
        print(errno.errorcode[e.errno], flush=True)
sys.stdin.readline()
held.pop().close()
print('closed', flush=True)
sys.stdin.readline()
";
    let (host, to) = (vip4().ip().to_string(), vip4().port().to_string());
    let mut run = Talker::start(&mesh.bed, &pod, program, &[&host, &to]);
    let seen: Vec<String> = (0..5).map(|_| run.next()).collect();
    assert_eq!(
        seen,
        ["good", "good", "good", "ECONNREFUSED", "ECONNREFUSED"]
    );
    assert_eq!(row(&mesh, good).cap_active, Some(3));
    run.say("close one");
    assert_eq!(run.next(), "closed");
    mesh.eventually("its place is free", || {
        row(&mesh, good).cap_active == Some(2)
    });
    drop(run);
    mesh.eventually("killed, every place is free", || {
        row(&mesh, good).cap_active == Some(0)
    });
    mesh.eventually("the destination is idle", || open.load(Relaxed) == 0);
    assert_eq!(most.load(Relaxed), 3);
}

/// `connect_whose_intent_can_not_be_stored...`, with a cap: the place is given back.
#[test]
fn place_is_given_back_when_the_intent_can_not_be_stored() {
    let mut mesh = Mesh::new("dstore");
    let (pod, _) = mesh.live_pod("a", true);
    let end = mesh.bed.pod("end").unwrap();
    let (port, ..) = serve_counting(&mesh.bed, &end);
    let good: SocketAddr = (end.v4, port).into();
    let service = capped(3).to(&[good]);
    mesh.agent().table(&[service], &[]).unwrap();
    let script = "open('/proc/sys/net/core/optmem_max', 'w').write('1')";
    python(&mesh.bed, &pod, script, &[]);
    for _ in 0..10 {
        let seen = dial(&mesh.bed, &pod, vip4(), Dial::default());
        assert_eq!(seen.errno, libc::ECONNREFUSED);
    }
    assert_eq!(mesh.count("refuse_state_failed"), 10);
    assert_eq!(mesh.count("refuse_connection_cap"), 0);
    assert_eq!(row(&mesh, good).cap_active, Some(0));
}

/// What is counted of a connection, by how it ended.
#[test]
fn endpoint_counters_say_how_connections_ended_and_what_they_carried() {
    let mut mesh = Mesh::new("dstat");
    let (pod, _) = mesh.live_pod("a", false);
    let end = mesh.bed.pod("end").unwrap();
    let (echo, ..) = serve_counting(&mesh.bed, &end);
    let first = serve_in(&mesh.bed, &end, "speaks");
    let silent: SocketAddr = "10.77.250.1:80".parse().unwrap();
    let script = "import subprocess\n\
        subprocess.run('ip neigh add 10.77.250.1 lladdr 02:00:00:00:00:99 dev eth0'.split(), check=True)";
    python(&mesh.bed, &pod, script, &[]);
    let on = |port: u16| SocketAddr::new(vip4().ip(), port);
    let ends: [SocketAddr; 4] = [
        (end.v4, echo).into(),
        (end.v4, first).into(),
        (end.v4, 1).into(),
        silent,
    ];
    let services: Vec<Service> = (81..)
        .zip(ends)
        .map(|(port, end)| Service::kernel(on(port)).to(&[end]))
        .collect();
    mesh.agent().table(&services, &[]).unwrap();
    let program = r"
import socket, sys
host = sys.argv[1]
def dial(port, limit=5):
    s = socket.socket(); s.settimeout(limit)
    try:
        s.connect((host, port))
    except OSError:
        pass
    return s
# The client ends first, 100,000 bytes out.
s = dial(81); s.sendall(b'x' * 100000); s.shutdown(socket.SHUT_WR)
assert s.recv(64) == b'100000' and s.recv(1) == b''
s.close()
# The server ends first.
s = dial(82); got = b''
while part := s.recv(64): got += part
s.close()
print(len(got), flush=True)
dial(83).close()
s = socket.socket(); s.setblocking(False)
try:
    s.connect((host, 84))
except BlockingIOError:
    pass
s.close()
# Longer than the second after which the SYN is sent again.
dial(84, 1.5).close()
";
    let host = vip4().ip().to_string();
    let told: u64 = python(&mesh.bed, &pod, program, &[&host])
        .trim()
        .parse()
        .unwrap();
    let numbers = |end: SocketAddr| {
        let row = row(&mesh, end);
        [
            row.opened,
            row.established,
            row.failed,
            row.abandoned,
            row.closed,
            row.bytes_out,
            row.bytes_in,
        ]
    };
    mesh.eventually("all have ended", || {
        ends.iter().all(|end| row(&mesh, *end).active == 0)
    });
    assert_eq!(numbers(ends[0]), [1, 1, 0, 0, 1, 100_000, 6]);
    assert_eq!(numbers(ends[1]), [1, 1, 0, 0, 1, 0, told]);
    assert_eq!(numbers(ends[2]), [1, 0, 1, 0, 0, 0, 0]);
    assert_eq!(numbers(ends[3]), [2, 0, 1, 1, 0, 0, 0]);
}

/// The kernel path needs no agent: neither to split nor to hold its caps, whatever the failure mode.
/// An agent that comes back finds every count and every place where it was.
#[test]
fn dead_agent_changes_nothing_and_the_next_one_finds_every_count() {
    let mut mesh = Mesh::new("ddead");
    let (open, _) = mesh.live_pod("open", false);
    let (closed, _) = mesh.live_pod("closed", true);
    let end = mesh.bed.pod("end").unwrap();
    let (port, ..) = serve_counting(&mesh.bed, &end);
    let address: SocketAddr = (end.v4, port).into();
    let services = [capped(8).to(&[address])];
    mesh.agent().table(&services, &[]).unwrap();
    let (host, to) = (vip4().ip().to_string(), vip4().port().to_string());
    let arguments = [&*host, &to, "3"];
    let mut before = Talker::start(&mesh.bed, &open, HOLD, &arguments);
    before.say("go");
    assert!(before.next().contains("\"held\": 3"));
    mesh.agent = None;
    let view = mesh.view();
    mesh.eventually("the heartbeat is stale", || {
        let age = view.heartbeat_age(mesh_user::clock::now());
        age.is_some_and(|age| age.as_millis() > 1_000)
    });
    let mut dead = Talker::start(&mesh.bed, &closed, HOLD, &[&host, &to, "7"]);
    dead.say("go");
    assert_eq!(dead.next(), r#"{"held": 5, "errors": {"ECONNREFUSED": 2}}"#);
    mesh.start_agent(2, false).expect("the agent starts again");
    mesh.agent().table(&services, &[]).unwrap();
    let seen = row(&mesh, address);
    assert_eq!((seen.opened, seen.active), (8, 8), "{seen:?}");
    assert_eq!((seen.cap_active, seen.cap_refused), (Some(8), Some(2)));
    for run in [&mut before, &mut dead] {
        run.say("close");
        assert_eq!(run.next(), "closed");
    }
    mesh.eventually("every place is free", || {
        let seen = row(&mesh, address);
        (seen.cap_active, seen.active) == (Some(0), 0)
    });
}

/// Datagrams are none of the kernel path's business, also where their port is that of a service.
#[test]
fn datagrams_to_a_service_are_untouched() {
    let mut mesh = Mesh::new("dudp");
    let (pod, _) = mesh.live_pod("a", false);
    let end = mesh.bed.pod("end").unwrap();
    let port = serve_in(&mesh.bed, &end, "end");
    let service = Service::kernel(vip4()).to(&[(end.v4, port).into()]);
    mesh.agent().table(&[service], &[]).unwrap();
    let program = "import socket, sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.connect((sys.argv[1], int(sys.argv[2])))\n\
        print(*s.getpeername())";
    let (host, to) = (vip4().ip().to_string(), vip4().port().to_string());
    let told = python(&mesh.bed, &pod, program, &[&host, &to]);
    assert_eq!(told.trim(), format!("{host} {to}"));
    assert_eq!(mesh.count("kernel_l4"), 0);
}

/// Without it: kernels before 5.12 refuse the object. Theirs is made by the loader; here it is at
/// least taken by this kernel.
#[test]
fn object_without_fetching_atomics_is_taken_by_the_verifier() {
    use aya::programs::Program;

    // This one has them, and says so; without, the tests above would run without them too.
    let checks = mesh_user::kernel::probe::check();
    let fetching = checks.iter().find(|check| check.name == "fetching atomics");
    assert!(fetching.is_some_and(|check| check.ok), "{fetching:?}");
    let path = std::env::var_os("MESH_BPF_OBJECT").map_or_else(
        || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh.o"),
        std::path::PathBuf::from,
    );
    let bytes = std::fs::read(path).expect("cargo xtask build-ebpf has made it");
    let (patched, found) = mesh_user::kernel::atomics::without_fetch(&bytes);
    assert!(found >= 4, "{found}");
    let mut object = aya::EbpfLoader::new()
        .btf(None)
        .load(&patched)
        .expect("maps and relocations");
    for name in ["connect4", "connect6"] {
        let Some(Program::CgroupSockAddr(program)) = object.program_mut(name) else {
            panic!("no program {name}");
        };
        program
            .load()
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}
