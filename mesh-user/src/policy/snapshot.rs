//! One immutable set of decisions, compiled from a model and swapped whole.
//!
//! Plans are immutable; the state beside them (breakers, endpoints, limiters) is shared by `Arc`
//! and carried from one snapshot to the next, so that a reload forgets nothing: requests in flight
//! stay counted, ejected endpoints stay ejected, buckets keep their level.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{balance, breaker::Breaker, ejection::Ejection, rate_limit::Limiter, retry::RetryPlan, route::RouteTable};
use crate::{
    clock::MonoNanos,
    model::{Balance, Model, Protocol, Tags, kernel_table::{KernelTable, Path}},
};

/// Index of a [`PortPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PortIx(pub u32);
/// Index of a [`VersionPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct VersionIx(pub u32);
/// Index of a rule plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RuleIx(pub u32);
/// Index of a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SourceIx(pub u32);
/// Index into [`VersionPlan::endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct EndpointIx(pub u32);

/// One port of one service: what the proxy looks up for a connection.
#[derive(Debug)]
pub struct PortPlan {
    /// Service name.
    pub service: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Port name.
    pub name: Arc<str>,
    /// Port number.
    pub number: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Whether upstream connections leave from the agent's own namespace.
    pub dial_from_node: bool,
    /// Who decides, and why.
    pub path: Path,
    /// The rule or policy that forced `path`, for people.
    pub path_reason: String,
    /// Its rules, indexed.
    pub routes: RouteTable,
}

/// One set of endpoints of a port that rules send to, with its effective policy.
#[derive(Debug)]
pub struct VersionPlan {
    /// The port it belongs to.
    pub port: PortIx,
    /// Its name: the version's, or `*` for all endpoints, or the tags as `k=v,k=v`.
    pub name: Arc<str>,
    /// The tags that select it.
    pub tags: Tags,
    /// Its endpoints, healthy or not.
    pub endpoints: Vec<Arc<EndpointState>>,
    /// Its caps: shared by all cores.
    pub breaker: Arc<Breaker>,
    /// Passive ejection, when a policy asks for it.
    pub ejection: Option<Arc<Ejection>>,
    /// Rate limits, all of which must admit.
    pub limits: Vec<Arc<Limiter>>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// State of round robin.
    pub turn: balance::Turn,
    /// Request time-out; zero: none.
    pub request_timeout: Duration,
    /// Connect time-out; never zero.
    pub connect_timeout: Duration,
    /// Idle time-out of connections; zero: none.
    pub idle_timeout: Duration,
    /// Retries.
    pub retry: RetryPlan,
}

/// An endpoint of a service port with its live state. Shared by every version that contains it,
/// by all cores, and by successive snapshots.
#[derive(Debug)]
pub struct EndpointState {
    /// Unique for the life of the process: pools are keyed by it.
    pub id: u64,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// Its tags.
    pub tags: Tags,
    /// Its identity, where known.
    pub identity: Option<Arc<str>>,
    /// Share inside a version.
    pub weight: u32,
    /// What the platform says of it.
    pub healthy: bool,
    /// Live counters and ejection state.
    pub live: Arc<super::ejection::Live>,
}

/// A workload as a source of requests.
#[derive(Debug)]
pub struct Source {
    /// Name.
    pub workload: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// `namespace/name`.
    pub key: Arc<str>,
    /// Tags.
    pub tags: Tags,
    /// Identity.
    pub identity: Option<Arc<str>>,
}

/// The decisions in force.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up with every swap.
    pub generation: u64,
    /// The model it was compiled from.
    pub model: Arc<Model>,
    /// Service ports.
    pub ports: Vec<PortPlan>,
    /// Versions.
    pub versions: Vec<VersionPlan>,
    /// Rules, by [`RuleIx`].
    pub rules: Vec<super::route::RulePlan>,
    /// Workloads.
    pub sources: Vec<Source>,
}

/// How an attempt ended, as the endpoint's record sees it. Local refusals are never recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer came; for gRPC the status mapped to HTTP.
    Status(u16),
    /// The connection could not be made.
    ConnectFailed,
    /// The connection broke before an answer.
    Reset,
    /// No answer in time.
    Timeout,
    /// A TCP connection was established and ended normally.
    Connected,
    /// The client went away: neither success nor failure.
    Abandoned,
}

impl Snapshot {
    /// Compiles a valid model (see `config::validate`). State of `previous` that still applies is
    /// carried over.
    pub fn compile(_model: Arc<Model>, _previous: Option<&Self>, _now: MonoNanos) -> Self {
        unimplemented!("policy")
    }

    /// An empty snapshot: everything passes.
    pub fn empty() -> Self {
        Self::compile(Arc::new(Model::default()), None, MonoNanos(0))
    }

    /// The service port behind a destination that a workload dialled.
    pub fn port_at(&self, _ip: IpAddr, _port: u16) -> Option<PortIx> {
        unimplemented!("policy")
    }

    /// The service port that a client means by `host` (hostname or address, without port) and port
    /// number: for `mesh explain`.
    pub fn port_named(&self, _host: &str, _port: u16) -> Option<PortIx> {
        unimplemented!("policy")
    }

    /// The workload with this `namespace/name`.
    pub fn source(&self, _key: &str) -> Option<SourceIx> {
        unimplemented!("policy")
    }

    /// Records how an attempt at an endpoint ended; ejects it at once when it must be.
    ///
    /// Returns what changed, for the log and the event stream.
    pub fn record(
        &self,
        _version: VersionIx,
        _endpoint: &EndpointState,
        _outcome: Outcome,
        _now: MonoNanos,
    ) -> Option<super::ejection::Change> {
        unimplemented!("policy")
    }

    /// Runs the ejection sweeps that are due. Called by the control runtime about once a second.
    pub fn sweep(&self, _now: MonoNanos) -> Vec<super::ejection::Change> {
        unimplemented!("policy")
    }

    /// What the kernel's maps must hold.
    pub fn kernel_table(&self) -> KernelTable {
        unimplemented!("policy")
    }
}
