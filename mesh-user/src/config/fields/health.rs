//! Active health checks.

use std::time::Duration;

use super::{Absent, DAY, Group, MILLI, Object, Shape, Text, field, needed};

static CHECK_ITEM: Shape = Shape::Object(&CHECK);
static STATUS_CLASS: Shape = Shape::Choice(&[
    ("1xx", "100 to 199"),
    ("2xx", "200 to 299"),
    ("3xx", "300 to 399"),
    ("4xx", "400 to 499"),
    ("5xx", "500 to 599"),
]);
static STATUS_CODE: Shape = Shape::Int { min: 100, max: 599 };
static STATUS: Shape = Shape::Either(&STATUS_CLASS, &STATUS_CODE);

/// `health-checks`.
pub(super) const CHECKS: Shape = Shape::OneOrMore {
    of: &CHECK_ITEM,
    max: 8,
};

const SPAN: Shape = Shape::Text(Text::Duration(MILLI, DAY));
const THRESHOLD: Shape = Shape::Int { min: 1, max: 100 };

static CHECK: Object = Object {
    name: "HealthCheck",
    doc: "An active health check: the agent asks each endpoint itself, from the node's own network \
          namespace. The first result decides at once; until then an endpoint counts as healthy.",
    fields: &[
        field(
            "http",
            Shape::Object(&HTTP),
            Absent::Means("another kind"),
            "A request over HTTP/1.1.",
        ),
        field(
            "grpc",
            Shape::Object(&GRPC),
            Absent::Means("another kind"),
            "`grpc.health.v1.Health/Check` over HTTP/2.",
        ),
        field(
            "tcp",
            Shape::Object(&TCP),
            Absent::Means("another kind"),
            "A connection, and what is said on it. `{}`: the connection is enough.",
        ),
        field(
            "port",
            Shape::Int {
                min: 1,
                max: 65_535,
            },
            Absent::Means("the port that requests go to"),
            "Another port of the endpoint.",
        ),
        needed(
            "interval",
            Shape::Text(Text::Duration(Duration::from_millis(10), DAY)),
            "From the end of one check to the next.",
        ),
        field(
            "no-traffic-interval",
            Shape::Text(Text::Duration(Duration::from_millis(10), DAY)),
            Absent::Default("1m", "as Envoy"),
            "The same as long as no request has gone to the service port. The shorter of both \
             counts for an endpoint that is sick.",
        ),
        field(
            "jitter-percent",
            Shape::Int { min: 0, max: 100 },
            Absent::Default("10", "checks of many endpoints spread"),
            "Up to so much is added to each interval at random.",
        ),
        needed("timeout", SPAN, "For the whole check, connecting included."),
        needed(
            "unhealthy-threshold",
            THRESHOLD,
            "Checks without an answer in a row after which an endpoint is sick. A wrong answer is \
             enough, unless it is retriable.",
        ),
        needed(
            "healthy-threshold",
            THRESHOLD,
            "Successes in a row after which a sick endpoint is healthy.",
        ),
        field(
            "reuse-connection",
            Shape::Bool,
            Absent::Default("true", "as Envoy"),
            "Whether a connection is kept for the next check.",
        ),
        field(
            "uneject",
            Shape::Bool,
            Absent::Default("true", "as Envoy"),
            "Whether a success ends a passive ejection.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["http", "grpc", "tcp"])],
};

static HTTP: Object = Object {
    name: "HttpCheck",
    doc: "A request whose status says how the endpoint is.",
    fields: &[
        field(
            "path",
            Shape::Text(Text::Path),
            Absent::Default("/", "every server has it"),
            "Path.",
        ),
        field(
            "host",
            Shape::Text(Text::Authority),
            Absent::Means("the service's name"),
            "`Host`.",
        ),
        field(
            "method",
            Shape::Text(Text::Method),
            Absent::Default("GET", "as Envoy"),
            "Method.",
        ),
        field(
            "statuses",
            Shape::list(&STATUS, 64),
            Absent::Means("200 alone, as Envoy"),
            "Statuses that are well, by number or class.",
        ),
        field(
            "retriable",
            Shape::list(&STATUS, 64),
            Absent::Means("none"),
            "Other statuses that count towards `unhealthy-threshold` instead of deciding at once.",
        ),
    ],
    groups: &[],
};

static GRPC: Object = Object {
    name: "GrpcCheck",
    doc: "A call of `grpc.health.v1.Health/Check`, which must answer SERVING.",
    fields: &[
        field(
            "service",
            Shape::Text(Text::TagValue),
            Absent::Means("the server as a whole"),
            "The service that is asked about.",
        ),
        field(
            "authority",
            Shape::Text(Text::Authority),
            Absent::Means("the service's name"),
            "`:authority`.",
        ),
    ],
    groups: &[],
};

static TCP: Object = Object {
    name: "TcpCheck",
    doc: "A connection, and what is said on it.",
    fields: &[
        field(
            "send",
            Shape::Text(Text::Payload),
            Absent::Means("nothing is sent"),
            "What is sent.",
        ),
        field(
            "expect",
            Shape::Text(Text::Payload),
            Absent::Means("the connection is enough"),
            "What must stand in the first 4 KiB of the answer.",
        ),
    ],
    groups: &[],
};
