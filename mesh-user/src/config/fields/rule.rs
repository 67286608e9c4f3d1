//! Rules.

use std::net::SocketAddr;

use super::super::text::Given;
use super::{Absent, Group, NAME, Object, PORT_REF, Shape, TAGS, Text, field, needed};

static METHOD: Shape = Shape::Text(Text::Method);
static MATCH_ITEM: Shape = Shape::Object(&MATCH);
static TARGET_ITEM: Shape = Shape::Object(&TARGET);
static VALUE: Shape = Shape::Text(Text::Value);
static VALUE_OBJECT: Shape = Shape::Object(&VALUE_MATCH);
static VALUE_MATCHER: Shape = Shape::Either(&VALUE, &VALUE_OBJECT);
static ENDPOINT: Shape = Shape::Text(Text::Given(&ENDPOINT_TEXT));
static ENDPOINT_TEXT: Given = Given {
    name: "an address with port, such as 10.244.1.5:8080 or [fd00::5]:8080",
    length: (1, 64),
    pattern: Some(r"^(?:[0-9.]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5})$"),
    holds: |text| text.parse::<SocketAddr>().is_ok_and(|at| at.port() > 0),
};
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
        needed(
            "route",
            Shape::List {
                of: &TARGET_ITEM,
                min: 1,
                max: 64,
                many_need: Some("weight"),
            },
            "Where to. A version without endpoints keeps its share, and answers 503.",
        ),
    ],
    groups: &[],
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
    doc: "One destination. Neither `version` nor `tags` nor `endpoints`: every endpoint.",
    fields: &[
        field(
            "service",
            Shape::Text(Text::ServiceRef),
            Absent::Means("the rule's own service"),
            "Another service: `name`, or `namespace/name`. Its versions, policies and caps apply.",
        ),
        field(
            "port",
            PORT_REF,
            Absent::Means("the port that was dialled; of another service its only one"),
            "A port of the service, by name or number.",
        ),
        field(
            "version",
            NAME,
            Absent::Means("not used"),
            "A version of the service.",
        ),
        field(
            "tags",
            TAGS,
            Absent::Means("not used"),
            "The endpoints that carry these tags.",
        ),
        field(
            "endpoints",
            Shape::List {
                of: &ENDPOINT,
                min: 1,
                max: 256,
                many_need: None,
            },
            Absent::Means("not used"),
            "Those endpoints of the service that are dialled at these addresses.",
        ),
        field(
            "weight",
            Shape::Int {
                min: 0,
                max: 1_000_000,
            },
            Absent::Means("100 %; must be there when there are several targets"),
            "Its share: weight divided by the sum of weights. 0: nothing.",
        ),
    ],
    groups: &[
        Group::AtMostOne(&["version", "tags"]),
        Group::AtMostOne(&["version", "endpoints"]),
        Group::AtMostOne(&["tags", "endpoints"]),
    ],
};
