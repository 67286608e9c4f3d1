//! What the proxy's tests share: workers over loopback, hand-made models, raw sockets.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "every test file uses its own part of this; expect would fail where all is used"
)]

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{Arc, atomic::AtomicU32},
    thread,
    time::{Duration, Instant},
};

use mesh_user::{
    clock,
    config::{AccessLog, Limits, LogFilter, LogFormat},
    model::{
        BreakerPolicy, DialFrom, Endpoint, Match, Model, Policy, Port, Protocol, Rule, Select,
        Service, Tags, Target, ValueMatch,
    },
    policy::Snapshot,
    proxy::{
        Command, Workers, WorkersOptions,
        wire::{OriginLookup, SocketSource, WorkloadHandle},
    },
    telemetry::Telemetry,
};

/// Longest that a test waits for something that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Sockets from the test's own namespace.
#[derive(Debug)]
pub(crate) struct HereSockets;

impl SocketSource for HereSockets {
    fn tcp_socket(&self, towards: SocketAddr) -> io::Result<OwnedFd> {
        let domain = socket2::Domain::for_address(towards);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}

/// Knows nothing.
#[derive(Debug)]
pub(crate) struct NoOrigins;

impl OriginLookup for NoOrigins {
    fn asked(&self, _: u32, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        None
    }
}

/// Runs `future` on this thread; panics after [`PATIENCE`].
pub(crate) fn block<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let timed = tokio::time::timeout(PATIENCE, future);
        timed.await.expect("in time")
    })
}

/// Polls until `done`; panics after [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come about");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A model of one service, `shop/web`, with one port, made step by step.
pub(crate) struct Plan {
    pub(crate) model: Model,
    /// Instead of the listener's address.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Listen on both families with one socket.
    pub(crate) dual: bool,
}

impl Plan {
    pub(crate) fn new(protocol: Protocol) -> Self {
        let service = Service {
            name: "web".into(),
            namespace: "shop".into(),
            hostnames: vec!["web".into()],
            addresses: Vec::new(),
            ports: vec![Port {
                name: "main".into(),
                number: 0,
                target: 1,
                protocol,
                path: mesh_user::model::PathChoice::Proxy,
                tls: None,
            }],
            versions: [("v1", "v1"), ("v2", "v2")]
                .into_iter()
                .map(|(name, tag)| (name.into(), tags(tag)))
                .collect(),
            endpoints: Vec::new(),
            routable: true,
            dial_from: DialFrom::Workload,
        };
        Self {
            model: Model {
                services: vec![service].into(),
                ..Model::default()
            },
            addresses: Vec::new(),
            dual: false,
        }
    }

    pub(crate) fn endpoint(mut self, address: SocketAddr, version: &str) -> Self {
        self.model.services[0].endpoints.push(Endpoint {
            address: address.ip(),
            ports: [("main".to_owned(), address.port())].into(),
            tags: tags(version),
            ..Endpoint::default()
        });
        self
    }

    pub(crate) fn route(mut self, matches: Vec<Match>, targets: &[(&str, u32)]) -> Self {
        let name = format!("rule-{}", self.model.rules.len());
        self.model.rules.push(Rule {
            name,
            service: 0,
            port: None,
            precedence: 0,
            matches,
            route: targets
                .iter()
                .map(|(version, weight)| Target {
                    select: Select::Version((*version).into()),
                    weight: *weight,
                    ..Target::default()
                })
                .collect(),
            extra: None,
        });
        self
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        let mut policy = Policy::default();
        change(&mut policy);
        self.model.policies.push(policy);
        self
    }

    pub(crate) fn breaker(self, change: impl FnOnce(&mut BreakerPolicy)) -> Self {
        let mut breaker = BreakerPolicy::default();
        change(&mut breaker);
        self.policy(|policy| policy.breaker = Some(breaker))
    }
}

pub(crate) fn tags(version: &str) -> Tags {
    [("version".to_owned(), version.to_owned())].into()
}

/// A match on one header.
pub(crate) fn header(name: &str, value: &str) -> Match {
    Match {
        headers: vec![(name.into(), ValueMatch::Exact(value.into()))].into(),
        ..Match::default()
    }
}

/// Running workers with one workload whose listeners are the service's address.
pub(crate) struct Mesh {
    pub(crate) workers: Option<Workers>,
    pub(crate) address: SocketAddr,
    pub(crate) workload: Arc<WorkloadHandle>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) snapshot: std::sync::Mutex<Arc<Snapshot>>,
    log: tempfile_path::LogFile,
}

mod tempfile_path {
    /// A file that is removed at the end.
    pub(crate) struct LogFile(pub(crate) std::path::PathBuf);

    impl LogFile {
        pub(crate) fn new() -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("mesh-proxy-test-{}-{next}.log", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for LogFile {
        fn drop(&mut self) {
            let _gone = std::fs::remove_file(&self.0);
        }
    }
}

fn listener(address: SocketAddr) -> TcpListener {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(false).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

impl Mesh {
    pub(crate) fn start(plan: Plan) -> Self {
        Self::with(plan, 1, |_| {})
    }

    pub(crate) fn with(plan: Plan, workers: usize, change: impl FnOnce(&mut Limits)) -> Self {
        Self::build(
            plan,
            workers,
            change,
            Arc::new(NoOrigins),
            Arc::new(HereSockets),
        )
    }

    pub(crate) fn with_sockets(plan: Plan, sockets: Arc<dyn SocketSource>) -> Self {
        Self::build(plan, 1, |_| {}, Arc::new(NoOrigins), sockets)
    }

    pub(crate) fn with_origins(
        plan: Plan,
        workers: usize,
        change: impl FnOnce(&mut Limits),
        origins: Arc<dyn OriginLookup>,
    ) -> Self {
        Self::build(plan, workers, change, origins, Arc::new(HereSockets))
    }

    fn build(
        plan: Plan,
        workers: usize,
        change: impl FnOnce(&mut Limits),
        origins: Arc<dyn OriginLookup>,
        sockets: Arc<dyn SocketSource>,
    ) -> Self {
        let mut limits = Limits::default();
        change(&mut limits);
        let any = if plan.dual {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        } else {
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
        };
        let first = listener(any);
        let address = first.local_addr().unwrap();
        let log = tempfile_path::LogFile::new();
        let telemetry = Telemetry::new(&AccessLog {
            format: LogFormat::Json,
            filter: LogFilter::All,
            path: Some(log.0.clone()),
        })
        .unwrap();
        let snapshot = Arc::new(compile(plan, address, None));
        let options = WorkersOptions {
            workers,
            pin: false,
            limits,
            origins,
            node_sockets: Arc::new(HereSockets),
            telemetry: Arc::clone(&telemetry),
        };
        let running = Workers::start(options, Arc::clone(&snapshot)).unwrap();
        let workload = Arc::new(WorkloadHandle {
            pod_id: 7,
            key: "shop/client".into(),
            sockets,
            connections: AtomicU32::new(0),
        });
        let more = (1..workers).map(|_| listener(address));
        for (index, listener) in [first].into_iter().chain(more).enumerate() {
            let workload = Arc::clone(&workload);
            running.send(index, Command::Listen { workload, listener });
        }
        Self {
            workers: Some(running),
            address,
            workload,
            telemetry,
            snapshot: std::sync::Mutex::new(snapshot),
            log,
        }
    }

    /// Puts another model in force.
    pub(crate) fn swap(&self, plan: Plan) {
        let mut current = self.snapshot.lock().unwrap();
        *current = Arc::new(compile(plan, self.address, Some(&current)));
        self.workers.as_ref().unwrap().swap(Arc::clone(&current));
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.lock().unwrap())
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// The access-log lines so far.
    pub(crate) fn log(&self) -> Vec<serde_json::Value> {
        assert!(self.telemetry.flush(), "the log's writer has gone");
        let text = std::fs::read_to_string(&self.log.0).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The access-log lines so far of one kind: `request` or `connection`.
    pub(crate) fn records(&self, kind: &str) -> Vec<serde_json::Value> {
        self.log()
            .into_iter()
            .filter(|line| line["mesh.record"] == kind)
            .collect()
    }

    /// The value of the first series of `/metrics` whose line contains all of `parts`.
    pub(crate) fn metric(&self, parts: &[&str]) -> Option<f64> {
        let text = self.telemetry.expose();
        let line = text
            .lines()
            .find(|line| parts.iter().all(|part| line.contains(part)))?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

fn compile(mut plan: Plan, address: SocketAddr, previous: Option<&Snapshot>) -> Snapshot {
    let address = plan.addresses.first().copied().unwrap_or(address);
    let service = &mut plan.model.services[0];
    service.addresses = if plan.dual {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        vec![address.ip()]
    };
    service.ports[0].number = address.port();
    let snapshot = Snapshot::compile(Arc::new(plan.model), previous, clock::now());
    snapshot.enforce();
    snapshot
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A listener of a hand-written endpoint.
pub(crate) fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address on which nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    // The port stays ours until the process ends, so nobody else gets it.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    Box::leak(Box::new(socket));
    address
}

/// An endpoint: `serve` runs in its own thread for each connection.
pub(crate) fn endpoint(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let (listener, address) = bind();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// One HTTP/1.1 message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Up to the empty line, which is left out.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0)
    }

    /// The values of a field, joined.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads messages off a socket, keeping what comes after each.
pub(crate) struct Reader {
    pub(crate) stream: TcpStream,
    pub(crate) rest: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            rest: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// More bytes; `false` at the end.
    pub(crate) fn more(&mut self) -> io::Result<bool> {
        let mut buf = [0; 65536];
        let count = self.stream.read(&mut buf)?;
        self.rest.extend_from_slice(&buf[..count]);
        Ok(count > 0)
    }

    /// The next head; none at an orderly end.
    pub(crate) fn head(&mut self) -> Option<Message> {
        loop {
            if let Some(end) = self.rest.windows(4).position(|w| w == b"\r\n\r\n") {
                let head: Vec<u8> = self.rest.drain(..end + 4).collect();
                let head = String::from_utf8_lossy(&head[..end]).into_owned();
                return Some(Message {
                    head,
                    body: Vec::new(),
                });
            }
            if !self.more().unwrap_or(false) {
                return None;
            }
        }
    }

    /// So many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.rest.len() < count {
            assert!(
                self.more().unwrap(),
                "ended after {} of {count} bytes",
                self.rest.len()
            );
        }
        self.rest.drain(..count).collect()
    }

    /// So many bytes, or what came until the end, an error, or two seconds of silence.
    pub(crate) fn at_most(&mut self, count: usize) -> Vec<u8> {
        self.stream
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        while self.rest.len() < count && self.more().unwrap_or(false) {}
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.rest.drain(..count.min(self.rest.len())).collect()
    }

    /// Everything up to the end; an error is the end too.
    pub(crate) fn all(&mut self) -> Vec<u8> {
        while self.more().unwrap_or(false) {}
        std::mem::take(&mut self.rest)
    }

    /// The next message with its body by Content-Length or chunks (raw, with framing).
    pub(crate) fn message(&mut self) -> Option<Message> {
        let mut message = self.head()?;
        if let Some(length) = message.field("content-length") {
            let bodyless = matches!(message.status(), 204 | 304);
            if !bodyless {
                message.body = self.bytes(length.parse().unwrap());
            }
        } else if message.field("transfer-encoding").is_some() {
            while !message.body.ends_with(b"0\r\n\r\n") {
                let byte = self.bytes(1);
                message.body.extend(byte);
            }
        }
        Some(message)
    }

    /// Whether the peer has closed in order, with nothing more to read.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.rest.is_empty() && matches!(self.more(), Ok(false))
    }

    /// Whether the peer has reset.
    pub(crate) fn is_reset(&mut self) -> bool {
        loop {
            match self.more() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// An HTTP endpoint that answers every request 200 with `body`, and keeps connections open.
pub(crate) fn http(body: &'static str) -> SocketAddr {
    http_with(move |request, _| {
        let _ = request;
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    })
}

/// An HTTP endpoint that answers with what `answer` says; its second argument counts the requests
/// of the connection from 0.
pub(crate) fn http_with(
    answer: impl Fn(&Message, usize) -> String + Send + Sync + 'static,
) -> SocketAddr {
    endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        let mut count = 0;
        while let Some(request) = reader.message() {
            let answer = answer(&request, count);
            if answer.is_empty() || reader.stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
            count += 1;
        }
    })
}

/// Closes with a RST.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

/// Current resident memory in bytes.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
