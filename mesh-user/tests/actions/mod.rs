//! Actions of rules as a table: what is asked, what the endpoint sees, what the client gets. The
//! same table runs over HTTP/1 and HTTP/2.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "every test file uses its own part of this; expect would fail where all is used"
)]

use std::time::Duration;

use mesh_user::model::{
    Actions, Match, PathMatch, Rule, RuleExtra, Select, Target,
    action::{
        AbortStatus, Cors, DirectResponse, Fault, Fraction, HeaderEdits, PathRewrite, Redirect,
        Rewrite, Terminal,
    },
};

pub(crate) type Fields = Vec<(&'static str, &'static str)>;

/// One row.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    /// `Host` is `web` besides.
    pub(crate) fields: Fields,
    pub(crate) body: &'static str,
    pub(crate) want: Want,
}

/// What must come of it. `%PORT%` stands for the port that was dialled.
#[derive(Default)]
pub(crate) struct Want {
    pub(crate) status: u16,
    /// Fields of the answer, joined; none: absent.
    pub(crate) answer: Vec<(&'static str, Option<&'static str>)>,
    /// The answer's body; none: whatever it is.
    pub(crate) body: Option<&'static str>,
    /// Path and query that the endpoint sees; none: it sees nothing.
    pub(crate) target: Option<&'static str>,
    /// Authority that the endpoint sees.
    pub(crate) authority: &'static str,
    /// Fields that the endpoint sees, joined; none: absent.
    pub(crate) request: Vec<(&'static str, Option<&'static str>)>,
    /// Envoy's flags in the access log.
    pub(crate) flags: &'static str,
    /// The kinds that `mesh_actions_total` counts.
    pub(crate) counted: Vec<&'static str>,
}

/// Fields that the endpoint of every case answers with, its status being 200 and its body `up`.
pub(crate) const ANSWERED: &[(&str, &str)] = &[
    ("x-up", "1"),
    ("x-gone", "1"),
    ("x-many", "1"),
    ("x-many", "2"),
    ("access-control-allow-origin", "https://endpoint.example"),
];

fn rule(actions: Actions) -> Rule {
    Rule {
        name: "acts".to_owned(),
        matches: vec![Match {
            path: Some(PathMatch::Prefix("/foo".to_owned())),
            ..Match::default()
        }],
        route: vec![Target {
            select: Select::Version("v1".to_owned()),
            ..Target::default()
        }],
        extra: Some(Box::new(RuleExtra {
            actions,
            ..RuleExtra::default()
        })),
        ..Rule::default()
    }
}

fn own(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(own).collect()
}

fn edits(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderEdits {
    HeaderEdits {
        set: own(set),
        add: own(add),
        remove: remove.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn get(name: &'static str, target: &'static str, actions: Actions, want: Want) -> Case {
    Case {
        name,
        rule: rule(actions),
        method: "GET",
        target,
        fields: Vec::new(),
        body: "",
        want,
    }
}

fn forwarded(target: &'static str) -> Want {
    Want {
        status: 200,
        body: Some("up"),
        target: Some(target),
        authority: "web",
        flags: "-",
        ..Want::default()
    }
}

fn answered(status: u16, kind: &'static str) -> Want {
    Want {
        status,
        flags: "-",
        counted: vec![kind],
        ..Want::default()
    }
}

fn respond(status: u16, headers: &[(&str, &str)], body: &str) -> Actions {
    Actions {
        terminal: Some(Terminal::Respond(DirectResponse {
            status,
            headers: own(headers),
            body: body.to_owned(),
        })),
        ..Actions::default()
    }
}

fn redirect(status: u16) -> Redirect {
    Redirect {
        scheme: None,
        hostname: None,
        port: None,
        path: None,
        status,
    }
}

fn redirects(redirect: Redirect) -> Actions {
    Actions {
        terminal: Some(Terminal::Redirect(redirect)),
        ..Actions::default()
    }
}

fn rewrite(hostname: Option<&str>, path: Option<PathRewrite>) -> Actions {
    Actions {
        rewrite: Some(Rewrite {
            hostname: hostname.map(str::to_owned),
            path,
        }),
        ..Actions::default()
    }
}

fn fault(delay: Option<Duration>, abort: Option<AbortStatus>) -> Actions {
    Actions {
        fault: Some(Fault {
            delay: delay.map(|time| (Fraction::ALL, time)),
            abort: abort.map(|status| (Fraction::ALL, status)),
        }),
        ..Actions::default()
    }
}

fn cors(origins: &[&str]) -> Actions {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Actions {
        cors: Some(Cors {
            allow_origins: list(origins),
            allow_methods: list(&["GET", "PUT"]),
            allow_headers: list(&["x-a"]),
            expose_headers: list(&["x-up"]),
            allow_credentials: true,
            max_age_s: 5,
        }),
        ..Actions::default()
    }
}

/// Every row.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = header_cases();
    cases.extend(rewrite_cases());
    cases.extend(answer_cases());
    cases.extend(fault_cases());
    cases.extend(cors_cases());
    cases
}

fn header_cases() -> Vec<Case> {
    let request = Actions {
        request_headers: edits(
            &[("x-set", "new"), ("user-agent", "mesh")],
            &[("x-add", "2")],
            &["X-Remove", "accept"],
        ),
        ..Actions::default()
    };
    let fields = vec![
        ("x-set", "old"),
        ("x-set", "older"),
        ("x-add", "1"),
        ("x-remove", "1"),
        ("x-remove", "2"),
        ("accept", "*/*"),
        ("user-agent", "curl"),
        ("x-stays", "1"),
    ];
    let mut edited = get("request header edits", "/foo", request, forwarded("/foo"));
    edited.fields = fields;
    edited.want.request = vec![
        ("x-set", Some("new")),
        ("x-add", Some("1, 2")),
        ("x-remove", None),
        ("accept", None),
        ("user-agent", Some("mesh")),
        ("x-stays", Some("1")),
    ];
    let response = Actions {
        response_headers: edits(
            &[("x-up", "new")],
            &[("x-many", "3"), ("set-cookie", "a=b")],
            &["x-gone"],
        ),
        ..Actions::default()
    };
    let mut answer = get("answer header edits", "/foo", response, forwarded("/foo"));
    answer.want.answer = vec![
        ("x-up", Some("new")),
        ("x-many", Some("1, 2, 3")),
        ("x-gone", None),
        ("set-cookie", Some("a=b")),
    ];
    let of_rule = Actions {
        request_headers: edits(&[("x-set", "rule")], &[("x-add", "rule")], &[]),
        ..Actions::default()
    };
    let mut target = get(
        "edits of the target come last",
        "/foo",
        of_rule,
        forwarded("/foo"),
    );
    target.rule.route[0].actions = Some(Box::new(Actions {
        request_headers: edits(&[("x-add", "target")], &[("x-set", "target")], &[]),
        ..Actions::default()
    }));
    target.want.request = vec![("x-set", Some("rule, target")), ("x-add", Some("target"))];
    vec![edited, answer, target]
}

fn rewrite_cases() -> Vec<Case> {
    let full = |path: &str| Some(PathRewrite::Full(path.to_owned()));
    let prefix = |path: &str| Some(PathRewrite::Prefix(path.to_owned()));
    let mut host = get(
        "rewrite of the authority",
        "/foo?q=1",
        rewrite(Some("other.example:81"), None),
        forwarded("/foo?q=1"),
    );
    host.want.authority = "other.example:81";
    vec![
        host,
        get(
            "rewrite of the whole path keeps the query",
            "/foo/bar?q=1&r=%20",
            rewrite(None, full("/x/y")),
            forwarded("/x/y?q=1&r=%20"),
        ),
        get(
            "rewrite of the prefix",
            "/foo/bar?q=1",
            rewrite(None, prefix("/xyz/")),
            forwarded("/xyz/bar?q=1"),
        ),
        get(
            "rewrite of the prefix to nothing",
            "/foo",
            rewrite(None, prefix("")),
            forwarded("/"),
        ),
    ]
}

fn answer_cases() -> Vec<Case> {
    let mut plain = get(
        "direct response",
        "/foo",
        respond(418, &[("x-own", "1")], "short and stout"),
        answered(418, "respond"),
    );
    plain.want.answer = vec![("x-own", Some("1")), ("content-length", Some("15"))];
    plain.want.body = Some("short and stout");
    let mut head = get(
        "direct response to HEAD",
        "/foo",
        respond(200, &[], "body"),
        answered(200, "respond"),
    );
    head.method = "HEAD";
    head.want.answer = vec![("content-length", Some("4"))];
    head.want.body = Some("");
    let mut empty = get(
        "direct response without content",
        "/foo",
        respond(204, &[], ""),
        answered(204, "respond"),
    );
    empty.want.answer = vec![("content-length", None)];
    let mut with_body = get(
        "direct response to a request with a body",
        "/foo",
        respond(200, &[], "ok"),
        answered(200, "respond"),
    );
    with_body.method = "POST";
    with_body.body = "ignored";
    with_body.want.body = Some("ok");
    let mut edited = respond(200, &[("x-own", "1")], "ok");
    edited.response_headers = edits(&[("x-own", "2")], &[("x-add", "3")], &[]);
    let mut edited = get(
        "direct response with header edits",
        "/foo",
        edited,
        answered(200, "respond"),
    );
    edited.want.answer = vec![("x-own", Some("2")), ("x-add", Some("3"))];
    let mut cases = vec![plain, head, empty, with_body, edited];
    for status in [301, 302, 303, 307, 308] {
        let mut case = get(
            "redirect keeps host, port, path and query",
            "/foo/bar?q=1",
            redirects(redirect(status)),
            answered(status, "redirect"),
        );
        case.want.answer = vec![("location", Some("http://web:%PORT%/foo/bar?q=1"))];
        cases.push(case);
    }
    let mut elsewhere = get(
        "redirect to scheme, host and prefix",
        "/foo/bar",
        redirects(Redirect {
            scheme: Some("https".to_owned()),
            hostname: Some("other.example".to_owned()),
            path: Some(PathRewrite::Prefix("/xyz".to_owned())),
            ..redirect(302)
        }),
        answered(302, "redirect"),
    );
    elsewhere.rule.route.clear();
    elsewhere.want.answer = vec![("location", Some("https://other.example/xyz/bar"))];
    cases.push(elsewhere);
    let mut broken = get(
        "filter that can't be resolved",
        "/foo",
        Actions {
            terminal: Some(Terminal::Broken("no such filter".to_owned())),
            ..Actions::default()
        },
        answered(500, ""),
    );
    broken.want.flags = "NR";
    broken.want.counted.clear();
    broken.want.answer = vec![("x-mesh-reject", Some("filter_unresolved"))];
    cases.push(broken);
    cases
}

/// The pause of the cases with a delay.
pub(crate) const DELAY: Duration = Duration::from_millis(80);

fn fault_cases() -> Vec<Case> {
    let mut delay = get(
        "fault delay",
        "/foo",
        fault(Some(DELAY), None),
        forwarded("/foo"),
    );
    delay.want.flags = "DI";
    delay.want.counted = vec!["delay"];
    let mut abort = get(
        "fault abort",
        "/foo",
        fault(None, Some(AbortStatus::Http(503))),
        answered(503, "abort"),
    );
    abort.want.flags = "FI";
    let mut grpc = get(
        "fault abort by gRPC status of a plain request",
        "/foo",
        fault(None, Some(AbortStatus::Grpc(5))),
        answered(404, "abort"),
    );
    grpc.want.flags = "FI";
    let mut both = get(
        "fault delay and abort",
        "/foo",
        fault(Some(DELAY), Some(AbortStatus::Http(429))),
        answered(429, "abort"),
    );
    both.want.flags = "DI,FI";
    both.want.counted = vec!["delay", "abort"];
    vec![delay, abort, grpc, both]
}

fn cors_cases() -> Vec<Case> {
    let origin = "https://a.example";
    let mut preflight = get(
        "CORS preflight",
        "/foo",
        cors(&[origin]),
        answered(204, "cors_preflight"),
    );
    preflight.method = "OPTIONS";
    preflight.fields = vec![
        ("origin", origin),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a"),
    ];
    preflight.want.answer = vec![
        ("access-control-allow-origin", Some(origin)),
        ("access-control-allow-methods", Some("GET, PUT")),
        ("access-control-allow-headers", Some("x-a")),
        ("access-control-allow-credentials", Some("true")),
        ("access-control-max-age", Some("5")),
        ("vary", Some("origin")),
        ("content-length", None),
    ];
    let mut stranger = get(
        "CORS preflight of a stranger",
        "/foo",
        cors(&["https://b.example"]),
        answered(204, "cors_preflight"),
    );
    stranger.method = "OPTIONS";
    stranger.fields = preflight.fields.clone();
    stranger.want.answer = vec![
        ("access-control-allow-origin", None),
        ("access-control-allow-methods", None),
        ("vary", Some("origin")),
    ];
    let mut actual = get(
        "CORS request",
        "/foo",
        cors(&["https://*.example"]),
        forwarded("/foo"),
    );
    actual.fields = vec![("origin", origin)];
    actual.want.answer = vec![
        ("access-control-allow-origin", Some(origin)),
        ("access-control-allow-credentials", Some("true")),
        ("access-control-expose-headers", Some("x-up")),
        ("vary", Some("origin")),
    ];
    let mut without = get(
        "request without origin under CORS",
        "/foo",
        cors(&[origin]),
        forwarded("/foo"),
    );
    without.want.answer = vec![
        ("access-control-allow-origin", None),
        ("vary", Some("origin")),
    ];
    vec![preflight, stranger, actual, without]
}
