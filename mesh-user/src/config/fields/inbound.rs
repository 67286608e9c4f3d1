//! Inbound rules.

use super::{
    Absent, Group, NAME, Object, PORT_NUMBER, Shape, TAGS, Text, field, limits::RATE_LIMIT_ITEM,
    policy::CAP, rule::SOURCE,
};

static PEER_ITEM: Shape = Shape::Object(&PEER);
const PEERS: Shape = Shape::OneOrMore {
    of: &PEER_ITEM,
    max: 256,
};

/// An entry of `inbound`.
pub(crate) static INBOUND: Object = Object {
    name: "Inbound",
    doc: "What happens to connections that come to workloads of this node. Neither `workload`, \
          `namespace` nor `tags`: every workload. A workload with `inbound: pass` is left out.",
    fields: &[
        field(
            "name",
            NAME,
            Absent::Means("`inbound-N`, N its place in the list"),
            "Its name in metrics and logs, unique.",
        ),
        field(
            "workload",
            NAME,
            Absent::Means("any"),
            "The workload's name.",
        ),
        field("namespace", NAME, Absent::Means("any"), "Its namespace."),
        field(
            "tags",
            TAGS,
            Absent::Means("any"),
            "Tags that it must carry.",
        ),
        field(
            "ports",
            Shape::list(&PORT_NUMBER, 64),
            Absent::Means("every port"),
            "Ports, as the application listens on them.",
        ),
        field(
            "action",
            Shape::Choice(&[
                ("capture", "it passes the proxy"),
                ("pass", "it goes to the application untouched"),
                (
                    "deny",
                    "it is dropped by the kernel, with or without an agent",
                ),
            ]),
            Absent::Default("capture", "a rule is written to have an effect"),
            "What happens to a connection. The kubelet's probes and the workload's talk to itself \
             go to the application in any case.",
        ),
        field(
            "allow",
            PEERS,
            Absent::Means("everybody who is not denied"),
            "Who may connect: nobody else does. Others get a reset, in HTTP 403. A list, or the one \
             without a list.",
        ),
        field(
            "deny",
            PEERS,
            Absent::Means("nobody"),
            "Who may not, whatever `allow` says.",
        ),
        field(
            "rate-limit",
            Shape::OneOrMore {
                of: &RATE_LIMIT_ITEM,
                max: 16,
            },
            Absent::Means("no limit"),
            "Rate limits, for each workload; a request or an opaque connection must pass all of \
             them, else 429 or a reset. Keys: what begins with `source.`, of workloads of this node.",
        ),
        field(
            "breaker",
            Shape::Object(&BREAKER),
            Absent::Means("no caps"),
            "Caps for each workload, exact over the node.",
        ),
    ],
    groups: &[],
};

static BREAKER: Object = Object {
    name: "InboundBreaker",
    doc: "Caps for each workload, exact over the node. Above: 503 or a reset.",
    fields: &[
        field(
            "max-connections",
            CAP,
            Absent::Means("no cap"),
            "Connections to the application.",
        ),
        field(
            "max-requests",
            CAP,
            Absent::Means("no cap"),
            "Requests in flight; an opaque connection is one.",
        ),
    ],
    groups: &[Group::AtLeastOne(&["max-connections", "max-requests"])],
};

static PEER: Object = Object {
    name: "Peer",
    doc: "Who connects: `source`, `cidr`, or both, which must then both hold.",
    fields: &[
        field(
            "source",
            Shape::Object(&SOURCE),
            Absent::Means("not asked"),
            "What is known of its address: a workload of this node, or an endpoint of a service \
             (namespace of the service, tags, identity). Who is unknown is no source.",
        ),
        field(
            "cidr",
            Shape::Text(Text::Cidr),
            Absent::Means("any"),
            "Its address: a range, or one address.",
        ),
    ],
    groups: &[Group::AtLeastOne(&["source", "cidr"])],
};
