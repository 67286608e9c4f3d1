//! Local token buckets, exact over the node (SEMANTICS §5.8).

use super::{HeaderView, Observer, RequestView, Snapshot, SourceIx, route::Plan};
use crate::clock::MonoNanos;

/// One limit with its buckets, shared by all cores and carried over reloads.
#[derive(Debug)]
pub struct Limiter {}

/// What the limits said: for the `RateLimit` fields of the answer. Cheap: no allocation unless a
/// limit applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every limit that was asked.
    pub asked: Vec<Asked>,
    /// The limit that refused, an index into `asked`.
    pub refused: Option<usize>,
}

/// One limit's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Policy name.
    pub name: std::sync::Arc<str>,
    /// Quota of the policy (`q`): the bucket's size.
    pub quota: u64,
    /// Window of the policy (`w`) in seconds, at least 1: how long an empty bucket takes to fill.
    pub window_s: u64,
    /// Left (`r`).
    pub left: u64,
    /// Seconds to more quota (`t`), rounded up; also `Retry-After` when refused: a client that
    /// waits exactly so long is admitted.
    pub reset_s: u64,
}

impl Verdict {
    /// The value of the `RateLimit-Policy` field (draft-ietf-httpapi-ratelimit-headers, 2025-09).
    pub fn policy_field(&self) -> String {
        unimplemented!("policy")
    }

    /// The value of the `RateLimit` field.
    pub fn limit_field(&self) -> String {
        unimplemented!("policy")
    }

    /// Seconds for `Retry-After`, when refused.
    pub fn retry_after_s(&self) -> Option<u64> {
        unimplemented!("policy")
    }
}

/// Asks every limit of the version, once per request. When one refuses, the tokens that the
/// others gave are returned to them.
pub fn admit<H: HeaderView>(
    _snapshot: &Snapshot,
    _plan: &Plan,
    _source: Option<SourceIx>,
    _request: Option<&RequestView<'_, H>>,
    _now: MonoNanos,
    _observer: &mut impl Observer,
) -> Verdict {
    unimplemented!("policy")
}
