//! Handshakes, with clients and with endpoints.

use std::{io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    client::{Client, Inside},
    wire::TlsWire,
};
use crate::{
    model::tls::Alpn,
    policy::Reject,
    proxy::{socket::Socket, upstream::NoConnection},
    telemetry::{Handshake, Telemetry, TlsSide},
};

/// A client's connection behind its handshake.
#[derive(Debug)]
pub(in crate::proxy) struct Accepted {
    pub(in crate::proxy) socket: Socket,
    /// The host name that the client meant.
    pub(in crate::proxy) server_name: Option<Box<str>>,
    /// What was agreed on to be spoken inside.
    pub(in crate::proxy) alpn: Option<Alpn>,
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Shakes hands with a client, for `limit` at most.
///
/// # Errors
/// [`Reject::TlsTimeout`], [`Reject::TlsHandshake`], [`Reject::DownstreamClosed`]. The alert that
/// says so has gone out; the connection is closed.
pub(in crate::proxy) async fn accept(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    limit: Duration,
    telemetry: &Telemetry,
) -> Result<Accepted, Reject> {
    let accepting = TlsAcceptor::from(config).accept(tcp);
    let limit = if limit.is_zero() {
        Duration::MAX
    } else {
        limit
    };
    let (reject, said) = match tokio::time::timeout(limit, accepting).await {
        Ok(Ok(stream)) => {
            telemetry.tls_handshake(TlsSide::Client, Handshake::Done);
            let session = stream.get_ref().1;
            let name = session.server_name().map(str::to_ascii_lowercase);
            let alpn = match session.alpn_protocol() {
                Some(b"h2") => Some(Alpn::Http2),
                Some(b"http/1.1") => Some(Alpn::Http1),
                _ => None,
            };
            return Ok(Accepted {
                socket: Socket::Tls(Box::new(TlsWire::new(stream.into()))),
                server_name: name.map(Into::into),
                alpn,
            });
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake with a client failed");
            match rustls_error(&error) {
                Some(
                    rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented,
                ) => (Reject::TlsHandshake, Handshake::Untrusted),
                Some(_) => (Reject::TlsHandshake, Handshake::Failed),
                None => (Reject::DownstreamClosed, Handshake::Closed),
            }
        }
        Err(_elapsed) => (Reject::TlsTimeout, Handshake::TimedOut),
    };
    telemetry.tls_handshake(TlsSide::Client, said);
    Err(reject)
}

/// Shakes hands with an endpoint. The caller bounds the time.
///
/// # Errors
/// [`NoConnection::Tls`].
pub(in crate::proxy) async fn connect(
    tcp: TcpStream,
    client: &Client,
    inside: Inside,
    telemetry: &Telemetry,
) -> Result<Socket, NoConnection> {
    let failed = |reject, said| {
        telemetry.tls_handshake(TlsSide::Endpoint, said);
        Err(NoConnection::Tls(reject))
    };
    let Ok(endpoint) = tcp.peer_addr() else {
        return failed(Reject::UpstreamTls, Handshake::Closed);
    };
    let connector = TlsConnector::from(Arc::clone(client.config(inside)));
    let stream = match connector.connect(client.name(endpoint), tcp).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, %endpoint, "TLS handshake with an endpoint failed");
            return match rustls_error(&error) {
                Some(rustls::Error::InvalidCertificate(_)) => {
                    failed(Reject::UpstreamUntrusted, Handshake::Untrusted)
                }
                Some(_) => failed(Reject::UpstreamTls, Handshake::Failed),
                None => failed(Reject::UpstreamTls, Handshake::Closed),
            };
        }
    };
    // RFC 9113, section 3.2: HTTP/2 over TLS is what both have agreed on.
    if inside == Inside::Http2 && stream.get_ref().1.alpn_protocol() != Some(Alpn::Http2.id()) {
        tracing::debug!(%endpoint, "the endpoint does not speak HTTP/2");
        return failed(Reject::UpstreamTls, Handshake::Failed);
    }
    telemetry.tls_handshake(TlsSide::Endpoint, Handshake::Done);
    Ok(Socket::Tls(Box::new(TlsWire::new(stream.into()))))
}
