//! Ports and versions of one service.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex},
};

use super::{
    Compiler, Draft, KnownTags, LimiterKey, Made,
    carry::{CarriedPort, Carry, state},
    limiter,
    path::path,
    same_names,
};
use crate::{
    clock::MonoNanos,
    model::{
        DialFrom, Endpoint, Policy, Port, Rule, Select, Service, Tags, kernel_table::Path, selects,
    },
    policy::{
        PortIx, VersionIx,
        adaptive::Adaptive,
        balance,
        breaker::Breaker,
        budget::Budget,
        effective::Effective,
        ejection::Ejection,
        rate_limit::{Limit, Limiter},
        retry::RetryPlan,
        route::RouteTable,
        snapshot::{EndpointState, PortPlan, VersionPlan},
        unit::{self, Unit},
    },
};

/// The port that is being compiled.
struct Place<'a> {
    ix: PortIx,
    /// The service's place in the model.
    at: usize,
    key: &'a Arc<str>,
    service: &'a Service,
    port: &'a Port,
    policies: &'a [(usize, &'a Policy)],
    lock: &'a Arc<Mutex<()>>,
    carried: Option<CarriedPort<'a>>,
}

/// What is made for a service beside its plans.
struct Making<'a> {
    carry: Carry<'a>,
    policies: &'a [Arc<Policy>],
    made: Made,
    limiters: HashMap<LimiterKey, Vec<Arc<Limiter>>>,
}

impl Compiler<'_> {
    /// Compiles all of a service but its rules.
    pub(super) fn ports(&mut self, draft: Draft) -> Unit {
        let carry = Carry::new(self.old, draft.was);
        let mut making = Making {
            carry,
            policies: &draft.policies,
            made: Made::new(),
            limiters: HashMap::new(),
        };
        let first = carry.unit.and_then(|unit| unit.ports.first());
        let key: Arc<str> = match first.map(|ix| &self.old.port(*ix).key) {
            Some(key)
                if carry
                    .unit
                    .is_some_and(|u| u.service.namespace == draft.service.namespace) =>
            {
                Arc::clone(key)
            }
            _ => draft.service.key().into(),
        };
        let ports = draft.service.ports.iter();
        let ports: Vec<PortIx> = ports
            .map(|port| self.port(&draft, &key, port, &mut making))
            .collect();
        // Who sends to this place sends to something else now.
        if draft.was != Some(draft.at) || carry.unit.is_some_and(|unit| unit.ports != ports) {
            self.moved.insert(draft.at);
        }
        Unit {
            asks_source: match carry.unit.filter(|_| draft.same_rules) {
                Some(unit) => unit.asks_source,
                None => unit::asks_source(&draft.rules),
            },
            sessions: match carry.unit.filter(|_| draft.same_rules) {
                Some(unit) => unit.sessions,
                None => unit::sessions(&draft.rules),
            },
            limiters: making.limiters,
            rule_limiters: carry
                .unit
                .map(|unit| Arc::clone(&unit.rule_limiters))
                .unwrap_or_default(),
            service: draft.service,
            rules: draft.rules,
            policies: draft.policies,
            uses: draft.uses,
            wanted: draft.wanted,
            ports,
        }
    }

    fn port(
        &mut self,
        draft: &Draft,
        key: &Arc<str>,
        port: &Port,
        making: &mut Making<'_>,
    ) -> PortIx {
        let service = &*draft.service;
        let covers = |of: &Option<String>| of.as_deref().is_none_or(|name| name == port.name);
        let policies: Vec<(usize, &Policy)> = draft
            .policies
            .iter()
            .map(|policy| &**policy)
            .enumerate()
            .filter(|(_, policy)| covers(&policy.port))
            .collect();
        let known = making.carry.port(port.number);
        let (ix, carried) = match known {
            Some((ix, carried)) => (ix, Some(carried)),
            None => (PortIx(self.next.ports.reserve()), None),
        };
        let ejection_lock = carried.map_or_else(
            || Arc::new(Mutex::new(())),
            |carried| Arc::clone(&carried.plan.ejection_lock),
        );
        let place = Place {
            ix,
            at: draft.at,
            key,
            service,
            port,
            policies: &policies,
            lock: &ejection_lock,
            carried,
        };
        let endpoints = endpoints(&place, &mut self.tags, self.now);
        let wanted = wanted(draft, port, &making.carry, carried);
        let (versions, selects) = self.versions(&place, making, &endpoints, &wanted);
        drop(wanted);
        let old = carried.map(|carried| carried.plan);
        let (path, path_reason) = self.path(draft, port, &policies, old);
        if let Some(old) = old {
            let gone = old.versions.iter().filter(|ix| !versions.contains(ix));
            self.freed.versions.extend(gone);
        }
        if old.is_some_and(|old| old.selects != selects || old.all != versions[0]) {
            self.moved.insert(draft.at);
        }
        let name = |old: Option<&Arc<str>>, new: &str| match old.filter(|old| ***old == *new) {
            Some(old) => Arc::clone(old),
            None => new.into(),
        };
        let plan = PortPlan {
            service: name(old.map(|old| &old.service), &service.name),
            namespace: name(old.map(|old| &old.namespace), &service.namespace),
            name: name(old.map(|old| &old.name), &port.name),
            number: port.number,
            protocol: port.protocol,
            tls: port.tls.clone(),
            dial_from_node: service.dial_from == DialFrom::Node,
            path,
            path_reason,
            // Until the rules are compiled.
            routes: old.map_or_else(no_routes, |old| Arc::clone(&old.routes)),
            all: versions[0],
            versions,
            inbound: None,
            service_index: draft.at,
            service_id: match old {
                Some(old) => old.service_id,
                None => self.next.ids.take(),
            },
            selects,
            ejection_lock,
            key: Arc::clone(key),
        };
        self.next.ports.set(ix.0, Arc::new(plan));
        self.dirty.insert(ix);
        let found = making.carry.unit.filter(|_| known.is_some());
        let found = found.is_some_and(|unit| same_names(&unit.service, service));
        if !(found && draft.was == Some(draft.at)) {
            self.claim(service, ix, port.number, true);
        }
        ix
    }

    /// Who decides for the port. Of many rules only new ones are worth looking at.
    fn path(
        &self,
        draft: &Draft,
        port: &Port,
        policies: &[(usize, &Policy)],
        old: Option<&PortPlan>,
    ) -> (Path, String) {
        if let (Some(old), Some(was)) = (old, draft.was.and_then(|was| self.old.units.get(was)))
            && draft.same_rules
            && was.policies == draft.policies
            && was.service.dial_from == draft.service.dial_from
            && was.service.routable == draft.service.routable
            && was.service.ports == draft.service.ports
            && was.service.versions == draft.service.versions
            && !old.path_reason.ends_with(crate::policy::slots::NO_ROOM)
        {
            return (old.path, old.path_reason.clone());
        }
        let rules: Vec<&Rule> = draft
            .rules
            .iter()
            .filter(|rule| rule.covers(&port.name))
            .collect();
        path(&draft.service, port, &rules, policies)
    }

    /// All versions of the port, `*` first, and where each selection of the rules leads.
    fn versions(
        &mut self,
        place: &Place<'_>,
        making: &mut Making<'_>,
        endpoints: &[Arc<EndpointState>],
        wanted: &BTreeSet<&Select>,
    ) -> (Vec<VersionIx>, Box<[(Select, VersionIx)]>) {
        let all = self.version(place, making, "*", None, &NO_TAGS, endpoints.to_vec());
        let mut versions = vec![all];
        let mut named: HashMap<&str, VersionIx> = HashMap::new();
        let mut by_tags: HashMap<&Tags, VersionIx> = HashMap::new();
        for (name, tags) in &place.service.versions {
            let members = members(endpoints, tags);
            let ix = self.version(place, making, name, Some(name), tags, members);
            versions.push(ix);
            named.insert(name, ix);
            by_tags.entry(tags).or_insert(ix);
        }
        let mut found = Vec::with_capacity(wanted.len());
        for select in wanted.iter().copied() {
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
                let ix = self.unnamed(place, making, endpoints, select);
                versions.push(ix);
                ix
            });
            found.push((select.clone(), ix));
        }
        (versions, found.into())
    }

    /// A version that only rules name.
    fn unnamed(
        &mut self,
        place: &Place<'_>,
        making: &mut Making<'_>,
        endpoints: &[Arc<EndpointState>],
        select: &Select,
    ) -> VersionIx {
        match select {
            Select::Tags(tags) => {
                let members = members(endpoints, tags);
                self.version(place, making, &tags_name(tags), None, tags, members)
            }
            // The configuration refuses unknown names; without that they have no endpoint.
            Select::Version(name) => {
                self.version(place, making, name, Some(name), &NO_TAGS, Vec::new())
            }
            Select::Endpoints(addresses) => {
                let members = endpoints
                    .iter()
                    .filter(|endpoint| addresses.contains(&endpoint.address));
                let (name, members) = (endpoints_name(addresses), members.cloned().collect());
                self.version(place, making, &name, None, &NO_TAGS, members)
            }
            Select::All | Select::Invalid(_) => {
                let endpoints = endpoints.to_vec();
                self.version(place, making, "*", None, &NO_TAGS, endpoints)
            }
        }
    }

    fn version(
        &mut self,
        place: &Place<'_>,
        making: &mut Making<'_>,
        name: &str,
        policy_name: Option<&str>,
        tags: &Tags,
        endpoints: Vec<Arc<EndpointState>>,
    ) -> VersionIx {
        let effective = Effective::shared(place.policies, policy_name, &place.port.name);
        let known = place.carried.and_then(|carried| carried.version(name));
        let limits = self.limits(place, making, &effective);
        if let Some((ix, old)) = known
            && self.next.model.locality == self.old.model.locality
            && (self.same_sources || limits.iter().all(Limit::is_for_all))
            && is_same(old, place.ix, tags, &endpoints, &limits, &effective)
        {
            return ix;
        }
        let ix = match known {
            Some((ix, _)) => ix,
            None => VersionIx(self.next.versions.reserve()),
        };
        let carried = known.map(|(_, version)| version);
        if carried.is_some_and(|carried| !same_places(&carried.endpoints, &endpoints)) {
            self.reshaped.insert(place.at);
        }
        let breaker = carried.map_or_else(
            || Arc::new(Breaker::new(effective.breaker.value)),
            |carried| Arc::clone(&carried.breaker),
        );
        let ejection = effective.ejection.value.map(|policy| {
            let previous = carried.and_then(|carried| carried.ejection.as_deref());
            let service = format!("{}:{}", place.key, place.port.number).into();
            let lock = Arc::clone(place.lock);
            let ejection = Ejection::new(policy, previous, lock, service, self.now);
            ejection.begin(&endpoints);
            Arc::new(ejection)
        });
        let budget = effective.retry_budget.value.map(|policy| {
            Budget::carry(policy, carried.and_then(|carried| carried.budget.as_ref()))
        });
        let adaptive = effective.adaptive.value.map(|policy| {
            Adaptive::carry(
                policy,
                carried.and_then(|carried| carried.adaptive.as_ref()),
            )
        });
        let plan = VersionPlan {
            port: place.ix,
            name: match carried {
                Some(carried) => Arc::clone(&carried.name),
                None if name == "*" => ALL.clone(),
                None => name.into(),
            },
            tags: self.tags.share(tags),
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
            retry: RetryPlan::new(effective.retries.value.clone()),
            budget,
            adaptive,
            table: balance::Table::new(
                &endpoints,
                effective.balance.value,
                effective.balancing.as_deref(),
                &self.next.model.locality,
                carried.map(|carried| &carried.table),
            ),
            endpoints,
            effective,
        };
        self.next.versions.set(ix.0, Arc::new(plan));
        self.next.fresh.push(ix);
        ix
    }

    /// The limiters of the policy that states the limits: one set for all that it covers.
    fn limits(
        &mut self,
        place: &Place<'_>,
        making: &mut Making<'_>,
        effective: &Effective,
    ) -> Vec<Limit> {
        let Some(at) = effective.limits_of else {
            return Vec::new();
        };
        let policy = &making.policies[at];
        if !making.made.contains_key(&at) {
            let mut made = Vec::new();
            for limit in &policy.rate_limits {
                let key: LimiterKey = (
                    place.key.to_string(),
                    policy.version.clone(),
                    policy.port.clone(),
                    limit.name.clone(),
                );
                let known = making.carry.limiters(&key);
                let taken = making.limiters.entry(key.clone()).or_default();
                let limiter = limiter(&self.next.model, known, taken, &key, limit, self.now);
                taken.push(Arc::clone(&limiter));
                made.push(limiter);
            }
            making.made.insert(at, made);
        }
        let made = making.made[&at].iter().zip(&policy.rate_limits);
        made.map(|(made, limit)| Limit::new(Arc::clone(made), &limit.matches, &self.next.sources))
            .collect()
    }
}

/// Of versions that no tags select.
static NO_TAGS: Tags = Tags::new();

/// Shared by all.
static ALL: LazyLock<Arc<str>> = LazyLock::new(|| "*".into());

/// The routes of a port without rules: shared by all.
pub(in crate::policy) fn no_routes() -> Arc<RouteTable> {
    static NONE: LazyLock<Arc<RouteTable>> = LazyLock::new(Arc::default);
    Arc::clone(&NONE)
}

/// Whether a version is what it was: then its plan is shared. Whatever else a plan is made of must
/// be compared here (`effective` has all that policies say).
fn is_same(
    old: &VersionPlan,
    port: PortIx,
    tags: &Tags,
    endpoints: &[Arc<EndpointState>],
    limits: &[Limit],
    effective: &Arc<Effective>,
) -> bool {
    let same = |one: &[Arc<EndpointState>], two: &[Arc<EndpointState>]| {
        one.len() == two.len() && one.iter().zip(two).all(|(a, b)| Arc::ptr_eq(a, b))
    };
    old.port == port
        && *old.tags == *tags
        && same(&old.endpoints, endpoints)
        && old.limits.len() == limits.len()
        && old
            .limits
            .iter()
            .zip(limits)
            .all(|(a, b)| Arc::ptr_eq(&a.limiter, &b.limiter))
        && (Arc::ptr_eq(&old.effective, effective) || old.effective == *effective)
}

/// Whether each endpoint stands where it stood.
fn same_places(one: &[Arc<EndpointState>], two: &[Arc<EndpointState>]) -> bool {
    let address = |of: &Arc<EndpointState>| of.address;
    one.iter().map(address).eq(two.iter().map(address))
}

fn endpoints(
    place: &Place<'_>,
    known_tags: &mut KnownTags,
    now: MonoNanos,
) -> Vec<Arc<EndpointState>> {
    let port = place.port;
    let number = |endpoint: &Endpoint| {
        let own = endpoint.ports.get(&port.name).copied();
        SocketAddr::new(endpoint.address.to_canonical(), own.unwrap_or(port.target))
    };
    let carried = place.carried.map(|carried| carried.endpoints());
    let carried = carried.unwrap_or_default();
    let mut known: HashSet<SocketAddr> = HashSet::new();
    let alone = place.service.endpoints.len() < 2;
    place
        .service
        .endpoints
        .iter()
        // Listed twice is there once: the first counts.
        .filter(|endpoint| alone || known.insert(number(endpoint)))
        .map(|endpoint| {
            let address = number(endpoint);
            state(
                endpoint,
                address,
                carried.get(&address).copied(),
                known_tags,
                now,
            )
        })
        .collect()
}

/// What rules select of the port, each once.
fn wanted<'d>(
    draft: &'d Draft,
    port: &Port,
    carry: &Carry<'d>,
    carried: Option<CarriedPort<'d>>,
) -> BTreeSet<&'d Select> {
    let others = draft.wanted.iter().filter(|used| used.port == port.number);
    let mut wanted: BTreeSet<&Select> = others.map(|used| &used.select).collect();
    // The rules are the same, and so is what they want of the port of this name.
    let same = carried.filter(|carried| draft.same_rules && *carried.plan.name == *port.name);
    match same {
        Some(carried)
            if draft.wanted.is_empty() && carry.unit.is_some_and(|unit| unit.wanted.is_empty()) =>
        {
            wanted.extend(carried.plan.selects.iter().map(|(select, _)| select));
        }
        _ => {
            let rules = draft.rules.iter().filter(|rule| rule.covers(&port.name));
            let targets = rules.flat_map(Rule::targets);
            let own = targets.filter(|target| target.backend.is_none());
            wanted.extend(own.map(|target| &target.select));
        }
    }
    wanted
}

fn members(endpoints: &[Arc<EndpointState>], tags: &Tags) -> Vec<Arc<EndpointState>> {
    endpoints
        .iter()
        .filter(|endpoint| selects(tags, &endpoint.tags))
        .cloned()
        .collect()
}

/// `10.0.0.1:80,10.0.0.2:80`.
fn endpoints_name(addresses: &[SocketAddr]) -> String {
    let parts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    parts.join(",")
}

/// `k=v,k=v`.
fn tags_name(tags: &Tags) -> String {
    let parts: Vec<String> = tags
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.join(",")
}
