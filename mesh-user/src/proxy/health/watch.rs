//! The endpoints that are asked, and what is known of them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{
    Ask, At, Done, Kept,
    schedule::{Due, Schedule},
};
use crate::{
    model::HealthCheck,
    policy::{
        Snapshot,
        ejection::{Change, Live, Standing, What},
        health::{CheckResult, Finding, Verdict},
    },
    telemetry::Telemetry,
};

/// Endpoints to be asked, by their ids.
pub(super) type Targets = HashMap<u64, Target>;

/// An endpoint to be asked.
#[derive(Debug)]
pub(super) struct Target {
    address: SocketAddr,
    live: Arc<Live>,
    place: Arc<Place>,
    checks: Vec<Arc<HealthCheck>>,
}

/// A service port.
#[derive(Debug)]
struct Place {
    namespace: Arc<str>,
    service: Arc<str>,
    port: u16,
}

impl Place {
    fn label(&self) -> String {
        format!("{}/{}:{}", self.namespace, self.service, self.port)
    }
}

/// Whom a snapshot wants to be asked. An endpoint in several versions is asked what any of them
/// wants to know.
pub(super) fn targets(snapshot: &Snapshot) -> Targets {
    let mut targets = Targets::new();
    for port in snapshot.service_ports() {
        let mut place = None;
        for version in port.versions.iter().map(|ix| snapshot.version(*ix)) {
            let checks = match &version.effective.balancing {
                Some(balancing) if !balancing.checks.value.is_empty() => &balancing.checks.value,
                _ => continue,
            };
            let checks: Vec<_> = checks.iter().cloned().map(Arc::new).collect();
            let place = place.get_or_insert_with(|| {
                Arc::new(Place {
                    namespace: Arc::clone(&port.namespace),
                    service: Arc::clone(&port.service),
                    port: port.number,
                })
            });
            for endpoint in &version.endpoints {
                let target = targets.entry(endpoint.id).or_insert_with(|| Target {
                    address: endpoint.address,
                    live: Arc::clone(&endpoint.live),
                    place: Arc::clone(place),
                    checks: Vec::new(),
                });
                for check in &checks {
                    if !target.checks.contains(check) {
                        target.checks.push(Arc::clone(check));
                    }
                }
            }
        }
    }
    targets
}

/// One check of an endpoint.
#[derive(Debug)]
struct State {
    check: Arc<HealthCheck>,
    verdict: Verdict,
    last: CheckResult,
    kept: Option<Kept>,
}

/// An endpoint that is asked.
#[derive(Debug)]
struct Watched {
    entry: u64,
    address: SocketAddr,
    live: Arc<Live>,
    place: Arc<Place>,
    used: Arc<AtomicBool>,
    states: Vec<State>,
}

impl Watched {
    fn finding(&self, result: CheckResult) -> Finding {
        let failed = self.states.iter().find(|state| state.verdict.is_sick());
        Finding {
            sick: failed.is_some(),
            last: failed.map_or(result, |state| state.last),
        }
    }
}

/// All endpoints that are asked.
#[derive(Debug)]
pub(super) struct Watch {
    watched: HashMap<u64, Watched>,
    schedule: Schedule,
    /// Whether a request has ever gone to a service port.
    used: HashMap<String, Arc<AtomicBool>>,
    entries: u64,
    kept: usize,
    telemetry: Arc<Telemetry>,
    /// Checks that run, for those whose task is lost.
    running: Vec<Due>,
}

impl Watch {
    pub(super) fn new(telemetry: Arc<Telemetry>) -> Self {
        Self {
            watched: HashMap::new(),
            schedule: Schedule::new(crate::clock::now().0),
            used: HashMap::new(),
            entries: 0,
            kept: 0,
            telemetry,
            running: Vec::new(),
        }
    }

    /// Asks these from now on.
    pub(super) fn follow(&mut self, targets: &Targets, now: At) {
        let stays = |id: &u64, watched: &Watched| {
            let target = targets.get(id);
            target.is_some_and(|target| Arc::ptr_eq(&target.live, &watched.live))
        };
        let gone: Vec<u64> = self
            .watched
            .iter()
            .filter(|(id, watched)| !stays(id, watched))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(watched) = self.watched.remove(&id) {
                self.let_go(watched, now);
            }
        }
        let mut used: HashMap<String, Arc<AtomicBool>> = HashMap::new();
        let new = targets.keys().filter(|id| !self.watched.contains_key(id));
        let new = new.count();
        for (id, target) in targets {
            let label = target.place.label();
            let flag = match used.get(&label) {
                Some(flag) => Arc::clone(flag),
                None => {
                    let flag = self.used.get(&label).cloned().unwrap_or_default();
                    used.insert(label, Arc::clone(&flag));
                    flag
                }
            };
            self.follow_one(*id, target, flag, new, now);
        }
        self.used = used;
        self.count_sick();
    }

    fn follow_one(&mut self, id: u64, target: &Target, used: Arc<AtomicBool>, new: usize, now: At) {
        let known = self.watched.get(&id);
        let same = |watched: &Watched| {
            let checks = watched.states.iter().map(|state| &state.check);
            checks.eq(&target.checks)
        };
        if known.is_some_and(same) {
            return;
        }
        self.entries += 1;
        let entry = self.entries;
        let mut before = self.watched.remove(&id);
        let states: Vec<State> = target
            .checks
            .iter()
            .map(|check| {
                let states = before.as_mut().map(|watched| &mut watched.states);
                let known = states.and_then(|states| {
                    let at = states.iter().position(|state| state.check == *check)?;
                    Some(states.swap_remove(at))
                });
                known.unwrap_or_else(|| State {
                    check: Arc::clone(check),
                    verdict: Verdict::default(),
                    last: CheckResult::Ok,
                    kept: None,
                })
            })
            .collect();
        for (at, state) in states.iter().enumerate() {
            let first = now.after(self.schedule.first(new, &state.check));
            let due = Due {
                endpoint: id,
                check: at,
                entry,
            };
            self.schedule.put(first, due);
        }
        if let Some(before) = before {
            self.kept -= before.states.iter().filter(|s| s.kept.is_some()).count();
            let sick = states.iter().any(|state| state.verdict.is_sick());
            // By a check that is no more.
            if !sick && before.live.health().is_some_and(Finding::is_sick) {
                before.live.set_health(None, now);
            }
        }
        let watched = Watched {
            entry,
            address: target.address,
            live: Arc::clone(&target.live),
            place: Arc::clone(&target.place),
            used,
            states,
        };
        self.watched.insert(id, watched);
    }

    /// Nobody asks it any more: it counts as healthy.
    fn let_go(&mut self, watched: Watched, now: At) {
        self.kept -= watched.states.iter().filter(|s| s.kept.is_some()).count();
        watched.live.set_health(None, now);
    }

    /// When the next check is due.
    pub(super) fn due(&self) -> Option<At> {
        self.schedule.next_at()
    }

    /// A check that is due, and the connection of the last.
    pub(super) fn next(&mut self, now: At) -> Option<(Due, Ask, Option<Kept>)> {
        while let Some(due) = self.schedule.take(now) {
            let Some(watched) = self.watched.get_mut(&due.endpoint) else {
                continue;
            };
            if watched.entry != due.entry {
                continue;
            }
            let Some(state) = watched.states.get_mut(due.check) else {
                continue;
            };
            let kept = state.kept.take();
            self.kept -= usize::from(kept.is_some());
            let mut address = watched.address;
            address.set_port(state.check.port.unwrap_or(address.port()));
            let ask = Ask {
                check: Arc::clone(&state.check),
                address,
                host: Arc::clone(&watched.place.service),
            };
            self.running.push(due);
            return Some((due, ask, kept));
        }
        None
    }

    /// Takes a result in.
    pub(super) fn note(&mut self, done: Done, kept_max: usize, now: At) {
        let due = done.due;
        // One that was given up as lost is due anew already.
        let was_lost = !self.running.contains(&due);
        self.running.retain(|running| *running != due);
        let Some(watched) = self.watched.get_mut(&due.endpoint) else {
            return;
        };
        if watched.entry != due.entry {
            return;
        }
        let Some(state) = watched.states.get_mut(due.check) else {
            return;
        };
        state.verdict.note(done.result, &state.check);
        state.last = done.result;
        if self.kept < kept_max && done.kept.is_some() {
            state.kept = done.kept;
            self.kept += 1;
        }
        let check = Arc::clone(&state.check);
        if watched.live.recorded().0 > 0 || watched.live.in_flight() > 0 {
            watched.used.store(true, Relaxed);
        }
        let finding = watched.finding(done.result);
        let place = &watched.place;
        self.telemetry
            .health_check(&place.namespace, &place.service, done.result.label());
        let changed = watched.live.set_health(Some(finding), now);
        if changed {
            self.telemetry
                .unhealthy_changed(&place.namespace, &place.service, finding.sick);
            tracing::info!(
                service = place.label(),
                endpoint = %watched.address,
                check = check.probe.label(),
                result = %finding,
                took_ms = done.took.as_secs_f64() * 1_000.0,
                "endpoint {}",
                if finding.sick { "unhealthy" } else { "healthy" }
            );
        }
        let ejected = || matches!(watched.live.standing(), Standing::Ejected { .. });
        if check.uneject && !finding.sick && ejected() && watched.live.uneject(now) {
            let change = Change {
                service: place.label(),
                endpoint: watched.address,
                what: What::Returned,
            };
            self.telemetry.ejection(&change);
            tracing::info!(
                service = change.service,
                endpoint = %change.endpoint,
                "a successful check ended the ejection"
            );
        }
        let often = finding.sick || watched.used.load(Relaxed);
        let again = self.schedule.again(&check, often);
        if !was_lost {
            self.schedule.put(now.after(again), due);
        }
    }

    /// A task ended without a result: the checks that nobody runs any more are due anew.
    pub(super) fn lost(&mut self, now: At) {
        for due in std::mem::take(&mut self.running) {
            let check = self
                .watched
                .get(&due.endpoint)
                .and_then(|watched| watched.states.get(due.check))
                .map(|state| Arc::clone(&state.check));
            if let Some(check) = check {
                let again = self.schedule.again(&check, true);
                self.schedule.put(now.after(again), due);
            }
        }
    }

    /// Tells how many endpoints of each service are sick.
    fn count_sick(&self) {
        let mut counts: HashMap<(&Arc<str>, &Arc<str>), u64> = HashMap::new();
        for watched in self.watched.values() {
            let place = &watched.place;
            let count = counts
                .entry((&place.namespace, &place.service))
                .or_default();
            *count += u64::from(watched.live.health().is_some_and(Finding::is_sick));
        }
        self.telemetry.unhealthy_endpoints(counts.into_iter().map(
            |((namespace, service), count)| (Arc::clone(namespace), Arc::clone(service), count),
        ));
    }
}
