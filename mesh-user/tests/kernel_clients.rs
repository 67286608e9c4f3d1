//! Every kind of client, in both modes: what reaches the agent, and what the application sees.
//!
//! Needs root and BPF; fails, never skips, without. The clients are Rust, in processes of their
//! own: this binary starts itself again inside a pod (`clients/process.rs`).

#[path = "clients/addresses.rs"]
mod addresses;
#[path = "clients/bind.rs"]
mod bind;
#[path = "clients/datagrams.rs"]
mod datagrams;
#[path = "clients/loopback.rs"]
mod loopback;
#[path = "clients/matrix.rs"]
mod matrix;
#[path = "clients/ports.rs"]
mod ports;
#[path = "clients/process.rs"]
mod process;
#[path = "clients/startup.rs"]
mod startup;
#[path = "clients/styles.rs"]
mod styles;
mod support;
