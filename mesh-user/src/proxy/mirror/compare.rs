//! Whether a mirror answers as its primary does: status, gRPC status, and a hash of the body.

use std::{
    cell::{Cell, RefCell},
    hash::Hasher,
    rc::Rc,
    sync::Arc,
};

use twox_hash::XxHash64;

use crate::telemetry::mirror::{MirrorCounts, MirrorResult};

/// A whole answer. Not for secrets: who wants equal hashes for different bodies can have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) status: u16,
    pub(super) grpc: Option<u8>,
    pub(super) hash: u64,
}

/// Hashes a body.
#[derive(Debug)]
pub(super) struct Digest(XxHash64);

impl Default for Digest {
    fn default() -> Self {
        Self(XxHash64::with_seed(0))
    }
}

impl Digest {
    pub(super) fn data(&mut self, data: &[u8]) {
        self.0.write(data);
    }

    pub(super) fn seen(&self, status: u16, grpc: Option<u8>) -> Seen {
        Seen {
            status,
            grpc,
            hash: self.0.finish(),
        }
    }
}

/// Both answers, or what is known of them. Whoever comes last counts.
#[derive(Debug)]
pub(super) struct Pair {
    first: Cell<Option<Option<Seen>>>,
    counts: Arc<MirrorCounts>,
}

impl Pair {
    pub(super) fn new(counts: Arc<MirrorCounts>) -> Rc<Self> {
        Rc::new(Self {
            first: Cell::new(None),
            counts,
        })
    }

    /// One of both has ended: with a whole answer, or without.
    pub(super) fn ended(&self, seen: Option<Seen>) {
        let Some(other) = self.first.take() else {
            return self.first.set(Some(seen));
        };
        self.counts.count(match (seen, other) {
            (Some(one), Some(other)) if one == other => MirrorResult::Same,
            (Some(one), Some(other)) if (one.status, one.grpc) == (other.status, other.grpc) => {
                MirrorResult::BodyDiffers
            }
            (Some(_), Some(_)) => MirrorResult::StatusDiffers,
            _ => MirrorResult::NotCompared,
        });
    }
}

/// The primary's answer, as the engine sends it on.
#[derive(Debug)]
pub(in crate::proxy) struct Comparison {
    digest: RefCell<Digest>,
    pairs: RefCell<Vec<Rc<Pair>>>,
}

impl Comparison {
    pub(super) fn new(pairs: Vec<Rc<Pair>>) -> Self {
        Self {
            digest: RefCell::default(),
            pairs: RefCell::new(pairs),
        }
    }

    /// Payload that was forwarded.
    pub(in crate::proxy) fn data(&self, data: &[u8]) {
        self.digest.borrow_mut().data(data);
    }

    /// The answer went out whole.
    pub(in crate::proxy) fn end(&self, status: u16, grpc: Option<u8>) {
        let seen = self.digest.borrow().seen(status, grpc);
        for pair in self.pairs.take() {
            pair.ended(Some(seen));
        }
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        for pair in self.pairs.take() {
            pair.ended(None);
        }
    }
}
