//! Finds the end of a message head, and refuses lines that do not end in CRLF.
//!
//! Works on a growing buffer and looks at each byte once, so that a head that comes byte by byte
//! costs no more than one that comes at once.

use memchr::memchr;

use crate::policy::Reject;

/// Where a scan stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    /// Everything before was looked at.
    at: usize,
    /// Where the current line starts.
    line: usize,
}

impl Scan {
    /// At the start of a head.
    pub(super) const fn new() -> Self {
        Self { at: 0, line: 0 }
    }

    /// Looks on in `bytes`, which starts with the head. The head's length once it is complete.
    ///
    /// # Errors
    /// [`Reject::BadRequest`] for a line feed without carriage return, [`Reject::TargetTooLong`]
    /// for a start line that can't fit, [`Reject::HeadTooLarge`].
    pub(super) fn advance(
        &mut self,
        bytes: &[u8],
        head_bytes_max: usize,
        line_bytes_max: usize,
    ) -> Result<Option<usize>, Reject> {
        while let Some(offset) = memchr(b'\n', &bytes[self.at..]) {
            let feed = self.at + offset;
            let (line, start) = (self.line, self.line == 0);
            if feed == line || bytes[feed - 1] != b'\r' {
                return Err(Reject::BadRequest);
            }
            if start && feed - 1 > line_bytes_max {
                return Err(Reject::TargetTooLong);
            }
            (self.at, self.line) = (feed + 1, feed + 1);
            if feed + 1 > head_bytes_max {
                return Err(Reject::HeadTooLarge);
            }
            if feed - 1 == line {
                return Ok(Some(feed + 1));
            }
        }
        self.at = bytes.len();
        if self.line == 0 && bytes.len() > line_bytes_max.saturating_add(2) {
            Err(Reject::TargetTooLong)
        } else if bytes.len() >= head_bytes_max {
            Err(Reject::HeadTooLarge)
        } else {
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[test]
    fn scan_byte_by_byte_finds_the_end() {
        let mut scan = Scan::default();
        for len in 0..HEAD.len() {
            assert_eq!(scan.advance(&HEAD[..len], 1000, 1000), Ok(None), "{len}");
        }
        let mut more = HEAD.to_vec();
        more.extend_from_slice(b"body\r\n\r\n");
        assert_eq!(scan.advance(&more, 1000, 1000), Ok(Some(HEAD.len())));
    }

    #[test]
    fn scan_head_size_at_its_limit_and_above() {
        assert_eq!(
            Scan::default().advance(HEAD, HEAD.len(), 1000),
            Ok(Some(HEAD.len()))
        );
        assert_eq!(
            Scan::default().advance(HEAD, HEAD.len() - 1, 1000),
            Err(Reject::HeadTooLarge)
        );
        let endless = [b'a'; 100];
        assert_eq!(Scan::default().advance(&endless[..99], 100, 1000), Ok(None));
        assert_eq!(
            Scan::default().advance(&endless, 100, 1000),
            Err(Reject::HeadTooLarge)
        );
    }

    #[test]
    fn scan_start_line_at_its_limit_and_above() {
        let line = "GET / HTTP/1.1".len();
        assert!(Scan::default().advance(HEAD, 1000, line).is_ok());
        assert_eq!(
            Scan::default().advance(HEAD, 1000, line - 1),
            Err(Reject::TargetTooLong)
        );
        assert_eq!(
            Scan::default().advance(&[b'a'; 20], 1000, 17),
            Err(Reject::TargetTooLong)
        );
    }

    #[test]
    fn scan_bare_line_feed_is_refused_at_once() {
        for bad in [
            &b"\n"[..],
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\r\na: b\n",
            b"GET /\r\n\n",
        ] {
            assert_eq!(
                Scan::default().advance(bad, 1000, 1000),
                Err(Reject::BadRequest)
            );
        }
    }
}
