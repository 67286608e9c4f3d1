//! Kinds of text in Gateway API objects, with the bounds of its CRDs.

use crate::config::{
    shape::Shape,
    text::{Given, Text},
};

macro_rules! kinds {
    ($($name:ident $length:expr, $doc:literal, $holds:expr;)*) => {
        $(pub(super) const $name: Shape = Shape::Text(Text::Given(&Given {
            name: $doc,
            length: $length,
            pattern: None,
            holds: $holds,
        }));)*
    };
}

kinds! {
    OBJECT_NAME (1, 253), "a name of 1 to 253 characters", |_| true;
    NAMESPACE (1, 63), "a namespace: lower-case letters, digits, `-`", is_label;
    GROUP (0, 253), "an API group, or nothing for the core group", |text| text.is_empty() || is_subdomain(text);
    KIND (1, 63), "a kind, such as Service", is_kind;
    SECTION (1, 253), "a name: lower-case letters, digits, `-`, `.`", is_subdomain;
    HOSTNAME (1, 253), "a hostname in lower case, with or without `*.` before it", |text| {
        is_subdomain(text.strip_prefix("*.").unwrap_or(text))
    };
    PLAIN_HOSTNAME (1, 253), "a hostname in lower case, without wildcard", is_subdomain;
    HEADER_NAME (1, 256), "a header field name (RFC 9110 token)", is_token;
    HEADER_VALUE (1, 4096), "a header field value of 1 to 4,096 characters without line breaks", is_field_value;
    QUERY_NAME (1, 256), "the name of a query parameter", is_token;
    QUERY_VALUE (1, 1024), "a value of 1 to 1,024 characters", |_| true;
    PATH_VALUE (0, 1024), "a path of at most 1,024 characters", |_| true;
    PATH_REPLACEMENT (0, 1024), "a path of at most 1,024 characters", is_replacement;
    GRPC_NAME (0, 1024), "a name of at most 1,024 characters", |_| true;
    DURATION (2, 24), "a duration of one to four parts with h, m, s or ms, each of at most 5 digits (GEP-2257)", |text| {
        super::duration::duration(text).is_some()
    };
    ORIGIN (1, 253), "`*`, or an origin such as https://example.com or https://*.example.com:8443", is_origin;
    SESSION_NAME (1, 128), "a token of 1 to 128 characters", is_token;
    FREE (0, 253), "text", |_| true;
}

/// A DNS label (RFC 1123), in lower case.
pub(super) fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

/// Labels with dots between.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_kind(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// What may be written into a head: the CRD has only a length, but a line break in a value would
/// end the field.
fn is_field_value(text: &str) -> bool {
    !text
        .bytes()
        .any(|byte| matches!(byte, 0..=8 | 10..=31 | 127))
}

/// What may stand in a request target or a location.
fn is_replacement(text: &str) -> bool {
    text.bytes().all(|byte| (b'!'..=b'~').contains(&byte)) && !text.contains(['?', '#'])
}

fn is_origin(text: &str) -> bool {
    if text == "*" {
        return true;
    }
    let Some(rest) = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
    else {
        return false;
    };
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let port_good = port.is_none_or(|port| {
        (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit())
    });
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let named = host.strip_prefix("*.").unwrap_or(host);
    port_good && (host == "*" || named.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_texts_are_those_of_the_crds() {
        for good in ["a", "a-b", "9"] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b"] {
            assert!(!is_label(bad), "{bad}");
        }
        assert!(is_subdomain("a.b-c.d") && !is_subdomain("a..b") && !is_subdomain("a."));
        assert!(is_kind("Service") && is_kind("a-B") && !is_kind("1a") && !is_kind("a-"));
        assert!(!is_field_value("a\nb") && !is_field_value("a\0") && is_field_value("a\tb ü"));
        for good in [
            "*",
            "http://a",
            "https://*.example.com:8443",
            "https://*",
            "http://localhost:1",
        ] {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "a",
            "ftp://a",
            "http://",
            "http://a:",
            "http://a:123456",
            "http://a/b",
            "http://a.*.b",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
