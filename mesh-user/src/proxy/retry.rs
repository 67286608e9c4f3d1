//! What the attempts of one request share, whatever it speaks.

use std::time::Duration;

use super::core::Core;
use crate::{
    clock,
    policy::{PortIx, breaker::RetryPermit, retry::Failure, snapshot::VersionPlan, terms::Terms},
};

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

/// On which terms a request's attempts are made.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    pub(super) version: &'a VersionPlan,
    pub(super) terms: Terms<'a>,
}

/// Asks the policy, then the breaker, whether to try again, and after which pause.
pub(super) fn retry_after(
    on: On<'_>,
    attempts: &mut Attempts,
    method: &str,
    failure: Failure,
    replayable: bool,
    core: &Core,
) -> Option<Duration> {
    on.terms.retry.policy.as_ref()?;
    let mut rng = core.rng.borrow_mut();
    let tried = attempts.count;
    let retry = on.terms.retry;
    let pause = retry.again(method, failure, tried, replayable, &mut rng)?;
    // In flight, a request holds one place for all its retries; over an interval each counts.
    if attempts.permit.is_none() || on.version.budget.is_some() {
        attempts.permit = None;
        attempts.permit = Some(on.version.admit_retry(clock::now())?);
    }
    attempts.charged = Charged::default();
    Some(pause)
}
