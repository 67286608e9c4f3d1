//! The node agent of mesh: control of the eBPF programs, the proxy, the command line.
//!
//! Imports form a DAG, checked by `cargo xtask lint`: `cli -> app -> {kernel, proxy, platform,
//! admin, config, telemetry, policy}`. `proxy` and `kernel` never import each other: `app` wires
//! them through the traits in `proxy::wire`. `model`, `policy` and `clock` import no I/O at all.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod kernel;
pub mod model;
pub mod platform;
pub mod policy;
pub mod proxy;
pub mod telemetry;
pub mod testbed;
