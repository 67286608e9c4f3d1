//! What an endpoint answers for, and what it does not: time-outs, probes after an ejection.

mod proxy_support;

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use mesh_user::{
    clock,
    model::{EjectionPolicy, Policy, Protocol, RetryPolicy, TimeoutPolicy},
    policy::{
        ejection::Standing,
        snapshot::{EndpointState, Outcome},
    },
};
use proxy_support::*;

fn one(protocol: Protocol, address: SocketAddr) -> Plan {
    Plan::new(protocol).endpoint(address, "v1")
}

/// The endpoint of a service that has one.
fn only(mesh: &Mesh) -> Arc<EndpointState> {
    let snapshot = mesh.snapshot();
    let mut endpoints = snapshot.versions.iter().flat_map(|v| &v.endpoints);
    Arc::clone(endpoints.next().unwrap())
}

#[test]
fn head_that_comes_slowly_takes_nothing_from_the_endpoints_time() {
    let slow = http_with(|_, _| {
        thread::sleep(Duration::from_millis(100));
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
    });
    let plan = one(Protocol::Http, slow).policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            request: Some(Duration::from_millis(400)),
            ..TimeoutPolicy::default()
        };
        policy.retries = Some(RetryPolicy {
            attempts: 1,
            per_try: Some(Duration::from_millis(300)),
            on: Vec::new(),
            statuses: Vec::new(),
            non_idempotent: true,
            backoff: Duration::from_millis(1),
            ..RetryPolicy::default()
        });
    });
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    let (first, second) = GET.split_at(10);
    for _ in 0..2 {
        client.send(first);
        thread::sleep(Duration::from_millis(600));
        client.send(second);
        assert_eq!(client.message().unwrap().status(), 200);
    }
    // A body counts in the same way.
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na");
    thread::sleep(Duration::from_millis(600));
    client.send("b");
    assert_eq!(client.message().unwrap().status(), 200);
    eventually("the record of each", || {
        only(&mesh).live.recorded() == (3, 0)
    });
}

/// Ejects at the 3rd failure, for a moment, and asks with a probe whether it is over.
fn probing(policy: &mut Policy) {
    policy.ejection = Some(EjectionPolicy {
        consecutive_5xx: 3,
        consecutive_gateway: 0,
        consecutive_local_origin: 0,
        interval: Duration::from_secs(1),
        base: Duration::from_millis(1),
        max: Duration::from_secs(1),
        max_percent: 100,
        probe: true,
        ..EjectionPolicy::default()
    });
}

/// Ejects the endpoint and sweeps until it asks for its probe.
fn probe_due(mesh: &Mesh) -> Arc<EndpointState> {
    let (snapshot, endpoint) = (mesh.snapshot(), only(mesh));
    for version in 0..snapshot.versions.len() {
        let plan = &snapshot.versions[version];
        if plan.endpoints.iter().any(|member| member.id == endpoint.id) {
            let version = mesh_user::policy::VersionIx(version as u32);
            for _ in 0..3 {
                snapshot.record(version, &endpoint, Outcome::Status(500), None, clock::now());
            }
            break;
        }
    }
    assert!(!endpoint.live.is_eligible());
    eventually("its return", || {
        snapshot.sweep(clock::now().after(Duration::from_secs(60)));
        endpoint.live.standing() == Standing::Probing
    });
    endpoint
}

#[test]
fn probe_that_can_not_connect_ejects_again() {
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let mesh = Mesh::start(one(protocol, nobody()).policy(probing));
        let endpoint = probe_due(&mesh);
        let mut client = Reader::new(mesh.connect());
        client.send(GET);
        eventually("its second ejection", || endpoint.live.ejections().0 == 2);
    }
}

#[test]
fn probe_that_is_cut_off_ejects_again() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let _request = reader.message();
        reset(reader.stream);
    });
    let mesh = Mesh::start(one(Protocol::Http, up).policy(probing));
    let endpoint = probe_due(&mesh);
    let answer = Reader::new(mesh.connect()).send(GET).message().unwrap();
    assert!(answer.status() >= 500);
    assert_eq!(endpoint.live.ejections().0, 2);
}

#[test]
fn probe_is_answered_by_the_head_of_a_long_answer() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while reader.message().is_some() {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart";
            reader.send(head);
        }
    });
    let mesh = Mesh::start(one(Protocol::Http, up).policy(probing));
    let endpoint = probe_due(&mesh);
    let mut client = Reader::new(mesh.connect());
    client.send(GET).head().unwrap();
    eventually("it is back while the body is under way", || {
        endpoint.live.standing() == Standing::InRotation
    });
}

#[test]
fn probe_is_answered_by_a_tcp_connect() {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let up = endpoint(move |stream| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut reader = Reader::new(stream);
        while reader.more().unwrap_or(false) {}
    });
    let mesh = Mesh::start(one(Protocol::Tcp, up).policy(probing));
    let endpoint = probe_due(&mesh);
    let mut client = mesh.connect();
    client.write_all(b"x").unwrap();
    eventually("the connection", || opened.load(Ordering::SeqCst) == 1);
    eventually("it is back while the connection is open", || {
        endpoint.live.standing() == Standing::InRotation
    });
}
