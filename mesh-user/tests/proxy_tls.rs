//! TLS through the proxy: passed on by server name, ended here, begun here.

mod proxy_support;
#[path = "tls/pki.rs"]
mod pki;
#[path = "tls/passthrough.rs"]
mod passthrough;
