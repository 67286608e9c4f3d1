//! What gRPC adds to HTTP/2: its content type, its status, its deadline.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};

/// Whether it is gRPC: `application/grpc`, alone or with a suffix or parameter.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// `grpc-status` of trailers, or of a head without a body. Codes above 16 mean UNKNOWN.
pub(in crate::proxy) fn status(headers: &HeaderMap) -> Option<u8> {
    let text = headers.get("grpc-status")?.to_str().ok()?;
    text.parse::<u8>()
        .ok()
        .map(|code| if code > 16 { 2 } else { code })
}

/// The deadline that a client gave: at most eight digits and a unit (gRPC over HTTP/2, Timeout).
/// A malformed one is none.
pub(super) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout").map(HeaderValue::as_bytes)?;
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The same the other way round: in the finest unit whose number has eight digits at most.
pub(super) fn timeout(span: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let (count, unit) = [
        (span.as_nanos(), 'n'),
        (span.as_micros(), 'u'),
        (span.as_millis(), 'm'),
        (u128::from(span.as_secs()), 'S'),
    ]
    .into_iter()
    .find(|(count, _)| *count <= MOST)
    .unwrap_or((MOST, 'S'));
    // Digits and a letter are always a field value.
    HeaderValue::try_from(format!("{count}{unit}")).unwrap_or(HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))])
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, want) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=x", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(&with("content-type", value)), want, "{value}");
        }
    }

    #[test]
    fn deadline_units_and_malformed_ones() {
        for (value, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("100m", Some(Duration::from_millis(100))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("999999999n", None),
            ("S", None),
            ("-1S", None),
            ("1s", None),
            ("", None),
        ] {
            assert_eq!(deadline(&with("grpc-timeout", value)), want, "{value}");
        }
    }

    #[test]
    fn timeout_is_written_as_fine_as_eight_digits_allow() {
        for (span, want) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_millis(100), "100000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(timeout(span), want);
            let back = deadline(&HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                timeout(span),
            )]));
            assert!(back.unwrap() <= span);
        }
    }

    #[test]
    fn status_out_of_range_is_unknown() {
        assert_eq!(status(&with("grpc-status", "14")), Some(14));
        assert_eq!(status(&with("grpc-status", "17")), Some(2));
        assert_eq!(status(&with("grpc-status", "x")), None);
    }
}
