//! Rate limits of one node at the sockets: bytes, concurrency, dry runs, answers, over HTTP/1,
//! HTTP/2, gRPC and TCP.

mod proxy_support;

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use mesh_user::{
    model::{
        Attribute, LimitUnit, Match, Protocol, RateLimitPolicy, Rule, RuleExtra, Target,
        limit::LimitAnswer,
    },
    telemetry::Scrape,
};
use proxy_support::*;

fn limit(name: &str, requests: u64, per_s: u64, burst: u64) -> RateLimitPolicy {
    RateLimitPolicy {
        name: name.into(),
        requests,
        per: Duration::from_secs(per_s),
        burst,
        ..RateLimitPolicy::default()
    }
}

fn concurrent(most: u64) -> RateLimitPolicy {
    RateLimitPolicy {
        unit: LimitUnit::Concurrent,
        ..limit("at-once", most, 0, most)
    }
}

fn limited(protocol: Protocol, address: SocketAddr, limits: Vec<RateLimitPolicy>) -> Plan {
    Plan::new(protocol)
        .endpoint(address, "v1")
        .policy(|policy| policy.rate_limits = limits)
}

/// What `/metrics` says of a limit, `result` by result.
fn counted(mesh: &Mesh, limit: &str, result: &str) -> f64 {
    let mut scrape = Scrape::default();
    scrape.breakers(&mesh.snapshot());
    let mut text = String::new();
    mesh.telemetry.expose_to(&scrape, &mut text).unwrap();
    let wanted = [
        "mesh_rate_limit_total{".to_owned(),
        "service=\"shop/web\"".to_owned(),
        format!("limit=\"{limit}\""),
        format!("result=\"{result}\""),
    ];
    let line = text
        .lines()
        .find(|line| wanted.iter().all(|part| line.contains(part)));
    let line = line.unwrap_or_else(|| panic!("no series of {limit} {result} in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A gate that endpoints wait at.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn pass(&self) {
        let (open, changed) = &*self.0;
        let mut open = open.lock().unwrap();
        while !*open {
            open = changed.wait_timeout(open, PATIENCE).unwrap().0;
        }
    }

    fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap()
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

async fn h2_client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn request(grpc: bool) -> Request<()> {
    let request = Request::post("http://web/s/m");
    let request = if grpc {
        request
            .header("content-type", "application/grpc")
            .header("te", "trailers")
    } else {
        request
    };
    request.body(()).unwrap()
}

/// An HTTP/2 endpoint that answers 200 at once, with `grpc-status: 0`.
fn h2_endpoint() -> SocketAddr {
    h2_endpoint_with(Gate::default())
}

/// The same; `/slow` waits at the gate.
fn h2_endpoint_with(gate: Gate) -> SocketAddr {
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
                let gate = gate.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let gate = gate.clone();
                        tokio::spawn(async move {
                            while request.uri().path() == "/slow" && !gate.is_open() {
                                tokio::time::sleep(Duration::from_millis(1)).await;
                            }
                            let response = http::Response::builder()
                                .header("grpc-status", "0")
                                .body(())
                                .unwrap();
                            let _gone = respond.send_response(response, true);
                        });
                    }
                });
            }
        });
    });
    address
}

#[test]
fn concurrency_limit_holds_a_place_until_the_answers_end() {
    let gate = Gate::default();
    let own = gate.clone();
    let address = http_with(move |request, _| {
        if request.head.starts_with("GET /slow") {
            own.pass();
        }
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned()
    });
    let mesh = Mesh::start(limited(Protocol::Http, address, vec![concurrent(2)]));
    let mut slow = [Reader::new(mesh.connect()), Reader::new(mesh.connect())];
    for client in &mut slow {
        client.send("GET /slow HTTP/1.1\r\nhost: web\r\n\r\n");
    }
    eventually("both are under way", || {
        counted(&mesh, "at-once", "admitted") == 2.0
    });
    let mut third = Reader::new(mesh.connect());
    let answer = third.send(GET).message().unwrap();
    assert_eq!(answer.status(), 429);
    let policy = answer.field("ratelimit-policy").unwrap();
    assert_eq!(policy, "\"at-once\";q=2;qu=\"concurrent-requests\"");
    assert_eq!(answer.field("ratelimit").unwrap(), "\"at-once\";r=0");
    assert_eq!(answer.field("retry-after"), None, "nobody knows when");
    gate.open();
    for client in &mut slow {
        assert_eq!(client.message().unwrap().status(), 200);
    }
    eventually("the places are free again", || {
        third.send(GET).message().unwrap().status() == 200
    });
    // A client that goes away gives its place back too.
    let mut gone = Reader::new(mesh.connect());
    gone.send(GET);
    drop(gone);
    eventually("every place is free", || {
        let answers = [0, 1].map(|_| third.send(GET).message().unwrap().status());
        answers == [200, 200]
    });
}

#[test]
fn bytes_of_both_bodies_are_charged_at_the_end_and_the_debt_is_paid_off_first() {
    let address = http_with(|_, _| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 2800\r\n\r\n{}",
            "x".repeat(2_800)
        )
    });
    let bytes = RateLimitPolicy {
        unit: LimitUnit::Bytes,
        ..limit("volume", 2_000, 1, 1_000)
    };
    let mesh = Mesh::start(limited(Protocol::Http, address, vec![bytes]));
    let mut client = Reader::new(mesh.connect());
    let body = "y".repeat(2_000);
    client.send(format!(
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 2000\r\n\r\n{body}"
    ));
    assert_eq!(client.message().unwrap().body.len(), 2_800);
    // 1,000 of 4,800 were there: a debt of 3,800, which takes nearly two seconds.
    let refused = client.send(GET).message().unwrap();
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.field("retry-after").as_deref(), Some("2"));
    let policy = refused.field("ratelimit-policy").unwrap();
    assert_eq!(policy, "\"volume\";q=1000;w=1;qu=\"content-bytes\"");
    let (start, wait) = (Instant::now(), Duration::from_secs(2));
    while start.elapsed() < wait {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(
        client.send(GET).message().unwrap().status(),
        200,
        "who waits is admitted"
    );
}

#[test]
fn opaque_connections_are_counted_while_open_and_reset_beyond() {
    let address = endpoint(|mut stream| {
        let _sent = stream.write_all(b"hello");
        let _closed = stream.read(&mut [0; 16]);
    });
    let mesh = Mesh::start(limited(Protocol::Tcp, address, vec![concurrent(1)]));
    let mut first = Reader::new(mesh.connect());
    assert_eq!(first.bytes(5), b"hello");
    assert!(Reader::new(mesh.connect()).is_reset());
    drop(first);
    eventually("its place is free", || {
        let mut next = Reader::new(mesh.connect());
        next.at_most(5) == b"hello"
    });
}

#[test]
fn opaque_connection_pays_for_its_bytes_when_it_ends() {
    let address = endpoint(|mut stream| {
        let _sent = stream.write_all(&[b'x'; 5_000]);
    });
    let bytes = RateLimitPolicy {
        unit: LimitUnit::Bytes,
        ..limit("volume", 1, 3_600, 1_000)
    };
    let mesh = Mesh::start(limited(Protocol::Tcp, address, vec![bytes]));
    let mut first = Reader::new(mesh.connect());
    assert_eq!(first.all().len(), 5_000, "nothing is cut");
    drop(first);
    eventually("the debt is there", || {
        Reader::new(mesh.connect()).is_reset()
    });
}

#[test]
fn dry_run_lets_everything_pass_marks_the_log_and_counts() {
    let dry = RateLimitPolicy {
        dry_run: true,
        ..limit("maybe", 1, 3_600, 2)
    };
    let mesh = Mesh::start(limited(Protocol::Http, http("ok"), vec![dry]));
    let mut client = Reader::new(mesh.connect());
    for _ in 0..5 {
        let answer = client.send(GET).message().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.field("ratelimit"), None, "it limits nobody");
    }
    eventually("all are logged", || mesh.records("request").len() == 5);
    let marked: Vec<_> = mesh
        .records("request")
        .iter()
        .map(|line| line["mesh.rate_limit_dry_run"].clone())
        .collect();
    assert_eq!(
        marked.iter().filter(|mark| *mark == "maybe").count(),
        3,
        "{marked:?}"
    );
    assert_eq!(counted(&mesh, "maybe", "admitted"), 2.0);
    assert_eq!(counted(&mesh, "maybe", "dry_run"), 3.0);
    assert_eq!(counted(&mesh, "maybe", "refused"), 0.0);
    assert_eq!(
        mesh.metric(&["mesh_rejects_total", "rate_limited"]),
        Some(0.0)
    );
}

#[test]
fn rule_has_its_own_limit_beside_the_versions() {
    let mut plan = limited(Protocol::Http, http("ok"), vec![limit("wide", 1, 3_600, 3)]);
    plan.model.rules.push(Rule {
        name: "puts".into(),
        matches: vec![Match {
            methods: vec!["PUT".into()].into(),
            ..Match::default()
        }],
        route: vec![Target::default()],
        extra: Some(Box::new(RuleExtra {
            rate_limits: vec![limit("narrow", 1, 3_600, 1)],
            ..RuleExtra::default()
        })),
        ..Rule::default()
    });
    plan.model.rules.push(Rule {
        name: "rest".into(),
        route: vec![Target::default()],
        ..Rule::default()
    });
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    let put = "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n";
    let mut status = |text: &str| client.send(text).message().unwrap().status();
    assert_eq!(
        [
            status(put),
            status(put),
            status(GET),
            status(GET),
            status(GET)
        ],
        [200, 429, 200, 200, 429]
    );
    assert_eq!(counted(&mesh, "rule/puts/narrow", "refused"), 1.0);
    assert_eq!(counted(&mesh, "wide", "admitted"), 3.0);
}

fn dressed(answer: LimitAnswer) -> RateLimitPolicy {
    RateLimitPolicy {
        answer,
        ..limit("few", 1, 60, 1)
    }
}

const ENVOY: LimitAnswer = LimitAnswer {
    status: 503,
    grpc_unavailable: true,
    draft_03: true,
    envoy_ratelimited: true,
};

#[test]
fn status_and_envoys_fields_are_options_on_http1() {
    let plan = limited(Protocol::Http, http("ok"), vec![dressed(ENVOY)]);
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    let admitted = client.send(GET).message().unwrap();
    assert_eq!(admitted.status(), 200);
    assert_eq!(
        admitted.field("x-ratelimit-remaining").as_deref(),
        Some("0")
    );
    assert_eq!(admitted.field("x-envoy-ratelimited"), None);
    let refused = client.send(GET).message().unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(
        refused.field("x-mesh-reject").as_deref(),
        Some("rate_limited")
    );
    assert_eq!(
        refused.field("x-ratelimit-limit").as_deref(),
        Some("1, 1;w=60;name=\"few\"")
    );
    assert_eq!(
        refused.field("x-ratelimit-reset"),
        refused.field("retry-after")
    );
    assert_eq!(
        refused.field("x-envoy-ratelimited").as_deref(),
        Some("true")
    );
    eventually("it is logged as answered", || {
        let lines = mesh.records("request");
        lines
            .iter()
            .any(|line| line["http.response.status_code"] == 503)
    });
    let plain = Mesh::start(limited(
        Protocol::Http,
        http("ok"),
        vec![dressed(LimitAnswer::default())],
    ));
    let mut client = Reader::new(plain.connect());
    for status in [200, 429] {
        let answer = client.send(GET).message().unwrap();
        assert_eq!(answer.status(), status);
        assert!(
            !answer.head.to_lowercase().contains("x-ratelimit"),
            "off by default"
        );
        assert!(!answer.head.to_lowercase().contains("x-envoy-ratelimited"));
    }
}

#[test]
fn status_and_envoys_fields_are_options_on_http2_and_grpc() {
    for (answer, grpc, status, code) in [
        (ENVOY, false, 503, None),
        (ENVOY, true, 200, Some("14")),
        (LimitAnswer::default(), false, 429, None),
        (LimitAnswer::default(), true, 200, Some("8")),
    ] {
        let protocol = if grpc {
            Protocol::Grpc
        } else {
            Protocol::Http2
        };
        let mesh = Mesh::start(limited(protocol, h2_endpoint(), vec![dressed(answer)]));
        block(async {
            let mut sender = h2_client(mesh.address).await;
            let first = sender
                .send_request(request(grpc), true)
                .unwrap()
                .0
                .await
                .unwrap();
            assert_eq!(first.status(), 200);
            assert_eq!(first.headers()["ratelimit-policy"], "\"few\";q=1;w=60");
            assert_eq!(
                first.headers().contains_key("x-ratelimit-limit"),
                answer.draft_03
            );
            let mut sender = sender.ready().await.unwrap();
            let refused = sender
                .send_request(request(grpc), true)
                .unwrap()
                .0
                .await
                .unwrap();
            assert_eq!(refused.status(), status);
            let headers = refused.headers();
            assert_eq!(headers["x-mesh-reject"], "rate_limited");
            assert_eq!(headers["retry-after"], "60");
            if let Some(code) = code {
                assert_eq!(headers["grpc-status"], code);
            }
            assert_eq!(
                headers.contains_key("x-envoy-ratelimited"),
                answer.envoy_ratelimited
            );
        });
    }
}

#[test]
fn concurrency_limit_counts_streams_of_one_connection() {
    let gate = Gate::default();
    let address = h2_endpoint_with(gate.clone());
    let mesh = Mesh::start(limited(Protocol::Http2, address, vec![concurrent(1)]));
    block(async {
        let mut sender = h2_client(mesh.address).await;
        let slow = Request::post("http://web/slow").body(()).unwrap();
        let (slow, _) = sender.send_request(slow, true).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (second, _) = sender.send_request(request(false), true).unwrap();
        let second = second.await.unwrap();
        assert_eq!(second.status(), 429, "one stream is under way");
        assert!(!second.headers().contains_key("retry-after"));
        gate.open();
        assert_eq!(slow.await.unwrap().status(), 200);
        // A stream that is cut short gives its place back too.
        let mut sender = sender.ready().await.unwrap();
        for _ in 0..50 {
            let (response, mut open) = sender.send_request(request(false), false).unwrap();
            open.send_reset(h2::Reason::CANCEL);
            drop(response);
            sender = sender.ready().await.unwrap();
        }
    });
    eventually("no place is lost", || {
        block(async {
            let mut sender = h2_client(mesh.address).await;
            let (response, _) = sender.send_request(request(false), true).unwrap();
            response.await.unwrap().status() == 200
        })
    });
}

/// A structured field list of strings with parameters (RFC 9651, section 4.2), strictly.
fn parse_list(field: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut rest = field;
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (name, after) = parse_string(rest);
        rest = after;
        let mut parameters = Vec::new();
        while let Some(after) = rest.strip_prefix(';') {
            let after = after.trim_start_matches(' ');
            let end = after
                .find(|c: char| {
                    !(c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c))
                })
                .unwrap_or(after.len());
            assert!(
                after.starts_with(|c: char| c.is_ascii_lowercase() || c == '*'),
                "key in {field}"
            );
            let key = after[..end].to_owned();
            let after = after[end..].strip_prefix('=').expect("a value");
            let (value, after) = if after.starts_with('"') {
                parse_string(after)
            } else if let Some(after) = after.strip_prefix(':') {
                let (value, after) = after.split_once(':').expect("the end of a byte sequence");
                assert!(value.len().is_multiple_of(4), "padding in {field}");
                let signs = value.trim_end_matches('=').bytes();
                assert!(
                    signs
                        .into_iter()
                        .all(|c| c.is_ascii_alphanumeric() || b"+/".contains(&c))
                );
                (value.to_owned(), after)
            } else {
                let end = after
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(after.len());
                assert!(
                    (1..=15).contains(&end),
                    "an integer of at most 15 digits in {field}"
                );
                (after[..end].to_owned(), &after[end..])
            };
            parameters.push((key, value));
            rest = after;
        }
        items.push((name, parameters));
        if rest.is_empty() {
            break;
        }
        rest = rest
            .trim_start_matches(' ')
            .strip_prefix(',')
            .expect("a comma");
        rest = rest.trim_start_matches(' ');
        assert!(!rest.is_empty(), "no comma at the end of {field}");
    }
    items
}

fn parse_string(text: &str) -> (String, &str) {
    let mut chars = text.strip_prefix('"').expect("a string").char_indices();
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 2..]),
            '\\' => {
                let (_, escaped) = chars.next().expect("an escaped sign");
                assert!(escaped == '"' || escaped == '\\');
                value.push(escaped);
            }
            ' '..='~' => value.push(c),
            other => panic!("{other:?} in a string"),
        }
    }
    panic!("no end of a string in {text}");
}

#[test]
fn fields_are_read_by_a_strict_parser_of_structured_fields() {
    let keyed = RateLimitPolicy {
        key: vec![Attribute::Header("x-user".into())],
        ..limit("per \"user\" \\ all", 10, 60, 5)
    };
    let bytes = RateLimitPolicy {
        unit: LimitUnit::Bytes,
        ..limit("volume", 1_000_000, 1, 2_000_000)
    };
    let limits = vec![keyed, bytes, concurrent(3), limit("plain", 7, 1, 7)];
    let mesh = Mesh::start(limited(Protocol::Http, http("ok"), limits));
    let mut client = Reader::new(mesh.connect());
    let mut partitions = Vec::new();
    for user in ["a", "a", "b"] {
        let answer = client
            .send(format!(
                "GET / HTTP/1.1\r\nhost: web\r\nx-user: {user}\r\n\r\n"
            ))
            .message()
            .unwrap();
        let policy = parse_list(&answer.field("ratelimit-policy").unwrap());
        let limit = parse_list(&answer.field("ratelimit").unwrap());
        let names = |list: &[(String, Vec<(String, String)>)]| -> Vec<String> {
            list.iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(
            names(&policy),
            ["per \"user\" \\ all", "volume", "at-once", "plain"]
        );
        assert_eq!(names(&policy), names(&limit));
        let get = |list: &[(String, Vec<(String, String)>)], at: usize, key: &str| {
            let found = list[at].1.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| value.clone())
        };
        assert_eq!(get(&policy, 0, "q").as_deref(), Some("5"));
        assert_eq!(get(&policy, 0, "w").as_deref(), Some("30"));
        assert_eq!(get(&policy, 1, "qu").as_deref(), Some("content-bytes"));
        assert_eq!(
            get(&policy, 2, "qu").as_deref(),
            Some("concurrent-requests")
        );
        assert_eq!(
            get(&policy, 3, "qu"),
            None,
            "requests are what it means anyway"
        );
        assert_eq!(get(&policy, 0, "pk"), get(&limit, 0, "pk"));
        assert_eq!(get(&policy, 3, "pk"), None);
        for at in [0, 1, 3] {
            assert!(get(&limit, at, "r").is_some() && get(&limit, at, "t").is_some());
        }
        partitions.push(get(&policy, 0, "pk").unwrap());
    }
    assert_eq!(partitions[0], partitions[1]);
    assert_ne!(partitions[0], partitions[2]);
}
