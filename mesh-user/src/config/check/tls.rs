//! TLS: server names where they can be seen, settings that don't contradict each other.

use std::path::Path;

use super::Findings;
use crate::{
    config::{path::FieldPath, report::Code, text::Text},
    model::{
        Model, Policy, Port, Protocol, Rule, Service,
        tls::{Alpn, CertificateFiles, Originate, Terminate, UpstreamTls},
    },
};

/// Longest identifier of a protocol (RFC 7301 §3.1).
const PROTOCOL_ID_BYTES_MAX: usize = 255;

pub(super) fn check(model: &Model, out: &mut Findings) {
    for (i, service) in model.services.iter().enumerate() {
        for (k, port) in service.ports.iter().enumerate() {
            if let Some(tls) = &port.tls {
                let path = FieldPath::item("services", i).key("ports").at(k).key("tls");
                terminate(port, tls, &path, out);
            }
        }
    }
    for (i, rule) in model.rules.iter().enumerate() {
        if rule.matches.iter().any(|m| !m.sni.is_empty()) {
            let item = FieldPath::item("rules", i);
            server_names(rule, model.services.get(rule.service), &item, out);
        }
    }
    for (i, policy) in model.policies.iter().enumerate() {
        if let Some(UpstreamTls::Simple(tls)) = &policy.tls {
            let path = FieldPath::item("policies", i).key("tls");
            let service = model.services.get(policy.service);
            originate(policy, tls, service, &path, out);
        }
    }
}

/// Whether the server name of the port's connections is known, and nothing more of them.
fn sees_names(port: &Port) -> bool {
    match port.protocol {
        Protocol::Tls | Protocol::Auto => true,
        Protocol::Tcp => port.tls.is_some(),
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => false,
    }
}

fn server_names(rule: &Rule, service: Option<&Service>, item: &FieldPath, out: &mut Findings) {
    let matches = item.key("match");
    for (k, condition) in rule.matches.iter().enumerate() {
        let path = matches.at(k).key("sni");
        for (n, name) in condition.sni.iter().enumerate() {
            if let Err(fault) = Text::ServerName.check(name) {
                let expected = Text::ServerName.describe();
                out.error(fault.code, path.at(n), fault.message, &expected);
            }
        }
        if !condition.sni.is_empty() && condition.needs_http() {
            let message = "`sni` stands beside a condition on HTTP: TLS that is passed on has no \
                           request, and of a request no server name is kept"
                .to_owned();
            out.error(Code::TlsConflict, path, message, "`sni` or `authority`");
        }
    }
    let mut about = service.into_iter().flat_map(|service| &service.ports);
    let about: Vec<&Port> = about
        .by_ref()
        .filter(|port| rule.covers(&port.name))
        .collect();
    let all = rule.matches.iter().all(|m| !m.sni.is_empty());
    if all && !about.is_empty() && !about.iter().any(|port| sees_names(port)) {
        let message = format!(
            "`{}` never matches: no connection of its port has a server name",
            rule.name
        );
        let expected = "`protocol: tls`, or `authority` for requests";
        out.warning(Code::UnreachableRule, matches, message, expected);
    }
}

fn absolute(file: &Path, path: FieldPath, out: &mut Findings) {
    if !file.is_absolute() {
        let message = format!("`{}` is not an absolute path", file.display());
        out.error(Code::BadValue, path, message, "an absolute path");
    }
}

fn pair(files: &CertificateFiles, path: &FieldPath, out: &mut Findings) {
    absolute(&files.cert, path.key("cert"), out);
    absolute(&files.key, path.key("key"), out);
}

fn terminate(port: &Port, tls: &Terminate, path: &FieldPath, out: &mut Findings) {
    if port.protocol == Protocol::Tls {
        let message = format!("`{}` is of protocol tls, which passes TLS on", port.name);
        let expected = "`protocol: http`, `http2`, `grpc`, `tcp` or `auto`";
        out.error(Code::TlsConflict, path.clone(), message, expected);
    }
    let path = path.key("terminate");
    let certificates = path.key("certificates");
    if tls.certificates.is_empty() {
        let message = "there are 0 items".to_owned();
        out.error(Code::BadCount, certificates.clone(), message, "at least 1");
    }
    for (k, files) in tls.certificates.iter().enumerate() {
        pair(files, &certificates.at(k), out);
    }
    if let Some(file) = &tls.client_ca {
        absolute(file, path.key("client-ca"), out);
    }
    for (k, alpn) in tls.alpn.iter().enumerate() {
        let at = path.key("alpn").at(k);
        let word = String::from_utf8_lossy(alpn.id()).into_owned();
        if tls.alpn[..k].contains(alpn) {
            let message = format!("`{word}` stands here twice");
            out.error(Code::Duplicate, at, message, "each protocol once");
            continue;
        }
        let fits = match port.protocol {
            Protocol::Http | Protocol::Auto => true,
            Protocol::Http2 | Protocol::Grpc => *alpn == Alpn::Http2,
            Protocol::Tcp | Protocol::Tls => false,
        };
        if !fits {
            let message = format!("`{word}` is not what port `{}` speaks", port.name);
            let expected = "what the port's `protocol` says";
            out.error(Code::TlsConflict, at, message, expected);
        }
    }
}

fn originate(
    policy: &Policy,
    tls: &Originate,
    service: Option<&Service>,
    path: &FieldPath,
    out: &mut Findings,
) {
    if let Some(files) = &tls.certificate {
        let empty = |file: &Path| file.as_os_str().is_empty();
        if empty(&files.cert) || empty(&files.key) {
            let message = "`cert` and `key` belong together".to_owned();
            out.error(Code::TlsConflict, path.clone(), message, "both, or none");
        } else {
            pair(files, path, out);
        }
    }
    if let Some(file) = &tls.ca {
        absolute(file, path.key("ca"), out);
    }
    if tls.insecure_skip_verify && (tls.ca.is_some() || !tls.subject_alt_names.is_empty()) {
        let message =
            "nothing is verified, so `ca` and `subject-alt-names` mean nothing".to_owned();
        let at = path.key("insecure-skip-verify");
        out.error(Code::TlsConflict, at, message, "one of them");
    }
    for (k, id) in tls.alpn.iter().enumerate() {
        if id.is_empty() || id.len() > PROTOCOL_ID_BYTES_MAX {
            let message = format!("has {} bytes", id.len());
            out.error(Code::BadValue, path.key("alpn").at(k), message, "1 to 255");
        }
    }
    let ports = service.into_iter().flat_map(|service| &service.ports);
    for port in ports.filter(|port| policy.port.as_ref().is_none_or(|name| *name == port.name)) {
        let opaque = port.protocol == Protocol::Tcp;
        if !tls.alpn.is_empty() && !opaque {
            let message = format!(
                "port `{}` is not of protocol tcp: of HTTP the protocol is offered that is spoken",
                port.name
            );
            let expected = "no `alpn`, or a policy for the port alone";
            out.error(Code::TlsConflict, path.key("alpn"), message, expected);
        }
        if port.protocol == Protocol::Tls {
            let message = format!(
                "port `{}` passes TLS on: this would be TLS in TLS",
                port.name
            );
            let expected = "`protocol: tcp` if that is meant, or a policy for other ports alone";
            out.error(Code::TlsConflict, path.clone(), message, expected);
        }
    }
}
