//! Rate limits that are shared with other nodes: through a real `redis-server`, and through a server
//! of Envoy's protocol that also misbehaves. Needs Debian's package `redis-server`.

mod proxy_support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use mesh_user::{
    model::{
        Attribute, Protocol, RateLimitPolicy, RateLimitService,
        limit::{
            DescriptorEntry, DescriptorValue, GlobalLimit, Lease, RedisStore, StoreAddress,
            StoreFailure, StoreKind,
        },
    },
    policy::rate_limit::LimitRow,
};
use prost::Message as _;
use proxy_support::*;

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mesh-limits-test-{}-{next}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// A server of our own on a unix socket, ended with the test.
struct Redis {
    folder: Folder,
    child: Child,
    options: Vec<String>,
}

impl Redis {
    fn start(options: &[&str]) -> Self {
        let folder = Folder::new();
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let child = Self::run(&folder, &options);
        let redis = Self {
            folder,
            child,
            options,
        };
        redis.wait();
        redis
    }

    fn run(folder: &Folder, options: &[String]) -> Child {
        Command::new("redis-server")
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
            ])
            .arg(folder.0.join("redis.sock"))
            .arg("--dir")
            .arg(&folder.0)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server must be there: apt-get install redis-server")
    }

    fn wait(&self) {
        eventually("redis-server", || {
            UnixStream::connect(self.socket()).is_ok()
        });
    }

    fn socket(&self) -> PathBuf {
        self.folder.0.join("redis.sock")
    }

    fn stop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
        let _gone = std::fs::remove_file(self.socket());
    }

    fn again(&mut self) {
        self.child = Self::run(&self.folder, &self.options);
        self.wait();
    }

    /// Sends a line and gives back what came of it.
    fn ask(&self, lines: &[&str]) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        for line in lines {
            write!(stream, "{line}\r\n").unwrap();
        }
        write!(stream, "QUIT\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn service(&self, change: impl FnOnce(&mut RedisStore)) -> RateLimitService {
        let mut store = RedisStore {
            prefix: "t:".into(),
            ..RedisStore::default()
        };
        change(&mut store);
        RateLimitService {
            name: "store".into(),
            address: StoreAddress::Unix(self.socket()),
            kind: StoreKind::Redis(store),
            timeout: Duration::from_millis(500),
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

fn shared(requests: u64, per: Duration, burst: u64, global: GlobalLimit) -> RateLimitPolicy {
    RateLimitPolicy {
        name: "shared".into(),
        requests,
        per,
        burst,
        global: Some(GlobalLimit {
            service: "store".into(),
            ..global
        }),
        ..RateLimitPolicy::default()
    }
}

fn without_lease() -> GlobalLimit {
    GlobalLimit {
        lease: Lease {
            share_percent: 0,
            time: None,
        },
        ..GlobalLimit::default()
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

fn plan(
    protocol: Protocol,
    to: SocketAddr,
    service: RateLimitService,
    limit: RateLimitPolicy,
) -> Plan {
    let mut plan = Plan::new(protocol)
        .endpoint(to, "v1")
        .policy(|policy| policy.rate_limits = vec![limit]);
    plan.model.rate_limit_services = vec![service];
    plan
}

fn http_plan(service: RateLimitService, limit: RateLimitPolicy) -> Plan {
    plan(Protocol::Http, http("ok"), service, limit)
}

fn row(mesh: &Mesh) -> LimitRow {
    let rows = mesh.snapshot().limit_rows();
    rows.into_iter().find(|row| row.limit == "shared").unwrap()
}

#[test]
fn redis_counts_for_all_nodes_and_the_refusal_says_when() {
    let redis = Redis::start(&[]);
    let limit = || shared(1, HOUR, 5, without_lease());
    let start = || Mesh::start(http_plan(redis.service(|_| {}), limit()));
    let nodes = [start(), start(), start()];
    let mut clients: Vec<Reader> = nodes
        .iter()
        .map(|mesh| Reader::new(mesh.connect()))
        .collect();
    let mut admitted = 0;
    for _ in 0..4 {
        for client in &mut clients {
            let answer = client.send(GET).message().unwrap();
            if answer.status() == 200 {
                admitted += 1;
                let left = format!("\"shared\";r={};t=", 5 - admitted);
                let field = answer.field("ratelimit").unwrap();
                assert!(field.starts_with(&left), "{field}");
                continue;
            }
            assert_eq!(answer.status(), 429);
            assert_eq!(
                answer.field("x-mesh-reject").as_deref(),
                Some("rate_limited")
            );
            let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
            assert!((3_590..=3_600).contains(&wait), "{wait}");
            assert_eq!(
                answer.field("ratelimit-policy").as_deref(),
                Some("\"shared\";q=5;w=18000")
            );
        }
    }
    assert_eq!(admitted, 5);
    let keys = redis.ask(&["KEYS *"]);
    assert!(keys.contains("t:shop/web/shared\r\n"), "{keys}");
    // The key ends when its bucket is full again, and a second later.
    let left: u64 = redis
        .ask(&["PTTL t:shop/web/shared"])
        .lines()
        .next()
        .and_then(|line| line.trim_start_matches(':').parse().ok())
        .unwrap();
    assert!((17_900_000..=18_001_000).contains(&left), "{left}");
}

#[test]
fn client_that_waits_for_redis_token_is_admitted() {
    let redis = Redis::start(&[]);
    for lease in [without_lease(), GlobalLimit::default()] {
        let _flushed = redis.ask(&["FLUSHALL"]);
        let limit = shared(1, Duration::from_secs(1), 2, lease);
        let mesh = Mesh::start(http_plan(redis.service(|_| {}), limit));
        let mut client = Reader::new(mesh.connect());
        let refused = loop {
            let answer = client.send(GET).message().unwrap();
            if answer.status() != 200 {
                break answer;
            }
        };
        let wait: u64 = refused.field("retry-after").unwrap().parse().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(wait) {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(client.send(GET).message().unwrap().status(), 200);
    }
}

#[test]
fn keys_have_buckets_of_their_own_and_nothing_of_one_reaches_another() {
    let redis = Redis::start(&[]);
    let mut limit = shared(1, HOUR, 1, without_lease());
    limit.key = vec![Attribute::Header("a".into()), Attribute::Header("b".into())];
    let mesh = Mesh::start(http_plan(redis.service(|_| {}), limit));
    let mut client = Reader::new(mesh.connect());
    let long = "x".repeat(4_000);
    for (a, b) in [
        ("x,y", "z"),
        ("x", "y,z"),
        ("-", ""),
        ("%2D", "q"),
        (&long, "1"),
        (&long, "2"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: web\r\na: {a}\r\nb: {b}\r\n\r\n");
        for status in [200, 429] {
            assert_eq!(
                client.send(&request).message().unwrap().status(),
                status,
                "{a:.9} {b}"
            );
        }
    }
    // Missing is another value than any text.
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
    let keys = redis.ask(&["KEYS *"]);
    assert!(keys.contains("t:shop/web/shared:x%2Cy,z\r\n"), "{keys}");
    assert!(keys.contains("t:shop/web/shared:-,-\r\n"), "{keys}");
    assert!(
        keys.lines().all(|line| line.len() < 300),
        "long keys are hashed"
    );
}

/// Three nodes, as three agents are: nothing is shared but the store.
#[test]
fn three_nodes_with_leases_stay_below_the_limit_and_ask_rarely() {
    let redis = Redis::start(&[]);
    let (rate, burst) = (400, 400);
    let limit = || shared(rate, Duration::from_secs(1), burst, GlobalLimit::default());
    let start = || Mesh::start(http_plan(redis.service(|_| {}), limit()));
    let nodes = [start(), start(), start()];
    let began = Instant::now();
    let span = Duration::from_secs(3);
    let (mut admitted, mut asked): (Vec<Duration>, u64) = (Vec::new(), 0);
    thread::scope(|scope| {
        let all: Vec<_> = nodes
            .iter()
            .map(|mesh| {
                scope.spawn(move || {
                    let mut client = Reader::new(mesh.connect());
                    let (mut times, mut asked) = (Vec::new(), 0_u64);
                    while began.elapsed() < span {
                        asked += 1;
                        let status = client.send(GET).message().unwrap().status();
                        assert!(status == 200 || status == 429, "{status}");
                        if status == 200 {
                            times.push(began.elapsed());
                        }
                        // About 500 a second on each.
                        thread::sleep(Duration::from_millis(2));
                    }
                    (times, asked)
                })
            })
            .collect();
        for node in all {
            let (times, count) = node.join().unwrap();
            admitted.extend(times);
            asked += count;
        }
    });
    let took = began.elapsed().as_secs_f64();
    let most = burst as f64 + rate as f64 * took;
    let (calls, failed) = nodes
        .iter()
        .map(|mesh| row(mesh).store.unwrap())
        .fold((0, 0), |sum, store| {
            (sum.0 + store.answered + store.failed, sum.1 + store.failed)
        });
    let stats = redis.ask(&["INFO commandstats"]);
    let scripts: u64 = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_eval"))
        .filter_map(|line| line.split(['=', ',']).nth(1)?.parse::<u64>().ok())
        .sum();
    admitted.sort();
    println!(
        "{} of {asked} requests admitted in {took:.2} s, {:.3} of the bound; {calls} calls ({scripts} \
         by redis), {:.4} a request",
        admitted.len(),
        admitted.len() as f64 / most,
        calls as f64 / asked as f64
    );
    assert_eq!(failed, 0);
    assert!(
        (calls..=calls + 3).contains(&scripts),
        "{calls} calls, {scripts} scripts"
    );
    assert!(
        admitted.len() as f64 <= most,
        "{} of {most}",
        admitted.len()
    );
    // In any second: what the rate gives in a lease's time more.
    let window = (burst + rate + rate / 10) as usize;
    for (first, at) in admitted.iter().enumerate() {
        let within = admitted[first..]
            .iter()
            .take_while(|other| **other - *at <= Duration::from_secs(1));
        assert!(within.count() <= window);
    }
    assert!(calls * 5 <= asked, "{calls} calls for {asked} requests");
    if asked as f64 > 1.3 * most {
        assert!(
            admitted.len() as f64 >= 0.75 * most,
            "{} of {most}",
            admitted.len()
        );
    }
}

#[test]
fn password_database_and_user_are_used() {
    let redis = Redis::start(&["--requirepass", "s3cret"]);
    let file = redis.folder.0.join("password");
    std::fs::write(&file, "s3cret\nanother line\n").unwrap();
    let service = redis.service(|store| {
        store.password_file = Some(file.clone());
        store.username = Some("default".into());
        store.database = 3;
    });
    let mesh = Mesh::start(http_plan(service, shared(1, HOUR, 1, without_lease())));
    let mut client = Reader::new(mesh.connect());
    for status in [200, 429] {
        assert_eq!(client.send(GET).message().unwrap().status(), status);
    }
    let keys = redis.ask(&["AUTH s3cret", "SELECT 3", "KEYS *"]);
    assert!(keys.contains("t:shop/web/shared"), "{keys}");
    let closed = GlobalLimit {
        failure: StoreFailure::Closed,
        ..without_lease()
    };
    let mesh = Mesh::start(http_plan(redis.service(|_| {}), shared(1, HOUR, 9, closed)));
    let answer = Reader::new(mesh.connect()).send(GET).message().unwrap();
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("rate_limit_service")
    );
}

#[test]
fn script_that_redis_forgot_is_sent_again_and_a_restart_is_survived() {
    let mut redis = Redis::start(&[]);
    let closed = GlobalLimit {
        failure: StoreFailure::Closed,
        ..without_lease()
    };
    let mesh = Mesh::start(http_plan(
        redis.service(|_| {}),
        shared(1, HOUR, 1_000, closed),
    ));
    let mut client = Reader::new(mesh.connect());
    let mut status = || client.send(GET).message().unwrap().status();
    assert_eq!(status(), 200);
    let _flushed = redis.ask(&["SCRIPT FLUSH"]);
    assert_eq!(status(), 200);
    redis.stop();
    assert_eq!(status(), 500);
    redis.again();
    eventually("it answers again", || status() == 200);
    let store = row(&mesh).store.unwrap();
    assert!(store.failed >= 1 && store.answered >= 3, "{store:?}");
}

/// The system's certificates are read once in a process, from where `SSL_CERT_FILE` says: so this one
/// is a process of its own.
#[test]
fn redis_is_asked_over_tls_when_its_certificate_has_the_name() {
    let folder = Folder::new();
    let made = rcgen::generate_simple_self_signed(vec!["redis.test".to_owned()]).unwrap();
    let certificate = folder.0.join("cert.pem");
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(folder.0.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "redis_over_tls"])
        .env("SSL_CERT_FILE", &certificate)
        .env("MESH_TEST_TLS", &folder.0)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

/// Not a test: what `redis_is_asked_over_tls_when_its_certificate_has_the_name` runs in a process of
/// its own, for the trust of a process is read once. Does nothing in an ordinary run.
#[test]
fn redis_over_tls() {
    let Some(folder) = std::env::var_os("MESH_TEST_TLS").map(PathBuf::from) else {
        return;
    };
    let port = bind().1.port();
    let file = |name: &str| folder.join(name).display().to_string();
    let redis = Redis::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &file("cert.pem"),
        "--tls-key-file",
        &file("key.pem"),
        "--tls-ca-cert-file",
        &file("cert.pem"),
        "--tls-auth-clients",
        "no",
    ]);
    for (name, statuses) in [("redis.test", [200, 429]), ("other.test", [500, 500])] {
        let service = RateLimitService {
            address: StoreAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], port))),
            ..redis.service(|store| store.tls = Some(name.into()))
        };
        let closed = GlobalLimit {
            failure: StoreFailure::Closed,
            ..without_lease()
        };
        let mesh = Mesh::start(http_plan(service, shared(1, HOUR, 1, closed)));
        let mut client = Reader::new(mesh.connect());
        let answers = [0, 1].map(|_| client.send(GET).message().unwrap().status());
        assert_eq!(answers, statuses, "{name}");
    }
}

/// What a dead store costs: how a listener that behaves so is used.
fn dead(
    limit: StoreFailure,
    serve: impl Fn(std::net::TcpStream) + Send + Sync + 'static,
    kind: StoreKind,
) -> Mesh {
    let address = endpoint(serve);
    let service = RateLimitService {
        name: "store".into(),
        address: StoreAddress::Tcp(address),
        kind,
        timeout: Duration::from_millis(50),
    };
    let global = GlobalLimit {
        failure: limit,
        ..without_lease()
    };
    Mesh::start(http_plan(service, shared(1, HOUR, 1, global)))
}

fn hangs(mut stream: std::net::TcpStream) {
    while matches!(stream.read(&mut [0; 4_096]), Ok(1..)) {}
}

fn rubbish(mut stream: std::net::TcpStream) {
    let _read = stream.read(&mut [0; 4_096]);
    let _sent = stream.write_all(b"!rubbish\r\n\0\xff$-7\r\n");
    hangs(stream);
}

fn both_kinds() -> [StoreKind; 2] {
    [
        StoreKind::Redis(RedisStore::default()),
        StoreKind::Envoy { domain: "d".into() },
    ]
}

#[test]
fn store_that_is_dead_costs_no_timeout_for_each_request_and_failure_says_what_happens() {
    for kind in both_kinds() {
        for (failure, status) in [(StoreFailure::Open, 200), (StoreFailure::Closed, 500)] {
            for serve in [hangs, rubbish, drop::<std::net::TcpStream>] {
                let mesh = dead(failure, serve, kind.clone());
                let mut client = Reader::new(mesh.connect());
                let start = Instant::now();
                for _ in 0..60 {
                    let answer = client.send(GET).message().unwrap();
                    assert_eq!(answer.status(), status);
                    if status == 500 {
                        let reject = answer.field("x-mesh-reject");
                        assert_eq!(reject.as_deref(), Some("rate_limit_service"));
                        assert_eq!(answer.field("retry-after"), None);
                    }
                }
                // With a time-out for each it would be three seconds.
                assert!(
                    start.elapsed() < Duration::from_secs(2),
                    "{:?}",
                    start.elapsed()
                );
                let [.., open, closed] = row(&mesh).counts;
                let expected = if status == 200 { (60, 0) } else { (0, 60) };
                assert_eq!((open, closed), expected);
                assert!(row(&mesh).store.unwrap().failed < 15, "{:?}", row(&mesh));
            }
        }
    }
}

#[test]
fn key_that_holds_something_else_is_an_error_not_an_admission() {
    let redis = Redis::start(&[]);
    let _set = redis.ask(&["SET t:shop/web/shared rubbish"]);
    let closed = GlobalLimit {
        failure: StoreFailure::Closed,
        ..without_lease()
    };
    let mesh = Mesh::start(http_plan(redis.service(|_| {}), shared(1, HOUR, 9, closed)));
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.send(GET).message().unwrap().status(), 500);
    let _pushed = redis.ask(&["DEL t:shop/web/shared", "LPUSH t:shop/web/shared x"]);
    assert_eq!(client.send(GET).message().unwrap().status(), 500);
    // A time far ahead, of another limit or a clock gone wrong, is no more than an empty bucket.
    let _set = redis.ask(&["DEL t:shop/web/shared", "SET t:shop/web/shared 1e300"]);
    eventually("it is an empty bucket", || {
        client.send(GET).message().unwrap().status() == 429
    });
}

#[test]
fn dry_run_of_a_shared_limit_waits_for_nobody_and_refuses_nothing() {
    let redis = Redis::start(&[]);
    let mut limit = shared(1, HOUR, 2, without_lease());
    limit.dry_run = true;
    let mesh = Mesh::start(http_plan(redis.service(|_| {}), limit));
    let mut client = Reader::new(mesh.connect());
    for _ in 0..6 {
        let answer = client.send(GET).message().unwrap();
        assert_eq!((answer.status(), answer.field("ratelimit")), (200, None));
    }
    eventually("all are counted", || row(&mesh).counts == [2, 0, 4, 0, 0]);
}

// What the test's server of Envoy's protocol understands and says: written anew, so that a wrong
// number on our side shows.

#[derive(Clone, PartialEq, prost::Message)]
struct Asked {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
    #[prost(uint32, tag = "3")]
    hits_addend: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Pair>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Said {
    #[prost(int32, tag = "1")]
    overall_code: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<Status>,
    #[prost(message, repeated, tag = "3")]
    response_headers_to_add: Vec<Pair>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(message, optional, tag = "2")]
    current_limit: Option<Limit>,
    #[prost(uint32, tag = "3")]
    limit_remaining: u32,
    #[prost(message, optional, tag = "4")]
    duration_until_reset: Option<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Limit {
    #[prost(uint32, tag = "1")]
    requests_per_unit: u32,
    #[prost(int32, tag = "2")]
    unit: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// How the server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Three hits a minute.
    Well,
    Hangs,
    Resets,
    /// A gRPC status that is no success.
    Unavailable,
    /// A message that can't be read.
    Rubbish,
    /// `overall_code` 0.
    Unknown,
    /// HTTP 404.
    NotFound,
    /// No trailers.
    Unfinished,
}

/// A server of Envoy's protocol, with what it was asked.
#[derive(Clone)]
struct Rls {
    way: Arc<Mutex<Way>>,
    asked: Arc<Mutex<Vec<Asked>>>,
    used: Arc<AtomicU64>,
    address: SocketAddr,
}

impl Rls {
    fn start(way: Way) -> Self {
        let (listener, address) = bind();
        listener.set_nonblocking(true).unwrap();
        let rls = Self {
            way: Arc::new(Mutex::new(way)),
            asked: Arc::default(),
            used: Arc::default(),
            address,
        };
        let own = rls.clone();
        thread::spawn(move || serve_rls(listener, own));
        rls
    }

    fn service(&self) -> RateLimitService {
        RateLimitService {
            name: "store".into(),
            address: StoreAddress::Tcp(self.address),
            kind: StoreKind::Envoy {
                domain: "shop".into(),
            },
            timeout: Duration::from_millis(100),
        }
    }

    async fn answer(self, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
        assert_eq!(
            request.uri().path(),
            "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
        );
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.headers()["grpc-timeout"], "100m");
        let mut body = request.into_body();
        let mut bytes = BytesMut::new();
        while let Some(Ok(data)) = body.data().await {
            let _released = body.flow_control().release_capacity(data.len());
            bytes.extend_from_slice(&data);
        }
        let asked = Asked::decode(&bytes[5..]).unwrap();
        let hits = u64::from(asked.hits_addend);
        self.asked.lock().unwrap().push(asked);
        let way = *self.way.lock().unwrap();
        match way {
            Way::Hangs => return std::future::pending().await,
            Way::Resets => return respond.send_reset(h2::Reason::INTERNAL_ERROR),
            Way::NotFound => {
                let response = Response::builder().status(404).body(()).unwrap();
                let _sent = respond.send_response(response, true);
                return;
            }
            _ => {}
        }
        let before = self.used.fetch_add(hits, Ordering::SeqCst);
        let over = before + hits > 3;
        let said = Said {
            overall_code: match way {
                Way::Unknown => 0,
                _ if over => 2,
                _ => 1,
            },
            statuses: vec![Status {
                code: if over { 2 } else { 1 },
                current_limit: Some(Limit {
                    requests_per_unit: 3,
                    unit: 2,
                }),
                limit_remaining: 3_u64.saturating_sub(before + hits) as u32,
                duration_until_reset: Some(Span {
                    seconds: 41,
                    nanos: 1,
                }),
            }],
            response_headers_to_add: [("x-plan", "free"), ("content-length", "7"), ("a b", "c")]
                .map(|(key, value)| Pair {
                    key: key.into(),
                    value: value.into(),
                })
                .into(),
        };
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        let message = if way == Way::Rubbish {
            vec![0xff; 30]
        } else {
            said.encode_to_vec()
        };
        frame.put_u32(message.len() as u32);
        frame.extend_from_slice(&message);
        let response = Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let Ok(mut out) = respond.send_response(response, false) else {
            return;
        };
        let unfinished = way == Way::Unfinished;
        let _sent = out.send_data(frame.freeze(), unfinished);
        if unfinished {
            return;
        }
        let status = if way == Way::Unavailable { "14" } else { "0" };
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        let _sent = out.send_trailers(trailers);
    }
}

fn serve_rls(listener: TcpListener, rls: Rls) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let rls = rls.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(rls.clone().answer(request, respond));
                }
            });
        }
    });
}

fn pairs(list: &[(&str, &str)]) -> Vec<Pair> {
    let pair = |(key, value): &(&str, &str)| Pair {
        key: (*key).into(),
        value: (*value).into(),
    };
    list.iter().map(pair).collect()
}

#[test]
fn envoy_service_is_asked_with_ordered_entries_and_its_numbers_are_told() {
    let rls = Rls::start(Way::Well);
    let entry = |key: &str, value| DescriptorEntry {
        key: key.into(),
        value,
    };
    let global = GlobalLimit {
        descriptor: vec![
            entry("route", DescriptorValue::Text("reviews".into())),
            entry(
                "user",
                DescriptorValue::Attribute(Attribute::Header("x-user".into())),
            ),
            entry("from", DescriptorValue::Attribute(Attribute::SourceAddress)),
        ],
        hits: 2,
        ..GlobalLimit::default()
    };
    let mesh = Mesh::start(http_plan(rls.service(), shared(1, HOUR, 1, global)));
    let mut client = Reader::new(mesh.connect());
    let request = "GET / HTTP/1.1\r\nhost: web\r\nx-user: ann\r\n\r\n";
    let admitted = client.send(request).message().unwrap();
    assert_eq!((admitted.status(), admitted.text()), (200, "ok".to_owned()));
    assert_eq!(
        admitted.field("ratelimit-policy").as_deref(),
        Some("\"shared\";q=3;w=60")
    );
    assert_eq!(
        admitted.field("ratelimit").as_deref(),
        Some("\"shared\";r=1;t=42")
    );
    assert_eq!(admitted.field("x-plan").as_deref(), Some("free"));
    assert_eq!(
        admitted.field("content-length").as_deref(),
        Some("2"),
        "framing is ours"
    );
    let refused = client.send(request).message().unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.field("retry-after").as_deref(), Some("42"));
    assert_eq!(refused.field("x-plan").as_deref(), Some("free"));
    // Without the header the limit does not apply, and nobody is asked.
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
    let asked = rls.asked.lock().unwrap().clone();
    let expected = Asked {
        domain: "shop".into(),
        descriptors: vec![Descriptor {
            entries: pairs(&[("route", "reviews"), ("user", "ann"), ("from", "127.0.0.1")]),
        }],
        hits_addend: 2,
    };
    assert_eq!(asked, [expected.clone(), expected]);
    assert_eq!(row(&mesh).counts, [1, 1, 0, 0, 0]);
}

#[test]
fn descriptor_without_words_is_the_key_or_envoys_generic_one() {
    let rls = Rls::start(Way::Well);
    let plain = Mesh::start(http_plan(
        rls.service(),
        shared(1, HOUR, 1, GlobalLimit::default()),
    ));
    let mut limit = shared(1, HOUR, 1, GlobalLimit::default());
    limit.key = vec![Attribute::Method, Attribute::Path];
    let keyed = Mesh::start(http_plan(rls.service(), limit));
    for mesh in [&plain, &keyed] {
        assert_eq!(
            Reader::new(mesh.connect())
                .send(GET)
                .message()
                .unwrap()
                .status(),
            200
        );
    }
    let asked = rls.asked.lock().unwrap().clone();
    let entries: Vec<_> = asked
        .into_iter()
        .map(|asked| asked.descriptors[0].entries.clone())
        .collect();
    assert_eq!(
        entries,
        [
            pairs(&[("generic_key", "shared")]),
            pairs(&[("method", "GET"), ("path", "/")])
        ]
    );
}

#[test]
fn envoy_service_that_misbehaves_is_an_open_or_closed_failure_and_recovers() {
    for way in [
        Way::Hangs,
        Way::Resets,
        Way::Unavailable,
        Way::Rubbish,
        Way::Unknown,
        Way::NotFound,
        Way::Unfinished,
    ] {
        let rls = Rls::start(way);
        let with = |failure| {
            let global = GlobalLimit {
                failure,
                ..GlobalLimit::default()
            };
            Mesh::start(http_plan(rls.service(), shared(1, HOUR, 1, global)))
        };
        let (open, closed) = (with(StoreFailure::Open), with(StoreFailure::Closed));
        for (mesh, status) in [(&open, 200), (&closed, 500)] {
            let mut client = Reader::new(mesh.connect());
            for _ in 0..5 {
                let answer = client.send(GET).message().unwrap();
                assert_eq!(answer.status(), status, "{way:?}");
            }
        }
        *rls.way.lock().unwrap() = Way::Well;
        rls.used.store(0, Ordering::SeqCst);
        let mut client = Reader::new(closed.connect());
        eventually("it answers again", || {
            client.send(GET).message().unwrap().status() == 200
        });
    }
}

#[test]
fn http2_grpc_and_opaque_connections_ask_too() {
    let (listener, echo) = bind();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _sent = stream.write_all(b"hello");
        }
    });
    let rls = Rls::start(Way::Well);
    let limit = || shared(1, HOUR, 1, GlobalLimit::default());
    let mesh = Mesh::start(plan(Protocol::Tcp, echo, rls.service(), limit()));
    let statuses: Vec<bool> = (0..5)
        .map(|_| Reader::new(mesh.connect()).at_most(5) == b"hello")
        .collect();
    assert_eq!(statuses, [true, true, true, false, false]);
    for (protocol, grpc) in [(Protocol::Http2, false), (Protocol::Grpc, true)] {
        rls.used.store(3, Ordering::SeqCst);
        let mesh = Mesh::start(plan(protocol, nobody(), rls.service(), limit()));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
            let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let mut request = Request::post("http://web/s/m");
            if grpc {
                request = request.header("content-type", "application/grpc");
            }
            let request = request.body(()).unwrap();
            let response = sender.send_request(request, true).unwrap().0.await.unwrap();
            let headers = response.headers();
            assert_eq!(response.status(), if grpc { 200 } else { 429 });
            assert_eq!(headers["x-mesh-reject"], "rate_limited");
            assert_eq!(headers["retry-after"], "42");
            assert_eq!(headers["x-plan"], "free");
            if grpc {
                assert_eq!(headers["grpc-status"], "8");
            }
        });
    }
}

#[test]
fn place_and_tokens_of_other_limits_come_back_when_the_store_refuses() {
    let rls = Rls::start(Way::Well);
    let mut model = http_plan(rls.service(), shared(1, HOUR, 1, GlobalLimit::default()));
    model.model.policies[0].rate_limits.push(RateLimitPolicy {
        name: "here".into(),
        requests: 1,
        per: HOUR,
        burst: 4,
        ..RateLimitPolicy::default()
    });
    let mesh = Mesh::start(model);
    let mut client = Reader::new(mesh.connect());
    let answers: Vec<u16> = (0..9)
        .map(|_| client.send(GET).message().unwrap().status())
        .collect();
    assert_eq!(answers, [200, 200, 200, 429, 429, 429, 429, 429, 429]);
    rls.used.store(2, Ordering::SeqCst);
    // One of the four is left.
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
    let refused = client.send(GET).message().unwrap();
    assert!(refused.field("ratelimit").unwrap().contains("\"here\";r=0"));
}

#[test]
fn reload_with_another_address_asks_the_other_server() {
    let (first, second) = (Rls::start(Way::Well), Rls::start(Way::Well));
    let limit = || shared(1, HOUR, 1, GlobalLimit::default());
    let to = http("ok");
    let mesh = Mesh::start(plan(Protocol::Http, to, first.service(), limit()));
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
    mesh.swap(plan(Protocol::Http, to, second.service(), limit()));
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
    assert_eq!(first.asked.lock().unwrap().len(), 1);
    assert_eq!(second.asked.lock().unwrap().len(), 1);
}

/// A client that goes is not waited for, whatever it speaks, and what other limits gave comes back.
#[test]
fn client_that_goes_while_the_store_is_asked_ends_its_request_and_gets_its_tokens_back() {
    let here = RateLimitPolicy {
        name: "here".into(),
        requests: 1,
        per: HOUR,
        burst: 1,
        ..RateLimitPolicy::default()
    };
    for protocol in [Protocol::Http, Protocol::Http2, Protocol::Tcp] {
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let address = endpoint(move |mut stream| {
            count.fetch_add(1, Ordering::SeqCst);
            while matches!(stream.read(&mut [0; 4_096]), Ok(1..)) {}
        });
        let service = RateLimitService {
            name: "store".into(),
            address: StoreAddress::Tcp(address),
            kind: StoreKind::Envoy { domain: "d".into() },
            timeout: Duration::from_secs(600),
        };
        let to = http("ok");
        let global = shared(1, HOUR, 1, GlobalLimit::default());
        let mut model = plan(protocol, to, service, global);
        model.model.policies[0].rate_limits.push(here.clone());
        let mesh = Mesh::start(model);
        let reached = || eventually("the store is asked", || asked.load(Ordering::SeqCst) == 1);
        match protocol {
            Protocol::Http2 => {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                let answer = runtime.block_on(async {
                    let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
                    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
                    tokio::spawn(connection);
                    let request = Request::get("http://web/").body(()).unwrap();
                    let (answer, mut sink) = sender.send_request(request, false).unwrap();
                    reached();
                    sink.send_reset(h2::Reason::CANCEL);
                    answer.await
                });
                answer.unwrap_err();
            }
            Protocol::Tcp => {
                let client = mesh.connect();
                reached();
                reset(client);
            }
            _ => {
                let mut client = Reader::new(mesh.connect());
                client.send(GET);
                reached();
            }
        }
        let kind = match protocol {
            Protocol::Tcp => "connection",
            _ => "request",
        };
        eventually("the record", || mesh.records(kind).len() == 1);
        let record = &mesh.records(kind)[0];
        assert_eq!(record["mesh.flags"], "DC", "{protocol:?}");
        // The store is no longer asked, and the only token is there again.
        let mut without = Plan::new(Protocol::Http).endpoint(to, "v1");
        without = without.policy(|policy| policy.rate_limits = vec![here.clone()]);
        mesh.swap(without);
        let mut client = Reader::new(mesh.connect());
        let answers = [0, 1].map(|_| client.send(GET).message().unwrap().status());
        assert_eq!(answers, [200, 429], "{protocol:?}");
    }
}
