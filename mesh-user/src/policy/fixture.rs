//! Models for the tests of this module.

use std::{sync::Arc, time::Duration};

use super::{
    HeaderView, NoObserver, PortIx, Reject, RequestView, Snapshot, SourceIx,
    request::HeaderList,
    route::{self, Plan},
    split::Cursors,
};
use crate::{
    clock::MonoNanos,
    model::{
        Balance, DialFrom, Endpoint, Interception, Match, Model, Netns, PathChoice, Policy, Port,
        Protocol, Rule, Select, Service, Tags, Target, Workload,
        inbound::{InboundAction, InboundCaps, InboundRule, WorkloadSelect},
    },
};

pub(super) const PORT: PortIx = PortIx(0);

/// A point of the virtual clock.
pub(super) const fn at_ms(ms: u64) -> MonoNanos {
    MonoNanos(ms * 1_000_000)
}

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn tags(pairs: &[(&str, &str)]) -> Tags {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub(super) fn endpoint(address: &str, version: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        tags: tags(&[("version", version)]),
        ..Endpoint::default()
    }
}

/// `default/web`, one HTTP port 80 -> 8080, versions v1 (10.0.1.N) and v2 (10.0.2.N).
pub(super) fn service(v1: usize, v2: usize) -> Service {
    let of = |version: usize, count: usize| {
        (1..=count).map(move |n| endpoint(&format!("10.0.{version}.{n}"), &format!("v{version}")))
    };
    Service {
        name: "web".to_owned(),
        namespace: "default".to_owned(),
        hostnames: vec!["web".to_owned(), "web.default.svc".to_owned()],
        addresses: vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()],
        ports: vec![port("http", 80, Protocol::Http)],
        versions: [
            ("v1".to_owned(), tags(&[("version", "v1")])),
            ("v2".to_owned(), tags(&[("version", "v2")])),
        ]
        .into(),
        endpoints: of(1, v1).chain(of(2, v2)).collect(),
        routable: true,
        dial_from: DialFrom::Workload,
    }
}

pub(super) fn port(name: &str, number: u16, protocol: Protocol) -> Port {
    Port {
        name: name.to_owned(),
        number,
        target: 8080,
        protocol,
        path: PathChoice::Auto,
        tls: None,
    }
}

pub(super) fn to(version: &str, weight: u32) -> Target {
    Target {
        select: Select::Version(version.to_owned()),
        weight,
        ..Target::default()
    }
}

pub(super) fn rule(name: &str, precedence: i32, matches: Vec<Match>, route: Vec<Target>) -> Rule {
    Rule {
        name: name.to_owned(),
        service: 0,
        port: None,
        precedence,
        matches,
        route,
        extra: None,
    }
}

pub(super) fn policy() -> Policy {
    Policy::default()
}

pub(super) fn balanced(balance: Balance) -> Policy {
    Policy {
        balance: Some(balance.into()),
        ..policy()
    }
}

pub(super) fn inbound_rule() -> InboundRule {
    InboundRule {
        name: "inbound".to_owned(),
        select: WorkloadSelect::default(),
        ports: Vec::new(),
        action: InboundAction::Capture,
        allow: Vec::new(),
        deny: Vec::new(),
        rate_limits: Vec::new(),
        caps: InboundCaps::default(),
    }
}

pub(super) fn workload(name: &str, pairs: &[(&str, &str)]) -> Workload {
    Workload {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        netns: Netns::Path(format!("/run/netns/{name}").into()),
        cgroup: None,
        tags: tags(pairs),
        identity: Some(format!("spiffe://cluster.local/ns/default/sa/{name}")),
        interception: Interception::default(),
        capture: true,
    }
}

pub(super) fn model(service: Service, rules: Vec<Rule>, policies: Vec<Policy>) -> Model {
    Model {
        services: vec![service].into(),
        rules: rules.into(),
        policies: policies.into(),
        ..Model::default()
    }
}

pub(super) fn compile(model: Model) -> Snapshot {
    Snapshot::compile(Arc::new(model), None, MonoNanos(0))
}

/// The next snapshot, in force.
pub(super) fn recompile(model: Model, previous: &Snapshot, now: MonoNanos) -> Snapshot {
    let next = Snapshot::compile(Arc::new(model), Some(previous), now);
    next.enforce();
    next
}

/// An owned request.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) authority: String,
    pub(super) headers: HeaderList,
}

pub(super) fn get(target: &str) -> Ask {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    Ask {
        method: "GET".to_owned(),
        path: path.to_owned(),
        query,
        authority: "web".to_owned(),
        headers: HeaderList::default(),
    }
}

impl Ask {
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn method(mut self, method: &str) -> Self {
        self.method = method.to_owned();
        self
    }

    pub(super) fn authority(mut self, authority: &str) -> Self {
        self.authority = authority.to_owned();
        self
    }

    pub(super) fn view(&self) -> RequestView<'_, HeaderList> {
        RequestView {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            authority: &self.authority,
            headers: &self.headers,
        }
    }
}

pub(super) fn decide<H: HeaderView>(
    snapshot: &Snapshot,
    source: Option<SourceIx>,
    request: &RequestView<'_, H>,
    cursors: &mut Cursors,
) -> Result<Plan, Reject> {
    route::decide(snapshot, PORT, source, request, cursors, &mut NoObserver)
}

/// Name of the rule that decides, also when its weights are all 0.
pub(super) fn rule_of(snapshot: &Snapshot, source: Option<SourceIx>, ask: &Ask) -> Option<String> {
    let plan = decide(snapshot, source, &ask.view(), &mut Cursors::default()).ok()?;
    plan.rule.map(|rule| snapshot.rule(rule).name.to_string())
}
