//! What policies and rules say of budgets, hedges, adaptive limits, outliers and long connections.

use std::time::Duration;

use super::{Absent, DAY, Field, MILLI, Object, Shape, Text, field, rule::VALUE_MATCHER};

/// Zero turns it off.
const OFF_OR_DAY: Shape = Shape::Text(Text::Duration(Duration::ZERO, DAY));
const SPAN: Shape = Shape::Text(Text::Duration(MILLI, DAY));
const PERCENT: Shape = Shape::Int { min: 0, max: 100 };
/// Hosts or requests.
const COUNT: Shape = Shape::Int {
    min: 1,
    max: 1_000_000,
};
static HEADER_NAME: Shape = Shape::Text(Text::HeaderName);

const fn enforcing(doc: &'static str) -> Field {
    field(
        "enforcing",
        PERCENT,
        Absent::Default("100", "who writes it down wants it"),
        doc,
    )
}

const ENFORCING: Field = enforcing("How many of 100 endpoints that are found are ejected.");

/// `breaker.retry-budget`.
pub(super) const RETRY_BUDGET_FIELD: Field = field(
    "retry-budget",
    Shape::Object(&RETRY_BUDGET),
    Absent::Means("`max-retries` counts"),
    "Which share of the requests may be retries, instead of `max-retries`.",
);

/// `breaker.adaptive`.
pub(super) const ADAPTIVE_FIELD: Field = field(
    "adaptive",
    Shape::Object(&ADAPTIVE),
    Absent::Means("off"),
    "A cap of requests in flight that follows the latency, beside `max-requests`.",
);

/// `hedge`.
pub(super) const HEDGE_FIELD: Field = field(
    "hedge",
    Shape::Object(&HEDGE),
    Absent::Means("the service's policy, else off"),
    "Ask a second endpoint while the first has not answered; the first good answer counts.",
);

/// `connection`.
pub(super) const CONNECTION_FIELD: Field = field(
    "connection",
    Shape::Object(&CONNECTION),
    Absent::Means("the service's policy, else no limit"),
    "How long connections to endpoints are used, for HTTP.",
);

/// `on-change`.
pub(super) const ON_CHANGE_FIELD: Field = field(
    "on-change",
    Shape::Object(&ON_CHANGE),
    Absent::Means("the service's policy, else `keep`"),
    "What becomes of long connections and streams when their endpoint leaves the version, or when \
     the rule no longer sends there.",
);

/// `downstream-age-max`.
pub(super) const LIMITS_DOWNSTREAM_AGE_MAX: Field = field(
    "downstream-age-max",
    OFF_OR_DAY,
    Absent::Default("0s", "as Envoy: no limit"),
    "A client's HTTP connection that is older is closed between requests (`Connection: close`, \
     GOAWAY). `0s`: never.",
);

/// `downstream-age-jitter`.
pub(super) const LIMITS_DOWNSTREAM_AGE_JITTER: Field = field(
    "downstream-age-jitter",
    PERCENT,
    Absent::Default("10", "connections that began together don't end together"),
    "By how many percent of `downstream-age-max`, at random, it may become older.",
);

/// `limits` of the agent: how an overflow is told.
pub(super) const OVERLOAD_HEADER_FIELD: Field = field(
    "overload-header",
    Shape::Text(Text::HeaderName),
    Absent::Means("`x-mesh-overloaded` alone"),
    "One more header field of refusals by a cap, `true`: `x-envoy-overloaded` for clients that \
     know Envoy.",
);

/// `timeout` of a rule.
pub(super) const RULE_TIMEOUT_FIELD: Field = field(
    "timeout",
    Shape::Object(&RULE_TIMEOUT),
    Absent::Means("the version's policy"),
    "Time-outs of what the rule matches, instead of the version's.",
);

/// `enforcing-5xx`.
pub(super) const EJECTION_ENFORCING_5XX: Field = field(
    "enforcing-5xx",
    PERCENT,
    Absent::Default("100", "as Envoy"),
    "How many of 100 endpoints that reach `consecutive-5xx` are ejected.",
);

/// `enforcing-gateway`.
pub(super) const EJECTION_ENFORCING_GATEWAY: Field = field(
    "enforcing-gateway",
    PERCENT,
    Absent::Default("100", "who sets the count wants it"),
    "The same for `consecutive-gateway`.",
);

/// `enforcing-local-origin`.
pub(super) const EJECTION_ENFORCING_LOCAL_ORIGIN: Field = field(
    "enforcing-local-origin",
    PERCENT,
    Absent::Default("100", "as Envoy"),
    "The same for `consecutive-local-origin`.",
);

/// `max-jitter`.
pub(super) const EJECTION_MAX_JITTER: Field = field(
    "max-jitter",
    OFF_OR_DAY,
    Absent::Default("0s", "as Envoy"),
    "An ejection lasts longer by a random time of at most this.",
);

/// `always-one`.
pub(super) const EJECTION_ALWAYS_ONE: Field = field(
    "always-one",
    Shape::Bool,
    Absent::Default("false", "as Envoy"),
    "One endpoint may always be ejected, whatever `max-percent` says, even a lone one.",
);

/// `success-rate`.
pub(super) const EJECTION_SUCCESS_RATE: Field = field(
    "success-rate",
    Shape::Object(&SUCCESS_RATE),
    Absent::Means("off"),
    "Ejects at a sweep whose share of good answers is far below the others'.",
);

/// `failure-percentage`.
pub(super) const EJECTION_FAILURE_PERCENTAGE: Field = field(
    "failure-percentage",
    Shape::Object(&FAILURE_PERCENTAGE),
    Absent::Means("off"),
    "Ejects at a sweep whose share of failures is too large.",
);

/// `latency`.
pub(super) const EJECTION_LATENCY: Field = field(
    "latency",
    Shape::Object(&LATENCY),
    Absent::Means("off"),
    "Ejects at a sweep who is far slower than the others.",
);

/// `headers`.
pub(super) const RETRIES_HEADERS: Field = field(
    "headers",
    Shape::Map {
        key: Text::HeaderName,
        of: &VALUE_MATCHER,
        max: 16,
    },
    Absent::Means("none"),
    "Answers with one of these header fields are retried besides; text alone means `exact`.",
);

/// `reset-headers`.
pub(super) const RETRIES_RESET_HEADERS: Field = field(
    "reset-headers",
    Shape::list(&HEADER_NAME, 8),
    Absent::Means("none: the back-off alone"),
    "Header fields of the answer that say after how many seconds to try again, such as \
     `retry-after`; the first that does counts. The pause is between that and one and a half \
     times that.",
);

/// `reset-max`.
pub(super) const RETRIES_RESET_MAX: Field = field(
    "reset-max",
    SPAN,
    Absent::Default("5m", "as Envoy"),
    "A longer pause than this in `reset-headers` counts for nothing.",
);

/// `attempt-header`.
pub(super) const RETRIES_ATTEMPT_HEADER: Field = field(
    "attempt-header",
    Shape::Text(Text::HeaderName),
    Absent::Means("none"),
    "The request header in which an endpoint reads the number of the attempt, from 1, such as \
     `x-envoy-attempt-count`. What a client says in it is dropped.",
);

static RETRY_BUDGET: Object = Object {
    name: "RetryBudget",
    doc: "Retries for each 100 requests, exact over the whole node.",
    fields: &[
        field(
            "percent",
            PERCENT,
            Absent::Default("20", "as Envoy and Gateway API"),
            "Retries for each 100 requests that are none.",
        ),
        field(
            "floor",
            Shape::Int {
                min: 0,
                max: 1_000_000,
            },
            Absent::Means("3, as Envoy; with `interval` 10, as Gateway API"),
            "Retries that are always allowed: in flight; with `interval` in each second.",
        ),
        field(
            "interval",
            Shape::Text(Text::Duration(
                Duration::from_secs(1),
                Duration::from_secs(3_600),
            )),
            Absent::Means("requests and retries in flight are compared, as Envoy does"),
            "Requests and retries of this time are compared, as in Gateway API.",
        ),
    ],
    groups: &[],
};

static ADAPTIVE: Object = Object {
    name: "Adaptive",
    doc: "Limit x (smallest latency / latency now) + sqrt(limit), after each window.",
    fields: &[
        field(
            "min",
            COUNT,
            Absent::Default("3", "as Envoy"),
            "Smallest limit, with which it begins.",
        ),
        field(
            "max",
            COUNT,
            Absent::Default("1000", "as Envoy"),
            "Largest limit; not less than `min`.",
        ),
        field(
            "window",
            Shape::Text(Text::Duration(
                Duration::from_millis(10),
                Duration::from_secs(60),
            )),
            Absent::Default("100ms", "as Envoy"),
            "The limit is reckoned anew after each such time.",
        ),
        field(
            "tolerance",
            PERCENT,
            Absent::Default("25", "as Envoy"),
            "How far above the smallest latency, in percent, counts as no queue.",
        ),
        field(
            "remember",
            Shape::Text(Text::Duration(Duration::from_secs(1), DAY)),
            Absent::Default("60s", "as Envoy"),
            "The smallest latency is measured anew after each such time, at half of the limit.",
        ),
    ],
    groups: &[],
};

static HEDGE: Object = Object {
    name: "Hedge",
    doc: "More endpoints for a request that takes long. Only for requests that are kept whole, and \
          idempotent methods; counted as retries.",
    fields: &[
        field(
            "after",
            SPAN,
            Absent::Means("the per-try time-out, which then ends no try, as Envoy"),
            "How long an endpoint may take until the next one is asked.",
        ),
        field(
            "max",
            Shape::Int { min: 1, max: 5 },
            Absent::Default("1", "one more"),
            "How many more endpoints are asked at most.",
        ),
        field(
            "non-idempotent",
            Shape::Bool,
            Absent::Default("false", "an order must not be placed twice"),
            "Hedge methods that are not idempotent too.",
        ),
    ],
    groups: &[],
};

static CONNECTION: Object = Object {
    name: "Connection",
    doc: "How long connections to endpoints are used, for HTTP.",
    fields: &[
        field(
            "max-requests",
            Shape::Int {
                min: 0,
                max: 1_000_000_000,
            },
            Absent::Default("0", "as Envoy: no limit"),
            "Requests of a connection. 1: no keep-alive. 0: no limit.",
        ),
        field(
            "max-age",
            OFF_OR_DAY,
            Absent::Default("0s", "as Envoy: no limit"),
            "A connection that is older takes no more requests. `0s`: no limit.",
        ),
        field(
            "age-jitter",
            PERCENT,
            Absent::Default("10", "connections that began together don't end together"),
            "By how many percent of `max-age`, at random, a connection may become older.",
        ),
    ],
    groups: &[],
};

static ON_CHANGE: Object = Object {
    name: "OnChange",
    doc: "What becomes of opaque connections, upgraded ones and requests under way.",
    fields: &[
        field(
            "action",
            Shape::Choice(&[
                ("keep", "they go on"),
                ("drain", "they are closed, spread over the deadline"),
                ("close", "they are closed at once"),
            ]),
            Absent::Default("keep", "a change of a rule breaks nobody's connection"),
            "What is done.",
        ),
        field(
            "deadline",
            SPAN,
            Absent::Default("30s", "the time that Kubernetes gives a pod to end"),
            "For `drain`: until then all are closed.",
        ),
    ],
    groups: &[],
};

static RULE_TIMEOUT: Object = Object {
    name: "RuleTimeout",
    doc: "Time-outs of a rule. `0s`: none.",
    fields: &[
        field(
            "request",
            OFF_OR_DAY,
            Absent::Means("the version's"),
            "The whole request, retries included, from its end: 504 (Gateway API's `request`).",
        ),
        field(
            "backend-request",
            OFF_OR_DAY,
            Absent::Means("none"),
            "One attempt, until its answer's end (Gateway API's `backendRequest`). Not longer than \
             `request`.",
        ),
    ],
    groups: &[],
};

static SUCCESS_RATE: Object = Object {
    name: "SuccessRate",
    doc: "Ejects below mean - factor x standard deviation of the endpoints' shares.",
    fields: &[
        field(
            "hosts",
            COUNT,
            Absent::Default("5", "as Envoy"),
            "Fewest endpoints with enough requests.",
        ),
        field(
            "requests",
            COUNT,
            Absent::Default("100", "as Envoy"),
            "Fewest requests of an endpoint in an interval.",
        ),
        field(
            "factor",
            Shape::Int {
                min: 0,
                max: 100_000,
            },
            Absent::Default("1900", "as Envoy: 1.9"),
            "Standard deviations, in thousandths.",
        ),
        ENFORCING,
    ],
    groups: &[],
};

static FAILURE_PERCENTAGE: Object = Object {
    name: "FailurePercentage",
    doc: "Ejects at a share of failures, whatever the others do.",
    fields: &[
        field(
            "threshold",
            Shape::Int { min: 1, max: 100 },
            Absent::Default("85", "as Envoy"),
            "Failures in percent, at least.",
        ),
        field(
            "hosts",
            COUNT,
            Absent::Default("5", "as Envoy"),
            "Fewest endpoints with enough requests.",
        ),
        field(
            "requests",
            COUNT,
            Absent::Default("50", "as Envoy"),
            "Fewest requests of an endpoint in an interval.",
        ),
        ENFORCING,
    ],
    groups: &[],
};

static LATENCY: Object = Object {
    name: "Latency",
    doc: "Ejects whose quantile is above the median of the endpoints' quantiles by factor and \
          difference.",
    fields: &[
        field(
            "quantile",
            Shape::Int { min: 1, max: 99 },
            Absent::Default("50", "the median: a few slow requests are no slow endpoint"),
            "Which quantile of an endpoint's latencies in an interval.",
        ),
        field(
            "factor",
            Shape::Int {
                min: 1_000,
                max: 1_000_000,
            },
            Absent::Default("3000", "3 times"),
            "How many times the median, in thousandths.",
        ),
        field(
            "difference",
            Shape::Text(Text::Duration(Duration::ZERO, DAY)),
            Absent::Default("50ms", "below that nobody notices"),
            "And how much above it.",
        ),
        field(
            "hosts",
            COUNT,
            Absent::Default("3", "a median of two says nothing"),
            "Fewest endpoints with enough requests.",
        ),
        field(
            "requests",
            COUNT,
            Absent::Default("20", "a median of fewer is chance"),
            "Fewest requests of an endpoint in an interval.",
        ),
        ENFORCING,
    ],
    groups: &[],
};
