//! Pairs of configuration and request at random, with everything that can decide in them: what is
//! explained is what the data path's own functions do, in the order in which the engines call them.

use std::{net::IpAddr, sync::Arc};

use http::HeaderMap;

use super::super::{
    Client, NoObserver, SourceIx,
    breaker::RequestPermit,
    fixture::{Ask, PORT, at_ms, compile, endpoint, policy, port, secs, tags, to},
    health::{CheckResult, Finding},
    rate_limit::Verdict,
    rng::Rng,
    route::tests::draw::Draw,
    session,
    snapshot::{EndpointState, Outcome},
};
use super::*;
use crate::model::{
    Attribute, Backend, Balance, BalancePolicy, BreakerPolicy, EjectionPolicy, LimitUnit, Match,
    Model, Policy, Protocol, RateLimitPolicy, RuleExtra, Select, Service, SourceMatch, Target,
    ValueMatch,
    action::{
        AbortStatus, Actions, Cors, DirectResponse, Fault, Mirror, PathRewrite, Persistence,
        Redirect, Rewrite, SessionCarrier, Sticky, Terminal,
    },
    limit::{LimitAnswer, LimitOverride},
};

const NAMES: [&str; 4] = ["a.example", "b.a.example", "b.example", "c"];

/// The same choice, seldom: one in `of`.
fn seldom(draw: &mut Draw, of: u32) -> bool {
    draw.0.below(of) == 0
}

fn attribute(draw: &mut Draw) -> Attribute {
    match draw.0.below(9) {
        0 => Attribute::SourceWorkload,
        1 => Attribute::SourceAddress,
        2 => Attribute::SourceTag("app".to_owned()),
        3 => Attribute::Version,
        4 => Attribute::Rule,
        5 => Attribute::Path,
        6 => Attribute::Query("x".to_owned()),
        7 => Attribute::Method,
        _ => Attribute::Header("x".to_owned()),
    }
}

fn limits(draw: &mut Draw) -> Vec<RateLimitPolicy> {
    let count = [0, 0, 1, 1, 2][draw.0.below(5) as usize];
    let limit = |n: u32, draw: &mut Draw| {
        let burst = 1 + u64::from(draw.0.below(6));
        let (when, value) = (
            attribute(draw),
            draw.one(&["1", "a", "GET", "/"]).to_owned(),
        );
        RateLimitPolicy {
            name: format!("l{n}"),
            unit: match seldom(draw, 3) {
                true => LimitUnit::Concurrent,
                false => LimitUnit::Requests,
            },
            key: (0..draw.0.below(3)).map(|_| attribute(draw)).collect(),
            requests: burst,
            per: secs(1),
            burst,
            matches: (0..draw.0.below(2)).map(|_| draw.alternative()).collect(),
            overrides: (0..draw.0.below(2))
                .map(|_| LimitOverride {
                    when: vec![(when.clone(), value.clone())],
                    requests: 1,
                    per: secs(1),
                    burst: 1,
                })
                .collect(),
            dry_run: seldom(draw, 4),
            answer: LimitAnswer {
                status: [429, 503, 420][draw.0.below(3) as usize],
                ..LimitAnswer::default()
            },
            global: None,
        }
    };
    (0..count).map(|n| limit(n, draw)).collect()
}

fn actions(draw: &mut Draw) -> Actions {
    let whole = |draw: &mut Draw| Fraction {
        numerator: draw.0.below(2),
        denominator: 1,
    };
    let path = |draw: &mut Draw| match draw.0.below(3) {
        0 => Some(PathRewrite::Full("/f".to_owned())),
        1 => Some(PathRewrite::Prefix("/p".to_owned())),
        _ => None,
    };
    let terminal = match draw.0.below(12) {
        0 => Some(Terminal::Redirect(Redirect {
            scheme: None,
            hostname: None,
            port: None,
            path: path(draw),
            status: 302,
        })),
        1 => Some(Terminal::Respond(DirectResponse {
            status: 418,
            headers: Vec::new(),
            body: "x".to_owned(),
        })),
        2 => Some(Terminal::Broken("nobody knows".to_owned())),
        _ => None,
    };
    let fault = seldom(draw, 4).then(|| Fault {
        delay: seldom(draw, 2).then(|| (whole(draw), secs(1))),
        abort: seldom(draw, 2).then(|| {
            let status = match draw.0.below(3) {
                0 => AbortStatus::Grpc(14),
                _ => AbortStatus::Http(500),
            };
            (whole(draw), status)
        }),
    });
    Actions {
        terminal,
        fault,
        rewrite: seldom(draw, 4).then(|| Rewrite {
            hostname: Some("other".to_owned()),
            path: path(draw),
        }),
        cors: seldom(draw, 4).then(|| Cors {
            allow_origins: vec![draw.one(&["*", "http://a.example"]).to_owned()],
            allow_methods: vec!["GET".to_owned()],
            ..Cors::default()
        }),
        mirrors: (0..draw.0.below(5) / 3)
            .map(|_| Mirror {
                target: target(draw),
                fraction: Fraction::ALL,
                compare: false,
            })
            .collect(),
        ..Actions::default()
    }
}

fn target(draw: &mut Draw) -> Target {
    let weight = draw.0.below(4);
    let mut target = match draw.0.below(10) {
        0 => Target {
            select: Select::Endpoints(vec![
                ([10, 0, 1, 1], 8080).into(),
                ([10, 0, 9, 9], 8080).into(),
            ]),
            ..Target::default()
        },
        1 => Target {
            select: Select::Invalid("no such service".to_owned()),
            ..Target::default()
        },
        2 => Target {
            select: Select::Tags(tags(&[("version", "v1")])),
            ..Target::default()
        },
        3 => Target::default(),
        4 => to("empty", 1),
        5 | 6 => to("v1", 1),
        _ => to("v2", 1),
    };
    // One that is not there, too.
    target.backend = seldom(draw, 4).then(|| Backend {
        service: 1,
        port: if seldom(draw, 6) { 99 } else { 81 },
    });
    target.actions = seldom(draw, 8).then(|| {
        Box::new(Actions {
            terminal: None,
            ..actions(draw)
        })
    });
    target.weight = weight;
    target
}

fn extra(draw: &mut Draw) -> RuleExtra {
    RuleExtra {
        actions: if seldom(draw, 2) {
            actions(draw)
        } else {
            Actions::default()
        },
        rate_limits: limits(draw),
        sticky: seldom(draw, 3).then(|| Sticky {
            key: (0..=draw.0.below(2)).map(|_| attribute(draw)).collect(),
            salt: "s".to_owned(),
        }),
        persistence: seldom(draw, 3).then(|| Persistence {
            name: "sid".to_owned(),
            carrier: match draw.0.below(3) {
                0 => SessionCarrier::Header,
                1 => SessionCarrier::SessionCookie,
                _ => SessionCarrier::PermanentCookie,
            },
            absolute: seldom(draw, 2).then(|| secs(30)),
            idle: seldom(draw, 3).then(|| secs(10)),
            salt: "s".to_owned(),
        }),
        ..RuleExtra::default()
    }
}

fn policies(draw: &mut Draw) -> Vec<Policy> {
    let mut all = Vec::new();
    for service in 0..2 {
        for version in [None, Some("v1")] {
            if seldom(draw, 3) {
                continue;
            }
            let algorithm = [
                Balance::LeastRequest,
                Balance::RoundRobin,
                Balance::Random,
                Balance::PeakEwma,
                Balance::RingHash,
                Balance::Maglev,
            ][draw.0.below(6) as usize];
            let panic_threshold = (seldom(draw, 3)).then_some(60);
            all.push(Policy {
                service,
                version: version.map(str::to_owned),
                rate_limits: limits(draw),
                balance: seldom(draw, 2).then(|| BalancePolicy {
                    hash: vec![attribute(draw)],
                    table_size: 101,
                    ring_min: 64,
                    panic_threshold,
                    ..BalancePolicy::from(algorithm)
                }),
                breaker: seldom(draw, 3).then(|| BreakerPolicy {
                    max_requests: draw.0.below(4),
                    ..BreakerPolicy::default()
                }),
                ejection: seldom(draw, 2).then(|| EjectionPolicy {
                    consecutive_5xx: 1,
                    max_percent: 100,
                    ..EjectionPolicy::default()
                }),
                ..policy()
            });
        }
    }
    all
}

fn endpoints(draw: &mut Draw, service: &mut Service, net: u8) {
    service.endpoints = (1..=draw.0.below(7))
        .map(|n| crate::model::Endpoint {
            healthy: !seldom(draw, 5),
            weight: [1, 1, 1, 2, 0][draw.0.below(5) as usize],
            priority: draw.0.below(5) / 4,
            ..endpoint(&format!("10.0.{net}.{n}"), draw.one(&["v1", "v2"]))
        })
        .collect();
    let empty = tags(&[("version", "none")]);
    service.versions.insert("empty".to_owned(), empty);
}

fn world(draw: &mut Draw) -> Model {
    let mut model = draw.model();
    model.workloads[1].namespace = "other".to_owned();
    let mut other = model.services[0].clone();
    other.name = "other".to_owned();
    other.hostnames = vec!["other".to_owned()];
    other.addresses = vec![[10, 96, 0, 2].into()];
    other.ports = vec![port("http", 81, Protocol::Http)];
    endpoints(draw, &mut other, 2);
    endpoints(draw, &mut model.services[0], 1);
    model.services.push(other);
    for rule in model.rules.iter_mut() {
        for condition in &mut rule.matches {
            if seldom(draw, 6) {
                condition.sni =
                    vec![draw.one(&["a.example", "*.example", "*.a.example"]).into()].into();
            }
            if seldom(draw, 12) {
                *condition = Match {
                    sni: vec![draw.one(&NAMES).to_owned()].into(),
                    ..Match::default()
                };
            }
            if seldom(draw, 12) {
                *condition = Match {
                    source: Some(Box::new(SourceMatch {
                        except_namespaces: vec![draw.one(&["default", "other"]).to_owned()],
                        ..SourceMatch::default()
                    })),
                    ..Match::default()
                };
            }
            if seldom(draw, 12) {
                *condition = Match {
                    headers: vec![("sid".to_owned(), ValueMatch::Present(true))].into(),
                    ..Match::default()
                };
            }
        }
        rule.route = (0..=draw.0.below(3)).map(|_| target(draw)).collect();
        if !seldom(draw, 4) {
            rule.extra = Some(Box::new(extra(draw)));
        }
    }
    model.policies = policies(draw).into();
    model
}

/// What is asked.
#[derive(Debug)]
enum Question {
    Http(Ask),
    Tcp,
    Tls(Option<&'static str>),
}

fn question(draw: &mut Draw, token: Option<&(bool, String)>) -> Question {
    match draw.0.below(10) {
        0 => Question::Tcp,
        1 => Question::Tls(None),
        2 => Question::Tls(Some(NAMES[draw.0.below(4) as usize])),
        n => {
            let mut ask = draw.ask();
            if let Some((cookie, token)) = token.filter(|_| n < 8) {
                ask = match cookie {
                    true => ask.with("cookie", token),
                    false => ask.with("sid", token),
                };
            }
            if n == 9 {
                let (origin, asked) = ("origin", "access-control-request-method");
                ask = ask.method("OPTIONS").with(origin, "http://a.example");
                ask = ask.with(asked, "GET");
            }
            Question::Http(ask)
        }
    }
}

/// How it ended, and what is held until the request's end.
struct Lived {
    plan: Option<Plan>,
    end: End,
    endpoint: Option<Arc<EndpointState>>,
    held: (Verdict, Option<RequestPermit>),
}

#[derive(Debug, PartialEq)]
enum End {
    Refused(Reject, u16),
    Answered(u16, &'static str),
    Forwarded(SocketAddr),
}

/// As `proxy::attempt` and the engines do it.
fn live(
    snapshot: &Snapshot,
    client: Client,
    question: &Question,
    cursors: &mut Cursors,
    rng: &mut Rng,
    now: MonoNanos,
) -> Lived {
    let watch = &mut NoObserver;
    let view = match question {
        Question::Http(ask) => Some(ask.view()),
        Question::Tcp | Question::Tls(_) => None,
    };
    let decided = match (question, &view) {
        (_, Some(view)) => route::decide(snapshot, PORT, client, view, cursors, watch),
        (Question::Tls(name), _) => {
            route::decide_tls(snapshot, PORT, client, *name, cursors, watch)
        }
        _ => route::decide_tcp(snapshot, PORT, client, cursors, watch),
    };
    let mut lived = Lived {
        plan: decided.ok(),
        end: End::Answered(0, ""),
        endpoint: None,
        held: Default::default(),
    };
    let plan = match decided {
        Ok(plan) => plan,
        Err(reject) => {
            lived.end = End::Refused(reject, reject.status());
            return lived;
        }
    };
    let verdict = rate_limit::admit(snapshot, &plan, client, view.as_ref(), now, watch);
    if let Some(reject) = verdict.reject() {
        lived.end = End::Refused(reject, verdict.status(reject));
        return lived;
    }
    lived.held.0 = verdict;
    if let (Some(actions), Some(request)) = (snapshot.actions(&plan), &view) {
        let asked = Asked {
            client,
            request,
            scheme: "http",
            port: 80,
            grpc: false,
        };
        let hit = |share: Fraction| rng.below(share.denominator) < share.numerator;
        match actions.decide(&asked, hit, watch).then {
            Then::Forward => {}
            Then::Answer(answer) => {
                lived.end = End::Answered(answer.status, answer.kind.label());
                return lived;
            }
            Then::Refuse(reject) => {
                lived.end = End::Refused(reject, reject.status());
                return lived;
            }
        }
    }
    let key = balance::key(snapshot, &plan, client, view.as_ref());
    let found = match session::endpoint(snapshot, &plan, now) {
        Some(endpoint) => Ok(endpoint),
        None => balance::pick_by(snapshot, plan.version, key, &[], rng, now),
    };
    let admitted = found.and_then(|endpoint| {
        let permit = snapshot.version(plan.version).breaker.request(&endpoint)?;
        Ok((endpoint, permit))
    });
    match admitted {
        Ok((endpoint, permit)) => {
            lived.end = End::Forwarded(endpoint.address);
            lived.endpoint = Some(endpoint);
            lived.held.1 = Some(permit);
        }
        Err(reject) => lived.end = End::Refused(reject, reject.status()),
    }
    lived
}

/// What a client would send with its next request: whether it is a cookie, and its value.
fn token_of(snapshot: &Snapshot, lived: &Lived, unix_s: u64) -> Option<(bool, String)> {
    let (plan, endpoint) = (lived.plan.as_ref()?, lived.endpoint.as_ref()?);
    let edits = session::answer(snapshot, plan, endpoint, unix_s, false)?;
    let mut fields = HeaderMap::new();
    edits.apply(&mut fields);
    let text = |name: &str| Some(fields.get(name)?.to_str().ok()?.to_owned());
    match text("sid") {
        Some(token) => Some((false, token)),
        None => {
            let cookie = text("set-cookie")?;
            Some((true, cookie.split(';').next()?.to_owned()))
        }
    }
}

/// Some endpoints are out: sick, or ejected.
fn disturb(snapshot: &Snapshot, draw: &mut Draw, now: MonoNanos) {
    for (ix, version) in snapshot.versions.entries() {
        for endpoint in &version.endpoints {
            match draw.0.below(12) {
                0 => {
                    let sick = Finding {
                        sick: true,
                        last: CheckResult::Timeout,
                    };
                    endpoint.live.set_health(Some(sick), now);
                }
                1 => {
                    let version = super::super::VersionIx(ix);
                    snapshot.record(version, endpoint, Outcome::Reset, None, now);
                }
                2 => drop(endpoint.live.set_health(None, now)),
                3 => drop(endpoint.live.uneject(now)),
                _ => {}
            }
        }
    }
}

fn explained(
    snapshot: &Snapshot,
    client: Client,
    question: &Question,
    cursors: &Cursors,
    now: MonoNanos,
) -> Explanation {
    match question {
        Question::Http(ask) => explain(snapshot, PORT, client, &ask.view(), cursors, now),
        Question::Tcp => explain_tcp(snapshot, PORT, client, cursors, now),
        Question::Tls(name) => explain_tls(snapshot, PORT, client, *name, cursors, now),
    }
}

fn assert_same(why: &Explanation, lived: &Lived, place: &dyn Fn() -> String) {
    assert_eq!(why.plan, lived.plan, "{}", place());
    if let Some(plan) = &lived.plan {
        assert_eq!(why.rule_ix, plan.rule, "{}", place());
    }
    match (&why.outcome, &lived.end) {
        (Fate::Refused { reject, status, .. }, End::Refused(live, live_status)) => {
            assert_eq!((reject, status), (live, live_status), "{}", place());
        }
        (Fate::Answered { status, by }, End::Answered(live, kind)) => {
            assert_eq!((status, by), (live, kind), "{}", place());
        }
        (Fate::Forwarded { to }, End::Forwarded(address)) => {
            assert!(to.contains(address), "{address} of {to:?}: {}", place());
        }
        (told, live) => panic!("told {told:?}, lived {live:?}: {}", place()),
    }
}

/// Without it: `mesh explain` tells a story that did not happen.
#[test]
fn explained_decision_is_the_live_one_in_ten_thousand_pairs() {
    const CASES: u64 = 300;
    const ASKS: u64 = 40;
    let mut seen = std::collections::BTreeMap::new();
    for seed in 1..=CASES {
        let mut draw = Draw(Rng::new(seed));
        let model = world(&mut draw);
        let snapshot = compile(model.clone());
        snapshot.enforce();
        let (mut cursors, mut rng) = (Cursors::default(), Rng::new(seed));
        let (mut token, mut held) = (None, Vec::new());
        let mut ms = 1_000;
        for number in 0..ASKS {
            ms += u64::from(draw.0.below(300));
            if seldom(&mut draw, 6) {
                ms += 8_000;
                disturb(&snapshot, &mut draw, at_ms(ms));
            }
            let unix_s = 1_000 + ms / 1_000;
            let workload = model.workloads.get(draw.0.below(4) as usize);
            let source: Option<SourceIx> = workload.and_then(|one| snapshot.source(&one.key()));
            let client = Client {
                source,
                address: Some(IpAddr::from([10, 9, 0, draw.0.below(3) as u8])),
                unix_s,
            };
            let question = question(&mut draw, token.as_ref());
            let now = at_ms(ms);
            let why = explained(&snapshot, client, &question, &cursors, now);
            let again = explained(&snapshot, client, &question, &cursors, now);
            let lived = live(&snapshot, client, &question, &mut cursors, &mut rng, now);
            let place = || format!("seed {seed}, request {number}: {question:?} of {client:?}");
            assert_eq!(why, again, "something is spent: {}", place());
            assert_same(&why, &lived, &place);
            let kind = match &lived.end {
                End::Refused(reject, _) => format!("{reject:?}"),
                End::Answered(_, by) => (*by).to_owned(),
                End::Forwarded(_) => "forwarded".to_owned(),
            };
            *seen.entry(kind).or_insert(0) += 1;
            let resumed = lived.plan.is_some_and(|plan| plan.session.is_some());
            *seen.entry("session".to_owned()).or_insert(0) += u32::from(resumed);
            let keyed = why.chosen_by.is_some();
            *seen.entry("chosen by".to_owned()).or_insert(0) += u32::from(keyed);
            token = token_of(&snapshot, &lived, unix_s).or(token);
            if seldom(&mut draw, 3) {
                held.push(lived.held);
            } else if seldom(&mut draw, 3) {
                held.clear();
            }
        }
    }
    println!("{} pairs, seeds 1 to {CASES}: {seen:?}", CASES * ASKS);
    // Nothing of it is left out by chance.
    for kind in [
        "forwarded",
        "session",
        "chosen by",
        "abort",
        "cors_preflight",
        "redirect",
        "respond",
        "NoRoute",
        "NoWeight",
        "NoEndpoint",
        "NoHealthyEndpoint",
        "InvalidBackend",
        "RateLimited",
        "OverflowRequests",
        "FilterUnresolved",
    ] {
        let count = seen.get(kind).copied().unwrap_or(0);
        assert!(count >= 20, "{kind}: {count} of {seen:?}");
    }
}
