//! The thread that tells the kernel that the workers turn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    clock::{self, MonoNanos},
    kernel::{Heartbeat, Shards},
    proxy::Workers,
};

/// Four beats fit into the second after which the kernel calls the agent dead (DESIGN §10.7).
const BEAT: Duration = Duration::from_millis(250);

/// A worker that did not turn for so long stands still: two ticks of 250 ms and some. Looked at in
/// every beat, so its shards lead elsewhere 850 ms after its last turn at the latest, before the
/// heartbeat that it held up is a second old.
const STANDS_STILL: Duration = Duration::from_millis(600);

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
    /// Beats at once, then every 250 ms, with the tick of the oldest worker that turns. The shards of
    /// a worker that stands still lead to the others meanwhile; when all stand still, or the shards
    /// can't be led elsewhere, the whole agent counts as hung.
    pub(super) fn start(
        heartbeat: Heartbeat,
        shards: Arc<Shards>,
        workers: Arc<Workers>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        heartbeat.beat(workers.oldest_tick());
        let thread = {
            let (stop, workers) = (Arc::clone(&stop), Arc::clone(&workers));
            std::thread::Builder::new()
                .name("mesh-heartbeat".into())
                .spawn(move || {
                    let mut before = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let ticks: Vec<MonoNanos> = workers.ticks().collect();
                        let stuck = standing_still(&ticks, clock::now());
                        let led_elsewhere = shards.repoint(stuck);
                        if stuck != before {
                            say(stuck, led_elsewhere);
                            before = stuck;
                        }
                        heartbeat.beat(tick_of(&ticks, if led_elsewhere { stuck } else { 0 }));
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
        let (workers, heartbeat) = self.retire();
        if let Some(heartbeat) = heartbeat {
            heartbeat.end();
        }
        std::thread::sleep(SETTLE);
        workers
    }

    /// Ends the beats without a word: a successor beats.
    pub(super) fn retire(self) -> (Arc<Workers>, Option<Heartbeat>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        (self.workers, self.thread.join().ok())
    }
}

fn say(stuck: u8, led_elsewhere: bool) {
    let workers: Vec<u32> = (0..u8::BITS).filter(|n| stuck & (1 << n) != 0).collect();
    if workers.is_empty() {
        tracing::info!("all workers turn again");
    } else {
        tracing::error!(
            ?workers,
            led_elsewhere,
            "workers stand still: new connections go to the others"
        );
    }
}

/// Which workers stand still: bit N for worker N.
fn standing_still(ticks: &[MonoNanos], now: MonoNanos) -> u8 {
    let still = |tick: &MonoNanos| now.since(*tick) > STANDS_STILL;
    (0..u8::BITS)
        .zip(ticks)
        .filter(|(_, tick)| still(tick))
        .fold(0, |mask, (n, _)| mask | 1 << n)
}

/// The oldest tick of those that count; of all of them when none does.
fn tick_of(ticks: &[MonoNanos], stuck: u8) -> MonoNanos {
    let turning = (0..u8::BITS)
        .zip(ticks)
        .filter(|(n, _)| stuck & (1 << n) == 0);
    let oldest = turning.map(|(_, tick)| tick.0).min();
    let oldest = oldest.or_else(|| ticks.iter().map(|tick| tick.0).min());
    MonoNanos(oldest.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonoNanos {
        MonoNanos(ms * 1_000_000)
    }

    #[test]
    fn worker_that_missed_two_ticks_stands_still_and_does_not_count() {
        let ticks = [at(10_000), at(9_400), at(9_399)];
        let stuck = standing_still(&ticks, at(10_000));
        assert_eq!(stuck, 0b100, "600 ms is not over the limit");
        assert_eq!(tick_of(&ticks, stuck), at(9_400));
        assert_eq!(tick_of(&ticks, 0), at(9_399));
    }

    #[test]
    fn agent_whose_workers_all_stand_still_is_as_old_as_the_oldest() {
        let ticks = [at(9_000), at(8_000)];
        let stuck = standing_still(&ticks, at(10_000));
        assert_eq!(stuck, 0b11);
        assert_eq!(tick_of(&ticks, stuck), at(8_000));
        assert_eq!(tick_of(&[], 0), at(0), "no worker, no life");
    }
}
