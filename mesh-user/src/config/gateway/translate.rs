//! Routes to rules of the model: which routes a port has, for whom, in which order.
//!
//! Pure: services, routes and grants in; rules, statuses and notices out. The order of Gateway API
//! is in [`super::rank`], what a rule does in [`super::rules`].

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Kind,
    attach::attach,
    object::{Grant, Route},
    rank::Rank,
    refs::Refs,
    rules,
    status::{self, Verdict},
};
use crate::{
    config::{
        path::{FieldPath, Step},
        report::Code,
    },
    model::{
        List, Match, Rule, RuleExtra, Service, SourceMatch, Target, action::RouteOrigin,
        route_status::RouteStatus,
    },
};

/// What routes mean.
#[derive(Debug, Default)]
pub(super) struct Translated {
    /// Rules, in the order in which they are tried on each port.
    pub(super) rules: Vec<Rule>,
    /// Of each of them: the route's index, and which of its rules. None: made by us.
    pub(super) origins: Vec<Option<(usize, usize)>>,
    /// One for each route and Service parent, in their order.
    pub(super) statuses: Vec<RouteStatus>,
    /// Warnings.
    pub(super) notices: Vec<Notice>,
}

/// Something that should be said about a route.
#[derive(Debug)]
pub(super) struct Notice {
    /// The route's index.
    pub(super) route: usize,
    /// Where in its document.
    pub(super) path: FieldPath,
    pub(super) code: Code,
    pub(super) message: String,
    pub(super) expected: &'static str,
    /// Another route that has to do with it, by index.
    pub(super) other: Option<usize>,
}

/// A route at a port of its parent.
#[derive(Clone, Copy, Debug)]
struct Attached {
    route: usize,
    parent: usize,
}

/// For whom a route is: everybody (none), or the clients of its own namespace.
type Audience = Option<String>;

/// Translates. `native`: the rules that the port has besides.
pub(super) fn translate(
    services: &List<Service>,
    native: &List<Rule>,
    routes: &[Route],
    grants: &[Grant],
) -> Translated {
    let refs = Refs::new(services, grants);
    let mut out = Translated::default();
    let mut verdicts: Vec<Vec<Verdict>> = Vec::new();
    // By service and port: who is attached, for whom.
    let mut ports: BTreeMap<(usize, usize), BTreeMap<Audience, Vec<Attached>>> = BTreeMap::new();
    for (index, route) in routes.iter().enumerate() {
        out.about(index, route);
        let mut of_route = Vec::new();
        for (at, parent) in route.parents.iter().enumerate() {
            let (verdict, taken) = attach(&refs, route, parent);
            let path = spec("parentRefs").at(at);
            if let Verdict::Refused {
                message, expected, ..
            } = &verdict
            {
                out.notice(
                    index,
                    path.clone(),
                    Code::RouteNotAccepted,
                    message.clone(),
                    expected,
                );
            }
            for (port, problem) in taken {
                match problem {
                    Some(message) => {
                        out.notice(
                            index,
                            path.clone(),
                            Code::RouteNotAccepted,
                            message,
                            "a port that speaks what the route is about",
                        );
                    }
                    None => {
                        let audience =
                            (parent.namespace != route.namespace).then(|| route.namespace.clone());
                        let attached = Attached {
                            route: index,
                            parent: at,
                        };
                        ports
                            .entry(port)
                            .or_default()
                            .entry(audience)
                            .or_default()
                            .push(attached);
                    }
                }
            }
            of_route.push(verdict);
        }
        verdicts.push(of_route);
    }
    for ((service, port), audiences) in ports {
        let Some(of) = services.get(service) else {
            continue;
        };
        let has_native = native.iter().any(|rule| {
            rule.service == service
                && of
                    .ports
                    .get(port)
                    .is_some_and(|port| rule.covers(&port.name))
        });
        let place = Place {
            refs: &refs,
            routes,
            service,
            port,
        };
        out.port(&place, audiences, has_native, &mut verdicts);
    }
    out.resolve(&refs, routes, &verdicts);
    out
}

/// One port of one service.
struct Place<'a> {
    refs: &'a Refs<'a>,
    routes: &'a [Route],
    service: usize,
    port: usize,
}

/// `spec.NAME`.
pub(super) fn spec(name: &str) -> FieldPath {
    FieldPath(vec![
        Step::Key("spec".to_owned()),
        Step::Key(name.to_owned()),
    ])
}

impl Translated {
    fn notice(
        &mut self,
        route: usize,
        path: FieldPath,
        code: Code,
        message: String,
        expected: &'static str,
    ) {
        self.notices.push(Notice {
            route,
            path,
            code,
            message,
            expected,
            other: None,
        });
    }

    /// What is odd about a route by itself.
    fn about(&mut self, index: usize, route: &Route) {
        if !route.hostnames.is_empty() && route.kind != Kind::Tls {
            let message =
                "`hostnames` is ignored: in a mesh the service's address decides".to_owned();
            self.notice(
                index,
                spec("hostnames"),
                Code::NoEffect,
                message,
                "no `hostnames`",
            );
        }
        let name = format!("{} `{}/{}`", route.kind.name(), route.namespace, route.name);
        if route.parents.is_empty() {
            let message = format!("{name} has no parent: it decides nothing");
            self.notice(
                index,
                FieldPath::default().key("spec"),
                Code::NoEffect,
                message,
                "`parentRefs` with a Service",
            );
        }
        for (at, parent) in route.parents.iter().enumerate() {
            if !parent.is_service() {
                let message = format!(
                    "{} `{}` is no parent in a mesh: {name} is not attached to it",
                    parent.kind, parent.name
                );
                let path = spec("parentRefs").at(at);
                self.notice(
                    index,
                    path,
                    Code::NoEffect,
                    message,
                    "`group: \"\"` and `kind: Service`",
                );
            }
        }
    }

    /// The rules of one port.
    fn port(
        &mut self,
        place: &Place<'_>,
        audiences: BTreeMap<Audience, Vec<Attached>>,
        has_native: bool,
        verdicts: &mut [Vec<Verdict>],
    ) {
        let mut settled: BTreeMap<Audience, Vec<Attached>> = BTreeMap::new();
        for (audience, attached) in audiences {
            let attached = self.settle(place, attached, verdicts);
            settled.insert(audience, attached);
        }
        // Clients of these namespaces have routes of their own, which override the producer's.
        let consumers: BTreeSet<String> = settled.keys().flatten().cloned().collect();
        let for_all = settled.contains_key(&None);
        for (audience, attached) in settled {
            let source = match audience {
                Some(namespace) => Some(SourceMatch {
                    namespace: Some(namespace),
                    ..SourceMatch::default()
                }),
                None if consumers.is_empty() => None,
                None => Some(SourceMatch {
                    except_namespaces: consumers.iter().cloned().collect(),
                    ..SourceMatch::default()
                }),
            };
            self.audience(place, &attached, source.as_ref());
        }
        if !for_all && !has_native {
            self.others(place, consumers);
        }
    }

    /// Of several kinds of routes at one port for the same clients one is in force: GRPCRoute, then
    /// HTTPRoute, TLSRoute, TCPRoute.
    fn settle(
        &mut self,
        place: &Place<'_>,
        attached: Vec<Attached>,
        verdicts: &mut [Vec<Verdict>],
    ) -> Vec<Attached> {
        let kind = |it: &Attached| place.routes.get(it.route).map(|route| route.kind);
        let Some(winner) = attached.iter().min_by_key(|it| kind(it)).copied() else {
            return attached;
        };
        let (stay, go): (Vec<_>, Vec<_>) = attached
            .into_iter()
            .partition(|it| kind(it) == kind(&winner));
        for lost in go {
            let Some(first) = place.routes.get(winner.route) else {
                continue;
            };
            let Some(second) = place.routes.get(lost.route) else {
                continue;
            };
            let message = format!(
                "{} `{}/{}` has this port too, and a {} comes before a {}",
                first.kind.name(),
                first.namespace,
                first.name,
                first.kind.name(),
                second.kind.name()
            );
            self.notices.push(Notice {
                route: lost.route,
                path: spec("parentRefs").at(lost.parent),
                code: Code::RouteConflict,
                message: message.clone(),
                expected: "routes of one kind on a port",
                other: Some(winner.route),
            });
            if let Some(verdict) = verdicts
                .get_mut(lost.route)
                .and_then(|of| of.get_mut(lost.parent))
            {
                verdict.lose(message);
            }
        }
        for kept in &stay {
            if let Some(verdict) = verdicts
                .get_mut(kept.route)
                .and_then(|of| of.get_mut(kept.parent))
            {
                verdict.keep();
            }
        }
        stay
    }

    /// The rules of one port for some clients.
    fn audience(&mut self, place: &Place<'_>, attached: &[Attached], source: Option<&SourceMatch>) {
        let mut entries: Vec<(Rank, usize, usize, Match)> = Vec::new();
        let mut known = BTreeSet::new();
        for at in attached.iter().filter(|at| known.insert(at.route)) {
            let Some(route) = place.routes.get(at.route) else {
                continue;
            };
            for (number, rule) in route.rules.iter().enumerate() {
                for (specific, condition) in rules::conditions(route, rule) {
                    let rank = Rank::new(route, number, entries.len(), specific);
                    let condition = Match {
                        source: source.cloned().map(Box::new),
                        ..condition
                    };
                    entries.push((rank, at.route, number, condition));
                }
            }
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let mut made: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut last = None;
        for (_, route, number, condition) in entries {
            let of = (route, number);
            if last == Some(of)
                && let Some(rule) = self.rules.last_mut()
            {
                rule.matches.push(condition);
                continue;
            }
            last = Some(of);
            let part = made.entry(of).or_insert(0);
            *part += 1;
            if let Some(rule) = self.rule(place, of, *part, condition) {
                self.rules.push(rule);
                self.origins.push(Some(of));
            }
        }
    }

    /// One rule of the model; `part` counts those that one rule of a route becomes.
    fn rule(
        &self,
        place: &Place<'_>,
        of: (usize, usize),
        part: usize,
        condition: Match,
    ) -> Option<Rule> {
        let route = place.routes.get(of.0)?;
        let rule = route.rules.get(of.1)?;
        let service = place.refs.at(place.service)?;
        let port = service.ports.get(place.port)?;
        let own = (place.service, port.number);
        let (targets, mut extra) = rules::outcome(place.refs, route, rule, own);
        extra.origin = Some(RouteOrigin {
            kind: route.kind.name().to_owned(),
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            rule: of.1,
        });
        let kind = route.kind.name().to_ascii_lowercase();
        let number = rule.name.clone().unwrap_or_else(|| of.1.to_string());
        let suffix = if part > 1 {
            format!("~{part}")
        } else {
            String::new()
        };
        Some(Rule {
            name: format!("{kind}/{}/{}/{number}{suffix}", route.namespace, route.name),
            service: place.service,
            port: Some(port.name.clone()),
            precedence: 0,
            matches: vec![condition],
            route: targets,
            extra: Some(Box::new(extra)),
        })
    }

    /// Clients for which there is no route keep what a port without rules does.
    fn others(&mut self, place: &Place<'_>, consumers: BTreeSet<String>) {
        let port = place
            .refs
            .at(place.service)
            .and_then(|service| service.ports.get(place.port));
        self.rules.push(Rule {
            name: "-".to_owned(),
            service: place.service,
            port: port.map(|port| port.name.clone()),
            precedence: 0,
            matches: vec![Match {
                source: Some(Box::new(SourceMatch {
                    except_namespaces: consumers.into_iter().collect(),
                    ..SourceMatch::default()
                })),
                ..Match::default()
            }],
            route: vec![Target::default()],
            extra: None::<Box<RuleExtra>>,
        });
        self.origins.push(None);
    }

    /// Says what references lead nowhere, and makes the statuses.
    fn resolve(&mut self, refs: &Refs<'_>, routes: &[Route], verdicts: &[Vec<Verdict>]) {
        for (index, (route, of_route)) in routes.iter().zip(verdicts).enumerate() {
            let faults = rules::faults(refs, route);
            for fault in &faults {
                self.notice(
                    index,
                    fault.path.clone(),
                    fault.code,
                    fault.message.clone(),
                    fault.expected,
                );
            }
            for (parent, verdict) in route.parents.iter().zip(of_route) {
                self.statuses
                    .extend(status::status(route, parent, verdict, &faults));
            }
        }
    }
}
