//! Which endpoint of the version.
//!
//! Endpoints that the platform calls unready, or that have weight 0, are left out when the
//! snapshot is compiled; ejected and sick ones are found out at the pick. As long as the draws hit
//! none of these, a pick costs two draws, however many endpoints there are; else it looks at all of
//! them.
//!
//! A version whose policy asks for no more than least request, round robin or random pays one
//! branch for the rest (`more`): priorities, panic, slow start, keys, estimates of latency.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    Reject, Snapshot, VersionIx,
    effective::Balancing,
    rng::Rng,
    snapshot::{EndpointState, Outcome, VersionPlan},
};
use crate::{
    clock::MonoNanos,
    model::{Balance, balance::SlowStart},
};

mod group;
mod hashed;
mod key;
mod latency;
mod loads;
mod locality;
mod more;
mod warm;

use group::{Group, below};
pub use key::key;
pub(super) use latency::Latency;
pub(super) use loads::changed;
use more::More;
use warm::accept;

/// State of round robin, shared by all cores.
#[derive(Debug, Default)]
pub struct Turn(pub AtomicU32);

impl Turn {
    /// Where the next snapshot goes on.
    pub(super) fn carry(&self) -> Self {
        Self(AtomicU32::new(self.0.load(Ordering::Relaxed)))
    }
}

/// What a pick needs, made once: the endpoints that may be chosen at all.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Those of the first priority, which is mostly the only one.
    first: Group,
    more: Option<Box<More>>,
}

impl Table {
    pub(super) fn new(
        endpoints: &[Arc<EndpointState>],
        algorithm: Balance,
        wanted: Option<&Balancing>,
        node: &str,
        previous: Option<&Self>,
    ) -> Self {
        let prefer = wanted.map(|wanted| &wanted.locality.value);
        let groups = locality::groups(endpoints, prefer, node);
        let groups = groups.as_deref();
        let before = previous.and_then(|previous| previous.more.as_deref());
        let more = More::new(endpoints, groups, algorithm, wanted, before);
        Self {
            first: match groups {
                Some(groups) => Group::new(endpoints, groups[0].iter().copied()),
                None => Group::new(endpoints, 0..endpoints.len() as u32),
            },
            more: more.map(Box::new),
        }
    }

    fn group(&self, at: usize) -> Option<&Group> {
        match at.checked_sub(1) {
            None => Some(&self.first),
            Some(other) => self.more.as_deref()?.others.get(other),
        }
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        let others = self.more.as_deref().map(|more| more.others.as_slice());
        std::iter::once(&self.first).chain(others.into_iter().flatten())
    }

    #[cfg(test)]
    fn more_for_tests(&self) -> &More {
        self.more.as_deref().expect("it has more")
    }

    /// How many picks were made among all endpoints since too few were healthy.
    pub(super) fn panics(&self) -> u64 {
        let more = self.more.as_deref();
        more.map_or(0, |more| more.panics.load(Ordering::Relaxed))
    }
}

/// Chooses an endpoint. Ejected and unhealthy endpoints are left out; those in `tried` are only
/// taken when nothing else is left.
///
/// # Errors
/// [`Reject::NoEndpoint`] when the version has none, [`Reject::NoHealthyEndpoint`] when none may
/// be used.
pub fn pick(
    snapshot: &Snapshot,
    version: VersionIx,
    tried: &[u64],
    rng: &mut Rng,
    now: MonoNanos,
) -> Result<Arc<EndpointState>, Reject> {
    pick_by(snapshot, version, None, tried, rng, now)
}

/// The same, by the [`key`] of the request where the version is balanced by one.
///
/// # Errors
/// As [`pick`].
pub fn pick_by(
    snapshot: &Snapshot,
    version: VersionIx,
    key: Option<u64>,
    tried: &[u64],
    rng: &mut Rng,
    now: MonoNanos,
) -> Result<Arc<EndpointState>, Reject> {
    let plan = snapshot.version(version);
    if plan.endpoints.is_empty() {
        return Err(Reject::NoEndpoint);
    }
    let turn = match plan.balance {
        Balance::RoundRobin => plan.turn.0.fetch_add(1, Ordering::Relaxed),
        _ => 0,
    };
    let draw = Draw {
        plan,
        group: &plan.table.first,
        more: plan.table.more.as_deref(),
        number: 0,
        panic: false,
        key,
        turn,
        tried,
        now,
    };
    let at = match draw.more {
        None => draw.pick(rng),
        Some(more) => draw.pick_of_priorities(more, rng),
    };
    let at = at.ok_or(Reject::NoHealthyEndpoint)?;
    Ok(Arc::clone(&plan.endpoints[at as usize]))
}

/// The endpoints that a pick could return now.
pub(super) fn candidates(plan: &VersionPlan) -> impl Iterator<Item = &Arc<EndpointState>> {
    let loads = plan.table.more.as_deref().map(|more| more.loads(plan));
    let groups = plan
        .table
        .groups()
        .enumerate()
        .flat_map(move |(at, group)| {
            let panic = loads.is_some_and(|loads| loads.panics(at));
            group.usable.iter().map(move |at| (*at, panic))
        });
    groups
        .map(|(at, panic)| (&plan.endpoints[at as usize], panic))
        .filter(|(endpoint, panic)| *panic || endpoint.live.is_eligible())
        .map(|(endpoint, _)| endpoint)
}

/// Whether an endpoint gets anything on the kernel path, where nobody draws: it is ready and
/// neither ejected nor sick, or there is panic.
pub(super) fn is_on(plan: &VersionPlan, endpoint: &EndpointState) -> bool {
    endpoint.is_usable() && (endpoint.live.is_eligible() || panics(plan))
}

/// Whether the first priority, which on the kernel path is the only one, is in panic.
fn panics(plan: &VersionPlan) -> bool {
    let more = plan.table.more.as_deref();
    more.is_some_and(|more| more.loads(plan).panics(0))
}

/// How the version's endpoints share its requests now, in one line; empty when nothing is special.
/// `key`: of a request.
pub(super) fn describe(plan: &VersionPlan, key: Option<u64>) -> String {
    let Some(more) = plan.table.more.as_deref() else {
        return String::new();
    };
    let mut text = more.describe(plan);
    if let (Some(key), Some(table)) = (key, more.hashed.first()) {
        let may = |at: u32| {
            let endpoint = &plan.endpoints[at as usize];
            endpoint.is_usable() && endpoint.live.is_eligible()
        };
        if let Some(at) = table.find(key, may).filter(|_| more.hashed.len() == 1) {
            let address = plan.endpoints[at as usize].address;
            text.push_str(&format!("; the key leads to {address}"));
        }
    }
    text
}

/// Tells the version's balancer how an attempt went: what [`Balance::PeakEwma`] learns from.
/// `retry_after`: how long the answer asks to stay away.
pub(super) fn observe(
    plan: &VersionPlan,
    endpoint: &EndpointState,
    outcome: Outcome,
    took: Duration,
    retry_after: Option<Duration>,
    now: MonoNanos,
) {
    if plan.balance == Balance::PeakEwma
        && let Some(more) = &plan.table.more
    {
        let latency = &endpoint.live.latency;
        latency.observe(outcome, took, retry_after, &more.policy, now);
    }
}

/// How often a draw that slow start turned down is repeated: then the endpoint is taken, so that a
/// pick ends also when all are new.
const WARM_DRAWS: u32 = 8;

/// Endpoints that are drawn by weight before their load decides, where weights differ.
const WEIGHTED_DRAWS: usize = 8;

/// What an idle endpoint has of its weight.
const UNLOADED: u64 = 1 << 12;

/// One pick. Positions are those in the group's usable endpoints, unless said otherwise.
#[derive(Clone, Copy)]
struct Draw<'a> {
    plan: &'a VersionPlan,
    group: &'a Group,
    more: Option<&'a More>,
    /// The group's priority.
    number: usize,
    /// All of its endpoints may be had.
    panic: bool,
    key: Option<u64>,
    turn: u32,
    tried: &'a [u64],
    now: MonoNanos,
}

impl<'a> Draw<'a> {
    /// The position in the version's endpoints; of one that was tried when there is no other.
    fn pick(&self, rng: &mut Rng) -> Option<u32> {
        self.pick_untried(rng)
            .or_else(|| self.among_tried().thorough(rng))
    }

    fn among_tried(&self) -> Self {
        let tried = &[];
        Self { tried, ..*self }
    }

    fn pick_untried(&self, rng: &mut Rng) -> Option<u32> {
        if self.group.usable.is_empty() {
            return None;
        }
        self.quick(rng)
            .filter(|at| self.choose(*at))
            .or_else(|| self.thorough(rng))
    }

    /// The position in the version's endpoints, of the priority whose turn it is; of another one
    /// when that has nobody.
    #[inline(never)]
    fn pick_of_priorities(&self, more: &More, rng: &mut Rng) -> Option<u32> {
        if !more.watches {
            return self.pick(rng);
        }
        let loads = more.loads(self.plan);
        let chosen = match (more.others.is_empty(), self.key) {
            (true, _) => 0,
            // The same on every node; not the bits by which the tables find an endpoint.
            (false, Some(key)) => loads.at(key.rotate_left(32).wrapping_mul(0x9e37_79b9) % 100),
            (false, None) => loads.at(below(rng, 100)),
        };
        let others = (0..=more.others.len()).filter(|at| *at != chosen);
        let order = std::iter::once(chosen).chain(others);
        let of = |number: usize| {
            let group = self.plan.table.group(number)?;
            let panic = loads.panics(number);
            Some(Self {
                group,
                number,
                panic,
                ..*self
            })
        };
        let mut found = None;
        for draw in order.clone().filter_map(of) {
            found = draw.pick_untried(rng).map(|at| (draw.panic, at));
            if found.is_some() {
                break;
            }
        }
        for draw in order.filter_map(of) {
            if found.is_some() {
                break;
            }
            found = draw.pick(rng).map(|at| (draw.panic, at));
        }
        let (panic, at) = found?;
        if panic {
            more.panics.fetch_add(1, Ordering::Relaxed);
        }
        Some(at)
    }

    fn endpoint(&self, at: u32) -> &'a Arc<EndpointState> {
        &self.plan.endpoints[self.group.usable[at as usize] as usize]
    }

    fn is_free(&self, at: u32) -> bool {
        self.may_have(self.endpoint(at))
    }

    fn may_have(&self, endpoint: &EndpointState) -> bool {
        (self.panic || endpoint.live.is_eligible()) && !self.tried.contains(&endpoint.id)
    }

    /// Takes an endpoint, by its position in the version's endpoints.
    fn choose(&self, at: u32) -> bool {
        self.panic || self.plan.endpoints[at as usize].live.choose(self.now)
    }

    /// The draw as if every endpoint could be had; none when it hits one that can't. The position
    /// in the version's endpoints.
    fn quick(&self, rng: &mut Rng) -> Option<u32> {
        let group = self.group;
        let at = match self.plan.balance {
            Balance::RoundRobin => self.in_turn(rng),
            Balance::LeastRequest if group.is_weighted() => self.least_loaded(rng),
            Balance::LeastRequest | Balance::PeakEwma if group.len() > 1 => {
                let first = self.drawn(rng, |rng| group.draw(rng));
                let second = self.drawn(rng, |rng| group.draw_other(first, rng));
                if !(self.is_free(first) && self.is_free(second)) {
                    return None;
                }
                if self.is_better(second, first) {
                    second
                } else {
                    first
                }
            }
            Balance::RingHash | Balance::Maglev => match self.by_key() {
                Some(found) => return found,
                None => group.draw(rng),
            },
            Balance::LeastRequest | Balance::PeakEwma | Balance::Random => group.draw(rng),
        };
        self.is_free(at).then(|| group.usable[at as usize])
    }

    /// What a draw gives, again and again as long as slow start turns it down.
    fn drawn(&self, rng: &mut Rng, draw: impl Fn(&mut Rng) -> u32) -> u32 {
        let mut at = draw(rng);
        if let Some(policy) = self.slow_start() {
            for _ in 1..WARM_DRAWS {
                if accept(warm::factor(policy, self.endpoint(at), self.now), rng) {
                    break;
                }
                at = draw(rng);
            }
        }
        at
    }

    fn in_turn(&self, rng: &mut Rng) -> u32 {
        let mut at = self.group.in_turn(self.turn);
        if let Some(policy) = self.slow_start() {
            for _ in 1..WARM_DRAWS {
                if accept(warm::factor(policy, self.endpoint(at), self.now), rng) {
                    break;
                }
                at = self
                    .group
                    .in_turn(self.plan.turn.0.fetch_add(1, Ordering::Relaxed));
            }
        }
        at
    }

    fn slow_start(&self) -> Option<&'a SlowStart> {
        let policy = &self.more?.policy;
        let has = matches!(
            policy.algorithm,
            Balance::LeastRequest | Balance::RoundRobin
        );
        policy.slow_start.as_ref().filter(|_| has)
    }

    /// The endpoint of the key, by its position among the version's; none inside when nobody may
    /// be had, none outside when there is no key.
    fn by_key(&self) -> Option<Option<u32>> {
        let key = self.key?;
        let more = self.more?;
        let table = more.hashed.get(self.number)?;
        let may = |at: u32| {
            let endpoint = &self.plan.endpoints[at as usize];
            endpoint.is_usable() && self.may_have(endpoint)
        };
        let Some(percent) = more.policy.bounded_load else {
            return Some(table.find(key, may));
        };
        // The mean over what may be had at all, with this request.
        let requests = u64::from(self.plan.breaker.gauges().requests) + 1;
        let whole = u128::from(self.group.weight_sum) * 100;
        let has_room = |at: u32| {
            let endpoint = &self.plan.endpoints[at as usize];
            let load = u128::from(percent) * u128::from(requests) * u128::from(endpoint.weight);
            u128::from(endpoint.live.in_flight()) < load.div_ceil(whole.max(1))
        };
        Some(
            table
                .find(key, |at| may(at) && has_room(at))
                .or_else(|| table.find(key, may)),
        )
    }

    /// By weight / (in flight + 1)^bias: of few endpoints exactly, else among a few that were drawn
    /// by weight, at random by what their load leaves of it. When all are idle that is weight alone.
    fn least_loaded(&self, rng: &mut Rng) -> u32 {
        let length = self.group.len();
        if length as usize <= WEIGHTED_DRAWS {
            let total = (0..length).map(|at| self.effective(at)).sum();
            let mut point = below(rng, total);
            let hit = |at: &u32| {
                // Loads may have changed since they were summed up: the last one then.
                let left = self.effective(*at);
                let hit = point < left;
                point = point.saturating_sub(left);
                hit
            };
            return (0..length).find(hit).unwrap_or(length - 1);
        }
        let drawn: [u32; WEIGHTED_DRAWS] =
            std::array::from_fn(|_| self.drawn(rng, |rng| self.group.draw(rng)));
        let left = drawn.map(|at| self.load_factor(at));
        let mut point = below(rng, left.iter().sum());
        let hit = |(_, left): &(&u32, &u64)| {
            let hit = point < **left;
            point = point.saturating_sub(**left);
            hit
        };
        drawn
            .iter()
            .zip(&left)
            .find(hit)
            .map_or(drawn[0], |(at, _)| *at)
    }

    /// What load leaves of an endpoint's weight, of [`UNLOADED`]: 1 / (in flight + 1)^bias.
    fn load_factor(&self, at: u32) -> u64 {
        let busy = self.endpoint(at).live.in_flight();
        let bias = self.more.map_or(100, |more| more.policy.bias_percent);
        ((UNLOADED as f64 * effective_weight(1, busy, bias)) as u64).max(1)
    }

    /// What slow start and, by weight, load leave of an endpoint's weight.
    fn effective(&self, at: u32) -> u64 {
        let mut weight = self.group.weight(at);
        if let Some(policy) = self.slow_start() {
            weight *= warm::factor(policy, self.endpoint(at), self.now).max(1);
        }
        if self.plan.balance == Balance::LeastRequest && self.group.is_weighted() {
            weight *= self.load_factor(at);
        }
        weight
    }

    /// Whether the second is the better one of two with equal weights; when they are equal the
    /// first draw holds.
    fn is_better(&self, second: u32, first: u32) -> bool {
        let (one, two) = (self.endpoint(first), self.endpoint(second));
        if self.plan.balance == Balance::PeakEwma
            && let Some(more) = self.more
        {
            let cost = |endpoint: &EndpointState| {
                let estimate = endpoint.live.latency.estimate(&more.policy, self.now);
                estimate * (endpoint.live.in_flight() as f32 + 1.0)
            };
            return cost(two) < cost(one);
        }
        let (busy_one, busy_two) = (one.live.in_flight(), two.live.in_flight());
        match (self.slow_start(), self.more) {
            (None, None) => busy_two < busy_one,
            (None, Some(more)) => busy_two < busy_one && more.policy.bias_percent > 0,
            // Two idle ones were drawn by what they have of their weight already.
            (Some(_), _) if busy_one == 0 && busy_two == 0 => false,
            (Some(policy), _) => {
                let left = |at: u32| {
                    let factor = warm::factor(policy, self.endpoint(at), self.now);
                    u128::from(factor) * u128::from(self.load_factor(at))
                };
                left(second) > left(first)
            }
        }
    }

    /// The draw among those that can be had: looks at all. The position in the version's endpoints.
    #[cold]
    fn thorough(&self, rng: &mut Rng) -> Option<u32> {
        let group = self.group;
        let weight = |at: u32| self.effective(at);
        // A probe may be snatched away between look and choice: each round then has one less.
        for _ in 0..=group.len() {
            let free = |at: &u32| self.is_free(*at);
            let total: u64 = (0..group.len()).filter(free).map(weight).sum();
            if total == 0 {
                return None;
            }
            let nth = |point: u64, without: Option<u32>| {
                let mut left = point;
                (0..group.len())
                    .filter(free)
                    .filter(|at| Some(*at) != without)
                    .find(|at| {
                        let weight = weight(*at);
                        let hit = left < weight;
                        left = left.saturating_sub(weight);
                        hit
                    })
            };
            let chosen = match self.plan.balance {
                // What the missing ones would have had goes to the others in turn.
                Balance::RoundRobin if self.slow_start().is_none() => {
                    nth(u64::from(self.turn / group.len()) % total, None)
                }
                Balance::LeastRequest if group.is_weighted() => nth(below(rng, total), None),
                Balance::LeastRequest | Balance::PeakEwma => {
                    nth(below(rng, total), None).map(|first| {
                        let others = total - weight(first).min(total);
                        match nth(below(rng, others), Some(first)) {
                            Some(second) if others > 0 && self.is_better(second, first) => second,
                            _ => first,
                        }
                    })
                }
                _ => nth(below(rng, total), None),
            };
            match chosen.map(|at| group.usable[at as usize]) {
                Some(at) if self.choose(at) => return Some(at),
                // Changed under our eyes: look again.
                _ => {}
            }
        }
        None
    }
}

/// Envoy's effective weight: weight / (in flight + 1)^bias.
fn effective_weight(weight: u64, busy: u32, bias_percent: u32) -> f64 {
    let busy = f64::from(busy) + 1.0;
    let divisor = match bias_percent {
        100 => busy,
        percent => busy.powf(f64::from(percent) / 100.0),
    };
    weight as f64 / divisor
}

#[cfg(test)]
mod tests;
