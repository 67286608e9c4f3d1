//! The writer thread: takes what lanes hold, writes it, and looks after the file.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::Ordering::{AcqRel, Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use super::Shared;

/// Lines wait so long for company: a write for each line would cost more than the lines.
const BATCH: Duration = Duration::from_millis(20);

/// How often it is looked whether the file was moved, while lines are written.
const MOVED_CHECK: Duration = Duration::from_secs(1);

/// What the writer is asked to do.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) target: Option<Target>,
    pub(super) reopen: bool,
    pub(super) stop: bool,
    pub(super) stopped: bool,
    pub(super) flush_asked: u64,
    pub(super) flush_done: u64,
}

/// Where lines go.
#[derive(Debug)]
pub(super) enum Target {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Target {
    /// Standard output, or the file, created when it isn't there.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::Stdout);
        };
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!(
                        "access log {}: can't open it for appending: {error}",
                        path.display()
                    ),
                )
            })?;
        Ok(Self::File {
            path: path.to_owned(),
            file,
        })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Self::File { file, .. } => file.write_all(lines),
        }
    }

    /// Whether the path no longer leads to the open file.
    fn moved(&self) -> bool {
        let Self::File { path, file } = self else {
            return false;
        };
        let (Ok(open), Ok(named)) = (file.metadata(), path.metadata()) else {
            return true;
        };
        (open.dev(), open.ino()) != (named.dev(), named.ino())
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File { path, .. } = self {
            *self = Self::open(Some(path))?;
        }
        Ok(())
    }
}

/// Writes until it is told to stop.
pub(super) fn run(shared: &Shared, target: Target) {
    let mut writer = Writer {
        target,
        spare: Vec::new(),
        checked: Instant::now(),
        failing: false,
    };
    loop {
        let (stop, flush) = wait(shared);
        writer.follow(shared);
        // Cleared before the lanes are read: a line that comes later sets it again.
        shared.pending.swap(false, AcqRel);
        writer.drain(shared);
        let mut control = shared.control();
        control.flush_done = flush;
        control.stopped = stop;
        shared.changed.notify_all();
        if stop {
            // Lanes point back at `shared`: without this neither would ever be freed.
            shared.lanes().clear();
            return;
        }
    }
}

/// Sleeps until there are lines, then a moment longer, or until somebody asks for something.
/// Returns whether to stop, and which flushes the next drain answers.
fn wait(shared: &Shared) -> (bool, u64) {
    let mut batch_until = None;
    loop {
        {
            let control = shared.control();
            let asked = control.stop
                || control.reopen
                || control.target.is_some()
                || control.flush_asked > control.flush_done;
            if asked {
                return (control.stop, control.flush_asked);
            }
        }
        if !shared.pending.load(Relaxed) {
            thread::park();
            continue;
        }
        let now = Instant::now();
        let until = *batch_until.get_or_insert(now + BATCH);
        if now >= until {
            let control = shared.control();
            return (control.stop, control.flush_asked);
        }
        thread::park_timeout(until - now);
    }
}

struct Writer {
    target: Target,
    /// An empty buffer that is swapped for a full one: capacities go round, nothing is allocated.
    spare: Vec<u8>,
    checked: Instant,
    failing: bool,
}

impl Writer {
    /// Takes a new target over, or opens the file again when it was asked or moved.
    fn follow(&mut self, shared: &Shared) {
        let (target, asked) = {
            let mut control = shared.control();
            (control.target.take(), mem::take(&mut control.reopen))
        };
        if let Some(target) = target {
            // Lines that wait were made for the old one.
            self.drain(shared);
            self.target = target;
            return;
        }
        let due = self.checked.elapsed() >= MOVED_CHECK;
        if due {
            self.checked = Instant::now();
        }
        if (asked || (due && self.target.moved()))
            && let Err(error) = self.target.reopen()
        {
            tracing::warn!(%error, "access log: kept the old file");
        }
    }

    fn drain(&mut self, shared: &Shared) {
        let lanes = shared.lanes().clone();
        for lane in &lanes {
            // Oldest first: the thread fills `current`; the other half is what it left.
            let current = lane.current.load(Relaxed);
            for half in [1 - current, current] {
                {
                    let mut buffer = lane.halves[half]
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    mem::swap(&mut *buffer, &mut self.spare);
                }
                self.write(shared);
            }
        }
        drop(lanes);
        // Lanes of threads that ended, once they are empty.
        shared.lanes().retain(|lane| {
            Arc::strong_count(lane) > 1
                || lane.halves.iter().any(|half| {
                    !half
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .is_empty()
                })
        });
    }

    fn write(&mut self, shared: &Shared) {
        if self.spare.is_empty() {
            return;
        }
        let result = self.target.write(&self.spare);
        if let Err(error) = &result {
            let lines = self.spare.iter().filter(|byte| **byte == b'\n').count();
            shared.lost.fetch_add(lines as u64, Relaxed);
            // Once for each outage; the counter says the rest.
            if !self.failing {
                tracing::warn!(%error, "access log: lines are lost");
            }
        }
        self.failing = result.is_err();
        self.spare.clear();
    }
}
