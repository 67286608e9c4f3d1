//! HTTP/2 with prior knowledge, and gRPC.

pub(super) mod client;
mod serve;

pub(super) use serve::serve;
