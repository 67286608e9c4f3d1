//! Balancing on the wire: keys, latency, priorities.

mod proxy_support;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use mesh_user::{
    model::{Attribute, Balance, BalancePolicy, Protocol},
    policy::health::{CheckResult, Finding},
};
use proxy_support::*;

fn maglev(attribute: &str) -> BalancePolicy {
    BalancePolicy {
        hash: vec![attribute.parse::<Attribute>().unwrap()],
        // Quick to build without optimisation.
        table_size: 251,
        ..Balance::Maglev.into()
    }
}

/// Endpoints that answer with their number.
fn numbered(count: usize, protocol: Protocol, policy: BalancePolicy) -> (Plan, Vec<SocketAddr>) {
    const NAMES: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];
    let addresses: Vec<SocketAddr> = NAMES[..count].iter().map(|name| http(name)).collect();
    let plan = addresses.iter().fold(Plan::new(protocol), |plan, address| {
        plan.endpoint(*address, "v1")
    });
    (plan.policy(|of| of.balance = Some(policy)), addresses)
}

fn ask(client: &mut Reader, fields: &str) -> String {
    client.send(format!("GET / HTTP/1.1\r\nhost: web\r\n{fields}\r\n"));
    client.message().expect("an answer").text()
}

#[test]
fn key_of_a_header_leads_every_connection_to_the_same_endpoint() {
    for policy in [
        maglev("header.x-user"),
        BalancePolicy {
            hash: maglev("header.x-user").hash,
            ..Balance::RingHash.into()
        },
    ] {
        let (plan, addresses) = numbered(8, Protocol::Http, policy.clone());
        let mesh = Mesh::with(plan, 2, |_| {});
        let user = |n: usize| format!("x-user: {n}\r\n");
        let mut owners = HashMap::new();
        let mut client = Reader::new(mesh.connect());
        for n in 0..40 {
            owners.insert(n, ask(&mut client, &user(n)));
        }
        assert!(
            owners.values().collect::<HashSet<_>>().len() >= 6,
            "they spread: {owners:?}"
        );
        // Other connections, other workers.
        for _ in 0..4 {
            let mut client = Reader::new(mesh.connect());
            for n in 0..40 {
                assert_eq!(ask(&mut client, &user(n)), owners[&n]);
            }
        }
        // Another node, which was told of them in another order.
        let mut turned = Plan::new(Protocol::Http);
        for address in addresses.iter().rev() {
            turned = turned.endpoint(*address, "v1");
        }
        let other = Mesh::start(turned.policy(|of| of.balance = Some(policy.clone())));
        let mut client = Reader::new(other.connect());
        for n in 0..40 {
            assert_eq!(ask(&mut client, &user(n)), owners[&n], "node 2, user {n}");
        }
        // Without the header: everywhere.
        let any: HashSet<String> = (0..100).map(|_| ask(&mut client, "")).collect();
        assert!(any.len() >= 6, "{any:?}");
    }
}

#[test]
fn key_of_a_sick_endpoint_moves_and_comes_back() {
    let (plan, _) = numbered(5, Protocol::Http, maglev("cookie.session"));
    let mesh = Mesh::start(plan);
    let mut client = Reader::new(mesh.connect());
    let cookie = |n: usize| format!("cookie: a=b; session={n}\r\n");
    let before: Vec<String> = (0..40).map(|n| ask(&mut client, &cookie(n))).collect();
    let snapshot = mesh.snapshot();
    let sick = &snapshot.versions[0].endpoints[2];
    let finding = |sick| Finding {
        sick,
        last: CheckResult::Timeout,
    };
    let now = mesh_user::clock::now();
    sick.live.set_health(Some(finding(true)), now);
    for (n, had) in before.iter().enumerate() {
        let has = ask(&mut client, &cookie(n));
        assert_eq!(has == *had, had != "2", "{n}: {had} -> {has}");
    }
    sick.live.set_health(Some(finding(false)), now);
    let after: Vec<String> = (0..40).map(|n| ask(&mut client, &cookie(n))).collect();
    assert_eq!(after, before);
}

#[test]
fn key_of_the_source_address_serves_opaque_connections() {
    let (plan, _) = numbered(6, Protocol::Tcp, maglev("source.address"));
    let mesh = Mesh::start(plan);
    let from = |source: &str| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let source: SocketAddr = format!("{source}:0").parse().unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect(&mesh.address.into()).unwrap();
        let stream: std::net::TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ask(&mut Reader::new(stream), "")
    };
    let mut owners = HashSet::new();
    for host in 1..=20 {
        let source = format!("127.0.9.{host}");
        let owner = from(&source);
        assert_eq!(from(&source), owner);
        owners.insert(owner);
    }
    assert!(owners.len() >= 3, "{owners:?}");
}

#[test]
fn bounded_load_sends_what_is_too_much_elsewhere() {
    // Eight requests with one key, held at their endpoints: 150 % of the mean is two each.
    let gate = Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let mut plan = Plan::new(Protocol::Http);
    for name in ["0", "1", "2", "3"] {
        let gate = Arc::clone(&gate);
        let held = http_with(move |_, _| {
            let (open, bell) = &*gate;
            let open = open.lock().unwrap();
            let _open = bell.wait_while(open, |open| !*open).unwrap();
            format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{name}")
        });
        plan = plan.endpoint(held, "v1");
    }
    let policy = BalancePolicy {
        bounded_load: Some(150),
        ..maglev("header.x-user")
    };
    let mesh = Mesh::start(plan.policy(|of| of.balance = Some(policy)));
    let snapshot = mesh.snapshot();
    let mut clients = Vec::new();
    for n in 1..=8_u32 {
        let mut client = Reader::new(mesh.connect());
        client.send("GET / HTTP/1.1\r\nhost: web\r\nx-user: me\r\n\r\n");
        clients.push(client);
        eventually("the request at its endpoint", || {
            let endpoints = snapshot.versions[0].endpoints.iter();
            endpoints.map(|e| e.live.in_flight()).sum::<u32>() == n
        });
    }
    let endpoints = snapshot.versions[0].endpoints.iter();
    let busy: Vec<u32> = endpoints.map(|e| e.live.in_flight()).collect();
    assert!(busy.iter().all(|busy| *busy <= 3), "{busy:?}");
    assert!(
        busy.contains(&3),
        "its own endpoint has as much as it may: {busy:?}"
    );
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for client in &mut clients {
        assert_eq!(client.message().unwrap().status(), 200);
    }
}

/// An endpoint that takes its time.
fn slow(name: &'static str, millis: u64) -> SocketAddr {
    http_with(move |_, _| {
        thread::sleep(Duration::from_millis(millis));
        format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{name}")
    })
}

fn ewma(endpoints: &[SocketAddr]) -> Plan {
    endpoints
        .iter()
        .fold(Plan::new(Protocol::Http), |plan, address| {
            plan.endpoint(*address, "v1")
        })
        .policy(|of| of.balance = Some(Balance::PeakEwma.into()))
}

#[test]
fn ewma_learns_from_answers_who_is_slow() {
    let mesh = Mesh::start(ewma(&[slow("s", 60), slow("f", 1)]));
    let mut client = Reader::new(mesh.connect());
    let answers: Vec<String> = (0..40).map(|_| ask(&mut client, "")).collect();
    let to_slow = answers.iter().filter(|answer| *answer == "s").count();
    // One to find out, and hardly more: one at a time there is no other reason.
    assert!((1..=3).contains(&to_slow), "{answers:?}");
}

#[test]
fn ewma_shuns_an_endpoint_that_fails_at_once() {
    let status = Arc::new(AtomicU16::new(503));
    let failing = {
        let status = Arc::clone(&status);
        http_with(move |_, _| {
            let status = status.load(Relaxed);
            format!("HTTP/1.1 {status} x\r\ncontent-length: 1\r\n\r\ne")
        })
    };
    let mesh = Mesh::start(ewma(&[failing, slow("g", 5)]));
    let mut client = Reader::new(mesh.connect());
    let answers: Vec<String> = (0..60).map(|_| ask(&mut client, "")).collect();
    let failed = answers.iter().filter(|answer| *answer == "e").count();
    assert!((1..=2).contains(&failed), "{answers:?}");
}

#[test]
fn ewma_takes_retry_after_for_the_penalty() {
    // It asks for no time at all: after that only its latency speaks, which is the lower one.
    let soft = http_with(|_, _| {
        "HTTP/1.1 503 x\r\nretry-after: 0\r\ncontent-length: 1\r\n\r\ne".to_owned()
    });
    let mesh = Mesh::start(ewma(&[soft, slow("g", 20)]));
    let mut client = Reader::new(mesh.connect());
    let answers: Vec<String> = (0..40).map(|_| ask(&mut client, "")).collect();
    let failed = answers.iter().filter(|answer| *answer == "e").count();
    assert!(failed > 20, "{answers:?}");
}

#[test]
fn priority_behind_steps_in_when_the_first_has_nobody() {
    let (first, second) = (http("a"), http("b"));
    let plan = || {
        let mut plan = Plan::new(Protocol::Http)
            .endpoint(first, "v1")
            .endpoint(second, "v1");
        plan.model.services[0].endpoints[1].priority = 1;
        plan
    };
    let mesh = Mesh::start(plan());
    let mut client = Reader::new(mesh.connect());
    for _ in 0..20 {
        assert_eq!(ask(&mut client, ""), "a");
    }
    let mut unready = plan();
    unready.model.services[0].endpoints[0].healthy = false;
    mesh.swap(unready);
    for _ in 0..20 {
        assert_eq!(ask(&mut client, ""), "b");
    }
    mesh.swap(plan());
    assert_eq!(ask(&mut client, ""), "a");
}
