//! Copies a head line by line, in as few runs as possible: lines that stay are copied together,
//! as they were sent.

use std::ops::Range;

use httparse::Header;

use super::framing::trim;

/// Where `part` stands in `whole`, of which it is a slice.
pub(super) fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().wrapping_sub(whole.as_ptr().addr())
}

/// Copies lines of `head` to `out`.
pub(super) struct Lines<'a> {
    head: &'a [u8],
    out: &'a mut Vec<u8>,
    /// Start of the lines that are kept but not copied yet.
    run: usize,
}

impl<'a> Lines<'a> {
    /// Starts with the byte at `from`.
    pub(super) fn new(head: &'a [u8], out: &'a mut Vec<u8>, from: usize) -> Self {
        Self {
            head,
            out,
            run: from,
        }
    }

    /// Where the byte at `at` of the head will stand in `out`.
    fn place(&self, at: usize) -> usize {
        self.out.len() + (at - self.run)
    }

    /// Where the value of a kept line will stand in `out`.
    pub(super) fn span(&self, field: &Header<'_>) -> Range<usize> {
        let value = trim(field.value);
        let at = self.place(offset_in(self.head, value));
        at..at + value.len()
    }

    /// Copies the lines that were kept, up to the line at `at`, which starts there; goes on at
    /// `next`.
    pub(super) fn cut(&mut self, at: usize, next: usize) -> &mut Vec<u8> {
        self.out.extend_from_slice(&self.head[self.run..at]);
        self.run = next;
        self.out
    }
}

/// Where the line of each field starts, and where the next one starts. Lines follow one another
/// without a gap: obs-fold is refused, and the last one ends before the empty line.
pub(super) fn line(head: &[u8], fields: &[Header<'_>], index: usize) -> Range<usize> {
    let start = offset_in(head, fields[index].name.as_bytes());
    let end = match fields.get(index + 1) {
        Some(next) => offset_in(head, next.name.as_bytes()),
        None => head.len() - 2,
    };
    start..end
}

/// Appends a field.
pub(super) fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
