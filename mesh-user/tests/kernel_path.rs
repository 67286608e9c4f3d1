//! The real programs on the real kernel: namespaces as pods, child processes as applications, an
//! agent process that drives `Kernel` with a plain accept loop in the proxy's place.
//!
//! Needs root and BPF; fails, never skips, without.

#[path = "kernel/capture.rs"]
mod capture;
#[path = "kernel/cost.rs"]
mod cost;
#[path = "kernel/failure.rs"]
mod failure;
#[path = "kernel/lifecycle.rs"]
mod lifecycle;
#[path = "kernel/others.rs"]
mod others;
#[path = "kernel/refusals.rs"]
mod refusals;
mod support;
