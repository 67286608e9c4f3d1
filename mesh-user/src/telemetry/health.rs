//! Counters of active health checks. One thread counts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::SERIES_MAX;

/// Namespace and service.
type Service = (Arc<str>, Arc<str>);

/// Checks by service and result, and endpoints that are sick.
#[derive(Debug, Default)]
pub(super) struct HealthSeries(Mutex<Numbers>);

#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    pub(super) results: BTreeMap<(Service, &'static str), u64>,
    pub(super) unhealthy: BTreeMap<Service, u64>,
}

impl HealthSeries {
    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a check. What comes above [`SERIES_MAX`] is counted in one series.
    pub(super) fn count(&self, namespace: &Arc<str>, service: &Arc<str>, result: &'static str) {
        let mut numbers = self.lock();
        let mut key = ((Arc::clone(namespace), Arc::clone(service)), result);
        if numbers.results.len() >= SERIES_MAX && !numbers.results.contains_key(&key) {
            key.0 = ("overflow".into(), "overflow".into());
        }
        *numbers.results.entry(key).or_default() += 1;
    }

    /// Replaces the numbers of sick endpoints; services that are not among them are not checked.
    pub(super) fn unhealthy(&self, counts: impl Iterator<Item = (Arc<str>, Arc<str>, u64)>) {
        let counts = counts.map(|(namespace, service, count)| ((namespace, service), count));
        self.lock().unhealthy = counts.take(SERIES_MAX).collect();
    }

    /// One more, or one less.
    pub(super) fn unhealthy_changed(&self, namespace: &Arc<str>, service: &Arc<str>, sick: bool) {
        let key = (Arc::clone(namespace), Arc::clone(service));
        // Services beyond the limit have no number.
        if let Some(count) = self.lock().unhealthy.get_mut(&key) {
            *count = count.saturating_add_signed(if sick { 1 } else { -1 });
        }
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.lock().clone()
    }
}
