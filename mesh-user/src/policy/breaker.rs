//! Caps that are exact over the whole node: one counter for all cores.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::{Reject, snapshot::EndpointState};
use crate::model::BreakerPolicy;

/// Counters and caps of one version.
#[derive(Debug, Default)]
pub struct Breaker {}

/// The right to one request in flight. Counts at the endpoint too (least request). Dropping it
/// releases both.
#[derive(Debug)]
#[must_use]
pub struct RequestPermit {}

/// The right to one connection. Dropping it releases it and wakes one waiter.
#[derive(Debug)]
#[must_use]
pub struct ConnectionPermit {}

/// The right to wait for a connection.
#[derive(Debug)]
#[must_use]
pub struct PendingPermit {}

/// The right to one retry in flight.
#[derive(Debug)]
#[must_use]
pub struct RetryPermit {}

/// Gauges of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Gauges {
    /// Connections.
    pub connections: u32,
    /// Requests that wait.
    pub pending: u32,
    /// Requests in flight.
    pub requests: u32,
    /// Retries in flight.
    pub retries: u32,
}

impl Breaker {
    /// The caps in force.
    pub fn caps(&self) -> BreakerPolicy {
        unimplemented!("policy")
    }

    /// The counters now.
    pub fn gauges(&self) -> Gauges {
        unimplemented!("policy")
    }

    /// Admits one request to `endpoint`: the last step before it is forwarded.
    ///
    /// # Errors
    /// [`Reject::OverflowRequests`].
    pub fn request(self: &Arc<Self>, _endpoint: &Arc<EndpointState>) -> Result<RequestPermit, Reject> {
        unimplemented!("policy")
    }

    /// Admits one connection.
    ///
    /// # Errors
    /// [`Reject::OverflowConnections`].
    pub fn connection(self: &Arc<Self>) -> Result<ConnectionPermit, Reject> {
        unimplemented!("policy")
    }

    /// Admits one request to the queue for a connection.
    ///
    /// # Errors
    /// [`Reject::OverflowPending`].
    pub fn pending(self: &Arc<Self>) -> Result<PendingPermit, Reject> {
        unimplemented!("policy")
    }

    /// Waits until a connection may be made (std wakers only: no runtime in here). First come,
    /// first served, among the waiters of all cores.
    pub fn poll_connection(
        self: &Arc<Self>,
        _waiting: &mut PendingPermit,
        _cx: &mut Context<'_>,
    ) -> Poll<ConnectionPermit> {
        unimplemented!("policy")
    }

    /// Whether somebody waits for a connection: an idle one should then be closed rather than
    /// kept, unless a local waiter takes it.
    pub fn has_waiters(&self) -> bool {
        unimplemented!("policy")
    }

    /// Admits one retry.
    ///
    /// # Errors
    /// [`Reject::OverflowRequests`] never; `None` when `max-retries` is reached: the first failure
    /// is then the answer.
    pub fn retry(self: &Arc<Self>) -> Option<RetryPermit> {
        unimplemented!("policy")
    }
}
