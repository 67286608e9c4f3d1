//! The kernel L4 path with the whole agent: the choice of the path, live changes, ejection, and what
//! it shows of connections that it never sees.

mod scene;

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use mesh_user::{
    admin::WorkloadState,
    testbed::{Pod, wait_until},
};
use scene::{Scene, Talker, eventually, json, kernel_count, live, told, with_service};
use serde_json::Value;

const VIP4: &str = "10.96.0.20";
const VIP6: &str = "fd00:96::20";

/// Says its name to whoever connects, until it is stopped; then nobody listens there any more.
struct Server {
    address: SocketAddr,
    version: &'static str,
    name: &'static str,
    pod: Pod,
    running: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Server {
    fn start(scene: &Scene, pod: &'static str, version: &'static str) -> Self {
        let found = scene.bed.pods().iter().find(|p| p.name == pod);
        let found = found.expect("the pod").clone();
        let mut server = Self {
            address: (found.v4, 0).into(),
            version,
            name: pod,
            pod: found,
            running: None,
        };
        server.serve(scene);
        server
    }

    fn serve(&mut self, scene: &Scene) {
        let address = self.address;
        let listener = scene.bed.in_netns(&self.pod, move || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            socket.set_reuse_address(true).expect("an option");
            socket.bind(&address.into()).expect("bind");
            socket.listen(1_024).expect("listen");
            TcpListener::from(socket)
        });
        let listener = listener.expect("netns");
        self.address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("a mode");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), self.name);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let mut polled = [nix::poll::PollFd::new(
                    std::os::fd::AsFd::as_fd(&listener),
                    nix::poll::PollFlags::POLLIN,
                )];
                let _ = nix::poll::poll(&mut polled, 20_u8);
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(name.as_bytes());
                    std::thread::spawn(move || {
                        // Until the client ends.
                        let _ = stream.set_nonblocking(false);
                        let _ = std::io::Read::read(&mut stream, &mut [0]);
                    });
                }
            }
        });
        self.running = Some((stop, thread));
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.store(true, Relaxed);
            thread.join().expect("the server ends");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A scene whose service `direct` has one server for each pod.
struct Direct {
    scene: Scene,
    servers: Vec<Server>,
}

impl Direct {
    /// Without an agent yet.
    fn build(name: &str) -> Self {
        let scene = scene::build(name);
        let pods = [("web-v1-a", "v1"), ("web-v1-b", "v1"), ("web-v2", "v2")];
        let servers = pods
            .iter()
            .map(|(pod, version)| Server::start(&scene, pod, version))
            .collect();
        Self { scene, servers }
    }

    fn start(name: &str, rules_and_policies: &str) -> Self {
        let mut direct = Self::build(name);
        let text = direct.text("tcp", "auto", rules_and_policies);
        direct.scene.start_with(&text).expect("the agent starts");
        live(&direct.scene, 2);
        direct
    }

    fn text(&self, protocol: &str, path: &str, rules_and_policies: &str) -> String {
        let mut service = format!(
            "  - name: direct\n    addresses: [{VIP4}, \"{VIP6}\"]\n    \
             ports: [{{name: raw, number: 70, protocol: {protocol}, path: {path}}}]\n    \
             versions: {{v1: {{version: v1}}, v2: {{version: v2}}}}\n    endpoints:\n"
        );
        for server in &self.servers {
            service.push_str(&format!(
                "      - {{address: {}, ports: {{raw: {}}}, tags: {{version: {}}}}}\n",
                server.address.ip(),
                server.address.port(),
                server.version
            ));
        }
        with_service(&self.scene, &service, rules_and_policies)
    }

    fn put(&self, rules_and_policies: &str) {
        let text = self.text("tcp", "auto", rules_and_policies);
        self.scene.put_in_force(&text).expect("it is taken");
    }

    /// Path and reason of the port.
    fn path(&self) -> (String, String) {
        let rows = json(&self.scene, &["config", "services", "-o", "json"]);
        let items = rows["items"].as_array().expect("a list");
        let row = items.iter().find(|row| row["service"] == "direct");
        let row = row.expect("the service");
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        (text("path"), text("reason"))
    }

    /// `mesh bpf endpoints list` of the service, by the endpoint's address.
    fn endpoints(&self) -> Vec<Value> {
        let rows = json(&self.scene, &["bpf", "endpoints", "list", "-o", "json"]);
        let items = rows["items"].as_array().expect("a list").clone();
        let own = |row: &Value| row["service"] == "default/direct:70";
        items.into_iter().filter(own).collect()
    }

    /// One number of a server's rows, over its versions.
    fn number(&self, server: usize, field: &str) -> u64 {
        let address = self.servers[server].address.to_string();
        let rows = self.endpoints();
        let of = rows.iter().filter(|row| row["address"] == *address);
        of.map(|row| row[field].as_u64().unwrap_or(0)).sum()
    }

    fn state(&self, server: usize) -> String {
        let address = self.servers[server].address.to_string();
        let rows = json(&self.scene, &["config", "endpoints", "-o", "json"]);
        let items = rows["items"].as_array().expect("a list");
        let row = items.iter().find(|row| row["address"] == *address);
        row.expect("the endpoint")["state"]
            .as_str()
            .expect("a state")
            .to_owned()
    }

    fn tear_down(self) {
        drop(self.servers);
        self.scene.tear_down().unwrap();
    }
}

const RULE: &str = "rules:\n  - {name: split, service: direct, \
     route: [{version: v1, weight: 70}, {version: v2, weight: 30}]}\n";

/// So many connections in turn, in all three families; who answered, and what failed.
const MANY: &str = r"
import collections
v4, v6, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen, errors = collections.Counter(), collections.Counter()
for n in range(count):
    try:
        s = dial(v6 if n % 3 == 2 else v4, 70, mapped=n % 3 == 1)
        asked = s.getpeername()[0].removeprefix('::ffff:')
        if asked != (v6 if n % 3 == 2 else v4):
            errors[asked] += 1
        seen[s.recv(64).decode()] += 1
        s.close()
    except OSError as e:
        errors[str(e)] += 1
tell({'seen': seen, 'errors': errors})
";

fn many(direct: &Direct, pod: &Pod, count: u32) -> Value {
    told(&direct.scene, pod, MANY, &[VIP4, VIP6, &count.to_string()])
}

/// SEMANTICS §5.9 (a): over whole cycles the deterministic split is exact, over pods, CPUs and
/// families together. Every connection goes past the proxy.
#[test]
fn split_of_ten_thousand_connections_is_exact_and_no_byte_meets_the_proxy() {
    let direct = Direct::start("t-dsplit", RULE);
    assert_eq!(
        direct.path(),
        ("kernel".into(), "tcp, and nothing needs the proxy".into())
    );
    let arguments = [VIP4, VIP6, "5000"];
    let runs = [&direct.scene.client, &direct.scene.tester]
        .map(|pod| Talker::start(&direct.scene, pod, MANY, &arguments));
    let mut sums = [0_u64; 3];
    for run in &runs {
        let mut run = run.next();
        assert_eq!(run["errors"].take(), serde_json::json!({}));
        for (server, sum) in direct.servers.iter().zip(&mut sums) {
            *sum += run["seen"][server.name].as_u64().unwrap_or(0);
        }
    }
    // 70 % over two, 30 % on one: 20 slots.
    assert_eq!(sums, [3_500, 3_500, 3_000]);
    assert_eq!(kernel_count(&direct.scene, "kernel_l4"), 10_000);
    assert_eq!(kernel_count(&direct.scene, "captured"), 0);
    for (server, sum) in (0..).zip(sums) {
        eventually("all are counted", || direct.number(server, "closed") == sum);
        assert_eq!(direct.number(server, "opened"), sum);
        // The client closed before the server ended: a FIN may count as a byte.
        let bytes = sum * direct.servers[server].name.len() as u64;
        let counted = direct.number(server, "bytes_in");
        assert!(
            (bytes..=bytes + sum).contains(&counted),
            "{counted} of {bytes}"
        );
        assert_eq!(direct.number(server, "failed"), 0);
    }
    direct.tear_down();
}

/// Piecewise expectation when weights change, with the numbers of the endpoints staying: counters go
/// on, and a connection that stands is not touched.
#[test]
fn changed_weights_hold_for_the_next_connection_and_keep_counters_and_connections() {
    let direct = Direct::start("t-dweight", RULE);
    let pod = &direct.scene.client;
    let mut held = Talker::start(&direct.scene, pod, HELD, &[VIP4]);
    let first = held.next();
    let seen = many(&direct, pod, 99);
    assert_eq!(seen["errors"], serde_json::json!({}));
    assert_eq!(seen["seen"]["web-v2"], 30);
    let before: Vec<u64> = (0..3)
        .map(|server| direct.number(server, "opened"))
        .collect();
    direct.put(
        "rules:\n  - {name: split, service: direct, \
         route: [{version: v1, weight: 0}, {version: v2, weight: 1}]}\n",
    );
    let seen = many(&direct, pod, 50);
    assert_eq!(seen["seen"], serde_json::json!({"web-v2": 50}));
    let after: Vec<u64> = (0..3)
        .map(|server| direct.number(server, "opened"))
        .collect();
    assert_eq!(after, [before[0], before[1], before[2] + 50]);
    direct.put(
        "rules:\n  - {name: split, service: direct, \
         route: [{version: v1, weight: 50}, {version: v2, weight: 50}]}\n",
    );
    let seen = many(&direct, pod, 100);
    assert_eq!(seen["seen"]["web-v2"], 50, "{seen}");
    held.say("still there?");
    assert_eq!(held.next(), serde_json::json!("open"), "{first}");
    direct.tear_down();
}

/// Holds one connection; says whether it is open when it is asked.
const HELD: &str = r"
s = dial(sys.argv[1], 70)
tell(s.recv(64).decode())
for line in sys.stdin:
    s.setblocking(False)
    try:
        tell('open' if s.recv(1) else 'ended')
    except BlockingIOError:
        tell('open')
    except OSError as e:
        tell(str(e))
";

/// The kernel counts, the agent ejects: no connection goes to a dead endpoint any more, and it comes
/// back at the sweep after its time.
#[test]
fn dead_endpoint_is_ejected_by_what_the_kernel_counted_and_returns() {
    let mut direct = Direct::start(
        "t-deject",
        &format!(
            "{RULE}policies:\n  - service: direct\n    breaker: {{ejection: {{consecutive-5xx: 3, \
             interval: 1s, base: 2s, max-percent: 50}}}}\n"
        ),
    );
    assert_eq!(direct.path().0, "kernel");
    direct.servers[1].stop();
    let mut failed = 0;
    let ejected = wait_until(Duration::from_secs(10), || {
        let seen = many(&direct, &direct.scene.client, 20);
        failed += seen["errors"]["[Errno 111] Connection refused"]
            .as_u64()
            .unwrap_or(0);
        direct.state(1) == "ejected"
    });
    assert!(ejected, "it is {} after {failed} failures", direct.state(1));
    assert!(failed >= 3, "{failed}");
    eventually("it has left the split", || {
        direct.number(1, "slots") == 0 && direct.endpoints().iter().any(|r| r["state"] == "out")
    });
    let seen = many(&direct, &direct.scene.client, 60);
    assert_eq!(seen["errors"], serde_json::json!({}), "{seen}");
    assert_eq!(seen["seen"]["web-v2"], 18, "v1's share stays v1's: {seen}");
    let failures = direct.number(1, "failed");
    assert!(failures >= 3);
    let address = direct.servers[1].address;
    direct.servers[1].serve(&direct.scene);
    assert_eq!(direct.servers[1].address, address);
    eventually("it is back", || direct.state(1) == "ready");
    eventually("it has slots again", || direct.number(1, "slots") > 0);
    let seen = many(&direct, &direct.scene.client, 40);
    assert_eq!(seen["seen"]["web-v1-b"], 14, "{seen}");
    assert_eq!(direct.number(1, "failed"), failures, "its counters stayed");
    direct.tear_down();
}

/// The cap of a policy is the kernel's: exact over both pods, and it can be raised under load.
#[test]
fn connection_cap_of_a_policy_is_exact_and_follows_its_change() {
    let capped = |cap: u32| {
        format!(
            "rules:\n  - {{service: direct, route: [{{version: v1}}]}}\n\
             policies:\n  - {{service: direct, version: v1, breaker: {{max-connections: {cap}}}}}\n"
        )
    };
    let direct = Direct::start("t-dcap", &capped(10));
    assert_eq!(direct.path().0, "kernel");
    let program = r"
held, refused = [], 0
for n in range(20):
    try:
        held.append(dial(sys.argv[1], 70))
    except ConnectionRefusedError:
        refused += 1
tell([len(held), refused])
sys.stdin.readline()
";
    let run = |pod: &Pod| Talker::start(&direct.scene, pod, program, &[VIP4]);
    let sum = |runs: &[Talker]| -> (u64, u64) {
        runs.iter().map(Talker::next).fold((0, 0), |sum, told| {
            let number = |at: usize| told[at].as_u64().unwrap();
            (sum.0 + number(0), sum.1 + number(1))
        })
    };
    let runs = [run(&direct.scene.client), run(&direct.scene.tester)];
    assert_eq!(sum(&runs), (10, 30));
    assert_eq!(kernel_count(&direct.scene, "refuse_connection_cap"), 30);
    direct.put(&capped(15));
    let more = [run(&direct.scene.client)];
    assert_eq!(sum(&more), (5, 15));
    let rows = direct.endpoints();
    assert!(
        rows.iter()
            .filter(|row| row["version"] == "v1")
            .all(|row| row["cap_active"] == 15 && row["cap_limit"] == 15),
        "{rows:?}"
    );
    drop((runs, more));
    eventually("the places are free", || {
        direct.endpoints().iter().all(|row| row["cap_active"] != 15)
            && direct.number(0, "cap_active") == 0
    });
    direct.tear_down();
}

/// One more thing that needs the proxy moves the service for the next connection, and back; no
/// connection fails on the way, and none that stands is dropped.
#[test]
fn service_moves_to_the_proxy_and_back_under_load_without_a_failed_connection() {
    let direct = Direct::start("t-dmove", RULE);
    let program = r"
import select
errors, good = [], 0
held = dial(sys.argv[1], 70)
held.recv(64)
tell('started')
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        s = dial(sys.argv[1], 70)
        if s.recv(64).startswith(b'web-'):
            good += 1
        else:
            errors.append('no greeting')
        s.close()
    except OSError as e:
        errors.append(str(e))
held.setblocking(False)
try:
    state = 'open' if held.recv(1) else 'ended'
except BlockingIOError:
    state = 'open'
except OSError as e:
    state = str(e)
tell({'good': good, 'errors': errors[:5], 'held': state})
";
    let mut runs = [&direct.scene.client, &direct.scene.tester]
        .map(|pod| Talker::start(&direct.scene, pod, program, &[VIP4]));
    for run in &runs {
        assert_eq!(run.next(), "started");
    }
    let more = [
        (
            "  - {name: testers, service: direct, precedence: 9, \
             match: [{source: {tags: {app: tester}}}], route: [{version: v2}]}\n",
            "rule \"testers\" matches the source",
        ),
        (
            "policies:\n  - {service: direct, timeout: {idle: 1h}}\n",
            "policy: timeout",
        ),
    ];
    for (text, reason) in more {
        let captured = kernel_count(&direct.scene, "captured");
        direct.put(&format!("{RULE}{text}"));
        assert_eq!(direct.path(), ("proxy".into(), reason.into()));
        eventually("the proxy serves", || {
            kernel_count(&direct.scene, "captured") > captured + 20
        });
        direct.put(RULE);
        assert_eq!(direct.path().0, "kernel");
        let by_kernel = kernel_count(&direct.scene, "kernel_l4");
        eventually("the kernel serves", || {
            kernel_count(&direct.scene, "kernel_l4") > by_kernel + 20
        });
    }
    for run in &mut runs {
        run.say("stop");
        let told = run.next();
        assert_eq!(told["errors"], serde_json::json!([]), "{told}");
        assert!(told["good"].as_u64().unwrap() > 40, "{told}");
        assert_eq!(told["held"], "open", "{told}");
    }
    direct.tear_down();
}

/// The choice of the path, by port: what it is and why, and a port that insists where it can't.
#[test]
fn path_follows_protocol_field_and_what_rules_need() {
    let mut direct = Direct::build("t-dpath");
    let http = "rules:\n  - {name: split, service: direct, \
         route: [{version: v1, weight: 70}, {version: v2, weight: 30}]}\n";
    let header = "rules:\n  - {name: beta, service: direct, match: [{headers: {x-user: beta}}], \
         route: [{version: v2}]}\n";
    let text = direct.text("http", "auto", http);
    direct.scene.start_with(&text).expect("the agent starts");
    let expected = |path: &str, reason: &str| (path.to_owned(), reason.to_owned());
    assert_eq!(
        direct.path(),
        expected("proxy", "rule \"split\" splits by weight")
    );
    for (protocol, path, rules, wanted) in [
        ("http", "kernel", http, expected("kernel", "path: kernel")),
        (
            "http",
            "prefer-kernel",
            http,
            expected("kernel", "path: prefer-kernel"),
        ),
        (
            "http",
            "prefer-kernel",
            header,
            expected("proxy", "rule \"beta\" matches on HTTP"),
        ),
        ("tcp", "proxy", http, expected("proxy", "path: proxy")),
        (
            "auto",
            "auto",
            "rules: []",
            expected("proxy", "nobody else routes the address"),
        ),
        (
            "tcp",
            "auto",
            "rules: []",
            expected("kernel", "tcp, and nothing needs the proxy"),
        ),
        (
            "tcp",
            "auto",
            "policies: [{service: direct, balance: round-robin}]",
            expected("kernel", "tcp, and nothing needs the proxy"),
        ),
        (
            "tcp",
            "auto",
            "policies: [{service: direct, balance: least-request}]",
            expected("proxy", "policy: balance"),
        ),
        (
            "tcp",
            "auto",
            "policies: [{service: direct, rate-limit: [{name: l, rate: 5/s}]}]",
            expected("proxy", "policy: rate-limit"),
        ),
    ] {
        let text = direct.text(protocol, path, rules);
        direct.scene.put_in_force(&text).expect("it is taken");
        assert_eq!(direct.path(), wanted, "{protocol} {path} {rules}");
    }
    let refused = direct
        .scene
        .put_in_force(&direct.text("http", "kernel", header));
    let message = format!("{:#}", refused.expect_err("it insists"));
    assert!(
        message.contains("needs-proxy")
            && message.contains("rule \"beta\" matches on HTTP, and port `raw`"),
        "{message}"
    );
    direct.tear_down();
}

/// The agent is killed: the kernel path goes on. It starts again: counters, flows and split are
/// where they were, and it still shows which version a connection went to.
#[test]
fn killed_agent_stops_nothing_and_the_next_shows_the_same_connections() {
    let mut direct = Direct::start("t-dkill", RULE);
    let held = Talker::start(&direct.scene, &direct.scene.client, HELD, &[VIP4]);
    let name = held.next();
    direct.scene.kill_agent().unwrap();
    eventually("the heartbeat is stale", || {
        json(&direct.scene, &["bpf", "redirect", "list", "-o", "json"])["items"]
            .as_array()
            .is_some_and(|rows| rows.iter().all(|row| row["state"] == "agent-gone"))
    });
    let seen = many(&direct, &direct.scene.tester, 100);
    assert_eq!(seen["errors"], serde_json::json!({}));
    assert_eq!(seen["seen"]["web-v2"], 30, "{seen}");
    eventually("all are counted", || {
        (0..3)
            .map(|server| direct.number(server, "closed"))
            .sum::<u64>()
            == 100
    });
    let before: Vec<u64> = (0..3)
        .map(|server| direct.number(server, "opened"))
        .collect();
    direct.scene.start_agent().unwrap();
    eventually("both are live", || {
        direct.scene.status().is_ok_and(|status| {
            let live = |w: &&mesh_user::admin::WorkloadStatus| w.state == WorkloadState::Live;
            status.workloads.iter().filter(live).count() == 2
        })
    });
    let after: Vec<u64> = (0..3)
        .map(|server| direct.number(server, "opened"))
        .collect();
    assert_eq!(before, after);
    let conns = json(&direct.scene, &["bpf", "conns", "list", "-o", "json"]);
    let conns = conns["items"].as_array().unwrap().clone();
    let own = conns.iter().find(|row| row["verdict"] == "kernel");
    let own = own.unwrap_or_else(|| panic!("the held connection: {conns:?}"));
    let server = direct.servers.iter().find(|server| name == server.name);
    let server = server.expect("one of ours");
    assert_eq!(own["version"], server.version);
    assert_eq!(own["destination"], server.address.to_string());
    assert_eq!(own["asked"], format!("{VIP4}:70"));
    assert_eq!(own["state"], "established");
    let services = json(&direct.scene, &["bpf", "services", "list", "-o", "json"]);
    let services = services["items"].as_array().unwrap().clone();
    let row = services
        .iter()
        .find(|row| row["address"] == format!("{VIP4}:70"));
    let row = row.expect("the service");
    assert_eq!(
        (&row["service"], &row["slots"]),
        (&"default/direct:70".into(), &20.into())
    );
    assert_eq!(row["decision"], "kernel");
    drop(held);
    direct.tear_down();
}
