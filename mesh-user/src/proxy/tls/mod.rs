//! TLS on the data path: the stream that engines use like a socket, and what comes before it.

mod client;
mod copy;
mod files;
mod handshake;
mod hello;
mod passthrough;
mod server;
mod store;
mod wire;

pub(super) use self::{
    client::Inside,
    copy::copy,
    handshake::{Accepted, accept, connect},
    passthrough::{Seen, may_be_hello, read_hello},
    store::Store,
    wire::TlsWire,
};
