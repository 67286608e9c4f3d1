//! Refusals in HTTP/2; for gRPC as a head that is also the trailers.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{
    policy::{Reject, rate_limit::Verdict},
    proxy::http1::DRAFT_03,
};

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Our own texts: numbers, names and sentences in ASCII. A limit's name that is no field value
    // costs its field, not the answer.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append(name, value);
    }
}

/// Adds the `RateLimit` fields, beside the origin's own.
pub(super) fn put_limits(headers: &mut HeaderMap, verdict: &Verdict) {
    if !verdict.asked.is_empty() {
        put(headers, "ratelimit-policy", &verdict.policy_field());
        put(headers, "ratelimit", &verdict.limit_field());
        if let Some(values) = verdict.draft_03() {
            for (name, value) in DRAFT_03.into_iter().zip(values) {
                put(headers, name, &value);
            }
        }
    }
    for (name, value) in verdict.fields() {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            headers.append(name, value);
        }
    }
}

/// What a refused client is told.
pub(super) fn response(
    reject: Reject,
    verdict: &Verdict,
    grpc: bool,
    overload: Option<&str>,
) -> (Response<()>, Option<String>) {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    put(headers, "x-mesh-reject", reject.label());
    if reject.is_overload() {
        put(headers, "x-mesh-overloaded", "true");
        let name = overload.and_then(|name| HeaderName::try_from(name).ok());
        if let Some(name) = name {
            headers.insert(name, HeaderValue::from_static("true"));
        }
    }
    if let Some(seconds) = verdict.retry_after_s() {
        put(headers, "retry-after", &seconds.to_string());
    }
    if verdict.is_envoy_ratelimited() {
        put(headers, "x-envoy-ratelimited", "true");
    }
    put_limits(headers, verdict);
    if grpc {
        put(headers, "content-type", "application/grpc");
        put(
            headers,
            "grpc-status",
            &verdict.grpc_status(reject).to_string(),
        );
        put(headers, "grpc-message", reject.explain());
        return (response, None);
    }
    let body = format!("{}\n", reject.explain());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.status_mut() =
        StatusCode::from_u16(verdict.status(reject)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (response, Some(body))
}

/// Sends a refusal. What the client still sends is of no interest any more: it is told to stop
/// without an error (RFC 9113, section 8.1).
pub(super) fn send(
    respond: &mut SendResponse<Bytes>,
    reject: Reject,
    verdict: &Verdict,
    grpc: bool,
    is_head: bool,
    overload: Option<&str>,
) {
    let (response, body) = response(reject, verdict, grpc, overload);
    let body = body.filter(|_| !is_head);
    answer(respond, response, body.map(Bytes::from).unwrap_or_default());
}

/// Sends a whole answer.
pub(super) fn answer(respond: &mut SendResponse<Bytes>, response: Response<()>, body: Bytes) {
    // An error means that the client has gone.
    if let Ok(mut stream) = respond.send_response(response, body.is_empty())
        && !body.is_empty()
    {
        let _gone = stream.send_data(body, true);
    }
}
