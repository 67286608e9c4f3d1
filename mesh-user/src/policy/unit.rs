//! What a service was compiled from: compared with the next model, and the key to what stays.

use std::{collections::HashMap, sync::Arc};

use super::{
    PortIx,
    compile::{LimiterKey, OfRules},
    hash,
    rate_limit::Limiter,
};
use crate::model::{List, Policy, Rule, Select, Service, Target};

/// One service with all that is said of it.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) service: Arc<Service>,
    /// Its rules in the order in which they are tried.
    pub(super) rules: List<Rule>,
    /// Its policies in the order of the model.
    pub(super) policies: Vec<Arc<Policy>>,
    /// What its rules send to by another service's name.
    pub(super) uses: Vec<Use>,
    /// What rules send to it by its name: `service` is theirs.
    pub(super) wanted: Vec<Use>,
    /// Its ports, in the order of the service.
    pub(super) ports: Vec<PortIx>,
    /// Limiters by the policy that states them, for the next snapshot.
    pub(super) limiters: HashMap<LimiterKey, Vec<Arc<Limiter>>>,
    /// Those of its rules.
    pub(super) rule_limiters: Arc<OfRules>,
    /// Whether a rule asks who the client is.
    pub(super) asks_source: bool,
    /// Whether a rule has sessions.
    pub(super) sessions: bool,
}

/// A service's port as a target of another service's rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Use {
    /// The other service's index in the model.
    pub(super) service: u32,
    pub(super) port: u16,
    pub(super) select: Select,
}

/// What the rules send to by the name of a service.
pub(super) fn uses(rules: &List<Rule>) -> Vec<Use> {
    let of = |target: &Target| {
        let backend = target.backend?;
        Some(Use {
            service: backend.service as u32,
            port: backend.port,
            select: target.select.clone(),
        })
    };
    let mut uses: Vec<Use> = rules
        .iter()
        .flat_map(|rule| rule.targets().filter_map(of))
        .collect();
    uses.sort();
    uses.dedup();
    uses
}

/// Whether any of the rules asks who the client is.
pub(super) fn asks_source(rules: &List<Rule>) -> bool {
    let of_limits = |rule: &'_ Rule| {
        let limits = rule.extra().rate_limits.iter();
        limits
            .flat_map(|limit| &limit.matches)
            .any(|condition| condition.source.is_some())
    };
    let of_rule = |rule: &Rule| {
        rule.matches
            .iter()
            .any(|condition| condition.source.is_some())
    };
    rules.iter().any(|rule| of_rule(rule) || of_limits(rule))
}

/// Whether any of the rules has sessions.
pub(super) fn sessions(rules: &List<Rule>) -> bool {
    rules.iter().any(|rule| rule.extra().persistence.is_some())
}

/// Whether a rule's place, conditions and targets are those of another: only weights may differ.
pub(super) fn same_shape(one: &Rule, two: &Rule) -> bool {
    let same_targets =
        || {
            let key = |target: &Target| (target.backend, target.actions.clone());
            one.route.len() == two.route.len()
                && one.route.iter().zip(&two.route).all(|(a, b)| {
                    a.select == b.select && a.backend == b.backend && key(a) == key(b)
                })
        };
    one.service == two.service
        && one.name == two.name
        && one.port == two.port
        && one.precedence == two.precedence
        && one.extra == two.extra
        && same_targets()
        && one.matches == two.matches
}

/// The ports that one name or address means. The configuration warns of more than one.
#[derive(Clone, Debug)]
pub(super) enum Claims {
    One(PortIx),
    /// By the services' order in the model.
    Many(Arc<[(usize, PortIx)]>),
}

impl Claims {
    /// The one that counts.
    pub(super) fn first(&self) -> PortIx {
        match self {
            Self::One(ix) => *ix,
            Self::Many(claims) => claims[0].1,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PortIx> + '_ {
        let (one, many) = match self {
            Self::One(ix) => (Some(*ix), &[][..]),
            Self::Many(claims) => (None, &**claims),
        };
        one.into_iter().chain(many.iter().map(|(_, ix)| *ix))
    }

    /// With one more, or without it. `place`: a port's service, by its place in the model.
    pub(super) fn with(
        claims: Option<Self>,
        ix: PortIx,
        there: bool,
        place: impl Fn(PortIx) -> usize,
    ) -> Option<Self> {
        if claims.is_none() && there {
            return Some(Self::One(ix));
        }
        let others = claims.iter().flat_map(Self::iter).filter(|one| *one != ix);
        let mut all: Vec<(usize, PortIx)> = others
            .chain(there.then_some(ix))
            .map(|ix| (place(ix), ix))
            .collect();
        all.sort_unstable();
        match &*all {
            [] => None,
            [(_, only)] => Some(Self::One(*only)),
            _ => Some(Self::Many(all.into())),
        }
    }
}

const HOST: u64 = 9;

/// Where a host name with a port number stands in the index.
pub(super) fn host_key(name: &str, port: u16) -> u64 {
    key_of(&[name], port)
}

fn key_of(parts: &[&str], port: u16) -> u64 {
    let mut fold = hash::Fold::new(HOST);
    for byte in parts.iter().flat_map(|part| part.bytes()) {
        fold.byte(byte.to_ascii_lowercase());
    }
    hash::join(fold.finish(), u64::from(port))
}

/// Where the names of a service stand in the index, for one of its ports. Each once.
pub(super) fn host_keys(service: &Service, port: u16) -> impl Iterator<Item = u64> {
    let hosts = service.hostnames.iter();
    let hosts = hosts.map(move |host| key_of(&[bare(host)], port));
    let own = key_of(&[&service.namespace, "/", &service.name], port);
    hosts.chain([own])
}

fn bare(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether a name, without a final dot, is the service's.
pub(super) fn is_named(service: &Service, name: &str) -> bool {
    let key = || {
        let (namespace, own) = name.split_once('/')?;
        let same = namespace.eq_ignore_ascii_case(&service.namespace)
            && own.eq_ignore_ascii_case(&service.name);
        same.then_some(())
    };
    let mut hosts = service.hostnames.iter();
    hosts.any(|host| bare(host).eq_ignore_ascii_case(name)) || key().is_some()
}
