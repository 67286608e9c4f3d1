//! Time-outs, retries, hedges, caps, outliers and long connections, over loopback.

#[path = "resilience/caps.rs"]
mod caps;
#[path = "resilience/changes.rs"]
mod changes;
#[path = "resilience/grpc.rs"]
mod grpc;
#[path = "resilience/hedges.rs"]
mod hedges;
mod proxy_support;
#[path = "resilience/retries.rs"]
mod retries;
#[path = "resilience/terms.rs"]
mod terms;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mesh_user::model::{Protocol, RetryOn, RetryPolicy, RuleExtra, action::RuleTimeouts};
use proxy_support::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn answer(status: u16) -> String {
    format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n")
}

fn one(address: SocketAddr) -> Plan {
    Plan::new(Protocol::Http).endpoint(address, "v1")
}

/// Retries without a pause to speak of.
fn retrying(plan: Plan, change: impl FnOnce(&mut RetryPolicy)) -> Plan {
    let mut retries = RetryPolicy {
        attempts: 2,
        backoff: ms(1),
        ..RetryPolicy::default()
    };
    change(&mut retries);
    plan.policy(|policy| policy.retries = Some(retries))
}

/// One rule for everything, with these terms.
fn ruled(plan: Plan, change: impl FnOnce(&mut RuleExtra)) -> Plan {
    let mut plan = plan.route(Vec::new(), &[("v1", 1)]);
    let mut extra = RuleExtra::default();
    change(&mut extra);
    plan.model.rules[0].extra = Some(Box::new(extra));
    plan
}

/// An endpoint that answers the N-th request (from 0, over all connections) as told, after a pause.
fn scripted(
    script: impl Fn(usize) -> (Duration, String) + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let address = http_with(move |_, _| {
        let (pause, answer) = script(count.fetch_add(1, Ordering::SeqCst));
        thread::sleep(pause);
        answer
    });
    (address, asked)
}

fn get(mesh: &Mesh) -> Message {
    let mut client = Reader::new(mesh.connect());
    client.send(GET).message().expect("an answer")
}

/// Nothing is held any more.
fn at_rest(mesh: &Mesh) {
    eventually("all permits come back", || {
        mesh.snapshot().versions.iter().all(|version| {
            let gauges = version.breaker.gauges();
            (gauges.requests, gauges.pending, gauges.retries) == (0, 0, 0)
        })
    });
}
