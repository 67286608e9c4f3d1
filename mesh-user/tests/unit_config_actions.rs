//! What rules may do besides choosing a version, as it is written in the file.

use std::time::Duration;

use mesh_user::{
    config::{self, Severity},
    model::{
        Attribute, Backend, Rule, Select,
        action::{AbortStatus, Fraction, PathRewrite, SessionCarrier, Terminal},
    },
};

const HEAD: &str = "\
apiVersion: mesh/v1alpha1
kind: MeshConfig
services:
  - name: a
    addresses: [10.0.0.1]
    versions: {v1: {v: \"1\"}, v2: {v: \"2\"}}
    ports: [{name: web, number: 80, protocol: http}]
    endpoints: [{address: 10.1.0.1, tags: {v: \"1\"}}, {address: 10.1.0.2, tags: {v: \"2\"}}]
  - name: b
    addresses: [10.0.0.2]
    versions: {w: {}}
    ports: [{name: one, number: 81, protocol: http}, {name: two, number: 82, protocol: http}]
    endpoints: [{address: 10.2.0.1}]
  - name: t
    addresses: [10.0.0.3]
    ports: [{name: raw, number: 90, protocol: tcp}]
    endpoints: [{address: 10.3.0.1}]
rules:
";

/// The first line of a rule.
const FIRST: usize = 19;

fn rule(text: &str) -> Rule {
    let text = format!("{HEAD}{text}");
    let config = config::parse("mesh.yaml", &text).expect(&text);
    config.model.rules[0].clone()
}

/// `LINE:COLUMN code field` of each error, lines counted from the rules.
fn errors(text: &str) -> Vec<String> {
    let text = format!("{HEAD}{text}");
    let error = config::parse("mesh.yaml", &text).expect_err(&text);
    error
        .report()
        .problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .map(|p| {
            let line = (p.line + 1).saturating_sub(FIRST);
            format!("{line}:{} {} {}", p.column, p.code.name(), p.field)
        })
        .collect()
}

#[test]
fn header_edits_and_rewrite_are_read_for_rule_and_target() {
    let rule = rule(
        "  - service: a\n\
         \x20   match: {path: {prefix: /foo}}\n\
         \x20   headers: {request: {set: {X-A: \"1\"}, add: {x-b: \"2\"}, remove: X-C}}\n\
         \x20   rewrite: {authority: \"other:81\", prefix: /bar}\n\
         \x20   route: [{version: v1, headers: {response: {remove: [server]}}, rewrite: {path: /x}}]\n",
    );
    let actions = &rule.extra().actions;
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(actions.request_headers.set, [pair("x-a", "1")]);
    assert_eq!(actions.request_headers.add, [pair("x-b", "2")]);
    assert_eq!(actions.request_headers.remove, ["x-c"]);
    let rewrite = actions.rewrite.as_ref().unwrap();
    assert_eq!(rewrite.hostname.as_deref(), Some("other:81"));
    assert_eq!(rewrite.path, Some(PathRewrite::Prefix("/bar".to_owned())));
    let own = rule.route[0].actions.as_ref().unwrap();
    assert_eq!(own.response_headers.remove, ["server"]);
    let own = own.rewrite.as_ref().unwrap();
    assert_eq!(own.path, Some(PathRewrite::Full("/x".to_owned())));
}

#[test]
fn rule_that_answers_by_itself_needs_no_route() {
    let redirect = rule("  - service: a\n    redirect: {scheme: https, port: 8443}\n");
    assert!(redirect.route.is_empty());
    let Some(Terminal::Redirect(redirect)) = &redirect.extra().actions.terminal else {
        panic!("{redirect:?}");
    };
    assert_eq!((redirect.status, redirect.port), (302, Some(8443)));
    let respond = rule("  - service: a\n    respond: {body: hello}\n");
    let Some(Terminal::Respond(respond)) = &respond.extra().actions.terminal else {
        panic!("{respond:?}");
    };
    assert_eq!((respond.status, &*respond.body), (200, "hello"));
}

#[test]
fn fault_shares_are_read_by_percent_by_fraction_or_all() {
    let rule = rule(
        "  - service: a\n\
         \x20   fault:\n\
         \x20     delay: {time: 2s, percent: 10}\n\
         \x20     abort: {grpc-status: 14, fraction: {count: 1, of: 1000}}\n\
         \x20   mirror: {version: v2}\n\
         \x20   route: [{version: v1}]\n",
    );
    let actions = &rule.extra().actions;
    let share = |numerator, denominator| Fraction {
        numerator,
        denominator,
    };
    let fault = actions.fault.unwrap();
    assert_eq!(fault.delay, Some((share(10, 100), Duration::from_secs(2))));
    assert_eq!(fault.abort, Some((share(1, 1000), AbortStatus::Grpc(14))));
    assert_eq!(actions.mirrors[0].fraction, Fraction::ALL);
}

#[test]
fn target_of_another_service_is_found_by_name_and_port() {
    let rule = rule(
        "  - service: a\n\
         \x20   mirror: {service: default/b, port: 82}\n\
         \x20   route:\n\
         \x20     - {service: b, port: two, version: w, weight: 1}\n\
         \x20     - {service: t, weight: 1}\n\
         \x20     - {endpoints: [\"10.1.0.2:80\"], weight: 1}\n",
    );
    let backend = |service, port| Some(Backend { service, port });
    let backends: Vec<_> = rule.route.iter().map(|target| target.backend).collect();
    assert_eq!(backends, [backend(1, 82), backend(2, 90), None]);
    assert_eq!(rule.route[0].select, Select::Version("w".to_owned()));
    let endpoints = vec!["10.1.0.2:80".parse().unwrap()];
    assert_eq!(rule.route[2].select, Select::Endpoints(endpoints));
    assert_eq!(
        rule.extra().actions.mirrors[0].target.backend,
        backend(1, 82)
    );
}

#[test]
fn sticky_and_session_are_read() {
    let rule = rule(
        "  - service: a\n\
         \x20   sticky: {key: [header.X-User, source.address], salt: s}\n\
         \x20   session: {cookie: sid, permanent: true, absolute-timeout: 1h, idle-timeout: 5m}\n\
         \x20   route: [{version: v1, weight: 1}, {version: v2, weight: 1}]\n",
    );
    let sticky = rule.extra().sticky.as_ref().unwrap();
    let key = [
        Attribute::Header("x-user".to_owned()),
        Attribute::SourceAddress,
    ];
    assert_eq!((&*sticky.key, &*sticky.salt), (&key[..], "s"));
    let session = rule.extra().persistence.as_ref().unwrap();
    assert_eq!(session.carrier, SessionCarrier::PermanentCookie);
    assert_eq!(session.idle, Some(Duration::from_secs(300)));
}

/// One mistake in each row, with its place and name.
#[test]
fn actions_that_mean_nothing_are_refused_with_their_place() {
    let route = "\n    route: [{version: v1}]\n";
    let rows = [
        (
            "headers: {request: {set: {Host: x}}}",
            "1:37 bad-action rules[0].headers.request.set.host",
        ),
        (
            "headers: {response: {add: {content-length: \"1\"}}}",
            "1:48 bad-action rules[0].headers.response.add.content-length",
        ),
        (
            "headers: {request: {remove: [te]}}",
            "1:34 bad-action rules[0].headers.request.remove[0]",
        ),
        (
            "headers: {request: {}}",
            "1:24 missing-field rules[0].headers.request",
        ),
        (
            "rewrite: {authority: \"a b\"}",
            "1:26 bad-value rules[0].rewrite.authority",
        ),
        (
            "rewrite: {authority: \"u@a\"}",
            "1:26 bad-action rules[0].rewrite.authority",
        ),
        (
            "rewrite: {path: /a, prefix: /b}",
            "1:25 conflict rules[0].rewrite.prefix",
        ),
        ("rewrite: {path: a}", "1:21 bad-value rules[0].rewrite.path"),
        (
            "match: {path: {exact: /x}}\n    rewrite: {prefix: /b}",
            "2:23 bad-action rules[0].rewrite.prefix",
        ),
        ("fault: {}", "1:12 missing-field rules[0].fault"),
        (
            "fault: {delay: {percent: 5}}",
            "1:20 missing-field rules[0].fault.delay.time",
        ),
        (
            "fault: {abort: {status: 100}}",
            "1:29 out-of-range rules[0].fault.abort.status",
        ),
        (
            "fault: {abort: {status: 500, percent: 101}}",
            "1:43 out-of-range rules[0].fault.abort.percent",
        ),
        (
            "fault: {abort: {status: 500, fraction: {count: 2, of: 1}}}",
            "1:34 bad-action rules[0].fault.abort.fraction",
        ),
        (
            "cors: {allow-origins: [shop.example]}",
            "1:28 bad-value rules[0].cors.allow-origins[0]",
        ),
        (
            "cors: {allow-origins: [\"https://a.*.b\"]}",
            "1:28 bad-action rules[0].cors.allow-origins[0]",
        ),
        (
            "mirror: {version: v3}",
            "1:23 unknown-version rules[0].mirror[0].version",
        ),
        (
            "mirror: {service: c}",
            "1:23 unknown-service rules[0].mirror[0].service",
        ),
        (
            "mirror: {service: b}",
            "1:23 missing-field rules[0].mirror[0].port",
        ),
        (
            "mirror: {service: b, port: 83}",
            "1:32 unknown-port rules[0].mirror[0].port",
        ),
        (
            "sticky: {key: version}",
            "1:19 bad-action rules[0].sticky.key[0]",
        ),
        (
            "sticky: {key: [colour]}",
            "1:20 bad-value rules[0].sticky.key[0]",
        ),
        (
            "session: {cookie: a, header: b}",
            "1:26 conflict rules[0].session.header",
        ),
        (
            "session: {cookie: a, permanent: true}",
            "1:37 bad-action rules[0].session.permanent",
        ),
        (
            "session: {header: connection}",
            "1:23 bad-action rules[0].session.header",
        ),
        (
            "session: {cookie: \"a b\"}",
            "1:23 bad-value rules[0].session.cookie",
        ),
        ("redirect: {}", "1:5 conflict rules[0].redirect"),
        ("colour: red", "1:5 unknown-field rules[0].colour"),
    ];
    let mut faults = Vec::new();
    for (text, want) in rows {
        let got = errors(&format!("  - {text}\n    service: a{route}"));
        if got != [want] {
            faults.push(format!("{text}\n  wanted {want}\n  got    {got:?}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn answers_that_mean_nothing_are_refused() {
    let rows = [
        (
            "respond: {status: 99}",
            "out-of-range rules[0].respond.status",
        ),
        (
            "respond: {status: 204, body: x}",
            "bad-action rules[0].respond.body",
        ),
        (
            "respond: {headers: {transfer-encoding: chunked}}",
            "bad-action rules[0].respond.headers.transfer-encoding",
        ),
        (
            "redirect: {status: 305}",
            "bad-action rules[0].redirect.status",
        ),
        (
            "redirect: {scheme: ftp}",
            "bad-value rules[0].redirect.scheme",
        ),
        (
            "redirect: {host: \"a:80\"}",
            "bad-value rules[0].redirect.host",
        ),
        (
            "redirect: {}\n    rewrite: {path: /a}",
            "bad-action rules[0].rewrite",
        ),
        ("name: x", "missing-field rules[0]"),
    ];
    for (text, want) in rows {
        let got = errors(&format!("  - {text}\n    service: a\n"));
        assert!(
            got.len() == 1 && got[0].ends_with(&format!(" {want}")),
            "{text}: {got:?}"
        );
    }
}

#[test]
fn actions_on_an_opaque_port_are_refused() {
    for text in [
        "respond: {}",
        "session: {cookie: a}\n    route: [{}]",
        "fault: {delay: {time: 1s}}\n    route: [{}]",
    ] {
        let got = errors(&format!("  - {text}\n    service: t\n"));
        assert!(
            got.len() == 1 && got[0].contains(" bad-action rules[0]"),
            "{text}: {got:?}"
        );
    }
    let sticky = "  - sticky: {key: source.address}\n    service: t\n    route: [{}]\n";
    assert!(rule(sticky).extra().sticky.is_some());
    let got = errors("  - sticky: {key: header.x}\n    service: t\n    route: [{}]\n");
    assert_eq!(got, ["1:19 bad-action rules[0].sticky.key[0]"]);
}
