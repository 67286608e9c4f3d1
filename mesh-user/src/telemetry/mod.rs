//! Metrics and access log: one record per request, one per connection, each emitted exactly once.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::policy::{Reject, RuleIx, Snapshot, SourceIx, VersionIx};

/// Everything that counts, writes and exposes. Shared by all workers.
#[derive(Debug)]
pub struct Telemetry {}

/// What was spoken, for the `request_protocol` label and the log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque TCP.
    Tcp,
}

/// One finished request. Borrowed: nothing is copied unless a log line is written.
#[derive(Clone, Debug)]
pub struct RequestRecord<'a> {
    /// The snapshot that decided.
    pub snapshot: &'a Snapshot,
    /// The workload that asked, `namespace/name`.
    pub workload: &'a Arc<str>,
    /// Its index, when the snapshot knows it.
    pub source: Option<SourceIx>,
    /// The rule.
    pub rule: Option<RuleIx>,
    /// The version, when one was chosen.
    pub version: Option<VersionIx>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// Client's address.
    pub peer: SocketAddr,
    /// Original destination.
    pub destination: SocketAddr,
    /// What was spoken.
    pub spoken: Spoken,
    /// Method; empty when the head could not be read.
    pub method: &'a str,
    /// Path with query, as received.
    pub target: &'a str,
    /// Authority.
    pub authority: &'a str,
    /// `x-request-id`, when the request had one.
    pub request_id: &'a str,
    /// `user-agent`.
    pub user_agent: &'a str,
    /// Status that the client got; 0 when none.
    pub status: u16,
    /// `grpc-status`, from trailers or header.
    pub grpc_status: Option<u8>,
    /// Why it was refused or failed.
    pub reject: Option<Reject>,
    /// Deliveries: 0 when nothing was forwarded, 2 and more with retries.
    pub attempts: u32,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// From the first byte of the request to the last of the answer.
    pub duration: Duration,
    /// From forwarding to the answer's head, when one came.
    pub upstream: Option<Duration>,
}

/// One finished TCP connection.
#[derive(Clone, Debug)]
pub struct ConnectionRecord<'a> {
    /// The snapshot that decided.
    pub snapshot: &'a Snapshot,
    /// The workload, `namespace/name`.
    pub workload: &'a Arc<str>,
    /// Its index, when the snapshot knows it.
    pub source: Option<SourceIx>,
    /// The rule.
    pub rule: Option<RuleIx>,
    /// The version; none for HTTP connections and refusals before the choice.
    pub version: Option<VersionIx>,
    /// The endpoint; none for HTTP connections.
    pub endpoint: Option<SocketAddr>,
    /// Client's address.
    pub peer: SocketAddr,
    /// Original destination.
    pub destination: SocketAddr,
    /// What was spoken.
    pub spoken: Spoken,
    /// Requests that it carried, for HTTP.
    pub requests: u64,
    /// Why it was refused or failed.
    pub reject: Option<Reject>,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// From accept to close.
    pub duration: Duration,
}

impl Telemetry {
    /// Counts a finished request and writes its log line.
    pub fn request(&self, _record: &RequestRecord<'_>) {
        unimplemented!("telemetry")
    }

    /// Counts an accepted connection.
    pub fn connection_opened(&self, _workload: &Arc<str>, _spoken: Spoken) {
        unimplemented!("telemetry")
    }

    /// Counts a finished connection and writes its log line.
    pub fn connection(&self, _record: &ConnectionRecord<'_>) {
        unimplemented!("telemetry")
    }

    /// Counts a panic that was caught at a task's root.
    pub fn task_panicked(&self, _task: &'static str) {
        unimplemented!("telemetry")
    }
}
