//! Changes of a model that keep what did not change shared with the model before it.

use super::{Model, Rule, Select};

impl Model {
    /// Takes a service out, with its rules and policies. The last service takes its place, so that
    /// the others keep theirs. What sent to it by name can't be resolved any more.
    ///
    /// Costs a look at every rule and policy.
    pub fn remove_service(&mut self, at: usize) {
        let Some(gone) = self.services.swap_remove(at) else {
            return;
        };
        let last = self.services.len();
        if self.rules.iter().any(|rule| rule.service == at) {
            self.rules.retain(|rule| rule.service != at);
        }
        if self.policies.iter().any(|policy| policy.service == at) {
            self.policies.retain(|policy| policy.service != at);
        }
        let why = format!("service {} is gone", gone.key());
        let concerns = |rule: &Rule| {
            let mut backends = rule.targets().filter_map(|target| target.backend);
            rule.service == last || backends.any(|b| b.service == at || b.service == last)
        };
        let concerned = |(place, rule): (usize, &Rule)| concerns(rule).then_some(place);
        let rules: Vec<usize> = self
            .rules
            .iter()
            .enumerate()
            .filter_map(concerned)
            .collect();
        for rule in rules {
            let rule = &mut self.rules[rule];
            if rule.service == last {
                rule.service = at;
            }
            rule.each_target_mut(|target| match &mut target.backend {
                Some(backend) if backend.service == at => {
                    target.backend = None;
                    target.select = Select::Invalid(why.clone());
                }
                Some(backend) if backend.service == last => backend.service = at,
                _ => {}
            });
        }
        for policy in 0..self.policies.len() {
            if self.policies[policy].service == last {
                self.policies[policy].service = at;
            }
        }
    }
}

impl Rule {
    /// Changes everything that requests may be sent to: the targets and the mirrors.
    pub(crate) fn each_target_mut(&mut self, mut change: impl FnMut(&mut super::Target)) {
        for target in &mut self.route {
            change(target);
            let actions = target.actions.iter_mut();
            for mirror in actions.flat_map(|actions| &mut actions.mirrors) {
                change(&mut mirror.target);
            }
        }
        let actions = self.extra.iter_mut().map(|extra| &mut extra.actions);
        for mirror in actions.flat_map(|actions| &mut actions.mirrors) {
            change(&mut mirror.target);
        }
    }
}
