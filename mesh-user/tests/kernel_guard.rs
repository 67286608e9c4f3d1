//! `bypass-guard: on` on the real kernel: where the programs stand, what they let through, what the
//! audit puts back.
//!
//! Needs root and BPF; fails, never skips, without.

#[path = "guard/audit.rs"]
mod audit;
#[path = "guard/exits.rs"]
mod exits;
#[path = "guard/frames.rs"]
mod frames;
#[path = "guard/grants.rs"]
mod grants;
mod support;
