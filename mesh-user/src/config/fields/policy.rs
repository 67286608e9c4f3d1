//! Policies.

use std::time::Duration;

use super::{
    Absent, DAY, MILLI, NAME, Object, PORT_REF, Shape, Text, field, limits::RATE_LIMIT_ITEM,
    needed, resilience,
};

static STATUS: Shape = Shape::Int { min: 400, max: 599 };
static RETRY_ON: Shape = Shape::Choice(&[
    ("connect-failure", "the connection could not be made"),
    (
        "refused-stream",
        "HTTP/2 REFUSED_STREAM, or a GOAWAY below the stream",
    ),
    ("reset", "the connection broke before an answer"),
    ("gateway-error", "502, 503, 504"),
    ("server-error", "any 5xx, or no answer"),
    ("per-try-timeout", "the per-try time-out"),
    (
        "reset-before-request",
        "the connection broke before a byte of the request was sent",
    ),
    ("retriable-4xx", "409"),
    (
        "rate-limited",
        "a rate limit's answer (`x-envoy-ratelimited`, `x-mesh-reject: rate_limited`), which is \
         never retried otherwise",
    ),
    ("cancelled", "gRPC status 1 in the head of the answer"),
    (
        "deadline-exceeded",
        "gRPC status 4 in the head of the answer",
    ),
    ("internal", "gRPC status 13 in the head of the answer"),
    (
        "resource-exhausted",
        "gRPC status 8 in the head of the answer",
    ),
    ("unavailable", "gRPC status 14 in the head of the answer"),
]);

/// Zero turns a time-out off.
const OFF_OR_DAY: Shape = Shape::Text(Text::Duration(Duration::ZERO, DAY));
const SPAN: Shape = Shape::Text(Text::Duration(MILLI, DAY));
pub(super) const CAP: Shape = Shape::Int {
    min: 0,
    max: u32::MAX as i64,
};
/// A count after which an endpoint is sick: more than 10,000 is no detector.
const COUNT: Shape = Shape::Int {
    min: 0,
    max: 10_000,
};

/// An entry of `policies`.
pub(crate) static POLICY: Object = Object {
    name: "Policy",
    doc: "How requests of a service, or of one of its versions, are limited, balanced and repeated. \
          What a version's policy leaves out falls to the service's policy, then to the default.",
    fields: &[
        needed(
            "service",
            Shape::Text(Text::ServiceRef),
            "Its service: `name`, or `namespace/name`.",
        ),
        field(
            "version",
            NAME,
            Absent::Means("every version"),
            "Only this version.",
        ),
        field(
            "port",
            PORT_REF,
            Absent::Means("every port"),
            "Only this port, by name or number.",
        ),
        field(
            "breaker",
            Shape::Object(&BREAKER),
            Absent::Means("the caps' defaults, no ejection"),
            "Circuit breaking, decided before anything is forwarded: caps and ejection.",
        ),
        field(
            "rate-limit",
            Shape::OneOrMore {
                of: &RATE_LIMIT_ITEM,
                max: 16,
            },
            Absent::Means("no limit"),
            "Rate limits, decided before anything is forwarded; a request must pass all of them, \
             else 429. A list, or the one without a list.",
        ),
        field(
            "balance",
            super::balance::CHOICE,
            Absent::Means(
                "the service's policy, else `least-request`: it keeps away from slow endpoints",
            ),
            "How an endpoint is chosen inside a version: the name of an algorithm, or one with its \
             parameters.",
        ),
        field(
            "locality",
            Shape::Object(&super::balance::LOCALITY),
            Absent::Means("priorities alone decide"),
            "Which endpoints are asked first.",
        ),
        field(
            "health-checks",
            super::health::CHECKS,
            Absent::Means("nobody is asked"),
            "Active health checks, all of which an endpoint must pass. A list, or the one without a \
             list.",
        ),
        field(
            "timeout",
            Shape::Object(&TIMEOUT),
            Absent::Means("every default"),
            "Time-outs.",
        ),
        field(
            "retries",
            Shape::Object(&RETRIES),
            Absent::Means("no retries"),
            "Retries.",
        ),
        resilience::HEDGE_FIELD,
        resilience::CONNECTION_FIELD,
        resilience::ON_CHANGE_FIELD,
        super::tls::POLICY_TLS,
        field(
            "upgrades",
            Shape::list(&PROTOCOL, 16),
            Absent::Means("the service's policy, else every protocol but `h2c`"),
            "Protocols that a connection or stream may be changed to, by `Upgrade` or by extended \
             CONNECT (RFC 8441): `websocket`. Others are refused with 403; `[]`: all are.",
        ),
    ],
    groups: &[],
};

static PROTOCOL: Shape = Shape::Text(Text::HeaderName);

static BREAKER: Object = Object {
    name: "Breaker",
    doc: "Caps for each version, exact over the whole node. Above: 503, which never counts against \
          an endpoint.",
    fields: &[
        field(
            "max-connections",
            CAP,
            Absent::Default("1024", "as Envoy"),
            "Connections.",
        ),
        field(
            "max-pending",
            CAP,
            Absent::Default("1024", "as Envoy"),
            "Requests that wait for a connection.",
        ),
        field(
            "max-requests",
            CAP,
            Absent::Default("1024", "as Envoy"),
            "Requests in flight.",
        ),
        field(
            "max-retries",
            CAP,
            Absent::Default("3", "as Envoy"),
            "Retries in flight.",
        ),
        resilience::RETRY_BUDGET_FIELD,
        resilience::ADAPTIVE_FIELD,
        field(
            "ejection",
            Shape::Object(&EJECTION),
            Absent::Means("nothing is ejected"),
            "Passive ejection of sick endpoints.",
        ),
    ],
    groups: &[],
};

static EJECTION: Object = Object {
    name: "Ejection",
    doc: "Passive ejection of endpoints, with Envoy's clock. A count of 0 turns that detector off.",
    fields: &[
        field(
            "consecutive-5xx",
            COUNT,
            Absent::Default("5", "as Envoy"),
            "5xx answers in a row, connect failures and resets included.",
        ),
        field(
            "consecutive-gateway",
            COUNT,
            Absent::Default("0", "as Envoy: off"),
            "502, 503, 504 in a row.",
        ),
        field(
            "consecutive-local-origin",
            COUNT,
            Absent::Default("0", "off: they count as 5xx"),
            "Failures in a row that never reached an answer.",
        ),
        field(
            "interval",
            SPAN,
            Absent::Default("10s", "as Envoy"),
            "Time between sweeps, at which endpoints return.",
        ),
        field(
            "base",
            SPAN,
            Absent::Default("30s", "as Envoy"),
            "An ejection lasts this times the number of ejections so far.",
        ),
        field(
            "max",
            SPAN,
            Absent::Means("the larger of 5m and `base`, as Envoy"),
            "Longest ejection; not less than `base`.",
        ),
        field(
            "max-percent",
            Shape::Int { min: 0, max: 100 },
            Absent::Default("10", "as Envoy"),
            "Largest ejected share of the endpoints, in percent; of two or more endpoints one may \
             always be ejected.",
        ),
        field(
            "probe",
            Shape::Bool,
            Absent::Default("false", "as Envoy"),
            "Return with one probing request instead of at full share.",
        ),
        resilience::EJECTION_ENFORCING_5XX,
        resilience::EJECTION_ENFORCING_GATEWAY,
        resilience::EJECTION_ENFORCING_LOCAL_ORIGIN,
        resilience::EJECTION_MAX_JITTER,
        resilience::EJECTION_ALWAYS_ONE,
        resilience::EJECTION_SUCCESS_RATE,
        resilience::EJECTION_FAILURE_PERCENTAGE,
        resilience::EJECTION_LATENCY,
    ],
    groups: &[],
};

static TIMEOUT: Object = Object {
    name: "Timeout",
    doc: "Time-outs. `0s`: none.",
    fields: &[
        field(
            "request",
            OFF_OR_DAY,
            Absent::Means("the service's policy, else 15s, as Envoy"),
            "The whole request, retries included, from the end of the client's request: 504. It ends long \
             streams too: `0s` for services that stream.",
        ),
        field(
            "connect",
            SPAN,
            Absent::Means("the service's policy, else 5s, as Envoy"),
            "To connect to an endpoint.",
        ),
        field(
            "idle",
            OFF_OR_DAY,
            Absent::Means("the service's policy, else 1h, as Envoy"),
            "A connection without a byte in either direction.",
        ),
    ],
    groups: &[],
};

pub(super) static RETRIES: Object = Object {
    name: "Retries",
    doc: "Retries. Safe by default: what was provably not processed may be retried for every method, \
          anything else for idempotent methods only (RFC 9110 §9.2.2).",
    fields: &[
        field(
            "attempts",
            Shape::Int { min: 0, max: 10 },
            Absent::Default("1", "as Envoy"),
            "Retries at most; deliveries are one more.",
        ),
        field(
            "per-try",
            SPAN,
            Absent::Means("no time-out of a try"),
            "Time-out of each try until the response head. Shorter than `timeout.request`.",
        ),
        field(
            "on",
            Shape::list(&RETRY_ON, 14),
            Absent::Default(
                "[connect-failure, refused-stream, reset, per-try-timeout]",
                "no answer came",
            ),
            "What is retried.",
        ),
        field(
            "statuses",
            Shape::list(&STATUS, 64),
            Absent::Means("none"),
            "Answered statuses that are retried besides.",
        ),
        field(
            "non-idempotent",
            Shape::Bool,
            Absent::Default("false", "an order must not be placed twice"),
            "Retry methods that are not idempotent too.",
        ),
        field(
            "backoff",
            SPAN,
            Absent::Default("25ms", "as Envoy"),
            "Base of the pause: at random in [0, (2^N - 1) x base), at most 10 x base.",
        ),
        resilience::RETRIES_HEADERS,
        resilience::RETRIES_RESET_HEADERS,
        resilience::RETRIES_RESET_MAX,
        resilience::RETRIES_ATTEMPT_HEADER,
    ],
    groups: &[],
};
