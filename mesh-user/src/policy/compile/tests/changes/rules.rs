//! Rules at random.

use super::*;

pub(super) fn new_rule(model: &Model, rng: &mut Rng) -> Rule {
    let mut rule = fixture::rule(&format!("r{}", rng.below(1_000_000)), 0, vec![], vec![]);
    rule.service = rng.below(model.services.len() as u32) as usize;
    rule.precedence = rng.below(3) as i32;
    rule.matches = (0..rng.below(3)).map(|_| condition(rng)).collect();
    rule.route = (0..=rng.below(2)).map(|_| target(model, rng)).collect();
    if rng.below(2) == 0 {
        rule.extra = Some(Box::new(extra(model, rng)));
    }
    rule
}

fn target(model: &Model, rng: &mut Rng) -> Target {
    let services = model.services.len() as u32;
    let own = rng.below(3) > 0;
    let port = if rng.below(4) == 0 { 81 } else { 80 };
    Target {
        select: match rng.below(6) {
            0 => Select::All,
            1 => Select::Tags(tags(&[("version", "v1")])),
            2 => Select::Tags(tags(&[("version", "v3")])),
            3 => Select::Invalid("no such service".to_owned()),
            4 => Select::Endpoints(vec![([10, 4, 0, 1], 8080).into()]),
            _ => Select::Version("v2".to_owned()),
        },
        weight: rng.below(4),
        backend: (!own).then(|| Backend {
            service: rng.below(services) as usize,
            port,
        }),
        ..Target::default()
    }
}

fn condition(rng: &mut Rng) -> Match {
    let n = rng.below(4);
    let mut condition = Match::default();
    match rng.below(5) {
        0 => condition.path = Some(PathMatch::Prefix(format!("/p{n}"))),
        1 => condition.path = Some(PathMatch::Exact(format!("/p{n}/x"))),
        2 => {
            let value = ValueMatch::Exact(format!("u{n}"));
            condition.headers = vec![("x-user".to_owned(), value)].into();
        }
        3 => {
            condition.source = Some(Box::new(SourceMatch {
                tags: tags(&[("app", ["a", "b"][n as usize % 2])]),
                ..SourceMatch::default()
            }));
        }
        _ => {}
    }
    condition
}

/// A limit of this node, or of a store that may be there or not.
pub(super) fn limit(rng: &mut Rng) -> RateLimitPolicy {
    RateLimitPolicy {
        name: "each".to_owned(),
        requests: 1 + u64::from(rng.below(5)),
        per: fixture::secs(1),
        burst: 1,
        matches: (0..rng.below(3)).map(|_| condition(rng)).collect(),
        global: (rng.below(3) == 0).then(|| GlobalLimit {
            service: "store".to_owned(),
            ..GlobalLimit::default()
        }),
        ..RateLimitPolicy::default()
    }
}

pub(super) fn extra(model: &Model, rng: &mut Rng) -> RuleExtra {
    let key = |rng: &mut Rng| match rng.below(3) {
        0 => Attribute::Header("x-user".to_owned()),
        1 => Attribute::SourceWorkload,
        _ => Attribute::Path,
    };
    RuleExtra {
        actions: if rng.below(3) > 0 {
            actions(model, rng)
        } else {
            Actions::default()
        },
        timeouts: RuleTimeouts {
            request: (rng.below(2) == 0).then(|| fixture::secs(u64::from(rng.below(3)))),
            backend_request: None,
        },
        retries: (rng.below(3) == 0).then(RetryPolicy::default),
        rate_limits: (0..rng.below(3) / 2).map(|_| limit(rng)).collect(),
        sticky: (rng.below(3) == 0).then(|| Sticky {
            key: vec![key(rng)],
            salt: "s".to_owned(),
        }),
        persistence: (rng.below(2) == 0).then(|| Persistence {
            name: "sid".to_owned(),
            carrier: SessionCarrier::Header,
            absolute: None,
            idle: None,
            salt: "s".to_owned(),
        }),
        origin: None,
    }
}

fn actions(model: &Model, rng: &mut Rng) -> Actions {
    let n = rng.below(3);
    Actions {
        rewrite: (rng.below(2) == 0).then(|| Rewrite {
            hostname: Some(format!("h{n}")),
            path: Some(PathRewrite::Prefix(format!("/new{n}"))),
        }),
        terminal: (rng.below(6) == 0).then(|| {
            Terminal::Respond(DirectResponse {
                status: 200 + n as u16,
                headers: Vec::new(),
                body: String::new(),
            })
        }),
        mirrors: (0..rng.below(3))
            .map(|_| Mirror {
                target: target(model, rng),
                fraction: Fraction::ALL,
                compare: false,
            })
            .collect(),
        ..Actions::default()
    }
}
