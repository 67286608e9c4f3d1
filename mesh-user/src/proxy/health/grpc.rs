//! A check by `grpc.health.v1.Health/Check`: a unary call over HTTP/2.
//!
//! The two messages have one field each, so they are written and read by hand.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Uri, header, uri::Authority};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Ask, connect};
use crate::{model::health::GrpcProbe, policy::health::CheckResult, proxy::wire::SocketSource};

/// A connection that is kept; its driver runs as a task, which ends with it.
pub(super) type Connection = http2::SendRequest<Full<Bytes>>;

/// The longest answer that is read: the message has three bytes.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

pub(super) async fn check(
    probe: &GrpcProbe,
    ask: &Ask,
    kept: Option<Connection>,
    sockets: &dyn SocketSource,
) -> (CheckResult, Option<Connection>) {
    let mut connection = match kept.filter(|kept| !kept.is_closed()) {
        Some(connection) => connection,
        None => match open(ask, sockets).await {
            Ok(connection) => connection,
            Err(result) => return (result, None),
        },
    };
    let Some(request) = request(probe, ask) else {
        return (CheckResult::Broken, None);
    };
    if connection.ready().await.is_err() {
        return (CheckResult::Broken, None);
    }
    let Ok(response) = connection.send_request(request).await else {
        return (CheckResult::Broken, None);
    };
    if response.status() != http::StatusCode::OK {
        return (CheckResult::Status(response.status().as_u16()), None);
    }
    // An answer without a message has its status in the head.
    let head = status(response.headers());
    match (head, read(response.into_body()).await) {
        (None | Some(0), Some((trailers, message))) => {
            let result = match (trailers.or(head), serving(&message)) {
                (Some(0), Some(SERVING)) => CheckResult::Ok,
                (Some(0), Some(other)) => {
                    CheckResult::NotServing(u8::try_from(other).unwrap_or(u8::MAX))
                }
                (Some(0), None) | (None, _) => CheckResult::Broken,
                (Some(status), _) => CheckResult::GrpcStatus(status),
            };
            (result, Some(connection))
        }
        (Some(status), _) if status != 0 => (CheckResult::GrpcStatus(status), Some(connection)),
        _ => (CheckResult::Broken, None),
    }
}

async fn open(ask: &Ask, sockets: &dyn SocketSource) -> Result<Connection, CheckResult> {
    let stream = connect(ask, sockets).await?;
    let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|_| CheckResult::Broken)?;
    // An error of the driver is an error of the request, too.
    tokio::spawn(async move {
        let _ended = driver.await;
    });
    Ok(sender)
}

fn request(probe: &GrpcProbe, ask: &Ask) -> Option<Request<Full<Bytes>>> {
    let authority = probe.authority.as_deref().unwrap_or(&ask.host);
    let uri = Uri::builder()
        .scheme("http")
        .authority(Authority::try_from(authority).ok()?)
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .ok()?;
    Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "mesh-health-check")
        .body(Full::new(message(&probe.service)))
        .ok()
}

/// `HealthCheckRequest { string service = 1; }` with gRPC's prefix: no compression, length.
fn message(service: &str) -> Bytes {
    let mut field = BytesMut::new();
    if !service.is_empty() {
        field.put_u8(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            field.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        field.put_u8(length as u8);
        field.put_slice(service.as_bytes());
    }
    let mut message = BytesMut::with_capacity(5 + field.len());
    message.put_u8(0);
    message.put_u32(field.len() as u32);
    message.put_slice(&field);
    message.freeze()
}

/// The status in the trailers, and the bytes; none when the answer is too long or broken.
async fn read(mut body: Incoming) -> Option<(Option<u8>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok().as_ref().and_then(status),
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return None;
        }
    }
    Some((trailers, bytes))
}

fn status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The status of `HealthCheckResponse { ServingStatus status = 1; }`; none when it is malformed.
/// Absent it is 0, UNKNOWN, as proto3 has it.
fn serving(answer: &[u8]) -> Option<u64> {
    let (head, mut rest) = answer.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    if head[0] != 0 || length as usize != rest.len() {
        return None;
    }
    let mut status = 0;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut rest)?,
            (_, 0) => drop(varint(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// The messages as `prost` has them: a second opinion.
    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckRequest {
        #[prost(string, tag = "1")]
        service: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckResponse {
        #[prost(int32, tag = "1")]
        status: i32,
        #[prost(string, tag = "2")]
        later: String,
        #[prost(fixed64, tag = "3")]
        wider: u64,
    }

    #[test]
    fn grpc_request_is_what_prost_reads() {
        for service in ["", "shop.Reviews", &"x".repeat(300)] {
            let message = message(service);
            assert_eq!(
                message[..5],
                [&[0][..], &(message.len() as u32 - 5).to_be_bytes()].concat()
            );
            let read = HealthCheckRequest::decode(&message[5..]).unwrap();
            assert_eq!(read.service, service);
        }
    }

    #[test]
    fn grpc_answer_is_read_as_prost_writes_it() {
        for status in [0, 1, 2, 3, 300] {
            for (later, wider) in [("", 0), ("a field of a later version", 7)] {
                let answer = HealthCheckResponse {
                    status,
                    later: later.to_owned(),
                    wider,
                };
                let body = answer.encode_to_vec();
                let mut framed = vec![0];
                framed.extend((body.len() as u32).to_be_bytes());
                framed.extend(body);
                assert_eq!(serving(&framed), u64::try_from(status).ok());
            }
        }
    }

    #[test]
    fn grpc_answer_that_is_broken_is_no_status() {
        for broken in [
            &[][..],
            &[0, 0, 0, 0],
            &[0, 0, 0, 0, 2, 8],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 1, 8],
            &[0, 0, 0, 0, 3, 18, 9, 1],
            &[
                0, 0, 0, 0, 11, 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
            ],
            &[0, 0, 0, 0, 1, 15],
        ] {
            assert_eq!(serving(broken), None, "{broken:?}");
        }
        // Empty: UNKNOWN.
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Some(0));
    }
}
