//! The limiters of policies and rules: made once for all that states them covers, and carried over
//! from the previous snapshot while they say the same.

use std::{collections::HashMap, sync::Arc};

use super::{Compiler, LimiterKey};
use crate::{
    clock::MonoNanos,
    model::{Model, RateLimitPolicy, RateLimitService, Rule},
    policy::{
        PortIx, Snapshot,
        rate_limit::{Limit, Limiter},
        unit::Unit,
    },
};

/// Limiters of the rules of one service, by rule and limit.
pub(in crate::policy) type OfRules = HashMap<LimiterKey, Arc<Limiter>>;

/// The store of a limit that is shared. The check of the configuration refuses unknown names; a
/// limit without its store is one of this node.
fn service(model: &Model, limit: &RateLimitPolicy) -> Option<Arc<RateLimitService>> {
    let name = &limit.global.as_ref()?.service;
    let mut all = model.rate_limit_services.iter();
    all.find(|service| service.name == *name)
        .map(|service| Arc::new(service.clone()))
}

/// The limiter of a limit: the previous one when it says the same. `known`: those of the same name
/// before; `taken`: those of the same name that others have got already.
pub(in crate::policy) fn limiter(
    model: &Model,
    known: &[Arc<Limiter>],
    taken: &[Arc<Limiter>],
    key: &LimiterKey,
    limit: &RateLimitPolicy,
    now: MonoNanos,
) -> Arc<Limiter> {
    let service = service(model, limit);
    // The same name twice: each previous limiter goes to one of them only.
    let carried = known.iter().find(|limiter| {
        limiter.is(limit, service.as_ref())
            && !taken.iter().any(|other| Arc::ptr_eq(limiter, other))
    });
    let before = known.first().map(|known| &**known);
    carried.cloned().unwrap_or_else(|| {
        Arc::new(Limiter::new(
            limit,
            service.as_ref(),
            &scope(key),
            before,
            now,
        ))
    })
}

/// Who states the limit, in keys of a store: the same on every node.
fn scope((service, version, port, _): &LimiterKey) -> String {
    let mut scope = service.clone();
    for part in [version, port].into_iter().flatten() {
        scope.push('/');
        scope.push_str(part);
    }
    scope
}

impl Compiler<'_> {
    /// The limits of a rule: the ports that it covers share its limiters, which stand in `made`.
    /// `known`: those of the previous snapshot.
    pub(super) fn rule_limits(
        &self,
        port: PortIx,
        rule: &Rule,
        known: &OfRules,
        made: &mut OfRules,
    ) -> Vec<Limit> {
        let limits = &rule.extra().rate_limits;
        if limits.is_empty() {
            return Vec::new();
        }
        let service = self.next.port(port).key.to_string();
        let mut all = Vec::with_capacity(limits.len());
        for limit in limits {
            // Names of versions hold no slash.
            let of_rule = Some(format!("rule/{}", rule.name));
            let key: LimiterKey = (service.clone(), of_rule, None, limit.name.clone());
            let limiter = match made.get(&key) {
                Some(same) => Arc::clone(same),
                None => {
                    let before = known.get(&key).map(std::slice::from_ref);
                    let before = before.unwrap_or_default();
                    let limiter = limiter(&self.next.model, before, &[], &key, limit, self.now);
                    made.insert(key, Arc::clone(&limiter));
                    limiter
                }
            };
            all.push(Limit::new(limiter, &limit.matches, &self.next.sources));
        }
        all
    }
}

/// Whether a policy's limit asks who the client is: it is compiled for a set of sources.
pub(super) fn ask_source(unit: &Unit) -> bool {
    let limits = unit.policies.iter().flat_map(|policy| &policy.rate_limits);
    limits
        .flat_map(|limit| &limit.matches)
        .any(|condition| condition.source.is_some())
}

impl Snapshot {
    /// All limiters, with who states them.
    pub(in crate::policy) fn each_limiter(
        &self,
        mut visit: impl FnMut(&LimiterKey, &Arc<Limiter>),
    ) {
        for unit in self.units.iter() {
            for (key, limiters) in &unit.limiters {
                limiters.iter().for_each(|limiter| visit(key, limiter));
            }
            for (key, limiter) in unit.rule_limiters.iter() {
                visit(key, limiter);
            }
        }
        for (key, limiters) in self.inbound.limiters.iter() {
            limiters.iter().for_each(|limiter| visit(key, limiter));
        }
    }
}
