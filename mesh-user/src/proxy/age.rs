//! How long connections are used: until an age, with jitter, or for a number of requests.

use std::time::Duration;

use super::timer::{NEVER, deadline};
use crate::{
    clock::{self, MonoNanos},
    model::ConnectionPolicy,
    policy::rng::Rng,
};

/// When a connection that began then is too old: after `age` and at random up to `jitter` percent
/// more. Zero: never.
pub(super) fn expiry(began: MonoNanos, age: Duration, jitter: u8, chance: u64) -> MonoNanos {
    let most = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX) / 100 * u64::from(jitter);
    let more = (u128::from(chance) * u128::from(most)) >> 64;
    deadline(began, age.saturating_add(Duration::from_nanos(more as u64)))
}

/// What an upstream connection may still be used for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    until: MonoNanos,
    /// Requests that are left.
    left: u32,
}

impl Life {
    /// Of a connection that begins now.
    pub(super) fn new(policy: ConnectionPolicy, rng: &mut Rng) -> Self {
        Self {
            until: match policy.age_max {
                Duration::ZERO => NEVER,
                age => expiry(clock::now(), age, policy.age_jitter, rng.next_u64()),
            },
            left: match policy.requests_max {
                0 => u32::MAX,
                max => max,
            },
        }
    }

    /// Counts a request.
    pub(super) fn spend(&mut self) {
        if self.left != u32::MAX {
            self.left = self.left.saturating_sub(1);
        }
    }

    /// Whether it takes no more requests.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0 || (self.until != NEVER && clock::now() >= self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_ends_between_the_age_and_the_jitter_above_it() {
        let began = MonoNanos(1_000);
        let age = Duration::from_secs(100);
        let after = |chance| expiry(began, age, 10, chance).since(began);
        assert_eq!(after(0), age);
        assert!(after(u64::MAX) <= Duration::from_secs(110));
        assert!(after(u64::MAX) > Duration::from_secs(109));
        assert_eq!(expiry(began, Duration::ZERO, 10, 5), NEVER);
        assert_eq!(expiry(began, age, 0, u64::MAX).since(began), age);
    }

    #[test]
    fn life_is_over_after_its_requests() {
        let mut rng = Rng::new(1);
        let policy = ConnectionPolicy {
            requests_max: 2,
            ..ConnectionPolicy::default()
        };
        let mut life = Life::new(policy, &mut rng);
        life.spend();
        assert!(!life.is_over());
        life.spend();
        assert!(life.is_over());
        let mut endless = Life::new(ConnectionPolicy::default(), &mut rng);
        (0..1_000).for_each(|_| endless.spend());
        assert!(!endless.is_over());
    }
}
