//! Refusals in HTTP/2; for gRPC as a head that is also the trailers.

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{
    policy::{Reject, rate_limit::Verdict},
    proxy::http1::DRAFT_03,
};

/// Adds what was made for this answer. Numbers and names in ASCII: a limit's name that is no field
/// value costs its field, not the answer.
fn put(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(value)) {
        headers.append(name, value);
    }
}

/// Adds one of our own texts.
fn put_text(headers: &mut HeaderMap, name: &'static str, value: &'static str) {
    headers.insert(
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    );
}

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Adds the `RateLimit` fields, beside the origin's own.
pub(super) fn put_limits(headers: &mut HeaderMap, verdict: &Verdict) {
    if !verdict.asked.is_empty() {
        put(headers, POLICY, verdict.policy_field());
        put(headers, LIMIT, verdict.limit_field());
        if let Some(values) = verdict.draft_03() {
            for (name, value) in DRAFT_03.into_iter().zip(values) {
                put(headers, HeaderName::from_static(name), value);
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
    // In one piece: for what a refusal by a limit has.
    headers.reserve(8);
    put_text(headers, "x-mesh-reject", reject.label());
    if reject.is_overload() {
        put_text(headers, "x-mesh-overloaded", "true");
        let name = overload.and_then(|name| HeaderName::try_from(name).ok());
        if let Some(name) = name {
            headers.insert(name, HeaderValue::from_static("true"));
        }
    }
    if let Some(seconds) = verdict.retry_after_s() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if verdict.is_envoy_ratelimited() {
        put_text(headers, "x-envoy-ratelimited", "true");
    }
    put_limits(headers, verdict);
    if grpc {
        put_text(headers, "content-type", "application/grpc");
        let status = HeaderValue::from(u16::from(verdict.grpc_status(reject)));
        headers.insert("grpc-status", status);
        put_text(headers, "grpc-message", reject.explain());
        return (response, None);
    }
    let body = [reject.explain(), "\n"].concat();
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
