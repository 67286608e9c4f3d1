//! Rules of one service's ports: where each leads, and the index over all of them.

use std::{collections::HashMap, sync::Arc};

use super::{Compiler, OfRules, actions::OfRule};
use crate::{
    model::{Rule, Select, Target},
    policy::{
        PortIx, RuleIx, Snapshot, next_id,
        route::{RouteTable, RuleExtras, RulePlan, TargetPlan},
        snapshot::PortPlan,
        split::Split,
        terms::RuleTerms,
    },
};

impl Compiler<'_> {
    /// Compiles the rules of a service. `was`: its place in the previous snapshot. `same_rules`:
    /// their conditions and order are those of the previous snapshot.
    pub(super) fn rules(&mut self, at: usize, was: Option<usize>, same_rules: bool) {
        let Some(unit) = self.next.units.get(at).cloned() else {
            return;
        };
        if unit.rules.is_empty() && was.is_none() {
            self.dirty.extend(&unit.ports);
            return;
        }
        let same = same_rules && (self.same_sources || !unit.asks_source);
        let known = was.and_then(|was| self.old.units.get(was));
        let known = known
            .map(|old| Arc::clone(&old.rule_limiters))
            .unwrap_or_default();
        let mut made = OfRules::new();
        for (ix, port) in unit.ports.iter().zip(&unit.service.ports) {
            let old = was.and_then(|was| self.old.units.get(was));
            let old = old.filter(|old| old.ports.contains(ix));
            let old = old.map(|_| Arc::clone(&self.old.ports[ix.0 as usize]));
            let rules: Vec<&Arc<Rule>> = unit
                .rules
                .iter_shared()
                .filter(|rule| rule.covers(&port.name))
                .collect();
            let plans = self.port_rules(*ix, &rules, old.as_deref(), &known, &mut made);
            let same = old.filter(|old| same && *old.name == *port.name);
            let routes = match same.filter(|old| *old.routes.rules() == *plans) {
                Some(old) => Arc::clone(&old.routes),
                None if plans.is_empty() => super::ports::no_routes(),
                None => {
                    let rules = rules.into_iter().map(|rule| &**rule);
                    let with_rules: Vec<(RuleIx, &Rule)> = plans.into_iter().zip(rules).collect();
                    Arc::new(RouteTable::new(&with_rules, &self.next.sources))
                }
            };
            self.dirty.insert(*ix);
            let plan = self.next.port(*ix);
            if !Arc::ptr_eq(&plan.routes, &routes) {
                let plan = PortPlan {
                    routes,
                    ..plan.clone()
                };
                self.next.ports.set(ix.0, Arc::new(plan));
            }
        }
        if !(made.is_empty() && unit.rule_limiters.is_empty()) {
            let mut unit = super::Unit::clone(&unit);
            unit.rule_limiters = Arc::new(made);
            if let Some(place) = self.next.units.get_mut(at) {
                *place = Arc::new(unit);
            }
        }
    }

    /// The plans of a port's rules, by rank. A rule keeps its index as long as it keeps its name.
    fn port_rules(
        &mut self,
        port: PortIx,
        rules: &[&Arc<Rule>],
        old: Option<&PortPlan>,
        limiters: &OfRules,
        made: &mut OfRules,
    ) -> Vec<RuleIx> {
        let had = old.map(|old| old.routes.rules()).unwrap_or_default();
        let mut by_name: HashMap<&str, RuleIx> = HashMap::new();
        if !rules.is_empty() {
            let names = had.iter().map(|ix| (&*self.old.rule(*ix).name, *ix));
            by_name.extend(names);
        }
        let mut plans = Vec::with_capacity(rules.len());
        for rule in rules {
            let known = by_name.remove(rule.name.as_str());
            let plan = self.rule(port, rule, known, limiters, made);
            let ix = known.unwrap_or_else(|| RuleIx(self.next.rules.reserve()));
            self.next.rules.set(ix.0, plan);
            plans.push(ix);
        }
        if rules.is_empty() {
            self.freed.rules.extend(had);
        } else {
            // Also those whose name another had, too: the configuration refuses them.
            let mut gone: Vec<RuleIx> = had.to_vec();
            let kept: std::collections::HashSet<&RuleIx> = plans.iter().collect();
            gone.retain(|ix| !kept.contains(ix));
            self.freed.rules.extend(gone);
        }
        plans
    }

    /// One rule, compiled.
    fn rule(
        &self,
        port: PortIx,
        rule: &Arc<Rule>,
        known: Option<RuleIx>,
        limiters: &OfRules,
        made: &mut OfRules,
    ) -> RulePlan {
        let resolve = |target: &Target| {
            let plan = self.target(port, target);
            (!plan.invalid).then_some(plan.version)
        };
        let actions = OfRule::new(rule, &self.next.sources, resolve);
        let targets = rule
            .route
            .iter()
            .enumerate()
            .map(|(at, target)| TargetPlan {
                actions: actions.target(at),
                ..self.target(port, target)
            });
        let targets: Vec<TargetPlan> = targets.collect();
        let carried = known.and_then(|ix| self.old.rules.get(ix.0 as usize));
        let same = |carried: &&RulePlan| {
            carried.targets.len() == targets.len()
                && carried
                    .targets
                    .iter()
                    .zip(&targets)
                    .all(|(one, two)| split_name(self.old, one) == split_name(&self.next, two))
        };
        let id = carried
            .filter(same)
            .map_or_else(next_id, |carried| carried.split.id);
        let split = Split::new(id, &targets);
        let extras = RuleExtras {
            precedence: rule.precedence,
            limits: self.rule_limits(port, rule, limiters, made),
            choice: super::actions::choice(rule, &self.next, port, &targets),
            actions: actions.rule,
            terms: RuleTerms::of(rule),
        };
        RulePlan::new(Arc::clone(rule), targets, split, extras)
    }

    /// Where a target leads.
    fn target(&self, port: PortIx, target: &Target) -> TargetPlan {
        let own = self.next.port(port);
        let of = match target.backend {
            Some(backend) => self.service_port(backend.service, backend.port),
            None => Some(own),
        };
        let version = of.and_then(|of| {
            let selects = &of.selects;
            let found = selects.binary_search_by(|(select, _)| select.cmp(&target.select));
            found.ok().map(|at| selects[at].1)
        });
        TargetPlan {
            // A port that is not there: the configuration refuses it by name.
            version: version.unwrap_or(own.all),
            weight: target.weight,
            invalid: version.is_none() || matches!(target.select, Select::Invalid(_)),
            actions: None,
        }
    }

    fn service_port(&self, service: usize, number: u16) -> Option<&PortPlan> {
        let ports = self.next.units.get(service)?.ports.iter();
        let mut ports = ports.map(|ix| self.next.port(*ix));
        ports.find(|port| port.number == number)
    }

    /// Compiles one rule, of which nothing but weights changed.
    pub(super) fn weights(&mut self, at: usize, old: &Arc<Rule>, new: &Arc<Rule>) {
        let Some(unit) = self.next.units.get(at).cloned() else {
            return;
        };
        let by_address = unit
            .rules
            .iter_shared()
            .position(|rule| Arc::ptr_eq(rule, old));
        let by_name = || unit.rules.iter().position(|rule| rule.name == old.name);
        let Some(rank) = by_address.or_else(by_name) else {
            return;
        };
        for (ix, port) in unit.ports.iter().zip(&unit.service.ports) {
            if !new.covers(&port.name) {
                continue;
            }
            let routes = Arc::clone(&self.next.port(*ix).routes);
            let rank = if routes.rules().len() == unit.rules.len() {
                rank
            } else {
                let before = unit.rules.iter().take(rank);
                before.filter(|rule| rule.covers(&port.name)).count()
            };
            let Some(rule) = routes.rules().get(rank).copied() else {
                continue;
            };
            let limiters = Arc::clone(&unit.rule_limiters);
            let plan = self.rule(*ix, new, Some(rule), &limiters, &mut OfRules::new());
            self.next.rules.set(rule.0, plan);
            self.dirty.insert(*ix);
        }
        let mut unit = super::Unit::clone(&unit);
        unit.rules.set(rank, Arc::clone(new));
        if let Some(place) = self.next.units.get_mut(at) {
            *place = Arc::new(unit);
        }
    }
}

/// What makes a target the same one in the next snapshot.
fn split_name<'s>(snapshot: &'s Snapshot, target: &TargetPlan) -> SplitName<'s> {
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
type SplitName<'s> = (&'s str, u16, &'s str, u32, bool);
