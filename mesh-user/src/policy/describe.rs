//! The snapshot in rows: what `mesh config services|routes|endpoints|policies` prints.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;

use super::Snapshot;
use crate::{
    clock::MonoNanos,
    model::{Protocol, Tags, kernel_table::Path},
};

/// A row of `mesh config services`: one port of one service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceRow {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service name.
    pub service: Arc<str>,
    /// Hostnames.
    pub hostnames: Vec<String>,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Port name.
    pub port_name: Arc<str>,
    /// Port number.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Who decides.
    pub path: Path,
    /// The rule or policy that forced it.
    pub reason: String,
    /// How many rules the port has.
    pub rules: usize,
    /// Names of its versions, `*` for all endpoints.
    pub versions: Vec<Arc<str>>,
    /// Endpoints.
    pub endpoints: usize,
    /// Endpoints that may be chosen now: ready, not ejected, weight above 0.
    pub usable: usize,
}

/// A row of `mesh config routes`: one rule on one port, in the order in which rules are tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteRow {
    /// `namespace/name` of the service.
    pub service: String,
    /// Port number.
    pub port: u16,
    /// Place in the order of the port, from 1.
    pub order: usize,
    /// Rule name; `-` for the implicit route of a port without rules.
    pub rule: Arc<str>,
    /// Precedence.
    pub precedence: i32,
    /// One text for each alternative; empty: matches always.
    pub matches: Vec<String>,
    /// Where to.
    pub targets: Vec<TargetRow>,
}

/// One target of a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetRow {
    /// Version name, `*` for all endpoints, or the tags as `k=v,k=v`.
    pub version: Arc<str>,
    /// Weight.
    pub weight: u32,
    /// Share in percent.
    pub share: f64,
    /// Endpoints of the version. With 0, the share is answered with 503.
    pub endpoints: usize,
    /// Endpoints that may be chosen now.
    pub usable: usize,
}

/// A row of `mesh config endpoints`: one endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointRow {
    /// `namespace/name` of the service.
    pub service: String,
    /// Port number of the service.
    pub port: u16,
    /// Where it is dialled.
    pub address: SocketAddr,
    /// Its tags.
    pub tags: Tags,
    /// Named versions and tag sets that contain it (`*` left out).
    pub versions: Vec<Arc<str>>,
    /// Its identity, where known.
    pub identity: Option<Arc<str>>,
    /// Share inside a version.
    pub weight: u32,
    /// `ready`, `unready` (says the platform), `ejected`, or `probing`.
    pub state: &'static str,
    /// Milliseconds until it may return (at the next sweep after that), when ejected.
    pub ejected_for_ms: Option<u64>,
    /// Requests in flight.
    pub in_flight: u32,
    /// Attempts recorded.
    pub requests: u64,
    /// Of these, failures: 5xx, resets, time-outs, connect failures.
    pub failures: u64,
    /// Times that it was ejected.
    pub ejections: u64,
    /// Ejections that `max-percent` forbade.
    pub skipped: u64,
}

/// A row of `mesh config policies`: one effective value of one version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyRow {
    /// `namespace/name` of the service.
    pub service: String,
    /// Port number.
    pub port: u16,
    /// Version name, `*` for all endpoints.
    pub version: Arc<str>,
    /// The field, as in the configuration: `breaker.max-connections`.
    pub field: String,
    /// Its value, with unit.
    pub value: String,
    /// Where it comes from.
    pub from: Origin,
    /// Why the default is what it is; empty when a policy gave the value.
    pub reason: &'static str,
}

/// Where an effective value comes from: the most specific that says something wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Nobody said anything.
    #[default]
    Default,
    /// A policy of the service.
    Service,
    /// A policy of the service for this port.
    ServicePort,
    /// A policy of the version.
    Version,
    /// A policy of the version for this port.
    VersionPort,
}

impl Origin {
    /// As `mesh config policies` prints it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Service => "service",
            Self::ServicePort => "service-port",
            Self::Version => "version",
            Self::VersionPort => "version-port",
        }
    }
}

impl Snapshot {
    /// Rows of `mesh config services`.
    pub fn describe_services(&self) -> Vec<ServiceRow> {
        unimplemented!("policy")
    }

    /// Rows of `mesh config routes`.
    pub fn describe_routes(&self) -> Vec<RouteRow> {
        unimplemented!("policy")
    }

    /// Rows of `mesh config endpoints`.
    pub fn describe_endpoints(&self, _now: MonoNanos) -> Vec<EndpointRow> {
        unimplemented!("policy")
    }

    /// Rows of `mesh config policies`.
    pub fn describe_policies(&self) -> Vec<PolicyRow> {
        unimplemented!("policy")
    }
}
