//! On which terms a request is sent: time-outs, retries and hedges, of its rule where the rule says
//! something, else of its version.

use std::time::Duration;

use super::{Snapshot, retry::RetryPlan, route::Plan};
use crate::model::{HedgePolicy, Rule};

/// What a rule says of them.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleTerms {
    request: Option<Duration>,
    backend: Option<Duration>,
    retry: Option<RetryPlan>,
}

impl RuleTerms {
    /// None: the version's hold.
    pub(super) fn of(rule: &Rule) -> Option<Box<Self>> {
        let extra = rule.extra.as_deref()?;
        let terms = Self {
            request: extra.timeouts.request,
            backend: extra.timeouts.backend_request,
            retry: extra
                .retries
                .clone()
                .map(|policy| RetryPlan::new(Some(policy))),
        };
        let any = terms.request.is_some() || terms.backend.is_some() || terms.retry.is_some();
        any.then(|| Box::new(terms))
    }

    /// For people: `request 5s, backend-request 1s, retries 2`; empty where nothing is said.
    pub(super) fn text(&self) -> String {
        let time = |name: &str, span: Duration| match span {
            Duration::ZERO => format!("{name} none"),
            span => format!("{name} {}", super::effective::span(span)),
        };
        let policy = self.retry.as_ref().and_then(|plan| plan.policy.as_ref());
        let parts = [
            self.request.map(|span| time("request", span)),
            self.backend.map(|span| time("backend-request", span)),
            policy.map(|policy| format!("retries {}", policy.attempts)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        parts.join(", ")
    }
}

/// The terms of one request.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Whole request, retries and pauses included, from its end; zero: no time-out.
    pub request: Duration,
    /// One attempt, until its answer's end; zero: no time-out.
    pub backend: Duration,
    /// Retries.
    pub retry: &'a RetryPlan,
    /// Hedges.
    pub hedge: Option<HedgePolicy>,
}

impl Terms<'_> {
    /// Time-out of one attempt until its head; zero: none. With hedges upon the per-try time-out
    /// it ends no attempt.
    pub fn per_try(&self) -> Duration {
        match self.hedge {
            Some(HedgePolicy { after: None, .. }) => Duration::ZERO,
            _ => self.retry.per_try().unwrap_or_default(),
        }
    }

    /// After which time without an answer another endpoint is asked too.
    pub fn hedge_after(&self) -> Option<Duration> {
        let hedge = self.hedge?;
        hedge.after.or_else(|| self.retry.per_try())
    }

    /// Whether the request is kept for another attempt.
    pub fn keeps(&self) -> bool {
        self.retry.policy.is_some() || self.hedge.is_some()
    }
}

impl Snapshot {
    /// The terms of a request that goes this way. The same for every engine.
    pub fn terms(&self, plan: &Plan) -> Terms<'_> {
        let version = self.version(plan.version);
        let terms = Terms {
            request: version.request_timeout,
            backend: Duration::ZERO,
            retry: &version.retry,
            hedge: version.effective.hedge.value,
        };
        match plan.rule.and_then(|rule| self.rule(rule).terms.as_deref()) {
            None => terms,
            Some(rule) => Terms {
                request: rule.request.unwrap_or(terms.request),
                backend: rule.backend.unwrap_or(terms.backend),
                retry: rule.retry.as_ref().unwrap_or(terms.retry),
                ..terms
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Policy, RetryPolicy, RuleExtra, TimeoutPolicy, action::RuleTimeouts},
        policy::{
            fixture::{compile, decide, get, model, policy, rule, secs, service, to},
            split::Cursors,
        },
    };

    fn terms_of(extra: Option<RuleExtra>) -> (Duration, Duration, Option<u32>) {
        let mut of = rule("r", 0, vec![], vec![to("v1", 1)]);
        of.extra = extra.map(Box::new);
        let version = Policy {
            timeouts: TimeoutPolicy {
                request: Some(secs(7)),
                ..TimeoutPolicy::default()
            },
            retries: Some(RetryPolicy::default()),
            ..policy()
        };
        let snapshot = compile(model(service(1, 1), vec![of], vec![version]));
        let plan = decide(&snapshot, None, &get("/").view(), &mut Cursors::default()).unwrap();
        let terms = snapshot.terms(&plan);
        let attempts = terms.retry.policy.as_ref().map(|policy| policy.attempts);
        (terms.request, terms.backend, attempts)
    }

    #[test]
    fn terms_of_a_rule_take_the_place_of_the_versions_field_by_field() {
        assert_eq!(terms_of(None), (secs(7), Duration::ZERO, Some(1)));
        assert_eq!(
            terms_of(Some(RuleExtra::NOTHING)),
            (secs(7), Duration::ZERO, Some(1))
        );
        let extra = |request, backend_request, attempts: Option<u32>| {
            Some(RuleExtra {
                timeouts: RuleTimeouts {
                    request,
                    backend_request,
                },
                retries: attempts.map(|attempts| RetryPolicy {
                    attempts,
                    ..RetryPolicy::default()
                }),
                ..RuleExtra::NOTHING
            })
        };
        for (given, wanted) in [
            (extra(Some(secs(2)), None, None), (2, 0, 1)),
            (extra(None, Some(secs(3)), None), (7, 3, 1)),
            (extra(None, None, Some(5)), (7, 0, 5)),
            // Zero: no time-out.
            (extra(Some(secs(0)), Some(secs(1)), Some(0)), (0, 1, 0)),
        ] {
            let (request, backend, attempts) = wanted;
            assert_eq!(
                terms_of(given),
                (secs(request), secs(backend), Some(attempts))
            );
        }
    }
}
