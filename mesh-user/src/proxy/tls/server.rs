//! What a port shows to its clients.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs::{self, Ticketer},
    pki_types::ServerName,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use super::files::{self, Contents, Fault};
use crate::model::tls::{Terminate, TlsVersion};

/// Versions of TLS from this one on.
pub(super) fn versions(oldest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    match oldest {
        TlsVersion::V12 => BOTH,
        TlsVersion::V13 => &BOTH[..1],
    }
}

/// Every file that the settings name.
pub(super) fn paths(tls: &Terminate) -> Vec<PathBuf> {
    let pairs = tls.certificates.iter();
    let files = pairs.flat_map(|files| [files.cert.clone(), files.key.clone()]);
    files.chain(tls.client_ca.clone()).collect()
}

/// What rustls needs for a handshake. One certificate that can't be used spoils all: a port that
/// silently lost one would answer its clients with another's.
pub(super) fn build(tls: &Terminate, contents: &Contents) -> Result<ServerConfig, Fault> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let bad = |error: rustls::Error| Fault::BadSettings(error.to_string());
    let certificates = tls
        .certificates
        .iter()
        .map(|files| files::certified(files, contents, &provider).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(tls.min_version))
        .map_err(bad)?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(files::roots(path, contents)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| Fault::BadCa {
                    path: path.clone(),
                    error: error.to_string(),
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(certificates)));
    config.alpn_protocols = tls.alpn.iter().map(|alpn| alpn.id().to_vec()).collect();
    // Sessions are resumed by any worker, and nobody keeps them but the client.
    config.ticketer = Ticketer::new().map_err(bad)?;
    Ok(config)
}

/// The first certificate that covers the client's name, else the first of all.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let [_, _, ..] = self.0.as_slice()
            && let Some(name) = hello.server_name()
            && let Ok(name) = ServerName::try_from(name)
            && let Some(found) = self.0.iter().find(|own| covers(own, &name))
        {
            return Some(Arc::clone(found));
        }
        self.0.first().cloned()
    }
}

fn covers(own: &CertifiedKey, name: &ServerName<'_>) -> bool {
    own.cert
        .first()
        .and_then(|certificate| ParsedCertificate::try_from(certificate).ok())
        .is_some_and(|parsed| rustls::client::verify_server_name(&parsed, name).is_ok())
}
