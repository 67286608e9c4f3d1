//! The only door to the clock. Decisions take time as an argument; only I/O code calls [`now`].

use std::time::Duration;

use serde::Serialize;

/// A point on CLOCK_MONOTONIC, in nanoseconds: the clock that the eBPF programs read too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct MonoNanos(pub u64);

impl MonoNanos {
    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This point plus `duration`, saturating.
    pub const fn after(self, duration: Duration) -> Self {
        let nanos = duration.as_nanos();
        let nanos = if nanos > u64::MAX as u128 {
            u64::MAX
        } else {
            nanos as u64
        };
        Self(self.0.saturating_add(nanos))
    }
}

/// Reads CLOCK_MONOTONIC.
pub fn now() -> MonoNanos {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux");
    // Seconds since boot and nanoseconds below a second are never negative.
    MonoNanos(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// How long after the epoch CLOCK_MONOTONIC was zero, by the wall clock as it is set now; zero when
/// that is set to before the machine started.
pub fn epoch() -> Duration {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    wall.unwrap_or_default()
        .saturating_sub(Duration::from_nanos(now().0))
}
