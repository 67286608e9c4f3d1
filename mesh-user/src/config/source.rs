//! The bytes of a configuration file: read with bounds, and where each byte stands.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use super::report::Code;

/// Largest file. 100,000 rules take about 10 MiB.
pub(crate) const FILE_BYTES_MAX: u64 = 16 << 20;

/// A file's text with its line starts.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// What messages call it.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
    /// Byte offset of each line.
    lines: Vec<u32>,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// First byte.
    pub(crate) start: u32,
    /// Byte behind the last.
    pub(crate) end: u32,
}

/// Why a file can't be read: a name and a sentence.
pub(crate) type ReadFault = (Code, String, &'static str);

impl Source {
    /// A text at hand. A byte-order mark is dropped (YAML 1.2 §5.2 allows one).
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let starts = text.bytes().zip(1_u32..).filter(|(byte, _)| *byte == b'\n');
        let lines = std::iter::once(0)
            .chain(starts.map(|(_, next)| next))
            .collect();
        Self {
            name: name.to_owned(),
            text: text.to_owned(),
            lines,
        }
    }

    /// Line and column in characters, both from 1, of a byte.
    pub(crate) fn position(&self, byte: u32) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= byte).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0) as usize;
        let end = (byte as usize).min(self.text.len()).max(start);
        let before = self.text.as_bytes().get(start..end).unwrap_or_default();
        // A character begins at each byte that is not a continuation of one.
        let column = before.iter().filter(|byte| (**byte & 0xc0) != 0x80).count() + 1;
        (line, column)
    }

    /// Width in characters of a span on its first line; at least 1.
    pub(crate) fn width(&self, span: Span) -> usize {
        let (start, end) = (
            span.start as usize,
            (span.end as usize).min(self.text.len()),
        );
        let marked = self.text.get(start..end.max(start)).unwrap_or_default();
        let first = marked.split(['\n', '\r']).next().unwrap_or_default();
        first.trim_end().chars().count().max(1)
    }

    /// The text of a line, without its end; lines count from 1.
    pub(crate) fn line(&self, line: usize) -> Option<&str> {
        let start = *self.lines.get(line.checked_sub(1)?)? as usize;
        self.text.get(start..)?.lines().next()
    }
}

/// Reads a file.
///
/// # Errors
/// It is not a regular file of at most [`FILE_BYTES_MAX`] bytes of UTF-8 that may be read.
pub(crate) fn read(path: &Path) -> Result<String, ReadFault> {
    let meta = fs::metadata(path).map_err(io_fault)?;
    if meta.is_dir() {
        let message = "is a directory, not a file".to_owned();
        return Err((Code::FileIsDirectory, message, "the path of one YAML file"));
    }
    if !meta.is_file() {
        // A pipe without a writer would block for ever.
        let message = "is not a regular file".to_owned();
        return Err((Code::FileNotRegular, message, "the path of one YAML file"));
    }
    let file = File::open(path).map_err(io_fault)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io_fault)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("is larger than {} MiB", FILE_BYTES_MAX >> 20);
        return Err((Code::FileTooLarge, message, "a file of at most 16 MiB"));
    }
    decode(bytes)
}

/// Bytes to text.
///
/// # Errors
/// They are not UTF-8.
pub(crate) fn decode(bytes: Vec<u8>) -> Result<String, ReadFault> {
    let utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    String::from_utf8(bytes).map_err(|error| {
        let message = if utf16 {
            "begins with a UTF-16 byte-order mark".to_owned()
        } else {
            format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to())
        };
        (Code::FileNotUtf8, message, "a file saved as UTF-8")
    })
}

fn io_fault(error: io::Error) -> ReadFault {
    match error.kind() {
        io::ErrorKind::NotFound => (
            Code::FileMissing,
            "does not exist".to_owned(),
            "the path of an existing file",
        ),
        io::ErrorKind::PermissionDenied => (
            Code::FilePermission,
            "may not be read: permission denied".to_owned(),
            "a file that the agent's user may read",
        ),
        _ => (
            Code::FileUnreadable,
            format!("can't be read: {error}"),
            "a readable file",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_characters_not_bytes() {
        let source = Source::new("x", "a: ä\nö: b\n");
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(5), (1, 5));
        assert_eq!(source.position(6), (2, 1));
        assert_eq!(source.position(8), (2, 2));
        assert_eq!(source.position(9999), (3, 1));
        assert_eq!(source.line(2), Some("ö: b"));
        assert_eq!(source.line(0), None);
    }

    /// Root may read everything, so the kernel's answer is made here.
    #[test]
    fn source_io_errors_are_named() {
        let code = |kind: io::ErrorKind| io_fault(kind.into()).0;
        assert_eq!(code(io::ErrorKind::PermissionDenied), Code::FilePermission);
        assert_eq!(code(io::ErrorKind::NotFound), Code::FileMissing);
        assert_eq!(
            code(io::ErrorKind::StaleNetworkFileHandle),
            Code::FileUnreadable
        );
    }

    /// Without it: bytes from a file could panic the agent.
    #[test]
    fn source_bytes_that_are_no_text_are_named() {
        assert_eq!(
            decode(vec![b'a', 0xff]).map_err(|fault| fault.0),
            Err(Code::FileNotUtf8)
        );
        assert!(decode(vec![0xff, 0xfe, b'a', 0]).is_err_and(|fault| fault.1.contains("UTF-16")));
        assert_eq!(Source::new("x", "\u{feff}a").text, "a");
    }
}
