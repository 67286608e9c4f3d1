//! The data path in user space: sockets in, decisions from `policy`, sockets out.
//!
//! Thread per core: each worker is one thread with a current-thread runtime, its own listeners (one
//! shard per workload), its own upstream pools, its own view of the snapshot. Workers share only
//! what must be exact over the node: breakers, limiters, endpoint state.
//!
//! Knows nothing of eBPF: `app` introduces it to the kernel through [`wire`].

mod accept;
mod age;
mod attempt;
mod buffer;
mod connection;
mod core;
mod detect;
mod flows;
mod health;
mod hedge;
mod http1;
mod http2;
mod id;
mod inbound;
mod inq;
mod io;
mod live;
mod mirror;
mod pool;
mod record;
mod retry;
mod socket;
mod splice;
mod stores;
mod tcp;
mod timer;
mod tls;
mod upstream;
mod websocket;
pub mod wire;
pub mod worker;

pub use health::HealthChecks;
pub use worker::{Command, Workers, WorkersOptions};
