//! Durations as Gateway API writes them (GEP-2257).

use std::time::Duration;

/// Most parts, and most digits of each.
const PARTS_MAX: usize = 4;
const DIGITS_MAX: usize = 5;

/// Reads `10s`, `1h30m`, `100ms`: one to four parts in any order, of at most five digits each. None:
/// not one. (Go reads the same unit twice as a sum, and so does this.)
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, 0_u64, 0);
    while !rest.is_empty() {
        parts += 1;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if parts > PARTS_MAX || digits == 0 || digits > DIGITS_MAX {
            return None;
        }
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, tail) = tail.split_at(letters);
        let millis = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        total += number.parse::<u64>().ok()? * millis;
        rest = tail;
    }
    (parts > 0).then(|| Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_durations_are_those_of_gep_2257() {
        let millis = |text| duration(text).map(|value| value.as_millis());
        assert_eq!(millis("0s"), Some(0));
        assert_eq!(millis("10s"), Some(10_000));
        assert_eq!(millis("1h30m"), Some(5_400_000));
        assert_eq!(
            millis("99999h99999m99999s99999ms"),
            Some(99_999 * 3_661_001)
        );
        assert_eq!(millis("1m1h"), Some(3_660_000));
        assert_eq!(millis("1s1s"), Some(2000));
        for bad in [
            "",
            "1",
            "s",
            "1.5s",
            "-1s",
            "1d",
            "1us",
            "100000s",
            "1s1s1s1s1s",
            "1 s",
            "1S",
            "s1",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
