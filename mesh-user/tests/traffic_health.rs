//! Active health checks with the whole agent, on the kernel's path and through the proxy.

mod scene;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use mesh_user::testbed::Pod;
use scene::{Scene, eventually, json, live, told, with_service};
use serde_json::Value;

const VIP: &str = "10.96.0.20";

/// Says its name to whoever connects, until it is stopped; then nobody listens there any more.
struct Server {
    address: SocketAddr,
    name: &'static str,
    pod: Pod,
    running: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Server {
    fn start(scene: &Scene, name: &'static str) -> Self {
        let found = scene.bed.pods().iter().find(|pod| pod.name == name);
        let pod = found.expect("the pod").clone();
        let mut server = Self {
            address: (pod.v4, 0).into(),
            name,
            pod,
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
                        let _ = stream.read(&mut [0]);
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

struct Checked {
    scene: Scene,
    servers: Vec<Server>,
}

impl Checked {
    fn start(name: &str, path: &str, policy: &str) -> Self {
        let scene = scene::build(name);
        let names = ["web-v1-a", "web-v1-b", "web-v2"];
        let servers: Vec<Server> = names
            .iter()
            .map(|name| Server::start(&scene, name))
            .collect();
        let mut checked = Self { scene, servers };
        let text = checked.text(path, policy);
        checked.scene.start_with(&text).expect("the agent starts");
        live(&checked.scene, 2);
        checked
    }

    fn text(&self, path: &str, policy: &str) -> String {
        let mut service = format!(
            "  - name: checked\n    addresses: [{VIP}]\n    \
             ports: [{{name: raw, number: 70, protocol: tcp, path: {path}}}]\n    endpoints:\n"
        );
        for server in &self.servers {
            let (ip, port) = (server.address.ip(), server.address.port());
            service.push_str(&format!(
                "      - {{address: {ip}, ports: {{raw: {port}}}}}\n"
            ));
        }
        with_service(&self.scene, &service, policy)
    }

    fn row(&self, verb: &[&str], server: usize) -> Value {
        let address = self.servers[server].address.to_string();
        let rows = json(&self.scene, verb);
        let items = rows["items"].as_array().expect("a list");
        let row = items.iter().find(|row| row["address"] == *address);
        row.cloned().unwrap_or_default()
    }

    fn state(&self, server: usize) -> Value {
        self.row(&["config", "endpoints", "-o", "json"], server)["state"].clone()
    }

    fn slots(&self, server: usize) -> Value {
        self.row(&["bpf", "endpoints", "list", "-o", "json"], server)["slots"].clone()
    }

    /// Who answered so many connections in turn, and what failed.
    fn many(&self, count: u32) -> Value {
        const MANY: &str = r"
import collections
seen, errors = collections.Counter(), collections.Counter()
for n in range(int(sys.argv[2])):
    try:
        s = dial(sys.argv[1], 70)
        seen[s.recv(64).decode()] += 1
        s.close()
    except OSError as e:
        errors[str(e)] += 1
tell({'seen': seen, 'errors': errors})
";
        told(
            &self.scene,
            &self.scene.client,
            MANY,
            &[VIP, &count.to_string()],
        )
    }
}

const POLICY: &str = "policies:\n  - service: checked\n    health-checks:\n      \
     {tcp: {expect: web-}, interval: 50ms, no-traffic-interval: 50ms, timeout: 1s, \
     unhealthy-threshold: 2, healthy-threshold: 2}\n";

/// Without a connection of any client: the checks alone take it out, and no client ever meets it.
#[test]
fn sick_endpoint_leaves_the_kernels_split_and_comes_back() {
    let mut checked = Checked::start("t-hkernel", "kernel", POLICY);
    eventually("all are asked", || {
        let row = |server| checked.row(&["config", "endpoints", "-o", "json"], server);
        (0..3).all(|server| row(server)["check"] == "ok")
    });
    let seen = checked.many(30);
    assert_eq!(seen["errors"], serde_json::json!({}), "{seen}");
    assert_eq!(seen["seen"]["web-v1-b"], 10, "{seen}");
    checked.servers[1].stop();
    eventually("it is found sick", || checked.state(1) == "unhealthy");
    eventually("it has left the split", || checked.slots(1) == 0);
    let seen = checked.many(30);
    assert_eq!(seen["errors"], serde_json::json!({}), "{seen}");
    assert_eq!(
        seen["seen"],
        serde_json::json!({"web-v1-a": 15, "web-v2": 15})
    );
    checked.servers[1].serve(&checked.scene);
    eventually("it is back", || checked.state(1) == "ready");
    eventually("it has slots again", || checked.slots(1) != 0);
    let seen = checked.many(30);
    assert_eq!(seen["seen"]["web-v1-b"], 10, "{seen}");
    // Two of three down is less than half: panic, all are used, as through the proxy.
    checked.servers[0].stop();
    checked.servers[1].stop();
    eventually("both are found sick", || {
        checked.state(0) == "unhealthy" && checked.state(1) == "unhealthy"
    });
    eventually("all have slots", || {
        (0..3).all(|server| checked.slots(server) != 0)
    });
    let Checked { scene, servers } = checked;
    drop(servers);
    scene.tear_down().unwrap();
}

#[test]
fn sick_endpoint_is_left_out_by_the_proxy_without_a_reload() {
    let mut checked = Checked::start("t-hproxy", "proxy", POLICY);
    checked.servers[2].stop();
    eventually("it is found sick", || checked.state(2) == "unhealthy");
    let seen = checked.many(40);
    assert_eq!(seen["errors"], serde_json::json!({}), "{seen}");
    assert!(seen["seen"]["web-v2"].is_null(), "{seen}");
    let row = checked.row(&["config", "endpoints", "-o", "json"], 2);
    assert_eq!(row["check"], "no connection");
    checked.servers[2].serve(&checked.scene);
    eventually("it is back", || checked.state(2) == "ready");
    eventually("it serves", || checked.many(20)["seen"]["web-v2"].is_u64());
    let Checked { scene, servers } = checked;
    drop(servers);
    scene.tear_down().unwrap();
}
