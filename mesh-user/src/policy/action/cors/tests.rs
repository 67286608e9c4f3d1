use super::*;
use crate::policy::fixture::{Ask, get};

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn cors(origins: &[&str], credentials: bool) -> Cors {
    Cors {
        allow_origins: list(origins),
        allow_methods: list(&["GET", "PUT"]),
        allow_headers: list(&["x-a", "x-b"]),
        expose_headers: list(&["x-e"]),
        allow_credentials: credentials,
        max_age_s: 5,
    }
}

fn preflight(origin: &str) -> Ask {
    get("/")
        .method("OPTIONS")
        .with("origin", origin)
        .with("access-control-request-method", "PUT")
        .with("access-control-request-headers", "x-q")
}

fn answer(cors: &Cors, ask: &Ask) -> Option<Vec<String>> {
    let answer = CorsPlan::new(cors).preflight(&ask.view())?;
    assert_eq!((answer.status, answer.content_length()), (204, None));
    Some(lines(&answer.headers))
}

fn lines(headers: &http::HeaderMap) -> Vec<String> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        let name = name.as_str().trim_start_matches("access-control-");
        format!("{name}: {}", value.to_str().unwrap())
    };
    let mut lines: Vec<String> = headers.iter().map(line).collect();
    lines.sort();
    lines
}

fn edited(cors: &Cors, ask: &Ask, before: &[(&'static str, &'static str)]) -> Vec<String> {
    let mut headers = http::HeaderMap::new();
    for (name, value) in before {
        headers.append(*name, HeaderValue::from_static(value));
    }
    if let Some(edits) = CorsPlan::new(cors).edits(&ask.view()) {
        edits.apply(&mut headers);
    }
    lines(&headers)
}

#[test]
fn cors_origin_exact_star_and_wildcard() {
    let rows: &[(&str, &str, bool)] = &[
        ("https://a.com", "https://a.com", true),
        ("https://a.com", "https://A.com", true),
        ("https://a.com", "https://a.com:443", true),
        ("https://a.com:8443", "https://a.com:8443", true),
        ("https://a.com", "https://a.com:8443", false),
        ("https://a.com", "http://a.com", false),
        ("http://a.com", "http://a.com:80", true),
        ("https://a.com", "https://xa.com", false),
        ("https://a.com", "https://a.com.evil.org", false),
        ("https://*.a.com", "https://b.a.com", true),
        ("https://*.a.com", "https://c.b.a.com", true),
        ("https://*.a.com", "https://a.com", false),
        ("https://*.a.com", "https://xa.com", false),
        ("https://*.a.com", "https://.a.com", false),
        ("https://*.a.com", "http://b.a.com", false),
        ("https://*.a.com:1", "https://b.a.com", false),
        ("https://*", "https://any.org", true),
        ("https://*", "http://any.org", false),
        ("*", "null", true),
        ("https://a.com", "null", false),
        ("https://[::1]:80", "https://[::1]:80", true),
        ("https://*.a.com", "https://b/.a.com", false),
    ];
    for (allowed, origin, want) in rows {
        let has = answer(&cors(&[allowed], true), &preflight(origin)).unwrap();
        let is = has
            .iter()
            .any(|line| line == &format!("allow-origin: {origin}"));
        assert_eq!(is, *want, "{allowed} {origin} {has:?}");
    }
}

#[test]
fn cors_preflight_lists_what_is_allowed() {
    let got = answer(
        &cors(&["https://a.com"], false),
        &preflight("https://a.com"),
    )
    .unwrap();
    assert_eq!(
        got,
        [
            "allow-headers: x-a, x-b",
            "allow-methods: GET, PUT",
            "allow-origin: https://a.com",
            "max-age: 5",
            "vary: origin",
        ]
    );
}

#[test]
fn cors_preflight_of_a_stranger_is_answered_without_cors_fields() {
    let got = answer(&cors(&["https://a.com"], true), &preflight("https://b.com")).unwrap();
    assert_eq!(got, ["vary: origin"]);
    let two = preflight("https://a.com").with("origin", "https://a.com");
    assert_eq!(
        answer(&cors(&["https://a.com"], true), &two).unwrap(),
        ["vary: origin"]
    );
}

#[test]
fn cors_wildcards_are_said_back_with_credentials_only() {
    let mut open = cors(&["*"], false);
    open.allow_methods = list(&["*"]);
    open.allow_headers = list(&["*"]);
    assert_eq!(
        answer(&open, &preflight("https://a.com")).unwrap(),
        [
            "allow-headers: *",
            "allow-methods: *",
            "allow-origin: *",
            "max-age: 5"
        ]
    );
    open.allow_credentials = true;
    let want = [
        "allow-credentials: true",
        "allow-headers: x-q",
        "allow-methods: PUT",
        "allow-origin: https://a.com",
        "max-age: 5",
        "vary: origin",
    ];
    assert_eq!(answer(&open, &preflight("https://a.com")).unwrap(), want);
    // Nothing asked, nothing said back.
    let bare = get("/")
        .method("OPTIONS")
        .with("origin", "https://a.com")
        .with("access-control-request-method", "PUT");
    assert!(
        !answer(&open, &bare)
            .unwrap()
            .iter()
            .any(|l| l.starts_with("allow-headers"))
    );
}

#[test]
fn cors_preflight_is_options_with_origin_and_method() {
    let cors = cors(&["*"], false);
    let origin = "https://a.com";
    assert_eq!(answer(&cors, &preflight(origin).method("GET")), None);
    let without = get("/").method("OPTIONS").with("origin", origin);
    assert_eq!(answer(&cors, &without), None);
    let without = get("/")
        .method("OPTIONS")
        .with("access-control-request-method", "GET");
    assert_eq!(answer(&cors, &without), None);
}

#[test]
fn cors_answer_says_the_rules_word_instead_of_the_endpoints() {
    let ask = get("/").with("origin", "https://a.com");
    let before = [
        ("access-control-allow-origin", "*"),
        ("access-control-expose-headers", "x-z"),
        ("vary", "accept"),
    ];
    assert_eq!(
        edited(&cors(&["https://a.com"], true), &ask, &before),
        [
            "allow-credentials: true",
            "allow-origin: https://a.com",
            "expose-headers: x-e",
            "vary: accept",
            "vary: origin",
        ]
    );
    assert_eq!(
        edited(&cors(&["*"], false), &ask, &before),
        ["allow-origin: *", "expose-headers: x-e", "vary: accept"]
    );
    // A stranger reads nothing, and no cache gives a stranger's answer to a friend.
    let stranger = get("/").with("origin", "https://b.com");
    assert_eq!(
        edited(&cors(&["https://a.com"], true), &stranger, &before),
        ["vary: accept", "vary: origin"]
    );
    assert_eq!(
        edited(&cors(&["https://a.com"], true), &get("/"), &[]),
        ["vary: origin"]
    );
}

#[test]
fn cors_origin_text_is_told_from_what_is_none() {
    for good in [
        "*",
        "http://a",
        "https://*.a.com",
        "https://a.com:8443",
        "https://*",
    ] {
        assert!(is_origin(good), "{good}");
    }
    for bad in [
        "",
        "a.com",
        "ftp://a",
        "https://",
        "https://a/b",
        "https://a:x",
        "https://a.*.b",
        "null",
    ] {
        assert!(!is_origin(bad), "{bad}");
    }
}
