//! Idle connections of mirrors, apart from those of primaries: no primary ever meets a connection
//! that a shadow has left in disorder.

use std::{cell::RefCell, collections::VecDeque, time::Duration};

use super::exchange::Wire;
use crate::{clock::MonoNanos, proxy::pool::Key};

/// Most idle connections of a worker. Without any each copy would take a port of the workload's
/// for a minute.
const IDLE_MAX: usize = 64;
/// How long one lies idle: mirrors come one after the other or not at all.
const IDLE: Duration = Duration::from_secs(10);

/// The newest last.
#[derive(Debug, Default)]
pub(super) struct Idle(RefCell<VecDeque<(Wire, MonoNanos)>>);

impl Idle {
    /// The newest that will do and is open.
    pub(super) fn take(&self, key: &Key, http2: bool) -> Option<Wire> {
        let mut idle = self.0.borrow_mut();
        loop {
            let at = idle
                .iter()
                .rposition(|(wire, _)| wire.key() == key && wire.is_http2() == http2)?;
            let (wire, _) = idle.remove(at)?;
            if wire.is_open() {
                return Some(wire);
            }
        }
    }

    pub(super) fn put(&self, wire: Wire, now: MonoNanos) {
        let mut idle = self.0.borrow_mut();
        if idle.len() >= IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back((wire, now));
    }

    pub(super) fn drop_where(&self, which: impl Fn(&Key) -> bool) {
        self.0.borrow_mut().retain(|(wire, _)| !which(wire.key()));
    }

    /// Closes the oldest that `matches`. Whether there was one.
    pub(super) fn evict(&self, matches: impl Fn(&Key) -> bool) -> bool {
        let mut idle = self.0.borrow_mut();
        let at = idle.iter().position(|(wire, _)| matches(wire.key()));
        at.and_then(|at| idle.remove(at)).is_some()
    }

    pub(super) fn expire(&self, now: MonoNanos) {
        let open = |wire: &Wire, since: MonoNanos| wire.is_open() && now.since(since) < IDLE;
        self.0
            .borrow_mut()
            .retain(|(wire, since)| open(wire, *since));
    }
}
