//! Counters and events.

use core::arch::asm;

use mesh_common::reason::{Event, Reason};

use crate::maps;

/// Counts a reason on this CPU.
///
/// Atomic although the slot is per CPU: on a preemptible kernel another task of the same CPU may
/// run in between, and counters are compared with accepts exactly.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    count_code(reason as u32);
}

/// Counts a reason by its code. One that is no index counts nothing.
#[inline(always)]
pub(crate) fn count_code(code: u32) {
    if let Some(slot) = maps::COUNTERS.lookup(&code) {
        add(slot, 1);
    }
}

/// Adds to a counter in map memory, atomically.
///
/// In assembly: `core` has no `fetch_add` for this target (it has no compare-and-swap), and the
/// compiler intrinsic's signature changes between nightlies. Not fetching, so every kernel has it.
#[inline(always)]
pub(crate) fn add(slot: *mut u64, by: u64) {
    #[expect(unsafe_code, reason = "one instruction that the language lacks")]
    // SAFETY: the pointer comes from a map look-up that did not return null; map values are 8-byte
    // aligned and live for the whole program run. The instruction touches those 8 bytes only.
    unsafe {
        asm!("lock *(u64 *)({slot} + 0) += {by}", slot = in(reg) slot, by = in(reg) by);
    }
}

/// Tells user space what an operator may have to act on.
#[inline(always)]
pub(crate) fn event(event: &Event) {
    if !maps::send(event) {
        count(Reason::EventLost);
    }
}
