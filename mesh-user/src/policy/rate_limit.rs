//! Local token buckets, exact over the node (SEMANTICS §5.8).
//!
//! In any span T a key is admitted at most burst + rate x T times, whatever the number of cores.
//! A limit belongs to the policy that states it: the versions and ports that the policy covers
//! share its buckets, unless `version` is part of the key. A missing attribute (no such header, no
//! identity, an opaque connection's path) is a value like any other: all requests without it share
//! one bucket.

use std::{
    fmt::Write,
    hash::{BuildHasher, Hasher, RandomState},
    ops::Deref,
    sync::{Arc, atomic::AtomicU64},
};

use super::{
    HeaderView, Observer, RequestView, Snapshot, SourceIx, route::Plan, value::each_joined,
};
use crate::{
    clock::MonoNanos,
    model::{RateKey, RateLimitPolicy},
};

mod bucket;
mod keyed;

use bucket::{Answer, Shape};
pub use keyed::KEYS_MAX;
use keyed::{Buckets, Taken};

/// Largest integer of a structured field (RFC 9651 §3.3.1).
const FIELD_INTEGER_MAX: u64 = 999_999_999_999_999;

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

/// What the limits said: for the `RateLimit` fields of the answer. Cheap: no allocation unless a
/// second limit applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every limit that was asked.
    pub asked: AskedList,
    /// The limit that refused, an index into `asked`.
    pub refused: Option<usize>,
}

/// A slice of [`Asked`], of which one needs no allocation.
#[derive(Clone, Debug, Default)]
pub enum AskedList {
    /// No limit applies.
    #[default]
    None,
    /// One does.
    One([Asked; 1]),
    /// Several do.
    Many(Vec<Asked>),
}

/// One limit's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Policy name.
    pub name: Arc<str>,
    /// Quota of the policy (`q`): the bucket's size.
    pub quota: u64,
    /// Window of the policy (`w`) in seconds, at least 1: how long an empty bucket takes to fill.
    pub window_s: u64,
    /// Left (`r`).
    pub left: u64,
    /// Seconds to more quota (`t`), rounded up; also `Retry-After` when refused: a client that
    /// waits exactly so long is admitted.
    pub reset_s: u64,
}

impl Deref for AskedList {
    type Target = [Asked];

    fn deref(&self) -> &[Asked] {
        match self {
            Self::None => &[],
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

impl PartialEq for AskedList {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for AskedList {}

impl Verdict {
    /// The value of the `RateLimit-Policy` field (draft-ietf-httpapi-ratelimit-headers, 2025-09).
    /// Empty when no limit applies: there is then no such field.
    pub fn policy_field(&self) -> String {
        self.field(|asked| [('q', asked.quota), ('w', asked.window_s)])
    }

    /// The value of the `RateLimit` field. Empty when no limit applies.
    pub fn limit_field(&self) -> String {
        self.field(|asked| [('r', asked.left), ('t', asked.reset_s)])
    }

    /// Seconds for `Retry-After`, when refused.
    pub fn retry_after_s(&self) -> Option<u64> {
        // At least 1: 0 would invite an attempt that is known to fail.
        self.refused
            .and_then(|at| self.asked.get(at))
            .map(|asked| asked.reset_s.max(1))
    }

    /// A list of strings with parameters (RFC 9651).
    fn field(&self, parameters: impl Fn(&Asked) -> [(char, u64); 2]) -> String {
        let mut field = String::new();
        for asked in self.asked.iter() {
            if !field.is_empty() {
                field.push_str(", ");
            }
            quote(&mut field, &asked.name);
            for (key, value) in parameters(asked) {
                // Writing to a string can't fail.
                let _ = write!(field, ";{key}={}", value.min(FIELD_INTEGER_MAX));
            }
        }
        field
    }
}

/// A string of a structured field: printable ASCII, `"` and `\` escaped (RFC 9651 §3.3.3). What
/// can't stand in one becomes `?`; the configuration refuses such names anyway.
fn quote(field: &mut String, text: &str) {
    field.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => field.extend(['\\', char]),
            ' '..='~' => field.push(char),
            _ => field.push('?'),
        }
    }
    field.push('"');
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
            Store::One(word) => self
                .shape
                .peek(word.load(std::sync::atomic::Ordering::Relaxed), time),
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
        let parts = self.policy.key.iter().map(|key| {
            let mut value = Vec::new();
            let there = asker.attribute(key, |part| value.extend_from_slice(part));
            let value = if there {
                String::from_utf8_lossy(&value).into_owned()
            } else {
                "-".into()
            };
            format!("{}={value}", key_name(key))
        });
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

/// As in the configuration: `header.x-user`.
pub fn key_name(key: &RateKey) -> String {
    match key {
        RateKey::SourceWorkload => "source.workload".to_owned(),
        RateKey::SourceNamespace => "source.namespace".to_owned(),
        RateKey::SourceIdentity => "source.identity".to_owned(),
        RateKey::SourceTag(tag) => format!("source.tags.{tag}"),
        RateKey::Destination => "destination".to_owned(),
        RateKey::Version => "version".to_owned(),
        RateKey::Header(name) => format!("header.{name}"),
        RateKey::Path => "path".to_owned(),
        RateKey::Method => "method".to_owned(),
    }
}

/// Who asks for what: where the attributes of a key come from.
struct Asker<'a, H> {
    snapshot: &'a Snapshot,
    plan: &'a Plan,
    source: Option<SourceIx>,
    request: Option<&'a RequestView<'a, H>>,
}

impl<H: HeaderView> Asker<'_, H> {
    /// Gives the attribute to `part`, piece by piece; false when there is none.
    fn attribute(&self, key: &RateKey, mut part: impl FnMut(&[u8])) -> bool {
        let source = self.source.map(|source| self.snapshot.source_of(source));
        let value: Option<&str> = match key {
            RateKey::SourceWorkload => source.map(|source| &*source.key),
            RateKey::SourceNamespace => source.map(|source| &*source.namespace),
            RateKey::SourceIdentity => source.and_then(|source| source.identity.as_deref()),
            RateKey::SourceTag(tag) => source
                .and_then(|source| source.tags.get(tag))
                .map(String::as_str),
            RateKey::Destination => Some(&self.snapshot.port(self.plan.port).key),
            RateKey::Version => Some(&self.snapshot.version(self.plan.version).name),
            RateKey::Path => self.request.map(|request| request.path),
            RateKey::Method => self.request.map(|request| request.method),
            RateKey::Header(name) => {
                let Some(request) = self.request else {
                    return false;
                };
                if request.headers.values(name).next().is_none() {
                    return false;
                }
                each_joined(request.headers, name, part);
                return true;
            }
        };
        value.map(|value| part(value.as_bytes())).is_some()
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
    source: Option<SourceIx>,
    request: Option<&RequestView<'_, H>>,
    now: MonoNanos,
    observer: &mut impl Observer,
) -> Verdict {
    let asker = Asker {
        snapshot,
        plan,
        source,
        request,
    };
    let verdict = match &*snapshot.version(plan.version).limits {
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
    tell(&asker, &verdict, observer);
    verdict
}

/// What [`admit`] would say now. Nothing is spent, and `left` is what there is before the request.
pub fn peek<H: HeaderView>(
    snapshot: &Snapshot,
    plan: &Plan,
    source: Option<SourceIx>,
    request: Option<&RequestView<'_, H>>,
    now: MonoNanos,
    observer: &mut impl Observer,
) -> Verdict {
    let asker = Asker {
        snapshot,
        plan,
        source,
        request,
    };
    let verdict = peek_all(&snapshot.version(plan.version).limits, &asker, now);
    tell(&asker, &verdict, observer);
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

fn tell<H: HeaderView>(asker: &Asker<'_, H>, verdict: &Verdict, observer: &mut impl Observer) {
    if !observer.active() {
        return;
    }
    let limits = &asker.snapshot.version(asker.plan.version).limits;
    for (limit, asked) in limits.iter().zip(verdict.asked.iter()) {
        // When one refuses nothing is spent: who has something left would have admitted.
        let admitted = verdict.refused.is_none() || asked.left > 0;
        observer.limit(&asked.name, &limit.key_text(asker), asked.left, admitted);
    }
}

#[cfg(test)]
mod tests;
