//! Whether a failed attempt may be tried again (SEMANTICS §5.7, RFC 9110 §9.2.2).

use std::time::Duration;

use super::rng::Rng;
use crate::model::RetryPolicy;

/// Retries of a version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryPlan {
    /// The policy; none: no retries.
    pub policy: Option<RetryPolicy>,
}

/// How an attempt failed, as far as it matters for a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent.
    Connect,
    /// Nothing of the request was processed, by the peer's word (REFUSED_STREAM, GOAWAY).
    Refused,
    /// A pooled connection turned out to be closed before a byte of the answer came. Whether the
    /// request was processed is unknown.
    Reset,
    /// The per-try time-out.
    PerTry,
    /// An answer with this status.
    Status(u16),
}

impl RetryPlan {
    /// Whether a request that failed so may be sent again after `tried` deliveries, and after
    /// which pause. `replayable`: the whole request is still at hand.
    pub fn again(
        &self,
        _method: &str,
        _failure: Failure,
        _tried: u32,
        _replayable: bool,
        _rng: &mut Rng,
    ) -> Option<Duration> {
        unimplemented!("policy")
    }

    /// Time-out of each try.
    pub fn per_try(&self) -> Option<Duration> {
        self.policy.as_ref().and_then(|policy| policy.per_try)
    }
}
