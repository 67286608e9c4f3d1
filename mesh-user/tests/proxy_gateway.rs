//! The cases of Gateway API end to end: a client, the proxy, backends that say who they are and
//! what they were asked.

mod gateway_table;
mod proxy_support;

use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use gateway_table::*;
use mesh_user::{model::Protocol, proxy::wire::OriginLookup};
use proxy_support::{Mesh, Plan, Reader, bind, endpoint, eventually, reset};

/// What the client dialled, as the kernel's flow table would say.
#[derive(Debug, Default)]
struct Dialled(Mutex<Option<SocketAddr>>);

impl OriginLookup for Dialled {
    fn asked(&self, _: u32, _: SocketAddr, _: SocketAddr) -> Option<SocketAddr> {
        *self.0.lock().unwrap()
    }

    fn sent_to_loopback(&self, _: BorrowedFd<'_>) -> Option<SocketAddr> {
        *self.0.lock().unwrap()
    }
}

/// How often each backend saw each target.
type Seen = Arc<Mutex<HashMap<(String, String), usize>>>;

/// Backends by label and protocol.
struct Backends {
    at: HashMap<(String, String), SocketAddr>,
    seen: Seen,
}

impl Backends {
    fn start() -> Self {
        let mut out = Self {
            at: HashMap::new(),
            seen: Seen::default(),
        };
        let failures: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        for service in SERVICES {
            let label = service.label;
            let (seen, failures) = (Arc::clone(&out.seen), Arc::clone(&failures));
            let http = endpoint(move |stream| http(Reader::new(stream), label, &seen, &failures));
            let tcp = endpoint(move |mut stream| {
                // Answers in any case; the client closes.
                let _gone = stream.write_all(label.as_bytes());
            });
            let tls = endpoint(move |mut stream| {
                // To close before the ClientHello is read would be a reset.
                let mut hello = [0; 1 << 14];
                if stream.read(&mut hello).is_ok_and(|len| len > 0) {
                    let _gone = stream.write_all(label.as_bytes());
                }
            });
            let grpc = grpc(label);
            for (protocol, address) in [("http", http), ("tcp", tcp), ("tls", tls), ("grpc", grpc)]
            {
                out.at
                    .insert((label.to_owned(), protocol.to_owned()), address);
            }
        }
        out
    }

    fn at(&self, label: &str, protocol: &str) -> SocketAddr {
        self.at[&(label.to_owned(), protocol.to_owned())]
    }

    fn saw(&self, label: &str, target: &str) -> usize {
        let key = (label.to_owned(), target.to_owned());
        self.seen.lock().unwrap().get(&key).copied().unwrap_or(0)
    }
}

/// Answers with its label in a field and what it was asked in the body.
fn http(mut reader: Reader, label: &str, seen: &Seen, failures: &Mutex<HashMap<String, usize>>) {
    while let Some(request) = reader.message() {
        let target = request
            .head
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        let key = (label.to_owned(), target);
        *seen.lock().unwrap().entry(key).or_default() += 1;
        let mut status = 200;
        if let Some(fail) = request.field("x-fail") {
            let (what, times) = fail.split_once(',').unwrap();
            let id = request.field("x-case").unwrap_or_default();
            let mut failures = failures.lock().unwrap();
            let failed = failures.entry(id).or_default();
            let fails = *failed < times.trim().parse().unwrap();
            *failed += usize::from(fails);
            drop(failures);
            match what {
                _ if !fails => {}
                "slow" => thread::sleep(Duration::from_millis(1500)),
                "reset" => return reset(reader.stream),
                pause if pause.ends_with("ms") => {
                    let pause = pause.trim_end_matches("ms").parse().unwrap();
                    thread::sleep(Duration::from_millis(pause));
                }
                code => status = code.parse().unwrap(),
            }
        }
        if let Some(delay) = request.field("x-delay") {
            // The backend is slow on purpose.
            thread::sleep(Duration::from_millis(delay.parse().unwrap()));
        }
        let mut more = String::new();
        if let Some((name, value)) = request
            .field("x-answer")
            .as_deref()
            .and_then(|f| f.split_once('='))
        {
            more = format!("{name}: {value}\r\n");
        }
        let body = if request.head.starts_with("HEAD ") {
            ""
        } else {
            &request.head
        };
        let answer = format!(
            "HTTP/1.1 {status} X\r\nx-backend: {label}\r\n{more}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        if reader.stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// A gRPC server: answers every call with its label, and says in fields what it was asked.
fn grpc(label: &'static str) -> SocketAddr {
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let mut response = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .header("x-backend", label);
                        for (name, value) in request.headers() {
                            response = response.header(format!("saw-{name}"), value);
                        }
                        let Ok(mut out) = respond.send_response(response.body(()).unwrap(), false)
                        else {
                            continue;
                        };
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        let _gone = out.send_trailers(trailers);
                    }
                });
            }
        });
    });
    address
}

/// What came back.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    backend: Option<String>,
    /// Fields of the answer.
    fields: Vec<(String, String)>,
    /// Fields of the request, as the backend saw them.
    seen: Vec<(String, String)>,
    /// The target, as the backend saw it.
    target: String,
}

impl Answer {
    /// The backend of a good answer, else the status.
    fn outcome(&self) -> String {
        match &self.backend {
            Some(backend) if self.status == 200 => backend.clone(),
            _ if self.status == 0 => "closed".to_owned(),
            _ => self.status.to_string(),
        }
    }
}

/// The ClientHello of a client that means this server.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

/// All values of a field, without spaces, joined.
fn joined(fields: &[(String, String)], name: &str) -> Option<String> {
    let values: Vec<String> = fields
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.replace(' ', ""))
        .collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn fields(head: &str) -> Vec<(String, String)> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

struct Stage {
    mesh: Mesh,
    dialled: Arc<Dialled>,
}

impl Stage {
    fn new(case: &Case, backends: &Backends) -> Self {
        let config = scene(&case.routes, |label, protocol| backends.at(label, protocol));
        let mut plan = Plan::new(Protocol::Http);
        plan.model = config.model;
        // The listener's own address must mean nothing, so that the flow table is asked.
        plan.addresses = vec![SocketAddr::from(([192, 0, 2, 1], 9))];
        let dialled = Arc::new(Dialled::default());
        let origins: Arc<dyn OriginLookup> = Arc::clone(&dialled) as _;
        let mesh = Mesh::with_origins(plan, 1, |_| {}, origins);
        Self { mesh, dialled }
    }

    fn ask(&self, request: &Request, case: &str, cookie: Option<&str>) -> Answer {
        *self.dialled.0.lock().unwrap() = Some(virtual_address(request.to, request.port));
        match request.method {
            "TCP" => {
                let got = Reader::new(self.mesh.connect()).all();
                let got = String::from_utf8(got).unwrap();
                let status = if got.is_empty() { 500 } else { 200 };
                Answer {
                    status,
                    backend: (!got.is_empty()).then_some(got),
                    ..Answer::default()
                }
            }
            "TLS" => {
                let mut client = Reader::new(self.mesh.connect());
                client.send(hello(request.target));
                let got = String::from_utf8(client.all()).unwrap();
                Answer {
                    status: if got.is_empty() { 0 } else { 200 },
                    backend: (!got.is_empty()).then_some(got),
                    ..Answer::default()
                }
            }
            "GRPC" => self.call(request),
            _ => self.request(request, case, cookie),
        }
    }

    fn request(&self, request: &Request, case: &str, cookie: Option<&str>) -> Answer {
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
        if !request.headers.iter().any(|(name, _)| *name == "host") {
            head.push_str("host: echo\r\n");
        }
        for (name, value) in &request.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(cookie) = cookie {
            head.push_str(&format!("cookie: {cookie}\r\n"));
        }
        head.push_str(&format!("x-case: {case} {}\r\n\r\n", request.line));
        let mut client = Reader::new(self.mesh.connect());
        client.send(head);
        let answer = if request.method == "HEAD" {
            client.head()
        } else {
            client.message()
        };
        let answer = answer.unwrap_or_else(|| panic!("{case}: {}: no answer", request.line));
        let seen = answer.text();
        Answer {
            status: answer.status(),
            backend: answer.field("x-backend"),
            fields: fields(&answer.head),
            target: seen.split(' ').nth(1).unwrap_or_default().to_owned(),
            seen: fields(&seen),
        }
    }

    fn call(&self, request: &Request) -> Answer {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(self.mesh.address)
                .await
                .unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let mut sender = sender.ready().await.unwrap();
            let mut head = http::Request::builder()
                .method("POST")
                .uri(format!("http://echo{}", request.target))
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            for (name, value) in &request.headers {
                head = head.header(*name, *value);
            }
            let (response, _) = sender.send_request(head.body(()).unwrap(), true).unwrap();
            let response = tokio::time::timeout(proxy_support::PATIENCE, response)
                .await
                .expect("an answer in time")
                .unwrap();
            let of = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
                (name.to_string(), value.to_str().unwrap().to_owned())
            };
            let all: Vec<(String, String)> = response.headers().iter().map(of).collect();
            let status = match joined(&all, "grpc-status").as_deref() {
                None => 200,
                Some("12") => 404,
                Some("13") => 500,
                Some("14") => 503,
                Some(other) => panic!("grpc-status {other}"),
            };
            let seen = all
                .iter()
                .filter_map(|(name, value)| {
                    Some((name.strip_prefix("saw-")?.to_owned(), value.clone()))
                })
                .collect();
            Answer {
                status,
                backend: joined(&all, "x-backend"),
                fields: all,
                seen,
                target: String::new(),
            }
        })
    }
}

fn assert_rest(case: &Case, request: &Request, answer: &Answer, backends: &Backends) {
    for (what, wanted) in &request.asserts {
        let place = format!("{}: {}: {what}: {answer:?}", case.name, request.line);
        let backend = answer.backend.clone().unwrap_or_default();
        let wanted = wanted.replace("{backend}", &backend);
        let field = |fields: &[(String, String)], name: &str| {
            joined(fields, name).unwrap_or_else(|| "-".to_owned())
        };
        match what.split_once('.') {
            Some(("req", name)) => assert_eq!(field(&answer.seen, name), wanted, "{place}"),
            Some(("res", name)) => assert_eq!(field(&answer.fields, name), wanted, "{place}"),
            _ => match *what {
                "path" => assert_eq!(answer.target, wanted, "{place}"),
                "host" => assert_eq!(field(&answer.seen, "host"), wanted, "{place}"),
                "location" => {
                    let port = format!("http://echo:{}/", request.port);
                    // The listener's port; 80 is left out.
                    let got = field(&answer.fields, "location").replace(&port, "http://echo/");
                    assert_eq!(got, wanted, "{place}");
                }
                "mirror" => eventually(&place, || backends.saw(&wanted, request.target) > 0),
                "nomirror" => assert_eq!(backends.saw(&wanted, request.target), 0, "{place}"),
                _ => panic!("{place}"),
            },
        }
    }
}

#[test]
fn gateway_cases_pass_through_the_proxy() {
    let backends = Backends::start();
    let asked = AtomicUsize::new(0);
    for case in cases().iter().filter(|case| case.is_ready()) {
        let stage = Stage::new(case, &backends);
        // The listener is one workload's; what others get is decided by the same code, and tested
        // in `unit_gateway`.
        let mine = |request: &&Request| request.from == Some("shop/client");
        for request in case.requests.iter().filter(mine) {
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            let mut cookie: Option<String> = None;
            for _ in 0..request.times {
                let answer = stage.ask(request, case.name, cookie.as_deref());
                *counts.entry(answer.outcome()).or_default() += 1;
                asked.fetch_add(1, Ordering::Relaxed);
                assert_rest(case, request, &answer, &backends);
                if let Some(name) = request.session
                    && let Some(set) = joined(&answer.fields, "set-cookie")
                {
                    let pair = set.split(';').next().unwrap_or_default().to_owned();
                    assert!(pair.starts_with(&format!("{name}=")), "{set}");
                    cookie = Some(pair);
                }
            }
            let place = format!("{}: {}: {counts:?}", case.name, request.line);
            if request.counts.is_empty() {
                assert_eq!(counts.len(), 1, "{place}");
                let got = counts.keys().next().unwrap().as_str();
                let same = request.outcome == ["same"];
                assert!(same || request.outcome.contains(&got), "{place}");
            } else {
                let wanted: BTreeMap<String, usize> = request
                    .counts
                    .iter()
                    .map(|(what, count)| ((*what).to_owned(), *count))
                    .collect();
                assert_eq!(counts, wanted, "{place}");
            }
        }
    }
    let asked = asked.into_inner();
    assert!(asked > 500, "{asked}");
}
