use std::time::Duration;

use super::*;
use crate::{
    clock::MonoNanos,
    model::{Model, RuleExtra, Target},
    policy::{
        Client, NoObserver, Reject,
        fixture::{self, Ask, PORT, get, service, to},
        route,
        snapshot::Outcome,
        split::Cursors,
    },
};

const T0: u64 = 1_700_000_000;

fn settings(carrier: SessionCarrier) -> Persistence {
    Persistence {
        name: "sid".to_owned(),
        carrier,
        absolute: None,
        idle: None,
        salt: "pepper".to_owned(),
    }
}

fn model(persistence: Persistence, route: Vec<Target>) -> Model {
    let mut rule = fixture::rule("r", 0, Vec::new(), route);
    rule.extra = Some(Box::new(RuleExtra {
        persistence: Some(persistence),
        ..RuleExtra::default()
    }));
    fixture::model(service(2, 2), vec![rule], Vec::new())
}

fn snapshot(persistence: Persistence, weights: [u32; 2]) -> Snapshot {
    let route = vec![to("v1", weights[0]), to("v2", weights[1])];
    fixture::compile(model(persistence, route))
}

fn plan_at(snapshot: &Snapshot, ask: &Ask, unix_s: u64) -> Result<Plan, Reject> {
    let client = Client {
        unix_s,
        ..Client::default()
    };
    let mut cursors = Cursors::default();
    route::decide(
        snapshot,
        PORT,
        client,
        &ask.view(),
        &mut cursors,
        &mut NoObserver,
    )
}

/// The fields of the answer of endpoint `at` of the plan's version.
fn fields(snapshot: &Snapshot, plan: &Plan, at: usize, unix_s: u64) -> Vec<String> {
    let endpoint = &snapshot.version(plan.version).endpoints[at];
    let edits = answer(snapshot, plan, endpoint, unix_s, false).unwrap_or_default();
    let field =
        |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
    edits.added().map(field).collect()
}

/// The token that the second endpoint of v2 gives at `T0`.
fn token_of_v2(persistence: &Persistence) -> String {
    let snapshot = snapshot(persistence.clone(), [0, 1]);
    let plan = plan_at(&snapshot, &get("/"), T0).unwrap();
    let fields = fields(&snapshot, &plan, 1, T0);
    let value = fields[0].split_once(": ").unwrap().1;
    let value = value.strip_prefix("sid=").unwrap_or(value);
    value.split(';').next().unwrap().to_owned()
}

fn with_token(persistence: &Persistence, token: &str) -> Ask {
    match persistence.carrier {
        SessionCarrier::Header => get("/").with("sid", token),
        _ => get("/").with("cookie", &format!("a=b; sid={token}")),
    }
}

fn resumed(snapshot: &Snapshot, ask: &Ask, unix_s: u64) -> Option<String> {
    let plan = plan_at(snapshot, ask, unix_s).unwrap();
    let endpoint = endpoint(snapshot, &plan, MonoNanos(0))?;
    Some(endpoint.address.ip().to_string())
}

#[test]
fn session_stays_at_its_endpoint_across_weights_even_0() {
    for carrier in [SessionCarrier::SessionCookie, SessionCarrier::Header] {
        let settings = settings(carrier);
        let ask = with_token(&settings, &token_of_v2(&settings));
        for weights in [[50, 50], [99, 1], [1, 0], [0, 0]] {
            let snapshot = snapshot(settings.clone(), weights);
            let at = resumed(&snapshot, &ask, T0 + 5);
            assert_eq!(at.as_deref(), Some("10.0.2.2"), "{carrier:?} {weights:?}");
        }
    }
}

#[test]
fn session_takes_no_turn_from_the_split() {
    let settings = settings(SessionCarrier::Header);
    let ask = with_token(&settings, &token_of_v2(&settings));
    let snapshot = snapshot(settings, [1, 1]);
    let mut cursors = Cursors::default();
    let mut new = Vec::new();
    for _ in 0..4 {
        fixture::decide(&snapshot, None, &ask.view(), &mut cursors).unwrap();
        let plan = fixture::decide(&snapshot, None, &get("/").view(), &mut cursors).unwrap();
        new.push(plan.target);
    }
    assert_eq!(new, [0, 1, 0, 1]);
}

#[test]
fn session_is_begun_anew_when_its_endpoint_is_gone_unready_or_ejected() {
    let settings = settings(SessionCarrier::Header);
    let ask = with_token(&settings, &token_of_v2(&settings));
    let route = || vec![to("v1", 1), to("v2", 1)];

    let mut gone = model(settings.clone(), route());
    gone.services[0].endpoints.pop();
    assert_eq!(resumed(&fixture::compile(gone), &ask, T0), None);

    let mut unready = model(settings.clone(), route());
    unready.services[0].endpoints[3].healthy = false;
    assert_eq!(resumed(&fixture::compile(unready), &ask, T0), None);

    let mut ejecting = model(settings, route());
    ejecting.policies = vec![crate::model::Policy {
        ejection: Some(crate::model::EjectionPolicy {
            consecutive_5xx: 1,
            max_percent: 100,
            ..Default::default()
        }),
        ..Default::default()
    }]
    .into();
    let snapshot = fixture::compile(ejecting);
    assert!(resumed(&snapshot, &ask, T0).is_some());
    let plan = plan_at(&snapshot, &ask, T0).unwrap();
    let state = &snapshot.version(plan.version).endpoints[1];
    let change = snapshot.record(
        plan.version,
        state,
        Outcome::Status(500),
        None,
        MonoNanos(1),
    );
    assert!(change.is_some());
    assert_eq!(resumed(&snapshot, &ask, T0), None);
}

#[test]
fn session_ends_at_its_absolute_and_idle_time_outs() {
    let settings = Persistence {
        absolute: Some(Duration::from_secs(100)),
        idle: Some(Duration::from_secs(10)),
        ..settings(SessionCarrier::Header)
    };
    let snapshot = snapshot(settings.clone(), [1, 1]);
    let mut token = token_of_v2(&settings);
    assert!(resumed(&snapshot, &with_token(&settings, &token), T0 + 9).is_some());
    assert!(resumed(&snapshot, &with_token(&settings, &token), T0 + 10).is_none());
    // Used every 9 seconds it lasts until the absolute end.
    let mut now = T0;
    while now + 9 < T0 + 100 {
        now += 9;
        let ask = with_token(&settings, &token);
        let plan = plan_at(&snapshot, &ask, now).unwrap();
        assert!(plan.session.is_some(), "{}", now - T0);
        let field = &fields(&snapshot, &plan, 1, now)[0];
        token = field.split_once(": ").unwrap().1.to_owned();
    }
    assert_eq!(now, T0 + 99);
    let ask = with_token(&settings, &token);
    assert!(resumed(&snapshot, &ask, T0 + 99).is_some());
    assert!(resumed(&snapshot, &ask, T0 + 100).is_none());
}

#[test]
fn session_is_told_once_and_again_when_the_endpoint_changes() {
    let settings = settings(SessionCarrier::SessionCookie);
    let snapshot = snapshot(settings.clone(), [0, 1]);
    let ask = with_token(&settings, &token_of_v2(&settings));
    let plan = plan_at(&snapshot, &ask, T0).unwrap();
    assert!(fields(&snapshot, &plan, 1, T0 + 1).is_empty());
    // A retry went elsewhere.
    assert_eq!(fields(&snapshot, &plan, 0, T0 + 1).len(), 1);
}

#[test]
fn session_cookie_has_the_attributes_that_are_written_down() {
    let of = |settings: &Persistence, secure: bool| {
        let snapshot = snapshot(settings.clone(), [0, 1]);
        let plan = plan_at(&snapshot, &get("/"), T0).unwrap();
        let endpoint = &snapshot.version(plan.version).endpoints[1];
        let edits = answer(&snapshot, &plan, endpoint, T0, secure).unwrap();
        let (name, value) = edits.added().next().unwrap();
        assert_eq!(name, "set-cookie");
        let (token, attributes) = value.to_str().unwrap().split_once("; ").unwrap();
        assert!(token.starts_with("sid="));
        attributes.to_owned()
    };
    let session = settings(SessionCarrier::SessionCookie);
    assert_eq!(of(&session, false), "Path=/; HttpOnly");
    assert_eq!(of(&session, true), "Path=/; HttpOnly; Secure");
    let permanent = Persistence {
        absolute: Some(Duration::from_secs(3600)),
        ..settings(SessionCarrier::PermanentCookie)
    };
    assert_eq!(of(&permanent, false), "Path=/; HttpOnly; Max-Age=3600");
}

#[test]
fn session_token_shows_no_address_and_a_forged_one_is_ignored() {
    let settings = settings(SessionCarrier::Header);
    let token = token_of_v2(&settings);
    let address = [10, 0, 2, 2].map(|byte: u8| format!("{byte:02x}")).concat();
    assert!(!token.contains(&address) && !token.contains("10.0.2.2"));
    let snapshot = snapshot(settings.clone(), [1, 1]);
    for forged in [
        "",
        "x",
        "0",
        &"0".repeat(48),
        &token[..47],
        &format!("{token}0"),
    ] {
        let plan = plan_at(&snapshot, &with_token(&settings, forged), T0).unwrap();
        assert_eq!(plan.session, None, "{forged}");
    }
    // Another salt: another world.
    let other = Persistence {
        salt: "salt".to_owned(),
        ..settings.clone()
    };
    assert_ne!(token_of_v2(&other), token);
    assert_eq!(
        plan_at(&snapshot, &get("/").with("sid", &token_of_v2(&other)), T0)
            .unwrap()
            .session,
        None
    );
}
