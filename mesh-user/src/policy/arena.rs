//! Tables of plans whose places stay.
//!
//! A snapshot takes the tables of the one before it and puts the few plans that changed in their
//! places: everything else is shared, index and all.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    ops::Index,
    sync::Arc,
};

use super::hash::{Fold, Identity};
use crate::model::list::Chunks;

/// Plans by index. An index is given back when its plan goes, for the snapshots after this one.
#[derive(Clone, Debug)]
pub struct Arena<T> {
    places: Chunks<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self {
            places: Chunks::default(),
            free: Vec::new(),
        }
    }
}

impl<T> Arena<T> {
    /// A plan; none when the place is empty or there is no such place.
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.places.get(at)?.as_ref()
    }

    /// One more than the largest index that was ever given out. Places below may be empty.
    pub const fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there was never a plan.
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All plans, by index.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> + Clone {
        self.places.iter().flatten()
    }

    /// All plans, by index, with their indexes.
    pub fn entries(&self) -> impl Iterator<Item = (u32, &T)> {
        let places = (0_u32..).zip(self.places.iter());
        places.filter_map(|(at, plan)| Some((at, plan.as_ref()?)))
    }

    /// The plan with the largest index.
    pub fn last(&self) -> Option<&T> {
        self.iter().next_back()
    }
}

impl<T: Clone> Arena<T> {
    /// An index for a new plan, which is to be [`set`](Self::set).
    pub(super) fn reserve(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() as u32 - 1
        })
    }

    /// Puts a plan in a place that was reserved, or had one.
    pub(crate) fn set(&mut self, at: u32, plan: T) {
        while self.places.len() <= at as usize {
            self.places.push(None);
        }
        if let Some(place) = self.places.get_mut(at as usize) {
            *place = Some(plan);
        }
    }

    /// Takes a plan out and gives its index back.
    pub(super) fn remove(&mut self, at: u32) {
        self.clear(at);
        self.free.push(at);
    }

    /// Takes a plan out.
    pub(crate) fn clear(&mut self, at: u32) {
        if let Some(place) = self.places.get_mut(at as usize) {
            *place = None;
        }
    }
}

impl<T> Index<usize> for Arena<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: usize) -> &T {
        self.get(at).expect("an index of this snapshot")
    }
}

/// A set of indexes.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits(Chunks<u64>);

impl Bits {
    /// Puts an index in, or takes it out.
    pub(super) fn set(&mut self, at: u32, there: bool) {
        let (word, bit) = (at as usize / 64, 1 << (at % 64));
        if self
            .0
            .get(word)
            .map_or(!there, |word| (word & bit != 0) == there)
        {
            return;
        }
        while self.0.len() <= word {
            self.0.push(0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word = if there { *word | bit } else { *word & !bit };
        }
    }

    /// The indexes, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let words = (0_u32..).zip(self.0.iter()).filter(|(_, word)| **word != 0);
        words.flat_map(|(at, word)| {
            let set = move |bit: &u32| word >> bit & 1 == 1;
            (0..64).filter(set).map(move |bit| at * 64 + bit)
        })
    }
}

/// Hashes keys that come from the configuration: see `hash`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folded(Fold);

impl Default for Folded {
    fn default() -> Self {
        Self(Fold::new(0))
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// Entries of a shard at most, on average: as many are copied when one of them changes.
const SHARD: usize = 256;

/// A map in shared shards.
#[derive(Debug)]
pub(super) struct Shards<K, V, S = BuildHasherDefault<Folded>> {
    /// A power of two of them; none as long as the map is empty.
    shards: Vec<Arc<HashMap<K, V, S>>>,
    entries: usize,
    hasher: S,
}

/// A map from hashes.
pub(super) type IdShards<V> = Shards<u64, V, BuildHasherDefault<Identity>>;

impl<K, V, S: Clone> Clone for Shards<K, V, S> {
    fn clone(&self) -> Self {
        Self {
            shards: self.shards.clone(),
            entries: self.entries,
            hasher: self.hasher.clone(),
        }
    }
}

impl<K, V, S: Default> Default for Shards<K, V, S> {
    fn default() -> Self {
        Self {
            shards: Vec::new(),
            entries: 0,
            hasher: S::default(),
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone, S: BuildHasher + Clone + Default> Shards<K, V, S> {
    fn shard(&self, key: &K) -> usize {
        // The table inside takes its places from the other bits.
        (self.hasher.hash_one(key) >> 20) as usize & (self.shards.len().max(1) - 1)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.shards.get(self.shard(key))?.get(key)
    }

    /// Changes the value of a key: `edit` gets what is there, and none back takes it out.
    pub(super) fn change(&mut self, key: K, edit: impl FnOnce(Option<V>) -> Option<V>) {
        if self.entries >= SHARD * self.shards.len() {
            self.grow();
        }
        let at = self.shard(&key);
        let shard = Arc::make_mut(&mut self.shards[at]);
        let before = shard.len();
        match shard.get_mut(&key) {
            Some(value) => match edit(Some(value.clone())) {
                Some(new) => *value = new,
                None => drop(shard.remove(&key)),
            },
            None => {
                if let Some(new) = edit(None) {
                    shard.insert(key, new);
                }
            }
        }
        self.entries = self.entries + shard.len() - before;
    }

    /// Makes room for so many more, where there are none: spares moving them as the map grows.
    pub(super) fn reserve(&mut self, more: usize) {
        if self.shards.is_empty() && more > SHARD {
            self.spread(more.div_ceil(SHARD).next_power_of_two());
        }
    }

    fn grow(&mut self) {
        self.spread((4 * self.shards.len()).max(1));
    }

    fn spread(&mut self, count: usize) {
        let old = std::mem::replace(&mut self.shards, vec![Arc::default(); count]);
        // One each: `vec!` shares the first.
        for shard in &mut self.shards {
            *shard = Arc::default();
        }
        for shard in old {
            let shard = Arc::try_unwrap(shard).unwrap_or_else(|shared| (*shared).clone());
            for (key, value) in shard {
                let at = self.shard(&key);
                Arc::make_mut(&mut self.shards[at]).insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arena_gives_indexes_back_and_keeps_the_others() {
        let mut arena = Arena::default();
        for n in 0..3 {
            let at = arena.reserve();
            arena.set(at, n);
        }
        let old = arena.clone();
        arena.remove(1);
        assert_eq!(arena.iter().copied().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(arena.reserve(), 1);
        assert_eq!(arena.get(1), None, "reserved, not set");
        arena.set(1, 7);
        assert_eq!(arena[1], 7);
        assert_eq!(old[1], 1);
        assert_eq!(arena.reserve(), 3);
    }

    #[test]
    fn bits_are_a_set() {
        let mut bits = Bits::default();
        for at in [0, 63, 64, 70_000] {
            bits.set(at, true);
        }
        bits.set(63, false);
        bits.set(99_999, false);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 64, 70_000]);
    }

    #[test]
    fn shards_do_what_a_map_does_and_share_the_rest() {
        let mut map: Shards<u32, u32> = Shards::default();
        assert_eq!(map.get(&1), None);
        for n in 0..10_000 {
            map.change(n, |old| {
                assert_eq!(old, None);
                Some(n + 1)
            });
        }
        let mut next = map.clone();
        next.change(77, |old| old.map(|old| old + 1));
        next.change(78, |_| None);
        next.change(20_000, |_| None);
        let shared = map.shards.iter().zip(&next.shards);
        let copied = shared.filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert!(copied <= 3, "{copied}");
        for n in 0..10_000 {
            assert_eq!(map.get(&n), Some(&(n + 1)));
            let expected = match n {
                77 => Some(79),
                78 => None,
                n => Some(n + 1),
            };
            assert_eq!(next.get(&n).copied(), expected);
        }
        assert_eq!(next.entries, 9_999);
        let longest = next.shards.iter().map(|shard| shard.len()).max();
        assert!(longest < Some(2 * SHARD), "{longest:?}");
    }
}
