//! Refusals of the proxy for those who watch (`mesh monitor`): the first few between two looks, and
//! how many more there were. The access log has them all.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::Direction;
use crate::policy::Reject;

/// Kept between two looks: a flood of refusals is one fact, not a thousand.
const KEPT: usize = 16;

/// A request or a connection that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reject: Reject,
    /// The workload that asked, or that was asked, `namespace/name`.
    pub workload: Arc<str>,
    /// Which of both.
    pub direction: Direction,
    /// Who connected.
    pub peer: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
}

#[derive(Debug, Default)]
pub(super) struct Refusals {
    kept: Mutex<Vec<Refused>>,
    more: AtomicU64,
}

impl Refusals {
    /// Notes how a request or a connection ended, if it was refused: a client that went away was
    /// refused nothing. Never waits: where another worker writes, or there are enough, it is only
    /// counted.
    pub(super) fn note(&self, end: Option<Reject>, make: impl FnOnce(Reject) -> Refused) {
        let Some(reject) = end.filter(|why| *why != Reject::DownstreamClosed) else {
            return;
        };
        match self.kept.try_lock() {
            Ok(mut kept) if kept.len() < KEPT => kept.push(make(reject)),
            _ => {
                self.more.fetch_add(1, Relaxed);
            }
        }
    }

    /// Those since the last call, and how many more.
    pub(super) fn take(&self) -> (Vec<Refused>, u64) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        (kept, self.more.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_beyond_a_few_are_only_counted_until_somebody_looks() {
        let limited = Some(Reject::RateLimited);
        let note = |reject| Refused {
            reject,
            workload: "shop/client".into(),
            direction: Direction::Outbound,
            peer: ([10, 0, 0, 1], 1).into(),
            destination: ([10, 0, 0, 2], 2).into(),
        };
        let refusals = Refusals::default();
        let refused = || note(Reject::RateLimited);
        for _ in 0..KEPT + 3 {
            refusals.note(limited, note);
        }
        refusals.note(None, note);
        refusals.note(Some(Reject::DownstreamClosed), note);
        assert_eq!(refusals.take(), (vec![refused(); KEPT], 3));
        assert_eq!(refusals.take(), (Vec::new(), 0));
        refusals.note(limited, note);
        assert_eq!(refusals.take(), (vec![refused()], 0));
    }
}
