//! The data path in user space: sockets in, decisions from `policy`, sockets out.
//!
//! Thread per core: each worker is one thread with a current-thread runtime, its own listeners (one
//! shard per workload), its own upstream pools, its own view of the snapshot. Workers share only
//! what must be exact over the node: breakers, limiters, endpoint state.
//!
//! Knows nothing of eBPF: `app` introduces it to the kernel through [`wire`].

mod accept;
mod attempt;
mod buffer;
mod connection;
mod core;
mod detect;
mod health;
mod http1;
mod http2;
mod id;
mod inbound;
mod inq;
mod io;
mod pool;
mod record;
mod retry;
mod splice;
mod tcp;
mod timer;
mod upstream;
pub mod wire;
pub mod worker;

pub use health::HealthChecks;
pub use worker::{Command, Workers, WorkersOptions};
