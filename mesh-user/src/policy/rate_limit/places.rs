//! Limits on concurrency: how many of a key are under way, exact over the node.
//!
//! A key is there only while something of it is under way, so the memory is bounded by what the node
//! carries at once.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Parts of the table, so that cores rarely wait for each other.
const SHARDS: usize = 32;

/// Who is under way, by hash of the key.
#[derive(Debug)]
pub(super) struct Places {
    shards: Box<[Mutex<HashMap<u64, u64>>]>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, u64>> {
        let shard = &self.shards[(key >> 56) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are under way.
    pub(super) fn taken(&self, key: u64) -> u64 {
        self.shard(key).get(&key).copied().unwrap_or(0)
    }

    /// Takes a place, if fewer than `max` are taken. How many were taken before.
    pub(super) fn take(&self, key: u64, max: u64) -> Result<u64, u64> {
        let mut shard = self.shard(key);
        let before = shard.get(&key).copied().unwrap_or(0);
        if before >= max {
            return Err(before);
        }
        shard.insert(key, before + 1);
        Ok(before)
    }

    /// Gives a place back.
    pub(super) fn give_back(&self, key: u64) {
        let mut shard = self.shard(key);
        if let Some(count) = shard.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&key);
            }
        }
    }

    /// Keys with something under way.
    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        let count = |shard: &Mutex<HashMap<u64, u64>>| shard.lock().map_or(0, |shard| shard.len());
        self.shards.iter().map(count).sum()
    }
}
