//! The HTTP/1.1 engine over real sockets: raw on both sides.

mod proxy_support;

use std::{
    io::Write,
    net::{Shutdown, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use mesh_user::model::{Protocol, RetryPolicy};
use proxy_support::*;

fn one(address: SocketAddr) -> Plan {
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
    eventually("three lines", || mesh.records("request").len() == 3);
}

fn retrying(plan: Plan, change: impl FnOnce(&mut RetryPolicy)) -> Plan {
    let mut retries = RetryPolicy {
        attempts: 2,
        per_try: None,
        on: Vec::new(),
        statuses: Vec::new(),
        non_idempotent: false,
        backoff: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    change(&mut retries);
    plan.policy(|policy| policy.retries = Some(retries))
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let up = http_with(|request, _| {
        let path = request.head.split(' ').nth(1).unwrap();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
            path.len()
        )
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send(
        "POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
         GET /2 HTTP/1.1\r\nhost: a\r\n\r\n\r\n\
         POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nxy\r\n0\r\n\r\n\
         GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    );
    for path in ["/1", "/2", "/3", "/4"] {
        assert_eq!(client.message().unwrap().text(), path);
    }
    assert!(client.is_closed());
}

#[test]
fn rule_swap_applies_to_the_next_request_of_an_open_connection() {
    let (one, two) = (http("v1"), http("v2"));
    let plan = |target: &str| {
        Plan::new(Protocol::Http)
            .endpoint(one, "v1")
            .endpoint(two, "v2")
            .route(vec![], &[(target, 1)])
    };
    let mesh = Mesh::start(plan("v1"));
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.send(GET).message().unwrap().text(), "v1");
    mesh.swap(plan("v2"));
    assert_eq!(client.send(GET).message().unwrap().text(), "v2");
    mesh.swap(plan("v1"));
    assert_eq!(client.send(GET).message().unwrap().text(), "v1");
}

#[test]
fn header_match_and_weights_choose_the_version() {
    let (one, two) = (http("v1"), http("v2"));
    let mesh = Mesh::start(
        Plan::new(Protocol::Http)
            .endpoint(one, "v1")
            .endpoint(two, "v2")
            .route(vec![header("x-user", "beta")], &[("v2", 1)])
            .route(vec![], &[("v1", 90), ("v2", 10)]),
    );
    let mut client = Reader::new(mesh.connect());
    let beta = "GET / HTTP/1.1\r\nhost: web\r\nX-User: beta\r\n\r\n";
    for _ in 0..5 {
        assert_eq!(client.send(beta).message().unwrap().text(), "v2");
    }
    let second = (0..100).filter(|_| client.send(GET).message().unwrap().text() == "v2");
    assert_eq!(second.count(), 10, "the split is exact at whole cycles");
}

#[test]
fn refusals_say_their_name_and_keep_the_connection() {
    let two = http("v2");
    let mesh = Mesh::start(
        Plan::new(Protocol::Http)
            .endpoint(two, "v2")
            .route(vec![header("to", "nobody")], &[("v1", 1)])
            .route(vec![header("to", "zero")], &[("v2", 0)])
            .route(vec![header("to", "v2")], &[("v2", 1)]),
    );
    let mut client = Reader::new(mesh.connect());
    for (to, status, name) in [
        ("v2", 200, None),
        ("nobody", 503, Some("no_endpoint")),
        ("zero", 500, Some("no_weight")),
        ("elsewhere", 404, Some("no_route")),
        ("v2", 200, None),
    ] {
        // A body that came with the head does not spoil the connection.
        let request =
            format!("POST / HTTP/1.1\r\nhost: a\r\nto: {to}\r\ncontent-length: 2\r\n\r\nhi");
        let answer = client.send(request).message().unwrap();
        assert_eq!(answer.status(), status, "{to}");
        assert_eq!(answer.field("x-mesh-reject").as_deref(), name, "{to}");
        assert_eq!(answer.field("connection"), None, "{to}");
    }
    eventually("one line for each request", || {
        mesh.records("request").len() == 5
    });
}

#[test]
fn connection_that_nobody_accepts_is_refused_by_name() {
    let mesh = Mesh::start(one(nobody()));
    let mut client = Reader::new(mesh.connect());
    let answer = client.send(GET).message().unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("connect_failed")
    );
    // The connection lives on.
    assert_eq!(client.send(GET).message().unwrap().status(), 503);
}

#[test]
fn connection_closed_before_an_answer_is_retried_when_reused_and_idempotent_only() {
    // Every connection serves one request and reads the next before it closes.
    let deliveries = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&deliveries);
    let up = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        if reader.message().is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
            reader.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
        if reader.message().is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
    assert_eq!(
        client.send(GET).message().unwrap().status(),
        200,
        "tried again"
    );
    assert_eq!(deliveries.load(Ordering::SeqCst), 3);
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi";
    let answer = client.send(post).message().unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("upstream_closed")
    );
    assert_eq!(deliveries.load(Ordering::SeqCst), 4, "delivered once");
}

#[test]
fn post_reset_after_its_first_body_byte_is_delivered_once() {
    let deliveries = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&deliveries);
    let up = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        if reader.head().is_some() {
            reader.bytes(1);
            seen.fetch_add(1, Ordering::SeqCst);
        }
        reset(reader.stream);
    });
    let mesh = Mesh::start(retrying(one(up), |_| {}));
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
    let answer = client.message().unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("upstream_reset")
    );
    assert_eq!(deliveries.load(Ordering::SeqCst), 1);
}

#[test]
fn retry_goes_to_another_endpoint_with_the_whole_body() {
    let bad = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        if let Some(request) = reader.message() {
            assert_eq!(request.text(), "hello");
        }
    });
    let good = http_with(|request, _| {
        let body = request.text();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    });
    let plan = Plan::new(Protocol::Http)
        .endpoint(bad, "v1")
        .endpoint(good, "v1");
    let mesh = Mesh::start(retrying(plan, |_| {}));
    for _ in 0..10 {
        let mut client = Reader::new(mesh.connect());
        client.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
        let answer = client.message().unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    }
}

#[test]
fn retry_on_status_stops_at_its_number_and_passes_the_last_answer() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let up = http_with(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy".to_owned()
    });
    let mesh = Mesh::start(retrying(one(up), |_| {}));
    let answer = Reader::new(mesh.connect()).send(GET).message().unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (503, "busy"));
    assert_eq!(
        answer.field("x-mesh-reject"),
        None,
        "the endpoint's own answer"
    );
    assert_eq!(
        seen.load(Ordering::SeqCst),
        3,
        "attempts: 2 means three deliveries"
    );
}

#[test]
fn body_larger_than_is_kept_is_not_sent_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let up = http_with(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_owned()
    });
    let mesh = Mesh::with(retrying(one(up), |_| {}), 1, |limits| {
        limits.replay_bytes_max = 1000
    });
    for (length, deliveries) in [(1000, 3), (1001, 1)] {
        seen.store(0, Ordering::SeqCst);
        let mut client = Reader::new(mesh.connect());
        client.send(format!(
            "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
        ));
        client.send(vec![b'x'; length]);
        assert_eq!(client.message().unwrap().status(), 503);
        assert_eq!(seen.load(Ordering::SeqCst), deliveries, "{length}");
    }
}

#[test]
fn early_answer_reaches_a_client_that_is_still_sending() {
    // The endpoint answers after the head and reads nothing more.
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        if reader.head().is_some() {
            reader.send("HTTP/1.1 413 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
            let _more = reader.all();
        }
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n");
    let mut writer = client.stream.try_clone().unwrap();
    let sender = thread::spawn(move || while writer.write_all(&[b'x'; 65536]).is_ok() {});
    let answer = client.message().unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "no"));
    let _closed_already = client.stream.shutdown(Shutdown::Both);
    sender.join().unwrap();
}

#[test]
fn answer_that_begins_before_the_request_ends_flows_both_ways() {
    // Echoes chunk by chunk: each must arrive before the next is sent.
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        reader.head().unwrap();
        reader.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        for _ in 0..5 {
            let chunk = reader.bytes(6);
            reader.send(chunk);
        }
        assert_eq!(reader.bytes(5), b"0\r\n\r\n");
        reader.send("0\r\n\r\n");
        let _end = reader.all();
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for index in 0..5 {
        let chunk = format!("1\r\n{index}\r\n");
        client.send(&chunk);
        if index == 0 {
            assert_eq!(client.head().unwrap().status(), 200);
        }
        assert_eq!(client.bytes(6), chunk.as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.bytes(5), b"0\r\n\r\n");
}

#[test]
fn continue_and_early_hints_pass_but_not_to_http10() {
    let up = http_with(|_, _| {
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            .to_owned()
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send(GET);
    assert_eq!(client.head().unwrap().status(), 100);
    let hints = client.head().unwrap();
    assert_eq!(
        (hints.status(), hints.field("link").as_deref()),
        (103, Some("</a>"))
    );
    assert_eq!(client.message().unwrap().text(), "ok");
    let mut old = Reader::new(mesh.connect());
    old.send("GET / HTTP/1.0\r\n\r\n");
    let answer = old.message().unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    assert!(old.is_closed());
}

#[test]
fn expect_continue_is_forwarded_and_the_body_follows() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let head = reader.head().unwrap();
        assert_eq!(head.field("expect").as_deref(), Some("100-continue"));
        assert!(reader.rest.is_empty());
        reader.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(reader.bytes(4), b"body");
        reader.send("HTTP/1.1 204 No Content\r\n\r\n");
        let _end = reader.all();
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send("PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 100);
    client.send("body");
    assert_eq!(client.message().unwrap().status(), 204);
}

#[test]
fn bodyless_answers_leave_the_connection_usable() {
    let up = http_with(|request, _| {
        let head = match request.head.split(' ').next().unwrap() {
            "HEAD" => "HTTP/1.1 200 OK\r\ncontent-length: 100",
            "PUT" => "HTTP/1.1 204 No Content",
            "DELETE" => "HTTP/1.1 304 Not Modified\r\ncontent-length: 5",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 0",
        };
        format!("{head}\r\n\r\n")
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    for (method, status, length) in [
        ("HEAD", 200, Some("100")),
        ("PUT", 204, None),
        ("DELETE", 304, Some("5")),
        ("GET", 200, Some("0")),
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n"));
        let head = client.head().unwrap();
        assert_eq!(
            (head.status(), head.field("content-length").as_deref()),
            (status, length)
        );
    }
}

#[test]
fn websocket_upgrade_becomes_an_opaque_copy() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let head = reader.head().unwrap();
        assert_eq!(head.field("connection").as_deref(), Some("upgrade"));
        assert_eq!(head.field("upgrade").as_deref(), Some("websocket"));
        reader.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: x\r\n\r\nfirst",
        );
        assert_eq!(reader.bytes(5), b"hello");
        reader.send("world");
        assert!(reader.is_closed(), "half-close");
        reader.send("bye");
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send(
        "GET /chat HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: k\r\n\r\n",
    );
    let head = client.head().unwrap();
    assert_eq!(head.status(), 101);
    assert_eq!(head.field("upgrade").as_deref(), Some("websocket"));
    assert_eq!(head.field("sec-websocket-accept").as_deref(), Some("x"));
    assert_eq!(client.bytes(5), b"first");
    client.send("hello");
    assert_eq!(client.bytes(5), b"world");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.all(), b"bye");
}

#[test]
fn answer_until_close_is_passed_and_marked() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        reader.head().unwrap();
        reader
            .send("HTTP/1.1 200 OK\r\n\r\npart one, ")
            .send("part two");
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    let head = client.send(GET).head().unwrap();
    assert_eq!(head.field("connection").as_deref(), Some("close"));
    assert_eq!(client.all(), b"part one, part two");
}

#[test]
fn chunks_reach_an_http10_client_as_plain_bytes() {
    let up = http_with(|_, _| {
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n\
         0\r\nx-t: 1\r\n\r\n"
            .to_owned()
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let head = client.head().unwrap();
    assert_eq!(head.field("transfer-encoding"), None);
    assert_eq!(head.field("connection").as_deref(), Some("close"));
    assert_eq!(client.all(), b"hello world");
}

#[test]
fn http10_keep_alive_is_kept_and_said() {
    let mesh = Mesh::start(one(http("ok")));
    let mut client = Reader::new(mesh.connect());
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.message().unwrap();
        assert_eq!(answer.field("connection").as_deref(), Some("keep-alive"));
        assert_eq!(answer.text(), "ok");
    }
}

#[test]
fn trailers_pass() {
    const REQUEST: &[u8] = b"1\r\nx\r\n0\r\nx-sum: 7\r\n\r\n";
    const ANSWER: &[u8] = b"0\r\nx-t: 9\r\n\r\n";
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        reader.head().unwrap();
        assert_eq!(reader.bytes(REQUEST.len()), REQUEST);
        reader.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n");
        reader.send(ANSWER);
        let _end = reader.all();
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(REQUEST);
    let head = client.head().unwrap();
    assert_eq!(head.field("trailer").as_deref(), Some("x-t"));
    assert_eq!(client.bytes(ANSWER.len()), ANSWER);
}

#[test]
fn both_families_reach_the_service_through_one_listener() {
    let mut plan = one(http("ok"));
    plan.dual = true;
    let mesh = Mesh::start(plan);
    let port = mesh.address.port();
    for (ip, shown) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        let mut client = Reader::new(connect(address));
        assert_eq!(client.send(GET).message().unwrap().text(), "ok", "{ip}");
        eventually("the record", || {
            // IPv4 is IPv4, though the socket says ::ffff:127.0.0.1.
            mesh.records("request")
                .iter()
                .any(|line| line.to_string().contains(shown))
        });
    }
    assert!(
        mesh.records("request")
            .iter()
            .all(|line| !line.to_string().contains("::ffff:"))
    );
}

#[test]
fn last_hop_of_max_forwards_answers_itself() {
    let mesh = Mesh::start(one(nobody()));
    let mut client = Reader::new(mesh.connect());
    client.send("OPTIONS / HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\n\r\n");
    let answer = client.message().unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.field("allow").is_some());
    client.send("TRACE / HTTP/1.1\r\nhost: a\r\nmax-forwards: 0\r\ncookie: secret\r\n\r\n");
    let answer = client.message().unwrap();
    assert_eq!(answer.status(), 405);
    assert!(!answer.text().contains("secret"));
}

/// FNV-1a: enough to tell a lost, doubled or moved byte.
fn hash(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn piece(index: usize) -> Vec<u8> {
    (0..65_536)
        .map(|at| ((at * 7 + index * 13) % 251) as u8)
        .collect()
}

#[test]
fn hundred_mebibytes_pass_unchanged_up_and_down() {
    const PIECES: usize = 1600;
    let want = (0..PIECES).fold(0, |state, index| hash(state, &piece(index)));
    let up = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        let head = reader.head().unwrap();
        let mut state = 0;
        if head.field("content-length").is_some() {
            for _ in 0..PIECES {
                state = hash(state, &reader.bytes(65_536));
            }
        }
        let length = PIECES * 65_536;
        reader.send(format!(
            "HTTP/1.1 200 OK\r\nseen: {state}\r\ncontent-length: {length}\r\n\r\n"
        ));
        for index in 0..PIECES {
            reader.send(piece(index));
        }
        let _end = reader.all();
    });
    let mesh = Mesh::start(one(up));
    let mut client = Reader::new(mesh.connect());
    let length = PIECES * 65_536;
    client.send(format!(
        "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
    ));
    for index in 0..PIECES {
        client.send(piece(index));
    }
    let head = client.head().unwrap();
    assert_eq!(head.field("seen"), Some(want.to_string()), "up");
    let got = (0..PIECES).fold(0, |state, _| hash(state, &client.bytes(65_536)));
    assert_eq!(got, want, "down");
}
