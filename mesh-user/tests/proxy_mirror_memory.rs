//! What mirrors that nobody takes cost in memory. A file of its own: the process is measured.

mod proxy_support;

use std::{net::Ipv4Addr, thread};

use mesh_user::model::{Fraction, Mirror, Protocol, RuleExtra, Select, Target};
use proxy_support::*;

/// Above what the kernel may hold for a connection (`tcp_rmem`, here up to 32 MiB).
const BODY: usize = 48 << 20;
const STREAMS: usize = 20;

/// Accepts, and reads nothing; the kernel holds little for it.
fn stuck() -> std::net::SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let any = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(1024).unwrap();
    let listener: std::net::TcpListener = socket.into();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
    address
}

#[test]
fn body_for_a_shadow_that_takes_nothing_is_given_up_at_its_bound() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while reader.head().is_some() {
            let mut left = BODY;
            while left > 0 {
                assert!(!reader.rest.is_empty() || reader.more().unwrap());
                left -= std::mem::take(&mut reader.rest).len();
            }
            reader.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let mut plan = Plan::new(Protocol::Http)
        .endpoint(up, "v1")
        .endpoint(stuck(), "v2")
        .route(Vec::new(), &[("v1", 1)]);
    let mut extra = RuleExtra::default();
    extra.actions.mirrors.push(Mirror {
        target: Target {
            select: Select::Version("v2".into()),
            ..Target::default()
        },
        fraction: Fraction::ALL,
        compare: false,
    });
    plan.model.rules[0].extra = Some(Box::new(extra));
    let mesh = Mesh::start(plan);
    let body = vec![7; 1 << 20];
    let mut clients: Vec<Reader> = (0..STREAMS).map(|_| Reader::new(mesh.connect())).collect();
    for client in &mut clients {
        client.send(
            GET.replace("GET", "POST")
                .replace("\r\n\r\n", &format!("\r\ncontent-length: {BODY}\r\n\r\n")),
        );
    }
    let before = resident();
    let mut most = 0;
    for _ in 0..BODY / body.len() {
        for client in &mut clients {
            client.send(&body);
        }
        most = most.max(resident().saturating_sub(before));
    }
    for client in &mut clients {
        assert_eq!(client.message().unwrap().text(), "ok");
    }
    eventually("all are given up", || {
        mesh.metric(&["mesh_mirror_total", "failed_buffer"]) == Some(STREAMS as f64)
    });
    // 16 MiB of bodies for the worker, the connections' buffers, and what the primaries take.
    assert!(most < 40 << 20, "{most} bytes");
}
