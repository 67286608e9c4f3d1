//! Model in, snapshot out; what still applies of the previous snapshot's state is taken along.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use super::{
    PortIx, RuleIx, Snapshot, SourceIx, VersionIx, balance,
    breaker::Breaker,
    effective::Effective,
    ejection::Ejection,
    inbound::InboundIndex,
    next_id,
    rate_limit::Limiter,
    retry::RetryPlan,
    route::{RouteTable, RulePlan, TargetPlan},
    slots::{self, Numbers},
    snapshot::{EndpointState, PortPlan, Source, TlsUses, VersionPlan},
    split::Split,
};
use crate::{
    clock::MonoNanos,
    model::{
        Backend, DialFrom, Endpoint, Model, Policy, Port, Rule, Select, Service, Tags,
        kernel_table::KernelTable, selects, tls::UpstreamTls,
    },
};

mod carry;
mod path;

pub(super) use carry::Carry;
use carry::state;
use path::path;

/// Names the policy that states a limit, and the limit: service, version, port, limit.
pub(super) type LimiterKey = (String, Option<String>, Option<String>, String);

/// See [`Snapshot::compile`].
pub(super) fn compile(model: Arc<Model>, previous: Option<&Snapshot>, now: MonoNanos) -> Snapshot {
    let mut snapshot = Snapshot {
        generation: previous.map_or(0, |previous| previous.generation + 1),
        model: Arc::clone(&model),
        ports: Vec::new(),
        versions: Vec::new(),
        rules: Vec::new(),
        sources: sources(&model),
        tls: TlsUses::default(),
        by_address: HashMap::new(),
        by_host: HashMap::new(),
        by_workload: HashMap::new(),
        limiters: HashMap::new(),
        kernel: KernelTable::default(),
        numbers: Numbers::default(),
        service_ports: 0,
        inbound: InboundIndex::default(),
        // Nothing is shared with a predecessor that isn't there.
        enforced: AtomicBool::new(previous.is_none()),
    };
    for (source, at) in snapshot.sources.iter().zip(0..) {
        snapshot
            .by_workload
            .entry(Arc::clone(&source.key))
            .or_insert(SourceIx(at));
    }
    let mut rules: Vec<Vec<&Rule>> = vec![Vec::new(); model.services.len()];
    for rule in &model.rules {
        if let Some(of_service) = rules.get_mut(rule.service) {
            of_service.push(rule);
        }
    }
    let mut policies: Vec<Vec<(usize, &Policy)>> = vec![Vec::new(); model.services.len()];
    for (at, policy) in model.policies.iter().enumerate() {
        if let Some(of_service) = policies.get_mut(policy.service) {
            of_service.push((at, policy));
        }
        if let Some(UpstreamTls::Simple(tls)) = &policy.tls {
            snapshot.tls.originate.push(Arc::clone(tls));
        }
    }
    let mut compiler = Compiler {
        carry: Carry::new(previous),
        now,
        snapshot,
        limiters: HashMap::new(),
    };
    let wanted = wanted(&model);
    let mut pending = Vec::new();
    for (index, service) in model.services.iter().enumerate() {
        // Stable: equal precedence keeps the order of the model.
        rules[index].sort_by_key(|rule| std::cmp::Reverse(rule.precedence));
        for port in &service.ports {
            let selects = wanted.get(&(index, port.number));
            let selects = selects.map(Vec::as_slice).unwrap_or_default();
            pending.push(compiler.port(
                index,
                service,
                port,
                (&rules[index], selects),
                &policies[index],
            ));
        }
    }
    // Targets of other services' ports are there only now.
    compiler.routes(&pending);
    let (mut snapshot, carry) = (compiler.snapshot, compiler.carry);
    snapshot.service_ports = snapshot.ports.len();
    let numbers = previous.map(|previous| &previous.numbers);
    (snapshot.kernel, snapshot.numbers) = slots::build(&snapshot, numbers);
    settle_paths(&mut snapshot);
    super::inbound::add(&mut snapshot, &carry, now);
    snapshot
}

/// What rules select of each service port, by the service's index and the port's number.
fn wanted(model: &Model) -> HashMap<(usize, u16), Vec<&Select>> {
    let mut wanted: HashMap<(usize, u16), Vec<&Select>> = HashMap::new();
    for rule in &model.rules {
        let Some(service) = model.services.get(rule.service) else {
            continue;
        };
        for target in rule.targets() {
            if let Some(backend) = target.backend {
                let of_port = wanted.entry((backend.service, backend.port)).or_default();
                of_port.push(&target.select);
                continue;
            }
            let ports = service.ports.iter().filter(|port| rule.covers(&port.name));
            for port in ports {
                let of_port = wanted.entry((rule.service, port.number)).or_default();
                of_port.push(&target.select);
            }
        }
    }
    wanted
}

/// A port whose rules are still to be compiled.
struct Pending<'m> {
    ix: PortIx,
    place: (usize, u16),
    rules: Vec<&'m Rule>,
    by_select: HashMap<&'m Select, VersionIx>,
}

/// A port for whose split the kernel has no room is the proxy's after all.
fn settle_paths(snapshot: &mut Snapshot) {
    for port in &mut snapshot.ports {
        let name = snapshot
            .numbers
            .of(port)
            .and_then(|id| snapshot.kernel.names.get(&id));
        if let Some(name) = name.filter(|name| name.path != port.path) {
            port.path = name.path;
            port.path_reason.clone_from(&name.reason);
        }
    }
}

fn sources(model: &Model) -> Vec<Source> {
    let source = |workload: &crate::model::Workload| Source {
        workload: workload.name.as_str().into(),
        namespace: workload.namespace.as_str().into(),
        key: workload.key().into(),
        tags: workload.tags.clone(),
        identity: workload.identity.as_deref().map(Into::into),
    };
    model.workloads.iter().map(source).collect()
}

struct Compiler<'a> {
    carry: Carry<'a>,
    now: MonoNanos,
    snapshot: Snapshot,
    /// By the policy's place in the model.
    limiters: HashMap<usize, Vec<Arc<Limiter>>>,
}

impl Compiler<'_> {
    fn port<'m>(
        &mut self,
        service_index: usize,
        service: &'m Service,
        port: &Port,
        (rules, selects): (&[&'m Rule], &[&'m Select]),
        policies: &[(usize, &Policy)],
    ) -> Pending<'m> {
        let key: Arc<str> = service.key().into();
        let ix = PortIx(self.snapshot.ports.len() as u32);
        let covers = |of: &Option<String>| of.as_deref().is_none_or(|name| name == port.name);
        let rules: Vec<&'m Rule> = rules
            .iter()
            .copied()
            .filter(|rule| covers(&rule.port))
            .collect();
        let policies: Vec<(usize, &Policy)> = policies
            .iter()
            .copied()
            .filter(|(_, policy)| covers(&policy.port))
            .collect();
        let carried = self.carry.ports.get(&(&*key, port.number));
        let ejection_lock = carried.map_or_else(
            || Arc::new(Mutex::new(())),
            |port| Arc::clone(&port.ejection_lock),
        );
        let endpoints = self.endpoints(&key, service, port);
        let mut place = Place {
            ix,
            key: &key,
            port,
            policies: &policies,
            lock: &ejection_lock,
        };
        let (versions, by_select) = self.versions(&mut place, service, &endpoints, selects);
        let (path, path_reason) = path(service, port, &rules, &policies);
        self.snapshot.ports.push(PortPlan {
            service: service.name.as_str().into(),
            namespace: service.namespace.as_str().into(),
            name: port.name.as_str().into(),
            number: port.number,
            protocol: port.protocol,
            tls: port.tls.clone(),
            dial_from_node: service.dial_from == DialFrom::Node,
            path,
            path_reason,
            routes: RouteTable::default(),
            all: versions[0],
            versions,
            inbound: None,
            service_index,
            ejection_lock,
            key,
        });
        self.snapshot.tls.terminate.extend(port.tls.clone());
        self.names(service, port.number, ix);
        Pending {
            ix,
            place: (service_index, port.number),
            rules,
            by_select,
        }
    }

    /// Compiles the rules of all ports.
    fn routes(&mut self, pending: &[Pending<'_>]) {
        let places: HashMap<(usize, u16), &Pending<'_>> =
            pending.iter().map(|port| (port.place, port)).collect();
        for port in pending {
            let plans = self.rules(port, &places);
            let with_rules: Vec<(RuleIx, &Rule)> =
                plans.into_iter().zip(port.rules.iter().copied()).collect();
            let routes = RouteTable::new(&with_rules, &self.snapshot.sources);
            self.snapshot.ports[port.ix.0 as usize].routes = routes;
        }
    }

    fn names(&mut self, service: &Service, port: u16, ix: PortIx) {
        for address in &service.addresses {
            self.snapshot
                .by_address
                .entry((address.to_canonical(), port))
                .or_insert(ix);
        }
        let hosts = service
            .hostnames
            .iter()
            .map(|host| host.to_ascii_lowercase());
        for host in hosts.chain([service.key().to_ascii_lowercase()]) {
            let host = host.strip_suffix('.').map(str::to_owned).unwrap_or(host);
            self.snapshot
                .by_host
                .entry((host.into(), port))
                .or_insert(ix);
        }
    }

    fn endpoints(&self, key: &str, service: &Service, port: &Port) -> Vec<Arc<EndpointState>> {
        let number = |endpoint: &Endpoint| {
            SocketAddr::new(
                endpoint.address.to_canonical(),
                endpoint
                    .ports
                    .get(&port.name)
                    .copied()
                    .unwrap_or(port.target),
            )
        };
        let mut known: HashMap<SocketAddr, ()> = HashMap::new();
        service
            .endpoints
            .iter()
            // Listed twice is there once: the first counts.
            .filter(|endpoint| known.insert(number(endpoint), ()).is_none())
            .map(|endpoint| {
                let address = number(endpoint);
                let carried = self.carry.endpoints.get(&((key, port.number), address));
                state(endpoint, address, carried.copied())
            })
            .collect()
    }

    /// All versions of the port, `*` first, and where each selection of the rules leads.
    fn versions<'m>(
        &mut self,
        place: &mut Place<'_>,
        service: &'m Service,
        endpoints: &[Arc<EndpointState>],
        selects: &[&'m Select],
    ) -> (Vec<VersionIx>, HashMap<&'m Select, VersionIx>) {
        let all = self.version(place, "*", None, Tags::new(), endpoints.to_vec());
        let mut versions = vec![all];
        let mut named: HashMap<&str, VersionIx> = HashMap::new();
        let mut by_tags: HashMap<&Tags, VersionIx> = HashMap::new();
        for (name, tags) in &service.versions {
            let members = members(endpoints, tags);
            let ix = self.version(place, name, Some(name), tags.clone(), members);
            versions.push(ix);
            named.insert(name, ix);
            by_tags.entry(tags).or_insert(ix);
        }
        let mut by_select: HashMap<&Select, VersionIx> = HashMap::new();
        for select in selects.iter().copied() {
            if by_select.contains_key(select) {
                continue;
            }
            let known = match select {
                Select::All => Some(all),
                Select::Version(name) => named.get(name.as_str()).copied(),
                // Tags that a named version has mean that version, with its policies and caps.
                Select::Tags(tags) if tags.is_empty() => Some(all),
                Select::Tags(tags) => by_tags.get(tags).copied(),
                Select::Endpoints(_) => None,
                // Refused before it comes to an endpoint.
                Select::Invalid(_) => Some(all),
            };
            let ix = known.unwrap_or_else(|| {
                let ix = match select {
                    Select::Tags(tags) => {
                        let members = members(endpoints, tags);
                        self.version(place, &tags_name(tags), None, tags.clone(), members)
                    }
                    // The configuration refuses unknown names; without that they have no endpoint.
                    Select::Version(name) => {
                        self.version(place, name, Some(name), Tags::new(), Vec::new())
                    }
                    Select::Endpoints(addresses) => {
                        let members = endpoints
                            .iter()
                            .filter(|endpoint| addresses.contains(&endpoint.address));
                        let name = endpoints_name(addresses);
                        self.version(place, &name, None, Tags::new(), members.cloned().collect())
                    }
                    Select::All | Select::Invalid(_) => all,
                };
                versions.push(ix);
                ix
            });
            by_select.insert(select, ix);
        }
        (versions, by_select)
    }

    fn version(
        &mut self,
        place: &mut Place<'_>,
        name: &str,
        policy_name: Option<&str>,
        tags: Tags,
        endpoints: Vec<Arc<EndpointState>>,
    ) -> VersionIx {
        let effective = Effective::new(place.policies, policy_name, &place.port.name);
        let carried = self
            .carry
            .versions
            .get(&((place.key, place.port.number), name))
            .copied();
        let breaker = carried.map_or_else(
            || Arc::new(Breaker::new(effective.breaker.value)),
            |carried| Arc::clone(&carried.breaker),
        );
        let ejection = effective.ejection.value.map(|policy| {
            let previous = carried.and_then(|carried| carried.ejection.as_deref());
            let service = format!("{}:{}", place.key, place.port.number).into();
            let lock = Arc::clone(place.lock);
            Arc::new(Ejection::new(policy, previous, lock, service, self.now))
        });
        let limits = self.limits(place, &effective);
        let ix = VersionIx(self.snapshot.versions.len() as u32);
        self.snapshot.versions.push(VersionPlan {
            port: place.ix,
            name: name.into(),
            tags,
            breaker,
            ejection,
            limits,
            balance: effective.balance.value,
            turn: carried
                .map(|carried| carried.turn.carry())
                .unwrap_or_default(),
            request_timeout: effective.request.value,
            connect_timeout: effective.connect.value,
            idle_timeout: effective.idle.value,
            retry: RetryPlan {
                policy: effective.retries.value.clone(),
            },
            table: balance::Table::new(&endpoints),
            endpoints,
            effective,
        });
        ix
    }

    /// The limiters of the policy that states the limits: one set for all that it covers.
    fn limits(&mut self, place: &Place<'_>, effective: &Effective) -> Vec<Arc<Limiter>> {
        let Some(at) = effective.limits_of else {
            return Vec::new();
        };
        if let Some(made) = self.limiters.get(&at) {
            return made.clone();
        }
        let policy = &self.snapshot.model.policies[at];
        let mut made = Vec::new();
        for limit in &policy.rate_limits {
            let key: LimiterKey = (
                place.key.to_owned(),
                policy.version.clone(),
                policy.port.clone(),
                limit.name.clone(),
            );
            let carried = self.carry.limiters.and_then(|limiters| limiters.get(&key));
            let taken = self.snapshot.limiters.entry(key).or_default();
            // The same name twice: each previous limiter goes to one of them only.
            let carried = carried.into_iter().flatten().find(|limiter| {
                limiter.policy() == limit && !taken.iter().any(|other| Arc::ptr_eq(limiter, other))
            });
            let limiter = carried
                .cloned()
                .unwrap_or_else(|| Arc::new(Limiter::new(limit, self.now)));
            taken.push(Arc::clone(&limiter));
            made.push(limiter);
        }
        self.limiters.insert(at, made.clone());
        made
    }

    fn rules(
        &mut self,
        port: &Pending<'_>,
        places: &HashMap<(usize, u16), &Pending<'_>>,
    ) -> Vec<RuleIx> {
        let mut plans = Vec::with_capacity(port.rules.len());
        for rule in &port.rules {
            let targets = rule.route.iter().map(|target| {
                let of = match target.backend {
                    Some(Backend { service, port }) => places.get(&(service, port)).copied(),
                    None => Some(port),
                };
                let version = of.and_then(|of| of.by_select.get(&target.select));
                TargetPlan {
                    // A port that is not there: the configuration refuses it by name.
                    version: version.copied().unwrap_or(self.snapshot.port(port.ix).all),
                    weight: target.weight,
                    invalid: version.is_none() || matches!(target.select, Select::Invalid(_)),
                }
            });
            let targets: Vec<TargetPlan> = targets.collect();
            let named: Vec<_> = targets
                .iter()
                .map(|target| split_name(&self.snapshot, target))
                .collect();
            let of = self.snapshot.port(port.ix);
            let carried = self
                .carry
                .splits
                .get(&((&*of.key, of.number), rule.name.as_str()));
            let id = carried
                .filter(|(had, _)| *had == named)
                .map_or_else(next_id, |(_, id)| *id);
            plans.push(RuleIx(self.snapshot.rules.len() as u32));
            self.snapshot.rules.push(RulePlan {
                name: rule.name.as_str().into(),
                precedence: rule.precedence,
                split: Split::new(id, &targets),
                targets,
            });
        }
        plans
    }
}

/// The port that is being compiled.
struct Place<'a> {
    ix: PortIx,
    key: &'a str,
    port: &'a Port,
    policies: &'a [(usize, &'a Policy)],
    lock: &'a Arc<Mutex<()>>,
}

/// What makes a target the same one in the next snapshot.
pub(super) fn split_name<'s>(snapshot: &'s Snapshot, target: &TargetPlan) -> SplitName<'s> {
    let version = snapshot.version(target.version);
    let port = snapshot.port(version.port);
    (
        &port.key,
        port.number,
        &version.name,
        target.weight,
        target.invalid,
    )
}

/// See [`split_name`].
pub(super) type SplitName<'s> = (&'s str, u16, &'s str, u32, bool);

/// `10.0.0.1:80,10.0.0.2:80`.
fn endpoints_name(addresses: &[SocketAddr]) -> String {
    let parts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    parts.join(",")
}

fn members(endpoints: &[Arc<EndpointState>], tags: &Tags) -> Vec<Arc<EndpointState>> {
    endpoints
        .iter()
        .filter(|endpoint| selects(tags, &endpoint.tags))
        .cloned()
        .collect()
}

/// `k=v,k=v`.
fn tags_name(tags: &Tags) -> String {
    let parts: Vec<String> = tags
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.join(",")
}
