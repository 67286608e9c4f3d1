//! Whether a changed model is sound, from what changed alone.

use std::collections::BTreeMap;

use super::check;
use crate::{
    config::report::Severity,
    model::{Model, Policy, Rule, Service},
};

/// Whether a model that differs from a sound one is certainly sound, too. False: it may be, and only
/// [`check`] can tell.
///
/// Looks at the services, rules and policies that took others' places, with the services that they
/// name, as a model of their own. That is all of the truth as long as nothing changed that has to be
/// unique over the model: then the answer is false. What two models share costs nothing.
pub fn is_sound_change(sound: &Model, changed: &Model) -> bool {
    let same_length = sound.services.len() == changed.services.len()
        && sound.rules.len() == changed.rules.len()
        && sound.policies.len() == changed.policies.len();
    if !same_length
        || sound.workloads != changed.workloads
        || sound.outbound != changed.outbound
        || sound.inbound != changed.inbound
        || sound.locality != changed.locality
        || sound.rate_limit_services != changed.rate_limit_services
        || sound.routes != changed.routes
    {
        return false;
    }
    let mut part = Part::new(changed);
    for at in sound.services.changes(&changed.services) {
        if !only_endpoints(&sound.services[at], &changed.services[at]) {
            return false;
        }
        part.service(at);
    }
    for at in sound.rules.changes(&changed.rules) {
        let (old, new) = (&sound.rules[at], &changed.rules[at]);
        // A rule that takes another place in the order may make others unreachable, which is worth
        // a warning; an error is only a name that is there twice.
        if (old.service, &old.name) != (new.service, &new.name) {
            return false;
        }
        part.rule(new);
    }
    for at in sound.policies.changes(&changed.policies) {
        let (old, new) = (&sound.policies[at], &changed.policies[at]);
        let scope =
            |policy: &'_ Policy| (policy.service, policy.version.clone(), policy.port.clone());
        if scope(old) != scope(new) {
            return false;
        }
        part.policy(new);
    }
    let findings = check(&part.model);
    !findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
}

/// Whether two services differ in their endpoints alone.
fn only_endpoints(one: &Service, two: &Service) -> bool {
    one.name == two.name
        && one.namespace == two.namespace
        && one.hostnames == two.hostnames
        && one.addresses == two.addresses
        && one.ports == two.ports
        && one.versions == two.versions
        && one.routable == two.routable
        && one.dial_from == two.dial_from
}

/// A part of a model, as a model.
struct Part<'m> {
    whole: &'m Model,
    model: Model,
    /// Places in the part, by those in the whole.
    places: BTreeMap<usize, usize>,
}

impl<'m> Part<'m> {
    fn new(whole: &'m Model) -> Self {
        Self {
            whole,
            model: Model {
                locality: whole.locality.clone(),
                rate_limit_services: whole.rate_limit_services.clone(),
                ..Model::default()
            },
            places: BTreeMap::new(),
        }
    }

    fn service(&mut self, at: usize) -> usize {
        if let Some(place) = self.places.get(&at) {
            return *place;
        }
        let Some(service) = self.whole.services.shared(at) else {
            // There is none: nor is there one at this place of the part.
            return usize::MAX;
        };
        self.model.services.push(service.clone());
        let place = self.model.services.len() - 1;
        self.places.insert(at, place);
        place
    }

    fn rule(&mut self, rule: &Rule) {
        let mut rule = rule.clone();
        rule.service = self.service(rule.service);
        rule.each_target_mut(|target| {
            if let Some(backend) = &mut target.backend {
                backend.service = self.service(backend.service);
            }
        });
        self.model.rules.push(rule);
    }

    fn policy(&mut self, policy: &Policy) {
        let service = self.service(policy.service);
        self.model.policies.push(Policy {
            service,
            ..policy.clone()
        });
    }
}
