//! Actions of rules, sticky splits and sessions on the wire, over HTTP/1.

mod actions;
mod proxy_support;

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use actions::{ANSWERED, Case, DELAY, Want, cases};
use mesh_user::model::{
    Actions, Attribute, Protocol, Rule, RuleExtra, Select, Target, TimeoutPolicy,
    action::{
        AbortStatus, DirectResponse, Fault, Fraction, Persistence, SessionCarrier, Sticky, Terminal,
    },
};
use proxy_support::*;

/// An endpoint that keeps the heads that it sees, and answers 200 `up` with [`ANSWERED`].
fn watched() -> (SocketAddr, Arc<Mutex<Vec<Message>>>) {
    let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
    let own = Arc::clone(&seen);
    let address = http_with(move |request, _| {
        own.lock().unwrap().push(request.clone());
        let fields: String = ANSWERED
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        format!("HTTP/1.1 200 OK\r\n{fields}content-length: 2\r\n\r\nup")
    });
    (address, seen)
}

fn one(address: SocketAddr) -> Plan {
    Plan::new(Protocol::Http).endpoint(address, "v1")
}

fn with_rule(mut plan: Plan, rule: Rule) -> Plan {
    plan.model.rules.push(rule);
    plan
}

/// A rule for everything that goes to v1 and does this.
fn doing(extra: RuleExtra) -> Rule {
    Rule {
        name: "acts".to_owned(),
        route: vec![to("v1", 1)],
        extra: Some(Box::new(extra)),
        ..Rule::default()
    }
}

fn acting(actions: Actions) -> Rule {
    doing(RuleExtra {
        actions,
        ..RuleExtra::default()
    })
}

fn to(version: &str, weight: u32) -> Target {
    Target {
        select: Select::Version(version.to_owned()),
        weight,
        ..Target::default()
    }
}

fn respond(status: u16, body: &str) -> Actions {
    Actions {
        terminal: Some(Terminal::Respond(DirectResponse {
            status,
            headers: Vec::new(),
            body: body.to_owned(),
        })),
        ..Actions::default()
    }
}

fn head_of(case: &Case) -> String {
    let Case {
        method,
        target,
        body,
        ..
    } = case;
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: web\r\n");
    for (name, value) in &case.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head + "\r\n" + body
}

/// The answer; of HEAD without waiting for a body.
fn answer(client: &mut Reader, case: &Case) -> Message {
    if case.method == "HEAD" {
        return client.head().unwrap();
    }
    client.message().unwrap()
}

#[test]
fn actions_of_the_table_are_carried_out_and_keep_the_connection() {
    for case in cases() {
        let name = case.name;
        let (up, seen) = watched();
        let mesh = Mesh::start(with_rule(one(up), case.rule.clone()));
        let port = mesh.address.port().to_string();
        let mut client = Reader::new(mesh.connect());
        let started = Instant::now();
        client.send(head_of(&case));
        let got = answer(&mut client, &case);
        if case.want.counted.contains(&"delay") {
            assert!(started.elapsed() >= DELAY, "{name}");
        }
        check_answer(name, &case.want, &got, &port);
        check_request(name, &case.want, seen.lock().unwrap().first());
        // The next request on the same connection is served.
        client.send("GET /nowhere HTTP/1.1\r\nhost: web\r\n\r\n");
        assert_eq!(client.message().unwrap().status(), 404, "{name}: next");
        check_records(name, &case, &mesh);
    }
}

fn check_answer(name: &str, want: &Want, got: &Message, port: &str) {
    assert_eq!(got.status(), want.status, "{name}: {}", got.head);
    for (field, value) in &want.answer {
        let value = value.map(|value| value.replace("%PORT%", port));
        assert_eq!(got.field(field), value, "{name}: {field}: {}", got.head);
    }
    if let Some(body) = want.body {
        assert_eq!(got.text(), body, "{name}");
    }
}

fn check_request(name: &str, want: &Want, seen: Option<&Message>) {
    let line = seen.and_then(|seen| seen.head.lines().next());
    let target = line.and_then(|line| line.split(' ').nth(1));
    assert_eq!(target, want.target, "{name}");
    let Some(seen) = seen else {
        return;
    };
    assert_eq!(
        seen.field("host").as_deref(),
        Some(want.authority),
        "{name}"
    );
    assert!(seen.field("x-request-id").is_some(), "{name}");
    for (field, value) in &want.request {
        assert_eq!(
            seen.field(field).as_deref(),
            *value,
            "{name}: {field}: {}",
            seen.head
        );
    }
}

fn check_records(name: &str, case: &Case, mesh: &Mesh) {
    eventually("two records", || mesh.records("request").len() == 2);
    let record = &mesh.records("request")[0];
    assert_eq!(record["mesh.flags"], case.want.flags, "{name}");
    assert_eq!(record["mesh.rule"], "acts", "{name}");
    // What was asked, not what was made of it.
    let asked = case.target.split('?').next().unwrap();
    assert_eq!(record["url.path"], asked, "{name}");
    assert_eq!(record["server.address"], "web", "{name}");
    for kind in ["delay", "abort", "cors_preflight", "redirect", "respond"] {
        let label = format!("kind=\"{kind}\"");
        let want = f64::from(u8::from(case.want.counted.contains(&kind)));
        let count = mesh.metric(&["mesh_actions_total", &label]);
        assert_eq!(count, Some(want), "{name}: {kind}");
    }
}

#[test]
fn direct_response_with_a_body_that_is_still_to_come_closes_after_the_answer() {
    let (up, _) = watched();
    let mesh = Mesh::start(with_rule(one(up), acting(respond(200, "ok"))));
    let mut client = Reader::new(mesh.connect());
    client.send("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 100\r\n\r\nnot all");
    let got = client.message().unwrap();
    assert_eq!((got.status(), got.text().as_str()), (200, "ok"));
    assert_eq!(got.field("connection").as_deref(), Some("close"));
    assert!(client.is_closed());
}

#[test]
fn direct_response_to_http_1_0_says_what_becomes_of_the_connection() {
    let (up, _) = watched();
    let mesh = Mesh::start(with_rule(one(up), acting(respond(200, "ok"))));
    let mut client = Reader::new(mesh.connect());
    client.send("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    let got = client.message().unwrap();
    assert_eq!(got.field("connection").as_deref(), Some("keep-alive"));
    client.send("GET / HTTP/1.0\r\n\r\n");
    let got = client.message().unwrap();
    assert_eq!(got.field("connection").as_deref(), Some("close"));
    assert!(client.is_closed());
}

/// A rewrite to what can't stand in a request line is refused: nothing of it reaches an endpoint.
#[test]
fn rewrite_that_would_split_a_request_is_refused() {
    use mesh_user::model::action::{PathRewrite, Rewrite};
    let (up, seen) = watched();
    let paths = [
        "/a b",
        "/x HTTP/1.1\r\nx-evil: 1\r\n\r\n",
        "a",
        "/\u{e4}",
        "/a?b",
        "/a#b",
    ];
    let paths = paths.map(|path| (Some(PathRewrite::Full(path.to_owned())), None));
    let hosts = ["a\r\nx-evil: 1", "a b", ""].map(|host| (None, Some(host.to_owned())));
    for (path, hostname) in paths.into_iter().chain(hosts) {
        let name = format!("{path:?} {hostname:?}");
        let actions = Actions {
            rewrite: Some(Rewrite { hostname, path }),
            ..Actions::default()
        };
        let mesh = Mesh::start(with_rule(one(up), acting(actions)));
        let mut client = Reader::new(mesh.connect());
        for _ in 0..2 {
            let got = client.send(GET).message().unwrap();
            assert_eq!(got.status(), 500, "{name}");
            let reject = got.field("x-mesh-reject");
            assert_eq!(reject.as_deref(), Some("filter_unresolved"), "{name}");
        }
    }
    assert!(seen.lock().unwrap().is_empty());
}

/// An answer of the rule's own ends its limits as a forwarded request does.
#[test]
fn direct_response_is_told_with_its_version_and_the_dry_run_of_its_limits() {
    let (up, _) = watched();
    let plan = one(up).policy(|policy| {
        policy.rate_limits = vec![mesh_user::model::RateLimitPolicy {
            name: "trial".into(),
            requests: 1,
            per: Duration::from_secs(3_600),
            burst: 1,
            dry_run: true,
            ..Default::default()
        }];
    });
    let mesh = Mesh::start(with_rule(plan, acting(respond(200, "ok"))));
    let mut client = Reader::new(mesh.connect());
    for _ in 0..2 {
        assert_eq!(client.send(GET).message().unwrap().status(), 200);
    }
    eventually("the records", || mesh.records("request").len() == 2);
    let records = mesh.records("request");
    let told = |at: usize| records[at]["mesh.rate_limit_dry_run"].as_str();
    assert_eq!((told(0), told(1)), (None, Some("trial")));
    assert_eq!(records[1]["mesh.version"], "*");
}

fn delay(time: Duration) -> Actions {
    Actions {
        fault: Some(Fault {
            delay: Some((Fraction::ALL, time)),
            abort: None,
        }),
        ..Actions::default()
    }
}

#[test]
fn fault_delay_holds_no_permit_of_the_breaker() {
    let (up, _) = watched();
    let plan = one(up).breaker(|breaker| breaker.max_requests = 1);
    let pause = Duration::from_millis(300);
    let mesh = Mesh::start(with_rule(plan, acting(delay(pause))));
    let mut clients: Vec<Reader> = (0..4).map(|_| Reader::new(mesh.connect())).collect();
    let started = Instant::now();
    for client in &mut clients {
        client.send(GET);
    }
    for client in &mut clients {
        let status = client.message().unwrap().status();
        // Had one of them held the permit, the others would have been refused at once. Together at
        // the end of the pause they may meet the cap.
        assert!(matches!(status, 200 | 503), "{status}");
        assert!(started.elapsed() >= pause);
    }
}

#[test]
fn fault_delay_is_not_counted_by_the_request_time_out() {
    let (up, _) = watched();
    let plan = one(up).policy(|policy| {
        policy.timeouts = TimeoutPolicy {
            request: Some(Duration::from_millis(100)),
            ..TimeoutPolicy::default()
        };
    });
    let mesh = Mesh::start(with_rule(plan, acting(delay(Duration::from_millis(250)))));
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.send(GET).message().unwrap().status(), 200);
}

#[test]
fn fault_delay_ends_when_the_client_goes() {
    let (up, seen) = watched();
    let post = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 9\r\n\r\n";
    // Its end is seen behind a body as well, also one that comes in pieces.
    for (request, body) in [(GET, ""), (post, "whole now"), (post, "half")] {
        let mesh = Mesh::start(with_rule(one(up), acting(delay(Duration::from_secs(60)))));
        let mut client = Reader::new(mesh.connect());
        client.send(request);
        client.send(body);
        drop(client);
        eventually("the record", || mesh.records("request").len() == 1);
        let record = &mesh.records("request")[0];
        assert_eq!(record["mesh.flags"], "DI,DC", "{request}{body}");
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn fault_abort_share_is_met_on_the_wire() {
    let (up, _) = watched();
    let actions = Actions {
        fault: Some(Fault {
            delay: None,
            abort: Some((
                Fraction {
                    numerator: 1,
                    denominator: 4,
                },
                AbortStatus::Http(503),
            )),
        }),
        ..Actions::default()
    };
    let mesh = Mesh::start(with_rule(one(up), acting(actions)));
    let mut client = Reader::new(mesh.connect());
    let aborted = (0..1000)
        .filter(|_| client.send(GET).message().unwrap().status() == 503)
        .count();
    // 4 sigma of 1,000 at 25 %: 55.
    assert!((195..=305).contains(&aborted), "{aborted}");
}

fn canary_of(plan: Plan, extra: RuleExtra, weights: [u32; 2]) -> Plan {
    let mut rule = doing(extra);
    rule.route = vec![to("v1", weights[0]), to("v2", weights[1])];
    with_rule(plan, rule)
}

#[test]
fn sticky_canary_keeps_its_users_while_the_weight_rises() {
    let sticky = || RuleExtra {
        sticky: Some(Sticky {
            key: vec![Attribute::Cookie("user".to_owned())],
            salt: "canary".to_owned(),
        }),
        ..RuleExtra::default()
    };
    let (v1, v2) = (http("v1"), http("v2"));
    let at = |weights| {
        let plan = Plan::new(Protocol::Http)
            .endpoint(v1, "v1")
            .endpoint(v2, "v2");
        canary_of(plan, sticky(), weights)
    };
    let mesh = Mesh::with(at([90, 10]), 2, |_| {});
    let ask = || -> Vec<String> {
        (0..200)
            .map(|user| {
                // Each on its own connection: any worker decides alike.
                let mut client = Reader::new(mesh.connect());
                client.send(format!(
                    "GET / HTTP/1.1\r\nhost: web\r\ncookie: a=b; user={user}\r\n\r\n"
                ));
                client.message().unwrap().text()
            })
            .collect()
    };
    let before = ask();
    assert_eq!(before, ask());
    mesh.swap(at([60, 40]));
    let after = ask();
    for (before, after) in before.iter().zip(&after) {
        assert!(before == "v1" || after == "v2", "a user left the canary");
    }
    let canaries = |all: &[String]| all.iter().filter(|version| *version == "v2").count();
    assert!(
        (7..=33).contains(&canaries(&before)),
        "{}",
        canaries(&before)
    );
    assert!(
        (52..=108).contains(&canaries(&after)),
        "{}",
        canaries(&after)
    );
}

#[test]
fn sticky_by_client_address_holds_for_opaque_connections() {
    let says = |name: &'static str| {
        endpoint(move |mut stream| {
            let _gone = stream.write_all(name.as_bytes());
        })
    };
    let sticky = RuleExtra {
        sticky: Some(Sticky {
            key: vec![Attribute::SourceAddress],
            salt: String::new(),
        }),
        ..RuleExtra::default()
    };
    let plan = Plan::new(Protocol::Tcp)
        .endpoint(says("v1"), "v1")
        .endpoint(says("v2"), "v2");
    let mesh = Mesh::start(canary_of(plan, sticky, [50, 50]));
    let ask = || Reader::new(mesh.connect()).all();
    let first = ask();
    assert_eq!(first.len(), 2);
    for _ in 0..20 {
        assert_eq!(ask(), first);
    }
}

fn session(carrier: SessionCarrier) -> RuleExtra {
    RuleExtra {
        persistence: Some(Persistence {
            name: "sid".to_owned(),
            carrier,
            absolute: None,
            idle: None,
            salt: "s".to_owned(),
        }),
        ..RuleExtra::default()
    }
}

#[test]
fn session_by_cookie_stays_at_its_endpoint_when_the_weight_falls_to_0() {
    let (v1, v2) = (http("v1"), http("v2"));
    let at = |weights| {
        let plan = Plan::new(Protocol::Http)
            .endpoint(v1, "v1")
            .endpoint(v2, "v2");
        canary_of(plan, session(SessionCarrier::SessionCookie), weights)
    };
    let mesh = Mesh::start(at([0, 1]));
    let mut client = Reader::new(mesh.connect());
    let first = client.send(GET).message().unwrap();
    assert_eq!(first.text(), "v2");
    let cookie = first.field("set-cookie").unwrap();
    let pair = cookie.split(';').next().unwrap();
    assert!(
        pair.starts_with("sid=") && cookie.ends_with("; Path=/; HttpOnly"),
        "{cookie}"
    );
    mesh.swap(at([1, 0]));
    for _ in 0..5 {
        client.send(format!(
            "GET / HTTP/1.1\r\nhost: web\r\ncookie: {pair}\r\n\r\n"
        ));
        let got = client.message().unwrap();
        assert_eq!((got.text().as_str(), got.field("set-cookie")), ("v2", None));
    }
    assert_eq!(client.send(GET).message().unwrap().text(), "v1");
}

#[test]
fn session_by_header_begins_anew_when_its_endpoint_is_gone() {
    let (v1, v2) = (http("v1"), nobody());
    let plan = |alive| {
        let second = if alive { http("v2") } else { v2 };
        let plan = Plan::new(Protocol::Http)
            .endpoint(v1, "v1")
            .endpoint(second, "v2");
        canary_of(plan, session(SessionCarrier::Header), [1, 1])
    };
    let mesh = Mesh::start(plan(true));
    let mut client = Reader::new(mesh.connect());
    let token = (0..2)
        .map(|_| client.send(GET).message().unwrap())
        .find(|got| got.text() == "v2")
        .and_then(|got| got.field("sid"))
        .unwrap();
    // Its address is another one now: the session is begun anew.
    mesh.swap(plan(false));
    let got = client
        .send(format!(
            "GET / HTTP/1.1\r\nhost: web\r\nsid: {token}\r\n\r\n"
        ))
        .message()
        .unwrap();
    assert_eq!(got.text(), "v1");
    assert_ne!(got.field("sid").unwrap(), token);
}

#[test]
fn request_of_a_rule_without_actions_passes_byte_for_byte() {
    let (up, seen) = watched();
    let mesh = Mesh::start(one(up).route(Vec::new(), &[("v1", 1)]));
    let head = "GET /a?b HTTP/1.1\r\nhost: web\r\nX-Case: Kept\r\nx-request-id: 1\r\n\r\n";
    let mut client = Reader::new(mesh.connect());
    client.send(head).message().unwrap();
    assert_eq!(seen.lock().unwrap()[0].head, head.trim_end());
}

#[test]
fn target_of_another_service_is_served_by_its_endpoints() {
    let mut plan = one(http("own"));
    let mut other = plan.model.services[0].clone();
    other.name = "other".to_owned();
    other.ports[0].number = 81;
    other.endpoints.clear();
    plan.model.services.push(other);
    let address = http("other");
    plan.model.services[1]
        .endpoints
        .push(mesh_user::model::Endpoint {
            address: address.ip(),
            ports: [("main".to_owned(), address.port())].into(),
            ..Default::default()
        });
    let backend = Some(mesh_user::model::Backend {
        service: 1,
        port: 81,
    });
    let mut rule = doing(RuleExtra::default());
    rule.route = vec![Target {
        backend,
        ..Target::default()
    }];
    let mesh = Mesh::start(with_rule(plan, rule));
    let mut client = Reader::new(mesh.connect());
    assert_eq!(client.send(GET).message().unwrap().text(), "other");
}
