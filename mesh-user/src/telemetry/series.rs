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
        let room = all.len() < self.max || all.contains_key(&labels);
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
