//! What rules do besides choosing a version.

use super::{Findings, one_of, port as unknown_port, version};
use crate::{
    config::{path::FieldPath, report::Code, text::shown},
    model::{
        Actions, Attribute, Backend, Model, PathMatch, Protocol, Rule, Select, Service, Target,
        action::{
            Cors, DirectResponse, HeaderEdits, PathRewrite, Persistence, Redirect, Rewrite,
            SessionCarrier, Terminal,
        },
    },
    policy::action::{is_origin, may_edit},
};

/// Longest body of a direct response, in bytes: it stands in every snapshot.
const BODY_BYTES_MAX: usize = 64 << 10;

pub(super) fn check(model: &Model, rule: &Rule, item: &FieldPath, out: &mut Findings) {
    let extra = rule.extra();
    actions(model, rule, &extra.actions, item, out);
    for (k, target) in rule.route.iter().enumerate() {
        let path = item.key("route").at(k);
        if let Some(own) = target.actions.as_deref() {
            actions(model, rule, own, &path, out);
        }
    }
    if let Some(sticky) = &extra.sticky {
        for (k, attribute) in sticky.key.iter().enumerate() {
            key(
                rule,
                model,
                attribute,
                item.key("sticky").key("key").at(k),
                out,
            );
        }
    }
    if let Some(persistence) = &extra.persistence {
        session(persistence, &item.key("session"), out);
    }
    let acts = extra.actions != Actions::NOTHING
        || extra.persistence.is_some()
        || rule.route.iter().any(|target| target.actions.is_some());
    if acts && opaque(rule, model) {
        let message = format!(
            "`{}` acts on requests, and its port is of protocol tcp",
            rule.name
        );
        let expected = "a port of protocol http, http2 or grpc";
        out.error(Code::BadAction, item.clone(), message, expected);
    }
}

/// Whether every port of the rule carries opaque bytes.
fn opaque(rule: &Rule, model: &Model) -> bool {
    let service = model.services.get(rule.service);
    let ports = service.iter().flat_map(|service| &service.ports);
    let mut protocols = ports
        .filter(|port| rule.covers(&port.name))
        .map(|port| port.protocol)
        .peekable();
    protocols.peek().is_some() && protocols.all(|protocol| protocol == Protocol::Tcp)
}

fn key(rule: &Rule, model: &Model, attribute: &Attribute, path: FieldPath, out: &mut Findings) {
    if *attribute == Attribute::Version {
        let message = "`version` is not known yet: it is chosen by this key".to_owned();
        let expected = "an attribute of the request or of who asks";
        out.error(Code::BadAction, path, message, expected);
    } else if attribute.needs_http() && opaque(rule, model) {
        let message = format!("`{attribute}` is never there: the port is of protocol tcp");
        out.error(
            Code::BadAction,
            path,
            message,
            "`source.address`, or another of `source`",
        );
    }
}

fn session(from: &Persistence, path: &FieldPath, out: &mut Findings) {
    if from.carrier == SessionCarrier::PermanentCookie && from.absolute.is_none() {
        let message = "a permanent cookie needs `absolute-timeout`".to_owned();
        let expected = "`absolute-timeout`, which becomes its Max-Age";
        out.error(Code::BadAction, path.key("permanent"), message, expected);
    }
    if from.carrier == SessionCarrier::Header && !may_edit(&from.name) {
        not_editable(&from.name, path.key("header"), out);
    }
}

fn actions(model: &Model, rule: &Rule, from: &Actions, path: &FieldPath, out: &mut Findings) {
    let headers = path.key("headers");
    edits(&from.request_headers, &headers.key("request"), out);
    edits(&from.response_headers, &headers.key("response"), out);
    if let Some(rewrite) = &from.rewrite {
        rewritten(rule, rewrite, &path.key("rewrite"), out);
    }
    match &from.terminal {
        Some(Terminal::Redirect(redirect)) => {
            redirected(rule, redirect, &path.key("redirect"), out);
            if from.rewrite.is_some() {
                let message = "a redirect forwards nothing that could be rewritten".to_owned();
                out.error(
                    Code::BadAction,
                    path.key("rewrite"),
                    message,
                    "`redirect` or `rewrite`",
                );
            }
        }
        Some(Terminal::Respond(response)) => respond(response, &path.key("respond"), out),
        Some(Terminal::Broken(_)) | None => {}
    }
    if let Some(cors) = &from.cors {
        origins(cors, &path.key("cors"), out);
    }
    let fault = from.fault.unwrap_or_default();
    let shares = [
        (
            fault.delay.map(|(share, _)| share),
            path.key("fault").key("delay"),
        ),
        (
            fault.abort.map(|(share, _)| share),
            path.key("fault").key("abort"),
        ),
    ];
    let mirrors = from.mirrors.iter().enumerate();
    let mirrored = mirrors
        .clone()
        .map(|(k, mirror)| (Some(mirror.fraction), path.key("mirror").at(k)));
    for (share, path) in shares.into_iter().chain(mirrored) {
        if let Some(share) = share.filter(|share| share.numerator > share.denominator) {
            let message = format!(
                "{} of {} are more than all",
                share.numerator, share.denominator
            );
            out.error(
                Code::BadAction,
                path.key("fraction"),
                message,
                "at most `of`",
            );
        }
    }
    for (k, mirror) in mirrors {
        let path = path.key("mirror").at(k);
        destination(model, rule, &mirror.target, &path, out);
        if let Select::Version(name) = &mirror.target.select {
            let service = service_of(model, rule, &mirror.target);
            version(name, service, path.key("version"), out);
        }
    }
}

fn not_editable(name: &str, path: FieldPath, out: &mut Findings) {
    let message = format!(
        "`{}` can't be edited: it frames or routes messages",
        shown(name)
    );
    let expected = if name == "host" {
        "`rewrite: {authority: ...}`"
    } else {
        "a field that belongs to the request or answer itself"
    };
    out.error(Code::BadAction, path, message, expected);
}

fn edits(from: &HeaderEdits, path: &FieldPath, out: &mut Findings) {
    for (list, name) in [(&from.set, "set"), (&from.add, "add")] {
        for (field, _) in list.iter().filter(|(field, _)| !may_edit(field)) {
            not_editable(field, path.key(name).key(field), out);
        }
    }
    for (k, field) in from.remove.iter().enumerate() {
        if !may_edit(field) {
            not_editable(field, path.key("remove").at(k), out);
        } else if let Some((_, at)) = [(&from.set, "set"), (&from.add, "add")]
            .into_iter()
            .find(|(list, _)| list.iter().any(|(name, _)| name == field))
        {
            let message = format!("`{}` is removed after `{at}` put it there", shown(field));
            let at = path.key("remove").at(k);
            out.warning(Code::NoEffect, at, message, "one of the two");
        }
    }
}

/// A prefix can be replaced only where one was matched.
fn prefix(rule: &Rule, path: &Option<PathRewrite>, at: FieldPath, out: &mut Findings) {
    let whole =
        |path: &Option<PathMatch>| matches!(path, Some(PathMatch::Exact(_) | PathMatch::Regex(_)));
    if matches!(path, Some(PathRewrite::Prefix(_)))
        && let Some(k) = rule.matches.iter().position(|from| whole(&from.path))
    {
        let message = format!("match[{k}] has no path prefix that could be replaced");
        out.error(
            Code::BadAction,
            at.key("prefix"),
            message,
            "`path`, or `match` by prefix",
        );
    }
}

fn rewritten(rule: &Rule, from: &Rewrite, path: &FieldPath, out: &mut Findings) {
    prefix(rule, &from.path, path.clone(), out);
    if let Some(authority) = &from.hostname
        && (authority.contains('@') || authority.parse::<http::uri::Authority>().is_err())
    {
        let message = format!("`{}` is not a host", shown(authority));
        let expected = "a host, with or without port, such as reviews.shop:8080";
        out.error(Code::BadAction, path.key("authority"), message, expected);
    }
}

fn redirected(rule: &Rule, from: &Redirect, path: &FieldPath, out: &mut Findings) {
    prefix(rule, &from.path, path.clone(), out);
    if !matches!(from.status, 301 | 302 | 303 | 307 | 308) {
        let message = format!("`{}` is not the status of a redirect", from.status);
        out.error(
            Code::BadAction,
            path.key("status"),
            message,
            "301, 302, 303, 307 or 308",
        );
    }
}

fn respond(from: &DirectResponse, path: &FieldPath, out: &mut Findings) {
    if !(200..=599).contains(&from.status) {
        let message = format!("`{}` is out of range", from.status);
        out.error(Code::BadAction, path.key("status"), message, "200 to 599");
    }
    if matches!(from.status, 204 | 304) && !from.body.is_empty() {
        let message = format!("an answer with status {} has no body", from.status);
        out.error(
            Code::BadAction,
            path.key("body"),
            message,
            "no body, or another status",
        );
    }
    if from.body.len() > BODY_BYTES_MAX {
        let message = format!("has {} bytes, more than {BODY_BYTES_MAX}", from.body.len());
        out.error(Code::BadAction, path.key("body"), message, "a shorter one");
    }
    for (name, _) in from.headers.iter().filter(|(name, _)| !may_edit(name)) {
        not_editable(name, path.key("headers").key(name), out);
    }
}

fn origins(from: &Cors, path: &FieldPath, out: &mut Findings) {
    for (k, origin) in from.allow_origins.iter().enumerate() {
        if !is_origin(origin) {
            let message = format!("`{}` is not an origin", shown(origin));
            let expected =
                "`*`, or scheme and host, such as https://shop.example or https://*.shop.example";
            out.error(
                Code::BadAction,
                path.key("allow-origins").at(k),
                message,
                expected,
            );
        }
    }
    if from.allow_credentials && from.expose_headers.iter().any(|name| name == "*") {
        let message = "`*` exposes nothing where credentials are allowed (Fetch)".to_owned();
        out.warning(
            Code::NoEffect,
            path.key("expose-headers"),
            message,
            "the names themselves",
        );
    }
}

/// The service that a target or mirror leads to.
pub(super) fn service_of<'m>(
    model: &'m Model,
    rule: &Rule,
    target: &Target,
) -> Option<(usize, &'m Service)> {
    let index = target
        .backend
        .map_or(rule.service, |backend| backend.service);
    model.services.get(index).map(|service| (index, service))
}

/// Another service's port that is not there, and endpoints that are not.
fn destination(model: &Model, rule: &Rule, target: &Target, path: &FieldPath, out: &mut Findings) {
    let service = service_of(model, rule, target);
    if let (Some(Backend { port, .. }), Some((_, of))) = (target.backend, service)
        && of.ports.iter().all(|known| known.number != port)
    {
        if port == 0 && of.ports.len() > 1 {
            let names: Vec<&str> = of.ports.iter().map(|port| port.name.as_str()).collect();
            let message = format!("`{}` has {} ports", of.key(), of.ports.len());
            let expected = format!("`port`: {}", one_of("", &names));
            out.error(Code::BadAction, path.clone(), message, &expected);
        } else {
            unknown_port(Some(&port.to_string()), service, path, out);
        }
    }
    if let (Select::Endpoints(wanted), Some((_, of))) = (&target.select, service) {
        for (k, address) in wanted.iter().enumerate() {
            let ip = address.ip().to_canonical();
            if of
                .endpoints
                .iter()
                .all(|known| known.address.to_canonical() != ip)
            {
                let message = format!("`{}` has no endpoint {address}", of.key());
                let at = path.key("endpoints").at(k);
                out.warning(
                    Code::EmptyVersion,
                    at,
                    message,
                    "the address of an endpoint",
                );
            }
        }
    }
}
