//! Model in, snapshot out; what still applies of the previous snapshot is taken along.
//!
//! Only what changed is compiled. The unit is a service with its rules and policies: [`Inputs`] finds
//! the services that differ (lists share what they have in common, so that costs what differs), and
//! all others keep their plans and indexes. Where one weight of one rule changed, that rule alone is
//! compiled anew. A first snapshot is the same with everything changed.
//!
//! In steps: services whose names stay keep their indexes; ports and versions of the changed
//! services ([`ports`]); rules, of those services and of those that send to them by name
//! ([`rules`]); the kernel's tables of the ports concerned; inbound ports, when a workload or an
//! inbound rule changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicBool},
};

use super::{
    PortIx, Snapshot, SourceIx, VersionIx,
    arena::Arena,
    inbound::InboundIndex,
    rate_limit::Limiter,
    slots::{self, Ids},
    snapshot::{PortPlan, Source, TlsUses},
    unit::{Claims, Unit, Use, host_keys},
};
use crate::{
    clock::MonoNanos,
    model::{
        List, Model, Policy, Rule, Service, Tags, kernel_table::Path, list::Chunks,
        tls::UpstreamTls,
    },
};

mod actions;
mod carry;
mod inputs;
mod limits;
mod path;
mod ports;
mod rules;

use inputs::Inputs;
pub(super) use limits::{OfRules, limiter};
pub(super) use ports::no_routes;

/// Names the policy that states a limit, and the limit: service, version, port, limit.
pub(super) type LimiterKey = (String, Option<String>, Option<String>, String);

/// See [`Snapshot::compile`].
pub(super) fn compile(model: Arc<Model>, previous: Option<&Snapshot>, now: MonoNanos) -> Snapshot {
    let nothing;
    let old = match previous {
        Some(previous) => previous,
        None => {
            nothing = blank();
            &nothing
        }
    };
    let same_sources = previous.is_some() && model.workloads == old.model.workloads;
    let same_inbound = same_sources
        && model.inbound == old.model.inbound
        && model.rate_limit_services == old.model.rate_limit_services;
    let inputs = Inputs::of(old, &model);
    let mut compiler = Compiler {
        next: Snapshot {
            generation: previous.map_or(0, |previous| previous.generation + 1),
            enforced: AtomicBool::new(previous.is_none()),
            all_fresh: previous
                .is_none_or(|p| !p.enforced.load(std::sync::atomic::Ordering::Relaxed)),
            ..share(old, &model)
        },
        old,
        now,
        same_sources,
        freed: Freed::default(),
        dirty: BTreeSet::new(),
        moved: BTreeSet::new(),
        reshaped: BTreeSet::new(),
        tags: KnownTags::default(),
        compiled: Vec::new(),
    };
    if !same_sources {
        compiler.sources(&model);
    }
    compiler.services(&model, inputs);
    compiler.tables(&model, previous.is_none());
    compiler.give_back();
    let Compiler {
        mut next, compiled, ..
    } = compiler;
    if !same_inbound {
        super::inbound::compile(&mut next, old, now);
    }
    super::inbound::endpoints(&mut next, old, &compiled);
    tls_uses(&mut next, old, &compiled);
    next
}

/// Gathers the TLS settings again if a service that was compiled has or had some.
fn tls_uses(next: &mut Snapshot, old: &Snapshot, compiled: &[usize]) {
    let has = |unit: &Arc<Unit>| {
        unit.service.ports.iter().any(|port| port.tls.is_some())
            || unit.policies.iter().any(|policy| policy.tls.is_some())
    };
    let touched = |at: &usize| {
        [old, &*next]
            .iter()
            .any(|of| of.units.get(*at).is_some_and(has))
    };
    if !compiled.iter().any(touched) {
        return;
    }
    let mut uses = TlsUses::default();
    for unit in next.units.iter() {
        let ports = unit.service.ports.iter();
        uses.terminate
            .extend(ports.filter_map(|port| port.tls.clone()));
        let policies = unit
            .policies
            .iter()
            .filter_map(|policy| policy.tls.as_ref());
        uses.originate.extend(policies.filter_map(|tls| match tls {
            UpstreamTls::Simple(tls) => Some(Arc::clone(tls)),
            UpstreamTls::Off => None,
        }));
    }
    next.tls = Arc::new(uses);
}

/// A snapshot that knows nothing.
fn blank() -> Snapshot {
    Snapshot {
        generation: 0,
        model: Arc::default(),
        ports: Arena::default(),
        versions: Arena::default(),
        rules: Arena::default(),
        sources: Arc::new([]),
        tls: Arc::default(),
        units: Chunks::default(),
        by_address: Default::default(),
        by_host: Default::default(),
        by_workload: Arc::default(),
        kernel: Default::default(),
        direct: Default::default(),
        crowded: Default::default(),
        ids: Ids::default(),
        inbound: InboundIndex::default(),
        fresh: Vec::new(),
        all_fresh: true,
        enforced: AtomicBool::new(true),
    }
}

/// All that the next snapshot has in common with this one until something is changed.
fn share(old: &Snapshot, model: &Arc<Model>) -> Snapshot {
    Snapshot {
        model: Arc::clone(model),
        ports: old.ports.clone(),
        versions: old.versions.clone(),
        rules: old.rules.clone(),
        sources: Arc::clone(&old.sources),
        tls: Arc::clone(&old.tls),
        units: old.units.clone(),
        by_address: old.by_address.clone(),
        by_host: old.by_host.clone(),
        by_workload: Arc::clone(&old.by_workload),
        kernel: old.kernel.clone(),
        direct: old.direct.clone(),
        crowded: old.crowded.clone(),
        ids: old.ids.clone(),
        inbound: old.inbound.clone(),
        ..blank()
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
    old: &'a Snapshot,
    next: Snapshot,
    now: MonoNanos,
    same_sources: bool,
    freed: Freed,
    /// Ports whose tables in the kernel may change.
    dirty: BTreeSet<PortIx>,
    /// Services of whose selections one leads elsewhere now.
    moved: BTreeSet<usize>,
    /// Services of whose versions one has its endpoints at other places now.
    reshaped: BTreeSet<usize>,
    /// Tags of endpoints and versions: mostly the same few.
    tags: KnownTags,
    /// Services that were compiled, by place, also those that are gone.
    compiled: Vec<usize>,
}

/// Tags that were shared already.
#[derive(Default)]
struct KnownTags(HashMap<Tags, Arc<Tags>>);

impl KnownTags {
    fn share(&mut self, tags: &Tags) -> Arc<Tags> {
        if let Some(known) = self.0.get(tags) {
            return Arc::clone(known);
        }
        let shared = Arc::new(tags.clone());
        self.0.insert(tags.clone(), Arc::clone(&shared));
        shared
    }
}

/// Indexes whose plans are gone. Given back at the end: in this snapshot nobody else gets them.
#[derive(Default)]
struct Freed {
    ports: BTreeSet<PortIx>,
    versions: Vec<VersionIx>,
    rules: Vec<super::RuleIx>,
}

/// A service that is to be compiled, with all that is said of it.
struct Draft {
    /// Its place in the model.
    at: usize,
    service: Arc<Service>,
    rules: List<Rule>,
    policies: Vec<Arc<Policy>>,
    uses: Vec<Use>,
    wanted: Vec<Use>,
    /// Its place in the previous model.
    was: Option<usize>,
    /// The rules are those of the previous snapshot.
    same_rules: bool,
}

impl Compiler<'_> {
    fn sources(&mut self, model: &Model) {
        let sources = sources(model);
        let mut by_workload = HashMap::with_capacity(sources.len());
        for (source, at) in sources.iter().zip(0..) {
            by_workload
                .entry(Arc::clone(&source.key))
                .or_insert(SourceIx(at));
        }
        self.next.sources = sources.into();
        self.next.by_workload = Arc::new(by_workload);
    }

    fn services(&mut self, model: &Model, inputs: Inputs) {
        let Inputs {
            mut changed,
            mut rules,
            mut policies,
            light,
        } = inputs;
        // A port without room may have some now.
        for ix in self.old.crowded.iter().map(PortIx) {
            changed.insert(self.old.port(ix).service_index);
        }
        let other_stores = self.old.model.rate_limit_services != model.rate_limit_services;
        if other_stores || !self.same_sources {
            // Limits are compiled for what they ask.
            let units = self.old.units.iter().enumerate().take(model.services.len());
            let again = units.filter(|(_, unit)| {
                (other_stores && !unit.limiters.is_empty()) || limits::ask_source(unit)
            });
            changed.extend(again.map(|(at, _)| at));
        }
        let wanted = self.wanted(model, &mut changed, &rules);
        let was = self.places(model, &changed);
        let drafts: Vec<Draft> = changed
            .iter()
            .filter_map(|at| {
                let unit = self.old.units.get(*at);
                let new_rules = rules.remove(at);
                let same_rules = new_rules.is_none() && was.get(at) == Some(at);
                let own = new_rules
                    .unwrap_or_else(|| unit.map(|unit| unit.rules.clone()).unwrap_or_default());
                Some(Draft {
                    at: *at,
                    service: Arc::clone(model.services.shared(*at)?),
                    uses: match unit.filter(|_| same_rules) {
                        Some(unit) => unit.uses.clone(),
                        None => super::unit::uses(&own),
                    },
                    rules: own,
                    policies: policies.remove(at).unwrap_or_else(|| {
                        unit.map(|unit| unit.policies.clone()).unwrap_or_default()
                    }),
                    wanted: match (wanted.get(at), unit) {
                        (Some(wanted), _) => wanted.clone(),
                        (None, Some(unit)) => unit.wanted.clone(),
                        (None, None) => Vec::new(),
                    },
                    was: was.get(at).copied(),
                    same_rules,
                })
            })
            .collect();
        self.forget(model, &changed, &was);
        self.next.units.truncate(model.services.len());
        self.next.by_address.reserve(drafts.len());
        // Its host name and its own.
        self.next.by_host.reserve(2 * drafts.len());
        self.compiled = changed.into_iter().collect();
        let mut with_rules = BTreeMap::new();
        for draft in drafts {
            let at = draft.at;
            let again = !draft.same_rules;
            let was = draft.was;
            let same_rules = draft.same_rules;
            let unit = self.ports(draft);
            match self.next.units.get_mut(at) {
                Some(place) => *place = Arc::new(unit),
                None => self.next.units.push(Arc::new(unit)),
            }
            if again {
                with_rules.insert(at, (was, same_rules));
            }
        }
        self.users();
        // Whoever sends to a service whose versions stand elsewhere now, or are gone.
        let gone = self.compiled.iter().copied();
        let gone = gone.filter(|at| *at >= model.services.len());
        for moved in std::mem::take(&mut self.moved).into_iter().chain(gone) {
            let next = self.next.units.get(moved);
            let unit = next.or_else(|| self.old.units.get(moved));
            let users = unit.into_iter().flat_map(|unit| &unit.wanted);
            for at in users.map(|user| user.service as usize).chain([moved]) {
                with_rules.entry(at).or_insert((Some(at), true));
            }
        }
        // Sessions name endpoints by their places.
        for at in std::mem::take(&mut self.reshaped) {
            let users = self.next.units.get(at).map(|unit| &*unit.wanted);
            let users = users.unwrap_or_default().iter();
            for at in users.map(|user| user.service as usize).chain([at]) {
                if self.next.units.get(at).is_some_and(|unit| unit.sessions) {
                    with_rules.entry(at).or_insert((Some(at), true));
                }
            }
        }
        if self.old.model.rate_limit_services != model.rate_limit_services {
            for (at, unit) in self.next.units.iter().enumerate() {
                if !unit.rule_limiters.is_empty() {
                    with_rules.entry(at).or_insert((Some(at), true));
                }
            }
        }
        if !self.same_sources {
            for (at, unit) in self.next.units.iter().enumerate() {
                if unit.asks_source {
                    with_rules.entry(at).or_insert((Some(at), true));
                }
            }
        }
        for (at, (was, same_rules)) in &with_rules {
            self.rules(*at, *was, *same_rules);
        }
        for (at, old, new) in light {
            self.weights(at, &old, &new);
        }
    }

    /// What the kernel does for a service shows the endpoints of those that its rules send to.
    fn users(&mut self) {
        for at in &self.compiled {
            let wanted = self.next.units.get(*at).map(|unit| &*unit.wanted);
            for user in wanted.unwrap_or_default() {
                if let Some(unit) = self.next.units.get(user.service as usize) {
                    self.dirty.extend(&unit.ports);
                }
            }
        }
    }

    /// What others want of services, where that is another thing now; such services are added to
    /// the changed ones.
    fn wanted(
        &self,
        model: &Model,
        changed: &mut BTreeSet<usize>,
        rules: &HashMap<usize, List<Rule>>,
    ) -> BTreeMap<usize, Vec<Use>> {
        // By the service that is wanted: who wants it no more, who does now.
        let mut edits: BTreeMap<usize, (BTreeSet<u32>, Vec<Use>)> = BTreeMap::new();
        for at in changed.iter().copied() {
            let gone = at >= model.services.len();
            let new = match rules.get(&at) {
                _ if gone => Vec::new(),
                Some(rules) => super::unit::uses(rules),
                None => continue,
            };
            let old = self.old.units.get(at).map(|unit| &*unit.uses);
            for used in old.unwrap_or_default() {
                let edit = edits.entry(used.service as usize).or_default();
                edit.0.insert(at as u32);
            }
            for used in new {
                let edit = edits.entry(used.service as usize).or_default();
                edit.0.insert(at as u32);
                edit.1.push(Use {
                    service: at as u32,
                    ..used
                });
            }
        }
        // What was named before it was there.
        let known = self.old.units.len();
        if known > 0 && model.services.len() > known {
            for (at, unit) in (0_u32..).zip(self.old.units.iter()) {
                for used in unit
                    .uses
                    .iter()
                    .filter(|used| used.service as usize >= known)
                {
                    if !rules.contains_key(&(at as usize)) {
                        let more = Use {
                            service: at,
                            ..used.clone()
                        };
                        edits.entry(used.service as usize).or_default().1.push(more);
                    }
                }
            }
        }
        let mut wanted = BTreeMap::new();
        for (at, (who, mut more)) in edits {
            let old = self.old.units.get(at).map(|unit| &*unit.wanted);
            let kept = old.unwrap_or_default().iter();
            let kept = kept.filter(|had| !who.contains(&had.service));
            more.extend(kept.cloned());
            more.sort();
            if old != Some(&*more) {
                if at < model.services.len() {
                    changed.insert(at);
                }
                wanted.insert(at, more);
            }
        }
        wanted
    }

    /// Where the changed services stood in the previous model, by name.
    fn places(&self, model: &Model, changed: &BTreeSet<usize>) -> BTreeMap<usize, usize> {
        let mut was = BTreeMap::new();
        let mut others: Vec<usize> = Vec::new();
        let same = |a: &Service, b: &Service| a.name == b.name && a.namespace == b.namespace;
        for at in changed.iter().copied() {
            let Some(service) = model.services.get(at) else {
                continue;
            };
            match self.old.units.get(at) {
                Some(unit) if same(&unit.service, service) => drop(was.insert(at, at)),
                _ => others.push(at),
            }
        }
        if others.is_empty() || self.old.units.is_empty() {
            return was;
        }
        // Only such as are not at their old places can be at another's.
        let loose = changed.iter().filter(|at| !was.contains_key(at));
        let loose = loose.filter_map(|at| Some((*at, self.old.units.get(*at)?)));
        let by_name: HashMap<(&str, &str), usize> = loose
            .map(|(at, unit)| ((&*unit.service.namespace, &*unit.service.name), at))
            .collect();
        for at in others {
            let service = &model.services[at];
            if let Some(old) = by_name.get(&(&*service.namespace, &*service.name)) {
                was.insert(at, *old);
            }
        }
        was
    }

    /// Lets go of what is gone: ports of services that are, and ports that their services have no
    /// more.
    fn forget(&mut self, model: &Model, changed: &BTreeSet<usize>, was: &BTreeMap<usize, usize>) {
        let new: HashMap<usize, usize> = was.iter().map(|(new, old)| (*old, *new)).collect();
        for at in changed {
            let Some(unit) = self.old.units.get(*at) else {
                continue;
            };
            let next = new.get(at).and_then(|new| model.services.get(*new));
            for ix in &unit.ports {
                let old = self.old.port(*ix);
                let stays = next.is_some_and(|service| {
                    let mut ports = service.ports.iter();
                    ports.any(|port| port.number == old.number)
                });
                let same_place = new.get(at) == Some(at);
                if !(stays
                    && same_place
                    && next.is_some_and(|next| same_names(&unit.service, next)))
                {
                    self.claim(&unit.service, *ix, old.number, false);
                }
                if !stays {
                    self.drop_port(*ix, old);
                }
            }
        }
    }

    fn drop_port(&mut self, ix: PortIx, old: &PortPlan) {
        self.freed.ports.insert(ix);
        self.freed.versions.extend(&old.versions);
        self.freed.rules.extend(old.routes.rules());
        self.next.ids.give_back(old.service_id);
        self.dirty.insert(ix);
    }

    /// Notes by which addresses and names a port is found, or no more.
    fn claim(&mut self, service: &Service, ix: PortIx, number: u16, there: bool) {
        let ports = &self.next.ports;
        let place = |ix: PortIx| {
            let plan = ports.get(ix.0 as usize);
            plan.map_or(usize::MAX, |plan| plan.service_index)
        };
        for address in &service.addresses {
            let key = (address.to_canonical(), number);
            let edit = |claims| Claims::with(claims, ix, there, place);
            self.next.by_address.change(key, edit);
        }
        for key in host_keys(service, number) {
            let edit = |claims| Claims::with(claims, ix, there, place);
            self.next.by_host.change(key, edit);
        }
    }

    /// The kernel's tables of all ports that may need other ones.
    fn tables(&mut self, model: &Model, first: bool) {
        if first || model.outbound != self.old.model.outbound {
            (self.next.kernel.outbound, self.next.kernel.outbound_udp) = slots::outbounds(model);
        }
        let capacity = mesh_common::maps::get("SLOTS").capacity as usize;
        for ix in std::mem::take(&mut self.dirty) {
            let kernel = &mut self.next.kernel;
            if let Some(old) = kernel.ports.clear(ix.0) {
                kernel.slots -= old.slots.len();
            }
            self.next.direct.set(ix.0, false);
            self.next.crowded.set(ix.0, false);
            if self.freed.ports.contains(&ix) {
                continue;
            }
            let Some(port) = self.next.ports.get(ix.0 as usize) else {
                continue;
            };
            let room = capacity.saturating_sub(self.next.kernel.slots);
            let (table, full) = slots::port(&self.next, port, room);
            if full {
                self.next.crowded.set(ix.0, true);
                let (path, path_reason) = slots::settled(port, true);
                let port = PortPlan {
                    path,
                    path_reason,
                    ..(**port).clone()
                };
                self.next.ports.set(ix.0, Arc::new(port));
            }
            if self.next.port(ix).path == Path::Kernel {
                self.next.direct.set(ix.0, true);
            }
            self.next.kernel.slots += table.slots.len();
            self.next.kernel.ports.set(ix.0, Arc::new(table));
        }
    }

    fn give_back(&mut self) {
        for ix in std::mem::take(&mut self.freed.ports) {
            self.next.ports.remove(ix.0);
        }
        for ix in std::mem::take(&mut self.freed.versions) {
            self.next.versions.remove(ix.0);
        }
        for ix in std::mem::take(&mut self.freed.rules) {
            self.next.rules.remove(ix.0);
        }
    }
}

/// Whether the ports of two services are found by the same addresses and names.
fn same_names(one: &Service, two: &Service) -> bool {
    one.name == two.name
        && one.namespace == two.namespace
        && one.addresses == two.addresses
        && one.hostnames == two.hostnames
}

/// The limiters that a service's policies made, by the policy's place among them.
type Made = HashMap<usize, Vec<Arc<Limiter>>>;

#[cfg(test)]
mod tests;
