//! TLS that begins or ends at the proxy. Paths and names only: files are read by `proxy`.

use std::path::PathBuf;

use serde::Serialize;

/// TLS of a port's clients, which ends here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Terminate {
    /// At least one. The first that covers the client's server name is shown; the first of all
    /// when there is none.
    pub certificates: Vec<CertificateFiles>,
    /// What is offered, in this order; empty: nothing, and what is inside is told by its first bytes.
    pub alpn: Vec<Alpn>,
    /// Oldest version that is taken.
    pub min_version: TlsVersion,
    /// CAs of clients' certificates, which are demanded then.
    pub client_ca: Option<PathBuf>,
}

/// A certificate chain and its key, as PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct CertificateFiles {
    /// The chain, the own certificate first.
    pub cert: PathBuf,
    /// The key: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// What is spoken inside of TLS (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Alpn {
    /// `h2`.
    #[serde(rename = "h2")]
    Http2,
    /// `http/1.1`.
    #[serde(rename = "http/1.1")]
    Http1,
}

impl Alpn {
    /// As it stands in the handshake.
    pub const fn id(self) -> &'static [u8] {
        match self {
            Self::Http2 => b"h2",
            Self::Http1 => b"http/1.1",
        }
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    #[serde(rename = "TLSv1.2")]
    V12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "TLSv1.3")]
    V13,
}

impl TlsVersion {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V12 => "TLSv1.2",
            Self::V13 => "TLSv1.3",
        }
    }
}

/// TLS towards endpoints, which begins here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Originate {
    /// The server name that is asked for and, unless `subject_alt_names` says otherwise, verified.
    /// None: the endpoint's address is verified, and no name is sent.
    pub sni: Option<String>,
    /// CAs that are trusted, as a PEM file; none: the system's.
    pub ca: Option<PathBuf>,
    /// Shown when the endpoint asks for a certificate.
    pub certificate: Option<CertificateFiles>,
    /// What is offered on opaque connections. With HTTP that is what the request is spoken in.
    pub alpn: Vec<String>,
    /// Names or addresses, one of which the certificate must carry, in place of `sni`.
    pub subject_alt_names: Vec<String>,
    /// Oldest version that is taken.
    pub min_version: TlsVersion,
    /// Takes any certificate.
    pub insecure_skip_verify: bool,
}

/// What a policy says of TLS towards endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamTls {
    /// None, whatever a wider policy says.
    Off,
    /// TLS with these settings.
    Simple(std::sync::Arc<Originate>),
}
