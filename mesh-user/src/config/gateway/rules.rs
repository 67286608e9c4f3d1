//! What a rule of a route becomes: conditions, targets, actions.

use super::{
    Kind,
    object::{BackendRef, Filter, Route, RouteMatch, RouteRule},
    rank::{specific, specific_name},
    refs::Refs,
    translate::spec,
};
use crate::{
    config::{path::FieldPath, report::Code},
    model::{
        Actions, Match, PathMatch, RetryOn, RetryPolicy, RuleExtra, Select, Target,
        action::{Mirror, RuleTimeouts, Terminal},
    },
};

/// Most retries that there are here.
const ATTEMPTS_MAX: u32 = 10;
/// Retries when `attempts` is not given, as in Envoy.
const ATTEMPTS: u32 = 1;
/// Back-off when `backoff` is not given, as in Envoy.
const BACKOFF: std::time::Duration = std::time::Duration::from_millis(25);

/// A service port, by the service's index and the port's number.
type Own = (usize, u16);

/// The conditions of a rule, each with how specific it is.
pub(super) fn conditions(route: &Route, rule: &RouteRule) -> Vec<([usize; 5], Match)> {
    match route.kind {
        Kind::Tls => {
            let names = route.hostnames.iter();
            let condition = |name: &String| {
                let sni = vec![name.clone()].into();
                let condition = Match {
                    sni,
                    ..Match::default()
                };
                (specific_name(name), condition)
            };
            names.map(condition).collect()
        }
        Kind::Http | Kind::Grpc if !rule.matches.is_empty() => {
            let matches = rule.matches.iter();
            matches.map(|of| (specific(of), condition(of))).collect()
        }
        Kind::Grpc => {
            let path = Some(PathMatch::Prefix("/".to_owned()));
            vec![(
                [0; 5],
                Match {
                    path,
                    ..Match::default()
                },
            )]
        }
        _ => vec![([0; 5], Match::default())],
    }
}

fn condition(of: &RouteMatch) -> Match {
    match of {
        RouteMatch::Http {
            path,
            method,
            headers,
            query,
        } => Match {
            path: Some(path.clone()),
            methods: method.iter().cloned().collect(),
            headers: headers.clone().into(),
            query: query.clone().into(),
            ..Match::default()
        },
        RouteMatch::Grpc {
            service,
            method,
            regex,
            headers,
        } => Match {
            path: Some(grpc_path(service.as_deref(), method.as_deref(), *regex)),
            headers: headers.clone().into(),
            ..Match::default()
        },
    }
}

/// The path of a gRPC call is `/service/method`.
fn grpc_path(service: Option<&str>, method: Option<&str>, regex: bool) -> PathMatch {
    // A leading dot says that the name is complete, which it always is in a path.
    let bare = |name: &str| name.strip_prefix('.').unwrap_or(name).to_owned();
    match (service, method) {
        (None, None) => PathMatch::Prefix("/".to_owned()),
        (Some(service), Some(method)) if !regex => {
            PathMatch::Exact(format!("/{}/{method}", bare(service)))
        }
        (Some(service), None) if !regex => PathMatch::Prefix(format!("/{}", bare(service))),
        (service, method) => {
            let part = |part: Option<&str>| match part {
                None => "[^/]+".to_owned(),
                Some(pattern) if regex => format!("(?:{pattern})"),
                Some(name) => regex::escape(&bare(name)),
            };
            PathMatch::Regex(format!("/{}/{}", part(service), part(method)))
        }
    }
}

/// Where a rule sends, and what it does besides.
pub(super) fn outcome(
    refs: &Refs<'_>,
    route: &Route,
    rule: &RouteRule,
    own: Own,
) -> (Vec<Target>, RuleExtra) {
    let actions = actions(refs, route, &rule.filters, own);
    let targets = match &actions.terminal {
        Some(Terminal::Broken(why)) => vec![nowhere(why)],
        Some(_) => Vec::new(),
        None => targets(refs, route, rule, own),
    };
    let retries = rule.retry.as_ref().map(|retry| RetryPolicy {
        attempts: retry.attempts.unwrap_or(ATTEMPTS).min(ATTEMPTS_MAX),
        per_try: None,
        on: vec![
            RetryOn::ConnectFailure,
            RetryOn::RefusedStream,
            RetryOn::Reset,
            RetryOn::PerTryTimeout,
        ],
        statuses: retry.codes.clone(),
        non_idempotent: false,
        backoff: retry.backoff.unwrap_or(BACKOFF),
        backoff_is_least: true,
        ..RetryPolicy::default()
    });
    let extra = RuleExtra {
        actions,
        timeouts: RuleTimeouts {
            request: rule.request_timeout,
            backend_request: rule.backend_timeout,
        },
        retries,
        persistence: rule.session.clone(),
        ..RuleExtra::default()
    };
    (targets, extra)
}

/// A target whose share is answered with 500.
fn nowhere(why: &str) -> Target {
    Target {
        select: Select::Invalid(why.to_owned()),
        weight: 1,
        ..Target::default()
    }
}

fn targets(refs: &Refs<'_>, route: &Route, rule: &RouteRule, own: Own) -> Vec<Target> {
    if rule.backends.is_empty() {
        return vec![nowhere("the rule has no backendRefs")];
    }
    if rule.backends.iter().all(|backend| backend.weight == 0) {
        return vec![nowhere("every weight is 0")];
    }
    let target = |backend: &BackendRef| {
        let weight = backend.weight;
        let actions = actions(refs, route, &backend.filters, own);
        if let Some(Terminal::Broken(why)) = &actions.terminal {
            return Target {
                weight,
                ..nowhere(why)
            };
        }
        let actions = (actions != Actions::NOTHING).then(|| Box::new(actions));
        match refs.backend(route, backend) {
            Ok(to) => Target {
                select: Select::All,
                weight,
                backend: ((to.service, to.port) != own).then_some(to),
                actions,
            },
            Err(fault) => Target {
                weight,
                ..nowhere(&fault.message)
            },
        }
    };
    rule.backends.iter().map(target).collect()
}

fn actions(refs: &Refs<'_>, route: &Route, filters: &[Filter], own: Own) -> Actions {
    let mut out = Actions::default();
    for filter in filters {
        match filter {
            Filter::RequestHeaders(edits) => out.request_headers = edits.clone(),
            Filter::ResponseHeaders(edits) => out.response_headers = edits.clone(),
            Filter::Rewrite(rewrite) => out.rewrite = Some(rewrite.clone()),
            Filter::Cors(cors) => out.cors = Some(cors.clone()),
            Filter::Redirect(redirect) => {
                // What is broken stays so, wherever it stands.
                out.terminal
                    .get_or_insert_with(|| Terminal::Redirect(redirect.clone()));
            }
            Filter::Unknown(why) => out.terminal = Some(Terminal::Broken(why.clone())),
            // A mirror that leads nowhere is left out; the status says so.
            Filter::Mirror(to, fraction) => {
                out.mirrors
                    .extend(refs.backend(route, to).ok().map(|to| Mirror {
                        target: Target {
                            backend: ((to.service, to.port) != own).then_some(to),
                            ..Target::default()
                        },
                        fraction: *fraction,
                        compare: false,
                    }))
            }
        }
    }
    out
}

/// Something in a route that is not as it was meant.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: FieldPath,
    pub(super) code: Code,
    /// The reason of `ResolvedRefs`; none: it is about something else.
    pub(super) unresolved: Option<&'static str>,
    pub(super) message: String,
    pub(super) expected: &'static str,
}

/// All of them.
pub(super) fn faults(refs: &Refs<'_>, route: &Route) -> Vec<Fault> {
    let mut out = Vec::new();
    for (index, rule) in route.rules.iter().enumerate() {
        let at = spec("rules").at(index);
        of_filters(refs, route, &rule.filters, &at, &mut out);
        for (number, backend) in rule.backends.iter().enumerate() {
            let here = at.key("backendRefs").at(number);
            reference(refs, route, backend, &here, &mut out);
            of_filters(refs, route, &backend.filters, &here, &mut out);
        }
        let redirects =
            |filter: &Filter| matches!(filter, Filter::Redirect(_) | Filter::Unknown(_));
        let why = if rule.filters.iter().any(redirects) {
            None
        } else if rule.backends.is_empty() {
            Some("the rule has no backendRefs: what matches is answered with 500")
        } else if rule.backends.iter().all(|backend| backend.weight == 0) {
            Some("every weight is 0: what matches is answered with 500")
        } else {
            None
        };
        if let Some(why) = why {
            out.push(Fault {
                path: at.key("backendRefs"),
                code: Code::NoEffect,
                unresolved: None,
                message: why.to_owned(),
                expected: "a backend with a weight above 0",
            });
        }
        if let Some(attempts) = rule.retry.as_ref().and_then(|retry| retry.attempts)
            && attempts > ATTEMPTS_MAX
        {
            out.push(Fault {
                path: at.key("retry").key("attempts"),
                code: Code::OutOfRange,
                unresolved: None,
                message: format!("{attempts} retries are taken as {ATTEMPTS_MAX}"),
                expected: "at most 10",
            });
        }
    }
    out
}

fn reference(
    refs: &Refs<'_>,
    route: &Route,
    to: &BackendRef,
    at: &FieldPath,
    out: &mut Vec<Fault>,
) {
    if let Err(fault) = refs.backend(route, to) {
        out.push(Fault {
            path: at.key("name"),
            code: Code::UnresolvedRef,
            unresolved: Some(fault.reason),
            message: fault.message,
            expected: fault.expected,
        });
    }
}

fn of_filters(
    refs: &Refs<'_>,
    route: &Route,
    filters: &[Filter],
    at: &FieldPath,
    out: &mut Vec<Fault>,
) {
    for (index, filter) in filters.iter().enumerate() {
        let here = at.key("filters").at(index);
        match filter {
            Filter::Mirror(to, _) => {
                let here = here.key("requestMirror").key("backendRef");
                reference(refs, route, to, &here, out);
            }
            Filter::Unknown(why) => out.push(Fault {
                path: here,
                code: Code::UnresolvedRef,
                unresolved: Some("InvalidKind"),
                message: format!("{why}: what it would handle is answered with 500"),
                expected: "a filter that Gateway API defines",
            }),
            _ => {}
        }
    }
}
