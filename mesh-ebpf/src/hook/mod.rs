//! The programs: context in, decision, verdict carried out. No rules of their own.

mod bind;
mod connect;
mod datagram;
mod flow_ops;
mod loopback;
mod peername;
mod steer;
