//! What rules and versions decide besides where to: sessions, actions, limits, terms, TLS.

use super::*;
use crate::policy::{
    Client, Observer, SourceIx,
    action::{Asked, Then},
    balance, rate_limit,
    route::{Plan, RulePlan},
    session,
    snapshot::PortPlan,
};

/// By names, in the order of the model.
pub(super) fn extras(snapshot: &Snapshot) -> Vec<String> {
    let mut all = Vec::new();
    for port in snapshot.service_ports() {
        for ix in &port.versions {
            all.push(of_version(snapshot, *ix));
        }
        for ix in port.routes.rules() {
            let rule = snapshot.rule(*ix);
            let whole = format!("{} {}", port.label(), rule.name);
            let mut more = sessions(snapshot, port, *ix, rule);
            for at in 0..rule.targets.len() as u32 {
                let plan = plan(snapshot, port, *ix, at);
                let terms = snapshot.terms(&plan);
                more.push(format!(
                    "terms {:?} {:?}",
                    terms.request, terms.retry.policy
                ));
                more.extend(done(snapshot, &plan));
            }
            all.extend(more.into_iter().map(|line| format!("{whole}: {line}")));
        }
    }
    let mut tls: Vec<String> = snapshot
        .tls
        .originate
        .iter()
        .map(|tls| format!("tls {:?}", tls.sni))
        .collect();
    tls.sort();
    all.extend(tls);
    all
}

fn of_version(snapshot: &Snapshot, ix: VersionIx) -> String {
    let version = snapshot.version(ix);
    let candidates: Vec<String> = balance::candidates(version)
        .map(|endpoint| endpoint.address.to_string())
        .collect();
    let keyed = balance::describe(version, Some(0x1234_5678_9abc_def0));
    let (budget, adaptive) = (version.budget.is_some(), version.adaptive.is_some());
    let ejection = version.ejection.is_some();
    let limits = version.limits.len();
    format!(
        "{}: {candidates:?} {keyed} {budget} {adaptive} {ejection} {limits}",
        label(snapshot, ix)
    )
}

fn plan(snapshot: &Snapshot, port: &PortPlan, rule: crate::policy::RuleIx, at: u32) -> Plan {
    Plan {
        port: ix_of(snapshot, port),
        rule: Some(rule),
        target: at,
        version: snapshot.rule(rule).targets[at as usize].version,
        session: None,
    }
}

/// Where a session of each endpoint goes on.
fn sessions(
    snapshot: &Snapshot,
    port: &PortPlan,
    ix: crate::policy::RuleIx,
    rule: &RulePlan,
) -> Vec<String> {
    let mut all = Vec::new();
    let of = rule
        .choice
        .as_ref()
        .and_then(|choice| choice.session.as_ref());
    let Some(of) = of else {
        return all;
    };
    for at in 0..rule.targets.len() as u32 {
        let plan = plan(snapshot, port, ix, at);
        for endpoint in &snapshot.version(plan.version).endpoints {
            let edits = session::answer(snapshot, &plan, endpoint, 1, false);
            let mut fields = http::HeaderMap::new();
            edits.expect("a session").apply(&mut fields);
            let token = fields["sid"].to_str().expect("text").to_owned();
            let ask = get("/").with("sid", &token);
            let to = of.resume(snapshot, &rule.targets, &ask.view(), 1);
            let to = to.map(|(target, resumed)| {
                let version = snapshot.version(rule.targets[target].version);
                let found = &version.endpoints[resumed.endpoint.0 as usize];
                // The promise itself.
                assert_eq!(found.address, endpoint.address, "{}", rule.name);
                (target, found.address)
            });
            all.push(format!("session of {} at {at}: {to:?}", endpoint.address));
        }
    }
    all
}

/// Names of the limits that were asked.
#[derive(Default)]
struct Names(Vec<String>);

impl Observer for Names {
    fn limit(&mut self, name: &str, key: &str, left: u64, admitted: bool) {
        self.0.push(format!("{name} {key} {left} {admitted}"));
    }

    fn active(&self) -> bool {
        true
    }
}

/// What is done with each request of each source on the way to a target, and which limits it meets.
fn done(snapshot: &Snapshot, plan: &Plan) -> Vec<String> {
    let mut all = Vec::new();
    let sources = (0..snapshot.sources.len() as u32).map(|at| Some(SourceIx(at)));
    for source in sources.chain([None]) {
        for ask in asks().into_iter().step_by(4) {
            let client = Client::from(source);
            let request = &ask.view();
            let mut names = Names::default();
            let now = MonoNanos(1);
            rate_limit::peek(snapshot, plan, client, Some(request), now, &mut names);
            let mut line = format!("{source:?} {}: {:?}", ask.path, names.0);
            if let Some(actions) = snapshot.actions(plan) {
                let asked = Asked {
                    client,
                    request,
                    scheme: "http",
                    port: 80,
                    grpc: false,
                };
                let action = actions.decide(&asked, |_| true, &mut NoObserver);
                let then = match action.then {
                    Then::Forward => "forward".to_owned(),
                    Then::Answer(answer) => answer.status.to_string(),
                    Then::Refuse(reject) => format!("{reject:?}"),
                };
                let mirrors = action.mirrors.iter();
                let mirrors: Vec<String> =
                    mirrors.map(|one| label(snapshot, one.version)).collect();
                line.push_str(&format!(
                    " {then} {:?} {:?} {mirrors:?}",
                    action.path, action.authority
                ));
            }
            all.push(line);
        }
    }
    all
}
