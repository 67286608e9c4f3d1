//! What the attempts of one request share, whatever it speaks.

use std::time::Duration;

use super::core::Core;
use crate::policy::{breaker::RetryPermit, retry::Failure, snapshot::VersionPlan};

/// What the attempts of one request share.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// How many were made; those that met a dead connection don't count.
    pub(super) count: u32,
    /// Endpoints that failed.
    pub(super) tried: Vec<u64>,
    /// A connection at hand turned out to be dead: the next one is made anew.
    pub(super) stale: bool,
    /// The right to retry, once a retry was made.
    permit: Option<RetryPermit>,
}

/// Asks the policy, then the breaker, whether to try again, and after which pause.
pub(super) fn retry_after(
    version: &VersionPlan,
    attempts: &mut Attempts,
    method: &str,
    failure: Failure,
    replayable: bool,
    core: &Core,
) -> Option<Duration> {
    version.retry.policy.as_ref()?;
    let mut rng = core.rng.borrow_mut();
    let pause = version
        .retry
        .again(method, failure, attempts.count, replayable, &mut rng)?;
    if attempts.permit.is_none() {
        attempts.permit = Some(version.breaker.retry()?);
    }
    Some(pause)
}
