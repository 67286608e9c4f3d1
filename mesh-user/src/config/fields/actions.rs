//! What a rule does besides choosing a version: actions, sticky splits, sessions.

use std::time::Duration;

use super::{
    Absent, DAY, Field, Group, MILLI, NAME, Object, PORT_REF, Shape, TAGS, Text, field, needed,
};

static HEADER_NAME: Shape = Shape::Text(Text::HeaderName);
static HEADER_VALUE: Shape = Shape::Text(Text::Value);
static METHOD: Shape = Shape::Text(Text::Method);
static ORIGIN: Shape = Shape::Text(Text::Origin);
static MIRROR_ITEM: Shape = Shape::Object(&MIRROR);
static ENDPOINT_ITEM: Shape = Shape::Text(Text::Endpoint);
static ATTRIBUTE: Shape = Shape::Text(Text::RateKey);

const HEADER_VALUES: Shape = Shape::Map {
    key: Text::HeaderName,
    of: &HEADER_VALUE,
    max: 32,
};
const HEADER_NAMES: Shape = Shape::OneOrMore {
    of: &HEADER_NAME,
    max: 32,
};
/// A year: no session of a client lasts longer.
const SESSION_SPAN: Shape = Shape::Text(Text::Duration(
    Duration::from_secs(1),
    Duration::from_secs(365 * 86_400),
));

/// Changes of header fields.
pub(super) const HEADERS_FIELD: Field = field(
    "headers",
    Shape::Object(&HEADERS),
    Absent::Means("they pass as they are"),
    "Changes of header fields. Of a target: after those of its rule.",
);
/// Changes of authority and path.
pub(super) const REWRITE_FIELD: Field = field(
    "rewrite",
    Shape::Object(&REWRITE),
    Absent::Means("they pass as they are"),
    "Changes of the request's authority and path.",
);
/// A redirect.
pub(super) const REDIRECT_FIELD: Field = field(
    "redirect",
    Shape::Object(&REDIRECT),
    Absent::Means("it is forwarded"),
    "An answer that sends the client elsewhere. What is left out stays as it was asked.",
);
/// A direct response.
pub(super) const RESPOND_FIELD: Field = field(
    "respond",
    Shape::Object(&RESPOND),
    Absent::Means("it is forwarded"),
    "An answer without asking an endpoint.",
);
/// Faults.
pub(super) const FAULT_FIELD: Field = field(
    "fault",
    Shape::Object(&FAULT),
    Absent::Means("none"),
    "Faults put in on purpose, before anything else is done. Delay and abort are decided each on \
     its own.",
);
/// Mirrors.
pub(super) const MIRROR_FIELD: Field = field(
    "mirror",
    Shape::OneOrMore {
        of: &MIRROR_ITEM,
        max: 8,
    },
    Absent::Means("none"),
    "Copies of the request for other destinations, whose answers are dropped. A list, or the one \
     without a list.",
);
/// Cross-origin requests.
pub(super) const CORS_FIELD: Field = field(
    "cors",
    Shape::Object(&CORS),
    Absent::Means("the endpoints decide"),
    "Which cross-origin requests are allowed: preflights are answered, other answers get the \
     fields that browsers ask for.",
);
/// Sticky splits.
pub(super) const STICKY_FIELD: Field = field(
    "sticky",
    Shape::Object(&STICKY),
    Absent::Means("targets take turns"),
    "The same key goes to the same target while the weights stay; a raised weight takes keys from \
     the others and gives none back.",
);
/// Sessions.
pub(super) const SESSION_FIELD: Field = field(
    "session",
    Shape::Object(&SESSION),
    Absent::Means("no sessions"),
    "A client stays at the endpoint that answered it first, whatever the weights become, as long \
     as that endpoint can be used.",
);

/// A target's version.
pub(super) const VERSION_FIELD: Field = field(
    "version",
    NAME,
    Absent::Means("not used"),
    "A version of the service.",
);
/// A target's endpoints by their tags.
pub(super) const TAGS_FIELD: Field = field(
    "tags",
    TAGS,
    Absent::Means("not used"),
    "The endpoints that carry these tags.",
);
/// Where a target leads when not to a version of the rule's service.
pub(super) const SERVICE_FIELD: Field = field(
    "service",
    Shape::Text(Text::ServiceRef),
    Absent::Means("the rule's"),
    "Another service: `name`, or `namespace/name`.",
);
/// Its port.
pub(super) const SERVICE_PORT_FIELD: Field = field(
    "port",
    PORT_REF,
    Absent::Means("the only one of the other service"),
    "Port of the other service, by name or number.",
);
/// Endpoints by address.
pub(super) const ENDPOINTS_FIELD: Field = field(
    "endpoints",
    Shape::List {
        of: &ENDPOINT_ITEM,
        min: 1,
        max: 64,
        many_need: None,
    },
    Absent::Means("not used"),
    "These endpoints of the service, by address and port.",
);

static HEADERS: Object = Object {
    name: "Headers",
    doc: "Changes of header fields.",
    fields: &[
        field(
            "request",
            Shape::Object(&HEADER_EDITS),
            Absent::Means("nothing"),
            "Of the request that is forwarded.",
        ),
        field(
            "response",
            Shape::Object(&HEADER_EDITS),
            Absent::Means("nothing"),
            "Of the final answer, also of one by `redirect` or `respond`.",
        ),
    ],
    groups: &[Group::AtLeastOne(&["request", "response"])],
};

static HEADER_EDITS: Object = Object {
    name: "HeaderEdits",
    doc: "Done in this order: set, add, remove. Fields that frame a message, are hop-by-hop or name \
          the host can't be edited.",
    fields: &[
        field(
            "set",
            HEADER_VALUES,
            Absent::Means("none"),
            "Replace every field of the name, or make one.",
        ),
        field(
            "add",
            HEADER_VALUES,
            Absent::Means("none"),
            "Append to what is there.",
        ),
        field(
            "remove",
            HEADER_NAMES,
            Absent::Means("none"),
            "Take away. A name, or a list.",
        ),
    ],
    groups: &[Group::AtLeastOne(&["set", "add", "remove"])],
};

const PATH_FIELD: Field = field(
    "path",
    Shape::Text(Text::Path),
    Absent::Means("it stays"),
    "The new path; the query stays.",
);
const PREFIX_FIELD: Field = field(
    "prefix",
    Shape::Text(Text::Path),
    Absent::Means("it stays"),
    "What takes the place of the prefix that the rule matched; `/` cuts it off.",
);

static REWRITE: Object = Object {
    name: "Rewrite",
    doc: "Changes of a request's authority and path.",
    fields: &[
        field(
            "authority",
            Shape::Text(Text::Authority),
            Absent::Means("it stays"),
            "The new `Host` or `:authority`, with or without port.",
        ),
        PATH_FIELD,
        PREFIX_FIELD,
    ],
    groups: &[
        Group::AtLeastOne(&["authority", "path", "prefix"]),
        Group::AtMostOne(&["path", "prefix"]),
    ],
};

static REDIRECT: Object = Object {
    name: "Redirect",
    doc: "Where the client is sent.",
    fields: &[
        field(
            "scheme",
            Shape::Choice(&[("http", "without TLS"), ("https", "with TLS")]),
            Absent::Means("that of the request"),
            "Scheme of the location.",
        ),
        field(
            "host",
            Shape::Text(Text::Hostname),
            Absent::Means("that of the request"),
            "Host of the location.",
        ),
        field(
            "port",
            Shape::Int {
                min: 1,
                max: 65_535,
            },
            Absent::Means("that of `scheme`, else the one that was dialled"),
            "Port of the location; 80 for http and 443 for https are left out.",
        ),
        PATH_FIELD,
        PREFIX_FIELD,
        field(
            "status",
            Shape::Int { min: 301, max: 308 },
            Absent::Default("302", "as Gateway API"),
            "Status of the answer: 301, 302, 303, 307 or 308.",
        ),
    ],
    groups: &[Group::AtMostOne(&["path", "prefix"])],
};

static RESPOND: Object = Object {
    name: "Respond",
    doc: "An answer.",
    fields: &[
        field(
            "status",
            Shape::Int { min: 200, max: 599 },
            Absent::Default("200", "an answer is a good one"),
            "Its status.",
        ),
        field(
            "headers",
            HEADER_VALUES,
            Absent::Means("none"),
            "Its header fields.",
        ),
        field(
            "body",
            Shape::Text(Text::Body),
            Absent::Means("empty"),
            "Its body.",
        ),
    ],
    groups: &[],
};

const PERCENT_FIELD: Field = field(
    "percent",
    Shape::Int { min: 0, max: 100 },
    Absent::Means("all"),
    "How many of a hundred requests.",
);
const FRACTION_FIELD: Field = field(
    "fraction",
    Shape::Object(&FRACTION),
    Absent::Means("`percent`"),
    "How many requests, finer than by percent.",
);

static FRACTION: Object = Object {
    name: "Fraction",
    doc: "`of` requests, `count` of them.",
    fields: &[
        needed(
            "count",
            Shape::Int {
                min: 0,
                max: 1_000_000,
            },
            "So many.",
        ),
        needed(
            "of",
            Shape::Int {
                min: 1,
                max: 1_000_000,
            },
            "Of so many.",
        ),
    ],
    groups: &[],
};

static FAULT: Object = Object {
    name: "Fault",
    doc: "Faults put in on purpose.",
    fields: &[
        field(
            "delay",
            Shape::Object(&DELAY),
            Absent::Means("none"),
            "A pause before anything else. It holds no place of a breaker, and time-outs begin \
             after it.",
        ),
        field(
            "abort",
            Shape::Object(&ABORT),
            Absent::Means("none"),
            "An answer instead of forwarding, after the pause if there was one.",
        ),
    ],
    groups: &[Group::AtLeastOne(&["delay", "abort"])],
};

static DELAY: Object = Object {
    name: "Delay",
    doc: "A pause.",
    fields: &[
        needed("time", Shape::Text(Text::Duration(MILLI, DAY)), "How long."),
        PERCENT_FIELD,
        FRACTION_FIELD,
    ],
    groups: &[Group::AtMostOne(&["percent", "fraction"])],
};

static ABORT: Object = Object {
    name: "Abort",
    doc: "An answer instead of forwarding.",
    fields: &[
        field(
            "status",
            Shape::Int { min: 200, max: 599 },
            Absent::Means("not used"),
            "HTTP status; a gRPC request gets what it means there.",
        ),
        field(
            "grpc-status",
            Shape::Int { min: 1, max: 16 },
            Absent::Means("not used"),
            "gRPC status; another request gets what it means in HTTP.",
        ),
        PERCENT_FIELD,
        FRACTION_FIELD,
    ],
    groups: &[
        Group::ExactlyOne(&["status", "grpc-status"]),
        Group::AtMostOne(&["percent", "fraction"]),
    ],
};

static MIRROR: Object = Object {
    name: "Mirror",
    doc: "A copy of the request for another destination. Neither `version`, `tags` nor `endpoints`: \
          every endpoint.",
    fields: &[
        SERVICE_FIELD,
        SERVICE_PORT_FIELD,
        VERSION_FIELD,
        TAGS_FIELD,
        ENDPOINTS_FIELD,
        PERCENT_FIELD,
        FRACTION_FIELD,
        field(
            "compare",
            Shape::Bool,
            Absent::Default("false", "comparing takes the answer's bodies in"),
            "Whether the two answers' statuses and body hashes are compared and counted.",
        ),
    ],
    groups: &[
        Group::AtMostOne(&["version", "tags", "endpoints"]),
        Group::AtMostOne(&["percent", "fraction"]),
    ],
};

static CORS: Object = Object {
    name: "Cors",
    doc: "Which cross-origin requests are allowed (WHATWG Fetch).",
    fields: &[
        needed(
            "allow-origins",
            Shape::OneOrMore {
                of: &ORIGIN,
                max: 64,
            },
            "Origins: `https://shop.example`, with `*` at the front of the host, or `*`. One, or a \
             list.",
        ),
        field(
            "allow-methods",
            Shape::OneOrMore {
                of: &METHOD,
                max: 16,
            },
            Absent::Means("the safelisted: GET, HEAD, POST"),
            "Methods, or `*`.",
        ),
        field(
            "allow-headers",
            HEADER_NAMES,
            Absent::Means("the safelisted"),
            "Request header names, or `*`.",
        ),
        field(
            "expose-headers",
            HEADER_NAMES,
            Absent::Means("the safelisted"),
            "Answer header names that scripts may read, or `*`.",
        ),
        field(
            "allow-credentials",
            Shape::Bool,
            Absent::Default("false", "as Fetch"),
            "Whether credentials may be sent.",
        ),
        field(
            "max-age",
            Shape::Text(Text::Duration(Duration::ZERO, DAY)),
            Absent::Default("5s", "as Fetch"),
            "How long a preflight's answer may be kept.",
        ),
    ],
    groups: &[],
};

static STICKY: Object = Object {
    name: "Sticky",
    doc: "What makes requests go to the same target.",
    fields: &[
        needed(
            "key",
            Shape::OneOrMore {
                of: &ATTRIBUTE,
                max: 8,
            },
            "What makes the key: those of the attributes that a request has. One without any of \
             them takes its turn.",
        ),
        field(
            "salt",
            Shape::Text(Text::Value),
            Absent::Default("\"\"", "nothing is kept secret by it"),
            "Changes who is among the first. The same on every node.",
        ),
    ],
    groups: &[],
};

static SESSION: Object = Object {
    name: "Session",
    doc: "How a client stays at its endpoint (GEP-1619).",
    fields: &[
        field(
            "cookie",
            Shape::Text(Text::HeaderName),
            Absent::Means("not used"),
            "Name of the cookie that carries the session. It has `Path=/` and `HttpOnly`, over TLS \
             also `Secure`.",
        ),
        field(
            "header",
            Shape::Text(Text::HeaderName),
            Absent::Means("not used"),
            "Name of the header that carries the session, in answers and in requests.",
        ),
        field(
            "permanent",
            Shape::Bool,
            Absent::Default("false", "it ends with the browser's session"),
            "Whether the cookie has a `Max-Age`: what is left of `absolute-timeout`.",
        ),
        field(
            "absolute-timeout",
            SESSION_SPAN,
            Absent::Means("as long as the client keeps it"),
            "How long a session lasts at most.",
        ),
        field(
            "idle-timeout",
            SESSION_SPAN,
            Absent::Means("no limit"),
            "How long it lasts without a request.",
        ),
        field(
            "salt",
            Shape::Text(Text::Value),
            Absent::Default("\"\"", "addresses are hashed all the same"),
            "Keeps what the client carries secret: without it, who knows the rule can try \
             addresses. The same on every node.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["cookie", "header"])],
};
