//! Cross-origin requests (WHATWG Fetch, «HTTP-CORS protocol»; Gateway API HTTPCORSFilter).

use http::{HeaderName, HeaderValue, header};

use super::{Answer, edits::Edits};
use crate::{
    model::action::Cors,
    policy::{HeaderView, RequestView, action::Kind},
};

/// Compiled [`Cors`].
#[derive(Debug)]
pub(in crate::policy) struct CorsPlan {
    origins: Vec<Origin>,
    any_origin: bool,
    credentials: bool,
    methods: Names,
    headers: Names,
    exposed: Names,
    max_age: HeaderValue,
}

/// A list of names for an answer.
#[derive(Debug)]
enum Names {
    None,
    Any,
    These(HeaderValue),
}

impl Names {
    fn new(from: &[String]) -> Self {
        if from.iter().any(|name| name == "*") {
            return Self::Any;
        }
        // The configuration takes tokens only.
        match HeaderValue::from_str(&from.join(", ")) {
            Ok(value) if !from.is_empty() => Self::These(value),
            _ => Self::None,
        }
    }
}

/// An origin that is allowed: scheme, host, port.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    scheme: Box<str>,
    /// After a `*` when `wildcard`.
    host: Box<str>,
    wildcard: bool,
    port: u16,
}

/// `scheme://host[:port]`, the port filled in (RFC 6454 §4). Nothing else is an origin.
fn split(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, authority) = origin.split_once("://")?;
    let colon = authority
        .rfind(':')
        .filter(|colon| !authority[*colon..].contains(']'));
    let (host, port) = match colon {
        Some(colon) => (&authority[..colon], Some(&authority[colon + 1..])),
        None => (authority, None),
    };
    let default = if scheme.eq_ignore_ascii_case("https") {
        443
    } else {
        80
    };
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => default,
    };
    (!host.is_empty() && !host.contains('/')).then_some((scheme, host, port))
}

impl Origin {
    fn new(from: &str) -> Option<Self> {
        let (scheme, host, port) = split(from)?;
        let wildcard = host.starts_with('*');
        Some(Self {
            scheme: scheme.into(),
            host: host.strip_prefix('*').unwrap_or(host).into(),
            wildcard,
            port,
        })
    }

    fn is(&self, (scheme, host, port): (&str, &str, u16)) -> bool {
        let host_is = || {
            let (mine, theirs) = (self.host.as_bytes(), host.as_bytes());
            if self.wildcard {
                // One label or more, none of them empty: `*.a` is not `.a`.
                theirs.len() > mine.len()
                    && theirs[theirs.len() - mine.len()..].eq_ignore_ascii_case(mine)
            } else {
                theirs.eq_ignore_ascii_case(mine)
            }
        };
        self.port == port && self.scheme.eq_ignore_ascii_case(scheme) && host_is()
    }
}

/// Whether it can stand among the allowed origins: `*`, or `http(s)://host[:port]` where the host
/// may begin with `*`.
pub fn is_origin(text: &str) -> bool {
    let host_ok = |host: &str| {
        let host = host.strip_prefix('*').unwrap_or(host);
        host.bytes().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':')
        })
    };
    text == "*"
        || split(text)
            .is_some_and(|(scheme, host, _)| matches!(scheme, "http" | "https") && host_ok(host))
}

impl CorsPlan {
    pub(in crate::policy) fn new(from: &Cors) -> Self {
        let origins = from.allow_origins.iter();
        Self {
            any_origin: from.allow_origins.iter().any(|origin| origin == "*"),
            origins: origins.filter_map(|origin| Origin::new(origin)).collect(),
            credentials: from.allow_credentials,
            methods: Names::new(&from.allow_methods),
            headers: Names::new(&from.allow_headers),
            exposed: Names::new(&from.expose_headers),
            max_age: HeaderValue::from(from.max_age_s),
        }
    }

    /// What is said to this origin in `Access-Control-Allow-Origin`; none when it is not allowed.
    fn allowed(&self, origin: &[u8]) -> Option<HeaderValue> {
        if self.any_origin && !self.credentials {
            return Some(HeaderValue::from_static("*"));
        }
        let listed = || {
            str::from_utf8(origin)
                .ok()
                .and_then(split)
                .is_some_and(|origin| self.origins.iter().any(|allowed| allowed.is(origin)))
        };
        if self.any_origin || listed() {
            return HeaderValue::from_bytes(origin).ok();
        }
        None
    }

    /// Whether answers differ from origin to origin.
    const fn varies(&self) -> bool {
        !self.any_origin || self.credentials
    }

    /// The answer to a preflight: OPTIONS with `Origin` and `Access-Control-Request-Method`. An
    /// origin that is not allowed gets 204 too, without the fields that it hopes for.
    pub(super) fn preflight<H: HeaderView>(&self, request: &RequestView<'_, H>) -> Option<Answer> {
        if request.method != "OPTIONS" {
            return None;
        }
        let mut origins = request.headers.values("origin");
        let origin = origins.next()?;
        let method = request
            .headers
            .values("access-control-request-method")
            .next()?;
        let mut answer = Answer::new(204, Kind::Preflight);
        if self.varies() {
            answer.put(header::VARY, HeaderValue::from_static("origin"));
        }
        // Two origins are none.
        let Some(allowed) = self.allowed(origin).filter(|_| origins.next().is_none()) else {
            return Some(answer);
        };
        answer.put(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        self.credentials(|name, value| answer.put(name, value));
        let wanted = request
            .headers
            .values("access-control-request-headers")
            .next();
        let named = |names: &Names, wanted: Option<&[u8]>| match names {
            Names::None => None,
            Names::These(names) => Some(names.clone()),
            // With credentials `*` is a name like any other (Fetch): what is asked is said back.
            Names::Any if self.credentials => HeaderValue::from_bytes(wanted?).ok(),
            Names::Any => Some(HeaderValue::from_static("*")),
        };
        for (name, value) in [
            (
                header::ACCESS_CONTROL_ALLOW_METHODS,
                named(&self.methods, Some(method)),
            ),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                named(&self.headers, wanted),
            ),
        ] {
            if let Some(value) = value {
                answer.put(name, value);
            }
        }
        answer.put(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        Some(answer)
    }

    /// What becomes of the answer to any other request.
    pub(super) fn edits<H: HeaderView>(&self, request: &RequestView<'_, H>) -> Option<Edits> {
        let mut edits = Edits::default();
        if self.varies() {
            // Also to a request without origin: a cache may keep the answer for one that has.
            edits.add(header::VARY, HeaderValue::from_static("origin"));
        }
        let mut origins = request.headers.values("origin");
        let origin = origins.next().filter(|_| origins.next().is_none());
        // The word of the rule counts, not that of the endpoint beside it.
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            edits.remove(name);
        }
        if let Some(allowed) = origin.and_then(|origin| self.allowed(origin)) {
            edits.set(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            self.credentials(|name, value| edits.set(name, value));
            let exposed = match &self.exposed {
                Names::These(names) => Some(names.clone()),
                Names::Any if !self.credentials => Some(HeaderValue::from_static("*")),
                Names::Any | Names::None => None,
            };
            if let Some(exposed) = exposed {
                edits.set(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
            }
        }
        Some(edits)
    }

    fn credentials(&self, mut put: impl FnMut(HeaderName, HeaderValue)) {
        if self.credentials {
            put(
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
    }
}

#[cfg(test)]
mod tests;
