//! TLS handshakes by side and end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Who is at the other end of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsSide {
    /// A client, whose TLS ends here.
    Client,
    /// An endpoint, towards which TLS begins here.
    Endpoint,
}

impl TlsSide {
    const ALL: [Self; 2] = [Self::Client, Self::Endpoint];

    const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Endpoint => "endpoint",
        }
    }
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Well.
    Done,
    /// They found nothing in common, or the bytes were none of TLS.
    Failed,
    /// The certificate that was shown, or was not, is not accepted.
    Untrusted,
    /// It took too long.
    TimedOut,
    /// The other side left.
    Closed,
}

impl Handshake {
    const ALL: [Self; 5] = [
        Self::Done,
        Self::Failed,
        Self::Untrusted,
        Self::TimedOut,
        Self::Closed,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Untrusted => "untrusted",
            Self::TimedOut => "timed_out",
            Self::Closed => "closed",
        }
    }
}

/// Counts of both, and how many settings have files that can't be used.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    counts: [[AtomicU64; Handshake::ALL.len()]; TlsSide::ALL.len()],
    refused: AtomicU64,
}

impl Handshakes {
    pub(super) fn count(&self, side: TlsSide, ended: Handshake) {
        self.counts[side as usize][ended as usize].fetch_add(1, Relaxed);
    }

    /// How many different problems there are with files.
    pub(super) fn set_refused(&self, count: usize) {
        self.refused.store(count as u64, Relaxed);
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Side and end, with how many.
    pub(super) fn sums(&self) -> Vec<([&'static str; 2], f64)> {
        let mut sums = Vec::new();
        for side in TlsSide::ALL {
            for ended in Handshake::ALL {
                let count = self.counts[side as usize][ended as usize].load(Relaxed);
                sums.push(([side.label(), ended.label()], count as f64));
            }
        }
        sums
    }
}
