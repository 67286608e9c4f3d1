//! How long a message body is (RFC 9112, section 6), decided by us and strictly. Whoever disagrees
//! with the next hop about this smuggles requests.

use crate::policy::Reject;

/// Largest body length that is believed: 2^63 - 1, so that sums never overflow.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// The framing fields of one head, field by field.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    length: Option<u64>,
    lengths_bad: bool,
    coded: bool,
    /// The last coding is `chunked`.
    chunked_last: bool,
    /// `chunked` is there, but not last, or not once.
    chunked_elsewhere: bool,
    known_other: bool,
    unknown: bool,
    codings_bad: bool,
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// No framing field.
    Unstated,
    /// `Content-Length`.
    Bytes(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A decimal number of at most 19 digits and nothing else: no sign, no space, no list.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// `value` without white space (space and tab) around it.
pub(super) fn trim(value: &[u8]) -> &[u8] {
    let ows = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value
        .iter()
        .position(|byte| !ows(byte))
        .unwrap_or(value.len());
    let end = value
        .iter()
        .rposition(|byte| !ows(byte))
        .map_or(start, |last| last + 1);
    &value[start..end]
}

/// Whether it is a token (RFC 9110, section 5.6.2).
pub(super) fn is_token(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|byte| is_token_byte(*byte))
}

/// Whether it may stand in a token.
pub(super) const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

impl Framing {
    /// Takes in a `Content-Length` field. Identical repeats are one.
    pub(super) fn content_length(&mut self, value: &[u8]) {
        match decimal(trim(value)).filter(|length| *length <= LENGTH_MAX) {
            Some(length) if self.length.is_none_or(|other| other == length) => {
                self.length = Some(length);
            }
            _ => self.lengths_bad = true,
        }
    }

    /// Takes in a `Transfer-Encoding` field. An empty element is a disguise, not a courtesy.
    pub(super) fn transfer_encoding(&mut self, value: &[u8]) {
        self.coded = true;
        for coding in value.split(|byte| *byte == b',').map(trim) {
            self.chunked_elsewhere |= self.chunked_last;
            self.chunked_last = coding.eq_ignore_ascii_case(b"chunked");
            if self.chunked_last {
                continue;
            }
            // Codings with parameters are tokens with something behind them.
            let name = coding
                .split(|byte| *byte == b';')
                .next()
                .map_or(coding, trim);
            let known: [&[u8]; 6] = [
                b"gzip",
                b"x-gzip",
                b"deflate",
                b"compress",
                b"x-compress",
                b"identity",
            ];
            if !is_token(name) || name.eq_ignore_ascii_case(b"chunked") {
                self.codings_bad = true;
            } else if known.iter().any(|known| name.eq_ignore_ascii_case(known)) {
                self.known_other = true;
            } else {
                self.unknown = true;
            }
        }
    }

    /// The verdict for a request (RFC 9112, section 6.3, the strict choice wherever there is one).
    ///
    /// # Errors
    /// [`Reject::BadRequest`], [`Reject::UnknownCoding`]. Either ends the connection.
    pub(super) fn request(&self, http10: bool) -> Result<Length, Reject> {
        if self.lengths_bad || (self.coded && (self.length.is_some() || http10)) {
            return Err(Reject::BadRequest);
        }
        if !self.coded {
            return Ok(self.length.map_or(Length::Unstated, Length::Bytes));
        }
        if self.codings_bad || self.chunked_elsewhere {
            return Err(Reject::BadRequest);
        }
        if self.unknown || (self.known_other && self.chunked_last) {
            return Err(Reject::UnknownCoding);
        }
        if self.chunked_last {
            Ok(Length::Chunked)
        } else {
            Err(Reject::BadRequest)
        }
    }

    /// The verdict for an answer that may have a body.
    ///
    /// # Errors
    /// [`Reject::UpstreamMalformed`]: the connection is not to be trusted further.
    pub(super) fn response(&self, http10: bool) -> Result<Length, Reject> {
        self.request(http10).map_err(|_| Reject::UpstreamMalformed)
    }

    /// Whether `Content-Length` is contradictory or no number: refused even where the length does
    /// not count (HEAD, 304), because the field is forwarded.
    pub(super) const fn length_is_bad(&self) -> bool {
        self.lengths_bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_takes_digits_only() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"0042"), Some(42));
        assert_eq!(decimal(b"9223372036854775807"), Some(LENGTH_MAX));
        for bad in [
            "",
            "+1",
            "-1",
            "1 1",
            "0x1",
            "1,1",
            "1.0",
            "99999999999999999999",
            "\u{b2}",
        ] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn length_at_and_above_the_largest() {
        let verdict = |text: &str| {
            let mut framing = Framing::default();
            framing.content_length(text.as_bytes());
            framing.request(false)
        };
        assert_eq!(
            verdict("9223372036854775807"),
            Ok(Length::Bytes(LENGTH_MAX))
        );
        assert_eq!(verdict("9223372036854775808"), Err(Reject::BadRequest));
    }
}
