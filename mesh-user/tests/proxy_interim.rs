//! Interim answers, `Expect`, trailers and gRPC-Web, over both versions of HTTP.

mod proxy_support;

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    thread,
};

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response};
use mesh_user::model::Protocol;
use proxy_support::*;

fn one(protocol: Protocol, at: SocketAddr) -> Plan {
    Plan::new(protocol).endpoint(at, "v1")
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

/// An HTTP/2 endpoint.
fn server<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Copy + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
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
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(serve(request, respond));
                    }
                });
            }
        });
    });
    address
}

async fn collect(mut body: RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    (all, body.trailers().await.unwrap())
}

fn post(path: &str) -> http::request::Builder {
    Request::builder()
        .method("POST")
        .uri(format!("http://web{path}"))
}

fn interim(status: u16, link: Option<&str>) -> Response<()> {
    let mut response = Response::builder().status(status);
    if let Some(link) = link {
        response = response.header("link", link);
    }
    response.body(()).unwrap()
}

#[test]
fn several_early_hints_pass_in_order_in_both_versions() {
    let up = http_with(|_, _| {
        let hint = |link| format!("HTTP/1.1 103 Early Hints\r\nlink: {link}\r\n\r\n");
        let hints: String = ["</a>", "</b>", "</c>"].map(hint).concat();
        hints + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    });
    let mesh = Mesh::start(one(Protocol::Http, up));
    let mut raw = Reader::new(mesh.connect());
    for _again in 0..2 {
        raw.send(GET);
        for link in ["</a>", "</b>", "</c>"] {
            let hint = raw.head().unwrap();
            assert_eq!(
                (hint.status(), hint.field("link").as_deref()),
                (103, Some(link))
            );
        }
        assert_eq!(raw.message().unwrap().text(), "ok");
    }
    let up = server(|_, mut respond| async move {
        for link in ["</a>", "</b>", "</c>"] {
            respond
                .send_informational(interim(103, Some(link)))
                .unwrap();
        }
        respond.send_response(Response::new(()), true).unwrap();
    });
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (mut response, _) = sender
            .send_request(post("/").body(()).unwrap(), true)
            .unwrap();
        for link in ["</a>", "</b>", "</c>"] {
            let hint = poll_fn(|cx| response.poll_informational(cx)).await;
            let hint = hint.unwrap().unwrap();
            assert_eq!(
                (hint.status().as_u16(), &hint.headers()["link"]),
                (103, &link.parse().unwrap())
            );
        }
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

const EXPECT: &str =
    "PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";

#[test]
fn expect_that_the_endpoint_answers_finally_needs_no_body() {
    for status in [417, 401, 200] {
        let up = endpoint(move |stream| {
            let mut reader = Reader::new(stream);
            let _head = reader.head();
            reader.send(format!(
                "HTTP/1.1 {status} Final\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
            ));
            let _end = reader.all();
        });
        let mesh = Mesh::start(one(Protocol::Http, up));
        let mut client = Reader::new(mesh.connect());
        client.send(EXPECT);
        let answer = client.message().unwrap();
        assert_eq!((answer.status(), answer.text()), (status, "no".into()));
        // The body that never came has no place on a kept connection.
        assert!(client.is_closed());
    }
}

#[test]
fn expect_of_a_client_that_does_not_wait_changes_nothing() {
    for continues in [true, false] {
        let up = endpoint(move |stream| {
            let mut reader = Reader::new(stream);
            let _head = reader.head();
            assert_eq!(reader.bytes(4), b"body");
            if continues {
                reader.send("HTTP/1.1 100 Continue\r\n\r\n");
            }
            reader.send("HTTP/1.1 204 No Content\r\n\r\n");
            let _end = reader.all();
        });
        let mesh = Mesh::start(one(Protocol::Http, up));
        let mut client = Reader::new(mesh.connect());
        client.send(format!("{EXPECT}body"));
        if continues {
            assert_eq!(client.head().unwrap().status(), 100);
        }
        assert_eq!(client.head().unwrap().status(), 204);
    }
}

#[test]
fn expect_of_http10_is_not_passed_on() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let head = reader.head().unwrap();
        assert_eq!(head.field("expect"), None);
        assert_eq!(reader.bytes(4), b"body");
        reader.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let _end = reader.all();
    });
    let mesh = Mesh::start(one(Protocol::Http, up));
    let mut client = Reader::new(mesh.connect());
    client.send(EXPECT.replace("1.1", "1.0") + "body");
    assert_eq!(
        client.message().unwrap().status(),
        200,
        "no interim one before"
    );
}

#[test]
fn continue_comes_before_the_switch_of_protocols() {
    let up = endpoint(|stream| {
        let mut reader = Reader::new(stream);
        let head = reader.head().unwrap();
        assert_eq!(head.field("expect").as_deref(), Some("100-continue"));
        reader.send("HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(reader.bytes(4), b"body");
        reader.send("HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: mine\r\n\r\nhello");
    });
    let mesh = Mesh::start(one(Protocol::Http, up));
    let mut client = Reader::new(mesh.connect());
    let upgrade = "\r\nconnection: upgrade\r\nupgrade: mine\r\n\r\n";
    client.send(EXPECT.replace("\r\n\r\n", upgrade));
    assert_eq!(client.head().unwrap().status(), 100);
    client.send("body");
    assert_eq!(client.head().unwrap().status(), 101);
    assert_eq!(client.bytes(5), b"hello");
}

#[test]
fn expect_passes_over_http2_with_its_continue_or_final_answer() {
    let up = server(|request, mut respond| async move {
        assert_eq!(request.headers()["expect"], "100-continue");
        if request.uri().path() == "/final" {
            respond.send_response(interim(417, None), true).unwrap();
            return;
        }
        respond.send_informational(interim(100, None)).unwrap();
        let (body, _) = collect(request.into_body()).await;
        assert_eq!(body, b"body");
        respond.send_response(Response::new(()), true).unwrap();
    });
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let request = post("/").header("expect", "100-continue");
        let (mut response, mut out) = sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        let go = poll_fn(|cx| response.poll_informational(cx)).await;
        assert_eq!(go.unwrap().unwrap().status(), 100);
        out.send_data(Bytes::from_static(b"body"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        sender = sender.ready().await.unwrap();
        let request = post("/final").header("expect", "100-continue");
        let (response, _out) = sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        assert_eq!(response.await.unwrap().status(), 417);
    });
}

#[test]
fn trailers_without_a_body_pass_in_both_directions() {
    let up = server(|request, mut respond| async move {
        let (body, trailers) = collect(request.into_body()).await;
        assert!(body.is_empty());
        let mut out = respond.send_response(Response::new(()), false).unwrap();
        out.send_trailers(trailers.unwrap()).unwrap();
    });
    let mesh = Mesh::start(one(Protocol::Http2, up));
    block(async {
        let mut sender = client(mesh.address).await;
        let (response, mut out) = sender
            .send_request(post("/").body(()).unwrap(), false)
            .unwrap();
        let mut trailers = HeaderMap::new();
        trailers.append("x-sum", "1".parse().unwrap());
        trailers.append("x-sum", "2".parse().unwrap());
        out.send_trailers(trailers.clone()).unwrap();
        let response = response.await.unwrap();
        assert!(
            !response.headers().contains_key("x-sum"),
            "never merged into the head"
        );
        let (body, back) = collect(response.into_body()).await;
        assert_eq!((body.len(), back), (0, Some(trailers)));
    });
}

/// A message, then the trailers as a frame of the body (gRPC-Web's own), which no proxy touches.
const WEB: &[u8] = b"\0\0\0\0\x02hi\x80\0\0\0\x0fgrpc-status:0\r\n";

#[test]
fn grpc_web_passes_untouched_over_http1() {
    for kind in ["application/grpc-web+proto", "application/grpc-web-text"] {
        let up = endpoint(move |stream| {
            let mut reader = Reader::new(stream);
            let request = reader.head().unwrap();
            assert_eq!(request.field("content-type").as_deref(), Some(kind));
            assert_eq!(request.field("x-grpc-web").as_deref(), Some("1"));
            assert_eq!(reader.bytes(WEB.len()), WEB);
            let length = WEB.len();
            reader.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
            ));
            reader.send(WEB);
            let _end = reader.all();
        });
        let mesh = Mesh::start(one(Protocol::Http, up));
        let mut client = Reader::new(mesh.connect());
        client.send(format!(
            "POST /s/m HTTP/1.1\r\nhost: web\r\ncontent-type: {kind}\r\nx-grpc-web: 1\r\n\
             content-length: {}\r\n\r\n",
            WEB.len()
        ));
        client.send(WEB);
        let answer = client.message().unwrap();
        assert_eq!(answer.field("content-type").as_deref(), Some(kind));
        assert_eq!(answer.body, WEB);
    }
}

#[test]
fn grpc_web_over_http2_is_plain_http_also_when_refused() {
    let up = server(|request, mut respond| async move {
        let kind = request.headers()["content-type"].clone();
        let (body, _) = collect(request.into_body()).await;
        let response = Response::builder().header("content-type", kind);
        let mut out = respond
            .send_response(response.body(()).unwrap(), false)
            .unwrap();
        out.send_data(body.into(), true).unwrap();
    });
    let ask = |address| async move {
        let mut sender = client(address).await;
        let request = post("/s/m").header("content-type", "application/grpc-web+proto");
        let (response, mut out) = sender
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        out.send_data(Bytes::from_static(WEB), true).unwrap();
        let (parts, body) = response.await.unwrap().into_parts();
        (parts, collect(body).await)
    };
    let mesh = Mesh::start(one(Protocol::Http2, up));
    let (head, (body, trailers)) = block(ask(mesh.address));
    assert_eq!(head.headers["content-type"], "application/grpc-web+proto");
    assert_eq!((body.as_slice(), trailers), (WEB, None));
    eventually("the record", || mesh.records("request").len() == 1);
    assert!(mesh.records("request")[0]["rpc.grpc.status_code"].is_null());
    let mesh = Mesh::start(one(Protocol::Http2, nobody()));
    let (head, (body, _)) = block(ask(mesh.address));
    assert_eq!(head.status, 503, "a browser reads statuses, not trailers");
    assert!(!head.headers.contains_key("grpc-status") && !body.is_empty());
}
