//! Heads as bytes: an answer's for a retry policy, a request's with one more field.

use crate::policy::retry::AnswerHead;

/// The head of an answer as it came. Looked into only where a policy asks.
#[derive(Debug)]
pub(super) struct RawHead<'a> {
    status: u16,
    head: &'a [u8],
}

impl<'a> RawHead<'a> {
    pub(super) const fn new(status: u16, head: &'a [u8]) -> Self {
        Self { status, head }
    }
}

impl AnswerHead for RawHead<'_> {
    fn status(&self) -> u16 {
        self.status
    }

    fn grpc(&self) -> Option<u8> {
        None
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        lines(self.head).find_map(|line| value_of(line, name))
    }
}

/// The field lines of a head whose lines end in CRLF.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|byte| *byte == b'\n')
        .skip(1)
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The value of a field line of this name.
fn value_of<'l>(line: &'l [u8], name: &str) -> Option<&'l [u8]> {
    let colon = memchr::memchr(b':', line)?;
    let (key, value) = line.split_at(colon);
    let same = key.trim_ascii_end().eq_ignore_ascii_case(name.as_bytes());
    same.then(|| value[1..].trim_ascii())
}

/// A request's head with a field that says the number of the attempt; what the client said in a
/// field of this name is dropped.
pub(super) fn with_attempt(head: &[u8], name: &str, attempt: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + name.len() + 16);
    let mut rest = head;
    let mut first = true;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, more) = rest.split_at(end + 1);
        if line == b"\r\n" {
            out.extend_from_slice(format!("{name}: {attempt}\r\n\r\n").as_bytes());
        } else if first || value_of(line, name).is_none() {
            out.extend_from_slice(line);
        }
        first = false;
        rest = more;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_of_an_answer_is_found_by_name_without_case() {
        let head = b"HTTP/1.1 503 Busy\r\nRetry-After:  7 \r\nX-A : b\r\nx-empty:\r\n\r\n";
        let head = RawHead::new(503, head);
        assert_eq!(head.field("retry-after"), Some(&b"7"[..]));
        assert_eq!(head.field("x-a"), Some(&b"b"[..]));
        assert_eq!(head.field("x-empty"), Some(&b""[..]));
        assert_eq!(head.field("http/1.1 503 busy"), None);
        assert_eq!(head.field("retry"), None);
    }

    #[test]
    fn attempt_takes_the_place_of_what_the_client_said() {
        let head = b"GET /x-try:1 HTTP/1.1\r\nhost: a\r\nX-Try: 9\r\nx-try: 8\r\n\r\n";
        assert_eq!(
            with_attempt(head, "x-try", 2),
            b"GET /x-try:1 HTTP/1.1\r\nhost: a\r\nx-try: 2\r\n\r\n"
        );
    }
}
