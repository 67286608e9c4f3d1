//! Metrics and access log: one record per request, one per connection, each emitted exactly once.
//!
//! Workers call [`Telemetry::request`] and [`Telemetry::connection`] from `Drop`. Numbers go to
//! cells that belong to the calling thread (`local`), lines to a buffer that belongs to it
//! (`access_log`): no worker ever waits for another, for a scrape, or for a disk.

mod access_log;
mod docs;
mod expose;
mod health;
mod kernel;
mod labels;
mod limits;
mod live;
mod local;
pub mod logging;
pub mod metrics;
pub mod mirror;
mod process;
mod refusals;
mod series;
mod shield;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use docs::markdown;
pub use expose::{BREAKERS_MAX, Breaker, Scrape};
pub use kernel::KernelCounts;
pub use limits::{LIMITS_MAX, LimitSample};
pub use live::{LiveConnection, LiveDecision};
pub use refusals::Refused;
pub use series::{GONE_KEPT, SERIES_MAX};
pub use shield::ShieldSample;
pub use tls::{Handshake, TlsSide};

use crate::{
    clock::MonoNanos,
    config::AccessLog as LogSettings,
    policy::{
        Reject, RuleIx, Snapshot, SourceIx, VersionIx,
        action::Done,
        ejection::{Change, What},
    },
};
use access_log::AccessLog;
use local::{plain_numbers, request_numbers, tcp_numbers};
use metrics::{REQUEST_LABELS, TCP_LABELS};
use series::Family;

/// Everything that counts, writes and exposes. Shared by all workers.
#[derive(Debug)]
pub struct Telemetry {
    /// Tells the thread-local parts of several agents in one process (tests) apart.
    id: u64,
    requests: Family<{ request_numbers::LEN }>,
    tcp: Family<{ tcp_numbers::LEN }>,
    plain: Family<{ plain_numbers::LEN }>,
    kernel: kernel::KernelSeries,
    health: health::HealthSeries,
    ejections: [AtomicU64; 3],
    sources_lost: AtomicU64,
    mirrors: mirror::MirrorSeries,
    tls: tls::Handshakes,
    /// Changes that nobody has taken yet, the newest.
    changes: Mutex<VecDeque<Change>>,
    refusals: refusals::Refusals,
    panics: Mutex<BTreeMap<&'static str, u64>>,
    log: AccessLog,
}

/// Which way a connection goes, as its workload sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The workload opened it.
    #[default]
    Outbound,
    /// It came to the workload.
    Inbound,
}

impl Direction {
    /// Its name in the access log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Changes of endpoints that wait to be taken, four times a second.
const CHANGES_KEPT: usize = 1_024;

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
///
/// What the client chose is bytes: RFC 9110 §5.5 allows values that are not UTF-8, and one such
/// byte must not hide a request's path from the log.
#[derive(Clone, Debug)]
pub struct RequestRecord<'a> {
    /// The snapshot that decided.
    pub snapshot: &'a Snapshot,
    /// The workload that asked, or that was asked, `namespace/name`.
    pub workload: &'a Arc<str>,
    /// Which of both.
    pub direction: Direction,
    /// Who asked, when it is a workload that the snapshot knows.
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
    pub method: &'a [u8],
    /// Path with query, as received.
    pub target: &'a [u8],
    /// Authority.
    pub authority: &'a [u8],
    /// `x-request-id`, when the request had one.
    pub request_id: &'a [u8],
    /// `user-agent`.
    pub user_agent: &'a [u8],
    /// Status that the client got; 0 when none.
    pub status: u16,
    /// `grpc-status`, from trailers or header.
    pub grpc_status: Option<u8>,
    /// Why it was refused or failed.
    pub reject: Option<Reject>,
    /// What its rule did with it.
    pub actions: Done,
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
    /// The rate limit that would have refused it, were it not a dry run.
    pub dry_run: Option<&'a str>,
}

/// One finished TCP connection.
#[derive(Clone, Debug)]
pub struct ConnectionRecord<'a> {
    /// The snapshot that decided.
    pub snapshot: &'a Snapshot,
    /// The workload, `namespace/name`.
    pub workload: &'a Arc<str>,
    /// Whether it opened the connection, or the connection came to it.
    pub direction: Direction,
    /// Who opened it, when it is a workload that the snapshot knows.
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
    /// The server name of a TLS ClientHello.
    pub server_name: Option<&'a str>,
    /// Why it was refused or failed.
    pub reject: Option<Reject>,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// The rate limit that would have refused it, were it not a dry run.
    pub dry_run: Option<&'a str>,
    /// From accept to close.
    pub duration: Duration,
}

impl Spoken {
    /// Every one, in the order of the enum.
    pub const ALL: &'static [Self] = &[Self::Http1, Self::Http2, Self::Grpc, Self::Tcp];

    /// Its name in `mesh_connections_opened_total{protocol}`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// Envoy's response flags of what was done and of how it ended.
fn flags(done: Done, reject: Option<Reject>) -> Cow<'static, str> {
    match (done.flags(), reject.map_or("", Reject::flag)) {
        ("", "") => "-".into(),
        (one, "") | ("", one) => one.into(),
        (done, ended) => format!("{done},{ended}").into(),
    }
}

impl Telemetry {
    /// Opens the access log and starts its writer thread.
    ///
    /// # Errors
    /// The file can't be opened (its path is in the message), or no thread can be made.
    pub fn new(log: &LogSettings) -> io::Result<Arc<Self>> {
        static TELEMETRIES: AtomicU64 = AtomicU64::new(0);
        Ok(Arc::new(Self {
            id: TELEMETRIES.fetch_add(1, Relaxed),
            requests: Family::new(REQUEST_LABELS.len(), SERIES_MAX),
            tcp: Family::new(TCP_LABELS.len(), SERIES_MAX),
            plain: Family::new(0, 1),
            kernel: kernel::KernelSeries::default(),
            health: health::HealthSeries::default(),
            ejections: [const { AtomicU64::new(0) }; 3],
            sources_lost: AtomicU64::new(0),
            mirrors: mirror::MirrorSeries::default(),
            tls: tls::Handshakes::default(),
            changes: Mutex::default(),
            refusals: refusals::Refusals::default(),
            panics: Mutex::default(),
            log: AccessLog::start(log)?,
        }))
    }

    /// Counts a finished request and writes its log line.
    pub fn request(&self, record: &RequestRecord<'_>) {
        self.refusals.note(record.reject, |reject| Refused {
            reject,
            workload: Arc::clone(record.workload),
            direction: record.direction,
            peer: record.peer,
            destination: record.destination,
        });
        local::with(self, |local| {
            local.count_request(self, record);
            self.log.request(&local.lane, &mut local.clock, record);
        });
    }

    /// Counts an accepted connection.
    pub fn connection_opened(&self, _workload: &Arc<str>, spoken: Spoken) {
        local::with(self, |local| local.count_accepted(spoken));
    }

    /// Counts an opaque connection when it is known where it goes: Istio's
    /// `istio_tcp_connections_opened_total` carries the destination. Numbers in the record that
    /// only the end knows are not read.
    pub fn tcp_opened(&self, record: &ConnectionRecord<'_>) {
        local::with(self, |local| local.count_tcp_opened(self, record));
    }

    /// Counts a finished connection and writes its log line.
    pub fn connection(&self, record: &ConnectionRecord<'_>) {
        self.refusals.note(record.reject, |reject| Refused {
            reject,
            workload: Arc::clone(record.workload),
            direction: record.direction,
            peer: record.peer,
            destination: record.destination,
        });
        local::with(self, |local| {
            local.count_connection(self, record);
            self.log.connection(&local.lane, &mut local.clock, record);
        });
    }

    /// The first refusals of the proxy since the last call, at most 16, and how many more there
    /// were.
    pub fn take_refusals(&self) -> (Vec<Refused>, u64) {
        self.refusals.take()
    }

    /// Counts a panic that was caught at a task's root.
    pub fn task_panicked(&self, task: &'static str) {
        let mut panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        *panics.entry(task).or_default() += 1;
    }

    /// Counts what became of connections that the kernel sent to an endpoint of a version.
    pub fn kernel_counted(&self, snapshot: &Snapshot, version: VersionIx, counts: &KernelCounts) {
        self.kernel.count(snapshot, version, counts);
    }

    /// Counts an active health check of an endpoint of a service.
    pub fn health_check(&self, namespace: &Arc<str>, service: &Arc<str>, result: &'static str) {
        self.health.count(namespace, service, result);
    }

    /// Says how many endpoints of each service that is checked are unhealthy: namespace, service,
    /// count.
    pub fn unhealthy_endpoints(&self, counts: impl Iterator<Item = (Arc<str>, Arc<str>, u64)>) {
        self.health.unhealthy(counts);
    }

    /// One endpoint more of a service, or one less, is unhealthy.
    pub fn unhealthy_changed(&self, namespace: &Arc<str>, service: &Arc<str>, sick: bool) {
        self.health.unhealthy_changed(namespace, service, sick);
    }

    /// Counts a dial to an application that could not have its client's address.
    pub fn source_lost(&self) {
        self.sources_lost.fetch_add(1, Relaxed);
    }

    /// The counters of the mirrors to a service, `namespace/name`. Slow: keep what it returns.
    pub fn mirror_counts(&self, service: &Arc<str>) -> Arc<mirror::MirrorCounts> {
        self.mirrors.of(service)
    }

    /// Counts how a TLS handshake ended.
    pub fn tls_handshake(&self, side: TlsSide, ended: Handshake) {
        self.tls.count(side, ended);
    }

    /// Says how many problems there are with certificate, key and CA files.
    pub fn set_tls_files_refused(&self, count: usize) {
        self.tls.set_refused(count);
    }

    /// Counts what `Snapshot::record` and `Snapshot::sweep` changed.
    pub fn ejection(&self, change: &Change) {
        let index = match change.what {
            What::Ejected { .. } => 0,
            What::Skipped { .. } => 1,
            What::Returned => 2,
        };
        self.ejections[index].fetch_add(1, Relaxed);
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() == CHANGES_KEPT {
            changes.pop_front();
        }
        changes.push_back(change.clone());
    }

    /// Takes the changes since the last call, the oldest first; of more than 1,024 the newest.
    pub fn take_ejections(&self) -> Vec<Change> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.drain(..).collect()
    }

    /// Puts other access-log settings in force, for the next line.
    ///
    /// # Errors
    /// The file can't be opened: the old settings stay.
    pub fn set_access_log(&self, log: &LogSettings) -> io::Result<()> {
        self.log.reconfigure(log)
    }

    /// Opens the access-log file again: SIGHUP, after logrotate has moved it.
    pub fn reopen_access_log(&self) {
        self.log.reopen();
    }

    /// Waits until the access log has written every line so far; whether it did within 2 s.
    pub fn flush(&self) -> bool {
        self.log.flush()
    }

    /// What was counted, as OpenMetrics text.
    pub fn expose(&self) -> String {
        let mut out = String::new();
        expose::write(self, None, &mut out).expect("a String takes everything");
        out
    }

    /// The same, with what others know, piece by piece: all of it may be 100 MiB, when every
    /// family is at its limit.
    ///
    /// # Errors
    /// `out` takes no more.
    pub fn expose_to(&self, scrape: &Scrape, out: &mut dyn fmt::Write) -> fmt::Result {
        expose::write(self, Some(scrape), out)
    }

    /// Removes the series of workloads that have been gone for [`GONE_KEPT`]. Called every few
    /// seconds; `live` says whether a `namespace/name` is still there. Returns how many went.
    pub fn retire(&self, live: &dyn Fn(&str) -> bool, now: MonoNanos) -> usize {
        self.requests.retire(live, now) + self.tcp.retire(live, now)
    }

    fn ejections(&self) -> [u64; 3] {
        [0, 1, 2].map(|index| self.ejections[index].load(Relaxed))
    }

    fn panics(&self) -> Vec<(&'static str, u64)> {
        let panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        panics.iter().map(|(task, count)| (*task, *count)).collect()
    }
}
