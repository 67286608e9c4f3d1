//! Counters of connections that the kernel sent to endpoints by itself.
//!
//! One thread counts, a few times a second, so these are plain numbers behind a lock. The kernel
//! doesn't say who connected: the labels name the destination only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::SERIES_MAX;
use crate::policy::{Snapshot, VersionIx};

/// What was counted at an endpoint since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// Connections begun.
    pub opened: u64,
    /// Connections established.
    pub established: u64,
    /// Connections that failed before.
    pub failed: u64,
    /// Connections that the application gave up before an answer could be missed.
    pub abandoned: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Bytes that those sent to the endpoint.
    pub sent: u64,
    /// Bytes that those received from it.
    pub received: u64,
}

/// Namespace, service, port and version.
pub(super) type Labels = [Arc<str>; 4];

/// What is counted, in the order of the rows' values.
pub(super) const EVENTS: [&str; 5] = ["opened", "established", "failed", "abandoned", "closed"];

impl KernelCounts {
    pub(super) const fn events(&self) -> [u64; EVENTS.len()] {
        [
            self.opened,
            self.established,
            self.failed,
            self.abandoned,
            self.closed,
        ]
    }

    fn add(&mut self, more: &Self) {
        self.opened += more.opened;
        self.established += more.established;
        self.failed += more.failed;
        self.abandoned += more.abandoned;
        self.closed += more.closed;
        self.sent += more.sent;
        self.received += more.received;
    }
}

/// Sums by version, [`SERIES_MAX`] at most; what comes above is counted in one series.
#[derive(Debug, Default)]
pub(super) struct KernelSeries(Mutex<BTreeMap<Labels, KernelCounts>>);

impl KernelSeries {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Labels, KernelCounts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, snapshot: &Snapshot, version: VersionIx, counts: &KernelCounts) {
        let Some(labels) = labels(snapshot, version) else {
            return;
        };
        let mut all = self.lock();
        if all.len() >= SERIES_MAX && !all.contains_key(&labels) {
            // Those of versions that are gone make room.
            let there: std::collections::BTreeSet<Labels> = (0..snapshot.versions.len() as u32)
                .filter_map(|ix| self::labels(snapshot, VersionIx(ix)))
                .collect();
            all.retain(|labels, _| there.contains(labels));
        }
        let labels = if all.len() < SERIES_MAX || all.contains_key(&labels) {
            labels
        } else {
            [const { "overflow" }; 4].map(Arc::from)
        };
        all.entry(labels).or_default().add(counts);
    }

    pub(super) fn sums(&self) -> Vec<(Labels, KernelCounts)> {
        let all = self.lock();
        all.iter()
            .map(|(labels, counts)| (labels.clone(), *counts))
            .collect()
    }
}

fn labels(snapshot: &Snapshot, version: VersionIx) -> Option<Labels> {
    let version = snapshot.versions.get(version.0 as usize)?;
    let port = snapshot.ports.get(version.port.0 as usize)?;
    Some([
        Arc::clone(&port.namespace),
        Arc::clone(&port.service),
        Arc::clone(&port.name),
        Arc::clone(&version.name),
    ])
}
