use super::*;
use crate::policy::{Client, fixture::get};

fn prefix(path: &str) -> Match {
    Match {
        path: Some(PathMatch::Prefix(path.to_owned())),
        ..Match::default()
    }
}

fn new_path(matches: &[Match], target: &str, rewrite: &PathRewrite) -> Option<String> {
    let ask = get(target);
    let asked = Asked {
        client: Client::default(),
        request: &ask.view(),
        scheme: "http",
        port: 80,
        grpc: false,
    };
    rewritten(rewrite, &Prefixes::new(matches, &[]), &asked)
}

#[test]
fn replace_prefix_every_row_of_the_table() {
    let rows = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/", "/foo", "/", "/"),
        // Beyond the table.
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo", "/foo", "/xyz/", "/xyz/"),
        ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/foo/foo", "/foo", "/x", "/x/foo"),
    ];
    for (path, matched, replacement, want) in rows {
        let rewrite = PathRewrite::Prefix(replacement.to_owned());
        assert_eq!(
            new_path(&[prefix(matched)], path, &rewrite).as_deref(),
            Some(want),
            "{path} {matched} {replacement}"
        );
    }
}

#[test]
fn replace_prefix_counts_the_alternative_that_matched() {
    let rewrite = PathRewrite::Prefix("/x".to_owned());
    let matches = [prefix("/a/b"), prefix("/a")];
    let path = |target| new_path(&matches, target, &rewrite).unwrap();
    assert_eq!(path("/a/b/c"), "/x/c");
    assert_eq!(path("/a/c"), "/x/c");
    // The first that holds, header and all.
    let mut first = prefix("/a/b");
    first.methods = vec!["POST".to_owned()].into();
    let matches = [first, prefix("/a")];
    assert_eq!(new_path(&matches, "/a/b/c", &rewrite).unwrap(), "/x/b/c");
    // Without a condition on the path the prefix is `/`.
    assert_eq!(new_path(&[], "/a", &rewrite).unwrap(), "/x/a");
    assert_eq!(
        new_path(&[Match::default()], "/a", &rewrite).unwrap(),
        "/x/a"
    );
}

#[test]
fn full_rewrite_takes_the_whole_path_but_never_the_asterisk() {
    let full = |path: &str| PathRewrite::Full(path.to_owned());
    assert_eq!(new_path(&[], "/a/b", &full("/x")).as_deref(), Some("/x"));
    assert_eq!(new_path(&[], "/a/b", &full("")).as_deref(), Some("/"));
    assert_eq!(new_path(&[], "*", &full("/x")), None);
}

fn redirect() -> Redirect {
    Redirect {
        scheme: None,
        hostname: None,
        port: None,
        path: None,
        status: 302,
    }
}

/// Asked for `/foo/bar?q=1` of `web:1234` on `port`, with a prefix `/foo`.
fn leads(redirect: &Redirect, scheme: &'static str, port: u16) -> String {
    let ask = get("/foo/bar?q=1").authority("web:1234");
    let asked = Asked {
        client: Client::default(),
        request: &ask.view(),
        scheme,
        port,
        grpc: false,
    };
    location(redirect, &Prefixes::new(&[prefix("/foo")], &[]), &asked)
}

#[test]
fn redirect_port_explicit_then_scheme_then_listener() {
    let plain = redirect();
    let with = |scheme: Option<&str>, port| Redirect {
        scheme: scheme.map(str::to_owned),
        port,
        ..redirect()
    };
    let rows = [
        // The listener's port, which is left out when it is the scheme's.
        (plain.clone(), "http", 80, "http://web/foo/bar?q=1"),
        (plain.clone(), "http", 8080, "http://web:8080/foo/bar?q=1"),
        (plain.clone(), "https", 443, "https://web/foo/bar?q=1"),
        (plain.clone(), "http", 443, "http://web:443/foo/bar?q=1"),
        (plain, "https", 8443, "https://web:8443/foo/bar?q=1"),
        // A scheme brings its port.
        (
            with(Some("https"), None),
            "http",
            8080,
            "https://web/foo/bar?q=1",
        ),
        (
            with(Some("http"), None),
            "http",
            8080,
            "http://web/foo/bar?q=1",
        ),
        (
            with(Some("http"), None),
            "https",
            8443,
            "http://web/foo/bar?q=1",
        ),
        // An explicit port wins, 80 and 443 are left out with their scheme only.
        (
            with(None, Some(8083)),
            "http",
            80,
            "http://web:8083/foo/bar?q=1",
        ),
        (with(None, Some(80)), "http", 8080, "http://web/foo/bar?q=1"),
        (
            with(None, Some(443)),
            "http",
            8080,
            "http://web:443/foo/bar?q=1",
        ),
        (
            with(None, Some(443)),
            "https",
            8443,
            "https://web/foo/bar?q=1",
        ),
        (
            with(Some("https"), Some(443)),
            "http",
            80,
            "https://web/foo/bar?q=1",
        ),
        (
            with(Some("https"), Some(8443)),
            "http",
            80,
            "https://web:8443/foo/bar?q=1",
        ),
        (
            with(Some("http"), Some(80)),
            "https",
            443,
            "http://web/foo/bar?q=1",
        ),
        (
            with(Some("https"), Some(80)),
            "http",
            80,
            "https://web:80/foo/bar?q=1",
        ),
    ];
    for (redirect, scheme, port, want) in rows {
        assert_eq!(
            leads(&redirect, scheme, port),
            want,
            "{redirect:?} {scheme} {port}"
        );
    }
}

#[test]
fn redirect_host_and_path_are_kept_unless_given() {
    let to = |hostname: Option<&str>, path| Redirect {
        hostname: hostname.map(str::to_owned),
        path,
        ..redirect()
    };
    let full = PathRewrite::Full("/new".to_owned());
    let cut = PathRewrite::Prefix(String::new());
    let swap = PathRewrite::Prefix("/xyz".to_owned());
    for (redirect, want) in [
        (
            to(Some("example.org"), None),
            "http://example.org/foo/bar?q=1",
        ),
        (to(None, Some(full)), "http://web/new?q=1"),
        (to(None, Some(cut)), "http://web/bar?q=1"),
        (to(Some("h"), Some(swap)), "http://h/xyz/bar?q=1"),
    ] {
        assert_eq!(leads(&redirect, "http", 80), want);
    }
}

#[test]
fn redirect_of_a_path_that_looks_like_a_host_stays_at_the_host() {
    let ask = get("/foo//evil.example/x").authority("[fd00::1]:81");
    let asked = Asked {
        client: Client::default(),
        request: &ask.view(),
        scheme: "http",
        port: 81,
        grpc: false,
    };
    let redirect = Redirect {
        path: Some(PathRewrite::Prefix(String::new())),
        ..redirect()
    };
    let prefixes = Prefixes::new(&[prefix("/foo")], &[]);
    assert_eq!(
        location(&redirect, &prefixes, &asked),
        "http://[fd00::1]:81//evil.example/x"
    );
}
