//! Active health checks on the wire: HTTP, gRPC, TCP; down and up again; thresholds.

mod proxy_support;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_user::{
    clock,
    model::{
        EjectionPolicy, HealthCheck, Protocol,
        health::{GrpcProbe, HttpProbe, Probe, TcpProbe},
    },
    policy::{
        Snapshot, VersionIx,
        health::CheckResult,
        snapshot::{EndpointState, Outcome},
    },
    proxy::HealthChecks,
};
use proxy_support::*;

/// Often, without waiting for traffic.
fn check(probe: Probe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: Duration::from_millis(20),
        no_traffic_interval: Duration::from_millis(20),
        timeout: Duration::from_millis(500),
        unhealthy_threshold: 2,
        healthy_threshold: 2,
        ..HealthCheck::default()
    }
}

fn http_check() -> HealthCheck {
    check(Probe::Http(HttpProbe {
        path: "/healthz".into(),
        ..HttpProbe::default()
    }))
}

struct Checked {
    mesh: Mesh,
    checks: HealthChecks,
}

impl Checked {
    fn start(plan: Plan) -> Self {
        let mesh = Mesh::start(plan);
        let checks = HealthChecks::new(Arc::new(HereSockets), Arc::clone(&mesh.telemetry));
        checks.follow(&mesh.snapshot());
        Self { mesh, checks }
    }

    fn endpoint(&self, at: usize) -> Arc<EndpointState> {
        Arc::clone(&self.mesh.snapshot().versions[0].endpoints[at])
    }

    fn swap(&self, plan: Plan) {
        self.mesh.swap(plan);
        self.checks.follow(&self.mesh.snapshot());
    }

    fn until(&self, at: usize, sick: bool, last: impl Fn(CheckResult) -> bool) {
        let endpoint = self.endpoint(at);
        eventually("the finding", || {
            let finding = endpoint.live.health();
            finding.is_some_and(|finding| finding.sick == sick && last(finding.last))
        });
    }
}

fn one(address: SocketAddr, checks: Vec<HealthCheck>) -> Plan {
    Plan::new(Protocol::Http)
        .endpoint(address, "v1")
        .policy(|policy| policy.health_checks = checks)
}

/// An endpoint whose status can be set; 0 is no answer.
fn switchable(status: &Arc<AtomicU16>, seen: &Arc<Mutex<Vec<Message>>>) -> SocketAddr {
    let (status, seen) = (Arc::clone(status), Arc::clone(seen));
    http_with(move |request, _| {
        seen.lock().unwrap().push(request.clone());
        match status.load(Relaxed) {
            0 => {
                thread::sleep(Duration::from_secs(1));
                String::new()
            }
            status => format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nok"),
        }
    })
}

#[test]
fn http_check_takes_an_endpoint_out_and_brings_it_back() {
    let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::default());
    let (bad, good) = (switchable(&status, &seen), http("g"));
    let plan = one(bad, vec![http_check()]).endpoint(good, "v1");
    let checked = Checked::start(plan);
    checked.until(0, false, |last| last == CheckResult::Ok);
    status.store(503, Relaxed);
    checked.until(0, true, |last| last == CheckResult::Status(503));
    let mut client = Reader::new(checked.mesh.connect());
    for _ in 0..30 {
        client.send(GET);
        assert_eq!(client.message().unwrap().text(), "g");
    }
    let rows = checked.mesh.snapshot().describe_endpoints(clock::now());
    assert_eq!((rows[0].state, rows[1].state), ("unhealthy", "ready"));
    assert_eq!(rows[0].check.as_deref(), Some("status 503"));
    let of = |name: &str| checked.mesh.metric(&[name, "service=\"web\""]);
    assert_eq!(of("mesh_endpoints_unhealthy"), Some(1.0));
    status.store(200, Relaxed);
    checked.until(0, false, |last| last == CheckResult::Ok);
    eventually("the gauge", || of("mesh_endpoints_unhealthy") == Some(0.0));
    let result = |result: &str| {
        let label = format!("result=\"{result}\"");
        let parts = ["mesh_health_checks_total", "service=\"web\"", &label];
        checked.mesh.metric(&parts).unwrap_or(0.0)
    };
    assert!(result("ok") >= 3.0 && result("status") >= 1.0);
    let head = seen.lock().unwrap()[0].clone();
    assert!(
        head.head.starts_with("GET /healthz HTTP/1.1\r\n"),
        "{head:?}"
    );
    assert_eq!(head.field("host").as_deref(), Some("web"));
}

#[test]
fn first_result_decides_and_before_it_an_endpoint_is_healthy() {
    let checked = Checked::start(one(nobody(), vec![http_check()]));
    let endpoint = checked.endpoint(0);
    checked.until(0, true, |last| last == CheckResult::ConnectFailed);
    // A threshold of 2, but nothing was known before.
    assert_eq!(endpoint.live.recorded(), (0, 0), "checks are no requests");
    let fresh = Mesh::start(one(nobody(), vec![http_check()]));
    let live = &fresh.snapshot().versions[0].endpoints[0].live;
    assert!(live.is_eligible() && live.health().is_none());
}

#[test]
fn no_answer_counts_to_the_threshold_and_a_wrong_one_does_not() {
    for (retriable, at_once) in [(vec![], true), (vec![(500, 599)], false)] {
        let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::default());
        let bad = switchable(&status, &seen);
        let mut check = http_check();
        check.unhealthy_threshold = 4;
        check.interval = Duration::from_millis(60);
        check.no_traffic_interval = check.interval;
        check.probe = Probe::Http(HttpProbe {
            retriable,
            ..HttpProbe::default()
        });
        let checked = Checked::start(one(bad, vec![check]));
        checked.until(0, false, |last| last == CheckResult::Ok);
        let before = seen.lock().unwrap().len();
        status.store(500, Relaxed);
        let endpoint = checked.endpoint(0);
        eventually("sick", || !endpoint.live.is_eligible());
        let failures = seen.lock().unwrap().len() - before;
        // One may have been on its way as the status changed.
        if at_once {
            assert!((1..=2).contains(&failures), "{failures}");
        } else {
            assert!((4..=5).contains(&failures), "{failures}");
        }
    }
}

#[test]
fn check_that_takes_too_long_has_failed() {
    let (status, seen) = (Arc::new(AtomicU16::new(0)), Arc::default());
    let mut check = http_check();
    check.timeout = Duration::from_millis(30);
    let checked = Checked::start(one(switchable(&status, &seen), vec![check]));
    checked.until(0, true, |last| last == CheckResult::Timeout);
}

#[test]
fn http_check_asks_what_it_is_told_to() {
    let (status, seen) = (Arc::new(AtomicU16::new(204)), Arc::default());
    let mut check = http_check();
    check.probe = Probe::Http(HttpProbe {
        path: "/ready".into(),
        host: Some("probe.internal".into()),
        method: "HEAD".into(),
        statuses: vec![(200, 299)],
        ..HttpProbe::default()
    });
    let checked = Checked::start(one(switchable(&status, &seen), vec![check]));
    checked.until(0, false, |last| last == CheckResult::Ok);
    let request = seen.lock().unwrap()[0].clone();
    assert!(
        request.head.starts_with("HEAD /ready HTTP/1.1\r\n"),
        "{request:?}"
    );
    assert_eq!(request.field("host").as_deref(), Some("probe.internal"));
}

#[test]
fn check_goes_to_the_port_that_it_names() {
    let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::default());
    let aside = switchable(&status, &seen);
    let mut check = http_check();
    check.port = Some(aside.port());
    let checked = Checked::start(one(nobody(), vec![check]));
    checked.until(0, false, |last| last == CheckResult::Ok);
}

#[test]
fn connection_is_kept_for_the_next_check_unless_it_is_not_to_be() {
    for reuse in [true, false] {
        let connections = Arc::new(AtomicU32::new(0));
        let requests = Arc::new(AtomicU32::new(0));
        let up = {
            let (connections, requests) = (Arc::clone(&connections), Arc::clone(&requests));
            endpoint(move |stream| {
                connections.fetch_add(1, Relaxed);
                let mut reader = Reader::new(stream);
                while reader.message().is_some() {
                    requests.fetch_add(1, Relaxed);
                    reader.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                }
            })
        };
        let mut check = http_check();
        check.reuse_connection = reuse;
        let _checked = Checked::start(one(up, vec![check]));
        eventually("ten checks", || requests.load(Relaxed) >= 10);
        let made = connections.load(Relaxed);
        assert!(
            if reuse { made == 1 } else { made >= 10 },
            "{reuse}: {made}"
        );
    }
}

#[test]
fn kept_connection_that_the_endpoint_closed_is_no_failure() {
    // It closes after each answer without saying so.
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        if reader.message().is_some() {
            reader.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let checked = Checked::start(one(up, vec![http_check()]));
    checked.until(0, false, |last| last == CheckResult::Ok);
    let ok = || {
        let parts = ["mesh_health_checks_total", "result=\"ok\""];
        checked.mesh.metric(&parts).unwrap_or(0.0)
    };
    eventually("more checks", || ok() >= 8.0);
    let broken = ["mesh_health_checks_total", "result=\"broken\""];
    assert_eq!(checked.mesh.metric(&broken), None);
}

#[test]
fn tcp_check_connects_and_may_say_something() {
    let greeting = endpoint(|mut stream| {
        use std::io::{Read as _, Write as _};
        let mut ask = [0; 6];
        if stream.read_exact(&mut ask).is_ok() && &ask == b"PING\r\n" {
            // In two pieces.
            let _sent = stream.write_all(b"+PO");
            thread::sleep(Duration::from_millis(5));
            let _sent = stream.write_all(b"NG\r\n");
            let _end = stream.read(&mut ask);
        }
    });
    let tcp = |send: &str, expect: &str| {
        check(Probe::Tcp(TcpProbe {
            send: send.into(),
            expect: expect.into(),
        }))
    };
    let plan = |address, check| {
        Plan::new(Protocol::Tcp)
            .endpoint(address, "v1")
            .policy(|policy| policy.health_checks = vec![check])
    };
    let well = |checked: &Checked| checked.until(0, false, |last| last == CheckResult::Ok);
    well(&Checked::start(plan(greeting, tcp("", ""))));
    well(&Checked::start(plan(greeting, tcp("PING\r\n", "+PONG"))));
    let wrong = Checked::start(plan(greeting, tcp("PING\r\n", "nonsense")));
    wrong.until(0, true, |last| last == CheckResult::Timeout);
    let closed = Checked::start(plan(greeting, tcp("HELLO\n", "x")));
    closed.until(0, true, |last| last == CheckResult::Broken);
    let nobody = Checked::start(plan(nobody(), tcp("", "")));
    nobody.until(0, true, |last| last == CheckResult::ConnectFailed);
}

/// A server of `grpc.health.v1.Health`, by hyper: of the service `s` it says what is set.
fn grpc_server(serving: &Arc<AtomicU16>) -> (SocketAddr, Arc<AtomicU32>) {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use hyper::{Request, Response, body::Incoming, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    let connections = Arc::new(AtomicU32::new(0));
    let (serving, counted) = (Arc::clone(serving), Arc::clone(&connections));
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Relaxed);
                let serving = Arc::clone(&serving);
                let service = service_fn(move |request: Request<Incoming>| {
                    let serving = serving.load(Relaxed);
                    async move {
                        let path = request.uri().path().to_owned();
                        let asked = request.into_body().collect().await?.to_bytes();
                        // «s» is field 1, length 1.
                        let known = asked.len() == 5 || asked[5..] == *b"\x0a\x01s";
                        let mut trailers = http::HeaderMap::new();
                        let (status, body) = if path != "/grpc.health.v1.Health/Check" || !known {
                            ("5", Bytes::new())
                        } else {
                            ("0", Bytes::from(vec![0, 0, 0, 0, 2, 8, serving as u8]))
                        };
                        trailers.insert("grpc-status", status.parse().unwrap());
                        let body = Full::new(body).with_trailers(async move { Some(Ok(trailers)) });
                        Ok::<_, hyper::Error>(
                            Response::builder()
                                .header("content-type", "application/grpc")
                                .body(body)
                                .unwrap(),
                        )
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    });
    (address, connections)
}

#[test]
fn grpc_check_wants_serving_and_keeps_its_connection() {
    let serving = Arc::new(AtomicU16::new(1));
    let (address, connections) = grpc_server(&serving);
    let grpc = |service: &str| {
        check(Probe::Grpc(GrpcProbe {
            service: service.into(),
            authority: None,
        }))
    };
    for service in ["", "s"] {
        serving.store(1, Relaxed);
        let before = connections.load(Relaxed);
        let plan = Plan::new(Protocol::Grpc)
            .endpoint(address, "v1")
            .policy(|policy| policy.health_checks = vec![grpc(service)]);
        let checked = Checked::start(plan);
        checked.until(0, false, |last| last == CheckResult::Ok);
        serving.store(2, Relaxed);
        checked.until(0, true, |last| last == CheckResult::NotServing(2));
        serving.store(1, Relaxed);
        checked.until(0, false, |last| last == CheckResult::Ok);
        assert_eq!(connections.load(Relaxed) - before, 1);
    }
    let unknown = Checked::start(one(address, vec![grpc("other")]));
    unknown.until(0, true, |last| last == CheckResult::GrpcStatus(5));
    // What speaks no HTTP/2.
    let plain = Checked::start(one(http("x"), vec![grpc("")]));
    plain.until(0, true, |last| {
        matches!(last, CheckResult::Broken | CheckResult::Timeout)
    });
}

#[test]
fn endpoint_in_several_versions_is_asked_once() {
    let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::default());
    let mut check = http_check();
    (check.interval, check.no_traffic_interval) = (PATIENCE, PATIENCE);
    // In `*`, in v1 and, by its rule, in v1 again.
    let plan = one(switchable(&status, &seen), vec![check]).route(Vec::new(), &[("v1", 1)]);
    let checked = Checked::start(plan);
    checked.until(0, false, |last| last == CheckResult::Ok);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn endpoint_must_pass_all_of_its_checks() {
    let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::default());
    let tcp = check(Probe::Tcp(TcpProbe::default()));
    let plan = one(switchable(&status, &seen), vec![tcp, http_check()]);
    let checked = Checked::start(plan);
    checked.until(0, false, |last| last == CheckResult::Ok);
    status.store(404, Relaxed);
    checked.until(0, true, |last| last == CheckResult::Status(404));
    // The other one goes on to succeed, which changes nothing.
    let ok = || {
        checked
            .mesh
            .metric(&["mesh_health_checks_total", "result=\"ok\""])
    };
    let before = ok().unwrap();
    eventually("more successes", || ok().unwrap() > before + 4.0);
    assert!(!checked.endpoint(0).live.is_eligible());
}

#[test]
fn policy_without_checks_makes_a_sick_endpoint_healthy() {
    let bad = nobody();
    let checked = Checked::start(one(bad, vec![http_check()]));
    checked.until(0, true, |_| true);
    checked.swap(Plan::new(Protocol::Http).endpoint(bad, "v1"));
    let endpoint = checked.endpoint(0);
    eventually("its return", || {
        endpoint.live.health().is_none() && endpoint.live.is_eligible()
    });
    // Another check of the same endpoint starts anew.
    let tcp = check(Probe::Tcp(TcpProbe::default()));
    checked.swap(one(bad, vec![tcp]));
    checked.until(0, true, |last| last == CheckResult::ConnectFailed);
}

#[test]
fn reload_that_changes_nothing_keeps_what_is_known() {
    let (status, seen) = (Arc::new(AtomicU16::new(500)), Arc::default());
    let address = switchable(&status, &seen);
    let plan = || {
        let mut check = http_check();
        check.interval = PATIENCE;
        one(address, vec![check])
    };
    let checked = Checked::start(plan());
    checked.until(0, true, |last| last == CheckResult::Status(500));
    for _ in 0..20 {
        checked.swap(plan());
        assert!(!checked.endpoint(0).live.is_eligible());
    }
    assert_eq!(seen.lock().unwrap().len(), 1, "and it was not asked again");
}

#[test]
fn without_traffic_checks_are_rare_until_there_is_some() {
    let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::default());
    let mut check = http_check();
    check.no_traffic_interval = Duration::from_millis(400);
    let checked = Checked::start(one(switchable(&status, &seen), vec![check]));
    let asked = || {
        let seen = seen.lock().unwrap();
        seen.iter().filter(|m| m.head.contains("/healthz")).count()
    };
    let start = Instant::now();
    eventually("three checks", || asked() >= 3);
    assert!(start.elapsed() >= Duration::from_millis(800));
    let answer = Reader::new(checked.mesh.connect()).send(GET).message();
    assert_eq!(answer.unwrap().status(), 200);
    let endpoint = checked.endpoint(0);
    eventually("the record", || endpoint.live.recorded().0 == 1);
    let (start, before) = (Instant::now(), asked());
    eventually("many checks", || asked() >= before + 11);
    // One more at the long interval, then ten short ones.
    assert!(start.elapsed() < Duration::from_millis(2_000));
}

fn eject(snapshot: &Snapshot, endpoint: &EndpointState) {
    let version = VersionIx(0);
    let now = clock::now();
    let change = snapshot.record(version, endpoint, Outcome::Status(500), None, now);
    change.expect("ejected at the first");
}

#[test]
fn successful_check_ends_an_ejection_unless_told_not_to() {
    for uneject in [true, false] {
        let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::default());
        let mut check = http_check();
        check.uneject = uneject;
        let plan = one(switchable(&status, &seen), vec![check]).endpoint(http("g"), "v1");
        let mut plan = plan;
        plan.model.policies[0].ejection = Some(EjectionPolicy {
            consecutive_5xx: 1,
            base: Duration::from_secs(300),
            max_percent: 100,
            ..EjectionPolicy::default()
        });
        let checked = Checked::start(plan);
        let endpoint = checked.endpoint(0);
        checked.until(0, false, |last| last == CheckResult::Ok);
        eject(&checked.mesh.snapshot(), &endpoint);
        let before = seen.lock().unwrap().len();
        eventually("more checks", || seen.lock().unwrap().len() >= before + 3);
        if uneject {
            eventually("its return", || endpoint.live.is_eligible());
            let returned = ["mesh_ejections_total", "event=\"returned\""];
            assert_eq!(checked.mesh.metric(&returned), Some(1.0));
        } else {
            assert!(!endpoint.live.is_eligible());
        }
    }
}

#[test]
fn panic_serves_when_most_are_unhealthy_and_is_counted() {
    let down = Arc::new(AtomicBool::new(true));
    let up = |name: &'static str| {
        let down = Arc::clone(&down);
        http_with(move |request, _| {
            let sick = down.load(Relaxed) && request.head.contains("/healthz");
            let status = if sick { 500 } else { 200 };
            format!("HTTP/1.1 {status} x\r\ncontent-length: 1\r\n\r\n{name}")
        })
    };
    let plan = one(up("a"), vec![http_check()]).endpoint(up("b"), "v1");
    let checked = Checked::start(plan);
    checked.until(0, true, |_| true);
    checked.until(1, true, |_| true);
    let mut client = Reader::new(checked.mesh.connect());
    client.send(GET);
    assert_eq!(client.message().unwrap().status(), 200, "all are used");
    assert!(checked.mesh.snapshot().versions[0].panic_picks() >= 1);
    down.store(false, Relaxed);
    checked.until(0, false, |_| true);
    let mut none = one(nobody(), vec![http_check()]);
    none.model.policies[0].balance = Some(mesh_user::model::BalancePolicy {
        panic_threshold: Some(0),
        ..mesh_user::model::BalancePolicy::default()
    });
    let never = Checked::start(none);
    never.until(0, true, |_| true);
    let answer = Reader::new(never.mesh.connect()).send(GET).message();
    assert_eq!(answer.unwrap().status(), 503);
    eventually("the refusal in the log", || {
        let records = never.mesh.records("request");
        records
            .iter()
            .any(|r| r.to_string().contains("no_healthy_endpoint"))
    });
}

#[test]
fn many_endpoints_are_asked_without_a_burst_of_connections() {
    // One address with many ports; each accepts and counts how many are open at once.
    let (open, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut plan = Plan::new(Protocol::Tcp);
    // 127.0.N.M all lead here.
    let listener = std::net::TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    {
        let (open, most) = (Arc::clone(&open), Arc::clone(&most));
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                most.fetch_max(open.fetch_add(1, Relaxed) + 1, Relaxed);
                let open = Arc::clone(&open);
                thread::spawn(move || {
                    use std::io::Read as _;
                    let _end = stream.read(&mut [0]);
                    open.fetch_sub(1, Relaxed);
                });
            }
        });
    }
    for host in 0..2_000_u32 {
        let ip = std::net::Ipv4Addr::from_bits(0x7f01_0000 + host);
        plan = plan.endpoint(SocketAddr::new(ip.into(), port), "v1");
    }
    let tcp = check(Probe::Tcp(TcpProbe {
        send: String::new(),
        expect: "never".into(),
    }));
    let plan = plan.policy(|policy| {
        policy.health_checks = vec![HealthCheck {
            timeout: Duration::from_millis(100),
            interval: PATIENCE,
            ..tcp
        }];
    });
    let checked = Checked::start(plan);
    let snapshot = checked.mesh.snapshot();
    eventually("a finding for each", || {
        let mut endpoints = snapshot.versions[0].endpoints.iter();
        endpoints.all(|endpoint| endpoint.live.health().is_some())
    });
    let most = most.load(Relaxed);
    // Those that have just timed out may not be closed yet.
    assert!((32..=2 * 256).contains(&most), "{most} at once");
    let finding = snapshot.versions[0].endpoints[0].live.health().unwrap();
    assert_eq!(finding.last, CheckResult::Timeout);
}
