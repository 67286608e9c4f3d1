//! Counters by label set: written by one thread each, summed when somebody asks.
//!
//! A thread looks a label set up once by small integers ([`super::local`]); from then on it holds
//! a [`Cell`] that nobody else writes: no lock, no locked instruction, no shared cache line.
//! Invariant: nothing that was counted is lost. A cell whose thread let go of it is added to its
//! series' base.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::clock::MonoNanos;

/// Most label sets of one family. A node with 100 workloads that each call 5 versions with 4
/// kinds of answers has 2,000. What comes above is counted in one series whose labels are all
/// `overflow`.
pub const SERIES_MAX: usize = 4_096;

/// Series of a workload that is gone are kept so long (as Hubble): two scrapes see the last
/// values.
pub const GONE_KEPT: Duration = Duration::from_secs(60);

/// The numbers of one label set that one thread counts. Only that thread writes.
#[derive(Debug)]
pub(super) struct Cell<const N: usize> {
    numbers: [AtomicU64; N],
    /// The series was removed: what holds this cell must ask for another.
    retired: AtomicBool,
}

impl<const N: usize> Cell<N> {
    fn new() -> Self {
        Self {
            numbers: [const { AtomicU64::new(0) }; N],
            retired: AtomicBool::new(false),
        }
    }

    /// Adds to a number. A load and a store suffice: the calling thread is the only writer.
    pub(super) fn add(&self, index: usize, amount: u64) {
        let number = &self.numbers[index];
        number.store(number.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    /// Whether it no longer counts.
    pub(super) fn retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    fn add_to(&self, sum: &mut [u64; N]) {
        for (sum, number) in sum.iter_mut().zip(&self.numbers) {
            *sum = sum.wrapping_add(number.load(Relaxed));
        }
    }
}

/// One value for each label of the family, in its order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LabelSet(pub(super) Box<[Arc<str>]>);

/// What a family counted: each label set with its numbers, sorted.
pub(super) type Sums<const N: usize> = Vec<(LabelSet, [u64; N])>;

#[derive(Debug)]
struct Series<const N: usize> {
    /// `namespace/name` of the workload; none for the overflow series, which never goes.
    owner: Option<Arc<str>>,
    base: [u64; N],
    cells: HashMap<u64, Arc<Cell<N>>>,
    gone_since: Option<MonoNanos>,
}

/// All label sets of one family.
#[derive(Debug)]
pub(super) struct Family<const N: usize> {
    series: Mutex<BTreeMap<LabelSet, Series<N>>>,
    labels: usize,
    max: usize,
}

impl<const N: usize> Family<N> {
    pub(super) const fn new(labels: usize, max: usize) -> Self {
        Self {
            series: Mutex::new(BTreeMap::new()),
            labels,
            max,
        }
    }

    /// The cell in which thread `thread` counts this label set. Slow: once per label set, thread
    /// and snapshot.
    pub(super) fn cell(
        &self,
        thread: u64,
        owner: Option<&Arc<str>>,
        labels: LabelSet,
    ) -> Arc<Cell<N>> {
        debug_assert_eq!(labels.0.len(), self.labels);
        let mut all = self.lock();
        let overflow = self.overflow();
        // The overflow series stands beside the limit, not under it.
        let kept = all.len() - usize::from(all.contains_key(&overflow));
        let room = kept < self.max || all.contains_key(&labels);
        let (labels, owner) = if room {
            (labels, owner.cloned())
        } else {
            (self.overflow(), None)
        };
        let series = all.entry(labels).or_insert_with(|| Series {
            owner,
            base: [0; N],
            cells: HashMap::new(),
            gone_since: None,
        });
        series.cell(thread)
    }

    /// Sums over the threads, in the order of the label sets.
    pub(super) fn sums(&self) -> Sums<N> {
        let mut all = self.lock();
        all.iter_mut()
            .map(|(labels, series)| {
                series.fold_released();
                (labels.clone(), series.sum())
            })
            .collect()
    }

    /// Removes the series of workloads that have been gone for [`GONE_KEPT`]; returns how many.
    pub(super) fn retire(&self, live: &dyn Fn(&str) -> bool, now: MonoNanos) -> usize {
        let mut all = self.lock();
        let before = all.len();
        all.retain(|_, series| {
            let keep = !series.expired(live, now);
            if !keep {
                series.retire();
            }
            keep
        });
        let removed = before - all.len();
        if removed > 0
            && let Some(overflow) = all.get_mut(&self.overflow())
        {
            // There is room again: what went to the overflow series may get its own.
            overflow.retire();
        }
        removed
    }

    fn overflow(&self) -> LabelSet {
        let value: Arc<str> = "overflow".into();
        LabelSet(vec![value; self.labels].into())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<LabelSet, Series<N>>> {
        // Nothing in here panics half-way through a change; counting goes on either way.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<const N: usize> Series<N> {
    /// The cell of the calling thread. One that was retired meanwhile is folded first: its only
    /// writer is the caller, who is here and not writing.
    fn cell(&mut self, thread: u64) -> Arc<Cell<N>> {
        let cell = self
            .cells
            .entry(thread)
            .or_insert_with(|| Arc::new(Cell::new()));
        if cell.retired() {
            cell.add_to(&mut self.base);
            *cell = Arc::new(Cell::new());
        }
        cell.clone()
    }

    fn sum(&self) -> [u64; N] {
        let mut sum = self.base;
        for cell in self.cells.values() {
            cell.add_to(&mut sum);
        }
        sum
    }

    /// Takes over the numbers of cells that their threads let go: ended, or not used since the
    /// last reload. `get_mut` proves that nobody holds the cell any more and orders its last write
    /// before our read; new holders appear only under the family's lock.
    fn fold_released(&mut self) {
        let base = &mut self.base;
        self.cells.retain(|_, cell| {
            let released = Arc::get_mut(cell).is_some();
            if released {
                cell.add_to(base);
            }
            !released
        });
    }

    fn expired(&mut self, live: &dyn Fn(&str) -> bool, now: MonoNanos) -> bool {
        let Some(owner) = &self.owner else {
            return false;
        };
        if live(owner) {
            self.gone_since = None;
            return false;
        }
        now.since(*self.gone_since.get_or_insert(now)) >= GONE_KEPT
    }

    fn retire(&mut self) {
        for cell in self.cells.values() {
            cell.retired.store(true, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn labels(value: &str) -> LabelSet {
        LabelSet(Box::new([value.into()]))
    }

    fn shown<const N: usize>(family: &Family<N>) -> Vec<(String, u64)> {
        let sums = family.sums();
        sums.iter()
            .map(|(labels, sum)| (labels.0[0].to_string(), sum[0]))
            .collect()
    }

    #[test]
    fn sums_of_threads_that_ended_are_kept() {
        let family = Family::<1>::new(1, 8);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let family = &family;
                scope.spawn(move || {
                    let cell = family.cell(thread, None, labels("a"));
                    (0..1_000).for_each(|_| cell.add(0, 1));
                });
            }
        });
        assert_eq!(shown(&family), [("a".into(), 4_000)]);
        // The cells were folded at the first look; the second must say the same.
        assert_eq!(shown(&family), [("a".into(), 4_000)]);
        assert!(
            family.lock()[&labels("a")].cells.is_empty(),
            "cells of ended threads pile up"
        );
    }

    #[test]
    fn same_thread_gets_its_cell_again() {
        let family = Family::<1>::new(1, 8);
        let first = family.cell(1, None, labels("a"));
        assert!(Arc::ptr_eq(&first, &family.cell(1, None, labels("a"))));
        assert!(!Arc::ptr_eq(&first, &family.cell(2, None, labels("a"))));
    }

    #[test]
    fn label_sets_above_the_limit_are_counted_as_overflow() {
        let family = Family::<1>::new(1, 2);
        for (value, amount) in [("a", 1), ("b", 2), ("c", 4), ("d", 8), ("a", 16)] {
            family.cell(1, None, labels(value)).add(0, amount);
        }
        let expected = [("a".into(), 17), ("b".into(), 2), ("overflow".into(), 12)];
        assert_eq!(shown(&family), expected);
    }

    #[test]
    fn series_of_a_workload_that_is_gone_stay_for_their_time() {
        let family = Family::<1>::new(1, 8);
        let (gone, here): (Arc<str>, Arc<str>) = ("shop/gone".into(), "shop/here".into());
        let cell = family.cell(1, Some(&gone), labels("gone"));
        family.cell(1, Some(&here), labels("here"));
        let live = |key: &str| key == "shop/here";
        let at = |seconds| MonoNanos(seconds * SECOND);
        assert_eq!(family.retire(&live, at(100)), 0);
        assert_eq!(family.retire(&live, MonoNanos(160 * SECOND - 1)), 0);
        assert!(!cell.retired());
        assert_eq!(family.retire(&live, at(160)), 1);
        assert!(
            cell.retired(),
            "its thread would go on counting where nobody looks"
        );
        assert_eq!(shown(&family), [("here".into(), 0)]);
    }

    #[test]
    fn workload_that_returns_in_time_keeps_its_series() {
        let family = Family::<1>::new(1, 8);
        let key: Arc<str> = "shop/a".into();
        family.cell(1, Some(&key), labels("a"));
        assert_eq!(family.retire(&|_| false, MonoNanos(0)), 0);
        assert_eq!(family.retire(&|_| true, MonoNanos(59 * SECOND)), 0);
        assert_eq!(
            family.retire(&|_| false, MonoNanos(90 * SECOND)),
            0,
            "the clock starts anew"
        );
    }

    #[test]
    fn room_made_by_removal_goes_to_what_overflowed() {
        let family = Family::<1>::new(1, 1);
        let (a, b): (Arc<str>, Arc<str>) = ("n/a".into(), "n/b".into());
        family.cell(1, Some(&a), labels("a"));
        let overflowed = family.cell(1, Some(&b), labels("b"));
        overflowed.add(0, 5);
        let live = |key: &str| key == "n/b";
        family.retire(&live, MonoNanos(0));
        assert_eq!(family.retire(&live, MonoNanos(60 * SECOND)), 1);
        assert!(overflowed.retired());
        family.cell(1, Some(&b), labels("b")).add(0, 7);
        assert_eq!(shown(&family), [("b".into(), 7), ("overflow".into(), 5)]);
    }
}
