//! Every refusal has one name: here, in the metric label, in the access log and in the docs.

use serde::Serialize;

/// Why a request or connection was refused. Closed: a new reason needs all of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reject {
    /// No rule matches.
    NoRoute,
    /// The chosen version has no endpoint.
    NoEndpoint,
    /// The chosen version has endpoints, none of them healthy.
    NoHealthyEndpoint,
    /// Every target of the rule has weight 0.
    NoWeight,
    /// The target that was chosen can't be resolved.
    InvalidBackend,
    /// An action of the rule can't be resolved.
    FilterUnresolved,
    /// `max-connections` of the version, and no room to wait (or TCP).
    OverflowConnections,
    /// `max-pending` of the version.
    OverflowPending,
    /// `max-requests` of the version.
    OverflowRequests,
    /// A rate limit.
    RateLimited,
    /// The store of a shared rate limit does not answer, and the limit says `failure: closed`.
    RateLimitService,
    /// The endpoint could not be connected.
    ConnectFailed,
    /// The endpoint did not connect within the connect time-out.
    ConnectTimeout,
    /// The handshake with the endpoint failed.
    UpstreamTls,
    /// The endpoint's certificate is not accepted: expired, of a CA that is not trusted, or for
    /// another name.
    UpstreamUntrusted,
    /// The request time-out, or the last per-try time-out.
    UpstreamTimeout,
    /// The endpoint closed before it answered.
    UpstreamClosed,
    /// The endpoint reset before it answered.
    UpstreamReset,
    /// The endpoint's answer is not valid HTTP.
    UpstreamMalformed,
    /// The request is not valid HTTP.
    BadRequest,
    /// The request head did not come within the header time-out.
    HeaderTimeout,
    /// The request body made no progress within the body time-out.
    BodyTimeout,
    /// The request head is too large, or has too many fields.
    HeadTooLarge,
    /// The request target is too long.
    TargetTooLong,
    /// A transfer coding other than chunked.
    UnknownCoding,
    /// An HTTP version that is not 1.0, 1.1 or 2.
    UnknownVersion,
    /// A request target or method that the proxy does not serve (CONNECT).
    ConnectRefused,
    /// The policy does not allow the protocol that the request would change to.
    UpgradeRefused,
    /// What should be TLS does not begin with a ClientHello, or with one that is malformed.
    NotTls,
    /// The ClientHello, or the whole handshake where TLS ends here, did not come in time.
    TlsTimeout,
    /// The handshake with the client failed.
    TlsHandshake,
    /// The original destination is not known: refused, never guessed.
    UnknownDestination,
    /// The connection goes to the proxy itself.
    Loop,
    /// The workload has too many connections.
    WorkloadConnections,
    /// The node-wide limit of upstream dials.
    DialPermits,
    /// The certificates, keys or CAs that a port or a policy names can't be used.
    NoCertificate,
    /// The agent is shutting down.
    Draining,
    /// The workload closed before an answer.
    DownstreamClosed,
    /// An inbound rule of the destination forbids it.
    InboundDenied,
    /// Its endpoint left the version, or the rule no longer sends there, and `on-change` ends it.
    RouteChanged,
}

impl Reject {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::NoRoute,
        Self::NoEndpoint,
        Self::NoHealthyEndpoint,
        Self::NoWeight,
        Self::InvalidBackend,
        Self::FilterUnresolved,
        Self::OverflowConnections,
        Self::OverflowPending,
        Self::OverflowRequests,
        Self::RateLimited,
        Self::RateLimitService,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::UpstreamTls,
        Self::UpstreamUntrusted,
        Self::UpstreamTimeout,
        Self::UpstreamClosed,
        Self::UpstreamReset,
        Self::UpstreamMalformed,
        Self::BadRequest,
        Self::HeaderTimeout,
        Self::BodyTimeout,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::UnknownCoding,
        Self::UnknownVersion,
        Self::ConnectRefused,
        Self::UpgradeRefused,
        Self::NotTls,
        Self::TlsTimeout,
        Self::TlsHandshake,
        Self::UnknownDestination,
        Self::Loop,
        Self::WorkloadConnections,
        Self::DialPermits,
        Self::NoCertificate,
        Self::Draining,
        Self::DownstreamClosed,
        Self::InboundDenied,
        Self::RouteChanged,
    ];

    /// Its name in metrics, logs, `x-mesh-reject` and the docs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoEndpoint => "no_endpoint",
            Self::NoHealthyEndpoint => "no_healthy_endpoint",
            Self::NoWeight => "no_weight",
            Self::InvalidBackend => "invalid_backend",
            Self::FilterUnresolved => "filter_unresolved",
            Self::OverflowConnections => "overflow_connections",
            Self::OverflowPending => "overflow_pending",
            Self::OverflowRequests => "overflow_requests",
            Self::RateLimited => "rate_limited",
            Self::RateLimitService => "rate_limit_service",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamClosed => "upstream_closed",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamMalformed => "upstream_malformed",
            Self::BadRequest => "bad_request",
            Self::HeaderTimeout => "header_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::HeadTooLarge => "head_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::UnknownCoding => "unknown_coding",
            Self::UnknownVersion => "unknown_version",
            Self::ConnectRefused => "connect_refused",
            Self::UpgradeRefused => "upgrade_refused",
            Self::UnknownDestination => "unknown_destination",
            Self::Loop => "loop",
            Self::WorkloadConnections => "workload_connections",
            Self::DialPermits => "dial_permits",
            Self::Draining => "draining",
            Self::DownstreamClosed => "downstream_closed",
            Self::InboundDenied => "inbound_denied",
            Self::NotTls => "not_tls",
            Self::TlsTimeout => "tls_timeout",
            Self::TlsHandshake => "tls_handshake",
            Self::NoCertificate => "no_certificate",
            Self::UpstreamTls => "upstream_tls",
            Self::UpstreamUntrusted => "upstream_untrusted",
            Self::RouteChanged => "route_changed",
        }
    }

    /// HTTP status of the answer (SEMANTICS §5.7, local reply table). 0: no answer is possible.
    pub const fn status(self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::NoWeight
            | Self::InvalidBackend
            | Self::FilterUnresolved
            | Self::RateLimitService => 500,
            Self::NoEndpoint
            | Self::NoHealthyEndpoint
            | Self::OverflowConnections
            | Self::OverflowPending
            | Self::OverflowRequests
            | Self::ConnectFailed
            | Self::UpstreamClosed
            | Self::UpstreamReset
            | Self::WorkloadConnections
            | Self::DialPermits
            | Self::NoCertificate
            | Self::UpstreamTls
            | Self::UpstreamUntrusted
            | Self::RouteChanged
            | Self::Draining => 503,
            Self::RateLimited => 429,
            Self::InboundDenied | Self::UpgradeRefused => 403,
            Self::ConnectTimeout | Self::UpstreamTimeout => 504,
            Self::UpstreamMalformed | Self::UnknownDestination => 502,
            Self::BadRequest | Self::NotTls | Self::TlsHandshake => 400,
            Self::HeaderTimeout | Self::BodyTimeout | Self::TlsTimeout => 408,
            Self::HeadTooLarge => 431,
            Self::TargetTooLong => 414,
            Self::UnknownCoding => 501,
            Self::UnknownVersion => 505,
            Self::ConnectRefused => 405,
            Self::Loop => 508,
            Self::DownstreamClosed => 0,
        }
    }

    /// gRPC status of the answer (numbers of the gRPC status code list).
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::NoRoute | Self::ConnectRefused => 12,
            Self::RateLimited => 8,
            Self::InboundDenied | Self::UpgradeRefused => 7,
            Self::ConnectTimeout | Self::UpstreamTimeout => 4,
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::TargetTooLong
            | Self::UnknownCoding
            | Self::UnknownVersion
            | Self::UpstreamMalformed
            | Self::Loop
            | Self::NoWeight
            | Self::InvalidBackend
            | Self::FilterUnresolved => 13,
            Self::HeaderTimeout
            | Self::BodyTimeout
            | Self::NotTls
            | Self::TlsTimeout
            | Self::TlsHandshake
            | Self::DownstreamClosed => 1,
            Self::NoEndpoint
            | Self::NoHealthyEndpoint
            | Self::OverflowConnections
            | Self::OverflowPending
            | Self::OverflowRequests
            | Self::ConnectFailed
            | Self::UpstreamClosed
            | Self::UpstreamReset
            | Self::UnknownDestination
            | Self::RateLimitService
            | Self::WorkloadConnections
            | Self::DialPermits
            | Self::NoCertificate
            | Self::UpstreamTls
            | Self::UpstreamUntrusted
            | Self::RouteChanged
            | Self::Draining => 14,
        }
    }

    /// Envoy's response flag in the access log.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::NoRoute | Self::NoWeight | Self::InvalidBackend | Self::FilterUnresolved => "NR",
            Self::NoEndpoint | Self::NoHealthyEndpoint => "UH",
            Self::OverflowConnections | Self::OverflowPending | Self::OverflowRequests => "UO",
            Self::RateLimited => "RL",
            Self::RateLimitService => "RLSE",
            Self::InboundDenied => "UAEX",
            Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::UpstreamTls
            | Self::UpstreamUntrusted => "UF",
            Self::UpstreamTimeout => "UT",
            Self::UpstreamClosed | Self::RouteChanged => "UC",
            Self::UpstreamReset => "UR",
            Self::UpstreamMalformed => "UPE",
            Self::BadRequest
            | Self::HeadTooLarge
            | Self::TargetTooLong
            | Self::UnknownCoding
            | Self::UnknownVersion
            | Self::ConnectRefused
            | Self::UpgradeRefused
            | Self::NotTls
            | Self::TlsHandshake => "DPE",
            Self::HeaderTimeout | Self::BodyTimeout | Self::TlsTimeout => "SI",
            Self::UnknownDestination => "NC",
            Self::Loop
            | Self::WorkloadConnections
            | Self::DialPermits
            | Self::NoCertificate
            | Self::Draining => "LR",
            Self::DownstreamClosed => "DC",
        }
    }

    /// Whether a local cap refused it: such an answer carries `x-mesh-overloaded: true`, and never
    /// counts against an endpoint.
    pub const fn is_overload(self) -> bool {
        matches!(
            self,
            Self::OverflowConnections
                | Self::OverflowPending
                | Self::OverflowRequests
                | Self::WorkloadConnections
                | Self::DialPermits
        )
    }

    /// One sentence for the answer's body and the docs.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::NoRoute => "no rule of the service matches the request",
            Self::NoEndpoint => "the chosen version has no endpoint",
            Self::NoHealthyEndpoint => "the chosen version has no healthy endpoint",
            Self::NoWeight => "every target of the rule has weight 0",
            Self::InvalidBackend => "the target of the rule does not exist",
            Self::FilterUnresolved => "an action of the rule can't be carried out",
            Self::OverflowConnections => "overflow: max-connections of the version is reached",
            Self::OverflowPending => "overflow: max-pending of the version is reached",
            Self::OverflowRequests => "overflow: max-requests of the version is reached",
            Self::RateLimited => "a rate limit is exhausted",
            Self::RateLimitService => "the rate limit service does not answer",
            Self::ConnectFailed => "the endpoint refused the connection",
            Self::ConnectTimeout => "the endpoint did not connect in time",
            Self::UpstreamTimeout => "the endpoint did not answer in time",
            Self::UpstreamClosed => "the endpoint closed the connection before it answered",
            Self::UpstreamReset => "the endpoint reset the connection before it answered",
            Self::UpstreamMalformed => "the endpoint's answer is not valid HTTP",
            Self::BadRequest => "the request is not valid HTTP",
            Self::HeaderTimeout => "the request head did not arrive in time",
            Self::BodyTimeout => "the request body made no progress",
            Self::HeadTooLarge => "the request head is too large",
            Self::TargetTooLong => "the request target is too long",
            Self::UnknownCoding => "the transfer coding is not known",
            Self::UnknownVersion => "the HTTP version is not supported",
            Self::ConnectRefused => "CONNECT is not served here",
            Self::UpgradeRefused => "the policy does not allow this protocol",
            Self::UnknownDestination => "the original destination is not known",
            Self::Loop => "the request would come back to the proxy",
            Self::WorkloadConnections => "the workload has too many connections",
            Self::DialPermits => "the node has too many upstream connections",
            Self::Draining => "the agent is shutting down",
            Self::DownstreamClosed => "the client closed before an answer",
            Self::InboundDenied => "an inbound rule of the workload does not let the client in",
            Self::NotTls => "the connection does not begin with a TLS ClientHello",
            Self::TlsTimeout => "the TLS handshake did not arrive in time",
            Self::TlsHandshake => "the TLS handshake with the client failed",
            Self::NoCertificate => "the certificates of the port or policy can't be used",
            Self::UpstreamTls => "the TLS handshake with the endpoint failed",
            Self::UpstreamUntrusted => "the endpoint's certificate is not accepted",
            Self::RouteChanged => "the configuration no longer sends to the endpoint",
        }
    }
}

/// `docs/REJECTS.md`: every name with everything that follows from it.
pub fn reference_markdown() -> String {
    use std::fmt::Write as _;
    let mut text = String::from(
        "# Refusals\n\nGenerated from the code; a test compares, `MESH_BLESS=1 cargo test` rewrites.\n\n\
         ## By the proxy\n\nThe name stands in the answer's `x-mesh-reject`, in the access log, in \
         `mesh_rejects_total{reason}` and in `mesh explain`. Flags are Envoy's. Status 0: no answer \
         is possible. A gRPC request gets HTTP 200 with the gRPC status. Overload answers carry \
         `x-mesh-overloaded: true` and never count against an endpoint.\n\n\
         | name | status | gRPC | flag | overload | why |\n|---|---|---|---|---|---|\n",
    );
    for reject in Reject::ALL {
        let overload = if reject.is_overload() { "yes" } else { "" };
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {overload} | {} |",
            reject.label(),
            reject.status(),
            reject.grpc_status(),
            reject.flag(),
            reject.explain()
        );
    }
    text.push_str(
        "\n## By the kernel\n\nThe reason stands in `mesh bpf stats list` and in \
         `mesh_bpf_redirects_total{reason}`. A refused connect fails at once with ECONNREFUSED.\n\n\
         | reason | refuses |\n|---|---|\n",
    );
    for reason in mesh_common::reason::Reason::ALL {
        let refuses = if reason.is_refusal() { "yes" } else { "" };
        let _ = writeln!(text, "| `{}` | {refuses} |", reason.label());
    }
    text
}

#[cfg(test)]
mod tests;
