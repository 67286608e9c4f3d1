//! The thread that tells the kernel that the workers turn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{clock::MonoNanos, kernel::Heartbeat, proxy::Workers};

/// Four beats fit into the second after which the kernel calls the agent dead (DESIGN §10.7).
const BEAT: Duration = Duration::from_millis(250);

/// Longer than a connect hook runs, shorter than anybody notices: connects that were captured just
/// before the last beat reach the listener's queue in this time.
const SETTLE: Duration = Duration::from_millis(100);

/// The running thread.
pub(super) struct HeartbeatThread {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Heartbeat>,
    workers: Arc<Workers>,
}

impl HeartbeatThread {
    /// Beats at once, then every 250 ms, with the tick of the oldest worker: a hung worker makes
    /// the whole agent look hung, for its shard serves nobody.
    pub(super) fn start(heartbeat: Heartbeat, workers: Arc<Workers>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        heartbeat.beat(workers.oldest_tick());
        let thread = {
            let (stop, workers) = (Arc::clone(&stop), Arc::clone(&workers));
            std::thread::Builder::new()
                .name("mesh-heartbeat".into())
                .spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        heartbeat.beat(workers.oldest_tick());
                        std::thread::park_timeout(BEAT);
                    }
                    heartbeat
                })?
        };
        Ok(Self {
            stop,
            thread,
            workers,
        })
    }

    /// Ends the beats with a stale one, and gives the workers back.
    pub(super) fn stop(self) -> Arc<Workers> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if let Ok(heartbeat) = self.thread.join() {
            heartbeat.beat(MonoNanos(0));
        }
        std::thread::sleep(SETTLE);
        self.workers
    }
}
