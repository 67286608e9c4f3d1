//! TLS.

use std::{path::PathBuf, sync::Arc};

use super::{Reader, reader};
use crate::model::{
    Protocol, Service,
    tls::{Alpn, CertificateFiles, Originate, Terminate, TlsVersion, UpstreamTls},
};

/// Names: equal without case (RFC 6066 §3).
pub(super) fn names(from: Reader<'_>, field: &str) -> Vec<String> {
    from.nodes(field)
        .iter()
        .filter_map(reader::text)
        .map(str::to_ascii_lowercase)
        .collect()
}

fn version(from: Reader<'_>) -> TlsVersion {
    match from.text("min-version") {
        Some("TLSv1.3") => TlsVersion::V13,
        _ => TlsVersion::V12,
    }
}

fn file(from: Reader<'_>, field: &str) -> Option<PathBuf> {
    from.text(field).map(PathBuf::from)
}

/// `tls` of a port.
pub(super) fn terminate(from: Reader<'_>, protocol: Protocol) -> Option<Arc<Terminate>> {
    if !from.has("terminate") {
        return None;
    }
    let from = from.object("terminate");
    let alpn = |word: &str| match word {
        "h2" => Some(Alpn::Http2),
        "http/1.1" => Some(Alpn::Http1),
        _ => None,
    };
    Some(Arc::new(Terminate {
        certificates: from
            .items("certificates")
            .map(|from| CertificateFiles {
                cert: file(from, "cert").unwrap_or_default(),
                key: file(from, "key").unwrap_or_default(),
            })
            .collect(),
        alpn: if from.has("alpn") {
            from.nodes("alpn")
                .iter()
                .filter_map(reader::text)
                .filter_map(alpn)
                .collect()
        } else {
            match protocol {
                Protocol::Http | Protocol::Auto => vec![Alpn::Http2, Alpn::Http1],
                Protocol::Http2 | Protocol::Grpc => vec![Alpn::Http2],
                Protocol::Tcp | Protocol::Tls => Vec::new(),
            }
        },
        min_version: version(from),
        client_ca: file(from, "client-ca"),
    }))
}

/// `tls` of a policy.
pub(super) fn upstream(from: Reader<'_>, service: Option<&Service>) -> Option<UpstreamTls> {
    if !from.has("tls") {
        return None;
    }
    let from = from.object("tls");
    if from.text("mode") == Some("off") {
        return Some(UpstreamTls::Off);
    }
    let first = || service?.hostnames.first().cloned();
    let certificate = (from.has("cert") || from.has("key")).then(|| CertificateFiles {
        cert: file(from, "cert").unwrap_or_default(),
        key: file(from, "key").unwrap_or_default(),
    });
    Some(UpstreamTls::Simple(Arc::new(Originate {
        sni: from.text("sni").map(str::to_ascii_lowercase).or_else(first),
        ca: file(from, "ca"),
        certificate,
        alpn: from
            .nodes("alpn")
            .iter()
            .filter_map(reader::text)
            .map(str::to_owned)
            .collect(),
        subject_alt_names: names(from, "subject-alt-names"),
        min_version: version(from),
        insecure_skip_verify: from.bool("insecure-skip-verify").unwrap_or(false),
    })))
}
