//! The HTTP paths of the echo server.
//!
//! | request | answer |
//! |---|---|
//! | any other | 200, JSON: who answers, and what it was asked (method, path, headers, peer) |
//! | `/status/NNN` | that status, 200 to 599 |
//! | `/delay/MS` | as any other, after MS milliseconds (at most 60,000) |
//! | `/bytes/N` | N bytes (at most 1 TiB) |
//! | `/echo` | the request's body and trailers, as they come |
//! | `/abort` | none: the connection is closed (HTTP/2: the stream is reset) |
//! | `PUT /_sick`, `PUT /_sick/NNN` | 204; from then on everything else is answered with 503 (NNN) |
//! | `DELETE /_sick` | 204; well again |
//! | `content-type: application/grpc...` | the message back, trailers `grpc-status: 0`, or what the request's header `x-grpc-status` says |
//!
//! Every answer carries [`NAME_HEADER`] and [`VERSION_HEADER`].

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, HOST},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::TcpStream;

use super::body::EchoBody;

/// Header that names the server.
pub const NAME_HEADER: HeaderName = HeaderName::from_static("x-echo-name");
/// Header that names the server's version.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("x-echo-version");

/// Longer delays are taken for a slip: no proxy's default time-out is beyond it.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// Longer bodies are taken for a slip.
const BYTES_MAX: u64 = 1 << 40;

/// Who a server is, and how it feels.
#[derive(Debug)]
pub(super) struct Identity {
    name: HeaderValue,
    version: HeaderValue,
    /// Status of every answer while sick; 0: well.
    sick: AtomicU16,
}

impl Identity {
    /// # Errors
    /// A name is no header value.
    pub(super) fn new(name: &str, version: &str) -> anyhow::Result<Self> {
        let value = |text: &str| {
            HeaderValue::from_str(text).with_context(|| format!("{text:?} is no header value"))
        };
        Ok(Self {
            name: value(name)?,
            version: value(version)?,
            sick: AtomicU16::new(0),
        })
    }

    /// First line of a server that speaks first.
    pub(super) fn greeting(&self) -> String {
        format!("{} {} ready\r\n", text(&self.name), text(&self.version))
    }

    /// The version as it stands in the header.
    pub(super) fn version(&self) -> &[u8] {
        self.version.as_bytes()
    }
}

/// `/abort`: hyper closes the connection, or resets the stream.
#[derive(Debug, thiserror::Error)]
#[error("aborted on request")]
struct Abort;

/// HTTP/2 streams run on the connection's own thread.
#[derive(Clone, Copy, Debug)]
struct Here;

impl<F> hyper::rt::Executor<F> for Here
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves one connection, HTTP/1.1 or HTTP/2 as its first bytes say.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, identity: &Arc<Identity>) {
    let service = service_fn(move |request| {
        let identity = Arc::clone(identity);
        async move { answer(&identity, peer, request).await }
    });
    let mut builder = auto::Builder::new(Here);
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    // The peer is told by its connection's end: there is nobody else to tell.
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    identity: &Identity,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<EchoBody>, Abort> {
    let mut response = route(identity, peer, request).await?;
    let headers = response.headers_mut();
    headers.insert(NAME_HEADER, identity.name.clone());
    headers.insert(VERSION_HEADER, identity.version.clone());
    Ok(response)
}

async fn route(
    identity: &Identity,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<EchoBody>, Abort> {
    let path = request.uri().path().to_owned();
    let (first, rest) = match path.trim_start_matches('/').split_once('/') {
        Some((first, rest)) => (first, rest),
        None => (path.trim_start_matches('/'), ""),
    };
    if first == "_sick" {
        return Ok(health(identity, request.method(), rest));
    }
    let sick = identity.sick.load(Relaxed);
    if sick != 0 {
        let status = StatusCode::from_u16(sick).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        return Ok(plain(status, "sick\n"));
    }
    if is_grpc(request.headers()) {
        return Ok(grpc(request));
    }
    Ok(match first {
        "abort" => return Err(Abort),
        "status" => match rest.parse().ok().filter(|code| (200..600).contains(code)) {
            Some(code) => plain(
                StatusCode::from_u16(code).unwrap_or_default(),
                "as you asked\n",
            ),
            None => plain(StatusCode::BAD_REQUEST, "/status/NNN takes 200 to 599\n"),
        },
        "bytes" => match rest.parse().ok().filter(|count| *count <= BYTES_MAX) {
            Some(count) => Response::new(EchoBody::Zeros(count)),
            None => plain(
                StatusCode::BAD_REQUEST,
                "/bytes/N takes 0 to 1099511627776\n",
            ),
        },
        "echo" => {
            let kind = request.headers().get(CONTENT_TYPE).cloned();
            let mut response = Response::new(EchoBody::Back {
                incoming: request.into_body(),
                trailers: None,
            });
            response
                .headers_mut()
                .extend(kind.map(|kind| (CONTENT_TYPE, kind)));
            response
        }
        "delay" => match rest.parse().map(Duration::from_millis) {
            Ok(delay) if delay <= DELAY_MAX => {
                tokio::time::sleep(delay).await;
                mirror(identity, peer, &request)
            }
            _ => plain(StatusCode::BAD_REQUEST, "/delay/MS takes 0 to 60000\n"),
        },
        _ => mirror(identity, peer, &request),
    })
}

/// `/_sick`: PUT makes it so, DELETE ends it.
fn health(identity: &Identity, method: &Method, status: &str) -> Response<EchoBody> {
    let sick = match (method, status) {
        (&Method::DELETE, _) => 0,
        (&Method::PUT, "") => 503,
        (&Method::PUT, status) => match status.parse() {
            Ok(status @ 200..=599) => status,
            _ => return plain(StatusCode::BAD_REQUEST, "/_sick/NNN takes 200 to 599\n"),
        },
        _ => {
            return plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "/_sick takes PUT and DELETE\n",
            );
        }
    };
    identity.sick.store(sick, Relaxed);
    let mut response = Response::new(EchoBody::End);
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The message back, then the status as trailers.
fn grpc(request: Request<Incoming>) -> Response<EchoBody> {
    let status = request.headers().get("x-grpc-status").cloned();
    let kind = request.headers().get(CONTENT_TYPE).cloned();
    let mut trailers = HeaderMap::new();
    trailers.insert(
        "grpc-status",
        status.unwrap_or(HeaderValue::from_static("0")),
    );
    let body = EchoBody::Back {
        incoming: request.into_body(),
        trailers: Some(trailers),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .extend(kind.map(|kind| (CONTENT_TYPE, kind)));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<EchoBody> {
    let mut response = Response::new(EchoBody::Once(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

/// Who answers, and what was asked.
#[derive(serde::Serialize)]
struct Mirror {
    name: String,
    version: String,
    method: String,
    path: String,
    protocol: String,
    authority: Option<String>,
    peer: SocketAddr,
    headers: BTreeMap<String, Vec<String>>,
}

fn mirror(
    identity: &Identity,
    peer: SocketAddr,
    request: &Request<Incoming>,
) -> Response<EchoBody> {
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in request.headers() {
        headers
            .entry(name.to_string())
            .or_default()
            .push(text(value));
    }
    let authority = request.uri().authority().map(ToString::to_string);
    let mirror = Mirror {
        name: text(&identity.name),
        version: text(&identity.version),
        method: request.method().to_string(),
        path: request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned(),
        protocol: format!("{:?}", request.version()),
        authority: authority.or_else(|| request.headers().get(HOST).map(text)),
        peer,
        headers,
    };
    let mut json = serde_json::to_vec(&mirror).expect("strings and addresses are valid JSON");
    json.push(b'\n');
    let mut response = Response::new(EchoBody::Once(json.into()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}
