//! One limit with its buckets, shared by all cores and carried over reloads.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::IpAddr,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    bucket::{Answer, Shape},
    global::{Bucket, Global},
    keyed::Buckets,
    places::Places,
    verdict::{Asked, Style},
};
use crate::{
    clock::MonoNanos,
    model::{Attribute, LimitUnit, RateLimitPolicy, RateLimitService},
    policy::{HeaderView, attribute::Asker},
};

/// What became of requests at a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// It let them pass.
    Admitted,
    /// It refused them.
    Refused,
    /// It would have refused them, were it not a dry run.
    DryRun,
    /// Its store gave no answer: they passed.
    FailedOpen,
    /// Its store gave no answer: they were refused.
    FailedClosed,
}

impl Tally {
    /// Every one, with its label in `mesh_rate_limit_total{result}`.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Admitted, "admitted"),
        (Self::Refused, "refused"),
        (Self::DryRun, "dry_run"),
        (Self::FailedOpen, "failed_open"),
        (Self::FailedClosed, "failed_closed"),
    ];
}

/// What became of requests, in the order of [`Tally`].
#[derive(Debug, Default)]
struct Counts([AtomicU64; 5]);

/// One limit.
#[derive(Debug)]
pub struct Limiter {
    policy: RateLimitPolicy,
    pub(super) name: Arc<str>,
    /// The limit itself, then its overrides.
    parts: Box<[Part]>,
    seed: RandomState,
    counts: Arc<Counts>,
    global: Option<Global>,
    style: Style,
    /// Whether a request needs nothing but a token of one bucket.
    pub(super) plain: bool,
}

#[derive(Debug)]
struct Part {
    /// Attributes that must have these values.
    when: Box<[(Attribute, Box<[u8]>)]>,
    shape: Shape,
    bucket: Bucket,
    store: Store,
}

#[derive(Debug)]
enum Store {
    One(AtomicU64),
    Keyed(Buckets),
    Places(Places),
    /// In another place.
    Elsewhere,
}

/// Where a request stands: which values, and whose bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    part: u32,
    /// Hash of the key.
    key: u64,
}

impl Limiter {
    /// With full buckets. `service`: the store of a limit that is shared; `scope` names who states
    /// the limit, in keys of that store. What `previous` counted goes on.
    pub(in crate::policy) fn new(
        policy: &RateLimitPolicy,
        service: Option<&Arc<RateLimitService>>,
        scope: &str,
        previous: Option<&Self>,
        now: MonoNanos,
    ) -> Self {
        let global = service.and_then(|service| Global::new(policy, service, scope));
        let part = |when, bucket: Bucket| {
            let Bucket {
                requests,
                per,
                burst,
            } = bucket;
            let shape = match policy.unit {
                LimitUnit::Bytes => Shape::bytes(requests, per, burst, now),
                LimitUnit::Requests | LimitUnit::Concurrent => {
                    Shape::new(requests, per, burst, now)
                }
            };
            let store = match policy.unit {
                _ if global.is_some() => Store::Elsewhere,
                LimitUnit::Concurrent => Store::Places(Places::new()),
                _ if policy.key.is_empty() => Store::One(AtomicU64::new(0)),
                _ => Store::Keyed(Buckets::new()),
            };
            Part {
                when,
                shape,
                bucket,
                store,
            }
        };
        let own = Bucket {
            requests: policy.requests,
            per: policy.per,
            burst: policy.burst,
        };
        let mut parts = vec![part(Box::default(), own)];
        for other in &policy.overrides {
            let when = other.when.iter();
            let when = when.map(|(key, value)| (key.clone(), bytes_of(key, value)));
            let bucket = Bucket {
                requests: other.requests,
                per: other.per,
                burst: other.burst,
            };
            parts.push(part(when.collect(), bucket));
        }
        Self {
            name: policy.name.as_str().into(),
            parts: parts.into(),
            seed: RandomState::new(),
            counts: previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.counts)),
            style: Style::of(&policy.answer),
            plain: global.is_none() && !policy.dry_run && policy.unit == LimitUnit::Requests,
            global,
            policy: policy.clone(),
        }
    }

    /// The policy that states it.
    pub const fn policy(&self) -> &RateLimitPolicy {
        &self.policy
    }

    /// What it has to do with a store, when it is shared.
    pub const fn global(&self) -> Option<&Global> {
        self.global.as_ref()
    }

    pub(super) const fn style(&self) -> Style {
        self.style
    }

    /// Whether it is the same limit, with the same store.
    pub(in crate::policy) fn is(
        &self,
        policy: &RateLimitPolicy,
        service: Option<&Arc<RateLimitService>>,
    ) -> bool {
        self.policy == *policy && self.global.as_ref().map(|global| &global.service) == service
    }

    /// Counts what became of a request.
    pub(super) fn count(&self, tally: Tally) {
        self.counts.0[tally as usize].fetch_add(1, Relaxed);
    }

    /// What was counted so far, in the order of [`Tally::ALL`].
    pub fn counts(&self) -> [u64; 5] {
        std::array::from_fn(|at| self.counts.0[at].load(Relaxed))
    }

    /// Which values hold for the request, and which bucket is its.
    pub(super) fn at<H: HeaderView>(&self, asker: &Asker<'_, H>) -> At {
        let holds = |part: &Part| {
            part.when
                .iter()
                .all(|(key, value)| asker.equals(key, value))
        };
        let part = match &*self.parts {
            [_] => 0,
            // The first that holds; the limit's own values stand at 0 and hold always.
            parts => (1..parts.len()).find(|at| holds(&parts[*at])).unwrap_or(0),
        };
        let key = if self.policy.key.is_empty() {
            1
        } else {
            self.key(asker)
        };
        At {
            part: part as u32,
            key,
        }
    }

    pub(super) const fn part_of(&self, at: At) -> (usize, Bucket) {
        (at.part as usize, self.parts[at.part as usize].bucket)
    }

    fn key<H: HeaderView>(&self, asker: &Asker<'_, H>) -> u64 {
        let mut hasher = self.seed.build_hasher();
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
        hasher.finish().max(1)
    }

    /// The bucket's key, for people.
    pub(super) fn key_text<H: HeaderView>(&self, asker: &Asker<'_, H>) -> String {
        let parts = self
            .policy
            .key
            .iter()
            .map(|key| format!("{key}={}", asker.text(key)));
        parts.collect::<Vec<_>>().join(",")
    }

    /// What [`take`](Self::take) would say, without taking anything. `left` is as after taking.
    pub(super) fn peek(&self, at: At, now: MonoNanos) -> Answer {
        let part = &self.parts[at.part as usize];
        let (shape, time) = (&part.shape, part.shape.time(now));
        match (&part.store, self.policy.unit) {
            (Store::One(word), LimitUnit::Bytes) => shape.look(word.load(Relaxed), time),
            (Store::One(word), _) => shape.peek(word.load(Relaxed), time),
            (Store::Keyed(buckets), LimitUnit::Bytes) => buckets.look(shape, at.key, time),
            (Store::Keyed(buckets), _) => buckets.peek(shape, at.key, time),
            (Store::Places(places), _) => Answer::of_places(shape.burst, places.taken(at.key)),
            (Store::Elsewhere, _) => Answer::of_places(1, 0),
        }
    }

    /// Takes a token or a place, if there is one. Of bytes nothing is taken before they are known.
    pub(super) fn take(&self, at: At, now: MonoNanos) -> Answer {
        let part = &self.parts[at.part as usize];
        let (shape, time) = (&part.shape, part.shape.time(now));
        match (&part.store, self.policy.unit) {
            (Store::One(word), LimitUnit::Requests) => shape.take(word, time),
            (Store::Keyed(buckets), LimitUnit::Requests) => {
                buckets.take(shape, at.key, time).answer
            }
            (Store::Places(places), _) => {
                let (Ok(taken) | Err(taken)) = places.take(at.key, shape.burst);
                Answer::of_places(shape.burst, taken)
            }
            _ => self.peek(at, now),
        }
    }

    /// Gives back what was taken, as if the request had not been.
    pub(super) fn refund(&self, at: At, answer: Answer) {
        match (&self.parts[at.part as usize].store, self.policy.unit) {
            (Store::One(word), LimitUnit::Requests) => Shape::refund(word, answer),
            (Store::Keyed(buckets), LimitUnit::Requests) if answer.admitted => {
                buckets.refund(at.key, answer);
            }
            (Store::Places(_), _) if answer.admitted => self.leave(at),
            _ => {}
        }
    }

    /// The request has ended: its place is free.
    pub(super) fn leave(&self, at: At) {
        if let Store::Places(places) = &self.parts[at.part as usize].store {
            places.give_back(at.key);
        }
    }

    /// The request has ended: its bytes are charged.
    pub(super) fn charge(&self, at: At, bytes: u64, now: MonoNanos) {
        let part = &self.parts[at.part as usize];
        let time = part.shape.time(now);
        match &part.store {
            _ if self.policy.unit != LimitUnit::Bytes || bytes == 0 => {}
            Store::One(word) => part.shape.charge(word, bytes, time),
            Store::Keyed(buckets) => buckets.charge(&part.shape, at.key, bytes, time),
            Store::Places(_) | Store::Elsewhere => {}
        }
    }

    /// `pk` of the fields: says which bucket it is, and nothing of what the key holds.
    const fn partition(&self, at: At) -> Option<NonZeroU64> {
        if self.policy.key.is_empty() {
            None
        } else {
            NonZeroU64::new(at.key)
        }
    }

    pub(super) fn asked(&self, at: At, answer: Answer, spent: bool) -> Asked {
        let shape = &self.parts[at.part as usize].shape;
        // What was only looked at still has the token that it would have given.
        let counted = self.policy.unit != LimitUnit::Bytes;
        let left = answer.left + u64::from(answer.admitted && !spent && counted);
        let concurrent = self.policy.unit == LimitUnit::Concurrent;
        let reset_s = if left >= shape.burst || concurrent {
            0
        } else {
            answer.more_in_s
        };
        Asked {
            name: Arc::clone(&self.name),
            quota: shape.burst,
            window_s: if concurrent {
                0
            } else {
                window(shape.window_s())
            },
            left,
            reset_s,
            unit: self.policy.unit,
            partition: self.partition(at),
            draft_03: self.policy.answer.draft_03,
        }
    }

    /// The same for what a store said.
    pub(super) fn asked_of_store(&self, at: At, left: u64, wait: Duration) -> Asked {
        let shape = &self.parts[at.part as usize].shape;
        let wait_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Asked {
            name: Arc::clone(&self.name),
            quota: shape.burst,
            window_s: window(shape.window_s()),
            left: left.min(shape.burst),
            reset_s: wait_s,
            unit: self.policy.unit,
            partition: self.partition(at),
            draft_03: self.policy.answer.draft_03,
        }
    }
}

/// More than a hundred years are as good as a hundred.
pub(super) fn window(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// The value as [`Asker::attribute`] gives it.
fn bytes_of(key: &Attribute, value: &str) -> Box<[u8]> {
    match (key, value.parse::<IpAddr>().map(|ip| ip.to_canonical())) {
        (Attribute::SourceAddress, Ok(IpAddr::V4(ip))) => ip.octets().into(),
        (Attribute::SourceAddress, Ok(IpAddr::V6(ip))) => ip.octets().into(),
        (Attribute::Authority, _) => value.to_ascii_lowercase().into_bytes().into(),
        _ => value.as_bytes().into(),
    }
}
