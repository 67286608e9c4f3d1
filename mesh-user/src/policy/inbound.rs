//! Connections that come to a workload of this node: which rule judges them, and who may connect.
//!
//! Each rule that captures is compiled once for each workload that it covers, into a port with one
//! version and no endpoint: the application is the endpoint, at the address that was dialled. So
//! limits and caps are a workload's own, and the engines serve such a port like any other. Beside
//! them each workload has an implicit port without any rule: for `inbound: capture`, and for what
//! was accepted before a rule went.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use super::{
    PortIx, Reject, Snapshot, SourceIx, VersionIx,
    arena::Shards,
    balance,
    breaker::Breaker,
    compile::{self, LimiterKey, no_routes},
    effective::Effective,
    rate_limit::{Limit, Limiter},
    retry::RetryPlan,
    snapshot::{EndpointState, PortPlan, VersionPlan},
};
use crate::{
    clock::MonoNanos,
    model::{
        BreakerPolicy, Endpoint, Inbound, Model, Protocol, SecondPass, Service, SourceMatch, Tags,
        Workload,
        inbound::{InboundAction, InboundPorts, InboundRule, PeerMatch},
        kernel_table::Path,
        selects,
    },
};

/// What an inbound port has beside what every port has.
#[derive(Clone, Debug)]
pub struct InboundPlan {
    /// The workload, `namespace/name`.
    pub workload: Arc<str>,
    /// The rule; none: the workload's implicit port.
    pub rule: Option<Arc<str>>,
    allow: Vec<PeerMatch>,
    deny: Vec<PeerMatch>,
}

/// What judges a connection that this agent makes to a workload of its own node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeforeDialling {
    /// Nothing does: its port is not captured, or nobody knows it.
    Nothing,
    /// Its inbound listener will.
    SecondPass,
    /// This inbound port, before the connection is made.
    Judge(PortIx),
}

/// What stands for one workload.
#[derive(Debug)]
pub(super) struct InboundTable {
    actions: InboundPorts,
    second_pass: SecondPass,
    /// Ports that a rule about ports captures.
    ports: HashMap<u16, PortIx>,
    /// All others.
    rest: PortIx,
}

/// Everything about inbound connections that is looked up.
#[derive(Clone, Debug, Default)]
pub(super) struct InboundIndex {
    /// By workload.
    tables: Arc<HashMap<Arc<str>, InboundTable>>,
    /// The inbound ports.
    ports: Arc<[PortIx]>,
    pub(super) limiters: Arc<HashMap<LimiterKey, Vec<Arc<Limiter>>>>,
    /// Endpoints of the model, by address: the service's place and the endpoint's, in the order of
    /// the model. Empty when no workload has a rule.
    endpoints: Shards<IpAddr, Arc<[(u32, u32)]>>,
    /// Whether `endpoints` is filled.
    filled: bool,
    /// Whether a rule asks about sources.
    asks: bool,
    /// Whether any connection between workloads of this node may have to be judged.
    any: bool,
}

/// Who connects, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Its address.
    pub address: IpAddr,
    workload: Option<&'a str>,
    namespace: Option<&'a str>,
    identity: Option<&'a str>,
    tags: Option<&'a Tags>,
}

impl Peer<'_> {
    /// Whether nothing but the address is known.
    fn unknown(&self) -> bool {
        self.tags.is_none()
    }

    fn is(&self, wanted: &SourceMatch) -> bool {
        let same = |wanted: &Option<String>, is: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| is == Some(wanted))
        };
        // Who is not known is no source, not even for a condition that asks nothing.
        !self.unknown()
            && same(&wanted.workload, self.workload)
            && same(&wanted.namespace, self.namespace)
            && same(&wanted.identity, self.identity)
            && self.tags.is_some_and(|tags| selects(&wanted.tags, tags))
    }

    fn matches(&self, wanted: &PeerMatch) -> bool {
        wanted.source.as_ref().is_none_or(|source| self.is(source))
            && wanted
                .cidr
                .as_ref()
                .is_none_or(|cidr| cidr.contains(&self.address))
    }
}

impl Snapshot {
    /// The inbound port that judges connections to this workload and port; none when the model
    /// doesn't know the workload.
    pub fn inbound_at(&self, workload: &str, port: u16) -> Option<PortIx> {
        let table = self.inbound.tables.get(workload)?;
        Some(table.ports.get(&port).copied().unwrap_or(table.rest))
    }

    /// What the kernel does with connections to a workload.
    pub fn inbound_ports(&self, workload: &str) -> InboundPorts {
        self.inbound
            .tables
            .get(workload)
            .map(|table| table.actions.clone())
            .unwrap_or_default()
    }

    /// Entries that all workloads together need in the kernel's map.
    pub fn inbound_entries(&self) -> usize {
        let tables = self.inbound.tables.values();
        tables.map(|table| table.actions.ports.len()).sum()
    }

    /// What is spoken at an address of an application, by the services that have it as an endpoint.
    pub fn inbound_protocol(&self, at: SocketAddr) -> Protocol {
        let spoken = |(service, endpoint): (&Service, &Endpoint)| {
            // Of two services that disagree the first counts.
            let mut ports = service.ports.iter();
            let port = ports
                .find(|port| *endpoint.ports.get(&port.name).unwrap_or(&port.target) == at.port());
            port.map(|port| port.protocol)
        };
        let mut known = self.known_endpoints(at.ip());
        known.find_map(spoken).unwrap_or(Protocol::Auto)
    }

    /// The endpoints at an address, in the order of the model.
    fn known_endpoints(&self, ip: IpAddr) -> impl Iterator<Item = (&Service, &Endpoint)> + Clone {
        let known = self.inbound.endpoints.get(&ip.to_canonical());
        let known = known.into_iter().flat_map(|known| known.iter());
        known.filter_map(|(service, endpoint)| {
            let service = &*self.units.get(*service as usize)?.service;
            Some((service, service.endpoints.get(*endpoint as usize)?))
        })
    }

    /// Whether a connection between two workloads of this node may have to be judged before it is
    /// dialled: spares the search for the workload when none does.
    pub fn judges_before_dialling(&self) -> bool {
        self.inbound.any
    }

    /// What judges what this agent dials for a workload of this node.
    pub fn inbound_before_dialling(&self, workload: &str, port: u16) -> BeforeDialling {
        let table = self.inbound.tables.get(workload);
        match table.filter(|table| table.actions.action(port) != InboundAction::Pass) {
            None => BeforeDialling::Nothing,
            Some(table) if table.second_pass == SecondPass::Full => BeforeDialling::SecondPass,
            Some(table) => {
                BeforeDialling::Judge(table.ports.get(&port).copied().unwrap_or(table.rest))
            }
        }
    }

    /// Who connects from an address: the workload of this node that has it, else the endpoint of
    /// the model, else nobody that is known.
    pub fn peer(&self, address: IpAddr, source: Option<SourceIx>) -> Peer<'_> {
        let address = address.to_canonical();
        if let Some(source) = source.map(|ix| self.source_of(ix)) {
            return Peer {
                address,
                workload: Some(&source.workload),
                namespace: Some(&source.namespace),
                identity: source.identity.as_deref(),
                tags: Some(&source.tags),
            };
        }
        // Nobody asks: then nobody is looked for.
        let asked = self.inbound.asks.then(|| self.known_endpoints(address));
        let known = || asked.clone().into_iter().flatten();
        let first = known().next();
        Peer {
            address,
            workload: None,
            namespace: first.map(|(service, _)| &*service.namespace),
            // Of an address that is an endpoint twice: the first known one.
            identity: known().find_map(|(_, endpoint)| endpoint.identity.as_deref()),
            tags: first.map(|(_, endpoint)| &endpoint.tags),
        }
    }

    /// Whether a peer may connect to the workload's port: denials first; where anybody is allowed
    /// by name, nobody else is (SEMANTICS §5.16).
    ///
    /// # Errors
    /// [`Reject::InboundDenied`].
    pub fn authorise(&self, port: PortIx, number: u16, peer: &Peer<'_>) -> Result<(), Reject> {
        let Some(plan) = &self.port(port).inbound else {
            return Ok(());
        };
        // Accepted a moment before the kernel knew that it is to drop it.
        let dropped = self
            .inbound
            .tables
            .get(&plan.workload)
            .is_some_and(|table| table.actions.action(number) == InboundAction::Deny);
        let any = |list: &[PeerMatch]| list.iter().any(|wanted| peer.matches(wanted));
        if dropped || any(&plan.deny) || !(plan.allow.is_empty() || any(&plan.allow)) {
            return Err(Reject::InboundDenied);
        }
        Ok(())
    }

    /// Whether a peer is denied by name.
    pub fn denies(&self, port: PortIx, peer: &Peer<'_>) -> bool {
        let plan = self.port(port).inbound.as_ref();
        plan.is_some_and(|plan| plan.deny.iter().any(|wanted| peer.matches(wanted)))
    }
}

/// Compiles the inbound ports of all workloads.
pub(super) fn compile(next: &mut Snapshot, old: &Snapshot, now: MonoNanos) {
    let model = Arc::clone(&next.model);
    let mut index = InboundIndex {
        endpoints: std::mem::take(&mut next.inbound.endpoints),
        filled: next.inbound.filled,
        asks: asks(&model),
        ..InboundIndex::default()
    };
    let mut carry = HashMap::new();
    for ix in old.inbound.ports.iter() {
        if let Some(inbound) = &old.port(*ix).inbound {
            let rule = inbound.rule.as_deref().map(str::to_owned);
            carry.insert((inbound.workload.to_string(), rule), *ix);
        }
    }
    let mut tables = HashMap::new();
    let mut made = Made::default();
    for workload in model.workloads.iter().filter(|workload| workload.capture) {
        let key: Arc<str> = workload.key().into();
        let actions = InboundPorts::of(workload, &model.inbound);
        let mut compiler = Compiler {
            snapshot: next,
            old,
            carry: &mut carry,
            made: &mut made,
            now,
            workload,
            key: &key,
        };
        let mut table = InboundTable {
            second_pass: workload.interception.second_pass,
            ports: HashMap::new(),
            rest: compiler.port(None),
            actions,
        };
        if workload.interception.inbound != Inbound::Pass {
            compiler.rules(&model.inbound, &mut table);
        }
        index.any |= table.actions != InboundPorts::default();
        tables.insert(key, table);
    }
    for ix in carry.into_values() {
        next.versions.remove(old.port(ix).all.0);
        next.ports.remove(ix.0);
    }
    index.tables = Arc::new(tables);
    index.ports = made.ports.into();
    index.limiters = Arc::new(made.limiters);
    next.inbound = index;
}

fn asks(model: &Model) -> bool {
    let asks = |list: &[PeerMatch]| list.iter().any(|wanted| wanted.source.is_some());
    let mut rules = model.inbound.iter();
    rules.any(|rule| asks(&rule.allow) || asks(&rule.deny))
}

/// Brings the index of endpoints up to date. `compiled`: services that may have changed.
pub(super) fn endpoints(next: &mut Snapshot, old: &Snapshot, compiled: &[usize]) {
    let mut index = std::mem::take(&mut next.inbound);
    let filled = index.filled;
    if !index.any {
        (index.endpoints, index.filled) = (Shards::default(), false);
        next.inbound = index;
        return;
    }
    index.filled = true;
    let mut edit = |ip: IpAddr, place: (u32, u32), there: bool| {
        index.endpoints.change(ip.to_canonical(), |known| {
            let mut all = known.map(|known| known.to_vec()).unwrap_or_default();
            all.retain(|other| *other != place);
            if there {
                all.push(place);
                all.sort_unstable();
            }
            (!all.is_empty()).then(|| all.into())
        });
    };
    let mut follow = |at: usize, old: &[Endpoint], new: &[Endpoint]| {
        for endpoint in 0..old.len().max(new.len()) {
            let (one, two) = (old.get(endpoint), new.get(endpoint));
            let (one, two) = (one.map(|e| e.address), two.map(|e| e.address));
            if one == two {
                continue;
            }
            let place = (at as u32, endpoint as u32);
            if let Some(ip) = one {
                edit(ip, place, false);
            }
            if let Some(ip) = two {
                edit(ip, place, true);
            }
        }
    };
    let of = |snapshot: &Snapshot, at: usize| {
        snapshot.units.get(at).map(|unit| Arc::clone(&unit.service))
    };
    if filled {
        for at in compiled.iter().copied() {
            let (one, two) = (of(old, at), of(next, at));
            let one = one.as_deref().map_or(&[][..], |service| &service.endpoints);
            let two = two.as_deref().map_or(&[][..], |service| &service.endpoints);
            follow(at, one, two);
        }
    } else {
        for (at, unit) in next.units.iter().enumerate() {
            follow(at, &[], &unit.service.endpoints);
        }
    }
    next.inbound = index;
}

/// What is made beside the plans.
#[derive(Default)]
struct Made {
    ports: Vec<PortIx>,
    limiters: HashMap<LimiterKey, Vec<Arc<Limiter>>>,
}

/// Previous inbound ports, by workload and rule.
type Carried = HashMap<(String, Option<String>), PortIx>;

struct Compiler<'a> {
    snapshot: &'a mut Snapshot,
    old: &'a Snapshot,
    carry: &'a mut Carried,
    made: &'a mut Made,
    now: MonoNanos,
    workload: &'a Workload,
    key: &'a Arc<str>,
}

impl Compiler<'_> {
    fn rules(&mut self, rules: &[InboundRule], table: &mut InboundTable) {
        let mut decided = std::collections::HashSet::new();
        for rule in rules {
            if !rule.select.covers(self.workload) {
                continue;
            }
            let captures = rule.action == InboundAction::Capture;
            if rule.ports.is_empty() {
                if captures {
                    let ix = self.port(Some(rule));
                    // Ports that an earlier rule passes or drops are not this rule's.
                    let others = decided
                        .iter()
                        .filter(|port| !table.ports.contains_key(*port));
                    let others: Vec<u16> = others.copied().collect();
                    let implicit = table.rest;
                    table
                        .ports
                        .extend(others.into_iter().map(|port| (port, implicit)));
                    table.rest = ix;
                }
                return;
            }
            let mut own = None;
            for port in &rule.ports {
                if decided.insert(*port) && captures {
                    let ix = *own.get_or_insert_with(|| self.port(Some(rule)));
                    table.ports.insert(*port, ix);
                }
            }
        }
    }

    fn port(&mut self, rule: Option<&InboundRule>) -> PortIx {
        let name = rule.map(|rule| rule.name.clone());
        let known = self.carry.remove(&(self.key.to_string(), name));
        let ix = known.unwrap_or_else(|| PortIx(self.snapshot.ports.reserve()));
        let version = self.version(ix, rule, known.map(|ix| self.old.port(ix).all));
        let plan = PortPlan {
            service: self.workload.name.as_str().into(),
            namespace: self.workload.namespace.as_str().into(),
            name: "inbound".into(),
            number: 0,
            protocol: Protocol::Auto,
            tls: None,
            dial_from_node: false,
            path: Path::Proxy,
            path_reason: String::new(),
            routes: no_routes(),
            all: version,
            versions: vec![version],
            service_index: usize::MAX,
            service_id: 0,
            selects: Box::default(),
            ejection_lock: Arc::new(Mutex::new(())),
            key: Arc::clone(self.key),
            inbound: Some(InboundPlan {
                workload: Arc::clone(self.key),
                rule: rule.map(|rule| rule.name.as_str().into()),
                allow: rule.map(|rule| rule.allow.clone()).unwrap_or_default(),
                deny: rule.map(|rule| rule.deny.clone()).unwrap_or_default(),
            }),
        };
        self.snapshot.ports.set(ix.0, Arc::new(plan));
        self.made.ports.push(ix);
        ix
    }

    fn version(
        &mut self,
        port: PortIx,
        rule: Option<&InboundRule>,
        known: Option<VersionIx>,
    ) -> VersionIx {
        let ix = known.unwrap_or_else(|| VersionIx(self.snapshot.versions.reserve()));
        let name = rule.map(|rule| rule.name.as_str());
        let carried = known.map(|ix| self.old.version(ix));
        let caps = rule.map(|rule| rule.caps).unwrap_or_default();
        let effective = Effective::inbound(BreakerPolicy {
            max_connections: caps.max_connections,
            max_requests: caps.max_requests,
            ..BreakerPolicy::default()
        });
        let breaker = carried.map_or_else(
            || Arc::new(Breaker::new(effective.breaker.value)),
            |carried| Arc::clone(&carried.breaker),
        );
        let limits = rule.map(|rule| self.limits(rule)).unwrap_or_default();
        let plan = VersionPlan {
            port,
            name: name.unwrap_or("*").into(),
            tags: EndpointState::no_tags(),
            endpoints: Vec::new(),
            breaker,
            ejection: None,
            limits,
            balance: effective.balance.value,
            turn: balance::Turn::default(),
            request_timeout: effective.request.value,
            connect_timeout: effective.connect.value,
            idle_timeout: effective.idle.value,
            retry: RetryPlan::default(),
            budget: None,
            adaptive: None,
            table: balance::Table::default(),
            effective: Arc::new(effective),
        };
        self.snapshot.versions.set(ix.0, Arc::new(plan));
        self.snapshot.fresh.push(ix);
        ix
    }

    fn limits(&mut self, rule: &InboundRule) -> Vec<Limit> {
        let mut made = Vec::new();
        for limit in &rule.rate_limits {
            // Of services the first part is `namespace/name`.
            let key: LimiterKey = (
                "inbound".to_owned(),
                Some(self.key.to_string()),
                Some(rule.name.clone()),
                limit.name.clone(),
            );
            let known = self.old.inbound.limiters.get(&key);
            let known = known.map(Vec::as_slice).unwrap_or_default();
            let taken = self.made.limiters.entry(key.clone()).or_default();
            let limiter =
                compile::limiter(&self.snapshot.model, known, taken, &key, limit, self.now);
            taken.push(Arc::clone(&limiter));
            made.push(Limit::new(limiter, &limit.matches, &self.snapshot.sources));
        }
        made
    }
}

#[cfg(test)]
mod tests;
