//! One immutable set of decisions, compiled from a model and swapped whole.
//!
//! Plans are immutable; the state beside them (breakers, endpoints, limiters) is shared by `Arc`
//! and carried from one snapshot to the next, so that a reload forgets nothing: requests in flight
//! stay counted, ejected endpoints stay ejected, buckets keep their level.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh_common::service::{BACKEND_ON, BACKEND_REFUSE};
use serde::Serialize;

use super::{
    adaptive::Adaptive,
    arena::{Arena, Bits, IdShards, Shards},
    balance,
    breaker::{Breaker, RetryPermit},
    budget::Budget,
    effective::Effective,
    ejection::{self, Change, Ejection, What},
    inbound::{InboundIndex, InboundPlan},
    rate_limit::Limit,
    retry::RetryPlan,
    route::{RouteTable, RulePlan},
    slots::Ids,
    unit::{Claims, Unit, host_key},
};
use crate::{
    clock::MonoNanos,
    model::{
        Balance, Model, Protocol, Select, Service, Tags,
        kernel_table::{KernelTable, KernelTables, Path},
        list::Chunks,
        tls::{Originate, Terminate},
    },
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

/// The TLS settings of a model, for whoever reads their files.
#[derive(Clone, Debug, Default)]
pub struct TlsUses {
    /// Of ports.
    pub terminate: Vec<Arc<Terminate>>,
    /// Of policies.
    pub originate: Vec<Arc<Originate>>,
}

impl TlsUses {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.terminate.is_empty() && self.originate.is_empty()
    }
}

/// One port of one service: what the proxy looks up for a connection.
#[derive(Clone, Debug)]
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
    /// TLS of its clients ends here.
    pub tls: Option<Arc<Terminate>>,
    /// Whether upstream connections leave from the agent's own namespace.
    pub dial_from_node: bool,
    /// Who decides, and why.
    pub path: Path,
    /// The rule or policy that forced `path`, for people.
    pub path_reason: String,
    /// Its rules, indexed.
    pub routes: Arc<RouteTable>,
    /// `namespace/name`.
    pub key: Arc<str>,
    /// The version of all endpoints: where requests go when the port has no rules.
    pub all: VersionIx,
    /// Its versions; the first is [`all`](Self::all).
    pub versions: Vec<VersionIx>,
    /// What it has beside, when it is the inbound port of a workload rather than a service's.
    pub inbound: Option<InboundPlan>,
    /// The service's index in the model.
    pub(super) service_index: usize,
    /// Its number in the kernel's maps; 0: it has none.
    pub(super) service_id: u32,
    /// Where each selection of the rules that send to this port leads, in order.
    pub(super) selects: Box<[(Select, VersionIx)]>,
    /// Held while an endpoint of the port is ejected or brought back.
    pub(super) ejection_lock: Arc<Mutex<()>>,
}

/// One set of endpoints of a port that rules send to, with its effective policy.
#[derive(Debug)]
pub struct VersionPlan {
    /// The port it belongs to.
    pub port: PortIx,
    /// Its name: the version's, or `*` for all endpoints, or the tags as `k=v,k=v`.
    pub name: Arc<str>,
    /// The tags that select it.
    pub tags: Arc<Tags>,
    /// Its endpoints, healthy or not.
    pub endpoints: Vec<Arc<EndpointState>>,
    /// Its caps: shared by all cores.
    pub breaker: Arc<Breaker>,
    /// Passive ejection, when a policy asks for it.
    pub ejection: Option<Arc<Ejection>>,
    /// Rate limits, all of which must admit.
    pub limits: Vec<Limit>,
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
    /// Which share of the requests may be retries, when a policy asks for it.
    pub budget: Option<Arc<Budget>>,
    /// A cap of requests that follows the latency, when a policy asks for it.
    pub adaptive: Option<Arc<Adaptive>>,
    /// The same values with their origins, for people.
    pub effective: Arc<Effective>,
    pub(super) table: balance::Table,
}

/// An endpoint of a service port with its live state. Shared by every version that contains it,
/// by all cores, and by successive snapshots.
#[derive(Debug)]
pub struct EndpointState {
    /// Unique for the life of the process: pools are keyed by it.
    pub id: u64,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// Its tags: shared by all that have the same.
    pub tags: Arc<Tags>,
    /// Its identity, where known.
    pub identity: Option<Arc<str>>,
    /// Share inside a version.
    pub weight: u32,
    /// What the platform says of it.
    pub healthy: bool,
    /// Failover group, 0 first.
    pub priority: u32,
    /// `region/zone/subzone`, as far as it is known.
    pub locality: Option<Arc<str>>,
    /// When it appeared, or became ready; 0: not known.
    pub since: MonoNanos,
    /// Live counters and ejection state.
    pub live: Arc<ejection::Live>,
}

impl VersionPlan {
    /// Admits one retry; none when the budget, or without one `max-retries`, is used up: the first
    /// failure is then the answer.
    pub fn admit_retry(&self, now: MonoNanos) -> Option<RetryPermit> {
        match &self.budget {
            Some(budget) => budget.retry(&self.breaker, now),
            None => self.breaker.retry(),
        }
    }
}

impl EndpointState {
    /// No tags: shared by all that have none.
    pub(crate) fn no_tags() -> Arc<Tags> {
        static NONE: LazyLock<Arc<Tags>> = LazyLock::new(Arc::default);
        Arc::clone(&NONE)
    }

    /// Whether it may be chosen at all, ejection aside.
    pub(super) const fn is_usable(&self) -> bool {
        self.healthy && self.weight > 0
    }
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
    /// Ports of services and inbound ports of workloads.
    pub ports: Arena<Arc<PortPlan>>,
    /// Versions.
    pub versions: Arena<Arc<VersionPlan>>,
    /// Rules, by [`RuleIx`].
    pub rules: Arena<RulePlan>,
    /// Workloads.
    pub sources: Arc<[Source]>,
    /// TLS that begins or ends here.
    pub tls: Arc<TlsUses>,
    /// What each service was compiled from, by its index in the model.
    pub(super) units: Chunks<Arc<Unit>>,
    pub(super) by_address: Shards<(IpAddr, u16), Claims>,
    /// By [`host_key`]; what is found is to be compared.
    pub(super) by_host: IdShards<Claims>,
    pub(super) by_workload: Arc<HashMap<Arc<str>, SourceIx>>,
    pub(super) kernel: KernelTables,
    /// Ports that the kernel decides for.
    pub(super) direct: Bits,
    /// Ports for whose split the kernel has no room.
    pub(super) crowded: Bits,
    pub(super) ids: Ids,
    pub(super) inbound: InboundIndex,
    /// Versions that this snapshot does not share with its predecessor.
    pub(super) fresh: Vec<VersionIx>,
    /// Whether all versions count as fresh: the predecessor was never in force.
    pub(super) all_fresh: bool,
    /// Whether [`enforce`](Self::enforce) has been called.
    pub(super) enforced: AtomicBool,
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

/// Failures of one look that are recorded one by one.
const KERNEL_FAILURES_MAX: u64 = 10_000;

impl Snapshot {
    /// Compiles a valid model (see `config::validate`). State of `previous` that still applies is
    /// carried over; it is not touched before [`enforce`](Self::enforce), so that a snapshot may
    /// also be thrown away.
    pub fn compile(model: Arc<Model>, previous: Option<&Self>, now: MonoNanos) -> Self {
        super::compile::compile(model, previous, now)
    }

    /// An empty snapshot: everything passes.
    pub fn empty() -> Self {
        Self::compile(Arc::new(Model::default()), None, MonoNanos(0))
    }

    /// Puts the snapshot's caps in force on state that it shares with its predecessor and its
    /// successors. To be called whenever it is swapped in, also when it is put back after its
    /// successor failed; [`sweep`](Self::sweep) does it for one that never was.
    pub fn enforce(&self) {
        let again = self.enforced.swap(true, Ordering::Relaxed);
        let put = |version: &VersionPlan| {
            let adaptive = version.adaptive.as_ref();
            let adaptive = adaptive.map(|adaptive| adaptive.in_force());
            let caps = version.effective.breaker.value;
            version.breaker.set_caps(caps, adaptive);
            if let Some(ejection) = version.ejection.as_ref().filter(|_| !again) {
                ejection.enforce();
            }
        };
        if again || self.all_fresh {
            self.versions.iter().for_each(|version| put(version));
        } else {
            // The others' are those of the predecessor, which was in force.
            let fresh = self.fresh.iter().map(|ix| self.version(*ix));
            fresh.for_each(put);
        }
    }

    /// The service port behind a destination that a workload dialled.
    pub fn port_at(&self, ip: IpAddr, port: u16) -> Option<PortIx> {
        let claims = self.by_address.get(&(ip.to_canonical(), port))?;
        Some(claims.first())
    }

    /// The service port that a client means by `host` (hostname, `namespace/name`, or address,
    /// without port) and port number: for `mesh explain`.
    pub fn port_named(&self, host: &str, port: u16) -> Option<PortIx> {
        let bare = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(ip) = bare.parse() {
            return self.port_at(ip, port);
        }
        let name = host.strip_suffix('.').unwrap_or(host);
        let claims = self.by_host.get(&host_key(name, port))?;
        claims.iter().find(|ix| {
            let plan = self.port(*ix);
            let service = self.service_of(plan);
            plan.number == port && service.is_some_and(|s| super::unit::is_named(s, name))
        })
    }

    /// The service of a port; none for an inbound port.
    pub fn service_of(&self, port: &PortPlan) -> Option<&Service> {
        self.units
            .get(port.service_index)
            .map(|unit| &*unit.service)
    }

    /// The workload with this `namespace/name`.
    pub fn source(&self, key: &str) -> Option<SourceIx> {
        self.by_workload.get(key).copied()
    }

    /// The plan of a service port. Indexes belong to the snapshot that gave them.
    ///
    /// # Panics
    /// When the index is another snapshot's and out of range here. The same for its siblings.
    pub fn port(&self, port: PortIx) -> &PortPlan {
        &self.ports[port.0 as usize]
    }

    /// The ports of services, in the order of the model.
    pub fn service_ports(&self) -> impl Iterator<Item = &PortPlan> {
        let ports = self.units.iter().flat_map(|unit| &unit.ports);
        ports.map(|ix| self.port(*ix))
    }

    /// The plan of a version.
    pub fn version(&self, version: VersionIx) -> &VersionPlan {
        &self.versions[version.0 as usize]
    }

    /// The plan of a rule.
    pub fn rule(&self, rule: RuleIx) -> &RulePlan {
        &self.rules[rule.0 as usize]
    }

    /// A workload.
    pub fn source_of(&self, source: SourceIx) -> &Source {
        &self.sources[source.0 as usize]
    }

    /// Records how an attempt at an endpoint ended; ejects it at once when it must be.
    ///
    /// `took`: until the answer's head came or the attempt ended, from when the endpoint had the
    /// whole request; for an opaque connection until it was established. None where nobody measured
    /// it (the kernel's connections) or nothing was asked of the endpoint.
    ///
    /// Returns what changed, for the log and the event stream.
    pub fn record(
        &self,
        version: VersionIx,
        endpoint: &EndpointState,
        outcome: Outcome,
        took: Option<Duration>,
        now: MonoNanos,
    ) -> Option<Change> {
        ejection::tally(&endpoint.live, outcome);
        let plan = self.version(version);
        if let (Some(adaptive), Some(took), Outcome::Status(_)) = (&plan.adaptive, took, outcome) {
            adaptive.record(took, &plan.breaker, now);
        }
        let Some(ejection) = &plan.ejection else {
            endpoint.live.answer_probe(outcome);
            return None;
        };
        ejection.measure(&endpoint.live, outcome, took);
        ejection.record(endpoint, &plan.endpoints, outcome, now)
    }

    /// Tells the balancer how an attempt went: what [`Balance::PeakEwma`] learns from.
    /// `retry_after`: how long the answer asks to stay away. `took` as in [`record`](Self::record).
    pub fn observe(
        &self,
        version: VersionIx,
        endpoint: &EndpointState,
        outcome: Outcome,
        took: Option<Duration>,
        retry_after: Option<Duration>,
        now: MonoNanos,
    ) {
        if let Some(took) = took {
            balance::observe(
                self.version(version),
                endpoint,
                outcome,
                took,
                retry_after,
                now,
            );
        }
    }

    /// Runs the ejection sweeps that are due. Called by the control runtime about once a second.
    pub fn sweep(&self, now: MonoNanos) -> Vec<Change> {
        if !self.enforced.load(Ordering::Relaxed) {
            self.enforce();
        }
        let mut changes = Vec::new();
        for version in self.versions.iter() {
            if let Some(ejection) = &version.ejection {
                changes.extend(ejection.sweep(&version.endpoints, now));
            }
        }
        for port in self.ports.iter() {
            for endpoint in &self.version(port.all).endpoints {
                let Some(owner) = endpoint.live.held_by() else {
                    continue;
                };
                if !self.sweeps(port, owner, endpoint) && endpoint.live.pardon() {
                    let service = port.label();
                    let what = What::Returned;
                    changes.push(Change {
                        service,
                        endpoint: endpoint.address,
                        what,
                    });
                }
            }
        }
        changes
    }

    /// Whether the ejection is still there and still covers the endpoint. Otherwise (its policy or
    /// the endpoint's tags have changed) no sweep would ever bring it back, and no version might
    /// ever answer for its probe.
    fn sweeps(&self, port: &PortPlan, owner: u64, endpoint: &EndpointState) -> bool {
        port.versions
            .iter()
            .map(|ix| self.version(*ix))
            .any(|version| {
                version
                    .ejection
                    .as_ref()
                    .is_some_and(|ejection| ejection.id() == owner)
                    && version
                        .endpoints
                        .iter()
                        .any(|member| member.id == endpoint.id)
            })
    }

    /// What the kernel's maps must hold, as it was when this was compiled.
    pub fn kernel_tables(&self) -> &KernelTables {
        &self.kernel
    }

    /// The same in one table, whose versions are the snapshot's.
    pub fn kernel_table(&self) -> KernelTable {
        super::slots::flat(self, &self.kernel)
    }

    /// What of the tables changes as endpoints are ejected now; none: nothing.
    ///
    /// `tables` are those of this snapshot, made with another set of ejected endpoints.
    pub fn kernel_tables_now(&self, tables: &KernelTables) -> Option<KernelTables> {
        let stale: Vec<PortIx> = self
            .direct
            .iter()
            .map(PortIx)
            .filter(|ix| self.is_stale(*ix, tables))
            .collect();
        if stale.is_empty() {
            return None;
        }
        let mut now = tables.clone();
        for ix in stale {
            let table = super::slots::port(self, self.port(ix), usize::MAX);
            now.ports.set(ix.0, Arc::new(table.0));
        }
        Some(now)
    }

    /// Whether a port's table was made with another set of ejected endpoints than there is now.
    fn is_stale(&self, ix: PortIx, tables: &KernelTables) -> bool {
        let Some(table) = tables.ports.get(ix.0 as usize) else {
            return false;
        };
        let entries = table.backends.iter().zip(&table.endpoints);
        entries
            .filter(|(backend, _)| backend.state != BACKEND_REFUSE)
            .any(|(backend, endpoint)| {
                let version = table.version_of(backend);
                let version = version.and_then(|ix| self.versions.get(ix as usize));
                version.is_some_and(|version| {
                    let endpoint = version.endpoints.get(*endpoint as usize);
                    let on = |e: &Arc<EndpointState>| balance::is_on(version, e);
                    endpoint.is_some_and(on) != (backend.state == BACKEND_ON)
                })
            })
    }

    /// Records what the kernel counted at an endpoint since the last look: connections that were
    /// established, and such that failed before. Ejects at once when it must be.
    ///
    /// In which order they ended is not known. Failures are consecutive for certain only when
    /// nothing was established beside them, so a look that saw both starts the count anew: an
    /// endpoint is never ejected for failures that were not consecutive, and one that fails from
    /// some moment on is ejected at most one look later than each connection would have had it.
    pub fn record_kernel(
        &self,
        version: VersionIx,
        endpoint: EndpointIx,
        (established, failed): (u64, u64),
        now: MonoNanos,
    ) -> Option<Change> {
        let plan = self.versions.get(version.0 as usize)?;
        let endpoint = plan.endpoints.get(endpoint.0 as usize)?;
        if established > 0 {
            ejection::tally_many(&endpoint.live, established - 1, failed);
            return self.record(version, endpoint, Outcome::Connected, None, now);
        }
        // Beyond the largest count that a policy may name there is nothing left to reach.
        let each = failed.min(KERNEL_FAILURES_MAX);
        ejection::tally_many(&endpoint.live, 0, failed - each);
        let mut change = None;
        for _ in 0..each {
            let more = self.record(version, endpoint, Outcome::ConnectFailed, None, now);
            change = change.or(more);
        }
        change
    }
}

impl VersionPlan {
    /// Whether a request may ask for these protocols, all of them.
    pub fn admits_upgrade<'p>(&self, protocols: impl IntoIterator<Item = &'p [u8]>) -> bool {
        let Some(allowed) = &self.effective.upgrades.value else {
            return true;
        };
        let is = |name: &[u8], allowed: &String| name.eq_ignore_ascii_case(allowed.as_bytes());
        let mut protocols = protocols.into_iter();
        protocols.all(|name| allowed.iter().any(|allowed| is(name, allowed)))
    }

    /// How many picks were made among all endpoints, healthy or not, since too few were healthy.
    pub fn panic_picks(&self) -> u64 {
        self.table.panics()
    }
}

impl PortPlan {
    /// `namespace/name:port`.
    pub fn label(&self) -> String {
        format!("{}:{}", self.key, self.number)
    }
}

#[cfg(test)]
mod tests;
