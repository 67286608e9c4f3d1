//! What limits say, and how that stands in an answer's fields.

use std::{fmt::Write, num::NonZeroU64, ops::Deref, sync::Arc};

use super::held::Held;
use crate::{
    model::{LimitUnit, limit::LimitAnswer},
    policy::Reject,
};

/// Largest integer of a structured field (RFC 9651 §3.3.1).
const FIELD_INTEGER_MAX: u64 = 999_999_999_999_999;

/// What the limits said: for the `RateLimit` fields of the answer. Cheap: no allocation unless a
/// second limit applies, or one that is more than a bucket of requests of this node.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Every limit that was asked.
    pub asked: AskedList,
    /// The limit that refused, an index into `asked`.
    pub refused: Option<usize>,
    /// A store of shared counts did not answer, and its limit is one that then refuses.
    pub store_failed: bool,
    /// What has to be done yet, or at the request's end.
    pub held: Option<Box<Held>>,
    /// What else the answer says; none: nothing.
    pub(super) extra: Option<Box<Extra>>,
}

/// What few limits have to say.
#[derive(Debug, Default)]
pub(super) struct Extra {
    style: Style,
    fields: Vec<(String, String)>,
}

/// How a refusal by a limit looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// HTTP status; none: the reject's own.
    pub status: Option<u16>,
    /// gRPC status UNAVAILABLE.
    pub grpc_unavailable: bool,
    /// `x-envoy-ratelimited: true`.
    pub envoy_ratelimited: bool,
}

impl Style {
    pub(super) fn of(answer: &LimitAnswer) -> Self {
        Self {
            status: (answer.status != Reject::RateLimited.status()).then_some(answer.status),
            grpc_unavailable: answer.grpc_unavailable,
            envoy_ratelimited: answer.envoy_ratelimited,
        }
    }
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
    /// Window of the policy (`w`) in seconds, at least 1: how long an empty bucket takes to fill. 0:
    /// there is none, of a limit on concurrency.
    pub window_s: u32,
    /// Left (`r`).
    pub left: u64,
    /// Seconds to more quota (`t`), rounded up; also `Retry-After` when refused: a client that
    /// waits exactly so long is admitted. 0 of a limit on concurrency: nobody knows.
    pub reset_s: u64,
    /// What is counted (`qu`).
    pub unit: LimitUnit,
    /// Which bucket of a limit with a key it is (`pk`).
    pub partition: Option<NonZeroU64>,
    /// Whether it is told in `x-ratelimit-*` too.
    pub draft_03: bool,
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
    /// The refusing limit's answer looks so.
    pub(super) fn set_style(&mut self, style: Style) {
        if style != Style::default() || self.extra.is_some() {
            self.extra.get_or_insert_default().style = style;
        }
    }

    pub(super) fn add_fields(&mut self, fields: Vec<(String, String)>) {
        if !fields.is_empty() {
            self.extra.get_or_insert_default().fields.extend(fields);
        }
    }

    fn style(&self) -> Style {
        self.extra
            .as_ref()
            .map(|extra| extra.style)
            .unwrap_or_default()
    }

    /// Fields that a rate limit service adds to the answer.
    pub fn fields(&self) -> &[(String, String)] {
        self.extra.as_ref().map_or(&[], |extra| &extra.fields)
    }

    /// Why the request is refused, when it is.
    pub fn reject(&self) -> Option<Reject> {
        if self.refused.is_some() {
            Some(Reject::RateLimited)
        } else {
            self.store_failed.then_some(Reject::RateLimitService)
        }
    }

    /// HTTP status of a refusal for this reason.
    pub fn status(&self, reject: Reject) -> u16 {
        let own = self
            .style()
            .status
            .filter(|_| reject == Reject::RateLimited);
        own.unwrap_or(reject.status())
    }

    /// gRPC status of a refusal for this reason.
    pub fn grpc_status(&self, reject: Reject) -> u8 {
        const UNAVAILABLE: u8 = 14;
        if self.style().grpc_unavailable && reject == Reject::RateLimited {
            UNAVAILABLE
        } else {
            reject.grpc_status()
        }
    }

    /// The value of the `RateLimit-Policy` field (draft-ietf-httpapi-ratelimit-headers, 2025-09).
    /// Empty when no limit applies: there is then no such field.
    pub fn policy_field(&self) -> String {
        let mut field = String::new();
        self.push_policy(&mut field);
        field
    }

    /// The same, appended.
    pub fn push_policy(&self, out: &mut String) {
        let window =
            |asked: &Asked| (asked.window_s > 0).then_some(('w', u64::from(asked.window_s)));
        self.field(out, |asked| [Some(('q', asked.quota)), window(asked)], true);
    }

    /// The value of the `RateLimit` field. Empty when no limit applies.
    pub fn limit_field(&self) -> String {
        let mut field = String::new();
        self.push_limit(&mut field);
        field
    }

    /// The same, appended.
    pub fn push_limit(&self, out: &mut String) {
        let reset =
            |asked: &Asked| (asked.unit != LimitUnit::Concurrent).then_some(('t', asked.reset_s));
        self.field(out, |asked| [Some(('r', asked.left)), reset(asked)], false);
    }

    /// Seconds for `Retry-After`, when refused and known.
    pub fn retry_after_s(&self) -> Option<u64> {
        // At least 1: 0 would invite an attempt that is known to fail.
        self.refused
            .and_then(|at| self.asked.get(at))
            .filter(|asked| asked.unit != LimitUnit::Concurrent)
            .map(|asked| asked.reset_s.max(1))
    }

    /// Whether the answer carries `x-envoy-ratelimited`.
    pub fn is_envoy_ratelimited(&self) -> bool {
        self.refused.is_some() && self.style().envoy_ratelimited
    }

    /// Limit, rest and seconds of the `x-ratelimit-*` fields, as Envoy's `DRAFT_VERSION_03`: of the
    /// limit with the least left among those that are told so.
    pub fn draft_03(&self) -> Option<[String; 3]> {
        let told = self.asked.iter().filter(|asked| asked.draft_03);
        let least = told.clone().min_by_key(|asked| asked.left)?;
        let mut limit = least.quota.to_string();
        for asked in told {
            let _ = write!(limit, ", {}", asked.quota);
            if asked.window_s > 0 {
                let _ = write!(limit, ";w={}", asked.window_s);
            }
            limit.push_str(";name=");
            quote(&mut limit, &asked.name);
        }
        Some([limit, least.left.to_string(), least.reset_s.to_string()])
    }

    /// A list of strings with parameters (RFC 9651).
    fn field(
        &self,
        field: &mut String,
        parameters: impl Fn(&Asked) -> [Option<(char, u64)>; 2],
        policy: bool,
    ) {
        for (at, asked) in self.asked.iter().enumerate() {
            if at > 0 {
                field.push_str(", ");
            }
            quote(field, &asked.name);
            for (key, value) in parameters(asked).into_iter().flatten() {
                field.extend([';', key, '=']);
                field.push_str(decimal(value.min(FIELD_INTEGER_MAX), &mut [0; 20]));
            }
            if let Some(unit) = asked.unit.quota_unit().filter(|_| policy) {
                field.push_str(";qu=\"");
                field.push_str(unit);
                field.push('"');
            }
            if let Some(partition) = asked.partition {
                field.push_str(";pk=:");
                base64(field, partition.get().to_be_bytes());
                field.push(':');
            }
        }
    }
}

/// A number in decimal, without the machinery of `fmt`: answers of limited services have many.
pub fn decimal(number: u64, digits: &mut [u8; 20]) -> &str {
    let mut from = digits.len();
    let mut rest = number;
    loop {
        from -= 1;
        digits[from] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    str::from_utf8(&digits[from..]).unwrap_or_default()
}

/// A byte sequence (RFC 9651 §3.3.5): base64 with padding.
fn base64(field: &mut String, bytes: [u8; 8]) {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for sign in 0..4 {
            if sign <= chunk.len() {
                field.push(char::from(SIGNS[(word >> (18 - 6 * sign) & 63) as usize]));
            } else {
                field.push('=');
            }
        }
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
