//! HTTP/2 and gRPC: the h2 crate as client and endpoint.

mod proxy_support;

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response};
use mesh_user::model::{Attribute, Protocol, RateLimitPolicy, RetryPolicy, TimeoutPolicy};
use proxy_support::*;

fn one(protocol: Protocol, address: SocketAddr) -> Plan {
    Plan::new(protocol).endpoint(address, "v1")
}

/// An endpoint on its own thread; `serve` gets each stream, and which connection it came on.
fn server<F, Fut>(change: impl FnOnce(&mut h2::server::Builder), serve: F) -> SocketAddr
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>, usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut builder = h2::server::Builder::new();
    change(&mut builder);
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut connections = 0;
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (serve, builder) = (Arc::clone(&serve), builder.clone());
                let number = connections;
                connections += 1;
                tokio::spawn(async move {
                    let Ok(mut connection) = builder.handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond, number));
                    }
                });
            }
        });
    });
    address
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn request(path: &str) -> http::request::Builder {
    Request::builder()
        .method("POST")
        .uri(format!("http://web{path}"))
}

fn grpc(path: &str) -> http::request::Builder {
    request(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// The body, and the trailers.
async fn collect(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    Ok((all, body.trailers().await?))
}

/// Echoes the body, then `grpc-status: 0` in the trailers.
fn echo() -> SocketAddr {
    server(
        |_| {},
        |request, mut respond, number| async move {
            let te = request.headers().get("te").cloned();
            let response = Response::builder()
                .header("content-type", "application/grpc")
                .header("connection-number", number)
                .header(
                    "seen-te",
                    te.unwrap_or(http::HeaderValue::from_static("none")),
                )
                .header("seen-id", request.headers()["x-request-id"].len())
                .body(())
                .unwrap();
            let Ok(mut out) = respond.send_response(response, false) else {
                return;
            };
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                let mut data = data;
                while !data.is_empty() {
                    out.reserve_capacity(data.len());
                    let Some(Ok(room)) = poll_fn(|cx| out.poll_capacity(cx)).await else {
                        return;
                    };
                    let part = data.split_to(room.min(data.len()));
                    if out.send_data(part, false).is_err() {
                        return;
                    }
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("x-echoed", "yes".parse().unwrap());
            let _ = out.send_trailers(trailers);
        },
    )
}

#[test]
fn unary_grpc_passes_with_trailers_and_te() {
    let mesh = Mesh::start(one(Protocol::Grpc, echo()));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(grpc("/s/m").body(()).unwrap(), false)
            .unwrap();
        out.send_data(Bytes::from_static(b"message"), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["seen-te"], "trailers");
        assert_eq!(response.headers()["seen-id"], "36", "a request id was made");
        let (body, trailers) = collect(response.into_body()).await.unwrap();
        assert_eq!(body, b"message");
        let trailers = trailers.unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["x-echoed"], "yes");
    });
    eventually("the record", || mesh.records("request").len() == 1);
    assert!(
        mesh.metric(&["istio_requests_total", "grpc_response_status=\"0\""])
            .is_some()
    );
}

#[test]
fn prior_knowledge_is_told_on_http_and_unknown_ports() {
    for protocol in [Protocol::Http, Protocol::Http2, Protocol::Auto] {
        let mesh = Mesh::start(one(protocol, echo()));
        block(async {
            let mut sender = client(mesh.address).await;
            let (response, _) = sender
                .send_request(request("/").body(()).unwrap(), true)
                .unwrap();
            assert_eq!(response.await.unwrap().status(), 200, "{protocol:?}");
        });
    }
}

#[test]
fn streams_flow_in_both_directions_while_open() {
    let mesh = Mesh::start(one(Protocol::Grpc, echo()));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(grpc("/").body(()).unwrap(), false)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        for index in 0..10_u8 {
            out.send_data(Bytes::from(vec![index; 10]), false).unwrap();
            let data = body.data().await.unwrap().unwrap();
            assert_eq!(
                data,
                vec![index; 10],
                "each message arrives before the next is sent"
            );
        }
        out.send_data(Bytes::new(), true).unwrap();
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
}

#[test]
fn streams_share_an_upstream_connection_up_to_the_peers_limit() {
    let up = server(
        |builder| {
            builder.max_concurrent_streams(3);
        },
        |_, mut respond, number| async move {
            let response = Response::builder().header("connection-number", number);
            let mut out = respond
                .send_response(response.body(()).unwrap(), false)
                .unwrap();
            let _reset = poll_fn(|cx| out.poll_reset(cx)).await;
        },
    );
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let mut held = Vec::new();
        let mut counts = [0; 4];
        for _ in 0..7 {
            let (response, _) = sender
                .send_request(request("/").body(()).unwrap(), true)
                .unwrap();
            let response = response.await.unwrap();
            let number: usize = response.headers()["connection-number"]
                .to_str()
                .unwrap()
                .parse()
                .unwrap();
            counts[number] += 1;
            held.push(response);
            sender = sender.ready().await.unwrap();
        }
        assert_eq!(counts, [3, 3, 1, 0]);
    });
}

#[test]
fn resets_pass_in_both_directions() {
    let reset = Arc::new(AtomicUsize::new(usize::MAX));
    let seen = Arc::clone(&reset);
    let up = server(
        |_| {},
        move |request, mut respond, _| {
            let seen = Arc::clone(&seen);
            async move {
                let mut out = respond.send_response(Response::new(()), false).unwrap();
                if request.uri().path() == "/reset" {
                    out.send_data(Bytes::from_static(b"part"), false).unwrap();
                    tokio::task::yield_now().await;
                    out.send_reset(Reason::INADEQUATE_SECURITY);
                    return;
                }
                let why = poll_fn(|cx| out.poll_reset(cx)).await.unwrap();
                seen.store(u32::from(why) as usize, Ordering::SeqCst);
            }
        },
    );
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _) = sender
            .send_request(request("/reset").body(()).unwrap(), true)
            .unwrap();
        // The reset may overtake the head, which is then answered by name.
        match response.await {
            Ok(response) if response.status() == 200 => {
                let error = collect(response.into_body()).await.unwrap_err();
                assert_eq!(error.reason(), Some(Reason::INADEQUATE_SECURITY));
            }
            Ok(response) => assert_eq!(response.headers()["x-mesh-reject"], "upstream_reset"),
            Err(error) => assert_eq!(error.reason(), Some(Reason::INADEQUATE_SECURITY)),
        }
        sender = sender.ready().await.unwrap();
        let (response, mut out) = sender
            .send_request(request("/wait").body(()).unwrap(), false)
            .unwrap();
        let _body = response.await.unwrap();
        out.send_reset(Reason::NO_ERROR);
        out.send_reset(Reason::CANCEL);
        drop(out);
        while reset.load(Ordering::SeqCst) == usize::MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn client_that_goes_away_cancels_its_streams() {
    let reset = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&reset);
    let up = server(
        |_| {},
        move |_, mut respond, _| {
            let seen = Arc::clone(&seen);
            async move {
                // Not answered: only the reset ends it.
                let _why = poll_fn(|cx| respond.poll_reset(cx)).await;
                seen.fetch_add(1, Ordering::SeqCst);
            }
        },
    );
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        for _ in 0..3 {
            let (response, _) = sender
                .send_request(request("/").body(()).unwrap(), true)
                .unwrap();
            tokio::spawn(response);
            sender = sender.ready().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
    // The runtime has gone, and the connection with it.
    eventually("three cancelled streams", || {
        reset.load(Ordering::SeqCst) == 3
    });
    eventually("no request in flight", || {
        mesh.snapshot()
            .versions
            .iter()
            .all(|version| version.breaker.gauges().requests == 0)
    });
    eventually("three records", || mesh.records("request").len() == 3);
}

#[test]
fn refused_stream_is_retried_for_any_method() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let up = server(
        |_| {},
        move |request, mut respond, _| {
            let first = seen.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if first {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    return;
                }
                let (body, _) = collect(request.into_body()).await.unwrap();
                let mut out = respond.send_response(Response::new(()), false).unwrap();
                out.send_data(body.into(), true).unwrap();
            }
        },
    );
    let plan = one(Protocol::Http2, up).policy(|policy| {
        policy.retries = Some(RetryPolicy {
            attempts: 1,
            per_try: None,
            on: Vec::new(),
            statuses: Vec::new(),
            non_idempotent: false,
            backoff: Duration::from_millis(1),
            ..RetryPolicy::default()
        });
    });
    let mesh = Mesh::start(plan);
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(request("/").body(()).unwrap(), false)
            .unwrap();
        out.send_data(Bytes::from_static(b"whole"), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(collect(response.into_body()).await.unwrap().0, b"whole");
    });
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn refusal_of_grpc_is_a_status_without_a_body() {
    let plan = Plan::new(Protocol::Grpc)
        .endpoint(nobody(), "v1")
        .policy(|policy| {
            policy.rate_limits = vec![RateLimitPolicy {
                name: "few".into(),
                key: vec![Attribute::Path],
                requests: 1,
                per: Duration::from_secs(3600),
                burst: 1,
                ..RateLimitPolicy::default()
            }];
        });
    let mesh = Mesh::start(plan);
    block(async {
        let mut sender = client(mesh.address).await;
        for (status, reject) in [("14", "connect_failed"), ("8", "rate_limited")] {
            let (response, _) = sender
                .send_request(grpc("/").body(()).unwrap(), true)
                .unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            let headers = response.headers();
            assert_eq!(headers["grpc-status"], status);
            assert!(!headers["grpc-message"].is_empty());
            assert_eq!(headers["x-mesh-reject"], reject);
            assert_eq!(headers["content-type"], "application/grpc");
            assert_eq!(headers.contains_key("retry-after"), status == "8");
            assert!(response.body().is_end_stream(), "trailers-only");
            sender = sender.ready().await.unwrap();
        }
    });
}

#[test]
fn refusal_of_plain_http2_has_status_and_body() {
    let mesh = Mesh::start(one(Protocol::Http2, nobody()));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _) = sender
            .send_request(request("/").body(()).unwrap(), true)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-mesh-reject"], "connect_failed");
        assert!(!collect(response.into_body()).await.unwrap().0.is_empty());
    });
}

#[test]
fn requests_that_would_be_ambiguous_downstream_are_refused() {
    let mesh = Mesh::start(one(Protocol::Http2, echo()));
    block(async {
        let mut sender = client(mesh.address).await;
        for (name, build, status) in [
            (
                "authority and host agree",
                request("/").header("host", "web"),
                200,
            ),
            (
                "authority and host differ",
                request("/").header("host", "other"),
                400,
            ),
            (
                "two hosts",
                request("/").header("host", "web").header("host", "web"),
                400,
            ),
            (
                "CONNECT",
                Request::builder().method("CONNECT").uri("web:80"),
                405,
            ),
            (
                "target too long",
                request(&format!("/{}", "a".repeat(16 << 10))),
                414,
            ),
        ] {
            let (response, _) = sender.send_request(build.body(()).unwrap(), true).unwrap();
            assert_eq!(response.await.unwrap().status(), status, "{name}");
            sender = sender.ready().await.unwrap();
        }
    });
}

#[test]
fn grpc_timeout_bounds_the_request() {
    let up = server(
        |_| {},
        |_, mut respond, _| async move {
            let _why = poll_fn(|cx| respond.poll_reset(cx)).await;
        },
    );
    let mesh = Mesh::start(one(Protocol::Grpc, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let start = Instant::now();
        let build = grpc("/").header("grpc-timeout", "100m");
        let (response, _) = sender.send_request(build.body(()).unwrap(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "4", "DEADLINE_EXCEEDED");
        assert!(start.elapsed() >= Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn request_timeout_of_http2_is_504() {
    let up = server(
        |_| {},
        |_, mut respond, _| async move {
            let _why = poll_fn(|cx| respond.poll_reset(cx)).await;
        },
    );
    let plan = one(Protocol::Http2, up).policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            request: Some(Duration::from_millis(100)),
            ..TimeoutPolicy::default()
        };
    });
    let mesh = Mesh::start(plan);
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _) = sender
            .send_request(request("/").body(()).unwrap(), true)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["x-mesh-reject"], "upstream_timeout");
    });
}

#[test]
fn sender_is_held_back_when_the_receiver_takes_nothing() {
    let up = server(
        |_| {},
        |request, mut respond, _| async move {
            // Answers, and reads nothing of the body.
            let _out = respond.send_response(Response::new(()), false).unwrap();
            let _body = request.into_body();
            std::future::pending::<()>().await;
        },
    );
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(request("/").body(()).unwrap(), false)
            .unwrap();
        let _response = response.await.unwrap();
        let mut sent = 0;
        out.reserve_capacity(1 << 30);
        while let Ok(Some(Ok(room))) = tokio::time::timeout(
            Duration::from_millis(500),
            poll_fn(|cx| out.poll_capacity(cx)),
        )
        .await
        {
            let part = room.min(1 << 20);
            out.send_data(vec![0; part].into(), false).unwrap();
            sent += part;
            out.reserve_capacity(1 << 30);
            assert!(sent < 2 << 20, "the window is the bound: {sent}");
        }
        assert!(sent >= 65_535, "{sent}");
    });
}

#[test]
fn fifty_mebibytes_pass_through_a_stream_unchanged() {
    const COUNT: usize = 50 << 20;
    let mesh = Mesh::start(one(Protocol::Http2, echo()));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(request("/").body(()).unwrap(), false)
            .unwrap();
        tokio::spawn(async move {
            let mut left = COUNT;
            while left > 0 {
                out.reserve_capacity(left.min(1 << 20));
                let room = poll_fn(|cx| out.poll_capacity(cx)).await.unwrap().unwrap();
                let part = room.min(left);
                let from = COUNT - left;
                let data: Vec<u8> = (from..from + part)
                    .map(|at| (at * 31 % 251) as u8)
                    .collect();
                left -= part;
                out.send_data(data.into(), left == 0).unwrap();
            }
        });
        let (body, _) = collect(response.await.unwrap().into_body()).await.unwrap();
        assert_eq!(body.len(), COUNT);
        assert!(
            body.iter()
                .enumerate()
                .all(|(at, byte)| *byte == (at * 31 % 251) as u8)
        );
    });
}

#[test]
fn endpoint_that_says_goaway_gets_no_new_streams() {
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    let (listener, address) = bind();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                seen.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        connection.graceful_shutdown();
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                });
            }
        });
    });
    let mesh = Mesh::start(one(Protocol::Http2, address));
    block(async {
        let mut sender = client(mesh.address).await;
        for index in 1..=5 {
            let (response, _) = sender
                .send_request(request("/").body(()).unwrap(), true)
                .unwrap();
            assert_eq!(response.await.unwrap().status(), 200, "{index}");
            sender = sender.ready().await.unwrap();
        }
    });
    assert!(
        connections.load(Ordering::SeqCst) >= 4,
        "each connection served about one stream"
    );
}

#[test]
fn drain_says_goaway_and_lets_streams_end() {
    let gate = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&gate);
    let up = server(
        |_| {},
        move |_, mut respond, _| {
            let seen = Arc::clone(&seen);
            async move {
                seen.fetch_add(1, Ordering::SeqCst);
                while seen.load(Ordering::SeqCst) < 2 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                respond.send_response(Response::new(()), true).unwrap();
            }
        },
    );
    let mut mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let ended = tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let (response, _) = sender
            .send_request(request("/").body(()).unwrap(), true)
            .unwrap();
        while gate.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let workers = mesh.workers.take().unwrap();
        let drain = thread::spawn(move || workers.drain(PATIENCE));
        // No new stream is taken, while the old one is in flight.
        while sender.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gate.fetch_add(1, Ordering::SeqCst);
        assert_eq!(response.await.unwrap().status(), 200);
        ended.await.unwrap().unwrap();
        assert_eq!(drain.join().unwrap(), 0, "nothing was cut");
    });
}

#[test]
fn max_requests_counts_streams() {
    let up = server(
        |_| {},
        |_, mut respond, _| async move {
            let _why = poll_fn(|cx| respond.poll_reset(cx)).await;
        },
    );
    let plan = one(Protocol::Grpc, up).breaker(|breaker| breaker.max_requests = 2);
    let mesh = Mesh::start(plan);
    block(async {
        let mut sender = client(mesh.address).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(
                sender
                    .send_request(grpc("/").body(()).unwrap(), true)
                    .unwrap(),
            );
            sender = sender.ready().await.unwrap();
        }
        let in_flight = || {
            let snapshot = mesh.snapshot();
            snapshot
                .versions
                .iter()
                .map(|v| v.breaker.gauges().requests)
                .max()
                .unwrap_or(0)
        };
        while in_flight() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (response, _) = sender
            .send_request(grpc("/").body(()).unwrap(), true)
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["x-mesh-reject"], "overflow_requests");
        assert_eq!(response.headers()["x-mesh-overloaded"], "true");
        assert_eq!(response.headers()["grpc-status"], "14");
        for (_, stream) in &mut held {
            stream.send_reset(Reason::CANCEL);
        }
        while in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

/// Ejects at the first failure, whatever the share.
fn touchy(policy: &mut mesh_user::model::Policy) {
    policy.ejection = Some(mesh_user::model::EjectionPolicy {
        consecutive_5xx: 1,
        max_percent: 100,
        ..Default::default()
    });
}

#[test]
fn upload_that_stalls_is_the_clients_fault() {
    let plan = one(Protocol::Http2, echo()).policy(touchy);
    let mesh = Mesh::with(plan, 1, |limits| {
        limits.body_timeout = Duration::from_millis(200);
    });
    // An endpoint that has answered, and one that waits for the body.
    let silent = server(
        |_| {},
        |_, mut respond, _| async move {
            let _why = poll_fn(|cx| respond.poll_reset(cx)).await;
        },
    );
    let waiting = Mesh::with(one(Protocol::Http2, silent).policy(touchy), 1, |limits| {
        limits.body_timeout = Duration::from_millis(200);
    });
    block(async {
        let mut sender = client(waiting.address).await;
        let (response, mut out) = sender
            .send_request(request("/").body(()).unwrap(), false)
            .unwrap();
        out.send_data(Bytes::from_static(b"part"), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 408);
        assert_eq!(response.headers()["x-mesh-reject"], "body_timeout");
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(request("/").body(()).unwrap(), false)
            .unwrap();
        out.send_data(Bytes::from_static(b"part"), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        collect(response.into_body()).await.unwrap_err();
    });
    eventually("the record", || mesh.records("request").len() == 1);
    for mesh in [&waiting, &mesh] {
        let snapshot = mesh.snapshot();
        let endpoints = snapshot.versions.iter().flat_map(|v| &v.endpoints);
        for endpoint in endpoints {
            assert_eq!(endpoint.live.recorded().1, 0, "no failure of the endpoint");
            assert!(endpoint.live.is_eligible());
        }
    }
}

#[test]
fn trailers_of_a_request_are_sent_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    let up = server(
        |_| {},
        move |request, mut respond, _| {
            let first = seen.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                let (_, trailers) = collect(request.into_body()).await.unwrap();
                if first {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    return;
                }
                let sum = trailers.map(|trailers| trailers["x-sum"].clone());
                let sum = sum.unwrap_or(http::HeaderValue::from_static("none"));
                let response = Response::builder().header("seen-sum", sum);
                let _ = respond.send_response(response.body(()).unwrap(), true);
            }
        },
    );
    let plan = one(Protocol::Http2, up).policy(|policy| {
        policy.retries = Some(RetryPolicy {
            attempts: 1,
            per_try: None,
            on: Vec::new(),
            statuses: Vec::new(),
            non_idempotent: false,
            backoff: Duration::from_millis(1),
            ..RetryPolicy::default()
        });
    });
    let mesh = Mesh::start(plan);
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(request("/").body(()).unwrap(), false)
            .unwrap();
        out.send_data(Bytes::from_static(b"data"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        out.send_trailers(trailers).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["seen-sum"], "7");
    });
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[test]
fn idle_connection_yields_to_a_stream_for_another_endpoint() {
    let plan = one(Protocol::Http2, held()).endpoint(held(), "v1");
    let plan = plan.breaker(|breaker| breaker.max_connections = 1);
    let mesh = Mesh::start(plan);
    block(async {
        let mut sender = client(mesh.address).await;
        let mut first = None;
        let mut rest = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (response, out) = sender
                .send_request(request("/").body(()).unwrap(), false)
                .unwrap();
            if first.is_none() {
                assert_eq!(response.await.unwrap().status(), 200);
                first = Some(out);
            } else {
                rest.spawn(async move {
                    let mut out = out;
                    out.send_data(Bytes::new(), true).unwrap();
                    let response = response.await.unwrap();
                    assert_eq!(response.status(), 200);
                    collect(response.into_body()).await.unwrap();
                });
            }
            sender = sender.ready().await.unwrap();
        }
        while gauges(&mesh).pending == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        first.unwrap().send_data(Bytes::new(), true).unwrap();
        while let Some(done) = rest.join_next().await {
            done.unwrap();
        }
    });
}

/// Answers at once, and ends the answer when the request ends.
fn held() -> SocketAddr {
    server(
        |_| {},
        |request, mut respond, _| async move {
            let mut out = respond.send_response(Response::new(()), false).unwrap();
            let _ = collect(request.into_body()).await;
            let _ = out.send_data(Bytes::new(), true);
        },
    )
}

fn gauges(mesh: &Mesh) -> mesh_user::policy::breaker::Gauges {
    let snapshot = mesh.snapshot();
    let gauges = snapshot.versions.iter().map(|v| v.breaker.gauges());
    gauges
        .max_by_key(|gauges| gauges.pending)
        .unwrap_or_default()
}

/// The endpoint of a service that has one, ejected, returned, and due for its probe.
fn probe_due(mesh: &Mesh) -> Arc<mesh_user::policy::snapshot::EndpointState> {
    use mesh_user::{
        clock,
        policy::{VersionIx, ejection::Standing, snapshot::Outcome},
    };
    let snapshot = mesh.snapshot();
    let at = snapshot
        .versions
        .iter()
        .position(|v| !v.endpoints.is_empty());
    let version = VersionIx(u32::try_from(at.unwrap()).unwrap());
    let endpoint = Arc::clone(&snapshot.version(version).endpoints[0]);
    for _ in 0..3 {
        snapshot.record(version, &endpoint, Outcome::Status(500), None, clock::now());
    }
    assert!(!endpoint.live.is_eligible());
    snapshot.sweep(clock::now().after(Duration::from_secs(60)));
    assert_eq!(endpoint.live.standing(), Standing::Probing);
    endpoint
}

fn probing(policy: &mut mesh_user::model::Policy) {
    touchy(policy);
    let ejection = policy.ejection.as_mut().unwrap();
    ejection.consecutive_5xx = 3;
    ejection.probe = true;
}

#[test]
fn probe_that_gets_no_answer_ejects_again() {
    let resets = server(
        |_| {},
        |_, mut respond, _| async move { respond.send_reset(Reason::INTERNAL_ERROR) },
    );
    for up in [nobody(), resets] {
        let mesh = Mesh::start(one(Protocol::Http2, up).policy(probing));
        let endpoint = probe_due(&mesh);
        block(async {
            let mut sender = client(mesh.address).await;
            let request = request("/").body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            assert!(response.await.unwrap().status().is_server_error());
        });
        assert_eq!(endpoint.live.ejections().0, 2);
    }
}

#[test]
fn probe_is_answered_by_the_head_of_a_long_stream() {
    let mesh = Mesh::start(one(Protocol::Http2, held()).policy(probing));
    let endpoint = probe_due(&mesh);
    block(async {
        let mut sender = client(mesh.address).await;
        let mut open = Vec::new();
        for _ in 0..3 {
            let request = request("/").body(()).unwrap();
            let (response, out) = sender.send_request(request, false).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
            open.push(out);
            sender = sender.ready().await.unwrap();
            while !endpoint.live.is_eligible() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
}
