//! Connections that come to a workload: the whole agent, an application of our own in an enrolled
//! pod, clients in other pods of the node and outside of the mesh.
//!
//! Needs root and BPF; fails, never skips, without.

#[path = "inbound/address.rs"]
mod address;
#[path = "inbound/failure.rs"]
mod failure;
#[path = "inbound/http2.rs"]
mod http2;
#[path = "inbound/limits.rs"]
mod limits;
#[path = "inbound/passes.rs"]
mod passes;
#[path = "inbound/ports.rs"]
mod ports;
#[path = "inbound/rules.rs"]
mod rules;
#[path = "scene/mod.rs"]
mod scene;
#[path = "inbound/stage.rs"]
mod stage;
