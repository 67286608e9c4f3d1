//! Idle upstream connections of one worker.
//!
//! Keyed by where the connection leaves from, whose breaker counts it, and which endpoint it goes
//! to. Newest first: the warmest connection is reused, the surplus ages out. Every idle connection
//! keeps its permits: it is a connection as far as `max-connections` is concerned.
//!
//! An idle connection that becomes readable is dead (the peer closed it, or sent something that
//! nobody asked for): one task of the worker watches all of them and drops it at once.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io,
    mem::MaybeUninit,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::io::ReadBuf;

use super::{inbound::App, socket::Socket, upstream::Upstream};
use crate::clock::MonoNanos;

/// What makes connections interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The workload's number whose namespace it left from, or [`NODE`].
    pub(super) source: u32,
    /// Which breaker counts it: the address of the shared breaker, which its permit keeps alive.
    pub(super) breaker: usize,
    /// `EndpointState::id`.
    pub(super) endpoint: u64,
    /// The same as `breaker`, of the destination's inbound rules; 0: none; [`SECOND_PASS`]: they
    /// are applied where the connection comes in.
    pub(super) inbound: usize,
    /// For which client the workload's own application was dialled, and where.
    pub(super) app: Option<App>,
    /// `tls::Client::id`; 0: no TLS.
    pub(super) tls: u64,
}

impl Key {
    /// Whether this breaker counts the connection.
    pub(super) const fn counted_by(&self, breaker: usize) -> bool {
        self.breaker == breaker || self.inbound == breaker
    }
}

/// Stands for the breaker of connections that the destination's inbound listener judges: never
/// interchangeable with one that nobody does. No address: breakers are aligned.
pub(super) const SECOND_PASS: usize = 1;

/// Source of connections that leave from the agent's own namespace.
pub(super) const NODE: u32 = u32::MAX;

/// Multiply-rotate over the key's words. Keys are our own numbers, nobody outside chooses them.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(26) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A hasher for maps with a [`Key`].
pub(super) type KeyState = BuildHasherDefault<KeyHasher>;

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    since: MonoNanos,
}

/// Idle upstream connections.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: RefCell<HashMap<Key, Vec<Idle>, KeyState>>,
    /// Of the task that watches idle connections.
    watcher: RefCell<Option<Waker>>,
    count: Cell<usize>,
}

/// Whether the peer closed it or sent something unasked. Registers `cx` for either.
fn is_dead(upstream: &mut Upstream, cx: &mut Context<'_>) -> bool {
    let tcp = match &mut upstream.stream {
        Socket::Plain(tcp) => tcp,
        // What comes may be none of the peer's bytes: a ticket for later sessions.
        Socket::Tls(tls) => return tls.poll_read(cx, &mut ReadBuf::new(&mut [0; 1])).is_ready(),
    };
    loop {
        match tcp.poll_read_ready(cx) {
            Poll::Pending => return false,
            Poll::Ready(Err(_)) => return true,
            // Readiness may be left over from a read that filled its buffer exactly.
            Poll::Ready(Ok(())) => match tcp.try_read(&mut [0; 1]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return true,
            },
        }
    }
}

/// Whether the kernel has something to read, or the end.
fn is_readable(upstream: &Upstream) -> bool {
    let peeked = socket2::SockRef::from(&upstream.stream).peek(&mut [MaybeUninit::uninit(); 1]);
    !peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

impl Pool {
    /// The newest live connection. `careful`: asks the kernel too, whose word is newer than what
    /// the runtime has heard; for requests that can't be sent again when it turns out dead.
    pub(super) fn take(&self, key: &Key, careful: bool) -> Option<Upstream> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        let mut cx = Context::from_waker(Waker::noop());
        while let Some(Idle { mut upstream, .. }) = list.pop() {
            self.count.set(self.count.get() - 1);
            let dead = upstream.life.is_over()
                || is_dead(&mut upstream, &mut cx)
                || (careful && is_readable(&upstream));
            if !dead {
                upstream.reused = true;
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection for the next request; closes it when it is dead or `max` are kept.
    pub(super) fn put(&self, mut upstream: Upstream, max: usize, now: MonoNanos) {
        let watcher = self.watcher.borrow();
        let waker = watcher.as_ref().unwrap_or(Waker::noop());
        if is_dead(&mut upstream, &mut Context::from_waker(waker)) {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(upstream.key).or_default();
        if list.len() < max {
            list.push(Idle {
                upstream,
                since: now,
            });
            self.count.set(self.count.get() + 1);
        }
    }

    fn retain(&self, mut keep: impl FnMut(&Key, &mut Idle) -> bool) -> usize {
        let mut closed = 0;
        self.idle.borrow_mut().retain(|key, list| {
            let before = list.len();
            list.retain_mut(|idle| keep(key, idle));
            closed += before - list.len();
            !list.is_empty()
        });
        self.count.set(self.count.get() - closed);
        closed
    }

    /// Closes the oldest idle connection that `matches`. Whether there was one.
    fn evict(&self, matches: impl Fn(&Key) -> bool) -> bool {
        let mut idle = self.idle.borrow_mut();
        let oldest = idle
            .iter()
            .filter(|(key, list)| matches(key) && !list.is_empty())
            .min_by_key(|(_, list)| list[0].since)
            .map(|(key, _)| *key);
        let Some(list) = oldest.and_then(|key| idle.get_mut(&key)) else {
            return false;
        };
        drop(list.remove(0));
        self.count.set(self.count.get() - 1);
        true
    }

    /// Closes the oldest idle connection that this breaker counts. Whether there was one.
    pub(super) fn evict_of_breaker(&self, breaker: usize) -> bool {
        self.evict(|key| key.counted_by(breaker))
    }

    /// Closes the oldest idle connection. Whether there was one.
    pub(super) fn evict_any(&self) -> bool {
        self.evict(|_| true)
    }

    /// Closes what left from this workload's namespace.
    pub(super) fn release(&self, pod_id: u32) {
        self.retain(|key, _| key.source != pod_id);
    }

    /// Closes everything.
    pub(super) fn clear(&self) {
        self.retain(|_, _| false);
    }

    /// Closes what has been idle longer than `max`.
    pub(super) fn expire(&self, now: MonoNanos, max: Duration) {
        if self.count.get() > 0 {
            self.retain(|_, idle| now.since(idle.since) < max && !idle.upstream.life.is_over());
        }
    }

    /// One turn of the watching task: drops what died, watches the rest.
    pub(super) fn poll_watch(&self, cx: &mut Context<'_>) {
        self.watcher.replace(Some(cx.waker().clone()));
        self.retain(|_, idle| !is_dead(&mut idle.upstream, cx));
    }
}
