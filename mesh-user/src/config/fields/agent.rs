//! Settings of the agent.

use std::time::Duration;

use super::{Absent, DAY, MILLI, Object, Shape, Text, field};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `agent`.
pub(crate) static AGENT: Object = Object {
    name: "Agent",
    doc: "Settings of the agent on this node.",
    fields: &[
        field(
            "workers",
            Shape::Int { min: 1, max: 8 },
            Absent::Means("the CPUs that the process may use, at most 8"),
            "Worker threads, each with its own listeners and upstream pools. At most 8, the shards \
             of a listener. Needs a restart.",
        ),
        field(
            "unknown-netns",
            Shape::Choice(&[
                ("pass", "it connects as if there were no mesh"),
                ("refuse", "ECONNREFUSED"),
            ]),
            Absent::Default("pass", "pods keep working"),
            "What happens to a network namespace below the attach point that is not enrolled. \
             Needs a restart.",
        ),
        field(
            "metrics",
            Shape::Text(Text::Listen),
            Absent::Default("0.0.0.0:15020", "the port that Istio uses for it"),
            "Where `/metrics`, `/livez` and `/readyz` are served; `off`: nowhere. Needs a restart.",
        ),
        field(
            "access-log",
            Shape::Object(&ACCESS_LOG),
            Absent::Means("every default"),
            "The access log.",
        ),
        field(
            "limits",
            Shape::Object(&LIMITS),
            Absent::Means("every default"),
            "Limits of the data path.",
        ),
        field(
            "kubelet-cgroup",
            Shape::Text(Text::Cgroup),
            Absent::Means(
                "the kubelet's usual cgroups are looked for: `system.slice/kubelet.service`, \
                 `kubelet.slice`, `kubelet`, `podruntime/kubelet`",
            ),
            "The kubelet's own cgroup below the cgroup2 mount: connections that processes in it \
             open are probes, and go to the application whatever inbound rules say. Needs a restart.",
        ),
        field(
            "locality",
            Shape::Text(Text::TagValue),
            Absent::Means("unknown: no endpoint is nearer than another"),
            "Where this node is: `region/zone/subzone`, from the left as far as it is known. For \
             `locality` in policies.",
        ),
        field(
            "drain",
            Shape::Text(Text::Duration(Duration::ZERO, secs(3600))),
            Absent::Default("30s", "the time that Kubernetes gives a pod to end"),
            "How long a stop waits for requests in flight. `0s`: not at all.",
        ),
        field(
            "marks",
            Shape::Object(&MARKS),
            Absent::Means("every default"),
            "Which bits of the socket mark are ours. No other bit of a mark is ever changed. Needs \
             a restart behind a `mesh cleanup`.",
        ),
    ],
    groups: &[],
};

static MARKS: Object = Object {
    name: "Marks",
    doc: "Two bits of the socket mark that nobody else on the node uses; they differ.",
    fields: &[
        field(
            "capture-bit",
            Shape::Int { min: 0, max: 31 },
            Absent::Default(
                "20",
                "Cilium, Calico, Istio and kube-proxy leave it alone by default",
            ),
            "Bit of captured sockets.",
        ),
        field(
            "agent-bit",
            Shape::Int { min: 0, max: 31 },
            Absent::Default("21", "the next one"),
            "Bit of the agent's own sockets.",
        ),
    ],
    groups: &[],
};

static ACCESS_LOG: Object = Object {
    name: "AccessLog",
    doc: "One line for each request and each connection.",
    fields: &[
        field(
            "format",
            Shape::Choice(&[
                ("envoy", "Envoy's default line"),
                ("json", "one JSON object"),
                ("logfmt", "`key=value`"),
            ]),
            Absent::Default("envoy", "existing tools read it"),
            "How a line looks.",
        ),
        field(
            "filter",
            Shape::Choice(&[
                ("off", "none"),
                ("errors", "refusals and 5xx"),
                ("all", "all"),
            ]),
            Absent::Default("all", "a request without a trace can't be explained"),
            "Which lines are written.",
        ),
        field(
            "path",
            Shape::Text(Text::AbsolutePath),
            Absent::Means("standard output"),
            "The file to which lines are appended.",
        ),
    ],
    groups: &[],
};

/// Limits of the data path. Bounds say what still makes sense; defaults are `Limits::default`.
static LIMITS: Object = Object {
    name: "Limits",
    doc: "Limits of the data path. They apply to the next connection.",
    fields: &[
        field(
            "head-bytes-max",
            Shape::Size {
                min: 8192,
                max: 1 << 20,
            },
            Absent::Default("64KiB", "Envoy's 60 KiB, rounded up"),
            "Largest request or response head. More: 431, or 502 for a response.",
        ),
        field(
            "head-fields-max",
            Shape::Int { min: 16, max: 1000 },
            Absent::Default("100", "as Envoy"),
            "Most fields in a head.",
        ),
        field(
            "target-bytes-max",
            Shape::Size {
                min: 8000,
                max: 1 << 20,
            },
            Absent::Default("16KiB", "RFC 9110 §4.1 asks for at least 8,000 bytes"),
            "Longest request target. Not more than `head-bytes-max`. More: 414.",
        ),
        field(
            "header-timeout",
            Shape::Text(Text::Duration(Duration::from_millis(100), secs(300))),
            Absent::Default(
                "10s",
                "a slow phone manages; a slow-loris does not hold a socket for long",
            ),
            "A request head must be complete so long after its first byte.",
        ),
        field(
            "body-timeout",
            Shape::Text(Text::Duration(Duration::from_millis(100), secs(3600))),
            Absent::Default("30s", "half of nginx's `client_body_timeout`"),
            "A body must make progress in each such span.",
        ),
        field(
            "keep-alive-timeout",
            Shape::Text(Text::Duration(secs(1), DAY)),
            Absent::Default("1h", "as Envoy"),
            "An HTTP connection without a request is closed after this.",
        ),
        field(
            "detect-timeout",
            Shape::Text(Text::Duration(MILLI, Duration::from_millis(100))),
            Absent::Default("50ms", "server-first protocols wait for it"),
            "How long a port of protocol `auto` is sniffed before it is opaque.",
        ),
        field(
            "h2-streams-max",
            Shape::Int {
                min: 1,
                max: 65_535,
            },
            Absent::Default("100", "RFC 9113 §6.5.2 advises not less"),
            "HTTP/2: concurrent streams of a connection.",
        ),
        field(
            "h2-reset-streams-max",
            Shape::Int {
                min: 1,
                max: 10_000,
            },
            Absent::Default(
                "20",
                "as h2: far above what a well-behaved client resets at once",
            ),
            "HTTP/2: streams that the peer opened and reset before they were accepted. More: GOAWAY \
             ENHANCE_YOUR_CALM («rapid reset», CVE-2023-44487).",
        ),
        field(
            "h2-frame-bytes-max",
            Shape::Size {
                min: 16_384,
                max: 16_777_215,
            },
            Absent::Default("16KiB", "what every peer must take (RFC 9113 §4.2)"),
            "HTTP/2: largest frame.",
        ),
        field(
            "workload-connections-max",
            Shape::Int {
                min: 1,
                max: 1_000_000,
            },
            Absent::Default(
                "10000",
                "one workload must not take every descriptor of the agent",
            ),
            "Open connections of a workload.",
        ),
        field(
            "upstream-connections-max",
            Shape::Int {
                min: 1,
                max: 65_535,
            },
            Absent::Default(
                "32768",
                "half of the map `PROXY_FLOWS`, so that its entry is never refused",
            ),
            "Upstream connections of the node, idle ones included. Below the 65,536 entries of \
             `PROXY_FLOWS`.",
        ),
        field(
            "upstream-idle-max",
            Shape::Int {
                min: 0,
                max: 65_535,
            },
            Absent::Default("64", "what one core keeps busy"),
            "Idle upstream connections for each core, workload and endpoint. Not more than \
             `upstream-connections-max`.",
        ),
        field(
            "upstream-idle-timeout",
            Shape::Text(Text::Duration(MILLI, DAY)),
            Absent::Default(
                "1m",
                "below the 75 s of nginx and the keep-alive of most servers",
            ),
            "An idle upstream connection is closed after this.",
        ),
        field(
            "replay-bytes-max",
            Shape::Size {
                min: 0,
                max: 16 << 20,
            },
            Absent::Default("64KiB", "as Linkerd"),
            "Largest request body that is kept for a retry. 0: requests with a body are not retried.",
        ),
        super::resilience::LIMITS_DOWNSTREAM_AGE_MAX,
        super::resilience::LIMITS_DOWNSTREAM_AGE_JITTER,
        super::resilience::OVERLOAD_HEADER_FIELD,
    ],
    groups: &[],
};
