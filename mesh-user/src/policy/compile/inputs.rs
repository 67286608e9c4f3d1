//! Which services differ from those of the previous snapshot.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    model::{List, Model, Policy, Rule},
    policy::{Snapshot, unit::same_shape},
};

/// What is new of a model.
#[derive(Default)]
pub(super) struct Inputs {
    /// Places of the services that are to be compiled; those behind the end are gone.
    pub(super) changed: BTreeSet<usize>,
    /// Their rules, in the order in which they are tried, where these differ.
    pub(super) rules: HashMap<usize, List<Rule>>,
    /// Their policies, likewise.
    pub(super) policies: HashMap<usize, Vec<Arc<Policy>>>,
    /// Rules of which nothing but weights differs: the service's place, the old one, the new one.
    pub(super) light: Vec<(usize, Arc<Rule>, Arc<Rule>)>,
}

impl Inputs {
    pub(super) fn of(old: &Snapshot, model: &Model) -> Self {
        let mut inputs = Self::default();
        let before = &old.model.services;
        inputs.changed.extend(before.changes(&model.services));
        if old.model.locality != model.locality {
            // Whose endpoints are near is another question then.
            inputs.changed.extend(0..model.services.len());
        }
        // Rules of a service that was not there are not among those of a unit.
        let same_length = before.len() == model.services.len();
        if !same_length || !inputs.few_rules(old, model) {
            inputs.light.clear();
            inputs.all_rules(old, model);
        }
        if !same_length || old.model.policies != model.policies {
            inputs.all_policies(old, model);
        }
        inputs
    }

    /// Single rules that took another's place; whether that is all.
    fn few_rules(&mut self, old: &Snapshot, model: &Model) -> bool {
        let before = &old.model.rules;
        if before.len() != model.rules.len() {
            return false;
        }
        for at in before.changes(&model.rules) {
            let (Some(one), Some(two)) = (before.shared(at), model.rules.shared(at)) else {
                return false;
            };
            if !same_shape(one, two) {
                return false;
            }
            self.light.push((one.service, one.clone(), two.clone()));
        }
        // A service that is compiled anew is with all of its rules.
        let whole = |(at, ..): &(usize, _, _)| self.changed.contains(at);
        !self.light.iter().any(whole)
    }

    /// All rules, by service, and compared.
    fn all_rules(&mut self, old: &Snapshot, model: &Model) {
        let services = model.services.len();
        let mut order = by_service(model.rules.iter().map(|rule| rule.service), services);
        for at in 0..services {
            let of_service = order.of(at);
            // Stable: equal precedence keeps the order of the model.
            let precedence = |at: &u32| model.rules[*at as usize].precedence;
            if !of_service.is_sorted_by_key(|at| std::cmp::Reverse(precedence(at))) {
                of_service.sort_by_key(|at| std::cmp::Reverse(precedence(at)));
            }
            let known = old.units.get(at).map(|unit| &unit.rules);
            let same = known.map_or(of_service.is_empty(), |known| {
                known.len() == of_service.len()
                    && known.iter_shared().zip(of_service.iter()).all(|(one, at)| {
                        let two = model.rules.shared(*at as usize);
                        two.is_some_and(|two| Arc::ptr_eq(one, two) || one == two)
                    })
            });
            if !same {
                let shared = of_service.iter();
                let shared = shared.filter_map(|at| model.rules.shared(*at as usize));
                self.rules.insert(at, shared.cloned().collect());
                self.changed.insert(at);
            }
        }
    }

    fn all_policies(&mut self, old: &Snapshot, model: &Model) {
        let services = model.services.len();
        let of_rules = model.policies.iter().map(|policy| policy.service);
        let mut order = by_service(of_rules, services);
        for at in 0..services {
            let of_service = order.of(at);
            let known = old.units.get(at).map(|unit| &*unit.policies);
            let new = || {
                let of_service = of_service.iter();
                of_service.filter_map(|at| model.policies.shared(*at as usize))
            };
            let known = known.unwrap_or_default();
            let same = known.len() == of_service.len()
                && known.iter().zip(new()).all(|(one, two)| one == two);
            if !same {
                self.policies.insert(at, new().cloned().collect());
                self.changed.insert(at);
            }
        }
    }
}

/// Places of things, service by service, in their order.
struct Order {
    places: Vec<u32>,
    ends: Vec<u32>,
}

impl Order {
    fn of(&mut self, service: usize) -> &mut [u32] {
        let start = service.checked_sub(1).map_or(0, |before| self.ends[before]);
        &mut self.places[start as usize..self.ends[service] as usize]
    }
}

/// Sorts things by the service that they name; such as name none are left out.
fn by_service(of: impl Iterator<Item = usize> + Clone, services: usize) -> Order {
    let mut ends = vec![0_u32; services];
    for service in of.clone() {
        if let Some(count) = ends.get_mut(service) {
            *count += 1;
        }
    }
    let mut sum = 0;
    let mut next: Vec<u32> = Vec::with_capacity(services);
    for end in &mut ends {
        next.push(sum);
        sum += *end;
        *end = sum;
    }
    let mut places = vec![0; sum as usize];
    for (at, service) in (0_u32..).zip(of) {
        if let Some(next) = next.get_mut(service) {
            places[*next as usize] = at;
            *next += 1;
        }
    }
    Order { places, ends }
}
