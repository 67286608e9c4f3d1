//! Chunked coding (RFC 9112, section 7.1), validated byte by byte while it passes through.

use super::framing::is_token_byte;

/// Longest chunk extension of one chunk, in bytes. Nobody uses them; RFC 9112, section 7.1.1 asks
/// for a limit.
const EXTENSION_BYTES_MAX: u32 = 256;
/// Extensions of one message, in bytes: many small chunks with an extension each would make the
/// overhead a multiple of the body.
const EXTENSIONS_BYTES_MAX: u32 = 16 << 10;
/// Trailer section in bytes, and fields in it.
const TRAILER_BYTES_MAX: u32 = 16 << 10;
/// Most trailer fields.
const TRAILER_FIELDS_MAX: u32 = 100;
/// Digits of a chunk size: 15 hexadecimal digits are below 2^60, far below 2^63.
const SIZE_DIGITS_MAX: u32 = 15;

/// The body's framing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Digits of a size, how many so far.
    Size {
        digits: u32,
        size: u64,
    },
    /// White space after the size, before `;` (RFC 9112 calls it bad, tolerates it): refused.
    Extension {
        size: u64,
        bytes: u32,
    },
    /// The line feed that ends the size line.
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// The line feed that ends the message.
    EndLf,
    Done,
    /// For good: a byte that broke the framing was not taken, and who offers it again must not
    /// find a way on from where the good bytes before it had led.
    Broken,
}

/// The state of one chunked body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunked {
    at: At,
    /// For an HTTP/1.0 client: only the data is forwarded.
    data_only: bool,
    extensions: u32,
    trailer_bytes: u32,
    trailer_fields: u32,
}

/// What to do with the front of the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Bytes to drop.
    pub(super) skip: usize,
    /// Bytes after them to forward.
    pub(super) forward: usize,
}

impl Chunked {
    pub(super) const fn new(data_only: bool) -> Self {
        Self {
            at: At::Size { digits: 0, size: 0 },
            data_only,
            extensions: 0,
            trailer_bytes: 0,
            trailer_fields: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Takes in `input`; stops at its end, at the end of the body, and, when only data is
    /// forwarded, at the end of each run of data.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        let mut step = Step::default();
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            if let At::Data { left } = self.at {
                let run = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(input.len() - at);
                let left = left - run as u64;
                self.at = if left == 0 {
                    At::DataCr
                } else {
                    At::Data { left }
                };
                at += run;
                step.forward += run;
                if self.data_only {
                    return Ok(step);
                }
            } else {
                if let Err(malformed) = self.framing(input[at]) {
                    self.at = At::Broken;
                    return Err(malformed);
                }
                at += 1;
                if self.data_only {
                    step.skip += 1
                } else {
                    step.forward += 1
                }
            }
        }
        Ok(step)
    }

    fn framing(&mut self, byte: u8) -> Result<(), Malformed> {
        self.at = match (self.at, byte) {
            (At::Size { digits, size }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(Malformed);
                }
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                At::Size {
                    digits: digits + 1,
                    size: size * 16 + u64::from(digit),
                }
            }
            (At::Size { digits: 1.., size }, b'\r') => At::SizeEnd { size },
            (At::Size { digits: 1.., size }, b';') => At::Extension { size, bytes: 1 },
            (At::Extension { size, .. }, b'\r') => At::SizeEnd { size },
            (At::Extension { size, bytes }, b'\t' | 0x20..=0x7e | 0x80..) => {
                self.extensions += 1;
                if bytes == EXTENSION_BYTES_MAX || self.extensions > EXTENSIONS_BYTES_MAX {
                    return Err(Malformed);
                }
                At::Extension {
                    size,
                    bytes: bytes + 1,
                }
            }
            (At::SizeEnd { size: 0 }, b'\n') => At::Trailer,
            (At::SizeEnd { size }, b'\n') => At::Data { left: size },
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size { digits: 0, size: 0 },
            (At::Trailer, b'\r') => At::EndLf,
            (At::EndLf, b'\n') => At::Done,
            (At::Trailer, _) if is_token_byte(byte) => {
                self.trailer_fields += 1;
                if self.trailer_fields > TRAILER_FIELDS_MAX {
                    return Err(Malformed);
                }
                self.trailer(At::TrailerName)?
            }
            (At::TrailerName, _) if is_token_byte(byte) => self.trailer(At::TrailerName)?,
            (At::TrailerName, b':') => self.trailer(At::TrailerValue)?,
            (At::TrailerValue, b'\t' | 0x20..=0x7e | 0x80..) => self.trailer(At::TrailerValue)?,
            (At::TrailerValue, b'\r') => At::TrailerLf,
            (At::TrailerLf, b'\n') => At::Trailer,
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn trailer(&mut self, next: At) -> Result<At, Malformed> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            Err(Malformed)
        } else {
            Ok(next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in pieces of `piece` bytes: what was forwarded, and whether it ended, at
    /// which byte.
    fn run(
        input: &[u8],
        piece: usize,
        data_only: bool,
    ) -> Result<(Vec<u8>, Option<usize>), Malformed> {
        let mut chunked = Chunked::new(data_only);
        let (mut out, mut at) = (Vec::new(), 0);
        while at < input.len() && !chunked.is_done() {
            let end = (at + piece).min(input.len());
            let step = chunked.step(&input[at..end])?;
            assert!(step.skip + step.forward > 0, "no progress");
            out.extend_from_slice(&input[at + step.skip..at + step.skip + step.forward]);
            at += step.skip + step.forward;
        }
        Ok((out, chunked.is_done().then_some(at)))
    }

    const GOOD: &[u8] = b"5;a=b\r\nhello\r\n00A\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\nGET /";

    #[test]
    fn chunked_in_any_pieces_passes_unchanged_and_stops_at_its_end() {
        for piece in 1..GOOD.len() {
            let (out, end) = run(GOOD, piece, false).unwrap();
            assert_eq!(end, Some(GOOD.len() - 5), "{piece}");
            assert_eq!(out, GOOD[..GOOD.len() - 5], "{piece}");
        }
    }

    #[test]
    fn chunked_data_only_forwards_the_data() {
        for piece in 1..GOOD.len() {
            let (out, end) = run(GOOD, piece, true).unwrap();
            assert_eq!(end, Some(GOOD.len() - 5), "{piece}");
            assert_eq!(out, b"hello0123456789", "{piece}");
        }
    }

    #[test]
    fn chunked_once_broken_stays_broken() {
        let mut chunked = Chunked::new(false);
        chunked.step(b"2\r\n").unwrap();
        let rest = b"\r\n\r\n0\r\n ";
        for _ in 0..3 {
            assert_eq!(chunked.step(rest), Err(Malformed));
            assert!(!chunked.is_done());
        }
    }

    #[test]
    fn chunked_limits_at_and_above() {
        let extension = |bytes: usize| format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(bytes - 1));
        assert!(run(extension(256).as_bytes(), 7, false).is_ok());
        assert_eq!(run(extension(257).as_bytes(), 7, false), Err(Malformed));
        let many = |chunks: usize| {
            format!(
                "{}0\r\n\r\n",
                format!("1;{}\r\nx\r\n", "e".repeat(128)).repeat(chunks)
            )
        };
        assert!(run(many(128).as_bytes(), 1000, false).is_ok());
        assert_eq!(run(many(129).as_bytes(), 1000, false), Err(Malformed));
        let trailers = |fields: usize| format!("0\r\n{}\r\n", "a: b\r\n".repeat(fields));
        assert!(run(trailers(100).as_bytes(), 1000, false).is_ok());
        assert_eq!(run(trailers(101).as_bytes(), 1000, false), Err(Malformed));
        let size = |digits: usize| format!("{:0>digits$}\r\nx\r\n0\r\n\r\n", 1);
        assert!(run(size(15).as_bytes(), 1000, false).is_ok());
        assert_eq!(run(size(16).as_bytes(), 1000, false), Err(Malformed));
    }
}
