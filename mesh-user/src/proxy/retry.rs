//! What the attempts of one request share, whatever it speaks.

use std::time::Duration;

use super::core::Core;
use crate::policy::{PortIx, breaker::RetryPermit, retry::Failure, snapshot::VersionPlan};

/// What the attempts of one request share.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// By which the endpoint is found, where the version is balanced by a key.
    pub(super) key: Option<u64>,
    /// How many were made; those that met a dead connection don't count.
    pub(super) count: u32,
    /// Endpoints that failed.
    pub(super) tried: Vec<u64>,
    /// A connection at hand turned out to be dead: the next one is made anew.
    pub(super) stale: bool,
    /// Inbound rate limits of the endpoint's workload.
    pub(super) charged: Charged,
    /// The right to retry, once a retry was made.
    permit: Option<RetryPermit>,
}

impl Attempts {
    /// None yet.
    pub(super) fn by(key: Option<u64>) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }
}

/// Whose inbound rate limits an attempt has paid. One that met a dead connection brought nothing to
/// the application: the next one to the same port is free.
#[derive(Debug, Default)]
pub(super) struct Charged(Option<PortIx>);

impl Charged {
    /// Whether this port's limits are to be charged; they are then.
    pub(super) fn by(&mut self, port: PortIx) -> bool {
        self.0.replace(port) != Some(port)
    }
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
    attempts.charged = Charged::default();
    Some(pause)
}
