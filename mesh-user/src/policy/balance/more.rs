//! What a version needs beside the draw, when its policy asks for it.

use std::sync::{Arc, atomic::AtomicU64};

use super::{
    Group,
    hashed::Hashed,
    loads::{Health, Kept, Loads},
};
use crate::{
    model::{Balance, BalancePolicy, LocalityPolicy},
    policy::{
        effective::Balancing,
        snapshot::{EndpointState, VersionPlan},
    },
};

/// Healthy share in percent below which there is panic, where health checks run: as Envoy.
const PANIC_DEFAULT: u8 = 50;

/// See the module.
#[derive(Debug)]
pub(super) struct More {
    pub(super) policy: BalancePolicy,
    /// Endpoints of the priorities behind the first.
    pub(super) others: Vec<Group>,
    /// Tables of all priorities; empty without a key.
    pub(super) hashed: Vec<Hashed>,
    /// Endpoints of each priority, unready ones included.
    totals: Vec<u32>,
    over_provisioning: u32,
    threshold: u8,
    /// Whether anybody's health matters beyond the endpoint itself.
    pub(super) watches: bool,
    kept: Kept,
    pub(super) panics: Arc<AtomicU64>,
}

impl More {
    /// None when nothing is special. `groups`: positions by priority.
    pub(super) fn new(
        endpoints: &[Arc<EndpointState>],
        groups: Option<&[Vec<u32>]>,
        algorithm: Balance,
        wanted: Option<&Balancing>,
        previous: Option<&Self>,
    ) -> Option<Self> {
        let plain = BalancePolicy::from(algorithm);
        let policy = wanted.map_or(&plain, |wanted| &wanted.balance.value);
        let checked = wanted.is_some_and(|wanted| !wanted.checks.value.is_empty());
        let default = if checked { PANIC_DEFAULT } else { 0 };
        let threshold = policy.panic_threshold.unwrap_or(default);
        let simple = matches!(
            policy.algorithm,
            Balance::LeastRequest | Balance::RoundRobin | Balance::Random
        );
        let unbiased = policy.bias_percent == 100 && policy.slow_start.is_none();
        if simple && unbiased && threshold == 0 && groups.is_none() {
            return None;
        }
        let one: [Vec<u32>; 1];
        let groups = match groups {
            Some(groups) => groups,
            None => {
                let all = (0_u32..).zip(endpoints);
                let members = all.filter(|(_, endpoint)| endpoint.weight > 0);
                one = [members.map(|(at, _)| at).collect()];
                &one
            }
        };
        let before = previous.map(|previous| previous.hashed.as_slice());
        let hashed = |members: &Vec<u32>| {
            Hashed::new(endpoints, members, policy, before.unwrap_or_default())
        };
        let over_provisioning = match wanted {
            Some(wanted) => wanted.locality.value.over_provisioning,
            None => LocalityPolicy::default().over_provisioning,
        };
        Some(Self {
            policy: policy.clone(),
            others: groups[1..]
                .iter()
                .map(|members| Group::new(endpoints, members.iter().copied()))
                .collect(),
            hashed: match policy.algorithm.is_hashed() {
                true => groups.iter().map(hashed).collect(),
                false => Vec::new(),
            },
            totals: groups.iter().map(|members| members.len() as u32).collect(),
            over_provisioning,
            threshold,
            watches: threshold > 0 || groups.len() > 1,
            kept: Kept::default(),
            panics: previous
                .map(|more| Arc::clone(&more.panics))
                .unwrap_or_default(),
        })
    }

    /// What each priority gets now, and where there is panic.
    pub(super) fn loads(&self, plan: &VersionPlan) -> Loads {
        if !self.watches {
            return Loads::default();
        }
        self.kept.get(|| {
            let health: Vec<Health> = plan
                .table
                .groups()
                .zip(&self.totals)
                .map(|(group, total)| {
                    let usable = group.usable.iter();
                    let healthy = usable
                        .filter(|at| plan.endpoints[**at as usize].live.is_in_rotation())
                        .count();
                    Health {
                        healthy: healthy as u32,
                        total: *total,
                    }
                })
                .collect();
            Loads::new(&health, self.over_provisioning, self.threshold)
        })
    }

    /// `maglev by header.x-user; priorities 99 % / 1 %; panic: every endpoint is used`.
    pub(super) fn describe(&self, plan: &VersionPlan) -> String {
        let mut parts = vec![self.policy.algorithm.label().to_owned()];
        if self.policy.algorithm.is_hashed() {
            let keys: Vec<String> = self.policy.hash.iter().map(ToString::to_string).collect();
            parts[0] = format!("{} by {}", parts[0], keys.join(", "));
        }
        let loads = self.loads(plan);
        let all = 0..self.totals.len();
        if all.len() > 1 {
            let shares: Vec<String> = all
                .clone()
                .map(|at| format!("{} %", loads.share(at)))
                .collect();
            parts.push(format!("priorities {}", shares.join(" / ")));
        }
        if all.clone().any(|at| loads.panics(at)) {
            parts.push("panic: healthy or not".to_owned());
        }
        parts.join("; ")
    }
}
