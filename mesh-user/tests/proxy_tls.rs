//! TLS through the proxy: passed on by server name, ended here, begun here.

#[path = "tls/h2.rs"]
mod h2;
#[path = "tls/originate.rs"]
mod originate;
#[path = "tls/passthrough.rs"]
mod passthrough;
#[path = "tls/pki.rs"]
mod pki;
mod proxy_support;
#[path = "tls/terminate.rs"]
mod terminate;
