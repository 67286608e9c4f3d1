//! The agent's sign of life: one word in memory that the kernel shares with the programs.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::clock::MonoNanos;

/// A page: the smallest mapping; the map's one word is at its start.
const LENGTH: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// Writes the heartbeat: a plain store into mapped memory, from any thread.
#[derive(Debug)]
pub struct Heartbeat {
    word: NonNull<AtomicU64>,
}

#[expect(unsafe_code, reason = "holds a pointer into a mapping")]
// SAFETY: the mapping belongs to this value alone and is not bound to a thread.
unsafe impl Send for Heartbeat {}
#[expect(unsafe_code, reason = "holds a pointer into a mapping")]
// SAFETY: the only accesses are atomic stores.
unsafe impl Sync for Heartbeat {}

impl Heartbeat {
    /// Maps the map.
    pub(super) fn map(fd: impl AsFd) -> io::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        #[expect(unsafe_code, reason = "maps memory")]
        // SAFETY: no address is asked for, so no memory of ours is replaced; the file is a map
        // that keeps its size.
        let base = unsafe { mmap(None, LENGTH, protection, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { word: base.cast() })
    }

    /// Writes the tick of the oldest worker, unless a later one stands there: during a takeover two
    /// agents beat, and the one that turns is the one that counts.
    pub fn beat(&self, tick: MonoNanos) {
        self.word().fetch_max(tick.0, Ordering::Relaxed);
    }

    /// Makes the heartbeat stale: from the next connect on the failure mode is in force.
    pub fn end(&self) {
        self.word().store(0, Ordering::Relaxed);
    }

    fn word(&self) -> &AtomicU64 {
        #[expect(unsafe_code, reason = "memory of the mapping")]
        // SAFETY: the mapping lives as long as `self`, starts on a page, and is written through
        // atomics only.
        let word = unsafe { self.word.as_ref() };
        word
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "unmaps memory")]
        // SAFETY: exactly the mapping made in `map`; no reference into it outlives `self`.
        let result = unsafe { munmap(self.word.cast(), LENGTH.get()) };
        debug_assert!(result.is_ok(), "our own mapping");
    }
}
