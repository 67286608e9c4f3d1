//! Whether a failed attempt may be tried again (SEMANTICS §5.7, RFC 9110 §9.2.2).

use std::{sync::Arc, time::Duration};

use super::{rng::Rng, value::ValueCond};
use crate::model::{RetryOn, RetryPolicy};

/// The back-off is never longer than this many times its base (Envoy's default ratio).
const BACKOFF_CAP: u32 = 10;

/// What a policy retries that doesn't say `on`. The conditions that may have had an effect apply
/// to idempotent methods only (see [`RetryPlan::again`]).
pub const ON_DEFAULT: &[RetryOn] = &[
    RetryOn::ConnectFailure,
    RetryOn::RefusedStream,
    RetryOn::Reset,
    RetryOn::GatewayError,
    RetryOn::ServerError,
    RetryOn::PerTryTimeout,
];

/// Retries of a version or rule.
#[derive(Clone, Debug, Default)]
pub struct RetryPlan {
    /// The policy; none: no retries.
    pub policy: Option<RetryPolicy>,
    /// Its header conditions, compiled.
    headers: Arc<[(Box<str>, ValueCond)]>,
}

/// How an attempt failed, as far as it matters for a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent.
    Connect,
    /// The connection broke before a byte of the request was sent.
    Unsent,
    /// Nothing of the request was processed, by the peer's word (REFUSED_STREAM, GOAWAY).
    Refused,
    /// A pooled connection turned out to be closed before a byte of the answer came. Whether the
    /// request was processed is unknown.
    Reset,
    /// The per-try time-out.
    PerTry,
    /// The rule's time-out of an attempt (Gateway API's `backendRequest`).
    Backend,
    /// An answer.
    Answer(Answered),
}

/// The head of an answer, as a retry policy sees it.
pub trait AnswerHead {
    /// Its status; of gRPC what its status means in HTTP, when it stands in the head.
    fn status(&self) -> u16;
    /// The gRPC status, when it stands in the head of a gRPC answer.
    fn grpc(&self) -> Option<u8>;
    /// The first value of a header field, by lower-case name.
    fn field(&self, name: &str) -> Option<&[u8]>;
}

/// What of an answer matters for a retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// The gRPC status, when it stands in the head.
    pub grpc: Option<u8>,
    /// A rate limit refused it.
    pub limited: bool,
    /// One of the policy's header conditions holds.
    pub listed: bool,
    /// After how long to try again, by its own word.
    pub reset: Option<Duration>,
}

impl Failure {
    /// An answer of which nothing but the status is known.
    pub const fn status(status: u16) -> Self {
        Self::Answer(Answered {
            status,
            grpc: None,
            limited: false,
            listed: false,
            reset: None,
        })
    }

    /// Whether the endpoint provably did nothing with the request.
    const fn is_unprocessed(self) -> bool {
        matches!(self, Self::Connect | Self::Unsent | Self::Refused)
    }

    const fn meets(self, condition: RetryOn) -> bool {
        match condition {
            RetryOn::ConnectFailure => matches!(self, Self::Connect | Self::Unsent),
            RetryOn::ResetBeforeRequest => matches!(self, Self::Unsent),
            RetryOn::RefusedStream => matches!(self, Self::Refused),
            RetryOn::Reset => matches!(self, Self::Reset | Self::Unsent),
            RetryOn::PerTryTimeout => matches!(self, Self::PerTry),
            RetryOn::GatewayError => matches!(self.http(), Some(502..=504)),
            RetryOn::Retriable4xx => matches!(self.http(), Some(409)),
            // Any 5xx, or no answer at all.
            RetryOn::ServerError => match self.http() {
                Some(status) => status >= 500,
                None => true,
            },
            RetryOn::RateLimited => match self {
                Self::Answer(answer) => answer.limited,
                _ => false,
            },
            RetryOn::Cancelled => self.is_grpc(1),
            RetryOn::DeadlineExceeded => self.is_grpc(4),
            RetryOn::ResourceExhausted => self.is_grpc(8),
            RetryOn::Internal => self.is_grpc(13),
            RetryOn::Unavailable => self.is_grpc(14),
        }
    }

    const fn http(self) -> Option<u16> {
        match self {
            Self::Answer(answer) => Some(answer.status),
            _ => None,
        }
    }

    const fn is_grpc(self, code: u8) -> bool {
        match self {
            Self::Answer(Answered { grpc: Some(of), .. }) => of == code,
            _ => false,
        }
    }
}

/// RFC 9110 §9.2.2. Methods are case-sensitive; unknown ones are not idempotent.
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

impl RetryPlan {
    /// From a policy.
    pub fn new(policy: Option<RetryPolicy>) -> Self {
        let headers = policy.iter().flat_map(|policy| &policy.headers);
        Self {
            headers: headers
                .map(|(name, value)| (name.as_str().into(), ValueCond::new(value)))
                .collect(),
            policy,
        }
    }

    /// What of an answer matters. To be asked only where there is a policy.
    pub fn read(&self, head: &dyn AnswerHead) -> Answered {
        let refused = || head.field("x-mesh-reject") == Some(b"rate_limited");
        let holds = |(name, value): &(Box<str>, ValueCond)| match head.field(name) {
            Some(field) => value.holds(field),
            None => matches!(value, ValueCond::Present(false)),
        };
        Answered {
            status: head.status(),
            grpc: head.grpc(),
            limited: head.field("x-envoy-ratelimited").is_some() || refused(),
            listed: self.headers.iter().any(holds),
            reset: self.policy.as_ref().and_then(|policy| reset(policy, head)),
        }
    }

    /// Whether a request that failed so may be sent again after `tried` deliveries (1 and more),
    /// and after which pause. `replayable`: the whole request is still at hand; after a failure to
    /// connect it always is.
    pub fn again(
        &self,
        method: &str,
        failure: Failure,
        tried: u32,
        replayable: bool,
        rng: &mut Rng,
    ) -> Option<Duration> {
        let policy = self.policy.as_ref()?;
        let wanted = is_wanted(policy, failure);
        let safe = failure.is_unprocessed() || policy.non_idempotent || is_idempotent(method);
        let at_hand = replayable || failure == Failure::Connect;
        if !(tried <= policy.attempts && wanted && safe && at_hand) {
            return None;
        }
        Some(match failure {
            Failure::Answer(Answered {
                reset: Some(reset), ..
            }) => reset.saturating_add(below(reset / 2, rng)),
            _ if policy.backoff_is_least => backoff_above(policy.backoff, tried, rng),
            _ => backoff(policy.backoff, tried, rng),
        })
    }

    /// Time-out of each try.
    pub fn per_try(&self) -> Option<Duration> {
        self.policy.as_ref().and_then(|policy| policy.per_try)
    }

    /// The header in which an endpoint reads how often it was tried.
    pub fn attempt_header(&self) -> Option<&str> {
        self.policy.as_ref()?.attempt_header.as_deref()
    }
}

fn is_wanted(policy: &RetryPolicy, failure: Failure) -> bool {
    let on = if policy.on.is_empty() {
        ON_DEFAULT
    } else {
        &policy.on
    };
    if let Failure::Answer(answer) = failure {
        // Another try would only add to what was too much.
        if answer.limited && !on.contains(&RetryOn::RateLimited) {
            return false;
        }
        if answer.listed || policy.statuses.contains(&answer.status) {
            return true;
        }
    }
    // Gateway API: a backend's time-out is retried with no code listed for it.
    failure == Failure::Backend || on.iter().any(|condition| failure.meets(*condition))
}

/// The pause that the answer asks for: whole seconds, at most the policy's longest.
fn reset(policy: &RetryPolicy, head: &dyn AnswerHead) -> Option<Duration> {
    policy.reset_headers.iter().find_map(|name| {
        let text = str::from_utf8(head.field(name)?).ok()?.trim();
        let seconds = text.parse().ok().filter(|seconds| *seconds > 0)?;
        let span = Duration::from_secs(seconds);
        (span <= policy.reset_max).then_some(span)
    })
}

/// Full jitter: anywhere in [0, (2^N - 1) x base) for the N-th retry, capped at 10 x base.
fn backoff(base: Duration, nth: u32, rng: &mut Rng) -> Duration {
    // 2^4 - 1 is above the cap already.
    let factor = ((1_u32 << nth.min(4)) - 1).min(BACKOFF_CAP);
    below(base.saturating_mul(factor), rng)
}

/// Jitter only adds: anywhere in [b, 1.5 x b), where b is 2^(N-1) x base for the N-th retry, capped
/// at 10 x base.
fn backoff_above(base: Duration, nth: u32, rng: &mut Rng) -> Duration {
    // 2^4 is above the cap already.
    let factor = (1_u32 << nth.saturating_sub(1).min(4)).min(BACKOFF_CAP);
    let least = base.saturating_mul(factor);
    least.saturating_add(below(least / 2, rng))
}

/// Anywhere in [0, span).
fn below(span: Duration, rng: &mut Rng) -> Duration {
    let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    // The high word of the product: in [0, span).
    Duration::from_nanos(((u128::from(rng.next_u64()) * u128::from(span)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut RetryPolicy)) -> RetryPlan {
        let mut policy = RetryPolicy {
            attempts: 2,
            ..RetryPolicy::default()
        };
        change(&mut policy);
        RetryPlan::new(Some(policy))
    }

    fn again(plan: &RetryPlan, method: &str, failure: Failure, tried: u32) -> bool {
        plan.again(method, failure, tried, true, &mut Rng::new(1))
            .is_some()
    }

    const POSSIBLY_PROCESSED: [Failure; 4] = [
        Failure::Reset,
        Failure::PerTry,
        Failure::status(500),
        Failure::status(503),
    ];

    #[test]
    fn retry_without_policy_never_happens() {
        assert!(!again(&RetryPlan::default(), "GET", Failure::Connect, 1));
    }

    #[test]
    fn retry_of_unprocessed_request_is_allowed_for_every_method() {
        for method in ["GET", "POST", "PATCH", "CONNECT", "get", "X"] {
            assert!(
                again(&plan(|_| ()), method, Failure::Connect, 1),
                "{method}"
            );
            assert!(
                again(&plan(|_| ()), method, Failure::Refused, 1),
                "{method}"
            );
        }
    }

    #[test]
    fn retry_of_possibly_processed_request_needs_idempotent_method() {
        for failure in POSSIBLY_PROCESSED {
            for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
                assert!(
                    again(&plan(|_| ()), method, failure, 1),
                    "{method} {failure:?}"
                );
            }
            for method in ["POST", "PATCH", "CONNECT", "get", "LOCK"] {
                assert!(
                    !again(&plan(|_| ()), method, failure, 1),
                    "{method} {failure:?}"
                );
                let opted = plan(|policy| policy.non_idempotent = true);
                assert!(again(&opted, method, failure, 1), "{method} {failure:?}");
            }
        }
    }

    #[test]
    fn retry_attempts_count_retries_not_deliveries() {
        let plan = plan(|policy| policy.attempts = 3);
        let deliveries = 1
            + (1..10)
                .take_while(|n| again(&plan, "GET", Failure::Connect, *n))
                .count();
        assert_eq!(deliveries, 4);
    }

    #[test]
    fn retry_with_zero_attempts_never_happens() {
        assert!(!again(
            &plan(|policy| policy.attempts = 0),
            "GET",
            Failure::Connect,
            1
        ));
    }

    #[test]
    fn retry_of_unreplayable_request_happens_only_after_connect_failure() {
        let (plan, mut rng) = (plan(|_| ()), Rng::new(2));
        assert!(
            plan.again("GET", Failure::Connect, 1, false, &mut rng)
                .is_some()
        );
        assert!(
            plan.again("GET", Failure::Refused, 1, false, &mut rng)
                .is_none()
        );
        for failure in POSSIBLY_PROCESSED {
            assert!(
                plan.again("GET", failure, 1, false, &mut rng).is_none(),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn retry_with_explicit_conditions_leaves_out_the_others() {
        let only = |on: RetryOn| plan(move |policy| policy.on = vec![on]);
        let all = [
            Failure::Connect,
            Failure::Refused,
            Failure::Reset,
            Failure::PerTry,
            Failure::status(500),
            Failure::status(502),
            Failure::status(503),
            Failure::status(504),
            Failure::status(599),
            Failure::status(429),
            Failure::status(404),
        ];
        let met = |on: RetryOn| -> Vec<usize> {
            (0..all.len())
                .filter(|at| again(&only(on), "GET", all[*at], 1))
                .collect()
        };
        assert_eq!(met(RetryOn::ConnectFailure), [0]);
        assert_eq!(met(RetryOn::RefusedStream), [1]);
        assert_eq!(met(RetryOn::Reset), [2]);
        assert_eq!(met(RetryOn::PerTryTimeout), [3]);
        assert_eq!(met(RetryOn::GatewayError), [5, 6, 7]);
        assert_eq!(met(RetryOn::ServerError), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn retry_statuses_are_retried_besides_and_guarded_by_method() {
        let plan = plan(|policy| policy.statuses = vec![409, 429]);
        assert!(again(&plan, "GET", Failure::status(409), 1));
        assert!(
            again(&plan, "GET", Failure::status(503), 1),
            "defaults stay"
        );
        assert!(!again(&plan, "GET", Failure::status(404), 1));
        assert!(!again(&plan, "POST", Failure::status(409), 1));
    }

    #[test]
    fn backoff_is_full_jitter_below_its_bounds() {
        let seed = 0xbac0ff;
        let mut rng = Rng::new(seed);
        let base = Duration::from_millis(25);
        for (nth, bound_ms) in [(1, 25), (2, 75), (3, 175), (4, 250), (5, 250), (10, 250)] {
            let draws: Vec<Duration> = (0..2_000).map(|_| backoff(base, nth, &mut rng)).collect();
            let bound = Duration::from_millis(bound_ms);
            assert!(
                draws.iter().all(|pause| *pause < bound),
                "retry {nth}, seed {seed}"
            );
            // Full: also close to both ends.
            assert!(
                draws.iter().any(|pause| *pause < bound / 20),
                "retry {nth}, seed {seed}"
            );
            assert!(
                draws.iter().any(|pause| *pause > bound / 20 * 19),
                "retry {nth}, seed {seed}"
            );
        }
        assert_eq!(backoff(Duration::ZERO, 1, &mut rng), Duration::ZERO);
        assert!(backoff(Duration::MAX, 4, &mut rng) < Duration::MAX);
    }

    /// Without it: a backend that asked for a pause by its route is tried again before it is over.
    #[test]
    fn backoff_that_is_a_lower_bound_has_jitter_upward_only() {
        let seed = 0x10ca1;
        let mut rng = Rng::new(seed);
        let plan = plan(|policy| {
            policy.attempts = 10;
            policy.backoff_is_least = true;
        });
        for (nth, least_ms) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (10, 250)] {
            let mut draw = || plan.again("GET", Failure::Connect, nth, true, &mut rng);
            let draws: Vec<Duration> = (0..2_000).map(|_| draw().unwrap()).collect();
            let least = Duration::from_millis(least_ms);
            let place = format!("retry {nth}, seed {seed}");
            assert!(draws.iter().all(|pause| *pause >= least), "{place}");
            assert!(draws.iter().all(|pause| *pause < least * 3 / 2), "{place}");
            // Spread: close to both ends.
            assert!(draws.iter().any(|p| *p < least / 20 * 21), "{place}");
            assert!(draws.iter().any(|p| *p > least / 20 * 29), "{place}");
        }
        assert_eq!(backoff_above(Duration::ZERO, 1, &mut rng), Duration::ZERO);
        assert_eq!(backoff_above(Duration::MAX, 4, &mut rng), Duration::MAX);
    }

    struct Head(u16, Option<u8>, Vec<(&'static str, &'static str)>);

    impl AnswerHead for Head {
        fn status(&self) -> u16 {
            self.0
        }
        fn grpc(&self) -> Option<u8> {
            self.1
        }
        fn field(&self, name: &str) -> Option<&[u8]> {
            let found = self.2.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| value.as_bytes())
        }
    }

    fn answered(plan: &RetryPlan, head: &Head) -> Option<Duration> {
        let failure = Failure::Answer(plan.read(head));
        plan.again("GET", failure, 1, true, &mut Rng::new(3))
    }

    /// The table of SEMANTICS §5.7.
    #[test]
    fn retry_conditions_of_answers_and_breaks_are_each_their_own() {
        let all = [
            Failure::Unsent,
            Failure::Reset,
            Failure::status(409),
            Failure::status(400),
            Failure::status(503),
        ];
        let met = |on| -> Vec<usize> {
            let plan = plan(|policy| policy.on = vec![on]);
            (0..all.len())
                .filter(|at| again(&plan, "GET", all[*at], 1))
                .collect()
        };
        assert_eq!(met(RetryOn::ResetBeforeRequest), [0]);
        assert_eq!(met(RetryOn::Reset), [0, 1]);
        assert_eq!(met(RetryOn::ConnectFailure), [0]);
        assert_eq!(met(RetryOn::Retriable4xx), [2]);
        for (on, code) in [
            (RetryOn::Cancelled, 1),
            (RetryOn::DeadlineExceeded, 4),
            (RetryOn::ResourceExhausted, 8),
            (RetryOn::Internal, 13),
            (RetryOn::Unavailable, 14),
        ] {
            let plan = plan(|policy| policy.on = vec![on]);
            for other in 0..=16 {
                let retried = answered(&plan, &Head(200, Some(other), vec![])).is_some();
                assert_eq!(retried, other == code, "{on:?} {other}");
            }
            assert!(
                answered(&plan, &Head(200, None, vec![])).is_none(),
                "a status in trailers is none in the head"
            );
        }
    }

    #[test]
    fn retry_of_an_answer_that_a_rate_limit_gave_needs_its_own_condition() {
        let plain = plan(|policy| policy.statuses = vec![429]);
        let asked = plan(|policy| policy.on = vec![RetryOn::RateLimited]);
        for field in [
            ("x-envoy-ratelimited", "true"),
            ("x-mesh-reject", "rate_limited"),
        ] {
            let head = Head(429, None, vec![field]);
            assert!(answered(&plain, &head).is_none(), "{field:?}");
            assert!(answered(&asked, &head).is_some(), "{field:?}");
        }
        assert!(answered(&plain, &Head(429, None, vec![])).is_some());
        let other = ("x-mesh-reject", "overflow_requests");
        assert!(answered(&plain, &Head(429, None, vec![other])).is_some());
    }

    #[test]
    fn retry_headers_are_retried_besides() {
        use crate::model::ValueMatch;
        let plan = plan(|policy| {
            policy.on = vec![RetryOn::Retriable4xx];
            policy.headers = vec![
                ("x-again".into(), ValueMatch::Present(true)),
                ("x-state".into(), ValueMatch::Prefix("busy".into())),
            ];
        });
        for (field, wanted) in [
            (("x-again", ""), true),
            (("x-state", "busy-1"), true),
            (("x-state", "idle"), false),
            (("x-other", "busy"), false),
        ] {
            let head = Head(200, None, vec![field]);
            assert_eq!(answered(&plan, &head).is_some(), wanted, "{field:?}");
        }
    }

    #[test]
    fn retry_waits_as_long_as_the_answer_says_and_half_more_at_most() {
        let plan = plan(|policy| {
            policy.reset_headers = vec!["retry-after".into(), "x-reset".into()];
        });
        let pause = |field| {
            let mut rng = Rng::new(17);
            let failure = Failure::Answer(plan.read(&Head(503, None, vec![field])));
            (0..500)
                .map(|_| plan.again("GET", failure, 1, true, &mut rng).unwrap())
                .collect::<Vec<_>>()
        };
        for field in [("retry-after", "4"), ("x-reset", " 4 ")] {
            let pauses = pause(field);
            let (four, six) = (Duration::from_secs(4), Duration::from_secs(6));
            assert!(pauses.iter().all(|p| (four..six).contains(p)), "{field:?}");
            assert!(pauses.iter().any(|p| *p > Duration::from_millis(5_800)));
        }
        // Too long, no number, a date: the ordinary back-off.
        for value in ["301", "0", "-1", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            let pauses = pause(("retry-after", value));
            let base = Duration::from_millis(25);
            assert!(pauses.iter().all(|p| *p < base), "{value}");
        }
        assert!(pause(("retry-after", "300"))[0] >= Duration::from_secs(300));
    }

    #[test]
    fn retry_of_a_backend_time_out_needs_no_condition_but_a_safe_method() {
        let plan = plan(|policy| policy.on = vec![RetryOn::RefusedStream]);
        assert!(again(&plan, "GET", Failure::Backend, 1));
        assert!(!again(&plan, "POST", Failure::Backend, 1));
        assert!(!again(&plan, "GET", Failure::PerTry, 1));
        assert!(!again(&RetryPlan::default(), "GET", Failure::Backend, 1));
    }
}
