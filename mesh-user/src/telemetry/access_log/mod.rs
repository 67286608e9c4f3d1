//! The access log: lines from many threads to one file, without anybody waiting.
//!
//! Each thread appends to its own [`Lane`], a pair of buffers; the writer thread takes them some
//! times a second. A lane holds [`LANE_BYTES_MAX`] for each buffer; what comes above is dropped
//! and counted, so a slow disk or a blocked pipe never delays a request.

mod escape;
mod line;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    io,
    sync::{
        Arc, Mutex, TryLockError,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
    thread,
    time::Duration,
};

pub(super) use line::Clock;

use super::{ConnectionRecord, RequestRecord};
use crate::config::{AccessLog as Settings, LogFilter, LogFormat};

/// Most bytes of lines that wait in one buffer of one thread. At 200 bytes a line and 50,000
/// requests a second on one core, a writer may be late by 100 ms; twice, since there are two.
pub(super) const LANE_BYTES_MAX: usize = 1 << 20;

/// How long a stop waits for the last lines to be written.
const STOP_MAX: Duration = Duration::from_secs(2);

/// The access log of the agent.
#[derive(Debug)]
pub(super) struct AccessLog {
    shared: Arc<Shared>,
    writer: Option<thread::JoinHandle<()>>,
    format: AtomicU8,
    filter: AtomicU8,
}

/// What workers and the writer share.
#[derive(Debug, Default)]
struct Shared {
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// There may be lines that the writer hasn't seen.
    pending: AtomicBool,
    lost: AtomicU64,
    control: Mutex<writer::Control>,
    changed: std::sync::Condvar,
    thread: std::sync::OnceLock<thread::Thread>,
}

/// One thread's lines on their way to the writer.
///
/// Two buffers, of which the writer holds at most one at a time, and only for a swap of pointers:
/// the thread finds one of them free and never waits.
#[derive(Debug)]
pub(super) struct Lane {
    halves: [Mutex<Vec<u8>>; 2],
    current: AtomicUsize,
    shared: Arc<Shared>,
}

impl AccessLog {
    /// Opens the file and starts the writer.
    pub(super) fn start(settings: &Settings) -> io::Result<Self> {
        let target = writer::Target::open(settings.path.as_deref())?;
        let shared = Arc::new(Shared::default());
        let writer = thread::Builder::new().name("mesh-log".into()).spawn({
            let shared = shared.clone();
            move || writer::run(&shared, target)
        })?;
        // Set before any lane exists: `lane` needs `&self`.
        shared.thread.get_or_init(|| writer.thread().clone());
        Ok(Self {
            shared,
            writer: Some(writer),
            format: AtomicU8::new(settings.format as u8),
            filter: AtomicU8::new(settings.filter as u8),
        })
    }

    /// Puts other settings in force, for the next line.
    pub(super) fn reconfigure(&self, settings: &Settings) -> io::Result<()> {
        let target = writer::Target::open(settings.path.as_deref())?;
        self.shared.control().target = Some(target);
        self.shared.wake();
        self.format.store(settings.format as u8, Relaxed);
        self.filter.store(settings.filter as u8, Relaxed);
        Ok(())
    }

    /// Opens the file again (SIGHUP).
    pub(super) fn reopen(&self) {
        self.shared.control().reopen = true;
        self.shared.wake();
    }

    /// Waits until all lines so far are written; whether they were within 2 s.
    pub(super) fn flush(&self) -> bool {
        let mut control = self.shared.control();
        control.flush_asked += 1;
        let ticket = control.flush_asked;
        self.shared.wake();
        let (control, _) = self
            .shared
            .changed
            .wait_timeout_while(control, STOP_MAX, |control| control.flush_done < ticket)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        control.flush_done >= ticket
    }

    /// Lines that were not written.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Relaxed)
    }

    /// A lane for the calling thread.
    pub(super) fn lane(&self) -> Arc<Lane> {
        let lane = Arc::new(Lane {
            halves: [Mutex::default(), Mutex::default()],
            current: AtomicUsize::new(0),
            shared: self.shared.clone(),
        });
        self.shared.lanes().push(lane.clone());
        lane
    }

    pub(super) fn request(&self, lane: &Lane, clock: &mut Clock, record: &RequestRecord<'_>) {
        let failed = record.reject.is_some()
            || record.status >= 500
            || record.grpc_status.is_some_and(line::grpc_server_error);
        if self.wants(failed) {
            let start = clock.before(record.duration);
            lane.append(|out| line::request(self.format(), start, record, out));
        }
    }

    pub(super) fn connection(&self, lane: &Lane, clock: &mut Clock, record: &ConnectionRecord<'_>) {
        if self.wants(record.reject.is_some()) {
            let start = clock.before(record.duration);
            lane.append(|out| line::connection(self.format(), start, record, out));
        }
    }

    fn wants(&self, failed: bool) -> bool {
        let filter = self.filter.load(Relaxed);
        filter == LogFilter::All as u8 || (failed && filter == LogFilter::Errors as u8)
    }

    fn format(&self) -> LogFormat {
        match self.format.load(Relaxed) {
            json if json == LogFormat::Json as u8 => LogFormat::Json,
            logfmt if logfmt == LogFormat::Logfmt as u8 => LogFormat::Logfmt,
            _ => LogFormat::Envoy,
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let mut control = self.shared.control();
        control.stop = true;
        self.shared.wake();
        let (control, _) = self
            .shared
            .changed
            .wait_timeout_while(control, STOP_MAX, |control| !control.stopped)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // A writer that hangs in a blocked pipe is left to the end of the process.
        if control.stopped
            && let Some(writer) = self.writer.take()
        {
            drop(control);
            // It ended; a panic in it was its own message.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn control(&self) -> std::sync::MutexGuard<'_, writer::Control> {
        self.control
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Lane>>> {
        self.lanes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Lane {
    /// Appends one line. Never waits; drops and counts the line when the buffer is full.
    fn append(&self, line: impl Fn(&mut Vec<u8>)) {
        let current = self.current.load(Relaxed);
        if !self.try_append(current, &line) {
            // The writer is swapping this one: it holds no other.
            self.current.store(1 - current, Relaxed);
            if !self.try_append(1 - current, &line) {
                self.shared.lost.fetch_add(1, Relaxed);
                return;
            }
        }
        // One system call for each batch, not for each line.
        if !self.shared.pending.load(Relaxed) && !self.shared.pending.swap(true, AcqRel) {
            self.shared.wake();
        }
    }

    /// Whether the half was free; a line that finds no room counts as lost.
    fn try_append(&self, half: usize, line: &impl Fn(&mut Vec<u8>)) -> bool {
        let mut buffer = match self.halves[half].try_lock() {
            Ok(buffer) => buffer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if buffer.len() >= LANE_BYTES_MAX {
            self.shared.lost.fetch_add(1, Relaxed);
        } else {
            line(&mut buffer);
        }
        true
    }
}
