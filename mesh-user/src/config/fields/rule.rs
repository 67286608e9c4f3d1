//! Rules.

use super::{
    Absent, Group, NAME, Object, PORT_REF, Shape, TAGS, Text, actions, field,
    limits::RATE_LIMIT_ITEM, needed,
};

static METHOD: Shape = Shape::Text(Text::Method);
pub(super) static MATCH_ITEM: Shape = Shape::Object(&MATCH);
static TARGET_ITEM: Shape = Shape::Object(&TARGET);
static VALUE: Shape = Shape::Text(Text::Value);
static VALUE_OBJECT: Shape = Shape::Object(&VALUE_MATCH);
pub(super) static VALUE_MATCHER: Shape = Shape::Either(&VALUE, &VALUE_OBJECT);
static AUTHORITY: Shape = Shape::Text(Text::Authority);
static AUTHORITY_OBJECT: Shape = Shape::Object(&AUTHORITY_MATCH);

/// An entry of `rules`.
pub(crate) static RULE: Object = Object {
    name: "Rule",
    doc: "Which requests or connections of a service go to which of its versions.",
    fields: &[
        needed(
            "service",
            Shape::Text(Text::ServiceRef),
            "Its service: `name`, or `namespace/name`.",
        ),
        field(
            "name",
            NAME,
            Absent::Means("`rule-N`, N counting the rules of the service from 1"),
            "Its name in logs, metrics and `mesh explain`, unique inside the service.",
        ),
        field(
            "port",
            PORT_REF,
            Absent::Means("every port"),
            "Only this port, by name or number.",
        ),
        field(
            "precedence",
            Shape::Int {
                min: i32::MIN as i64,
                max: i32::MAX as i64,
            },
            Absent::Default("0", "the order in the file decides"),
            "Higher first. Equal: the order in the file.",
        ),
        field(
            "match",
            Shape::OneOrMore {
                of: &MATCH_ITEM,
                max: 128,
            },
            Absent::Means("everything matches"),
            "Alternatives: the rule matches when one of them does. What stands inside one must all \
             hold. A list, or the one without a list.",
        ),
        field(
            "route",
            Shape::List {
                of: &TARGET_ITEM,
                min: 1,
                max: 64,
                many_need: Some("weight"),
            },
            Absent::Means("the rule answers by itself"),
            "Where to. A version without endpoints keeps its share, and answers 503.",
        ),
        actions::HEADERS_FIELD,
        actions::REWRITE_FIELD,
        actions::REDIRECT_FIELD,
        actions::RESPOND_FIELD,
        actions::CORS_FIELD,
        actions::FAULT_FIELD,
        actions::MIRROR_FIELD,
        actions::STICKY_FIELD,
        actions::SESSION_FIELD,
        super::resilience::RULE_TIMEOUT_FIELD,
        field(
            "retries",
            Shape::Object(&super::policy::RETRIES),
            Absent::Means("the version's policy"),
            "Retries of what the rule matches, instead of the version's.",
        ),
        field(
            "rate-limit",
            Shape::OneOrMore {
                of: &RATE_LIMIT_ITEM,
                max: 16,
            },
            Absent::Means("none but those of policies"),
            "Rate limits of what the rule matches, besides those of policies: a request must pass \
             both. A list, or the one without a list.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["route", "redirect", "respond"])],
};

static MATCH: Object = Object {
    name: "Match",
    doc: "Conditions that must all hold. None: everything matches.",
    fields: &[
        field(
            "path",
            Shape::Object(&PATH_MATCH),
            Absent::Means("any"),
            "The path, without the query.",
        ),
        field(
            "method",
            Shape::OneOrMore {
                of: &METHOD,
                max: 16,
            },
            Absent::Means("any"),
            "The method, or several of which one must be equal. Case counts (RFC 9110 §9.1).",
        ),
        field(
            "headers",
            Shape::Map {
                key: Text::HeaderName,
                of: &VALUE_MATCHER,
                max: 32,
            },
            Absent::Means("any"),
            "Header fields, by name without case. All must match; text alone means `exact`.",
        ),
        field(
            "query",
            Shape::Map {
                key: Text::QueryName,
                of: &VALUE_MATCHER,
                max: 32,
            },
            Absent::Means("any"),
            "Query parameters. All must match; of a repeated one the first counts; text alone means \
             `exact`.",
        ),
        field(
            "authority",
            Shape::Either(&AUTHORITY, &AUTHORITY_OBJECT),
            Absent::Means("any"),
            "`Host` or `:authority` without port, compared in lower case. Text alone means `exact`.",
        ),
        field(
            "source",
            Shape::Object(&SOURCE),
            Absent::Means("any"),
            "The workload that asks.",
        ),
        super::tls::SNI,
    ],
    groups: &[],
};

static PATH_MATCH: Object = Object {
    name: "PathMatch",
    doc: "How a path is matched.",
    fields: &[
        field(
            "exact",
            Shape::Text(Text::Path),
            Absent::Means("not used"),
            "Equal.",
        ),
        field(
            "prefix",
            Shape::Text(Text::Path),
            Absent::Means("not used"),
            "By `/`-elements, a trailing slash ignored: `/abc` matches `/abc` and `/abc/d`, not `/abcd`.",
        ),
        field(
            "regex",
            Shape::Text(Text::Regex),
            Absent::Means("not used"),
            "Matches the whole path.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["exact", "prefix", "regex"])],
};

static VALUE_MATCH: Object = Object {
    name: "ValueMatch",
    doc: "How a value is matched.",
    fields: &[
        field(
            "exact",
            Shape::Text(Text::Value),
            Absent::Means("not used"),
            "Equal; case counts.",
        ),
        field(
            "prefix",
            Shape::Text(Text::Value),
            Absent::Means("not used"),
            "Begins so.",
        ),
        field(
            "regex",
            Shape::Text(Text::Regex),
            Absent::Means("not used"),
            "Matches the whole value.",
        ),
        field(
            "present",
            Shape::Bool,
            Absent::Means("not used"),
            "There (`true`) or not there (`false`), whatever the value.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["exact", "prefix", "regex", "present"])],
};

static AUTHORITY_MATCH: Object = Object {
    name: "AuthorityMatch",
    doc: "How a host is matched, in lower case.",
    fields: &[
        field(
            "exact",
            Shape::Text(Text::Authority),
            Absent::Means("not used"),
            "Equal.",
        ),
        field(
            "prefix",
            Shape::Text(Text::Authority),
            Absent::Means("not used"),
            "Begins so.",
        ),
        field(
            "regex",
            Shape::Text(Text::Regex),
            Absent::Means("not used"),
            "Matches the whole host.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["exact", "prefix", "regex"])],
};

/// `source` of a match.
pub(super) static SOURCE: Object = Object {
    name: "Source",
    doc: "Which workloads may have asked. All that is given must hold.",
    fields: &[
        field("workload", NAME, Absent::Means("any"), "Its name."),
        field("namespace", NAME, Absent::Means("any"), "Its namespace."),
        field(
            "identity",
            Shape::Text(Text::Identity),
            Absent::Means("any"),
            "Its identity, equal.",
        ),
        field(
            "tags",
            TAGS,
            Absent::Means("any"),
            "Tags that it must carry.",
        ),
    ],
    groups: &[],
};

static TARGET: Object = Object {
    name: "Target",
    doc: "One destination. Neither `version`, `tags` nor `endpoints`: every endpoint.",
    fields: &[
        actions::VERSION_FIELD,
        actions::TAGS_FIELD,
        actions::ENDPOINTS_FIELD,
        actions::SERVICE_FIELD,
        actions::SERVICE_PORT_FIELD,
        field(
            "weight",
            Shape::Int {
                min: 0,
                max: 1_000_000,
            },
            Absent::Means("100 %; must be there when there are several targets"),
            "Its share: weight divided by the sum of weights. 0: nothing.",
        ),
        actions::HEADERS_FIELD,
        actions::REWRITE_FIELD,
        actions::REDIRECT_FIELD,
        actions::RESPOND_FIELD,
        actions::FAULT_FIELD,
        actions::MIRROR_FIELD,
    ],
    groups: &[
        Group::AtMostOne(&["version", "tags", "endpoints"]),
        Group::AtMostOne(&["redirect", "respond"]),
    ],
};
