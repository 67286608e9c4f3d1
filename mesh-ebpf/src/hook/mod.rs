//! The programs: context in, decision, verdict carried out. No rules of their own.

mod connect;
mod egress_guard;
mod flow_ops;
mod mark_guard;
mod peername;
mod steer;
