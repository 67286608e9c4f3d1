//! The limiters of policies and rules: made once for all that states them covers, and carried over
//! from the previous snapshot while they say the same.

use std::{collections::HashMap, sync::Arc};

use super::{Compiler, LimiterKey, Pending};
use crate::{
    clock::MonoNanos,
    model::{RateLimitPolicy, RateLimitService, Rule},
    policy::{
        Snapshot,
        effective::Effective,
        rate_limit::{Limit, Limiter},
    },
};

/// Limiters by who states them, as one snapshot keeps them for the next.
pub(in crate::policy) type Known = HashMap<LimiterKey, Vec<Arc<Limiter>>>;

/// The store of a limit that is shared. The check of the configuration refuses unknown names; a
/// limit without its store is one of this node.
fn service(snapshot: &Snapshot, limit: &RateLimitPolicy) -> Option<Arc<RateLimitService>> {
    let name = &limit.global.as_ref()?.service;
    let mut all = snapshot.model.rate_limit_services.iter();
    all.find(|service| service.name == *name)
        .map(|service| Arc::new(service.clone()))
}

/// The limiter of a limit: the previous one when it says the same.
pub(in crate::policy) fn limiter(
    snapshot: &mut Snapshot,
    previous: Option<&Known>,
    key: LimiterKey,
    limit: &RateLimitPolicy,
    now: MonoNanos,
) -> Arc<Limiter> {
    let service = service(snapshot, limit);
    let scope = scope(&key);
    let known = previous.and_then(|known| known.get(&key));
    let taken = snapshot.limiters.entry(key).or_default();
    // The same name twice: each previous limiter goes to one of them only.
    let carried = known.into_iter().flatten().find(|limiter| {
        limiter.is(limit, service.as_ref())
            && !taken.iter().any(|other| Arc::ptr_eq(limiter, other))
    });
    let before = known.and_then(|known| known.first()).map(|known| &**known);
    let limiter = carried
        .cloned()
        .unwrap_or_else(|| Arc::new(Limiter::new(limit, service.as_ref(), &scope, before, now)));
    taken.push(Arc::clone(&limiter));
    limiter
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
    /// The limits of the policy that states them: one set of limiters for all that it covers.
    pub(super) fn limits(&mut self, service: &str, effective: &Effective) -> Vec<Limit> {
        let Some(at) = effective.limits_of else {
            return Vec::new();
        };
        let policy = &self.snapshot.model.policies[at];
        let limits = policy.rate_limits.clone();
        let key = |name: &String| {
            (
                service.to_owned(),
                policy.version.clone(),
                policy.port.clone(),
                name.clone(),
            )
        };
        let keys: Vec<LimiterKey> = limits.iter().map(|limit| key(&limit.name)).collect();
        if !self.limiters.contains_key(&at) {
            let mut made = Vec::with_capacity(limits.len());
            for (limit, key) in limits.iter().zip(keys) {
                let known = self.carry.limiters;
                made.push(limiter(&mut self.snapshot, known, key, limit, self.now));
            }
            self.limiters.insert(at, made);
        }
        let made = &self.limiters[&at];
        made.iter()
            .zip(&limits)
            .map(|(made, limit)| {
                Limit::new(Arc::clone(made), &limit.matches, &self.snapshot.sources)
            })
            .collect()
    }

    /// The limits of a rule: the ports that it covers share its limiters.
    pub(super) fn rule_limits(&mut self, port: &Pending<'_>, rule: &Rule) -> Box<[Limit]> {
        let limits = &rule.extra().rate_limits;
        if limits.is_empty() {
            return Box::default();
        }
        let service = self.snapshot.port(port.ix).key.to_string();
        let mut made = Vec::with_capacity(limits.len());
        for limit in limits {
            // Names of versions hold no slash.
            let of_rule = Some(format!("rule/{}", rule.name));
            let key: LimiterKey = (service.clone(), of_rule, None, limit.name.clone());
            let same = self.snapshot.limiters.get(&key).and_then(|of| of.first());
            let limiter = match same.cloned() {
                Some(same) => same,
                None => {
                    let known = self.carry.limiters;
                    limiter(&mut self.snapshot, known, key, limit, self.now)
                }
            };
            made.push(Limit::new(limiter, &limit.matches, &self.snapshot.sources));
        }
        made.into()
    }
}
