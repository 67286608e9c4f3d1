//! A request head in HTTP/2: what h2 leaves to us to check, and how it is sent on.

use bytes::Bytes;
use h2::ext::Protocol;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};

use crate::{
    config::Limits,
    policy::{Reject, RequestView, rng::Rng},
    proxy::{buffer::HeadBuf, http1::upgrade_passes, id::push_request_id, record::Spans},
};

/// What is known of a request before it is sent on.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    authority: Bytes,
    /// Of extended CONNECT (RFC 8441).
    protocol: Option<Protocol>,
}

/// Checks what h2 has not: pseudo-fields and connection fields are its business, their meaning
/// is ours.
///
/// # Errors
/// Why it is refused.
pub(super) fn check(request: Request<()>, limits: &Limits) -> Result<Head, Reject> {
    let (mut parts, ()) = request.into_parts();
    let protocol: Option<Protocol> = parts.extensions.remove();
    let (method, uri, mut headers) = (parts.method, parts.uri, parts.headers);
    match &protocol {
        // Only the names that an Upgrade field could offer too.
        Some(protocol) if !upgrade_passes(protocol.as_ref()) => return Err(Reject::BadRequest),
        None if method == Method::CONNECT => return Err(Reject::ConnectRefused),
        _ => {}
    }
    if headers.len() > limits.head_fields_max {
        return Err(Reject::HeadTooLarge);
    }
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    if target.len() > limits.target_bytes_max {
        return Err(Reject::TargetTooLong);
    }
    let form = target.starts_with('/') || (target == "*" && method == Method::OPTIONS);
    if !form
        || !target
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err(Reject::BadRequest);
    }
    let authority = authority(&uri, &headers)?;
    // RFC 9113, section 8.3.1: `:authority` says it all.
    if uri.authority().is_some() {
        headers.remove(header::HOST);
    }
    Ok(Head {
        method,
        uri,
        headers,
        authority,
        protocol,
    })
}

/// `:authority`, or the one Host, or both if they agree: a difference would let two hops route
/// the same request differently.
fn authority(uri: &Uri, headers: &HeaderMap) -> Result<Bytes, Reject> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    let said = uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let text = match (said, host, more) {
        (_, _, Some(_)) | (None, None, None) => return Err(Reject::BadRequest),
        (Some(said), None, None) => said,
        (None, Some(host), None) => host.as_bytes(),
        (Some(said), Some(host), None) if said.eq_ignore_ascii_case(host.as_bytes()) => said,
        (Some(_), Some(_), None) => return Err(Reject::BadRequest),
    };
    if !crate::proxy::http1::is_authority(text) {
        return Err(Reject::BadRequest);
    }
    Ok(Bytes::copy_from_slice(text))
}

impl Head {
    /// The request as rules see it.
    pub(super) fn view(&self) -> RequestView<'_, HeaderMap> {
        RequestView {
            // As the handshake of HTTP/1.1 has it: one rule for both.
            method: match self.protocol {
                Some(_) => "GET",
                None => self.method.as_str(),
            },
            path: self.uri.path(),
            query: self.uri.query(),
            authority: str::from_utf8(&self.authority).unwrap_or(""),
            headers: &self.headers,
        }
    }

    /// Gives it a request id if it has none.
    pub(super) fn identify(&mut self, rng: &mut Rng) {
        if !self.headers.contains_key("x-request-id") {
            let mut id = Vec::with_capacity(36);
            push_request_id(&mut id, rng);
            if let Ok(id) = HeaderValue::from_bytes(&id) {
                self.headers.insert("x-request-id", id);
            }
        }
    }

    /// Says that it came over TLS, whatever the client said.
    pub(super) fn secure(&mut self) {
        let https = HeaderValue::from_static("https");
        self.headers.insert("x-forwarded-proto", https);
    }

    /// Keeps the strings of the log line.
    pub(super) fn note(&self, out: &mut HeadBuf, spans: &mut Spans) {
        let mut push = |bytes: &[u8]| {
            let from = out.len();
            out.extend_from_slice(bytes);
            from..out.len()
        };
        let field = |name| {
            self.headers
                .get(name)
                .map_or(&b""[..], HeaderValue::as_bytes)
        };
        spans.method = push(self.method.as_str().as_bytes());
        spans.target = push(
            self.uri
                .path_and_query()
                .map_or("", |target| target.as_str())
                .as_bytes(),
        );
        spans.authority = push(&self.authority);
        spans.request_id = push(field("x-request-id"));
        spans.user_agent = push(field("user-agent"));
    }

    /// Whether it asks for a tunnel: what follows is no body.
    pub(super) const fn is_tunnel(&self) -> bool {
        self.protocol.is_some()
    }

    /// The protocol of the tunnel that it asks for.
    pub(super) fn protocol(&self) -> Option<&str> {
        self.protocol.as_ref().map(Protocol::as_str)
    }

    /// The authority that is sent on.
    pub(super) fn authority(&self) -> &[u8] {
        let said = self.uri.authority().map(|it| it.as_str().as_bytes());
        let host = self.headers.get(header::HOST).map(HeaderValue::as_bytes);
        said.or(host).unwrap_or(&self.authority)
    }

    /// The request that is sent, once for each attempt.
    pub(super) fn request(&self, over_tls: bool) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = if over_tls {
            https(&self.uri)
        } else {
            self.uri.clone()
        };
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        if let Some(protocol) = &self.protocol {
            request.extensions_mut().insert(protocol.clone());
        }
        request
    }
}

/// The same target by TLS: endpoints may refuse another scheme than they are spoken to in
/// (RFC 9113, section 8.3.1).
fn https(uri: &Uri) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTPS);
    // Without an authority there is no place for a scheme: it goes as it came.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}
