//! What the kernel side and the user side agree on, byte for byte.
//!
//! Everything here lives in eBPF maps: integers and byte arrays only, no implicit padding, every
//! layout asserted at compile time. A change of any layout bumps [`abi::ABI_VERSION`], which is a
//! part of the pin path, so that two builds never read each other's maps by accident.
//!
//! Deliberately absent: decisions. What the programs decide is in `mesh-ebpf`, what the proxy
//! decides is in `mesh-user::policy`.
#![no_std]

pub mod abi;
pub mod addr;
pub mod flow;
pub mod listener;
pub mod maps;
pub mod plain;
pub mod pod;
pub mod reason;
pub mod service;
pub mod shield;
