//! What the kernel counted at endpoints, read without a system call for each.
//!
//! `flow_ops` counts in `EP_STATS`; the agent maps that map into its memory, read only, and looks
//! at the endpoints of the table that stands. The kernel counts, the agent ejects.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use mesh_common::{maps::get, plain::Plain as _, service::EndpointStats};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{
    apply::{Installed, News, Watched},
    error::KernelError,
    pins::Pins,
    sys,
};

/// Words of an entry.
const WORDS: usize = EndpointStats::SIZE / size_of::<u64>();
const _: () = assert!(WORDS * size_of::<u64>() == EndpointStats::SIZE);

/// What happened at one endpoint since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The table that it is in, of those that stand.
    pub table: u32,
    /// Its place in the table's `backends`.
    pub backend: u32,
    /// What was added to each number.
    pub delta: EndpointStats,
}

/// Places that are mapped at first. Not the whole map: the kernel enters every page of a mapping
/// into the page table at once, and each counts as memory of the agent.
const FIRST_PLACES: usize = 1_024;

/// `EP_STATS` as memory: as far as there are endpoints.
#[derive(Debug)]
pub(super) struct Counters {
    map: OwnedFd,
    words: NonNull<AtomicU64>,
    length: NonZeroUsize,
}

#[expect(unsafe_code, reason = "holds a pointer into a mapping")]
// SAFETY: the mapping belongs to this value alone and is not bound to a thread.
unsafe impl Send for Counters {}

impl Counters {
    /// Maps the map's first places.
    pub(super) fn map(pins: &Pins) -> Result<Self, KernelError> {
        let path = pins.map("EP_STATS");
        let failed = |source| KernelError::io(format!("{}", path.display()))(source);
        let map = sys::open_pin(&path).map_err(failed)?;
        let (words, length) = Self::places(&map, FIRST_PLACES).map_err(failed)?;
        Ok(Self { map, words, length })
    }

    /// Maps so many places, or all that there are.
    fn places(map: &OwnedFd, places: usize) -> io::Result<(NonNull<AtomicU64>, NonZeroUsize)> {
        let places = places.clamp(1, get("EP_STATS").capacity as usize);
        let length = NonZeroUsize::new(places * EndpointStats::SIZE).expect("at least one place");
        #[expect(unsafe_code, reason = "maps memory")]
        // SAFETY: no address is asked for, so no memory of ours is replaced; the file is a map that
        // keeps its size, compared with the shared table when it was opened, and no more than that
        // is mapped.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                map,
                0,
            )
        };
        Ok((base?.cast(), length))
    }

    /// Maps more, when there are endpoints beyond what is mapped.
    fn cover(&mut self, places: usize) {
        if places * EndpointStats::SIZE <= self.length.get() {
            return;
        }
        match Self::places(&self.map, places.next_power_of_two()) {
            Ok((words, length)) => {
                // The old mapping goes with its value.
                let (words, length) = (
                    std::mem::replace(&mut self.words, words),
                    std::mem::replace(&mut self.length, length),
                );
                unmap(words, length);
            }
            Err(error) => {
                tracing::warn!(%error, "counters of new endpoints can't be read: they are not ejected");
            }
        }
    }

    /// The numbers at a place; zeros beyond the map.
    fn get(&self, place: u32) -> EndpointStats {
        let first = place as usize * WORDS;
        if (first + WORDS) * size_of::<u64>() > self.length.get() {
            return EndpointStats::default();
        }
        let word = |index: usize| {
            #[expect(unsafe_code, reason = "memory of the mapping")]
            // SAFETY: inside the mapping by the check above, which lives as long as `self`.
            let word = unsafe { self.words.add(first + index) };
            #[expect(unsafe_code, reason = "memory of the mapping")]
            // SAFETY: aligned to 8 bytes, as the mapping starts on a page; the programs write it in
            // one instruction, and it is read through an atomic.
            let word = unsafe { word.as_ref() };
            word.load(Relaxed)
        };
        // `plain` asserts that the fields stand one behind the other.
        EndpointStats {
            opened: word(0),
            established: word(1),
            failed: word(2),
            closed: word(3),
            bytes_out: word(4),
            bytes_in: word(5),
            abandoned: word(6),
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        unmap(self.words, self.length);
    }
}

/// Gives a mapping of [`Counters::places`] back.
fn unmap(words: NonNull<AtomicU64>, length: NonZeroUsize) {
    #[expect(unsafe_code, reason = "unmaps memory")]
    // SAFETY: exactly a mapping made in `places`, which its owner has just let go of; references
    // into it live no longer than a call of `get`.
    let result = unsafe { munmap(words.cast(), length.get()) };
    debug_assert!(result.is_ok(), "our own mapping");
}

/// The numbers of the last look.
#[derive(Debug)]
pub(super) struct Feedback {
    counters: Counters,
    /// By place.
    watched: Vec<Option<Watched>>,
    /// By place.
    last: Vec<EndpointStats>,
}

impl Feedback {
    pub(super) fn new(counters: Counters) -> Self {
        Self {
            counters,
            watched: Vec::new(),
            last: Vec::new(),
        }
    }

    /// Watches the endpoints of tables that were just written. Of one that was there before, what
    /// is counted goes on; of one that the agent has not watched yet (it has just started) what was
    /// counted so far is no news.
    pub(super) fn follow(&mut self, installed: &Installed, news: &News) {
        let now = installed.watched();
        self.counters.cover(now.len());
        for place in self.last.len() as u32..now.len() as u32 {
            self.last.push(self.counters.get(place));
        }
        for place in &news.fresh {
            if let Some(last) = self.last.get_mut(*place as usize) {
                *last = EndpointStats::default();
            }
        }
        self.watched.resize(now.len(), None);
        for place in &news.moved {
            let place = *place as usize;
            if let (Some(to), Some(from)) = (self.watched.get_mut(place), now.get(place)) {
                *to = *from;
            }
        }
    }

    /// What was added since the last call.
    pub(super) fn read(&mut self) -> Vec<Counted> {
        let mut news = Vec::new();
        let watched = (0_u32..).zip(&self.watched);
        for (place, watched) in watched.filter_map(|(place, one)| Some((place, (*one)?))) {
            let now = self.counters.get(place);
            let Some(last) = self.last.get_mut(place as usize) else {
                continue;
            };
            if now == *last {
                continue;
            }
            news.push(Counted {
                table: watched.table,
                backend: watched.backend,
                delta: difference(&now, last),
            });
            *last = now;
        }
        news
    }
}

/// Counters only grow; one that an operator has set back by hand counts from there.
fn difference(now: &EndpointStats, last: &EndpointStats) -> EndpointStats {
    EndpointStats {
        opened: now.opened.saturating_sub(last.opened),
        established: now.established.saturating_sub(last.established),
        failed: now.failed.saturating_sub(last.failed),
        closed: now.closed.saturating_sub(last.closed),
        bytes_out: now.bytes_out.saturating_sub(last.bytes_out),
        bytes_in: now.bytes_in.saturating_sub(last.bytes_in),
        abandoned: now.abandoned.saturating_sub(last.abandoned),
    }
}
