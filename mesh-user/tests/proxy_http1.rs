//! The HTTP/1.1 engine over real sockets: raw on both sides.

mod proxy_support;

use std::{
    io::Write,
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use mesh_user::model::{Protocol, RetryPolicy};
use proxy_support::*;

fn one(address: std::net::SocketAddr) -> Plan {
    Plan::new(Protocol::Http).endpoint(address, "v1")
}

#[test]
fn request_and_answer_pass_on_a_kept_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    let up = endpoint(move |stream| {
        seen.fetch_add(1, Ordering::SeqCst);
        let mut reader = Reader::new(stream);
        while let Some(request) = reader.message() {
            let path = request.head.split(' ').nth(1).unwrap().to_owned();
            reader.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
                path.len()
            ));
        }
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    for path in ["/a", "/b", "/c"] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n"));
        let answer = client.message().unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (200, path));
    }
    assert_eq!(
        connections.load(Ordering::SeqCst),
        1,
        "the upstream connection is reused"
    );
    eventually("three lines", || mesh.log().len() == 3);
}
