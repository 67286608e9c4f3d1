//! TLS on the data path: the stream that engines use like a socket, and what comes before it.

mod copy;
mod wire;

pub(super) use self::{copy::copy, wire::TlsWire};
