//! What a request of this engine gives to its mirrors.

use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

use super::{
    body::Body, exchange::Exchange, payload::Payload, request, request::FIELDS_INLINE,
    sending::Sending,
};
use crate::{
    policy::action::MirrorPlan,
    proxy::{
        core::Conn,
        mirror::{self, Begun, Comparison, Original, Spoken, Tee},
        record::RequestLog,
    },
};

/// The request's body for its mirrors.
#[derive(Debug)]
pub(super) struct Mirrored {
    payload: Payload,
    tee: Tee,
    compare: Option<Rc<Comparison>>,
}

impl Mirrored {
    /// Body bytes with their framing, as they were forwarded; `done`: they were the last.
    pub(super) fn forwarded(&mut self, bytes: &[u8], done: bool) {
        let tee = &self.tee;
        self.payload.each(bytes, |data| tee.data(data));
        if done {
            // Trailers are framing here: a mirror over HTTP/1.1 gets the payload.
            tee.end(None);
        }
    }
}

/// The answer's body for the comparison.
#[derive(Debug)]
pub(super) struct Compared {
    payload: Option<Payload>,
    comparison: Rc<Comparison>,
}

impl Compared {
    /// Body bytes as they were forwarded to the client.
    pub(super) fn forwarded(&mut self, bytes: &[u8], body: &Body, data_only: bool) {
        let payload = self
            .payload
            .get_or_insert_with(|| Payload::of(body, data_only));
        let comparison = &self.comparison;
        payload.each(bytes, |data| comparison.data(data));
    }
}

/// Sends the head to the request's mirrors.
pub(super) fn begin(
    conn: &Rc<Conn>,
    log: &RequestLog,
    mirrors: &[MirrorPlan],
    request: &request::Request,
    sending: &mut Sending,
) {
    let original = Original {
        conn,
        snapshot: &log.snapshot,
        source: log.source,
        spoken: Spoken::Http1,
        upgrades: request.upgrade,
        ends: request.body.is_done(),
    };
    let begun = mirror::begin(&original, mirrors, || copy_of(&log.head));
    sending.mirrored = begun.map(|Begun { tee, compare }| {
        Box::new(Mirrored {
            payload: Payload::of(&request.body, false),
            tee,
            compare,
        })
    });
}

/// Makes an attempt's answer known to who compares it.
pub(super) fn watch(exchange: &mut Exchange<'_>, sending: &Sending) {
    let mirrored = sending.mirrored.as_deref();
    if let Some(comparison) = mirrored.and_then(|mirrored| mirrored.compare.clone()) {
        exchange.compared = Some(Box::new(Compared {
            payload: None,
            comparison,
        }));
    }
}

/// The answer went out whole.
pub(super) fn answered(sending: &Sending, status: Option<u16>) {
    let mirrored = sending.mirrored.as_deref();
    if let (Some(comparison), Some(status)) = (
        mirrored.and_then(|mirrored| mirrored.compare.as_ref()),
        status,
    ) {
        comparison.end(status, None);
    }
}

/// The head as it is forwarded, for another connection.
fn copy_of(head: &[u8]) -> Option<Request<()>> {
    let mut storage = [httparse::EMPTY_HEADER; FIELDS_INLINE];
    let mut more;
    let mut parsed = httparse::Request::new(&mut storage);
    let mut result = parsed.parse(head);
    if result == Err(httparse::Error::TooManyHeaders) {
        more = vec![httparse::EMPTY_HEADER; memchr::memchr_iter(b'\n', head).count()];
        parsed = httparse::Request::new(&mut more);
        result = parsed.parse(head);
    }
    result.ok()?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = parsed.path?.parse().ok()?;
    *request.headers_mut() = headers;
    Some(request)
}
