//! What of a service's previous plans still applies, by keys that stay.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::{KnownTags, LimiterKey};
use crate::{
    clock::MonoNanos,
    model::Endpoint,
    policy::{
        PortIx, Snapshot, VersionIx, next_id,
        rate_limit::Limiter,
        snapshot::{EndpointState, PortPlan, VersionPlan},
        unit::Unit,
    },
};

/// The previous plans of one service.
#[derive(Clone, Copy)]
pub(super) struct Carry<'a> {
    old: &'a Snapshot,
    pub(super) unit: Option<&'a Unit>,
}

impl<'a> Carry<'a> {
    pub(super) fn new(old: &'a Snapshot, was: Option<usize>) -> Self {
        let unit = was.and_then(|was| old.units.get(was));
        Self {
            old,
            unit: unit.map(|unit| &**unit),
        }
    }

    /// The port of that number.
    pub(super) fn port(&self, number: u16) -> Option<(PortIx, CarriedPort<'a>)> {
        let mut ports = self.unit?.ports.iter();
        let ix = *ports.find(|ix| self.old.port(**ix).number == number)?;
        let plan = self.old.port(ix);
        let old = self.old;
        Some((ix, CarriedPort { old, plan }))
    }

    /// The limiters of a policy's limit.
    pub(super) fn limiters(&self, key: &LimiterKey) -> &'a [Arc<Limiter>] {
        let known = self.unit.and_then(|unit| unit.limiters.get(key));
        known.map(Vec::as_slice).unwrap_or_default()
    }
}

/// A previous port.
#[derive(Clone, Copy)]
pub(super) struct CarriedPort<'a> {
    old: &'a Snapshot,
    pub(super) plan: &'a PortPlan,
}

impl<'a> CarriedPort<'a> {
    /// The version of that name.
    pub(super) fn version(&self, name: &str) -> Option<(VersionIx, &'a Arc<VersionPlan>)> {
        let versions = self.plan.versions.iter();
        let mut versions = versions.map(|ix| (*ix, &self.old.versions[ix.0 as usize]));
        versions.find(|(_, version)| *version.name == *name)
    }

    /// Its endpoints, by address.
    pub(super) fn endpoints(&self) -> HashMap<SocketAddr, &'a Arc<EndpointState>> {
        let endpoints = self.old.version(self.plan.all).endpoints.iter();
        endpoints
            .map(|endpoint| (endpoint.address, endpoint))
            .collect()
    }
}

/// The previous state itself when nothing changed, else a new one with its identity and counters.
pub(super) fn state(
    endpoint: &Endpoint,
    address: SocketAddr,
    carried: Option<&Arc<EndpointState>>,
    known: &mut KnownTags,
    now: MonoNanos,
) -> Arc<EndpointState> {
    if let Some(carried) = carried
        && *carried.tags == endpoint.tags
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
        tags: known.share(&endpoint.tags),
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
