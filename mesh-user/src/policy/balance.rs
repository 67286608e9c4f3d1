//! Which endpoint of the version.

use std::sync::{Arc, atomic::AtomicU32};

use super::{Reject, Snapshot, VersionIx, rng::Rng, snapshot::EndpointState};
use crate::clock::MonoNanos;

/// State of round robin, shared by all cores.
#[derive(Debug, Default)]
pub struct Turn(pub AtomicU32);

/// Chooses an endpoint. Ejected and unhealthy endpoints are left out; those in `tried` are only
/// taken when nothing else is left.
///
/// # Errors
/// [`Reject::NoEndpoint`] when the version has none, [`Reject::NoHealthyEndpoint`] when none may
/// be used.
pub fn pick(
    _snapshot: &Snapshot,
    _version: VersionIx,
    _tried: &[u64],
    _rng: &mut Rng,
    _now: MonoNanos,
) -> Result<Arc<EndpointState>, Reject> {
    unimplemented!("policy")
}
