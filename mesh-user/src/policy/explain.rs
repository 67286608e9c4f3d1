//! Why a request goes where it goes: the data path's own decision code with a recording observer.

use std::{fmt::Display, net::SocketAddr, sync::Arc};

use serde::Serialize;

use super::{
    Client, HeaderView, Observer, PortIx, Reject, RequestView, RuleIx, Snapshot,
    action::{Asked, Then},
    balance::{self, candidates},
    breaker::Gauges,
    describe::{EndpointRow, TargetRow},
    rate_limit,
    request::HeaderList,
    route::{self, Plan},
    split::Cursors,
};
use crate::{
    clock::MonoNanos,
    model::{BreakerPolicy, action::Fraction, kernel_table::Path},
};

mod terms;

/// The whole answer of `mesh explain`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// `namespace/name` of the service.
    pub service: String,
    /// Port number.
    pub port: u16,
    /// Who decides for the port.
    pub path: Path,
    /// What forced it.
    pub path_reason: String,
    /// The workload that asks, `namespace/name`; none when it is unknown.
    pub source: Option<Arc<str>>,
    /// Every rule that was tried, in order; the last one matched, unless none did.
    pub tried: Vec<TriedRule>,
    /// The rule that decides; none: implicit route, or no match.
    pub rule: Option<Arc<str>>,
    /// Its index, to compare with a live decision.
    #[serde(skip)]
    pub rule_ix: Option<RuleIx>,
    /// What was decided, likewise; none when nobody is asked.
    #[serde(skip)]
    pub plan: Option<Plan>,
    /// All targets of the rule with their shares.
    pub targets: Vec<TargetRow>,
    /// What the target is chosen by, when not by turns: a session, a key.
    pub chosen_by: Option<String>,
    /// What is done with the request besides, in this order.
    pub actions: Vec<String>,
    /// The version that is next in turn.
    pub next: Option<Arc<str>>,
    /// Endpoints of that version with their state.
    pub endpoints: Vec<EndpointRow>,
    /// How one of them is chosen, when there is more to it than an algorithm.
    pub balance: String,
    /// The terms on which it is sent: time-outs, retries, hedges, budgets.
    pub terms: Vec<String>,
    /// Rate limits: what they would say now. Nothing is spent.
    pub limits: Vec<LimitState>,
    /// Caps of the version.
    pub caps: Option<BreakerPolicy>,
    /// What of the caps is used now.
    pub gauges: Option<Gauges>,
    /// How it ends.
    pub outcome: Fate,
}

/// One rule that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TriedRule {
    /// Rule name.
    pub rule: Arc<str>,
    /// Precedence.
    pub precedence: i32,
    /// The first condition that did not hold, of the alternative that came furthest; none when
    /// the rule matched.
    pub failed: Option<String>,
}

/// What one rate limit would say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitState {
    /// Policy name.
    pub name: String,
    /// The bucket's key: `source.workload=shop/client`; empty for a limit without key.
    pub key: String,
    /// Requests left now, before this one.
    pub left: u64,
    /// Whether this request would be admitted.
    pub admitted: bool,
    /// That it is a dry run, or what is held of a limit that is shared; empty: nothing more.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub note: String,
}

/// How a request would end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Refused: label, HTTP status and sentence.
    Refused {
        /// Why.
        reject: Reject,
        /// HTTP status of the answer.
        status: u16,
        /// One sentence.
        because: &'static str,
    },
    /// Answered by the rule itself. (A fault with a share below 100 % is left out.)
    Answered {
        /// HTTP status of the answer.
        status: u16,
        /// What makes it: the label of [`Kind`](super::action::Kind).
        by: &'static str,
    },
    /// Forwarded to one of these.
    Forwarded {
        /// The endpoints that may be chosen.
        to: Vec<SocketAddr>,
    },
}

/// Explains a request. `cursors` are not moved.
pub fn explain<H: HeaderView>(
    snapshot: &Snapshot,
    port: PortIx,
    client: impl Into<Client>,
    request: &RequestView<'_, H>,
    cursors: &Cursors,
    now: MonoNanos,
) -> Explanation {
    let client = client.into();
    let mut recorder = Recorder::new(snapshot);
    let decided = route::decide(
        snapshot,
        port,
        client,
        request,
        &mut cursors.clone(),
        &mut recorder,
    );
    finish(
        snapshot,
        port,
        client,
        Some(request),
        decided,
        recorder,
        now,
    )
}

/// Explains a TLS connection that is passed on as it is, by the server name that its client means.
/// `cursors` are not moved.
pub fn explain_tls(
    snapshot: &Snapshot,
    port: PortIx,
    client: impl Into<Client>,
    sni: Option<&str>,
    cursors: &Cursors,
    now: MonoNanos,
) -> Explanation {
    let client = client.into();
    let mut recorder = Recorder::new(snapshot);
    let cursors = &mut cursors.clone();
    let decided = route::decide_tls(snapshot, port, client, sni, cursors, &mut recorder);
    finish::<HeaderList>(snapshot, port, client, None, decided, recorder, now)
}

/// Explains an opaque connection. `cursors` are not moved.
pub fn explain_tcp(
    snapshot: &Snapshot,
    port: PortIx,
    client: impl Into<Client>,
    cursors: &Cursors,
    now: MonoNanos,
) -> Explanation {
    let client = client.into();
    let mut recorder = Recorder::new(snapshot);
    let decided = route::decide_tcp(snapshot, port, client, &mut cursors.clone(), &mut recorder);
    finish::<HeaderList>(snapshot, port, client, None, decided, recorder, now)
}

fn finish<H: HeaderView>(
    snapshot: &Snapshot,
    ix: PortIx,
    client: Client,
    request: Option<&RequestView<'_, H>>,
    decided: Result<Plan, Reject>,
    mut recorder: Recorder<'_>,
    now: MonoNanos,
) -> Explanation {
    let port = snapshot.port(ix);
    // A rule that answers by itself sends to no version.
    let sent = decided.ok().filter(|plan| plan.target != u32::MAX);
    let version = sent.map(|plan| snapshot.version(plan.version));
    let refused = |reject: Reject| (reject, reject.status());
    let outcome = decided.map_err(refused).and_then(|plan| {
        let verdict = rate_limit::peek(snapshot, &plan, client, request, now, &mut recorder);
        if let Some(reject) = verdict.reject() {
            // A limit may say with which status it refuses.
            return Err((reject, verdict.status(reject)));
        }
        if let Some(request) = request {
            match acted(snapshot, &plan, client, request, &mut recorder) {
                Then::Forward => {}
                Then::Refuse(reject) => return Err(refused(reject)),
                Then::Answer(answer) => {
                    let (status, by) = (answer.status, answer.kind.label());
                    return Ok(Fate::Answered { status, by });
                }
            }
        }
        let to = admitted(snapshot, &plan, request.is_some()).map_err(refused)?;
        Ok(Fate::Forwarded { to })
    });
    let rule_ix = recorder.matched;
    Explanation {
        service: port.key.to_string(),
        port: port.number,
        path: port.path,
        path_reason: port.path_reason.clone(),
        source: client
            .source
            .map(|source| Arc::clone(&snapshot.source_of(source).key)),
        rule: rule_ix.map(|rule| (&snapshot.rule(rule).name).into()),
        rule_ix,
        plan: decided.ok(),
        targets: match (rule_ix, port.routes.is_empty()) {
            (Some(rule), _) => snapshot.targets_of(port, rule),
            (None, true) => vec![snapshot.target(port.all, 1, 1)],
            (None, false) => Vec::new(),
        },
        chosen_by: recorder.chosen_by,
        actions: recorder.actions,
        next: version.map(|version| Arc::clone(&version.name)),
        endpoints: sent
            .map(|plan| {
                let of = snapshot.port(snapshot.version(plan.version).port);
                snapshot.endpoint_rows(of, plan.version, now)
            })
            .unwrap_or_default(),
        balance: sent
            .map(|plan| {
                let key = balance::key(snapshot, &plan, client, request);
                balance::describe(snapshot.version(plan.version), key)
            })
            .unwrap_or_default(),
        terms: sent
            .map(|plan| terms::terms(snapshot, &plan, request.is_some(), now))
            .unwrap_or_default(),
        caps: version.map(|version| version.breaker.caps()),
        gauges: version.map(|version| version.breaker.gauges()),
        tried: recorder.tried,
        limits: recorder.limits,
        outcome: match outcome {
            Ok(fate) => fate,
            Err((reject, status)) => Fate::Refused {
                reject,
                status,
                because: reject.explain(),
            },
        },
    }
}

/// What the rule does with the request before it is forwarded; shares are hit when they are whole.
fn acted<H: HeaderView>(
    snapshot: &Snapshot,
    plan: &Plan,
    client: Client,
    request: &RequestView<'_, H>,
    recorder: &mut Recorder<'_>,
) -> Then {
    let Some(actions) = snapshot.actions(plan) else {
        return Then::Forward;
    };
    let asked = Asked {
        client,
        request,
        scheme: "http",
        port: snapshot.port(plan.port).number,
        grpc: false,
    };
    let whole = |share: Fraction| share.numerator >= share.denominator;
    actions.decide(&asked, whole, recorder).then
}

/// The endpoints that may be chosen, unless the caps are used up.
fn admitted(snapshot: &Snapshot, plan: &Plan, http: bool) -> Result<Vec<SocketAddr>, Reject> {
    let version = snapshot.version(plan.version);
    if version.endpoints.is_empty() {
        return Err(Reject::NoEndpoint);
    }
    let held = plan.session.map(|session| session.endpoint.0 as usize);
    let to: Vec<SocketAddr> = match held.and_then(|at| version.endpoints.get(at)) {
        Some(endpoint) => vec![endpoint.address],
        None => candidates(version)
            .map(|endpoint| endpoint.address)
            .collect(),
    };
    if to.is_empty() {
        return Err(Reject::NoHealthyEndpoint);
    }
    let (caps, gauges) = (version.breaker.caps(), version.breaker.gauges());
    if gauges.requests >= caps.max_requests {
        return Err(Reject::OverflowRequests);
    }
    // A request may wait for a connection; an opaque connection may not.
    let full = gauges.connections >= caps.max_connections || version.breaker.has_waiters();
    if !http && full {
        return Err(Reject::OverflowConnections);
    }
    Ok(to)
}

/// Writes down what the decision says.
struct Recorder<'a> {
    snapshot: &'a Snapshot,
    tried: Vec<TriedRule>,
    matched: Option<RuleIx>,
    limits: Vec<LimitState>,
    chosen_by: Option<String>,
    actions: Vec<String>,
}

impl<'a> Recorder<'a> {
    const fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            tried: Vec::new(),
            matched: None,
            limits: Vec::new(),
            chosen_by: None,
            actions: Vec::new(),
        }
    }
}

impl Observer for Recorder<'_> {
    fn rule(&mut self, rule: RuleIx, failed: Option<&dyn Display>) {
        let plan = self.snapshot.rule(rule);
        if failed.is_none() {
            self.matched = Some(rule);
        }
        self.tried.push(TriedRule {
            rule: (&plan.name).into(),
            precedence: plan.precedence,
            failed: failed.map(ToString::to_string),
        });
    }

    fn limit(&mut self, name: &str, key: &str, left: u64, admitted: bool) {
        let (name, key) = (name.to_owned(), key.to_owned());
        self.limits.push(LimitState {
            name,
            key,
            left,
            admitted,
            note: String::new(),
        });
    }

    fn chosen_by(&mut self, what: &dyn Display) {
        self.chosen_by = Some(what.to_string());
    }

    fn action(&mut self, what: &dyn Display) {
        self.actions.push(what.to_string());
    }

    fn limit_note(&mut self, note: &str) {
        if let Some(last) = self.limits.last_mut() {
            note.clone_into(&mut last.note);
        }
    }

    fn active(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod pairs;
#[cfg(test)]
mod tests;
