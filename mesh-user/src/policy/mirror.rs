//! Which mirrors a request has: those of its rule and of the target it goes to, each drawn by its
//! own share (Gateway API `HTTPRequestMirrorFilter`, Envoy `request_mirror_policies`).
//!
//! Drawn once for each request, after its version is chosen and its limits have admitted it: a
//! refused request is not mirrored.

use super::{Observer, Snapshot, VersionIx, rng::Rng, route::Plan};
use crate::model::{Fraction, Mirror, Rule, Target};

/// One mirror of a rule, compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorPlan {
    /// Only for requests that go to this target of the rule, from 0; none: for all that match.
    pub only: Option<u32>,
    /// The version that gets the copy.
    pub version: VersionIx,
    /// Which share of the requests.
    pub fraction: Fraction,
    /// Whether the answers are compared.
    pub compare: bool,
    /// The reference could not be resolved: nothing is sent.
    pub invalid: bool,
}

impl MirrorPlan {
    fn concerns(&self, plan: &Plan) -> bool {
        self.only.is_none_or(|target| target == plan.target)
    }

    /// Whether this request is among the share.
    pub fn takes(&self, plan: &Plan, rng: &mut Rng) -> bool {
        self.concerns(plan) && {
            let Fraction {
                numerator,
                denominator,
            } = self.fraction;
            // No draw where there is nothing to decide.
            numerator >= denominator || (numerator > 0 && rng.below(denominator) < numerator)
        }
    }
}

/// The mirrors that a rule and its targets have; none: not a byte is kept for them. `resolve` says
/// what a target means: its version, and whether there is none.
pub(super) fn compile(
    rule: &Rule,
    resolve: impl Fn(&Target) -> (VersionIx, bool),
) -> Option<Box<[MirrorPlan]>> {
    let plan = |only, mirror: &Mirror| {
        let (version, invalid) = resolve(&mirror.target);
        MirrorPlan {
            only,
            version,
            fraction: mirror.fraction,
            compare: mirror.compare,
            invalid,
        }
    };
    let own = rule.extra().actions.mirrors.iter();
    let mut plans: Vec<MirrorPlan> = own.map(|mirror| plan(None, mirror)).collect();
    for (target, at) in rule.route.iter().zip(0..) {
        let actions = target.actions.iter();
        let mirrors = actions.flat_map(|actions| &actions.mirrors);
        plans.extend(mirrors.map(|mirror| plan(Some(at), mirror)));
    }
    (!plans.is_empty()).then(|| plans.into())
}

/// The mirrors of the rule that decided, drawn or not. One look for a request without any.
pub fn of<'s>(snapshot: &'s Snapshot, plan: &Plan) -> &'s [MirrorPlan] {
    let rule = plan.rule.map(|rule| snapshot.rule(rule));
    rule.and_then(|rule| rule.mirrors.as_deref())
        .unwrap_or_default()
}

/// Tells of the mirrors that a request may have: which ones it has is drawn.
pub fn watch(snapshot: &Snapshot, plan: &Plan, observer: &mut impl Observer) {
    for mirror in of(snapshot, plan).iter().filter(|it| it.concerns(plan)) {
        observer.mirror(mirror.version, mirror.fraction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PortIx;

    fn mirror(only: Option<u32>, numerator: u32, denominator: u32) -> MirrorPlan {
        MirrorPlan {
            only,
            version: VersionIx(0),
            fraction: Fraction {
                numerator,
                denominator,
            },
            compare: false,
            invalid: false,
        }
    }

    fn plan(target: u32) -> Plan {
        Plan {
            port: PortIx(0),
            rule: None,
            target,
            version: VersionIx(0),
        }
    }

    #[test]
    fn share_of_mirrored_requests_is_the_fraction() {
        let seed = 7;
        let mut rng = Rng::new(seed);
        for (numerator, denominator) in [(0, 100), (1, 3), (30, 100), (999, 1000), (1, 1)] {
            let n = 100_000;
            let one = mirror(None, numerator, denominator);
            let taken = (0..n).filter(|_| one.takes(&plan(0), &mut rng)).count() as f64;
            let p = f64::from(numerator) / f64::from(denominator);
            let sigma = (f64::from(n) * p * (1.0 - p)).sqrt();
            let off = (taken - f64::from(n) * p).abs();
            assert!(
                off <= 3.0 * sigma,
                "{numerator}/{denominator}: {taken}, seed {seed}"
            );
        }
    }

    #[test]
    fn mirror_of_a_target_is_for_requests_to_it_alone() {
        let mut rng = Rng::new(1);
        let one = mirror(Some(1), 1, 1);
        assert!(!one.takes(&plan(0), &mut rng));
        assert!(one.takes(&plan(1), &mut rng));
    }
}
