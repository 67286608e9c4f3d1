//! The label values of a request or connection: made once for each label set and thread.

use std::sync::Arc;

use super::{
    flags,
    local::{Destination, RequestKey, TcpKey},
    metrics::{REQUEST_LABELS, TCP_LABELS},
    series::LabelSet,
};
use crate::{
    model::Service,
    policy::{PortIx, Snapshot, SourceIx, VersionIx, inbound::InboundPlan, snapshot::VersionPlan},
};

/// What Istio writes where a value is absent.
const UNKNOWN: &str = "unknown";

/// Label values of a request.
pub(super) fn request(snapshot: &Snapshot, workload: &str, key: &RequestKey) -> LabelSet {
    let mut values = Vec::with_capacity(REQUEST_LABELS.len());
    peers(
        snapshot,
        workload,
        key.peers.source,
        key.peers.destination,
        &mut values,
    );
    values.push(if key.peers.grpc { "grpc" } else { "http" }.into());
    // Istio reports the policy at the destination only.
    values.push(UNKNOWN.into());
    values.push(key.status.to_string().into());
    values.push(match key.grpc_status {
        Some(status) => status.to_string().into(),
        None if key.peers.grpc => UNKNOWN.into(),
        None => "".into(),
    });
    values.push((&*flags(key.faults, key.reject)).into());
    LabelSet(values.into())
}

/// Label values of an opaque connection.
pub(super) fn tcp(snapshot: &Snapshot, workload: &str, key: &TcpKey) -> LabelSet {
    let mut values = Vec::with_capacity(TCP_LABELS.len());
    peers(snapshot, workload, key.source, key.destination, &mut values);
    values.push("tcp".into());
    values.push(UNKNOWN.into());
    LabelSet(values.into())
}

fn peers(
    snapshot: &Snapshot,
    workload: &str,
    source: Option<SourceIx>,
    destination: Destination,
    values: &mut Vec<Arc<str>>,
) {
    let inbound = destination.inbound(snapshot);
    let side = if inbound.is_some() {
        "destination"
    } else {
        "source"
    };
    values.push(side.into());
    // Who comes from outside the node has no name.
    let asker = if inbound.is_some() { "" } else { workload };
    push_source(snapshot, asker, source, values);
    match inbound {
        Some(inbound) => push_application(snapshot, &inbound.workload, values),
        None => push_destination(snapshot, destination, values),
    }
}

/// The workload itself is the destination.
fn push_application(snapshot: &Snapshot, workload: &str, values: &mut Vec<Arc<str>>) {
    let (namespace, name) = workload.split_once('/').unwrap_or((UNKNOWN, workload));
    let source = snapshot.source(workload).map(|ix| snapshot.source_of(ix));
    let version = source.and_then(|source| source.tags.get("version"));
    let identity = source.and_then(|source| source.identity.clone());
    values.extend([name, name, namespace].map(known));
    values.push(version.map_or(UNKNOWN, String::as_str).into());
    values.push(identity.unwrap_or_else(|| UNKNOWN.into()));
}

fn push_source(
    snapshot: &Snapshot,
    workload: &str,
    source: Option<SourceIx>,
    values: &mut Vec<Arc<str>>,
) {
    let Some(source) = source.and_then(|ix| snapshot.sources.get(ix.0 as usize)) else {
        let (namespace, name) = workload.split_once('/').unwrap_or((UNKNOWN, workload));
        values.push(known(name));
        values.push(known(namespace));
        values.extend([(); 3].map(|()| Arc::from(UNKNOWN)));
        values.push(known(name));
        values.push("latest".into());
        return;
    };
    let tag = |names: &[&str]| names.iter().find_map(|name| source.tags.get(*name));
    let app = tag(&["app", "app.kubernetes.io/name"]);
    let version = tag(&["version", "app.kubernetes.io/version"]);
    // Istio's order for the canonical names.
    let service = tag(&[
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ]);
    let revision = tag(&[
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ]);
    values.push(known(&source.workload));
    values.push(known(&source.namespace));
    values.push(source.identity.clone().unwrap_or_else(|| UNKNOWN.into()));
    values.push(app.map_or(UNKNOWN, String::as_str).into());
    values.push(version.map_or(UNKNOWN, String::as_str).into());
    values.push(service.map_or(&*source.workload, String::as_str).into());
    values.push(revision.map_or("latest", String::as_str).into());
}

fn push_destination(snapshot: &Snapshot, destination: Destination, values: &mut Vec<Arc<str>>) {
    let version = destination
        .version()
        .and_then(|ix| snapshot.versions.get(ix.0 as usize));
    let port = version
        .map(|version| version.port)
        .or(destination.port())
        .and_then(|ix| snapshot.ports.get(ix.0 as usize));
    match port {
        Some(port) => {
            values.push(host(snapshot.service_of(port), &port.service).into());
            values.push(port.service.clone());
            values.push(port.namespace.clone());
        }
        None => values.extend([(); 3].map(|()| Arc::from(UNKNOWN))),
    }
    values.push(version.map_or_else(|| UNKNOWN.into(), |version| version.name.clone()));
    values.push(
        version
            .and_then(|version| principal(version))
            .unwrap_or_else(|| UNKNOWN.into()),
    );
}

/// The service's full host name: its first with a dot, else its first, else its name.
fn host<'a>(service: Option<&'a Service>, name: &'a str) -> &'a str {
    let Some(service) = service else {
        return name;
    };
    let full = service.hostnames.iter().find(|host| host.contains('.'));
    full.or(service.hostnames.first())
        .map_or(name, String::as_str)
}

/// The identity of the version's endpoints, when they all have the same: a label for each
/// endpoint would multiply the series.
fn principal(version: &VersionPlan) -> Option<Arc<str>> {
    let first = version.endpoints.first()?.identity.clone()?;
    version
        .endpoints
        .iter()
        .all(|endpoint| endpoint.identity.as_ref() == Some(&first))
        .then_some(first)
}

fn known(value: &str) -> Arc<str> {
    if value.is_empty() {
        UNKNOWN.into()
    } else {
        value.into()
    }
}

impl Destination {
    /// The most that is known: the version, else the port, else nothing.
    pub(super) fn new(version: Option<VersionIx>, port: impl FnOnce() -> Option<PortIx>) -> Self {
        match version {
            Some(VersionIx(index)) => Self::Version(index),
            None => port().map_or(Self::Outside, |PortIx(index)| Self::Port(index)),
        }
    }

    /// The inbound port, if it is one.
    fn inbound(self, snapshot: &Snapshot) -> Option<&InboundPlan> {
        let version = snapshot.versions.get(self.version()?.0 as usize)?;
        let port = snapshot.ports.get(version.port.0 as usize)?;
        port.inbound.as_ref()
    }

    fn version(self) -> Option<VersionIx> {
        match self {
            Self::Version(index) => Some(VersionIx(index)),
            Self::Port(_) | Self::Outside => None,
        }
    }

    fn port(self) -> Option<PortIx> {
        match self {
            Self::Port(index) => Some(PortIx(index)),
            Self::Version(_) | Self::Outside => None,
        }
    }
}
