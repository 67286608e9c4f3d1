//! Local token buckets, exact over the node (SEMANTICS §5.8).
//!
//! In any span T a key is admitted at most burst + rate x T times, whatever the number of cores.
//! A limit belongs to the policy that states it: the versions and ports that the policy covers
//! share its buckets, unless `version` is part of the key. A missing attribute (no such header, no
//! identity, an opaque connection's path) is a value like any other: all requests without it share
//! one bucket.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Client, HeaderView, Observer, RequestView, Snapshot, attribute::Asker, route::Plan};
use crate::{clock::MonoNanos, model::RateLimitPolicy};

mod bucket;
mod keyed;
mod verdict;

use bucket::{Answer, Shape};
pub use keyed::KEYS_MAX;
use keyed::{Buckets, Taken};
pub use verdict::{Asked, AskedList, Verdict};

/// One limit with its buckets, shared by all cores and carried over reloads.
#[derive(Debug)]
pub struct Limiter {
    policy: RateLimitPolicy,
    name: Arc<str>,
    shape: Shape,
    store: Store,
}

#[derive(Debug)]
enum Store {
    One(AtomicU64),
    Keyed(Buckets, RandomState),
}

impl Limiter {
    /// With full buckets.
    pub(super) fn new(policy: &RateLimitPolicy, now: MonoNanos) -> Self {
        let store = if policy.key.is_empty() {
            Store::One(AtomicU64::new(0))
        } else {
            Store::Keyed(Buckets::new(), RandomState::new())
        };
        Self {
            policy: policy.clone(),
            name: policy.name.as_str().into(),
            shape: Shape::new(policy.requests, policy.per, policy.burst, now),
            store,
        }
    }

    /// The policy that states it.
    pub fn policy(&self) -> &RateLimitPolicy {
        &self.policy
    }

    fn take<H: HeaderView>(&self, asker: &Asker<'_, H>, now: MonoNanos) -> Held<'_> {
        let time = self.shape.time(now);
        match &self.store {
            Store::One(word) => Held::One(word, self.shape.take(word, time)),
            Store::Keyed(buckets, seed) => {
                Held::Keyed(buckets.take(&self.shape, self.key(asker, seed), time))
            }
        }
    }

    fn peek<H: HeaderView>(&self, asker: &Asker<'_, H>, now: MonoNanos) -> Answer {
        let time = self.shape.time(now);
        match &self.store {
            Store::One(word) => self.shape.peek(word.load(Ordering::Relaxed), time),
            Store::Keyed(buckets, seed) => buckets.peek(&self.shape, self.key(asker, seed), time),
        }
    }

    fn key<H: HeaderView>(&self, asker: &Asker<'_, H>, seed: &RandomState) -> u64 {
        let mut hasher = seed.build_hasher();
        for key in &self.policy.key {
            let mut length = 0_u64;
            let there = asker.attribute(key, |part| {
                hasher.write(part);
                length += part.len() as u64;
            });
            // The length behind the bytes keeps «ab»,«c» and «a»,«bc» apart, and nothing from
            // an empty value.
            hasher.write_u64(if there { length } else { u64::MAX });
        }
        hasher.finish()
    }

    /// The bucket's key, for people.
    fn key_text<H: HeaderView>(&self, asker: &Asker<'_, H>) -> String {
        let parts = self
            .policy
            .key
            .iter()
            .map(|key| format!("{key}={}", asker.text(key)));
        parts.collect::<Vec<_>>().join(",")
    }

    fn asked(&self, answer: Answer, spent: bool) -> Asked {
        // What was only looked at still has the token that it would have given.
        let left = answer.left + u64::from(answer.admitted && !spent);
        let reset_s = if left >= self.shape.burst {
            0
        } else {
            answer.more_in_s
        };
        Asked {
            name: Arc::clone(&self.name),
            quota: self.shape.burst,
            window_s: self.shape.window_s(),
            left,
            reset_s,
        }
    }
}

/// A token that may have been taken.
enum Held<'a> {
    One(&'a AtomicU64, Answer),
    Keyed(Taken<'a>),
}

impl Held<'_> {
    const fn answer(&self) -> Answer {
        match self {
            Self::One(_, answer) => *answer,
            Self::Keyed(taken) => taken.answer,
        }
    }

    fn refund(self) {
        match self {
            Self::One(word, answer) => Shape::refund(word, answer),
            Self::Keyed(taken) => taken.refund(),
        }
    }
}

/// Asks every limit of the version, once per request. When one refuses, the tokens that the
/// others gave are returned to them. `request` is none for an opaque connection.
pub fn admit<H: HeaderView>(
    snapshot: &Snapshot,
    plan: &Plan,
    client: impl Into<Client>,
    request: Option<&RequestView<'_, H>>,
    now: MonoNanos,
    observer: &mut impl Observer,
) -> Verdict {
    let asker = asker(snapshot, plan, client.into(), request);
    let limits = &snapshot.version(plan.version).limits;
    let verdict = match &**limits {
        [] => return Verdict::default(),
        [limit] => {
            let answer = limit.take(&asker, now).answer();
            let asked = AskedList::One([limit.asked(answer, true)]);
            Verdict {
                asked,
                refused: (!answer.admitted).then_some(0),
            }
        }
        limits => admit_all(limits, &asker, now),
    };
    tell(&asker, limits, &verdict, observer);
    verdict
}

fn asker<'a, H>(
    snapshot: &'a Snapshot,
    plan: &Plan,
    client: Client,
    request: Option<&'a RequestView<'a, H>>,
) -> Asker<'a, H> {
    Asker {
        snapshot,
        port: plan.port,
        rule: plan.rule,
        version: Some(plan.version),
        client,
        request,
    }
}

/// What [`admit`] would say now. Nothing is spent, and `left` is what there is before the request.
pub fn peek<H: HeaderView>(
    snapshot: &Snapshot,
    plan: &Plan,
    client: impl Into<Client>,
    request: Option<&RequestView<'_, H>>,
    now: MonoNanos,
    observer: &mut impl Observer,
) -> Verdict {
    let asker = asker(snapshot, plan, client.into(), request);
    let limits = &snapshot.version(plan.version).limits;
    let verdict = peek_all(limits, &asker, now);
    tell(&asker, limits, &verdict, observer);
    verdict
}

fn peek_all<H: HeaderView>(
    limits: &[Arc<Limiter>],
    asker: &Asker<'_, H>,
    now: MonoNanos,
) -> Verdict {
    let answers: Vec<Answer> = limits.iter().map(|limit| limit.peek(asker, now)).collect();
    let refused = answers.iter().position(|answer| !answer.admitted);
    let asked = limits
        .iter()
        .zip(&answers)
        .map(|(limit, answer)| limit.asked(*answer, false));
    Verdict {
        asked: AskedList::Many(asked.collect()),
        refused,
    }
}

/// Looks first, so that a refusal spends nothing; takes then, and gives back what it took when
/// another core was faster at one of them.
fn admit_all<H: HeaderView>(
    limits: &[Arc<Limiter>],
    asker: &Asker<'_, H>,
    now: MonoNanos,
) -> Verdict {
    let look = peek_all(limits, asker, now);
    if look.refused.is_some() {
        return look;
    }
    let mut held: Vec<Held<'_>> = Vec::with_capacity(limits.len());
    for (at, limit) in limits.iter().enumerate() {
        let taken = limit.take(asker, now);
        if !taken.answer().admitted {
            held.into_iter().for_each(Held::refund);
            // A refusal stays one, even if a second look finds room again.
            return Verdict {
                refused: Some(at),
                ..peek_all(limits, asker, now)
            };
        }
        held.push(taken);
    }
    let asked = limits
        .iter()
        .zip(&held)
        .map(|(limit, held)| limit.asked(held.answer(), true));
    Verdict {
        asked: AskedList::Many(asked.collect()),
        refused: None,
    }
}

fn tell<H: HeaderView>(
    asker: &Asker<'_, H>,
    limits: &[Arc<Limiter>],
    verdict: &Verdict,
    observer: &mut impl Observer,
) {
    if !observer.active() {
        return;
    }
    for (limit, asked) in limits.iter().zip(verdict.asked.iter()) {
        // When one refuses nothing is spent: who has something left would have admitted.
        let admitted = verdict.refused.is_none() || asked.left > 0;
        observer.limit(&asked.name, &limit.key_text(asker), asked.left, admitted);
    }
}

#[cfg(test)]
mod tests;
