//! What this kernel lacks, found by trying, and the variant of the programs that does without.
//!
//! A variant is a constant of the object that the loader sets before the verifier sees it: code
//! behind a constant «no» is never walked, so a helper or a context field that the kernel doesn't
//! know is no obstacle there (docs/decisions/0055). Never by version: distributions carry features
//! back.

use aya::EbpfLoader;

use super::sys::{self, AttachType};

/// `r0 = VALUE`.
pub(super) const fn mov_r0(value: i32) -> u64 {
    0xb7 | (value as u32 as u64) << 32
}
/// `r1 = VALUE`.
pub(super) const fn mov_r1(value: i32) -> u64 {
    0xb7 | 1 << 8 | (value as u32 as u64) << 32
}
/// `r0 = *(u32 *)(r1 + OFFSET)`.
pub(super) const fn load_r0(offset: u16) -> u64 {
    0x61 | 1 << 12 | (offset as u64) << 16
}
/// Calls a helper.
pub(super) const fn call(helper: u32) -> u64 {
    0x85 | (helper as u64) << 32
}
pub(super) const EXIT: u64 = 0x95;

pub(super) const SOCK_ADDR: u32 = 18;
pub(super) const SK_LOOKUP: u32 = 30;

/// A connect hook that refuses with an errno of its own.
pub(super) const SET_RETVAL: [u64; 4] = [mov_r1(-libc::ECONNREFUSED), call(187), mov_r0(0), EXIT];
/// An `sk_lookup` program that reads the interface.
pub(super) const INTERFACE: [u64; 3] = [load_r0(64), mov_r0(1), EXIT];

/// What the programs do without where the kernel lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// `bpf_set_retval` (Linux 5.18): a refused connect fails with ECONNREFUSED, else with EPERM.
    pub(super) set_retval: bool,
    /// `ingress_ifindex` in `sk_lookup` (Linux 5.17): else `steer` goes by addresses alone.
    pub(super) interface: bool,
}

impl Features {
    /// Tries each one with the smallest program that needs it.
    pub(super) fn probe() -> Self {
        Self {
            set_retval: has(SOCK_ADDR, AttachType::Connect4, &SET_RETVAL),
            interface: has(SK_LOOKUP, AttachType::SkLookup, &INTERFACE),
        }
    }

    /// Sets the object's constants.
    pub(super) fn choose(self, loader: &mut EbpfLoader<'_>) {
        // A static: the loader keeps references.
        static ZERO_ONE: [u32; 2] = [0, 1];
        let number = |yes: bool| &ZERO_ONE[usize::from(yes)];
        loader.override_global("HAS_SET_RETVAL", number(self.set_retval), true);
        loader.override_global("HAS_INTERFACE", number(self.interface), true);
    }
}

fn has(kind: u32, attach: AttachType, program: &[u64]) -> bool {
    sys::prog_load(kind, attach as u32, program).is_ok()
}
