//! Worker threads: one runtime, one shard, one set of pools each.

use std::{io, sync::Arc, time::Duration};

use super::wire::{OriginLookup, SocketSource, WorkloadHandle};
use crate::{config::Limits, policy::Snapshot, telemetry::Telemetry};

/// What the control side tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve this listener of a workload: already bound, listening and non-blocking.
    Listen {
        /// The workload.
        workload: Arc<WorkloadHandle>,
        /// The listener that stands in its namespace.
        listener: std::net::TcpListener,
    },
    /// The workload is gone: close its listener, its connections and pools, so that nothing of
    /// ours keeps its namespace alive.
    Release {
        /// The workload's number.
        pod_id: u32,
    },
}

/// What workers are started with.
#[derive(Clone, Debug)]
pub struct WorkersOptions {
    /// How many worker threads, 1 to 8 (`SHARDS_MAX`).
    pub workers: usize,
    /// Pin worker N to the N-th allowed CPU.
    pub pin: bool,
    /// Limits of the data path.
    pub limits: Limits,
    /// For the original destination.
    pub origins: Arc<dyn OriginLookup>,
    /// Dials from the agent's own namespace.
    pub node_sockets: Arc<dyn SocketSource>,
    /// Metrics and access log.
    pub telemetry: Arc<Telemetry>,
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread or runtime could not be made.
    pub fn start(_options: WorkersOptions, _first: Arc<Snapshot>) -> io::Result<Self> {
        unimplemented!("proxy")
    }

    /// How many there are: the number of shards.
    pub fn count(&self) -> usize {
        unimplemented!("proxy")
    }

    /// Sends a command to worker `index`.
    pub fn send(&self, _index: usize, _command: Command) {
        unimplemented!("proxy")
    }

    /// Puts a snapshot in force: the next request on every connection uses it.
    pub fn swap(&self, _snapshot: Arc<Snapshot>) {
        unimplemented!("proxy")
    }

    /// The time of the oldest worker's last turn, CLOCK_MONOTONIC: each worker ticks every 250 ms;
    /// the agent's heartbeat writes the oldest tick into the kernel.
    pub fn oldest_tick(&self) -> crate::clock::MonoNanos {
        unimplemented!("proxy")
    }

    /// Stops accepting, lets requests in flight end (HTTP/1.1 answers get `connection: close`,
    /// HTTP/2 a GOAWAY), then cuts the rest after `limit`. Returns how many were cut.
    pub fn drain(self, _limit: Duration) -> usize {
        unimplemented!("proxy")
    }
}
