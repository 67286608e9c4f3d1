//! An upgrade over HTTP/1.1 for a tunnel that was asked for over HTTP/2 (RFC 8441, section 5).

use std::task::{Context, Poll};

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use httparse::Header;

use super::{
    body::Body,
    chunked::Chunked,
    copy::push_field,
    fields::{Connection, Field, is_listed},
    framing::{Framing, Length, trim},
    scan::Scan,
};
use crate::{
    config::Limits,
    policy::rng::Rng,
    proxy::{
        buffer::Buf,
        io::{is_reset, poll_fill, poll_write_two},
        upstream::Upstream,
        websocket,
    },
};

/// What is asked of the endpoint.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Offer<'a> {
    pub(in crate::proxy) protocol: &'a str,
    pub(in crate::proxy) target: &'a str,
    pub(in crate::proxy) authority: &'a [u8],
    pub(in crate::proxy) headers: &'a HeaderMap,
}

impl Offer<'_> {
    /// RFC 6455 alone has a key.
    fn is_websocket(&self) -> bool {
        self.protocol.eq_ignore_ascii_case("websocket")
    }
}

/// The handshake on one connection.
#[derive(Debug)]
pub(in crate::proxy) struct Handshake {
    out: Vec<u8>,
    sent: usize,
    scan: Scan,
    protocol: String,
    /// What a WebSocket endpoint must say.
    accept: Option<String>,
}

/// What the endpoint answered.
#[derive(Debug)]
pub(in crate::proxy) struct Answered {
    pub(in crate::proxy) response: Response<()>,
    /// None: it switched, and what follows is the tunnel.
    pub(in crate::proxy) rest: Option<Rest>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum NoAnswer {
    Closed,
    Reset,
    Malformed,
}

/// The body of an answer that is no switch.
#[derive(Debug)]
pub(in crate::proxy) struct Rest(Body);

impl Rest {
    pub(in crate::proxy) fn is_done(&self) -> bool {
        self.0.is_done()
    }

    /// Whether the end of the connection is the end of the body.
    pub(in crate::proxy) const fn ends_with_connection(&self) -> bool {
        matches!(self.0, Body::UntilClose)
    }

    /// How many bytes of payload are at the front of `buf`, once the framing before is dropped.
    ///
    /// # Errors
    /// The framing is broken.
    pub(in crate::proxy) fn payload(&mut self, buf: &mut Buf) -> Result<usize, NoAnswer> {
        while !buf.is_empty() && !self.0.is_done() {
            let step = self.0.step(buf.bytes()).map_err(|_| NoAnswer::Malformed)?;
            buf.consume(step.skip);
            if step.forward > 0 {
                return Ok(step.forward);
            }
        }
        Ok(0)
    }
}

/// Fields of a request that HTTP/1.1 frames itself with, that we make, or that ask for what there
/// is not.
fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "cookie"
            | "expect"
            | "host"
            | "keep-alive"
            | "proxy-connection"
            | "sec-websocket-key"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

impl Handshake {
    pub(in crate::proxy) fn new(offer: Offer<'_>, rng: &mut Rng) -> Self {
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(format!("GET {} HTTP/1.1\r\n", offer.target).as_bytes());
        push_field(&mut out, "host", offer.authority);
        for (name, value) in offer.headers {
            if !is_ours(name) {
                push_field(&mut out, name.as_str(), value.as_bytes());
            }
        }
        // RFC 9113, section 8.2.3: one field again.
        let cookies = offer.headers.get_all(header::COOKIE).iter();
        let cookies: Vec<&[u8]> = cookies.map(HeaderValue::as_bytes).collect();
        if !cookies.is_empty() {
            push_field(&mut out, "cookie", &cookies.join(&b"; "[..]));
        }
        push_field(&mut out, "connection", b"upgrade");
        push_field(&mut out, "upgrade", offer.protocol.as_bytes());
        let key = offer.is_websocket().then(|| websocket::key(rng));
        if let Some(key) = &key {
            push_field(&mut out, "sec-websocket-key", key.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        Self {
            out,
            sent: 0,
            scan: Scan::default(),
            protocol: offer.protocol.to_owned(),
            accept: key.as_deref().map(websocket::accept),
        }
    }

    /// Sends the offer and waits for the final answer. Interim ones are not passed on.
    pub(in crate::proxy) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Upstream,
        limits: &Limits,
    ) -> Poll<Result<Answered, NoAnswer>> {
        while self.sent < self.out.len() {
            match poll_write_two(&mut up.stream, cx, &self.out[self.sent..], &[]) {
                Poll::Ready(Ok(count)) => self.sent += count,
                // It may have answered before it closed: read on.
                Poll::Ready(Err(_)) => self.sent = self.out.len(),
                Poll::Pending => break,
            }
        }
        loop {
            if !up.buf.is_empty() {
                let max = limits.head_bytes_max;
                let found = self.scan.advance(up.buf.bytes(), max, max);
                if let Some(length) = found.map_err(|_| NoAnswer::Malformed)? {
                    let answered = self.read(&up.buf.bytes()[..length], limits);
                    up.buf.consume(length);
                    self.scan = Scan::default();
                    match answered? {
                        Some(answered) => return Poll::Ready(Ok(answered)),
                        None => continue,
                    }
                }
            }
            if !up.buf.has_room() {
                up.buf.grow();
            }
            match poll_fill(&mut up.stream, cx, &mut up.buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(NoAnswer::Closed)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) if is_reset(&error) => {
                    return Poll::Ready(Err(NoAnswer::Reset));
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(NoAnswer::Closed)),
            }
        }
    }

    /// None: an interim answer.
    fn read(&self, head: &[u8], limits: &Limits) -> Result<Option<Answered>, NoAnswer> {
        let mut storage = vec![httparse::EMPTY_HEADER; limits.head_fields_max];
        let mut parsed = httparse::Response::new(&mut storage);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            _ => return Err(NoAnswer::Malformed),
        }
        let (Some(code), Some(version)) = (parsed.code, parsed.version) else {
            return Err(NoAnswer::Malformed);
        };
        let fields: &[Header<'_>] = parsed.headers;
        let mut connection = Connection::default();
        let mut framing = Framing::default();
        let mut upgrade = None;
        let mut accept = None;
        for field in fields {
            match Field::of(field.name) {
                Field::Connection => connection.field(field.value),
                Field::ContentLength => framing.content_length(field.value),
                Field::TransferEncoding => framing.transfer_encoding(field.value),
                Field::Upgrade => upgrade = Some(trim(field.value)),
                _ if field.name.eq_ignore_ascii_case("sec-websocket-accept") => {
                    accept = Some(trim(field.value));
                }
                _ => {}
            }
        }
        let status = match code {
            101 => {
                // RFC 9110, section 7.8, and RFC 6455, section 4.1.
                let offered =
                    upgrade.is_some_and(|name| name.eq_ignore_ascii_case(self.protocol.as_bytes()));
                let proven = self.accept.as_deref().map(str::as_bytes);
                if !offered
                    || !connection.upgrade
                    || proven.is_some_and(|want| accept != Some(want))
                {
                    return Err(NoAnswer::Malformed);
                }
                // RFC 8441, section 5: an open tunnel is a 2xx there.
                200
            }
            100..200 => return Ok(None),
            // Whoever does not switch says so with another class: here it would be an open tunnel.
            200..300 => return Err(NoAnswer::Malformed),
            300..600 => code,
            _ => return Err(NoAnswer::Malformed),
        };
        let rest = (code != 101)
            .then(|| body(code, version == 0, framing))
            .transpose()?;
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).map_err(|_| NoAnswer::Malformed)?;
        *response.headers_mut() = passed(fields, connection, code == 101)?;
        Ok(Some(Answered { response, rest }))
    }
}

fn body(status: u16, http10: bool, framing: Framing) -> Result<Rest, NoAnswer> {
    if status == 304 {
        return Ok(Rest(Body::NONE));
    }
    let length = framing.response(http10).map_err(|_| NoAnswer::Malformed)?;
    Ok(Rest(match length {
        Length::Bytes(length) => Body::Length(length),
        Length::Chunked => Body::Chunked(Chunked::new(true)),
        Length::Unstated => Body::UntilClose,
    }))
}

/// The fields that go on: end-to-end ones (RFC 9113, section 8.2.2).
fn passed(
    fields: &[Header<'_>],
    connection: Connection,
    switched: bool,
) -> Result<HeaderMap, NoAnswer> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let keep = match Field::of(field.name) {
            Field::Connection
            | Field::KeepAlive
            | Field::ProxyConnection
            | Field::Te
            | Field::TransferEncoding
            | Field::Upgrade => false,
            Field::ContentLength => !switched && !headers.contains_key(header::CONTENT_LENGTH),
            _ => {
                !field.name.eq_ignore_ascii_case("sec-websocket-accept")
                    && (!connection.lists || !is_listed(fields, field.name))
            }
        };
        if keep {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_bytes(trim(field.value));
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(NoAnswer::Malformed);
            };
            headers.append(name, value);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake(protocol: &str, headers: &HeaderMap) -> (Handshake, String) {
        let offer = Offer {
            protocol,
            target: "/chat?x=1",
            authority: b"web:80",
            headers,
        };
        let handshake = Handshake::new(offer, &mut Rng::new(1));
        let text = String::from_utf8(handshake.out.clone()).unwrap();
        (handshake, text)
    }

    #[test]
    fn offer_is_an_upgrade_with_a_key_and_one_cookie() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("sec-websocket-version", "13"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("te", "trailers"),
            ("sec-websocket-key", "mine"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let (_, text) = handshake("websocket", &headers);
        assert!(text.starts_with("GET /chat?x=1 HTTP/1.1\r\nhost: web:80\r\n"));
        assert!(text.contains("\r\ncookie: a=1; b=2\r\n"), "{text}");
        assert!(text.contains("\r\nconnection: upgrade\r\nupgrade: websocket\r\n"));
        assert_eq!(text.matches("sec-websocket-key").count(), 1);
        assert!(!text.contains("mine") && !text.contains("te:"), "{text}");
        let (_, text) = handshake("connect-ip", &headers);
        assert!(!text.contains("sec-websocket-key"), "{text}");
    }

    #[test]
    fn answer_must_prove_that_it_switched_to_what_was_offered() {
        let (websocket, _) = handshake("websocket", &HeaderMap::new());
        let (other, _) = handshake("other", &HeaderMap::new());
        let accept = websocket.accept.clone().unwrap();
        let limits = Limits::default();
        let say = |rest: &str| format!("HTTP/1.1 101 S\r\nconnection: upgrade\r\n{rest}\r\n");
        let good = say(&format!(
            "upgrade: WebSocket\r\nsec-websocket-accept: {accept}\r\nsec-websocket-protocol: x\r\n"
        ));
        let answered = websocket.read(good.as_bytes(), &limits).unwrap().unwrap();
        assert_eq!(answered.response.status(), 200);
        assert!(answered.rest.is_none());
        let names: Vec<&str> = answered
            .response
            .headers()
            .keys()
            .map(|name| name.as_str())
            .collect();
        assert_eq!(names, ["sec-websocket-protocol"]);
        for bad in [
            say("upgrade: websocket\r\n"),
            say("upgrade: websocket\r\nsec-websocket-accept: other\r\n"),
            say(&format!(
                "upgrade: other\r\nsec-websocket-accept: {accept}\r\n"
            )),
            "HTTP/1.1 101 S\r\nupgrade: websocket\r\n\r\n".to_owned(),
            "HTTP/1.1 200 Ok\r\ncontent-length: 0\r\n\r\n".to_owned(),
        ] {
            let read = websocket.read(bad.as_bytes(), &limits);
            assert_eq!(read.unwrap_err(), NoAnswer::Malformed, "{bad}");
        }
        assert!(
            other
                .read(say("upgrade: other\r\n").as_bytes(), &limits)
                .is_ok()
        );
    }

    #[test]
    fn answer_that_declines_passes_with_its_body() {
        let (handshake, _) = handshake("websocket", &HeaderMap::new());
        let head = "HTTP/1.1 403 No\r\nconnection: close, x-hop\r\nx-hop: 1\r\nx-end: 1\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let read = handshake.read(head.as_bytes(), &Limits::default());
        let Answered { response, rest } = read.unwrap().unwrap();
        assert_eq!(response.status(), 403);
        let names: Vec<&str> = response
            .headers()
            .keys()
            .map(|name| name.as_str())
            .collect();
        assert_eq!(names, ["x-end"]);
        let mut rest = rest.unwrap();
        let mut buf = Buf::from_bytes(b"2\r\nno\r\n0\r\n\r\n");
        assert_eq!(rest.payload(&mut buf), Ok(2));
        assert_eq!(&buf.bytes()[..2], b"no");
        buf.consume(2);
        assert_eq!(rest.payload(&mut buf), Ok(0));
        assert!(rest.is_done());
    }
}
