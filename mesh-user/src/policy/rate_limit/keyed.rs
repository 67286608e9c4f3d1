//! Buckets by key, in bounded memory, exact also when the memory is used up.
//!
//! A bucket that is full again says the same as one that was never used, so a full one may be given
//! to another key: nobody can get more than a burst out of that. When all places that a key may
//! take hold buckets in use, the key shares one spare bucket with others in its place, and a key
//! that later gets a place of its own starts with what that spare bucket had left: stricter than
//! asked for, never looser.
//!
//! Looking a key up and taking a token take no lock; a key's first request takes one of
//! [`SHARDS`]. A key is known by a 64-bit keyed hash, the seed of which clients can't learn.

use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::bucket::{Answer, Shape};

/// Parts of the table, made when first used.
const SHARDS: usize = 64;
/// Places in each.
const PLACES: usize = 1_024;
/// A key may stand at this many places from its own on.
const REACH: usize = 64;

/// Keys of one limit that have a bucket of their own at the same time, at most: 1 MiB.
pub const KEYS_MAX: usize = SHARDS * PLACES;

/// The place is being given to another key.
const MOVING: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Place {
    /// Hash of the key; 0: never used. Never goes back to 0, so that a search may stop there.
    key: AtomicU64,
    /// The bucket's word.
    word: AtomicU64,
}

#[derive(Debug)]
struct Shard {
    places: Box<[Place]>,
    /// For keys that find no place: one for each [`REACH`] of places, so that a crowd in one
    /// part costs the others nothing.
    spares: [AtomicU64; PLACES / REACH],
    /// Held while a key gets its place, and while the spare bucket is used.
    lock: Mutex<()>,
}

/// The table of one limit.
#[derive(Debug)]
pub(super) struct Buckets {
    shards: Box<[OnceLock<Shard>]>,
}

/// A token that was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) answer: Answer,
}

impl Buckets {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| OnceLock::new()).collect(),
        }
    }

    /// `key`: a hash that is spread over all bits.
    fn shard(&self, key: u64) -> &Shard {
        self.shards[(key >> 58) as usize % SHARDS].get_or_init(|| Shard {
            places: (0..PLACES).map(|_| Place::default()).collect(),
            spares: std::array::from_fn(|_| AtomicU64::new(0)),
            lock: Mutex::new(()),
        })
    }

    /// What the key's bucket would say.
    pub(super) fn peek(&self, shape: &Shape, key: u64, time: u64) -> Answer {
        shape.peek(self.level(key), time)
    }

    /// Whether the key's bucket holds a unit; takes nothing.
    pub(super) fn look(&self, shape: &Shape, key: u64, time: u64) -> Answer {
        shape.look(self.level(key), time)
    }

    fn level(&self, key: u64) -> u64 {
        let key = key.max(1);
        let shard = self.shard(key);
        let own = shard
            .find(key)
            .map(|place| place.word.load(Ordering::Acquire));
        // Without a place it would get what the spare bucket has left, as one of its own or not.
        let word = own.filter(|word| *word != MOVING);
        word.unwrap_or_else(|| shard.spare(key).load(Ordering::Acquire))
    }

    /// Takes a token from the key's bucket, if there is one.
    pub(super) fn take(&self, shape: &Shape, key: u64, time: u64) -> Taken {
        let key = key.max(1);
        let shard = self.shard(key);
        if let Some(taken) = shard.take_own(shape, key, time) {
            return taken;
        }
        let _held = shard.hold();
        // Another core may have given it a place meanwhile; under the lock nothing moves.
        if let Some(taken) = shard.take_own(shape, key, time) {
            return taken;
        }
        let word = match shard.settle(key, time) {
            Some(place) => &place.word,
            None => shard.spare(key),
        };
        Taken {
            answer: shape.take(word, time),
        }
    }

    /// Gives a token back, if nobody has used the key's bucket since.
    pub(super) fn refund(&self, key: u64, answer: Answer) {
        let key = key.max(1);
        let shard = self.shard(key);
        // Nothing moves under the lock, so the place is the key's until the exchange is done.
        let _held = shard.hold();
        let word = shard.find(key).map(|place| &place.word);
        Shape::refund(word.unwrap_or_else(|| shard.spare(key)), answer);
    }

    /// Spends units of the key's bucket, also more than there are.
    pub(super) fn charge(&self, shape: &Shape, key: u64, units: u64, time: u64) {
        let key = key.max(1);
        let shard = self.shard(key);
        let _held = shard.hold();
        let place = shard.find(key).or_else(|| shard.settle(key, time));
        let word = place.map_or_else(|| shard.spare(key), |place| &place.word);
        shape.charge(word, units, time);
    }

    /// Whether the key has a place of its own.
    #[cfg(test)]
    pub(super) fn has(&self, key: u64) -> bool {
        self.shard(key).find(key).is_some()
    }

    /// Places that hold a bucket that isn't full.
    #[cfg(test)]
    pub(super) fn in_use(&self, time: u64) -> usize {
        let places = self
            .shards
            .iter()
            .filter_map(OnceLock::get)
            .flat_map(|shard| &shard.places);
        places
            .filter(|place| place.word.load(Ordering::Relaxed) > time)
            .count()
    }
}

impl Shard {
    fn hold(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare(&self, key: u64) -> &AtomicU64 {
        &self.spares[key as usize % PLACES / REACH]
    }

    fn reach(&self, key: u64) -> impl Iterator<Item = &Place> {
        let home = key as usize % PLACES;
        (home..home + REACH).map(|at| &self.places[at % PLACES])
    }

    fn find(&self, key: u64) -> Option<&Place> {
        self.reach(key)
            .map(|place| (place, place.key.load(Ordering::Acquire)))
            .take_while(|(_, held)| *held != 0)
            .find_map(|(place, held)| (held == key).then_some(place))
    }

    /// A place can't change hands between the look at its key and the exchange of its word: who
    /// gives it away first moves the word to [`MOVING`] and then to a later time than it ever had,
    /// so the exchange would fail.
    fn take_own(&self, shape: &Shape, key: u64, time: u64) -> Option<Taken> {
        let place = self.find(key)?;
        let seen = place.word.load(Ordering::Acquire);
        // The key again, after the word: had the place changed hands in between, the key would
        // have, too.
        if seen == MOVING || place.key.load(Ordering::Acquire) != key {
            return None;
        }
        let answer = take_from(shape, place, key, time, seen)?;
        Some(Taken { answer })
    }

    /// Gives a place to a key: an unused one, or one whose bucket is full. The lock is held.
    fn settle(&self, key: u64, time: u64) -> Option<&Place> {
        let level = self.spare(key).load(Ordering::Acquire).max(time);
        self.reach(key).find(|place| {
            let word = place.word.load(Ordering::Acquire);
            // Strictly before: the new word is then later than any the place ever had.
            let free = word != MOVING
                && word < time
                && place
                    .word
                    .compare_exchange(word, MOVING, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok();
            if free {
                place.key.store(key, Ordering::Release);
                place.word.store(level, Ordering::Release);
            }
            free
        })
    }
}

/// The exchange, as long as the place is the key's.
fn take_from(shape: &Shape, place: &Place, key: u64, time: u64, first: u64) -> Option<Answer> {
    let is_ours = || place.key.load(Ordering::Acquire) == key;
    let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
    let mut seen = first;
    loop {
        let answer = shape.peek(seen, time);
        if !answer.admitted {
            return Some(answer);
        }
        match place
            .word
            .compare_exchange_weak(seen, answer.after(), success, failure)
        {
            Ok(_) if is_ours() => return Some(answer),
            Ok(_) => {
                // A refund can bring an earlier word back, so that the exchange may, once in a
                // very long while, succeed on a place that has changed hands.
                Shape::refund(&place.word, answer);
                return None;
            }
            Err(now) => seen = now,
        }
        if seen == MOVING || !is_ours() {
            return None;
        }
    }
}
