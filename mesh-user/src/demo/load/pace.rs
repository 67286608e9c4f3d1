//! Wakes at exact times. tokio's timer counts milliseconds, which is more than what is measured.

use std::{
    cell::RefCell,
    collections::VecDeque,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    rc::Rc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Starting times at a fixed rate.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    interval_ns: f64,
    waiting: RefCell<VecDeque<(Instant, Waker)>>,
}

/// nix's timer, as tokio wants it.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[expect(unsafe_code, reason = "tokio takes descriptors only so")]
fn register(timer: TimerFd) -> anyhow::Result<AsyncFd<Timer>> {
    // SAFETY: `as_raw_fd` returns the descriptor that the `TimerFd` owns. The `AsyncFd` owns the
    // `Timer`, which gives the `TimerFd` to nobody and is never replaced, so that descriptor stays
    // open and the same until the `AsyncFd` is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?)
}

impl Pace {
    pub(super) fn new(rate: u32) -> Self {
        let start = Instant::now() + Duration::from_millis(1);
        Self {
            start,
            interval_ns: 1e9 / f64::from(rate),
            waiting: RefCell::default(),
        }
    }

    /// When request `number` is to start.
    pub(super) fn due(&self, number: u64) -> Instant {
        // An hour at a million per second stays below 2^53, so the sum is exact enough.
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let offset = number as f64 * self.interval_ns;
        self.start + Duration::from_secs_f64(offset / 1e9)
    }

    /// How many requests are due before a time.
    pub(super) fn due_before(&self, end: Instant) -> u64 {
        let span_ns = end.saturating_duration_since(self.start).as_nanos() as f64;
        (span_ns / self.interval_ns).ceil() as u64
    }

    /// Waits until then; callers must come in the order of their times.
    pub(super) async fn until(&self, due: Instant) {
        std::future::poll_fn(|context| {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            debug_assert!(
                waiting.back().is_none_or(|(last, _)| *last <= due),
                "in order"
            );
            waiting.push_back((due, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Wakes whoever is due, for ever.
    pub(super) async fn drive(self: Rc<Self>) -> anyhow::Result<()> {
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        let interval = Duration::from_nanos(self.interval_ns as u64);
        let tick = TimeSpec::from_duration(interval);
        timer.set(Expiration::Interval(tick), TimerSetTimeFlags::empty())?;
        let timer = register(timer)?;
        loop {
            let mut ready = timer.readable().await?;
            // Non-blocking: a spurious wake-up reads nothing, and there is nobody to wake.
            if ready
                .try_io(|timer| timer.get_ref().0.wait().map_err(Into::into))
                .is_ok()
            {
                self.wake_due();
            }
        }
    }

    fn wake_due(&self) {
        let now = Instant::now();
        let mut waiting = self.waiting.borrow_mut();
        while let Some((due, _)) = waiting.front() {
            if *due > now {
                return;
            }
            if let Some((_, waker)) = waiting.pop_front() {
                waker.wake();
            }
        }
    }
}
