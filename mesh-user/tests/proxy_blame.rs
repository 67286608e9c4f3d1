//! What an endpoint answers for, and what it does not: time-outs.

mod proxy_support;

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use mesh_user::{
    model::{Protocol, RetryPolicy, TimeoutPolicy},
    policy::snapshot::EndpointState,
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
