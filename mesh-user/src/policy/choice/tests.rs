//! Targets of every kind, and what a rule's shares come to.

use std::net::SocketAddr;

use crate::{
    model::{Backend, Model, Rule, RuleExtra, Select, Target, action::Sticky},
    policy::{
        PortIx, Reject, Snapshot,
        fixture::{self, endpoint, get, port, rule, service, to},
        route::Plan,
        split::Cursors,
    },
};

fn of(select: Select, backend: Option<Backend>) -> Target {
    Target {
        select,
        weight: 1,
        backend,
        ..Target::default()
    }
}

/// `web`, and `other` with one endpoint and two ports.
fn two(route: Vec<Target>) -> Snapshot {
    let mut other = service(0, 0);
    other.name = "other".to_owned();
    other.addresses = vec!["10.96.0.2".parse().unwrap()];
    other.ports = vec![
        port("one", 81, crate::model::Protocol::Http),
        port("two", 82, crate::model::Protocol::Http),
    ];
    other.ports[1].target = 9082;
    other.endpoints = vec![endpoint("10.2.0.1", "v1")];
    let model = Model {
        services: vec![service(2, 1), other].into(),
        rules: vec![rule("r", 0, Vec::new(), route)].into(),
        ..Model::default()
    };
    fixture::compile(model)
}

fn next(snapshot: &Snapshot, cursors: &mut Cursors) -> Result<Plan, Reject> {
    fixture::decide(snapshot, None, &get("/").view(), cursors)
}

fn addresses(snapshot: &Snapshot, plan: &Plan) -> Vec<SocketAddr> {
    let endpoints = snapshot.version(plan.version).endpoints.iter();
    endpoints.map(|endpoint| endpoint.address).collect()
}

#[test]
fn target_of_another_service_leads_to_that_port_and_its_endpoints() {
    let backend = |service, port| Some(Backend { service, port });
    let snapshot = two(vec![of(Select::All, backend(1, 82))]);
    let plan = next(&snapshot, &mut Cursors::default()).unwrap();
    assert_eq!(
        addresses(&snapshot, &plan),
        ["10.2.0.1:9082".parse().unwrap()]
    );
    let to = snapshot.version(plan.version).port;
    assert_eq!((snapshot.port(to).number, plan.port), (82, PortIx(0)));
}

#[test]
fn target_of_explicit_endpoints_has_those_alone() {
    let wanted: Vec<SocketAddr> = vec![
        "10.0.1.2:8080".parse().unwrap(),
        "10.9.9.9:1".parse().unwrap(),
    ];
    let snapshot = two(vec![of(Select::Endpoints(wanted.clone()), None)]);
    let plan = next(&snapshot, &mut Cursors::default()).unwrap();
    assert_eq!(addresses(&snapshot, &plan), wanted[..1]);
}

#[test]
fn target_that_is_not_there_gets_its_share_of_500_and_the_rest_works() {
    let nowhere = || Select::Invalid("no such service".to_owned());
    for gone in [
        of(nowhere(), None),
        of(
            Select::All,
            Some(Backend {
                service: 1,
                port: 99,
            }),
        ),
        of(
            Select::All,
            Some(Backend {
                service: 9,
                port: 80,
            }),
        ),
    ] {
        let snapshot = two(vec![gone.clone(), to("v1", 3)]);
        let mut cursors = Cursors::default();
        let outcomes: Vec<_> = (0..8).map(|_| next(&snapshot, &mut cursors)).collect();
        let refused = outcomes
            .iter()
            .filter(|one| **one == Err(Reject::InvalidBackend));
        assert_eq!(refused.count(), 2);
        assert_eq!(outcomes.iter().filter(|one| one.is_ok()).count(), 6);
        // All of them: 500 for everything.
        let snapshot = two(vec![gone]);
        let mut cursors = Cursors::default();
        assert!((0..4).all(|_| next(&snapshot, &mut cursors) == Err(Reject::InvalidBackend)));
    }
    assert_eq!(Reject::InvalidBackend.status(), 500);
}

#[test]
fn sticky_keeps_the_share_of_a_target_that_is_not_there() {
    let mut model = Model {
        services: vec![service(1, 0)].into(),
        ..Model::default()
    };
    let nowhere = of(Select::Invalid("no such service".to_owned()), None);
    model.rules = vec![Rule {
        extra: Some(Box::new(RuleExtra {
            sticky: Some(Sticky {
                key: vec![crate::model::Attribute::Path],
                salt: String::new(),
            }),
            ..RuleExtra::default()
        })),
        ..rule("r", 0, Vec::new(), vec![nowhere, to("v1", 1)])
    }]
    .into();
    let snapshot = fixture::compile(model);
    let mut cursors = Cursors::default();
    let refused = (0..1000)
        .filter(|n| {
            let ask = get(&format!("/{n}"));
            let decided = fixture::decide(&snapshot, None, &ask.view(), &mut cursors);
            decided == Err(Reject::InvalidBackend)
        })
        .count();
    // 4 sigma of 1,000 at one half: 63.
    assert!((437..=563).contains(&refused), "{refused}");
}
