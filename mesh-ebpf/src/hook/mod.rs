//! The programs: context in, decision, verdict carried out. No rules of their own.

mod connect;
mod flow_ops;
mod peername;
mod probe_ops;
mod steer;
