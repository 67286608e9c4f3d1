//! Whether a store is worth waiting for.

use std::{cell::Cell, time::Duration};

use crate::clock::MonoNanos;

/// Failures in a row after which a store is taken for dead.
const FAILURES: u32 = 3;
/// The first pause; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// One store's.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    failures: Cell<u32>,
    until: Cell<MonoNanos>,
    pause: Cell<Duration>,
    /// After a pause one question goes out to see.
    probing: Cell<bool>,
}

impl Circuit {
    /// Whether a question may go out. It must be followed by [`good`](Self::good) or
    /// [`bad`](Self::bad).
    pub(super) fn lets(&self, now: MonoNanos) -> bool {
        if self.failures.get() < FAILURES {
            return true;
        }
        now >= self.until.get() && !self.probing.replace(true)
    }

    /// Until when nothing goes out; past: something may.
    pub(super) fn until(&self) -> MonoNanos {
        self.until.get()
    }

    /// There was an answer. Whether the store was taken for dead.
    pub(super) fn good(&self) -> bool {
        self.probing.set(false);
        self.pause.set(Duration::ZERO);
        self.until.set(MonoNanos(0));
        self.failures.replace(0) >= FAILURES
    }

    /// There was none. Whether a pause begins.
    pub(super) fn bad(&self, now: MonoNanos) -> bool {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        // Questions that were out together are one failure too many only once.
        if failures < FAILURES || now < self.until.get() {
            return false;
        }
        self.probing.set(false);
        let pause = (self.pause.get() * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.pause.set(pause);
        self.until.set(now.after(pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> MonoNanos {
        MonoNanos(ms * 1_000_000)
    }

    #[test]
    fn three_failures_open_and_pauses_double_up_to_five_seconds() {
        let circuit = Circuit::default();
        for _ in 0..2 {
            assert!(circuit.lets(ms(1_000)));
            assert!(!circuit.bad(ms(1_000)));
        }
        assert!(circuit.lets(ms(1_000)));
        assert!(circuit.bad(ms(1_000)));
        assert!(!circuit.bad(ms(1_001)), "it was out with the others");
        let mut now = 1_000;
        for pause in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            assert_eq!(circuit.until(), ms(now + pause));
            assert!(!circuit.lets(ms(now + pause - 1)));
            now += pause;
            assert!(circuit.lets(ms(now)), "one goes out to see");
            assert!(!circuit.lets(ms(now)), "one only");
            assert!(circuit.bad(ms(now)));
        }
        now += 5_000;
        assert!(circuit.lets(ms(now)));
        assert!(circuit.good());
        assert!(circuit.lets(ms(now)) && circuit.lets(ms(now)));
    }
}
