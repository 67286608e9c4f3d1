//! Rate limits, of policies and rules, and their stores.

use std::time::Duration;

use super::{
    Absent, DAY, Group, MILLI, NAME, Object, Shape, Text, field, needed, rule::MATCH_ITEM,
};

pub(super) static RATE_LIMIT_ITEM: Shape = Shape::Object(&RATE_LIMIT);
static RATE_KEY: Shape = Shape::Text(Text::RateKey);
static OVERRIDE_ITEM: Shape = Shape::Object(&OVERRIDE);
static ENTRY_ITEM: Shape = Shape::Object(&ENTRY);
static WHEN_VALUE: Shape = Shape::Text(Text::Value);

const BURST: Shape = Shape::Int {
    min: 1,
    max: 999_999_999_999,
};
const CONCURRENT: Shape = Shape::Int {
    min: 1,
    max: 1_000_000,
};

static RATE_LIMIT: Object = Object {
    name: "RateLimit",
    doc: "A token bucket that starts full and refills evenly, or a limit on what is under way at \
          once. Of this node, or shared with others.",
    fields: &[
        field(
            "name",
            NAME,
            Absent::Means("`limit-N`, N counting the limits of the policy or rule from 1"),
            "Its name in the `RateLimit-Policy` field, metrics and `mesh explain`, unique inside the \
             policy or rule.",
        ),
        field(
            "key",
            Shape::list(&RATE_KEY, 8),
            Absent::Means("one bucket for all"),
            "One bucket for each distinct combination of `source.workload`, `source.namespace`, \
             `source.identity`, `source.address`, `source.tag.KEY`, `destination`, `version`, `rule`, \
             `header.NAME`, `cookie.NAME`, `query.NAME`, `authority`, `path`, `method`.",
        ),
        field(
            "rate",
            Shape::Text(Text::Rate),
            Absent::Means("not used"),
            "How many in a time: `100/s`, `60/m`, `1000/h`.",
        ),
        field(
            "burst",
            BURST,
            Absent::Means("the number of `rate`"),
            "Size of the bucket.",
        ),
        field(
            "unit",
            Shape::Choice(&[
                ("requests", "requests, and opaque connections"),
                (
                    "bytes",
                    "bytes of request and answer bodies, or of an opaque connection, charged when it \
                     ends: one is admitted as long as the bucket holds a byte, and may leave a debt",
                ),
            ]),
            Absent::Default("requests", ""),
            "What `rate` and `burst` count.",
        ),
        field(
            "concurrent",
            CONCURRENT,
            Absent::Means("not used"),
            "Instead of `rate`: how many requests, or opaque connections, at once. A place is held \
             until the end of the answer.",
        ),
        field(
            "match",
            Shape::OneOrMore {
                of: &MATCH_ITEM,
                max: 16,
            },
            Absent::Means("all requests"),
            "Only requests for which one of these holds.",
        ),
        field(
            "overrides",
            Shape::list(&OVERRIDE_ITEM, 64),
            Absent::Means("the same for all"),
            "Other values for some requests: the first that holds decides. Each has buckets of its \
             own.",
        ),
        field(
            "dry-run",
            Shape::Bool,
            Absent::Default("false", ""),
            "Refuse nothing; what would have been refused is counted and marked in the access log.",
        ),
        field(
            "answer",
            Shape::Object(&ANSWER),
            Absent::Means("429, or RESOURCE_EXHAUSTED"),
            "How a refusal looks.",
        ),
        field(
            "global",
            Shape::Object(&GLOBAL),
            Absent::Means("of this node alone"),
            "Share the limit with other nodes.",
        ),
    ],
    groups: &[
        Group::ExactlyOne(&["rate", "concurrent"]),
        Group::AtMostOne(&["unit", "concurrent"]),
        Group::AtMostOne(&["burst", "concurrent"]),
    ],
};

static OVERRIDE: Object = Object {
    name: "RateLimitOverride",
    doc: "Other values of a limit for some requests.",
    fields: &[
        needed(
            "when",
            Shape::Map {
                key: Text::RateKey,
                of: &WHEN_VALUE,
                max: 8,
            },
            "Attributes, as in `key`, and the values that all of them must have.",
        ),
        field(
            "rate",
            Shape::Text(Text::Rate),
            Absent::Means("not used"),
            "As in the limit, in its unit.",
        ),
        field(
            "burst",
            BURST,
            Absent::Means("the number of `rate`"),
            "As in the limit.",
        ),
        field(
            "concurrent",
            CONCURRENT,
            Absent::Means("not used"),
            "As in the limit.",
        ),
    ],
    groups: &[
        Group::ExactlyOne(&["rate", "concurrent"]),
        Group::AtMostOne(&["burst", "concurrent"]),
    ],
};

static ANSWER: Object = Object {
    name: "RateLimitAnswer",
    doc: "How a refusal looks. `Retry-After` and the IETF fields `RateLimit-Policy` and `RateLimit` \
          are always there.",
    fields: &[
        field(
            "status",
            Shape::Int { min: 400, max: 599 },
            Absent::Default("429", "RFC 6585 §4"),
            "HTTP status.",
        ),
        field(
            "grpc",
            Shape::Choice(&[
                ("resource-exhausted", "8: the client should not try again"),
                ("unavailable", "14, as Envoy by default: clients try again"),
            ]),
            Absent::Default("resource-exhausted", "what it means"),
            "gRPC status.",
        ),
        field(
            "x-ratelimit",
            Shape::Bool,
            Absent::Default("false", "as Envoy"),
            "`x-ratelimit-limit`, `-remaining` and `-reset` too, as Envoy's `DRAFT_VERSION_03`, on \
             every answer.",
        ),
        field(
            "x-envoy-ratelimited",
            Shape::Bool,
            Absent::Default("false", "the IETF fields say it"),
            "`x-envoy-ratelimited: true` too.",
        ),
    ],
    groups: &[],
};

static GLOBAL: Object = Object {
    name: "RateLimitGlobal",
    doc: "How a limit on requests is shared with other nodes. They are the same limit when service, \
          version, port or rule and the names are the same there.",
    fields: &[
        needed("service", NAME, "An entry of `rate-limit-services`."),
        field(
            "failure",
            Shape::Choice(&[
                ("open", "requests are admitted, and counted"),
                ("closed", "they are refused with 500, `rate_limit_service`"),
            ]),
            Absent::Default("open", "as Envoy"),
            "What happens while the store is down, slow, or answers what nobody understands.",
        ),
        field(
            "lease",
            Shape::Object(&LEASE),
            Absent::Means("10 % of the burst, for a tenth of the period"),
            "How much this node may take at once, to serve from without asking. Redis only.",
        ),
        field(
            "descriptor",
            Shape::list(&ENTRY_ITEM, 16),
            Absent::Means(
                "one entry for each attribute of `key`, or `generic_key` with the limit's name",
            ),
            "Ordered entries of the descriptor. `type: envoy` only.",
        ),
        field(
            "hits",
            Shape::Int {
                min: 1,
                max: 1_000_000,
            },
            Absent::Default("1", "as Envoy"),
            "`hits_addend`: what a request counts. `type: envoy` only.",
        ),
    ],
    groups: &[],
};

static LEASE: Object = Object {
    name: "RateLimitLease",
    doc: "Tokens that a node takes at once. All nodes together admit at most burst + rate x time from \
          the beginning on, and in a window in between at most what the rate gives in `time` more.",
    fields: &[
        field(
            "share-percent",
            Shape::Int { min: 0, max: 100 },
            Absent::Default("10", "ten busy nodes share the burst"),
            "The largest part of the burst that this node holds for a key. 0: the store is asked for \
             each request.",
        ),
        field(
            "time",
            Shape::Text(Text::Duration(MILLI, Duration::from_secs(60))),
            Absent::Means("a tenth of the period of `rate`, from 10ms to 1s"),
            "How long they may be used.",
        ),
    ],
    groups: &[],
};

static ENTRY: Object = Object {
    name: "RateLimitEntry",
    doc: "An entry of a descriptor.",
    fields: &[
        needed("key", Shape::Text(Text::Value), "Its key."),
        field(
            "value",
            Shape::Text(Text::Value),
            Absent::Means("not used"),
            "Its value.",
        ),
        field(
            "attribute",
            Shape::Text(Text::RateKey),
            Absent::Means("not used"),
            "The attribute that is its value. A request without it is not limited, as with Envoy.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["value", "attribute"])],
};

/// An entry of `rate-limit-services`.
pub(crate) static RATE_LIMIT_SERVICE: Object = Object {
    name: "RateLimitService",
    doc: "A store of shared rate limits.",
    fields: &[
        needed("name", NAME, "Its name, unique."),
        needed(
            "type",
            Shape::Choice(&[
                ("redis", "a Redis server, with one atomic script"),
                (
                    "envoy",
                    "a gRPC server of `envoy.service.ratelimit.v3.RateLimitService`, without TLS",
                ),
            ]),
            "What it speaks.",
        ),
        needed(
            "address",
            Shape::Text(Text::StoreAddress),
            "Where it listens: `10.0.0.5:6379`, `[fd00::5]:6379`, or the path of a unix socket. It is \
             dialled from the agent's own network namespace.",
        ),
        field(
            "timeout",
            Shape::Text(Text::Duration(MILLI, DAY)),
            Absent::Default("20ms", "as Envoy"),
            "How long a request waits for it.",
        ),
        field(
            "database",
            Shape::Int {
                min: 0,
                max: 65_535,
            },
            Absent::Default("0", ""),
            "Number of the database. `type: redis` only.",
        ),
        field(
            "username",
            Shape::Text(Text::Value),
            Absent::Means("the default user"),
            "User. `type: redis` only.",
        ),
        field(
            "password-file",
            Shape::Text(Text::AbsolutePath),
            Absent::Means("no password"),
            "File whose first line is the password, read at each connect. `type: redis` only.",
        ),
        field(
            "prefix",
            Shape::Text(Text::Value),
            Absent::Default("\"mesh:\"", ""),
            "What its keys begin with. `type: redis` only.",
        ),
        field(
            "tls",
            Shape::Text(Text::Hostname),
            Absent::Means("no TLS"),
            "TLS, verified by the system's certificates; the name that the server's certificate must \
             have. `type: redis` only.",
        ),
        field(
            "domain",
            Shape::Text(Text::Value),
            Absent::Default("mesh", ""),
            "`domain` of the questions. `type: envoy` only.",
        ),
    ],
    groups: &[],
};
