//! Protocols, end to end (ACCEPTANCE S8): curl, Python sockets and hyper's client as unmodified
//! programs in pods, the virtual address, the real kernel.

#[path = "protocols/http1.rs"]
mod http1;
#[path = "protocols/http2.rs"]
mod http2;
#[path = "protocols/raw.rs"]
mod raw;
mod scene;
#[path = "protocols/tcp.rs"]
mod tcp;

/// All requests to the servers of one version.
const V1: &str = "rules:\n  - {service: web, route: [{version: v1}]}\n";
