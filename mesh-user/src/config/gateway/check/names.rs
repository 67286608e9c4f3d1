//! Paths and names of matches.

/// Why a text is no path of type Exact or PathPrefix.
pub(super) fn path_fault(path: &str) -> Option<&'static str> {
    let inside = |bad: &[&str]| bad.iter().any(|bad| path.contains(bad));
    if !path.starts_with('/') {
        Some("does not begin with `/`")
    } else if inside(&["//"]) {
        Some("holds `//`")
    } else if inside(&["/./", "/../"]) || path.ends_with("/.") || path.ends_with("/..") {
        Some("holds `.` or `..` as an element")
    } else if inside(&["%2f", "%2F"]) {
        Some("holds an encoded slash")
    } else if path.contains('#') {
        Some("holds `#`")
    } else if !is_path_text(path) {
        Some("holds a character that no path may hold")
    } else {
        None
    }
}

/// `pchar` of RFC 3986 §3.3, and slashes.
fn is_path_text(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'%' {
            let hex = |offset| bytes.get(at + offset).is_some_and(u8::is_ascii_hexdigit);
            if !(hex(1) && hex(2)) {
                return false;
            }
            at += 3;
        } else if byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(byte) {
            at += 1;
        } else {
            return false;
        }
    }
    true
}

pub(super) fn is_method(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

pub(super) fn is_service(text: &str) -> bool {
    text.strip_prefix('.')
        .unwrap_or(text)
        .split('.')
        .all(is_method)
}
