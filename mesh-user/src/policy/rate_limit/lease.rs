//! Tokens of a shared store that this node holds, so that the store is asked rarely.
//!
//! The store counts a token when it gives it out. A node uses it within the lease time or never. So
//! from the beginning to any moment T all nodes together admit at most burst + rate x T, as one
//! bucket would; in a window in between, at most rate x lease time more, for tokens that were taken
//! before the window began. Tokens that nobody used in time are lost: that admits less.
//!
//! How many are taken follows what the node was asked for lately: as many as it needs for a lease
//! time, at most twice as many as the last time, and at most the stated share of the burst at once.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::clock::MonoNanos;

/// Keys of one limit of which tokens are held at the same time, at most. A key beyond is asked for
/// each time.
pub const LEASES_MAX: usize = SHARDS * SHARD_MAX;
const SHARDS: usize = 16;
const SHARD_MAX: usize = 4_096;

/// How long a store that is out of tokens is not asked again, at most: what it says may be made
/// good earlier by an operator.
const EMPTY_MAX: Duration = Duration::from_secs(1);

/// What the store gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Tokens asked for.
    pub wanted: u64,
    /// Tokens given.
    pub given: u64,
    /// Tokens that it has left.
    pub left: u64,
    /// Time until there is one more.
    pub wait: Duration,
}

/// What the held tokens say to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// It has one of them.
    Served {
        /// Tokens left here and, when it was last asked, in the store.
        left: u64,
        /// Time until there is one more.
        wait: Duration,
        /// Few are left: somebody should ask for more, without waiting.
        refill: bool,
    },
    /// The store said a moment ago that it has none.
    Empty {
        /// For so long.
        wait: Duration,
    },
    /// The store must be asked.
    Ask,
}

/// Part of the keys.
#[derive(Debug, Default)]
struct Shard {
    leases: HashMap<Box<str>, Lease>,
    /// When it was last looked through for keys that hold nothing.
    cleared_at: MonoNanos,
}

/// Not more often than this: a full table must not be gone through with each new key.
const CLEAR: Duration = Duration::from_millis(100);

impl Shard {
    fn clear(&mut self, now: MonoNanos) {
        if now.since(self.cleared_at) >= CLEAR {
            self.cleared_at = now;
            self.leases.retain(|_, lease| !lease.is_idle(now));
        }
    }
}

/// The held tokens of one limit.
#[derive(Debug)]
pub(super) struct Leases {
    shards: Box<[Mutex<Shard>]>,
    time: Duration,
    /// How long a store that had too few is not asked again, at least: a quarter of the lease time,
    /// and no longer than half of the bucket takes to fill, so that nothing is lost.
    pause: Duration,
    /// The most tokens of one key; 0: none are held.
    most: u64,
    /// Tokens held of all keys, those included that have expired unused and were not looked at.
    held: AtomicU64,
}

#[derive(Debug, Default)]
struct Lease {
    /// Tokens and until when they may be used: the older ones are used first.
    tokens: [(u64, MonoNanos); 2],
    left: u64,
    more_at: MonoNanos,
    /// The store has none before this.
    empty_until: MonoNanos,
    /// Requests since the last grant that were served from it, or refused since the store was empty.
    seen: u64,
    /// When the last grant was asked for.
    asked_at: MonoNanos,
    /// How many tokens were wanted.
    last: u64,
    asking: bool,
}

impl Lease {
    fn held(&self, now: MonoNanos) -> u64 {
        let alive = |(count, until): &(u64, MonoNanos)| if *until > now { *count } else { 0 };
        self.tokens.iter().map(alive).sum()
    }

    /// Takes a token; the time-out of the others is seen to here.
    fn take(&mut self, now: MonoNanos, total: &AtomicU64) -> bool {
        for (count, until) in &mut self.tokens {
            if *until <= now && *count > 0 {
                total.fetch_sub(std::mem::take(count), Relaxed);
            }
            if *count > 0 {
                *count -= 1;
                total.fetch_sub(1, Relaxed);
                return true;
            }
        }
        false
    }

    fn is_idle(&self, now: MonoNanos) -> bool {
        !self.asking && self.empty_until <= now && self.held(now) == 0
    }
}

impl Leases {
    /// Of a bucket of `burst` that takes `full` to fill: the share of it that is held, in percent,
    /// and how long tokens may be used.
    pub(super) fn new(burst: u64, full: Duration, share_percent: u8, time: Duration) -> Self {
        let share = u128::from(burst) * u128::from(share_percent.min(100)) / 100;
        let share = u64::try_from(share).unwrap_or(u64::MAX);
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            pause: if share_percent == 0 {
                Duration::ZERO
            } else {
                (time / 4).min(full / 2)
            },
            time,
            most: if share_percent == 0 { 0 } else { share.max(1) },
            held: AtomicU64::new(0),
        }
    }

    fn shard(&self, key: &str) -> MutexGuard<'_, Shard> {
        let at = super::super::hash::of(0, key.as_bytes()) as usize % SHARDS;
        let shard = &self.shards[at];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens held of all keys, for the metric: such as expired unused may still be counted.
    pub(super) fn tokens(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Takes a token, if one is held.
    pub(super) fn take(&self, key: &str, now: MonoNanos) -> Take {
        let mut shard = self.shard(key);
        let Some(lease) = shard.leases.get_mut(key) else {
            return Take::Ask;
        };
        if lease.take(now, &self.held) {
            lease.seen += 1;
            let held = lease.held(now);
            let few = lease.last >= 4 && held <= lease.last / 4;
            let refill = few && !lease.asking && lease.empty_until <= now;
            lease.asking |= refill;
            return Take::Served {
                left: held + lease.left,
                wait: lease.more_at.since(now),
                refill,
            };
        }
        if lease.empty_until > now {
            lease.seen += 1;
            let wait = lease.more_at.since(now);
            return Take::Empty { wait };
        }
        Take::Ask
    }

    /// What [`take`](Self::take) would say, and the tokens held now.
    pub(super) fn peek(&self, key: &str, now: MonoNanos) -> (Take, u64) {
        let shard = self.shard(key);
        let Some(lease) = shard.leases.get(key) else {
            return (Take::Ask, 0);
        };
        let held = lease.held(now);
        let take = if held > 0 {
            Take::Served {
                left: held + lease.left,
                wait: lease.more_at.since(now),
                refill: false,
            }
        } else if lease.empty_until > now {
            let wait = lease.more_at.since(now);
            Take::Empty { wait }
        } else {
            Take::Ask
        };
        (take, held)
    }

    /// How many tokens to ask for, when so many requests wait for one.
    pub(super) fn want(&self, key: &str, waiting: u64, now: MonoNanos) -> u64 {
        let mut shard = self.shard(key);
        if self.most == 0 {
            return waiting.max(1);
        }
        let full =
            |shard: &Shard| shard.leases.len() >= SHARD_MAX && !shard.leases.contains_key(key);
        if full(&shard) {
            shard.clear(now);
            if full(&shard) {
                return waiting.max(1);
            }
        }
        let lease = shard.leases.entry(key.into()).or_default();
        lease.asking = true;
        let held = lease.held(now);
        let since = now.since(lease.asked_at).max(Duration::from_micros(1));
        let seen = u128::from(lease.seen + waiting);
        let needed = (seen * self.time.as_nanos()).div_ceil(since.as_nanos());
        let needed = u64::try_from(needed).unwrap_or(u64::MAX);
        let batch = needed
            .min(lease.last.saturating_mul(2).max(1))
            .min(self.most.saturating_sub(held));
        batch.max(waiting).max(1)
    }

    /// Puts down what came of a question that was asked at `asked_at`; `waiting` of the tokens go
    /// to those who waited. How many of them get one.
    pub(super) fn granted(
        &self,
        key: &str,
        waiting: u64,
        grant: Grant,
        asked_at: MonoNanos,
        now: MonoNanos,
    ) -> u64 {
        let served = grant.given.min(waiting);
        let rest = grant.given - served;
        let mut shard = self.shard(key);
        let Some(lease) = shard.leases.get_mut(key) else {
            return served;
        };
        lease.asking = false;
        lease.seen = served;
        lease.asked_at = asked_at;
        lease.last = grant.wanted;
        lease.left = grant.left;
        lease.more_at = now.after(grant.wait);
        let [older, newer] = &mut lease.tokens;
        let until = asked_at.after(self.time);
        if rest > 0 && until > now {
            // Two ages are kept; should there be a third, its tokens end with the older.
            if newer.0 > 0 && newer.1 > now {
                if older.0 > 0 && older.1 > now {
                    newer.0 += older.0;
                    newer.1 = newer.1.min(older.1);
                } else {
                    self.held.fetch_sub(older.0, Relaxed);
                }
                *older = *newer;
            } else {
                self.held.fetch_sub(newer.0, Relaxed);
            }
            *newer = (rest, until);
            self.held.fetch_add(rest, Relaxed);
        }
        lease.empty_until = if grant.given < grant.wanted {
            now.after(grant.wait.min(EMPTY_MAX).max(self.pause))
        } else {
            MonoNanos(0)
        };
        served
    }

    /// The question had no answer.
    pub(super) fn failed(&self, key: &str) {
        if let Some(lease) = self.shard(key).leases.get_mut(key) {
            lease.asking = false;
        }
    }
}

#[cfg(test)]
mod tests;
