//! Whether a long connection still goes where the configuration would send it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    Snapshot,
    route::{Plan, TargetPlan},
    snapshot::EndpointState,
};
use crate::model::{ChangeAction, OnChange};

/// Longest time between the end that both sides are told and the reset.
const GRACE_MAX: Duration = Duration::from_secs(1);

/// A long connection or stream.
#[derive(Clone, Debug)]
pub struct Held {
    /// Where it goes.
    pub way: Way,
    /// What is done when it no longer holds.
    policy: OnChange,
}

/// Where a connection went when it was decided, by names that outlive a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// The dialled port: `namespace/name` and number.
    port: (Arc<str>, u16),
    /// The rule; none: the port had none.
    rule: Option<Arc<str>>,
    /// The version's port, and its name.
    version: (Arc<str>, u16, Arc<str>),
    endpoint: SocketAddr,
}

impl Held {
    /// Of a connection whose version has another policy than «keep»; none otherwise, and for what
    /// comes in to a workload.
    pub fn new(snapshot: &Snapshot, plan: &Plan, endpoint: &EndpointState) -> Option<Self> {
        let version = snapshot.version(plan.version);
        let policy = version.effective.on_change.value;
        let port = snapshot.port(plan.port);
        if policy.action == ChangeAction::Keep || port.inbound.is_some() {
            return None;
        }
        let of = snapshot.port(version.port);
        let way = Way {
            port: (Arc::clone(&port.key), port.number),
            rule: plan.rule.map(|rule| (&snapshot.rule(rule).name).into()),
            version: (Arc::clone(&of.key), of.number, Arc::clone(&version.name)),
            endpoint: endpoint.address,
        };
        Some(Self { way, policy })
    }

    /// Whether this snapshot still sends there: the port is there, the rule of that name (or its
    /// absence) too, one of its targets with weight is that version, and the version has the
    /// endpoint. Health and ejection make no difference: they come and go.
    pub fn holds_in(&self, snapshot: &Snapshot) -> bool {
        let way = &self.way;
        let port = snapshot
            .port_named(&way.port.0, way.port.1)
            .map(|port| snapshot.port(port))
            .filter(|port| port.key == way.port.0);
        let Some(port) = port else {
            return false;
        };
        let leads = |target: &TargetPlan| {
            let version = snapshot.version(target.version);
            let of = snapshot.port(version.port);
            !target.invalid
                && target.weight > 0
                && (&*of.key, of.number, &*version.name)
                    == (&*way.version.0, way.version.1, &*way.version.2)
                && version
                    .endpoints
                    .iter()
                    .any(|endpoint| endpoint.address == way.endpoint && endpoint.weight > 0)
        };
        match &way.rule {
            Some(name) => port
                .routes
                .rules()
                .iter()
                .map(|rule| snapshot.rule(*rule))
                .any(|rule| *rule.name == **name && rule.targets.iter().any(leads)),
            None => {
                port.routes.is_empty()
                    && leads(&TargetPlan {
                        version: port.all,
                        weight: 1,
                        invalid: false,
                        actions: None,
                    })
            }
        }
    }

    /// Between the end that both sides are told and the reset. None for a close at once.
    pub fn grace(&self) -> Duration {
        match self.policy.action {
            ChangeAction::Drain => GRACE_MAX.min(self.policy.deadline / 10),
            ChangeAction::Keep | ChangeAction::Close => Duration::ZERO,
        }
    }

    /// After which time it is ended: at once, or anywhere in the deadline, but so that the grace
    /// ends within it too. `chance`: in [0, 2^64).
    pub fn pause(&self, chance: u64) -> Duration {
        match self.policy.action {
            ChangeAction::Keep | ChangeAction::Close => Duration::ZERO,
            ChangeAction::Drain => {
                let span = self.policy.deadline.saturating_sub(self.grace());
                let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
                Duration::from_nanos(((u128::from(chance) * u128::from(span)) >> 64) as u64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Model, Policy},
        policy::{
            VersionIx,
            fixture::{PORT, compile, model, policy, rule, secs, service, to},
        },
    };

    fn draining() -> Vec<Policy> {
        vec![Policy {
            on_change: Some(OnChange {
                action: ChangeAction::Drain,
                deadline: secs(10),
            }),
            ..policy()
        }]
    }

    fn both(v1: u32, v2: u32) -> Model {
        let targets = vec![to("v1", v1), to("v2", v2)];
        model(
            service(2, 2),
            vec![rule("split", 0, vec![], targets)],
            draining(),
        )
    }

    fn held(model: Model) -> Held {
        let snapshot = compile(model);
        let rule = snapshot.port(PORT).routes.rules().first().copied();
        let version = rule.map_or(VersionIx(0), |rule| snapshot.rule(rule).targets[1].version);
        let plan = Plan {
            session: None,
            port: PORT,
            rule,
            target: 1,
            version,
        };
        Held::new(&snapshot, &plan, &snapshot.version(version).endpoints[0]).unwrap()
    }

    #[test]
    fn connection_holds_until_its_version_endpoint_rule_or_port_goes() {
        let held = held(both(1, 1));
        let holds = |model: Model| held.holds_in(&compile(model));
        assert!(holds(both(1, 1)));
        assert!(holds(both(99, 1)), "a smaller share is a share");
        assert!(!holds(both(1, 0)), "weight 0");
        let with = |change: &dyn Fn(&mut Model)| {
            let mut model = both(1, 1);
            change(&mut model);
            model
        };
        assert!(!holds(with(&|model| {
            model.rules[0].route.pop();
        })));
        assert!(!holds(with(&|model| model.rules[0].name = "other".into())));
        assert!(!holds(with(&|model| model.rules.clear())));
        assert!(!holds(with(&|model| {
            model.services[0].endpoints.remove(2);
        })));
        assert!(holds(with(&|model| {
            model.services[0].endpoints.remove(3);
        })));
        assert!(holds(with(
            &|model| model.services[0].endpoints[2].healthy = false
        )));
        assert!(!holds(with(
            &|model| model.services[0].endpoints[2].weight = 0
        )));
        assert!(!holds(
            with(&|model| model.services[0].ports[0].number = 81)
        ));
        assert!(!holds(Model::default()));
    }

    #[test]
    fn connection_of_a_port_without_rules_holds_until_there_are_some() {
        let plain = model(service(2, 2), vec![], draining());
        let held = held(plain.clone());
        assert!(held.holds_in(&compile(plain.clone())));
        let mut ruled = plain;
        ruled.rules = both(1, 1).rules;
        assert!(!held.holds_in(&compile(ruled)));
    }

    #[test]
    fn connections_are_drained_evenly_over_the_deadline_and_closed_at_once() {
        let mut held = held(both(1, 1));
        assert_eq!(held.pause(0), Duration::ZERO);
        assert_eq!(held.grace(), secs(1));
        assert_eq!(held.pause(1 << 63), Duration::from_millis(4_500));
        assert!(held.pause(u64::MAX) + held.grace() <= secs(10));
        held.policy.action = ChangeAction::Close;
        assert_eq!(held.pause(u64::MAX) + held.grace(), Duration::ZERO);
    }

    #[test]
    fn connection_under_the_default_is_not_watched() {
        let snapshot = compile(model(service(1, 0), vec![], vec![]));
        let plan = Plan {
            session: None,
            port: PORT,
            rule: None,
            target: 0,
            version: VersionIx(0),
        };
        let endpoint = &snapshot.version(VersionIx(0)).endpoints[0];
        assert!(Held::new(&snapshot, &plan, endpoint).is_none());
    }
}
