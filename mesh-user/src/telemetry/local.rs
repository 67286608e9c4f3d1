//! What one thread counts: small integers in, cells out, nothing shared on the way.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    ConnectionRecord, RequestRecord, Spoken, Telemetry,
    access_log::{Clock, Lane},
    labels,
    metrics::{BYTE_BOUNDS, DURATION_BOUNDS_US},
    series::{Cell, Family, LabelSet},
};
use crate::policy::{
    Reject, SourceIx,
    action::{Done, Kind},
};

/// Most cells that a thread remembers for one family. Above it starts anew: a cache, not a record.
const CACHE_MAX: usize = 8_192;

/// Most names of workloads outside the snapshot that a thread remembers.
const NAMES_MAX: usize = 1_024;

/// Numbers of a request series: count, then three histograms of (buckets, sum).
pub(super) mod request_numbers {
    use super::{BYTE_BOUNDS, DURATION_BOUNDS_US};

    pub(crate) const COUNT: usize = 0;
    pub(crate) const DURATION: usize = 1;
    pub(crate) const BYTES_IN: usize = DURATION + DURATION_BOUNDS_US.len() + 2;
    pub(crate) const BYTES_OUT: usize = BYTES_IN + BYTE_BOUNDS.len() + 2;
    pub(crate) const LEN: usize = BYTES_OUT + BYTE_BOUNDS.len() + 2;
}

/// Numbers of a TCP series.
pub(super) mod tcp_numbers {
    pub(crate) const OPENED: usize = 0;
    pub(crate) const CLOSED: usize = 1;
    pub(crate) const BYTES_IN: usize = 2;
    pub(crate) const BYTES_OUT: usize = 3;
    pub(crate) const LEN: usize = 4;
}

/// Numbers without a label set of the model: rejects by their order, and a few more.
pub(super) mod plain_numbers {
    use super::Kind;
    use crate::policy::Reject;

    pub(crate) const REJECTS: usize = 0;
    pub(crate) const RETRIES: usize = Reject::ALL.len();
    pub(crate) const OPENED: usize = RETRIES + 1;
    pub(crate) const CLOSED: usize = OPENED + super::Spoken::ALL.len();
    pub(crate) const ACTIONS: usize = CLOSED + super::Spoken::ALL.len();
    pub(crate) const LEN: usize = ACTIONS + Kind::ALL.len();
}

/// Where it went, as far as it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Destination {
    /// To a version.
    Version(u32),
    /// To a service port, but no version was chosen.
    Port(u32),
    /// To no service of the model.
    Outside,
}

/// Who with whom, and under which snapshot the numbers mean that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TcpKey {
    pub(super) generation: u64,
    pub(super) source: Option<SourceIx>,
    /// The workload's name, where the snapshot doesn't know it.
    pub(super) name: u32,
    pub(super) destination: Destination,
    pub(super) grpc: bool,
}

/// What tells request series apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    pub(super) peers: TcpKey,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) reject: Option<Reject>,
    pub(super) faults: Done,
}

/// One thread's part of a [`Telemetry`].
#[derive(Debug)]
pub(super) struct Local {
    telemetry: u64,
    thread: u64,
    requests: Cache<RequestKey, { request_numbers::LEN }>,
    tcp: Cache<TcpKey, { tcp_numbers::LEN }>,
    plain: Arc<Cell<{ plain_numbers::LEN }>>,
    names: HashMap<Box<str>, u32>,
    pub(super) lane: Arc<Lane>,
    pub(super) clock: Clock,
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

/// Calls `f` with the calling thread's part of `telemetry`.
pub(super) fn with<R>(telemetry: &Telemetry, f: impl FnOnce(&mut Local) -> R) -> R {
    let mut f = Some(f);
    let done = LOCAL.try_with(|slot| {
        let mut slot = slot.try_borrow_mut().ok()?;
        let local = match &mut *slot {
            Some(local) if local.telemetry == telemetry.id => local,
            other => other.insert(Local::new(telemetry)),
        };
        f.take().map(|f| f(local))
    });
    match (done, f) {
        (Ok(Some(result)), _) => result,
        // The thread is ending: what it still drops is counted and logged all the same.
        (_, Some(f)) => f(&mut Local::new(telemetry)),
        (_, None) => unreachable!("f is taken only where its result is returned"),
    }
}

impl Local {
    fn new(telemetry: &Telemetry) -> Self {
        static THREADS: AtomicU64 = AtomicU64::new(0);
        let thread = THREADS.fetch_add(1, Relaxed);
        Self {
            telemetry: telemetry.id,
            thread,
            requests: Cache::default(),
            tcp: Cache::default(),
            plain: telemetry.plain.cell(thread, None, LabelSet(Box::default())),
            names: HashMap::new(),
            lane: telemetry.log.lane(),
            clock: Clock::default(),
        }
    }

    pub(super) fn count_request(&mut self, telemetry: &Telemetry, record: &RequestRecord<'_>) {
        use request_numbers::{BYTES_IN, BYTES_OUT, COUNT, DURATION};
        let grpc = record.spoken == Spoken::Grpc;
        let key = RequestKey {
            peers: TcpKey {
                generation: record.snapshot.generation,
                source: record.source,
                name: self.name(record.source, record.workload),
                destination: Destination::new(record.version, || {
                    record
                        .snapshot
                        .port_at(record.destination.ip(), record.destination.port())
                }),
                grpc,
            },
            status: record.status,
            grpc_status: record.grpc_status.filter(|_| grpc),
            reject: record.reject,
            faults: record.actions.faults(),
        };
        let cell = self.requests.cell(key, key.peers.generation, || {
            let labels = labels::request(record.snapshot, record.workload, &key);
            telemetry
                .requests
                .cell(self.thread, Some(record.workload), labels)
        });
        cell.add(COUNT, 1);
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        observe(cell, DURATION, &DURATION_BOUNDS_US, micros);
        observe(cell, BYTES_IN, &BYTE_BOUNDS, record.bytes_in);
        observe(cell, BYTES_OUT, &BYTE_BOUNDS, record.bytes_out);
        self.count_reject(record.reject);
        if record.actions != Done::default() {
            for kind in Kind::ALL
                .into_iter()
                .filter(|kind| record.actions.has(*kind))
            {
                self.plain.add(plain_numbers::ACTIONS + kind as usize, 1);
            }
        }
        if record.attempts > 1 {
            self.plain
                .add(plain_numbers::RETRIES, u64::from(record.attempts - 1));
        }
    }

    pub(super) fn count_tcp_opened(
        &mut self,
        telemetry: &Telemetry,
        record: &ConnectionRecord<'_>,
    ) {
        self.tcp_cell(telemetry, record).add(tcp_numbers::OPENED, 1);
    }

    pub(super) fn count_connection(
        &mut self,
        telemetry: &Telemetry,
        record: &ConnectionRecord<'_>,
    ) {
        self.plain
            .add(plain_numbers::CLOSED + record.spoken as usize, 1);
        self.count_reject(record.reject);
        if record.spoken == Spoken::Tcp {
            let cell = self.tcp_cell(telemetry, record);
            cell.add(tcp_numbers::CLOSED, 1);
            cell.add(tcp_numbers::BYTES_IN, record.bytes_in);
            cell.add(tcp_numbers::BYTES_OUT, record.bytes_out);
        }
    }

    pub(super) fn count_accepted(&mut self, spoken: Spoken) {
        self.plain.add(plain_numbers::OPENED + spoken as usize, 1);
    }

    fn count_reject(&mut self, reject: Option<Reject>) {
        if let Some(reject) = reject {
            self.plain.add(plain_numbers::REJECTS + reject as usize, 1);
        }
    }

    fn tcp_cell(
        &mut self,
        telemetry: &Telemetry,
        record: &ConnectionRecord<'_>,
    ) -> &Cell<{ tcp_numbers::LEN }> {
        let key = TcpKey {
            generation: record.snapshot.generation,
            source: record.source,
            name: self.name(record.source, record.workload),
            destination: Destination::new(record.version, || {
                record
                    .snapshot
                    .port_at(record.destination.ip(), record.destination.port())
            }),
            grpc: false,
        };
        self.tcp.cell(key, key.generation, || {
            let labels = labels::tcp(record.snapshot, record.workload, &key);
            telemetry
                .tcp
                .cell(self.thread, Some(record.workload), labels)
        })
    }

    /// A number for a workload that the snapshot doesn't know; 0 where it does.
    fn name(&mut self, source: Option<SourceIx>, workload: &str) -> u32 {
        if source.is_some() {
            return 0;
        }
        if let Some(&known) = self.names.get(workload) {
            return known;
        }
        if self.names.len() >= NAMES_MAX {
            // The numbers are given anew, so cells found by the old ones must go too.
            self.names.clear();
            self.requests = Cache::default();
            self.tcp = Cache::default();
        }
        // At most NAMES_MAX.
        let number = self.names.len() as u32 + 1;
        self.names.insert(workload.into(), number);
        number
    }
}

/// Counts one observation: `first..` are the buckets (one more than bounds), then the sum.
fn observe<const N: usize, const B: usize>(
    cell: &Cell<N>,
    first: usize,
    bounds: &[u64; B],
    value: u64,
) {
    // A linear count without branches: cheaper than a search for so few bounds.
    let bucket = bounds
        .iter()
        .map(|bound| usize::from(value > *bound))
        .sum::<usize>();
    cell.add(first + bucket, 1);
    cell.add(first + B + 1, value);
}

/// Cells by key, as this thread found them.
#[derive(Debug)]
struct Cache<K, const N: usize> {
    /// Indexes into `cells`: a number can be copied out, so that a hit needs one look-up.
    places: HashMap<K, usize, BuildHasherDefault<Mix>>,
    cells: Vec<Arc<Cell<N>>>,
    newest: u64,
}

impl<K, const N: usize> Default for Cache<K, N> {
    fn default() -> Self {
        Self {
            places: HashMap::default(),
            cells: Vec::new(),
            newest: 0,
        }
    }
}

impl<K: Copy + Eq + Hash, const N: usize> Cache<K, N> {
    fn cell(&mut self, key: K, generation: u64, find: impl FnOnce() -> Arc<Cell<N>>) -> &Cell<N> {
        let place = match self.places.get(&key) {
            Some(&place) => {
                if self.cells[place].retired() {
                    self.cells[place] = find();
                }
                place
            }
            None => self.insert(key, generation, find()),
        };
        &self.cells[place]
    }

    /// A newer snapshot, or too many: begins anew. Requests that began before a reload find their
    /// cells again the slow way.
    fn insert(&mut self, key: K, generation: u64, cell: Arc<Cell<N>>) -> usize {
        if generation > self.newest || self.cells.len() >= CACHE_MAX {
            self.newest = self.newest.max(generation);
            self.places.clear();
            self.cells.clear();
        }
        self.cells.push(cell);
        self.places.insert(key, self.cells.len() - 1);
        self.cells.len() - 1
    }
}

/// A multiply-and-fold hash over small integers that no peer chooses freely: SipHash would cost
/// more than all the counting.
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0.rotate_left(23) ^ value) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}

/// Sums of a family, by name of the number: for tests and the exposition.
pub(super) fn plain_sums(family: &Family<{ plain_numbers::LEN }>) -> [u64; plain_numbers::LEN] {
    family
        .sums()
        .first()
        .map_or([0; plain_numbers::LEN], |(_, numbers)| *numbers)
}
