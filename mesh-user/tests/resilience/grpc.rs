//! HTTP/2 and gRPC: conditions of the head, `grpc-timeout`, hedges.

use std::future::Future;

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response};
use mesh_user::model::{ChangeAction, OnChange};

use super::{hedges::hedged, *};

/// An endpoint on its own thread.
fn server<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
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
            while let Ok((stream, _)) = listener.accept().await {
                let serve = Arc::clone(&serve);
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond));
                    }
                });
            }
        });
    });
    address
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn call(path: &str) -> http::request::Builder {
    Request::builder()
        .method("POST")
        .uri(format!("http://web{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

fn status_only(code: u8) -> Response<()> {
    Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", u16::from(code))
        .body(())
        .unwrap()
}

fn plan(address: SocketAddr) -> Plan {
    Plan::new(Protocol::Grpc).endpoint(address, "v1")
}

/// SEMANTICS §5.7: gRPC statuses in the head of the answer only, never in trailers.
#[test]
fn grpc_status_is_retried_from_the_head_and_never_from_trailers() {
    for (in_head, deliveries) in [(true, 3), (false, 1)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let address = server(move |_, mut respond| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                if in_head {
                    respond.send_response(status_only(14), true).unwrap();
                    return;
                }
                let head = Response::builder().body(()).unwrap();
                let mut out = respond.send_response(head, false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "14".parse().unwrap());
                out.send_trailers(trailers).unwrap();
            }
        });
        let mesh = Mesh::start(retrying(plan(address), |retries| {
            retries.on = vec![RetryOn::Unavailable];
            retries.non_idempotent = true;
        }));
        block(async {
            let mut sender = client(mesh.address).await;
            let (response, _) = sender
                .send_request(call("/a/B").body(()).unwrap(), true)
                .unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
        });
        assert_eq!(
            asked.load(Ordering::SeqCst),
            deliveries,
            "in the head: {in_head}"
        );
    }
}

/// The client's `grpc-timeout` bounds the request, and the endpoint is told what is left of it.
#[test]
fn grpc_timeout_bounds_the_request_and_is_passed_on_shortened() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let said = Arc::clone(&seen);
    let address = server(move |request, mut respond| {
        let text = request.headers()["grpc-timeout"]
            .to_str()
            .unwrap()
            .to_owned();
        let first = {
            let mut said = said.lock().unwrap();
            said.push(text);
            said.len() == 1
        };
        async move {
            tokio::time::sleep(ms(if first { 100 } else { 0 })).await;
            let code = if first { 14 } else { 0 };
            let _gone = respond.send_response(status_only(code), true);
        }
    });
    let mesh = Mesh::start(retrying(plan(address), |retries| {
        retries.on = vec![RetryOn::Unavailable];
        retries.non_idempotent = true;
    }));
    block(async {
        let mut sender = client(mesh.address).await;
        let request = call("/a/B").header("grpc-timeout", "2S").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().headers()["grpc-status"], "0");
    });
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], "2S", "nothing is shorter: as it came");
    let left: u64 = seen[1].trim_end_matches('u').parse().unwrap();
    assert!((1_000_000..=1_900_000).contains(&left), "{}", seen[1]);
    drop(seen);
    // It is an upper bound, and the rule's shorter one is passed on.
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let said = Arc::clone(&seen);
    let stuck = server(move |request, respond| {
        let text = request.headers()["grpc-timeout"]
            .to_str()
            .unwrap()
            .to_owned();
        said.lock().unwrap().push(text);
        async move {
            tokio::time::sleep(PATIENCE).await;
            drop(respond);
        }
    });
    let mesh = Mesh::start(ruled(plan(stuck), |extra| {
        extra.timeouts.request = Some(ms(5_000));
        extra.timeouts.backend_request = Some(ms(3_000));
    }));
    for (asked, passed) in [("200m", None), ("100S", Some(3_000_000))] {
        let began = Instant::now();
        if passed.is_none() {
            block(async {
                let mut sender = client(mesh.address).await;
                let request = call("/a/B").header("grpc-timeout", asked).body(()).unwrap();
                let (response, _) = sender.send_request(request, true).unwrap();
                assert_eq!(response.await.unwrap().headers()["grpc-status"], "4");
            });
            assert!(began.elapsed() < ms(2_000));
            assert_eq!(seen.lock().unwrap()[0], asked);
            continue;
        }
        block(async {
            let mut sender = client(mesh.address).await;
            let request = call("/a/B").header("grpc-timeout", asked).body(()).unwrap();
            let (_response, _) = sender.send_request(request, true).unwrap();
            let until = Instant::now() + PATIENCE;
            while seen.lock().unwrap().len() < 2 && Instant::now() < until {
                tokio::time::sleep(ms(5)).await;
            }
        });
        let text = seen.lock().unwrap()[1].clone();
        let micros: u64 = text.trim_end_matches('u').parse().unwrap();
        assert!(micros <= passed.unwrap() && micros > 2_900_000, "{text}");
    }
}

#[test]
fn hedge_in_http2_carries_body_and_trailers_and_resets_the_loser() {
    let (asked, cancelled): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
    let (came, count) = (Arc::clone(&asked), Arc::clone(&cancelled));
    let stuck = server(move |_request, mut respond| {
        let count = Arc::clone(&count);
        came.fetch_add(1, Ordering::SeqCst);
        async move {
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            if reset.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let echo = server(|request, mut respond| async move {
        let mut body = request.into_body();
        let mut all = Vec::new();
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            all.extend_from_slice(&data);
        }
        let mark = body.trailers().await.ok().flatten();
        let mark = mark.is_some_and(|trailers| trailers.contains_key("x-mark"));
        let head = Response::builder().header("x-mark", mark.to_string());
        let head = head.body(()).unwrap();
        if let Ok(mut out) = respond.send_response(head, false) {
            let _gone = out.send_data(all.into(), true);
        }
    });
    let both = plan(stuck).endpoint(echo, "v1");
    let mesh = Mesh::start(hedged(both, Some(60), 1, true));
    block(async {
        let mut sender = client(mesh.address).await;
        for _ in 0..4 {
            let (response, mut out) = sender
                .send_request(call("/a/B").body(()).unwrap(), false)
                .unwrap();
            out.send_data(Bytes::from_static(b"hello "), false).unwrap();
            out.send_data(Bytes::from_static(b"world"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-mark", "1".parse().unwrap());
            out.send_trailers(trailers).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.headers()["x-mark"], "true");
            let mut body = response.into_body();
            let mut all = Vec::new();
            while let Some(data) = body.data().await {
                all.extend_from_slice(&data.unwrap());
            }
            assert_eq!(all, b"hello world");
        }
    });
    eventually("the losers are reset", || {
        cancelled.load(Ordering::SeqCst) == asked.load(Ordering::SeqCst)
    });
    assert!(asked.load(Ordering::SeqCst) > 0);
    at_rest(&mesh);
}

/// A gRPC stream that is drained ends with a status that its client may retry.
#[test]
fn grpc_stream_is_ended_with_unavailable_when_its_version_goes() {
    let endless = server(|_request, mut respond| async move {
        let head = Response::builder().body(()).unwrap();
        let Ok(mut out) = respond.send_response(head, false) else {
            return;
        };
        while out.send_data(Bytes::from_static(b"x"), false).is_ok() {
            tokio::time::sleep(ms(50)).await;
        }
    });
    let plan = |to: &[(&str, u32)]| {
        Plan::new(Protocol::Grpc)
            .endpoint(endless, "v1")
            .endpoint(endless, "v2")
            .route(Vec::new(), to)
            .policy(|policy| {
                policy.on_change = Some(OnChange {
                    action: ChangeAction::Drain,
                    deadline: ms(300),
                });
            })
    };
    let mesh = Mesh::start(plan(&[("v1", 1)]));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, _) = sender
            .send_request(call("/a/B").body(()).unwrap(), true)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        assert!(body.data().await.unwrap().is_ok());
        mesh.swap(plan(&[("v2", 0)]));
        while let Some(data) = body.data().await {
            let data = data.expect("no reset");
            let _ = body.flow_control().release_capacity(data.len());
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
    });
    at_rest(&mesh);
}

/// A client's HTTP/2 connection that is old gets a GOAWAY; its streams end in peace.
#[test]
fn aged_http2_connection_gets_a_goaway_and_its_streams_end() {
    let slow = server(|_request, mut respond| async move {
        tokio::time::sleep(ms(600)).await;
        let _gone = respond.send_response(status_only(0), true);
    });
    let mesh = Mesh::with(plan(slow), 1, |limits| {
        limits.downstream_age_max = ms(200);
        limits.downstream_age_jitter = 0;
    });
    block(async {
        let stream = tokio::net::TcpStream::connect(mesh.address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let ended = tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let (response, _) = sender
            .send_request(call("/a/B").body(()).unwrap(), true)
            .unwrap();
        assert_eq!(response.await.unwrap().headers()["grpc-status"], "0");
        drop(sender);
        ended.await.unwrap().expect("an orderly end");
    });
}
