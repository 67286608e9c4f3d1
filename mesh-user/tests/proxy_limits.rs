//! Caps, queues, time-outs, drain: each at its limit and above.

mod proxy_support;

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_user::model::{Attribute, Protocol, RateLimitPolicy, RetryPolicy, TimeoutPolicy};
use mesh_user::proxy::wire::SocketSource;
use proxy_support::*;

fn one(address: SocketAddr) -> Plan {
    Plan::new(Protocol::Http).endpoint(address, "v1")
}

/// An endpoint that answers each request once the gate is open; counts requests and connections.
#[derive(Clone)]
struct Gate {
    open: Arc<Mutex<bool>>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

fn gated() -> (SocketAddr, Gate) {
    let gate = Gate {
        open: Arc::default(),
        requests: Arc::default(),
        connections: Arc::default(),
    };
    let own = gate.clone();
    let address = endpoint(move |stream| {
        own.connections.fetch_add(1, Ordering::SeqCst);
        let mut reader = Reader::new(stream);
        while reader.message().is_some() {
            own.requests.fetch_add(1, Ordering::SeqCst);
            eventually("the gate", || *own.open.lock().unwrap());
            if reader
                .stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .is_err()
            {
                break;
            }
        }
        own.connections.fetch_sub(1, Ordering::SeqCst);
    });
    (address, gate)
}

impl Gate {
    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn gauges(mesh: &Mesh) -> mesh_user::policy::breaker::Gauges {
    let snapshot = mesh.snapshot();
    snapshot
        .versions
        .iter()
        .map(|version| version.breaker.gauges())
        .max_by_key(|gauges| gauges.connections + gauges.requests + gauges.pending)
        .unwrap_or_default()
}

#[test]
fn max_requests_admits_exactly_its_number_over_two_workers() {
    for workers in [1, 2] {
        let (up, gate) = gated();
        let plan = one(up).breaker(|breaker| breaker.max_requests = 8);
        let mesh = Mesh::with(plan, workers, |_| {});
        let statuses: Vec<(u16, Option<String>)> = thread::scope(|scope| {
            let threads: Vec<_> = (0..24)
                .map(|_| {
                    scope.spawn(|| {
                        let answer = Reader::new(mesh.connect()).send(GET).message().unwrap();
                        (answer.status(), answer.field("x-mesh-overloaded"))
                    })
                })
                .collect();
            eventually("sixteen refusals", || {
                mesh.records("request").len() == 16 && gate.requests() == 8
            });
            *gate.open.lock().unwrap() = true;
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let served = statuses.iter().filter(|(status, _)| *status == 200).count();
        assert_eq!(served, 8, "{workers} workers");
        assert!(
            statuses
                .iter()
                .filter(|(status, _)| *status == 503)
                .all(|(_, overloaded)| overloaded.as_deref() == Some("true"))
        );
        assert_eq!(
            gate.connections.load(Ordering::SeqCst),
            8,
            "no connection for a refused one"
        );
        eventually("all are given back", || gauges(&mesh).requests == 0);
        let log = mesh.records("request");
        assert_eq!(log.len(), 24);
        assert!(
            log.iter()
                .any(|line| line.to_string().contains("overflow_requests"))
        );
    }
}

#[test]
fn max_connections_queues_requests_and_serves_them_all() {
    for workers in [1, 2] {
        let seen_max = Arc::new(AtomicUsize::new(0));
        let open = Arc::new(AtomicUsize::new(0));
        let (max, now) = (Arc::clone(&seen_max), Arc::clone(&open));
        let up = endpoint(move |stream| {
            max.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut reader = Reader::new(stream);
            while reader.message().is_some() {
                if reader
                    .stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    .is_err()
                {
                    break;
                }
            }
            now.fetch_sub(1, Ordering::SeqCst);
        });
        let plan = one(up).breaker(|breaker| breaker.max_connections = 3);
        let mesh = Mesh::with(plan, workers, |_| {});
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| {
                    let mut client = Reader::new(mesh.connect());
                    for _ in 0..20 {
                        assert_eq!(client.send(GET).message().unwrap().status(), 200);
                    }
                });
            }
        });
        // A closed connection is seen here before the endpoint's thread sees it.
        assert!(gauges(&mesh).connections <= 3, "{:?}", gauges(&mesh));
        assert_eq!(gauges(&mesh).pending, 0);
        assert!(seen_max.load(Ordering::SeqCst) >= 1);
    }
}

#[test]
fn max_pending_at_its_limit_and_above() {
    let (up, gate) = gated();
    let plan = one(up).breaker(|breaker| {
        breaker.max_connections = 1;
        breaker.max_pending = 2;
    });
    let mesh = Mesh::start(plan);
    thread::scope(|scope| {
        let ask = || Reader::new(mesh.connect()).send(GET).message().unwrap();
        let held = scope.spawn(ask);
        eventually("the first has the connection", || gate.requests() == 1);
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
        eventually("two wait", || gauges(&mesh).pending == 2);
        let answer = ask();
        assert_eq!(answer.status(), 503);
        assert_eq!(
            answer.field("x-mesh-reject").as_deref(),
            Some("overflow_pending")
        );
        *gate.open.lock().unwrap() = true;
        assert_eq!(held.join().unwrap().status(), 200);
        for thread in waiting {
            assert_eq!(thread.join().unwrap().status(), 200);
        }
    });
    assert_eq!(gauges(&mesh).pending, 0);
}

#[test]
fn client_that_leaves_the_queue_gives_its_place_back() {
    let (up, gate) = gated();
    let plan = one(up).breaker(|breaker| breaker.max_connections = 1);
    let mesh = Mesh::start(plan);
    let mut held = Reader::new(mesh.connect());
    held.send(GET);
    eventually("the first has the connection", || gate.requests() == 1);
    let mut waiting = Reader::new(mesh.connect());
    waiting.send(GET);
    eventually("one waits", || gauges(&mesh).pending == 1);
    drop(waiting);
    eventually("nobody waits", || {
        gauges(&mesh).pending == 0 && gauges(&mesh).requests == 1
    });
    drop(held);
    eventually("no request is in flight", || gauges(&mesh).requests == 0);
    *gate.open.lock().unwrap() = true;
}

#[test]
fn idle_connection_of_another_worker_makes_room_for_a_waiter() {
    let up = http("ok");
    let plan = one(up).breaker(|breaker| breaker.max_connections = 1);
    let mesh = Mesh::with(plan, 2, |_| {});
    // Each client may land on either worker; with one connection in all, they must hand it over.
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(
            Reader::new(mesh.connect())
                .send(GET)
                .message()
                .unwrap()
                .status(),
            200
        );
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn upstream_connections_of_the_node_at_their_limit_and_above() {
    let (up, gate) = gated();
    let mesh = Mesh::with(one(up), 2, |limits| limits.upstream_connections_max = 4);
    let mut held: Vec<Reader> = (0..4)
        .map(|_| {
            let mut client = Reader::new(mesh.connect());
            client.send(GET);
            client
        })
        .collect();
    eventually("four are held", || gate.requests() == 4);
    let answer = Reader::new(mesh.connect()).send(GET).message().unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("dial_permits")
    );
    *gate.open.lock().unwrap() = true;
    for client in &mut held {
        assert_eq!(client.message().unwrap().status(), 200);
    }
}

#[test]
fn idle_upstream_connections_are_bounded_and_time_out() {
    let (up, gate) = gated();
    let mesh = Mesh::with(one(up), 1, |limits| {
        limits.upstream_idle_max = 2;
        limits.upstream_idle_timeout = Duration::from_millis(500);
    });
    let mut clients: Vec<Reader> = (0..5)
        .map(|_| {
            let mut client = Reader::new(mesh.connect());
            client.send(GET);
            client
        })
        .collect();
    eventually("five are held", || gate.requests() == 5);
    *gate.open.lock().unwrap() = true;
    for client in &mut clients {
        assert_eq!(client.message().unwrap().status(), 200);
    }
    eventually("two are kept", || gauges(&mesh).connections == 2);
    eventually("none is kept for ever", || gauges(&mesh).connections == 0);
    eventually("the endpoint sees it", || {
        gate.connections.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn idle_upstream_connection_that_the_endpoint_closes_is_dropped_at_once() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        if reader.message().is_some() {
            reader.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let mesh = Mesh::start(one(up));
    assert_eq!(
        Reader::new(mesh.connect())
            .send(GET)
            .message()
            .unwrap()
            .status(),
        200
    );
    eventually("its permit is given back", || {
        gauges(&mesh).connections == 0
    });
}

#[test]
fn rate_limit_answers_429_with_its_fields_and_admits_who_waits() {
    let plan = one(http("ok")).policy(|policy| {
        policy.rate_limits = vec![RateLimitPolicy {
            name: "per-workload".into(),
            key: vec![Attribute::SourceWorkload],
            requests: 1,
            per: Duration::from_secs(1),
            burst: 2,
            ..RateLimitPolicy::default()
        }];
    });
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    for left in [1, 0] {
        let answer = client.send(GET).message().unwrap();
        assert_eq!(answer.status(), 200);
        let field = answer.field("ratelimit").unwrap();
        assert!(field.contains(&format!("r={left}")), "{field}");
    }
    let answer = client.send(GET).message().unwrap();
    assert_eq!(answer.status(), 429);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("rate_limited")
    );
    assert!(
        answer
            .field("ratelimit-policy")
            .unwrap()
            .contains("\"per-workload\";q=2")
    );
    let wait: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(wait) {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        client.send(GET).message().unwrap().status(),
        200,
        "who waits is admitted"
    );
}

#[test]
fn head_that_comes_too_slowly_is_answered_408() {
    let mesh = Mesh::with(one(http("ok")), 1, |limits| {
        limits.header_timeout = Duration::from_millis(300);
    });
    let mut client = Reader::new(mesh.connect());
    // Idle is not slow.
    thread::sleep(Duration::from_millis(400));
    let start = Instant::now();
    let mut writer = client.stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        for byte in GET.bytes().cycle() {
            if byte != b'\n' && writer.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    let answer = client.message().unwrap();
    assert_eq!(answer.status(), 408);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("header_timeout")
    );
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    drop(client);
    drip.join().unwrap();
}

#[test]
fn head_in_single_bytes_is_served() {
    let mesh = Mesh::start(one(http("ok")));
    let mut client = Reader::new(mesh.connect());
    for byte in GET.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.message().unwrap().text(), "ok");
}

#[test]
fn body_without_progress_is_answered_408() {
    let mesh = Mesh::with(one(http("ok")), 1, |limits| {
        limits.body_timeout = Duration::from_millis(300);
    });
    let start = Instant::now();
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc");
    let answer = client.message().unwrap();
    assert_eq!(answer.status(), 408);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("body_timeout")
    );
    assert!(client.is_closed());
    assert!(start.elapsed() >= Duration::from_millis(300));
    // Progress, however slow, is progress.
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n");
    for byte in b"hello" {
        thread::sleep(Duration::from_millis(100));
        client.send([*byte]);
    }
    assert_eq!(client.message().unwrap().status(), 200);
}

#[test]
fn idle_client_is_closed_after_the_keep_alive_time_out() {
    let mesh = Mesh::with(one(http("ok")), 1, |limits| {
        limits.keep_alive_timeout = Duration::from_millis(300);
    });
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
    let start = Instant::now();
    assert!(client.is_closed(), "closed without an answer");
    assert!(
        start.elapsed() >= Duration::from_millis(250),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(mesh.records("request").len(), 1);
}

#[test]
fn request_timeout_is_504_and_ends_the_upstream_connection() {
    let (up, gate) = gated();
    let plan = one(up).policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            request: Some(Duration::from_millis(200)),
            ..TimeoutPolicy::default()
        };
    });
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    let start = Instant::now();
    let answer = client.send(GET).message().unwrap();
    assert_eq!(answer.status(), 504);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("upstream_timeout")
    );
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "{:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    *gate.open.lock().unwrap() = true;
    assert_eq!(
        client.send(GET).message().unwrap().status(),
        200,
        "on a new connection"
    );
    eventually("the late answer is never used", || {
        gauges(&mesh).connections == 1
    });
}

#[test]
fn tries_end_at_the_request_timeout_however_many_are_left() {
    let (up, gate) = gated();
    let plan = one(up).policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            request: Some(Duration::from_millis(250)),
            ..TimeoutPolicy::default()
        };
        policy.retries = Some(RetryPolicy {
            attempts: 10,
            per_try: Some(Duration::from_millis(100)),
            on: Vec::new(),
            statuses: Vec::new(),
            non_idempotent: false,
            backoff: Duration::from_millis(1),
            ..RetryPolicy::default()
        });
    });
    let mesh = Mesh::start(plan);
    let start = Instant::now();
    let answer = Reader::new(mesh.connect()).send(GET).message().unwrap();
    assert_eq!(answer.status(), 504);
    assert!(
        start.elapsed() >= Duration::from_millis(250),
        "{:?}",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_millis(1500),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        gate.requests(),
        3,
        "two whole tries and a part of the third"
    );
    *gate.open.lock().unwrap() = true;
}

#[test]
fn endpoint_that_does_not_answer_the_connect_is_given_up() {
    // A listener whose queue is full answers no SYN.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let _fill: Vec<_> = (0..4)
        .map(|_| {
            let filler =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            let _in_progress = filler.connect(&full.into());
            filler
        })
        .collect();
    let plan = one(full).policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            connect: Some(Duration::from_millis(200)),
            ..TimeoutPolicy::default()
        };
    });
    let mesh = Mesh::start(plan);
    let start = Instant::now();
    let answer = Reader::new(mesh.connect()).send(GET).message().unwrap();
    assert_eq!(answer.status(), 504);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("connect_timeout")
    );
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn overflow_never_counts_against_the_endpoint() {
    let (up, gate) = gated();
    let plan = one(up)
        .breaker(|breaker| breaker.max_requests = 1)
        .policy(|policy| {
            policy.ejection = Some(mesh_user::model::EjectionPolicy {
                consecutive_5xx: 1,
                max_percent: 100,
                ..Default::default()
            });
        });
    let mesh = Mesh::start(plan);
    let mut held = Reader::new(mesh.connect());
    held.send(GET);
    eventually("the first is in flight", || gate.requests() == 1);
    let mut client = Reader::new(mesh.connect());
    for _ in 0..5 {
        let answer = client.send(GET).message().unwrap();
        assert_eq!(
            answer.field("x-mesh-reject").as_deref(),
            Some("overflow_requests")
        );
    }
    *gate.open.lock().unwrap() = true;
    assert_eq!(held.message().unwrap().status(), 200);
    assert_eq!(
        client.send(GET).message().unwrap().status(),
        200,
        "not ejected"
    );
}

#[test]
fn drain_lets_requests_end_and_closes_the_rest() {
    let (up, gate) = gated();
    let mut mesh = Mesh::with(one(up), 2, |_| {});
    let mut idle = Reader::new(mesh.connect());
    *gate.open.lock().unwrap() = true;
    assert_eq!(idle.send(GET).message().unwrap().status(), 200);
    *gate.open.lock().unwrap() = false;
    let mut late = Reader::new(mesh.connect());
    *gate.open.lock().unwrap() = true;
    assert_eq!(late.send(GET).message().unwrap().status(), 200);
    *gate.open.lock().unwrap() = false;
    let mut busy = Reader::new(mesh.connect());
    busy.send(GET);
    eventually("one is in flight", || gate.requests() == 3);
    let workers = mesh.workers.take().unwrap();
    let begun = Instant::now();
    let drain = thread::spawn(move || workers.drain(PATIENCE));
    eventually("nobody accepts", || {
        std::net::TcpStream::connect(mesh.address).is_err()
    });
    // A request that crosses the drain on an idle connection is served.
    late.send(GET);
    eventually("it is in flight", || gate.requests() == 4);
    assert!(idle.is_closed(), "an idle connection is closed");
    assert!(
        begun.elapsed() >= Duration::from_millis(900),
        "but not at once"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    *gate.open.lock().unwrap() = true;
    let answer = busy.message().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.field("connection").as_deref(), Some("close"));
    assert!(busy.is_closed());
    let answer = late.message().unwrap();
    assert_eq!(
        (answer.status(), answer.field("connection").as_deref()),
        (200, Some("close"))
    );
    assert!(late.is_closed());
    assert_eq!(drain.join().unwrap(), 0, "nothing was cut");
}

#[test]
fn drain_cuts_what_does_not_end_in_time_and_says_how_many() {
    let (up, gate) = gated();
    let mut mesh = Mesh::start(one(up));
    let mut busy: Vec<Reader> = (0..3)
        .map(|_| {
            let mut client = Reader::new(mesh.connect());
            client.send(GET);
            client
        })
        .collect();
    eventually("three are in flight", || gate.requests() == 3);
    let start = Instant::now();
    assert_eq!(
        mesh.workers
            .take()
            .unwrap()
            .drain(Duration::from_millis(200)),
        3
    );
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(busy.iter_mut().all(|client| client.head().is_none()));
    assert_eq!(
        mesh.records("request").len(),
        3,
        "cut short, and recorded all the same"
    );
    assert_eq!(gauges(&mesh).requests, 0);
    *gate.open.lock().unwrap() = true;
}

#[test]
fn workers_show_that_they_turn() {
    let mesh = Mesh::with(one(nobody()), 2, |_| {});
    let workers = mesh.workers.as_ref().unwrap();
    let first = workers.oldest_tick();
    eventually("a later tick of the oldest", || {
        workers.oldest_tick() > first
    });
    let age = mesh_user::clock::now().since(workers.oldest_tick());
    assert!(age < Duration::from_secs(2), "{age:?}");
}

/// Panics when a socket is wanted for port 1.
#[derive(Debug)]
struct Trap;

impl SocketSource for Trap {
    fn tcp_socket(&self, towards: SocketAddr) -> std::io::Result<std::os::fd::OwnedFd> {
        assert!(towards.port() != 1, "the trap of the test");
        HereSockets.tcp_socket(towards)
    }
}

#[test]
fn panic_ends_its_connection_only_and_is_counted() {
    let trap: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let plan = Plan::new(Protocol::Http)
        .endpoint(trap, "v1")
        .endpoint(http("ok"), "v2")
        .route(vec![header("to", "trap")], &[("v1", 1)])
        .route(vec![], &[("v2", 1)]);
    let mesh = Mesh::with_sockets(plan, Arc::new(Trap));
    let mut other = Reader::new(mesh.connect());
    assert_eq!(other.send(GET).message().unwrap().status(), 200);
    let mut client = Reader::new(mesh.connect());
    client.send("GET / HTTP/1.1\r\nhost: a\r\nto: trap\r\n\r\n");
    assert!(client.head().is_none(), "the connection ends");
    assert_eq!(
        other.send(GET).message().unwrap().status(),
        200,
        "the others live on"
    );
    assert_eq!(
        mesh.metric(&["task_panics_total{", "connection"]),
        Some(1.0)
    );
    // The answer is seen a moment before its own permit comes back.
    eventually("all permits are given back", || gauges(&mesh).requests == 0);
    eventually("recorded all the same", || {
        mesh.records("request").len() == 3
    });
}

#[test]
fn many_clients_at_once_get_their_own_answers() {
    let up = http_with(|request, _| {
        let path = request.head.split(' ').nth(1).unwrap();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
            path.len()
        )
    });
    let mesh = Mesh::with(one(up), 2, |_| {});
    let barrier = Barrier::new(32);
    thread::scope(|scope| {
        for client in 0..32 {
            let (mesh, barrier) = (&mesh, &barrier);
            scope.spawn(move || {
                let mut reader = Reader::new(mesh.connect());
                barrier.wait();
                for index in 0..50 {
                    let path = format!("/{client}/{index}");
                    reader.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"));
                    assert_eq!(reader.message().unwrap().text(), path);
                }
            });
        }
    });
    eventually("a record each", || mesh.records("request").len() == 32 * 50);
}

#[test]
fn idle_connections_cost_little() {
    const COUNT: usize = 400;
    const ROUNDS: usize = 4;
    let mesh = Mesh::start(one(http("ok")));
    let serve = || {
        let mut client = Reader::new(mesh.connect());
        assert_eq!(client.send(GET).message().unwrap().status(), 200);
        client.stream
    };
    // The first ones fill the stores.
    let _warm: Vec<_> = (0..50).map(|_| serve()).collect();
    // The least of several rounds: the other tests of this process need memory, too.
    let mut idle = Vec::new();
    let rounds = (0..ROUNDS).map(|_| {
        let before = resident();
        idle.extend((0..COUNT).map(|_| serve()));
        resident().saturating_sub(before) / COUNT
    });
    let each = rounds.min().unwrap();
    println!("{each} bytes for an idle connection, its client included");
    assert!(each < 16 << 10, "{each} bytes");
}
