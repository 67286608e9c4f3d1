//! Every map full, descriptors used up, namespaces and cgroups that vanish at the wrong moment: the
//! real programs on the real kernel, with maps made small where filling them would take minutes.
//!
//! Needs root and BPF; fails, never skips, without.

#[path = "limits/maps.rs"]
mod maps;
#[path = "limits/rows.rs"]
mod rows;
#[path = "limits/vanish.rs"]
mod vanish;

mod support;
