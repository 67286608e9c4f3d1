//! Which rule, and which version: the version is chosen here, by the rule's weights.
//!
//! Rules are tried by precedence, then in the order in which they were given; the first that
//! matches decides. [`RouteTable`] finds that rule through an index, so that the cost stays flat
//! from 10 to 100,000 rules; a watched decision goes through the rules one by one instead, with
//! the same answer.

use std::{fmt, ops::Deref, sync::Arc};

use super::{
    Client, HeaderView, Observer, PortIx, Reject, RequestView, RuleIx, Snapshot, SourceIx,
    VersionIx,
    action::ActionPlan,
    choice::{Choice, Chooser},
    index::Index,
    matcher::{Entry, SourceSet},
    request::HeaderList,
    session::Resumed,
    sni::SniIndex,
    split::{Cursors, Split},
    terms::RuleTerms,
};
use crate::model::{Match, Rule, SourceMatch};

pub use super::value::whole as compile_regex;

/// The rules of one port, indexed so that the cost of a look-up stays flat.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// In the order in which they are tried: by rank.
    rules: Vec<RuleIx>,
    /// Alternatives of all rules, by rank.
    entries: Vec<Entry>,
    sets: Vec<SourceSet>,
    index: Index,
    /// By source: the rank of the rule that takes an opaque connection. Empty: no rule asks who it
    /// is, and all are as an unknown source.
    tcp: Vec<Option<u32>>,
    /// The same for an unknown source.
    tcp_unknown: Option<u32>,
    /// The rank of the first rule that matches every request.
    catch_all: Option<u32>,
    /// What asks for a server name.
    sni: SniIndex,
}

/// One rule, compiled. Used as its [`RuleExtras`], too.
#[derive(Clone, Debug)]
pub struct RulePlan {
    /// Its name.
    pub name: RuleName,
    /// Where to.
    pub targets: Box<[TargetPlan]>,
    /// Their weights, summed up and named.
    pub(super) split: Split,
    /// What most rules don't have.
    extras: Option<Box<RuleExtras>>,
}

/// The name of a rule, kept in the model's rule: there are many rules.
#[derive(Clone)]
pub struct RuleName(Arc<Rule>);

impl Deref for RuleName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.name
    }
}

impl fmt::Debug for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<&RuleName> for Arc<str> {
    fn from(name: &RuleName) -> Self {
        Self::from(&**name)
    }
}

/// What a rule has besides its targets, compiled. Boxed: most rules have none of it.
#[derive(Clone, Debug)]
pub struct RuleExtras {
    /// Its precedence.
    pub precedence: i32,
    /// Its own rate limits, besides those of the version.
    pub(super) limits: Vec<super::rate_limit::Limit>,
    /// What happens besides; none: nothing, at no target either.
    pub actions: Option<Arc<ActionPlan>>,
    /// How a target is chosen when not in turn.
    pub(super) choice: Option<Arc<Choice>>,
    /// Its time-outs and retries, where it says something of them.
    pub(super) terms: Option<Box<RuleTerms>>,
}

impl RuleExtras {
    const NOTHING: Self = Self {
        precedence: 0,
        limits: Vec::new(),
        actions: None,
        choice: None,
        terms: None,
    };

    const fn is_nothing(&self) -> bool {
        self.precedence == 0
            && self.limits.is_empty()
            && self.actions.is_none()
            && self.choice.is_none()
            && self.terms.is_none()
    }
}

impl RulePlan {
    pub(super) fn new(
        rule: Arc<Rule>,
        targets: Vec<TargetPlan>,
        split: Split,
        extras: RuleExtras,
    ) -> Self {
        Self {
            name: RuleName(rule),
            targets: targets.into(),
            split,
            extras: (!extras.is_nothing()).then(|| Box::new(extras)),
        }
    }
}

impl Deref for RulePlan {
    type Target = RuleExtras;

    #[inline]
    fn deref(&self) -> &RuleExtras {
        static NOTHING: RuleExtras = RuleExtras::NOTHING;
        self.extras.as_deref().unwrap_or(&NOTHING)
    }
}

/// One target of a rule, compiled.
#[derive(Clone, Debug)]
pub struct TargetPlan {
    /// The version; of another service's port when the rule says so.
    pub version: VersionIx,
    /// Its weight.
    pub weight: u32,
    /// The reference could not be resolved: its share is answered with 500.
    pub invalid: bool,
    /// The rule's actions and those of this target alone; none: the rule's.
    pub actions: Option<Arc<ActionPlan>>,
}

/// Where a request or connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service port.
    pub port: PortIx,
    /// The rule; none when the service has no rules and all endpoints serve.
    pub rule: Option<RuleIx>,
    /// Which of the rule's targets, from 0; `u32::MAX` when the rule answers by itself.
    pub target: u32,
    /// The version.
    pub version: VersionIx,
    /// The session that it goes on with.
    pub session: Option<Resumed>,
}

impl RouteTable {
    /// From the rules of a port, already in the order in which they are tried.
    pub(super) fn new(rules: &[(RuleIx, &Rule)], sources: &[super::snapshot::Source]) -> Self {
        let mut table = Self::default();
        let mut known = std::collections::HashMap::new();
        for (rank, (rule, from)) in (0_u32..).zip(rules) {
            table.rules.push(*rule);
            let always = [Match::default()];
            let matches = if from.matches.is_empty() {
                &always
            } else {
                from.matches.as_slice()
            };
            for alternative in matches {
                let source = alternative.source.as_ref().map(|source| {
                    *known.entry(source_key(source)).or_insert_with(|| {
                        table.sets.push(SourceSet::new(source, sources));
                        table.sets.len() as u32 - 1
                    })
                });
                table.entries.push(Entry::new(rank, alternative, source));
            }
        }
        table.index = Index::new(&table.entries, &table.sets, sources.len());
        table.index_tcp(sources.len() as u32);
        let all = table.entries.iter().find(|entry| entry.is_catch_all());
        table.catch_all = all.map(|entry| entry.rank);
        table.sni = SniIndex::new(&table.entries);
        table
    }

    /// Rules in the order in which they are tried.
    pub fn rules(&self) -> &[RuleIx] {
        &self.rules
    }

    /// Whether the port has rules. Without any, all endpoints serve.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether any rule asks for the server name of a TLS connection.
    pub fn by_server_name(&self) -> bool {
        !self.sni.is_empty()
    }

    /// The first rule that matches every request, and so takes what no condition speaks of.
    pub(super) fn catch_all(&self) -> Option<RuleIx> {
        Some(self.rules[self.catch_all? as usize])
    }

    /// The alternatives of the rule at a place of the order, for people. None: matches always.
    pub(super) fn texts(&self, rank: usize) -> Vec<String> {
        let first = self
            .entries
            .partition_point(|entry| (entry.rank as usize) < rank);
        let entries = &self.entries[first..];
        let entries = &entries[..entries.partition_point(|entry| entry.rank as usize == rank)];
        if entries.iter().any(Entry::is_catch_all) {
            return Vec::new();
        }
        entries.iter().map(|entry| entry.text(&self.sets)).collect()
    }

    /// The rank of the first rule that matches.
    fn find<H: HeaderView>(
        &self,
        source: Option<SourceIx>,
        request: &RequestView<'_, H>,
    ) -> Option<u32> {
        let mut best = u32::MAX;
        self.index.each_list(source, request, |list| {
            for entry in list.iter().map(|at| &self.entries[*at as usize]) {
                // Lists are in order: nothing behind can be better.
                if entry.rank >= best {
                    break;
                }
                if entry.holds(&self.sets, source, request) {
                    best = entry.rank;
                    break;
                }
            }
        });
        (best != u32::MAX).then_some(best)
    }

    /// As [`find`](Self::find) (or, without a request, as for an opaque connection), one by one,
    /// telling the observer of each rule.
    fn watch<H: HeaderView>(
        &self,
        source: Option<SourceIx>,
        request: Option<&RequestView<'_, H>>,
        sni: Option<&str>,
        observer: &mut impl Observer,
    ) -> Option<u32> {
        for alternatives in self.entries.chunk_by(|a, b| a.rank == b.rank) {
            let rank = alternatives[0].rank;
            let rule = self.rules[rank as usize];
            let failures = alternatives
                .iter()
                .map(|entry| entry.first_failure(&self.sets, source, request, sni));
            // The alternative that came furthest, the first of equals; none that fails: a match.
            let mut furthest = None;
            let mut matched = false;
            for failure in failures {
                match failure {
                    None => matched = true,
                    Some((at, condition)) => {
                        if furthest.as_ref().is_none_or(|(best, _)| at > *best) {
                            furthest = Some((at, condition));
                        }
                    }
                }
            }
            if matched {
                observer.rule(rule, None);
                return Some(rank);
            }
            if let Some((_, condition)) = furthest {
                observer.rule(rule, Some(&condition));
            }
        }
        None
    }

    /// Only the source can decide for an opaque connection without a server name, so the answers
    /// are few: kept ready.
    fn index_tcp(&mut self, sources: u32) {
        let entries: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|e| !e.needs_http() && e.sni.is_none())
            .collect();
        let first = |source: Option<SourceIx>| {
            let holds = |entry: &&&Entry| {
                entry
                    .source
                    .is_none_or(|set| self.sets[set as usize].has(source))
            };
            entries.iter().find(holds).map(|entry| entry.rank)
        };
        // Where no rule asks for the source, all sources are as an unknown one.
        let asked = entries.iter().any(|entry| entry.source.is_some());
        let tcp = (0..if asked { sources } else { 0 })
            .map(|source| first(Some(SourceIx(source))))
            .collect();
        let tcp_unknown = first(None);
        (self.tcp, self.tcp_unknown) = (tcp, tcp_unknown);
    }

    fn find_tcp(&self, source: Option<SourceIx>) -> Option<u32> {
        match source.filter(|_| !self.tcp.is_empty()) {
            Some(SourceIx(at)) => self.tcp.get(at as usize).copied().flatten(),
            None => self.tcp_unknown,
        }
    }

    fn find_tls(&self, source: Option<SourceIx>, sni: Option<&str>) -> Option<u32> {
        let other = self.find_tcp(source);
        match sni {
            Some(name) if !self.sni.is_empty() => {
                self.sni
                    .find(&self.entries, &self.sets, source, name, other)
            }
            _ => other,
        }
    }
}

/// Equal conditions share one set.
fn source_key(source: &SourceMatch) -> impl Eq + std::hash::Hash + use<> {
    (
        source.workload.clone(),
        source.namespace.clone(),
        source.identity.clone(),
        source.tags.clone(),
        source.except_namespaces.clone(),
    )
}

/// Decides for a request.
///
/// # Errors
/// [`Reject::NoRoute`] when the port has rules and none matches; [`Reject::NoWeight`] when all
/// weights of the rule are 0; [`Reject::InvalidBackend`]. (A version without endpoints is found out by `balance::pick`.)
pub fn decide<H: HeaderView>(
    snapshot: &Snapshot,
    port: PortIx,
    client: impl Into<Client>,
    request: &RequestView<'_, H>,
    cursors: &mut Cursors,
    observer: &mut impl Observer,
) -> Result<Plan, Reject> {
    let client = client.into();
    let source = client.source;
    let table = &snapshot.port(port).routes;
    let rank = if observer.active() {
        table.watch(source, Some(request), None, observer)
    } else {
        table.find(source, request)
    };
    let asks = (client, Some(request));
    choose(snapshot, port, rank, asks, cursors, observer)
}

/// Decides for an opaque connection: rules that need HTTP never match.
///
/// # Errors
/// As [`decide`].
pub fn decide_tcp(
    snapshot: &Snapshot,
    port: PortIx,
    client: impl Into<Client>,
    cursors: &mut Cursors,
    observer: &mut impl Observer,
) -> Result<Plan, Reject> {
    let client = client.into();
    let source = client.source;
    let table = &snapshot.port(port).routes;
    let rank = if observer.active() {
        table.watch::<HeaderList>(source, None, None, observer)
    } else {
        table.find_tcp(source)
    };
    choose::<HeaderList>(snapshot, port, rank, (client, None), cursors, observer)
}

/// Decides for a TLS connection that is passed on as it is. `sni`: the server name that the client
/// means, lower-case, without trailing dot; without one only rules that ask for none match.
///
/// # Errors
/// As [`decide`].
pub fn decide_tls(
    snapshot: &Snapshot,
    port: PortIx,
    client: impl Into<Client>,
    sni: Option<&str>,
    cursors: &mut Cursors,
    observer: &mut impl Observer,
) -> Result<Plan, Reject> {
    let client = client.into();
    let source = client.source;
    let table = &snapshot.port(port).routes;
    let rank = if observer.active() {
        table.watch::<HeaderList>(source, None, sni, observer)
    } else {
        table.find_tls(source, sni)
    };
    choose::<HeaderList>(snapshot, port, rank, (client, None), cursors, observer)
}

fn choose<H: HeaderView>(
    snapshot: &Snapshot,
    port: PortIx,
    rank: Option<u32>,
    (client, request): (Client, Option<&RequestView<'_, H>>),
    cursors: &mut Cursors,
    observer: &mut impl Observer,
) -> Result<Plan, Reject> {
    let plan = snapshot.port(port);
    if plan.routes.is_empty() {
        observer.version(plan.all, 1, 1);
        return Ok(Plan {
            port,
            rule: None,
            target: 0,
            version: plan.all,
            session: None,
        });
    }
    let rule = plan.routes.rules[rank.ok_or(Reject::NoRoute)? as usize];
    let compiled = snapshot.rule(rule);
    if compiled.actions.as_ref().is_some_and(|a| a.answers()) {
        // No answer is possible in a protocol that nobody knows.
        if request.is_none() {
            return Err(Reject::NoRoute);
        }
        // No target is needed; the limits and the log are those of all endpoints.
        return Ok(Plan {
            port,
            rule: Some(rule),
            target: u32::MAX,
            version: plan.all,
            session: None,
        });
    }
    let chosen = compiled.choice.as_ref().and_then(|choice| {
        let by = Chooser {
            snapshot,
            port,
            rule,
            client,
            request,
        };
        choice.choose(compiled, &by, observer)
    });
    let (target, session) = match chosen {
        Some(chosen) => chosen,
        None => {
            let next = cursors.next(snapshot, compiled.split, &compiled.targets);
            (next.ok_or(Reject::NoWeight)?, None)
        }
    };
    let TargetPlan {
        version,
        weight,
        invalid,
        ..
    } = compiled.targets[target];
    if invalid {
        return Err(Reject::InvalidBackend);
    }
    observer.version(version, weight, compiled.split.sum);
    Ok(Plan {
        port,
        rule: Some(rule),
        target: target as u32,
        version,
        session,
    })
}

#[cfg(test)]
pub(super) mod tests;
