//! Hands out ranges of an array so that a range in use is never written again.

use std::collections::{BTreeMap, VecDeque};

/// Free ranges of an array, by start. Freed ranges come back one round later: a program that read
/// the old entry a moment ago still meets the old content.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    free: BTreeMap<u32, u32>,
    resting: Vec<(u32, u32)>,
}

impl Ranges {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            free: BTreeMap::from([(0, capacity)]),
            resting: Vec::new(),
        }
    }

    /// Takes a range that is in use already; whether it was free.
    pub(super) fn take(&mut self, start: u32, length: u32) -> bool {
        let Some((&from, &have)) = self.free.range(..=start).next_back() else {
            return false;
        };
        let (end, wanted) = (from + have, start.saturating_add(length));
        if wanted > end {
            return false;
        }
        self.free.remove(&from);
        if start > from {
            self.free.insert(from, start - from);
        }
        if end > wanted {
            self.free.insert(wanted, end - wanted);
        }
        true
    }

    /// First fit; `None`: no room.
    pub(super) fn allocate(&mut self, length: u32) -> Option<u32> {
        let (&start, _) = self.free.iter().find(|(_, have)| **have >= length)?;
        self.take(start, length).then_some(start)
    }

    /// Gives a range back, for the round after the next [`Ranges::turn`].
    pub(super) fn release(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.resting.push((start, length));
        }
    }

    /// A round is over: what rested is free.
    pub(super) fn turn(&mut self) {
        for (start, length) in std::mem::take(&mut self.resting) {
            self.insert(start, length);
        }
    }

    /// Puts a range among the free ones, joined with its neighbours.
    fn insert(&mut self, mut start: u32, mut length: u32) {
        if let Some((&before, &have)) = self.free.range(..start).next_back()
            && before + have == start
        {
            self.free.remove(&before);
            (start, length) = (before, have + length);
        }
        if let Some(after) = self.free.remove(&(start + length)) {
            length += after;
        }
        self.free.insert(start, length);
    }
}

/// Free single places of an array: the one that is free the longest goes first, so that late
/// events of a removed endpoint rarely count for another.
#[derive(Clone, Debug)]
pub(super) struct Places {
    next: u32,
    capacity: u32,
    freed: VecDeque<u32>,
}

impl Places {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            next: 0,
            capacity,
            freed: VecDeque::new(),
        }
    }

    /// From the places that are in use.
    pub(super) fn with_used(capacity: u32, used: impl IntoIterator<Item = u32>) -> Self {
        let used: std::collections::BTreeSet<u32> = used.into_iter().collect();
        let next = used.last().map_or(0, |last| last + 1);
        let freed = (0..next).filter(|place| !used.contains(place)).collect();
        Self {
            next,
            capacity,
            freed,
        }
    }

    pub(super) fn allocate(&mut self) -> Option<u32> {
        if self.next < self.capacity {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.freed.pop_front()
    }

    pub(super) fn release(&mut self, place: u32) {
        self.freed.push_back(place);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn freed_range_rests_for_a_round() {
        let mut ranges = Ranges::new(10);
        assert_eq!(ranges.allocate(6), Some(0));
        ranges.release(0, 6);
        assert_eq!(ranges.allocate(5), None);
        ranges.turn();
        assert_eq!(ranges.allocate(10), Some(0));
        assert_eq!(ranges.allocate(1), None);
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let mut places = Places::with_used(3, [1]);
        assert_eq!([places.allocate(), places.allocate()], [Some(2), Some(0)]);
        assert_eq!(places.allocate(), None);
        places.release(1);
        assert_eq!(places.allocate(), Some(1));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_come_back_whole(
            steps in prop::collection::vec((any::<bool>(), 1_u32..9), 1..80)
        ) {
            const CAPACITY: u32 = 64;
            let mut ranges = Ranges::new(CAPACITY);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (take, length) in steps {
                if take {
                    if let Some(start) = ranges.allocate(length) {
                        for (other, size) in &held {
                            prop_assert!(start + length <= *other || other + size <= start);
                        }
                        prop_assert!(start + length <= CAPACITY);
                        held.push((start, length));
                    }
                } else if !held.is_empty() {
                    let (start, length) = held.swap_remove(length as usize % held.len());
                    ranges.release(start, length);
                }
                ranges.turn();
            }
            for (start, length) in held {
                ranges.release(start, length);
            }
            ranges.turn();
            prop_assert_eq!(ranges.allocate(CAPACITY), Some(0));
        }
    }
}
