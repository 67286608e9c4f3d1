//! A gRPC server of Envoy's rate limit protocol: unary calls over one HTTP/2 connection.

use std::{rc::Rc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::{
    link::{Error, Link},
    message::{
        CODE_OK, CODE_OVER_LIMIT, Descriptor, Entry, RateLimitRequest, RateLimitResponse, Span,
    },
};
use crate::{model::limit::StoreAddress, policy::rate_limit::StoreAnswer};

const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Longest answer. A status with its headers is some hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most fields that are added to an answer.
const FIELDS_MAX: usize = 32;
/// How long a client that is over its limit waits where the service doesn't say.
const WAIT: Duration = Duration::from_secs(1);
/// Length of the prefix of a gRPC message: a flag and four bytes of length.
const PREFIX: usize = 5;

/// A connection to one server.
pub(super) struct Envoy {
    address: StoreAddress,
    domain: String,
    timeout: Duration,
    link: Rc<Link<SendRequest<Bytes>>>,
}

impl Envoy {
    pub(super) fn new(address: StoreAddress, domain: String, timeout: Duration) -> Rc<Self> {
        Rc::new(Self {
            address,
            domain,
            timeout,
            link: Link::new(),
        })
    }

    pub(super) fn reset(&self) {
        self.link.reset();
    }

    /// One call, about one descriptor.
    pub(super) async fn should_rate_limit(
        &self,
        entries: Vec<(String, String)>,
        hits: u32,
    ) -> Result<StoreAnswer, Error> {
        let address = self.address.clone();
        let connected = self.link.get(|| connect(address)).await?;
        // Any error of the connection shows here first.
        let sender = connected.ready().await;
        let mut sender = sender.inspect_err(|_| self.link.reset())?;
        let entry = |(key, value)| Entry { key, value };
        let question = RateLimitRequest {
            domain: self.domain.clone(),
            descriptors: vec![Descriptor {
                entries: entries.into_iter().map(entry).collect(),
            }],
            hits_addend: hits,
        };
        let request = Request::post(format!("http://ratelimit{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header(
                "grpc-timeout",
                format!("{}m", self.timeout.as_millis().max(1)),
            )
            .body(())?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(frame(&question), true)?;
        let response = response.await.inspect_err(|error| {
            if error.is_io() || error.is_go_away() {
                self.link.reset();
            }
        })?;
        if response.status() != 200 {
            return Err(format!("HTTP status {}", response.status()).into());
        }
        status(response.headers(), false)?;
        let mut body = response.into_body();
        let mut bytes = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            if bytes.len() + data.len() > ANSWER_BYTES_MAX {
                return Err("the answer is too long".into());
            }
            bytes.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?;
        status(&trailers.unwrap_or_default(), true)?;
        answer(&RateLimitResponse::decode(unframe(&bytes)?)?)
    }
}

fn frame(question: &RateLimitRequest) -> Bytes {
    let length = question.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    // A descriptor is a few attributes of one request.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.extend_from_slice(&question.encode_to_vec());
    frame.freeze()
}

/// The only message of an answer, not compressed.
fn unframe(bytes: &[u8]) -> Result<&[u8], Error> {
    let (prefix, message) = bytes
        .split_first_chunk::<PREFIX>()
        .ok_or("the answer has no message")?;
    let [flag, length @ ..] = *prefix;
    if flag != 0 {
        return Err("the answer is compressed".into());
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err("the answer's length is wrong".into());
    }
    Ok(message)
}

/// `grpc-status`: in the trailers, or with an answer that has no body in the head.
fn status(headers: &HeaderMap, needed: bool) -> Result<(), Error> {
    match headers.get("grpc-status").map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        Some(status) => Err(format!("gRPC status {}", status.escape_ascii()).into()),
        None if needed => Err("the answer has no gRPC status".into()),
        None => Ok(()),
    }
}

fn answer(response: &RateLimitResponse) -> Result<StoreAnswer, Error> {
    let admitted = match response.overall_code {
        CODE_OK => true,
        CODE_OVER_LIMIT => false,
        code => return Err(format!("overall_code {code}").into()),
    };
    let status = response.statuses.first();
    let wait = status.and_then(|status| status.duration_until_reset.as_ref());
    let limit = status.and_then(|status| status.current_limit.as_ref());
    Ok(StoreAnswer {
        admitted,
        left: status.map_or(0, |status| u64::from(status.limit_remaining)),
        wait: wait.map_or(if admitted { Duration::ZERO } else { WAIT }, span),
        quota: limit
            .and_then(|limit| Some((u64::from(limit.requests_per_unit), limit.window_s()?))),
        fields: fields(response),
    })
}

fn span(span: &Span) -> Duration {
    let seconds = u64::try_from(span.seconds).unwrap_or(0);
    let nanos = u32::try_from(span.nanos).unwrap_or(0).min(999_999_999);
    Duration::new(seconds, nanos)
}

/// Fields for the client's answer; such as are no fields, or would change its framing, are left out.
fn fields(response: &RateLimitResponse) -> Vec<(String, String)> {
    let valid = |field: &super::message::HeaderValue| {
        let value = if field.value.is_empty() {
            &field.raw_value
        } else {
            field.value.as_bytes()
        };
        let name = HeaderName::from_bytes(field.key.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(value).ok()?;
        let framing = [
            "connection",
            "content-length",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ];
        let text = value.to_str().ok()?.to_owned();
        (!framing.contains(&name.as_str())).then(|| (name.as_str().to_owned(), text))
    };
    let fields = response.response_headers_to_add.iter().filter_map(valid);
    fields.take(FIELDS_MAX).collect()
}

async fn connect(address: StoreAddress) -> Result<SendRequest<Bytes>, Error> {
    match address {
        StoreAddress::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            greet(stream).await
        }
        StoreAddress::Unix(path) => greet(UnixStream::connect(path).await?).await,
    }
}

async fn greet<S>(stream: S) -> Result<SendRequest<Bytes>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = h2::client::Builder::new()
        .max_header_list_size(16 << 10)
        .enable_push(false)
        .handshake(stream)
        .await?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a rate limit service ended");
        }
    });
    Ok(sender)
}
