//! Limits that are shared with other nodes: what of them is decided here, and what must be asked.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use twox_hash::XxHash64;

use super::lease::{Grant, Leases, Take};
use crate::{
    clock::MonoNanos,
    model::{
        Attribute, RateLimitPolicy,
        limit::{DescriptorValue, RateLimitService, StoreFailure, StoreKind},
    },
    policy::{HeaderView, attribute::Asker},
};

/// Longest key that is sent as it is; of a longer one its beginning and 128 bits of hash are.
const KEY_MAX: usize = 192;

/// The part of a limiter that is about a store.
#[derive(Debug)]
pub struct Global {
    /// The store.
    pub service: Arc<RateLimitService>,
    failure: StoreFailure,
    hits: u32,
    /// Entries of the descriptor, for an Envoy service.
    entries: Vec<(String, DescriptorValue)>,
    /// What its keys begin with, for Redis.
    prefix: String,
    leases: Option<Leases>,
    /// The store is taken for dead until then: nobody waits for it.
    down_until: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
}

/// Numbers of a bucket in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens in each `per`.
    pub requests: u64,
    /// The period.
    pub per: Duration,
    /// Size of the bucket.
    pub burst: u64,
}

/// What a store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Redis: tokens of this key's bucket.
    Tokens {
        /// The whole key.
        key: Box<str>,
        /// Its bucket.
        bucket: Bucket,
    },
    /// Envoy: whether this descriptor is over its limit.
    Descriptor {
        /// Ordered entries.
        entries: Vec<(String, String)>,
        /// `hits_addend`.
        hits: u32,
    },
}

/// What is known at once.
pub(super) enum Known {
    /// It does not apply to this request.
    Nothing,
    /// A held token serves.
    Served {
        left: u64,
        wait: Duration,
        refill: Option<Question>,
    },
    /// The store has none.
    Empty {
        wait: Duration,
    },
    /// The store is taken for dead.
    Down,
    Ask(Question),
}

impl Global {
    /// Of a limit; `scope` names the policy or rule that states it.
    pub(super) fn new(
        policy: &RateLimitPolicy,
        service: &Arc<RateLimitService>,
        scope: &str,
    ) -> Option<Self> {
        let global = policy.global.as_ref()?;
        let (prefix, leases) = match &service.kind {
            StoreKind::Redis(redis) => {
                let prefix = format!("{}{scope}/{}", redis.prefix, policy.name);
                let lease = global.lease;
                let time = lease.time(policy.per);
                let full = policy.per.as_nanos() * u128::from(policy.burst)
                    / u128::from(policy.requests.max(1));
                let full = Duration::from_nanos(u64::try_from(full).unwrap_or(u64::MAX));
                let leases = Leases::new(policy.burst, full, lease.share_percent, time);
                (prefix, Some(leases))
            }
            StoreKind::Envoy { .. } => (String::new(), None),
        };
        let entries = if global.descriptor.is_empty() {
            default_descriptor(policy)
        } else {
            let entry = |entry: &crate::model::limit::DescriptorEntry| {
                (entry.key.clone(), entry.value.clone())
            };
            global.descriptor.iter().map(entry).collect()
        };
        Some(Self {
            service: Arc::clone(service),
            failure: global.failure,
            hits: global.hits.max(1),
            entries,
            prefix,
            leases,
            down_until: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// What happens while the store does not answer.
    pub const fn failure(&self) -> StoreFailure {
        self.failure
    }

    /// Questions that were asked, and how many had no good answer.
    pub fn calls(&self) -> (u64, u64) {
        (self.calls.load(Relaxed), self.failures.load(Relaxed))
    }

    /// Tokens of the store that this node holds.
    pub fn held(&self) -> u64 {
        self.leases.as_ref().map_or(0, Leases::tokens)
    }

    fn is_down(&self, now: MonoNanos) -> bool {
        self.down_until.load(Relaxed) > now.0
    }

    /// Notes that the store is dead: until then requests are decided without it.
    pub fn set_down(&self, until: MonoNanos) {
        self.down_until.fetch_max(until.0, Relaxed);
    }

    /// Counts a question; `good`: it had an answer.
    pub fn count(&self, good: bool) {
        self.calls.fetch_add(1, Relaxed);
        self.failures.fetch_add(u64::from(!good), Relaxed);
    }

    /// How many tokens to ask for, when so many requests wait for one.
    pub fn want(&self, key: &str, waiting: u64, now: MonoNanos) -> u64 {
        let leases = self.leases.as_ref();
        leases.map_or(waiting, |leases| leases.want(key, waiting, now))
    }

    /// Puts down what came of it: see [`Grant`]. How many of those who waited get a token.
    pub fn granted(
        &self,
        key: &str,
        waiting: u64,
        grant: Grant,
        asked_at: MonoNanos,
        now: MonoNanos,
    ) -> u64 {
        let without = grant.given.min(waiting);
        let leases = self.leases.as_ref();
        leases.map_or(without, |leases| {
            leases.granted(key, waiting, grant, asked_at, now)
        })
    }

    /// The question had no answer.
    pub fn failed(&self, key: &str) {
        if let Some(leases) = &self.leases {
            leases.failed(key);
        }
    }

    /// Decides from what is held.
    pub(super) fn take<H: HeaderView>(
        &self,
        asker: &Asker<'_, H>,
        policy: &RateLimitPolicy,
        (part, bucket): (usize, Bucket),
        now: MonoNanos,
    ) -> Known {
        let Some(leases) = &self.leases else {
            let Some(entries) = self.descriptor(asker) else {
                return Known::Nothing;
            };
            if self.is_down(now) {
                return Known::Down;
            }
            let hits = self.hits;
            return Known::Ask(Question::Descriptor { entries, hits });
        };
        let key = self.key(asker, policy, part);
        match leases.take(&key, now) {
            Take::Served { left, wait, refill } => Known::Served {
                left,
                wait,
                refill: refill.then(|| Question::Tokens {
                    key: key.into(),
                    bucket,
                }),
            },
            Take::Empty { wait } => Known::Empty { wait },
            Take::Ask if self.is_down(now) => Known::Down,
            Take::Ask => Known::Ask(Question::Tokens {
                key: key.into(),
                bucket,
            }),
        }
    }

    /// The same, spending nothing, with a sentence on what is held.
    pub(super) fn peek<H: HeaderView>(
        &self,
        asker: &Asker<'_, H>,
        policy: &RateLimitPolicy,
        (part, bucket): (usize, Bucket),
        now: MonoNanos,
    ) -> (Known, String) {
        let store = &self.service.name;
        let down = self.is_down(now);
        let Some(leases) = &self.leases else {
            return match self.descriptor(asker) {
                None => (
                    Known::Nothing,
                    "an attribute of its descriptor is missing: not limited".to_owned(),
                ),
                Some(_) if down => (Known::Down, format!("`{store}` does not answer")),
                Some(entries) => {
                    let mut note = format!("`{store}` is asked:");
                    for (key, value) in &entries {
                        // Writing to a string can't fail.
                        let _ = write!(note, " {key}={value}");
                    }
                    let hits = self.hits;
                    (Known::Ask(Question::Descriptor { entries, hits }), note)
                }
            };
        };
        let key = self.key(asker, policy, part);
        let (take, held) = leases.peek(&key, now);
        match take {
            Take::Served { left, wait, .. } => (
                Known::Served {
                    left,
                    wait,
                    refill: None,
                },
                format!("lease: {held} held of `{store}` {key}"),
            ),
            Take::Empty { wait } => (
                Known::Empty { wait },
                format!("lease: none, `{store}` {key} was empty"),
            ),
            Take::Ask if down => (Known::Down, format!("`{store}` does not answer")),
            Take::Ask => (
                Known::Ask(Question::Tokens {
                    key: key.clone().into(),
                    bucket,
                }),
                format!("lease: none, `{store}` {key} is asked"),
            ),
        }
    }

    /// `PREFIXnamespace/name/limit:source.workload=shop%2Fa,...`, the same on every node.
    fn key<H: HeaderView>(
        &self,
        asker: &Asker<'_, H>,
        policy: &RateLimitPolicy,
        part: usize,
    ) -> String {
        let mut key = self.prefix.clone();
        if part > 0 {
            let _ = write!(key, "#{part}");
        }
        let values = key.len();
        for (at, attribute) in policy.key.iter().enumerate() {
            key.push(if at == 0 { ':' } else { ',' });
            let there = asker.attribute(attribute, |part| escape(&mut key, part));
            if !there {
                // No value has it: it would be escaped.
                key.push('-');
            }
        }
        if key.len() > values + KEY_MAX {
            let bytes = &key.as_bytes()[values..];
            let hash = [1, 2].map(|seed| XxHash64::oneshot(seed, bytes));
            // All ASCII.
            key.truncate(values + KEY_MAX / 2);
            let _ = write!(key, "~{:016x}{:016x}", hash[0], hash[1]);
        }
        key
    }

    /// None: a request that does not have one of the attributes is not limited (as with Envoy).
    fn descriptor<H: HeaderView>(&self, asker: &Asker<'_, H>) -> Option<Vec<(String, String)>> {
        let value = |(key, from): &(String, DescriptorValue)| {
            let value = match from {
                DescriptorValue::Text(text) => text.clone(),
                DescriptorValue::Attribute(attribute) => {
                    asker.has(attribute).then(|| asker.text(attribute))?
                }
            };
            Some((key.clone(), value))
        };
        self.entries.iter().map(value).collect()
    }
}

/// One entry for each attribute of the key, else Envoy's `generic_key`.
fn default_descriptor(policy: &RateLimitPolicy) -> Vec<(String, DescriptorValue)> {
    if policy.key.is_empty() {
        let value = DescriptorValue::Text(policy.name.clone());
        return vec![("generic_key".to_owned(), value)];
    }
    let entry = |attribute: &Attribute| {
        (
            attribute.to_string(),
            DescriptorValue::Attribute(attribute.clone()),
        )
    };
    policy.key.iter().map(entry).collect()
}

/// Letters, digits and a few signs stay; everything else becomes `%` and two digits.
fn escape(key: &mut String, bytes: &[u8]) {
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"._:@".contains(byte) {
            key.push(char::from(*byte));
        } else {
            let _ = write!(key, "%{byte:02X}");
        }
    }
}
