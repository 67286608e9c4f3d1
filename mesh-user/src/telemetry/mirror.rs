//! What becomes of mirrored requests, by the service that gets the copies.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::SERIES_MAX;

macro_rules! results {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// What became of a copy. Of each copy one `skipped_*`, or `sent` and one of `answered`,
        /// `failed_*`, `cut_short`, is counted (a failure to connect without `sent`); where the
        /// answers are compared one of the last four besides.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum MirrorResult {
            $($(#[doc = $doc])+ $name,)+
        }

        impl MirrorResult {
            /// Every one, in the order of the enum.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Its name in `mesh_mirror_total{result}`.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

results! {
    /// Its head was sent.
    Sent = "sent",
    /// As many as may be are in flight on this worker.
    SkippedInFlight = "skipped_in_flight",
    /// As much as may be waits to be sent on this worker.
    SkippedBuffer = "skipped_buffer",
    /// A request to change the protocol has no copy.
    SkippedUpgrade = "skipped_upgrade",
    /// No endpoint of the mirror's version can be chosen.
    SkippedNoEndpoint = "skipped_no_endpoint",
    /// The breaker of the mirror's version, or the node's limit of connections, has no room.
    SkippedOverflow = "skipped_overflow",
    /// The inbound rules of the destination's workload refused it.
    SkippedInbound = "skipped_inbound",
    /// Its answer came whole, and was dropped.
    Answered = "answered",
    /// No connection came about.
    FailedConnect = "failed_connect",
    /// No whole answer came in time.
    FailedTimeout = "failed_timeout",
    /// The connection or stream broke, or the answer is no HTTP.
    FailedReset = "failed_reset",
    /// The mirror took the body more slowly than the primary, by more than is kept.
    FailedBuffer = "failed_buffer",
    /// The primary's request ended before its body was whole, or the agent let go of it.
    CutShort = "cut_short",
    /// Status and body are the same.
    Same = "same",
    /// The status, or the gRPC status, is another.
    StatusDiffers = "status_differs",
    /// The status is the same, the body is another.
    BodyDiffers = "body_differs",
    /// One of both gave no whole answer.
    NotCompared = "not_compared",
}

const RESULTS: usize = MirrorResult::ALL.len();

/// The counters of one service. Workers hold them and count without a lock.
#[derive(Debug)]
pub struct MirrorCounts([AtomicU64; RESULTS]);

impl MirrorCounts {
    /// Counts one.
    pub fn count(&self, result: MirrorResult) {
        self.0[result as usize].fetch_add(1, Relaxed);
    }
}

/// All services that mirrors go to; at most [`SERIES_MAX`], then one for the rest.
#[derive(Debug, Default)]
pub(super) struct MirrorSeries(Mutex<BTreeMap<Arc<str>, Arc<MirrorCounts>>>);

impl MirrorSeries {
    pub(super) fn of(&self, service: &Arc<str>) -> Arc<MirrorCounts> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.contains_key(service) || all.len() < SERIES_MAX;
        let name = if known {
            Arc::clone(service)
        } else {
            Arc::from("overflow")
        };
        let new = || Arc::new(MirrorCounts([const { AtomicU64::new(0) }; RESULTS]));
        Arc::clone(all.entry(name).or_insert_with(new))
    }

    /// Every number that is not 0.
    pub(super) fn sums(&self) -> Vec<(Arc<str>, &'static str, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = all.iter().flat_map(|(service, counts)| {
            let each = MirrorResult::ALL.iter().zip(&counts.0);
            each.map(|(result, count)| (Arc::clone(service), result.label(), count.load(Relaxed)))
        });
        rows.filter(|(_, _, count)| *count > 0).collect()
    }
}
