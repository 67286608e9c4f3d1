//! One coarse timer for each connection, re-armed lazily.
//!
//! Deadlines move with every request, the runtime's timer wheel should not. The timer is first armed
//! [`STEP`] ahead; a deadline that lies later needs no operation at all, because the timer fires
//! early, looks, and arms itself again: then for the deadline itself, so that an idle connection is
//! woken once and not every [`STEP`]. With the default time-outs (all at least [`STEP`]) a request
//! touches the wheel only when it is the first after such a pause; a shorter one, such as a per-try
//! time-out, moves it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::clock::{self, MonoNanos};

/// How far ahead the timer is armed at first: the shortest default time-out (request head).
const STEP: Duration = Duration::from_secs(10);
/// How far ahead it is armed at most: the longest default time-out (idle).
const FAR: Duration = Duration::from_secs(3600);

/// A connection's only timer.
#[derive(Debug)]
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    armed: MonoNanos,
    registered: bool,
}

impl Timer {
    /// Armed [`STEP`] ahead of `now`.
    pub(super) fn new(now: MonoNanos) -> Self {
        Self {
            sleep: Box::pin(tokio::time::sleep(STEP)),
            armed: now.after(STEP),
            registered: false,
        }
    }

    fn arm(&mut self, at: MonoNanos, now: MonoNanos) {
        self.sleep.as_mut().reset(Instant::now() + at.since(now));
        self.armed = at;
        self.registered = false;
    }

    /// Ready once `deadline` has passed; otherwise the task is woken at it. Must always be polled
    /// by the same task: the waker is registered once for each arming.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: MonoNanos) -> Poll<()> {
        if deadline < self.armed {
            let now = clock::now();
            if now >= deadline {
                return Poll::Ready(());
            }
            self.arm(deadline, now);
        }
        loop {
            if self.registered {
                if !self.sleep.is_elapsed() {
                    return Poll::Pending;
                }
            } else if self.sleep.as_mut().poll(cx).is_pending() {
                self.registered = true;
                return Poll::Pending;
            }
            let now = clock::now();
            if now >= deadline {
                return Poll::Ready(());
            }
            self.arm(deadline.min(now.after(FAR)), now);
        }
    }
}

/// A deadline that never comes.
pub(super) const NEVER: MonoNanos = MonoNanos(u64::MAX);

/// `from` plus `span`; zero means no time-out.
pub(super) const fn deadline(from: MonoNanos, span: Duration) -> MonoNanos {
    if span.is_zero() {
        NEVER
    } else {
        from.after(span)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn wait(timer: &mut Timer, span: Duration) -> Duration {
        let start = clock::now();
        let at = start.after(span);
        poll_fn(|cx| timer.poll(cx, at)).await;
        clock::now().since(start)
    }

    #[tokio::test]
    async fn timer_fires_at_its_deadline_and_again_at_the_next() {
        let mut timer = Timer::new(clock::now());
        for span in [20, 5, 40] {
            let took = wait(&mut timer, Duration::from_millis(span)).await;
            assert!(took >= Duration::from_millis(span), "{took:?}");
            assert!(took < Duration::from_millis(span + 500), "{took:?}");
        }
    }

    /// 10,000 idle connections would otherwise be a thousand wake-ups a second.
    #[tokio::test]
    async fn timer_that_fired_early_sleeps_until_its_deadline() {
        let now = clock::now();
        let mut timer = Timer {
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            armed: now,
            registered: false,
        };
        let at = now.after(Duration::from_secs(60));
        for (deadline, most) in [(at, at), (NEVER, now.after(FAR * 2))] {
            timer.sleep.as_mut().reset(Instant::now());
            timer.registered = false;
            tokio::time::sleep(Duration::from_millis(5)).await;
            poll_fn(|cx| {
                assert!(timer.poll(cx, deadline).is_pending());
                Poll::Ready(())
            })
            .await;
            assert!(timer.armed >= at && timer.armed <= most);
        }
        // A deadline that comes nearer is kept all the same.
        let soon = wait(&mut timer, Duration::from_millis(5)).await;
        assert!(soon < Duration::from_millis(500), "{soon:?}");
    }

    #[tokio::test]
    async fn timer_with_a_later_deadline_is_not_moved() {
        let mut timer = Timer::new(clock::now());
        let armed = timer.armed;
        let at = clock::now().after(Duration::from_secs(3600));
        poll_fn(|cx| {
            assert!(timer.poll(cx, at).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(timer.armed, armed);
    }
}
