//! Routes and grants as values, with the defaults that the API server fills in.

use std::time::Duration;

use super::{Kind, duration::duration};
use crate::{
    config::tree::{Node, Value},
    model::{
        PathMatch, ValueMatch,
        action::{
            Cors, Fraction, HeaderEdits, PathRewrite, Persistence, Redirect, Rewrite,
            SessionCarrier,
        },
    },
};

/// Group of the API.
pub(super) const GROUP: &str = "gateway.networking.k8s.io";

/// A route.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) generation: i64,
    /// `creationTimestamp` (RFC 3339 in UTC sorts as text); none: younger than every other.
    pub(super) created: Option<String>,
    pub(super) parents: Vec<Parent>,
    pub(super) hostnames: Vec<String>,
    pub(super) rules: Vec<RouteRule>,
}

/// An entry of `parentRefs`.
#[derive(Clone, Debug)]
pub(super) struct Parent {
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) section: Option<String>,
    pub(super) port: Option<u16>,
}

impl Parent {
    /// Whether it is a Service.
    pub(super) fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }
}

/// An entry of `rules`.
#[derive(Clone, Debug)]
pub(super) struct RouteRule {
    pub(super) name: Option<String>,
    pub(super) matches: Vec<RouteMatch>,
    pub(super) filters: Vec<Filter>,
    pub(super) backends: Vec<BackendRef>,
    pub(super) request_timeout: Option<Duration>,
    pub(super) backend_timeout: Option<Duration>,
    pub(super) retry: Option<Retry>,
    pub(super) session: Option<Persistence>,
}

/// An entry of `matches`.
#[derive(Clone, Debug)]
pub(super) enum RouteMatch {
    /// Of an HTTPRoute.
    Http {
        path: PathMatch,
        method: Option<String>,
        headers: Vec<(String, ValueMatch)>,
        query: Vec<(String, ValueMatch)>,
    },
    /// Of a GRPCRoute. None: any.
    Grpc {
        service: Option<String>,
        method: Option<String>,
        regex: bool,
        headers: Vec<(String, ValueMatch)>,
    },
}

/// An entry of `filters`.
#[derive(Clone, Debug)]
pub(super) enum Filter {
    RequestHeaders(HeaderEdits),
    ResponseHeaders(HeaderEdits),
    Mirror(BackendRef, Fraction),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Cors(Cors),
    /// One that can't be resolved, for this reason.
    Unknown(String),
}

/// A reference to a backend.
#[derive(Clone, Debug)]
pub(super) struct BackendRef {
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) port: Option<u16>,
    pub(super) weight: u32,
    pub(super) filters: Vec<Filter>,
}

/// `retry`.
#[derive(Clone, Debug)]
pub(super) struct Retry {
    pub(super) codes: Vec<u16>,
    pub(super) attempts: Option<u32>,
    pub(super) backoff: Option<Duration>,
}

/// A ReferenceGrant.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) namespace: String,
    /// Group, kind, namespace.
    pub(super) from: Vec<(String, String, String)>,
    /// Group, kind, name.
    pub(super) to: Vec<(String, String, Option<String>)>,
}

/// What stands in `metadata`.
#[derive(Clone, Debug, Default)]
pub(super) struct Meta {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) generation: i64,
    pub(super) created: Option<String>,
}

pub(super) fn grant(meta: &Meta, spec: &Node) -> Grant {
    let owned = |node: &Node, name| node.text(name).unwrap_or_default().to_owned();
    let from = spec.items("from").iter();
    let to = spec.items("to").iter();
    Grant {
        namespace: meta.namespace.clone(),
        from: from
            .map(|node| {
                (
                    owned(node, "group"),
                    owned(node, "kind"),
                    owned(node, "namespace"),
                )
            })
            .collect(),
        to: to
            .map(|node| {
                let name = node.text("name").filter(|name| !name.is_empty());
                (
                    owned(node, "group"),
                    owned(node, "kind"),
                    name.map(str::to_owned),
                )
            })
            .collect(),
    }
}

pub(super) fn route(kind: Kind, meta: &Meta, spec: &Node) -> Route {
    let parents = spec.items("parentRefs").iter();
    let rules = spec.items("rules");
    let mut rules: Vec<RouteRule> = (0..)
        .zip(rules)
        .map(|(at, node)| rule(kind, meta, at, node))
        .collect();
    if rules.is_empty() && kind == Kind::Http {
        // The CRD's default: one rule, which matches everything and has no backend.
        let nothing = Node {
            span: crate::config::source::Span::default(),
            value: Value::Null,
        };
        rules.push(rule(kind, meta, 0, &nothing));
    }
    Route {
        kind,
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        generation: meta.generation,
        created: meta.created.clone(),
        parents: parents.map(|node| parent(meta, node)).collect(),
        hostnames: spec.texts("hostnames"),
        rules,
    }
}

fn parent(meta: &Meta, node: &Node) -> Parent {
    Parent {
        group: node.text("group").unwrap_or(GROUP).to_owned(),
        kind: node.text("kind").unwrap_or("Gateway").to_owned(),
        namespace: node.text("namespace").unwrap_or(&meta.namespace).to_owned(),
        name: node.text("name").unwrap_or_default().to_owned(),
        section: node.text("sectionName").map(str::to_owned),
        port: node.int("port"),
    }
}

fn rule(kind: Kind, meta: &Meta, at: usize, node: &Node) -> RouteRule {
    let mut matches: Vec<RouteMatch> = node
        .items("matches")
        .iter()
        .filter_map(|node| match kind {
            Kind::Http => Some(http_match(node)),
            Kind::Grpc => Some(grpc_match(node)),
            _ => None,
        })
        .collect();
    if matches.is_empty() && kind == Kind::Http {
        matches.push(RouteMatch::Http {
            path: PathMatch::Prefix("/".to_owned()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        });
    }
    let timeouts = node.get("timeouts");
    let time = |name| timeouts?.text(name).and_then(duration);
    RouteRule {
        name: node.text("name").map(str::to_owned),
        matches,
        filters: filters(meta, node),
        backends: node
            .items("backendRefs")
            .iter()
            .map(|node| backend(meta, node))
            .collect(),
        request_timeout: time("request"),
        backend_timeout: time("backendRequest"),
        retry: node.get("retry").map(retry),
        session: node
            .get("sessionPersistence")
            .map(|node| session(meta, at, node)),
    }
}

fn retry(node: &Node) -> Retry {
    Retry {
        codes: node
            .items("codes")
            .iter()
            .filter_map(Node::as_int)
            .collect(),
        attempts: node.int("attempts"),
        backoff: node.text("backoff").and_then(duration),
    }
}

/// The API leaves the name to us; routes of one host must not share it.
fn session(meta: &Meta, rule: usize, node: &Node) -> Persistence {
    let lifetime = node
        .get("cookieConfig")
        .and_then(|config| config.text("lifetimeType"));
    Persistence {
        name: node.text("sessionName").map_or_else(
            || format!("mesh-{}-{}-{rule}", meta.namespace, meta.name),
            str::to_owned,
        ),
        carrier: match (node.text("type"), lifetime) {
            (Some("Header"), _) => SessionCarrier::Header,
            (_, Some("Permanent")) => SessionCarrier::PermanentCookie,
            _ => SessionCarrier::SessionCookie,
        },
        absolute: node.text("absoluteTimeout").and_then(duration),
        idle: node.text("idleTimeout").and_then(duration),
        salt: String::new(),
    }
}

fn backend(meta: &Meta, node: &Node) -> BackendRef {
    BackendRef {
        group: node.text("group").unwrap_or_default().to_owned(),
        kind: node.text("kind").unwrap_or("Service").to_owned(),
        namespace: node.text("namespace").unwrap_or(&meta.namespace).to_owned(),
        name: node.text("name").unwrap_or_default().to_owned(),
        port: node.int("port"),
        weight: node.int("weight").unwrap_or(1),
        filters: filters(meta, node),
    }
}

fn values(node: &Node, field: &str, fold: bool) -> Vec<(String, ValueMatch)> {
    let value = |item: &Node| {
        let text = item.text("value").unwrap_or_default().to_owned();
        match item.text("type") {
            Some("RegularExpression") => ValueMatch::Regex(text),
            _ => ValueMatch::Exact(text),
        }
    };
    let name = |item: &Node| {
        let name = item.text("name").unwrap_or_default();
        if fold {
            name.to_ascii_lowercase()
        } else {
            name.to_owned()
        }
    };
    let mut out: Vec<(String, ValueMatch)> = Vec::new();
    for item in node.items(field) {
        let name = name(item);
        // Of names that are equal without case only the first counts.
        if !out.iter().any(|(known, _)| *known == name) {
            out.push((name, value(item)));
        }
    }
    out
}

fn http_match(node: &Node) -> RouteMatch {
    let path = node.get("path");
    let value = path
        .and_then(|path| path.text("value"))
        .unwrap_or("/")
        .to_owned();
    RouteMatch::Http {
        path: match path.and_then(|path| path.text("type")) {
            Some("Exact") => PathMatch::Exact(value),
            Some("RegularExpression") => PathMatch::Regex(value),
            _ => PathMatch::Prefix(value),
        },
        method: node.text("method").map(str::to_owned),
        headers: values(node, "headers", true),
        query: values(node, "queryParams", false),
    }
}

fn grpc_match(node: &Node) -> RouteMatch {
    let method = node.get("method");
    let part = |name| {
        let text = method?.text(name)?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    RouteMatch::Grpc {
        service: part("service"),
        method: part("method"),
        regex: method.and_then(|method| method.text("type")) == Some("RegularExpression"),
        headers: values(node, "headers", true),
    }
}

fn filters(meta: &Meta, node: &Node) -> Vec<Filter> {
    let items = node.items("filters").iter();
    items.map(|node| filter(meta, node)).collect()
}

fn filter(meta: &Meta, node: &Node) -> Filter {
    let kind = node.text("type").unwrap_or_default();
    let field = |name| node.get(name);
    let known = match kind {
        "RequestHeaderModifier" => {
            field("requestHeaderModifier").map(|of| Filter::RequestHeaders(edits(of)))
        }
        "ResponseHeaderModifier" => {
            field("responseHeaderModifier").map(|of| Filter::ResponseHeaders(edits(of)))
        }
        "RequestMirror" => field("requestMirror").map(|of| mirror(meta, of)),
        "RequestRedirect" => field("requestRedirect").map(|of| Filter::Redirect(redirect(of))),
        "URLRewrite" => field("urlRewrite").map(|of| {
            Filter::Rewrite(Rewrite {
                hostname: of.text("hostname").map(str::to_owned),
                path: of.get("path").and_then(path_rewrite),
            })
        }),
        "CORS" => field("cors").map(|of| Filter::Cors(cors(of))),
        "ExtensionRef" => field("extensionRef").map(|of| {
            let part = |name| of.text(name).unwrap_or_default();
            let (kind, name) = (part("kind"), part("name"));
            Filter::Unknown(format!("filter ExtensionRef {kind} {name:?} is not known"))
        }),
        _ => None,
    };
    known.unwrap_or_else(|| Filter::Unknown(format!("filter {kind:?} is not known")))
}

fn edits(node: &Node) -> HeaderEdits {
    let pairs = |list| {
        let items: &[Node] = node.items(list);
        let pair = |item: &Node| {
            let part = |name| item.text(name).unwrap_or_default();
            (part("name").to_ascii_lowercase(), part("value").to_owned())
        };
        items.iter().map(pair).collect()
    };
    let removed = node.texts("remove").into_iter();
    HeaderEdits {
        set: pairs("set"),
        add: pairs("add"),
        remove: removed.map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn mirror(meta: &Meta, node: &Node) -> Filter {
    let nothing = Node {
        span: node.span,
        value: Value::Null,
    };
    let to = backend(meta, node.get("backendRef").unwrap_or(&nothing));
    let percent = node.int("percent").map(|numerator| Fraction {
        numerator,
        denominator: 100,
    });
    let fraction = node.get("fraction").map(|fraction| Fraction {
        numerator: fraction.int("numerator").unwrap_or(0),
        denominator: fraction.int("denominator").unwrap_or(100),
    });
    Filter::Mirror(to, percent.or(fraction).unwrap_or(Fraction::ALL))
}

fn path_rewrite(node: &Node) -> Option<PathRewrite> {
    let full = node.text("replaceFullPath").map(str::to_owned);
    let prefix = node.text("replacePrefixMatch").map(str::to_owned);
    match node.text("type") {
        Some("ReplaceFullPath") => full.map(PathRewrite::Full),
        _ => prefix.map(PathRewrite::Prefix),
    }
}

fn redirect(node: &Node) -> Redirect {
    Redirect {
        scheme: node.text("scheme").map(str::to_owned),
        hostname: node.text("hostname").map(str::to_owned),
        port: node.int("port"),
        path: node.get("path").and_then(path_rewrite),
        status: node.int("statusCode").unwrap_or(302),
    }
}

fn cors(node: &Node) -> Cors {
    Cors {
        allow_origins: node.texts("allowOrigins"),
        allow_methods: node.texts("allowMethods"),
        allow_headers: node.texts("allowHeaders"),
        expose_headers: node.texts("exposeHeaders"),
        allow_credentials: node.flag("allowCredentials").unwrap_or(false),
        max_age_s: node.int("maxAge").unwrap_or(5),
    }
}
