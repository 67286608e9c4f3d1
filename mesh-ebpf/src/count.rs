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

/// Adds to a counter in map memory, atomically; what it was before.
///
/// Fetching atomics came with Linux 5.12, and older kernels refuse a program that merely contains
/// one. The three instructions are written so that the loader can do without: it clears the fetch
/// bit of the second and makes the third a move of its target onto itself (`kernel::atomics`).
/// What is returned then is the first read, which another CPU may have read as well.
#[inline(always)]
pub(crate) fn fetch_add(slot: *mut u64, by: u64) -> u64 {
    let before: u64;
    #[expect(unsafe_code, reason = "one instruction that the language lacks")]
    // SAFETY: as in `add`.
    unsafe {
        asm!(
            "{before} = *(u64 *)({slot} + 0)",
            "{by} = atomic_fetch_add((u64 *)({slot} + 0), {by})",
            "{before} = {by}",
            slot = in(reg) slot,
            by = inout(reg) by => _,
            before = out(reg) before,
        );
    }
    before
}

/// Tells user space what an operator may have to act on.
#[inline(always)]
pub(crate) fn event(event: &Event) {
    if !maps::send(event) {
        count(Reason::EventLost);
    }
}
