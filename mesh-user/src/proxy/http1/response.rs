//! An answer's head: parsed strictly, checked, and written the way it is forwarded.

use std::{mem::MaybeUninit, time::Duration};

use httparse::Header;

use super::{
    body::Body,
    chunked::Chunked,
    copy::{Lines, line, offset_in, push_field},
    fields::{Connection, Field, is_listed},
    framing::{Framing, Length},
    request::{FIELDS_INLINE, Request},
};
use crate::{
    config::Limits,
    policy::{Reject, action::Edits},
    proxy::attempt,
};

/// What the engine needs to know of an answer once its head is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Body,
    /// The endpoint keeps its connection open after this answer.
    pub(super) keeps_upstream: bool,
    /// The answer's end can be told without closing the client's connection.
    pub(super) is_delimited: bool,
    /// How long the endpoint wants to be left alone.
    pub(super) retry_after: Option<Duration>,
}

impl Response {
    /// Whether another head follows (RFC 9110, section 15.2).
    pub(super) const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// How the answer is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write<'a> {
    pub(super) request: &'a Request,
    /// The client's connection stays open, as far as it depends on us.
    pub(super) keep_alive: bool,
    /// Fields that we add: complete lines.
    pub(super) extra: &'a [u8],
    /// Edits of a final answer's fields.
    pub(super) edits: Option<&'a Edits>,
}

/// Parses `head`, which ends with its empty line, and writes to `out` what is forwarded.
///
/// # Errors
/// [`Reject::UpstreamMalformed`]: the connection to the endpoint is not to be trusted further.
pub(super) fn rewrite(
    head: &[u8],
    limits: &Limits,
    out: &mut Vec<u8>,
    how: Write<'_>,
) -> Result<Response, Reject> {
    let max = limits.head_fields_max;
    let mut inline = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
    let mut outline;
    let storage: &mut [MaybeUninit<Header<'_>>] = if max <= FIELDS_INLINE {
        &mut inline[..max]
    } else {
        outline = vec![MaybeUninit::uninit(); max];
        &mut outline
    };
    let mut config = httparse::ParserConfig::default();
    // RFC 9112, section 5.1: a proxy removes such white space from an answer.
    config.allow_spaces_after_header_name_in_responses(true);
    let mut parsed = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut parsed, head, storage) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        _ => return Err(Reject::UpstreamMalformed),
    }
    let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
        return Err(Reject::UpstreamMalformed);
    };
    if !(100..=599).contains(&status) {
        return Err(Reject::UpstreamMalformed);
    }
    let fields: &[Header<'_>] = parsed.headers;
    check(status, version == 0, fields, how.request).map(|(response, connection, framing)| {
        write(head, out, how, fields, &response, connection, framing);
        response
    })
}

fn check(
    status: u16,
    http10: bool,
    fields: &[Header<'_>],
    request: &Request,
) -> Result<(Response, Connection, Length), Reject> {
    let mut connection = Connection::default();
    let mut framing = Framing::default();
    let mut upgrade = false;
    for field in fields {
        match Field::of(field.name) {
            Field::Connection => connection.field(field.value),
            Field::ContentLength => framing.content_length(field.value),
            Field::TransferEncoding => framing.transfer_encoding(field.value),
            Field::Upgrade => upgrade = true,
            _ => {}
        }
    }
    // RFC 9110, section 7.8: only what the client offered.
    if status == 101 && !(request.upgrade && upgrade && connection.upgrade) {
        return Err(Reject::UpstreamMalformed);
    }
    let bodyless = request.is_head || status < 200 || matches!(status, 204 | 304);
    let length = if bodyless {
        if framing.length_is_bad() {
            return Err(Reject::UpstreamMalformed);
        }
        Length::Unstated
    } else {
        framing.response(http10)?
    };
    let body = match length {
        _ if bodyless => Body::NONE,
        Length::Bytes(length) => Body::Length(length),
        Length::Chunked => Body::Chunked(Chunked::new(request.http10)),
        Length::Unstated => Body::UntilClose,
    };
    let asks = |field: &&Header<'_>| field.name.eq_ignore_ascii_case("retry-after");
    let retry_after = match status {
        429 | 500.. => fields.iter().find(asks).map(|field| field.value),
        _ => None,
    };
    let keeps = !connection.close && (!http10 || connection.keep_alive);
    let response = Response {
        status,
        body,
        keeps_upstream: keeps && !matches!(body, Body::UntilClose),
        // Without chunks, an HTTP/1.0 client is told the end by the close.
        is_delimited: match body {
            Body::UntilClose => false,
            Body::Chunked(_) => !request.http10,
            Body::Length(_) => true,
        },
        retry_after: attempt::retry_after(status, retry_after),
    };
    Ok((response, connection, length))
}

fn write(
    head: &[u8],
    out: &mut Vec<u8>,
    how: Write<'_>,
    fields: &[Header<'_>],
    response: &Response,
    connection: Connection,
    length: Length,
) {
    out.reserve(head.len() + how.extra.len() + 64);
    let first = fields.first().map_or(head.len() - 2, |field| {
        offset_in(head, field.name.as_bytes())
    });
    // RFC 9110, section 2.5: our own version. `HTTP/1.x` is eight bytes.
    out.extend_from_slice(b"HTTP/1.1");
    out.extend_from_slice(&head[8..first]);
    let mut lines = Lines::new(head, out, first);
    let mut length_written = false;
    // A body that is not chunked any more must not say so; a length beside it was refused.
    let bodyless = how.request.is_head || matches!(response.status, 100..200 | 204 | 304);
    let edits = how.edits.filter(|_| !response.is_interim());
    for (index, field) in fields.iter().enumerate() {
        let at = line(head, fields, index);
        let keep = match Field::of(field.name) {
            _ if edits.is_some_and(|edits| edits.replaces(field.name)) => false,
            Field::ContentLength => {
                // RFC 9110, section 8.6: never in 1xx and 204.
                let may = !matches!(response.status, 100..200 | 204);
                !std::mem::replace(&mut length_written, true) && may
            }
            Field::Other
            | Field::Host
            | Field::Expect
            | Field::ForwardedProto
            | Field::RequestId
            | Field::UserAgent
            | Field::MaxForwards => !connection.lists || !is_listed(fields, field.name),
            Field::Upgrade => response.status == 101,
            Field::Connection
            | Field::KeepAlive
            | Field::ProxyConnection
            | Field::Te
            | Field::TransferEncoding => false,
        };
        let after_name = head.get(at.start + field.name.len());
        if !keep {
            lines.cut(at.start, at.end);
        } else if after_name != Some(&b':') {
            push_field(lines.cut(at.start, at.end), field.name, field.value);
        }
    }
    let end = head.len() - 2;
    let out = lines.cut(end, end);
    for (name, value) in edits.iter().flat_map(|edits| edits.added()) {
        push_field(out, name.as_str(), value.as_bytes());
    }
    if length == Length::Chunked && !bodyless && !how.request.http10 {
        push_field(out, "transfer-encoding", b"chunked");
    }
    if response.status == 101 {
        push_field(out, "connection", b"upgrade");
    } else if !response.is_interim() {
        out.extend_from_slice(how.extra);
        if !how.keep_alive || !response.is_delimited {
            push_field(out, "connection", b"close");
        } else if how.request.http10 {
            push_field(out, "connection", b"keep-alive");
        }
    }
    out.extend_from_slice(b"\r\n");
}
