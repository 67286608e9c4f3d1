//! The terms on which a request is sent, for people.

use std::time::Duration;

use super::super::{Snapshot, effective::span, route::Plan};
use crate::clock::MonoNanos;

/// One text for each that holds: time-outs, retries, hedges, and what there is of budgets.
pub(super) fn terms(snapshot: &Snapshot, plan: &Plan, http: bool, now: MonoNanos) -> Vec<String> {
    let version = snapshot.version(plan.version);
    let time = |name: &str, time: Duration| match time {
        Duration::ZERO => format!("{name} none"),
        time => format!("{name} {}", span(time)),
    };
    let connect = time("connect", version.connect_timeout);
    if !http {
        return vec![connect, time("idle", version.idle_timeout)];
    }
    let terms = snapshot.terms(plan);
    let mut all = vec![
        time("request", terms.request),
        time("backend-request", terms.backend),
        time("per-try", terms.per_try()),
        connect,
    ];
    all.push(match &terms.retry.policy {
        Some(policy) => format!("retries {}", policy.attempts),
        None => "retries off".to_owned(),
    });
    if let (Some(hedge), Some(after)) = (terms.hedge, terms.hedge_after()) {
        all.push(format!(
            "hedge after {}, at most {}",
            span(after),
            hedge.max
        ));
    }
    if let Some(budget) = &version.budget {
        all.push(budget.text(&version.breaker, now));
    }
    if let Some(adaptive) = &version.adaptive {
        all.push(format!("adaptive limit {}", adaptive.limit()));
    }
    all
}
