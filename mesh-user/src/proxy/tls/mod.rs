//! TLS on the data path: the stream that engines use like a socket, and what comes before it.

mod copy;
mod hello;
mod passthrough;
mod wire;

pub(super) use self::{
    copy::copy,
    passthrough::{Seen, may_be_hello, read_hello},
    wire::TlsWire,
};
