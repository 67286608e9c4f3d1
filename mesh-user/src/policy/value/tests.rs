use super::{super::request::HeaderList, *};

fn headers(pairs: &[(&str, &str)]) -> HeaderList {
    HeaderList(
        pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
    )
}

fn exact(value: &str) -> ValueCond {
    ValueCond::new(&ValueMatch::Exact(value.to_owned()))
}

fn prefix(value: &str) -> ValueCond {
    ValueCond::new(&ValueMatch::Prefix(value.to_owned()))
}

fn regex(value: &str) -> ValueCond {
    ValueCond::new(&ValueMatch::Regex(value.to_owned()))
}

const PRESENT: ValueCond = ValueCond::Present(true);
const ABSENT: ValueCond = ValueCond::Present(false);

#[test]
fn missing_header_matches_nothing_but_absent() {
    let none = headers(&[("y", "")]);
    for cond in [exact(""), prefix(""), regex(".*"), PRESENT] {
        assert!(!cond.holds_header(&none, "x"), "{cond}");
    }
    assert!(ABSENT.holds_header(&none, "x"));
    // There, though empty.
    for cond in [exact(""), prefix(""), regex(".*"), PRESENT] {
        assert!(cond.holds_header(&none, "y"), "{cond}");
    }
    assert!(!ABSENT.holds_header(&none, "y"));
}

#[test]
fn header_name_is_matched_in_any_case_and_value_in_its_own() {
    let sent = headers(&[("X-User", "Beta")]);
    assert!(exact("Beta").holds_header(&sent, "x-user"));
    assert!(!exact("beta").holds_header(&sent, "x-user"));
}

#[test]
fn repeated_header_is_matched_joined() {
    let sent = headers(&[("x", "a"), ("x", "b"), ("x", "c")]);
    assert!(exact("a, b, c").holds_header(&sent, "x"));
    for wrong in [
        "a",
        "b",
        "a, b",
        "a,b,c",
        "a, b, c, ",
        "b, c",
        "a, b, cc",
        "",
    ] {
        assert!(!exact(wrong).holds_header(&sent, "x"), "{wrong:?}");
    }
    for right in ["", "a", "a, ", "a, b", "a, b, c"] {
        assert!(prefix(right).holds_header(&sent, "x"), "{right:?}");
    }
    for wrong in ["b", "a,b", "a, b, c,", "a, c"] {
        assert!(!prefix(wrong).holds_header(&sent, "x"), "{wrong:?}");
    }
    assert!(regex("a, [abc], c").holds_header(&sent, "x"));
    assert!(!regex("[abc]").holds_header(&sent, "x"));
    assert!(PRESENT.holds_header(&sent, "x"));
    assert!(!ABSENT.holds_header(&sent, "x"));
}

#[test]
fn repeated_set_cookie_is_matched_one_by_one() {
    let sent = headers(&[("set-cookie", "a=1"), ("set-cookie", "b=2")]);
    assert!(exact("b=2").holds_header(&sent, "set-cookie"));
    assert!(!exact("a=1, b=2").holds_header(&sent, "set-cookie"));
}

#[test]
fn regex_matches_the_whole_value_only() {
    let sent = headers(&[("x", "abc")]);
    assert!(regex("a.c").holds_header(&sent, "x"));
    assert!(!regex("a").holds_header(&sent, "x"));
    assert!(!regex("b").holds_header(&sent, "x"));
    // Alternatives are anchored as a whole.
    assert!(!regex("a|c").holds_header(&sent, "x"));
    assert!(regex("x|abc").holds_header(&sent, "x"));
    // Leftmost-first would stop at «ab» without the anchor.
    assert!(regex("ab|abc").holds_header(&sent, "x"));
    assert!(regex("(?i)ABC").holds_header(&sent, "x"));
    // A comment in verbose mode swallows what stands behind the pattern.
    assert!(regex("(?x) a b c # the end").holds_header(&sent, "x"));
    assert!(!regex("(?x) a b # the end").holds_header(&sent, "x"));
    // Line ends are no ends of the value.
    let lines = headers(&[("x", "abc\nd")]);
    assert!(!regex("(?m)abc").holds_header(&lines, "x"));
}

#[test]
fn invalid_regex_is_an_error_and_matches_nothing() {
    for pattern in [
        "(",
        "a)|(b",
        "[z-a]",
        "(?P<n>a)(?P<n>b)",
        "((a{1000}){1000})",
    ] {
        assert!(whole(pattern).is_err(), "{pattern}");
        let sent = headers(&[("x", pattern)]);
        assert!(!regex(pattern).holds_header(&sent, "x"), "{pattern}");
    }
}

#[test]
fn query_first_of_repeated_parameters_counts() {
    assert!(exact("1").holds_query(Some("a=1&a=2"), "a"));
    assert!(!exact("2").holds_query(Some("a=1&a=2"), "a"));
    assert!(exact("2").holds_query(Some("b=1&a=2"), "a"));
}

#[test]
fn query_is_compared_after_percent_decoding_with_plus_as_it_is() {
    assert!(exact("a b").holds_query(Some("q=a%20b"), "q"));
    assert!(!exact("a b").holds_query(Some("q=a+b"), "q"));
    assert!(exact("a+b").holds_query(Some("q=a+b"), "q"));
    assert!(exact("1").holds_query(Some("%71=%31"), "q"));
    assert!(prefix("ab").holds_query(Some("q=a%62c"), "q"));
    assert!(!prefix("abcd").holds_query(Some("q=a%62c"), "q"));
    assert!(regex("a.c").holds_query(Some("q=a%62c"), "q"));
    // What is no escape stays.
    for odd in ["%", "%4", "%zz", "100%", "%4g"] {
        assert!(
            exact(odd).holds_query(Some(&format!("q={odd}")), "q"),
            "{odd}"
        );
    }
    assert!(exact("a=b").holds_query(Some("q=a=b"), "q"));
    assert!(exact("a&b").holds_query(Some("q=a%26b"), "q"));
}

#[test]
fn query_without_value_or_without_query_is_told_apart() {
    assert!(exact("").holds_query(Some("q"), "q"));
    assert!(exact("").holds_query(Some("q="), "q"));
    assert!(PRESENT.holds_query(Some("q"), "q"));
    assert!(!PRESENT.holds_query(Some("qq"), "q"));
    assert!(!PRESENT.holds_query(None, "q"));
    assert!(ABSENT.holds_query(None, "q"));
    assert!(ABSENT.holds_query(Some(""), "q"));
    assert!(!PRESENT.holds_query(Some("a&&b"), ""));
}

#[test]
fn authority_is_matched_without_port_and_case() {
    for (sent, host) in [
        ("web", "web"),
        ("web:80", "web"),
        ("web:", "web"),
        ("[::1]", "[::1]"),
        ("[::1]:80", "[::1]"),
        ("10.0.0.1:8080", "10.0.0.1"),
        ("", ""),
    ] {
        assert_eq!(host_of(sent), host);
    }
    assert!(exact("web").holds_authority("WEB"));
    assert!(prefix("we").holds_authority("WEB"));
    assert!(!prefix("webs").holds_authority("web"));
    assert!(regex("w.b").holds_authority("WEB"));
    assert!(!exact("web").holds_authority("web2"));
    // A multi-byte character at the cut must not panic.
    assert!(!prefix("w").holds_authority("é"));
}
