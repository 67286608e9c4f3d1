use std::cell::RefCell;

use super::*;
use crate::{
    model::{
        Actions, Attribute, Model, RuleExtra, Select, Target,
        action::{
            AbortStatus, Cors, DirectResponse, HeaderEdits, Mirror, Redirect, Rewrite, Sticky,
        },
    },
    policy::{
        NoObserver, PortIx,
        explain::{Explanation, Fate, explain},
        fixture::{self, Ask, get, service, to},
        request::HeaderList,
        rng::Rng,
        split::Cursors,
    },
};

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(own).collect()
}

fn set(name: &str, value: &str) -> HeaderEdits {
    HeaderEdits {
        set: pairs(&[(name, value)]),
        ..HeaderEdits::default()
    }
}

fn model_with(actions: Actions, route: Vec<Target>) -> Model {
    let mut rule = fixture::rule("r", 0, Vec::new(), route);
    rule.extra = Some(Box::new(RuleExtra {
        actions,
        ..RuleExtra::default()
    }));
    fixture::model(service(1, 1), vec![rule], Vec::new())
}

fn plan_of(snapshot: &Snapshot, ask: &Ask) -> Result<Plan, Reject> {
    fixture::decide(snapshot, None, &ask.view(), &mut Cursors::default())
}

fn asked<'a>(view: &'a RequestView<'a, HeaderList>, grpc: bool) -> Asked<'a, HeaderList> {
    Asked {
        client: Client::default(),
        request: view,
        scheme: "http",
        port: 80,
        grpc,
    }
}

fn act(actions: Actions, ask: &Ask, hit: impl FnMut(Fraction) -> bool) -> Action {
    let snapshot = fixture::compile(model_with(actions, vec![to("v1", 1)]));
    let plan = plan_of(&snapshot, ask).unwrap();
    let view = ask.view();
    snapshot
        .actions(&plan)
        .unwrap()
        .decide(&asked(&view, false), hit, &mut NoObserver)
}

fn answer(action: Action) -> Answer {
    match action.then {
        Then::Answer(answer) => *answer,
        other => panic!("{other:?}"),
    }
}

const HALF: Fraction = Fraction {
    numerator: 1,
    denominator: 2,
};

#[test]
fn rule_without_actions_has_no_plan() {
    let rule = fixture::rule("r", 0, Vec::new(), vec![to("v1", 1)]);
    let snapshot = fixture::compile(fixture::model(service(1, 1), vec![rule], Vec::new()));
    let plan = plan_of(&snapshot, &get("/")).unwrap();
    assert!(snapshot.actions(&plan).is_none());
}

#[test]
fn actions_of_the_target_come_on_top_of_the_rules() {
    let mut second = to("v2", 1);
    second.actions = Some(Box::new(Actions {
        request_headers: set("x-t", "2"),
        rewrite: Some(Rewrite {
            hostname: Some("second".to_owned()),
            path: None,
        }),
        ..Actions::default()
    }));
    let own = Actions {
        request_headers: set("x-r", "1"),
        rewrite: Some(Rewrite {
            hostname: Some("first".to_owned()),
            path: Some(PathRewrite::Full("/p".to_owned())),
        }),
        ..Actions::default()
    };
    let snapshot = fixture::compile(model_with(own, vec![to("v1", 1), second]));
    let mut cursors = Cursors::default();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let ask = get("/");
        let view = ask.view();
        let plan = fixture::decide(&snapshot, None, &view, &mut cursors).unwrap();
        let action = snapshot.actions(&plan).unwrap().decide(
            &asked(&view, false),
            |_| true,
            &mut NoObserver,
        );
        let edits = action.request.unwrap();
        let names: Vec<String> = edits.added().map(|(name, _)| name.to_string()).collect();
        seen.push((
            action.authority.unwrap().to_string(),
            action.path.unwrap().to_string(),
            names.join(","),
        ));
    }
    seen.sort();
    let row = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(
        seen,
        [row("first", "/p", "x-r"), row("second", "/p", "x-r,x-t")]
    );
}

#[test]
fn fault_is_decided_for_delay_and_abort_on_their_own() {
    let fault = Fault {
        delay: Some((HALF, Duration::from_millis(7))),
        abort: Some((HALF, AbortStatus::Http(503))),
    };
    for (delay, abort) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut hits = [delay, abort].into_iter();
        let actions = Actions {
            fault: Some(fault),
            ..Actions::default()
        };
        let action = act(actions, &get("/"), |_| hits.next().unwrap());
        assert_eq!(action.delay.is_some(), delay);
        match action.then {
            Then::Answer(answer) => assert!(abort && answer.status == 503),
            Then::Forward => assert!(!abort),
            Then::Refuse(reject) => panic!("{reject:?}"),
        }
    }
}

#[test]
fn fault_share_is_met_within_three_sigma() {
    let share = Fraction {
        numerator: 10,
        denominator: 100,
    };
    let actions = Actions {
        fault: Some(Fault {
            delay: None,
            abort: Some((share, AbortStatus::Http(503))),
        }),
        ..Actions::default()
    };
    let snapshot = fixture::compile(model_with(actions, vec![to("v1", 1)]));
    let ask = get("/");
    let (view, plan) = (ask.view(), plan_of(&snapshot, &ask).unwrap());
    let seed = 7;
    let mut rng = Rng::new(seed);
    let count = (0..10_000)
        .filter(|_| {
            let action = snapshot.actions(&plan).unwrap().decide(
                &asked(&view, false),
                |share| rng.below(share.denominator) < share.numerator,
                &mut NoObserver,
            );
            matches!(action.then, Then::Answer(_))
        })
        .count();
    // 3 sigma of 10,000 at 10 %: 90.
    assert!((910..=1090).contains(&count), "{count}, seed {seed}");
}

#[test]
fn fault_comes_before_cors_before_the_rules_own_answer() {
    let everything = || Actions {
        fault: Some(Fault {
            delay: None,
            abort: Some((HALF, AbortStatus::Http(503))),
        }),
        cors: Some(Cors {
            allow_origins: vec!["*".to_owned()],
            ..Cors::default()
        }),
        terminal: Some(Terminal::Respond(DirectResponse {
            status: 200,
            headers: Vec::new(),
            body: "own".to_owned(),
        })),
        ..Actions::default()
    };
    let preflight = get("/")
        .method("OPTIONS")
        .with("origin", "http://a")
        .with("access-control-request-method", "GET");
    let kind = |ask: &Ask, hit: bool| answer(act(everything(), ask, |_| hit)).kind;
    assert_eq!(kind(&preflight, true), Kind::Abort);
    assert_eq!(kind(&preflight, false), Kind::Preflight);
    assert_eq!(kind(&get("/"), false), Kind::Respond);
}

#[test]
fn rule_that_answers_needs_no_target() {
    let redirect = Actions {
        terminal: Some(Terminal::Redirect(Redirect {
            scheme: Some("https".to_owned()),
            hostname: None,
            port: None,
            path: None,
            status: 301,
        })),
        response_headers: set("x-r", "1"),
        ..Actions::default()
    };
    let snapshot = fixture::compile(model_with(redirect, Vec::new()));
    let ask = get("/a?b=c");
    let plan = plan_of(&snapshot, &ask).unwrap();
    let view = ask.view();
    let action =
        snapshot
            .actions(&plan)
            .unwrap()
            .decide(&asked(&view, false), |_| true, &mut NoObserver);
    let answer = answer(action);
    assert_eq!(answer.status, 301);
    assert_eq!(answer.headers["location"], "https://web/a?b=c");
    assert_eq!(answer.headers["x-r"], "1");
    assert_eq!(plan.version, snapshot.port(PortIx(0)).all);
}

#[test]
fn broken_filter_is_refused_and_never_skipped() {
    let broken = Actions {
        terminal: Some(Terminal::Broken("no such filter".to_owned())),
        ..Actions::default()
    };
    let action = act(broken, &get("/"), |_| true);
    assert!(matches!(
        action.then,
        Then::Refuse(Reject::FilterUnresolved)
    ));
    assert_eq!(Reject::FilterUnresolved.status(), 500);
    let nowhere = Actions {
        mirrors: vec![Mirror {
            target: Target {
                select: Select::Invalid("no such service".to_owned()),
                ..Target::default()
            },
            fraction: Fraction::ALL,
            compare: false,
        }],
        ..Actions::default()
    };
    let action = act(nowhere, &get("/"), |_| true);
    assert!(matches!(
        action.then,
        Then::Refuse(Reject::FilterUnresolved)
    ));
}

#[test]
fn mirrors_are_those_whose_share_was_hit() {
    let mirror = |version: &str, fraction| Mirror {
        target: to(version, 0),
        fraction,
        compare: version == "v2",
    };
    let actions = Actions {
        mirrors: vec![mirror("v1", HALF), mirror("v2", Fraction::ALL)],
        ..Actions::default()
    };
    let asked = RefCell::new(Vec::new());
    let action = act(actions, &get("/"), |share| {
        asked.borrow_mut().push(share);
        share == Fraction::ALL
    });
    assert_eq!(*asked.borrow(), [HALF, Fraction::ALL]);
    assert_eq!(action.mirrors.len(), 1);
    assert!(action.mirrors[0].compare);
}

fn explained(snapshot: &Snapshot, ask: &Ask) -> Explanation {
    let now = crate::clock::MonoNanos(0);
    explain(
        snapshot,
        PortIx(0),
        None,
        &ask.view(),
        &Cursors::default(),
        now,
    )
}

#[test]
fn explain_tells_actions_and_what_answers() {
    let own = Actions {
        request_headers: set("x-r", "1"),
        rewrite: Some(Rewrite {
            hostname: None,
            path: Some(PathRewrite::Full("/p".to_owned())),
        }),
        fault: Some(Fault {
            delay: None,
            abort: Some((HALF, AbortStatus::Http(503))),
        }),
        ..Actions::default()
    };
    let why = explained(
        &fixture::compile(model_with(own, vec![to("v1", 1)])),
        &get("/a"),
    );
    let want = [
        "fault: abort with 503 for 50 %",
        "request header x-r = 1",
        "rewrite path to \"/p\"",
    ];
    assert_eq!(why.actions, want);
    assert!(matches!(why.outcome, Fate::Forwarded { .. }));

    let abort = Actions {
        fault: Some(Fault {
            delay: None,
            abort: Some((Fraction::ALL, AbortStatus::Http(503))),
        }),
        ..Actions::default()
    };
    let why = explained(
        &fixture::compile(model_with(abort, vec![to("v1", 1)])),
        &get("/a"),
    );
    let answered = |status, by| Fate::Answered { status, by };
    assert_eq!(why.outcome, answered(503, "abort"));

    let terminal = Actions {
        terminal: Some(Terminal::Respond(DirectResponse {
            status: 418,
            headers: Vec::new(),
            body: String::new(),
        })),
        ..Actions::default()
    };
    let why = explained(
        &fixture::compile(model_with(terminal, Vec::new())),
        &get("/a"),
    );
    assert_eq!((why.outcome, why.next), (answered(418, "respond"), None));
}

#[test]
fn explain_tells_a_sticky_choice_and_routes_show_it_with_the_actions() {
    let mut second = to("v2", 1);
    second.actions = Some(Box::new(Actions {
        rewrite: Some(Rewrite {
            hostname: Some("second".to_owned()),
            path: None,
        }),
        ..Actions::default()
    }));
    let mut model = model_with(
        Actions {
            request_headers: set("x-r", "1"),
            ..Actions::default()
        },
        vec![to("v1", 1), second],
    );
    model.rules[0].extra.as_mut().unwrap().sticky = Some(Sticky {
        key: vec![Attribute::Header("x-user".to_owned())],
        salt: String::new(),
    });
    let snapshot = fixture::compile(model);
    let why = explained(&snapshot, &get("/").with("x-user", "a"));
    assert_eq!(why.chosen_by.as_deref(), Some("hash of header.x-user"));
    assert_eq!(explained(&snapshot, &get("/")).chosen_by, None);
    let row = &snapshot.describe_routes()[0];
    assert_eq!(row.chosen_by, ["hash of header.x-user"]);
    assert_eq!(row.actions, ["request header x-r = 1"]);
    let own = ["request header x-r = 1", "rewrite host to second"];
    assert_eq!(
        (row.targets[0].actions.len(), &row.targets[1].actions[..]),
        (0, &own.map(str::to_owned)[..])
    );
}
