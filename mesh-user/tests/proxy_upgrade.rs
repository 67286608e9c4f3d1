//! WebSocket and other upgrades: extended CONNECT (RFC 8441) to both versions of HTTP, CONNECT,
//! and which protocols a policy lets through.

mod proxy_support;

use std::{
    future::poll_fn,
    hash::Hasher,
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest, ext::Protocol as Name};
use http::{Request, Response, StatusCode};
use mesh_user::model::Protocol;
use proxy_support::*;

fn one(protocol: Protocol, at: SocketAddr) -> Plan {
    Plan::new(protocol).endpoint(at, "v1")
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    while !sender.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    sender.ready().await.unwrap()
}

fn connect_to(protocol: &'static str) -> Request<()> {
    Request::builder()
        .method("CONNECT")
        .uri("http://web/chat?x=1")
        .extension(Name::from_static(protocol))
        .header("sec-websocket-version", "13")
        .header("origin", "http://web")
        .body(())
        .unwrap()
}

async fn open(
    sender: &mut SendRequest<Bytes>,
    protocol: &'static str,
) -> (Response<RecvStream>, SendStream<Bytes>) {
    *sender = sender.clone().ready().await.unwrap();
    let (response, out) = sender.send_request(connect_to(protocol), false).unwrap();
    (response.await.unwrap(), out)
}

async fn next(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    loop {
        let data = body.data().await?;
        if let Ok(data) = &data {
            body.flow_control().release_capacity(data.len()).unwrap();
            // What carries only the end is no data.
            if data.is_empty() {
                continue;
            }
        }
        return Some(data);
    }
}

/// So many bytes.
async fn bytes(body: &mut RecvStream, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend_from_slice(&next(body).await.unwrap().unwrap());
    }
    all
}

async fn send(out: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        let room = poll_fn(|cx| out.poll_capacity(cx)).await.unwrap().unwrap();
        out.send_data(data.split_to(room.min(data.len())), false)
            .unwrap();
    }
}

/// Of RFC 6455, section 1.3, by other means than the proxy's own.
fn accept(key: &str) -> String {
    let mut sum = Command::new("sha1sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut stdin = sum.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let hex = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    let bits: String = hex[..40]
        .chars()
        .map(|digit| format!("{:04b}", digit.to_digit(16).unwrap()))
        .collect();
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |at: usize| {
        let bits = format!("{:0<6}", &bits[at..(at + 6).min(160)]);
        char::from(letters[usize::from_str_radix(&bits, 2).unwrap()])
    };
    (0..160).step_by(6).map(group).chain(['=']).collect()
}

/// Takes the handshake of HTTP/1.1 in, and switches.
fn switch(reader: &mut Reader) -> Message {
    let request = reader.head().unwrap();
    let protocol = request.field("upgrade").unwrap();
    let proof = request.field("sec-websocket-key").map(|key| accept(&key));
    let proof = proof.map_or_else(String::new, |it| format!("sec-websocket-accept: {it}\r\n"));
    reader.send(format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching\r\nconnection: upgrade\r\n\
         upgrade: {protocol}\r\n{proof}sec-websocket-protocol: chat\r\nx-own: 1\r\n\r\n"
    ));
    request
}

/// An HTTP/1.1 endpoint that switches, then echoes to the end.
fn echo1() -> SocketAddr {
    endpoint(|stream| {
        let mut reader = Reader::new(stream);
        switch(&mut reader);
        loop {
            let data = std::mem::take(&mut reader.rest);
            if reader.stream.write_all(&data).is_err() || !reader.more().unwrap_or(false) {
                return;
            }
        }
    })
}

#[test]
fn websocket_over_http2_becomes_an_upgrade_of_http1() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let request = switch(&mut reader);
        let line = request.head.lines().next().unwrap();
        assert_eq!(line, "GET /chat?x=1 HTTP/1.1");
        assert_eq!(request.field("host").as_deref(), Some("web"));
        assert_eq!(request.field("connection").as_deref(), Some("upgrade"));
        assert_eq!(request.field("upgrade").as_deref(), Some("websocket"));
        assert_eq!(request.field("origin").as_deref(), Some("http://web"));
        assert_eq!(
            request.field("sec-websocket-version").as_deref(),
            Some("13")
        );
        assert_eq!(request.field("x-request-id").unwrap().len(), 36);
        reader.send("welcome");
        assert_eq!(reader.bytes(5), b"hello");
        // The end of the stream is the end of the connection's other half; ours is still open.
        assert!(reader.is_closed());
        reader.send("bye");
    });
    let mesh = Mesh::start(one(Protocol::Http, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = open(&mut sender, "websocket").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-own"], "1");
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        for name in ["sec-websocket-accept", "upgrade", "connection"] {
            assert!(!response.headers().contains_key(name), "{name}");
        }
        let mut body = response.into_body();
        assert_eq!(bytes(&mut body, 7).await, b"welcome");
        out.send_data(Bytes::from_static(b"hello"), true).unwrap();
        assert_eq!(bytes(&mut body, 3).await, b"bye");
        assert!(next(&mut body).await.is_none(), "an orderly end");
    });
    eventually("the record", || mesh.records("request").len() == 1);
    let record = &mesh.records("request")[0];
    assert_eq!(record["http.response.status_code"], 200);
    assert_eq!(record["mesh.bytes_received"], 5);
    assert_eq!(record["mesh.bytes_sent"], 10);
    assert_eq!(record["mesh.flags"], "-");
}

#[test]
fn other_protocol_over_http2_becomes_an_upgrade_without_a_key() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let request = switch(&mut reader);
        assert_eq!(request.field("upgrade").as_deref(), Some("my-protocol"));
        assert_eq!(request.field("sec-websocket-key"), None);
        reader.send("mine");
    });
    let mesh = Mesh::start(one(Protocol::Http, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _out) = open(&mut sender, "my-protocol").await;
        assert_eq!(response.status(), 200);
        assert_eq!(bytes(&mut response.into_body(), 4).await, b"mine");
    });
}

fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = twox_hash::XxHash64::with_seed(0);
    hasher.write(bytes);
    hasher.finish()
}

/// An HTTP/2 endpoint that takes tunnels, or says that it does not, and echoes them; how many came.
fn echo2(takes: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut builder = h2::server::Builder::new();
            if takes {
                builder.enable_connect_protocol();
            }
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, builder) = (Arc::clone(&seen), builder.clone());
                tokio::spawn(async move {
                    let Ok(mut connection) = builder.handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let name = request.extensions().get::<Name>().map(Name::as_str);
                        assert_eq!(name, Some("websocket"));
                        assert_eq!(request.uri().path(), "/chat");
                        seen.fetch_add(1, SeqCst);
                        tokio::spawn(async move {
                            let response = Response::builder().header("x-own", "1");
                            let response = response.body(()).unwrap();
                            let mut out = respond.send_response(response, false).unwrap();
                            let mut body = request.into_body();
                            while let Some(Ok(data)) = next(&mut body).await {
                                if &data[..] == b"reset" {
                                    return out.send_reset(Reason::CONNECT_ERROR);
                                }
                                send(&mut out, data).await;
                            }
                            out.send_data(Bytes::from_static(b"end"), true).unwrap();
                        });
                    }
                });
            }
        });
    });
    (address, count)
}

#[test]
fn websocket_over_http2_stays_a_stream_where_the_endpoint_takes_such() {
    let (up, count) = echo2(true);
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        for _ in 0..2 {
            let (response, mut out) = open(&mut sender, "websocket").await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["x-own"], "1");
            let mut body = response.into_body();
            for _ in 0..5 {
                out.send_data(Bytes::from_static(b"ping"), false).unwrap();
                assert_eq!(bytes(&mut body, 4).await, b"ping");
            }
            out.send_data(Bytes::new(), true).unwrap();
            assert_eq!(bytes(&mut body, 3).await, b"end");
            assert!(next(&mut body).await.is_none());
        }
        // A reset passes as it is.
        let (response, mut out) = open(&mut sender, "websocket").await;
        out.send_data(Bytes::from_static(b"reset"), false).unwrap();
        let why = next(&mut response.into_body()).await.unwrap().unwrap_err();
        assert_eq!(why.reason(), Some(Reason::CONNECT_ERROR));
    });
    assert_eq!(count.load(SeqCst), 3);
}

#[test]
fn ten_mebibytes_pass_a_tunnel_both_ways_unchanged() {
    for (protocol, up) in [(Protocol::Http, echo1()), (Protocol::Http2, echo2(true).0)] {
        let mesh = Mesh::start(one(protocol, up));
        let data = Bytes::from(random(10 << 20));
        block(async {
            let mut sender = client(mesh.address).await;
            let (response, mut out) = open(&mut sender, "websocket").await;
            let copy = data.clone();
            tokio::spawn(async move {
                send(&mut out, copy).await;
                out.send_data(Bytes::new(), true).unwrap();
            });
            let mut body = response.into_body();
            let mut all = Vec::new();
            while let Some(data) = next(&mut body).await {
                all.extend_from_slice(&data.unwrap());
            }
            all.truncate(data.len());
            assert_eq!(hash(&all), hash(&data), "{protocol:?}");
        });
    }
}

/// The endpoint says that it speaks HTTP/2 and does not take tunnels; it takes HTTP/1.1 as well.
#[test]
fn websocket_falls_back_to_http1_where_the_endpoint_takes_no_streams() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        assert!(reader.more().unwrap());
        if reader.rest.starts_with(b"PRI") {
            reader.send("HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n");
            return;
        }
        switch(&mut reader);
        reader.send("one");
    });
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _out) = open(&mut sender, "websocket").await;
        assert_eq!(response.status(), 200);
        assert_eq!(bytes(&mut response.into_body(), 3).await, b"one");
    });
    // One that speaks HTTP/2 alone, and takes none.
    let (up, count) = echo2(false);
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _out) = open(&mut sender, "websocket").await;
        assert!(response.headers().contains_key("x-mesh-reject"));
        assert!(response.status().is_server_error());
    });
    assert_eq!(count.load(SeqCst), 0);
}

#[test]
fn resets_pass_a_tunnel_to_http1_in_both_directions() {
    let reset_seen = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&reset_seen);
    let up = endpoint(move |stream| {
        let mut reader = Reader::new(stream);
        switch(&mut reader);
        if reader.bytes(4) == b"mine" {
            return reset(reader.stream);
        }
        assert!(reader.is_reset());
        seen.fetch_add(1, SeqCst);
    });
    let mesh = Mesh::start(one(Protocol::Http, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = open(&mut sender, "websocket").await;
        out.send_data(Bytes::from_static(b"mine"), false).unwrap();
        let why = next(&mut response.into_body()).await.unwrap().unwrap_err();
        assert_eq!(why.reason(), Some(Reason::CANCEL), "RFC 8441, section 5");
        let (response, mut out) = open(&mut sender, "websocket").await;
        out.send_data(Bytes::from_static(b"your"), false).unwrap();
        // Only once the bytes are through.
        let mut body = response.into_body();
        out.reserve_capacity(1);
        tokio::time::sleep(Duration::from_millis(50)).await;
        out.send_reset(Reason::CANCEL);
        let _ended = next(&mut body).await;
        while reset_seen.load(SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
}

#[test]
fn answer_that_is_no_switch_passes_or_is_named() {
    for (answer, status, body) in [
        (
            "HTTP/1.1 403 No\r\ncontent-length: 2\r\nx-own: 1\r\n\r\nno",
            403,
            "no",
        ),
        (
            "HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n1\r\nt\r\n0\r\n\r\n",
            503,
            "not",
        ),
        ("HTTP/1.1 426 No\r\n\r\nuntil the end", 426, "until the end"),
        // An open tunnel in HTTP/2, if it passed.
        ("HTTP/1.1 200 Ok\r\ncontent-length: 2\r\n\r\nok", 502, ""),
        (
            "HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: guess\r\n\r\n",
            502,
            "",
        ),
        ("SSH-2.0\r\n\r\n", 502, ""),
        ("", 503, ""),
    ] {
        let up = endpoint(move |stream| {
            let mut reader = Reader::new(stream);
            let _request = reader.head();
            reader.send(answer);
        });
        let mesh = Mesh::start(one(Protocol::Http, up));
        block(async {
            let mut sender = client(mesh.address).await;
            let (response, _out) = open(&mut sender, "websocket").await;
            assert_eq!(response.status(), status, "{answer}");
            if body.is_empty() {
                assert!(response.headers().contains_key("x-mesh-reject"));
                return;
            }
            let mut from = response.into_body();
            let mut all = Vec::new();
            while let Some(data) = next(&mut from).await {
                all.extend_from_slice(&data.unwrap());
            }
            assert_eq!(all, body.as_bytes(), "{answer}");
        });
    }
}

#[test]
fn tunnel_has_no_time_out_but_the_idle_one_once_it_is_open() {
    let patient = |plan: Plan| {
        plan.policy(|policy| {
            policy.timeouts.request = Some(Duration::from_millis(150));
            policy.timeouts.idle = Some(Duration::from_millis(800));
        })
    };
    for (protocol, up) in [(Protocol::Http, echo1()), (Protocol::Http2, echo2(true).0)] {
        let mesh = Mesh::start(patient(one(protocol, up)));
        block(async {
            let mut sender = client(mesh.address).await;
            let (response, mut out) = open(&mut sender, "websocket").await;
            let mut body = response.into_body();
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                out.send_data(Bytes::from_static(b"ping"), false).unwrap();
                assert_eq!(bytes(&mut body, 4).await, b"ping", "{protocol:?}");
            }
            let why = next(&mut body).await.unwrap().unwrap_err();
            assert_eq!(why.reason(), Some(Reason::CANCEL), "idle: {protocol:?}");
        });
        eventually("the record", || mesh.records("request").len() == 1);
        assert_eq!(mesh.records("request")[0]["mesh.flags"], "UT");
    }
    // Before it is open the request's time-out counts.
    let silent = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        while reader.more().unwrap_or(false) {}
    });
    let mesh = Mesh::start(patient(one(Protocol::Http, silent)));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _out) = open(&mut sender, "websocket").await;
        assert_eq!(response.status(), 504);
    });
}

#[test]
fn tunnel_counts_as_a_request_in_flight_to_its_end() {
    let mesh = Mesh::start(one(Protocol::Http, echo1()));
    let gauges = || {
        let snapshot = mesh.snapshot();
        let all = snapshot.versions.iter().map(|it| it.breaker.gauges());
        all.fold((0, 0), |sum, it| {
            (sum.0 + it.requests, sum.1 + it.connections)
        })
    };
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = open(&mut sender, "websocket").await;
        assert_eq!(gauges(), (1, 1));
        out.send_data(Bytes::new(), true).unwrap();
        assert!(next(&mut response.into_body()).await.is_none());
    });
    eventually("all is given back", || gauges() == (0, 0));
}

#[test]
fn plain_connect_is_refused_by_name_in_both_versions() {
    let mesh = Mesh::start(one(Protocol::Http, http("no")));
    let mut raw = Reader::new(mesh.connect());
    raw.send("CONNECT web:443 HTTP/1.1\r\nhost: web:443\r\n\r\n");
    let answer = raw.message().unwrap();
    assert_eq!(answer.status(), 405);
    assert_eq!(
        answer.field("x-mesh-reject").as_deref(),
        Some("connect_refused")
    );
    assert!(answer.field("allow").is_some());
    block(async {
        let mut sender = client(mesh.address).await;
        let request = Request::builder().method("CONNECT").uri("web:443");
        let (response, _out) = sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["x-mesh-reject"], "connect_refused");
    });
}

#[test]
fn policy_names_the_protocols_that_may_be_upgraded_to() {
    let up = || {
        endpoint(|stream| {
            let mut reader = Reader::new(stream);
            switch(&mut reader);
        })
    };
    for (allowed, protocol, passes) in [
        (None, "websocket", true),
        (None, "other", true),
        (Some(vec!["websocket"]), "WebSocket", true),
        (Some(vec!["websocket"]), "other", false),
        (Some(vec!["websocket", "other"]), "other", true),
        (Some(vec![]), "websocket", false),
    ] {
        let plan = one(Protocol::Http, up()).policy(|policy| {
            policy.upgrades = allowed
                .as_ref()
                .map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        });
        let mesh = Mesh::start(plan);
        let mut raw = Reader::new(mesh.connect());
        raw.send(format!(
            "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ));
        let answer = raw.head().unwrap();
        if passes {
            assert_eq!(answer.status(), 100, "{allowed:?} {protocol}");
            assert_eq!(raw.head().unwrap().status(), 101);
        } else {
            assert_eq!(answer.status(), 403, "{allowed:?} {protocol}");
            assert_eq!(
                answer.field("x-mesh-reject").as_deref(),
                Some("upgrade_refused")
            );
        }
        block(async {
            let mut sender = client(mesh.address).await;
            let (response, _out) = open(&mut sender, protocol).await;
            let status = if passes { 200 } else { 403 };
            assert_eq!(response.status(), status, "{allowed:?} {protocol}");
        });
    }
    // Of several offers each has to be allowed.
    let plan = one(Protocol::Http, up()).policy(|policy| {
        policy.upgrades = Some(vec!["websocket".into()]);
    });
    let mesh = Mesh::start(plan);
    let mut raw = Reader::new(mesh.connect());
    raw.send(
        "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket, other/2\r\n\r\n",
    );
    assert_eq!(raw.message().unwrap().status(), 403);
    // The connection is still good, and a request without an upgrade passes.
    raw.send(GET);
    assert!(raw.head().is_some());
}

/// The name of a protocol that HTTP/1.1 could not offer, or that is never passed.
#[test]
fn tunnel_to_h2c_or_to_no_token_is_refused() {
    let mesh = Mesh::start(one(Protocol::Http, echo1()));
    block(async {
        let mut sender = client(mesh.address).await;
        for protocol in ["h2c", "a b", "x\r\ny"] {
            let (response, _out) = open(&mut sender, protocol).await;
            assert_eq!(response.status(), 400, "{protocol}");
        }
    });
}

/// A tunnel is a long connection like any other: both sides see its end when the configuration no
/// longer sends there, and a client that does not end it is reset.
#[test]
fn tunnel_to_http1_follows_changes_of_the_configuration() {
    use mesh_user::model::{ChangeAction, OnChange};
    for action in [ChangeAction::Drain, ChangeAction::Close, ChangeAction::Keep] {
        let (v1, v2) = (echo1(), echo1());
        let plan = |to: &str| {
            Plan::new(Protocol::Http)
                .endpoint(v1, "v1")
                .endpoint(v2, "v2")
                .route(Vec::new(), &[(to, 1)])
                .policy(|policy| {
                    policy.on_change = Some(OnChange {
                        action,
                        deadline: Duration::from_millis(400),
                    });
                })
        };
        let mesh = Mesh::start(plan("v1"));
        block(async {
            let mut sender = client(mesh.address).await;
            let (response, mut out) = open(&mut sender, "websocket").await;
            let mut body = response.into_body();
            out.send_data(Bytes::from_static(b"ping"), false).unwrap();
            assert_eq!(bytes(&mut body, 4).await, b"ping");
            mesh.swap(plan("v2"));
            if action == ChangeAction::Keep {
                out.send_data(Bytes::from_static(b"pong"), true).unwrap();
                assert_eq!(bytes(&mut body, 4).await, b"pong");
                assert!(next(&mut body).await.is_none());
                return;
            }
            let end = next(&mut body).await;
            match end {
                // Told the end in order; ours follows.
                None => out.send_data(Bytes::new(), true).unwrap(),
                Some(end) => {
                    let reason = end.unwrap_err().reason();
                    assert_eq!(
                        (action, reason),
                        (ChangeAction::Close, Some(Reason::CANCEL))
                    );
                }
            }
        });
        eventually("the record", || mesh.records("request").len() == 1);
        let reject = mesh.records("request")[0]["mesh.reject"].clone();
        let changed = action != ChangeAction::Keep;
        assert_eq!(reject == "route_changed", changed, "{action:?}: {reject}");
    }
}
