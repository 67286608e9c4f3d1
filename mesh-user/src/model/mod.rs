//! The service model: what platforms describe and rules refer to. No platform's types in it.
//!
//! Adapters (`platform`) fill it; `policy::snapshot` compiles it. Plain data: no I/O, no tokio.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use serde::Serialize;

pub mod action;
pub mod attribute;
pub mod balance;
mod change;
pub mod health;
pub mod inbound;
pub mod kernel_path;
pub mod kernel_table;
pub mod limit;
pub mod list;
mod resilience;
pub mod route_status;
pub mod shield;
pub mod tls;

pub use action::{Actions, Fraction, Mirror, RuleExtra};
pub use attribute::Attribute;
pub use balance::{Balance, BalancePolicy, LocalityPolicy};
pub use health::HealthCheck;
pub use limit::{LimitUnit, RateLimitPolicy, RateLimitService};
pub use list::{Few, List};
pub use resilience::{
    AdaptivePolicy, ChangeAction, ConnectionPolicy, FailurePercentage, HedgePolicy, LatencyOutlier,
    OnChange, RetryBudget, SuccessRate,
};

/// A set of tags. A version selects the endpoints whose tags contain all of its own; the empty
/// set selects every endpoint.
pub type Tags = BTreeMap<String, String>;

/// Whether `subset` selects something that carries `tags` (Istio 0.1's `SubsetOf`).
pub fn selects(subset: &Tags, tags: &Tags) -> bool {
    subset
        .iter()
        .all(|(key, value)| tags.get(key) == Some(value))
}

/// Everything that one or more platforms say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Model {
    /// Services, in the order in which they were given.
    pub services: List<Service>,
    /// Traffic rules.
    pub rules: List<Rule>,
    /// Policies.
    pub policies: List<Policy>,
    /// Workloads on this node.
    pub workloads: Vec<Workload>,
    /// Outbound exceptions that the kernel decides, before any service is looked up.
    pub outbound: Vec<OutboundRule>,
    /// What happens to connections that come in, in the order in which they are tried.
    pub inbound: Vec<inbound::InboundRule>,
    /// This node's `region/zone/subzone`, from the left as far as it is known; empty when unknown.
    pub locality: String,
    /// Stores of shared rate limits.
    pub rate_limit_services: Vec<RateLimitService>,
    /// What became of the routes of other APIs; their rules are among [`rules`](Self::rules).
    pub routes: Vec<route_status::RouteStatus>,
}

/// What clients dial: hostnames and virtual addresses, ports, and the endpoints behind them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    /// Name, unique inside its namespace.
    pub name: String,
    /// Namespace; `default` when the platform has none.
    pub namespace: String,
    /// Hostnames by which clients address it (for `Host`/`:authority` only: mesh does no DNS).
    pub hostnames: Vec<String>,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Named versions.
    pub versions: BTreeMap<String, Tags>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Whether the platform routes the virtual addresses without us (kube-proxy and friends).
    pub routable: bool,
    /// From where the proxy dials the endpoints.
    pub dial_from: DialFrom,
}

impl Service {
    /// `namespace/name`: how messages and metrics name it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// From where upstream connections are dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialFrom {
    /// From the client's namespace, with its address: NetworkPolicy stays true. Pools are then
    /// kept for each (core, workload, endpoint).
    #[default]
    Workload,
    /// From the agent's own namespace: one pool for all workloads of the node.
    Node,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Port {
    /// Name, unique inside the service.
    pub name: String,
    /// Number that clients dial.
    pub number: u16,
    /// Number at the endpoint, unless the endpoint says otherwise.
    pub target: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Who shall decide for its connections.
    pub path: PathChoice,
    /// TLS of its clients ends here.
    pub tls: Option<Arc<tls::Terminate>>,
}

/// Who shall decide for the connections of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathChoice {
    /// The cheapest that honours its rules and policies: the kernel only for protocol `tcp`, for
    /// an HTTP port would lose the choice for each request, its metrics and its access log.
    #[default]
    Auto,
    /// The kernel. Rules and policies that it can't honour are refused.
    Kernel,
    /// The kernel as long as it can honour the rules and policies, else the proxy.
    PreferKernel,
    /// The proxy.
    Proxy,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// HTTP/1.1, or HTTP/2 with prior knowledge, told apart by the first bytes.
    Http,
    /// HTTP/2 with prior knowledge only.
    Http2,
    /// gRPC: HTTP/2, refusals as gRPC statuses.
    Grpc,
    /// Opaque bytes: never sniffed, never delayed.
    Tcp,
    /// TLS that is passed on as it is: the ClientHello is read, and may choose the route.
    Tls,
    /// Unknown: sniffed for HTTP for at most 100 ms, then opaque.
    Auto,
}

impl Protocol {
    /// Whether requests, not only connections, are routed.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }
}

/// One address that serves a service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Port by service port name, where it differs from the port's target.
    pub ports: BTreeMap<String, u16>,
    /// Its tags.
    pub tags: Tags,
    /// `region/zone/subzone`, from the left as far as it is known; empty when unknown.
    pub locality: String,
    /// Identity (SPIFFE id) where known.
    pub identity: Option<String>,
    /// Whether the platform says that it is ready.
    pub healthy: bool,
    /// Share among the endpoints of a version, 1 when all are equal. 0: gets nothing.
    pub weight: u32,
    /// Failover group, 0 first: a group gets what those before it have no room for.
    pub priority: u32,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ports: BTreeMap::new(),
            tags: Tags::new(),
            locality: String::new(),
            identity: None,
            healthy: true,
            weight: 1,
            priority: 0,
        }
    }
}

/// A workload on this node: a network namespace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// Name, unique inside its namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Where its network namespace is found.
    pub netns: Netns,
    /// Its cgroup below the cgroup2 mount: a name only, hooks attach at `attach`.
    pub cgroup: Option<PathBuf>,
    /// Tags (labels).
    pub tags: Tags,
    /// Identity (SPIFFE id).
    pub identity: Option<String>,
    /// How its connections are intercepted.
    #[serde(flatten)]
    pub interception: Interception,
    /// Whether it is captured at all.
    pub capture: bool,
}

impl Workload {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Where a network namespace is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Netns {
    /// A path such as `/run/netns/NAME`.
    Path(PathBuf),
    /// The namespace of a process.
    Pid(u32),
}

/// How the connections of a workload are intercepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Interception {
    /// How what it dials reaches the proxy.
    pub mode: Mode,
    /// What happens when the agent is gone.
    pub failure: Failure,
    /// Which connections that come in pass the proxy.
    pub inbound: Inbound,
    /// Whether what leaves it is checked a second time, at the node's side of its interface.
    pub bypass_guard: bool,
    /// Whether a connection between two workloads of this node passes the proxy once or twice.
    pub second_pass: SecondPass,
}

impl Interception {
    /// Whether connections are marked, which takes a rule, a route and settings in the workload's
    /// namespace: those that leave in mode `mark`, and those to the application that keep the
    /// client's address.
    pub fn marks(&self) -> bool {
        self.mode != Mode::Loopback || self.inbound == Inbound::Capture
    }
}

/// How outbound connections reach the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The best that works here: `mark`.
    #[default]
    Auto,
    /// A socket mark, a local route and `sk_lookup`: the application's addresses stay true.
    Mark,
    /// The destination becomes the workload's loopback; `getpeername` says what was dialled.
    Loopback,
}

/// Which connections that come in pass the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inbound {
    /// Those to a port with an inbound rule; the others are passed and counted.
    #[default]
    Rules,
    /// All of them.
    Capture,
    /// None.
    Pass,
}

/// How often a connection between two workloads of one node passes the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondPass {
    /// Once: the agent applies the inbound rules before it dials.
    #[default]
    Collapse,
    /// Twice: out of the one, into the other.
    Full,
}

/// What happens to connections when the agent is dead or hung.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// They go direct.
    #[default]
    Open,
    /// They are refused at once with ECONNREFUSED.
    Closed,
}

/// A traffic rule of one service.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rule {
    /// Name for logs, metrics and `explain`; unique inside the service. Made by the adapter when
    /// the user gave none.
    pub name: String,
    /// The service's index in [`Model::services`].
    pub service: usize,
    /// Only this port, by name; every port when absent.
    pub port: Option<String>,
    /// Higher first; equal: see [`Rule::order`].
    pub precedence: i32,
    /// Alternatives: the rule matches when any of them does, or when there is none.
    pub matches: Vec<Match>,
    /// Where to. At least one, unless an action answers by itself.
    pub route: Vec<Target>,
    /// What else happens with what matches; none: it is forwarded as it is.
    pub extra: Option<Box<RuleExtra>>,
}

impl Rule {
    /// Everything that requests may be sent to: the targets and the mirrors.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        let actions = std::iter::once(&self.extra().actions);
        let own = self.route.iter();
        let each = own.clone().filter_map(|target| target.actions.as_deref());
        let mirrors = actions.chain(each).flat_map(|actions| &actions.mirrors);
        own.chain(mirrors.map(|mirror| &mirror.target))
    }

    /// What rules are sorted by, in a stable way: precedence, then those made from another API's
    /// objects, then the others in the order of [`Model::rules`].
    pub fn order(&self) -> impl Ord + use<> {
        (
            std::cmp::Reverse(self.precedence),
            self.extra().origin.is_none(),
        )
    }

    /// Whether it is about this port, by name.
    pub fn covers(&self, port: &str) -> bool {
        self.port.as_deref().is_none_or(|name| name == port)
    }

    /// What happens with what matches, besides being forwarded.
    pub fn extra(&self) -> &RuleExtra {
        static NOTHING: RuleExtra = RuleExtra::NOTHING;
        self.extra.as_deref().unwrap_or(&NOTHING)
    }
}

/// Conditions that must all hold. An empty one holds always. What most conditions don't ask takes
/// one word: there may be 100,000 of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Match {
    /// Path, without the query.
    pub path: Option<PathMatch>,
    /// Methods, one of which must be equal (case-sensitive, RFC 9110 §9.1). Empty: any.
    pub methods: Few<String>,
    /// Headers, by lower-case name; all must match.
    pub headers: Few<(String, ValueMatch)>,
    /// Query parameters; all must match. Of a repeated parameter the first counts.
    pub query: Few<(String, ValueMatch)>,
    /// `Host` or `:authority`, lower-case, without port.
    pub authority: Option<Box<ValueMatch>>,
    /// The workload that asks.
    pub source: Option<Box<SourceMatch>>,
    /// Server names of a TLS ClientHello, one of which must be it: lower-case, exact or `*.` and a
    /// suffix (one label or more). Empty: any, also none.
    pub sni: Few<String>,
}

impl Match {
    /// Whether it asks anything that only an HTTP request can answer.
    pub fn needs_http(&self) -> bool {
        self.path.is_some()
            || !self.methods.is_empty()
            || !self.headers.is_empty()
            || !self.query.is_empty()
            || self.authority.is_some()
    }
}

/// How a path is matched.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathMatch {
    /// Equal.
    Exact(String),
    /// By `/`-elements, a trailing slash ignored (Gateway API): `/abc` matches `/abc/d`, not
    /// `/abcd`.
    Prefix(String),
    /// A regular expression that matches the whole path.
    Regex(String),
}

/// How a value is matched.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ValueMatch {
    /// Equal, case-sensitive.
    Exact(String),
    /// Starts with it.
    Prefix(String),
    /// A regular expression that matches the whole value.
    Regex(String),
    /// There (`true`) or not there (`false`), whatever the value.
    Present(bool),
}

/// Which workloads may have asked. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SourceMatch {
    /// Workload name.
    pub workload: Option<String>,
    /// Workload namespace.
    pub namespace: Option<String>,
    /// Identity, exact.
    pub identity: Option<String>,
    /// Tags that the workload must carry.
    pub tags: Tags,
    /// Namespaces in which the workload must not be. Alone it is met by an unknown source too.
    pub except_namespaces: Vec<String>,
}

/// One destination of a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// What it selects among the endpoints of the service.
    pub select: Select,
    /// Its share: weight / sum of weights, 0 to 1,000,000. 0: receives nothing.
    pub weight: u32,
    /// Another service; none: the rule's own, on the port that was dialled.
    pub backend: Option<Backend>,
    /// What happens on the way to this target alone, after the rule's own actions.
    pub actions: Option<Box<Actions>>,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            select: Select::All,
            weight: 100,
            backend: None,
            actions: None,
        }
    }
}

/// A port of another service than the rule's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Backend {
    /// Its index in [`Model::services`].
    pub service: usize,
    /// Number of the service port.
    pub port: u16,
}

/// What a target or a policy selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// Every endpoint.
    #[default]
    All,
    /// A named version.
    Version(String),
    /// The endpoints that carry these tags.
    Tags(Tags),
    /// Those endpoints of the service that are dialled at these addresses.
    Endpoints(Vec<SocketAddr>),
    /// Nothing: the reference can't be resolved, for this reason. Its share is answered with 500.
    Invalid(String),
}

/// A policy of a service, or of one version of it. What it leaves out falls to the service's
/// policy, then to the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Policy {
    /// The service's index in [`Model::services`].
    pub service: usize,
    /// Only this version, by name.
    pub version: Option<String>,
    /// Only this port, by name.
    pub port: Option<String>,
    /// Circuit breaking.
    pub breaker: Option<BreakerPolicy>,
    /// Passive ejection.
    pub ejection: Option<EjectionPolicy>,
    /// Rate limits; a request must pass all of them.
    pub rate_limits: Vec<RateLimitPolicy>,
    /// Load balancing.
    pub balance: Option<BalancePolicy>,
    /// Which endpoints are asked first.
    pub locality: Option<LocalityPolicy>,
    /// Active health checks, all of which an endpoint must pass.
    pub health_checks: Vec<HealthCheck>,
    /// Time-outs.
    pub timeouts: TimeoutPolicy,
    /// Retries.
    pub retries: Option<RetryPolicy>,
    /// Which share of the requests may be retries.
    pub retry_budget: Option<RetryBudget>,
    /// A second endpoint for requests that take long.
    pub hedge: Option<HedgePolicy>,
    /// A cap of requests in flight that follows the latency.
    pub adaptive: Option<AdaptivePolicy>,
    /// How long connections are used.
    pub connection: Option<ConnectionPolicy>,
    /// What becomes of long connections when what they go to changes.
    pub on_change: Option<OnChange>,
    /// TLS towards the endpoints.
    pub tls: Option<tls::UpstreamTls>,
    /// Protocols that a connection or stream may be changed to, lower-case (RFC 9110 §7.8, RFC
    /// 8441; Envoy's `upgrade_configs`). None: any but h2c; empty: none.
    pub upgrades: Option<Vec<String>>,
}

/// Caps, exact over the whole node (Envoy's meaning, SEMANTICS §5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BreakerPolicy {
    /// Connections to the version's endpoints. Default 1024.
    pub max_connections: u32,
    /// Requests that wait for a connection. Default 1024.
    pub max_pending: u32,
    /// Requests in flight, HTTP/2 streams included. Default 1024.
    pub max_requests: u32,
    /// Retries in flight. Default 3.
    pub max_retries: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending: 1024,
            max_requests: 1024,
            max_retries: 3,
        }
    }
}

/// Passive ejection with Envoy's clock (SEMANTICS §5.5). A count of 0 turns that detector off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EjectionPolicy {
    /// Consecutive 5xx answers, connect failures and resets included. Default 5.
    pub consecutive_5xx: u32,
    /// Consecutive 502, 503, 504. Default 0 (off).
    pub consecutive_gateway: u32,
    /// Consecutive failures that never reached an answer. Default 0 (off: they count as 5xx).
    pub consecutive_local_origin: u32,
    /// Time between sweeps. Default 10 s.
    pub interval: Duration,
    /// Ejection time is this times the number of ejections. Default 30 s.
    pub base: Duration,
    /// Longest ejection. Default the larger of 300 s and `base`.
    pub max: Duration,
    /// Largest ejected share of a version's ready endpoints, in percent, 0 to 100; at least one
    /// endpoint may be ejected when there are two or more. 0: none ever is, what would have been is
    /// only reported. Default 10.
    pub max_percent: u8,
    /// Return with one probing request instead of at full share. Default off.
    pub probe: bool,
    /// How many of 100 endpoints that reach `consecutive_5xx` are ejected. Default 100.
    pub enforcing_5xx: u8,
    /// The same for `consecutive_gateway`. Default 100 (Envoy 0, where the count itself is 5).
    pub enforcing_gateway: u8,
    /// The same for `consecutive_local_origin`. Default 100.
    pub enforcing_local_origin: u8,
    /// Longest time, drawn at random, that an ejection lasts beyond its time. Default 0.
    pub jitter_max: Duration,
    /// One endpoint may always be ejected, whatever `max_percent` says, even a lone one. Default
    /// off.
    pub always_one: bool,
    /// By the share of good answers, compared with the others. Default off.
    pub success_rate: Option<SuccessRate>,
    /// By the share of failures. Default off.
    pub failure_percentage: Option<FailurePercentage>,
    /// By latency, compared with the others. Default off.
    pub latency: Option<LatencyOutlier>,
}

impl Default for EjectionPolicy {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local_origin: 0,
            interval: Duration::from_secs(10),
            base: Duration::from_secs(30),
            max: Duration::from_secs(300),
            max_percent: 10,
            probe: false,
            enforcing_5xx: 100,
            enforcing_gateway: 100,
            enforcing_local_origin: 100,
            jitter_max: Duration::ZERO,
            always_one: false,
            success_rate: None,
            failure_percentage: None,
            latency: None,
        }
    }
}

/// Time-outs. `None`: the default; zero: no time-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TimeoutPolicy {
    /// Whole request, retries included, from the end of the downstream request. Default 15 s.
    pub request: Option<Duration>,
    /// To connect to an endpoint. Default 5 s.
    pub connect: Option<Duration>,
    /// Without any byte in either direction, of a connection. Default 1 h.
    pub idle: Option<Duration>,
}

/// Retries (SEMANTICS §5.7). Safe by default: what was provably not processed may be retried for
/// every method, anything else only for idempotent methods.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RetryPolicy {
    /// Retries at most, 0 to 10; deliveries are one more.
    pub attempts: u32,
    /// Time-out of each try until the response head. None: no per-try time-out.
    pub per_try: Option<Duration>,
    /// What is retried.
    pub on: Vec<RetryOn>,
    /// Answered statuses that are retried besides.
    pub statuses: Vec<u16>,
    /// Retry methods that are not idempotent too: the user says that the service can take it.
    pub non_idempotent: bool,
    /// Base of the back-off: full jitter in [0, (2^N - 1) x base), at most 10 x base.
    pub backoff: Duration,
    /// No pause is shorter than `backoff` (Gateway API's `retry.backoff`): the jitter only adds, in
    /// [b, 1.5 x b) with b = 2^(N-1) x base, at most 10 x base.
    pub backoff_is_least: bool,
    /// Answers with one of these header fields are retried besides (names lower-case).
    pub headers: Vec<(String, ValueMatch)>,
    /// Header fields of the answer, lower-case, that say after how many seconds to try again; the
    /// first that does counts, with a random half of itself more.
    pub reset_headers: Vec<String>,
    /// A longer pause than this in `reset_headers` is not waited for: the ordinary back-off is.
    /// Default 300 s, as Envoy.
    pub reset_max: Duration,
    /// The request header, lower-case, in which an endpoint reads how often it was tried, from 1.
    pub attempt_header: Option<String>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 1,
            per_try: None,
            on: Vec::new(),
            statuses: Vec::new(),
            non_idempotent: false,
            backoff: Duration::from_millis(25),
            backoff_is_least: false,
            headers: Vec::new(),
            reset_headers: Vec::new(),
            reset_max: Duration::from_secs(300),
            attempt_header: None,
        }
    }
}

/// A condition of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// The connection could not be made.
    ConnectFailure,
    /// HTTP/2 REFUSED_STREAM or a GOAWAY below the stream.
    RefusedStream,
    /// The connection broke before an answer.
    Reset,
    /// 502, 503, 504.
    GatewayError,
    /// Any 5xx, or no answer.
    ServerError,
    /// The per-try time-out.
    PerTryTimeout,
    /// The connection broke before a byte of the request was sent on it.
    ResetBeforeRequest,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// An answer that a rate limit refused (`x-envoy-ratelimited`, or `x-mesh-reject:
    /// rate_limited`). Unless this is listed, such an answer is never retried.
    RateLimited,
    /// gRPC status 1 in the head of the answer.
    Cancelled,
    /// gRPC status 4 in the head of the answer.
    DeadlineExceeded,
    /// gRPC status 13 in the head of the answer.
    Internal,
    /// gRPC status 8 in the head of the answer.
    ResourceExhausted,
    /// gRPC status 14 in the head of the answer.
    Unavailable,
}

/// An outbound exception that the kernel decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutboundRule {
    /// Destinations.
    pub cidr: IpNet,
    /// Ports; empty: every port.
    pub ports: Vec<u16>,
    /// Which protocol's.
    pub protocol: Transport,
    /// What happens.
    pub action: OutboundAction,
}

/// Which connections or datagrams an outbound rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP, and what is built on it.
    Udp,
    /// Both.
    Any,
}

impl Transport {
    /// Whether it is about TCP.
    pub fn tcp(self) -> bool {
        self != Self::Udp
    }

    /// Whether it is about UDP.
    pub fn udp(self) -> bool {
        self != Self::Tcp
    }
}

impl Model {
    /// The outbound rule that decides for a TCP destination: the longest range; of equal ranges the one
    /// that names the port. What the kernel's hook does, for people.
    pub fn outbound_rule(&self, ip: IpAddr, port: u16) -> Option<&OutboundRule> {
        let ip = ip.to_canonical();
        self.outbound
            .iter()
            .filter(|rule| rule.protocol.tcp() && rule.cidr.contains(&ip))
            .filter(|rule| rule.ports.is_empty() || rule.ports.contains(&port))
            .max_by_key(|rule| (rule.cidr.prefix_len(), !rule.ports.is_empty()))
    }
}

/// What happens to a connection that an outbound rule covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutboundAction {
    /// It is left alone, even if it is a service's.
    Pass,
    /// It is refused in the kernel with ECONNREFUSED, at connect or for each datagram.
    Deny,
}

/// A model that is shared between tasks.
pub type SharedModel = Arc<Model>;
