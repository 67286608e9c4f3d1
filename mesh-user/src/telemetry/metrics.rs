//! Every metric's name, kind, help and labels: the only place that spells them.
//!
//! `docs/METRICS.md` is made from this table. Labels come from the model or from closed enums;
//! never a path, an address of a client, or a string from a request.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of observations below bounds, with their sum.
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Full name, as a query spells it; a counter's ends in `_total`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it says, one sentence.
    pub help: &'static str,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
}

impl Metric {
    /// The family's name: OpenMetrics takes the `_total` off.
    pub fn family(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }
}

/// Labels of the request metrics (Istio's names). `reporter` says at which side the proxy stood:
/// `source` for what a workload asks, `destination` for what comes to it.
pub const REQUEST_LABELS: &[&str] = &[
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_version",
    "destination_principal",
    "request_protocol",
    "connection_security_policy",
    "response_code",
    "grpc_response_status",
    "response_flags",
];

/// Labels of the TCP metrics: the same without what only an answer has.
pub const TCP_LABELS: &[&str] = REQUEST_LABELS.split_at(15).0;

const KERNEL_LABELS: &[&str] = &["namespace", "service", "port", "version", "event"];
const KERNEL_BYTE_LABELS: &[&str] = &["namespace", "service", "port", "version", "direction"];

const BREAKER_LABELS: &[&str] = &["namespace", "service", "port", "version", "resource"];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $const:ident = $kind:ident $name:literal $labels:expr;)+) => {
        $(
            $(#[doc = $help])+
            pub const $const: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                help: concat!($($help),+).trim_ascii(),
                labels: $labels,
            };
        )+
        /// Every metric, in the order in which it is documented.
        pub const ALL: &[Metric] = &[$($const),+];
    };
}

metrics! {
    /// Requests that ended, refused ones included.
    REQUESTS = Counter "istio_requests_total" REQUEST_LABELS;
    /// From the first byte of the request to the last byte of the answer, in milliseconds.
    REQUEST_DURATION = Histogram "istio_request_duration_milliseconds" REQUEST_LABELS;
    /// Bytes of request bodies.
    REQUEST_BYTES = Histogram "istio_request_bytes" REQUEST_LABELS;
    /// Bytes of response bodies.
    RESPONSE_BYTES = Histogram "istio_response_bytes" REQUEST_LABELS;
    /// Opaque TCP connections that were routed.
    TCP_OPENED = Counter "istio_tcp_connections_opened_total" TCP_LABELS;
    /// Opaque TCP connections that ended.
    TCP_CLOSED = Counter "istio_tcp_connections_closed_total" TCP_LABELS;
    /// Bytes to the client over opaque TCP connections that ended.
    TCP_SENT = Counter "istio_tcp_sent_bytes_total" TCP_LABELS;
    /// Bytes from the client over opaque TCP connections that ended.
    TCP_RECEIVED = Counter "istio_tcp_received_bytes_total" TCP_LABELS;

    /// Connections that the kernel sent to an endpoint by itself, past the proxy, by what became of
    /// them: opened, established, failed, abandoned, closed.
    KERNEL_CONNECTIONS = Counter "mesh_kernel_connections_total" KERNEL_LABELS;
    /// Bytes over such connections that ended, to the endpoint (sent) and from it (received).
    KERNEL_BYTES = Counter "mesh_kernel_bytes_total" KERNEL_BYTE_LABELS;

    /// Connections that the proxy accepted, by what is spoken.
    CONNECTIONS_OPENED = Counter "mesh_connections_opened_total" &["protocol"];
    /// Accepted connections that ended.
    CONNECTIONS_CLOSED = Counter "mesh_connections_closed_total" &["protocol"];
    /// Requests and connections that were refused or failed, by reason.
    REJECTS = Counter "mesh_rejects_total" &["reason"];
    /// What rules did with requests besides forwarding them: faults put in, answers of their own.
    ACTIONS = Counter "mesh_actions_total" &["kind"];
    /// Deliveries beyond a request's first.
    RETRIES = Counter "mesh_retries_total" &[];
    /// Endpoints ejected, returned, or left in since the ejected share is at its limit.
    EJECTIONS = Counter "mesh_ejections_total" &["event"];
    /// Active health checks, by result: ok, status, not_serving, grpc_status, connect_failed, broken,
    /// timeout.
    HEALTH_CHECKS = Counter "mesh_health_checks_total" &["namespace", "service", "result"];
    /// Endpoints that an active health check found unhealthy.
    UNHEALTHY = Gauge "mesh_endpoints_unhealthy" &["namespace", "service"];
    /// Inbound connections whose application sees the workload's own address, since no port of the
    /// client's was free.
    SOURCES_LOST = Counter "mesh_inbound_source_lost_total" &[];
    /// Copies of requests for a mirror's service: what became of each, and how the answers compare.
    MIRRORS = Counter "mesh_mirror_total" &["service", "result"];
    /// TLS handshakes with clients whose TLS ends here, and with endpoints, by how they ended: done,
    /// failed, untrusted, timed_out, closed.
    TLS_HANDSHAKES = Counter "mesh_tls_handshakes_total" &["side", "result"];
    /// Problems with certificate, key and CA files whose newest content is therefore not in force.
    TLS_FILES_REFUSED = Gauge "mesh_tls_files_refused" &[];
    /// Panics that were caught at the root of a task; each ended one connection.
    TASK_PANICS = Counter "mesh_task_panics_total" &["task"];
    /// Access-log lines that were not written: queue full, or the file could not be written.
    LOG_LOST = Counter "mesh_access_log_lost_total" &[];
    /// Label sets of request and TCP metrics that are kept.
    SERIES = Gauge "mesh_metric_series" &["family"];

    /// Generation of the snapshot in force; 0 before the first.
    GENERATION = Gauge "mesh_model_generation" &[];
    /// When the configuration was last taken over, in seconds since 1970.
    RELOAD_TIME = Gauge "mesh_config_last_reload_success_timestamp_seconds" &[];
    /// Whether the newest configuration is in force: 1 or 0.
    RELOAD_GOOD = Gauge "mesh_config_last_reload_successful" &[];
    /// Workloads of the model, by state.
    WORKLOADS = Gauge "mesh_workloads" &["state"];
    /// Whether the agent is ready: 1 or 0.
    READY = Gauge "mesh_ready" &[];
    /// What a version's breaker counts now: connections, pending and running requests, retries.
    BREAKER_IN_USE = Gauge "mesh_breaker_in_use" BREAKER_LABELS;
    /// The caps of a version's breaker.
    BREAKER_LIMIT = Gauge "mesh_breaker_limit" BREAKER_LABELS;
    /// Endpoints chosen among all of a version, healthy or not, since too few were healthy.
    PANICS = Counter "mesh_panic_picks_total" &["namespace", "service", "port", "version"];
    /// Versions whose breakers are left out above, since there are too many.
    BREAKERS_OMITTED = Gauge "mesh_breakers_omitted" &[];
    /// What became of requests at a rate limit: `admitted`, `refused`, `dry_run` (would have been refused), and where its store did not answer `failed_open` or `failed_closed`.
    RATE_LIMITS = Counter "mesh_rate_limit_total" &["service", "limit", "result"];
    /// Tokens of a shared rate limit that this node holds.
    RATE_LIMIT_LEASES = Gauge "mesh_rate_limit_lease_tokens" &["service", "limit"];
    /// Questions to the store of a shared rate limit: `answered` or `failed`.
    RATE_LIMIT_CALLS = Counter "mesh_rate_limit_store_calls_total" &["service", "limit", "result"];
    /// Rate limits that are left out above, since there are too many.
    RATE_LIMITS_OMITTED = Gauge "mesh_rate_limits_omitted" &[];

    /// What the connect hooks did with a connection, by reason.
    BPF_REDIRECTS = Counter "mesh_bpf_redirects_total" &["reason"];
    /// What the socket look-up did with an arriving SYN, by reason.
    BPF_STEER = Counter "mesh_bpf_steer_total" &["reason"];
    /// Records of flows that were opened, established, closed, or found no room.
    BPF_FLOWS = Counter "mesh_bpf_flows_total" &["reason"];
    /// Kernel events that found no room in the ring buffer.
    BPF_EVENTS_LOST = Counter "mesh_bpf_events_lost_total" &[];
    /// Entries of a BPF map.
    BPF_ENTRIES = Gauge "mesh_bpf_map_entries" &["map"];
    /// Capacity of a BPF map.
    BPF_CAPACITY = Gauge "mesh_bpf_map_capacity" &["map"];

    /// Frames at the node's interfaces, by what the shield did with them.
    SHIELD_PACKETS = Counter "mesh_shield_packets_total" &["reason"];
    /// Their bytes.
    SHIELD_BYTES = Counter "mesh_shield_bytes_total" &["reason"];
    /// Frames that a rule of the shield's configuration decided.
    SHIELD_RULE_PACKETS = Counter "mesh_shield_rule_packets_total" &["rule"];
    /// Address ranges in the shield's lists.
    SHIELD_PREFIXES = Gauge "mesh_shield_prefixes" &[];
    /// Always 1; how the shield stands on an interface is a label (`none`: it does not).
    SHIELD_ATTACHED = Gauge "mesh_shield_attached" &["interface", "how"];

    /// Always 1; the version is a label.
    BUILD_INFO = Gauge "mesh_build_info" &["version", "arch"];
    /// CPU time of the agent, user and system, in seconds.
    PROCESS_CPU = Counter "process_cpu_seconds_total" &[];
    /// Open file descriptors.
    PROCESS_FDS = Gauge "process_open_fds" &[];
    /// Most file descriptors that may be open.
    PROCESS_FDS_MAX = Gauge "process_max_fds" &[];
    /// Virtual memory in bytes.
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" &[];
    /// Resident memory in bytes.
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" &[];
    /// Threads of the agent.
    PROCESS_THREADS = Gauge "process_threads" &[];
    /// When the agent started, in seconds since 1970.
    PROCESS_START = Gauge "process_start_time_seconds" &[];
}

/// Upper bounds of the duration histogram in microseconds. Envoy's, with 2.5 ms added, where a
/// mesh's requests are, and without those above 60 s, where time-outs have ended everything.
pub const DURATION_BOUNDS_US: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Upper bounds of the byte histograms: one for each power of ten. Each bound is a line for each
/// label set, and sizes need no more.
pub const BYTE_BOUNDS: [u64; 8] = [
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
];
