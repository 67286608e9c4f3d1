//! What the kernel can't honour when it chooses the endpoints of a port by itself.
//!
//! The connect hook sees one connection: it splits by weight in turn, counts a cap, and is told
//! which endpoints are ejected. Everything else needs the proxy. Asked by the configuration's check
//! (for a port that insists on the kernel) and by the compiler (for the others).

use super::{
    Balance, BalancePolicy, BreakerPolicy, ChangeAction, DialFrom, Match, Policy, Port, Rule,
    Select, Service, Target, TimeoutPolicy,
};

/// What needs the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Which rule, policy or field it is.
    pub place: Place,
    /// The same for people: `rule "x" matches on HTTP`.
    pub why: String,
}

/// Where an obstacle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A rule, by its index in `Model::rules`.
    Rule(usize),
    /// A policy, by its index in `Model::policies`.
    Policy(usize),
    /// The service's `dial-from`.
    DialFrom,
    /// The port's `tls`.
    Tls,
    /// The priorities of the service's endpoints.
    Priority,
}

/// The first obstacle for a port, in the order rules, policies, service. `rules` and `policies` are
/// those that cover the port, with their places in the model.
pub fn first<'m>(
    service: &Service,
    port: &Port,
    rules: impl IntoIterator<Item = (usize, &'m Rule)>,
    policies: impl IntoIterator<Item = (usize, &'m Policy)>,
) -> Option<Obstacle> {
    let by_rule = rules.into_iter().find_map(|(at, rule)| {
        let why = format!("rule {:?} {}", rule.name, of_rule(rule)?);
        let place = Place::Rule(at);
        Some(Obstacle { place, why })
    });
    let by_policy = || {
        policies.into_iter().find_map(|(at, policy)| {
            let why = format!("policy: {}", of_policy(policy, port)?);
            let place = Place::Policy(at);
            Some(Obstacle { place, why })
        })
    };
    by_rule
        .or_else(by_policy)
        .or_else(|| of_port(port))
        .or_else(|| of_service(service))
}

/// What a rule asks that the kernel can't do.
fn of_rule(rule: &Rule) -> Option<&'static str> {
    if rule.matches.iter().any(Match::needs_http) {
        return Some("matches on HTTP");
    }
    if rule
        .matches
        .iter()
        .any(|condition| !condition.sni.is_empty())
    {
        return Some("matches the TLS server name");
    }
    if rule
        .matches
        .iter()
        .any(|condition| condition.source.is_some())
    {
        return Some("matches the source");
    }
    if !rule.extra().is_idle() || rule.route.iter().any(|target| target.actions.is_some()) {
        return Some("does more than to choose a version");
    }
    let elsewhere =
        |target: &Target| target.backend.is_some() || matches!(target.select, Select::Invalid(_));
    rule.route
        .iter()
        .any(elsewhere)
        .then_some("sends to another service")
}

/// What a policy asks that the kernel can't do, for a port that it covers.
fn of_policy(policy: &Policy, port: &Port) -> Option<&'static str> {
    let request_caps = |caps: BreakerPolicy| {
        let default = BreakerPolicy::default();
        (caps.max_requests, caps.max_pending, caps.max_retries)
            != (
                default.max_requests,
                default.max_pending,
                default.max_retries,
            )
    };
    // Its slots go in turn, without growing weights.
    let in_turn = |balance: &BalancePolicy| {
        balance.algorithm == Balance::RoundRobin && balance.slow_start.is_none()
    };
    let balance = policy.balance.as_ref().filter(|balance| !in_turn(balance));
    let http = port.protocol.is_http();
    [
        (!policy.rate_limits.is_empty()).then_some("rate-limit"),
        balance.is_some().then_some("balance"),
        policy.locality.is_some().then_some("locality"),
        (policy.timeouts != TimeoutPolicy::default()).then_some("timeout"),
        policy.retries.is_some().then_some("retries"),
        policy.tls.is_some().then_some("tls"),
        (policy.ejection.is_some_and(|ejection| ejection.probe)).then_some("ejection.probe"),
        (policy
            .ejection
            .is_some_and(|ejection| ejection.latency.is_some()))
        .then_some("ejection.latency"),
        policy.retry_budget.is_some().then_some("retry-budget"),
        policy.adaptive.is_some().then_some("adaptive"),
        policy.hedge.is_some().then_some("hedge"),
        policy.connection.is_some().then_some("connection"),
        (policy
            .on_change
            .is_some_and(|change| change.action != ChangeAction::Keep))
        .then_some("on-change"),
        // An opaque connection is its own only request; see `cap`.
        (http && policy.breaker.is_some_and(request_caps)).then_some("breaker of requests"),
    ]
    .into_iter()
    .flatten()
    .next()
}

/// TLS ends in the proxy.
fn of_port(port: &Port) -> Option<Obstacle> {
    port.tls.is_some().then(|| Obstacle {
        place: Place::Tls,
        why: "tls: terminate".to_owned(),
    })
}

fn of_service(service: &Service) -> Option<Obstacle> {
    if service
        .endpoints
        .windows(2)
        .any(|pair| pair[0].priority != pair[1].priority)
    {
        return Some(Obstacle {
            place: Place::Priority,
            why: "endpoints have priorities".to_owned(),
        });
    }
    (service.dial_from == DialFrom::Node).then(|| Obstacle {
        place: Place::DialFrom,
        why: "dial-from: node".to_owned(),
    })
}

/// How many connections a breaker allows on the kernel path. Through the proxy an opaque connection
/// takes a connection's and a request's place: the smaller cap counts on both paths.
pub fn cap(caps: &BreakerPolicy) -> u32 {
    caps.max_connections.min(caps.max_requests)
}
