//! Whether a failed attempt may be tried again (SEMANTICS §5.7, RFC 9110 §9.2.2).

use std::time::Duration;

use super::rng::Rng;
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

/// Retries of a version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RetryPlan {
    /// The policy; none: no retries.
    pub policy: Option<RetryPolicy>,
}

/// How an attempt failed, as far as it matters for a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent.
    Connect,
    /// Nothing of the request was processed, by the peer's word (REFUSED_STREAM, GOAWAY).
    Refused,
    /// A pooled connection turned out to be closed before a byte of the answer came. Whether the
    /// request was processed is unknown.
    Reset,
    /// The per-try time-out.
    PerTry,
    /// An answer with this status.
    Status(u16),
}

impl Failure {
    /// Whether the endpoint provably did nothing with the request.
    const fn is_unprocessed(self) -> bool {
        matches!(self, Self::Connect | Self::Refused)
    }

    const fn meets(self, condition: RetryOn) -> bool {
        match condition {
            RetryOn::ConnectFailure => matches!(self, Self::Connect),
            RetryOn::RefusedStream => matches!(self, Self::Refused),
            RetryOn::Reset => matches!(self, Self::Reset),
            RetryOn::GatewayError => matches!(self, Self::Status(502..=504)),
            RetryOn::PerTryTimeout => matches!(self, Self::PerTry),
            // Any 5xx, or no answer at all.
            RetryOn::ServerError => match self {
                Self::Status(status) => status >= 500,
                Self::Connect | Self::Refused | Self::Reset | Self::PerTry => true,
            },
        }
    }
}

/// RFC 9110 §9.2.2. Methods are case-sensitive; unknown ones are not idempotent.
fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

impl RetryPlan {
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
        let wanted = self.is_wanted(policy, failure);
        let safe = failure.is_unprocessed() || policy.non_idempotent || is_idempotent(method);
        let at_hand = replayable || failure == Failure::Connect;
        (tried <= policy.attempts && wanted && safe && at_hand)
            .then(|| backoff(policy.backoff, tried, rng))
    }

    fn is_wanted(&self, policy: &RetryPolicy, failure: Failure) -> bool {
        let on = if policy.on.is_empty() {
            ON_DEFAULT
        } else {
            &policy.on
        };
        on.iter().any(|condition| failure.meets(*condition))
            || matches!(failure, Failure::Status(status) if policy.statuses.contains(&status))
    }

    /// Time-out of each try.
    pub fn per_try(&self) -> Option<Duration> {
        self.policy.as_ref().and_then(|policy| policy.per_try)
    }
}

/// Full jitter: anywhere in [0, (2^N - 1) x base) for the N-th retry, capped at 10 x base.
fn backoff(base: Duration, nth: u32, rng: &mut Rng) -> Duration {
    // 2^4 - 1 is above the cap already.
    let factor = ((1_u32 << nth.min(4)) - 1).min(BACKOFF_CAP);
    let span = u64::try_from(base.saturating_mul(factor).as_nanos()).unwrap_or(u64::MAX);
    // The high word of the product: in [0, span).
    Duration::from_nanos(((u128::from(rng.next_u64()) * u128::from(span)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut RetryPolicy)) -> RetryPlan {
        let mut policy = RetryPolicy {
            attempts: 2,
            per_try: None,
            on: Vec::new(),
            statuses: Vec::new(),
            non_idempotent: false,
            backoff: Duration::from_millis(25),
        };
        change(&mut policy);
        RetryPlan {
            policy: Some(policy),
        }
    }

    fn again(plan: &RetryPlan, method: &str, failure: Failure, tried: u32) -> bool {
        plan.again(method, failure, tried, true, &mut Rng::new(1))
            .is_some()
    }

    const POSSIBLY_PROCESSED: [Failure; 4] = [
        Failure::Reset,
        Failure::PerTry,
        Failure::Status(500),
        Failure::Status(503),
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
            Failure::Status(500),
            Failure::Status(502),
            Failure::Status(503),
            Failure::Status(504),
            Failure::Status(599),
            Failure::Status(429),
            Failure::Status(404),
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
        assert!(again(&plan, "GET", Failure::Status(409), 1));
        assert!(
            again(&plan, "GET", Failure::Status(503), 1),
            "defaults stay"
        );
        assert!(!again(&plan, "GET", Failure::Status(404), 1));
        assert!(!again(&plan, "POST", Failure::Status(409), 1));
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
}
