//! What a rule does with what it matches, besides sending it somewhere.

use std::time::Duration;

use serde::Serialize;

use super::{Attribute, RateLimitPolicy, RetryPolicy, Target};

/// What a rule says besides its conditions and targets. Boxed there: most rules say nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RuleExtra {
    /// What is done with the request and its answer.
    pub actions: Actions,
    /// Time-outs; what is left out falls to the version's policy.
    pub timeouts: RuleTimeouts,
    /// Retries, instead of the version's.
    pub retries: Option<RetryPolicy>,
    /// Rate limits of the rule; a request must pass them and those of its version.
    pub rate_limits: Vec<RateLimitPolicy>,
    /// Which requests go to the same target while the weights stay; none: in turn.
    pub sticky: Option<Sticky>,
    /// A session stays at its endpoint; none: no sessions.
    pub persistence: Option<Persistence>,
    /// The object of another API that it was made from.
    pub origin: Option<RouteOrigin>,
}

impl RuleExtra {
    /// Says nothing.
    pub const NOTHING: Self = Self {
        actions: Actions::NOTHING,
        timeouts: RuleTimeouts {
            request: None,
            backend_request: None,
        },
        retries: None,
        rate_limits: Vec::new(),
        sticky: None,
        persistence: None,
        origin: None,
    };
}

/// What is done with a request and its answer. In this order: fault, CORS, terminal answer, header
/// edits, rewrite, mirrors.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Actions {
    /// Edits of the request's header fields.
    pub request_headers: HeaderEdits,
    /// Edits of the answer's header fields.
    pub response_headers: HeaderEdits,
    /// Changes of the request's authority and path.
    pub rewrite: Option<Rewrite>,
    /// An answer instead of forwarding.
    pub terminal: Option<Terminal>,
    /// Cross-origin requests (WHATWG Fetch).
    pub cors: Option<Cors>,
    /// Faults that are put in on purpose.
    pub fault: Option<Fault>,
    /// Copies of the request.
    pub mirrors: Vec<Mirror>,
}

impl Actions {
    /// Does nothing.
    pub const NOTHING: Self = Self {
        request_headers: HeaderEdits::NOTHING,
        response_headers: HeaderEdits::NOTHING,
        rewrite: None,
        terminal: None,
        cors: None,
        fault: None,
        mirrors: Vec::new(),
    };
}

/// Edits of header fields, in this order: set, add, remove (names without case).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeaderEdits {
    /// Replace every field of the name, or make one. Names are lower-case.
    pub set: Vec<(String, String)>,
    /// Append to what is there.
    pub add: Vec<(String, String)>,
    /// Take away.
    pub remove: Vec<String>,
}

impl HeaderEdits {
    /// Changes nothing.
    pub const NOTHING: Self = Self {
        set: Vec::new(),
        add: Vec::new(),
        remove: Vec::new(),
    };

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// Changes of a request's authority and path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// The new `Host` or `:authority`.
    pub hostname: Option<String>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

/// A new path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathRewrite {
    /// The whole path; the query stays.
    Full(String),
    /// The prefix that the rule's condition matched (SEMANTICS §5.1 has the table).
    Prefix(String),
}

/// An answer instead of forwarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Terminal {
    /// Somewhere else.
    Redirect(Redirect),
    /// This one.
    Respond(DirectResponse),
    /// 500: a filter of the rule can't be resolved, for this reason.
    Broken(String),
}

/// A redirect. What is left out stays as it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host of the location.
    pub hostname: Option<String>,
    /// Port of the location; none: see SEMANTICS §5.1.
    pub port: Option<u16>,
    /// Path of the location.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// Header fields, names lower-case.
    pub headers: Vec<(String, String)>,
    /// Body, at most 64 KiB.
    pub body: String,
}

/// Which cross-origin requests are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cors {
    /// Origins: exact, `*`, or with `*.` before the host.
    pub allow_origins: Vec<String>,
    /// Methods, or `*`.
    pub allow_methods: Vec<String>,
    /// Request header names, or `*`.
    pub allow_headers: Vec<String>,
    /// Answer header names that scripts may read, or `*`.
    pub expose_headers: Vec<String>,
    /// Whether credentials may be sent.
    pub allow_credentials: bool,
    /// How long a preflight's answer may be kept, in seconds. Default 5 (Fetch).
    pub max_age_s: u32,
}

/// `numerator` of `denominator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: u32,
    /// At least 1.
    pub denominator: u32,
}

impl Fraction {
    /// All of them.
    pub const ALL: Self = Self {
        numerator: 1,
        denominator: 1,
    };
}

/// Faults that are put in on purpose, decided for each on its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// A pause before anything else happens.
    pub delay: Option<(Fraction, Duration)>,
    /// An answer instead of forwarding, after the pause if there was one.
    pub abort: Option<(Fraction, AbortStatus)>,
}

/// How a fault answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AbortStatus {
    /// HTTP status, 200 to 599. A gRPC request gets what it means there.
    Http(u16),
    /// gRPC status, 1 to 16. Another request gets what it means in HTTP.
    Grpc(u8),
}

/// A copy of the request for another destination, of which the answer is dropped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mirror {
    /// Where to; its weight means nothing.
    pub target: Target,
    /// Which share of the requests.
    pub fraction: Fraction,
    /// Whether the answers' statuses and body hashes are compared and counted.
    pub compare: bool,
}

/// Time-outs of a rule. `None`: the version's; zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RuleTimeouts {
    /// Whole request, retries included, from the end of the downstream request.
    pub request: Option<Duration>,
    /// One attempt, until its answer's end.
    pub backend_request: Option<Duration>,
}

/// The same key, the same target, by weighted rendezvous of hash(key, salt): a raised share takes
/// keys from the others and gives none back, with any number of targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sticky {
    /// What makes the key. A request without any of these is sent in turn.
    pub key: Vec<Attribute>,
    /// Changes who is among the first; the same on every node.
    pub salt: String,
}

/// A session stays at the endpoint at which it began, across weights, even 0 (GEP-1619).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Persistence {
    /// Name of the cookie or header.
    pub name: String,
    /// How the session is carried.
    pub carrier: SessionCarrier,
    /// How long a session lasts at most; none: as long as the client keeps it.
    pub absolute: Option<Duration>,
    /// How long it lasts without a request; none: no limit.
    pub idle: Option<Duration>,
    /// Keeps what the client carries secret: without it, who knows the rule can try addresses. The
    /// same on every node.
    pub salt: String,
}

/// What carries a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionCarrier {
    /// A cookie for the browser's session.
    SessionCookie,
    /// A cookie with `Max-Age`.
    PermanentCookie,
    /// A header.
    Header,
}

/// The object of another API that a rule was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteOrigin {
    /// `HTTPRoute`, `GRPCRoute`, `TLSRoute`, `TCPRoute`.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Which of its rules, from 0.
    pub rule: usize,
}
