//! Reads an answer's head and finds the end of its body. Pure: bytes in, lengths out.

use http::header;
use httparse::{Response, Status};

/// Most fields of an answer: ten times what servers send.
const FIELDS_MAX: usize = 200;

/// What the generator wants to know of a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Its length in bytes.
    pub(super) length: usize,
    /// The status.
    pub(super) status: u16,
    /// How the body ends.
    pub(super) body: Framing,
    /// Whether another request may follow.
    pub(super) keep_alive: bool,
    /// Value of the echo servers' version field: where in the head.
    pub(super) version: Option<(usize, usize)>,
}

/// How a body ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With its last chunk.
    Chunked(Chunked),
    /// With the connection.
    Close,
}

/// Not HTTP.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads a head; `None`: not complete yet.
pub(super) fn head(bytes: &[u8], bodyless: bool) -> Result<Option<Head>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed),
    };
    let status = response.code.ok_or(Malformed)?;
    let mut head = Head {
        length,
        status,
        body: Framing::Close,
        keep_alive: response.version == Some(1),
        version: None,
    };
    for field in response.headers.iter() {
        let is = |name: &header::HeaderName| field.name.eq_ignore_ascii_case(name.as_str());
        let holds = |word: &str| {
            let value = String::from_utf8_lossy(field.value);
            value
                .split(',')
                .any(|part| part.trim().eq_ignore_ascii_case(word))
        };
        if is(&header::TRANSFER_ENCODING) {
            head.body = Framing::Chunked(Chunked::default());
        } else if is(&header::CONTENT_LENGTH) && !matches!(head.body, Framing::Chunked(_)) {
            let text = std::str::from_utf8(field.value).map_err(|_| Malformed)?;
            head.body = Framing::Length(text.trim().parse().map_err(|_| Malformed)?);
        } else if is(&header::CONNECTION) {
            head.keep_alive = (head.keep_alive && !holds("close")) || holds("keep-alive");
        } else if field.name.eq_ignore_ascii_case("x-echo-version") {
            let start = field.value.as_ptr() as usize - bytes.as_ptr() as usize;
            head.version = Some((start, start + field.value.len()));
        }
    }
    // RFC 9112, section 6.3: these never have one.
    if bodyless || status < 200 || status == 204 || status == 304 {
        head.body = Framing::Length(0);
    }
    if head.body == Framing::Close {
        head.keep_alive = false;
    }
    Ok(Some(head))
}

/// Finds the end of a chunked body (RFC 9112, section 7.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    /// Bytes of the chunk that are to come, or its size as read so far.
    size: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Start,
    Size,
    /// A chunk extension: ignored.
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the end.
    Trailer,
    TrailerField,
    EndLf,
    Done,
}

impl Chunked {
    /// Reads on; returns how many bytes belong to the body, and whether it is complete.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::Data {
                let here = usize::try_from(self.size)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len() - at);
                at += here;
                self.size -= here as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok((at, self.state == State::Done))
    }

    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::Start | State::Size, digit) if digit.is_ascii_hexdigit() => {
                let digit = char::from(digit).to_digit(16).map_or(0, u64::from);
                let size = self
                    .size
                    .checked_mul(16)
                    .and_then(|size| size.checked_add(digit));
                self.size = size.ok_or(Malformed)?;
                State::Size
            }
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            (State::Size, b';' | b' ' | b'\t') => State::Extension,
            (State::Extension, _) => State::Extension,
            (State::SizeLf, b'\n') if self.size == 0 => State::Trailer,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Start,
            (State::Trailer, b'\r') => State::EndLf,
            (State::TrailerField, b'\n') => State::Trailer,
            (State::Trailer | State::TrailerField, _) => State::TrailerField,
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(Malformed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Head {
        head(text.as_bytes(), false)
            .expect("HTTP")
            .expect("complete")
    }

    #[test]
    fn framing_follows_the_head() {
        let length = read("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n");
        assert_eq!(
            (length.body, length.keep_alive),
            (Framing::Length(12), true)
        );
        let chunked = read("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(chunked.body, Framing::Chunked(Chunked::default()));
        let close = read("HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!((close.body, close.keep_alive), (Framing::Close, false));
        let none = read("HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!((none.body, none.keep_alive), (Framing::Length(0), true));
        let old = read("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n");
        assert!(!old.keep_alive);
        let closing = read("HTTP/1.1 200 OK\r\nConnection: Close\r\ncontent-length: 0\r\n\r\n");
        assert!(!closing.keep_alive);
    }

    #[test]
    fn version_is_found_where_it_stands() {
        let text = "HTTP/1.1 200 OK\r\nX-Echo-Version:  v2\r\ncontent-length: 0\r\n\r\n";
        let (start, end) = read(text).version.expect("there");
        assert_eq!(&text[start..end], "v2");
    }

    #[test]
    fn half_a_head_is_waited_for_and_no_head_is_malformed() {
        assert_eq!(head(b"HTTP/1.1 200 OK\r\ncontent-le", false), Ok(None));
        assert_eq!(head(b"SSH-2.0-OpenSSH\r\n", false), Err(Malformed));
        assert_eq!(
            head(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", false),
            Err(Malformed)
        );
    }

    #[test]
    fn chunked_body_ends_at_the_same_byte_however_it_is_split() {
        let body =
            b"5\r\nhello\r\n1a;x=y\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nt: a\r\nu: b\r\n\r\nHTTP";
        let end = body.len() - 4;
        for first in 0..body.len() {
            for second in first..body.len() {
                let mut chunked = Chunked::default();
                let mut read = 0;
                for part in [&body[..first], &body[first..second], &body[second..]] {
                    let (length, done) = chunked.advance(part).expect("valid");
                    read += length;
                    assert_eq!(done, read == end, "split at {first} and {second}");
                }
                assert_eq!(read, end, "split at {first} and {second}");
            }
        }
    }

    #[test]
    fn chunked_body_that_is_none_is_malformed() {
        for body in [
            "\r\n",
            "g\r\n",
            "5\r\nhelloX",
            "5\nhello",
            "0\r\n\rX",
            "fffffffffffffffff\r\n",
        ] {
            assert_eq!(
                Chunked::default().advance(body.as_bytes()),
                Err(Malformed),
                "{body:?}"
            );
        }
    }
}
