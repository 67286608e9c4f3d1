//! What the limits of a snapshot have counted, for metrics.

use std::collections::BTreeMap;

use crate::policy::Snapshot;

/// One limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitRow {
    /// `namespace/name` of the service; of an inbound rule, of the workload.
    pub service: String,
    /// Its name; before it the version or port whose policy states it, `rule/NAME`, or
    /// `inbound/NAME`.
    pub limit: String,
    /// What became of requests, in the order of [`Tally::ALL`](super::Tally::ALL).
    pub counts: [u64; 5],
    /// What it has to do with a store, when it is shared.
    pub store: Option<StoreRow>,
}

/// One limit and its store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreRow {
    /// Tokens that this node holds.
    pub held: u64,
    /// Questions that were answered.
    pub answered: u64,
    /// Questions that were not.
    pub failed: u64,
}

impl Snapshot {
    /// What all limits have counted, by service and name.
    pub fn limit_rows(&self) -> Vec<LimitRow> {
        let mut rows: BTreeMap<(String, String), LimitRow> = BTreeMap::new();
        self.each_limiter(|(service, version, port, name), limiter| {
            let mut service = service.clone();
            let mut limit = String::new();
            if service == "inbound" {
                service = version.clone().unwrap_or_default();
                limit.push_str("inbound/");
            } else if let Some(version) = version {
                limit.push_str(version);
                limit.push('/');
            }
            if let Some(port) = port {
                limit.push_str(port);
                limit.push('/');
            }
            limit.push_str(name);
            let key = (service.clone(), limit.clone());
            let row = rows.entry(key).or_insert_with(|| LimitRow {
                service,
                limit,
                ..LimitRow::default()
            });
            for (sum, count) in row.counts.iter_mut().zip(limiter.counts()) {
                *sum += count;
            }
            if let Some(global) = limiter.global() {
                let store = row.store.get_or_insert_default();
                let (calls, failed) = global.calls();
                store.held += global.held();
                store.answered += calls - failed.min(calls);
                store.failed += failed;
            }
        });
        rows.into_values().collect()
    }
}
