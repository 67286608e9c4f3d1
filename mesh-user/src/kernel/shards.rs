//! `LISTENERS`, and which worker each of its shards leads to.
//!
//! A listener of ours is held here a second time, beside the worker that serves it. So a shard whose
//! worker stands still can be pointed to another worker's listener and back (DESIGN §10.7), and an
//! agent whose successor failed in the middle of its start can take its connections back.
//!
//! Held descriptors keep a namespace alive: whoever lets a workload go forgets them here.

use std::{
    collections::BTreeMap,
    io,
    net::TcpListener,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_common::listener::ListenerKey;

use super::tables::Sockets;

/// Writes `LISTENERS`. Shared by the control side, which enrols, and the heartbeat, which points
/// shards elsewhere.
#[derive(Debug)]
pub struct Shards {
    map: Sockets,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By workload, kind and shard.
    held: BTreeMap<(u32, u16, u16), TcpListener>,
    /// Bit N: the worker of shard N stands still.
    stuck: u8,
    /// Something was inserted while a worker stood still, or could not be written.
    dirty: bool,
    /// A successor writes the map.
    frozen: bool,
}

impl Shards {
    pub(super) fn new(map: Sockets) -> Self {
        Self {
            map,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below is whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a listener in its place.
    pub(super) fn insert(&self, key: &ListenerKey, listener: &TcpListener) -> io::Result<()> {
        let mut state = self.state();
        let held = listener.try_clone()?;
        self.map.insert(key, listener)?;
        state.held.insert((key.pod_id, key.kind, key.shard), held);
        state.dirty |= state.stuck != 0;
        Ok(())
    }

    /// Takes a listener away. Closed ones are gone from the map by themselves.
    pub(super) fn remove(&self, key: &ListenerKey) -> io::Result<()> {
        let mut state = self.state();
        state.held.remove(&(key.pod_id, key.kind, key.shard));
        if state.frozen {
            return Ok(());
        }
        self.map.delete(key)
    }

    /// Points the shards of workers that stand still (bit N: worker N) to the others' listeners, and
    /// those of workers that turn again back to their own. Cheap when nothing changed.
    ///
    /// Whether every shard leads to a worker that turns; `false`: they all stand still, or a write
    /// failed. Connections that wait in the queue of a worker that stands still stay there.
    pub fn repoint(&self, stuck: u8) -> bool {
        let mut state = self.state();
        if state.frozen {
            return stuck == 0;
        }
        if state.stuck == stuck && !state.dirty {
            return true;
        }
        let changed = state.stuck | stuck;
        let mut whole = true;
        for (pod_id, kind, shard) in state.held.keys().copied() {
            if changed & bit(shard) == 0 {
                continue;
            }
            let key = ListenerKey {
                pod_id,
                kind,
                shard,
            };
            let result = match state.target(key, stuck) {
                Some(listener) => self.map.insert(&key, listener),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            whole &= result.is_ok();
        }
        state.stuck = stuck;
        state.dirty = !whole;
        whole
    }

    /// From here on a successor writes the map; this side forgets and writes nothing.
    pub(super) fn freeze(&self) {
        self.state().frozen = true;
    }

    /// The successor failed: puts everything back that is held.
    pub(super) fn take_back(&self) -> io::Result<()> {
        let mut state = self.state();
        state.frozen = false;
        let mut result = Ok(());
        // The first shard last: the connect hooks take it as the sign that all are there.
        for ((pod_id, kind, shard), listener) in state.held.iter().rev() {
            let key = ListenerKey {
                pod_id: *pod_id,
                kind: *kind,
                shard: *shard,
            };
            result = result.and(self.map.insert(&key, listener));
        }
        state.dirty = state.stuck != 0;
        result
    }

    /// Lets all listeners go: the workers close theirs, and then they are closed.
    pub(super) fn forget_all(&self) {
        self.state().held.clear();
    }

    /// Lets the listeners of a workload go without touching the map.
    pub(super) fn forget(&self, pod_id: u32) {
        self.state().held.retain(|(pod, _, _), _| *pod != pod_id);
    }
}

impl State {
    /// Whose listener takes the connections of this place.
    fn target(&self, key: ListenerKey, stuck: u8) -> Option<&TcpListener> {
        if stuck & bit(key.shard) == 0 {
            return self.held.get(&(key.pod_id, key.kind, key.shard));
        }
        let turning: Vec<&TcpListener> = self
            .held
            .range((key.pod_id, key.kind, 0)..=(key.pod_id, key.kind, u16::MAX))
            .filter(|((_, _, shard), _)| stuck & bit(*shard) == 0)
            .map(|(_, listener)| listener)
            .collect();
        turning
            .get(usize::from(key.shard) % turning.len().max(1))
            .copied()
    }
}

/// A shard's bit: there are at most eight ([`mesh_common::abi::SHARDS_MAX`]).
fn bit(shard: u16) -> u8 {
    1_u8.checked_shl(u32::from(shard)).unwrap_or(0)
}
