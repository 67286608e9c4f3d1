//! The rate limits' numbers in a scrape.

use std::fmt;

use super::{expose::Writer, metrics};
use crate::policy::{
    Snapshot,
    rate_limit::{LimitRow, StoreRow, Tally},
};

/// Most limits that are shown: 5 lines each, 3 more when they are shared.
pub const LIMITS_MAX: usize = 1_024;

/// Limits at the time of a scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitSample {
    rows: Vec<LimitRow>,
    omitted: usize,
}

impl LimitSample {
    /// Of a snapshot, [`LIMITS_MAX`] at most.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut rows = snapshot.limit_rows();
        let omitted = rows.len().saturating_sub(LIMITS_MAX);
        rows.truncate(LIMITS_MAX);
        Self { rows, omitted }
    }

    pub(super) fn encode(&self, to: &mut Writer<'_>) -> fmt::Result {
        let counts = self.rows.iter().flat_map(|row| {
            let results = Tally::ALL.into_iter().zip(row.counts);
            results.map(|((_, result), count)| ([&*row.service, &*row.limit, result], count as f64))
        });
        to.values(&metrics::RATE_LIMITS, counts)?;
        let stores = || {
            let stores = self.rows.iter();
            stores.filter_map(|row| Some((row, row.store?)))
        };
        let held = stores()
            .map(|(row, StoreRow { held, .. })| ([&*row.service, &*row.limit], held as f64));
        to.values(&metrics::RATE_LIMIT_LEASES, held)?;
        let calls = stores().flat_map(|(row, store)| {
            [("answered", store.answered), ("failed", store.failed)]
                .map(|(result, count)| ([&*row.service, &*row.limit, result], count as f64))
        });
        to.values(&metrics::RATE_LIMIT_CALLS, calls)?;
        to.single(&metrics::RATE_LIMITS_OMITTED, self.omitted as u64)
    }
}
