use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    clock::MonoNanos,
    config::{AccessLog, LogFilter, LogFormat},
    telemetry::{RequestRecord, Spoken},
};

const MODEL: &str = r#"
apiVersion: mesh/v1alpha1
kind: MeshConfig
services:
  - name: reviews
    hostnames: [reviews]
    addresses: [10.96.0.10, "fd00:96::10"]
    ports: [{name: http, number: 80, target: 9080, protocol: http}]
    versions: {v1: {version: v1}, v2: {version: v2}}
    endpoints:
      - {address: 10.244.1.5, tags: {version: v1}, identity: "spiffe://x/reviews"}
      - {address: 10.244.2.6, tags: {version: v2}}
rules:
  - service: reviews
    precedence: 10
    match: [{headers: {x-user: {exact: beta}}}]
    headers: {request: {set: {x-beta: "1"}}}
    route: [{version: v2}]
  - service: reviews
    match: [{path: {prefix: /api}}]
    route: [{version: v1}]
    timeout: {request: 5s}
workloads:
  - {name: client, netns: /run/netns/client}
"#;

/// An agent that does nothing but remember.
#[derive(Debug)]
pub(crate) struct FakeAgent {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) config: PathBuf,
    pub(crate) ready: AtomicBool,
    pub(crate) alive: AtomicBool,
    pub(crate) redirect: AtomicBool,
    pub(crate) reload_fails: AtomicBool,
    pub(crate) reloads: AtomicUsize,
    pub(crate) samples: AtomicUsize,
}

impl FakeAgent {
    pub(crate) fn new() -> Arc<Self> {
        let config = crate::config::parse("test.yaml", MODEL).expect("the model is valid");
        let snapshot = Snapshot::compile(Arc::new(config.model), None, MonoNanos(0));
        Arc::new(Self {
            snapshot: Arc::new(snapshot),
            config: "/etc/mesh/mesh.yaml".into(),
            ready: true.into(),
            alive: true.into(),
            redirect: true.into(),
            reload_fails: false.into(),
            reloads: 0.into(),
            samples: 0.into(),
        })
    }
}

impl Agent for FakeAgent {
    fn status(&self) -> Status {
        let ready = self.ready.load(SeqCst);
        let condition = |name: &str, ok, detail: &str| Condition {
            name: name.into(),
            ok,
            detail: detail.into(),
        };
        let workload = |key: &str, pod_id, state, error: Option<&str>| WorkloadStatus {
            key: key.into(),
            pod_id,
            state,
            error: error.map(Into::into),
        };
        Status {
            instance: "test".into(),
            version: "0.1.0".into(),
            pid: 7,
            started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            conditions: vec![
                condition("programs", true, "6 links"),
                condition(
                    "model",
                    ready,
                    if ready { "generation 1" } else { "none yet" },
                ),
            ],
            generation: 1,
            config: ConfigStatus {
                path: self.config.display().to_string(),
                last_success: ready
                    .then_some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_001)),
                last_error: (!ready).then(|| LastError {
                    at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_002),
                    message: "mesh.yaml:3:7: unknown field `wieght`".into(),
                }),
            },
            workloads: vec![
                workload("default/client", Some(1), WorkloadState::Live, None),
                workload(
                    "default/late",
                    None,
                    WorkloadState::Failed,
                    Some("namespace not found"),
                ),
            ],
            workers: 2,
            drain: Drain::No,
            redirect: self.redirect.load(SeqCst),
            restart_needed: if ready {
                Vec::new()
            } else {
                vec!["agent.workers".into()]
            },
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.clone()
    }

    fn kernel(&self) -> KernelSample {
        self.samples.fetch_add(1, SeqCst);
        let stat = StatRow {
            reason: "captured".into(),
            count: 11,
            refusal: false,
        };
        let map = MapRow {
            map: "FLOWS".into(),
            entries: Some(3),
            capacity: 65_536,
        };
        KernelSample {
            stats: vec![stat],
            maps: vec![map],
        }
    }

    fn live(&self) -> Result<(), String> {
        match self.alive.load(SeqCst) {
            true => Ok(()),
            false => Err("worker 1 stands still".into()),
        }
    }

    fn redirect(&self, on: bool) -> Result<(), String> {
        self.redirect.store(on, SeqCst);
        Ok(())
    }

    fn reload(&self) -> Result<u64, String> {
        self.reloads.fetch_add(1, SeqCst);
        match self.reload_fails.load(SeqCst) {
            true => Err("mesh.yaml: no".into()),
            false => Ok(2),
        }
    }
}

/// A running admin interface in a folder of its own.
pub(crate) struct Running {
    pub(crate) agent: Arc<FakeAgent>,
    pub(crate) admin: Option<Admin>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) folder: PathBuf,
}

impl Running {
    pub(crate) fn start(name: &str) -> Self {
        Self::with(name, FakeAgent::new())
    }

    pub(crate) fn with(name: &str, agent: Arc<FakeAgent>) -> Self {
        let folder = std::env::temp_dir().join(format!("mesh-ops-{name}-{}", std::process::id()));
        let metrics = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let telemetry = silent();
        let admin = start_with(&folder, agent.clone(), metrics, telemetry.clone());
        let admin = admin.expect("it starts");
        Self {
            agent,
            admin: Some(admin),
            telemetry,
            folder,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    fn port(&self) -> SocketAddr {
        let admin = self.admin.as_ref().expect("it runs");
        admin.metrics_address().expect("it was asked for")
    }

    /// One request over the unix socket: status and body.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let stream = UnixStream::connect(self.socket()).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time-out");
        exchange(stream, method, path, body)
    }

    fn json(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = self.ask(method, path, body);
        (
            status,
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")),
        )
    }

    /// One GET over TCP.
    fn get(&self, path: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.port()).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time-out");
        exchange(stream, "GET", path, "")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.admin.take());
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn start(
    folder: &Path,
    agent: Arc<FakeAgent>,
    metrics: Option<SocketAddr>,
) -> Result<Admin, AdminError> {
    start_with(folder, agent, metrics, silent())
}

fn start_with(
    folder: &Path,
    agent: Arc<FakeAgent>,
    metrics: Option<SocketAddr>,
    telemetry: Arc<Telemetry>,
) -> Result<Admin, AdminError> {
    let instance = Instance::new("test").expect("a valid name");
    let options = AdminOptions {
        events: Arc::default(),
        instance,
        metrics,
        agent,
        telemetry,
    };
    Admin::start_at(folder, &folder.join("admin.sock"), options)
}

fn silent() -> Arc<Telemetry> {
    let log = AccessLog {
        format: LogFormat::Envoy,
        filter: LogFilter::Off,
        path: None,
    };
    Telemetry::new(&log).expect("no file to open")
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> (u16, String) {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it takes the request");
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .expect("it answers and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .expect("a status")
        .parse()
        .expect("a number");
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    (
        status,
        if chunked {
            joined(body)
        } else {
            body.to_owned()
        },
    )
}

/// The content of chunks (RFC 9112 §7.1), which must end with the last chunk.
fn joined(mut chunks: &str) -> String {
    let mut out = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("hexadecimal");
        out += &rest[..size];
        chunks = rest[size..].strip_prefix("\r\n").expect("a chunk's end");
        if size == 0 {
            assert_eq!(chunks, "", "something behind the last chunk");
            return out;
        }
    }
}

#[test]
fn socket_is_only_for_its_owner() {
    let running = Running::start("owner");
    let mode = |path: PathBuf| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode(running.folder.clone()), 0o700);
    assert_eq!(mode(running.socket()), 0o600);
}

#[test]
fn socket_is_removed_at_the_end() {
    let mut running = Running::start("removed");
    assert!(running.socket().exists());
    drop(running.admin.take());
    assert!(!running.socket().exists());
}

#[test]
fn second_agent_of_an_instance_is_refused_by_name() {
    let running = Running::start("held");
    let error = start(&running.folder, FakeAgent::new(), None).expect_err("it is held");
    let AdminError::Held { pid, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(pid, Some(std::process::id()));
    assert_eq!(
        running.ask("GET", "/livez", "").0,
        200,
        "the first is not disturbed"
    );
}

#[test]
fn dead_socket_is_replaced() {
    let folder = std::env::temp_dir().join(format!("mesh-ops-dead-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    // What `kill -9` leaves: the file is there, and nobody listens.
    drop(UnixListener::bind(folder.join("admin.sock")).expect("a socket"));
    let running = Running::with("dead", FakeAgent::new());
    assert_eq!(running.ask("GET", "/livez", "").0, 200);
}

#[test]
fn taken_port_is_named_and_nothing_is_left() {
    let folder = std::env::temp_dir().join(format!("mesh-ops-port-{}", std::process::id()));
    let holder = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = holder.local_addr().expect("it is bound");
    let error = start(&folder, FakeAgent::new(), Some(address)).expect_err("the port is taken");
    assert!(matches!(error, AdminError::PortTaken { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(
        !folder.join("admin.sock").exists(),
        "the socket stays behind"
    );
    drop(holder);
    drop(start(&folder, FakeAgent::new(), Some(address)).expect("port and lock are free again"));
    fs::remove_dir_all(folder).expect("clean up");
}

#[test]
fn port_of_another_instance_is_taken_too() {
    let running = Running::start("other");
    let folder = std::env::temp_dir().join(format!("mesh-ops-other2-{}", std::process::id()));
    let error = start(&folder, FakeAgent::new(), Some(running.port())).expect_err("it is taken");
    assert!(matches!(error, AdminError::PortTaken { .. }), "{error}");
    fs::remove_dir_all(folder).expect("clean up");
}

#[test]
fn status_comes_back_as_it_was() {
    let running = Running::start("status");
    for ready in [true, false] {
        running.agent.ready.store(ready, SeqCst);
        let (code, document) = running.json("GET", "/status", "");
        assert_eq!(code, 200);
        assert_eq!(document["apiVersion"], "mesh/v1alpha1");
        assert_eq!(document["kind"], "Status");
        assert_eq!(document["started"], "2023-11-14T22:13:20.123Z");
        let status: Status = serde_json::from_value(document).expect("the same structs");
        assert_eq!(status, running.agent.status());
        assert_eq!(status.ready(), ready);
    }
}

#[test]
fn readiness_says_why_not() {
    let running = Running::start("ready");
    assert_eq!(running.get("/readyz"), (200, "ok\n".into()));
    let (_, verbose) = running.get("/readyz?verbose");
    assert_eq!(
        verbose,
        "[+]programs ok: 6 links\n[+]model ok: generation 1\nok\n"
    );
    running.agent.ready.store(false, SeqCst);
    let (status, body) = running.get("/readyz");
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "[+]programs ok: 6 links\n[-]model failed: none yet\nnot ready\n"
    );
    assert_eq!(running.get("/livez").0, 200, "not ready is not dead");
}

#[test]
fn liveness_fails_when_a_worker_stands_still() {
    let running = Running::start("live");
    running.agent.alive.store(false, SeqCst);
    assert_eq!(
        running.get("/livez"),
        (503, "worker 1 stands still\n".into())
    );
}

#[test]
fn metrics_carry_counters_and_what_the_agent_knows() {
    let running = Running::start("metrics");
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, text) = running.get(path);
        assert_eq!(status, 200);
        for line in [
            "mesh_ready 1",
            "mesh_model_generation 1",
            "mesh_config_last_reload_successful 1",
            "mesh_config_last_reload_success_timestamp_seconds 1700000001",
            "mesh_workloads{state=\"live\"} 1",
            "mesh_workloads{state=\"failed\"} 1",
            "mesh_workloads{state=\"gone\"} 0",
            "mesh_bpf_redirects_total{reason=\"captured\"} 11",
            "mesh_bpf_map_entries{map=\"FLOWS\"} 3",
            "mesh_bpf_map_capacity{map=\"FLOWS\"} 65536",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
        assert!(text.contains("mesh_breaker_limit{namespace=\"default\",service=\"reviews\""));
    }
    assert_eq!(
        running.agent.samples.load(SeqCst),
        1,
        "the maps were walked for each scrape"
    );
}

#[test]
fn scrape_of_many_pieces_arrives_whole() {
    let running = Running::start("pieces");
    let workload = |n: u32| -> Arc<str> { format!("n/w{n}").into() };
    for n in 0..200 {
        let snapshot = &*running.agent.snapshot;
        let record = RequestRecord {
            snapshot,
            workload: &workload(n),
            direction: crate::telemetry::Direction::Outbound,
            source: None,
            rule: None,
            version: None,
            endpoint: None,
            peer: ([127, 0, 0, 1], 1).into(),
            destination: ([10, 96, 0, 10], 80).into(),
            spoken: Spoken::Http1,
            method: b"GET",
            target: b"/",
            authority: b"",
            request_id: b"",
            user_agent: b"",
            status: 200,
            grpc_status: None,
            reject: None,
            actions: Default::default(),
            attempts: 1,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            upstream: None,
            dry_run: None,
        };
        running.telemetry.request(&record);
    }
    let (status, text) = running.get("/metrics");
    assert_eq!(status, 200);
    assert!(text.len() > 1 << 20, "one piece is no test: {}", text.len());
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("istio_requests_total{"))
            .count(),
        200
    );
    assert!(text.ends_with("# EOF\n"), "the end is missing");
}

#[test]
fn reader_that_leaves_in_the_middle_frees_its_place() {
    let running = Running::start("leaves");
    // More than are made at once.
    for _ in 0..5 {
        let mut stream = TcpStream::connect(running.port()).expect("it listens");
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            .expect("it takes it");
    }
    assert_eq!(running.get("/metrics").0, 200);
}

#[test]
fn metrics_port_tells_and_changes_nothing_else() {
    let running = Running::start("narrow");
    for path in [
        "/status",
        "/model",
        "/config/services",
        "/explain",
        "/redirect",
        "/reload",
    ] {
        assert_eq!(running.get(path).0, 404, "{path}");
    }
    let (status, _) = exchange(
        TcpStream::connect(running.port()).expect("it listens"),
        "PUT",
        "/redirect",
        "off",
    );
    assert_eq!(status, 404);
    assert!(running.agent.redirect.load(SeqCst));
}

#[test]
fn config_lists_are_versioned() {
    let running = Running::start("config");
    for (path, kind) in [
        ("services", "ServiceList"),
        ("routes", "RouteList"),
        ("endpoints", "EndpointList"),
        ("policies", "PolicyList"),
    ] {
        let (status, document) = running.json("GET", &format!("/config/{path}"), "");
        assert_eq!((status, &document["kind"]), (200, &json!(kind)));
        assert_eq!(document["apiVersion"], "mesh/v1alpha1");
        let items = document["items"].as_array().expect("a list");
        assert!(!items.is_empty(), "{path}");
    }
    assert_eq!(running.json("GET", "/config/clusters", "").0, 404);
    let (status, model) = running.json("GET", "/model", "");
    assert_eq!(
        (status, &model["services"][0]["name"]),
        (200, &json!("reviews"))
    );
}

#[test]
fn redirect_is_changed_by_put_only() {
    let running = Running::start("redirect");
    assert_eq!(running.json("GET", "/redirect", "").1["redirect"], true);
    assert_eq!(running.json("PUT", "/redirect", "off").1["redirect"], false);
    assert!(!running.agent.redirect.load(SeqCst));
    assert_eq!(running.json("PUT", "/redirect", "maybe").0, 400);
    assert_eq!(running.json("POST", "/redirect", "on").0, 405);
    assert!(!running.agent.redirect.load(SeqCst));
    assert_eq!(running.json("PUT", "/redirect", "on\n").1["redirect"], true);
}

#[test]
fn reload_passes_the_reason_on() {
    let running = Running::start("reload");
    assert_eq!(running.json("POST", "/reload", "").1["generation"], 2);
    running.agent.reload_fails.store(true, SeqCst);
    let (status, document) = running.json("POST", "/reload", "");
    assert_eq!(
        (status, &document["message"]),
        (422, &json!("mesh.yaml: no"))
    );
    assert_eq!(running.json("GET", "/reload", "").0, 405);
    assert_eq!(running.agent.reloads.load(SeqCst), 2);
}

#[test]
fn body_above_its_limit_is_refused() {
    let running = Running::start("body");
    let (status, document) = running.json("PUT", "/redirect", &" ".repeat((64 << 10) + 1));
    assert_eq!(status, 413, "{document}");
    let (status, _) = running.json(
        "PUT",
        "/redirect",
        &format!("{}on", " ".repeat((64 << 10) - 2)),
    );
    assert_eq!(status, 200);
}

#[test]
fn garbage_does_not_disturb_the_next() {
    let running = Running::start("garbage");
    for bytes in [
        &b"\x00\xff\x00\xff\r\n\r\n"[..],
        b"GET",
        &[b'A'; 20_000],
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(running.port()).expect("it listens");
        // It may close before it has read everything.
        let _ = stream.write_all(bytes);
    }
    assert_eq!(running.get("/livez").0, 200);
}

fn question(host: &str, headers: &[(&str, &str)]) -> explain::Question {
    explain::Question {
        from: "client".into(),
        host: host.into(),
        port: 80,
        method: "GET".into(),
        path: "/api/x?y=z".into(),
        sni: None,
        headers: headers
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        tcp: false,
    }
}

#[test]
fn explain_answers_as_the_data_path_decides() {
    let running = Running::start("explain");
    let ask = |question: &explain::Question| {
        running.json(
            "POST",
            "/explain",
            &serde_json::to_string(question).expect("JSON"),
        )
    };
    for host in [
        "reviews",
        "REVIEWS",
        "10.96.0.10",
        "fd00:96::10",
        "[fd00:96::10]",
    ] {
        let (status, answer) = ask(&question(host, &[]));
        assert_eq!(status, 200, "{host}: {answer}");
        assert_eq!(answer["kind"], "Explanation");
        assert_eq!(answer["destination"], "service");
        assert_eq!(answer["tried"].as_array().map(Vec::len), Some(2));
        assert!(
            answer["outcome"]["forwarded"]["to"][0] == "10.244.1.5:9080",
            "{answer}"
        );
    }
    let (_, answer) = ask(&question("reviews", &[("x-user", "beta")]));
    assert_eq!(answer["tried"].as_array().map(Vec::len), Some(1));
    assert_eq!(answer["outcome"]["forwarded"]["to"][0], "10.244.2.6:9080");
    let refused = explain::Question {
        path: "/".into(),
        ..question("reviews", &[])
    };
    assert_eq!(ask(&refused).1["outcome"]["refused"]["reject"], "no_route");
}

#[test]
fn explain_names_what_it_does_not_know() {
    let snapshot = FakeAgent::new().snapshot();
    let ask = |question: &explain::Question| explain::answer(&snapshot, question, MonoNanos(0));
    let outside = ask(&question("192.0.2.1", &[])).expect("an address is always an answer");
    assert!(matches!(outside, explain::Answer::Outside { .. }) && !outside.refused());
    let error = ask(&question("example.org", &[])).expect_err("mesh does no DNS");
    assert!(error.to_string().contains("example.org"), "{error}");
    let nobody = explain::Question {
        from: "shop/nobody".into(),
        ..question("reviews", &[])
    };
    let error = ask(&nobody).expect_err("no such workload").to_string();
    assert!(
        error.contains("shop/nobody") && error.contains("default/client"),
        "{error}"
    );
    let many = vec![("a", "b"); 101];
    let error = ask(&question("reviews", &many)).expect_err("too many");
    assert_eq!(error, explain::QuestionError::TooManyHeaders(101));
    assert!(ask(&question("reviews", &many[1..])).is_ok());
}
