//! Lists that are cheap to copy and to change, however long they are.
//!
//! A copy shares its chunks with the original, and a change of one element copies that element's
//! chunk alone. So a new model, or snapshot, costs what differs from the one before it, and what two
//! have in common is found by comparing addresses.

use std::{
    fmt,
    ops::{Deref, DerefMut, Index, IndexMut},
    sync::Arc,
};

use serde::{Serialize, Serializer};

/// Elements of a chunk: as many addresses are copied when one changes, and a list of 100,000 has
/// 391 chunks to be shared.
const CHUNK: usize = 256;

/// A vector in shared chunks.
#[derive(Debug)]
pub struct Chunks<T> {
    chunks: Vec<Arc<Vec<T>>>,
    length: usize,
}

impl<T> Clone for Chunks<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            length: self.length,
        }
    }
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            length: 0,
        }
    }
}

impl<T> Chunks<T> {
    /// How many elements there are.
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// An element; none behind the last.
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    /// All elements, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Places at which two lists have different chunks: what is equal by address is skipped. Goes as
    /// far as the longer one.
    pub fn suspects<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let chunks = self.chunks.len().max(other.chunks.len());
        let same = |at: usize| match (self.chunks.get(at), other.chunks.get(at)) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        let end = self.length.max(other.length);
        (0..chunks)
            .filter(move |at| !same(*at))
            .flat_map(move |at| at * CHUNK..((at + 1) * CHUNK).min(end))
    }

    /// Bytes of the chunks, without what the elements own.
    pub fn heap_bytes(&self) -> usize {
        let chunk = |chunk: &Arc<Vec<T>>| chunk.capacity() * size_of::<T>() + 40;
        self.chunks.iter().map(chunk).sum::<usize>() + self.chunks.capacity() * 8
    }
}

impl<T: Clone> Chunks<T> {
    /// Adds an element.
    pub fn push(&mut self, value: T) {
        match self.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => Arc::make_mut(chunk).push(value),
            None => {
                // Short lists are many: they grow as vectors do; long ones need no slack.
                let mut chunk = Vec::with_capacity(if self.chunks.is_empty() { 1 } else { CHUNK });
                chunk.push(value);
                self.chunks.push(Arc::new(chunk));
            }
        }
        self.length += 1;
    }

    /// An element to change: its chunk is copied when it is shared.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        Arc::make_mut(self.chunks.get_mut(at / CHUNK)?).get_mut(at % CHUNK)
    }

    /// Forgets the elements from a place on.
    pub fn truncate(&mut self, length: usize) {
        if length >= self.length {
            return;
        }
        self.chunks.truncate(length.div_ceil(CHUNK));
        if !length.is_multiple_of(CHUNK)
            && let Some(last) = self.chunks.last_mut()
        {
            Arc::make_mut(last).truncate(length % CHUNK);
        }
        self.length = length;
    }

    /// Puts the elements from a place on somewhere else: `edit` gets them all.
    fn rebuild(&mut self, from: usize, edit: impl FnOnce(&mut Vec<T>)) {
        let kept = from / CHUNK * CHUNK;
        let mut rest: Vec<T> = (kept..self.length)
            .filter_map(|at| self.get(at).cloned())
            .collect();
        self.truncate(kept);
        edit(&mut rest);
        rest.into_iter().for_each(|value| self.push(value));
    }
}

impl<T: Clone> FromIterator<T> for Chunks<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut list = Self::default();
        values.into_iter().for_each(|value| list.push(value));
        list
    }
}

/// A list of things that are shared one by one.
///
/// Used like a `Vec`. What is changed through it ([`IndexMut`], [`List::iter_mut`]) is copied first
/// when another list has it too.
pub struct List<T>(Chunks<Arc<T>>);

impl<T> Clone for List<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Chunks::default())
    }
}

impl<T> List<T> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them; none behind the last.
    pub fn get(&self, at: usize) -> Option<&T> {
        self.0.get(at).map(|value| &**value)
    }

    /// One of them, to be shared.
    pub fn shared(&self, at: usize) -> Option<&Arc<T>> {
        self.0.get(at)
    }

    /// The first.
    pub fn first(&self) -> Option<&T> {
        self.get(0)
    }

    /// The last.
    pub fn last(&self) -> Option<&T> {
        self.get(self.len().checked_sub(1)?)
    }

    /// All, in order.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter {
            list: self,
            next: 0,
            end: self.len(),
        }
    }

    /// All, in order, to be shared.
    pub fn iter_shared(&self) -> impl DoubleEndedIterator<Item = &Arc<T>> + Clone {
        self.0.iter()
    }

    /// Adds one.
    pub fn push(&mut self, value: impl Into<Arc<T>>) {
        self.0.push(value.into());
    }

    /// Replaces one; nothing happens behind the last.
    pub fn set(&mut self, at: usize, value: impl Into<Arc<T>>) {
        if let Some(place) = self.0.get_mut(at) {
            *place = value.into();
        }
    }

    /// Puts one before the one that is at a place now.
    pub fn insert(&mut self, at: usize, value: impl Into<Arc<T>>) {
        let value = value.into();
        self.0.rebuild(at, |rest| rest.insert(at % CHUNK, value));
    }

    /// Takes one out; those behind it move up. None: there is no such place.
    pub fn remove(&mut self, at: usize) -> Option<Arc<T>> {
        let removed = Arc::clone(self.shared(at)?);
        self.0.rebuild(at, |rest| drop(rest.remove(at % CHUNK)));
        Some(removed)
    }

    /// Takes one out; the last takes its place.
    pub fn swap_remove(&mut self, at: usize) -> Option<Arc<T>> {
        let removed = Arc::clone(self.shared(at)?);
        let last = self.len() - 1;
        let moved = Arc::clone(self.shared(last)?);
        self.set(at, moved);
        self.0.truncate(last);
        Some(removed)
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.0 = Chunks::default();
    }

    /// Keeps those for which `keep` holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let kept = self.iter_shared().filter(|value| keep(value));
        self.0 = kept.cloned().collect();
    }

    /// Places at which the lists differ; goes as far as the longer one. What is shared costs
    /// nothing, and what is equal without being shared is no difference.
    pub fn changes<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = usize> + 'a
    where
        T: PartialEq,
    {
        let differs = |at: &usize| match (self.shared(*at), newer.shared(*at)) {
            (Some(one), Some(two)) => !Arc::ptr_eq(one, two) && one != two,
            _ => true,
        };
        self.0.suspects(&newer.0).filter(differs)
    }
}

impl<T: Clone> List<T> {
    /// One of them to change.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.0.get_mut(at).map(Arc::make_mut)
    }

    /// All of them to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let chunks = self.0.chunks.iter_mut();
        chunks
            .flat_map(|chunk| Arc::make_mut(chunk).iter_mut())
            .map(Arc::make_mut)
    }
}

/// The elements of a [`List`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    list: &'a List<T>,
    next: usize,
    end: usize,
}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        if self.next >= self.end {
            return None;
        }
        self.next += 1;
        self.list.get(self.next - 1)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl<T> DoubleEndedIterator for Iter<'_, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        self.end -= 1;
        self.list.get(self.end)
    }
}

impl<T> ExactSizeIterator for Iter<'_, T> {}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> Index<usize> for List<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        self.get(at).expect("a place inside the list")
    }
}

impl<T: Clone> IndexMut<usize> for List<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        self.get_mut(at).expect("a place inside the list")
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(values: Vec<T>) -> Self {
        values.into_iter().collect()
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self(values.into_iter().map(Arc::new).collect())
    }
}

impl<T> FromIterator<Arc<T>> for List<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl<T> Extend<T> for List<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        values.into_iter().for_each(|value| self.push(value));
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.changes(other).next().is_none()
    }
}

impl<T: fmt::Debug> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl<T: Serialize> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

/// A vector that takes one word while it is empty, as most such are.
#[expect(
    clippy::box_collection,
    reason = "one word while empty, which it mostly is"
)]
pub struct Few<T>(Option<Box<Vec<T>>>);

impl<T: 'static> Deref for Few<T> {
    type Target = Vec<T>;

    #[inline]
    fn deref(&self) -> &Vec<T> {
        self.0.as_deref().unwrap_or(const { &Vec::new() })
    }
}

impl<T: 'static> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        self.0.get_or_insert_default()
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> Clone for Few<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut values: Vec<T>) -> Self {
        values.shrink_to_fit();
        Self((!values.is_empty()).then(|| Box::new(values)))
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        values.into_iter().collect::<Vec<T>>().into()
    }
}

impl<'a, T: 'static> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: PartialEq + 'static> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: fmt::Debug + 'static> fmt::Debug for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Serialize + 'static> Serialize for Few<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Without it: one changed weight copies 100,000 services.
    #[test]
    fn list_copy_shares_all_but_the_chunk_that_changed() {
        let old: List<usize> = (0..10 * CHUNK).collect();
        let mut new = old.clone();
        assert_eq!(old.0.suspects(&new.0).count(), 0);
        new[3 * CHUNK + 1] = 7;
        let suspects: Vec<usize> = old.0.suspects(&new.0).collect();
        assert_eq!(suspects, (3 * CHUNK..4 * CHUNK).collect::<Vec<_>>());
        assert_eq!(old.changes(&new).collect::<Vec<_>>(), [3 * CHUNK + 1]);
        let same = |at| Arc::ptr_eq(old.shared(at).unwrap(), new.shared(at).unwrap());
        assert!(same(3 * CHUNK) && !same(3 * CHUNK + 1));
        assert_eq!(old[3 * CHUNK + 1], 3 * CHUNK + 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Set(usize, u8),
        Insert(usize, u8),
        Remove(usize),
        Swap(usize),
        Truncate(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = || any::<prop::sample::Index>().prop_map(|at| at.index(1_000));
        prop_oneof![
            3 => any::<u8>().prop_map(Step::Push),
            1 => (at(), any::<u8>()).prop_map(|(at, v)| Step::Set(at, v)),
            1 => (at(), any::<u8>()).prop_map(|(at, v)| Step::Insert(at, v)),
            1 => at().prop_map(Step::Remove),
            1 => at().prop_map(Step::Swap),
            1 => at().prop_map(Step::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn list_does_what_a_vector_does(
            start in prop::collection::vec(any::<u8>(), 0..700),
            steps in prop::collection::vec(step(), 0..30),
        ) {
            let mut list: List<u8> = start.clone().into();
            let mut vector = start;
            for step in steps {
                let (before, copy) = (vector.clone(), list.clone());
                match step {
                    Step::Push(value) => { list.push(value); vector.push(value); }
                    Step::Set(at, value) => {
                        list.set(at, value);
                        if let Some(place) = vector.get_mut(at) { *place = value; }
                    }
                    Step::Insert(at, value) => {
                        let at = at.min(vector.len());
                        list.insert(at, value);
                        vector.insert(at, value);
                    }
                    Step::Remove(at) => {
                        let removed = (at < vector.len()).then(|| vector.remove(at));
                        prop_assert_eq!(list.remove(at).map(|value| *value), removed);
                    }
                    Step::Swap(at) => {
                        let removed = (at < vector.len()).then(|| vector.swap_remove(at));
                        prop_assert_eq!(list.swap_remove(at).map(|value| *value), removed);
                    }
                    Step::Truncate(at) => { list.0.truncate(at); vector.truncate(at); }
                }
                prop_assert_eq!(list.iter().copied().collect::<Vec<_>>(), vector.clone());
                prop_assert_eq!(list.len(), vector.len());
                prop_assert_eq!(copy.iter().copied().collect::<Vec<_>>(), before.clone());
                let differs: Vec<usize> = (0..before.len().max(vector.len()))
                    .filter(|at| before.get(*at) != vector.get(*at))
                    .collect();
                prop_assert_eq!(copy.changes(&list).collect::<Vec<_>>(), differs);
                prop_assert_eq!(list.last().copied(), vector.last().copied());
            }
        }
    }
}
