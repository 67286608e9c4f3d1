//! What endpoints are asked for, and what is made of what they show.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::{
    files::{self, Contents, Fault},
    server::versions,
};
use crate::model::tls::{Alpn, Originate};

/// What is spoken inside, and so offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) enum Inside {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// Whatever the settings say.
    Opaque,
}

/// Settings with the content of their files: what a handshake needs.
#[derive(Debug)]
pub(in crate::proxy) struct Client {
    /// Differs from that of every other content: connections are never shared between two.
    pub(in crate::proxy) id: u64,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    opaque: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

impl Client {
    pub(super) fn config(&self, inside: Inside) -> &Arc<ClientConfig> {
        match inside {
            Inside::Http1 => &self.http1,
            Inside::Http2 => &self.http2,
            Inside::Opaque => &self.opaque,
        }
    }

    /// The name that is asked for; the address where there is none.
    pub(super) fn name(&self, endpoint: SocketAddr) -> ServerName<'static> {
        self.name
            .clone()
            .unwrap_or_else(|| ServerName::from(endpoint.ip()))
    }
}

/// Every file that the settings name.
pub(super) fn paths(tls: &Originate) -> Vec<PathBuf> {
    let pair = tls.certificate.iter();
    let files = pair.flat_map(|files| [files.cert.clone(), files.key.clone()]);
    files.chain(tls.ca.clone()).collect()
}

fn name(text: &str) -> Result<ServerName<'static>, Fault> {
    ServerName::try_from(text.to_owned()).map_err(|_| Fault::BadName(text.to_owned()))
}

/// What rustls needs for a handshake.
pub(super) fn build(tls: &Originate, contents: &Contents) -> Result<Client, Fault> {
    static NEXT: AtomicU64 = AtomicU64::new(1);

    let provider = Arc::new(aws_lc_rs::default_provider());
    let bad = |error: Error| Fault::BadSettings(error.to_string());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions(tls.min_version))
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(verifier(tls, contents, &provider)?);
    let mut base = match &tls.certificate {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let own = Arc::new(files::certified(files, contents, &provider)?);
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)))
        }
    };
    base.alpn_protocols = tls.alpn.iter().map(|id| id.as_bytes().to_vec()).collect();
    let with = |alpn: Alpn| {
        let mut config = base.clone();
        config.alpn_protocols = vec![alpn.id().to_vec()];
        // What was agreed on belongs to a session: each kind keeps its own.
        config.resumption = rustls::client::Resumption::default();
        Arc::new(config)
    };
    Ok(Client {
        id: NEXT.fetch_add(1, Ordering::Relaxed),
        http1: with(Alpn::Http1),
        http2: with(Alpn::Http2),
        name: tls.sni.as_deref().map(name).transpose()?,
        opaque: Arc::new(base),
    })
}

fn verifier(
    tls: &Originate,
    contents: &Contents,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Fault> {
    if tls.insecure_skip_verify {
        let algorithms = provider.signature_verification_algorithms;
        return Ok(Arc::new(Anybody(algorithms)));
    }
    let roots = match &tls.ca {
        Some(path) => Arc::new(files::roots(path, contents)?),
        None => files::system_roots()?,
    };
    let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
        .build()
        .map_err(|error| Fault::BadSettings(error.to_string()))?;
    if tls.subject_alt_names.is_empty() {
        return Ok(inner);
    }
    let names = tls.subject_alt_names.iter().map(|text| name(text));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(OneOf { inner, names }))
}

/// Takes certificates that carry one of these names, whatever was asked for.
#[derive(Debug)]
struct OneOf {
    inner: Arc<WebPkiServerVerifier>,
    names: Vec<ServerName<'static>>,
}

impl ServerCertVerifier for OneOf {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _asked: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut last = Error::General("no name is accepted".to_owned());
        for name in &self.names {
            match self
                .inner
                .verify_server_cert(end_entity, intermediates, name, ocsp, now)
            {
                Ok(verified) => return Ok(verified),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `insecure-skip-verify`: takes whatever is shown, if only its owner has the key.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
