//! `LISTENERS`, and which worker each of its shards leads to.
//!
//! Which listener belongs where is remembered here, so that a shard whose worker stands still can be
//! pointed to another worker's listener and back (DESIGN §10.7), and an agent whose successor failed
//! in the middle of its start can take its connections back.
//!
//! Remembered by number and cookie, not held: a listener that its worker closes must be closed, or
//! connections would wait in it for ever, and its namespace would stay alive.

use std::{
    collections::BTreeMap,
    io,
    net::TcpListener,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_common::listener::ListenerKey;
use socket2::SockRef;

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
    known: BTreeMap<(u32, u16, u16), Known>,
    /// Bit N: the worker of shard N stands still.
    stuck: u8,
    /// Something was inserted while a worker stood still, or could not be written.
    dirty: bool,
    /// A successor writes the map.
    frozen: bool,
}

/// A listener that a worker has.
#[derive(Clone, Copy, Debug)]
struct Known {
    fd: RawFd,
    /// The socket's cookie, which no other socket ever gets.
    cookie: u64,
}

impl Known {
    fn of(listener: &TcpListener) -> io::Result<Self> {
        Ok(Self {
            fd: listener.as_raw_fd(),
            cookie: SockRef::from(listener).cookie()?,
        })
    }

    /// A descriptor of it for a moment; an error when its worker has closed it.
    fn open(self) -> io::Result<OwnedFd> {
        #[expect(unsafe_code, reason = "duplicates a descriptor by its number")]
        // SAFETY: takes and gives numbers only. Nobody promises that the number is still that of our
        // listener: the cookie below tells, and a stranger's duplicate is closed again.
        let fd = unsafe { libc::fcntl(self.fd, libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        #[expect(
            unsafe_code,
            reason = "takes ownership of a descriptor from the kernel"
        )]
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        match SockRef::from(&owned).cookie() {
            Ok(cookie) if cookie == self.cookie => Ok(owned),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
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
        let known = Known::of(listener)?;
        self.map.insert(key, listener)?;
        state.known.insert((key.pod_id, key.kind, key.shard), known);
        state.dirty |= state.stuck != 0;
        Ok(())
    }

    /// Takes a listener away. Closed ones are gone from the map by themselves.
    pub(super) fn remove(&self, key: &ListenerKey) -> io::Result<()> {
        let mut state = self.state();
        state.known.remove(&(key.pod_id, key.kind, key.shard));
        if state.frozen {
            return Ok(());
        }
        self.map.delete(key)
    }

    /// Shards of a workload that are asked for no more, after a takeover from more workers: who still
    /// looked one up finds it, but it stands in for nobody.
    pub(super) fn forget(&self, pod_id: u32, from: u16, to: u32) {
        let gone =
            |known: u32, shard: u16| known == pod_id && shard >= from && u32::from(shard) < to;
        let mut state = self.state();
        (state.known).retain(|(known, _, shard), _| !gone(*known, *shard));
    }

    /// Points the shards of workers that stand still (bit N: worker N) to the others' listeners, and
    /// those of workers that turn again back to their own. Cheap when nothing changed.
    ///
    /// Whether no shard leads to a worker that stands still; `false`: they all do, or a write failed.
    /// A listener that a worker has closed leads nowhere, as before. Connections that wait in the queue of a worker that stands still stay there.
    pub fn repoint(&self, stuck: u8) -> bool {
        let mut state = self.state();
        if state.frozen || (state.stuck == stuck && !state.dirty) {
            return state.stuck == stuck && !state.dirty;
        }
        let changed = state.stuck | stuck;
        let mut whole = true;
        for (pod_id, kind, shard) in state.known.keys().copied() {
            if changed & bit(shard) == 0 {
                continue;
            }
            let key = ListenerKey {
                pod_id,
                kind,
                shard,
            };
            let led = match state.target(key, stuck) {
                Some(listener) => self.map.insert(&key, listener).is_ok(),
                None => false,
            };
            whole &= led || stuck & bit(shard) == 0;
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
        for ((pod_id, kind, shard), known) in state.known.iter().rev() {
            let key = ListenerKey {
                pod_id: *pod_id,
                kind: *kind,
                shard: *shard,
            };
            // Closed meanwhile: its workload is gone.
            if let Ok(listener) = known.open() {
                result = result.and(self.map.insert(&key, listener));
            }
        }
        state.dirty = state.stuck != 0;
        result
    }
}

impl State {
    /// Whose listener takes the connections of this place.
    fn target(&self, key: ListenerKey, stuck: u8) -> Option<OwnedFd> {
        if stuck & bit(key.shard) == 0 {
            let own = self.known.get(&(key.pod_id, key.kind, key.shard))?;
            return own.open().ok();
        }
        let mut turning: Vec<OwnedFd> = self
            .known
            .range((key.pod_id, key.kind, 0)..=(key.pod_id, key.kind, u16::MAX))
            .filter(|((_, _, shard), _)| stuck & bit(*shard) == 0)
            .filter_map(|(_, known)| known.open().ok())
            .collect();
        // Spread over all that turn.
        let chosen = usize::from(key.shard) % turning.len().max(1);
        (chosen < turning.len()).then(|| turning.swap_remove(chosen))
    }
}

/// A shard's bit: there are at most eight ([`mesh_common::abi::SHARDS_MAX`]).
fn bit(shard: u16) -> u8 {
    1_u8.checked_shl(u32::from(shard)).unwrap_or(0)
}
