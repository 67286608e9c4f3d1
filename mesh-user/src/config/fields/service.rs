//! Services, workloads, outbound exceptions.

use super::{Absent, Field, Group, NAME, NAMESPACE, Object, Shape, TAGS, Text, field, needed};

static HOSTNAME: Shape = Shape::Text(Text::Hostname);
static ADDRESS: Shape = Shape::Text(Text::Address);
static PORT_ITEM: Shape = Shape::Object(&PORT);
static VERSION_TAGS: Shape = TAGS;
static ENDPOINT_ITEM: Shape = Shape::Object(&ENDPOINT);
static PORT_NUMBER: Shape = Shape::Int {
    min: 1,
    max: 65_535,
};

const IDENTITY: Field = field(
    "identity",
    Shape::Text(Text::Identity),
    Absent::Means("unknown"),
    "Its identity, such as a SPIFFE id.",
);

/// An entry of `services`.
pub(crate) static SERVICE: Object = Object {
    name: "Service",
    doc: "What clients dial: hostnames and virtual addresses, ports, and the endpoints behind them.",
    fields: &[
        needed("name", NAME, "Its name, unique inside its namespace."),
        NAMESPACE,
        field(
            "hostnames",
            Shape::list(&HOSTNAME, 64),
            Absent::Means("none"),
            "Hostnames by which clients address it. Compared without case. The mesh does no DNS: \
             names must lead to one of the addresses.",
        ),
        field(
            "addresses",
            Shape::list(&ADDRESS, 16),
            Absent::Means("none: nothing can be captured for it"),
            "Virtual IPv4 and IPv6 addresses. An address and port belong to one service only.",
        ),
        needed(
            "ports",
            Shape::List {
                of: &PORT_ITEM,
                min: 1,
                max: 64,
                many_need: None,
            },
            "Its ports.",
        ),
        field(
            "versions",
            Shape::Map {
                key: Text::Name,
                of: &VERSION_TAGS,
                max: 256,
            },
            Absent::Means("none"),
            "Versions: a name and the tags that an endpoint must carry to belong to it. No tags: \
             every endpoint. Versions may overlap.",
        ),
        field(
            "endpoints",
            Shape::list(&ENDPOINT_ITEM, 16_384),
            Absent::Means("none: 503"),
            "Who serves it.",
        ),
        field(
            "routable",
            Shape::Bool,
            Absent::Default("false", "a file usually invents its addresses"),
            "Whether the platform routes the virtual addresses without the mesh. Decides what \
             `failure: open` does when the agent is gone: with `false` the kernel picks an endpoint.",
        ),
        field(
            "dial-from",
            Shape::Choice(&[
                (
                    "workload",
                    "the client's namespace, with its address: NetworkPolicy stays true",
                ),
                (
                    "node",
                    "the agent's namespace: one pool for all workloads of the node",
                ),
            ]),
            Absent::Default("workload", "endpoints see who asks"),
            "From where the proxy dials the endpoints.",
        ),
    ],
    groups: &[],
};

static PORT: Object = Object {
    name: "Port",
    doc: "A port of a service.",
    fields: &[
        field(
            "name",
            NAME,
            Absent::Means("`PROTOCOL-NUMBER`, such as `http-80`"),
            "Its name, unique inside the service.",
        ),
        needed(
            "number",
            Shape::Int {
                min: 1,
                max: 65_535,
            },
            "The number that clients dial.",
        ),
        field(
            "target",
            Shape::Int {
                min: 1,
                max: 65_535,
            },
            Absent::Means("the same number"),
            "The number at the endpoints.",
        ),
        field(
            "protocol",
            Shape::Choice(&[
                (
                    "http",
                    "HTTP/1.1, or HTTP/2 with prior knowledge, told apart by the first bytes",
                ),
                ("http2", "HTTP/2 with prior knowledge only"),
                ("grpc", "gRPC: HTTP/2, refusals as gRPC statuses"),
                ("tcp", "opaque bytes: never sniffed, never delayed"),
                (
                    "tls",
                    "TLS that is passed on as it is: the server name of its ClientHello may choose \
                     the route",
                ),
                (
                    "auto",
                    "sniffed for HTTP for at most `detect-timeout`, then opaque",
                ),
            ]),
            Absent::Default(
                "auto",
                "never wrong, at the cost of a wait for server-first protocols",
            ),
            "What is spoken on it.",
        ),
        field(
            "path",
            Shape::Choice(&[
                (
                    "auto",
                    "the kernel for protocol `tcp` where it can honour all rules and policies, \
                     else the proxy",
                ),
                (
                    "kernel",
                    "the kernel: connections, not requests, are split, and nothing but \
                     connections is counted; what it can't honour is refused",
                ),
                (
                    "prefer-kernel",
                    "the kernel as long as it can honour all rules and policies, else the proxy",
                ),
                ("proxy", "the proxy"),
            ]),
            Absent::Default("auto", "nothing is lost that somebody may count on"),
            "Who chooses the endpoint of a connection.",
        ),
        super::tls::PORT_TLS,
    ],
    groups: &[],
};

static ENDPOINT: Object = Object {
    name: "Endpoint",
    doc: "One address that serves a service.",
    fields: &[
        needed(
            "address",
            Shape::Text(Text::Address),
            "Its address. Loopback only with `dial-from: node`.",
        ),
        field(
            "ports",
            Shape::Map {
                key: Text::Name,
                of: &PORT_NUMBER,
                max: 64,
            },
            Absent::Means("every port's `target`"),
            "Where a port of the service is found at this endpoint, by port name.",
        ),
        field(
            "tags",
            TAGS,
            Absent::Means("none"),
            "Its tags: they decide to which versions it belongs.",
        ),
        field(
            "locality",
            Shape::Text(Text::TagValue),
            Absent::Means("unknown"),
            "Where it is: `region/zone/subzone`, from the left as far as it is known.",
        ),
        IDENTITY,
        field(
            "healthy",
            Shape::Bool,
            Absent::Default("true", "a file has no readiness probes"),
            "Whether it gets anything at all.",
        ),
        field(
            "weight",
            Shape::Int {
                min: 0,
                max: 1_000_000,
            },
            Absent::Default("1", "all are equal"),
            "Its share among the endpoints of a version. 0: nothing.",
        ),
        field(
            "priority",
            Shape::Int { min: 0, max: 127 },
            Absent::Default("0", "all are equal"),
            "Failover group: those with 0 are asked first, others get what these have no healthy \
             endpoints for. The eighth and later groups of a version are one.",
        ),
    ],
    groups: &[],
};

/// An entry of `workloads`.
pub(crate) static WORKLOAD: Object = Object {
    name: "Workload",
    doc: "A workload on this node: a network namespace.",
    fields: &[
        needed("name", NAME, "Its name, unique inside its namespace."),
        NAMESPACE,
        field(
            "netns",
            Shape::Text(Text::AbsolutePath),
            Absent::Means("`pid` says it"),
            "Path of its network namespace, such as `/run/netns/NAME`.",
        ),
        field(
            "pid",
            Shape::Int {
                min: 1,
                max: 4_194_304,
            },
            Absent::Means("`netns` says it"),
            "A process in its network namespace.",
        ),
        field(
            "cgroup",
            Shape::Text(Text::Cgroup),
            Absent::Means("unknown"),
            "Its cgroup below the cgroup2 mount. A name only: hooks attach at `attach`.",
        ),
        field(
            "tags",
            TAGS,
            Absent::Means("none"),
            "Its tags, for `source` in rules and limits.",
        ),
        IDENTITY,
        field(
            "failure",
            Shape::Choice(&[
                ("open", "its connections go direct"),
                ("closed", "they are refused at once with ECONNREFUSED"),
            ]),
            Absent::Default("open", "pods keep working"),
            "What happens when the agent is dead or hung.",
        ),
        field(
            "mode",
            Shape::Choice(&[
                ("auto", "the best that works here: `mark`"),
                (
                    "mark",
                    "a socket mark and a local route: the application's addresses stay true",
                ),
                (
                    "loopback",
                    "a rewrite to the workload's loopback, for applications that `mark` disturbs",
                ),
            ]),
            Absent::Default("auto", "nobody should have to know"),
            "How what it dials reaches the proxy.",
        ),
        field(
            "inbound",
            Shape::Choice(&[
                ("rules", "those to a port with an inbound rule"),
                ("capture", "all of them"),
                ("pass", "none"),
            ]),
            Absent::Default("rules", "what nobody asks about is not slowed"),
            "Which connections that come in pass the proxy.",
        ),
        field(
            "bypass-guard",
            Shape::Choice(&[
                ("off", "the connect hooks alone decide"),
                (
                    "on",
                    "the node's side of its interface drops what they did not let through",
                ),
            ]),
            Absent::Default("off", "it needs a veth"),
            "Whether a privileged process in the workload is kept from going around the mesh.",
        ),
        field(
            "second-pass",
            Shape::Choice(&[
                (
                    "collapse",
                    "the agent applies the inbound rules before it dials",
                ),
                ("full", "out of the one, into the other"),
            ]),
            Absent::Default("collapse", "half the cost"),
            "How a connection from another workload of this node reaches it: past the proxy once \
             or twice.",
        ),
        field(
            "capture",
            Shape::Bool,
            Absent::Default("true", "who is listed is meant"),
            "Whether it is captured at all.",
        ),
    ],
    groups: &[Group::ExactlyOne(&["netns", "pid"])],
};

/// An entry of `outbound`.
pub(crate) static OUTBOUND: Object = Object {
    name: "Outbound",
    doc: "An exception that the kernel decides. The longest range wins.",
    fields: &[
        needed(
            "cidr",
            Shape::Text(Text::Cidr),
            "Destinations: a range, or one address.",
        ),
        field(
            "ports",
            Shape::list(&PORT_NUMBER, 64),
            Absent::Means("every port"),
            "Destination ports.",
        ),
        field(
            "protocol",
            Shape::Choice(&[
                ("tcp", "connections; datagrams pass"),
                (
                    "udp",
                    "datagrams, QUIC and DNS among them: one for port 53 goes before one for every port",
                ),
                ("any", "both"),
            ]),
            Absent::Default(
                "tcp",
                "a rule for a range must not take name resolution away",
            ),
            "What it is about.",
        ),
        needed(
            "action",
            Shape::Choice(&[
                ("pass", "left alone, even if it is a service's"),
                ("deny", "refused in the kernel with ECONNREFUSED"),
            ]),
            "What happens.",
        ),
    ],
    groups: &[],
};
