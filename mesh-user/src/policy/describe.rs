//! The snapshot in rows: what `mesh config services|routes|endpoints|policies` prints.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;

use super::{
    RuleIx, Snapshot, VersionIx,
    action::ActionPlan,
    balance::candidates,
    ejection::Standing,
    health::Finding,
    snapshot::{EndpointState, PortPlan},
};
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
    /// Whether TLS of its clients ends here.
    pub tls: bool,
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
    /// What the targets are chosen by before they take turns: a session, a key.
    pub chosen_by: Vec<String>,
    /// What is done with a request besides, in this order.
    pub actions: Vec<String>,
    /// Time-outs and retries of its own, for people; empty: the versions'.
    pub terms: String,
}

/// One target of a rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetRow {
    /// `namespace/name:port`, when it is another port than the rule's own.
    pub service: Option<String>,
    /// Version name, `*` for all endpoints, or the tags as `k=v,k=v`.
    pub version: Arc<str>,
    /// The reference can't be resolved: the share is answered with 500.
    pub invalid: bool,
    /// Weight.
    pub weight: u32,
    /// Share in percent.
    pub share: f64,
    /// Endpoints of the version. With 0, the share is answered with 503.
    pub endpoints: usize,
    /// Endpoints that may be chosen now.
    pub usable: usize,
    /// What is done on the way to it, when that is more than what the rule does.
    pub actions: Vec<String>,
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
    /// `ready`, `unready` (says the platform), `unhealthy` (says an active check), `ejected`, or
    /// `probing`.
    pub state: &'static str,
    /// Milliseconds until it may return (at the next sweep after that), when ejected.
    pub ejected_for_ms: Option<u64>,
    /// What active checks found last: `ok`, `status 503`, `timeout`; none when nobody checks it.
    pub check: Option<String>,
    /// `region/zone/subzone`, as far as it is known.
    pub locality: Option<Arc<str>>,
    /// Failover group, 0 first.
    pub priority: u32,
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
    /// A rule.
    Rule,
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
            Self::Rule => "rule",
        }
    }
}

impl Snapshot {
    /// Rows of `mesh config services`.
    pub fn describe_services(&self) -> Vec<ServiceRow> {
        let row = |port: &PortPlan| {
            let service = self.service_of(port);
            let all = self.version(port.all);
            ServiceRow {
                namespace: Arc::clone(&port.namespace),
                service: Arc::clone(&port.service),
                hostnames: service.map(|s| s.hostnames.clone()).unwrap_or_default(),
                addresses: service.map(|s| s.addresses.clone()).unwrap_or_default(),
                port_name: Arc::clone(&port.name),
                port: port.number,
                protocol: port.protocol,
                tls: port.tls.is_some(),
                path: port.path,
                reason: port.path_reason.clone(),
                rules: port.routes.rules().len(),
                versions: port.versions.iter().map(|ix| self.name(*ix)).collect(),
                endpoints: all.endpoints.len(),
                usable: candidates(all).count(),
            }
        };
        self.service_ports().map(row).collect()
    }

    /// Rows of `mesh config routes`.
    pub fn describe_routes(&self) -> Vec<RouteRow> {
        self.service_ports()
            .flat_map(|port| self.port_routes(port))
            .collect()
    }

    fn port_routes(&self, port: &PortPlan) -> Vec<RouteRow> {
        if port.routes.is_empty() {
            return vec![RouteRow {
                service: port.key.to_string(),
                port: port.number,
                order: 1,
                rule: "-".into(),
                precedence: 0,
                matches: Vec::new(),
                targets: vec![self.target(port.all, 1, 1)],
                chosen_by: Vec::new(),
                actions: Vec::new(),
                terms: String::new(),
            }];
        }
        let row = |(rank, ix): (usize, &RuleIx)| {
            let rule = self.rule(*ix);
            RouteRow {
                service: port.key.to_string(),
                port: port.number,
                order: rank + 1,
                rule: (&rule.name).into(),
                precedence: rule.precedence,
                matches: port.routes.texts(rank),
                targets: self.targets_of(port, *ix),
                chosen_by: rule
                    .choice
                    .iter()
                    .flat_map(|choice| choice.texts())
                    .collect(),
                actions: texts(rule.actions.as_ref()),
                terms: rule
                    .terms
                    .as_ref()
                    .map(|terms| terms.text())
                    .unwrap_or_default(),
            }
        };
        port.routes.rules().iter().enumerate().map(row).collect()
    }

    /// The targets of a rule of a port, with what is not of that port.
    pub(super) fn targets_of(&self, port: &PortPlan, rule: RuleIx) -> Vec<TargetRow> {
        let plans = self.rule(rule).targets.iter();
        let mut rows = self.targets(rule);
        for (row, plan) in rows.iter_mut().zip(plans) {
            let of = self.port(self.version(plan.version).port);
            let other = (&*of.key, of.number) != (&*port.key, port.number);
            row.service = other.then(|| of.label());
            row.invalid = plan.invalid;
        }
        rows
    }

    /// The targets of a rule, with shares.
    pub(super) fn targets(&self, rule: RuleIx) -> Vec<TargetRow> {
        let rule = self.rule(rule);
        let targets = rule.targets.iter();
        targets
            .map(|target| TargetRow {
                actions: texts(target.actions.as_ref()),
                ..self.target(target.version, target.weight, rule.split.sum)
            })
            .collect()
    }

    pub(super) fn target(&self, ix: VersionIx, weight: u32, sum: u64) -> TargetRow {
        let version = self.version(ix);
        TargetRow {
            service: None,
            invalid: false,
            version: Arc::clone(&version.name),
            weight,
            share: if sum == 0 {
                0.0
            } else {
                f64::from(weight) * 100.0 / sum as f64
            },
            endpoints: version.endpoints.len(),
            usable: candidates(version).count(),
            actions: Vec::new(),
        }
    }

    /// Rows of `mesh config endpoints`.
    pub fn describe_endpoints(&self, now: MonoNanos) -> Vec<EndpointRow> {
        let ports = self.service_ports();
        ports
            .flat_map(|port| self.endpoint_rows(port, port.all, now))
            .collect()
    }

    /// The endpoints of one version.
    pub(super) fn endpoint_rows(
        &self,
        port: &PortPlan,
        version: VersionIx,
        now: MonoNanos,
    ) -> Vec<EndpointRow> {
        // Which versions an endpoint is in: one pass over all, not one for each endpoint.
        let mut versions_of: HashMap<u64, Vec<Arc<str>>> = HashMap::new();
        for ix in port.versions.iter().filter(|ix| **ix != port.all) {
            for endpoint in &self.version(*ix).endpoints {
                versions_of
                    .entry(endpoint.id)
                    .or_default()
                    .push(self.name(*ix));
            }
        }
        let row = |endpoint: &Arc<EndpointState>| {
            let live = &endpoint.live;
            let standing = live.standing();
            let (requests, failures) = live.recorded();
            let (ejections, skipped) = live.ejections();
            EndpointRow {
                service: port.key.to_string(),
                port: port.number,
                address: endpoint.address,
                tags: Tags::clone(&endpoint.tags),
                versions: versions_of.get(&endpoint.id).cloned().unwrap_or_default(),
                identity: endpoint.identity.clone(),
                weight: endpoint.weight,
                state: match standing {
                    _ if !endpoint.healthy => "unready",
                    _ if live.health().is_some_and(Finding::is_sick) => "unhealthy",
                    Standing::InRotation => "ready",
                    Standing::Probing => "probing",
                    Standing::Ejected { .. } => "ejected",
                },
                ejected_for_ms: match standing {
                    Standing::Ejected { until } => {
                        Some(u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX))
                    }
                    Standing::InRotation | Standing::Probing => None,
                },
                check: live.health().map(|finding| finding.to_string()),
                locality: endpoint.locality.clone(),
                priority: endpoint.priority,
                in_flight: live.in_flight(),
                requests,
                failures,
                ejections,
                skipped,
            }
        };
        self.version(version).endpoints.iter().map(row).collect()
    }

    /// Rows of `mesh config policies`.
    pub fn describe_policies(&self) -> Vec<PolicyRow> {
        let versions = self.service_ports().flat_map(|port| {
            port.versions
                .iter()
                .map(move |ix| (port, self.version(*ix)))
        });
        versions
            .flat_map(|(port, version)| {
                version.effective.rows(&PolicyRow {
                    service: port.key.to_string(),
                    port: port.number,
                    version: Arc::clone(&version.name),
                    field: String::new(),
                    value: String::new(),
                    from: Origin::Default,
                    reason: "",
                })
            })
            .chain(self.rule_limits())
            .collect()
    }

    fn name(&self, version: VersionIx) -> Arc<str> {
        Arc::clone(&self.version(version).name)
    }
}

mod limits;
pub(super) use limits::limit_text;

fn texts(actions: Option<&Arc<ActionPlan>>) -> Vec<String> {
    actions.map(|actions| actions.texts()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
