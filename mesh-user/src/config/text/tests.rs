//! What each kind of text takes.

use super::*;

/// Without it: a pattern that does not compile would take every text of its kind.
#[test]
fn text_patterns_all_compile() {
    for kind in Text::ALL {
        assert_eq!(
            PATTERNS.contains_key(&discriminant(&kind)),
            kind.pattern().is_some(),
            "{kind:?}"
        );
    }
}

#[test]
fn regex_slips_are_refused_with_the_reason() {
    for text in [
        "(",
        "a)(b",
        "(?x)a #",
        "(?=a)",
        "[z-a]",
        "a{1000}{1000}{1000}",
    ] {
        let fault = check_regex(text).expect_err(text);
        assert_eq!(fault.code, Code::BadRegex);
        assert!(!fault.message.contains('\n'), "{fault:?}");
    }
    assert_eq!(check_regex("/a/[0-9]+|(?i:b)"), Ok(()));
}

#[test]
fn text_examples_are_taken() {
    let bound = Text::Duration(Duration::ZERO, Duration::from_secs(3600));
    for (kind, texts) in [
        (Text::Name, &["a", "reviews", "v1.2", "A_b-c"][..]),
        (Text::ServiceRef, &["reviews", "shop/reviews"]),
        (
            Text::Hostname,
            &["reviews", "reviews.shop.svc.cluster.local", "_srv.x"],
        ),
        (Text::TagKey, &["app", "app.kubernetes.io/name"]),
        (Text::TagValue, &["", "v1", "a b,c=d"]),
        (Text::HeaderName, &["x-user", "X-User"]),
        (Text::Path, &["/", "/a/b%20c"]),
        (Text::Regex, &["/a/[0-9]+", "a|b"]),
        (bound, &["0s", "1h", "59m59s"]),
        (
            Text::RateKey,
            &[
                "source.workload",
                "source.tag.app",
                "header.x-user",
                "cookie.s",
                "query.a b",
                "path",
            ],
        ),
        (Text::Address, &["10.0.0.1", "fd00::1"]),
        (Text::Cidr, &["10.0.0.0/8", "10.0.0.1", "fd00::/8"]),
        (
            Text::StoreAddress,
            &["10.0.0.5:6379", "[fd00::5]:6379", "/run/redis.sock"],
        ),
        (Text::Listen, &["off", "0.0.0.0:15020", "[::]:1"]),
        (Text::Cgroup, &["kubepods.slice", "a/b"]),
    ] {
        for text in texts {
            assert_eq!(kind.check(text), Ok(()), "{kind:?} {text:?}");
        }
    }
}

#[test]
fn text_slips_are_refused() {
    let bound = Text::Duration(Duration::from_millis(1), Duration::from_secs(3600));
    for (kind, texts) in [
        (Text::Name, &["", "-a", "a/b", "ä", "a\n"][..]),
        (Text::ServiceRef, &["a/b/c", "/a", "a/"]),
        (Text::Hostname, &["a:80", "*.a", "a.", "http://a", "a b"]),
        (Text::HeaderName, &["", ":path", "a b", "x\r\ny"]),
        (Text::Path, &["", "a", "/a?b", "/a#b", "/a b"]),
        (bound, &["0s", "1h1us", "15", "1.5s", "999999999h"]),
        (
            Text::RateKey,
            &["source", "source.tag.", "header.", "cookie.", "body"],
        ),
        (Text::Address, &["10.0.0", "10.0.0.1/8", "fe80::1%eth0"]),
        (Text::Cidr, &["10.0.0.1/8", "10.0.0.0/33", "x"]),
        (
            Text::Listen,
            &["15020", "0.0.0.0", "0.0.0.0:99999", "localhost:1"],
        ),
        (Text::Cgroup, &["/a", "a//b", "a/../b", ".", "a/"]),
    ] {
        for text in texts {
            assert!(kind.check(text).is_err(), "{kind:?} {text:?}");
        }
    }
}
