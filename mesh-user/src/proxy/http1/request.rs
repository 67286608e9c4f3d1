//! A request head: parsed strictly, checked, and written the way it is forwarded.

use std::mem::MaybeUninit;

use httparse::Header;

use super::{
    body::Body,
    chunked::Chunked,
    copy::{Lines, line, offset_in, push_field},
    fields::{Connection, Field, Fields, is_authority, is_listed, offers, upgrade_passes},
    framing::{Framing, Length, decimal, trim},
};
use crate::{
    config::Limits,
    policy::{Reject, RequestView, action::Action, rng::Rng},
    proxy::{id::push_request_id, record::Spans},
};

/// Fields for which no memory is allocated: above Envoy's default limit of 100.
pub(super) const FIELDS_INLINE: usize = 128;

/// A parsed request head. Borrows the bytes.
#[derive(Debug)]
pub(super) struct Parsed<'a, 'b> {
    pub(super) head: &'b [u8],
    pub(super) method: &'b str,
    pub(super) fields: &'a [Header<'b>],
    pub(super) http10: bool,
    target: Target<'b>,
    host: Option<&'b str>,
    connection: Connection,
    upgrade: Option<&'b [u8]>,
    has_request_id: bool,
    max_forwards: Option<u64>,
    length: Length,
    /// It came over TLS that ended here.
    pub(super) secure: std::cell::Cell<bool>,
    /// The whole target as received.
    raw_target: &'b str,
    /// Where the first field starts.
    first_line_end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target<'b> {
    path: &'b str,
    query: Option<&'b str>,
    /// From absolute form.
    authority: Option<&'b str>,
    /// The scheme of absolute form.
    https: bool,
    /// Written as received.
    verbatim: bool,
}

/// What the engine needs to know of a request once its head is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) http10: bool,
    /// The client keeps its connection open.
    pub(super) keep_alive: bool,
    /// An answer has no body.
    pub(super) is_head: bool,
    /// The client offers another protocol.
    pub(super) upgrade: bool,
    pub(super) body: Body,
    /// `Max-Forwards: 0`: to be answered here.
    pub(super) ends_here: bool,
}

/// Parses `head`, which ends with its empty line, and hands it to `with`.
///
/// # Errors
/// Why it is refused. The connection ends: what follows can't be trusted.
pub(super) fn parse<R>(
    head: &[u8],
    limits: &Limits,
    with: impl FnOnce(&Parsed<'_, '_>) -> Result<R, Reject>,
) -> Result<R, Reject> {
    let max = limits.head_fields_max;
    let mut inline = [const { MaybeUninit::uninit() }; FIELDS_INLINE];
    let mut outline;
    let storage: &mut [MaybeUninit<Header<'_>>] = if max <= FIELDS_INLINE {
        &mut inline[..max]
    } else {
        outline = vec![MaybeUninit::uninit(); max];
        &mut outline
    };
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, storage) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Reject::BadRequest),
        Err(httparse::Error::TooManyHeaders) => return Err(Reject::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(bad_version(head)),
        Err(_) => return Err(Reject::BadRequest),
    }
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Reject::BadRequest);
    };
    with(&check(
        head,
        method,
        target,
        version == 0,
        request.headers,
        limits,
    )?)
}

/// A version that we do not speak, or a line that is no request line.
fn bad_version(head: &[u8]) -> Reject {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or(head);
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or(line);
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit()
                && minor.is_ascii_digit()
                && !matches!((major, minor), (b'1', b'0' | b'1')) =>
        {
            Reject::UnknownVersion
        }
        _ => Reject::BadRequest,
    }
}

fn check<'a, 'b>(
    head: &'b [u8],
    method: &'b str,
    target: &'b str,
    http10: bool,
    fields: &'a [Header<'b>],
    limits: &Limits,
) -> Result<Parsed<'a, 'b>, Reject> {
    if target.len() > limits.target_bytes_max {
        return Err(Reject::TargetTooLong);
    }
    if method == "CONNECT" {
        return Err(Reject::ConnectRefused);
    }
    let mut framing = Framing::default();
    let mut hosts = 0;
    let mut parsed = Parsed {
        head,
        method,
        fields,
        http10,
        target: split_target(method, target)?,
        host: None,
        connection: Connection::default(),
        upgrade: None,
        has_request_id: false,
        max_forwards: None,
        length: Length::Unstated,
        secure: std::cell::Cell::new(false),
        raw_target: target,
        first_line_end: fields.first().map_or(head.len() - 2, |first| {
            offset_in(head, first.name.as_bytes())
        }),
    };
    for field in fields {
        match Field::of(field.name) {
            Field::Connection => parsed.connection.field(field.value),
            Field::ContentLength => framing.content_length(field.value),
            Field::TransferEncoding => framing.transfer_encoding(field.value),
            Field::Host => {
                let host = trim(field.value);
                if !is_authority(host) {
                    return Err(Reject::BadRequest);
                }
                hosts += 1;
                parsed.host = Some(str::from_utf8(host).map_err(|_| Reject::BadRequest)?);
            }
            // A second field would only differ from the first to confuse somebody.
            Field::Upgrade if parsed.upgrade.is_none() => parsed.upgrade = Some(trim(field.value)),
            Field::Upgrade => return Err(Reject::BadRequest),
            Field::RequestId => parsed.has_request_id = true,
            Field::MaxForwards if matches!(method, "OPTIONS" | "TRACE") => {
                let hops = decimal(trim(field.value)).ok_or(Reject::BadRequest)?;
                if parsed.max_forwards.replace(hops).is_some() {
                    return Err(Reject::BadRequest);
                }
            }
            _ => {}
        }
    }
    // RFC 9112, section 3.2: exactly one Host in HTTP/1.1.
    if hosts > 1 || (hosts == 0 && !http10) {
        return Err(Reject::BadRequest);
    }
    parsed.length = framing.request(http10)?;
    // RFC 9110, section 9.3.8: a TRACE request has no body.
    if method == "TRACE" && parsed.length != Length::Unstated {
        return Err(Reject::BadRequest);
    }
    Ok(parsed)
}

/// The four forms of RFC 9112, section 3.2; authority form is CONNECT's and was refused.
fn split_target<'b>(method: &str, target: &'b str) -> Result<Target<'b>, Reject> {
    // httparse lets bytes above 0x7f through; RFC 3986 knows none, and no fragment either.
    if !target
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err(Reject::BadRequest);
    }
    let split = |rest: &'b str| match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    if target.starts_with('/') {
        let (path, query) = split(target);
        return Ok(Target {
            path,
            query,
            authority: None,
            https: false,
            verbatim: true,
        });
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(Target {
            path: "*",
            query: None,
            authority: None,
            https: false,
            verbatim: true,
        });
    }
    let after = |scheme: &str| {
        let (is, rest) = target.split_at_checked(scheme.len())?;
        is.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let (rest, https) = match (after("http://"), after("https://")) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest, true),
        (None, None) => return Err(Reject::BadRequest),
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if !is_authority(authority.as_bytes()) {
        return Err(Reject::BadRequest);
    }
    let (path, query) = split(rest);
    let path = match (path, query, method) {
        // RFC 9112, section 3.2.4: the asterisk form of the last hop.
        ("", None, "OPTIONS") => "*",
        // RFC 9112, section 3.2.1: an empty path is sent as `/`.
        ("", _, _) => "/",
        _ => path,
    };
    Ok(Target {
        path,
        query,
        authority: Some(authority),
        https,
        verbatim: false,
    })
}

/// The protocols that a head as we wrote it offers: a request for an upgrade has one such field.
pub(super) fn offered(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    const NAME: &[u8] = b"upgrade:";
    let lines = head.split(|byte| *byte == b'\n').skip(1);
    let is =
        |line: &&[u8]| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME);
    let value = lines.filter(is).map(|line| line[NAME.len()..].trim_ascii());
    value.flat_map(offers)
}

impl Parsed<'_, '_> {
    /// The request as rules see it.
    pub(super) fn view<'v>(
        &'v self,
        fields: &'v Fields<'v, 'v>,
        destination: &'v str,
    ) -> RequestView<'v, Fields<'v, 'v>> {
        RequestView {
            method: self.method,
            path: self.target.path,
            query: self.target.query,
            authority: self.target.authority.or(self.host).unwrap_or(destination),
            headers: fields,
        }
    }

    /// Whether the request says itself whom it means: always in HTTP/1.1.
    pub(super) const fn has_authority(&self) -> bool {
        self.host.is_some() || self.target.authority.is_some()
    }

    /// Whether the target says `https`: nothing for a connection in the clear.
    pub(super) const fn wants_tls(&self) -> bool {
        self.target.https
    }

    fn passes_upgrade(&self) -> bool {
        // RFC 9110, section 7.8: ignored in HTTP/1.0, and only with the connection option.
        !self.http10 && self.connection.upgrade && self.upgrade.is_some_and(upgrade_passes)
    }

    /// Writes the head that is forwarded, and says where the strings of the log stand in it.
    /// `destination` is the Host of a request that has none, `change` what a rule changes.
    pub(super) fn write(
        &self,
        out: &mut Vec<u8>,
        spans: &mut Spans,
        destination: &str,
        rng: &mut Rng,
        change: Option<&Action>,
    ) -> Request {
        out.reserve(self.head.len() + 128);
        let path = change.and_then(|change| change.path.as_deref());
        let start = self.write_start_line(out, spans, path);
        self.write_fields(out, spans, start, destination, change);
        let edits = change.and_then(|change| change.request.as_deref());
        let own_id = edits.is_some_and(|edits| edits.touches("x-request-id"));
        if !self.has_request_id && !own_id {
            out.extend_from_slice(b"x-request-id: ");
            spans.request_id = push_request_id(out, rng);
            out.extend_from_slice(b"\r\n");
        }
        if self.secure.get() {
            push_field(out, "x-forwarded-proto", b"https");
        }
        if self.length == Length::Chunked {
            push_field(out, "transfer-encoding", b"chunked");
        }
        let upgrade = self.passes_upgrade();
        if upgrade {
            push_field(out, "connection", b"upgrade");
            push_field(out, "upgrade", self.upgrade.unwrap_or_default());
        }
        out.extend_from_slice(b"\r\n");
        Request {
            http10: self.http10,
            keep_alive: !self.connection.close && (!self.http10 || self.connection.keep_alive),
            is_head: self.method == "HEAD",
            upgrade,
            body: match self.length {
                Length::Unstated => Body::NONE,
                Length::Bytes(length) => Body::Length(length),
                Length::Chunked => Body::Chunked(Chunked::new(false)),
            },
            ends_here: self.max_forwards == Some(0),
        }
    }

    /// Writes the start line unless it stays as it is; where copying starts.
    fn write_start_line(&self, out: &mut Vec<u8>, spans: &mut Spans, path: Option<&str>) -> usize {
        spans.method = 0..self.method.len();
        let target = self.method.len() + 1;
        // The line as it stands, if nothing odd is in it: one space each, CRLF, version 1.1.
        let plain = target + self.raw_target.len() + " HTTP/1.1\r\n".len();
        let verbatim = self.target.verbatim && path.is_none();
        if verbatim && !self.http10 && plain == self.first_line_end {
            spans.target = target..target + self.raw_target.len();
            return 0;
        }
        out.extend_from_slice(self.method.as_bytes());
        out.push(b' ');
        let from = out.len();
        if verbatim {
            out.extend_from_slice(self.raw_target.as_bytes());
        } else {
            out.extend_from_slice(path.unwrap_or(self.target.path).as_bytes());
            if let Some(query) = self.target.query {
                out.push(b'?');
                out.extend_from_slice(query.as_bytes());
            }
        }
        spans.target = from..out.len();
        out.extend_from_slice(b" HTTP/1.1\r\n");
        self.first_line_end
    }

    fn write_fields(
        &self,
        out: &mut Vec<u8>,
        spans: &mut Spans,
        from: usize,
        destination: &str,
        change: Option<&Action>,
    ) {
        let edits = change.and_then(|change| change.request.as_deref());
        let authority = change
            .and_then(|change| change.authority.as_deref())
            .or(self.target.authority);
        let mut lines = Lines::new(self.head, out, from);
        let mut length_written = false;
        for (index, field) in self.fields.iter().enumerate() {
            let at = line(self.head, self.fields, index);
            match Field::of(field.name) {
                _ if edits.is_some_and(|edits| edits.replaces(field.name)) => {
                    lines.cut(at.start, at.end);
                }
                Field::Host => match authority {
                    // RFC 9112, section 3.2.2: the target's authority replaces Host.
                    Some(authority) => {
                        let out = lines.cut(at.start, at.end);
                        let from = out.len() + "host: ".len();
                        push_field(out, "host", authority.as_bytes());
                        spans.authority = from..from + authority.len();
                    }
                    None => spans.authority = lines.span(field),
                },
                Field::UserAgent => spans.user_agent = lines.span(field),
                Field::RequestId => spans.request_id = lines.span(field),
                Field::ContentLength if !length_written => length_written = true,
                // RFC 9110, section 10.1.1: ignored from HTTP/1.0.
                Field::Expect if !self.http10 => {}
                Field::MaxForwards => {
                    if let Some(hops) = self.max_forwards {
                        let hops = hops.saturating_sub(1).to_string();
                        push_field(lines.cut(at.start, at.end), "max-forwards", hops.as_bytes());
                    }
                }
                Field::ForwardedProto if self.secure.get() => {
                    lines.cut(at.start, at.end);
                }
                Field::Other | Field::ForwardedProto
                    if !self.connection.lists || !is_listed(self.fields, field.name) => {}
                // What is left: hop-by-hop (RFC 9110, section 7.6.1), repeated lengths.
                _ => {
                    lines.cut(at.start, at.end);
                }
            }
        }
        let end = self.head.len() - 2;
        let out = lines.cut(end, end);
        if self.host.is_none() {
            let authority = authority.unwrap_or(destination);
            let from = out.len() + "host: ".len();
            push_field(out, "host", authority.as_bytes());
            spans.authority = from..from + authority.len();
        }
        for (name, value) in edits.iter().flat_map(|edits| edits.added()) {
            let from = out.len() + name.as_str().len() + ": ".len();
            push_field(out, name.as_str(), value.as_bytes());
            match Field::of(name.as_str()) {
                Field::UserAgent => spans.user_agent = from..from + value.len(),
                Field::RequestId => spans.request_id = from..from + value.len(),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
