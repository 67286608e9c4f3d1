//! Durations, sizes and rates as text.

use std::{fmt::Write as _, time::Duration};

/// Units of a duration, largest first, with their length in microseconds.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Units of a size with their length in bytes.
const SIZE_UNITS: [(&str, i64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads `15s`, `250ms`, `1m30s`, `1h`. None: not a duration, or one beyond 2^64 us.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total: u64 = 0;
    let mut units = DURATION_UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at_checked(digits)?;
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at_checked(letters)?;
        // Units come in order, each at most once: `1s1s` and `1s1h` are slips, not durations.
        let (_, micros) = units.by_ref().find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*micros)?)?;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::from_micros(total))
}

/// The inverse of [`duration`].
pub(crate) fn show_duration(duration: Duration) -> String {
    let mut micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if micros == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, length) in DURATION_UNITS {
        if micros >= length {
            // Writing to a String can't fail.
            let _ = write!(out, "{}{unit}", micros / length);
            micros %= length;
        }
    }
    out
}

/// Reads `64KiB`, `1MiB`, `512B`. None: not a size.
pub(crate) fn size(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    // 18 digits are below 2^63 for sure, and what the schema's pattern takes.
    let (number, unit) = text.split_at_checked(digits).filter(|_| digits <= 18)?;
    let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<i64>().ok()?.checked_mul(*bytes)
}

/// The inverse of [`size`], in the largest unit that divides it.
pub(crate) fn show_size(bytes: i64) -> String {
    for (unit, length) in SIZE_UNITS {
        if bytes >= length && bytes % length == 0 {
            return format!("{}{unit}", bytes / length);
        }
    }
    format!("{bytes}B")
}

/// Reads `100/s`, `60/m`, `1000/h`: the number and its period. None: not a rate, or 0.
pub(crate) fn rate(text: &str) -> Option<(u64, Duration)> {
    let (number, period) = text.split_once('/')?;
    let seconds = match period {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = number.parse::<u64>().ok().filter(|number| *number > 0)?;
    Some((number, Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Without it: a typing slip in a time-out silently becomes another time-out.
    #[test]
    fn duration_slips_are_refused() {
        for text in [
            "",
            "s",
            "15",
            "1.5s",
            "-1s",
            "1s1s",
            "1s1h",
            "1d",
            "1 s",
            "1S",
            "99999999999999999999s",
            "9999999999999999h",
        ] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn duration_units_add_up() {
        assert_eq!(
            duration("1h1m1s1ms1us"),
            Some(Duration::from_micros(3_661_001_001))
        );
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("90s"), duration("1m30s"));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
    }

    #[test]
    fn size_and_rate_at_their_edges() {
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("1B"), Some(1));
        for text in [
            "",
            "KiB",
            "64",
            "64kb",
            "64K",
            "-1KiB",
            "9223372036854775807GiB",
        ] {
            assert_eq!(size(text), None, "{text:?}");
        }
        assert_eq!(rate("100/s"), Some((100, Duration::from_secs(1))));
        for text in ["", "/s", "0/s", "100", "100/d", "1.5/s", "+1/s", "100/s/s"] {
            assert_eq!(rate(text), None, "{text:?}");
        }
    }

    proptest! {
        /// Without it: `mesh config` prints durations that the file would not take.
        #[test]
        fn shown_values_read_back(micros in 0..u64::from(u32::MAX) * 1000, bytes in 0..1_000_000_000_000_000_000_i64) {
            let duration_in = Duration::from_micros(micros);
            prop_assert_eq!(duration(&show_duration(duration_in)), Some(duration_in));
            prop_assert_eq!(size(&show_size(bytes)), Some(bytes));
        }
    }
}
