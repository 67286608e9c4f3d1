//! HTTP/2 over TLS or in the clear, on both sides.

use std::{net::SocketAddr, sync::Arc, thread};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn run<R>(work: impl Future<Output = R>) -> R {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// An answer with its body as text.
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

async fn ask(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &str,
    n: usize,
) -> Vec<Got> {
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut all = Vec::new();
    for _ in 0..n {
        sender = sender.ready().await.unwrap();
        let request = Request::get(uri)
            .header("x-forwarded-proto", "gopher")
            .body(())
            .unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let (parts, mut body) = response.await.unwrap().into_parts();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            text.extend(data);
        }
        all.push(Got {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(text).unwrap(),
        });
    }
    all
}

/// `n` requests over one TLS connection.
pub(crate) fn get_tls(
    address: SocketAddr,
    name: &str,
    config: &Arc<ClientConfig>,
    n: usize,
) -> Vec<Got> {
    run(async {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let name_ = ServerName::try_from(name.to_owned()).unwrap();
        let tls = TlsConnector::from(Arc::clone(config))
            .connect(name_, tcp)
            .await
            .unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        ask(tls, &format!("https://{name}/"), n).await
    })
}

/// `n` requests over one connection in the clear.
pub(crate) fn get_clear(address: SocketAddr, n: usize) -> Vec<Got> {
    run(async {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        ask(tcp, "http://web/", n).await
    })
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin) {
    let Ok(mut connection) = h2::server::handshake(io).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let proto = request.headers().get("x-forwarded-proto");
        let text = format!(
            "{} {}",
            request.uri().scheme_str().unwrap_or("-"),
            proto.map_or("-", |value| value.to_str().unwrap())
        );
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from(text), true).unwrap();
    }
}

/// An endpoint that answers with the scheme and the `x-forwarded-proto` that it got.
pub(crate) fn endpoint(tls: Option<Arc<ServerConfig>>) -> SocketAddr {
    let (listener, address) = crate::proxy_support::bind();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        run(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((tcp, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(tcp).await,
                        Some(config) => {
                            if let Ok(tls) = TlsAcceptor::from(config).accept(tcp).await {
                                serve(tls).await;
                            }
                        }
                    }
                });
            }
        });
    });
    address
}
