//! What a version has beside a plain algorithm: its parameters, locality, health checks.

use super::{Rows, Sourced, first, span};
use crate::{
    model::{
        BalancePolicy, HealthCheck, LocalityPolicy, Policy,
        health::{HttpProbe, Probe},
    },
    policy::describe::Origin,
};

/// Values that most versions don't have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balancing {
    /// The algorithm's parameters.
    pub balance: Sourced<BalancePolicy>,
    /// Which endpoints are asked first.
    pub locality: Sourced<LocalityPolicy>,
    /// Active health checks.
    pub checks: Sourced<Vec<HealthCheck>>,
}

impl Balancing {
    /// None when no policy says more than an algorithm.
    pub(super) fn new(apply: &[(Origin, usize, &Policy)]) -> Option<Box<Self>> {
        let says = |policy: &Policy| {
            let plain = policy
                .balance
                .as_ref()
                .is_none_or(|balance| *balance == balance.algorithm.into());
            !plain || policy.locality.is_some() || !policy.health_checks.is_empty()
        };
        if !apply.iter().any(|(.., policy)| says(policy)) {
            return None;
        }
        let checks = |policy: &Policy| {
            (!policy.health_checks.is_empty()).then(|| policy.health_checks.clone())
        };
        Some(Box::new(Self {
            balance: first(apply, BalancePolicy::default(), |policy| {
                policy.balance.clone()
            }),
            locality: first(apply, LocalityPolicy::default(), |policy| {
                policy.locality.clone()
            }),
            checks: first(apply, Vec::new(), checks),
        }))
    }

    pub(super) fn rows(&self, rows: &mut Rows<'_>) {
        self.balance_rows(rows);
        let (locality, from) = (&self.locality.value, self.locality.from);
        if from != Origin::Default {
            let prefer = locality.prefer.map_or("priority", |level| level.label());
            rows.add("locality.prefer", prefer, from, "");
            if !locality.failover.is_empty() {
                rows.add("locality.failover", locality.failover.join(", "), from, "");
            }
            let percent = format!("{} %", locality.over_provisioning);
            rows.add("locality.over-provisioning", percent, from, "");
        }
        for (at, check) in self.checks.value.iter().enumerate() {
            let field = format!("health-checks.{at}");
            rows.add(&field, check_text(check), self.checks.from, "");
        }
    }

    fn balance_rows(&self, rows: &mut Rows<'_>) {
        let (policy, from) = (&self.balance.value, self.balance.from);
        let default = BalancePolicy::from(policy.algorithm);
        let mut add = |field: &str, value: String, differs: bool| {
            if differs {
                rows.add(&format!("balance.{field}"), value, from, "");
            }
        };
        let keys: Vec<String> = policy.hash.iter().map(ToString::to_string).collect();
        add("hash", keys.join(", "), !policy.hash.is_empty());
        add("seed", policy.seed.to_string(), policy.seed != default.seed);
        add(
            "ring-min",
            policy.ring_min.to_string(),
            policy.ring_min != default.ring_min,
        );
        add(
            "ring-max",
            policy.ring_max.to_string(),
            policy.ring_max != default.ring_max,
        );
        add(
            "table-size",
            policy.table_size.to_string(),
            policy.table_size != default.table_size,
        );
        if let Some(percent) = policy.bounded_load {
            add("bounded-load", format!("{percent} %"), true);
        }
        add(
            "bias-percent",
            policy.bias_percent.to_string(),
            policy.bias_percent != default.bias_percent,
        );
        add("decay", span(policy.decay), policy.decay != default.decay);
        add("start", span(policy.start), policy.start != default.start);
        add(
            "penalty",
            span(policy.penalty),
            policy.penalty != default.penalty,
        );
        if let Some(slow) = policy.slow_start {
            let text = format!(
                "{}, aggression {} %, from {} %",
                span(slow.window),
                slow.aggression_percent,
                slow.min_percent
            );
            add("slow-start", text, true);
        }
        if let Some(percent) = policy.panic_threshold {
            add("panic-threshold", format!("{percent} %"), true);
        }
    }
}

/// `http GET /healthz every 10s, 1s, 3 down, 2 up`.
fn check_text(check: &HealthCheck) -> String {
    let what = match &check.probe {
        Probe::Http(HttpProbe { method, path, .. }) => format!("http {method} {path}"),
        Probe::Grpc(probe) if probe.service.is_empty() => "grpc".to_owned(),
        Probe::Grpc(probe) => format!("grpc {}", probe.service),
        Probe::Tcp(_) => "tcp".to_owned(),
    };
    format!(
        "{what} every {} for {} at most, {} failures down, {} successes up",
        span(check.interval),
        span(check.timeout),
        check.unhealthy_threshold,
        check.healthy_threshold
    )
}
