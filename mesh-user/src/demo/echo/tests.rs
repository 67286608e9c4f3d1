//! The echo servers over loopback, with hyper's client and plain sockets.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Collected, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

/// One server of each kind on free ports.
pub(in crate::demo) fn args() -> EchoArgs {
    let any = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    EchoArgs {
        http: any.clone(),
        tcp: any.clone(),
        server_first: any,
        name: "web".into(),
        version: "v1".into(),
        threads: 1,
        fast: false,
    }
}

/// HTTP version of a request.
#[derive(Clone, Copy, PartialEq)]
enum Http {
    One,
    Two,
}

type Answer = (http::response::Parts, Collected<Bytes>);

async fn ask(address: SocketAddr, http: Http, request: Request<Full<Bytes>>) -> Result<Answer> {
    let stream = TokioIo::new(tokio::net::TcpStream::connect(address).await?);
    let response: Response<_> = match http {
        Http::One => {
            let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            client.send_request(request).await?
        }
        Http::Two => {
            let executor = TokioExecutor::new();
            let (mut client, connection) =
                hyper::client::conn::http2::handshake(executor, stream).await?;
            tokio::spawn(connection);
            client.send_request(request).await?
        }
    };
    let (parts, body) = response.into_parts();
    Ok((parts, body.collect().await?))
}

fn request(method: &str, path: &str) -> Request<Full<Bytes>> {
    let uri = format!("http://web.test{path}");
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("x-user", "beta");
    request.body(Full::default()).expect("valid")
}

#[tokio::test]
async fn answer_says_who_it_is_and_what_it_was_asked() {
    let echo = Echo::start(&args()).expect("loopback");
    for (http, protocol) in [(Http::One, "HTTP/1.1"), (Http::Two, "HTTP/2.0")] {
        let (parts, body) = ask(echo.http[0], http, request("GET", "/a?b=c"))
            .await
            .expect("ok");
        assert_eq!(parts.status, 200);
        assert_eq!(
            (&parts.headers[NAME_HEADER], &parts.headers[VERSION_HEADER]),
            (&"web".parse().expect("ok"), &"v1".parse().expect("ok"))
        );
        let said: serde_json::Value = serde_json::from_slice(&body.to_bytes()).expect("JSON");
        assert_eq!(said["protocol"], protocol);
        assert!(
            said["path"].as_str().expect("text").ends_with("/a?b=c"),
            "{said}"
        );
        assert_eq!(said["headers"]["x-user"][0], "beta");
    }
}

#[tokio::test]
async fn status_delay_and_bytes_do_what_the_path_says() {
    let echo = Echo::start(&args()).expect("loopback");
    for http in [Http::One, Http::Two] {
        let (parts, _) = ask(echo.http[0], http, request("GET", "/status/429"))
            .await
            .expect("ok");
        assert_eq!(parts.status, 429);
        let (_, body) = ask(echo.http[0], http, request("GET", "/bytes/200000"))
            .await
            .expect("ok");
        assert_eq!(body.to_bytes().len(), 200_000);
        let start = std::time::Instant::now();
        let (parts, _) = ask(echo.http[0], http, request("GET", "/delay/50"))
            .await
            .expect("ok");
        assert!(parts.status == 200 && start.elapsed() >= Duration::from_millis(50));
        for path in [
            "/status/199",
            "/status/600",
            "/status/x",
            "/delay/60001",
            "/bytes/-1",
        ] {
            let (parts, _) = ask(echo.http[0], http, request("GET", path))
                .await
                .expect("ok");
            assert_eq!(parts.status, 400, "{path}");
        }
    }
}

#[tokio::test]
async fn sick_server_answers_so_until_it_is_well() {
    let echo = Echo::start(&args()).expect("loopback");
    let status = async |method, path| {
        ask(echo.http[0], Http::One, request(method, path))
            .await
            .expect("ok")
            .0
            .status
            .as_u16()
    };
    assert_eq!(status("PUT", "/_sick").await, 204);
    assert_eq!(status("GET", "/").await, 503);
    assert_eq!(status("PUT", "/_sick/500").await, 204);
    assert_eq!(status("GET", "/bytes/3").await, 500);
    assert_eq!(status("DELETE", "/_sick").await, 204);
    assert_eq!(status("GET", "/").await, 200);
    assert_eq!(status("GET", "/_sick").await, 405);
    assert_eq!(status("PUT", "/_sick/1000").await, 400);
}

#[tokio::test]
async fn grpc_message_comes_back_with_its_status_behind() {
    let echo = Echo::start(&args()).expect("loopback");
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    for (wanted, status) in [(None, "0"), (Some("8"), "8")] {
        let mut request = request("POST", "/echo.Echo/Unary");
        *request.body_mut() = Full::new(message.clone());
        request.headers_mut().insert(
            "content-type",
            "application/grpc+proto".parse().expect("ok"),
        );
        if let Some(wanted) = wanted {
            request
                .headers_mut()
                .insert("x-grpc-status", wanted.parse().expect("ok"));
        }
        let (parts, body) = ask(echo.http[0], Http::Two, request).await.expect("ok");
        assert_eq!(
            (parts.status.as_u16(), &parts.headers["content-type"]),
            (200, &"application/grpc+proto".parse().expect("ok"))
        );
        assert_eq!(body.trailers().expect("trailers")["grpc-status"], status);
        assert_eq!(body.to_bytes(), message);
    }
}

#[tokio::test]
async fn body_is_echoed_and_abort_has_no_answer() {
    let echo = Echo::start(&args()).expect("loopback");
    for http in [Http::One, Http::Two] {
        let mut post = request("POST", "/echo");
        *post.body_mut() = Full::new(Bytes::from(vec![7; 300_000]));
        let (_, body) = ask(echo.http[0], http, post).await.expect("ok");
        assert_eq!(body.to_bytes(), vec![7; 300_000]);
        assert!(
            ask(echo.http[0], http, request("GET", "/abort"))
                .await
                .is_err()
        );
    }
}

#[test]
fn tcp_comes_back_after_half_close_and_the_greeting_comes_first() {
    let echo = Echo::start(&args()).expect("loopback");
    for (address, greeting) in [
        (echo.tcp[0], ""),
        (echo.server_first[0], "web v1 ready\r\n"),
    ] {
        let mut stream = TcpStream::connect(address).expect("listening");
        let mut first = vec![0; greeting.len()];
        stream
            .read_exact(&mut first)
            .expect("greeting without a word from us");
        assert_eq!(first, greeting.as_bytes());
        stream.write_all(b"hello").expect("open");
        stream.shutdown(Shutdown::Write).expect("open");
        let mut back = String::new();
        stream.read_to_string(&mut back).expect("then the end");
        assert_eq!(back, "hello");
    }
}

#[test]
fn fast_server_refuses_bodies_and_answers_pipelined_requests() {
    let mut args = args();
    args.fast = true;
    let echo = Echo::start(&args).expect("loopback");
    let talk = |request: &str| {
        let mut stream = TcpStream::connect(echo.http[0]).expect("listening");
        stream.write_all(request.as_bytes()).expect("open");
        stream.shutdown(Shutdown::Write).expect("open");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("an answer, then the end");
        answer
    };
    let two = talk("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(
        two.matches("HTTP/1.1 200 OK\r\nx-echo-version: v1\r\n")
            .count(),
        2,
        "{two}"
    );
    let body = talk("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
    assert!(body.starts_with("HTTP/1.1 400 "), "{body}");
    let long = talk(&format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(5000)));
    assert!(
        long.is_empty() || long.starts_with("HTTP/1.1 400 "),
        "{long}"
    );
}

#[test]
fn threads_share_one_address() {
    let mut args = args();
    args.threads = 3;
    let echo = Echo::start(&args).expect("loopback");
    assert_eq!((echo.http.len(), echo.threads.len()), (1, 3));
    for _ in 0..20 {
        TcpStream::connect(echo.tcp[0]).expect("some thread accepts");
    }
}

#[test]
fn nothing_to_serve_is_an_error() {
    let mut none = args();
    (none.http, none.tcp, none.server_first) = (Vec::new(), Vec::new(), Vec::new());
    assert!(Echo::start(&none).is_err());
    let mut bad = args();
    bad.name = "a\nb".into();
    assert!(Echo::start(&bad).is_err());
    let mut foreign = args();
    foreign.http = vec!["192.0.2.1:80".parse().expect("valid")];
    let error = Echo::start(&foreign).expect_err("not our address");
    assert!(error.to_string().contains("192.0.2.1:80"), "{error}");
}
