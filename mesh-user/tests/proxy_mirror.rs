//! Mirrors: what a shadow gets, and that its primary never notices it.

mod proxy_support;

use std::{
    future::poll_fn,
    hash::Hasher,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use mesh_user::model::{
    Backend, BreakerPolicy, DialFrom, EjectionPolicy, Endpoint, Fraction, Mirror, PathChoice,
    Policy, Port, Protocol, RuleExtra, Select, Service, Target,
};
use proxy_support::*;

const ALL: Fraction = Fraction::ALL;

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = twox_hash::XxHash64::with_seed(0);
    hasher.write(bytes);
    hasher.finish()
}

/// A service `shop/shadow` beside `shop/web`, whose one endpoint is `at`; its number.
fn shadow(plan: &mut Plan, at: SocketAddr, protocol: Protocol) -> usize {
    let number = plan.model.services.len();
    plan.model.services.push(Service {
        name: format!("shadow{number}"),
        namespace: "shop".into(),
        hostnames: Vec::new(),
        addresses: Vec::new(),
        ports: vec![Port {
            name: "main".into(),
            number: 80,
            target: at.port(),
            protocol,
            path: PathChoice::Proxy,
            tls: None,
        }],
        versions: [].into(),
        endpoints: vec![Endpoint {
            address: at.ip(),
            ..Endpoint::default()
        }],
        routable: true,
        dial_from: DialFrom::Workload,
    });
    number
}

fn mirror(service: usize, fraction: Fraction, compare: bool) -> Mirror {
    Mirror {
        target: Target {
            backend: Some(Backend { service, port: 80 }),
            ..Target::default()
        },
        fraction,
        compare,
    }
}

/// Everything to `up`, and mirrors of all of it.
fn plan(protocol: Protocol, up: SocketAddr, shadows: &[(SocketAddr, Fraction, bool)]) -> Plan {
    let mut plan = Plan::new(protocol)
        .endpoint(up, "v1")
        .route(Vec::new(), &[("v1", 1)]);
    let mut extra = RuleExtra::default();
    for (at, fraction, compare) in shadows {
        let service = shadow(&mut plan, *at, protocol);
        extra
            .actions
            .mirrors
            .push(mirror(service, *fraction, *compare));
    }
    plan.model.rules[0].extra = Some(Box::new(extra));
    plan
}

fn of_shadow(plan: &mut Plan, change: impl FnOnce(&mut Policy)) {
    let mut policy = Policy {
        service: 1,
        ..Policy::default()
    };
    change(&mut policy);
    plan.model.policies.push(policy);
}

fn counted(mesh: &Mesh, result: &str) -> u64 {
    let result = format!("result=\"{result}\"");
    mesh.metric(&["mesh_mirror_total", "service=\"shop/shadow1\"", &result])
        .unwrap_or(0.0) as u64
}

/// What a shadow saw.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Saw {
    line: String,
    fields: Vec<(String, String)>,
    body: u64,
    length: usize,
}

impl Saw {
    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let field = fields.find(|(key, _)| key == name);
        field.map(|(_, value)| value.as_str())
    }
}

type Seen = Arc<Mutex<Vec<Saw>>>;

/// An HTTP/1.1 endpoint that answers everything with `answer` and notes what it got, with the
/// number of connections.
fn noting(answer: &'static str) -> (SocketAddr, Seen, Arc<AtomicUsize>) {
    let (seen, connections) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let (note, count) = (Arc::clone(&seen), Arc::clone(&connections));
    let address = endpoint(move |stream| {
        count.fetch_add(1, SeqCst);
        let mut reader = Reader::new(stream);
        while let Some(request) = reader.message() {
            let mut lines = request.head.lines();
            let line = lines.next().unwrap_or_default().to_owned();
            let fields = lines.filter_map(|line| line.split_once(": "));
            let body = if request.field("transfer-encoding").is_some() {
                unchunked(&request.body)
            } else {
                request.body.clone()
            };
            note.lock().unwrap().push(Saw {
                line,
                fields: fields
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                    .collect(),
                body: hash(&body),
                length: body.len(),
            });
            reader.send(answer);
        }
    });
    (address, seen, connections)
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return out;
        }
        out.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn post(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /p?q=1 HTTP/1.1\r\nhost: web\r\nx-a: b\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u64 ^ length as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The shadow holds on to what it gets until the test has ended, so a primary that waited for it
/// in any way would never be answered.
#[test]
fn primary_is_served_whatever_befalls_its_shadow() {
    let hanging = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while reader.more().unwrap_or(false) {}
    });
    let unread = endpoint(|stream| {
        thread::park();
        drop(stream);
    });
    let (closing, resetting) = (endpoint(drop), endpoint(reset));
    let rubbish = endpoint(|stream| {
        Reader::new(stream).send("SSH-2.0-x\r\n");
    });
    let half = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let _request = reader.message();
        reader.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
    });
    for (name, at, results) in [
        ("down", nobody(), &["failed_connect"][..]),
        ("hanging", hanging, &["sent"]),
        ("reading nothing", unread, &["sent"]),
        // The reset may overtake the end of the handshake.
        ("closing", closing, &["failed_reset", "failed_connect"]),
        ("resetting", resetting, &["failed_reset", "failed_connect"]),
        ("no HTTP", rubbish, &["failed_reset"]),
        ("half an answer", half, &["failed_reset"]),
    ] {
        let (up, seen, _) = noting(OK);
        let mesh = Mesh::start(plan(Protocol::Http, up, &[(at, ALL, true)]));
        let mut client = Reader::new(mesh.connect());
        let body = random(100_000);
        for _ in 0..20 {
            client.send(post(&body));
            let answer = client.message().unwrap();
            assert_eq!(
                (answer.status(), answer.text()),
                (200, "ok".into()),
                "{name}"
            );
        }
        assert_eq!(
            seen.lock().unwrap().len(),
            20,
            "{name}: delivered once each"
        );
        eventually(name, || {
            results.iter().map(|it| counted(&mesh, it)).sum::<u64>() == 20
        });
        let endpoint = mesh.snapshot();
        for version in endpoint.versions.iter() {
            let ejected = version.endpoints.iter().any(|it| !it.live.is_eligible());
            assert!(!ejected, "{name}");
        }
    }
}

#[test]
fn copy_has_method_path_fields_and_the_same_body() {
    let chunked = |body: &[u8]| {
        let mut bytes = b"POST /p?q=1 HTTP/1.1\r\nhost: web\r\nx-a: b\r\n\
                          transfer-encoding: chunked\r\n\r\n"
            .to_vec();
        for chunk in body.chunks(7000) {
            bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    };
    let (up, primary, _) = noting(OK);
    let (at, seen, connections) = noting(OK);
    let mesh = Mesh::start(plan(Protocol::Http, up, &[(at, ALL, false)]));
    let mut client = Reader::new(mesh.connect());
    let mut expected = 0;
    for length in [0, 1, 64 << 10, 200_000] {
        let body = random(length);
        for bytes in [post(&body), chunked(&body)] {
            client.send(bytes);
            assert_eq!(client.message().unwrap().status(), 200);
            expected += 1;
            // One after the other, so that the order of both lists is the same.
            eventually("its answer", || counted(&mesh, "answered") == expected);
        }
    }
    let (primary, seen) = (primary.lock().unwrap(), seen.lock().unwrap());
    for (primary, copy) in primary.iter().zip(seen.iter()) {
        assert_eq!(copy.line, primary.line);
        assert_eq!((copy.body, copy.length), (primary.body, primary.length));
        for name in ["host", "x-a", "x-request-id", "content-length"] {
            assert_eq!(copy.field(name), primary.field(name), "{name}");
        }
    }
    assert_eq!(
        connections.load(SeqCst),
        1,
        "idle connections are used again"
    );
    assert_eq!(seen.len(), 8);
}

#[test]
fn get_has_no_body_in_its_copy_either() {
    let (at, seen, _) = noting(OK);
    let mesh = Mesh::start(plan(Protocol::Http, http("ok"), &[(at, ALL, false)]));
    let mut client = Reader::new(mesh.connect());
    client.send("GET / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(client.message().unwrap().status(), 200);
    eventually("the copy", || seen.lock().unwrap().len() == 1);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].line, "GET / HTTP/1.1");
    for name in ["content-length", "transfer-encoding", "expect"] {
        assert_eq!(seen[0].field(name), None, "{name}");
    }
}

#[test]
fn share_of_mirrored_requests_is_the_fraction() {
    let (at, seen, _) = noting(OK);
    let fraction = Fraction {
        numerator: 30,
        denominator: 100,
    };
    let mesh = Mesh::start(plan(Protocol::Http, http("ok"), &[(at, fraction, false)]));
    let mut client = Reader::new(mesh.connect());
    let n = 3000;
    for _ in 0..n {
        client.send(GET);
        assert_eq!(client.message().unwrap().status(), 200);
        // Fewer in flight than may be: nothing is skipped.
        eventually("answers", || {
            counted(&mesh, "sent") < counted(&mesh, "answered") + 100
        });
    }
    eventually("all answers", || {
        counted(&mesh, "sent") == counted(&mesh, "answered")
    });
    let (got, expected) = (seen.lock().unwrap().len() as f64, f64::from(n) * 0.3);
    let sigma = (expected * 0.7).sqrt();
    assert!((got - expected).abs() <= 3.0 * sigma, "{got} of {n}");
    assert_eq!(counted(&mesh, "skipped_in_flight"), 0);
}

#[test]
fn every_mirror_of_the_rule_and_of_the_chosen_target_gets_a_copy() {
    let shadows: Vec<_> = (0..4).map(|_| noting(OK)).collect();
    let mut plan = plan(
        Protocol::Http,
        http("ok"),
        &[(shadows[0].0, ALL, false), (shadows[1].0, ALL, false)],
    );
    let own = shadow(&mut plan, shadows[2].0, Protocol::Http);
    let other = shadow(&mut plan, shadows[3].0, Protocol::Http);
    for (service, weight) in [(own, 1), (other, 0)] {
        let mut target = Target {
            select: Select::Version("v1".into()),
            weight,
            ..Target::default()
        };
        target
            .actions
            .get_or_insert_default()
            .mirrors
            .push(mirror(service, ALL, false));
        plan.model.rules[0].route.push(target);
    }
    plan.model.rules[0].route.remove(0);
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    client.send(post(b"to all"));
    assert_eq!(client.message().unwrap().status(), 200);
    for (_, seen, _) in &shadows[..3] {
        eventually("the copy", || seen.lock().unwrap().len() == 1);
        assert_eq!(seen.lock().unwrap()[0].body, hash(b"to all"));
    }
    assert!(shadows[3].1.lock().unwrap().is_empty(), "another target's");
}

#[test]
fn answers_are_compared_by_status_and_body() {
    for (answer, result) in [
        (OK, "same"),
        // The same payload in another framing.
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
            "same",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
            "body_differs",
        ),
        (
            "HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nok",
            "status_differs",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            "not_compared",
        ),
    ] {
        let (at, _, _) = noting(answer);
        let chunks =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\n\r\n";
        for up in [OK, chunks] {
            let (up, _, _) = noting(up);
            let mesh = Mesh::start(plan(Protocol::Http, up, &[(at, ALL, true)]));
            let mut client = Reader::new(mesh.connect());
            client.send(GET);
            assert_eq!(client.message().unwrap().status(), 200);
            eventually(result, || counted(&mesh, result) == 1);
        }
    }
}

#[test]
fn mirrors_in_flight_are_bounded_and_the_rest_is_counted() {
    let hanging = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while reader.more().unwrap_or(false) {}
    });
    let mesh = Mesh::start(plan(Protocol::Http, http("ok"), &[(hanging, ALL, false)]));
    let mut client = Reader::new(mesh.connect());
    for _ in 0..300 {
        client.send(GET);
        assert_eq!(client.message().unwrap().status(), 200);
    }
    eventually("the bound", || counted(&mesh, "sent") == 256);
    assert_eq!(counted(&mesh, "skipped_in_flight"), 44);
    // They hold connections of the shadow's version, and let go of them with their workload.
    let open = || {
        let snapshot = mesh.snapshot();
        let gauges = snapshot.versions.iter().map(|it| it.breaker.gauges());
        gauges.map(|it| it.requests + it.connections).sum::<u32>()
    };
    assert!(open() >= 512);
    let workers = mesh.workers.as_ref().unwrap();
    workers.send(0, mesh_user::proxy::Command::Release { pod_id: 7 });
    eventually("everything is let go", || open() == 0);
    eventually("all are counted", || counted(&mesh, "cut_short") == 256);
}

#[test]
fn mirror_takes_a_permit_that_is_free_and_waits_for_none() {
    let hanging = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while reader.more().unwrap_or(false) {}
    });
    let caps: [fn(&mut BreakerPolicy); 2] = [
        |caps| caps.max_requests = 2,
        |caps| caps.max_connections = 2,
    ];
    for cap in caps {
        let mut plan = plan(Protocol::Http, http("ok"), &[(hanging, ALL, false)]);
        of_shadow(&mut plan, |policy| {
            cap(policy.breaker.get_or_insert_default())
        });
        let mesh = Mesh::start(plan);
        let mut client = Reader::new(mesh.connect());
        for _ in 0..5 {
            client.send(GET);
            assert_eq!(client.message().unwrap().status(), 200);
        }
        eventually("the rest is skipped", || {
            counted(&mesh, "skipped_overflow") == 3 && counted(&mesh, "sent") == 2
        });
    }
}

/// A permit that an idle connection of a mirror holds is free at once when a primary needs it.
#[test]
fn idle_connection_of_a_mirror_makes_room_for_a_primary() {
    let slow = http_with(|_, _| {
        thread::sleep(Duration::from_millis(300));
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into()
    });
    let copied = mesh_user::model::Match {
        path: Some(mesh_user::model::PathMatch::Exact("/copied".into())),
        ..Default::default()
    };
    let mut plan = Plan::new(Protocol::Http)
        .endpoint(slow, "v1")
        .route(vec![copied], &[("v1", 1)])
        .route(Vec::new(), &[("v1", 1)])
        .breaker(|caps| (caps.max_connections, caps.max_pending) = (2, 0));
    let mut extra = RuleExtra::default();
    extra.actions.mirrors.push(Mirror {
        target: Target {
            select: Select::Version("v1".into()),
            ..Target::default()
        },
        fraction: ALL,
        compare: false,
    });
    plan.model.rules[0].extra = Some(Box::new(extra));
    let mesh = Mesh::start(plan);
    let mut clients = [0, 1].map(|_| Reader::new(mesh.connect()));
    let first = clients[0].send("GET /copied HTTP/1.1\r\nhost: web\r\n\r\n");
    assert_eq!(first.message().unwrap().status(), 200);
    eventually("the copy is answered", || {
        mesh.metric(&["mesh_mirror_total", "shop/web", "result=\"answered\""]) == Some(1.0)
    });
    for client in &mut clients {
        client.send(GET);
    }
    for client in &mut clients {
        assert_eq!(client.message().unwrap().status(), 200);
    }
}

/// The mirror goes to the version of the primary itself, which then hears of failures twice as
/// often: only the primary's own count.
#[test]
fn failures_of_a_mirror_eject_no_endpoint() {
    let sick = http_with(|_, _| "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into());
    let mut plan = Plan::new(Protocol::Http)
        .endpoint(http("ok"), "v1")
        .endpoint(sick, "v2")
        .route(Vec::new(), &[("v1", 1)])
        .policy(|policy| {
            policy.ejection = Some(EjectionPolicy {
                consecutive_5xx: 1,
                max_percent: 100,
                ..EjectionPolicy::default()
            });
        });
    let mut extra = RuleExtra::default();
    extra.actions.mirrors.push(Mirror {
        target: Target {
            select: Select::Version("v2".into()),
            ..Target::default()
        },
        fraction: ALL,
        compare: false,
    });
    plan.model.rules[0].extra = Some(Box::new(extra));
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    for _ in 0..10 {
        client.send(GET);
        assert_eq!(client.message().unwrap().status(), 200);
    }
    eventually("all are answered", || {
        mesh.metric(&["mesh_mirror_total", "shop/web", "result=\"answered\""]) == Some(10.0)
    });
    let snapshot = mesh.snapshot();
    let mut endpoints = snapshot.versions.iter().flat_map(|it| &it.endpoints);
    assert!(endpoints.all(|endpoint| endpoint.live.is_eligible()));
}

#[test]
fn request_to_upgrade_has_no_copy() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let _request = reader.head();
        reader.send("HTTP/1.1 101 Ok\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello");
    });
    let (at, seen, _) = noting(OK);
    let mesh = Mesh::start(plan(Protocol::Http, up, &[(at, ALL, true)]));
    let mut client = Reader::new(mesh.connect());
    client.send("GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 101);
    assert_eq!(client.bytes(5), b"hello");
    assert_eq!(counted(&mesh, "skipped_upgrade"), 1);
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn request_whose_body_breaks_off_is_cut_short_at_the_shadow() {
    let cut = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&cut);
    let at = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        let head = reader.head().unwrap();
        assert_eq!(head.field("content-length").as_deref(), Some("100"));
        let body = reader.all();
        assert!(body.len() < 100, "not taken for whole");
        count.fetch_add(1, SeqCst);
    });
    let mesh = Mesh::start(plan(Protocol::Http, http("ok"), &[(at, ALL, false)]));
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 100\r\n\r\nhalf");
    eventually("it was sent", || counted(&mesh, "sent") == 1);
    drop(client);
    eventually("it is cut", || cut.load(SeqCst) == 1);
    eventually("it is counted", || counted(&mesh, "cut_short") == 1);
}

/// What an HTTP/2 shadow saw: the head, a hash of the body, the trailers.
type SeenHttp2 = Arc<Mutex<Vec<(Request<()>, u64, Option<HeaderMap>)>>>;

/// An HTTP/2 endpoint that answers with `body` and `grpc-status: 0`, and notes what it got.
fn noting_http2(body: &'static str) -> (SocketAddr, SeenHttp2) {
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    let seen = SeenHttp2::default();
    let note = Arc::clone(&seen);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let note = Arc::clone(&note);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let note = Arc::clone(&note);
                        tokio::spawn(async move {
                            let (parts, mut from) = request.into_parts();
                            let mut all = Vec::new();
                            while let Some(Ok(data)) = from.data().await {
                                let _ = from.flow_control().release_capacity(data.len());
                                all.extend_from_slice(&data);
                            }
                            let trailers = from.trailers().await.unwrap_or(None);
                            let request = Request::from_parts(parts, ());
                            note.lock().unwrap().push((request, hash(&all), trailers));
                            let mut out = respond.send_response(Response::new(()), false).unwrap();
                            out.send_data(Bytes::from_static(body.as_bytes()), false)
                                .unwrap();
                            let mut trailers = HeaderMap::new();
                            trailers.insert("grpc-status", "0".parse().unwrap());
                            out.send_trailers(trailers).unwrap();
                        });
                    }
                });
            }
        });
    });
    (address, seen)
}

#[test]
fn stream_of_http2_is_copied_with_body_and_trailers_and_compared() {
    for (answer, result) in [("ok", "same"), ("other", "body_differs")] {
        let (up, primary) = noting_http2("ok");
        let (at, seen) = noting_http2(answer);
        let mesh = Mesh::start(plan(Protocol::Http2, up, &[(at, ALL, true)]));
        let sizes = [0, 1, 64 << 10, 300_000];
        block(async {
            let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
            let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            for size in sizes {
                sender = sender.ready().await.unwrap();
                let request = Request::builder()
                    .method("POST")
                    .uri("http://web/s/m")
                    .header("x-a", "b")
                    .body(())
                    .unwrap();
                let (response, mut out) = sender.send_request(request, false).unwrap();
                let mut body = Bytes::from(random(size));
                while !body.is_empty() {
                    out.reserve_capacity(body.len());
                    let room = poll_fn(|cx| out.poll_capacity(cx)).await.unwrap().unwrap();
                    let part = body.split_to(room.min(body.len()));
                    out.send_data(part, false).unwrap();
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", "1".parse().unwrap());
                out.send_trailers(trailers).unwrap();
                let mut answer = response.await.unwrap().into_body();
                while let Some(data) = answer.data().await {
                    let length = data.unwrap().len();
                    answer.flow_control().release_capacity(length).unwrap();
                }
            }
        });
        eventually("the copies", || seen.lock().unwrap().len() == sizes.len());
        eventually(result, || counted(&mesh, result) == sizes.len() as u64);
        let (primary, seen) = (primary.lock().unwrap(), seen.lock().unwrap());
        for size in sizes {
            let wanted = hash(&random(size));
            let (request, _, trailers) = seen.iter().find(|it| it.1 == wanted).unwrap();
            assert!(primary.iter().any(|it| it.1 == wanted));
            assert_eq!(request.uri(), "http://web/s/m");
            assert_eq!(request.headers()["x-a"], "b");
            assert_eq!(trailers.as_ref().unwrap()["x-sum"], "1");
        }
    }
}

#[test]
fn copy_is_in_http2_where_the_mirrors_port_says_so() {
    let (at, seen) = noting_http2("ok");
    let mut plan = plan(Protocol::Http, http("ok"), &[(at, ALL, true)]);
    plan.model.services[1].ports[0].protocol = Protocol::Http2;
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    client.send(post(b"bridged"));
    assert_eq!(client.message().unwrap().status(), 200);
    eventually("the copy", || seen.lock().unwrap().len() == 1);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].0.uri(), "http://web/p?q=1");
    assert_eq!(seen[0].0.headers().get("host"), None);
    assert_eq!(seen[0].1, hash(b"bridged"));
}

/// The answer of a hanging shadow is waited for as long as the version's time-out says.
#[test]
fn shadow_that_does_not_answer_is_given_up_in_time() {
    let hanging = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while reader.more().unwrap_or(false) {}
    });
    let mut plan = plan(Protocol::Http, http("ok"), &[(hanging, ALL, true)]);
    of_shadow(&mut plan, |policy| {
        policy.timeouts.request = Some(Duration::from_millis(50));
    });
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    client.send(GET);
    assert_eq!(client.message().unwrap().status(), 200);
    eventually("given up", || counted(&mesh, "failed_timeout") == 1);
    eventually("not compared", || counted(&mesh, "not_compared") == 1);
}
