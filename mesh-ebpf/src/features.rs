//! What the kernel has: constants that the loader sets before the verifier walks the programs, so
//! that code for a feature that is absent is dead code to it (docs/decisions/0055).
//!
//! Read in the branch that needs the feature and nowhere else: a branch that is never taken on any
//! kernel costs nothing where the feature is there.

use aya_ebpf::Global;

/// `bpf_set_retval` in connect hooks.
#[expect(unsafe_code, reason = "the loader finds it by its name")]
#[unsafe(no_mangle)]
pub(crate) static HAS_SET_RETVAL: Global<u32> = Global::new(1);

/// `ingress_ifindex` in `sk_lookup`.
#[expect(unsafe_code, reason = "the loader finds it by its name")]
#[unsafe(no_mangle)]
pub(crate) static HAS_INTERFACE: Global<u32> = Global::new(1);
