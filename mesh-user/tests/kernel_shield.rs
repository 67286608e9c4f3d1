//! The shield on this machine's kernel: its programs over single frames, and on interfaces.
//!
//! Everything it makes is named `mb-shield-...`; nothing of the machine's own namespace is touched.

#[path = "shield/bed.rs"]
mod bed;
#[path = "shield/foreign.rs"]
mod foreign;
#[path = "shield/frames.rs"]
mod frames;
#[path = "shield/interfaces.rs"]
mod interfaces;
#[path = "shield/runs.rs"]
mod runs;
