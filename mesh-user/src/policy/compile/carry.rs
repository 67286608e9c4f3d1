//! What of the previous snapshot still applies, by keys that stay.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::{LimiterKey, SplitName, split_name};
use crate::{
    clock::MonoNanos,
    model::Endpoint,
    policy::{
        Snapshot, next_id,
        rate_limit::Limiter,
        snapshot::{EndpointState, PortPlan, VersionPlan},
    },
};

/// Names a port: `namespace/name` and number.
type PortKey<'a> = (&'a str, u16);

/// A rule's targets, with their weights, and the id of that split.
type KnownSplit<'a> = (Vec<SplitName<'a>>, u64);

/// What the previous snapshot has, by stable keys.
#[derive(Default)]
pub(in crate::policy) struct Carry<'a> {
    pub(super) ports: HashMap<PortKey<'a>, &'a PortPlan>,
    pub(super) versions: HashMap<(PortKey<'a>, &'a str), &'a VersionPlan>,
    pub(super) endpoints: HashMap<(PortKey<'a>, SocketAddr), &'a Arc<EndpointState>>,
    pub(super) splits: HashMap<(PortKey<'a>, &'a str), KnownSplit<'a>>,
    /// By workload and rule.
    pub(in crate::policy) inbound: HashMap<(&'a str, Option<&'a str>), &'a VersionPlan>,
    pub(in crate::policy) limiters: Option<&'a HashMap<LimiterKey, Vec<Arc<Limiter>>>>,
}

impl<'a> Carry<'a> {
    pub(super) fn new(previous: Option<&'a Snapshot>) -> Self {
        let Some(previous) = previous else {
            return Self::default();
        };
        let mut carry = Self {
            limiters: Some(&previous.limiters),
            ..Self::default()
        };
        for port in &previous.ports {
            if let Some(inbound) = &port.inbound {
                let key = (&*inbound.workload, inbound.rule.as_deref());
                carry.inbound.insert(key, previous.version(port.all));
                continue;
            }
            let key = (&*port.key, port.number);
            carry.ports.insert(key, port);
            for version in port.versions.iter().map(|ix| previous.version(*ix)) {
                carry.versions.insert((key, &version.name), version);
            }
            for endpoint in &previous.version(port.all).endpoints {
                carry.endpoints.insert((key, endpoint.address), endpoint);
            }
            for rule in port.routes.rules().iter().map(|ix| previous.rule(*ix)) {
                let targets = rule.targets.iter();
                let targets = targets.map(|target| split_name(previous, target));
                carry
                    .splits
                    .insert((key, &rule.name), (targets.collect(), rule.split.id));
            }
        }
        carry
    }
}

/// The previous state itself when nothing changed, else a new one with its identity and counters.
pub(super) fn state(
    endpoint: &Endpoint,
    address: SocketAddr,
    carried: Option<&Arc<EndpointState>>,
    now: MonoNanos,
) -> Arc<EndpointState> {
    if let Some(carried) = carried
        && carried.tags == endpoint.tags
        && carried.identity.as_deref() == endpoint.identity.as_deref()
        && carried.weight == endpoint.weight
        && carried.healthy == endpoint.healthy
        && carried.priority == endpoint.priority
        && carried.locality.as_deref().unwrap_or_default() == endpoint.locality
    {
        return Arc::clone(carried);
    }
    Arc::new(EndpointState {
        id: carried.map_or_else(next_id, |carried| carried.id),
        address,
        tags: endpoint.tags.clone(),
        identity: endpoint.identity.as_deref().map(Into::into),
        weight: endpoint.weight,
        healthy: endpoint.healthy,
        priority: endpoint.priority,
        locality: (!endpoint.locality.is_empty()).then(|| endpoint.locality.as_str().into()),
        since: match carried {
            Some(carried) if carried.healthy || !endpoint.healthy => carried.since,
            _ => now,
        },
        live: carried.map_or_else(Arc::default, |carried| Arc::clone(&carried.live)),
    })
}
