//! What a connection speaks, told by its first bytes. Pure.

/// The HTTP/2 connection preface (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest method that is taken for HTTP when sniffing: registered ones have at most 17 letters
/// (UPDATEREDIRECTREF).
const METHOD_BYTES_MAX: usize = 24;

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guess {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Not HTTP.
    Opaque,
    /// Could still be HTTP: more bytes are needed.
    More,
}

/// Tells HTTP/1 from HTTP/2, on a port that is declared to speak HTTP.
pub(super) fn declared_http(bytes: &[u8]) -> Guess {
    let len = bytes.len().min(PREFACE.len());
    if bytes[..len] != PREFACE[..len] {
        Guess::Http1
    } else if len == PREFACE.len() {
        Guess::Http2
    } else {
        Guess::More
    }
}

/// Tells HTTP from anything else, on a port of which nothing is known. HTTP/1 needs the whole
/// request line up to its version: a text protocol such as SMTP looks like a method until then.
pub(super) fn sniff(bytes: &[u8], target_bytes_max: usize) -> Guess {
    match declared_http(bytes) {
        Guess::Http1 => {}
        told => return told,
    }
    let method = bytes
        .iter()
        .take_while(|byte| is_method_byte(**byte))
        .count();
    if method > METHOD_BYTES_MAX {
        return Guess::Opaque;
    }
    match bytes.get(method) {
        None => return Guess::More,
        Some(b' ') if method > 0 => {}
        Some(_) => return Guess::Opaque,
    }
    let rest = &bytes[method + 1..];
    let target = rest
        .iter()
        .take_while(|byte| byte.is_ascii_graphic())
        .count();
    if target > target_bytes_max {
        return Guess::Opaque;
    }
    match rest.get(target) {
        None => return Guess::More,
        Some(b' ') if target > 0 => {}
        Some(_) => return Guess::Opaque,
    }
    let version = &rest[target + 1..];
    const WANT: &[u8] = b"HTTP/1.";
    let len = version.len().min(WANT.len());
    if version[..len] != WANT[..len] {
        Guess::Opaque
    } else if len == WANT.len() {
        Guess::Http1
    } else {
        Guess::More
    }
}

/// Upper-case letters, digits, `-` and `_`: every registered method, narrower than a token, so
/// that binary and lower-case protocols are told apart at their first byte.
const fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sniffed(bytes: &[u8]) -> Guess {
        sniff(bytes, 100)
    }

    #[test]
    fn declared_http_tells_the_preface_from_a_request() {
        assert_eq!(declared_http(b""), Guess::More);
        assert_eq!(declared_http(b"P"), Guess::More);
        assert_eq!(declared_http(b"POST / HTTP/1.1\r\n"), Guess::Http1);
        assert_eq!(
            declared_http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"),
            Guess::More
        );
        assert_eq!(declared_http(PREFACE), Guess::Http2);
        assert_eq!(declared_http(b"PRI * HTTP/1.1\r\n"), Guess::Http1);
        assert_eq!(declared_http(b"\x16\x03"), Guess::Http1);
    }

    #[test]
    fn sniff_every_prefix_of_a_request_waits_until_the_version() {
        let request = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n";
        let told = request.windows(7).position(|w| w == b"HTTP/1.").unwrap() + 7;
        for len in 0..request.len() {
            let want = if len < told {
                Guess::More
            } else {
                Guess::Http1
            };
            assert_eq!(sniffed(&request[..len]), want, "{len}");
        }
    }

    #[test]
    fn sniff_what_can_not_be_http_is_opaque_at_once() {
        for bytes in [
            &b"\x16\x03\x01"[..],
            b"\0",
            b" ",
            b"get / HTTP/1.1",
            b"EHLO example.org\r\n",
            b"SSH-2.0-OpenSSH\r\n",
            b"GET /\r\n",
            b"GET / FTP",
            b"GET / HTTP/3",
            b"AVERYLONGWORDTHATISNOMETHOD",
            b"GET \x80",
        ] {
            assert_eq!(sniffed(bytes), Guess::Opaque, "{bytes:?}");
        }
    }

    #[test]
    fn sniff_target_at_and_above_its_limit() {
        let line = |len: usize| format!("GET /{} HTTP/1.1", "a".repeat(len - 1)).into_bytes();
        assert_eq!(sniffed(&line(100)), Guess::Http1);
        assert_eq!(sniffed(&line(101)), Guess::Opaque);
    }
}
