//! The programs: context in, decision, verdict carried out. No rules of their own.

mod bind;
mod connect;
mod datagram;
mod egress_guard;
mod flow_ops;
mod loopback;
mod mark_guard;
mod peername;
mod probe_ops;
mod release;
mod steer;
