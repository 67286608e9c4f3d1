//! Passive ejection with Envoy's clock (SEMANTICS §5.5).

use std::net::SocketAddr;

use serde::Serialize;

/// Live state of an endpoint: requests in flight, consecutive failures, ejection.
#[derive(Debug, Default)]
pub struct Live {}

/// Ejection of one service port: its policy and the sweep clock.
#[derive(Debug)]
pub struct Ejection {}

/// An endpoint left or returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `namespace/name:port` of the service.
    pub service: String,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// What happened.
    pub what: What,
}

/// What happened to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Ejected: why, and for how many milliseconds.
    Ejected {
        /// The detector.
        by: Detector,
        /// Ejection time in milliseconds.
        for_ms: u64,
    },
    /// Should have been ejected, but the ejected share is at its limit.
    Skipped {
        /// The detector.
        by: Detector,
    },
    /// Returned at a sweep.
    Returned,
}

/// Which count ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// `consecutive-5xx`.
    #[serde(rename = "consecutive_5xx")]
    Consecutive5xx,
    /// `consecutive-gateway`.
    ConsecutiveGateway,
    /// `consecutive-local-origin`.
    ConsecutiveLocalOrigin,
    /// The probing request after a return failed.
    Probe,
}
