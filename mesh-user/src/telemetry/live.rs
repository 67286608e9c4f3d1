//! What is told of an open connection: `mesh explain --live`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One open connection and what was decided for it last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveConnection {
    /// Which worker serves it.
    pub worker: usize,
    /// `outbound` or `inbound`, seen from the workload.
    pub direction: String,
    /// The workload, `namespace/name`.
    pub workload: String,
    /// The client's side.
    pub peer: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
    /// `http/1`, `http/2` or `tcp`; none before the first bytes told.
    pub protocol: Option<String>,
    /// Milliseconds since it was accepted.
    pub age_ms: u64,
    /// Requests so far, those in flight included.
    pub requests: u64,
    /// Between requests.
    pub idle: bool,
    /// The last decision; none before the first.
    pub last: Option<LiveDecision>,
}

/// The last decision of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveDecision {
    /// Generation of the configuration that decided.
    pub generation: u64,
    /// Whether that is the one in force.
    pub current: bool,
    /// The workload that asked, where it is one of the node.
    pub source: Option<String>,
    /// The rule; none: implicit route, no match, or forgotten with its configuration.
    pub rule: Option<String>,
    /// The service that was sent to, `namespace/name`.
    pub service: Option<String>,
    /// The version.
    pub version: Option<String>,
    /// The endpoint.
    pub endpoint: Option<SocketAddr>,
    /// HTTP status of the answer, once there was one.
    pub status: Option<u16>,
    /// Why it was refused.
    pub reject: Option<String>,
    /// Milliseconds since then.
    pub age_ms: u64,
}
