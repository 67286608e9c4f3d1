//! What an operator may have to act on, for whoever watches: `mesh monitor`.
//!
//! One ring of bounded size. The agent writes and never waits; each reader asks for what came after
//! the number that it saw last, and is told how many it missed when the ring went round before it
//! asked again. Numbers are an agent's own: with them goes the epoch, which tells that another agent
//! answers, after a restart or a takeover.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time};

/// Events that are kept for readers. The kernel's own buffer holds 16,384.
const KEPT: usize = 4_096;
/// Events in one answer.
const BATCH: usize = 512;
/// A reader waits so long for the next event before it gets an empty answer.
const WAIT: Duration = Duration::from_secs(20);

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Its number, without gaps since the agent's start.
    pub seq: u64,
    /// When it happened: seconds since 1970.
    pub time: f64,
    /// `refused`, `bypass`, `miss`, `ejection`, `foreign-hook`.
    pub kind: String,
    /// The reason's label, or what happened to an endpoint.
    pub reason: String,
    /// `namespace/name` of the workload.
    pub workload: Option<String>,
    /// Who connects.
    pub source: Option<String>,
    /// To whom.
    pub destination: Option<String>,
    /// Process that connects, where the hook can know it.
    pub tgid: Option<u32>,
    /// `namespace/name:port` of the service of an ejection.
    pub service: Option<String>,
    /// More, as text.
    pub detail: Option<String>,
}

/// The answer to a reader.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventBatch {
    /// Whose numbers these are: when the agent started, in microseconds since 1970.
    #[serde(default)]
    pub epoch: u64,
    /// Events, oldest first.
    pub items: Vec<EventRow>,
    /// What to ask with next.
    pub next: u64,
    /// Events that this reader missed.
    pub lost: u64,
}

/// The ring.
#[derive(Debug)]
pub struct Events {
    epoch: u64,
    ring: Mutex<Ring>,
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Number of the next event.
    next: u64,
    rows: VecDeque<EventRow>,
}

impl Default for Events {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            // Exact as a JSON number until the year 2255.
            epoch: now.unwrap_or_default().as_micros() as u64,
            ring: Mutex::default(),
            news: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Adds events and wakes the readers. Never waits for one.
    pub fn publish(&self, rows: impl IntoIterator<Item = EventRow>) {
        let mut ring = self.lock();
        for row in rows {
            let seq = ring.next;
            ring.next += 1;
            if ring.rows.len() == KEPT {
                ring.rows.pop_front();
            }
            ring.rows.push_back(EventRow { seq, ..row });
        }
        let next = ring.next;
        drop(ring);
        self.news.send_if_modified(|seen| {
            let news = *seen != next;
            *seen = next;
            news
        });
    }

    /// Whose numbers these are.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where «from now on» begins.
    pub fn now(&self) -> EventBatch {
        EventBatch {
            epoch: self.epoch,
            next: self.lock().next,
            ..EventBatch::default()
        }
    }

    /// What came from number `from` of an epoch on; at once when there is something, else when there
    /// is, else nothing after a while. Of another epoch: at once, from this one's beginning.
    pub async fn from(&self, epoch: u64, from: u64) -> EventBatch {
        if epoch != self.epoch {
            return self.since(0);
        }
        let mut news = self.news.subscribe();
        let arrived = news.wait_for(|next| *next != from);
        // Neither a time-out nor an end is an error: the answer is empty then.
        let _ = time::timeout(WAIT, arrived).await;
        self.since(from)
    }

    fn since(&self, from: u64) -> EventBatch {
        let ring = self.lock();
        // No number of ours: begin anew.
        let from = if from > ring.next { 0 } else { from };
        let oldest = ring.next - ring.rows.len() as u64;
        let first = from.max(oldest);
        // Below KEPT: the distance between two numbers of the ring.
        let skip = (first - oldest) as usize;
        let items: Vec<EventRow> = ring.rows.iter().skip(skip).take(BATCH).cloned().collect();
        EventBatch {
            epoch: self.epoch,
            next: first + items.len() as u64,
            lost: first - from,
            items,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Every change is whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970 of a moment that lies `age` back.
pub fn seconds_ago(age: Duration) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().saturating_sub(age).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(reason: &str) -> EventRow {
        EventRow {
            reason: reason.to_owned(),
            ..EventRow::default()
        }
    }

    #[test]
    fn every_reader_gets_every_event_once_and_in_order() {
        let events = Events::default();
        events.publish(["a", "b"].map(row));
        for _reader in 0..2 {
            let first = events.since(0);
            let reasons: Vec<&str> = first.items.iter().map(|row| row.reason.as_str()).collect();
            assert_eq!((reasons, first.next, first.lost), (vec!["a", "b"], 2, 0));
            assert!(events.since(first.next).items.is_empty());
        }
        events.publish([row("c")]);
        assert_eq!(events.since(2).items[0].seq, 2);
    }

    #[test]
    fn slow_reader_loses_the_oldest_and_is_told_how_many() {
        let events = Events::default();
        let more = 10;
        events.publish((0..KEPT + more).map(|n| row(&n.to_string())));
        let batch = events.since(0);
        assert_eq!((batch.lost, batch.items.len()), (more as u64, BATCH));
        assert_eq!(batch.items[0].reason, more.to_string());
        // From before a restart.
        assert_eq!(events.since(1_000_000).items[0].reason, more.to_string());
    }

    /// Without it: after a takeover a reader gets events twice, or misses some and isn't told.
    #[tokio::test]
    async fn reader_of_another_epoch_begins_anew_and_at_once() {
        let events = Events::default();
        let old = events.epoch - 1;
        let batch = events.from(old, 1).await;
        assert_eq!((batch.epoch, batch.next), (events.epoch, 0));
        events.publish(["a", "b", "c"].map(row));
        let batch = events.from(old, 2).await;
        assert_eq!((batch.items.len(), batch.next, batch.lost), (3, 3, 0));
        let batch = events.from(batch.epoch, 2).await;
        assert_eq!(batch.items.len(), 1);
    }

    #[tokio::test]
    async fn reader_that_waits_is_woken_by_the_next_event() {
        let events = std::sync::Arc::new(Events::default());
        let reader = tokio::spawn({
            let events = events.clone();
            async move { events.from(events.epoch, 0).await }
        });
        tokio::task::yield_now().await;
        events.publish([row("x")]);
        let batch = time::timeout(Duration::from_secs(5), reader).await;
        let batch = batch.expect("woken").expect("no panic");
        assert_eq!(batch.items[0].reason, "x");
    }
}
